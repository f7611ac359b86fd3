//! What endpoints with limits may send, receive and open.

use std::net::IpAddr;
use std::time::Duration;

use penstock_api::model::Object;
use penstock_dataplane::drop::Cause;
use penstock_dataplane::tables::desired::Change;
use penstock_dataplane::testbed::{self, Testbed};
use penstock_io::TicksPerSecond;

use super::{MAC_A, MAC_B, NODE1, POD_A, POD_B, objects, udp4, udp6};

const A: [u8; 4] = [10, 1, 1, 1];
const B: [u8; 4] = [10, 1, 1, 2];
/// Bytes of a UDP packet over IPv4 that make a frame of a thousand.
const THOUSAND: usize = 1000 - 14 - 20 - 8;

/// A node whose endpoint `a` has these limits.
fn node(limits: &str, is_stateful: bool) -> Testbed {
    let attachment = "attachment = { veth = { interface = \"pa\" } }";
    let text = objects("vxlan").replace(attachment, &format!("{attachment}\nlimits = {{ {limits} }}"));
    let addresses = [IpAddr::V4(NODE1.into())];
    if is_stateful {
        testbed::stateful_node_with(&text, &addresses, 4096, 4096)
    } else {
        testbed::node(&text, &addresses)
    }
}

fn rate() -> u64 {
    TicksPerSecond::measure(Duration::from_millis(20)).0
}

/// How many of so many such frames come out.
fn passing(node: &mut Testbed, count: usize, from: u16, frame: &[u8], to: u16) -> usize {
    (0..count).for_each(|_| node.deliver(from, frame));
    node.sent(to).len()
}

/// About as many: clocks are measured, and portions are whole.
fn assert_about(passed: usize, wanted: usize) {
    assert!(passed.abs_diff(wanted) <= wanted / 8 + 1, "{passed} passed, about {wanted} may");
}

#[test]
fn bandwidth_is_kept_each_way_whether_connections_are_kept_or_not() {
    let limits = "egress-bits-per-second = 8000000, ingress-bits-per-second = 16000000, burst-bytes = 100000";
    let v6 = |last| std::net::Ipv6Addr::new(0xfd00, 1, 1, 0, 0, 0, 0, last);
    for is_stateful in [false, true] {
        let of_ipv4 = (udp4(MAC_A, A, B, 64, THOUSAND), udp4(MAC_B, B, A, 64, THOUSAND));
        let of_ipv6 =
            (udp6(MAC_A, v6(1), v6(2), 64, THOUSAND - 20), udp6(MAC_B, v6(2), v6(1), 64, THOUSAND - 20));
        for (out, back) in [of_ipv4, of_ipv6] {
            let mut node = node(limits, is_stateful);
            let passed = passing(&mut node, 300, POD_A, &out, POD_B);
            assert_about(passed, 100);
            assert_eq!(node.worker.drops(Cause::EgressBandwidth), 300 - passed as u64);
            let passed = passing(&mut node, 300, POD_B, &back, POD_A);
            assert_about(passed, 100);
            assert_eq!(node.worker.drops(Cause::IngressBandwidth), 300 - passed as u64);
            assert!(node.worker.counts().hits > 500, "limits are kept on the fast path");
            node.turn_after(rate() / 20);
            assert_about(passing(&mut node, 300, POD_A, &out, POD_B), 50);
            assert_about(passing(&mut node, 300, POD_B, &back, POD_A), 100);
        }
    }
}

#[test]
fn packets_are_kept_each_way() {
    let mut node = node("packets-per-second = 1000", true);
    let (out, back) = (udp4(MAC_A, A, B, 64, 10), udp4(MAC_B, B, A, 64, 10));
    assert_about(passing(&mut node, 1500, POD_A, &out, POD_B), 1000);
    assert_about(passing(&mut node, 1500, POD_B, &back, POD_A), 1000);
    assert!(node.worker.drops(Cause::EgressPacketRate) > 350);
    assert!(node.worker.drops(Cause::IngressPacketRate) > 350);
    node.turn_after(rate() / 10);
    assert_about(passing(&mut node, 300, POD_A, &out, POD_B), 100);
}

/// A datagram of a flow of its own.
fn datagram(mac: penstock_wire::MacAddr, src: [u8; 4], dst: [u8; 4], port: u16) -> Vec<u8> {
    let router = super::router(NODE1);
    let builder = etherparse::PacketBuilder::ethernet2(mac.0, router.0).ipv4(src, dst, 64).udp(port, 2000);
    let mut frame = Vec::new();
    builder.write(&mut frame, b"hello").unwrap();
    frame
}

#[test]
fn new_connections_are_kept_whoever_opens_them_and_old_ones_go_on() {
    let mut node = node("connections-per-second = 50", true);
    let opened = |node: &mut Testbed, from: u16, ports: std::ops::Range<u16>| {
        let (mac, src, dst, to) = if from == POD_A { (MAC_A, A, B, POD_B) } else { (MAC_B, B, A, POD_A) };
        ports.for_each(|port| node.deliver(from, &datagram(mac, src, dst, port)));
        node.sent(to).len()
    };
    assert_eq!(opened(&mut node, POD_A, 1000..1080), 50);
    assert_eq!(opened(&mut node, POD_B, 5000..5010), 0, "what is opened to the endpoint counts as well");
    assert_eq!(opened(&mut node, POD_A, 1000..1050), 50, "those that are open go on");
    assert_eq!(node.worker.drops(Cause::EndpointConnectionRate), 40);
    node.turn_after(rate() / 5);
    assert_about(opened(&mut node, POD_B, 6000..6080), 10);
}

#[test]
fn an_endpoint_without_limits_pays_nothing_and_limits_come_and_go() {
    let mut node = node("egress-bits-per-second = 8000000, burst-bytes = 100000", true);
    let frame = udp4(MAC_A, A, B, 64, THOUSAND);
    assert_about(passing(&mut node, 300, POD_A, &frame, POD_B), 100);
    assert_eq!(passing(&mut node, 300, POD_B, &udp4(MAC_B, B, A, 64, THOUSAND), POD_A), 300);
    let limited = node.desired.endpoints().find(|it| it.name.as_str() == "a").unwrap().clone();
    let mut free = limited.clone();
    free.limits = None;
    let put = |node: &mut Testbed, endpoint| {
        node.desired.apply(Change::Upsert(vec![Object::Endpoint(endpoint)])).unwrap();
        node.publish();
    };
    put(&mut node, free);
    assert_eq!(passing(&mut node, 300, POD_A, &frame, POD_B), 300);
    put(&mut node, limited);
    assert_about(passing(&mut node, 300, POD_A, &frame, POD_B), 100);
    // Another change leaves the endpoint what it has spent.
    let other = node.desired.endpoints().find(|it| it.name.as_str() == "b").unwrap().clone();
    put(&mut node, penstock_api::model::Endpoint { mtu: Some(1400), ..other });
    assert_about(passing(&mut node, 300, POD_A, &frame, POD_B), 0);
}
