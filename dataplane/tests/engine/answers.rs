//! What the dataplane says itself.

use super::*;
use penstock_dataplane::drop::Cause;
use penstock_dataplane::testbed::UPLINK;

pub fn arp_request(target: [u8; 4]) -> Vec<u8> {
    let request = penstock_wire::arp::Repr {
        operation: penstock_wire::arp::REQUEST,
        sender_mac: MAC_A,
        sender: v4([10, 1, 1, 1]),
        target_mac: MacAddr::ZERO,
        target: v4(target),
    };
    [&MacAddr::BROADCAST.0[..], &MAC_A.0, &[0x08, 0x06], &request.emit()].concat()
}

#[test]
fn the_gateway_answers_arp_and_nobody_else_does() {
    let mut node = node();
    let sent = node.through(POD_A, &arp_request([169, 254, 1, 1]), POD_A);
    let view = penstock_wire::arp::Arp::new_checked(&sent[0][14..]).unwrap();
    assert_eq!((view.sender(), view.sender_mac()), (v4([169, 254, 1, 1]), router(NODE1)));
    assert_eq!(sent[0][..6], MAC_A.0);
    assert!(node.through(POD_A, &arp_request([10, 1, 1, 2]), POD_A).is_empty());
    assert_eq!(node.worker.drops(Cause::ArpNotAnswered), 1);
}

/// Pod a's question for its gateway.
pub fn solicitation() -> Vec<u8> {
    let (src, target) = (v6("fd00:1:1::1"), v6("fe80::1"));
    let group = penstock_wire::ndp::solicited_node(target);
    let message =
        penstock_wire::ndp::Repr { kind: penstock_wire::ndp::SOLICITATION, flags: 0, target, mac: MAC_A };
    let message = message.emit(src, group);
    let mut frame = [&[0x33, 0x33, 0xff, 0, 0, 1][..], &MAC_A.0, &[0x86, 0xdd, 0x60, 0, 0, 0]].concat();
    frame.extend_from_slice(&(message.len() as u16).to_be_bytes());
    frame.extend_from_slice(&[58, 255]);
    frame.extend_from_slice(&src.octets());
    frame.extend_from_slice(&group.octets());
    frame.extend_from_slice(&message);
    frame
}

#[test]
fn the_gateway_answers_neighbour_solicitations() {
    let mut node = node();
    let sent = node.through(POD_A, &solicitation(), POD_A);
    assert_eq!(icmp_of(&sent[0]), (136, 0));
    assert_eq!(sent[0][..6], MAC_A.0);
}

#[test]
fn the_gateway_answers_pings() {
    let mut node = node();
    let builder = etherparse::PacketBuilder::ethernet2(MAC_A.0, router(NODE1).0)
        .ipv4([10, 1, 1, 1], [169, 254, 1, 1], 64)
        .icmpv4_echo_request(7, 1);
    let mut frame = Vec::new();
    builder.write(&mut frame, b"hello").unwrap();
    let sent = node.through(POD_A, &frame, POD_A);
    assert_eq!(icmp_of(&sent[0]), (0, 0));
    assert!(sent[0].ends_with(b"hello"));
}

#[test]
fn a_packet_out_of_hops_is_answered_and_dropped() {
    let mut node = node();
    let sent = node.through(POD_A, &udp4(MAC_A, [10, 1, 1, 1], [10, 1, 2, 1], 1, 10), POD_A);
    assert_eq!(icmp_of(&sent[0]), (11, 0));
    let sent = node.through(POD_A, &udp6(MAC_A, v6("fd00:1:1::1"), v6("fd00:1:2::1"), 1, 10), POD_A);
    assert_eq!(icmp_of(&sent[0]), (3, 0));
    assert_eq!(node.worker.drops(Cause::TtlExpired), 2);
}

#[test]
fn a_packet_that_may_not_be_cut_is_answered_with_the_mtu_of_the_tunnel() {
    let mut node = node();
    let mut frame = udp4(MAC_A, [10, 1, 1, 1], [10, 1, 2, 1], 64, 1450 - 28 + 1);
    set_dont_fragment(&mut frame, true);
    let sent = node.through(POD_A, &frame, POD_A);
    assert_eq!(icmp_of(&sent[0]), (3, 4));
    assert_eq!(sent[0][14 + 20 + 6..][..2], 1450u16.to_be_bytes());
    let sent =
        node.through(POD_A, &udp6(MAC_A, v6("fd00:1:1::1"), v6("fd00:1:2::1"), 64, 1450 - 48 + 1), POD_A);
    assert_eq!(icmp_of(&sent[0]), (2, 0));
    assert_eq!(sent[0][14 + 40 + 4..][..4], 1450u32.to_be_bytes());
    assert_eq!(node.worker.drops(Cause::TooBig), 2);
}

#[test]
fn a_packet_that_may_be_cut_is_cut_and_every_piece_fits() {
    let mut node = node();
    let mut frame = udp4(MAC_A, [10, 1, 1, 1], [10, 1, 2, 1], 64, 1472);
    set_dont_fragment(&mut frame, false);
    for _ in 0..2 {
        let sent = node.through(POD_A, &frame, UPLINK);
        assert_eq!(sent.len(), 2);
        let payload: Vec<u8> = sent.iter().flat_map(|wire| wire[50 + 14 + 20..].to_vec()).collect();
        assert_eq!(payload, frame[34..]);
        assert!(sent.iter().all(|wire| wire.len() <= 1514));
    }
}

#[test]
fn icmp_errors_are_rate_limited() {
    let mut node = node();
    let frame = udp4(MAC_A, [10, 1, 1, 1], [10, 200, 0, 1], 64, 10);
    let errors: usize = (0..200).map(|_| node.through(POD_A, &frame, POD_A).len()).sum();
    assert!((50..60).contains(&errors), "{errors} errors");
    assert_eq!(node.worker.drops(Cause::NoRoute), 200);
    assert_eq!(node.worker.counts().errors_withheld as usize, 200 - errors);
}

#[test]
fn the_underlays_word_about_path_mtu_is_passed_on() {
    let mut node = node();
    let wire = node.through(POD_A, &udp4(MAC_A, [10, 1, 1, 1], [10, 1, 2, 1], 64, 1000), UPLINK).remove(0);
    let mut message = vec![3, 4, 0, 0, 0, 0, 0x05, 0x78];
    message.extend_from_slice(&wire[14..14 + 48]);
    let sum = penstock_wire::checksum::sum(&message).finish();
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    let builder = etherparse::PacketBuilder::ethernet2(NEXT_HOP_MAC.0, UPLINK_MAC.0).ipv4(
        [192, 168, 1, 254],
        NODE1,
        64,
    );
    let mut frame = Vec::new();
    builder.write(&mut frame, etherparse::ip_number::ICMP, &message).unwrap();
    node.through(UPLINK, &frame, POD_A);
    let event = node.events.next();
    assert!(
        matches!(event, Some(penstock_dataplane::mailbox::Event::PathMtu(peer, 1400)) if peer == IpAddr::V4(NODE2.into())),
        "{event:?}"
    );
}
