//! Blocks at the API server: an `IPBlock` each, whose resource version is the version that a change is written over.
//!
//! ```text
//!  watch of IPBlocks ──> Sight ──list──> Pool::take ──write over the version──> API server
//!                          ^  ^                                   |
//!                          |  └──── what was written ─────────────┘
//!                          └─────── a list of all, after a conflict
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::future::Future;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Client, ResourceExt};
use serde_json::json;
use thiserror::Error;
use tokio::sync::watch;
use tokio::time::timeout;

use super::blocks::{Block, Blocks, BlocksError, Owner, Versioned};
use crate::kubernetes::{GivenAddress, IPBlock, IPBlockSpec};

/// How long the API server may take for one answer: a runtime waits for it.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long the watch may take to tell of what was written.
const ECHO: Duration = Duration::from_secs(2);
/// The longest part of a pool's name that stands in its blocks' names: with a prefix behind, no name is too long.
const READABLE: usize = 180;

/// An `IPBlock` that says what cannot be.
#[derive(Debug, Error)]
pub enum Unreadable {
    /// Something that is no prefix or no address.
    #[error(
        "IPBlock {name}: {text:?} is no prefix and no address; delete the block if no pod has addresses of it"
    )]
    Address {
        /// The block's name.
        name: String,
        /// What stands there.
        text: String,
    },
    /// A version that cannot be compared.
    #[error("IPBlock {name}: the resource version {text:?} is no number, which this API server gives")]
    Version {
        /// The block's name.
        name: String,
        /// What stands there.
        text: String,
    },
}

/// The API server did not answer in time.
#[derive(Debug, Error)]
#[error("no answer within {} s", .0.as_secs())]
struct Silent(Duration);

/// A block as it is known.
#[derive(Debug, Clone)]
struct Seen {
    pool: String,
    held: Versioned,
    /// The version that the watch told of.
    told: u64,
}

/// The blocks of all pools as they are known: as a watch tells them, and as they were written here. Clones see the same.
#[derive(Debug, Clone, Default)]
pub struct Sight(Arc<watch::Sender<BTreeMap<String, Seen>>>);

impl Sight {
    /// Takes what the watch tells of a block.
    ///
    /// # Errors
    /// [`Unreadable`]; what was known of it before stays.
    pub fn apply(&self, written: &IPBlock) -> Result<(), Unreadable> {
        let (pool, new) = read(written)?;
        self.0.send_modify(|blocks| {
            let told = new.version;
            let seen = blocks.entry(written.name_any()).or_insert_with(|| Seen {
                pool: pool.clone(),
                held: new.clone(),
                told,
            });
            seen.told = seen.told.max(told);
            if new.version > seen.held.version {
                (seen.pool, seen.held) = (pool, new);
            }
        });
        Ok(())
    }

    /// Forgets a block that the watch says is gone.
    pub fn remove(&self, name: &str) {
        self.0.send_modify(|blocks| drop(blocks.remove(name)));
    }

    /// The nodes that have blocks, or addresses of any.
    pub fn nodes(&self) -> BTreeSet<String> {
        let blocks = self.0.borrow();
        let of_block = |block: &Block| {
            let owners = block.given.values().map(|owner| owner.node.clone());
            owners.chain([block.node.clone()]).collect::<Vec<String>>()
        };
        blocks.values().flat_map(|seen| of_block(&seen.held.block)).collect()
    }

    /// Who has an address of a pool.
    pub fn owner(&self, pool: &str, address: IpAddr) -> Option<Owner> {
        let blocks = self.0.borrow();
        let mut of_pool = blocks.values().filter(|seen| seen.pool == pool);
        of_pool.find_map(|seen| seen.held.block.given.get(&address).cloned())
    }

    /// The addresses that a node's pods have, with pool and holder.
    pub fn given_on(&self, node: &str) -> Vec<(String, IpAddr, String)> {
        let blocks = self.0.borrow();
        let of_block = |seen: &Seen| {
            let own = seen.held.block.given.iter().filter(|(_, owner)| owner.node == node);
            own.map(|(address, owner)| (seen.pool.clone(), *address, owner.holder.clone()))
                .collect::<Vec<_>>()
        };
        blocks.values().flat_map(of_block).collect()
    }

    /// Waits, but not for long, until the watch has told of the block that an address is of as it is known here: then all who
    /// are told by that watch know it, too.
    pub async fn until_told(&self, pool: &str, address: IpAddr) {
        let mut seen = self.0.subscribe();
        let is_told = |blocks: &BTreeMap<String, Seen>| {
            let mut of_pool = blocks.values().filter(|it| it.pool == pool);
            of_pool.all(|it| !it.held.block.prefix.contains(&address) || it.told >= it.held.version)
        };
        if !matches!(timeout(ECHO, seen.wait_for(is_told)).await, Ok(Ok(_))) {
            tracing::warn!("the watch of IPBlocks is late: the ways to {address} may not be there yet");
        }
    }

    fn note(&self, name: String, pool: &str, held: Versioned) {
        self.0.send_modify(|blocks| {
            let told = blocks.get(&name).map_or(0, |seen| seen.told);
            blocks.insert(name, Seen { pool: pool.to_owned(), held, told });
        });
    }
}

/// A block as the API server has it.
fn read(written: &IPBlock) -> Result<(String, Versioned), Unreadable> {
    let unreadable = |text: &str| Unreadable::Address { name: written.name_any(), text: text.to_owned() };
    let spec = &written.spec;
    let text = written.metadata.resource_version.clone().unwrap_or_default();
    let version = text.parse().map_err(|_| Unreadable::Version { name: written.name_any(), text })?;
    let prefix: IpNet = spec.prefix.parse().map_err(|_| unreadable(&spec.prefix))?;
    let given = spec.given.iter().map(|it| {
        let address: IpAddr = it.address.parse().map_err(|_| unreadable(&it.address))?;
        Ok((address, Owner { node: it.node.clone(), holder: it.holder.clone() }))
    });
    let given = given.collect::<Result<BTreeMap<IpAddr, Owner>, Unreadable>>()?;
    let parse = |text: &String| text.parse().map_err(|_| unreadable(text));
    let last = spec.last.as_ref().map(parse).transpose()?;
    let block = Block { network: spec.network.clone(), prefix, node: spec.node.clone(), given, last };
    Ok((spec.pool.clone(), Versioned { block, version }))
}

fn spec(pool: &str, block: &Block) -> IPBlockSpec {
    let given = block.given.iter().map(|(address, owner)| GivenAddress {
        address: address.to_string(),
        node: owner.node.clone(),
        holder: owner.holder.clone(),
    });
    IPBlockSpec {
        pool: pool.to_owned(),
        network: block.network.clone(),
        prefix: block.prefix.to_string(),
        node: block.node.clone(),
        given: given.collect(),
        last: block.last.map(|it| it.to_string()),
    }
}

/// The name of a block, `web.10-1-0-64-26`: that of two is the same only if they are of one pool and one prefix.
fn name(pool: &str, prefix: IpNet) -> String {
    let address = match prefix.network() {
        IpAddr::V4(address) => address.octets().map(|it| it.to_string()).join("-"),
        IpAddr::V6(address) => address.segments().map(|it| format!("{it:x}")).join("-"),
    };
    let place = format!("{address}-{}", prefix.prefix_len());
    if pool.len() <= READABLE {
        return format!("{pool}.{place}");
    }
    // FNV-1a (draft-eastlake-fnv): the same everywhere.
    let number = pool.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    let readable: String = pool.chars().take(READABLE).collect();
    format!("{}.{number:016x}.{place}", readable.trim_end_matches(['.', '-']))
}

/// Blocks at the API server.
#[derive(Debug, Clone)]
pub struct ServerBlocks {
    api: Api<IPBlock>,
    sight: Sight,
}

fn away(error: impl Into<Box<dyn Error + Send + Sync>>) -> BlocksError {
    BlocksError::Away(error.into())
}

/// There is no such thing.
const GONE: u16 = 404;
/// There is one of another version, or one of this name already.
const OTHER: u16 = 409;

/// What the API server answers, but not for ever; some codes say that somebody else was quicker.
async fn answered<T>(
    call: impl Future<Output = Result<T, kube::Error>>,
    conflicts: &[u16],
) -> Result<T, BlocksError> {
    match timeout(PATIENCE, call).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(kube::Error::Api(status))) if conflicts.contains(&status.code) => Err(BlocksError::Conflict),
        Ok(Err(error)) => Err(away(error)),
        Err(_) => Err(away(Silent(PATIENCE))),
    }
}

impl ServerBlocks {
    /// The blocks of an API server, of which a watch tells `sight`.
    #[must_use]
    pub fn new(client: Client, sight: Sight) -> Self {
        Self { api: Api::all(client), sight }
    }

    /// The blocks as they are known.
    pub fn sight(&self) -> &Sight {
        &self.sight
    }
}

impl Blocks for ServerBlocks {
    async fn pools(&self) -> Result<BTreeSet<String>, BlocksError> {
        Ok(self.sight.0.borrow().values().map(|seen| seen.pool.clone()).collect())
    }

    async fn list(&self, pool: &str) -> Result<Vec<Versioned>, BlocksError> {
        let blocks = self.sight.0.borrow();
        Ok(blocks.values().filter(|seen| seen.pool == pool).map(|seen| seen.held.clone()).collect())
    }

    async fn refresh(&self) -> Result<(), BlocksError> {
        let listed = match answered(self.api.list(&ListParams::default()), &[GONE]).await {
            // A server that does not serve the kind has none.
            Err(BlocksError::Conflict) => Vec::new(),
            listed => listed?.items,
        };
        let mut new = BTreeMap::new();
        for written in &listed {
            let (pool, held) = read(written).map_err(away)?;
            new.insert(written.name_any(), (pool, held));
        }
        self.sight.0.send_modify(|blocks| {
            let with_told = |(name, (pool, held)): (String, (String, Versioned))| match blocks.get(&name) {
                Some(newer) if newer.held.version > held.version => (name, newer.clone()),
                before => {
                    let told = before.map_or(0, |seen| seen.told);
                    (name, Seen { pool, held, told })
                }
            };
            *blocks = new.into_iter().map(with_told).collect();
        });
        Ok(())
    }

    async fn write(&self, pool: &str, block: Block, over: Option<u64>) -> Result<(), BlocksError> {
        let name = name(pool, block.prefix);
        let spec = spec(pool, &block);
        let written = match over {
            None => {
                let new = IPBlock::new(&name, spec);
                let params = PostParams::default();
                answered(self.api.create(&params, &new), &[OTHER]).await?
            }
            Some(version) => {
                // With the version in it the server refuses what somebody else was faster with.
                let change = json!({"metadata": {"resourceVersion": version.to_string()}, "spec": spec});
                let (params, change) = (PatchParams::default(), Patch::Merge(change));
                answered(self.api.patch(&name, &params, &change), &[GONE, OTHER]).await?
            }
        };
        let (pool, held) = read(&written).map_err(away)?;
        self.sight.note(name, &pool, held);
        Ok(())
    }

    async fn remove(&self, pool: &str, prefix: IpNet, version: u64) -> Result<(), BlocksError> {
        let name = name(pool, prefix);
        let only = Preconditions { resource_version: Some(version.to_string()), uid: None };
        let params = DeleteParams::default().preconditions(only);
        answered(self.api.delete(&name, &params), &[GONE, OTHER]).await?;
        self.sight.remove(&name);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blocks_name_is_its_own_and_one_that_the_api_server_takes() {
        let long = "a.".repeat(126) + "b";
        let names: BTreeSet<String> = ["web", "web.10-1", &long, &long.replace('b', "c")]
            .into_iter()
            .flat_map(|pool| ["10.1.0.64/26", "::/122", "fd00:1::40/122"].map(|it| (pool, it)))
            .map(|(pool, prefix)| name(pool, prefix.parse().unwrap()))
            .collect();
        assert_eq!(names.len(), 12);
        assert!(names.contains("web.10-1-0-64-26") && names.contains("web.fd00-1-0-0-0-0-0-40-122"));
        for name in names {
            // RFC 1123, as Kubernetes asks for it.
            let is_label =
                |it: &str| !it.is_empty() && !it.starts_with('-') && !it.ends_with('-') && it.len() <= 63;
            assert!(name.len() <= 253 && name.split('.').all(is_label), "{name}");
        }
    }

    #[tokio::test]
    async fn what_was_written_here_is_known_before_the_watch_tells_it_and_not_undone_by_what_it_tells_late() {
        let written = |version: &str, given: &[&str]| {
            let given = given.iter().map(|address| json!({"address": address, "node": "a", "holder": "h"}));
            let spec = json!({
                "pool": "p", "network": "default", "prefix": "10.0.0.0/26", "node": "a",
                "given": given.collect::<Vec<_>>(),
            });
            let metadata = json!({"name": "p.10-0-0-0-26", "resourceVersion": version});
            serde_json::from_value::<IPBlock>(json!({"metadata": metadata, "spec": spec})).unwrap()
        };
        let sight = Sight::default();
        sight.apply(&written("7", &[])).unwrap();
        let (pool, held) = read(&written("9", &["10.0.0.1"])).unwrap();
        sight.note("p.10-0-0-0-26".to_owned(), &pool, held);
        let one: IpAddr = "10.0.0.1".parse().unwrap();
        assert_eq!(sight.owner("p", one).unwrap().holder, "h");
        sight.apply(&written("8", &[])).unwrap();
        assert!(sight.owner("p", one).is_some());
        let waits = sight.until_told("p", one);
        tokio::pin!(waits);
        assert!(futures::poll!(&mut waits).is_pending());
        sight.apply(&written("9", &["10.0.0.1"])).unwrap();
        waits.await;
        assert_eq!(sight.nodes(), BTreeSet::from(["a".to_owned()]));
        sight.remove("p.10-0-0-0-26");
        assert_eq!(sight.owner("p", one), None);
        assert!(matches!(sight.apply(&written("x", &[])), Err(Unreadable::Version { .. })));
    }
}
