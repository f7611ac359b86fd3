//! VXLAN headers (RFC 7348).

use crate::bytes::put;
use crate::{Malformed, Vni};

/// Bytes of the header.
pub const HEADER_LEN: usize = 8;
/// The destination port (RFC 7348 section 8).
pub const PORT: u16 = 4789;
/// The I flag, in the first byte: the network identifier is valid.
pub const VALID_VNI: u8 = 0x08;

/// A checked view of a header and the Ethernet frame behind it.
#[derive(Clone, Copy, Debug)]
pub struct Vxlan<'a> {
    header: &'a [u8; HEADER_LEN],
    payload: &'a [u8],
}

impl<'a> Vxlan<'a> {
    /// Checks that the header is there and its identifier valid; reserved bits are ignored, as RFC 7348 wants.
    #[inline]
    pub fn new_checked(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let (header, payload) = bytes.split_first_chunk::<HEADER_LEN>().ok_or(Malformed::Truncated)?;
        if header[0] & VALID_VNI == 0 {
            return Err(Malformed::BadTunnelFlags);
        }
        Ok(Vxlan { header, payload })
    }

    /// The network.
    #[inline]
    pub fn vni(&self) -> Vni {
        Vni::from_bytes([self.header[4], self.header[5], self.header[6]])
    }

    /// The Ethernet frame inside.
    #[inline]
    pub fn payload(&self) -> &'a [u8] {
        self.payload
    }
}

/// The fields of a header to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Repr {
    /// The network.
    pub vni: Vni,
}

impl Repr {
    /// The header's bytes.
    pub fn emit(&self) -> [u8; HEADER_LEN] {
        let mut header = [0; HEADER_LEN];
        header[0] = VALID_VNI;
        put(&mut header, 4, self.vni.to_bytes());
        header
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn view_reads_what_repr_emits() {
        let vni = Vni::new(0x12_34_56).unwrap();
        let packet = [&Repr { vni }.emit()[..], &[1]].concat();
        let view = Vxlan::new_checked(&packet).unwrap();
        assert_eq!((view.vni(), view.payload()), (vni, &[1][..]));
    }

    #[test]
    fn reserved_bits_are_ignored_and_the_valid_flag_is_not() {
        let mut header = [0xff; HEADER_LEN];
        assert_eq!(Vxlan::new_checked(&header).unwrap().vni(), Vni::MAX);
        header[0] = !VALID_VNI;
        assert_eq!(Vxlan::new_checked(&header).err(), Some(Malformed::BadTunnelFlags));
        assert_eq!(Vxlan::new_checked(&header[..7]).err(), Some(Malformed::Truncated));
    }
}
