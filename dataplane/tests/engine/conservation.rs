//! Whatever comes in: nothing panics, nothing is lost, and every packet is in one class.

use super::*;
use penstock_dataplane::port::PortId;
use penstock_dataplane::testbed::{HOST, UPLINK};
use penstock_io::mem::MemPort;
use penstock_io::{Abilities, Offload, Partial, SegmentKind, Segments};
use penstock_wire::segment::Headers;
use proptest::prelude::*;

/// A frame near to a good one: a template with some bytes changed, cut or longer.
fn frame() -> impl Strategy<Value = (u16, Vec<u8>)> {
    let tunnel = {
        let frame = udp4_to(router(NODE2), MAC_A, [10, 1, 2, 1], [10, 1, 1, 1], 64, 30);
        let mut wire = peer_node().through(POD_A, &frame, UPLINK).remove(0);
        wire[..6].copy_from_slice(&UPLINK_MAC.0);
        wire
    };
    let templates = vec![
        (POD_A, udp4(MAC_A, [10, 1, 1, 1], [10, 1, 1, 2], 64, 30)),
        (POD_A, udp4(MAC_A, [10, 1, 1, 1], [10, 1, 2, 1], 64, 1430)),
        (POD_A, udp4(MAC_A, [10, 1, 1, 1], [169, 254, 1, 1], 64, 30)),
        (POD_A, udp6(MAC_A, v6("fd00:1:1::1"), v6("fd00:1:2::1"), 64, 30)),
        (POD_B, udp6(MAC_B, v6("fd00:1:1::2"), v6("fd00:1:1::1"), 1, 30)),
        (HOST, udp4_to(router(NODE1), HOST_MAC, NODE1, [10, 1, 1, 1], 64, 30)),
        (UPLINK, tunnel),
    ];
    let changes = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4);
    (prop::sample::select(templates), changes, any::<bool>(), 0usize..1600).prop_map(
        |((port, mut frame), changes, resize, len)| {
            for (at, byte) in changes {
                let at = at.index(frame.len());
                frame[at] = byte;
            }
            if resize {
                frame.resize(len.max(1), 0);
            }
            if frame.len() >= 34 && frame[12..15] == [8, 0, 0x45] {
                mend_ipv4(&mut frame);
            }
            (port, frame)
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]
    #[test]
    fn every_packet_is_sent_dropped_consumed_or_held(frames in prop::collection::vec(frame(), 1..200)) {
        let mut node = node();
        for (port, frame) in &frames {
            node.deliver(*port, frame);
        }
        node.turn_after(1000);
        let counts = node.worker.counts();
        prop_assert_eq!(counts.rx, frames.len() as u64);
        prop_assert_eq!(counts.rx + counts.made, counts.tx + counts.dropped + counts.consumed + counts.held);
        prop_assert_eq!(counts.hits + counts.stale + counts.misses + counts.slow_only, counts.rx);
        let by_reason: u64 = penstock_dataplane::drop::Reason::all().map(|reason| node.worker.drops(reason)).sum();
        prop_assert_eq!(by_reason, counts.dropped);
        for device in [UPLINK, HOST, POD_A, POD_B] {
            for sent in node.sent(device) {
                prop_assert!(penstock_wire::parse::parse(&sent).is_ok(), "what is sent is sound");
            }
        }
    }
}

/// Work left to do that may or may not make sense.
fn left() -> impl Strategy<Value = Offload> {
    let kinds = prop::sample::select(vec![SegmentKind::Tcp4, SegmentKind::Tcp6, SegmentKind::Udp]);
    let segments = (kinds, 0u16..3000, any::<u16>());
    let checksum =
        (prop::sample::select(vec![34u16, 54, 14, 4000]), prop::sample::select(vec![6u16, 16, 9000]));
    (prop::option::of(checksum), prop::option::of(segments)).prop_map(|(checksum, segments)| Offload {
        checksum: checksum.map(|(start, offset)| Partial { start, offset }),
        segments: segments.map(|(kind, size, header_len)| Segments { kind, size, header_len }),
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]
    #[test]
    fn unfinished_packets_are_accounted_for_as_well(
        frames in prop::collection::vec((frame(), left(), 0usize..9000), 1..60), able: bool,
    ) {
        let mut node = node();
        if able {
            let mut port = MemPort::new();
            port.enable(Abilities::ALL);
            node.open(POD_B, port);
        }
        for ((port, frame), left, longer) in &frames {
            let mut frame = frame.clone();
            frame.resize(frame.len() + longer, 7);
            if *longer > 0 && let Ok(headers) = Headers::of(&frame) {
                let len = frame.len() - 14;
                headers.set_packet_len(&mut frame, len);
            }
            node.turn_after(0);
            node.worker.mem_port(PortId((*port).into())).unwrap().deliver_unfinished(&frame, *left);
        }
        node.turn_after(1000);
        let counts = node.worker.counts();
        prop_assert_eq!(counts.rx, frames.len() as u64);
        prop_assert_eq!(counts.rx + counts.made, counts.tx + counts.dropped + counts.consumed + counts.held);
        for device in [UPLINK, HOST, POD_A] {
            for sent in node.sent(device) {
                prop_assert!(penstock_wire::parse::parse(&sent).is_ok(), "what is sent is sound");
            }
        }
    }
}
