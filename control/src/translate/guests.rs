//! Ways to pods of other nodes in further networks, whose addresses any plugin may have given: one for each address that is
//! in no range of its node.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use penstock_api::model::{Key as SaidKey, Name, Object as Said, Prefix, Route, RouteTarget};

use super::ground::Ground;
use super::names;
use super::sets::People;
use crate::cluster::{Pod, Scoped};

/// The ways as they were said last.
#[derive(Debug, Default)]
pub(super) struct Guests {
    said: BTreeMap<Scoped, Vec<SaidKey>>,
    /// The lengths of the prefixes that the ground's routes have, by network and by whether that is IPv4.
    lengths: BTreeMap<Name, BTreeSet<(bool, u8)>>,
}

impl Guests {
    /// Looks at the ground, which is another than before; answers whose ways may be others now, besides those of all that
    /// are there.
    pub(super) fn stand_on(&mut self, ground: &Ground) -> BTreeSet<Scoped> {
        self.lengths.clear();
        for key in ground.keys() {
            if let SaidKey::Route { network, prefix } = key {
                let length = (prefix.is_ipv4(), prefix.net().prefix_len());
                self.lengths.entry(network.clone()).or_default().insert(length);
            }
        }
        self.said.keys().cloned().collect()
    }

    /// Whether pods that changed had ways.
    pub(super) fn has(&self, pod: &Scoped) -> bool {
        self.said.contains_key(pod)
    }

    /// Where a route of the ground leads that an address takes.
    fn route<'a>(&self, ground: &'a Ground, network: &Name, address: IpAddr) -> Option<&'a RouteTarget> {
        let lengths = self.lengths.get(network)?.iter().rev().filter(|it| it.0 == address.is_ipv4());
        let mut found = lengths.filter_map(|(_, length)| {
            let prefix = Prefix::new(IpNet::new(address, *length).ok()?.trunc()).ok()?;
            match ground.get(&SaidKey::Route { network: network.clone(), prefix })? {
                Said::Route(route) => Some(&route.via),
                _ => None,
            }
        });
        found.next()
    }

    fn ways(&self, pod: &Pod, ground: &Ground) -> Vec<Route> {
        let peer = names::name(&pod.node);
        if !ground.contains_key(&SaidKey::Peer(peer.clone())) {
            return Vec::new();
        }
        let via = RouteTarget::Peer(peer);
        let mut ways = Vec::new();
        for (network, addresses) in &pod.further {
            if !ground.contains_key(&SaidKey::Network(network.clone())) {
                continue;
            }
            for address in addresses.iter().filter(|it| self.route(ground, network, **it) != Some(&via)) {
                let Ok(prefix) = Prefix::new(IpNet::from(*address)) else { continue };
                let way = Route { network: network.clone(), prefix, via: via.clone() };
                // What was said of the very address, on purpose, stays.
                if !ground.contains_key(&SaidKey::Route { network: network.clone(), prefix }) {
                    ways.push(way);
                }
            }
        }
        ways
    }

    /// The ways to some pods, and which are no more: an address may go from one of them to another.
    pub(super) fn follow(
        &mut self,
        pods: &BTreeSet<Scoped>,
        people: &People,
        ground: &Ground,
    ) -> (Vec<Route>, BTreeSet<SaidKey>) {
        let (mut now, mut gone) = (Vec::new(), BTreeSet::new());
        for key in pods {
            gone.extend(self.said.remove(key).unwrap_or_default());
            let Some(pod) = people.pods.get(key).filter(|_| people.guests.contains(key)) else { continue };
            let ways = self.ways(pod, ground);
            if !ways.is_empty() {
                let keys = ways.iter().map(|way| Said::Route(way.clone()).key());
                self.said.insert(key.clone(), keys.collect());
                now.extend(ways);
            }
        }
        for way in &now {
            gone.remove(&SaidKey::Route { network: way.network.clone(), prefix: way.prefix });
        }
        // The ground has its own word by now.
        gone.retain(|key| !ground.contains_key(key));
        (now, gone)
    }
}
