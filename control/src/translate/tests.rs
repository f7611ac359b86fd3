//! Policies on further networks, judged by the classifier that dataplanes ask.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use penstock_api::model::{Endpoint, Key as SaidKey, Object as Said, RouteTarget};
use penstock_policy::{Direction, Packet, Rules, compile};
use serde_json::json;

use super::{Settings, Translation, translate};
use crate::cluster::{Change, Cluster};
use crate::kubernetes::{Key, Kind};
use crate::manifests::parse;

const UDP: u8 = 17;

/// Two nodes, a network `fast`, and a definition that leads there.
const GROUND: &str = r#"
{ apiVersion: v1, kind: Node, metadata: { name: a }, spec: { podCIDRs: [10.1.0.0/24] }, status: { addresses: [{ type: InternalIP, address: 192.0.2.1 }] } }
---
{ apiVersion: v1, kind: Node, metadata: { name: b }, spec: { podCIDRs: [10.1.1.0/24] }, status: { addresses: [{ type: InternalIP, address: 192.0.2.2 }] } }
---
{ apiVersion: penstock.dev/v1alpha1, kind: Network, metadata: { name: fast }, spec: { vni: 200, prefixes: [10.200.0.0/16] } }
---
{ apiVersion: k8s.cni.cncf.io/v1, kind: NetworkAttachmentDefinition, metadata: { namespace: telco, name: fast },
  spec: { config: '{"type":"penstock-cni","network":"fast","interface":"vhost-user"}' } }
"#;

/// Pods of `app: rx` take datagrams to port 9 from those of `app: tx`, and anything from a block.
const POLICY: &str = r#"
{ apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: { namespace: shop, name: guard }, spec: {
    podSelector: { matchLabels: { app: rx } }, policyTypes: [Ingress],
    ingress: [{ from: [{ podSelector: { matchLabels: { app: tx } } }], ports: [{ protocol: UDP, port: 9 }] },
              { from: [{ ipBlock: { cidr: 10.200.77.0/24 } }] }] } }
"#;

/// A pod, with an address by `telco/fast` if there is one.
fn pod(name: &str, app: &str, node: &str, home: &str, fast: Option<&str>) -> String {
    let status = json!([
        { "name": "penstock", "interface": "eth0", "ips": [home], "default": true },
        { "name": "telco/fast", "interface": "net1", "ips": fast.into_iter().collect::<Vec<_>>() },
    ]);
    let metadata = json!({
        "namespace": "shop", "name": name, "labels": { "app": app },
        "annotations": { "k8s.v1.cni.cncf.io/network-status": status.to_string() },
    });
    let spec = json!({ "nodeName": node, "containers": [] });
    let status = json!({ "phase": "Running", "podIPs": [{ "ip": home }] });
    json!({ "apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec, "status": status })
        .to_string()
}

/// What a node's dataplane is told, step by step.
struct Told {
    cluster: Cluster,
    translation: Translation,
}

impl Told {
    fn new() -> Told {
        let cluster = Cluster::new(Settings::network());
        let translation = translate(&cluster, Settings::of_node("a"));
        let mut told = Told { cluster, translation };
        told.apply(GROUND);
        told
    }

    fn follow(&mut self, change: &Change) {
        self.translation.follow(&self.cluster, change);
        let fresh = translate(&self.cluster, Settings::of_node("a"));
        assert_eq!(self.translation.desired(), fresh.desired());
    }

    fn apply(&mut self, yaml: &str) {
        let mut change = Change::default();
        for object in &parse(yaml, Path::new("t.yaml")).unwrap().objects {
            change.merge(self.cluster.apply(object));
        }
        self.follow(&change);
    }

    fn remove(&mut self, kind: Kind, namespace: &str, name: &str) {
        let change = self.cluster.remove(&Key::new(kind, namespace, name));
        self.follow(&change);
    }

    /// Attaches a pod of this node to `fast`.
    fn attach(&mut self, pod: &str, address: &str) {
        let endpoint = json!({
            "name": format!("shop/{pod}/net1"), "network": "fast", "attachment": { "veth": { "interface": "ps0" } },
            "mac": "02:00:00:00:00:01", "addresses": [address],
        });
        let endpoint: Endpoint = serde_json::from_value(endpoint).unwrap();
        let change = self.cluster.attach(endpoint);
        self.follow(&change);
    }

    /// Whether a datagram may pass between the attached pod and an address.
    fn passes(&self, pod: &str, direction: Direction, other: &str, port: u16) -> bool {
        let mut rules = Rules::default();
        for object in self.translation.desired().values() {
            match &**object {
                Said::Identity(identity) => rules.identities.push(Arc::new(identity.into())),
                Said::Tier(tier) => rules.tiers.push(tier.into()),
                Said::Policy(policy) => rules.policies.push(Arc::new(policy.into())),
                Said::Endpoint(endpoint) => rules.endpoints.push(penstock_policy::Endpoint {
                    name: endpoint.name.to_string(),
                    network: endpoint.network.to_string(),
                    addresses: endpoint.addresses.clone(),
                }),
                _ => {}
            }
        }
        let program = compile(&Arc::new(rules), None).unwrap();
        let other: IpAddr = other.parse().unwrap();
        let peer = program.peers("fast").cloned().unwrap_or_default().look_up(other);
        let subject = program.endpoint(&format!("shop/{pod}/net1")).expect("it is attached");
        let verdict = subject.classify(direction, &Packet { peer, protocol: UDP, key: Some(port) });
        subject.answer(direction, verdict).allow
    }

    fn takes(&self, pod: &str, from: &str, port: u16) -> bool {
        self.passes(pod, Direction::Ingress, from, port)
    }

    fn route(&self, prefix: &str) -> Option<RouteTarget> {
        let key = SaidKey::Route { network: "fast".parse().unwrap(), prefix: prefix.parse().unwrap() };
        self.translation.desired().get(&key).map(|route| match &**route {
            Said::Route(route) => route.via.clone(),
            other => panic!("{other:?}"),
        })
    }
}

#[test]
fn a_pods_policies_hold_on_its_further_networks_for_peers_that_are_known_there() {
    let mut told = Told::new();
    told.apply(POLICY);
    told.apply(&pod("rx", "rx", "a", "10.1.0.7", None));
    told.apply(&pod("tx", "tx", "b", "10.1.1.7", None));
    told.attach("rx", "10.200.1.7");
    // As long as nobody said which address the peer has there, it is a stranger.
    assert!(!told.takes("rx", "10.200.2.7", 9) && !told.takes("rx", "10.1.1.7", 9));
    assert!(told.takes("rx", "10.200.77.1", 5), "a block is what is written");
    assert!(
        told.passes("rx", Direction::Egress, "10.200.2.7", 9),
        "the policy says nothing of what goes out"
    );
    told.apply(&pod("tx", "tx", "b", "10.1.1.7", Some("10.200.2.7")));
    assert!(told.takes("rx", "10.200.2.7", 9) && !told.takes("rx", "10.200.2.7", 10));
    assert!(!told.takes("rx", "10.200.2.8", 9) && !told.takes("rx", "10.1.1.7", 9));
    // Whoever has the address later is somebody else.
    told.apply(&pod("tx", "other", "b", "10.1.1.7", Some("10.200.2.7")));
    assert!(!told.takes("rx", "10.200.2.7", 9));
    told.apply(&pod("tx", "tx", "b", "10.1.1.7", Some("10.200.2.7")));
    assert!(told.takes("rx", "10.200.2.7", 9));
    told.remove(Kind::NetworkAttachmentDefinition, "telco", "fast");
    assert!(!told.takes("rx", "10.200.2.7", 9), "an annotation alone is no word");
    told.remove(Kind::NetworkPolicy, "shop", "guard");
    assert!(told.takes("rx", "10.200.2.7", 10), "nothing selects it any more");
}

#[test]
fn who_is_attached_to_a_further_network_before_it_is_known_is_closed_there() {
    let mut told = Told::new();
    told.attach("rx", "10.200.1.7");
    assert!(!told.takes("rx", "10.200.2.7", 9));
    assert!(!told.passes("rx", Direction::Egress, "10.200.2.7", 9));
    told.apply(&pod("rx", "rx", "a", "10.1.0.7", None));
    assert!(told.takes("rx", "10.200.2.7", 9));
    assert!(told.passes("rx", Direction::Egress, "10.200.2.7", 9));
    told.remove(Kind::Pod, "shop", "rx");
    assert!(!told.takes("rx", "10.200.2.7", 9));
}

#[test]
fn policies_of_the_cluster_hold_on_further_networks() {
    let mut told = Told::new();
    told.apply(&pod("rx", "rx", "a", "10.1.0.7", None));
    told.apply(&pod("tx", "tx", "b", "10.1.1.7", Some("10.200.2.7")));
    told.attach("rx", "10.200.1.7");
    told.apply(
        "{ apiVersion: policy.networking.k8s.io/v1alpha2, kind: ClusterNetworkPolicy, metadata: { name: c }, spec: {
             tier: Admin, priority: 1, subject: { namespaces: {} },
             ingress: [{ action: Deny, from: [{ pods: { namespaceSelector: {}, podSelector: { matchLabels: { app: tx } } } }] }],
             egress: [{ action: Deny, to: [{ nodes: {} }] }] } }",
    );
    assert!(!told.takes("rx", "10.200.2.7", 9) && told.takes("rx", "10.200.2.8", 9));
    assert!(!told.passes("rx", Direction::Egress, "192.0.2.2", 9));
    assert!(told.passes("rx", Direction::Egress, "192.0.2.9", 9));
}

#[test]
fn other_nodes_pods_are_reached_on_further_networks_whoever_gave_them_addresses() {
    let mut told = Told::new();
    told.apply(&pod("tx", "tx", "b", "10.1.1.7", Some("10.200.2.7")));
    assert_eq!(told.route("10.200.2.7/32"), Some(RouteTarget::Peer("b".parse().unwrap())));
    told.apply(
        "{ apiVersion: penstock.dev/v1alpha1, kind: IPBlock, metadata: { name: p },
           spec: { pool: p, network: fast, prefix: 10.200.2.0/26, node: b } }",
    );
    assert_eq!(told.route("10.200.2.7/32"), None, "its node has the block");
    assert_eq!(told.route("10.200.2.0/26"), Some(RouteTarget::Peer("b".parse().unwrap())));
    told.apply(&pod("tx", "tx", "b", "10.1.1.7", Some("10.200.3.7")));
    assert_eq!(told.route("10.200.3.7/32"), Some(RouteTarget::Peer("b".parse().unwrap())));
    told.remove(Kind::Pod, "shop", "tx");
    assert_eq!(told.route("10.200.3.7/32"), None);
}

#[test]
fn a_definition_of_a_network_that_is_not_there_is_complained_about() {
    let mut told = Told::new();
    assert_eq!(told.translation.refusals().count(), 0);
    told.remove(Kind::Network, "", "fast");
    let said: Vec<String> = told.translation.refusals().map(|(key, it)| it.of(key)).collect();
    assert!(
        said.iter().any(|it| it.contains("telco/fast") && it.contains("network fast, which is not there")),
        "{said:?}"
    );
}
