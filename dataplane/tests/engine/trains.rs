//! Packets that are several, or not finished: kept so between ports that speak of it, and finished for those that do not.

use penstock_dataplane::drop::Cause;
use penstock_dataplane::port::PortId;
use penstock_dataplane::testbed::{Testbed, UPLINK};
use penstock_io::mem::MemPort;
use penstock_io::{Abilities, Offload, Partial, SegmentKind, Segments};
use penstock_wire::parse::parse;
use penstock_wire::segment::Headers;

use super::stateful::{A, B, OUTSIDE, SERVICE, flow, segment, tcp};
use super::{MAC_A, MAC_B, NEXT_HOP_MAC, NODE1, POD_A, POD_B, UPLINK_MAC, node, peer_node, router, v6};

/// The largest TCP payload of one segment here.
const SIZE: usize = 1200;

/// A TCP packet from pod `a` with `payload` bytes that count up.
fn tcp4(dst: [u8; 4], ports: (u16, u16), payload: usize) -> Vec<u8> {
    let builder = etherparse::PacketBuilder::ethernet2(MAC_A.0, router(NODE1).0).ipv4(A, dst, 64);
    let mut frame = Vec::new();
    builder.tcp(ports.0, ports.1, 1000, 512).ack(1).write(&mut frame, &counting(payload)).unwrap();
    frame
}

fn tcp6(payload: usize) -> Vec<u8> {
    let (src, dst) = (v6("fd00:1:1::1").octets(), v6("fd00:1:1::2").octets());
    let builder = etherparse::PacketBuilder::ethernet2(MAC_A.0, router(NODE1).0).ipv6(src, dst, 64);
    let mut frame = Vec::new();
    builder.tcp(40000, 80, 1000, 512).ack(1).write(&mut frame, &counting(payload)).unwrap();
    frame
}

fn counting(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i / 7) as u8).collect()
}

/// What a sender leaves to do that has its checksums finished and, with a size, its segments cut.
fn left(frame: &[u8], size: Option<usize>) -> Offload {
    let headers = Headers::of(frame).unwrap();
    let offset = (headers.checksum_at().unwrap() - headers.l4) as u16;
    let kind = match (headers.protocol, headers.is_ipv4) {
        (17, _) => SegmentKind::Udp,
        (_, true) => SegmentKind::Tcp4,
        (_, false) => SegmentKind::Tcp6,
    };
    let header_len = headers.payload as u16;
    Offload {
        checksum: Some(Partial { start: headers.l4 as u16, offset }),
        segments: size.map(|size| Segments { kind, size: size as u16, header_len }),
    }
}

/// The same frame as its sender hands it over, its checksum left to finish.
fn unfinished(frame: &[u8]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    Headers::of(&frame).unwrap().leave_checksum(&mut frame);
    frame
}

fn deliver(node: &mut Testbed, device: u16, frame: &[u8], left: Offload) {
    node.turn_after(0);
    node.worker.mem_port(PortId(device.into())).unwrap().deliver_unfinished(frame, left);
}

fn sent(node: &mut Testbed, device: u16) -> Vec<(Vec<u8>, Offload)> {
    node.turn_after(1000);
    let port = node.worker.mem_port(PortId(device.into())).unwrap();
    std::iter::from_fn(|| port.sent_unfinished()).collect()
}

fn enable(node: &Testbed, device: u16, abilities: Abilities) {
    let mut port = MemPort::new();
    port.enable(abilities);
    node.open(device, port);
}

/// The TCP or UDP payload of finished frames, one behind the other; each must be sound.
fn payload(frames: &[Vec<u8>]) -> Vec<u8> {
    let of = |frame: &Vec<u8>| {
        let parsed = parse(frame).expect("a sound packet");
        assert_eq!(usize::from(parsed.end), frame.len());
        let headers = Headers::of(frame).unwrap();
        assert!(headers.checksum_holds(frame), "a right checksum");
        frame[headers.payload..].to_vec()
    };
    frames.iter().flat_map(of).collect()
}

fn assert_adds_up(node: &Testbed) {
    let counts = node.worker.counts();
    assert_eq!(counts.rx + counts.made, counts.tx + counts.dropped + counts.consumed + counts.held);
}

#[test]
fn a_packet_of_many_segments_leaves_for_a_tunnel_as_segments() {
    for bytes in [SIZE + 1, 5000, 60_000] {
        let mut node = node();
        let frame = unfinished(&tcp4([10, 1, 2, 1], (40000, 80), bytes));
        for round in 0..2 {
            deliver(&mut node, POD_A, &frame, left(&frame, Some(SIZE)));
            let wire = sent(&mut node, UPLINK);
            assert_eq!(wire.len(), bytes.div_ceil(SIZE), "round {round}");
            let inner: Vec<Vec<u8>> = wire
                .iter()
                .map(|(frame, left)| {
                    assert_eq!(*left, Offload::NONE);
                    assert!(parse(frame).is_ok());
                    frame[50..].to_vec()
                })
                .collect();
            assert_eq!(payload(&inner), counting(bytes));
        }
        assert_adds_up(&node);
    }
}

#[test]
fn what_two_ports_speak_of_is_kept_between_them() {
    for frame in [tcp4(B, (40000, 80), 30_000), tcp6(30_000)] {
        let mut node = node();
        enable(&node, POD_B, Abilities::ALL);
        let frame = unfinished(&frame);
        let facts = left(&frame, Some(SIZE));
        for _ in 0..2 {
            deliver(&mut node, POD_A, &frame, facts);
            let (arrived, still) = sent(&mut node, POD_B).pop().expect("one frame");
            assert_eq!(still, facts);
            assert_eq!((&arrived[..6], &arrived[6..12]), (&MAC_B.0[..], &router(NODE1).0[..]));
            assert_eq!(arrived.len(), frame.len());
            let headers = Headers::of(&arrived).unwrap();
            assert_eq!(arrived[headers.l4..], frame[headers.l4..], "nobody touches the rest");
            assert_eq!(headers.packet_len(&arrived), arrived.len() - 14);
        }
        assert_adds_up(&node);
    }
}

#[test]
fn a_port_that_does_not_speak_of_it_gets_finished_packets() {
    let mut node = node();
    for frame in [tcp4(B, (40000, 80), 5000), tcp6(5000)] {
        let frame = unfinished(&frame);
        deliver(&mut node, POD_A, &frame, left(&frame, Some(SIZE)));
        let arrived: Vec<Vec<u8>> = sent(&mut node, POD_B).into_iter().map(|(frame, _)| frame).collect();
        assert_eq!((arrived.len(), payload(&arrived)), (5, counting(5000)));
    }
    // One that fits a segment as it is only lacks its checksum.
    let short = unfinished(&tcp4(B, (40000, 80), 100));
    for _ in 0..2 {
        deliver(&mut node, POD_A, &short, left(&short, None));
        let (arrived, _) = sent(&mut node, POD_B).pop().unwrap();
        assert_eq!(payload(&[arrived]), counting(100));
    }
    assert_adds_up(&node);
}

#[test]
fn datagrams_in_one_are_cut_like_segments() {
    let mut node = node();
    let builder = etherparse::PacketBuilder::ethernet2(MAC_A.0, router(NODE1).0).ipv4(A, B, 64);
    let mut frame = Vec::new();
    builder.udp(1000, 2000).write(&mut frame, &counting(5000)).unwrap();
    let frame = unfinished(&frame);
    deliver(&mut node, POD_A, &frame, left(&frame, Some(1000)));
    let arrived: Vec<Vec<u8>> = sent(&mut node, POD_B).into_iter().map(|(frame, _)| frame).collect();
    assert_eq!((arrived.len(), payload(&arrived)), (5, counting(5000)));
}

#[test]
fn segments_that_arrive_by_a_tunnel_are_one_packet_again_for_who_takes_it() {
    let (mut one, mut two) = (node(), peer_node());
    enable(&two, POD_A, Abilities::ALL);
    let mut frame = unfinished(&tcp4([10, 1, 2, 1], (40000, 80), 30_000));
    let headers = Headers::of(&frame).unwrap();
    deliver(&mut one, POD_A, &frame, left(&frame, Some(SIZE)));
    let wire = sent(&mut one, UPLINK);
    assert_eq!(wire.len(), 25);
    two.turn_after(0);
    for (mut packet, _) in wire {
        packet[..6].copy_from_slice(&UPLINK_MAC.0);
        two.worker.mem_port(PortId(UPLINK.into())).unwrap().deliver(&packet);
    }
    let (arrived, still) = sent(&mut two, POD_A).pop().expect("one frame");
    assert_eq!(still, left(&frame, Some(SIZE)));
    assert_eq!(arrived.len(), frame.len());
    headers.set_packet_len(&mut frame, arrived.len() - 14);
    assert_eq!(arrived[headers.l4..], frame[headers.l4..]);
    assert_adds_up(&two);
}

#[test]
fn segments_with_a_wrong_checksum_or_out_of_order_are_left_apart() {
    let mut node = node();
    enable(&node, POD_B, Abilities::ALL);
    let mut segments: Vec<Vec<u8>> = Vec::new();
    for number in 0..6u32 {
        let builder = etherparse::PacketBuilder::ethernet2(MAC_A.0, router(NODE1).0).ipv4(A, B, 64);
        let mut frame = Vec::new();
        builder.tcp(40000, 80, 1000 + 100 * number, 512).ack(1).write(&mut frame, &[7; 100]).unwrap();
        segments.push(frame);
    }
    // The third was damaged on the way; the fifth and sixth changed places.
    segments[2][80] ^= 1;
    segments.swap(4, 5);
    node.turn_after(0);
    for segment in &segments {
        node.worker.mem_port(PortId(POD_A.into())).unwrap().deliver(segment);
    }
    let lengths: Vec<usize> = sent(&mut node, POD_B).iter().map(|(frame, _)| frame.len()).collect();
    // The first two; the damaged one; the fourth; the sixth; the fifth.
    assert_eq!(lengths, [254, 154, 154, 154, 154]);
    assert_adds_up(&node);
}

#[test]
fn translation_reaches_every_segment() {
    let mut node = super::stateful::node();
    for (dst, port, out) in [(SERVICE, 80, POD_B), (OUTSIDE, 443, UPLINK)] {
        let opened = node.through(POD_A, &tcp(POD_A, (A, 40000), (dst, port), "S"), out).remove(0);
        let asked = flow(&opened);
        let (from, router) = if out == POD_B { (MAC_B, router(NODE1)) } else { (NEXT_HOP_MAC, UPLINK_MAC) };
        let (server, seen) = ((asked.dst.octets(), asked.dport), (asked.src.octets(), asked.sport));
        let answer = segment(from.0, router.0, server, seen, "SA");
        assert_eq!(node.through(out, &answer, POD_A).len(), 1);
        for _ in 0..3 {
            let frame = unfinished(&tcp4(dst, (40000, port), 5000));
            deliver(&mut node, POD_A, &frame, left(&frame, Some(SIZE)));
            let arrived: Vec<Vec<u8>> = sent(&mut node, out).into_iter().map(|(frame, _)| frame).collect();
            assert_eq!((arrived.len(), payload(&arrived)), (5, counting(5000)));
            for frame in &arrived {
                let flow = flow(frame);
                let expected = if out == POD_B { (A, B, 5432) } else { (NODE1, OUTSIDE, 443) };
                assert_eq!((flow.src.octets(), flow.dst.octets(), flow.dport), expected);
            }
        }
        assert_adds_up(&node);
    }
}

#[test]
fn a_segment_that_its_way_does_not_carry_is_refused_with_word_of_that() {
    let mut node = node();
    let frame = unfinished(&tcp4([10, 1, 2, 1], (40000, 80), 5000));
    for _ in 0..2 {
        deliver(&mut node, POD_A, &frame, left(&frame, Some(1460)));
        let answers: Vec<Vec<u8>> = sent(&mut node, POD_A).into_iter().map(|(frame, _)| frame).collect();
        assert_eq!(answers.len(), 1);
        assert_eq!(super::icmp_of(&answers[0]), (3, 4));
        assert_eq!(u16::from_be_bytes([answers[0][40], answers[0][41]]), 1450);
    }
    assert_eq!(node.worker.drops(Cause::TooBig), 2);
    assert_adds_up(&node);
}

#[test]
fn what_makes_no_sense_is_dropped_and_counted() {
    let good = unfinished(&tcp4(B, (40000, 80), 5000));
    let facts = left(&good, Some(SIZE));
    let segments = facts.segments.unwrap();
    let bad = [
        // A checksum elsewhere; one of another protocol; none at all for what is to be cut.
        Offload { checksum: Some(Partial { start: 20, offset: 16 }), ..facts },
        Offload { checksum: Some(Partial { start: 34, offset: 6 }), ..facts },
        Offload { checksum: None, ..facts },
        // Cut by another protocol's rules; into nothing; into crumbs.
        Offload { segments: Some(Segments { kind: SegmentKind::Tcp6, ..segments }), ..facts },
        Offload { segments: Some(Segments { kind: SegmentKind::Udp, ..segments }), ..facts },
        Offload { segments: Some(Segments { size: 0, ..segments }), ..facts },
        Offload { segments: Some(Segments { size: 47, ..segments }), ..facts },
    ];
    let mut node = node();
    for left in bad {
        deliver(&mut node, POD_A, &good, left);
        assert!(sent(&mut node, POD_B).is_empty(), "{left:?}");
    }
    // A header that says more than there is.
    let mut lying = good.clone();
    Headers::of(&lying).unwrap().set_packet_len(&mut lying, 6000);
    deliver(&mut node, POD_A, &lying, facts);
    assert!(sent(&mut node, POD_B).is_empty());
    assert_eq!(node.worker.counts().dropped, 8);
    assert_adds_up(&node);
}
