//! UDP headers (RFC 768).

use crate::Malformed;
use crate::bytes::{be16, put16};

/// Bytes of the header.
pub const HEADER_LEN: usize = 8;
/// Offset of the length.
pub const LEN_AT: usize = 4;
/// Offset of the checksum.
pub const CHECKSUM_AT: usize = 6;

/// A checked view of a datagram.
#[derive(Clone, Copy, Debug)]
pub struct Udp<'a> {
    header: &'a [u8; HEADER_LEN],
    payload: &'a [u8],
}

impl<'a> Udp<'a> {
    /// Checks the length; bytes behind it are left out.
    #[inline]
    pub fn new_checked(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let header: &[u8; HEADER_LEN] = bytes.first_chunk().ok_or(Malformed::Truncated)?;
        let payload =
            bytes.get(HEADER_LEN..be16(header, LEN_AT).into()).ok_or(Malformed::BadSegmentLength)?;
        Ok(Udp { header, payload })
    }

    /// The sender's port.
    #[inline]
    pub fn src_port(&self) -> u16 {
        be16(self.header, 0)
    }

    /// The receiver's port.
    #[inline]
    pub fn dst_port(&self) -> u16 {
        be16(self.header, 2)
    }

    /// Bytes of the datagram, header included.
    #[inline]
    pub fn length(&self) -> u16 {
        be16(self.header, LEN_AT)
    }

    /// The checksum; zero means that the sender made none.
    #[inline]
    pub fn checksum(&self) -> u16 {
        be16(self.header, CHECKSUM_AT)
    }

    /// Everything behind the header.
    #[inline]
    pub fn payload(&self) -> &'a [u8] {
        self.payload
    }
}

/// The fields of a header to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Repr {
    /// The sender's port.
    pub src_port: u16,
    /// The receiver's port.
    pub dst_port: u16,
    /// Bytes behind the header.
    pub payload_len: u16,
}

impl Repr {
    /// The header's bytes, without a checksum: see [`checksum_or_ones`] for making one.
    pub fn emit(&self) -> [u8; HEADER_LEN] {
        let mut header = [0; HEADER_LEN];
        put16(&mut header, 0, self.src_port);
        put16(&mut header, 2, self.dst_port);
        put16(&mut header, LEN_AT, self.payload_len.saturating_add(HEADER_LEN as u16));
        header
    }
}

/// The checksum field for a computed checksum: zero is sent as all ones, because zero means "none" (RFC 768).
#[inline(always)]
pub const fn checksum_or_ones(checksum: u16) -> u16 {
    if checksum == 0 { 0xffff } else { checksum }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn view_reads_what_repr_emits_and_leaves_the_rest_out() {
        let repr = Repr { src_port: 1, dst_port: 53, payload_len: 2 };
        let datagram = [&repr.emit()[..], &[5, 6, 7]].concat();
        let view = Udp::new_checked(&datagram).unwrap();
        assert_eq!((view.src_port(), view.dst_port(), view.length(), view.checksum()), (1, 53, 10, 0));
        assert_eq!(view.payload(), [5, 6]);
    }

    #[test]
    fn lying_lengths_are_refused() {
        let mut datagram = Repr { src_port: 1, dst_port: 2, payload_len: 1 }.emit();
        assert_eq!(Udp::new_checked(&datagram).err(), Some(Malformed::BadSegmentLength));
        datagram[5] = 7;
        assert_eq!(Udp::new_checked(&datagram).err(), Some(Malformed::BadSegmentLength));
        assert_eq!(Udp::new_checked(&datagram[..7]).err(), Some(Malformed::Truncated));
    }
}
