//! The virtio network header in front of every frame of a tap.

use thiserror::Error;

/// Bytes of the header: `struct virtio_net_hdr_mrg_rxbuf` (`linux/virtio_net.h`), the same that virtio devices of version
/// 1 use.
pub(super) const HEADER: usize = 12;

/// `VIRTIO_NET_HDR_F_NEEDS_CSUM`: the checksum at `csum_start + csum_offset` covers the pseudo header only.
const NEEDS_CHECKSUM: u8 = 1;

/// `VIRTIO_NET_HDR_GSO_NONE`.
const NOT_SEGMENTED: u8 = 0;

/// Why a frame cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub(super) enum FrameError {
    #[error("shorter than its virtio header and one byte")]
    Short,
    /// Segmentation offload is not negotiated, so the kernel never hands over such a frame.
    #[error("a super-frame that was not negotiated")]
    Segmented,
    #[error("the checksum lies outside the frame")]
    ChecksumOutside,
}

/// Does to `frame` what the header in front of it asks for.
///
/// The header's words are in the machine's byte order: the tap is a legacy device without `TUNSETVNETLE`.
pub(super) fn finish(header: &[u8; HEADER], frame: &mut [u8]) -> Result<(), FrameError> {
    let [flags, gso, _, _, _, _, s0, s1, o0, o1, _, _] = *header;
    if gso != NOT_SEGMENTED {
        return Err(FrameError::Segmented);
    }
    if flags & NEEDS_CHECKSUM == 0 {
        return Ok(());
    }
    let (start, offset) = (u16::from_ne_bytes([s0, s1]), u16::from_ne_bytes([o0, o1]));
    finish_checksum(frame, usize::from(start), usize::from(offset))
}

/// Completes an Internet checksum (RFC 1071) over `frame[start..]` whose field, `offset` bytes on, holds the pseudo
/// header's sum.
fn finish_checksum(frame: &mut [u8], start: usize, offset: usize) -> Result<(), FrameError> {
    let covered = frame.get_mut(start..).ok_or(FrameError::ChecksumOutside)?;
    if offset + 2 > covered.len() {
        return Err(FrameError::ChecksumOutside);
    }
    let mut sum: u64 = 0;
    let (pairs, odd) = covered.as_chunks::<2>();
    for pair in pairs {
        sum += u64::from(u16::from_be_bytes(*pair));
    }
    if let [last] = odd {
        sum += u64::from(*last) << 8;
    }
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    // Zero means "no checksum" to UDP (RFC 768); to the others 0xffff says the same as zero.
    let checksum = match !(sum as u16) {
        0 => 0xffff,
        other => other,
    };
    covered[offset..offset + 2].copy_from_slice(&checksum.to_be_bytes());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(flags: u8, gso: u8, start: u16, offset: u16) -> [u8; HEADER] {
        let mut header = [0; HEADER];
        (header[0], header[1]) = (flags, gso);
        header[6..8].copy_from_slice(&start.to_ne_bytes());
        header[8..10].copy_from_slice(&offset.to_ne_bytes());
        header
    }

    /// UDP 10.0.0.1:1000 -> 10.0.0.2:2000 "hey", without Ethernet and IPv4 in front, the pseudo header's sum in the field.
    fn datagram() -> Vec<u8> {
        let pseudo = 0x0a00u32 + 1 + 0x0a00 + 2 + 17 + 11;
        let mut bytes = Vec::from(1000u16.to_be_bytes());
        bytes.extend(2000u16.to_be_bytes());
        bytes.extend(11u16.to_be_bytes());
        bytes.extend((pseudo as u16).to_be_bytes());
        bytes.extend(b"hey");
        bytes
    }

    #[test]
    fn a_partial_checksum_is_finished() {
        let mut frame = vec![0xff; 34];
        frame.extend(datagram());
        finish(&header(NEEDS_CHECKSUM, 0, 34, 6), &mut frame).unwrap();
        // The ones' complement of 0x140f (pseudo) + 0x3e8 + 0x7d0 + 11 + "he" 0x6865 + "y\0" 0x7900.
        let sum = (0x1400u32 + 3 + 17 + 11) + 0x3e8 + 0x7d0 + 11 + 0x6865 + 0x7900;
        let expected = !(((sum & 0xffff) + (sum >> 16)) as u16);
        assert_eq!(frame[40..42], expected.to_be_bytes());
        assert_eq!(frame[..34], [0xff; 34]);
    }

    #[test]
    fn a_sum_of_zero_is_sent_as_all_ones() {
        let mut frame = [0xff, 0xff, 0, 0];
        finish(&header(NEEDS_CHECKSUM, 0, 0, 2), &mut frame).unwrap();
        assert_eq!(frame, [0xff; 4]);
    }

    #[test]
    fn a_frame_without_the_flag_stays_as_it_is() {
        let mut frame = datagram();
        finish(&header(2, 0, 0, 6), &mut frame).unwrap();
        assert_eq!(frame, datagram());
    }

    #[test]
    fn a_checksum_outside_the_frame_is_refused() {
        for (start, offset) in [(0, 10), (10, 0), (11, 0), (12, 0), (0xffff, 0xffff), (0, 0xffff)] {
            let mut frame = datagram();
            assert_eq!(
                finish(&header(NEEDS_CHECKSUM, 0, start, offset), &mut frame),
                Err(FrameError::ChecksumOutside),
                "start {start}, offset {offset}"
            );
            assert_eq!(frame, datagram());
        }
    }

    #[test]
    fn a_super_frame_is_refused() {
        assert_eq!(finish(&header(0, 1, 0, 0), &mut datagram()), Err(FrameError::Segmented));
    }
}
