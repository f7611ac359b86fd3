//! What uplinks take from the kernel: tunnels, pods without a tunnel, services, and answers to translated connections.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use penstock_api::model::{NatPool, PortRange};
use penstock_io::steer::{NodePort, SnatRange, SteerRules};

use super::device::{Device, Owner};
use crate::tables::Snapshot;
use crate::tables::desired::Desired;

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

/// The rules that follow from a configuration and its tables.
pub(super) fn rules(desired: &Desired, snapshot: &Snapshot) -> SteerRules {
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
    let ports = desired.services().flat_map(|service| &service.ports);
    let ports = ports
        .filter_map(|it| Some((penstock_api::model::Protocol::from(it.protocol).number(), it.node_port?)));
    let at = |(protocol, port)| {
        snapshot.services.node_addresses().iter().map(move |&address| NodePort { address, protocol, port })
    };
    ports.flat_map(at).collect()
}

/// The source ports at the node's own addresses, one range for each: from the first to the last that any pool has there.
fn snat_ranges(desired: &Desired, snapshot: &Snapshot) -> Vec<SnatRange> {
    let own = |address: &IpAddr| snapshot.underlay_addresses.contains(address);
    let mut ranges: BTreeMap<IpAddr, (u16, u16)> = BTreeMap::new();
    let mut take = |address: IpAddr, ports: PortRange| {
        let range = ranges.entry(address).or_insert((ports.first(), ports.last()));
        *range = (range.0.min(ports.first()), range.1.max(ports.last()));
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
    if desired.services().next().is_some() {
        snapshot.underlay_addresses.iter().for_each(|&address| take(address, NatPool::default_ports()));
    }
    ranges.into_iter().map(|(address, (first, last))| SnatRange { address, first, last }).collect()
}
