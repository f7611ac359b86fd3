//! What is counted and told of what rules decide and of what runs out.

use std::net::IpAddr;

use penstock_dataplane::drop::Cause;
use penstock_dataplane::flow::DeviceId;
use penstock_dataplane::journal::{Entry, What};
use penstock_dataplane::tables::desired::Change;
use penstock_dataplane::tables::rule_counts::RuleTotals;
use penstock_dataplane::testbed::{self, Testbed, UPLINK};

use super::{MAC_A, NODE1, POD_A, POD_B, objects, router};

const A: [u8; 4] = [10, 1, 1, 1];
const B: [u8; 4] = [10, 1, 1, 2];
const OUTSIDE: [u8; 4] = [203, 0, 113, 9];

/// `b` takes port 80, logs everything else and denies it by the tier's end; a staged policy would deny port 80 as well.
/// Two connections at a time may leave for one place outside.
const MORE: &str = r#"
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
    order = 2
    subjects = { identities = ["server"] }
    directions = ["ingress"]
    [[policy.rules]]
    name = "web"
    direction = "ingress"
    action = "allow"
    ports = [{ protocol = "udp", port = 80 }]
    [[policy.rules]]
    name = "others"
    direction = "ingress"
    action = "log"
    [[policy]]
    name = "trial"
    network = "default"
    tier = "application"
    order = 1
    subjects = { identities = ["server"] }
    directions = ["ingress"]
    staged = true
    [[policy.rules]]
    name = "nothing"
    direction = "ingress"
    action = "deny"
    ports = [{ protocol = "udp", port = 80 }]
    [[route]]
    network = "default"
    prefix = "0.0.0.0/0"
    via = { uplink = { uplink = "wire", gateway = "192.168.1.254" } }
    [[nat-pool]]
    name = "outside"
    network = "default"
    sources = ["10.1.0.0/16"]
    exclusions = ["10.0.0.0/8"]
    ports = "50000-50001"
"#;

fn node() -> Testbed {
    let text = objects("vxlan") + MORE;
    let mut node = testbed::stateful_node_with(&text, &[IpAddr::V4(NODE1.into())], 4096, 4096);
    let gateway = IpAddr::from([192, 168, 1, 254]);
    node.underlay.neighbours.insert((DeviceId(UPLINK), gateway), testbed::NEXT_HOP_MAC);
    node.publish();
    node
}

/// Sends a datagram from `a`.
fn send(node: &mut Testbed, dst: [u8; 4], sport: u16, dport: u16) {
    let builder = etherparse::PacketBuilder::ethernet2(MAC_A.0, router(NODE1).0);
    let mut frame = Vec::new();
    builder.ipv4(A, dst, 64).udp(sport, dport).write(&mut frame, b"hello").unwrap();
    node.deliver(POD_A, &frame);
    node.turn_after(1000);
}

fn totals(node: &Testbed) -> RuleTotals {
    node.author.counted().totals()
}

/// Adds a rule that allows a port, and gives the policy its rules back before long.
fn allow_too(node: &mut Testbed, port: &str) {
    let mut policy = node.desired.policies().find(|it| it.name.as_str() == "server").unwrap().clone();
    let mut rule = policy.rules[0].clone();
    rule.name = format!("port-{port}").parse().unwrap();
    rule.ports[0].port = Some(port.parse().unwrap());
    policy.rules.insert(0, rule);
    node.desired.apply(Change::Upsert(vec![penstock_api::model::Object::Policy(policy)])).unwrap();
    node.publish();
}

#[test]
fn a_rule_counts_the_connections_that_it_decides_about_and_goes_on_after_a_change() {
    let mut node = node();
    for _ in 0..3 {
        send(&mut node, B, 1000, 80);
    }
    send(&mut node, B, 1001, 80);
    for port in 5000..5005 {
        send(&mut node, B, 1000, port);
    }
    let seen = totals(&node);
    assert_eq!(seen.rule("server", "web"), 2, "a connection is counted when it is opened");
    assert_eq!(seen.rule("server", "others"), 5);
    assert_eq!(seen.tier_end("application"), (5, 0));
    assert_eq!(node.sent(POD_B).len(), 4);
    for port in ["7000", "7001", "7002"] {
        allow_too(&mut node, port);
        // The connection goes on under the changed rules; it is no new one.
        send(&mut node, B, 1000, 80);
        assert_eq!(totals(&node).rule("server", "web"), 2);
        assert_eq!(totals(&node).rule("server", "others"), 5);
    }
    send(&mut node, B, 2000, 80);
    assert_eq!(totals(&node).rule("server", "web"), 3);
}

#[test]
fn a_staged_rule_counts_what_it_would_have_decided_and_decides_nothing() {
    let mut node = node();
    for port in [1000, 1001, 1002] {
        send(&mut node, B, port, 80);
    }
    assert_eq!(node.sent(POD_B).len(), 3);
    assert_eq!(totals(&node).rule("trial", "nothing"), 3);
    assert_eq!(totals(&node).rule("server", "web"), 3);
}

#[test]
fn counts_of_a_policy_that_is_gone_do_not_come_back_with_its_name() {
    let mut node = node();
    send(&mut node, B, 1000, 80);
    let policy = node.desired.policies().find(|it| it.name.as_str() == "server").unwrap().clone();
    let object = penstock_api::model::Object::Policy(policy);
    node.desired.apply(Change::Delete(vec![object.key()])).unwrap();
    // Twice: what the worker may still have is settled by the change after.
    for _ in 0..2 {
        node.publish();
        node.turn_after(1000);
        node.publisher.reclaim();
    }
    node.desired.apply(Change::Upsert(vec![object])).unwrap();
    node.publish();
    assert_eq!(totals(&node).rule("server", "web"), 0);
}

fn told(node: &Testbed) -> Vec<Entry> {
    node.events.entries()
}

#[test]
fn a_packet_that_a_rule_logs_is_told_with_what_became_of_it() {
    let mut node = node();
    send(&mut node, B, 1000, 80);
    assert!(told(&node).is_empty(), "the rule that allows is asked before");
    send(&mut node, B, 1000, 9999);
    let entries = told(&node);
    let [Entry { lost: 0, what: What::Rule(met), .. }] = entries.as_slice() else { panic!("{entries:?}") };
    assert_eq!((met.endpoint.name.as_str(), met.network.name.as_str(), met.len), ("b", "default", 33));
    assert!(!met.verdict.allow);
    assert_eq!((met.packet.sport(), met.packet.dport()), (1000, 9999));
    let subject = met.endpoint.subject.as_ref().unwrap();
    assert_eq!(
        subject.decider(met.direction, met.rule).to_string(),
        "rule 2 \"others\" of policy \"server\" in tier \"application\""
    );
}

#[test]
fn more_logging_than_anybody_reads_is_counted_as_lost() {
    let mut node = node();
    // No time to speak of passes: what is told at once is a thousand.
    for port in 0..1500 {
        send(&mut node, B, 1000, 10_000 + port);
    }
    let entries = told(&node);
    assert!((1000..1010).contains(&entries.len()), "{}", entries.len());
    node.turn_after(1 << 36);
    send(&mut node, B, 1000, 9999);
    assert_eq!(told(&node)[0].lost, 1500 - entries.len() as u64);
    assert_eq!(totals(&node).rule("server", "others"), 1501, "what is not told is counted all the same");
}

#[test]
fn a_pool_without_a_free_port_is_told_with_its_size() {
    let mut node = node();
    for port in 1000..1006 {
        send(&mut node, OUTSIDE, port, 443);
    }
    assert_eq!(node.worker.drops(Cause::NatExhausted), 4);
    let entries = told(&node);
    let [Entry { what: What::Shortage(shortage), .. }] = entries.as_slice() else { panic!("{entries:?}") };
    assert_eq!((shortage.cause, shortage.capacity, shortage.refused), (Cause::NatExhausted, 2, 1));
    let (network, pool) = (shortage.network.as_ref().unwrap(), shortage.pool.as_ref().unwrap());
    let way = network.masquerades.iter().find(|way| way.has(pool)).unwrap();
    assert_eq!(way.key(), "nat-pool \"outside\"");
    node.turn_after(1 << 36);
    send(&mut node, OUTSIDE, 1005, 443);
    let entries = told(&node);
    let [Entry { what: What::Shortage(shortage), .. }] = entries.as_slice() else { panic!("{entries:?}") };
    assert_eq!(shortage.refused, 4, "those in between as well");
}
