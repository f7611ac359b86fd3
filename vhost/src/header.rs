//! The header in front of every packet in a guest's buffers: `struct virtio_net_hdr_mrg_rxbuf` (`linux/virtio_net.h`).

use penstock_io::{Abilities, Offload, Partial, SegmentKind, Segments};

use crate::features;

/// Bytes of the header of a version 1 device, or with mergeable buffers.
pub(crate) const LONG: usize = 12;
/// Bytes of the header of a legacy device without mergeable buffers: it lacks the number of buffers.
const SHORT: usize = 10;

/// The checksum at `csum_start + csum_offset` covers the pseudo header only (`VIRTIO_NET_HDR_F_NEEDS_CSUM`).
const NEEDS_CSUM: u8 = 1;
/// The checksum was verified (`VIRTIO_NET_HDR_F_DATA_VALID`).
const DATA_VALID: u8 = 2;

/// Kinds of packets that are to be cut (`VIRTIO_NET_HDR_GSO_*`).
const NOT_CUT: u8 = 0;
const TCP4: u8 = 1;
const TCP6: u8 = 4;
const UDP: u8 = 5;

/// Where the number of buffers is.
pub(crate) const BUFFERS_AT: usize = 10;

/// Bytes of the header with such features.
pub(crate) fn length(features: u64) -> usize {
    if features & (features::VERSION_1 | features::MRG_RXBUF) != 0 { LONG } else { SHORT }
}

/// The header of a packet that is finished and lies in `buffers` buffers.
#[inline(always)]
pub(crate) fn plain(buffers: u16) -> [u8; LONG] {
    let mut header = [0; LONG];
    header[BUFFERS_AT..].copy_from_slice(&buffers.to_le_bytes());
    header
}

/// The header of a packet with work left to do, in `buffers` buffers.
pub(crate) fn of(left: Offload, buffers: u16) -> [u8; LONG] {
    let mut header = plain(buffers);
    if let Some(Partial { start, offset }) = left.checksum {
        header[0] = NEEDS_CSUM;
        header[6..8].copy_from_slice(&start.to_le_bytes());
        header[8..10].copy_from_slice(&offset.to_le_bytes());
    }
    if let Some(Segments { kind, size, header_len }) = left.segments {
        header[1] = match kind {
            SegmentKind::Tcp4 => TCP4,
            SegmentKind::Tcp6 => TCP6,
            SegmentKind::Udp => UDP,
        };
        header[2..4].copy_from_slice(&header_len.to_le_bytes());
        header[4..6].copy_from_slice(&size.to_le_bytes());
    }
    header
}

/// What a guest takes beyond finished packets of one chunk, with such features.
pub(crate) fn abilities(features: u64) -> Abilities {
    let has = |wanted: u64| features & wanted == wanted;
    let checksum = has(features::GUEST_CSUM);
    Abilities::CHAINS
        .and(Abilities::CHECKSUM.when(checksum))
        .and(Abilities::TCP4.when(checksum && has(features::GUEST_TSO4)))
        .and(Abilities::TCP6.when(checksum && has(features::GUEST_TSO6)))
        .and(Abilities::UDP.when(checksum && has(features::GUEST_USO4 | features::GUEST_USO6)))
}

/// A header that cannot be, or that asks for what was not negotiated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Malformed;

/// What a guest leaves to be done to its packet of `len` bytes: `first` are the header's first eight bytes, `offset` the
/// next two.
#[inline(always)]
pub(crate) fn left_to_do(first: u64, offset: u16, features: u64, len: usize) -> Result<Offload, Malformed> {
    let [flags, kind, ..] = first.to_le_bytes();
    if (flags & !DATA_VALID) | kind == 0 {
        return Ok(Offload::NONE);
    }
    decode(first, offset, features, len)
}

#[inline(never)]
fn decode(first: u64, offset: u16, features: u64, len: usize) -> Result<Offload, Malformed> {
    let [flags, kind, h0, h1, s0, s1, c0, c1] = first.to_le_bytes();
    let start = u16::from_le_bytes([c0, c1]);
    let has = |wanted: u64| features & wanted != 0;
    if flags & !(NEEDS_CSUM | DATA_VALID) != 0 {
        return Err(Malformed);
    }
    let checksum = (flags & NEEDS_CSUM != 0).then_some(Partial { start, offset });
    if checksum.is_some() && (!has(features::CSUM) || usize::from(start) + usize::from(offset) + 2 > len) {
        return Err(Malformed);
    }
    let (kind, negotiated) = match kind {
        NOT_CUT => return Ok(Offload { checksum, segments: None }),
        TCP4 => (SegmentKind::Tcp4, has(features::HOST_TSO4)),
        TCP6 => (SegmentKind::Tcp6, has(features::HOST_TSO6)),
        UDP => (SegmentKind::Udp, has(features::HOST_USO)),
        _ => return Err(Malformed),
    };
    let (header_len, size) = (u16::from_le_bytes([h0, h1]), u16::from_le_bytes([s0, s1]));
    if !negotiated || checksum.is_none() || size == 0 {
        return Err(Malformed);
    }
    Ok(Offload { checksum, segments: Some(Segments { kind, size, header_len }) })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: u64 = features::OFFERED;

    fn read(header: [u8; LONG], features: u64, len: usize) -> Result<Offload, Malformed> {
        let first = u64::from_le_bytes(*header.first_chunk().unwrap());
        left_to_do(first, u16::from_le_bytes([header[8], header[9]]), features, len)
    }

    #[test]
    fn what_is_left_to_do_is_read_as_it_was_written() {
        let checksum = Some(Partial { start: 34, offset: 16 });
        let kinds = [SegmentKind::Tcp4, SegmentKind::Tcp6, SegmentKind::Udp];
        let segments = kinds.map(|kind| Some(Segments { kind, size: 1448, header_len: 66 }));
        for segments in segments.into_iter().chain([None]) {
            let left = Offload { checksum, segments };
            assert_eq!(read(of(left, 3), ALL, 4000), Ok(left));
            assert_eq!(of(left, 3)[BUFFERS_AT], 3);
            assert_eq!(read(of(left, 1), features::VERSION_1, 4000), Err(Malformed), "not negotiated");
        }
        assert_eq!(read(of(Offload::NONE, 1), 0, 60), Ok(Offload::NONE));
        assert_eq!(of(Offload::NONE, 7), plain(7));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let good = of(
            Offload {
                checksum: Some(Partial { start: 34, offset: 16 }),
                segments: Some(Segments { kind: SegmentKind::Tcp4, size: 1448, header_len: 66 }),
            },
            1,
        );
        assert!(read(good, ALL, 52).is_ok());
        assert_eq!(read(good, ALL, 51), Err(Malformed), "a checksum past the end");
        for (at, value) in [(0, 0), (0, 5), (1, 2), (1, 3), (1, 0x81), (6, 0xff)] {
            let mut bad = good;
            bad[at] = value;
            assert_eq!(read(bad, ALL, 52), Err(Malformed), "byte {at}: {value}");
        }
        let mut bad = good;
        (bad[4], bad[5]) = (0, 0);
        assert_eq!(read(bad, ALL, 52), Err(Malformed), "segments of nothing");
    }

    #[test]
    fn a_guest_takes_what_it_acknowledged() {
        assert_eq!(abilities(features::VERSION_1), Abilities::CHAINS);
        assert_eq!(abilities(features::OFFERED), Abilities::ALL);
        let tso = features::GUEST_TSO4 | features::GUEST_TSO6;
        assert_eq!(abilities(tso), Abilities::CHAINS, "segments need checksums");
        let some = abilities(tso | features::GUEST_CSUM | features::GUEST_USO4);
        assert!(some.has(Abilities::TCP4.and(Abilities::TCP6)) && !some.has(Abilities::UDP));
    }
}
