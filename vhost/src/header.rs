//! What the header in front of every packet in a guest's buffers may say, by what was negotiated.

use penstock_io::virtio_net::{self, BUFFERS_AT, CHECKSUM_VALID, KIND_AT, NEEDS_CHECKSUM, WITH_ECN};
use penstock_io::{Abilities, Offload, SegmentKind};

use crate::features;

/// Bytes of the header of a version 1 device, or with mergeable buffers.
pub(crate) const LONG: usize = virtio_net::HEADER;
/// Bytes of the header of a legacy device without mergeable buffers: it lacks the number of buffers.
const SHORT: usize = BUFFERS_AT;

/// The features by which a guest may leave something to be done to what it sends.
pub(crate) const LEAVE: u64 = features::CSUM | features::HOST_TSO4 | features::HOST_TSO6 | features::HOST_USO;

/// Bytes of the header with such features.
pub(crate) fn length(features: u64) -> usize {
    if features & (features::VERSION_1 | features::MRG_RXBUF) != 0 { LONG } else { SHORT }
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
    if (flags & !CHECKSUM_VALID) | kind == 0 {
        return Ok(Offload::NONE);
    }
    decode(first, offset, features, len)
}

#[inline(never)]
fn decode(first: u64, offset: u16, features: u64, len: usize) -> Result<Offload, Malformed> {
    let mut header = [0; LONG];
    header[..8].copy_from_slice(&first.to_le_bytes());
    header[8..SHORT].copy_from_slice(&offset.to_le_bytes());
    // Nobody agreed to cut packets that have congestion to tell of.
    if header[0] & !(NEEDS_CHECKSUM | CHECKSUM_VALID) != 0 || header[KIND_AT] & WITH_ECN != 0 {
        return Err(Malformed);
    }
    let left = virtio_net::read(&header).map_err(|_| Malformed)?;
    let has = |wanted: u64| features & wanted != 0;
    let checksum = left.checksum.is_none_or(|partial| {
        has(features::CSUM) && usize::from(partial.start) + usize::from(partial.offset) + 2 <= len
    });
    let segments = left.segments.is_none_or(|segments| {
        let negotiated = has(match segments.kind {
            SegmentKind::Tcp4 => features::HOST_TSO4,
            SegmentKind::Tcp6 => features::HOST_TSO6,
            SegmentKind::Udp => features::HOST_USO,
        });
        negotiated && left.checksum.is_some() && segments.size > 0
    });
    if checksum && segments { Ok(left) } else { Err(Malformed) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use penstock_io::virtio_net::{plain, write};
    use penstock_io::{Partial, Segments};

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
            assert_eq!(read(write(left, 3), ALL, 4000), Ok(left));
            assert_eq!(write(left, 3)[BUFFERS_AT], 3);
            assert_eq!(read(write(left, 1), features::VERSION_1, 4000), Err(Malformed), "not negotiated");
        }
        assert_eq!(read(write(Offload::NONE, 1), 0, 60), Ok(Offload::NONE));
        assert_eq!(write(Offload::NONE, 7), plain(7));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let good = write(
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
