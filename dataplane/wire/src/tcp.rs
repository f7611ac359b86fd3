//! TCP headers (RFC 9293).

use crate::Malformed;
use crate::bytes::{be16, be32};

/// Offset of the flags in the header (RFC 9293 section 3.1).
pub const FLAGS_AT: usize = 13;
/// Bytes of a header without options.
pub const HEADER_LEN: usize = 20;
/// Offset of the byte whose high half is the header length in units of four bytes.
pub const OFFSET_AT: usize = 12;
/// Offset of the checksum.
pub const CHECKSUM_AT: usize = 16;

/// The sender is done.
pub const FIN: u8 = 0x01;
/// A connection opens.
pub const SYN: u8 = 0x02;
/// The connection is aborted.
pub const RST: u8 = 0x04;
/// Hand the bytes to the application now.
pub const PSH: u8 = 0x08;
/// The acknowledgement number counts.
pub const ACK: u8 = 0x10;

/// End of the option list.
pub const OPTION_END: u8 = 0;
/// One byte of padding.
pub const OPTION_NOP: u8 = 1;
/// The largest segment that the sender of a SYN takes.
pub const OPTION_MSS: u8 = 2;

/// A checked view of a segment.
#[derive(Clone, Copy, Debug)]
pub struct Tcp<'a> {
    header: &'a [u8; HEADER_LEN],
    options: &'a [u8],
    payload: &'a [u8],
}

impl<'a> Tcp<'a> {
    /// Checks the header length.
    #[inline]
    pub fn new_checked(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let (header, rest) = bytes.split_first_chunk::<HEADER_LEN>().ok_or(Malformed::Truncated)?;
        let (options, payload) = usize::from(header[OFFSET_AT] >> 4)
            .checked_sub(HEADER_LEN / 4)
            .and_then(|words| rest.split_at_checked(words * 4))
            .ok_or(Malformed::BadHeaderLength)?;
        Ok(Tcp { header, options, payload })
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

    /// The sequence number of the first byte.
    #[inline]
    pub fn sequence(&self) -> u32 {
        be32(self.header, 4)
    }

    /// The sequence number expected next, if [`ACK`] is set.
    #[inline]
    pub fn acknowledgement(&self) -> u32 {
        be32(self.header, 8)
    }

    /// The flags: [`FIN`], [`SYN`] and so on.
    #[inline]
    pub fn flags(&self) -> u8 {
        self.header[13]
    }

    /// The receive window, unscaled.
    #[inline]
    pub fn window(&self) -> u16 {
        be16(self.header, 14)
    }

    /// The checksum.
    #[inline]
    pub fn checksum(&self) -> u16 {
        be16(self.header, CHECKSUM_AT)
    }

    /// The maximum segment size option, if the segment has a well-formed one.
    pub fn maximum_segment_size(&self) -> Option<u16> {
        let mut rest = self.options;
        loop {
            match *rest {
                [] | [OPTION_END, ..] => return None,
                [OPTION_NOP, ref behind @ ..] => rest = behind,
                [OPTION_MSS, 4, high, low, ..] => return Some(u16::from_be_bytes([high, low])),
                [_, length, ..] if length >= 2 => rest = rest.get(length.into()..)?,
                _ => return None,
            }
        }
    }

    /// Everything behind the header.
    #[inline]
    pub fn payload(&self) -> &'a [u8] {
        self.payload
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn syn() -> Vec<u8> {
        let mut segment =
            vec![0, 80, 0x1f, 0x90, 0, 0, 0, 1, 0, 0, 0, 2, 0x70, SYN | ACK, 0xff, 0, 0xab, 0xcd, 0, 0];
        segment.extend([OPTION_NOP, OPTION_NOP, OPTION_MSS, 4, 0x05, 0xb4, OPTION_END, 0]);
        segment.push(9);
        segment
    }

    #[test]
    fn fields_are_read() {
        let segment = syn();
        let view = Tcp::new_checked(&segment).unwrap();
        assert_eq!((view.src_port(), view.dst_port()), (80, 8080));
        assert_eq!((view.sequence(), view.acknowledgement(), view.flags()), (1, 2, SYN | ACK));
        assert_eq!((view.window(), view.checksum()), (0xff00, 0xabcd));
        assert_eq!((view.maximum_segment_size(), view.payload()), (Some(1460), &[9][..]));
    }

    #[test]
    fn lying_header_lengths_are_refused() {
        let mut segment = syn();
        segment[OFFSET_AT] = 0x40;
        assert_eq!(Tcp::new_checked(&segment).err(), Some(Malformed::BadHeaderLength));
        segment[OFFSET_AT] = 0x80;
        assert_eq!(Tcp::new_checked(&segment).err(), Some(Malformed::BadHeaderLength));
        assert_eq!(Tcp::new_checked(&segment[..19]).err(), Some(Malformed::Truncated));
    }

    #[test]
    fn an_option_that_lies_hides_the_segment_size_but_does_no_harm() {
        let mut segment = syn();
        for length in [0, 1, 200] {
            segment[20..22].copy_from_slice(&[8, length]);
            assert_eq!(Tcp::new_checked(&segment).unwrap().maximum_segment_size(), None);
        }
    }
}
