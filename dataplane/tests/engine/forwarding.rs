//! Where good packets go.

use super::*;
use penstock_dataplane::flow::DeviceId;
use penstock_dataplane::tables::desired::Change;
use penstock_dataplane::testbed::{HOST, UPLINK};
use penstock_wire::parse::{Net, parse};

#[test]
fn pods_of_one_node_reach_each_other_with_one_hop_less() {
    let mut node = node();
    let sent = node.through(POD_A, &udp4(MAC_A, [10, 1, 1, 1], [10, 1, 1, 2], 64, 100), POD_B);
    let expected = udp4_to(MAC_B, router(NODE1), [10, 1, 1, 1], [10, 1, 1, 2], 63, 100);
    assert_eq!(sent, [expected]);
    let sent = node.through(POD_A, &udp6(MAC_A, v6("fd00:1:1::1"), v6("fd00:1:1::2"), 64, 100), POD_B);
    assert_eq!((sent.len(), &sent[0][..6], sent[0][14 + 7]), (1, &MAC_B.0[..], 63));
}

#[test]
fn the_second_packet_of_a_flow_is_a_hit_and_leaves_like_the_first() {
    let mut node = node();
    let frame = udp4(MAC_A, [10, 1, 1, 1], [10, 1, 2, 1], 64, 100);
    let first = node.through(POD_A, &frame, UPLINK);
    let second = node.through(POD_A, &frame, UPLINK);
    assert_eq!(first, second);
    let counts = node.worker.counts();
    assert_eq!((counts.misses, counts.hits, counts.stale), (1, 1, 0));
}

#[test]
fn a_packet_crosses_the_overlay_and_back() {
    let (mut one, mut two) = (node(), peer_node());
    for (there, back) in [
        (
            udp4(MAC_A, [10, 1, 1, 1], [10, 1, 2, 1], 64, 33),
            udp4_to(router(NODE2), MAC_A, [10, 1, 2, 1], [10, 1, 1, 1], 64, 900),
        ),
        (udp6(MAC_A, v6("fd00:1:1::1"), v6("fd00:1:2::1"), 64, 1200), {
            let mut frame = udp6(MAC_A, v6("fd00:1:2::1"), v6("fd00:1:1::1"), 64, 1);
            frame[..6].copy_from_slice(&router(NODE2).0);
            frame
        }),
    ] {
        let mut wire = one.through(POD_A, &there, UPLINK);
        assert_eq!(wire.len(), 1);
        wire[0][..6].copy_from_slice(&UPLINK_MAC.0);
        let arrived = two.through(UPLINK, &wire[0], POD_A);
        assert_eq!(arrived.len(), 1);
        assert_eq!(arrived[0][14 + 20..], two_hops_less(&there)[14 + 20..]);
        let mut wire = two.through(POD_A, &back, UPLINK);
        wire[0][..6].copy_from_slice(&UPLINK_MAC.0);
        let arrived = one.through(UPLINK, &wire[0], POD_A);
        assert_eq!(arrived[0][14..], two_hops_less(&back)[14..]);
        assert_eq!(arrived[0][..6], MAC_A.0);
    }
}

fn two_hops_less(frame: &[u8]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    if frame[12..14] == [0x08, 0x00] {
        frame[22] -= 2;
        mend_ipv4(&mut frame);
    } else {
        frame[21] -= 2;
    }
    frame
}

#[test]
fn the_outer_headers_say_who_sends_what_to_whom() {
    let mut node = node();
    let wire = node.through(POD_A, &udp4(MAC_A, [10, 1, 1, 1], [10, 1, 2, 1], 64, 100), UPLINK).remove(0);
    let parsed = parse(&wire).unwrap();
    let Net::V4(outer) = parsed.net else { panic!("an IPv4 underlay") };
    assert_eq!((outer.src, outer.dst, outer.dport), (v4(NODE1), v4(NODE2), 4789));
    assert!(outer.sport >= 0xc000 && outer.dont_fragment);
    assert_eq!((&wire[..6], &wire[6..12]), (&NEXT_HOP_MAC.0[..], &UPLINK_MAC.0[..]));
    let tunnel =
        penstock_wire::decap::tunnel(&wire, parsed.l4, penstock_wire::decap::TunnelKind::Vxlan).unwrap();
    assert_eq!(tunnel.vni.get(), 100);
    assert_eq!(wire[tunnel.inner.into()..][..6], router(NODE2).0);
}

#[test]
fn flows_spread_over_source_ports_and_a_flow_keeps_its_own() {
    let mut node = node();
    let mut ports = std::collections::HashSet::new();
    for last in 1..=50 {
        let frame = udp4(MAC_A, [10, 1, 1, 1], [10, 1, 2, last], 64, 10);
        let once = node.through(POD_A, &frame, UPLINK).remove(0);
        assert_eq!(once[34..36], node.through(POD_A, &frame, UPLINK)[0][34..36]);
        ports.insert([once[34], once[35]]);
    }
    assert!(ports.len() > 40, "{} ports for 50 flows", ports.len());
}

#[test]
fn a_route_change_applies_to_a_known_flow_on_its_next_packet() {
    let mut node = node();
    let frame = udp4(MAC_A, [10, 1, 1, 1], [10, 1, 2, 1], 64, 10);
    assert_eq!(node.through(POD_A, &frame, UPLINK).len(), 1);
    let more = r#"
        [[route]]
        network = "default"
        prefix = "10.1.2.1/32"
        via = "blackhole"
    "#;
    let objects = penstock_api::file::parse_objects(more, "test").unwrap();
    node.desired.apply(Change::Upsert(objects)).unwrap();
    node.publish();
    assert!(node.through(POD_A, &frame, UPLINK).is_empty());
    assert_eq!(node.worker.counts().stale, 1);
}

#[test]
fn the_host_reaches_pods_and_pods_reach_the_host() {
    let mut node = node();
    let from_host = udp4_to(router(NODE1), HOST_MAC, NODE1, [10, 1, 1, 1], 64, 10);
    assert_eq!(node.through(HOST, &from_host, POD_A)[0][..6], MAC_A.0);
    let to_host = udp4(MAC_A, [10, 1, 1, 1], NODE1, 64, 10);
    assert_eq!(node.through(POD_A, &to_host, HOST)[0][..6], HOST_MAC.0);
    // The other node's host is behind its tunnel.
    assert_eq!(node.through(POD_A, &udp4(MAC_A, [10, 1, 1, 1], NODE2, 64, 10), UPLINK).len(), 1);
}

#[test]
fn a_packet_waits_for_its_next_hop_and_leaves_when_that_answers() {
    let mut node = node();
    let neighbour = node.underlay.neighbours.remove(&(DeviceId(UPLINK), IpAddr::V4(NODE2.into()))).unwrap();
    node.publish();
    let frame = udp4(MAC_A, [10, 1, 1, 1], [10, 1, 2, 1], 64, 10);
    assert!(node.through(POD_A, &frame, UPLINK).is_empty());
    assert_eq!(node.worker.counts().held, 1);
    node.underlay.neighbours.insert((DeviceId(UPLINK), IpAddr::V4(NODE2.into())), neighbour);
    node.publish();
    assert_eq!(node.sent(UPLINK).len(), 1);
    assert_eq!(node.worker.counts().held, 0);
}

#[test]
fn a_checksum_that_a_pod_left_to_its_card_is_finished() {
    let mut node = node();
    let whole = udp4(MAC_A, [10, 1, 1, 1], [10, 1, 1, 2], 64, 101);
    let mut partial = whole.clone();
    let pseudo = penstock_wire::checksum::pseudo_v4(v4([10, 1, 1, 1]), v4([10, 1, 1, 2]), 17, 8 + 101);
    partial[40..42].copy_from_slice(&pseudo.fold().to_be_bytes());
    for _ in 0..2 {
        let sent = node.through(POD_A, &partial, POD_B);
        assert_eq!(sent[0][34..], whole[34..]);
    }
}

#[test]
fn congestion_on_the_underlay_reaches_the_pod_that_speaks_ecn() {
    let (mut one, mut two) = (node(), peer_node());
    let mut frame = udp4(MAC_A, [10, 1, 1, 1], [10, 1, 2, 1], 64, 10);
    frame[15] = 0x02; // ECT(0)
    mend_ipv4(&mut frame);
    let mut wire = one.through(POD_A, &frame, UPLINK).remove(0);
    assert_eq!(wire[15] & 3, 2, "the outer header carries the inner ECN field");
    wire[..6].copy_from_slice(&UPLINK_MAC.0);
    wire[15] |= 3;
    mend_ipv4(&mut wire);
    let arrived = two.through(UPLINK, &wire, POD_A).remove(0);
    assert_eq!(arrived[15] & 3, 3);
    assert!(penstock_wire::checksum::verify(&arrived[14..34]));
}
