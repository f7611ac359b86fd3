//! Packets without a tunnel: from whom they may be, and from whom they are not believed to be.

use std::net::IpAddr;

use penstock_dataplane::drop::Cause;
use penstock_dataplane::testbed::{self, HOST, Testbed, UPLINK};
use proptest::prelude::*;

use super::stateful::{A, OUTSIDE, node as node_with_a_service, refused};
use super::{HOST_MAC, NODE1, NODE2, POD_A, UPLINK_MAC, objects, router, udp4_to};
use super::{NEXT_HOP_MAC, testbed::Sizes};

const REMOTE: [u8; 4] = [10, 1, 2, 1];

/// A bare datagram for pod a, from the underlay or from the node itself.
fn bare(from: u16, src: [u8; 4]) -> Vec<u8> {
    let (to, from) = if from == UPLINK { (UPLINK_MAC, NEXT_HOP_MAC) } else { (router(NODE1), HOST_MAC) };
    udp4_to(to, from, src, A, 64, 10)
}

fn stateful(text: &str) -> Testbed {
    let sizes = Sizes { flows: 4096, chunks: 4096, connections: Some(1 << 16) };
    testbed::node_of(text, &[IpAddr::V4(NODE1.into())], sizes)
}

#[test]
fn a_service_lets_nobody_outside_pass_for_a_pod_behind_a_tunnel() {
    let mut node = node_with_a_service();
    for from in [UPLINK, HOST] {
        refused(&mut node, from, &bare(from, REMOTE), Cause::SpoofedSource);
        refused(&mut node, from, &bare(from, [10, 1, 1, 2]), Cause::SpoofedSource);
        // Others are who they say, the peer's node itself included: it is on the same link.
        assert_eq!(node.through(from, &bare(from, OUTSIDE), POD_A).len(), 1);
        assert_eq!(node.through(from, &bare(from, NODE2), POD_A).len(), 1);
    }
    refused(&mut node, UPLINK, &bare(UPLINK, NODE1), Cause::SpoofedSource);
    assert_eq!(node.through(HOST, &bare(HOST, NODE1), POD_A).len(), 1);
}

#[test]
fn a_peer_that_no_route_leads_to_is_not_nearer_for_it() {
    let mut node = node_with_a_service();
    node.underlay.paths.clear();
    node.publish();
    refused(&mut node, UPLINK, &bare(UPLINK, REMOTE), Cause::SpoofedSource);
}

#[test]
fn where_pods_speak_without_a_tunnel_their_packets_come_without_one() {
    for encapsulation in ["none", "vxlan\"\ncross-subnet = true #"] {
        let mut node = stateful(&objects(encapsulation));
        assert_eq!(node.through(UPLINK, &bare(UPLINK, REMOTE), POD_A).len(), 1, "{encapsulation}");
        refused(&mut node, UPLINK, &bare(UPLINK, [10, 1, 1, 2]), Cause::SpoofedSource);
    }
}

#[test]
fn where_pods_speak_bare_on_one_link_those_behind_a_router_do_not() {
    let mut node = stateful(&objects("vxlan\"\ncross-subnet = true #"));
    for path in node.underlay.paths.values_mut() {
        path.next_hop = IpAddr::from([192, 168, 1, 254]);
    }
    node.publish();
    refused(&mut node, UPLINK, &bare(UPLINK, REMOTE), Cause::SpoofedSource);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
    #[test]
    fn a_bare_packet_is_from_nobody_whom_a_tunnel_or_a_port_leads_to(
        sources in prop::collection::vec((prop::sample::select(vec![
            [10, 1, 1], [10, 1, 2], [10, 1, 3], [192, 168, 1], [203, 0, 113], [127, 0, 0], [224, 0, 0], [169, 254, 7],
        ]), 1u8..5), 1..40)
    ) {
        let mut node = node_with_a_service();
        for ([a, b, c], d) in sources {
            let src = [a, b, c, d];
            let is_endpoint = matches!(src, [10, 1, 1, 1 | 2]);
            let is_remote = matches!(src, [10, 1, 2, _]);
            let is_nobody = matches!(a, 127 | 224 | 169);
            let passes = !is_endpoint && !is_remote && !is_nobody && src != NODE1;
            let sent = node.through(UPLINK, &bare(UPLINK, src), POD_A);
            prop_assert_eq!(sent.len(), usize::from(passes), "from {:?}", src);
        }
    }
}
