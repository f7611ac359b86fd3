//! The header by which packets with work left to do come and go: in front of every frame of a tap, and of every packet in
//! the buffers of a virtio device.

use thiserror::Error;

use crate::offload::{Offload, Partial, SegmentKind, Segments};

/// Bytes of the header: `struct virtio_net_hdr_mrg_rxbuf` (`linux/virtio_net.h`), little-endian as virtio devices of version
/// 1 have it.
pub const HEADER: usize = 12;

/// `VIRTIO_NET_HDR_F_NEEDS_CSUM`: the checksum at `csum_start + csum_offset` covers the pseudo header only.
pub const NEEDS_CHECKSUM: u8 = 1;
/// `VIRTIO_NET_HDR_F_DATA_VALID`: the checksum was verified.
pub const CHECKSUM_VALID: u8 = 2;

/// `VIRTIO_NET_HDR_GSO_NONE`.
const NOT_SEGMENTED: u8 = 0;
/// `VIRTIO_NET_HDR_GSO_TCPV4`.
const TCP4: u8 = 1;
/// `VIRTIO_NET_HDR_GSO_TCPV6`.
const TCP6: u8 = 4;
/// `VIRTIO_NET_HDR_GSO_UDP_L4`.
const UDP: u8 = 5;
/// `VIRTIO_NET_HDR_GSO_ECN`: a flag beside the kind, for TCP with CWR set; cutting sees the flag itself.
pub const WITH_ECN: u8 = 0x80;

/// Where the kind of segments is.
pub const KIND_AT: usize = 1;
/// Where the number of buffers is that the packet lies in.
pub const BUFFERS_AT: usize = 10;

/// Segments of a kind that we do not know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("segments of an unknown kind")]
pub struct UnknownKind;

/// What the header in front of a packet leaves to be done; whether the packet is such is for who does it to see.
///
/// # Errors
/// [`UnknownKind`].
#[inline]
pub fn read(header: &[u8; HEADER]) -> Result<Offload, UnknownKind> {
    let [flags, gso, l0, l1, g0, g1, s0, s1, o0, o1, _, _] = *header;
    let [header_len, size, start, offset] = [[l0, l1], [g0, g1], [s0, s1], [o0, o1]].map(u16::from_le_bytes);
    let kind = match gso & !WITH_ECN {
        NOT_SEGMENTED => None,
        TCP4 => Some(SegmentKind::Tcp4),
        TCP6 => Some(SegmentKind::Tcp6),
        UDP => Some(SegmentKind::Udp),
        _ => return Err(UnknownKind),
    };
    Ok(Offload {
        checksum: (flags & NEEDS_CHECKSUM != 0).then_some(Partial { start, offset }),
        segments: kind.map(|kind| Segments { kind, size, header_len }),
    })
}

/// The header of a finished packet in so many buffers.
#[inline(always)]
#[must_use]
pub const fn plain(buffers: u16) -> [u8; HEADER] {
    let [low, high] = buffers.to_le_bytes();
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, low, high]
}

/// The header that leaves this to be done, of a packet in so many buffers.
#[inline]
#[must_use]
pub fn write(left: Offload, buffers: u16) -> [u8; HEADER] {
    let mut header = plain(buffers);
    if let Some(Partial { start, offset }) = left.checksum {
        header[0] = NEEDS_CHECKSUM;
        header[6..8].copy_from_slice(&start.to_le_bytes());
        header[8..10].copy_from_slice(&offset.to_le_bytes());
    }
    if let Some(Segments { kind, size, header_len }) = left.segments {
        header[KIND_AT] = match kind {
            SegmentKind::Tcp4 => TCP4,
            SegmentKind::Tcp6 => TCP6,
            SegmentKind::Udp => UDP,
        };
        header[2..4].copy_from_slice(&header_len.to_le_bytes());
        header[4..6].copy_from_slice(&size.to_le_bytes());
    }
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_to_do_is_read_as_it_was_written() {
        let checksum = Some(Partial { start: 34, offset: 16 });
        let segments = |kind| Some(Segments { kind, size: 1448, header_len: 66 });
        for left in [
            Offload::NONE,
            Offload { checksum, segments: None },
            Offload { checksum, segments: segments(SegmentKind::Tcp4) },
            Offload { checksum, segments: segments(SegmentKind::Tcp6) },
            Offload { checksum, segments: segments(SegmentKind::Udp) },
        ] {
            assert_eq!(read(&write(left, 3)), Ok(left));
        }
    }

    #[test]
    fn the_fields_lie_where_the_kernel_has_them() {
        let checksum = Some(Partial { start: 0x0102, offset: 0x0304 });
        let segments = Some(Segments { kind: SegmentKind::Tcp6, size: 0x0506, header_len: 0x0708 });
        let mut expected = vec![1, 4];
        for field in [0x0708u16, 0x0506, 0x0102, 0x0304, 0x0908] {
            expected.extend(field.to_le_bytes());
        }
        assert_eq!(write(Offload { checksum, segments }, 0x0908)[..], expected);
    }

    #[test]
    fn congestion_is_a_flag_beside_the_kind_and_other_kinds_are_refused() {
        let header = |gso| {
            let mut header = [0; HEADER];
            header[KIND_AT] = gso;
            header
        };
        let kind = read(&header(TCP4 | WITH_ECN)).unwrap().segments.unwrap().kind;
        assert_eq!(kind, SegmentKind::Tcp4);
        for unknown in [2, 3, 6, 0x7f] {
            assert_eq!(read(&header(unknown)), Err(UnknownKind), "kind {unknown}");
        }
    }
}
