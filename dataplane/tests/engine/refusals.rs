//! What is dropped, and why.

use super::*;
use penstock_dataplane::drop::{Cause, Reason};
use penstock_dataplane::testbed::UPLINK;
use penstock_wire::Malformed;

fn dropped(node: &mut Testbed, from: u16, frame: &[u8], reason: impl Into<Reason>) {
    let reason = reason.into();
    let before = (node.worker.drops(reason), node.worker.counts().dropped);
    node.deliver(from, frame);
    node.turn_after(1000);
    let after = (node.worker.drops(reason), node.worker.counts().dropped);
    assert_eq!(after, (before.0 + 1, before.1 + 1), "{} and nothing else", reason.name());
}

#[test]
fn a_pod_sends_from_its_own_addresses_only() {
    let mut node = node();
    dropped(&mut node, POD_A, &udp4(MAC_A, [10, 1, 1, 2], [10, 1, 2, 1], 64, 10), Cause::SpoofedSource);
    dropped(&mut node, POD_A, &udp4(MAC_B, [10, 1, 1, 1], [10, 1, 2, 1], 64, 10), Cause::WrongSourceMac);
    dropped(
        &mut node,
        POD_A,
        &udp6(MAC_A, v6("fd00:1:1::2"), v6("fd00:1:2::1"), 64, 10),
        Cause::SpoofedSource,
    );
}

#[test]
fn a_known_flow_does_not_let_a_spoofed_mac_through() {
    let mut node = node();
    let frame = udp4(MAC_A, [10, 1, 1, 1], [10, 1, 2, 1], 64, 10);
    assert_eq!(node.through(POD_A, &frame, UPLINK).len(), 1);
    dropped(&mut node, POD_A, &udp4(MAC_B, [10, 1, 1, 1], [10, 1, 2, 1], 64, 10), Cause::WrongSourceMac);
    // Pod B's packet with pod A's address is another flow.
    dropped(&mut node, POD_B, &udp4(MAC_B, [10, 1, 1, 1], [10, 1, 2, 1], 64, 10), Cause::SpoofedSource);
}

#[test]
fn groups_blackholes_and_strangers_are_dropped_by_name() {
    let mut node = node();
    dropped(&mut node, POD_A, &udp4(MAC_A, [10, 1, 1, 1], [224, 0, 0, 251], 64, 10), Cause::Multicast);
    dropped(&mut node, POD_A, &udp4(MAC_A, [10, 1, 1, 1], [10, 9, 0, 1], 64, 10), Cause::Blackhole);
    dropped(&mut node, POD_A, &udp4(MAC_A, [10, 1, 1, 1], [169, 254, 1, 1], 64, 10), Cause::GatewayRefused);
    dropped(&mut node, POD_A, &udp4_to(MAC_B, MAC_A, [10, 1, 1, 1], [10, 1, 1, 2], 64, 10), Cause::NotForUs);
    let mut tagged = udp4(MAC_A, [10, 1, 1, 1], [10, 1, 2, 1], 64, 10);
    tagged.splice(12..12, [0x81, 0, 0, 5]);
    dropped(&mut node, POD_A, &tagged, Cause::VlanNotExpected);
    let mut other = udp4(MAC_A, [10, 1, 1, 1], [10, 1, 2, 1], 64, 10);
    other[12..14].copy_from_slice(&[0x88, 0xcc]);
    dropped(&mut node, POD_A, &other, Cause::NotIp);
    let mut broken = udp4(MAC_A, [10, 1, 1, 1], [10, 1, 2, 1], 64, 10);
    broken[24] ^= 1;
    dropped(&mut node, POD_A, &broken, Malformed::BadChecksum);
    dropped(&mut node, POD_A, &broken[..10], Malformed::Truncated);
}

/// A packet of pod c on the peer, in its tunnel to us.
fn from_peer() -> Vec<u8> {
    let frame = udp4_to(router(NODE2), MAC_A, [10, 1, 2, 1], [10, 1, 1, 1], 64, 10);
    let mut wire = peer_node().through(POD_A, &frame, UPLINK).remove(0);
    wire[..6].copy_from_slice(&UPLINK_MAC.0);
    wire
}

#[test]
fn a_tunnel_packet_is_of_a_known_network_from_a_known_peer_to_our_endpoint() {
    let mut node = node();
    let good = from_peer();
    assert_eq!(node.through(UPLINK, &good, POD_A).len(), 1);
    let with = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut frame = good.clone();
        change(&mut frame);
        mend_ipv4(&mut frame);
        frame
    };
    dropped(&mut node, UPLINK, &with(&|f| f[48] = 9), Cause::UnknownVni);
    dropped(&mut node, UPLINK, &with(&|f| f[29] = 77), Cause::UnknownPeer);
    dropped(&mut node, UPLINK, &with(&|f| f[33] = 77), Cause::NotOurTunnel);
    dropped(&mut node, UPLINK, &with(&|f| f[42] = 0), Malformed::BadTunnelFlags);
    // The peer sends what is not its own: an address of ours.
    let mut spoofed = good.clone();
    spoofed[50 + 14 + 12..][..4].copy_from_slice(&[10, 1, 1, 2]);
    spoofed[50 + 24..50 + 26].fill(0);
    let sum = penstock_wire::checksum::sum(&spoofed[64..84]).finish();
    spoofed[74..76].copy_from_slice(&sum.to_be_bytes());
    dropped(&mut node, UPLINK, &spoofed, Cause::SpoofedTunnelSource);
}

#[test]
fn a_packet_does_not_go_back_into_the_tunnel_that_it_came_from() {
    let mut node = node();
    let frame = udp4_to(router(NODE2), MAC_A, [10, 1, 2, 1], [10, 1, 1, 200], 64, 10);
    let mut wire = peer_node().through(POD_A, &frame, UPLINK).remove(0);
    wire[..6].copy_from_slice(&UPLINK_MAC.0);
    wire[50 + 14 + 16..][..4].copy_from_slice(&[10, 1, 2, 7]);
    wire[74..76].fill(0);
    let sum = penstock_wire::checksum::sum(&wire[64..84]).finish();
    wire[74..76].copy_from_slice(&sum.to_be_bytes());
    dropped(&mut node, UPLINK, &wire, Cause::RouteLoop);
}

#[test]
fn a_full_transmit_ring_is_a_counted_drop() {
    let mut node = node();
    let mut full = penstock_io::mem::MemPort::new();
    full.limit_room(0);
    node.open(POD_B, full);
    dropped(&mut node, POD_A, &udp4(MAC_A, [10, 1, 1, 1], [10, 1, 1, 2], 64, 10), Cause::TxRingFull);
}

#[test]
fn who_waits_for_too_long_is_given_up() {
    let mut node = node();
    node.underlay.neighbours.clear();
    node.publish();
    node.through(POD_A, &udp4(MAC_A, [10, 1, 1, 1], [10, 1, 2, 1], 64, 10), UPLINK);
    assert_eq!(node.worker.counts().held, 1);
    node.turn_after(1 << 40);
    assert_eq!(node.worker.drops(Cause::PeerUnresolved), 1);
}
