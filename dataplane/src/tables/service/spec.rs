//! A service as it is wanted.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use penstock_wire::{Vni, proto};

/// The protocols that services speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// Its IP protocol number.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Protocol::Tcp => proto::TCP,
            Protocol::Udp => proto::UDP,
            Protocol::Sctp => proto::SCTP,
        }
    }

    /// The protocol of an IP protocol number; `None` for one that services do not speak.
    #[inline]
    #[must_use]
    pub const fn of(number: u8) -> Option<Protocol> {
        match number {
            proto::TCP => Some(Protocol::Tcp),
            proto::UDP => Some(Protocol::Udp),
            proto::SCTP => Some(Protocol::Sctp),
            _ => None,
        }
    }
}

/// Which backends a traffic policy lets a node use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum TrafficPolicy {
    /// All.
    #[default]
    Cluster,
    /// Those of this node only.
    Local,
}

/// Which backends are preferred as long as one is ready.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Topology {
    /// None.
    #[default]
    Anywhere,
    /// Those of the node's zone.
    SameZone,
    /// Those of the node, then those of its zone.
    SameNode,
}

/// Whether a backend takes new connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum BackendState {
    /// It does.
    #[default]
    Ready,
    /// It is on its way out and still answers: it takes new connections only while no other backend is ready
    /// (KEP-1669). One that no longer answers is not listed at all.
    Terminating,
}

/// A backend.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct BackendSpec {
    /// Its address.
    pub address: IpAddr,
    /// Its port.
    pub port: u16,
    /// Whether it is on this node.
    pub is_local: bool,
    /// The zone of its node.
    pub zone: Option<String>,
    /// Whether it takes new connections.
    pub state: BackendState,
    /// Its share of the connections, beside the others'; zero for none.
    pub weight: u32,
}

/// A port of a service.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PortSpec {
    /// The protocol.
    pub protocol: Protocol,
    /// The port at the service's addresses.
    pub port: u16,
    /// The port at the node's addresses.
    pub node_port: Option<u16>,
    /// Who answers.
    pub backends: Vec<BackendSpec>,
}

/// A service.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ServiceSpec {
    /// Its name, namespace included: no two services share one.
    pub name: String,
    /// The network that its addresses and backends are in.
    pub network: Vni,
    /// Addresses inside the cluster.
    pub cluster_ips: Vec<IpAddr>,
    /// Addresses outside the cluster that lead here.
    pub external_ips: Vec<IpAddr>,
    /// Addresses of load balancers that lead here.
    pub load_balancer_ips: Vec<IpAddr>,
    /// Its ports.
    pub ports: Vec<PortSpec>,
    /// For how long after its last connection a client meets the same backend again.
    pub affinity: Option<Duration>,
    /// Which backends serve who asks a cluster address.
    pub internal_policy: TrafficPolicy,
    /// Which backends serve who asks from outside.
    pub external_policy: TrafficPolicy,
    /// Which backends are preferred under [`TrafficPolicy::Cluster`].
    pub topology: Topology,
    /// Whether backends of other nodes answer clients outside the cluster directly.
    pub is_direct: bool,
    /// The node port that tells a load balancer whether this node has ready backends.
    pub health_check_port: Option<u16>,
    /// Who may use the load balancers' addresses; empty for everybody.
    pub source_ranges: Vec<IpNet>,
}

/// Why a service is refused. The one of the same name, if there is one, goes on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ServiceFault {
    /// A port is zero.
    #[error("service {service}: port 0 cannot be reached; give a port from 1 to 65535")]
    PortZero {
        /// The service.
        service: String,
    },
    /// Two ports are the same.
    #[error("service {service}: {protocol:?} port {port} is listed twice; merge the two")]
    PortTwice {
        /// The service.
        service: String,
        /// The protocol.
        protocol: Protocol,
        /// The port.
        port: u16,
    },
    /// Two backends are the same.
    #[error(
        "service {service}: backend {address} port {backend_port} of {protocol:?} port {port} is listed twice; merge the two"
    )]
    BackendTwice {
        /// The service.
        service: String,
        /// The service port's protocol.
        protocol: Protocol,
        /// The service port.
        port: u16,
        /// The backend's address.
        address: IpAddr,
        /// The backend's port.
        backend_port: u16,
    },
    /// A port has more backends than a table takes.
    #[error(
        "service {service}: {protocol:?} port {port} has {count} backends, and {max} are the most; split the service"
    )]
    TooManyBackends {
        /// The service.
        service: String,
        /// The service port's protocol.
        protocol: Protocol,
        /// The service port.
        port: u16,
        /// How many there are.
        count: usize,
        /// How many may be.
        max: usize,
    },
    /// The node has no numbers for more backends.
    #[error(
        "service {service}: all {max} backend numbers are in use or still held by connections; remove services, or wait for connections of removed ones to end"
    )]
    OutOfIds {
        /// The service.
        service: String,
        /// How many numbers there are.
        max: u32,
    },
}

/// The most backends of one service port: their positions fit 16 bits and leave one to mean none.
pub const MAX_BACKENDS: usize = u16::MAX as usize;

impl ServiceSpec {
    /// Finds what is wrong with the service itself.
    pub(super) fn check(&self) -> Result<(), ServiceFault> {
        let mut seen = std::collections::HashSet::new();
        for spec in &self.ports {
            let PortSpec { protocol, port, .. } = *spec;
            let service = || self.name.clone();
            if port == 0 || spec.node_port == Some(0) || spec.backends.iter().any(|backend| backend.port == 0)
            {
                return Err(ServiceFault::PortZero { service: service() });
            }
            if !seen.insert((protocol, port)) {
                return Err(ServiceFault::PortTwice { service: service(), protocol, port });
            }
            let count = spec.backends.len();
            if count > MAX_BACKENDS {
                let (service, max) = (service(), MAX_BACKENDS);
                return Err(ServiceFault::TooManyBackends { service, protocol, port, count, max });
            }
            let mut places: Vec<_> = spec.backends.iter().map(|one| (one.address, one.port)).collect();
            places.sort_unstable();
            if let Some(&[(address, backend_port), _]) = places.array_windows().find(|[a, b]| a == b) {
                let service = service();
                return Err(ServiceFault::BackendTwice { service, protocol, port, address, backend_port });
            }
        }
        Ok(())
    }
}
