//! Pools whose addresses nodes take in blocks: a node has blocks of its own, and borrows from others' when the pool is full.
//!
//! Every change is a block written in place of the version that was read (optimistic concurrency): of two nodes that want
//! the same address one writes first, and the other looks again. So nobody keeps a lock, and a crash between reading and
//! writing leaves nothing behind.

use std::collections::BTreeMap;
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// How often somebody else may be quicker before it is given up.
const ATTEMPTS: usize = 100;

/// The length of an IPv4 block's prefix: 64 addresses.
pub const BLOCK_V4: u8 = 26;
/// The length of an IPv6 block's prefix: 64 addresses.
pub const BLOCK_V6: u8 = 122;

/// Who has an address of a block.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Owner {
    /// The node, which need not be the block's.
    pub node: String,
    /// What of the node has it, e.g. an attachment.
    pub holder: String,
}

/// Some addresses of a pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Block {
    /// The addresses.
    pub prefix: IpNet,
    /// The node that takes from it first, and that its addresses are routed to.
    pub node: String,
    /// The addresses that are given.
    pub given: BTreeMap<IpAddr, Owner>,
}

impl Block {
    fn addresses(&self) -> impl Iterator<Item = IpAddr> + use<> {
        let (first, size) =
            (self.prefix.network(), 1u128 << (self.prefix.max_prefix_len() - self.prefix.prefix_len()));
        (0..size).map(move |i| match first {
            IpAddr::V4(first) => Ipv4Addr::from(u32::from(first).wrapping_add(i as u32)).into(),
            IpAddr::V6(first) => Ipv6Addr::from(u128::from(first).wrapping_add(i)).into(),
        })
    }

    fn free(&self, pool: &Pool) -> Option<IpAddr> {
        self.addresses().find(|it| !self.given.contains_key(it) && pool.gives(*it))
    }
}

/// A block as it was read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Versioned {
    /// The block.
    pub block: Block,
    /// What it must still be when it is written.
    pub version: u64,
}

/// Why a block was not written.
#[derive(Debug, Error)]
pub enum BlocksError {
    /// Somebody else has written it since it was read.
    #[error("the block was changed by another node")]
    Conflict,
    /// The blocks cannot be reached.
    #[error("the blocks of pools cannot be reached: {0}")]
    Away(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Where blocks are kept for all nodes, e.g. the API server.
pub trait Blocks: Send + Sync {
    /// All blocks of a pool.
    fn list(&self, pool: &str) -> impl Future<Output = Result<Vec<Versioned>, BlocksError>> + Send;

    /// Writes a block over the version that was read, or a new one when none was.
    fn write(
        &self,
        pool: &str,
        block: Block,
        over: Option<u64>,
    ) -> impl Future<Output = Result<(), BlocksError>> + Send;

    /// Removes a block whose version is still this one.
    fn remove(
        &self,
        pool: &str,
        prefix: IpNet,
        version: u64,
    ) -> impl Future<Output = Result<(), BlocksError>> + Send;
}

/// Why a pool gave no address.
#[derive(Debug, Error)]
pub enum PoolError {
    /// Everything is given.
    #[error(
        "all addresses of the pool {pool} ({prefix}) are given; add a pool, or see who has them with `penstock ipam show`"
    )]
    Exhausted {
        /// The pool's name.
        pool: String,
        /// Its addresses.
        prefix: IpNet,
    },
    /// An address that is asked for is not the pool's.
    #[error("{address} is not an address of the pool {pool} ({prefix})")]
    Outside {
        /// The address.
        address: IpAddr,
        /// The pool's name.
        pool: String,
        /// Its addresses.
        prefix: IpNet,
    },
    /// An address that is asked for is somebody else's.
    #[error("{address} was asked for and is given to {} on node {} already", .owner.holder, .owner.node)]
    Taken {
        /// The address.
        address: IpAddr,
        /// Who has it.
        owner: Owner,
    },
    /// Others were quicker each time.
    #[error("other nodes changed the blocks of pool {0} {ATTEMPTS} times in a row; try again")]
    Contended(String),
    /// The blocks cannot be reached.
    #[error(transparent)]
    Blocks(#[from] BlocksError),
}

/// Addresses that are given in blocks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pool {
    /// The pool's name.
    pub name: String,
    /// Its addresses.
    pub prefix: IpNet,
    /// The length of a block's prefix.
    pub block: u8,
}

impl Pool {
    /// A pool with blocks of 64 addresses, or of fewer when it has fewer itself.
    pub fn new(name: String, prefix: IpNet) -> Self {
        let block = if prefix.addr().is_ipv4() { BLOCK_V4 } else { BLOCK_V6 };
        Self { name, prefix, block: block.max(prefix.prefix_len()) }
    }

    /// Neither the pool's first address nor, of IPv4, its last is anybody's.
    fn gives(&self, address: IpAddr) -> bool {
        address != self.prefix.network() && !(address.is_ipv4() && address == self.prefix.broadcast())
    }

    /// Gives an address to a holder on a node: from the node's blocks, else from a new block, else from another node's.
    ///
    /// # Errors
    /// [`PoolError`].
    pub async fn take<B: Blocks>(
        &self,
        blocks: &B,
        owner: &Owner,
        requested: Option<IpAddr>,
    ) -> Result<IpAddr, PoolError> {
        for _ in 0..ATTEMPTS {
            let known = blocks.list(&self.name).await?;
            let (over, mut block, address) = match requested {
                Some(address) => self.find(&known, owner, address)?,
                None => self.choose(&known, owner)?,
            };
            block.given.insert(address, owner.clone());
            match blocks.write(&self.name, block, over).await {
                Ok(()) => return Ok(address),
                Err(BlocksError::Conflict) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(PoolError::Contended(self.name.clone()))
    }

    fn choose(&self, known: &[Versioned], owner: &Owner) -> Result<(Option<u64>, Block, IpAddr), PoolError> {
        let with_room =
            |it: &Versioned| it.block.free(self).map(|address| (Some(it.version), it.block.clone(), address));
        let own = known.iter().filter(|it| it.block.node == owner.node).find_map(with_room);
        own.or_else(|| {
            let block = self.cut(known, owner, None)?;
            let address = block.free(self)?;
            Some((None, block, address))
        })
        .or_else(|| known.iter().find_map(with_room))
        .ok_or_else(|| PoolError::Exhausted { pool: self.name.clone(), prefix: self.prefix })
    }

    fn find(
        &self,
        known: &[Versioned],
        owner: &Owner,
        address: IpAddr,
    ) -> Result<(Option<u64>, Block, IpAddr), PoolError> {
        if !self.prefix.contains(&address) || !self.gives(address) {
            let (pool, prefix) = (self.name.clone(), self.prefix);
            return Err(PoolError::Outside { address, pool, prefix });
        }
        if let Some(it) = known.iter().find(|it| it.block.prefix.contains(&address)) {
            return match it.block.given.get(&address) {
                Some(owner) => Err(PoolError::Taken { address, owner: owner.clone() }),
                None => Ok((Some(it.version), it.block.clone(), address)),
            };
        }
        let block = self.cut(known, owner, Some(address));
        let block =
            block.ok_or_else(|| PoolError::Exhausted { pool: self.name.clone(), prefix: self.prefix })?;
        Ok((None, block, address))
    }

    /// A new block for a node: the one that holds an address, or the first that there is none of yet.
    fn cut(&self, known: &[Versioned], owner: &Owner, holding: Option<IpAddr>) -> Option<Block> {
        let length = self.block.clamp(self.prefix.prefix_len(), self.prefix.max_prefix_len());
        let is_new = |prefix: &IpNet| !known.iter().any(|it| it.block.prefix == *prefix);
        let prefix = match holding {
            Some(address) => IpNet::new(address, length).ok()?.trunc(),
            None => self.prefix.subnets(length).ok()?.find(is_new)?,
        };
        Some(Block { prefix, node: owner.node.clone(), given: BTreeMap::new() })
    }

    /// Takes back what a holder has. A block that nobody has anything of any more goes, so that another node can have it.
    ///
    /// # Errors
    /// [`PoolError`].
    pub async fn release<B: Blocks>(&self, blocks: &B, owner: &Owner) -> Result<(), PoolError> {
        for _ in 0..ATTEMPTS {
            let known = blocks.list(&self.name).await?;
            let Some(held) = known.into_iter().find(|it| it.block.given.values().any(|it| it == owner))
            else {
                return Ok(());
            };
            let Versioned { mut block, version } = held;
            block.given.retain(|_, it| it != owner);
            let written = if block.given.is_empty() {
                blocks.remove(&self.name, block.prefix, version).await
            } else {
                blocks.write(&self.name, block, Some(version)).await
            };
            match written {
                Ok(()) | Err(BlocksError::Conflict) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(PoolError::Contended(self.name.clone()))
    }

    /// Takes back what a node's holders have that are not among `valid`; how many addresses that were.
    ///
    /// # Errors
    /// [`PoolError`].
    pub async fn collect<B: Blocks>(
        &self,
        blocks: &B,
        node: &str,
        valid: &[String],
    ) -> Result<usize, PoolError> {
        let known = blocks.list(&self.name).await?;
        let owners = known.iter().flat_map(|it| it.block.given.values());
        let stale: std::collections::BTreeSet<Owner> =
            owners.filter(|it| it.node == node && !valid.contains(&it.holder)).cloned().collect();
        for owner in &stale {
            self.release(blocks, owner).await?;
        }
        Ok(stale.len())
    }
}
