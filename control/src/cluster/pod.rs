//! Pods, namespaces and nodes, pruned to what a dataplane is told of them.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Container, Node as WrittenNode, Pod as WrittenPod};
use penstock_api::model::{Name, Prefix, Protocol};

use super::attachment;
use super::problem::Complaints;
use super::selector::Labels;

/// An object of a namespace, by its names.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Scoped {
    /// The namespace's name.
    pub namespace: String,
    /// Its name there.
    pub name: String,
}

impl Scoped {
    /// The object `name` of `namespace`.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Scoped {
        Scoped { namespace: namespace.into(), name: name.into() }
    }
}

/// `shop/web-0`.
impl std::fmt::Display for Scoped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// A port of a pod that has a name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodPort {
    /// The name.
    pub name: String,
    /// The protocol: TCP, UDP or SCTP.
    pub protocol: Protocol,
    /// The port.
    pub number: u16,
}

/// A pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pod {
    /// Its names.
    pub key: Scoped,
    /// Its labels; pods with the same ones share them.
    pub labels: Arc<Labels>,
    /// The addresses that are its own: what it claims, less what a newer pod does. None of a finished pod or of one that
    /// is on its node's network.
    pub addresses: Vec<IpAddr>,
    /// The same in further networks, by network: what this node attached it by, and what Multus wrote to it (the
    /// annotation `k8s.v1.cni.cncf.io/network-status`) of definitions that lead there. Until that is written, other nodes
    /// know of no such address: peers of policies do not have it.
    pub further: BTreeMap<Name, Vec<IpAddr>>,
    /// The addresses that it says are its own.
    pub(super) claims: Vec<IpAddr>,
    /// The addresses that it has by definitions of further interfaces.
    pub(super) statuses: Vec<(Scoped, Vec<IpAddr>)>,
    /// Its ports that have names, sorted.
    pub ports: Vec<PodPort>,
    /// The node that it runs on; empty before there is one.
    pub node: String,
    /// Whether it is on its node's network, where policies of pods do not reach.
    pub host_network: bool,
    /// Whether all of its containers are over for good.
    pub finished: bool,
    /// When it was created, in seconds since 1970.
    pub created: i64,
}

impl Pod {
    /// Whether policies can select it.
    #[must_use]
    pub fn is_selectable(&self) -> bool {
        !self.host_network && !self.finished
    }

    /// The ports that it has by a name, of one protocol or of all.
    pub fn ports_named(&self, name: &str, protocol: Option<Protocol>) -> impl Iterator<Item = &PodPort> {
        let wanted =
            move |port: &&PodPort| port.name == name && protocol.is_none_or(|it| it == port.protocol);
        self.ports.iter().filter(wanted)
    }

    /// Its addresses in the pods' own network, or in a further one.
    #[must_use]
    pub fn addresses_in(&self, further: Option<&Name>) -> &[IpAddr] {
        match further {
            None => &self.addresses,
            Some(network) => self.further.get(network).map_or(&[], Vec::as_slice),
        }
    }

    /// What of `written` counts.
    pub(super) fn new(key: Scoped, written: &WrittenPod, labels: Arc<Labels>) -> Pod {
        let spec = written.spec.as_ref();
        let status = written.status.as_ref();
        let finished = status
            .and_then(|status| status.phase.as_deref())
            .is_some_and(|phase| matches!(phase, "Succeeded" | "Failed"));
        let host_network = spec.and_then(|spec| spec.host_network).unwrap_or(false);
        let mut claims: Vec<IpAddr> = Vec::new();
        if !finished && !host_network {
            let listed = status.and_then(|status| status.pod_ips.as_ref()).into_iter().flatten();
            let single = status.and_then(|status| status.pod_ip.as_deref());
            let texts = listed.map(|it| it.ip.as_str()).chain(single);
            claims.extend(texts.filter_map(|text| text.parse::<IpAddr>().ok()));
            claims.sort_unstable();
            claims.dedup();
        }
        let statuses =
            if finished || host_network { Vec::new() } else { attachment::statuses(written, &key.namespace) };
        Pod {
            key,
            labels,
            addresses: Vec::new(),
            further: BTreeMap::new(),
            claims,
            statuses,
            ports: spec
                .map(|spec| named_ports(&spec.containers, spec.init_containers.as_deref()))
                .unwrap_or_default(),
            node: spec.and_then(|spec| spec.node_name.clone()).unwrap_or_default(),
            host_network,
            finished,
            created: written.metadata.creation_timestamp.as_ref().map_or(0, |time| time.0.as_second()),
        }
    }
}

/// The named ports of containers and of the initial containers that stay (sidecars, `restartPolicy: Always`).
fn named_ports(containers: &[Container], initial: Option<&[Container]>) -> Vec<PodPort> {
    let stays = |container: &&Container| container.restart_policy.as_deref() == Some("Always");
    let all = containers.iter().chain(initial.unwrap_or_default().iter().filter(stays));
    let mut ports: Vec<PodPort> = all
        .flat_map(|container| container.ports.iter().flatten())
        .filter_map(|port| {
            Some(PodPort {
                name: port.name.clone().filter(|name| !name.is_empty())?,
                protocol: protocol_of(port.protocol.as_deref())?,
                number: u16::try_from(port.container_port).ok().filter(|number| *number > 0)?,
            })
        })
        .collect();
    ports.sort_unstable();
    ports.dedup();
    ports
}

/// The protocol of a port as Kubernetes writes it; TCP when nothing is written, none when it is not one that has ports.
pub(super) fn protocol_of(written: Option<&str>) -> Option<Protocol> {
    match written.unwrap_or("TCP") {
        "" | "TCP" => Some(Protocol::TCP),
        "UDP" => Some(Protocol::UDP),
        "SCTP" => Some(Protocol::SCTP),
        _ => None,
    }
}

/// A node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Its labels.
    pub labels: Labels,
    /// Its addresses inside the cluster, in their order.
    pub internal: Vec<IpAddr>,
    /// All of its addresses, sorted.
    pub addresses: Vec<IpAddr>,
    /// The addresses of its pods.
    pub pod_prefixes: Vec<Prefix>,
}

impl Node {
    /// What of `written` counts.
    pub(super) fn new(written: &WrittenNode, complaints: &mut Complaints) -> Node {
        let listed = written.status.as_ref().and_then(|status| status.addresses.as_ref());
        let of = |kinds: &[&str]| -> Vec<IpAddr> {
            let wanted = listed.into_iter().flatten().filter(|it| kinds.contains(&it.type_.as_str()));
            wanted.filter_map(|it| it.address.parse().ok()).collect()
        };
        let mut addresses = of(&["InternalIP", "ExternalIP"]);
        addresses.sort_unstable();
        addresses.dedup();
        let spec = written.spec.as_ref();
        let several = spec.and_then(|spec| spec.pod_cidrs.as_ref()).into_iter().flatten();
        let single = spec.and_then(|spec| spec.pod_cidr.as_ref());
        let mut pod_prefixes: Vec<Prefix> = Vec::new();
        for text in several.chain(single) {
            match complaints.prefix("spec.podCIDRs", text) {
                Some(prefix) if !pod_prefixes.contains(&prefix) => pod_prefixes.push(prefix),
                _ => {}
            }
        }
        Node {
            labels: written.metadata.labels.clone().unwrap_or_default(),
            internal: of(&["InternalIP"]),
            addresses,
            pod_prefixes,
        }
    }
}
