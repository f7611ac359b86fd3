//! Who leaves the cluster under another address, and under which.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use penstock_api::model;

use crate::conntrack::nat::{Mapping, Pool};
use crate::flow::DeviceId;

use super::compile::Underlay;
use super::desired::Desired;

/// The kind of an object that is asked before any pool.
const EGRESS_IP: &str = "egress-ip";

/// How packets of some sources leave.
#[derive(Debug, PartialEq, Eq)]
pub struct Masquerade {
    /// The object's name, for people.
    pub name: String,
    kind: &'static str,
    sources: Vec<IpNet>,
    exclusions: Vec<IpNet>,
    outside: Outside,
}

/// The addresses outside.
#[derive(Debug, PartialEq, Eq)]
enum Outside {
    /// These, whichever uplink a packet takes.
    Same(Arc<Pool>),
    /// Those of the uplink that it takes.
    OfUplink(HashMap<DeviceId, Arc<Pool>>),
}

impl Masquerade {
    /// The addresses and ports that a packet to `dst` takes when it leaves by `uplink`; `None` if it keeps its own.
    fn pool(&self, dst: IpAddr, uplink: DeviceId) -> Option<&Arc<Pool>> {
        if self.exclusions.iter().any(|prefix| prefix.contains(&dst)) {
            return None;
        }
        match &self.outside {
            Outside::Same(pool) => Some(pool),
            Outside::OfUplink(pools) => pools.get(&uplink),
        }
    }

    /// How well a source fits, more when it is greater: an address of its own before any pool, then the longest prefix.
    fn fit(&self, src: IpAddr) -> Option<(bool, u8)> {
        let prefixes = self.sources.iter().filter(|prefix| prefix.contains(&src));
        let longest = prefixes.map(IpNet::prefix_len).max()?;
        Some((self.kind == EGRESS_IP, longest))
    }

    /// The key of its object, as it is said: `nat-pool "outside"`.
    #[must_use]
    pub fn key(&self) -> String {
        format!("{} \"{}\"", self.kind, self.name)
    }

    /// Whether packets leave by that very pool.
    #[must_use]
    pub fn has(&self, pool: &Arc<Pool>) -> bool {
        match &self.outside {
            Outside::Same(it) => Arc::ptr_eq(it, pool),
            Outside::OfUplink(pools) => pools.values().any(|it| Arc::ptr_eq(it, pool)),
        }
    }

    /// Whether a packet that comes from outside may be an answer to somebody who left this way.
    #[must_use]
    pub fn covers(&self, address: IpAddr, port: u16) -> bool {
        match &self.outside {
            Outside::Same(pool) => pool.covers(address, port),
            Outside::OfUplink(pools) => pools.values().any(|pool| pool.covers(address, port)),
        }
    }
}

/// The way that a packet from `src` to `dst` leaves when it does so by `uplink`, and the addresses and ports that it takes
/// there; `None` if it keeps its own. Of the ways that have the source, the one that fits best decides alone: what it
/// excludes goes by no other.
#[must_use]
pub fn way_out(
    ways: &[Masquerade],
    src: IpAddr,
    dst: IpAddr,
    uplink: DeviceId,
) -> Option<(&Masquerade, &Arc<Pool>)> {
    let fitting = ways.iter().filter_map(|way| Some((Reverse(way.fit(src)?), way)));
    // Of equals, which only egress addresses may be, the first by name.
    let (_, way) = fitting.min_by_key(|(fit, _)| *fit)?;
    Some((way, way.pool(dst, uplink)?))
}

/// The ways out of a network: chosen endpoints' own addresses and pools, each in the order of names.
#[must_use]
pub fn of_network(network: &model::Network, desired: &Desired, underlay: &Underlay) -> Vec<Masquerade> {
    let chosen = desired.egress_ips().filter(|it| it.network == network.name);
    let chosen = chosen.filter_map(|it| of_egress_ip(it, desired));
    let pools = desired.nat_pools().filter(|it| it.network == network.name);
    chosen.chain(pools.filter_map(|pool| of_pool(pool, underlay))).collect()
}

fn of_egress_ip(object: &model::EgressIp, desired: &Desired) -> Option<Masquerade> {
    let listed = desired.identities().filter(|identity| object.identities.contains(&identity.name));
    let listed = listed.flat_map(|identity| &identity.prefixes).map(|prefix| prefix.net());
    let is_meant = |endpoint: &&model::Endpoint| {
        let by_identity = endpoint.identity.as_ref().is_some_and(|it| object.identities.contains(it));
        by_identity || object.endpoints.contains(&endpoint.name)
    };
    let endpoints = desired.endpoints().filter(is_meant).flat_map(|endpoint| &endpoint.addresses);
    // An endpoint's addresses of the other family leave by another object, or as they are.
    let is_of_family = |prefix: &IpNet| prefix.addr().is_ipv4() == object.address.is_ipv4();
    let pool = Pool::new(&[object.address], object.ports.first()..=object.ports.last()).ok()?;
    Some(Masquerade {
        name: object.name.to_string(),
        kind: EGRESS_IP,
        sources: listed.chain(endpoints.map(|&address| address.into())).filter(is_of_family).collect(),
        exclusions: object.exclusions.iter().map(|prefix| prefix.net()).collect(),
        outside: Outside::Same(Arc::new(pool)),
    })
}

fn of_pool(object: &model::NatPool, underlay: &Underlay) -> Option<Masquerade> {
    let mapping =
        if object.endpoint_independent { Mapping::EndpointIndependent } else { Mapping::PerConnection };
    // "Paired", as RFC 4787 REQ-2 wants it: a host outside sees one address of a pod.
    let pool = |addresses: &[IpAddr]| {
        let pool = Pool::new(addresses, object.ports.first()..=object.ports.last()).ok()?;
        Some(Arc::new(pool.mapping(mapping).paired(true)))
    };
    let outside = if object.addresses.is_empty() {
        let uplinks = underlay.uplinks.values();
        Outside::OfUplink(
            uplinks.filter_map(|uplink| Some((uplink.device, pool(&uplink.addresses)?))).collect(),
        )
    } else {
        Outside::Same(pool(&object.addresses)?)
    };
    Some(Masquerade {
        name: object.name.to_string(),
        kind: "nat-pool",
        sources: object.sources.iter().map(|prefix| prefix.net()).collect(),
        exclusions: object.exclusions.iter().map(|prefix| prefix.net()).collect(),
        outside,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tables::desired::Change;
    use penstock_api::file::parse_objects;

    const UPLINK: DeviceId = DeviceId(3);

    /// Of the pools, the one that sorts first has the shortest prefix.
    const OBJECTS: &str = r#"
        [[network]]
        name = "default"
        vni = 100
        prefixes = ["10.1.0.0/16"]
        [[identity]]
        name = "chosen"
        network = "default"
        prefixes = ["10.1.0.0/20", "10.1.7.9/32"]
        [[egress-ip]]
        name = "partner"
        network = "default"
        identities = ["chosen"]
        exclusions = ["198.51.100.0/24"]
        address = "203.0.113.77"
        [[nat-pool]]
        name = "a-wide"
        network = "default"
        sources = ["10.0.0.0/8", "10.1.64.0/30"]
        exclusions = ["10.0.0.0/8"]
        addresses = ["203.0.113.1"]
        [[nat-pool]]
        name = "b-middle"
        network = "default"
        sources = ["10.1.0.0/16"]
        exclusions = ["198.51.100.0/24"]
        addresses = ["203.0.113.2"]
        [[nat-pool]]
        name = "c-narrow"
        network = "default"
        sources = ["10.1.64.0/24", "10.2.0.0/24"]
        addresses = ["203.0.113.3"]
    "#;

    /// By which object a packet leaves.
    fn leaves_by(src: &str, dst: &str) -> Option<String> {
        let node = model::Node { name: "node1".parse().unwrap(), mac: None };
        let mut desired = Desired::new(node, None);
        desired.apply(Change::Upsert(parse_objects(OBJECTS, "test.toml").unwrap())).unwrap();
        let network = desired.networks().next().unwrap();
        let ways = of_network(network, &desired, &Underlay::default());
        way_out(&ways, src.parse().unwrap(), dst.parse().unwrap(), UPLINK).map(|(way, _)| way.name.clone())
    }

    #[test]
    fn the_longest_source_prefix_chooses_the_pool() {
        for (src, way) in [
            ("10.9.0.1", "a-wide"),
            ("10.1.128.1", "b-middle"),
            ("10.1.64.9", "c-narrow"),
            ("10.1.64.1", "a-wide"),
            ("10.2.0.1", "c-narrow"),
            ("10.2.1.1", "a-wide"),
        ] {
            assert_eq!(leaves_by(src, "192.0.2.1").as_deref(), Some(way), "{src}");
        }
        assert_eq!(leaves_by("172.16.0.1", "192.0.2.1"), None, "it is in no pool");
    }

    #[test]
    fn an_egress_address_goes_before_every_pool() {
        for src in ["10.1.0.1", "10.1.7.9"] {
            assert_eq!(leaves_by(src, "192.0.2.1").as_deref(), Some("partner"), "{src}");
        }
    }

    #[test]
    fn what_the_chosen_way_excludes_goes_by_no_other() {
        assert_eq!(leaves_by("10.1.128.1", "198.51.100.1"), None, "a-wide would take it");
        assert_eq!(leaves_by("10.1.7.9", "198.51.100.1"), None, "a-wide would take it");
        assert_eq!(leaves_by("10.9.0.1", "198.51.100.1").as_deref(), Some("a-wide"));
        assert_eq!(leaves_by("10.9.0.1", "10.0.0.1"), None);
    }
}
