//! What objects need of each other, and what only one of them may have.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use penstock_api::model::{Attachment, Key, Name, Object, Prefix, RouteTarget, ServiceProtocol};

use super::interface_of;

/// Something that only one object may have.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Claim {
    /// A network's number on the wire.
    Vni(u32),
    /// A peer's tunnel endpoint.
    PeerAddress(IpAddr),
    /// A network interface.
    Interface(String),
    /// The socket of a vhost-user device.
    Socket(String),
    /// An address in a network.
    EndpointAddress(Name, IpAddr),
    /// A service's address and port in a network.
    Frontend(Name, IpAddr, u16, ServiceProtocol),
    /// A port at the node's addresses.
    NodePort(u16, ServiceProtocol),
    /// The sources of a pool, of which the longest prefix counts.
    NatSource(Name, Prefix),
    /// Who leaves under a chosen address of a family: an identity or an endpoint.
    Egress(Key, Family),
}

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Family {
    Ipv4,
    Ipv6,
}

impl Family {
    fn of(address: IpAddr) -> Family {
        if address.is_ipv4() { Family::Ipv4 } else { Family::Ipv6 }
    }
}

/// An object that another names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Need {
    /// The key in the object that names it.
    pub(super) at: String,
    /// The object that must be there.
    pub(super) wanted: Key,
}

impl Need {
    fn new(at: impl Into<String>, wanted: Key) -> Need {
        Need { at: at.into(), wanted }
    }
}

/// Who needs whom, and who has what.
#[derive(Clone, Debug, Default)]
pub(super) struct Bonds {
    needed_by: BTreeMap<Key, BTreeSet<Key>>,
    claimed_by: BTreeMap<Claim, BTreeSet<Key>>,
}

impl Bonds {
    /// Notes what an object needs and claims.
    pub(super) fn tie(&mut self, key: &Key, object: &Object) {
        for need in needs(object) {
            self.needed_by.entry(need.wanted).or_default().insert(key.clone());
        }
        for (_, claim) in claims(object) {
            self.claimed_by.entry(claim).or_default().insert(key.clone());
        }
    }

    /// Forgets what an object needed and claimed.
    pub(super) fn loose(&mut self, key: &Key, object: &Object) {
        for need in needs(object) {
            forget(&mut self.needed_by, &need.wanted, key);
        }
        for (_, claim) in claims(object) {
            forget(&mut self.claimed_by, &claim, key);
        }
    }

    /// The objects that name the object of a key.
    pub(super) fn needing(&self, key: &Key) -> impl Iterator<Item = &Key> {
        self.needed_by.get(key).into_iter().flatten()
    }

    /// The objects that have something: more than one while a change is being judged.
    pub(super) fn claiming(&self, claim: &Claim) -> impl Iterator<Item = &Key> {
        self.claimed_by.get(claim).into_iter().flatten()
    }

    /// The services that have ports at an address of a network, with the ports in order.
    pub(super) fn frontends(&self, network: &Name, address: IpAddr) -> impl Iterator<Item = (u16, &Key)> {
        let first = Claim::Frontend(network.clone(), address, 0, ServiceProtocol::Tcp);
        let last = Claim::Frontend(network.clone(), address, u16::MAX, ServiceProtocol::Sctp);
        self.claimed_by.range(first..=last).flat_map(|(claim, keys)| {
            let port = if let Claim::Frontend(_, _, port, _) = claim { *port } else { 0 };
            keys.iter().map(move |key| (port, key))
        })
    }
}

fn forget<K: Ord>(map: &mut BTreeMap<K, BTreeSet<Key>>, entry: &K, key: &Key) {
    if let Some(keys) = map.get_mut(entry) {
        keys.remove(key);
        if keys.is_empty() {
            map.remove(entry);
        }
    }
}

/// The network that an object is in, when it is in one.
pub(super) fn network_of(object: &Object) -> Option<&Name> {
    match object {
        Object::Identity(it) => Some(&it.network),
        Object::Endpoint(it) => Some(&it.network),
        Object::Route(it) => Some(&it.network),
        Object::Policy(it) => Some(&it.network),
        Object::Service(it) => Some(&it.network),
        Object::NatPool(it) => Some(&it.network),
        Object::EgressIp(it) => Some(&it.network),
        Object::Uplink(_) | Object::Network(_) | Object::Peer(_) | Object::Tier(_) | Object::Backends(_) => {
            None
        }
    }
}

/// The objects that an object names.
pub(super) fn needs(object: &Object) -> Vec<Need> {
    let mut needs: Vec<Need> =
        network_of(object).map(|name| Need::new("network", Key::Network(name.clone()))).into_iter().collect();
    match object {
        Object::Endpoint(endpoint) => {
            needs.extend(endpoint.identity.iter().map(|it| Need::new("identity", Key::Identity(it.clone()))));
        }
        Object::Route(route) => match &route.via {
            RouteTarget::Peer(peer) => needs.push(Need::new("via.peer", Key::Peer(peer.clone()))),
            RouteTarget::Uplink { uplink, .. } => {
                needs.push(Need::new("via.uplink", Key::Uplink(uplink.clone())));
            }
            RouteTarget::Host | RouteTarget::Blackhole => {}
        },
        Object::Policy(policy) => {
            needs.push(Need::new("tier", Key::Tier(policy.tier.clone())));
            needs.extend(policy.identities().map(|(at, it)| Need::new(at, Key::Identity(it.clone()))));
        }
        Object::Backends(backends) => {
            needs.push(Need::new("service", Key::Service(backends.service.clone())));
        }
        Object::EgressIp(egress) => {
            // Endpoints are not needed: they come and go with their pods, whose leaving must not be refused.
            let identities = egress.identities.iter();
            needs.extend(identities.map(|it| Need::new("identities", Key::Identity(it.clone()))));
        }
        Object::Uplink(_)
        | Object::Network(_)
        | Object::Identity(_)
        | Object::Peer(_)
        | Object::Tier(_)
        | Object::Service(_)
        | Object::NatPool(_) => {}
    }
    needs
}

/// What an object claims for itself alone, each with the key in the object that says so.
pub(super) fn claims(object: &Object) -> Vec<(&'static str, Claim)> {
    match object {
        Object::Network(network) => vec![("vni", Claim::Vni(network.vni.get()))],
        Object::Uplink(uplink) => vec![("interface", Claim::Interface(uplink.interface.to_string()))],
        Object::Peer(peer) => vec![("address", Claim::PeerAddress(peer.address))],
        Object::Endpoint(endpoint) => {
            let interface = interface_of(&endpoint.attachment);
            let interface = interface.map(|it| ("interface", Claim::Interface(it.to_owned())));
            let network = &endpoint.network;
            let addresses = endpoint.addresses.iter();
            let addresses = addresses.map(|it| ("addresses", Claim::EndpointAddress(network.clone(), *it)));
            let socket = match &endpoint.attachment {
                Attachment::VhostUser { socket, .. } => {
                    Some(("attachment.vhost-user.socket", Claim::Socket(socket.to_string())))
                }
                _ => None,
            };
            interface.into_iter().chain(socket).chain(addresses).collect()
        }
        Object::Service(service) => service_claims(service),
        Object::NatPool(pool) => {
            let sources = pool.sources.iter();
            sources.map(|it| ("sources", Claim::NatSource(pool.network.clone(), *it))).collect()
        }
        Object::EgressIp(egress) => {
            let family = Family::of(egress.address);
            let identities = egress.identities.iter().map(|it| ("identities", Key::Identity(it.clone())));
            let endpoints = egress.endpoints.iter().map(|it| ("endpoints", Key::Endpoint(it.clone())));
            identities.chain(endpoints).map(|(at, who)| (at, Claim::Egress(who, family))).collect()
        }
        Object::Identity(_)
        | Object::Route(_)
        | Object::Tier(_)
        | Object::Policy(_)
        | Object::Backends(_) => Vec::new(),
    }
}

fn service_claims(service: &penstock_api::model::Service) -> Vec<(&'static str, Claim)> {
    let mut claims = Vec::new();
    for port in &service.ports {
        claims.extend(service.addresses().map(|address| {
            ("ports", Claim::Frontend(service.network.clone(), address, port.port, port.protocol))
        }));
        claims.extend(port.node_port.map(|it| ("ports", Claim::NodePort(it, port.protocol))));
    }
    let health = service.health_check_node_port;
    claims.extend(health.map(|it| ("health-check-node-port", Claim::NodePort(it, ServiceProtocol::Tcp))));
    claims
}
