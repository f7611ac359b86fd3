//! Addresses of pools that nodes had which are gone: the agent that leads gives them back.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{Api, ListParams};
use tokio::sync::watch;
use tokio::time::sleep;

use super::residents::Known;
use crate::ipam::ServerBlocks;
use crate::ipam::blocks::{Blocks, PoolError, bury};

/// How often nodes are looked for.
const LOOK: Duration = Duration::from_secs(5);
/// How long a node must have been gone, with all of its pods: a kubelet whose node was deleted by mistake writes it anew.
const GONE: Duration = Duration::from_secs(10);

/// Gives back what nodes had that are gone, while it leads.
pub(super) struct Orphans {
    nodes: Api<Node>,
    pods: Api<Pod>,
    blocks: ServerBlocks,
    known: watch::Receiver<Known>,
    leading: watch::Receiver<bool>,
    /// Nodes that have addresses and are not there, and since when.
    missing: BTreeMap<String, Instant>,
}

impl Orphans {
    /// One that asks an API server.
    pub(super) fn new(
        client: kube::Client,
        blocks: ServerBlocks,
        known: watch::Receiver<Known>,
        leading: watch::Receiver<bool>,
    ) -> Self {
        let (nodes, pods) = (Api::all(client.clone()), Api::all(client));
        Self { nodes, pods, blocks, known, leading, missing: BTreeMap::new() }
    }

    /// Goes on until it is dropped.
    pub(super) async fn run(mut self) {
        loop {
            if *self.leading.borrow() {
                self.look().await;
            } else {
                self.missing.clear();
            }
            sleep(LOOK).await;
        }
    }

    async fn look(&mut self) {
        let with_addresses = self.blocks.sight().nodes();
        let unknown: BTreeSet<String> =
            with_addresses.difference(&self.known.borrow().nodes).cloned().collect();
        self.missing.retain(|node, _| unknown.contains(node));
        for node in unknown {
            match self.is_gone(&node).await {
                Ok(true) => drop(self.missing.entry(node).or_insert_with(Instant::now)),
                Ok(false) => drop(self.missing.remove(&node)),
                Err(error) => {
                    tracing::debug!("nobody knows whether node {node} is there: {error}");
                    return;
                }
            }
        }
        let long = self.missing.iter().filter(|(_, since)| since.elapsed() >= GONE);
        let gone: BTreeSet<String> = long.map(|(node, _)| node.clone()).collect();
        if gone.is_empty() {
            return;
        }
        let names = gone.iter().cloned().collect::<Vec<_>>().join(", ");
        match self.bury(&gone).await {
            Ok(count) => tracing::info!(
                "{count} addresses of pools were given back that nodes had which are gone: {names}"
            ),
            Err(error) => {
                tracing::warn!("what nodes had that are gone ({names}) is given back later: {error}");
            }
        }
    }

    /// Asked of the API server itself: what is known by watches may be old.
    async fn is_gone(&self, node: &str) -> Result<bool, kube::Error> {
        if self.nodes.get_metadata_opt(node).await?.is_some() {
            return Ok(false);
        }
        let of_node = ListParams::default().fields(&format!("spec.nodeName={node}")).limit(1);
        Ok(self.pods.list_metadata(&of_node).await?.items.is_empty())
    }

    async fn bury(&self, gone: &BTreeSet<String>) -> Result<usize, PoolError> {
        self.blocks.refresh().await?;
        let mut count = 0;
        for pool in self.blocks.pools().await? {
            count += bury(&self.blocks, &pool, |node| gone.contains(node)).await?;
        }
        Ok(count)
    }
}
