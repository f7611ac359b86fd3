//! Objects of any kind, their keys, and the tables of a file that hold them.

use std::collections::BTreeSet;
use std::fmt;

use serde::Serialize;

use super::{
    Backends, EgressIp, Endpoint, Identity, Name, NatPool, Network, Peer, Policy, Prefix, Route, Service,
    Tier, Uplink,
};

/// One keyed object of the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Object {
    /// An interface of the node that carries the underlay.
    Uplink(Uplink),
    /// An overlay network.
    Network(Network),
    /// A named set of addresses.
    Identity(Identity),
    /// A pod's or a VM's attachment.
    Endpoint(Endpoint),
    /// Another node.
    Peer(Peer),
    /// A route in a network.
    Route(Route),
    /// A level of policies.
    Tier(Tier),
    /// Rules for a set of endpoints.
    Policy(Policy),
    /// Addresses and ports behind which backends stand.
    Service(Service),
    /// A slice of a service's backends.
    Backends(Backends),
    /// Addresses under which endpoints leave the cluster.
    NatPool(NatPool),
    /// The address under which chosen endpoints leave the cluster.
    EgressIp(EgressIp),
}

impl Object {
    /// The object's key.
    pub fn key(&self) -> Key {
        match self {
            Self::Uplink(uplink) => Key::Uplink(uplink.name.clone()),
            Self::Network(network) => Key::Network(network.name.clone()),
            Self::Identity(identity) => Key::Identity(identity.name.clone()),
            Self::Endpoint(endpoint) => Key::Endpoint(endpoint.name.clone()),
            Self::Peer(peer) => Key::Peer(peer.name.clone()),
            Self::Route(route) => Key::Route { network: route.network.clone(), prefix: route.prefix },
            Self::Tier(tier) => Key::Tier(tier.name.clone()),
            Self::Policy(policy) => Key::Policy(policy.name.clone()),
            Self::Service(service) => Key::Service(service.name.clone()),
            Self::Backends(backends) => {
                Key::Backends { service: backends.service.clone(), slice: backends.slice.clone() }
            }
            Self::NatPool(nat_pool) => Key::NatPool(nat_pool.name.clone()),
            Self::EgressIp(egress_ip) => Key::EgressIp(egress_ip.name.clone()),
        }
    }
}

/// The key of one object. Keys order as objects may be created: what is named comes before what names it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    /// An uplink's name.
    Uplink(Name),
    /// A network's name.
    Network(Name),
    /// An identity's name.
    Identity(Name),
    /// An endpoint's name.
    Endpoint(Name),
    /// A peer's name.
    Peer(Name),
    /// A route's network and prefix.
    Route {
        /// The network that the route is in.
        network: Name,
        /// The destination.
        prefix: Prefix,
    },
    /// A tier's name.
    Tier(Name),
    /// A policy's name.
    Policy(Name),
    /// A service's name.
    Service(Name),
    /// A slice of a service's backends.
    Backends {
        /// The service's name.
        service: Name,
        /// The slice's name in its service.
        slice: Name,
    },
    /// A NAT pool's name.
    NatPool(Name),
    /// An egress address' name.
    EgressIp(Name),
}

/// `endpoint "web"`, or `route 10.1.0.0/16 in network "blue"`.
impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uplink(name) => write!(f, "uplink \"{name}\""),
            Self::Network(name) => write!(f, "network \"{name}\""),
            Self::Identity(name) => write!(f, "identity \"{name}\""),
            Self::Endpoint(name) => write!(f, "endpoint \"{name}\""),
            Self::Peer(name) => write!(f, "peer \"{name}\""),
            Self::Route { network, prefix } => write!(f, "route {prefix} in network \"{network}\""),
            Self::Tier(name) => write!(f, "tier \"{name}\""),
            Self::Policy(name) => write!(f, "policy \"{name}\""),
            Self::Service(name) => write!(f, "service \"{name}\""),
            Self::Backends { service, slice } => {
                write!(f, "backends \"{slice}\" of service \"{service}\"")
            }
            Self::NatPool(name) => write!(f, "nat-pool \"{name}\""),
            Self::EgressIp(name) => write!(f, "egress-ip \"{name}\""),
        }
    }
}

/// Objects sorted into the tables of a TOML file.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Tables {
    /// `[[uplink]]`
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub uplink: Vec<Uplink>,
    /// `[[network]]`
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub network: Vec<Network>,
    /// `[[identity]]`
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub identity: Vec<Identity>,
    /// `[[endpoint]]`
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub endpoint: Vec<Endpoint>,
    /// `[[peer]]`
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub peer: Vec<Peer>,
    /// `[[route]]`
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub route: Vec<Route>,
    /// `[[tier]]`
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tier: Vec<Tier>,
    /// `[[policy]]`
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub policy: Vec<Policy>,
    /// `[[service]]`
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub service: Vec<Service>,
    /// `[[backends]]`
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub backends: Vec<Backends>,
    /// `[[nat-pool]]`
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub nat_pool: Vec<NatPool>,
    /// `[[egress-ip]]`
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub egress_ip: Vec<EgressIp>,
}

impl FromIterator<Object> for Tables {
    fn from_iter<I: IntoIterator<Item = Object>>(objects: I) -> Self {
        let mut tables = Self::default();
        for object in objects {
            match object {
                Object::Uplink(uplink) => tables.uplink.push(uplink),
                Object::Network(network) => tables.network.push(network),
                Object::Identity(identity) => tables.identity.push(identity),
                Object::Endpoint(endpoint) => tables.endpoint.push(endpoint),
                Object::Peer(peer) => tables.peer.push(peer),
                Object::Route(route) => tables.route.push(route),
                Object::Tier(tier) => tables.tier.push(tier),
                Object::Policy(policy) => tables.policy.push(policy),
                Object::Service(service) => tables.service.push(service),
                Object::Backends(backends) => tables.backends.push(backends),
                Object::NatPool(nat_pool) => tables.nat_pool.push(nat_pool),
                Object::EgressIp(egress_ip) => tables.egress_ip.push(egress_ip),
            }
        }
        tables
    }
}

impl Tables {
    /// The objects, in the order in which they may be created.
    pub fn into_objects(self) -> Vec<Object> {
        let mut objects: Vec<Object> = Vec::new();
        objects.extend(self.uplink.into_iter().map(Object::Uplink));
        objects.extend(self.network.into_iter().map(Object::Network));
        objects.extend(self.identity.into_iter().map(Object::Identity));
        objects.extend(self.endpoint.into_iter().map(Object::Endpoint));
        objects.extend(self.peer.into_iter().map(Object::Peer));
        objects.extend(self.route.into_iter().map(Object::Route));
        objects.extend(self.tier.into_iter().map(Object::Tier));
        objects.extend(self.policy.into_iter().map(Object::Policy));
        objects.extend(self.service.into_iter().map(Object::Service));
        objects.extend(self.backends.into_iter().map(Object::Backends));
        objects.extend(self.nat_pool.into_iter().map(Object::NatPool));
        objects.extend(self.egress_ip.into_iter().map(Object::EgressIp));
        objects
    }
}

/// The keys that occur more than once, each named once.
pub fn repeated_keys(objects: &[Object]) -> BTreeSet<Key> {
    let mut seen = BTreeSet::new();
    objects.iter().map(Object::key).filter(|key| !seen.insert(key.clone())).collect()
}
