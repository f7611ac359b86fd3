//! The routes of networks, with where each leads: those of the kernel, those that follow from other objects, and those that
//! are told. Of several to one prefix the last counts.

use std::collections::HashMap;
use std::net::IpAddr;

use ipnet::IpNet;
use penstock_api::model::{Encapsulation, Name, Route, RouteTarget};

use super::Compiler;
use crate::tables::{RouteRow, Target};

/// The routes of a network.
pub(super) type Rows = Vec<(RouteRow, Target)>;

impl Compiler<'_> {
    /// What the kernel knows better than a route that leaves the next hop to it: its own routes by that uplink to parts of
    /// the same prefix. Not to the network's own prefixes: where pods are is not for the kernel to say.
    pub(super) fn kernel_routes(&self, rows: &mut [Rows]) {
        for (object, rows) in self.networks.iter().zip(rows) {
            let told: HashMap<IpNet, &Route> = self
                .desired
                .routes()
                .filter(|route| route.network == object.name)
                .map(|route| (route.prefix.net(), route))
                .collect();
            for (uplink, ways) in &self.underlay.ways {
                let follows = |prefix: &IpNet| {
                    let around = std::iter::successors(prefix.supernet(), IpNet::supernet);
                    let route = around.filter_map(|it| told.get(&it)).next();
                    let is_pods = object.prefixes.iter().any(|it| it.net().contains(prefix));
                    !is_pods && route.is_some_and(|route| leaves_it_to_the_kernel(&route.via, uplink))
                };
                for (prefix, gateway) in ways.iter().filter(|(prefix, _)| follows(prefix)) {
                    let Some((target, words)) = self.native(uplink, *gateway) else { continue };
                    rows.push((RouteRow { prefix: *prefix, target: words, implied: true }, target));
                }
            }
        }
    }

    /// The router of an uplink by which the kernel reaches a prefix; none where that is on the link, or the kernel knows no
    /// way.
    fn router(&self, uplink: &Name, prefix: IpNet) -> Option<IpAddr> {
        let ways = self.underlay.ways.get(uplink.as_str())?;
        let mut around = std::iter::successors(Some(prefix), IpNet::supernet);
        around.find_map(|prefix| ways.get(&prefix)).copied().flatten()
    }

    /// Out of an uplink, and that in words; `None` while it is closed.
    fn native(&self, uplink: &str, gateway: Option<IpAddr>) -> Option<(Target, String)> {
        let facts = self.underlay.uplinks.get(uplink)?;
        let through = gateway.map(|gateway| format!(" through {gateway}")).unwrap_or_default();
        let target = Target::Native { device: facts.device, next_hop: gateway, peer: None, mtu: facts.mtu };
        Some((target, format!("uplink {uplink}{through}")))
    }

    /// Routes that follow from endpoints, the host and the peers.
    pub(super) fn implied_routes(&mut self, rows: &mut [Rows]) {
        let row = |address: IpAddr, target: String| RouteRow {
            prefix: IpNet::from(address),
            target,
            implied: true,
        };
        if let Some(host) = &self.snapshot.host {
            let (network, addresses) = (host.network, host.addresses.clone());
            for (peer, object) in self.desired.peers().enumerate() {
                let target = self.target_to_peer(network, peer as u32);
                rows[network as usize].push((row(object.address, format!("peer {}", object.name)), target));
            }
            for address in addresses {
                rows[network as usize].push((row(address, "host".into()), Target::Host));
            }
        }
        for (index, endpoint) in self.snapshot.endpoints.iter().enumerate() {
            for &address in &endpoint.addresses {
                let target = format!("endpoint {}", endpoint.name);
                rows[endpoint.network as usize].push((row(address, target), Target::Endpoint(index as u32)));
            }
        }
    }

    /// Routes as they are told.
    pub(super) fn configured_routes(&mut self, rows: &mut [Rows]) {
        for route in self.desired.routes() {
            let Some(&network) = self.network_index.get(route.network.as_str()) else { continue };
            let (target, words) = match &route.via {
                RouteTarget::Peer(name) => {
                    let Some(&peer) = self.peer_index.get(name.as_str()) else { continue };
                    (self.target_to_peer(network, peer), format!("peer {name}"))
                }
                RouteTarget::Host => (Target::Host, "host".into()),
                RouteTarget::Blackhole => (Target::Blackhole, "blackhole".into()),
                RouteTarget::Uplink { uplink, gateway } => {
                    let gateway = gateway.or_else(|| self.router(uplink, route.prefix.net()));
                    let Some(native) = self.native(uplink.as_str(), gateway) else { continue };
                    native
                }
            };
            let row = RouteRow { prefix: route.prefix.net(), target: words, implied: false };
            rows[network as usize].push((row, target));
        }
    }

    /// The way to a peer in a network: through a tunnel, or as it is where the network says so.
    fn target_to_peer(&mut self, network: u32, peer: u32) -> Target {
        let facts = &self.reached[peer as usize];
        let Some(path) = &facts.path else { return Target::Unreachable { peer } };
        let object = self.networks[network as usize];
        let on_link = path.next_hop == facts.address;
        if object.encapsulation == Encapsulation::None || object.cross_subnet && on_link {
            let (device, next_hop) = (path.device, Some(path.next_hop));
            return Target::Native { device, next_hop, peer: Some(peer), mtu: path.mtu };
        }
        let known = self.template_of.get(&(network, peer)).copied();
        let template = known.unwrap_or_else(|| self.template(network, peer));
        self.template_of.insert((network, peer), template);
        Target::Tunnel { peer, template }
    }
}

fn leaves_it_to_the_kernel(via: &RouteTarget, by: &str) -> bool {
    matches!(via, RouteTarget::Uplink { uplink, gateway: None } if uplink.as_str() == by)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testbed::{self, NODE, Sizes};

    /// The routes of a node whose kernel has these by the uplink, as words, the last of a prefix only; not the node's own.
    fn routes(told: &str, ways: &[(&str, Option<&str>)]) -> Vec<String> {
        let text = format!("[[network]]\nname = \"n\"\nvni = 1\nprefixes = [\"10.0.0.0/8\"]\n{told}");
        let sizes = Sizes { flows: 64, chunks: 64, connections: None };
        let mut node = testbed::node_of(&text, &[NODE.into()], sizes);
        let way = |(prefix, gateway): &(&str, Option<&str>)| {
            (prefix.parse::<IpNet>().unwrap(), gateway.map(|it| it.parse::<IpAddr>().unwrap()))
        };
        node.underlay.ways = [("wire".to_owned(), ways.iter().map(way).collect())].into();
        node.publish();
        let snapshot = node.publisher.current();
        let rows = snapshot.networks[0].rows.iter().filter(|row| row.target != "host");
        let rows = rows.map(|row| (row.prefix, &row.target));
        let rows: std::collections::BTreeMap<IpNet, &String> = rows.collect();
        rows.into_iter().map(|(prefix, target)| format!("{prefix} {target}")).collect()
    }

    const OUT: &str =
        "[[route]]\nnetwork = \"n\"\nprefix = \"0.0.0.0/0\"\nvia = { uplink = { uplink = \"wire\" } }\n";

    #[test]
    fn who_the_next_hop_is_outside_is_for_the_kernel_to_say() {
        let ways = [
            ("0.0.0.0/0", Some("192.0.2.254")),
            ("192.0.2.0/24", None),
            ("198.51.100.0/24", Some("192.0.2.253")),
            // Somebody's route to pods.
            ("10.1.2.0/24", Some("192.0.2.7")),
        ];
        let wanted = [
            "0.0.0.0/0 uplink wire through 192.0.2.254",
            "192.0.2.0/24 uplink wire",
            "198.51.100.0/24 uplink wire through 192.0.2.253",
        ];
        assert_eq!(routes(OUT, &ways), wanted);
    }

    #[test]
    fn what_is_told_of_a_part_holds_there_whatever_the_kernel_says() {
        let told = format!(
            "{OUT}[[route]]\nnetwork = \"n\"\nprefix = \"198.51.0.0/16\"\nvia = \"blackhole\"\n\
             [[route]]\nnetwork = \"n\"\nprefix = \"203.0.113.0/24\"\nvia = \"blackhole\"\n"
        );
        let ways = [("198.51.100.0/24", Some("192.0.2.253")), ("203.0.113.0/24", Some("192.0.2.253"))];
        let wanted = ["0.0.0.0/0 uplink wire", "198.51.0.0/16 blackhole", "203.0.113.0/24 blackhole"];
        assert_eq!(routes(&told, &ways), wanted);
    }
}
