//! What the pretended daemon says of its stateful tier.

use penstock_api::proto::*;

/// A connection through a service, and one out of the cluster.
pub(super) fn connections() -> Vec<Connection> {
    let tuple = |source: &str, source_port, destination: &str, destination_port| {
        Some(Tuple { source: source.into(), source_port, destination: destination.into(), destination_port })
    };
    let through_a_service = Connection {
        network: "blue".into(),
        protocol: 6,
        state: "established".into(),
        original: tuple("10.1.0.7", 40000, "10.96.0.80", 80),
        reply: tuple("10.1.2.9", 8080, "10.1.0.7", 40000),
        source_endpoint: "web".into(),
        service: "shop/web".into(),
        assured: true,
        idle_ms: 40,
        expires_ms: 432_000_000,
        ..Default::default()
    };
    let outwards = Connection {
        state: "unreplied".into(),
        protocol: 17,
        original: tuple("10.1.0.7", 5353, "198.51.100.1", 53),
        reply: tuple("198.51.100.1", 53, "192.0.2.1", 50000),
        nat: "outside".into(),
        service: String::new(),
        ..through_a_service.clone()
    };
    vec![through_a_service, outwards]
}

pub(super) fn policies(staged: bool) -> Vec<TierRow> {
    let rule = |name: &str, action: &str, hits| RuleRow {
        name: name.into(),
        direction: "ingress".into(),
        action: action.into(),
        peers: vec!["shop/web".into()],
        ports: vec!["tcp 5432".into(), "udp".into()],
        hits: Some(hits),
    };
    let policy = |name: &str, staged, rules| PolicyRow {
        name: name.into(),
        network: "blue".into(),
        staged,
        subjects: vec!["shop/database".into()],
        directions: vec!["ingress".into()],
        rules,
        ..Default::default()
    };
    let mut policies = vec![
        policy("shop/database", false, vec![rule("from-web", "allow", 12_345), rule("others", "log", 3)]),
        policy("trial", true, vec![rule("none", "deny", 7)]),
    ];
    policies.retain(|policy| policy.staged || !staged);
    vec![TierRow {
        name: "application".into(),
        order: 200,
        default: "deny".into(),
        default_hits: 3,
        staged_default_hits: 8,
        policies,
    }]
}

pub(super) fn services() -> Vec<ServiceRow> {
    let backend = |address: &str, state: &str, connections| BackendRow {
        slice: "main".into(),
        address: address.into(),
        port: 8080,
        state: state.into(),
        node: "node-b".into(),
        weight: 1,
        connections,
        ..Default::default()
    };
    let port = ServicePortRow {
        name: "http".into(),
        protocol: 6,
        port: 80,
        node_port: Some(30080),
        backends: vec![backend("10.1.2.9", "ready", 5), backend("fd00::9", "terminating", 2)],
    };
    vec![ServiceRow {
        name: "shop/web".into(),
        network: "blue".into(),
        cluster_ips: vec!["10.96.0.80".into()],
        load_balancer_ips: vec!["203.0.113.80".into()],
        affinity_s: Some(10800),
        internal_policy: "cluster".into(),
        external_policy: "local".into(),
        topology: "zone".into(),
        ports: vec![port],
        ..Default::default()
    }]
}

pub(super) fn events() -> Vec<Event> {
    let rule = RuleFact {
        direction: "ingress".into(),
        tier: "application".into(),
        policy: "shop/database".into(),
        rule: "others".into(),
        action: "log".into(),
        staged: false,
    };
    let matched = RuleEvent { rule: Some(rule), protocol: 6, length: 60, ..Default::default() };
    let ran_out = ExhaustionEvent {
        what: "ports".into(),
        object: "nat-pool \"outside\"".into(),
        capacity: 16384,
        refused: 9,
    };
    vec![
        Event {
            timestamp_ns: 1_700_000_000_000_000_000,
            network: "blue".into(),
            endpoint: "shop/database-0".into(),
            sentence: "rule \"others\" of policy \"shop/database\" matched".into(),
            detail: Some(event::Detail::Rule(matched)),
            lost: 0,
        },
        Event {
            timestamp_ns: 1_700_000_001_000_000_000,
            sentence: "nat-pool \"outside\" has no port left".into(),
            detail: Some(event::Detail::Exhaustion(ran_out)),
            lost: 2,
            ..Default::default()
        },
    ]
}
