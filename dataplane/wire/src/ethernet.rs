//! Ethernet II frames (IEEE 802.3, RFC 894).

use crate::bytes::{array, be16, put, put16};
use crate::{MacAddr, Malformed};

/// Bytes of the header: two addresses and a type.
pub const HEADER_LEN: usize = 14;
/// Offset of the type.
pub const TYPE_AT: usize = 12;

/// IPv4 (RFC 894).
pub const IPV4: u16 = 0x0800;
/// ARP (RFC 826).
pub const ARP: u16 = 0x0806;
/// An Ethernet frame inside, "transparent Ethernet bridging" (RFC 1701): Geneve and GRE name it.
pub const BRIDGED: u16 = 0x6558;
/// A customer VLAN tag follows (IEEE 802.1Q).
pub const VLAN: u16 = 0x8100;
/// IPv6 (RFC 2464).
pub const IPV6: u16 = 0x86dd;
/// A service VLAN tag follows (IEEE 802.1ad).
pub const SERVICE_VLAN: u16 = 0x88a8;

/// A checked view of a frame.
#[derive(Clone, Copy, Debug)]
pub struct Ethernet<'a> {
    header: &'a [u8; HEADER_LEN],
    payload: &'a [u8],
}

impl<'a> Ethernet<'a> {
    /// Checks that the header is there.
    #[inline]
    pub fn new_checked(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let (header, payload) = bytes.split_first_chunk().ok_or(Malformed::Truncated)?;
        Ok(Ethernet { header, payload })
    }

    /// The station the frame is for.
    #[inline]
    pub fn dst(&self) -> MacAddr {
        MacAddr(array(self.header, 0))
    }

    /// The station the frame is from.
    #[inline]
    pub fn src(&self) -> MacAddr {
        MacAddr(array(self.header, 6))
    }

    /// What the payload is; below 0x0600 it is an IEEE 802.3 length instead.
    #[inline]
    pub fn ethertype(&self) -> u16 {
        be16(self.header, TYPE_AT)
    }

    /// Everything behind the header, padding included.
    #[inline]
    pub fn payload(&self) -> &'a [u8] {
        self.payload
    }
}

/// The fields of a header to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Repr {
    /// The station the frame is for.
    pub dst: MacAddr,
    /// The station the frame is from.
    pub src: MacAddr,
    /// What the payload is.
    pub ethertype: u16,
}

impl Repr {
    /// The header's bytes.
    #[inline]
    pub fn emit(&self) -> [u8; HEADER_LEN] {
        let mut header = [0; HEADER_LEN];
        put(&mut header, 0, self.dst.0);
        put(&mut header, 6, self.src.0);
        put16(&mut header, TYPE_AT, self.ethertype);
        header
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn view_reads_what_repr_emits() {
        let repr =
            Repr { dst: MacAddr([1, 2, 3, 4, 5, 6]), src: MacAddr([7, 8, 9, 10, 11, 12]), ethertype: IPV6 };
        let mut frame = repr.emit().to_vec();
        frame.push(0xaa);
        let view = Ethernet::new_checked(&frame).unwrap();
        assert_eq!(Repr { dst: view.dst(), src: view.src(), ethertype: view.ethertype() }, repr);
        assert_eq!(view.payload(), [0xaa]);
    }

    #[test]
    fn short_header_is_truncated() {
        assert_eq!(Ethernet::new_checked(&[0; 13]).err(), Some(Malformed::Truncated));
    }
}
