//! The classifier against the linear walk: rules, packets and changes at random, the same answer by the same rule.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use proptest::prelude::*;
use proptest::sample::{Index, select, subsequence};

use crate::compile::compile_within;
use crate::layers::Budget;
use crate::linear::{self, Judgement, Probe};
use crate::rules::*;
use crate::verdict::{DecisionId, Packet};
use crate::{Program, compile};

/// Prefixes that nest and touch, so that random picks overlap.
const PREFIXES: [&str; 20] = [
    "0.0.0.0/0",
    "10.0.0.0/8",
    "10.1.0.0/16",
    "10.1.0.0/23",
    "10.1.1.0/24",
    "10.1.1.0/30",
    "10.1.1.1/32",
    "10.1.1.2/32",
    "10.1.1.3/32",
    "10.1.0.1/32",
    "10.2.0.0/16",
    "192.0.2.1/32",
    "::/0",
    "fd00::/8",
    "fd00:1::/32",
    "fd00:1::/126",
    "fd00:1::1/128",
    "fd00:1::2/128",
    "fd00:2::/32",
    "2001:db8::1/128",
];

const ADDRESSES: [&str; 16] = [
    "10.1.1.1",
    "10.1.1.2",
    "10.1.1.3",
    "10.1.1.4",
    "10.1.0.1",
    "10.1.2.1",
    "10.2.0.1",
    "192.0.2.1",
    "8.8.8.8",
    "255.255.255.255",
    "fd00:1::1",
    "fd00:1::2",
    "fd00:1::4",
    "fd00:2::1",
    "2001:db8::1",
    "::",
];

/// Keys at and beside the ends of the ranges that rules have, and those of ICMP messages.
const KEYS: [u16; 16] =
    [0, 1, 79, 80, 81, 443, 444, 8080, 32768, 65534, 65535, 8 << 8, 3 << 8 | 4, 3 << 8, 128 << 8, 11];

const PROTOCOLS: [u8; 6] = [6, 17, 132, 1, 58, 47];

const NETWORKS: [&str; 2] = ["blue", "green"];

fn prefixes() -> Vec<IpNet> {
    PREFIXES.iter().map(|prefix| prefix.parse().unwrap()).collect()
}

fn addresses() -> Vec<IpAddr> {
    ADDRESSES.iter().map(|address| address.parse().unwrap()).collect()
}

fn network() -> impl Strategy<Value = String> {
    // Most in one network, so that things meet.
    prop_oneof![4 => Just(NETWORKS[0]), 1 => Just(NETWORKS[1])].prop_map(str::to_owned)
}

fn block() -> impl Strategy<Value = Peer> {
    (select(prefixes()), subsequence(prefixes(), 0..6)).prop_map(|(prefix, holes)| {
        let within = |hole: &IpNet| prefix.contains(hole) && *hole != prefix;
        Peer::Prefix { prefix, except: holes.into_iter().filter(within).collect() }
    })
}

fn ports() -> impl Strategy<Value = PortMatch> {
    let range = (select(KEYS.to_vec()), select(KEYS.to_vec())).prop_map(|(a, b)| a.min(b)..=a.max(b));
    let with_ports = (select(vec![Protocol::Tcp, Protocol::Udp, Protocol::Sctp, Protocol::Number(6)]), range);
    let icmp =
        (select(vec![Protocol::Icmp, Protocol::Icmpv6]), select(vec![3, 8, 128]), prop::option::of(0u8..5));
    prop_oneof![
        4 => with_ports.prop_map(|(protocol, ports)| PortMatch { ports: Some(ports), ..PortMatch::all(protocol) }),
        1 => icmp.prop_map(|(protocol, kind, icmp_code)| {
            PortMatch { icmp_type: Some(kind), icmp_code, ..PortMatch::all(protocol) }
        }),
        1 => select(PROTOCOLS.to_vec()).prop_map(|number| PortMatch::all(Protocol::Number(number))),
    ]
}

/// Identity names of a policy's peers and subjects are filled in later, when the identities are known.
fn rule() -> impl Strategy<Value = Rule> {
    let peer = prop_oneof![
        3 => any::<Index>().prop_map(|index| Peer::Identity(index.index(1000).to_string())),
        3 => block(),
        1 => Just(Peer::World),
    ];
    (
        select(Direction::BOTH.to_vec()),
        select(vec![Action::Allow, Action::Allow, Action::Deny, Action::Deny, Action::Pass, Action::Log]),
        prop::collection::vec(peer, 0..3),
        prop::collection::vec(ports(), 0..3),
    )
        .prop_map(|(direction, action, peers, ports)| Rule {
            name: String::new(),
            direction,
            action,
            peers,
            ports,
        })
}

fn policy() -> impl Strategy<Value = Policy> {
    let subjects = prop_oneof![
        2 => Just(Subjects::All),
        3 => prop::collection::vec(0usize..1000, 0..4)
            .prop_map(|some| Subjects::Identities(some.iter().map(ToString::to_string).collect())),
    ];
    (
        network(),
        0usize..1000,
        0u32..4,
        subjects,
        any::<(bool, bool)>(),
        prop::collection::vec(rule(), 0..6),
        prop::bool::weighted(0.25),
    )
        .prop_map(|(network, tier, order, subjects, (ingress, egress), rules, staged)| Policy {
            name: String::new(),
            network,
            tier: tier.to_string(),
            order,
            subjects,
            directions: Directions { ingress, egress },
            rules,
            staged,
        })
}

fn identity() -> impl Strategy<Value = Identity> {
    (network(), subsequence(prefixes(), 0..5)).prop_map(|(network, prefixes)| Identity {
        name: String::new(),
        network,
        prefixes,
    })
}

fn rules() -> impl Strategy<Value = Rules> {
    let tier = (0u32..3, prop::bool::ANY).prop_map(|(order, deny)| Tier {
        name: String::new(),
        order,
        default: if deny { TierDefault::Deny } else { TierDefault::Pass },
    });
    let endpoint = (network(), subsequence(addresses(), 0..4)).prop_map(|(network, addresses)| Endpoint {
        name: String::new(),
        network,
        addresses,
    });
    (
        prop::collection::vec(identity(), 0..6),
        prop::collection::vec(tier, 1..5),
        prop::collection::vec(policy(), 0..8),
        prop::collection::vec(endpoint, 1..4),
    )
        .prop_map(|(identities, tiers, policies, endpoints)| Rules {
            identities: identities.into_iter().map(Arc::new).collect(),
            tiers,
            policies: policies.into_iter().map(Arc::new).collect(),
            endpoints,
        })
        .prop_map(named)
}

/// Gives objects names, and turns the numbers that policies name identities and tiers by into names that exist.
fn named(mut rules: Rules) -> Rules {
    for (i, identity) in rules.identities.iter_mut().enumerate() {
        Arc::make_mut(identity).name = format!("id{i}");
    }
    for (i, tier) in rules.tiers.iter_mut().enumerate() {
        tier.name = format!("tier{i}");
    }
    for (i, endpoint) in rules.endpoints.iter_mut().enumerate() {
        endpoint.name = format!("pod{i}");
    }
    let Rules { identities, tiers, policies, .. } = &mut rules;
    for (i, policy) in policies.iter_mut().enumerate() {
        let policy = Arc::make_mut(policy);
        policy.name = format!("policy{i}");
        let number = |text: &str| text.parse::<usize>().unwrap();
        policy.tier = tiers[number(&policy.tier) % tiers.len()].name.clone();
        let names: Vec<&String> = identities
            .iter()
            .filter(|identity| identity.network == policy.network)
            .map(|identity| &identity.name)
            .collect();
        let name = |text: &String| names.get(number(text) % names.len().max(1)).map(|name| (*name).clone());
        if let Subjects::Identities(subjects) = &mut policy.subjects {
            *subjects = subjects.iter().filter_map(name).collect();
        }
        for (j, rule) in policy.rules.iter_mut().enumerate() {
            rule.name = format!("rule{j}");
            let nobody = Peer::Prefix { prefix: "203.0.113.0/24".parse().unwrap(), except: Vec::new() };
            for peer in &mut rule.peers {
                if let Peer::Identity(text) = peer {
                    *peer = name(text).map_or(nobody.clone(), Peer::Identity);
                }
            }
        }
    }
    rules
}

/// One change of an operator or of a cluster.
#[derive(Clone, Debug)]
enum Change {
    Prefixes(Index, Identity),
    Staged(Index),
    Swap(Index, Policy),
    Remove(Index),
    Add(Policy),
    Move(Index, Vec<IpAddr>),
    Default(Index),
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        (any::<Index>(), identity()).prop_map(|(at, identity)| Change::Prefixes(at, identity)),
        any::<Index>().prop_map(Change::Staged),
        (any::<Index>(), policy()).prop_map(|(at, policy)| Change::Swap(at, policy)),
        any::<Index>().prop_map(Change::Remove),
        policy().prop_map(Change::Add),
        (any::<Index>(), subsequence(addresses(), 0..4))
            .prop_map(|(at, addresses)| Change::Move(at, addresses)),
        any::<Index>().prop_map(Change::Default),
    ]
}

fn changed(rules: &Rules, change: Change) -> Rules {
    let mut rules = rules.clone();
    match change {
        Change::Prefixes(at, identity) if !rules.identities.is_empty() => {
            let at = at.index(rules.identities.len());
            Arc::make_mut(&mut rules.identities[at]).prefixes = identity.prefixes;
        }
        Change::Staged(at) if !rules.policies.is_empty() => {
            let at = at.index(rules.policies.len());
            let policy = Arc::make_mut(&mut rules.policies[at]);
            policy.staged = !policy.staged;
        }
        Change::Remove(at) if !rules.policies.is_empty() => {
            let at = at.index(rules.policies.len());
            rules.policies.remove(at);
        }
        Change::Swap(at, policy) if !rules.policies.is_empty() => {
            let at = at.index(rules.policies.len());
            let policy = adopted(&rules, policy);
            rules.policies[at] = policy;
        }
        Change::Add(policy) => {
            let policy = adopted(&rules, policy);
            rules.policies.push(policy);
        }
        Change::Move(at, addresses) => {
            let at = at.index(rules.endpoints.len());
            rules.endpoints[at].addresses = addresses;
        }
        Change::Default(at) => {
            let at = at.index(rules.tiers.len());
            rules.tiers[at].default = match rules.tiers[at].default {
                TierDefault::Pass => TierDefault::Deny,
                TierDefault::Deny => TierDefault::Pass,
            };
        }
        _ => {}
    }
    rules
}

/// A policy of which names are numbers, among the objects of `rules`.
fn adopted(rules: &Rules, policy: Policy) -> Arc<Policy> {
    let alone = named(Rules { policies: vec![Arc::new(policy)].into(), ..rules.clone() });
    let mut policy = (*alone.policies[0]).clone();
    policy.name = "new".into();
    Arc::new(policy)
}

fn probes() -> impl Strategy<Value = Vec<Probe>> {
    let probe = (
        select(Direction::BOTH.to_vec()),
        select(addresses()),
        select(PROTOCOLS.to_vec()),
        prop_oneof![1 => Just(None), 4 => select(KEYS.to_vec()).prop_map(Some), 1 => any::<u16>().prop_map(Some)],
    )
        .prop_map(|(direction, remote, protocol, key)| Probe { direction, remote, protocol, key });
    prop::collection::vec(probe, 64)
}

/// What the program makes of a packet, in the words of the oracle.
fn classified(program: &Program, endpoint: &Endpoint, probe: &Probe) -> Judgement {
    let subject = program.endpoint(&endpoint.name).expect("every endpoint has a program");
    let peers = program.peers(&endpoint.network).expect("every network of an endpoint is cut");
    let packet = Packet { peer: peers.look_up(probe.remote), protocol: probe.protocol, key: probe.key };
    let verdict = subject.classify(probe.direction, &packet);
    assert_eq!(subject.classify_many(probe.direction, &[packet; 2]), [verdict; 2]);
    assert!(verdict.decision.get() < subject.decisions(probe.direction));
    let mut logs: Vec<DecisionId> = Vec::new();
    let staged = subject.notes(probe.direction, &packet, |rule| logs.push(rule));
    assert_eq!(verdict.noted, staged.is_some() || !logs.is_empty());
    let staged = staged.map(|staged| crate::Answer {
        allow: staged.allow,
        decider: subject.decider(probe.direction, staged.decision),
    });
    let path = |rule: DecisionId| match subject.decider(probe.direction, rule) {
        crate::Decider::Rule(path) => path,
        other => panic!("{other} is no Log rule"),
    };
    Judgement {
        answer: subject.answer(probe.direction, verdict),
        tiers: Vec::new(),
        logs: logs.into_iter().map(path).collect(),
        staged,
    }
}

fn judged(rules: &Rules, endpoint: &Endpoint, probe: &Probe) -> Judgement {
    let judgement = linear::judge(rules, &endpoint.name, probe).expect("the endpoint exists");
    Judgement { tiers: Vec::new(), ..judgement }
}

fn agrees(program: &Program, rules: &Rules, probes: &[Probe]) -> Result<(), TestCaseError> {
    for endpoint in &rules.endpoints {
        for probe in probes {
            let (found, expected) = (classified(program, endpoint, probe), judged(rules, endpoint, probe));
            prop_assert_eq!(found, expected, "{} {:?}", endpoint.name, probe);
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, ..ProptestConfig::default() })]

    #[test]
    fn the_program_answers_as_the_rules_read(rules in rules(), probes in probes()) {
        let rules = Arc::new(rules);
        let program = compile(&rules, None).expect("rules without faults");
        agrees(&program, &rules, &probes)?;
    }

    #[test]
    fn rules_in_several_tables_answer_as_in_one(rules in rules(), probes in probes()) {
        let budget = Budget { comfortable: 0, most: u64::MAX, part_always: true };
        let rules = Arc::new(rules);
        let program = compile_within(&rules, None, budget).expect("rules without faults");
        agrees(&program, &rules, &probes)?;
    }

    #[test]
    fn a_program_made_from_the_one_before_answers_as_a_new_one(
        rules in rules(),
        changes in prop::collection::vec(change(), 1..4),
        probes in probes(),
    ) {
        let rules = Arc::new(rules);
        let mut before = (compile(&rules, None).expect("rules without faults"), rules);
        for change in changes {
            let rules = Arc::new(changed(&before.1, change));
            // A policy named "new" may be there already.
            let Ok(program) = compile(&rules, Some(&before.0)) else { continue };
            agrees(&program, &rules, &probes)?;
            for endpoint in &rules.endpoints {
                let revision = |program: &Program| program.endpoint(&endpoint.name).map(|subject| subject.revision());
                if revision(&program) == revision(&before.0) {
                    for probe in &probes {
                        prop_assert_eq!(judged(&rules, endpoint, probe), judged(&before.1, endpoint, probe));
                    }
                }
            }
            before = (program, rules);
        }
    }

    #[test]
    fn a_packet_without_ports_goes_only_where_every_port_would(rules in rules(), probes in probes()) {
        for endpoint in &rules.endpoints {
            for probe in probes.iter().map(|probe| Probe { key: None, ..*probe }) {
                if judged(&rules, endpoint, &probe).answer.allow {
                    for key in KEYS.iter().flat_map(|key| [*key, key.saturating_add(1), key.saturating_sub(1)]) {
                        let seen = Probe { key: Some(key), ..probe };
                        prop_assert!(judged(&rules, endpoint, &seen).answer.allow, "{} {:?}", endpoint.name, seen);
                    }
                }
            }
        }
    }
}
