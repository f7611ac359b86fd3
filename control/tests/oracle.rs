//! An evaluator of network policies written straight from their reference, against what the dataplane's classifier says
//! about the same manifests.

#![allow(clippy::unwrap_used, reason = "the leave for tests does not reach the functions beside them")]

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::path::Path;

use ipnet::IpNet;
use k8s_openapi::api::networking::v1::{NetworkPolicyPeer, NetworkPolicyPort};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use penstock_control::judge::Judge;
use penstock_control::kubernetes::{NetworkPolicy, Object, Pod};
use penstock_control::manifests::{Manifests, parse};
use proptest::prelude::*;
use serde_json::{Value, json};

type Labels = BTreeMap<String, String>;

/// One end as the oracle sees it.
struct End<'a> {
    name: String,
    pod: Option<&'a Pod>,
    address: IpAddr,
}

struct Oracle<'a> {
    namespaces: BTreeMap<String, Labels>,
    policies: Vec<&'a NetworkPolicy>,
}

fn selects(selector: &LabelSelector, labels: &Labels) -> bool {
    let pairs = selector.match_labels.iter().flatten().all(|(key, value)| labels.get(key) == Some(value));
    let expressions = selector.match_expressions.iter().flatten().all(|it| {
        let value = labels.get(&it.key);
        let among = |value: &String| it.values.iter().flatten().any(|other| other == value);
        match it.operator.as_str() {
            "In" => value.is_some_and(among),
            "NotIn" => !value.is_some_and(among),
            "Exists" => value.is_some(),
            _ => value.is_none(),
        }
    });
    pairs && expressions
}

impl Oracle<'_> {
    fn peer_matches(&self, policy: &NetworkPolicy, peer: &NetworkPolicyPeer, end: &End<'_>) -> bool {
        if let Some(block) = &peer.ip_block {
            let holds = |text: &String| text.parse::<IpNet>().unwrap().contains(&end.address);
            return holds(&block.cidr) && !block.except.iter().flatten().any(holds);
        }
        let Some(pod) = end.pod else { return false };
        let namespace = pod.metadata.namespace.clone().unwrap();
        let in_namespace = match &peer.namespace_selector {
            Some(selector) => selects(selector, &self.namespaces[&namespace]),
            None => policy.metadata.namespace.as_ref() == Some(&namespace),
        };
        let labels = pod.metadata.labels.clone().unwrap_or_default();
        in_namespace && peer.pod_selector.as_ref().is_none_or(|selector| selects(selector, &labels))
    }

    fn port_matches(port: &NetworkPolicyPort, receiver: &End<'_>, protocol: &str, number: i32) -> bool {
        if port.protocol.as_deref().unwrap_or("TCP") != protocol {
            return false;
        }
        match (&port.port, port.end_port) {
            (None, _) => true,
            (Some(IntOrString::Int(first)), last) => (*first..=last.unwrap_or(*first)).contains(&number),
            (Some(IntOrString::String(name)), _) => {
                let containers = receiver.pod.and_then(|pod| pod.spec.as_ref()).map(|spec| &spec.containers);
                containers.into_iter().flatten().flat_map(|it| it.ports.iter().flatten()).any(|it| {
                    it.name.as_ref() == Some(name)
                        && it.protocol.as_deref().unwrap_or("TCP") == protocol
                        && it.container_port == number
                })
            }
        }
    }

    fn side(&self, own: &End<'_>, other: &End<'_>, ingress: bool, protocol: &str, number: i32) -> bool {
        let Some(pod) = own.pod else { return true };
        let labels = pod.metadata.labels.clone().unwrap_or_default();
        let mut isolated = false;
        for policy in &self.policies {
            let spec = policy.spec.as_ref().unwrap();
            let nothing = LabelSelector::default();
            let subject = spec.pod_selector.as_ref().unwrap_or(&nothing);
            if policy.metadata.namespace != pod.metadata.namespace || !selects(subject, &labels) {
                continue;
            }
            let types = spec.policy_types.clone().unwrap_or_else(|| {
                let egress = spec.egress.as_ref().is_some_and(|rules| !rules.is_empty());
                ["Ingress"].into_iter().chain(egress.then_some("Egress")).map(str::to_owned).collect()
            });
            if !types.iter().any(|it| it == if ingress { "Ingress" } else { "Egress" }) {
                continue;
            }
            isolated = true;
            let rules: Vec<_> = if ingress {
                spec.ingress.iter().flatten().map(|it| (it.from.clone(), it.ports.clone())).collect()
            } else {
                spec.egress.iter().flatten().map(|it| (it.to.clone(), it.ports.clone())).collect()
            };
            let receiver = if ingress { own } else { other };
            for (peers, ports) in rules {
                let (peers, ports) = (peers.unwrap_or_default(), ports.unwrap_or_default());
                let peer =
                    peers.is_empty() || peers.iter().any(|peer| self.peer_matches(policy, peer, other));
                // A name means nothing for addresses.
                let port = ports.is_empty()
                    || ports.iter().any(|it| Self::port_matches(it, receiver, protocol, number));
                if peer
                    && port
                    && self.name_is_about_a_pod(policy, &peers, &ports, receiver, other, protocol, number)
                {
                    return true;
                }
            }
        }
        !isolated
    }

    /// Whether a rule that matches does so without taking a port's name together with a block.
    #[allow(clippy::too_many_arguments, reason = "a case of the reference, spelled out")]
    fn name_is_about_a_pod(
        &self,
        policy: &NetworkPolicy,
        peers: &[NetworkPolicyPeer],
        ports: &[NetworkPolicyPort],
        receiver: &End<'_>,
        other: &End<'_>,
        protocol: &str,
        number: i32,
    ) -> bool {
        let is_name = |port: &&NetworkPolicyPort| matches!(port.port, Some(IntOrString::String(_)));
        let by_number = ports.is_empty()
            || ports.iter().any(|it| !is_name(&it) && Self::port_matches(it, receiver, protocol, number));
        let receives_there = std::ptr::eq(receiver, other);
        by_number
            || !receives_there
            || peers.is_empty()
            || peers.iter().any(|it| it.ip_block.is_none() && self.peer_matches(policy, it, other))
    }

    fn allows(&self, from: &End<'_>, to: &End<'_>, protocol: &str, number: i32) -> bool {
        from.name == to.name
            || (self.side(from, to, false, protocol, number) && self.side(to, from, true, protocol, number))
    }
}

fn selector() -> impl Strategy<Value = Value> {
    let pod = prop::sample::select(vec!["a", "b", "c"]);
    prop_oneof![
        Just(json!({})),
        pod.clone().prop_map(|it| json!({ "matchLabels": { "pod": it } })),
        (pod, prop::sample::select(vec!["In", "NotIn"])).prop_map(
            |(it, how)| json!({ "matchExpressions": [{ "key": "pod", "operator": how, "values": [it] }] })
        ),
    ]
}

fn namespaces() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(json!({})),
        prop::sample::select(vec!["red", "blue"]).prop_map(|it| json!({ "matchLabels": { "team": it } })),
        Just(json!({ "matchExpressions": [{ "key": "team", "operator": "NotIn", "values": ["red"] }] })),
    ]
}

fn peer() -> impl Strategy<Value = Value> {
    let blocks = vec![
        json!({ "cidr": "198.51.100.0/24", "except": ["198.51.100.128/25"] }),
        json!({ "cidr": "198.51.100.192/26" }),
        json!({ "cidr": "10.0.0.0/8", "except": ["10.0.1.16/28", "10.0.2.0/24"] }),
        json!({ "cidr": "0.0.0.0/0" }),
    ];
    prop_oneof![
        selector().prop_map(|it| json!({ "podSelector": it })),
        namespaces().prop_map(|it| json!({ "namespaceSelector": it })),
        (namespaces(), selector()).prop_map(|(n, p)| json!({ "namespaceSelector": n, "podSelector": p })),
        prop::sample::select(blocks).prop_map(|it| json!({ "ipBlock": it })),
    ]
}

fn port() -> impl Strategy<Value = Value> {
    prop::sample::select(vec![
        json!({ "port": 80 }),
        json!({ "port": 80, "endPort": 8080 }),
        json!({ "port": "web" }),
        json!({ "protocol": "UDP", "port": "dns" }),
        json!({ "protocol": "UDP" }),
        json!({ "protocol": "SCTP", "port": 80 }),
    ])
}

fn rules(side: &'static str) -> impl Strategy<Value = Value> {
    let rule = (prop::collection::vec(peer(), 0..3), prop::collection::vec(port(), 0..3))
        .prop_map(move |(peers, ports)| json!({ side: peers, "ports": ports }));
    prop::collection::vec(rule, 0..3).prop_map(Value::from)
}

fn policy() -> impl Strategy<Value = Value> {
    let types = prop::sample::select(vec![
        Value::Null,
        json!(["Ingress"]),
        json!(["Egress"]),
        json!(["Ingress", "Egress"]),
    ]);
    (prop::sample::select(vec!["x", "y", "z"]), selector(), types, rules("from"), rules("to")).prop_map(
        |(namespace, subject, types, ingress, egress)| {
            json!({
                "apiVersion": "networking.k8s.io/v1",
                "kind": "NetworkPolicy",
                "metadata": { "namespace": namespace },
                "spec": { "podSelector": subject, "policyTypes": types, "ingress": ingress, "egress": egress },
            })
        },
    )
}

fn cluster() -> Manifests {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/truth/cluster.yaml");
    parse(&fs::read_to_string(&path).unwrap(), &path).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_classifier_says_what_the_reference_says(written in prop::collection::vec(policy(), 0..6)) {
        let mut manifests = cluster();
        for (i, mut policy) in written.into_iter().enumerate() {
            policy["metadata"]["name"] = format!("p{i}").into();
            manifests.objects.push(serde_json::from_value::<NetworkPolicy>(policy).unwrap().into());
        }
        let mut oracle = Oracle { namespaces: BTreeMap::new(), policies: Vec::new() };
        let mut ends = Vec::new();
        for object in &manifests.objects {
            match object {
                Object::Namespace(it) => {
                    let name = it.metadata.name.clone().unwrap();
                    oracle.namespaces.insert(name, it.metadata.labels.clone().unwrap_or_default());
                }
                Object::NetworkPolicy(it) => oracle.policies.push(it),
                Object::Pod(pod) => ends.push(End {
                    name: format!("{}/{}", pod.metadata.namespace.clone().unwrap(), pod.metadata.name.clone().unwrap()),
                    pod: Some(pod),
                    address: pod.status.as_ref().unwrap().pod_ip.as_ref().unwrap().parse().unwrap(),
                }),
                _ => {}
            }
        }
        for text in ["198.51.100.1", "198.51.100.129", "198.51.100.200", "10.0.1.17", "8.8.8.8"] {
            ends.push(End { name: text.to_owned(), pod: None, address: text.parse().unwrap() });
        }
        let judge = Judge::of_manifests(&manifests).unwrap();
        let told: BTreeMap<(String, String), String> =
            judge.connections().into_iter().map(|it| ((it.src, it.dst), it.conn)).collect();
        for from in &ends {
            for to in ends.iter().filter(|to| from.pod.is_some() || to.pod.is_some()) {
                let (one, other) = (judge.party(&from.name).unwrap(), judge.party(&to.name).unwrap());
                let mut any = false;
                for (protocol, number) in [("TCP", 6), ("UDP", 17), ("SCTP", 132)] {
                    for port in [1, 53, 79, 80, 81, 8080, 8081, 9090, 65535] {
                        let wanted = oracle.allows(from, to, protocol, port.into());
                        any |= wanted;
                        let said = judge.allows(&one, &other, number, Some(port));
                        prop_assert_eq!(said, wanted, "{} => {} {} {}", from.name, to.name, protocol, port);
                    }
                }
                if from.pod.is_some() && to.pod.is_some() && from.name != to.name {
                    let pair = (format!("{}[Pod]", from.name), format!("{}[Pod]", to.name));
                    let said = judge.ports(&one, &other).to_string();
                    prop_assert_eq!(told.contains_key(&pair), any);
                    prop_assert_eq!(told.get(&pair).cloned().unwrap_or_default(), said);
                }
            }
        }
    }
}
