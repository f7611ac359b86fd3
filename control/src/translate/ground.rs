//! What pods stand on: networks, other nodes as peers, the routes to their pods, and the way out.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use penstock_api::model::{
    self, EgressIp, Identity, Key as SaidKey, Name, NatPool, Object as Said, Prefix, Route, RouteTarget,
    Tier, TierDefault,
};

use super::rules::{TIERS, tier};
use super::{Refusals, Settings, names};
use crate::cluster::{Cluster, Level, Network, Node, NodeSettings, Problem};
use crate::kubernetes::{Key, Kind};

/// All of it, by key.
pub(super) type Ground = BTreeMap<SaidKey, Said>;

/// Where some addresses of a network are.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    prefix: Prefix,
    node: String,
    /// Whether it is one address of a block that is another node's.
    is_lent: bool,
    said_by: Key,
}

/// Builds the ground of one node.
pub(super) struct Builder<'a> {
    pub(super) cluster: &'a Cluster,
    pub(super) settings: &'a Settings,
    pub(super) refusals: &'a mut Refusals,
    pub(super) ground: Ground,
}

impl Builder<'_> {
    fn put(&mut self, object: Said) {
        self.ground.insert(object.key(), object);
    }

    fn refuse(&mut self, key: Key, problem: Problem) {
        let problems = self.refusals.entry(key).or_default();
        if !problems.contains(&problem) {
            problems.push(problem);
        }
    }

    pub(super) fn build(&mut self) {
        for (level, _, order) in TIERS {
            let default = if level == Level::Network { TierDefault::Deny } else { TierDefault::Pass };
            self.put(Said::Tier(Tier { name: tier(level), order, default }));
        }
        for (name, problem) in self.cluster.unfit_pools() {
            self.refuse(Key::new(Kind::IPPool, "", name), problem);
        }
        let default = self.cluster.network().as_str();
        let mut networks: BTreeMap<&str, &Network> =
            self.cluster.networks().iter().map(|(name, network)| (name.as_str(), network)).collect();
        networks.entry(default).or_insert(&self.settings.default_network);
        let peers = self.peers();
        let mut vnis = BTreeMap::new();
        for (name, network) in networks {
            let Ok(said) = name.parse::<Name>() else { continue };
            if let Some(other) = vnis.insert(network.vni, name) {
                let problem = format!(
                    "{} is the number of network {other}, so that this one is left out",
                    network.vni.get()
                );
                self.refuse(
                    Key::new(Kind::Network, "", name),
                    Problem::new("spec.vni", problem, "choose another one"),
                );
                vnis.insert(network.vni, other);
                continue;
            }
            self.network(&said, network, &peers);
        }
        self.definitions();
    }

    /// Definitions of further interfaces lead to networks that there are.
    fn definitions(&mut self) {
        for (name, network) in self.cluster.attachments() {
            let Some(network) = network else { continue };
            if !self.ground.contains_key(&SaidKey::Network(network.clone())) {
                let problem = format!(
                    "leads to network {network}, which is not there, so that nobody is attached by it"
                );
                let key = Key::new(Kind::NetworkAttachmentDefinition, &name.namespace, &name.name);
                self.refuse(key, Problem::new("spec.config", problem, "add a Network of this name"));
            }
        }
    }

    /// The other nodes that can be reached.
    fn peers(&mut self) -> BTreeSet<String> {
        let mut peers = BTreeSet::new();
        let Some(own_name) = self.settings.node() else { return peers };
        let Some(own) = self.cluster.nodes().get(own_name) else { return peers };
        let own_address = tunnel_addresses(self.cluster, own).first().copied();
        let mut taken: BTreeMap<IpAddr, &String> =
            own_address.map(|address| (address, own_name)).into_iter().collect();
        for (name, node) in self.cluster.nodes().iter().filter(|(name, _)| *name != own_name) {
            let key = Key::new(Kind::Node, "", name);
            let addresses = tunnel_addresses(self.cluster, node);
            let alike = |address: &&IpAddr| own_address.is_none_or(|own| own.is_ipv4() == address.is_ipv4());
            let Some(address) = addresses.iter().find(alike).copied() else {
                let problem = format!(
                    "has no internal address of the family that {own_name} has, so that its pods are not reached from there"
                );
                self.refuse(
                    key,
                    Problem::new("status.addresses", problem, "give both nodes an address of one family"),
                );
                continue;
            };
            if let Some(other) = taken.get(&address) {
                let problem = format!(
                    "{address} is the address of {other} too, so that the pods of this node are not reached"
                );
                self.refuse(key, Problem::new("status.addresses", problem, "give each node its own"));
                continue;
            }
            taken.insert(address, name);
            let name_said = names::name(name);
            self.put(Said::Peer(model::Peer { name: name_said, address, mac: None, port: None }));
            peers.insert(name.clone());
        }
        peers
    }

    fn network(&mut self, name: &Name, network: &Network, peers: &BTreeSet<String>) {
        let places = self.places(name);
        let prefixes = self.prefixes(name, network, &places);
        self.put(Said::Network(model::Network {
            name: name.clone(),
            vni: network.vni,
            prefixes: prefixes.clone(),
            mtu: network.mtu,
            encapsulation: network.encapsulation,
            cross_subnet: network.cross_subnet,
            gateways: model::Network::default_gateways(),
            geneve_options: Vec::new(),
            udp_checksum: None,
            dscp: None,
        }));
        let Some(own_name) = self.settings.node().cloned() else { return };
        let mut own = Vec::new();
        let mut taken: BTreeMap<Prefix, String> = BTreeMap::new();
        for Place { prefix, node, said_by, is_lent } in places {
            if let Some(other) = taken.get(&prefix).filter(|other| **other != node) {
                let problem = format!("{prefix} is the range of {other} too, where its packets go");
                let field = if said_by.kind == Kind::Node { "spec.podCIDRs" } else { "spec.prefix" };
                self.refuse(said_by, Problem::new(field, problem, "give each node its own"));
                continue;
            }
            taken.insert(prefix, node.clone());
            let via = if node == own_name {
                own.push(prefix);
                if is_lent {
                    // Its pod's endpoint is the way to it.
                    continue;
                }
                // Pods that are there have ways of their own; what is left is nobody.
                RouteTarget::Blackhole
            } else if peers.contains(&node) {
                RouteTarget::Peer(names::name(&node))
            } else {
                continue;
            };
            self.put(Said::Route(Route { network: name.clone(), prefix, via }));
        }
        self.way_out(name, network, prefixes, own);
    }

    /// The addresses that belong to a network: where it does not say so itself, those that its pods may have.
    fn prefixes(&self, name: &Name, network: &Network, places: &[Place]) -> Vec<Prefix> {
        if !network.prefixes.is_empty() {
            return network.prefixes.clone();
        }
        let pools = self.cluster.pools().values().filter(|pool| pool.network == name.as_str());
        let whole = pools.flat_map(|pool| pool.prefixes.iter().copied());
        let of_places = places.iter().filter(|place| !place.is_lent).map(|place| place.prefix);
        let mut prefixes: Vec<Prefix> = Vec::new();
        // Blocks of pools that are still there say nothing more.
        for prefix in whole.chain(of_places) {
            if !prefixes.iter().any(|other| other.net().contains(&prefix.net())) {
                prefixes.push(prefix);
            }
        }
        prefixes.sort_unstable();
        prefixes
    }

    /// Where a network's pods are, by node: ranges of nodes for the pods' own network, blocks of pools, and single addresses
    /// that nodes lend each other.
    fn places(&self, network: &Name) -> Vec<Place> {
        let mut places: Vec<Place> = Vec::new();
        if network == self.cluster.network() {
            for (name, node) in self.cluster.nodes() {
                places.extend(node.pod_prefixes.iter().map(|prefix| Place {
                    prefix: *prefix,
                    node: name.clone(),
                    is_lent: false,
                    said_by: Key::new(Kind::Node, "", name),
                }));
            }
        }
        let blocks = self.cluster.blocks().iter().filter(|(_, block)| block.network == network.as_str());
        for (name, block) in blocks {
            let place = |prefix, node: &String, is_lent| Place {
                prefix,
                node: node.clone(),
                is_lent,
                said_by: Key::new(Kind::IPBlock, "", name),
            };
            places.push(place(block.prefix, &block.node, false));
            let lent = block.lent.iter();
            places.extend(lent.map(|(address, node)| place(Prefix::host(*address), node, true)));
        }
        places.sort_unstable();
        places.dedup();
        places
    }

    fn way_out(&mut self, name: &Name, network: &Network, prefixes: Vec<Prefix>, own: Vec<Prefix>) {
        let Some(node_name) = self.settings.node().cloned() else { return };
        let Some(node) = self.cluster.nodes().get(&node_name).cloned() else { return };
        let special = special(self.cluster, &node);
        let uplink = special
            .and_then(|it| it.uplink.as_ref())
            .map_or_else(|| self.settings.uplink.clone(), |it| names::name(it));
        if *name == *self.cluster.network() {
            for address in &node.internal {
                if let Ok(prefix) = Prefix::new((*address).into()) {
                    self.put(Said::Route(Route { network: name.clone(), prefix, via: RouteTarget::Host }));
                }
            }
        }
        for everything in ["0.0.0.0/0", "::/0"] {
            let Ok(prefix) = everything.parse::<Prefix>() else { continue };
            let spoken = prefixes.iter().any(|it| it.is_ipv4() == prefix.is_ipv4());
            let leaves = network.nat_outgoing || *name == *self.cluster.network();
            if spoken && leaves {
                let via = RouteTarget::Uplink { uplink: uplink.clone(), gateway: None };
                self.put(Said::Route(Route { network: name.clone(), prefix, via }));
            }
        }
        if network.nat_outgoing && !own.is_empty() {
            self.put(Said::NatPool(NatPool {
                name: name.clone(),
                network: name.clone(),
                sources: own,
                exclusions: prefixes,
                addresses: Vec::new(),
                ports: special.and_then(|it| it.nat_ports).unwrap_or_else(NatPool::default_ports),
                endpoint_independent: false,
            }));
        }
    }
}

/// What is set for a node in particular.
pub(super) fn special<'a>(cluster: &'a Cluster, node: &Node) -> Option<&'a NodeSettings> {
    cluster.settings().values().find(|settings| settings.nodes.matches(&node.labels))
}

fn tunnel_addresses(cluster: &Cluster, node: &Node) -> Vec<IpAddr> {
    let special = special(cluster, node).map(|it| &it.tunnel_addresses).filter(|it| !it.is_empty());
    // Those of settings that many nodes share would be no addresses of one of them.
    special
        .filter(|addresses| addresses.iter().any(|it| node.addresses.contains(it)))
        .unwrap_or(&node.internal)
        .clone()
}

/// Pods of this node that leave under chosen addresses: of the egress addresses that select a pod, the one whose name
/// sorts first counts, for each family.
pub(super) fn egress(builder: &mut Builder<'_>, people: &super::sets::People) {
    let cluster = builder.cluster;
    let local: Vec<_> = match &people.node {
        Some(_) => people.local.iter().filter_map(|name| people.pods.get(name)).collect(),
        None => people.pods.values().collect(),
    };
    let node = builder.settings.node().and_then(|name| cluster.nodes().get(name));
    let inside = match builder.ground.get(&SaidKey::Network(cluster.network().clone())) {
        Some(Said::Network(network)) => network.prefixes.clone(),
        _ => Vec::new(),
    };
    let mut taken: BTreeSet<IpAddr> = BTreeSet::new();
    for (name, egress) in cluster.egress() {
        let key = || Key::new(Kind::EgressIP, "", name);
        let selected: Vec<IpAddr> = local
            .iter()
            .filter(|pod| pod.is_selectable() && egress.pods.pods.matches(&pod.labels))
            .filter(|pod| match &egress.pods.namespaces {
                crate::cluster::Namespaces::One(namespace) => *namespace == pod.key.namespace,
                crate::cluster::Namespaces::Matching(selector) => {
                    selector.matches(&people.labels(&pod.key.namespace))
                }
            })
            .flat_map(|pod| pod.addresses.iter().copied())
            .collect();
        let here = node.is_none_or(|node| egress.nodes.matches(&node.labels));
        for address in &egress.addresses {
            let family = if address.is_ipv4() { "ipv4" } else { "ipv6" };
            let mut prefixes: Vec<Prefix> = Vec::new();
            for pod in selected.iter().filter(|pod| pod.is_ipv4() == address.is_ipv4()) {
                if taken.insert(*pod) {
                    prefixes.extend(Prefix::new(IpNet::from(*pod)));
                }
            }
            prefixes.sort_unstable();
            if prefixes.is_empty() {
                continue;
            }
            if !here {
                let node = builder.settings.node().cloned().unwrap_or_default();
                let problem = format!(
                    "{address} is not routed to node {node}, so that its pods leave under other addresses"
                );
                let mend = "select pods of the nodes that nodeSelector selects, or extend that";
                builder.refuse(key(), Problem::new("spec.addresses", problem, mend));
                continue;
            }
            let said = names::name(&format!("egress/{name}/{family}"));
            let network = cluster.network().clone();
            let mut exclusions = inside.clone();
            exclusions.extend(&egress.exclusions);
            exclusions.sort_unstable();
            exclusions.dedup();
            builder.put(Said::Identity(Identity { name: said.clone(), network: network.clone(), prefixes }));
            builder.put(Said::EgressIp(EgressIp {
                name: said.clone(),
                network,
                identities: vec![said],
                endpoints: Vec::new(),
                exclusions,
                address: *address,
                ports: NatPool::default_ports(),
            }));
        }
    }
}
