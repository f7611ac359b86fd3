//! Our own resources, pruned and checked.

use std::net::IpAddr;

use penstock_api::model::{Encapsulation, PortRange, Prefix};
use penstock_wire::Vni;

use super::policy::{Namespaces, PodSelector};
use super::problem::Complaints;
use super::selector::Selector;
use crate::kubernetes;

/// An overlay network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    /// Its number on the wire.
    pub vni: Vni,
    /// The addresses that belong to it; those of the nodes' pods if it is empty and the network is the default one.
    pub prefixes: Vec<Prefix>,
    /// The largest IP packet in bytes.
    pub mtu: Option<u16>,
    /// How packets travel between nodes.
    pub encapsulation: Encapsulation,
    /// Whether nodes of one subnet do without.
    pub cross_subnet: bool,
    /// Whether pods leave under their node's address.
    pub nat_outgoing: bool,
}

impl Network {
    pub(super) fn new(spec: &kubernetes::NetworkSpec, complaints: &mut Complaints) -> Option<Network> {
        let Some(vni) = Vni::new(spec.vni).filter(|vni| vni.get() > 0) else {
            let problem = format!("{} is no number of a network, so that there is none", spec.vni);
            complaints.say("spec.vni", problem, "choose a number from 1 to 16777215");
            return None;
        };
        Some(Network {
            vni,
            prefixes: complaints.prefixes("spec.prefixes", &spec.prefixes),
            mtu: spec.mtu,
            encapsulation: match spec.encapsulation {
                kubernetes::Encapsulation::Vxlan => Encapsulation::Vxlan,
                kubernetes::Encapsulation::Geneve => Encapsulation::Geneve,
                kubernetes::Encapsulation::None => Encapsulation::None,
            },
            cross_subnet: spec.cross_subnet,
            nat_outgoing: spec.nat_outgoing,
        })
    }
}

/// Addresses under which chosen pods leave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Egress {
    /// The addresses, at most one of each family.
    pub addresses: Vec<IpAddr>,
    /// The pods.
    pub pods: PodSelector,
    /// The nodes that the addresses are routed to.
    pub nodes: Selector,
    /// The destinations that are reached under the pods' own addresses, besides their network.
    pub exclusions: Vec<Prefix>,
}

impl Egress {
    pub(super) fn new(spec: &kubernetes::EgressIPSpec, complaints: &mut Complaints) -> Option<Egress> {
        let mut addresses = complaints.addresses("spec.addresses", &spec.addresses);
        for v4 in [true, false] {
            if addresses.iter().filter(|address| address.is_ipv4() == v4).count() > 1 {
                let problem = "holds several addresses of one family; the first is used";
                complaints.say("spec.addresses", problem, "name one of each family at most");
                let first = addresses.iter().copied().find(|address| address.is_ipv4() == v4);
                addresses.retain(|address| address.is_ipv4() != v4 || Some(*address) == first);
            }
        }
        addresses.sort_unstable();
        let namespaces = complaints.selector("spec.namespaceSelector", spec.namespace_selector.as_ref())?;
        Some(Egress {
            addresses,
            pods: PodSelector {
                namespaces: Namespaces::Matching(namespaces),
                pods: complaints.selector("spec.podSelector", spec.pod_selector.as_ref())?,
            },
            nodes: complaints.selector("spec.nodeSelector", spec.node_selector.as_ref())?,
            exclusions: complaints.prefixes("spec.exclusions", &spec.exclusions),
        })
    }
}

/// What differs from node to node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeSettings {
    /// The nodes.
    pub nodes: Selector,
    /// The uplink's name in the node's file.
    pub uplink: Option<String>,
    /// Where tunnelled packets are sent to.
    pub tunnel_addresses: Vec<IpAddr>,
    /// The source ports of pods outside.
    pub nat_ports: Option<PortRange>,
    /// Whether remote backends answer clients outside themselves.
    pub direct_server_return: bool,
}

impl NodeSettings {
    pub(super) fn new(
        spec: &kubernetes::NodeConfigSpec,
        complaints: &mut Complaints,
    ) -> Option<NodeSettings> {
        let nat_ports = spec.nat_ports.as_ref().and_then(|text| match text.parse() {
            Ok(ports) => Some(ports),
            Err(invalid) => {
                let problem = format!("{invalid}; the default is used");
                complaints.say("spec.natPorts", problem, "write two ports with a dash, as in 49152-65535");
                None
            }
        });
        Some(NodeSettings {
            nodes: complaints.selector("spec.nodeSelector", spec.node_selector.as_ref())?,
            uplink: spec.uplink.clone(),
            tunnel_addresses: complaints.addresses("spec.tunnelAddresses", &spec.tunnel_addresses),
            nat_ports,
            direct_server_return: spec.direct_server_return,
        })
    }
}
