//! SCTP common headers (RFC 9260).

use crate::Malformed;
use crate::bytes::{be16, be32};
use crate::crc32c::Crc32c;

/// The chunk that opens an association (RFC 9260 section 3.3.2).
pub const INIT: u8 = 1;
/// The chunk that carries user data (RFC 9260 section 3.3.1).
pub const DATA: u8 = 0;
/// Bytes of the common header.
pub const HEADER_LEN: usize = 12;
/// Offset of the CRC32c.
pub const CHECKSUM_AT: usize = 8;

/// A checked view of a packet.
#[derive(Clone, Copy, Debug)]
pub struct Sctp<'a> {
    header: &'a [u8; HEADER_LEN],
    chunks: &'a [u8],
}

impl<'a> Sctp<'a> {
    /// Checks that the common header is there.
    #[inline]
    pub fn new_checked(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let (header, chunks) = bytes.split_first_chunk().ok_or(Malformed::Truncated)?;
        Ok(Sctp { header, chunks })
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

    /// What proves that the packet belongs to the association; zero in an INIT.
    #[inline]
    pub fn verification_tag(&self) -> u32 {
        be32(self.header, 4)
    }

    /// The CRC32c, as it stands on the wire: least significant byte first (RFC 9260 appendix A).
    #[inline]
    pub fn crc32c(&self) -> u32 {
        be32(self.header, CHECKSUM_AT).swap_bytes()
    }

    /// The type of the first chunk.
    #[inline]
    pub fn first_chunk(&self) -> Option<u8> {
        self.chunks.first().copied()
    }

    /// Everything behind the common header.
    #[inline]
    pub fn chunks(&self) -> &'a [u8] {
        self.chunks
    }
}

/// The CRC32c that a packet should carry: of all its bytes, those of the CRC taken as zero (RFC 9260 section 6.8).
#[must_use]
pub fn checksum(header: &[u8; HEADER_LEN], chunks: &[u8]) -> u32 {
    Crc32c::START.with(&header[..CHECKSUM_AT]).with(&[0; 4]).with(chunks).finish()
}

/// Writes the CRC32c of a packet into it: for one whose sender left it to a network card.
///
/// # Errors
/// [`Malformed::Truncated`] if there is no whole common header; nothing is written then.
pub fn finish_checksum(packet: &mut [u8]) -> Result<(), Malformed> {
    let (header, chunks) = packet.split_first_chunk_mut::<HEADER_LEN>().ok_or(Malformed::Truncated)?;
    let crc = checksum(header, chunks);
    header[CHECKSUM_AT..].copy_from_slice(&crc.to_le_bytes());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finished_checksum_is_read_back_and_covers_every_other_byte() {
        let mut packet = [0x0b, 0x59, 0x0b, 0x5a, 1, 2, 3, 4, 9, 9, 9, 9, 1, 0, 0, 4];
        finish_checksum(&mut packet).unwrap();
        let crc = Sctp::new_checked(&packet).unwrap().crc32c();
        let mut zeroed = packet;
        zeroed[CHECKSUM_AT..HEADER_LEN].fill(0);
        assert_eq!(crc, crate::crc32c::crc32c(&zeroed));
        assert_eq!(finish_checksum(&mut [0; 11]), Err(Malformed::Truncated));
    }

    #[test]
    fn fields_are_read() {
        let packet = [0x0b, 0x59, 0x0b, 0x5a, 1, 2, 3, 4, 0x11, 0x22, 0x33, 0x44, 1, 0, 0, 4];
        let view = Sctp::new_checked(&packet).unwrap();
        assert_eq!((view.src_port(), view.dst_port(), view.verification_tag()), (2905, 2906, 0x0102_0304));
        assert_eq!((view.crc32c(), view.first_chunk()), (0x4433_2211, Some(1)));
        assert_eq!(view.chunks(), [1, 0, 0, 4]);
    }

    #[test]
    fn short_header_is_truncated() {
        assert_eq!(Sctp::new_checked(&[0; 11]).err(), Some(Malformed::Truncated));
    }
}
