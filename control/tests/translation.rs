//! Whatever happens to a cluster and in whatever order, a dataplane is told the same in the end.

#![allow(clippy::unwrap_used, reason = "the leave for tests does not reach the functions beside them")]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use penstock_api::check::check_object;
use penstock_api::model::{Key as SaidKey, Object as Said};
use penstock_control::cluster::{Change, Cluster};
use penstock_control::kubernetes::{Key, Object};
use penstock_control::manifests::parse;
use penstock_control::translate::{Settings, Translation, translate};
use proptest::prelude::*;

fn objects(yaml: &str) -> Vec<Object> {
    parse(yaml, Path::new("t.yaml")).unwrap_or_else(|faults| panic!("{faults:#?}\n{yaml}")).objects
}

fn object(yaml: &str) -> Object {
    objects(yaml).pop().unwrap()
}

/// How many forms each object has.
const FORMS: usize = 4;
/// How many objects there are.
const OBJECTS: usize = 31;

/// One of the forms of one of the objects: few, so that they meet each other.
fn form(which: usize, form: usize) -> Object {
    let label = ["a", "b", "c", "d"][form];
    let text = match which {
        0..3 => format!(
            "{{ apiVersion: v1, kind: Namespace, metadata: {{ name: n{which}, labels: {{ team: {label} }} }} }}"
        ),
        3..12 => pod(which - 3, form),
        12..17 => network_policy(which - 12, form),
        17..19 => format!(
            "{{ apiVersion: policy.networking.k8s.io/v1alpha2, kind: ClusterNetworkPolicy, metadata: {{ name: c{which} }}, spec: {{
               tier: {}, priority: {form}, subject: {{ namespaces: {{ matchLabels: {{ team: {label} }} }} }},
               ingress: [{{ action: Deny, from: [{{ pods: {{ namespaceSelector: {{}}, podSelector: {{ matchLabels: {{ app: {label} }} }} }} }}],
                            protocols: [{{ destinationNamedPort: web }}] }}],
               egress: [{{ action: Accept, to: [{{ nodes: {{ matchLabels: {{ zone: {label} }} }} }}] }}] }} }}",
            if form.is_multiple_of(2) { "Admin" } else { "Baseline" },
        ),
        19..21 => format!(
            "{{ apiVersion: v1, kind: Node, metadata: {{ name: node{which}, labels: {{ zone: {label} }} }},
               spec: {{ podCIDRs: [10.{}.0.0/16] }},
               status: {{ addresses: [{{ type: InternalIP, address: 192.0.2.{} }}] }} }}",
            if form < 3 { which } else { 19 },
            which + form / 3,
        ),
        21..23 => format!(
            "{{ apiVersion: v1, kind: Service, metadata: {{ namespace: n0, name: s{which}, creationTimestamp: \"2026-01-0{}T00:00:00Z\" }},
               spec: {{ clusterIP: 10.96.0.{form}, externalIPs: [203.0.113.1], ports: [{{ name: web, port: 8{form} }}] }} }}",
            which - 20,
        ),
        23..25 => format!(
            "{{ apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, addressType: IPv4,
               metadata: {{ namespace: n0, name: e{which}, labels: {{ kubernetes.io/service-name: s{} }} }},
               ports: [{{ name: web, port: 80 }}], endpoints: [{{ addresses: [10.19.0.{form}], nodeName: node19 }}] }}",
            21 + form % 2,
        ),
        25 => format!(
            "{{ apiVersion: penstock.dev/v1alpha1, kind: EgressIP, metadata: {{ name: e }},
               spec: {{ addresses: [203.0.113.7], podSelector: {{ matchLabels: {{ app: {label} }} }}, nodeSelector: {{ matchLabels: {{ zone: a }} }} }} }}"
        ),
        26..28 => format!(
            "{{ apiVersion: penstock.dev/v1alpha1, kind: IPBlock, metadata: {{ name: b{which} }},
               spec: {{ pool: p, network: default, prefix: 10.{}.0.0/26, node: node{},
                        given: [{{ address: 10.{}.0.{form}, node: node{}, holder: h }}] }} }}",
            if form < 3 { which } else { 26 },
            19 + form % 2,
            which,
            19 + form / 2,
        ),
        28 => format!(
            "{{ apiVersion: penstock.dev/v1alpha1, kind: Network, metadata: {{ name: fast }},
               spec: {{ vni: {}, prefixes: [10.200.0.0/16] }} }}",
            // The last is the pods' own network's, which this one then gives way to.
            [200, 201, 202, 1][form],
        ),
        29 => format!(
            "{{ apiVersion: k8s.cni.cncf.io/v1, kind: NetworkAttachmentDefinition, metadata: {{ namespace: n0, name: fast }},
               spec: {{ config: '{{\"type\":\"{}\",\"network\":\"{}\"}}' }} }}",
            ["penstock-cni", "penstock-cni", "macvlan", "penstock-cni"][form],
            ["fast", "", "fast", "blue"][form],
        ),
        _ => format!(
            "{{ apiVersion: penstock.dev/v1alpha1, kind: IPPool, metadata: {{ name: p }},
               spec: {{ prefixes: [10.{}.0.0/16], podSelector: {{ matchLabels: {{ app: {label} }} }} }} }}",
            18 + form,
        ),
    };
    object(&text)
}

fn pod(number: usize, form: usize) -> String {
    let (namespace, label) = (number % 3, ["a", "b", "a", "c"][form]);
    // Some share an address, and some have none.
    let address = match form {
        3 => String::new(),
        form => format!("podIP: 10.19.0.{},", number / 2 + 10 * (form / 2)),
    };
    // Multus says of some which address they have elsewhere.
    let status = match number % 3 {
        0 => String::new(),
        _ => format!(
            "annotations: {{ k8s.v1.cni.cncf.io/network-status: '[{{\"name\":\"n0/fast\",\"ips\":[\"10.200.0.{}\"]}}]' }},",
            number / 2 + 10 * (form / 2),
        ),
    };
    let phase = if form == 2 && number.is_multiple_of(2) { "Succeeded" } else { "Running" };
    format!(
        "{{ apiVersion: v1, kind: Pod, metadata: {{ namespace: n{namespace}, name: p{number}, labels: {{ app: {label} }}, {status}
           creationTimestamp: \"2026-01-0{}T00:00:00Z\" }},
           spec: {{ nodeName: node{}, containers: [{{ name: c, ports: [{{ name: web, containerPort: {} }}] }}] }},
           status: {{ {address} phase: {phase} }} }}",
        number % 4 + 1,
        19 + (number + form / 2) % 2,
        8000 + form % 2,
    )
}

fn network_policy(number: usize, form: usize) -> String {
    let label = ["a", "b", "c", "d"][form];
    let peer = match number {
        0 => "{ namespaceSelector: {} }".to_owned(),
        1 => format!("{{ podSelector: {{ matchLabels: {{ app: {label} }} }} }}"),
        2 => format!("{{ namespaceSelector: {{ matchLabels: {{ team: {label} }} }} }}"),
        3 => format!(
            "{{ namespaceSelector: {{ matchExpressions: [{{ key: team, operator: NotIn, values: [{label}] }}] }}, podSelector: {{ matchLabels: {{ app: a }} }} }}"
        ),
        _ => "{ ipBlock: { cidr: 10.0.0.0/8, except: [10.1.0.0/16] } }".to_owned(),
    };
    format!(
        "{{ apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{ namespace: n{}, name: np{number} }}, spec: {{
           podSelector: {{ matchLabels: {{ app: {} }} }}, policyTypes: [Ingress, Egress],
           ingress: [{{ from: [{peer}], ports: [{{ port: web }}, {{ port: 80{form} }}] }}],
           egress: [{{ to: [{peer}], ports: [{{ port: web }}] }}, {{ ports: [{{ protocol: UDP, port: 53 }}] }}] }} }}",
        number % 3,
        ["a", "b"][form % 2],
    )
}

/// Something that happens: an object takes a form, or goes.
type Event = (usize, Option<usize>);

fn event() -> impl Strategy<Value = Event> {
    (0..OBJECTS, proptest::option::weighted(0.8, 0..FORMS))
}

fn happen(cluster: &mut Cluster, (which, to): Event) -> Change {
    match to {
        Some(to) => cluster.apply(&form(which, to)),
        None => cluster.remove(&form(which, 0).key()),
    }
}

fn desired(translation: &Translation) -> &BTreeMap<SaidKey, Arc<Said>> {
    translation.desired()
}

fn refusals(translation: &Translation) -> Vec<(Key, String)> {
    translation.refusals().map(|(key, problem)| (key.clone(), problem.to_string())).collect()
}

/// What an object names must be there; the engine would refuse it.
fn names_what_is_there(desired: &BTreeMap<SaidKey, Arc<Said>>) {
    let there = |key: SaidKey, by: &SaidKey| assert!(desired.contains_key(&key), "{by} names {key}");
    for (key, object) in desired {
        assert_eq!(check_object(object), [], "{key}");
        match &**object {
            Said::Policy(policy) => {
                there(SaidKey::Tier(policy.tier.clone()), key);
                policy.identities().for_each(|(_, name)| there(SaidKey::Identity(name.clone()), key));
                for (_, name) in policy.identities() {
                    let Said::Identity(identity) = &*desired[&SaidKey::Identity(name.clone())] else {
                        panic!("{name}")
                    };
                    assert_eq!(identity.network, policy.network, "{key} names {name} of another network");
                }
                there(SaidKey::Network(policy.network.clone()), key);
            }
            Said::Backends(backends) => there(SaidKey::Service(backends.service.clone()), key),
            Said::EgressIp(egress) => {
                egress.identities.iter().for_each(|name| there(SaidKey::Identity(name.clone()), key));
            }
            _ => {}
        }
    }
}

/// No identity is there that nobody names.
fn nothing_is_left_over(desired: &BTreeMap<SaidKey, Arc<Said>>) {
    let mut named: Vec<&str> = Vec::new();
    for object in desired.values() {
        match &**object {
            Said::Policy(policy) => named.extend(policy.identities().map(|(_, name)| name.as_str())),
            Said::EgressIp(egress) => named.extend(egress.identities.iter().map(|name| name.as_str())),
            _ => {}
        }
    }
    for key in desired.keys() {
        if let SaidKey::Identity(name) = key {
            assert!(named.contains(&name.as_str()), "nobody names {name}");
        }
    }
}

fn settings() -> [Settings; 2] {
    [Settings::of_node("node19"), Settings::of_all()]
}

fn cluster() -> Cluster {
    Cluster::new(Settings::network())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn following_changes_says_what_a_look_at_everything_says(
        batches in proptest::collection::vec(proptest::collection::vec(event(), 1..8), 1..20),
    ) {
        let mut known = cluster();
        let mut followers = settings().map(Translation::new);
        let mut told: [BTreeMap<SaidKey, Arc<Said>>; 2] = Default::default();
        for batch in batches {
            let mut change = Change::default();
            for event in batch {
                change.merge(happen(&mut known, event));
            }
            for ((follower, settings), told) in followers.iter_mut().zip(settings()).zip(&mut told) {
                let delta = follower.follow(&known, &change);
                for object in delta.upserts {
                    told.insert(object.key(), object);
                }
                for key in delta.deletes {
                    prop_assert!(told.remove(&key).is_some(), "{} was never told", key);
                }
                let fresh = translate(&known, settings);
                prop_assert_eq!(desired(follower), desired(&fresh));
                prop_assert_eq!(&*told, desired(&fresh));
                prop_assert_eq!(refusals(follower), refusals(&fresh));
                names_what_is_there(told);
                nothing_is_left_over(told);
            }
        }
    }

    #[test]
    fn any_order_of_the_same_events_gives_the_same_tables(
        forms in proptest::collection::btree_map(0..OBJECTS, 0..FORMS, 1..OBJECTS),
        shuffle in any::<u64>(),
        strays in proptest::collection::vec(event(), 0..10),
    ) {
        let mut first = cluster();
        for (which, to) in &forms {
            happen(&mut first, (*which, Some(*to)));
        }
        // In another order, each told twice, and with other words about them before.
        let mut order: Vec<_> = forms.iter().collect();
        order.sort_by_key(|(which, _)| (**which as u64 + 1).wrapping_mul(shuffle | 1).rotate_left(17));
        let mut other = cluster();
        for event in strays {
            happen(&mut other, event);
        }
        for which in (0..OBJECTS).filter(|which| !forms.contains_key(which)) {
            happen(&mut other, (which, None));
        }
        for _ in 0..2 {
            for (which, to) in &order {
                happen(&mut other, (**which, Some(**to)));
            }
        }
        for settings in settings() {
            let (one, two) = (translate(&first, settings.clone()), translate(&other, settings));
            prop_assert_eq!(desired(&one), desired(&two));
            prop_assert_eq!(refusals(&one), refusals(&two));
        }
    }
}

#[test]
fn blocks_lead_to_their_nodes_and_lent_addresses_to_those_that_have_them() {
    let mut known = cluster();
    let node = |name: &str, last: u8| {
        format!(
            "{{ apiVersion: v1, kind: Node, metadata: {{ name: {name} }}, spec: {{ podCIDRs: [10.244.{last}.0/24] }},
               status: {{ addresses: [{{ type: InternalIP, address: 192.0.2.{last} }}] }} }}"
        )
    };
    let block = |name: &str, node: &str, prefix: &str, lent: &str, to: &str| {
        format!(
            "{{ apiVersion: penstock.dev/v1alpha1, kind: IPBlock, metadata: {{ name: {name} }},
               spec: {{ pool: p, network: default, prefix: {prefix}, node: {node},
                        given: [{{ address: {lent}, node: {to}, holder: h }}] }} }}"
        )
    };
    let pool = "{ apiVersion: penstock.dev/v1alpha1, kind: IPPool, metadata: { name: p }, spec: { prefixes: [10.9.0.0/16] } }";
    for text in [
        node("a", 1),
        node("b", 2),
        block("own", "a", "10.9.0.0/26", "10.9.0.5", "b"),
        block("other", "b", "10.9.0.64/26", "10.9.0.70", "a"),
        pool.to_owned(),
    ] {
        known.apply(&object(&text));
    }
    let translation = translate(&known, Settings::of_node("a"));
    let said = |it: &Arc<Said>| match &**it {
        Said::Route(route) => Some(format!("{} {:?}", route.prefix, route.via)),
        _ => None,
    };
    let routes: Vec<String> = desired(&translation).values().filter_map(said).collect();
    for wanted in [
        "10.9.0.0/26 Blackhole",
        "10.9.0.5/32 Peer(Name(\"b\"))",
        "10.9.0.64/26 Peer(Name(\"b\"))",
        "10.244.2.0/24 Peer(Name(\"b\"))",
    ] {
        assert!(routes.iter().any(|route| route == wanted), "{wanted}: {routes:#?}");
    }
    // Its own pod is the way to what it borrowed, and leaves the cluster under the node's address as others do.
    assert!(!routes.iter().any(|route| route.starts_with("10.9.0.70")), "{routes:#?}");
    let network: SaidKey = SaidKey::Network("default".parse().unwrap());
    let Said::Network(network) = &*desired(&translation)[&network] else { panic!("a network") };
    let texts: Vec<String> = network.prefixes.iter().map(ToString::to_string).collect();
    assert_eq!(texts, ["10.9.0.0/16", "10.244.1.0/24", "10.244.2.0/24"]);
    let nat: SaidKey = SaidKey::NatPool("default".parse().unwrap());
    let Said::NatPool(nat) = &*desired(&translation)[&nat] else { panic!("a pool of ports") };
    let sources: Vec<String> = nat.sources.iter().map(ToString::to_string).collect();
    assert_eq!(sources, ["10.9.0.0/26", "10.9.0.70/32", "10.244.1.0/24"]);
    assert_eq!(refusals(&translation), []);
}
