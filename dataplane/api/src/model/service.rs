//! Addresses that stand for others: services with their backends, and what leaves the cluster under another address.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::{Name, PortRange, Prefix, Protocol};

/// A protocol that services can translate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ServiceProtocol {
    /// TCP, RFC 9293.
    #[default]
    Tcp,
    /// UDP, RFC 768.
    Udp,
    /// SCTP, RFC 9260.
    Sctp,
}

impl From<ServiceProtocol> for Protocol {
    fn from(protocol: ServiceProtocol) -> Self {
        match protocol {
            ServiceProtocol::Tcp => Self::TCP,
            ServiceProtocol::Udp => Self::UDP,
            ServiceProtocol::Sctp => Self::SCTP,
        }
    }
}

/// One port of a service.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct ServicePort {
    /// The port's name in its service; backends give their own port by it.
    pub name: Name,
    /// The protocol.
    #[serde(default)]
    pub protocol: ServiceProtocol,
    /// The port at the service's addresses.
    pub port: u16,
    /// The port at the nodes' addresses; none when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_port: Option<u16>,
}

/// Whose backends a service's clients are sent to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TrafficPolicy {
    /// Those of every node.
    #[default]
    Cluster,
    /// Those of this node; where there is none, packets are dropped.
    Local,
}

words!(TrafficPolicy { Cluster => "cluster", Local => "local" });

/// Which backends are taken as long as there are any.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TopologyPreference {
    /// No backend is preferred.
    #[default]
    None,
    /// Those meant for this node's zone.
    Zone,
    /// Those on this node, then those meant for its zone.
    Node,
}

words!(TopologyPreference { None => "none", Zone => "zone", Node => "node" });

/// What keeps a client at its backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Affinity {
    /// The client's address.
    #[serde(rename_all = "kebab-case")]
    ClientIp {
        /// Seconds without a new connection after which it does not any more; Kubernetes takes 10800 by default.
        #[serde(default = "Affinity::default_timeout")]
        timeout_s: u32,
    },
}

impl Affinity {
    /// Three hours in seconds, the default of Kubernetes (`DefaultClientIPServiceAffinitySeconds`).
    fn default_timeout() -> u32 {
        10800
    }
}

/// Addresses and ports behind which backends stand.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Service {
    /// The service's key.
    pub name: Name,
    /// The network of its addresses and backends.
    pub network: Name,
    /// Addresses inside the cluster.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cluster_ips: Vec<IpAddr>,
    /// Addresses outside that somebody else routes here.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub external_ips: Vec<IpAddr>,
    /// Addresses that a load balancer was given.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub load_balancer_ips: Vec<IpAddr>,
    /// The ports.
    pub ports: Vec<ServicePort>,
    /// Whether a client keeps its backend; not when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub affinity: Option<Affinity>,
    /// Whose backends serve clients inside the cluster.
    #[serde(default)]
    pub internal_policy: TrafficPolicy,
    /// Whose backends serve clients outside: node ports, external and load balancer addresses.
    #[serde(default)]
    pub external_policy: TrafficPolicy,
    /// Which backends are preferred.
    #[serde(default)]
    pub topology: TopologyPreference,
    /// Whether a remote backend answers clients outside itself, past this node.
    #[serde(default)]
    pub dsr: bool,
    /// The TCP port at the nodes' addresses that tells whether this node has backends; none when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health_check_node_port: Option<u16>,
    /// The clients that load balancer addresses answer; all when empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub source_ranges: Vec<Prefix>,
}

impl Service {
    /// All of its addresses.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.cluster_ips.iter().chain(&self.external_ips).chain(&self.load_balancer_ips).copied()
    }
}

/// What a backend may be given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BackendState {
    /// New connections.
    #[default]
    Ready,
    /// It leaves, and still serves: keeps its connections, gets new ones only while no other backend is ready.
    Terminating,
    /// Keeps its connections, gets no new ones.
    NotReady,
}

words!(BackendState { Ready => "ready", Terminating => "terminating", NotReady => "not-ready" });

/// One place where a service is served.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Backend {
    /// Its address.
    pub address: IpAddr,
    /// What it may be given.
    #[serde(default)]
    pub state: BackendState,
    /// The node that it runs on, when that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<Name>,
    /// The zone that it is in, when that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<Name>,
    /// The zones whose clients it is meant for; its own when empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub for_zones: Vec<Name>,
    /// Its share among the backends, at least 1.
    #[serde(default = "Backend::default_weight")]
    pub weight: u16,
}

impl Backend {
    /// The share of a backend that names none: 1, so that all are alike.
    pub(crate) fn default_weight() -> u16 {
        1
    }
}

/// The backends' port for one of the service's.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct BackendPort {
    /// The name of the service's port.
    pub name: Name,
    /// The port at the backends.
    pub port: u16,
}

/// A slice of a service's backends: those with the same ports.
///
/// Backends come and go far more often than services change. They are objects of their own so that a change sends
/// one slice, and slices so that a service of thousands of backends does not send them all.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Backends {
    /// The service's name.
    pub service: Name,
    /// The slice's name in its service; `main` when absent.
    #[serde(default = "Backends::default_slice")]
    pub slice: Name,
    /// The ports at which the members serve; the service's ports of other names have no backend here.
    pub ports: Vec<BackendPort>,
    /// The backends.
    #[serde(default)]
    pub members: Vec<Backend>,
}

impl Backends {
    /// The most members of one slice: what keeps a change small. Kubernetes makes slices of 100, at most 1000.
    pub const MAX_MEMBERS: usize = 1000;

    /// The name of a slice that is given none: `main`.
    pub fn default_slice() -> Name {
        "main".parse().expect("a valid name")
    }
}

/// Addresses under which a network's endpoints leave the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct NatPool {
    /// The pool's key.
    pub name: Name,
    /// The network of the endpoints.
    pub network: Name,
    /// The sources that are translated. Of the pools that have a source, the one with the longest prefix decides alone.
    pub sources: Vec<Prefix>,
    /// The destinations that are not: what is inside the cluster.
    #[serde(default)]
    pub exclusions: Vec<Prefix>,
    /// The addresses outside; those of the uplink that a packet leaves by when empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<IpAddr>,
    /// The source ports outside. The kernel must be kept away from them where the addresses are its own.
    #[serde(default = "NatPool::default_ports")]
    pub ports: PortRange,
    /// Whether a source keeps its address and port outside for every destination (RFC 4787, section 4.1).
    #[serde(default)]
    pub endpoint_independent: bool,
}

impl NatPool {
    /// The ports of a pool that names none, [`PortRange::DYNAMIC`]: the kernel's own connections keep 32768 to 49151.
    pub fn default_ports() -> PortRange {
        PortRange::DYNAMIC
    }
}

/// One address under which chosen endpoints leave the cluster, before any pool is asked.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct EgressIp {
    /// The object's key.
    pub name: Name,
    /// The network of the endpoints.
    pub network: Name,
    /// The identities whose members are meant.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub identities: Vec<Name>,
    /// The endpoints that are meant besides; one that is not there is nobody.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub endpoints: Vec<Name>,
    /// The destinations that are reached under the endpoints' own addresses: what is inside the cluster.
    #[serde(default)]
    pub exclusions: Vec<Prefix>,
    /// The address outside.
    pub address: IpAddr,
    /// The source ports outside.
    #[serde(default = "NatPool::default_ports")]
    pub ports: PortRange,
}
