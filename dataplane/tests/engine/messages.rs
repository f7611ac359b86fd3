//! ICMP other than echoes and errors, of which no connection is kept: each message meets the rules for its own type.

use std::net::Ipv6Addr;

use penstock_api::file::parse_objects;
use penstock_api::model::Object;
use penstock_dataplane::drop::Cause;
use penstock_dataplane::tables::desired::Change;
use penstock_dataplane::testbed::{self, Testbed, UPLINK};
use penstock_wire::{icmp, icmpv6};
use proptest::prelude::*;

use super::stateful::{A, B, OUTSIDE, node, refused};
use super::{MAC_A, MAC_B, NODE1, POD_A, POD_B, icmp_of, mend_ipv4, router, v6};

const TIMESTAMP: u8 = 13;
const TIMESTAMP_REPLY: u8 = 14;
const NODE_INFORMATION: u8 = 139;

/// An ICMP message of a type and code from a pod to its gateway.
fn message4(from: u16, src: [u8; 4], dst: [u8; 4], kind: u8, code: u8) -> Vec<u8> {
    let mac = if from == POD_A { MAC_A } else { MAC_B };
    let header = icmp::Repr { kind, code, rest: [0; 4] }.emit(b"hello");
    let mut frame = Vec::new();
    let builder = etherparse::PacketBuilder::ethernet2(mac.0, router(NODE1).0).ipv4(src, dst, 64);
    builder.write(&mut frame, etherparse::ip_number::ICMP, &[&header[..], b"hello"].concat()).unwrap();
    frame
}

fn message6(src: Ipv6Addr, dst: Ipv6Addr, kind: u8, code: u8) -> Vec<u8> {
    let header = icmpv6::Repr { kind, code, rest: [0; 4] }.emit(src, dst, b"hello");
    let mut frame = Vec::new();
    let builder = etherparse::PacketBuilder::ethernet2(MAC_A.0, router(NODE1).0);
    let builder = builder.ipv6(src.octets(), dst.octets(), 64);
    builder.write(&mut frame, etherparse::ip_number::IPV6_ICMP, &[&header[..], b"hello"].concat()).unwrap();
    frame
}

fn a6() -> Ipv6Addr {
    v6("fd00:1:1::1")
}

fn b6() -> Ipv6Addr {
    v6("fd00:1:1::2")
}

/// Gives `b` one more rule: that it takes what `ports` says from anybody.
fn allow(node: &mut Testbed, ports: &str) {
    let text = format!(
        r#"
        [[policy]]
        name = "more"
        network = "default"
        tier = "application"
        subjects = {{ identities = ["server"] }}
        directions = ["ingress"]
        [[policy.rules]]
        name = "messages"
        direction = "ingress"
        action = "allow"
        ports = [{{ {ports} }}]
    "#
    );
    node.desired.apply(Change::Upsert(parse_objects(&text, "test").unwrap())).unwrap();
    node.publish();
}

fn take_back(node: &mut Testbed) {
    let policy = node.desired.policies().find(|it| it.name.as_str() == "more").unwrap().clone();
    node.desired.apply(Change::Delete(vec![Object::Policy(policy).key()])).unwrap();
    node.publish();
}

#[test]
fn a_message_that_no_rule_allows_is_refused_whatever_its_type() {
    let mut node = node();
    for kind in [icmp::REDIRECT, TIMESTAMP, TIMESTAMP_REPLY, 42, 200, 255] {
        refused(&mut node, POD_A, &message4(POD_A, A, B, kind, 0), Cause::IngressPolicy);
    }
    for kind in [100, icmpv6::REDIRECT, NODE_INFORMATION, 140, 200, 255] {
        refused(&mut node, POD_A, &message6(a6(), b6(), kind, 0), Cause::IngressPolicy);
    }
    // The numbers of the other family's protocol are no way round either.
    let mut stranger = message4(POD_A, A, B, 128, 0);
    stranger[23] = etherparse::ip_number::IPV6_ICMP.0;
    mend_ipv4(&mut stranger);
    refused(&mut node, POD_A, &stranger, Cause::IngressPolicy);
    assert!(node.sent(POD_B).is_empty());
}

#[test]
fn a_rule_for_one_type_and_code_lets_these_pass_and_no_others() {
    let mut node = node();
    allow(&mut node, "protocol = \"icmp\", icmp-type = 13, icmp-code = 2");
    let sent = node.through(POD_A, &message4(POD_A, A, B, TIMESTAMP, 2), POD_B);
    assert_eq!(icmp_of(&sent[0]), (TIMESTAMP, 2));
    refused(&mut node, POD_A, &message4(POD_A, A, B, TIMESTAMP, 0), Cause::IngressPolicy);
    refused(&mut node, POD_A, &message4(POD_A, A, B, TIMESTAMP_REPLY, 2), Cause::IngressPolicy);
    refused(&mut node, POD_A, &message4(POD_A, A, B, icmp::ECHO_REQUEST, 0), Cause::IngressPolicy);
    refused(&mut node, POD_A, &message6(a6(), b6(), TIMESTAMP, 2), Cause::IngressPolicy);
    // Nobody's policy is about what comes to `a`.
    assert_eq!(node.through(POD_B, &message4(POD_B, B, A, TIMESTAMP_REPLY, 0), POD_A).len(), 1);
}

#[test]
fn a_message_is_no_answer_that_may_pass_because_of_the_question() {
    let mut node = node();
    assert_eq!(node.through(POD_B, &message4(POD_B, B, A, TIMESTAMP, 0), POD_A).len(), 1);
    refused(&mut node, POD_A, &message4(POD_A, A, B, TIMESTAMP_REPLY, 0), Cause::IngressPolicy);
}

#[test]
fn allowed_messages_take_the_fast_path_until_the_rules_change() {
    let mut node = node();
    allow(&mut node, "protocol = \"icmpv6\", icmp-type = 139");
    let question = message6(a6(), b6(), NODE_INFORMATION, 1);
    assert_eq!(node.through(POD_A, &question, POD_B).len(), 1);
    let hits = node.worker.counts().hits;
    assert_eq!(node.through(POD_A, &question, POD_B).len(), 1);
    assert_eq!(node.worker.counts().hits, hits + 1);
    take_back(&mut node);
    refused(&mut node, POD_A, &question, Cause::IngressPolicy);
}

#[test]
fn a_rule_for_echo_requests_is_about_pings_and_their_answers_pass() {
    let mut node = node();
    allow(&mut node, "protocol = \"icmp\", icmp-type = 8");
    let sent = node.through(POD_A, &message4(POD_A, A, B, icmp::ECHO_REQUEST, 0), POD_B);
    assert_eq!(icmp_of(&sent[0]), (icmp::ECHO_REQUEST, 0));
    let sent = node.through(POD_B, &message4(POD_B, B, A, icmp::ECHO_REPLY, 0), POD_A);
    assert_eq!(icmp_of(&sent[0]), (icmp::ECHO_REPLY, 0));
    refused(&mut node, POD_A, &message4(POD_A, A, B, TIMESTAMP, 0), Cause::IngressPolicy);
}

#[test]
fn a_message_does_not_leave_the_cluster_under_an_address_that_means_nothing_there() {
    let mut node = node();
    refused(&mut node, POD_A, &message4(POD_A, A, OUTSIDE, TIMESTAMP, 0), Cause::NotTranslatable);
    refused(&mut node, POD_A, &message4(POD_A, A, OUTSIDE, TIMESTAMP, 0), Cause::NotTranslatable);
    assert!(node.sent(UPLINK).is_empty());
    // A ping is translated.
    assert_eq!(node.through(POD_A, &message4(POD_A, A, OUTSIDE, icmp::ECHO_REQUEST, 0), UPLINK).len(), 1);
}

#[test]
fn a_message_from_outside_meets_the_rules_of_its_receiver() {
    let mut node = node();
    let from_outside = |dst| {
        let mut frame = message4(POD_A, OUTSIDE, dst, TIMESTAMP, 0);
        frame[..6].copy_from_slice(&testbed::UPLINK_MAC.0);
        frame[6..12].copy_from_slice(&testbed::NEXT_HOP_MAC.0);
        frame
    };
    refused(&mut node, UPLINK, &from_outside(B), Cause::IngressPolicy);
    assert_eq!(node.through(UPLINK, &from_outside(A), POD_A).len(), 1);
}

#[test]
fn an_ipv4_mapped_address_is_a_martian() {
    let mut node = node();
    let mapped = |address: [u8; 4]| std::net::Ipv4Addr::from(address).to_ipv6_mapped();
    for frame in [
        super::udp6(MAC_A, a6(), mapped(B), 64, 10),
        super::udp6(MAC_A, mapped(A), b6(), 64, 10),
        message6(a6(), mapped(B), NODE_INFORMATION, 0),
    ] {
        refused(&mut node, POD_A, &frame, Cause::Martian);
    }
}

#[test]
fn the_gateway_answers_a_pod_that_may_speak_to_nobody() {
    let mut node = node();
    let silence = r#"
        [[policy]]
        name = "silence"
        network = "default"
        tier = "application"
        subjects = { identities = ["client"] }
        directions = ["ingress", "egress"]
    "#;
    node.desired.apply(Change::Upsert(parse_objects(silence, "test").unwrap())).unwrap();
    node.publish();
    refused(&mut node, POD_A, &message4(POD_A, A, B, TIMESTAMP, 0), Cause::EgressPolicy);
    assert_eq!(icmp_of(&node.through(POD_A, &super::answers::solicitation(), POD_A)[0]), (136, 0));
    let request = super::answers::arp_request([169, 254, 1, 1]);
    assert_eq!(node.through(POD_A, &request, POD_A).len(), 1);
    let ping = message4(POD_A, A, [169, 254, 1, 1], icmp::ECHO_REQUEST, 0);
    assert_eq!(icmp_of(&node.through(POD_A, &ping, POD_A)[0]), (icmp::ECHO_REPLY, 0));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
    /// The types of a rule and of messages are few and near each other, so that they often meet.
    #[test]
    fn a_message_passes_if_and_only_if_a_rule_names_its_type_and_code(
        rule_kind in 13u8..19, rule_code in prop::option::of(0u8..3),
        messages in prop::collection::vec((13u8..19, 0u8..3), 1..30)
    ) {
        let mut node = node();
        let code = rule_code.map(|code| format!(", icmp-code = {code}")).unwrap_or_default();
        allow(&mut node, &format!("protocol = \"icmp\", icmp-type = {rule_kind}{code}"));
        for (kind, code) in messages {
            let passes = kind == rule_kind && rule_code.is_none_or(|it| it == code);
            let sent = node.through(POD_A, &message4(POD_A, A, B, kind, code), POD_B);
            prop_assert_eq!(sent.len(), usize::from(passes), "type {} code {}", kind, code);
        }
    }
}
