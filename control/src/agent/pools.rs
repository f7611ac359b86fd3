//! Pools of pods' addresses, as this node takes from them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use penstock_cni::failure::{Code, Failure};
use tokio::sync::{Mutex, Notify};

use super::residents::Known;
use crate::attach::FromPools;
use crate::cluster::{self, Cluster, Labels};
use crate::ipam::blocks::{
    Ask, BLOCK_V4, BLOCK_V6, Blocks, BlocksError, Owner, Pool, PoolError, collect, release,
};
use crate::ipam::{Granted, ServerBlocks};

/// The pools that are known, and why those are not given from that are not.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct PoolsKnown {
    pools: BTreeMap<String, cluster::Pool>,
    refused: BTreeMap<String, String>,
}

impl PoolsKnown {
    /// Those of a cluster, for a node with these labels.
    pub(super) fn of(cluster: &Cluster, node: Option<&Labels>) -> Self {
        let unfit = cluster.unfit_pools().into_iter();
        let mut refused: BTreeMap<String, String> =
            unfit.map(|(name, problem)| (name, problem.to_string())).collect();
        for (name, pool) in cluster.pools() {
            let why = if pool.disabled {
                "spec.disabled: it is disabled, so that nothing more is given; enable it"
            } else if !node.is_some_and(|labels| pool.nodes.matches(labels)) {
                "spec.nodeSelector: it does not select this node; extend it, or have the pod run elsewhere"
            } else {
                continue;
            };
            refused.entry(name.clone()).or_insert_with(|| why.to_owned());
        }
        Self { pools: cluster.pools().clone(), refused }
    }

    /// Whether this node takes from a pool for pods in a network.
    pub(super) fn serves(&self, network: &str) -> bool {
        self.pools.iter().any(|(name, pool)| pool.network == network && !self.refused.contains_key(name))
    }

    /// The pools that may give a pod its addresses, best first: those that were named, else those that select it.
    ///
    /// # Errors
    /// [`Code::Config`] when one that was named may not.
    pub(super) fn candidates(
        &self,
        known: &Known,
        wanted: &FromPools<'_>,
    ) -> Result<Vec<(String, cluster::Pool)>, Failure> {
        let labels = wanted.pod.and_then(|pod| known.labels(pod));
        let of = |name: &String| self.pools.get(name).map(|pool| (name.clone(), pool.clone()));
        if wanted.named.is_empty() {
            let Some((namespace, pod)) = labels else { return Ok(Vec::new()) };
            let selects = |pool: &cluster::Pool| {
                pool.network == wanted.network
                    && pool.namespaces.matches(&namespace)
                    && pool.pods.matches(&pod)
            };
            let names = self.pools.keys().filter(|name| !self.refused.contains_key(*name));
            return Ok(names.filter_map(of).filter(|(_, pool)| selects(pool)).collect());
        }
        let mut candidates = Vec::new();
        for name in wanted.named {
            let refuse = |why: String| {
                let msg = format!("addresses of the pool {name:?} were asked for: {why}");
                Err(Failure::new(Code::Config, msg))
            };
            let Some((name, pool)) = of(name) else {
                return refuse("there is no such IPPool for pods; name one that there is".to_owned());
            };
            if let Some(why) = self.refused.get(&name) {
                return refuse(why.clone());
            }
            if pool.network != wanted.network {
                return refuse(format!(
                    "it is for network {}, and the pod is in {}; name a pool of that",
                    pool.network, wanted.network
                ));
            }
            if let Some((namespace, _)) = &labels
                && !pool.namespaces.matches(namespace)
            {
                return refuse("spec.namespaceSelector: it does not select the pod's; extend it".to_owned());
            }
            candidates.push((name, pool));
        }
        Ok(candidates)
    }
}

/// Why pools give nothing without an API server.
pub(super) fn without_server(candidates: &[(String, cluster::Pool)]) -> Failure {
    let names: Vec<&str> = candidates.iter().map(|(name, _)| name.as_str()).collect();
    let msg = format!(
        "the pod's addresses are of the pool {}, whose blocks are kept at an API server, and this agent follows a directory; run it with --kubeconfig, or remove the pool so that the node's pod CIDRs are given from",
        names.join(", ")
    );
    Failure::new(Code::Config, msg)
}

/// The part of a pool that is of one family; none when it has no such prefixes.
fn of_family(name: &str, pool: &cluster::Pool, ipv4: bool) -> Option<Pool> {
    let prefixes: Vec<_> =
        pool.prefixes.iter().filter(|it| it.is_ipv4() == ipv4).map(|it| it.net()).collect();
    let block = if ipv4 { pool.block_v4.unwrap_or(BLOCK_V4) } else { pool.block_v6.unwrap_or(BLOCK_V6) };
    let (name, network) = (name.to_owned(), pool.network.clone());
    (!prefixes.is_empty()).then_some(Pool { name, network, prefixes, block })
}

fn failure(error: PoolError) -> Failure {
    let code = match error {
        PoolError::Exhausted { .. } | PoolError::Outside { .. } | PoolError::Taken { .. } => Code::Addresses,
        PoolError::Contended(_) | PoolError::Blocks(_) => Code::TryAgainLater,
    };
    let mend = match error {
        PoolError::Blocks(BlocksError::Away(_)) => {
            "; does the API server answer the agent, serve ipblocks.penstock.dev (the chart's crds), and let it write them?"
        }
        _ => "",
    };
    Failure::new(code, format!("{error}{mend}"))
}

/// The pools of the cluster, as a node takes from them.
#[derive(Debug)]
pub(super) struct Pools {
    node: String,
    blocks: ServerBlocks,
    /// One at a time: a node does not race itself for its own blocks.
    turn: Mutex<()>,
    owes: Notify,
}

impl Pools {
    /// Those of a node, whose blocks are kept there.
    pub(super) fn new(node: &str, blocks: ServerBlocks) -> Self {
        Self { node: node.to_owned(), blocks, turn: Mutex::default(), owes: Notify::new() }
    }

    /// Waits until something could not be given back.
    pub(super) async fn owing(&self) {
        self.owes.notified().await;
    }

    fn owner(&self, holder: &str) -> Owner {
        Owner { node: self.node.clone(), holder: holder.to_owned() }
    }

    /// Gives one address of each family that one of the pools has, or none at all.
    pub(super) async fn take(
        &self,
        candidates: &[(String, cluster::Pool)],
        wanted: &FromPools<'_>,
    ) -> Result<Vec<Granted>, Failure> {
        let mut granted: Vec<Granted> = Vec::new();
        for ipv4 in [true, false] {
            let pools: Vec<Pool> =
                candidates.iter().filter_map(|(name, pool)| of_family(name, pool, ipv4)).collect();
            match self.take_one(&pools, wanted, ipv4).await {
                Ok(one) => granted.extend(one),
                Err(failure) => {
                    let pools: BTreeSet<String> = granted.into_iter().filter_map(|it| it.pool).collect();
                    for pool in &pools {
                        self.give_back(pool, wanted.holder).await;
                    }
                    return Err(failure);
                }
            }
        }
        if granted.is_empty() && !wanted.named.is_empty() && wanted.requested.is_empty() {
            let msg = format!("the pool {} has no prefixes; add some", wanted.named.join(", "));
            return Err(Failure::new(Code::Config, msg));
        }
        for it in &granted {
            // Once this node's ways are as the blocks are, so that its pod speaks to others by the right ones.
            let pool = it.pool.as_deref().unwrap_or_default();
            self.blocks.sight().until_told(pool, it.address.addr()).await;
        }
        Ok(granted)
    }

    /// An address of a family: of the pool that has the one that was asked for, else of the first that has one left.
    async fn take_one(
        &self,
        pools: &[Pool],
        wanted: &FromPools<'_>,
        ipv4: bool,
    ) -> Result<Option<Granted>, Failure> {
        let is_meant = |it: &&IpAddr| it.is_ipv4() == ipv4;
        let requested: Vec<IpAddr> = wanted.requested.iter().filter(is_meant).copied().collect();
        let requested = match requested[..] {
            [] => None,
            // One of none of the pools may be of the node's ranges.
            [address] if pools.iter().any(|pool| pool.gives(address)) => Some(address),
            [_] => return Ok(None),
            [one, other, ..] if !pools.is_empty() => {
                let msg =
                    format!("{one} and {other} were asked for, and a pod gets one address of each family");
                return Err(Failure::new(Code::Addresses, msg));
            }
            _ => return Ok(None),
        };
        let preferred: Vec<IpAddr> = wanted.preferred.iter().filter(is_meant).copied().collect();
        let spared: Vec<IpAddr> = wanted.spared.iter().chain(wanted.reserved).copied().collect();
        let mut last = None;
        // Rather an address that another pod may come back for than none.
        for reserved in [spared.as_slice(), wanted.reserved] {
            for pool in pools.iter().filter(|pool| requested.is_none_or(|it| pool.gives(it))) {
                let preferred = preferred.iter().copied().find(|it| pool.gives(*it));
                let ask = Ask { requested, preferred, reserved };
                match self.take_of(pool, wanted.holder, &ask).await {
                    Ok(granted) => return Ok(Some(granted)),
                    Err(error @ PoolError::Exhausted { .. }) => last = Some(failure(error)),
                    Err(error) => return Err(failure(error)),
                }
            }
        }
        last.map_or(Ok(None), Err)
    }

    async fn take_of(&self, pool: &Pool, holder: &str, ask: &Ask<'_>) -> Result<Granted, PoolError> {
        let _turn = self.turn.lock().await;
        match pool.take(&self.blocks, &self.owner(holder), ask).await {
            Ok(address) => {
                Ok(Granted { address: address.into(), gateway: None, pool: Some(pool.name.clone()) })
            }
            Err(error) => {
                if matches!(error, PoolError::Blocks(_)) {
                    // It may have been written all the same.
                    self.owes.notify_one();
                }
                Err(error)
            }
        }
    }

    /// Takes back what a holder has of a pool, now or when that can be.
    pub(super) async fn give_back(&self, pool: &str, holder: &str) {
        let _turn = self.turn.lock().await;
        if let Err(error) = release(&self.blocks, pool, &self.owner(holder)).await {
            tracing::warn!("addresses of {holder} are given back to the pool {pool} later: {error}");
            self.owes.notify_one();
        }
    }

    /// Gives back what no record has, and takes what a record has and no block says.
    pub(super) async fn collect(
        &self,
        known: &PoolsKnown,
        valid: &[(String, IpAddr, String)],
    ) -> Result<(), Failure> {
        let _turn = self.turn.lock().await;
        let failed = |error: BlocksError| failure(error.into());
        self.blocks.refresh().await.map_err(failed)?;
        for pool in self.blocks.pools().await.map_err(failed)? {
            let is_valid = |holder: &str, address: IpAddr| {
                valid.iter().any(|(of, had, by)| *of == pool && *had == address && by == holder)
            };
            let count = collect(&self.blocks, &pool, &self.node, is_valid).await.map_err(failure)?;
            if count > 0 {
                tracing::info!("{count} addresses that nobody here has were given back to the pool {pool}");
            }
        }
        for (pool, address, holder) in valid {
            if self.blocks.sight().owner(pool, *address) != Some(self.owner(holder)) {
                self.claim(known, pool, *address, holder).await?;
            }
        }
        Ok(())
    }

    /// Has a block say of an address what a record does: somebody took the node for gone, or removed the block.
    async fn claim(
        &self,
        known: &PoolsKnown,
        name: &str,
        address: IpAddr,
        holder: &str,
    ) -> Result<(), Failure> {
        let pool = known.pools.get(name).and_then(|pool| of_family(name, pool, address.is_ipv4()));
        let Some(pool) = pool else {
            tracing::error!("{holder} has {address} of the pool {name}, which is not there any more");
            return Ok(());
        };
        let ask = Ask { requested: Some(address), ..Ask::default() };
        match pool.take(&self.blocks, &self.owner(holder), &ask).await {
            Ok(_) => {
                tracing::warn!("{holder} has {address}, which no block of the pool {name} said; now one does")
            }
            Err(error @ PoolError::Blocks(_)) => return Err(failure(error)),
            Err(error) => {
                tracing::error!("{holder} has {address} and must not: {error}; delete its pod");
            }
        }
        Ok(())
    }

    /// What records and blocks do not agree about.
    pub(super) fn astray(&self, valid: &[(String, IpAddr, String)]) -> Vec<String> {
        let given = self.blocks.sight().given_on(&self.node);
        let lost = given.iter().filter(|it| !valid.contains(it)).map(|(pool, address, holder)| {
            format!("{address} of the pool {pool} is given to {holder}, which is not here; the agent gives it back within minutes")
        });
        let unsaid = valid.iter().filter(|it| !given.contains(it)).map(|(pool, address, holder)| {
            format!("{holder} has {address}, and no block of the pool {pool} says so; the agent's log says why it is not taken")
        });
        lost.chain(unsaid).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attach::Pod;
    use crate::kubernetes::{self, Object};
    use serde_json::{Value, json};

    fn object<T: serde::de::DeserializeOwned>(object: Value) -> Object
    where
        Object: From<T>,
    {
        serde_json::from_value::<T>(object).unwrap().into()
    }

    /// A node `a` in zone `x` with a pod `shop/web` of the application `web`, and pools.
    fn known(pools: &[(&str, Value)]) -> Known {
        let mut known = Known::of_node("a", true);
        let mut cluster = Cluster::new("default".parse().unwrap());
        let metadata = json!({"name": "web", "namespace": "shop", "labels": {"app": "web"}});
        let pods = json!({"metadata": metadata, "spec": {"nodeName": "a", "containers": []}});
        known.apply(&object::<kubernetes::Pod>(pods));
        let shop = json!({"metadata": {"name": "shop", "labels": {"team": "red"}}});
        known.apply(&object::<kubernetes::Namespace>(shop));
        let node = json!({"metadata": {"name": "a", "labels": {"zone": "x"}}});
        cluster.apply(&object::<kubernetes::Node>(node));
        for (i, (name, spec)) in pools.iter().enumerate() {
            let mut spec = spec.clone();
            spec["prefixes"] = json!([format!("10.{i}.0.0/24")]);
            cluster.apply(&object::<kubernetes::IPPool>(json!({"metadata": {"name": name}, "spec": spec})));
        }
        assert!(known.look(&cluster));
        known
    }

    fn asked(known: &Known, named: &[&str]) -> Result<Vec<String>, Failure> {
        let pod = Pod { namespace: "shop".into(), name: "web".into(), uid: None };
        let named: Vec<String> = named.iter().map(|it| (*it).to_owned()).collect();
        let wanted = FromPools {
            pod: Some(&pod),
            network: "default",
            holder: "h",
            named: &named,
            requested: &[],
            preferred: &[],
            reserved: &[],
            spared: &[],
        };
        let candidates = known.pools.candidates(known, &wanted)?;
        Ok(candidates.into_iter().map(|(name, _)| name).collect())
    }

    fn labelled(label: &str, value: &str) -> Value {
        json!({"matchLabels": {label: value}})
    }

    #[test]
    fn a_pod_gets_addresses_of_the_pools_that_select_it() {
        let known = known(&[
            ("all", json!({})),
            ("by-app", json!({"podSelector": labelled("app", "web")})),
            ("by-team", json!({"namespaceSelector": labelled("team", "red")})),
            ("by-name", json!({"namespaceSelector": labelled("kubernetes.io/metadata.name", "shop")})),
            ("by-zone", json!({"nodeSelector": labelled("zone", "x")})),
            ("other-app", json!({"podSelector": labelled("app", "db")})),
            ("other-team", json!({"namespaceSelector": labelled("team", "blue")})),
            ("other-zone", json!({"nodeSelector": labelled("zone", "y")})),
            ("disabled", json!({"disabled": true})),
            ("elsewhere", json!({"network": "blue"})),
            ("services", json!({"use": "LoadBalancer"})),
        ]);
        assert_eq!(asked(&known, &[]).unwrap(), ["all", "by-app", "by-name", "by-team", "by-zone"]);
        assert!(known.pools.serves("default") && !known.pools.serves("blue"));
    }

    #[test]
    fn pools_that_are_named_come_in_that_order_or_it_is_said_why_not() {
        let known = known(&[
            ("all", json!({})),
            ("other-app", json!({"podSelector": labelled("app", "db")})),
            ("other-team", json!({"namespaceSelector": labelled("team", "blue")})),
            ("other-zone", json!({"nodeSelector": labelled("zone", "y")})),
            ("disabled", json!({"disabled": true})),
            ("elsewhere", json!({"network": "blue"})),
        ]);
        // Who asks for a pool need not be selected by it.
        assert_eq!(asked(&known, &["other-app", "all"]).unwrap(), ["other-app", "all"]);
        for (name, why) in [
            ("none", "no such IPPool"),
            ("other-team", "spec.namespaceSelector"),
            ("other-zone", "spec.nodeSelector"),
            ("disabled", "spec.disabled"),
            ("elsewhere", "there is no network blue"),
        ] {
            let failure = asked(&known, &[name]).unwrap_err();
            assert!(failure.code == Code::Config && failure.msg.contains(why), "{failure}");
        }
    }
}
