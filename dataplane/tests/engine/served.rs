//! Direct server return: one node is asked, a backend of another answers, packet by packet.

use std::net::IpAddr;

use penstock_dataplane::drop::Cause;
use penstock_dataplane::flow::DeviceId;
use penstock_dataplane::tables::desired::Change;
use penstock_dataplane::testbed::{self, Testbed, UPLINK};

use super::stateful::{ends, flow, pass, segment};
use super::{MAC_A, NODE1, NODE2, POD_A, objects, router};

const CLIENT: ([u8; 4], u16) = ([198, 51, 100, 7], 40_000);
const SERVICE: ([u8; 4], u16) = ([203, 0, 113, 80], 80);
const BACKEND: ([u8; 4], u16) = ([10, 1, 2, 1], 8080);
const GATEWAY: [u8; 4] = [192, 168, 1, 254];

const MORE: &str = r#"
    [[service]]
    name = "web"
    network = "default"
    load-balancer-ips = ["203.0.113.80"]
    ports = [{ name = "http", port = 80, node-port = 30080 }]
    dsr = true
    [[backends]]
    service = "web"
    ports = [{ name = "http", port = 8080 }]
    members = [{ address = "10.1.2.1" }]
    [[route]]
    network = "default"
    prefix = "0.0.0.0/0"
    via = { uplink = { uplink = "wire", gateway = "192.168.1.254" } }
"#;

fn node_of(text: &str, address: [u8; 4]) -> Testbed {
    let mut node =
        testbed::stateful_node_with(&(text.to_owned() + MORE), &[IpAddr::V4(address.into())], 4096, 4096);
    node.underlay.neighbours.insert((DeviceId(UPLINK), GATEWAY.into()), testbed::NEXT_HOP_MAC);
    node.publish();
    node
}

/// The node that is asked, and the one that has the backend.
fn nodes(encapsulation: &str) -> [Testbed; 2] {
    let here = objects(encapsulation);
    let there = here
        .replace("10.1.2.0/24", "10.1.1.0/24")
        .replace("fd00:1:2::/48", "fd00:1:1::/48")
        .replace("\"10.1.1.1\", \"fd00:1:1::1\"", "\"10.1.2.1\", \"fd00:1:2::1\"")
        .replace("\"10.1.1.2\", \"fd00:1:1::2\"", "\"10.1.2.2\", \"fd00:1:2::2\"")
        .replace("192.168.1.2", "192.168.1.1");
    [node_of(&here, NODE1), node_of(&there, NODE2)]
}

fn asks(flags: &str) -> Vec<u8> {
    segment(testbed::NEXT_HOP_MAC.0, testbed::UPLINK_MAC.0, CLIENT, SERVICE, flags)
}

fn answers(flags: &str) -> Vec<u8> {
    segment(MAC_A.0, router(NODE2).0, BACKEND, CLIENT, flags)
}

/// Takes a client's packet over both nodes to the backend.
fn there(nodes: &mut [Testbed; 2], flags: &str) -> Vec<u8> {
    let [asked, serving] = nodes;
    let sent = asked.through(UPLINK, &asks(flags), UPLINK);
    assert_eq!(sent.len(), 1, "the packet goes on");
    let arrived = serving.through(UPLINK, &sent[0], POD_A);
    assert_eq!(arrived.len(), 1, "and arrives");
    arrived.into_iter().next().unwrap()
}

#[test]
fn a_backend_answers_the_client_in_the_services_name_past_the_node_that_was_asked() {
    let mut nodes = nodes("geneve");
    for (question, answer) in [("S", "SA"), ("A", "A"), ("A", "A"), ("A", "A"), ("FA", "FA"), ("A", "A")] {
        assert_eq!(ends(&flow(&there(&mut nodes, question))), (CLIENT, BACKEND));
        let answered = pass(&mut nodes[1], POD_A, &answers(answer), UPLINK);
        assert_eq!(ends(&answered), (SERVICE, CLIENT));
    }
    let [asked, serving] = nodes;
    assert!(asked.worker.counts().hits >= 2, "what the client says takes the fast path");
    assert!(serving.worker.counts().hits >= 4, "and both ways at the backend: {:?}", serving.worker.counts());
}

#[test]
fn a_node_believes_only_what_its_own_services_say() {
    let mut nodes = nodes("geneve");
    let sent = nodes[0].through(UPLINK, &asks("S"), UPLINK).remove(0);
    let serving = &mut nodes[1];
    let refuses = |serving: &mut Testbed, frame: &[u8], cause: Cause| {
        let before = serving.worker.drops(cause);
        assert!(serving.through(UPLINK, frame, POD_A).is_empty());
        assert_eq!(serving.worker.drops(cause), before + 1, "{cause:?}");
    };
    // The option's data, the port first, stand in front of the inner Ethernet header: 14 + 20 + 8 + 8 bytes before.
    let option = 50;
    assert_eq!(sent[option..option + 4], [0xff, 0x50, 0x81, 2]);
    let with = |at: usize, byte: u8| {
        let mut frame = sent.clone();
        frame[at] = byte;
        frame
    };
    refuses(serving, &with(option + 5, 81), Cause::NotServed);
    refuses(serving, &with(option + 11, 81), Cause::NotServed);
    // Without the option a peer may not speak for anybody outside.
    let mut plain = sent.clone();
    plain[option + 2] = 1;
    plain[43] &= !0x40;
    refuses(serving, &plain, Cause::SpoofedTunnelSource);
    assert_eq!(serving.through(UPLINK, &sent, POD_A).len(), 1);
    // The service goes, and with it the leave to answer for it.
    let key = penstock_api::model::Key::Backends {
        service: "web".parse().unwrap(),
        slice: "main".parse().unwrap(),
    };
    serving.desired.apply(Change::Delete(vec![key])).unwrap();
    serving.publish();
    let other = segment(testbed::NEXT_HOP_MAC.0, testbed::UPLINK_MAC.0, (CLIENT.0, 50_000), SERVICE, "S");
    let other = nodes[0].through(UPLINK, &other, UPLINK).remove(0);
    refuses(&mut nodes[1], &other, Cause::NotServed);
}

#[test]
fn where_the_tunnel_cannot_say_so_answers_pass_the_node_that_was_asked() {
    let mut nodes = nodes("vxlan");
    let arrived = flow(&there(&mut nodes, "S"));
    assert_eq!((arrived.src.octets(), arrived.dst.octets(), arrived.dport), (NODE1, BACKEND.0, BACKEND.1));
    let answer = segment(MAC_A.0, router(NODE2).0, BACKEND, (NODE1, arrived.sport), "SA");
    let back = nodes[1].through(POD_A, &answer, UPLINK).remove(0);
    assert_eq!(ends(&pass(&mut nodes[0], UPLINK, &back, UPLINK)), (SERVICE, CLIENT));
}

#[test]
fn a_backend_that_is_chosen_anew_takes_the_clients_port_over() {
    let mut nodes = nodes("geneve");
    there(&mut nodes, "S");
    // The asked node forgets, and the backend's other endpoint serves now.
    for node in &mut nodes {
        let mut backends = node.desired.backends(&"web".parse().unwrap()).next().unwrap().clone();
        backends.members[0].address = "10.1.2.2".parse().unwrap();
        node.desired.apply(Change::Upsert(vec![penstock_api::model::Object::Backends(backends)])).unwrap();
        node.publish();
    }
    nodes[0] = node_of(&objects("geneve"), NODE1);
    let mut backends = nodes[0].desired.backends(&"web".parse().unwrap()).next().unwrap().clone();
    backends.members[0].address = "10.1.2.2".parse().unwrap();
    nodes[0].desired.apply(Change::Upsert(vec![penstock_api::model::Object::Backends(backends)])).unwrap();
    nodes[0].publish();
    let sent = nodes[0].through(UPLINK, &asks("S"), UPLINK).remove(0);
    let arrived = nodes[1].through(UPLINK, &sent, super::POD_B).remove(0);
    assert_eq!(ends(&flow(&arrived)), (CLIENT, ([10, 1, 2, 2], 8080)));
}

#[test]
fn connections_for_a_service_count_at_the_backend_that_answers_directly() {
    for (limits, cause) in [
        ("connections-per-second = 3", Cause::EndpointConnectionRate),
        ("max-connections = 3", Cause::EndpointConnections),
    ] {
        let mut nodes = nodes("geneve");
        let mut endpoint = nodes[1].desired.endpoints().find(|it| it.name.as_str() == "a").unwrap().clone();
        let told = penstock_api::file::parse_objects(
            &objects("geneve").replacen("attachment", &format!("limits = {{ {limits} }}\nattachment"), 1),
            "told",
        );
        endpoint.limits = told.unwrap().into_iter().find_map(|object| match object {
            penstock_api::model::Object::Endpoint(it) if it.name.as_str() == "a" => it.limits,
            _ => None,
        });
        nodes[1]
            .desired
            .apply(Change::Upsert(vec![penstock_api::model::Object::Endpoint(endpoint)]))
            .unwrap();
        nodes[1].publish();
        let [asked, serving] = &mut nodes;
        let mut arrived = 0;
        for port in 50_000..50_008 {
            let client = (CLIENT.0, port);
            let frame = segment(testbed::NEXT_HOP_MAC.0, testbed::UPLINK_MAC.0, client, SERVICE, "S");
            let sent = asked.through(UPLINK, &frame, UPLINK).remove(0);
            arrived += serving.through(UPLINK, &sent, POD_A).len();
        }
        assert_eq!((arrived, serving.worker.drops(cause)), (3, 5), "{limits}");
    }
}
