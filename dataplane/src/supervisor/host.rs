//! The host port: the node itself as a neighbour of its pods.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use penstock_api::model::{Key, Name};

use super::Engine;
use super::device::Owner;
use crate::kernel::HostPort;
use crate::tables::Snapshot;
use crate::tables::desired::{Desired, Kept};

/// The kernel's side of the host port as it was made last, and what it follows from.
#[derive(Default)]
pub(super) struct HostSide {
    made: Option<HostPort>,
    prefixes: Kept<(Name, Vec<IpAddr>), Arc<[IpNet]>>,
}

impl Engine {
    /// Makes the kernel's side of the host port what the tables say; does nothing when it is so already. Whether it did.
    pub(super) async fn prepare_host(&mut self, draft: &Snapshot) -> bool {
        let (Some(host), Some(device)) = (&self.desired.host, self.devices.get_mut(&Owner::Host)) else {
            self.host_side.made = None;
            return false;
        };
        let Some(network) = self.desired.networks().find(|network| network.name == host.network) else {
            return false;
        };
        let compiled = draft.networks.iter().find(|it| it.vni == network.vni);
        let mtu = compiled.map_or(device.facts.mtu, |it| it.mtu).min(penstock_io::tap::MAX_MTU);
        let prefixes = self.host_side.prefixes.follow(
            &self.desired,
            |key| matches!(key, Key::Network(_) | Key::Peer(_) | Key::Service(_)),
            (network.name.clone(), draft.underlay_addresses.clone()),
            |(network, own)| prefixes(&self.desired, network, own).into(),
        );
        let port = HostPort {
            interface: device.facts.interface.clone(),
            mac: device.facts.mac,
            mtu: u32::from(mtu),
            gateway_mac: draft.router_mac,
            addresses: host.addresses.clone(),
            prefixes,
        };
        if self.host_side.made.as_ref() == Some(&port) {
            return false;
        }
        match self.kernel.prepare_host(&port).await {
            Ok(changed) => {
                tracing::info!("host port {}: {changed} things set", port.interface);
                device.facts.mtu = mtu;
                self.host_side.made = Some(port);
            }
            Err(error) => tracing::error!("host port: {error}"),
        }
        true
    }
}

/// What the node reaches by its host port: the network's prefixes, and beside them the addresses of its services that are
/// nobody's own. With a way into the tap to a load balancer's address the kernel also answers ARP for it on the uplink, once
/// it is announced there.
fn prefixes(desired: &Desired, network: &Name, own: &[IpAddr]) -> Vec<IpNet> {
    let object = desired.networks().find(|it| it.name == *network);
    let mut prefixes: Vec<IpNet> =
        object.into_iter().flat_map(|it| &it.prefixes).map(|it| it.net()).collect();
    // Some load balancers give out the nodes' addresses: these stay where the underlay has them.
    let nodes: BTreeSet<IpAddr> =
        desired.peers().map(|peer| peer.address).chain(own.iter().copied()).collect();
    let served = desired.exposed().served.get(network).into_iter().flatten();
    let beside = served
        .filter(|address| !nodes.contains(address))
        .filter(|&address| !prefixes.iter().any(|prefix| prefix.contains(address)));
    let beside: Vec<IpNet> = beside.map(|&address| address.into()).collect();
    prefixes.extend(beside);
    prefixes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tables::desired::Change;
    use penstock_api::file::parse_objects;
    use penstock_api::model::Node;

    #[test]
    fn the_node_reaches_services_by_the_host_port_unless_their_addresses_are_the_nodes_or_the_pods_own() {
        let mut desired = Desired::new(Node { name: "n1".parse().unwrap(), mac: None }, None);
        let text = "[[network]]\nname = \"n\"\nvni = 1\nprefixes = [\"10.0.0.0/8\"]\n\
                    [[peer]]\nname = \"n2\"\naddress = \"192.0.2.2\"\n\
                    [[service]]\nname = \"s\"\nnetwork = \"n\"\ncluster-ips = [\"172.20.0.1\", \"10.96.0.1\"]\n\
                    load-balancer-ips = [\"192.0.2.1\", \"192.0.2.2\", \"198.51.100.7\"]\n\
                    external-ips = [\"198.51.100.8\"]\nports = [{ name = \"a\", port = 80 }]\n";
        desired.apply(Change::Upsert(parse_objects(text, "test").unwrap())).unwrap();
        let own = ["192.0.2.1".parse().unwrap()];
        let reached: Vec<String> =
            prefixes(&desired, &"n".parse().unwrap(), &own).iter().map(IpNet::to_string).collect();
        assert_eq!(reached, ["10.0.0.0/8", "172.20.0.1/32", "198.51.100.7/32"]);
    }
}
