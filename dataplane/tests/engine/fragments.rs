//! Fragments, in whatever order they come: the later ones follow the first, or wait for it within bounds.

use std::net::IpAddr;

use penstock_api::file::parse_objects;
use penstock_dataplane::drop::Cause;
use penstock_dataplane::flow::DeviceId;
use penstock_dataplane::tables::desired::Change;
use penstock_dataplane::testbed::{Testbed, UPLINK};
use penstock_io::TicksPerSecond;
use penstock_wire::parse::{Net, parse};
use penstock_wire::{checksum, fragment};
use proptest::prelude::*;

use super::stateful::{A, B, OUTSIDE, node, open, refused, tcp};
use super::{MAC_A, MAC_B, NODE1, POD_A, POD_B, mend_ipv4, router, set_dont_fragment, udp4, udp6, v6};

/// The pieces of a datagram, as an MTU of 500 cuts it.
fn pieces(mut frame: Vec<u8>, id: u16) -> Vec<Vec<u8>> {
    frame[18..20].copy_from_slice(&id.to_be_bytes());
    set_dont_fragment(&mut frame, false);
    let packet = &frame[14..];
    let pieces = fragment::pieces(packet, 500).unwrap();
    pieces.map(|piece| [&frame[..14], piece.header(), &packet[piece.payload()]].concat()).collect()
}

/// The pieces of a datagram from a pod, three of them.
fn three(from: u16, src: [u8; 4], dst: [u8; 4], id: u16) -> Vec<Vec<u8>> {
    let mac = if from == POD_A { MAC_A } else { MAC_B };
    let pieces = pieces(udp4(mac, src, dst, 64, 1200), id);
    assert_eq!(pieces.len(), 3);
    pieces
}

/// The orders in which three things may come.
const ORDERS: [[usize; 3]; 6] = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];

fn second() -> u64 {
    TicksPerSecond::measure(std::time::Duration::from_millis(5)).0
}

/// What the fragments of an IPv4 datagram are together, without their headers; and the addresses that all of them have.
fn whole(mut fragments: Vec<Vec<u8>>) -> (IpAddr, IpAddr, Vec<u8>) {
    let offset = |frame: &[u8]| (u16::from_be_bytes([frame[20], frame[21]]) & 0x1fff) * 8;
    fragments.sort_by_key(|frame| offset(frame));
    let mut ends = Vec::new();
    let mut segment = Vec::new();
    for frame in &fragments {
        let Net::V4(flow) = parse(frame).unwrap().net else { panic!("no IPv4 packet") };
        ends.push((IpAddr::V4(flow.src), IpAddr::V4(flow.dst)));
        assert_eq!(usize::from(offset(frame)), segment.len(), "no gap");
        segment.extend_from_slice(&frame[34..]);
    }
    ends.dedup();
    let [(src, dst)] = ends[..] else { panic!("{ends:?}") };
    (src, dst, segment)
}

#[test]
fn fragments_pass_in_every_order_under_the_policy_of_their_ports() {
    for order in ORDERS {
        let mut node = node();
        let pieces = three(POD_B, B, A, 7);
        let mut sent = Vec::new();
        for number in order {
            sent.extend(node.through(POD_B, &pieces[number], POD_A));
        }
        assert_eq!(node.worker.counts().held, 0, "{order:?}");
        let (src, dst, segment) = whole(sent);
        assert_eq!((src, dst, segment), (B.into(), A.into(), whole(pieces).2), "{order:?}");
    }
}

#[test]
fn fragments_are_translated_in_every_order() {
    for order in ORDERS {
        let mut node = node();
        let pieces = three(POD_A, A, OUTSIDE, 7);
        let mut sent = Vec::new();
        for number in order {
            sent.extend(node.through(POD_A, &pieces[number], UPLINK));
        }
        let (src, dst, segment) = whole(sent);
        assert_eq!((src, dst), (NODE1.into(), OUTSIDE.into()), "{order:?}");
        assert!((50000..=50999).contains(&u16::from_be_bytes([segment[0], segment[1]])));
        let pseudo = checksum::pseudo_v4(NODE1.into(), OUTSIDE.into(), 17, segment.len() as u16);
        assert!(pseudo.add_bytes(&segment).is_valid(), "the datagram's checksum is right: {order:?}");
    }
}

/// The same datagram by IPv6, from pod b to pod a, in three pieces.
fn three_of_ipv6(id: u32) -> Vec<Vec<u8>> {
    let mut frame = udp6(MAC_A, v6("fd00:1:1::2"), v6("fd00:1:1::1"), 64, 1200);
    frame[6..12].copy_from_slice(&MAC_B.0);
    let (header, datagram) = frame.split_at(54);
    let (number, size) = (datagram.chunks(480).count(), 480);
    let piece = |(at, payload): (usize, &[u8])| {
        let mut piece = header.to_vec();
        piece[18..20].copy_from_slice(&(8 + payload.len() as u16).to_be_bytes());
        piece[20] = 44;
        let offset = (at * size) as u16 | u16::from(at + 1 < number);
        piece.extend_from_slice(&[17, 0]);
        piece.extend_from_slice(&offset.to_be_bytes());
        piece.extend_from_slice(&id.to_be_bytes());
        piece.extend_from_slice(payload);
        piece
    };
    datagram.chunks(size).enumerate().map(piece).collect()
}

#[test]
fn ipv6_fragments_pass_in_every_order() {
    for order in ORDERS {
        let mut node = node();
        let pieces = three_of_ipv6(7);
        let sent: Vec<_> =
            order.iter().flat_map(|number| node.through(POD_B, &pieces[*number], POD_A)).collect();
        assert_eq!(sent.len(), 3, "{order:?}");
        assert_eq!(node.worker.counts().held, 0);
    }
}

#[test]
fn fragments_of_a_refused_packet_are_refused_with_it_and_keep_no_seat() {
    for order in ORDERS {
        let mut node = node();
        let pieces = three(POD_A, A, B, 7);
        for number in order {
            node.deliver(POD_A, &pieces[number]);
        }
        assert!(node.sent(POD_B).is_empty());
        assert_eq!(node.worker.drops(Cause::IngressPolicy), 3, "{order:?}");
        assert_eq!(node.worker.counts().held, 0);
        // Those that come again find the same.
        refused(&mut node, POD_A, &pieces[2], Cause::IngressPolicy);
    }
}

#[test]
fn orphans_leave_in_time_however_many_first_fragments_and_tables_come() {
    let mut node = node();
    let second = second();
    for id in 100..148 {
        node.deliver(POD_B, &three(POD_B, B, A, id)[1]);
    }
    node.turn_after(1);
    assert_eq!(node.worker.counts().held, 48);
    for id in 0..5 {
        node.turn_after(second / 4);
        assert_eq!(node.through(POD_B, &three(POD_B, B, A, id)[0], POD_A).len(), 1);
        node.publish();
    }
    node.turn_after(1000);
    assert_eq!((node.worker.counts().held, node.worker.drops(Cause::FragmentAlone)), (0, 48));
}

#[test]
fn a_packet_for_a_silent_next_hop_leaves_in_time_however_many_tables_come() {
    let mut node = node();
    let second = second();
    node.underlay.neighbours.clear();
    node.publish();
    node.deliver(POD_A, &udp4(MAC_A, A, [10, 1, 2, 1], 64, 10));
    for _ in 0..6 {
        node.turn_after(second * 3 / 4);
        node.publish();
    }
    node.turn_after(1000);
    assert_eq!((node.worker.counts().held, node.worker.drops(Cause::PeerUnresolved)), (0, 1));
}

#[test]
fn orphans_of_one_pod_take_no_seat_from_others_nor_from_those_who_wait_for_a_next_hop() {
    let mut node = node();
    let neighbours = std::mem::take(&mut node.underlay.neighbours);
    node.publish();
    for id in 0..100 {
        node.deliver(POD_A, &three(POD_A, A, B, id)[2]);
    }
    node.turn_after(1);
    assert_eq!((node.worker.counts().held, node.worker.drops(Cause::WaitingRoomFull)), (48, 52));
    let pieces = three(POD_B, B, A, 7);
    assert!(node.through(POD_B, &pieces[1], POD_A).is_empty());
    assert_eq!(node.through(POD_B, &pieces[0], POD_A).len(), 2);
    // As many as one pod may have waiting for next hops, and not all seats.
    for _ in 0..30 {
        node.deliver(POD_A, &udp4(MAC_A, A, [10, 1, 2, 1], 64, 10));
    }
    node.deliver(POD_B, &udp4(MAC_B, B, [10, 1, 2, 1], 64, 10));
    node.turn_after(1);
    assert_eq!(node.worker.counts().held, 48 + 16 + 1);
    node.underlay.neighbours = neighbours;
    node.publish();
    assert_eq!(node.sent(UPLINK).len(), 17);
    assert_eq!(node.worker.counts().held, 48);
    node.turn_after(1 << 40);
    assert_eq!(node.worker.counts().held, 0);
}

#[test]
fn nobody_spoils_the_fragments_of_others() {
    let mut node = node();
    let pieces = three(POD_B, B, A, 7);
    // Pod a says that it is pod b: neither waits nor is remembered.
    let forged = |piece: &[u8]| [&router(NODE1).0[..], &MAC_A.0, &piece[12..]].concat();
    refused(&mut node, POD_A, &forged(&pieces[1]), Cause::SpoofedSource);
    refused(&mut node, POD_A, &forged(&pieces[0]), Cause::SpoofedSource);
    assert_eq!(node.worker.counts().held, 0);
    assert!(node.through(POD_B, &pieces[1], POD_A).is_empty());
    assert_eq!(node.through(POD_B, &pieces[0], POD_A).len(), 2);
}

#[test]
fn what_a_later_fragment_carries_is_not_taken_for_a_header() {
    let mut node = node();
    let (client, server) = ((A, 40000), (B, 5432));
    open(&mut node, client, server);
    let mut frame = tcp(POD_A, client, server, "A");
    // As flags: all of them, which no sane sender combines.
    frame.extend([0xff; 1200]);
    let length = (frame.len() - 14) as u16;
    frame[16..18].copy_from_slice(&length.to_be_bytes());
    mend_ipv4(&mut frame);
    for piece in pieces(frame, 7) {
        assert_eq!(node.through(POD_A, &piece, POD_B).len(), 1);
    }
    let hits = node.worker.counts().hits;
    for _ in 0..2 {
        assert_eq!(node.through(POD_A, &tcp(POD_A, client, server, "A"), POD_B).len(), 1);
    }
    assert!(node.worker.counts().hits > hits, "the connection is open");
}

/// A pod whose name comes before b's, so that b's numbers are other ones from then on.
const BETWEEN: &str = r#"
    [[endpoint]]
    name = "aa"
    network = "default"
    mac = "02:00:00:00:00:03"
    addresses = ["10.1.1.3"]
    attachment = { veth = { interface = "paa" } }
"#;

#[test]
fn who_waits_is_the_same_under_tables_with_other_numbers() {
    let mut node = node();
    let neighbours = std::mem::take(&mut node.underlay.neighbours);
    node.publish();
    let pieces = three(POD_B, B, A, 7);
    node.deliver(POD_B, &pieces[1]);
    node.deliver(POD_B, &udp4(MAC_B, B, [10, 1, 2, 1], 64, 10));
    node.turn_after(1);
    assert_eq!(node.worker.counts().held, 2);
    node.desired.apply(Change::Upsert(parse_objects(BETWEEN, "test").unwrap())).unwrap();
    node.underlay.endpoints.insert("aa".into(), DeviceId(POD_B + 1));
    node.underlay.neighbours = neighbours;
    node.publish();
    assert_eq!(node.sent(UPLINK).len(), 1);
    assert_eq!(node.through(POD_B, &pieces[0], POD_A).len(), 2);
}

/// All fragments of some packets from pod b, shuffled.
fn shuffled() -> impl Strategy<Value = (Vec<(u16, usize)>, usize)> {
    (1usize..12).prop_flat_map(|packets| {
        let all: Vec<(u16, usize)> =
            (0..packets as u16).flat_map(|id| (0..3).map(move |n| (id, n))).collect();
        (Just(all).prop_shuffle(), Just(packets))
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
    #[test]
    fn fragments_of_many_packets_at_once_all_arrive((order, packets) in shuffled()) {
        let mut node: Testbed = node();
        let made: Vec<_> = (0..packets as u16).map(|id| three(POD_B, B, A, id)).collect();
        let mut sent = Vec::new();
        for (id, number) in order {
            sent.extend(node.through(POD_B, &made[usize::from(id)][number], POD_A));
        }
        prop_assert_eq!(sent.len(), 3 * packets);
        for id in 0..packets as u16 {
            let of_it = sent.iter().filter(|frame| frame[18..20] == id.to_be_bytes()).cloned().collect();
            prop_assert_eq!(whole(of_it), whole(made[usize::from(id)].clone()));
        }
        prop_assert_eq!((node.worker.counts().held, node.worker.counts().dropped), (0, 0));
    }
}
