//! Services: which backend answers a new connection to a service's address.
//!
//! ```text
//!  (network, address, protocol, port) | (protocol, port) at a node's address
//!      -> frontend -> service port -> pool of the policy -> affinity, else Maglev -> backend
//! ```
//!
//! [`Services`] is what a snapshot holds: immutable, looked up without locks, shared with the snapshot before but for the
//! pages that an update touched. [`Directory`] makes it, on the control thread, from [`ServiceSpec`]s, and remembers which
//! number belongs to which backend. Connections that are under way do not come here: they have their backend.

mod affinity;
mod directory;
mod hash;
mod ids;
mod maglev;
mod paged;
mod port;
mod spec;
mod wanted;

#[cfg(all(test, not(penstock_loom)))]
mod tests;

pub use affinity::{Affinity, Timeout};
pub use directory::{Contested, Directory, HealthCheck, Node};
pub use ids::{BackendId, Marks};
pub use port::{Backend, ServicePort};
pub use spec::{
    BackendSpec, BackendState, MAX_BACKENDS, PortSpec, Protocol, ServiceFault, ServiceSpec, Topology,
    TrafficPolicy,
};

use std::net::IpAddr;
use std::sync::Arc;

use penstock_io::Ticks;
use penstock_wire::Vni;

pub use wanted::Wanted;

use hash::Hash;
use paged::{PagedMap, PagedVec};

/// By which of a service's addresses a client came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FrontendKind {
    /// An address inside the cluster.
    ClusterIp,
    /// An address outside the cluster.
    ExternalIp,
    /// A load balancer's address.
    LoadBalancer,
    /// A port of the node.
    NodePort,
}

/// Where a packet came from, as services see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Origin {
    /// An endpoint of this node: all its packets, both ways, pass here.
    Endpoint,
    /// The node itself.
    Node,
    /// An endpoint of another node, through a tunnel.
    Cluster,
    /// Outside the cluster.
    Outside,
}

/// The first packet of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Query {
    /// The network that it came in.
    pub network: Vni,
    /// Where it came from.
    pub origin: Origin,
    /// The client's address.
    pub src: IpAddr,
    /// The client's port.
    pub sport: u16,
    /// The address that it asks.
    pub dst: IpAddr,
    /// The port that it asks.
    pub dport: u16,
    /// The protocol.
    pub protocol: Protocol,
}

/// What becomes of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It asks no service: it goes on as it is.
    NotAService,
    /// It goes to this backend.
    Backend(Chosen),
    /// It is refused at once: a reset for TCP, ICMP port unreachable for the others.
    Reject(RejectCause),
    /// It is dropped.
    Drop(DropCause),
}

/// Why a connection is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RejectCause {
    /// The service has no backend anywhere.
    NoBackend,
    /// The address belongs to a service that has no such port.
    NoSuchPort,
}

/// Why a connection is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DropCause {
    /// The policy is Local and only other nodes have backends: whoever sent it here should try another node.
    NoLocalBackend,
    /// The client is in none of the service's source ranges.
    SourceNotAllowed,
}

/// The backend that was chosen, and what the connection needs on its way there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chosen {
    /// The backend, for as long as the connection lives.
    pub backend: BackendId,
    /// Its address: the connection's new destination.
    pub address: IpAddr,
    /// Its port: the connection's new destination port.
    pub port: u16,
    /// The network that it is in; another than the client's when a node port was asked.
    pub network: Vni,
    /// By which of the service's addresses the client came.
    pub kind: FrontendKind,
    /// Whether the backend is on this node.
    pub is_local: bool,
    /// Whether the backend's node answers the client directly: it must be told, in the tunnel, what the client asked
    /// (see [`penstock_wire::dsr`]).
    pub is_direct: bool,
    /// What becomes of the client's address.
    pub source: SourceNat,
}

/// What becomes of the client's address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SourceNat {
    /// It stays: answers pass here anyway, or need not.
    Keep,
    /// The client is the backend: it must see another address, or it would answer itself.
    Hairpin,
    /// An address of this node stands in, so that the remote backend's answers come back here.
    Node,
}

/// Where a service can be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FrontendKey {
    /// The address.
    pub place: Place,
    /// The protocol.
    pub protocol: Protocol,
    /// The port.
    pub port: u16,
}

/// An address of a frontend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Place {
    /// An address in a network.
    Address(Vni, IpAddr),
    /// Every address of the node.
    Node,
}

impl paged::Key for FrontendKey {
    #[inline(always)]
    fn add_to(&self, hash: Hash) -> Hash {
        let hash = match self.place {
            Place::Address(network, address) => hash.address(address).word(network.get().into()),
            Place::Node => hash.word(u64::MAX),
        };
        hash.word(u64::from(self.port) << 2 | self.protocol as u64)
    }
}

/// An address of a network that belongs to services.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct ClusterIp(Vni, IpAddr);

impl paged::Key for ClusterIp {
    #[inline(always)]
    fn add_to(&self, hash: Hash) -> Hash {
        hash.address(self.1).word(self.0.get().into())
    }
}

/// Where a frontend leads.
#[derive(Clone, Debug)]
struct Frontend {
    port: Arc<ServicePort>,
    kind: FrontendKind,
}

/// The services of a node, to look up.
///
/// A clone shares everything.
#[derive(Clone, Debug, Default)]
pub struct Services {
    frontends: PagedMap<FrontendKey, Frontend>,
    cluster_ips: PagedMap<ClusterIp, ()>,
    /// The service port of each backend, by the backend's number.
    owners: PagedVec<Arc<ServicePort>>,
    node_addresses: Arc<[IpAddr]>,
}

impl Services {
    /// What becomes of a new connection.
    #[inline]
    #[must_use]
    pub fn decide(&self, query: &Query, affinity: &Affinity, now: Ticks) -> Answer {
        match self.frontend(query) {
            Some(frontend) => frontend.port.decide(frontend.kind, query, affinity, now),
            None if self.is_cluster_ip(query.network, query.dst) => Answer::Reject(RejectCause::NoSuchPort),
            None => Answer::NotAService,
        }
    }

    /// What [`Services::decide`] would answer, and whether the client's earlier connections choose the backend; for those
    /// who only ask: the client is not remembered.
    #[must_use]
    pub fn foresee(&self, query: &Query, affinity: &Affinity, now: Ticks) -> (Answer, bool) {
        match self.frontend(query) {
            Some(frontend) => frontend.port.foresee(frontend.kind, query, affinity, now),
            None => (self.decide(query, affinity, now), false),
        }
    }

    /// The service port that a connection asks, and by which kind of address.
    #[must_use]
    pub fn find(&self, query: &Query) -> Option<(&ServicePort, FrontendKind)> {
        self.frontend(query).map(|frontend| (&*frontend.port, frontend.kind))
    }

    #[inline]
    fn frontend(&self, query: &Query) -> Option<&Frontend> {
        let at = |place| FrontendKey { place, protocol: query.protocol, port: query.dport };
        let found = self.frontends.get(&at(Place::Address(query.network, query.dst)));
        found.or_else(|| {
            let is_ours = self.node_addresses.contains(&query.dst);
            is_ours.then(|| self.frontends.get(&at(Place::Node)))?
        })
    }

    /// The backend of this address and port of a service at that address and port, of whichever node the address is: whom
    /// another node says that its clients asked, or an earlier daemon of this one knew.
    #[must_use]
    pub fn backend_of(
        &self,
        network: Vni,
        asked: (IpAddr, u16),
        protocol: Protocol,
        backend: (IpAddr, u16),
    ) -> Option<BackendId> {
        let places = [Place::Address(network, asked.0), Place::Node];
        places.into_iter().find_map(|place| {
            let frontend = self.frontends.get(&FrontendKey { place, protocol, port: asked.1 })?;
            let mut backends = frontend.port.backends().iter();
            backends.find(|it| (it.address, it.port) == backend).map(|it| it.id)
        })
    }

    /// Whether an address of a network is a service's own: nothing else has it, and only its ports answer.
    ///
    /// The other addresses of services, external ones and load balancers', may be shared with something else.
    #[inline]
    #[must_use]
    pub fn is_cluster_ip(&self, network: Vni, address: IpAddr) -> bool {
        self.cluster_ips.get(&ClusterIp(network, address)).is_some()
    }

    /// A backend and its service port; `None` once the backend is gone. What it still has under way may then be ended.
    #[must_use]
    pub fn backend(&self, id: BackendId) -> Option<(&ServicePort, &Backend)> {
        let port = self.owners.get(id.number() as usize)?;
        Some((port, port.backend(id)?))
    }

    /// The addresses that node ports are served at.
    #[must_use]
    pub fn node_addresses(&self) -> &[IpAddr] {
        &self.node_addresses
    }

    /// Where services can be reached, in no order.
    pub fn frontends(&self) -> impl Iterator<Item = (FrontendKey, &ServicePort, FrontendKind)> {
        self.frontends.iter().map(|(key, frontend)| (*key, &*frontend.port, frontend.kind))
    }

    /// How many addresses and ports services can be reached at.
    #[must_use]
    pub fn len(&self) -> usize {
        self.frontends.len()
    }

    /// Whether there is no service.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
