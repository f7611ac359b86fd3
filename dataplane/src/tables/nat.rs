//! Who leaves the cluster under another address, and under which.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use penstock_api::model;

use crate::conntrack::nat::{Mapping, Pool};
use crate::flow::DeviceId;

use super::compile::Underlay;
use super::desired::Desired;

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
    /// The addresses and ports that a packet from `src` to `dst` takes when it leaves by `uplink`; `None` if it keeps its
    /// own.
    #[must_use]
    pub fn pool(&self, src: IpAddr, dst: IpAddr, uplink: DeviceId) -> Option<&Arc<Pool>> {
        let is_in = |prefixes: &[IpNet], address| prefixes.iter().any(|prefix| prefix.contains(&address));
        if !is_in(&self.sources, src) || is_in(&self.exclusions, dst) {
            return None;
        }
        match &self.outside {
            Outside::Same(pool) => Some(pool),
            Outside::OfUplink(pools) => pools.get(&uplink),
        }
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

/// The ways out of a network, in the order in which they are asked: chosen endpoints' own addresses, then pools.
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
    let pool = Pool::new(&[object.address], object.ports.first()..=object.ports.last()).ok()?;
    Some(Masquerade {
        name: object.name.to_string(),
        kind: "egress-ip",
        sources: listed.chain(endpoints.map(|&address| address.into())).collect(),
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
