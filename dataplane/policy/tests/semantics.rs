//! What policies mean, case by case, told by the classifier and by the linear walk alike.

#![allow(clippy::unwrap_used, reason = "the leave for tests does not reach the functions beside them")]

use std::net::IpAddr;
use std::sync::Arc;

use penstock_policy::linear::{self, Probe};
use penstock_policy::{
    Action, Answer, Decider, Direction, Directions, Endpoint, Fault, Identity, Packet, Peer, Policy,
    PortMatch, Program, Protocol, Rule, RulePath, Rules, Subjects, Tier, TierDefault, compile,
};

const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMP: u8 = 1;
const GRE: u8 = 47;

fn identity(name: &str, prefixes: &[&str]) -> Arc<Identity> {
    let prefixes = prefixes.iter().map(|prefix| prefix.parse().unwrap()).collect();
    Arc::new(Identity { name: name.into(), network: "default".into(), prefixes })
}

fn tier(name: &str, order: u32, default: TierDefault) -> Tier {
    Tier { name: name.into(), order, default }
}

fn rule(action: Action, peers: Vec<Peer>, ports: Vec<PortMatch>) -> Rule {
    Rule { name: String::new(), direction: Direction::Ingress, action, peers, ports }
}

fn of(name: &str) -> Peer {
    Peer::Identity(name.into())
}

fn block(prefix: &str, except: &[&str]) -> Peer {
    let except = except.iter().map(|hole| hole.parse().unwrap()).collect();
    Peer::Prefix { prefix: prefix.parse().unwrap(), except }
}

fn port(port: u16) -> PortMatch {
    PortMatch { ports: Some(port..=port), ..PortMatch::all(Protocol::Tcp) }
}

fn policy(tier: &str, name: &str, rules: Vec<Rule>) -> Policy {
    Policy {
        name: name.into(),
        network: "default".into(),
        tier: tier.into(),
        order: 0,
        subjects: Subjects::Identities(vec!["web".into()]),
        directions: Directions { ingress: true, egress: false },
        rules,
        staged: false,
    }
}

/// A node with pods `web` and `db`, another node's `api`, and the tiers of a Kubernetes cluster.
fn node(policies: Vec<Policy>) -> Arc<Rules> {
    let pod = |name: &str, address: &str| Endpoint {
        name: name.into(),
        network: "default".into(),
        addresses: vec![address.parse().unwrap()],
    };
    Arc::new(Rules {
        identities: vec![
            identity("web", &["10.0.0.1/32", "fd00::1/128"]),
            identity("db", &["10.0.0.2/32"]),
            identity("api", &["10.0.1.1/32", "10.0.1.2/32", "fd00::11/128"]),
        ]
        .into(),
        tiers: vec![
            tier("baseline", 30, TierDefault::Pass),
            tier("network", 20, TierDefault::Deny),
            tier("admin", 10, TierDefault::Pass),
        ],
        policies: policies.into_iter().map(Arc::new).collect(),
        endpoints: vec![pod("web-0", "10.0.0.1"), pod("db-0", "10.0.0.2")],
    })
}

/// The answer for a packet to `web-0`, on which classifier and walk must agree.
fn ask(rules: &Arc<Rules>, remote: &str, protocol: u8, key: impl Into<Option<u16>>) -> Answer {
    answer(rules, "web-0", Direction::Ingress, remote, protocol, key.into())
}

fn answer(
    rules: &Arc<Rules>,
    pod: &str,
    direction: Direction,
    remote: &str,
    protocol: u8,
    key: Option<u16>,
) -> Answer {
    let program = compile(rules, None).unwrap();
    let remote: IpAddr = remote.parse().unwrap();
    let packet = Packet { peer: program.peers("default").unwrap().look_up(remote), protocol, key };
    let subject = program.endpoint(pod).unwrap();
    let found = subject.answer(direction, subject.classify(direction, &packet));
    let walked = linear::judge(rules, pod, &Probe { direction, remote, protocol, key }).unwrap();
    assert_eq!(found, walked.answer);
    found
}

fn allowed(rules: &Arc<Rules>, remote: &str, protocol: u8, key: impl Into<Option<u16>>) -> bool {
    ask(rules, remote, protocol, key).allow
}

#[test]
fn an_endpoint_that_no_policy_selects_is_open() {
    let rules = node(vec![policy("network", "isolate", Vec::new())]);
    let open = answer(&rules, "db-0", Direction::Ingress, "8.8.8.8", TCP, Some(80));
    assert_eq!(open, Answer { allow: true, decider: Decider::End });
}

#[test]
fn a_selected_endpoint_is_isolated_in_the_governed_direction_only() {
    let rules = node(vec![policy("network", "isolate", Vec::new())]);
    let refused = Answer { allow: false, decider: Decider::TierDefault("network".into()) };
    assert_eq!(ask(&rules, "10.0.1.1", TCP, 80), refused);
    assert!(answer(&rules, "web-0", Direction::Egress, "10.0.1.1", TCP, Some(80)).allow);
}

#[test]
fn rules_of_several_policies_are_a_union() {
    let rules = node(vec![
        policy("network", "a", vec![rule(Action::Allow, vec![of("api")], vec![port(80)])]),
        policy("network", "b", vec![rule(Action::Allow, vec![of("db")], Vec::new())]),
    ]);
    assert!(allowed(&rules, "10.0.1.2", TCP, 80) && allowed(&rules, "fd00::11", TCP, 80));
    assert!(!allowed(&rules, "10.0.1.2", TCP, 81) && !allowed(&rules, "10.0.1.2", UDP, 80));
    assert!(allowed(&rules, "10.0.0.2", TCP, 81) && allowed(&rules, "10.0.0.2", GRE, None));
    assert!(!allowed(&rules, "8.8.8.8", TCP, 80));
}

#[test]
fn an_exception_carves_its_own_block_only() {
    let holed = block("10.0.0.0/8", &["10.0.1.0/24"]);
    let one = node(vec![policy("network", "a", vec![rule(Action::Allow, vec![holed.clone()], Vec::new())])]);
    assert!(allowed(&one, "10.9.9.9", TCP, 80) && !allowed(&one, "10.0.1.1", TCP, 80));
    let other = block("10.0.1.0/25", &[]);
    let both = node(vec![policy("network", "a", vec![rule(Action::Allow, vec![holed, other], Vec::new())])]);
    assert!(allowed(&both, "10.0.1.1", TCP, 80) && !allowed(&both, "10.0.1.200", TCP, 80));
}

#[test]
fn admin_rules_come_first_and_pass_leaves_their_tier() {
    let admin = policy(
        "admin",
        "guard",
        vec![
            rule(Action::Pass, vec![of("api")], vec![port(80)]),
            rule(Action::Deny, vec![of("api")], Vec::new()),
            rule(Action::Allow, vec![of("db")], Vec::new()),
        ],
    );
    let open = policy("network", "open", vec![rule(Action::Allow, vec![of("api")], Vec::new())]);
    let rules = node(vec![open, admin]);
    let path = |tier: &str, policy: &str, index| {
        Decider::Rule(RulePath { tier: tier.into(), policy: policy.into(), rule: String::new(), index })
    };
    let passed = Answer { allow: true, decider: path("network", "open", 0) };
    assert_eq!(ask(&rules, "10.0.1.1", TCP, 80), passed);
    assert_eq!(ask(&rules, "10.0.1.1", TCP, 81), Answer { allow: false, decider: path("admin", "guard", 1) });
    assert_eq!(ask(&rules, "10.0.0.2", TCP, 81), Answer { allow: true, decider: path("admin", "guard", 2) });
    assert_eq!(
        ask(&rules, "8.8.8.8", TCP, 80),
        Answer { allow: false, decider: Decider::TierDefault("network".into()) }
    );
}

#[test]
fn the_lower_order_and_then_the_lesser_name_comes_first() {
    let deny = |name: &str, order| Policy {
        order,
        ..policy("admin", name, vec![rule(Action::Deny, Vec::new(), Vec::new())])
    };
    let allow = policy("admin", "m", vec![rule(Action::Allow, Vec::new(), Vec::new())]);
    assert!(allowed(&node(vec![deny("a", 1), allow.clone()]), "10.0.1.1", TCP, 80));
    assert!(allowed(&node(vec![deny("z", 0), allow.clone()]), "10.0.1.1", TCP, 80));
    assert!(!allowed(&node(vec![allow, deny("a", 0)]), "10.0.1.1", TCP, 80));
}

#[test]
fn world_is_who_is_in_no_identity() {
    let rules = node(vec![policy("network", "a", vec![rule(Action::Allow, vec![Peer::World], Vec::new())])]);
    assert!(allowed(&rules, "8.8.8.8", TCP, 80) && allowed(&rules, "2001:db8::1", TCP, 80));
    assert!(!allowed(&rules, "10.0.1.1", TCP, 80));
}

#[test]
fn icmp_matches_by_type_and_code() {
    let echo = PortMatch { icmp_type: Some(8), ..PortMatch::all(Protocol::Icmp) };
    let too_big = PortMatch { icmp_type: Some(3), icmp_code: Some(4), ..PortMatch::all(Protocol::Icmp) };
    let rules =
        node(vec![policy("network", "a", vec![rule(Action::Allow, Vec::new(), vec![echo, too_big])])]);
    assert!(allowed(&rules, "8.8.8.8", ICMP, 8 << 8) && allowed(&rules, "8.8.8.8", ICMP, 3 << 8 | 4));
    assert!(!allowed(&rules, "8.8.8.8", ICMP, 3 << 8) && !allowed(&rules, "8.8.8.8", 58, 8 << 8));
}

#[test]
fn a_fragment_without_ports_is_not_let_in_by_a_rule_with_ports() {
    let with_ports = rule(Action::Allow, Vec::new(), vec![port(80)]);
    let every_port = rule(
        Action::Allow,
        Vec::new(),
        vec![PortMatch { ports: Some(0..=65535), ..PortMatch::all(Protocol::Udp) }],
    );
    let rules = node(vec![policy("network", "a", vec![with_ports, every_port])]);
    assert!(allowed(&rules, "8.8.8.8", TCP, 80) && !allowed(&rules, "8.8.8.8", TCP, None));
    assert!(allowed(&rules, "8.8.8.8", UDP, None));
}

#[test]
fn a_fragment_without_ports_is_refused_by_a_rule_that_refuses_some_port() {
    let rules = node(vec![policy(
        "network",
        "a",
        vec![
            rule(Action::Deny, Vec::new(), vec![port(22)]),
            rule(Action::Allow, Vec::new(), vec![PortMatch::all(Protocol::Tcp)]),
        ],
    )]);
    assert!(allowed(&rules, "8.8.8.8", TCP, 80) && !allowed(&rules, "8.8.8.8", TCP, None));
}

#[test]
fn a_fragment_that_may_have_been_passed_on_must_be_allowed_both_ways() {
    let admin = policy(
        "admin",
        "a",
        vec![
            rule(Action::Pass, Vec::new(), vec![port(80)]),
            rule(Action::Allow, Vec::new(), vec![PortMatch::all(Protocol::Tcp)]),
        ],
    );
    let deny = policy("network", "b", vec![rule(Action::Deny, Vec::new(), vec![port(80)])]);
    let allow = policy("network", "b", vec![rule(Action::Allow, Vec::new(), Vec::new())]);
    let refused = node(vec![admin.clone(), deny]);
    assert!(allowed(&refused, "8.8.8.8", TCP, 443) && !allowed(&refused, "8.8.8.8", TCP, 80));
    assert!(!allowed(&refused, "8.8.8.8", TCP, None));
    assert!(allowed(&node(vec![admin, allow]), "8.8.8.8", TCP, None));
}

#[test]
fn a_staged_policy_decides_nothing_and_says_what_it_would_decide() {
    let open = policy("network", "open", vec![rule(Action::Allow, Vec::new(), Vec::new())]);
    let staged = Policy {
        staged: true,
        ..policy("admin", "wall", vec![rule(Action::Deny, vec![of("api")], Vec::new())])
    };
    let rules = node(vec![open, staged]);
    let program = compile(&rules, None).unwrap();
    let subject = program.endpoint("web-0").unwrap();
    let staged_for = |remote: &str| {
        let peer = program.peers("default").unwrap().look_up(remote.parse().unwrap());
        let packet = Packet { peer, protocol: TCP, key: Some(80) };
        let verdict = subject.classify(Direction::Ingress, &packet);
        assert!(verdict.allow);
        let staged = subject.notes(Direction::Ingress, &packet, |_| panic!("there is no Log rule"));
        assert_eq!(verdict.noted, staged.is_some());
        staged.map(|staged| (staged.allow, subject.decider(Direction::Ingress, staged.decision).to_string()))
    };
    assert_eq!(staged_for("10.0.1.1"), Some((false, "rule 1 of policy \"wall\" in tier \"admin\"".into())));
    assert_eq!(staged_for("8.8.8.8"), None);
}

#[test]
fn a_staged_policy_isolates_nobody() {
    let rules = node(vec![Policy { staged: true, ..policy("network", "isolate", Vec::new()) }]);
    assert!(allowed(&rules, "8.8.8.8", TCP, 80));
    let probe = Probe {
        direction: Direction::Ingress,
        remote: "8.8.8.8".parse().unwrap(),
        protocol: TCP,
        key: Some(80),
    };
    let staged = linear::judge(&rules, "web-0", &probe).unwrap().staged;
    assert_eq!(staged, Some(Answer { allow: false, decider: Decider::TierDefault("network".into()) }));
}

#[test]
fn the_walk_says_what_each_tier_met() {
    let rules = node(vec![
        policy("admin", "guard", vec![rule(Action::Pass, Vec::new(), Vec::new())]),
        policy("network", "isolate", vec![rule(Action::Log, Vec::new(), Vec::new())]),
    ]);
    let probe = Probe {
        direction: Direction::Ingress,
        remote: "8.8.8.8".parse().unwrap(),
        protocol: TCP,
        key: Some(80),
    };
    let judgement = linear::judge(&rules, "web-0", &probe).unwrap();
    let tiers: Vec<&str> = judgement.tiers.iter().map(|step| step.tier.as_str()).collect();
    assert_eq!(tiers, ["admin", "network"]);
    assert_eq!(judgement.tiers[0].met.as_ref().map(|met| met.1), Some(Action::Pass));
    assert_eq!(judgement.tiers[1].default, Some(TierDefault::Deny));
    assert_eq!(judgement.logs.len(), 1);
    assert!(!judgement.answer.allow);
}

fn revision(program: &Program, endpoint: &str) -> u64 {
    program.endpoint(endpoint).unwrap().revision()
}

#[test]
fn a_change_touches_the_endpoints_that_it_concerns_and_no_others() {
    let of_web = policy("network", "of-web", vec![rule(Action::Allow, vec![of("api")], Vec::new())]);
    let of_db = Policy {
        subjects: Subjects::Identities(vec!["db".into()]),
        ..policy("network", "of-db", vec![rule(Action::Allow, vec![of("web")], Vec::new())])
    };
    let before_rules = node(vec![of_web, of_db]);
    let before = compile(&before_rules, None).unwrap();
    assert_ne!(revision(&before, "web-0"), revision(&before, "db-0"));

    let mut api_grew = before_rules.clone();
    Arc::make_mut(&mut Arc::make_mut(&mut api_grew).identities[2])
        .prefixes
        .push("10.0.1.3/32".parse().unwrap());
    let after = compile(&api_grew, Some(&before)).unwrap();
    assert_ne!(revision(&after, "web-0"), revision(&before, "web-0"));
    assert!(Arc::ptr_eq(after.endpoint("db-0").unwrap(), before.endpoint("db-0").unwrap()));

    let mut nothing_new = before_rules.clone();
    Arc::make_mut(&mut nothing_new).policies[0] = Arc::new((*before_rules.policies[0]).clone());
    let same = compile(&nothing_new, Some(&before)).unwrap();
    assert_eq!(revision(&same, "web-0"), revision(&before, "web-0"));
    assert!(Arc::ptr_eq(same.peers("default").unwrap(), before.peers("default").unwrap()));
}

#[test]
fn endpoints_of_the_same_policies_share_a_program() {
    let mut rules =
        node(vec![Policy { subjects: Subjects::All, ..policy("network", "isolate", Vec::new()) }]);
    Arc::make_mut(&mut rules).endpoints.push(Endpoint {
        name: "web-1".into(),
        network: "default".into(),
        addresses: vec!["10.0.0.9".parse().unwrap()],
    });
    let program = compile(&rules, None).unwrap();
    assert!(Arc::ptr_eq(program.endpoint("web-0").unwrap(), program.endpoint("web-1").unwrap()));
    assert_eq!(program.subjects().count(), 1);
}

#[test]
fn every_fault_is_named_at_once() {
    let udp_and_type = PortMatch { icmp_type: Some(8), ..PortMatch::all(Protocol::Udp) };
    #[expect(clippy::reversed_empty_ranges)]
    let upside_down = PortMatch { ports: Some(90..=80), ..PortMatch::all(Protocol::Tcp) };
    let gre_ports = PortMatch { ports: Some(1..=2), ..PortMatch::all(Protocol::Number(GRE)) };
    let rules = node(vec![
        policy(
            "nowhere",
            "a",
            vec![rule(Action::Allow, vec![of("nobody")], vec![udp_and_type, upside_down])],
        ),
        policy(
            "network",
            "a",
            vec![rule(Action::Deny, vec![block("10.0.0.0/24", &["10.0.0.0/8"])], vec![gre_ports])],
        ),
    ]);
    let faults = compile(&rules, None).unwrap_err().faults;
    let has = |wanted: fn(&Fault) -> bool| assert!(faults.iter().any(wanted), "{faults:#?}");
    has(|fault| matches!(fault, Fault::Twice { kind: "policy", .. }));
    has(|fault| matches!(fault, Fault::UnknownTier { tier, .. } if tier == "nowhere"));
    has(|fault| matches!(fault, Fault::UnknownIdentity { identity, .. } if identity == "nobody"));
    has(|fault| matches!(fault, Fault::NoIcmp { protocol: UDP, .. }));
    has(|fault| matches!(fault, Fault::EmptyRange { first: 90, last: 80, .. }));
    has(|fault| matches!(fault, Fault::NoPorts { protocol: GRE, .. }));
    has(|fault| matches!(fault, Fault::ExceptOutside { .. }));
    assert_eq!(faults.len(), 7);
}

#[test]
fn an_identity_that_goes_while_a_policy_names_it_is_a_fault() {
    let rules = node(vec![policy("network", "a", vec![rule(Action::Deny, vec![of("api")], Vec::new())])]);
    let before = compile(&rules, None).unwrap();
    let mut without = rules;
    Arc::make_mut(&mut without).identities.pop();
    let faults = compile(&without, Some(&before)).unwrap_err().faults;
    assert!(matches!(&faults[..], [Fault::UnknownIdentity { identity, .. }] if identity == "api"));
}
