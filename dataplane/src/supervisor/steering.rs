//! What uplinks take from the kernel: tunnels, pods without a tunnel, services, and answers to translated connections.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use penstock_api::model::{Key, PortRange, Protocol};
use penstock_io::steer::{NodePort, SnatRange, SteerRules};
use penstock_wire::decap::TunnelKind;

use super::Engine;
use super::device::{Device, Owner};
use crate::kernel::{ListeningPort, PortSet, PortsKept, listening_ports};
use crate::tables::Snapshot;
use crate::tables::desired::{Desired, Exposed, Kept};

/// Lets uplinks take what `rules` say and, with `former`, what the daemon before took.
pub(super) fn steer(devices: &mut BTreeMap<Owner, Device>, rules: &SteerRules, former: bool) {
    for (owner, device) in devices {
        let (Owner::Uplink(_), Some(steer)) = (owner, &mut device.steer) else { continue };
        if device.rules == *rules {
            continue;
        }
        match if former { steer.add_rules(rules) } else { steer.set_rules(rules) } {
            Ok(()) => device.rules = rules.clone(),
            Err(error) => tracing::error!("{owner}: {error}"),
        }
    }
}

/// Lets uplinks take what their own rules say and nothing else.
pub(super) fn forget_former(devices: &mut BTreeMap<Owner, Device>) {
    for (owner, device) in devices {
        let (Owner::Uplink(_), Some(steer)) = (owner, &mut device.steer) else { continue };
        if let Err(error) = steer.set_rules(&device.rules) {
            tracing::error!("{owner}: {error}");
        }
    }
}

/// What uplinks are to take, as long as nothing changes it.
#[derive(Default)]
pub(super) struct Steering(Kept<Grounds, Arc<SteerRules>>);

/// What the rules follow from beside the configuration.
#[derive(PartialEq)]
struct Grounds {
    underlay_addresses: Vec<IpAddr>,
    node_addresses: Vec<IpAddr>,
    tunnel_ports: Vec<(u16, TunnelKind)>,
}

impl Steering {
    /// The rules that follow from a configuration and its tables.
    pub(super) fn follow(&mut self, desired: &Desired, snapshot: &Snapshot) -> Arc<SteerRules> {
        let matters = |key: &Key| {
            let is_a_pods = matches!(key, Key::Network(_) | Key::Endpoint(_) | Key::Route { .. });
            is_a_pods || Exposed::follows_from(key)
        };
        let grounds = Grounds {
            underlay_addresses: snapshot.underlay_addresses.clone(),
            node_addresses: snapshot.services.node_addresses().to_vec(),
            tunnel_ports: snapshot.tunnel_ports.clone(),
        };
        self.0.follow(desired, matters, grounds, |_| Arc::new(rules(desired, snapshot)))
    }
}

fn rules(desired: &Desired, snapshot: &Snapshot) -> SteerRules {
    SteerRules {
        tunnel_endpoints: snapshot.underlay_addresses.clone(),
        tunnel_ports: snapshot.tunnel_ports.iter().map(|(port, _)| *port).collect(),
        prefixes: prefixes(desired, snapshot).into_iter().collect(),
        node_ports: node_ports(desired, snapshot),
        snat_ranges: snat_ranges(desired, snapshot),
    }
}

fn whole(address: IpAddr) -> (IpAddr, u8) {
    (address, if address.is_ipv4() { 32 } else { 128 })
}

/// Destinations that are ours whatever the packet is: pods that are reached without a tunnel, addresses outside that
/// services and connections have.
fn prefixes(desired: &Desired, snapshot: &Snapshot) -> BTreeSet<(IpAddr, u8)> {
    let mut prefixes: BTreeSet<(IpAddr, u8)> = BTreeSet::new();
    for network in desired.networks().filter(|network| desired.is_reached_bare(network)) {
        if network.prefixes.is_empty() {
            let own = desired.endpoints().filter(|endpoint| endpoint.network == network.name);
            prefixes.extend(own.flat_map(|endpoint| &endpoint.addresses).map(|&address| whole(address)));
        }
        prefixes.extend(network.prefixes.iter().map(|it| (it.net().addr(), it.net().prefix_len())));
    }
    // The node's own addresses are the kernel's: of them, only ports are taken.
    let outside = snapshot.outside_addresses.iter().filter(|it| !snapshot.underlay_addresses.contains(it));
    prefixes.extend(outside.map(|&address| whole(address)));
    prefixes
}

fn node_ports(desired: &Desired, snapshot: &Snapshot) -> Vec<NodePort> {
    let at = |&(protocol, port)| {
        snapshot.services.node_addresses().iter().map(move |&address| NodePort { address, protocol, port })
    };
    desired.exposed().node_ports.iter().flat_map(at).collect()
}

/// The source ports at the node's own addresses.
fn snat_ranges(desired: &Desired, snapshot: &Snapshot) -> Vec<SnatRange> {
    let own = |address: &IpAddr| snapshot.underlay_addresses.contains(address);
    let mut ranges: BTreeMap<IpAddr, Vec<(u16, u16)>> = BTreeMap::new();
    let mut take = |address: IpAddr, ports: PortRange| {
        ranges.entry(address).or_default().push((ports.first(), ports.last()));
    };
    for pool in desired.nat_pools() {
        let addresses =
            if pool.addresses.is_empty() { &snapshot.underlay_addresses } else { &pool.addresses };
        addresses.iter().filter(|it| own(it)).for_each(|&address| take(address, pool.ports));
    }
    for chosen in desired.egress_ips().filter(|it| own(&it.address)) {
        take(chosen.address, chosen.ports);
    }
    // Clients of services whose backends are elsewhere are stood in for by the node.
    if !desired.exposed().served.is_empty() {
        snapshot.underlay_addresses.iter().for_each(|&address| take(address, desired.source_ports()));
    }
    let ranges = ranges.into_iter().flat_map(|(address, ranges)| {
        let ports: PortSet = ranges.into_iter().collect();
        ports.ranges().map(|(first, last)| SnatRange { address, first, last }).collect::<Vec<_>>()
    });
    ranges.collect()
}

/// The ports of the node's own addresses that uplinks take, as the node's kernel and programs are concerned.
pub(super) struct TakenPorts {
    rules: SteerRules,
    kept: PortsKept,
    overshadowed: BTreeSet<Overshadowed>,
}

impl TakenPorts {
    /// None taken yet; the file `record` is for what is added to the kernel's list of reserved ports.
    pub(super) fn recorded_in(record: PathBuf) -> TakenPorts {
        let (rules, overshadowed) = Default::default();
        TakenPorts { rules, kept: PortsKept::recorded_in(record), overshadowed }
    }

    /// Uplinks are about to take what `rules` say.
    pub(super) fn take(&mut self, rules: &SteerRules) {
        if self.rules != *rules {
            self.rules = rules.clone();
            self.kept.keep(&rules.snat_ranges);
            self.look_for_listeners();
        }
    }

    /// Uplinks take no more than what the rules say: the kernel may have the rest back.
    pub(super) fn settle(&mut self) {
        self.kept.give_back();
    }

    /// Finds out which programs listen where nothing reaches them, and says so in the log when it is news.
    pub(super) fn look_for_listeners(&mut self) {
        if !self.rules.have_ports() {
            self.overshadowed.clear();
            return;
        }
        let listening = match listening_ports() {
            Ok(listening) => listening,
            Err(error) => {
                tracing::debug!("cannot read what programs listen on: {error}");
                return;
            }
        };
        let found: BTreeSet<Overshadowed> =
            listening.into_iter().filter_map(|port| Overshadowed::by(&self.rules, port)).collect();
        found.difference(&self.overshadowed).for_each(|it| tracing::warn!("{it}"));
        self.overshadowed = found;
    }
}

/// A program of the node that listens where an uplink takes packets away.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Overshadowed {
    port: ListeningPort,
    by: &'static str,
}

impl Overshadowed {
    fn by(rules: &SteerRules, port: ListeningPort) -> Option<Overshadowed> {
        let node_port = |it: &NodePort| it.protocol == port.protocol && port.answers_at(it.address, it.port);
        let number = port.at.port();
        let snat =
            |it: &SnatRange| (it.first..=it.last).contains(&number) && port.answers_at(it.address, number);
        let by = if rules.node_ports.iter().any(node_port) {
            "a service's node port"
        } else if rules.snat_ranges.iter().any(snat) {
            "among the ports of translated connections"
        } else {
            return None;
        };
        Some(Overshadowed { port, by })
    }
}

impl std::fmt::Display for Overshadowed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (protocol, at) = (Protocol::new(self.port.protocol), self.port.at);
        write!(
            f,
            "a program of this node listens on {protocol} {at}, which is {}: nothing that comes by an uplink reaches it; \
             see `ss -lnp 'sport = :{}'`, and give either other ports",
            self.by,
            at.port()
        )
    }
}

impl Engine {
    /// Programs of the node that listen where nothing from outside reaches them.
    pub fn overshadowed(&self) -> impl Iterator<Item = &Overshadowed> {
        self.taken_ports.overshadowed.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn overshadowed(at: &str) -> Option<&'static str> {
        let address = "192.0.2.1".parse().unwrap();
        let rules = SteerRules {
            node_ports: vec![NodePort { address, protocol: 6, port: 30080 }],
            snat_ranges: vec![
                SnatRange { address, first: 50000, last: 50999 },
                SnatRange { address, first: 60000, last: 60000 },
            ],
            ..SteerRules::default()
        };
        Overshadowed::by(&rules, ListeningPort { protocol: 6, at: at.parse().unwrap() }).map(|it| it.by)
    }

    #[test]
    fn a_program_is_overshadowed_at_the_ports_that_are_taken_and_at_no_others() {
        for (at, by) in [
            ("192.0.2.1:30080", Some("a service's node port")),
            ("0.0.0.0:50500", Some("among the ports of translated connections")),
            ("[::]:60000", Some("among the ports of translated connections")),
            ("0.0.0.0:51000", None),
            ("127.0.0.1:50500", None),
            ("192.0.2.1:22", None),
        ] {
            assert_eq!(overshadowed(at), by, "{at}");
        }
    }
}
