//! How many connections an endpoint and those beyond the node may have, packet by packet.

use std::net::IpAddr;

use penstock_dataplane::conntrack::Share;
use penstock_dataplane::drop::Cause;
use penstock_dataplane::testbed::{self, Shares, Sizes, Testbed, UPLINK};

use super::stateful::{A, B, segment, tcp};
use super::{MAC_A, MAC_B, NODE1, NODE2, POD_A, POD_B, objects, router};

const REMOTE: [u8; 4] = [10, 1, 2, 1];

/// This node, whose endpoint `a` may be told how many it may have, and the peer that has the remote pod.
fn nodes(limits: &str, shares: Shares) -> [Testbed; 2] {
    let here = objects("vxlan");
    let there = here
        .replace("10.1.2.0/24", "10.1.1.0/24")
        .replace("fd00:1:2::/48", "fd00:1:1::/48")
        .replace("\"10.1.1.1\", \"fd00:1:1::1\"", "\"10.1.2.1\", \"fd00:1:2::1\"")
        .replace("\"10.1.1.2\", \"fd00:1:1::2\"", "\"10.1.2.2\", \"fd00:1:2::2\"")
        .replace("192.168.1.2", "192.168.1.1");
    let attachment = "attachment = { veth = { interface = \"pa\" } }";
    let here = here.replace(attachment, &format!("{attachment}\nlimits = {{ {limits} }}"));
    let sizes = Sizes { flows: 4096, chunks: 4096, connections: Some(1 << 16) };
    let node = |text: &str, address: [u8; 4], shares| {
        testbed::node_sharing(text, &[IpAddr::V4(address.into())], sizes, shares)
    };
    [node(&here, NODE1, shares), node(&there, NODE2, Shares::WHOLE)]
}

/// How many of these connections of a local pod's arrive at another.
fn opened(node: &mut Testbed, from: u16, ports: std::ops::Range<u16>) -> usize {
    let (src, dst, to) = if from == POD_A { (A, B, POD_B) } else { (B, A, POD_A) };
    ports.for_each(|port| node.deliver(from, &tcp(from, (src, port), (dst, 80), "S")));
    node.sent(to).len()
}

/// How many of these connections of the remote pod's arrive at the local pod `a`.
fn opened_from_afar(nodes: &mut [Testbed; 2], ports: std::ops::Range<u16>) -> usize {
    let [here, there] = nodes;
    for port in ports {
        let frame = segment(MAC_A.0, router(NODE2).0, (REMOTE, port), (A, 80), "S");
        for sent in there.through(POD_A, &frame, UPLINK) {
            here.deliver(UPLINK, &sent);
        }
    }
    here.sent(POD_A).len()
}

#[test]
fn an_endpoint_has_no_more_connections_than_it_may_whoever_opens_them() {
    let mut nodes = nodes("max-connections = 5", Shares::WHOLE);
    assert_eq!(opened_from_afar(&mut nodes, 1000..1002), 2);
    assert_eq!(opened(&mut nodes[0], POD_B, 1000..1002), 2);
    assert_eq!(opened(&mut nodes[0], POD_A, 1000..1004), 1);
    assert_eq!(nodes[0].worker.drops(Cause::EndpointConnections), 3);
    assert_eq!(opened(&mut nodes[0], POD_B, 2000..2003), 0);
    assert_eq!(opened_from_afar(&mut nodes, 2000..2003), 0);
    assert_eq!(nodes[0].worker.drops(Cause::EndpointConnections), 9);
    // Those that it has go on, and others reach others.
    assert_eq!(opened(&mut nodes[0], POD_B, 1000..1002), 2);
    let other = tcp(POD_B, (B, 3000), (REMOTE, 80), "S");
    assert_eq!(nodes[0].through(POD_B, &other, UPLINK).len(), 1);
}

#[test]
fn half_open_connections_to_an_endpoint_are_limited_like_its_own() {
    let shares = Shares { endpoint: Share { connections: 100, half_open: 3 }, ..Shares::WHOLE };
    let mut nodes = nodes("packets-per-second = 1000000", shares);
    assert_eq!(opened_from_afar(&mut nodes, 1000..1010), 3);
    assert_eq!(nodes[0].worker.drops(Cause::EndpointHalfOpen), 7);
    // A handshake that is done makes room for the next.
    let here = &mut nodes[0];
    let answer = tcp(POD_A, (A, 80), (REMOTE, 1000), "SA");
    let answer = here.through(POD_A, &answer, UPLINK);
    assert_eq!(nodes[1].through(UPLINK, &answer[0], POD_A).len(), 1);
    let done = segment(MAC_A.0, router(NODE2).0, (REMOTE, 1000), (A, 80), "A");
    let done = nodes[1].through(POD_A, &done, UPLINK);
    assert_eq!(nodes[0].through(UPLINK, &done[0], POD_A).len(), 1);
    assert_eq!(opened_from_afar(&mut nodes, 2000..2002), 1);
}

#[test]
fn those_beyond_the_node_share_what_is_left_to_them_and_its_own_pods_are_not_kept_out() {
    let shares = Shares { outside: Share { connections: 4, half_open: 100 }, ..Shares::WHOLE };
    let mut nodes = nodes("packets-per-second = 1000000", shares);
    assert_eq!(opened_from_afar(&mut nodes, 1000..1006), 4);
    assert_eq!(nodes[0].worker.drops(Cause::OutsideConnections), 2);
    assert_eq!(opened(&mut nodes[0], POD_B, 1000..1006), 6);
    let frame = segment(MAC_B.0, router(NODE1).0, (B, 4000), (REMOTE, 80), "S");
    assert_eq!(nodes[0].through(POD_B, &frame, UPLINK).len(), 1);
}
