//! The engine on ports in memory: packets in, packets out.

#![allow(missing_docs, unreachable_pub, clippy::unwrap_used)]

mod answers;
mod churn;
mod conservation;
mod endings;
mod forwarding;
mod fragments;
mod limits;
mod messages;
mod refusals;
mod related;
mod served;
mod services;
mod shares;
mod spoofing;
mod stateful;
mod told;
mod trains;

use penstock_dataplane::testbed::{self, FIRST_ENDPOINT, HOST_MAC, NEXT_HOP_MAC, Testbed, UPLINK_MAC};
use penstock_wire::MacAddr;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub const POD_A: u16 = FIRST_ENDPOINT;
pub const POD_B: u16 = FIRST_ENDPOINT + 1;
pub const MAC_A: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
pub const MAC_B: MacAddr = MacAddr([2, 0, 0, 0, 0, 2]);
pub const NODE1: [u8; 4] = [192, 168, 1, 1];
pub const NODE2: [u8; 4] = [192, 168, 1, 2];

/// Two pods on this node, and one more network prefix on a peer.
pub fn objects(encapsulation: &str) -> String {
    format!(
        r#"
        [[network]]
        name = "default"
        vni = 100
        prefixes = ["10.1.0.0/16", "fd00:1::/32"]
        encapsulation = "{encapsulation}"
        [[endpoint]]
        name = "a"
        network = "default"
        mac = "02:00:00:00:00:01"
        addresses = ["10.1.1.1", "fd00:1:1::1"]
        attachment = {{ veth = {{ interface = "pa" }} }}
        [[endpoint]]
        name = "b"
        network = "default"
        mac = "02:00:00:00:00:02"
        addresses = ["10.1.1.2", "fd00:1:1::2"]
        attachment = {{ veth = {{ interface = "pb" }} }}
        [[peer]]
        name = "node2"
        address = "192.168.1.2"
        [[route]]
        network = "default"
        prefix = "10.1.2.0/24"
        via = {{ peer = "node2" }}
        [[route]]
        network = "default"
        prefix = "fd00:1:2::/48"
        via = {{ peer = "node2" }}
        [[route]]
        network = "default"
        prefix = "10.9.0.0/16"
        via = "blackhole"
    "#
    )
}

pub fn node() -> Testbed {
    testbed::node(&objects("vxlan"), &[IpAddr::V4(NODE1.into())])
}

/// The peer of [`node`], with pods c and d in the place of a and b.
pub fn peer_node() -> Testbed {
    let text = objects("vxlan")
        .replace("10.1.2.0/24", "10.1.1.0/24")
        .replace("fd00:1:2::/48", "fd00:1:1::/48")
        .replace("\"10.1.1.1\", \"fd00:1:1::1\"", "\"10.1.2.1\", \"fd00:1:2::1\"")
        .replace("\"10.1.1.2\", \"fd00:1:1::2\"", "\"10.1.2.2\", \"fd00:1:2::2\"")
        .replace("192.168.1.2", "192.168.1.1");
    testbed::node(&text, &[IpAddr::V4(NODE2.into())])
}

pub fn router(node: [u8; 4]) -> MacAddr {
    MacAddr::from_underlay(IpAddr::V4(node.into()))
}

/// A UDP frame from a pod to its gateway.
pub fn udp4(src_mac: MacAddr, src: [u8; 4], dst: [u8; 4], ttl: u8, payload: usize) -> Vec<u8> {
    udp4_to(router(NODE1), src_mac, src, dst, ttl, payload)
}

pub fn udp4_to(
    dst_mac: MacAddr,
    src_mac: MacAddr,
    src: [u8; 4],
    dst: [u8; 4],
    ttl: u8,
    payload: usize,
) -> Vec<u8> {
    let builder =
        etherparse::PacketBuilder::ethernet2(src_mac.0, dst_mac.0).ipv4(src, dst, ttl).udp(1000, 2000);
    let mut frame = Vec::new();
    builder.write(&mut frame, &vec![7; payload]).unwrap();
    frame
}

pub fn udp6(src_mac: MacAddr, src: Ipv6Addr, dst: Ipv6Addr, hops: u8, payload: usize) -> Vec<u8> {
    let builder = etherparse::PacketBuilder::ethernet2(src_mac.0, router(NODE1).0)
        .ipv6(src.octets(), dst.octets(), hops)
        .udp(1000, 2000);
    let mut frame = Vec::new();
    builder.write(&mut frame, &vec![7; payload]).unwrap();
    frame
}

/// Sets or clears "don't fragment" and mends the header's checksum.
pub fn set_dont_fragment(frame: &mut [u8], on: bool) {
    frame[20] = if on { 0x40 } else { 0 };
    mend_ipv4(frame);
}

pub fn mend_ipv4(frame: &mut [u8]) {
    frame[24..26].fill(0);
    let sum = penstock_wire::checksum::sum(&frame[14..34]).finish();
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
}

/// An ICMP frame's type and code, once its checksums are seen to be right.
pub fn icmp_of(frame: &[u8]) -> (u8, u8) {
    let parsed = penstock_wire::parse::parse(frame).unwrap();
    let message = &frame[parsed.l4.into()..parsed.end.into()];
    match parsed.net {
        penstock_wire::parse::Net::V4(_) => assert!(penstock_wire::checksum::verify(message)),
        penstock_wire::parse::Net::V6(flow) => {
            let pseudo = penstock_wire::checksum::pseudo_v6(flow.src, flow.dst, 58, message.len() as u32);
            assert!(pseudo.add_bytes(message).is_valid());
        }
        _ => panic!("no IP packet"),
    }
    (message[0], message[1])
}

pub fn v4(address: [u8; 4]) -> Ipv4Addr {
    address.into()
}

pub fn v6(text: &str) -> Ipv6Addr {
    text.parse().unwrap()
}

#[test]
fn the_testbed_is_what_these_tests_think() {
    let node = node();
    let snapshot = node.publisher.current();
    assert_eq!(snapshot.router_mac, router(NODE1));
    assert_eq!(snapshot.endpoints.len(), 2);
    assert_ne!(UPLINK_MAC, NEXT_HOP_MAC);
    assert_ne!(HOST_MAC, MAC_A);
}
