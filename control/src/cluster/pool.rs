//! Pools of pods' addresses, and the blocks of them that nodes have.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use penstock_api::model::Prefix;

use super::Cluster;
use super::problem::{Complaints, Problem};
use super::selector::Selector;
use crate::kubernetes;

/// Addresses that nodes take blocks of for their pods.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pool {
    /// The network's name.
    pub network: String,
    /// The addresses.
    pub prefixes: Vec<Prefix>,
    /// The prefix length of blocks of IPv4, when it is not the usual one.
    pub block_v4: Option<u8>,
    /// The prefix length of blocks of IPv6, when it is not the usual one.
    pub block_v6: Option<u8>,
    /// The nodes that may take blocks.
    pub nodes: Selector,
    /// The namespaces whose pods may have an address.
    pub namespaces: Selector,
    /// The pods there that get one without asking.
    pub pods: Selector,
    /// Whether nothing more is given out of it.
    pub disabled: bool,
    /// When it was created, in seconds since 1970: of two that share addresses the older one counts.
    created: i64,
}

impl Pool {
    /// None for a pool that is not for pods, or that cannot be understood.
    pub(super) fn new(written: &kubernetes::IPPool, complaints: &mut Complaints) -> Option<Pool> {
        let spec = &written.spec;
        let prefixes = complaints.prefixes("spec.prefixes", &spec.prefixes);
        let nodes = complaints.selector("spec.nodeSelector", spec.node_selector.as_ref());
        if spec.purpose != kubernetes::PoolUse::Pods {
            complaints.selector("spec.serviceSelector", spec.service_selector.as_ref());
            return None;
        }
        let namespaces = complaints.selector("spec.namespaceSelector", spec.namespace_selector.as_ref());
        let pods = complaints.selector("spec.podSelector", spec.pod_selector.as_ref());
        Some(Pool {
            network: spec.network.clone().unwrap_or_else(|| "default".to_owned()),
            prefixes,
            block_v4: spec.block_size_v4,
            block_v6: spec.block_size_v6,
            nodes: nodes?,
            namespaces: namespaces?,
            pods: pods?,
            disabled: spec.disabled,
            created: written.metadata.creation_timestamp.as_ref().map_or(0, |time| time.0.as_second()),
        })
    }
}

/// Some addresses of a pool, which a node took.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// The network's name.
    pub network: String,
    /// The addresses.
    pub prefix: Prefix,
    /// The node.
    pub node: String,
    /// The addresses that pods of other nodes have, with these nodes. Those of the node's own pods are none of a route's
    /// business.
    pub lent: Vec<(IpAddr, String)>,
}

impl Block {
    pub(super) fn new(spec: &kubernetes::IPBlockSpec, complaints: &mut Complaints) -> Option<Block> {
        let prefix = complaints.prefix("spec.prefix", &spec.prefix)?;
        let given = spec.given.iter().enumerate().filter(|(_, given)| given.node != spec.node);
        let mut lent: Vec<(IpAddr, String)> = given
            .filter_map(|(i, given)| {
                let field = format!("spec.given[{i}].address");
                let address = complaints.addresses(&field, [&given.address]).first().copied()?;
                prefix.contains(address).then(|| (address, given.node.clone()))
            })
            .collect();
        lent.sort_unstable();
        Some(Block { network: spec.network.clone(), prefix, node: spec.node.clone(), lent })
    }
}

fn overlaps(one: IpNet, other: IpNet) -> bool {
    one.contains(&other) || other.contains(&one)
}

impl Cluster {
    /// The pools that no address is given out of, and why.
    #[must_use]
    pub fn unfit_pools(&self) -> BTreeMap<String, Problem> {
        let mut by_age: Vec<(&String, &Pool)> = self.pools.iter().collect();
        by_age.sort_by_key(|(name, pool)| (pool.created, *name));
        let mut unfit = BTreeMap::new();
        let mut fit: Vec<(&String, &Pool)> = Vec::new();
        for (name, pool) in by_age {
            match self.unfitness(pool, &fit) {
                Some(problem) => drop(unfit.insert(name.clone(), problem)),
                None => fit.push((name, pool)),
            }
        }
        unfit
    }

    fn unfitness(&self, pool: &Pool, older: &[(&String, &Pool)]) -> Option<Problem> {
        let is_default = pool.network == self.network.as_str();
        let network = self.networks.get(&pool.network);
        if network.is_none() && !is_default {
            let problem = format!("there is no network {}, so that no address is given", pool.network);
            return Some(Problem::new("spec.network", problem, "add the network, or name another one"));
        }
        let inside = network.map(|network| network.prefixes.as_slice()).unwrap_or_default();
        for prefix in pool.prefixes.iter().map(|prefix| prefix.net()) {
            if !inside.is_empty() && !inside.iter().any(|of| of.net().contains(&prefix)) {
                let problem = format!(
                    "{prefix} is not inside the prefixes of network {}, so that no address is given",
                    pool.network
                );
                let mend = "choose addresses of the network, or add them to its spec.prefixes";
                return Some(Problem::new("spec.prefixes", problem, mend));
            }
            let of_node = self.nodes.iter().filter(|_| is_default).find_map(|(name, node)| {
                let shared = node.pod_prefixes.iter().find(|of| overlaps(of.net(), prefix));
                shared.map(|of| format!("{of} of node {name}"))
            });
            let shares = |of: &&(&String, &Pool)| {
                of.1.network == pool.network && of.1.prefixes.iter().any(|it| overlaps(it.net(), prefix))
            };
            let of_pool = || older.iter().find(shares).map(|(name, _)| format!("the older pool {name}"));
            if let Some(other) = of_node.or_else(of_pool) {
                let problem = format!("{prefix} shares addresses with {other}, so that no address is given");
                return Some(Problem::new("spec.prefixes", problem, "choose addresses that nobody else has"));
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kubernetes::Object;
    use serde_json::{Value, json};

    fn apply<T: serde::de::DeserializeOwned>(cluster: &mut Cluster, object: Value)
    where
        Object: From<T>,
    {
        cluster.apply(&Object::from(serde_json::from_value::<T>(object).unwrap()));
    }

    fn pool(cluster: &mut Cluster, name: &str, day: u8, spec: Value) {
        let metadata = json!({"name": name, "creationTimestamp": format!("2026-01-0{day}T00:00:00Z")});
        apply::<kubernetes::IPPool>(cluster, json!({"metadata": metadata, "spec": spec}));
    }

    #[test]
    fn a_pool_is_fit_when_its_addresses_are_its_networks_and_nobody_elses() {
        let mut cluster = Cluster::new("default".parse().unwrap());
        pool(&mut cluster, "a", 2, json!({"prefixes": ["10.1.0.0/24"]}));
        assert_eq!(cluster.unfit_pools(), BTreeMap::new());
        // The older one counts, whatever it is called.
        pool(&mut cluster, "z", 1, json!({"prefixes": ["10.1.0.0/25", "fd00::/64"]}));
        let unfit = cluster.unfit_pools();
        assert_eq!(unfit.keys().collect::<Vec<_>>(), ["a"]);
        assert!(unfit["a"].to_string().contains("the older pool z"), "{}", unfit["a"]);
        // Another network has addresses of its own.
        pool(&mut cluster, "blue", 3, json!({"prefixes": ["10.1.0.0/24"], "network": "blue"}));
        assert!(cluster.unfit_pools()["blue"].to_string().contains("there is no network blue"));
        let spec = json!({"vni": 7, "prefixes": ["10.0.0.0/8"]});
        apply::<kubernetes::Network>(&mut cluster, json!({"metadata": {"name": "blue"}, "spec": spec}));
        assert!(!cluster.unfit_pools().contains_key("blue"));
        let spec = json!({"vni": 7, "prefixes": ["10.2.0.0/16"]});
        apply::<kubernetes::Network>(&mut cluster, json!({"metadata": {"name": "blue"}, "spec": spec}));
        assert!(cluster.unfit_pools()["blue"].to_string().contains("not inside the prefixes"));
        let spec = json!({"podCIDRs": ["fd00::/48"]});
        apply::<kubernetes::Node>(&mut cluster, json!({"metadata": {"name": "n"}, "spec": spec}));
        assert!(cluster.unfit_pools()["z"].to_string().contains("of node n"));
    }

    #[test]
    fn only_what_is_routed_changes_a_block() {
        let mut cluster = Cluster::new("default".parse().unwrap());
        let mut block = |given: Value| {
            let spec = json!({
                "pool": "p", "network": "default", "prefix": "10.1.0.0/26", "node": "a", "given": given,
            });
            let written: kubernetes::IPBlock =
                serde_json::from_value(json!({"metadata": {"name": "b"}, "spec": spec})).unwrap();
            cluster.apply(&Object::from(written)).ground
        };
        let own = json!({"address": "10.1.0.1", "node": "a", "holder": "h"});
        assert!(block(json!([])));
        assert!(!block(json!([own])));
        assert!(block(json!([own, {"address": "10.1.0.2", "node": "b", "holder": "h"}])));
    }
}
