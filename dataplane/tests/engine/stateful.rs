//! Connections, policies, services and translation, packet by packet.

use std::net::IpAddr;

use penstock_api::file::parse_objects;
use penstock_dataplane::drop::Cause;
use penstock_dataplane::tables::desired::Change;
use penstock_dataplane::testbed::{self, Sizes, Testbed, UPLINK};
use penstock_wire::parse::{Net, V4Flow, parse};

use super::{MAC_A, MAC_B, NODE1, POD_A, POD_B, objects, router};

pub const A: [u8; 4] = [10, 1, 1, 1];
pub const B: [u8; 4] = [10, 1, 1, 2];
pub const SERVICE: [u8; 4] = [10, 96, 0, 1];
pub const OUTSIDE: [u8; 4] = [203, 0, 113, 9];

/// Two pods; `b` takes TCP to port 5432 from `a`'s identity and nothing else; a service that `b` serves; a way out.
const MORE: &str = r#"
    [[identity]]
    name = "client"
    network = "default"
    prefixes = ["10.1.1.1/32"]
    [[identity]]
    name = "server"
    network = "default"
    prefixes = ["10.1.1.2/32"]
    [[tier]]
    name = "application"
    order = 1
    default = "deny"
    [[policy]]
    name = "server"
    network = "default"
    tier = "application"
    subjects = { identities = ["server"] }
    directions = ["ingress"]
    [[policy.rules]]
    name = "database"
    direction = "ingress"
    action = "allow"
    peers = [{ identity = "client" }]
    ports = [{ protocol = "tcp", port = 5432 }]
    [[service]]
    name = "database"
    network = "default"
    cluster-ips = ["10.96.0.1"]
    ports = [{ name = "sql", port = 80 }]
    [[backends]]
    service = "database"
    ports = [{ name = "sql", port = 5432 }]
    members = [{ address = "10.1.1.2" }]
    [[route]]
    network = "default"
    prefix = "0.0.0.0/0"
    via = { uplink = { uplink = "wire", gateway = "192.168.1.254" } }
    [[nat-pool]]
    name = "outside"
    network = "default"
    sources = ["10.1.0.0/16"]
    exclusions = ["10.0.0.0/8"]
    ports = "50000-50999"
"#;

pub fn node() -> Testbed {
    node_of(Sizes { flows: 4096, chunks: 4096, connections: Some(1 << 16) })
}

pub fn node_of(sizes: Sizes) -> Testbed {
    let text = objects("vxlan") + MORE;
    let mut node = testbed::node_of(&text, &[IpAddr::V4(NODE1.into())], sizes);
    let gateway = IpAddr::from([192, 168, 1, 254]);
    let uplink = penstock_dataplane::flow::DeviceId(UPLINK);
    node.underlay.neighbours.insert((uplink, gateway), testbed::NEXT_HOP_MAC);
    node.publish();
    node
}

/// A TCP segment from a pod to its gateway.
pub fn tcp(from: u16, src: ([u8; 4], u16), dst: ([u8; 4], u16), flags: &str) -> Vec<u8> {
    let mac = if from == POD_A { MAC_A } else { MAC_B };
    segment(mac.0, router(NODE1).0, src, dst, flags)
}

pub fn segment(
    src_mac: [u8; 6],
    dst_mac: [u8; 6],
    src: ([u8; 4], u16),
    dst: ([u8; 4], u16),
    flags: &str,
) -> Vec<u8> {
    let builder = etherparse::PacketBuilder::ethernet2(src_mac, dst_mac).ipv4(src.0, dst.0, 64);
    let mut builder = builder.tcp(src.1, dst.1, 1, 1000);
    for flag in flags.chars() {
        builder = match flag {
            'S' => builder.syn(),
            'A' => builder.ack(1),
            'F' => builder.fin(),
            'R' => builder.rst(),
            other => panic!("no flag {other}"),
        };
    }
    let mut frame = Vec::new();
    builder.write(&mut frame, b"hello").unwrap();
    frame
}

/// The flow of a frame whose checksums are right.
pub fn flow(frame: &[u8]) -> V4Flow {
    let parsed = parse(frame).unwrap();
    let Net::V4(flow) = parsed.net else { panic!("no IPv4 packet") };
    let segment = &frame[parsed.l4.into()..parsed.end.into()];
    let pseudo = penstock_wire::checksum::pseudo_v4(flow.src, flow.dst, flow.proto, segment.len() as u16);
    assert!(pseudo.add_bytes(segment).is_valid(), "the checksum is right");
    flow
}

pub fn ends(flow: &V4Flow) -> (([u8; 4], u16), ([u8; 4], u16)) {
    ((flow.src.octets(), flow.sport), (flow.dst.octets(), flow.dport))
}

/// Sends a frame and gives back the flow of the only one that comes out.
pub fn pass(node: &mut Testbed, from: u16, frame: &[u8], to: u16) -> V4Flow {
    let out = node.through(from, frame, to);
    assert_eq!(out.len(), 1, "one frame comes out of {to}");
    flow(&out[0])
}

pub fn refused(node: &mut Testbed, from: u16, frame: &[u8], cause: Cause) {
    let before = node.worker.drops(cause);
    node.deliver(from, frame);
    node.turn_after(1000);
    assert_eq!(node.worker.drops(cause), before + 1, "{cause:?}");
}

#[test]
fn a_connection_that_policy_allows_is_opened_and_its_answers_pass() {
    let mut node = node();
    let (client, server) = ((A, 40000), (B, 5432));
    assert_eq!(ends(&pass(&mut node, POD_A, &tcp(POD_A, client, server, "S"), POD_B)), (client, server));
    assert_eq!(ends(&pass(&mut node, POD_B, &tcp(POD_B, server, client, "SA"), POD_A)), (server, client));
    pass(&mut node, POD_A, &tcp(POD_A, client, server, "A"), POD_B);
    pass(&mut node, POD_B, &tcp(POD_B, server, client, "A"), POD_A);
    let hits = node.worker.counts().hits;
    pass(&mut node, POD_A, &tcp(POD_A, client, server, "A"), POD_B);
    pass(&mut node, POD_B, &tcp(POD_B, server, client, "A"), POD_A);
    assert_eq!(node.worker.counts().hits, hits + 2, "an open connection takes the fast path both ways");
}

#[test]
fn what_no_rule_allows_is_refused_by_name() {
    let mut node = node();
    refused(&mut node, POD_A, &tcp(POD_A, (A, 40000), (B, 22), "S"), Cause::IngressPolicy);
    refused(&mut node, POD_A, &super::udp4(MAC_A, A, B, 64, 10), Cause::IngressPolicy);
    // The server itself may speak to anybody: its policy is about what comes in.
    pass(&mut node, POD_B, &tcp(POD_B, (B, 40000), (A, 22), "S"), POD_A);
}

#[test]
fn a_policy_change_cuts_an_open_connection_on_its_next_packet_and_lets_it_on_again() {
    let mut node = node();
    let (client, server) = ((A, 40000), (B, 5432));
    open(&mut node, client, server);
    let allow = node.desired.policies().next().unwrap().clone();
    let mut deny = allow.clone();
    deny.rules.clear();
    let policy = penstock_api::model::Object::Policy;
    node.desired.apply(Change::Upsert(vec![policy(deny)])).unwrap();
    node.publish();
    refused(&mut node, POD_A, &tcp(POD_A, client, server, "A"), Cause::IngressPolicy);
    refused(&mut node, POD_B, &tcp(POD_B, server, client, "A"), Cause::IngressPolicy);
    node.desired.apply(Change::Upsert(vec![policy(allow)])).unwrap();
    node.publish();
    pass(&mut node, POD_A, &tcp(POD_A, client, server, "A"), POD_B);
    pass(&mut node, POD_B, &tcp(POD_B, server, client, "A"), POD_A);
}

pub fn open(node: &mut Testbed, client: ([u8; 4], u16), server: ([u8; 4], u16)) {
    pass(node, POD_A, &tcp(POD_A, client, server, "S"), POD_B);
    pass(node, POD_B, &tcp(POD_B, server, client, "SA"), POD_A);
    pass(node, POD_A, &tcp(POD_A, client, server, "A"), POD_B);
}

/// Another pod, which no port is open for, and its policy.
const ELSEWHERE: &str = r#"
    [[identity]]
    name = "third"
    network = "default"
    prefixes = ["10.1.1.3/32"]
    [[endpoint]]
    name = "c"
    network = "default"
    mac = "02:00:00:00:00:03"
    addresses = ["10.1.1.3"]
    attachment = { veth = { interface = "pc" } }
    [[policy]]
    name = "third"
    network = "default"
    tier = "application"
    subjects = { identities = ["third"] }
    directions = ["ingress", "egress"]
"#;

#[test]
fn only_connections_of_endpoints_whose_policies_changed_are_judged_again() {
    let mut node = node();
    let (client, server) = ((A, 40000), (B, 5432));
    open(&mut node, client, server);
    let judged_at = |node: &Testbed| {
        let mut rows = Vec::with_capacity(8);
        node.tracker.as_ref().unwrap().table.list(0, &mut rows, |_| true);
        let [connection] = rows[..] else { panic!("one connection is open: {rows:?}") };
        connection.decision.epoch
    };
    let first = judged_at(&node);
    node.desired.apply(Change::Upsert(parse_objects(ELSEWHERE, "test").unwrap())).unwrap();
    node.publish();
    let elsewhere = node.publisher.current().policies.epoch();
    assert_ne!(elsewhere, first, "the change counts");
    let stale = node.worker.counts().stale;
    pass(&mut node, POD_A, &tcp(POD_A, client, server, "A"), POD_B);
    assert_eq!((node.worker.counts().stale, judged_at(&node)), (stale + 1, first));
    let mut about_the_server =
        node.desired.policies().find(|it| it.name.as_str() == "server").unwrap().clone();
    about_the_server.rules[0].ports.clear();
    let change = Change::Upsert(vec![penstock_api::model::Object::Policy(about_the_server)]);
    node.desired.apply(change).unwrap();
    node.publish();
    pass(&mut node, POD_A, &tcp(POD_A, client, server, "A"), POD_B);
    assert_eq!(judged_at(&node), node.publisher.current().policies.epoch());
    // An address that another endpoint has now is another one's.
    let before = judged_at(&node);
    node.desired
        .apply(Change::Delete(vec![penstock_api::model::Key::Endpoint("c".parse().unwrap())]))
        .unwrap();
    node.publish();
    pass(&mut node, POD_A, &tcp(POD_A, client, server, "A"), POD_B);
    assert_ne!(judged_at(&node), before);
}

#[test]
fn a_service_leads_to_its_backend_and_its_answers_come_from_the_service() {
    let mut node = node();
    let (client, service, server) = ((A, 40000), (SERVICE, 80), (B, 5432));
    for flags in ["S", "A", "A"] {
        assert_eq!(
            ends(&pass(&mut node, POD_A, &tcp(POD_A, client, service, flags), POD_B)),
            (client, server)
        );
        let answer = if flags == "S" { "SA" } else { "A" };
        let answer = tcp(POD_B, server, client, answer);
        assert_eq!(ends(&pass(&mut node, POD_B, &answer, POD_A)), (service, client));
    }
    assert!(node.worker.counts().hits >= 2, "translated connections take the fast path");
}

#[test]
fn a_client_asks_a_backend_and_its_service_from_one_port() {
    let mut node = node();
    let (client, service, server) = ((A, 40000), (SERVICE, 80), (B, 5432));
    let open = |node: &mut Testbed, asked| ends(&pass(node, POD_A, &tcp(POD_A, client, asked, "S"), POD_B));
    assert_eq!(open(&mut node, server), (client, server));
    let (stand_in, to) = open(&mut node, service);
    assert_eq!((stand_in.0, to), (A, server), "the backend sees who asks");
    assert_ne!(stand_in.1, 40000, "and tells the two connections apart");
    for (asked, seen) in [(server, client), (service, stand_in)] {
        for flags in ["SA", "A", "A"] {
            let answer = tcp(POD_B, server, seen, flags);
            assert_eq!(ends(&pass(&mut node, POD_B, &answer, POD_A)), (asked, client));
            let question = tcp(POD_A, client, asked, "A");
            assert_eq!(ends(&pass(&mut node, POD_A, &question, POD_B)), (seen, server));
        }
    }
}

#[test]
fn a_service_without_a_backend_refuses_at_once() {
    let mut node = node();
    let mut backends = node.desired.backends(&"database".parse().unwrap()).next().unwrap().clone();
    backends.members.clear();
    node.desired.apply(Change::Upsert(vec![penstock_api::model::Object::Backends(backends)])).unwrap();
    node.publish();
    refused(&mut node, POD_A, &tcp(POD_A, (A, 40000), (SERVICE, 80), "S"), Cause::NoBackend);
}

#[test]
fn a_pod_leaves_the_cluster_under_the_nodes_address_and_is_answered() {
    let mut node = node();
    let (client, server) = ((A, 40000), (OUTSIDE, 443));
    let sent = pass(&mut node, POD_A, &tcp(POD_A, client, server, "S"), UPLINK);
    assert_eq!((sent.src.octets(), sent.dst.octets(), sent.dport), (NODE1, OUTSIDE, 443));
    assert!((50000..=50999).contains(&sent.sport), "port {}", sent.sport);
    let outside = (NODE1, sent.sport);
    let answer = |flags| segment(testbed::NEXT_HOP_MAC.0, testbed::UPLINK_MAC.0, server, outside, flags);
    assert_eq!(ends(&pass(&mut node, UPLINK, &answer("SA"), POD_A)), (server, client));
    let again = pass(&mut node, POD_A, &tcp(POD_A, client, server, "A"), UPLINK);
    assert_eq!(again.sport, sent.sport, "a connection keeps its port");
    assert_eq!(ends(&pass(&mut node, UPLINK, &answer("A"), POD_A)), (server, client));
    let hits = node.worker.counts().hits;
    pass(&mut node, POD_A, &tcp(POD_A, client, server, "A"), UPLINK);
    assert_eq!(ends(&pass(&mut node, UPLINK, &answer("A"), POD_A)), (server, client));
    assert_eq!(node.worker.counts().hits, hits + 2);
}

#[test]
fn nobody_outside_reaches_a_port_that_no_connection_has() {
    let mut node = node();
    let frame = segment(testbed::NEXT_HOP_MAC.0, testbed::UPLINK_MAC.0, (OUTSIDE, 443), (NODE1, 50001), "S");
    let before = node.worker.counts();
    node.deliver(UPLINK, &frame);
    node.turn_after(1000);
    assert!(node.sent(POD_A).is_empty() && node.sent(POD_B).is_empty());
    assert_eq!(node.worker.counts().rx, before.rx + 1);
}

#[test]
fn a_reset_ends_the_connection_and_the_flow_with_it() {
    let mut node = node();
    let (client, server) = ((A, 40000), (B, 5432));
    open(&mut node, client, server);
    pass(&mut node, POD_B, &tcp(POD_B, server, client, "A"), POD_A);
    pass(&mut node, POD_A, &tcp(POD_A, client, server, "R"), POD_B);
    // The reset leaves the fast path; the same ports open a connection of their own again.
    open(&mut node, client, server);
}
