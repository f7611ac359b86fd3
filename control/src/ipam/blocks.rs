//! Pools whose addresses nodes take in blocks: a node has blocks of its own, and borrows from others' when the pool is full.
//!
//! Every change is a block written in place of the version that was read (optimistic concurrency): of two nodes that want
//! the same address one writes first, and the other looks again. So nobody keeps a lock, what is read may be old, and a
//! crash between reading and writing leaves nothing behind. A block goes with the last address that is given of it: a node
//! that has no pods keeps nothing from others.

use std::collections::{BTreeMap, BTreeSet};
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
    /// The network whose pods have the addresses.
    pub network: String,
    /// The addresses.
    pub prefix: IpNet,
    /// The node that takes from it first, and that its addresses are routed to.
    pub node: String,
    /// The addresses that are given.
    pub given: BTreeMap<IpAddr, Owner>,
    /// The one that was given last. Those behind it come next, so that what was freed lately, which others may still speak
    /// to, is given again late. Who takes a block anew begins at its beginning.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<IpAddr>,
}

/// Some addresses of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    /// Those behind the one that was given last.
    Behind,
    /// All of them.
    Whole,
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

    /// A free address: of those behind the one that was given last, or of all.
    fn free(&self, pool: &Pool, reserved: &[IpAddr], of: Part) -> Option<IpAddr> {
        let is_free = |it: &IpAddr| !self.given.contains_key(it) && pool.gives(*it) && !reserved.contains(it);
        let is_of = |it: &IpAddr| of == Part::Whole || self.last.is_none_or(|last| *it > last);
        self.addresses().filter(is_of).find(is_free)
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
    /// The pools that there are blocks of.
    fn pools(&self) -> impl Future<Output = Result<BTreeSet<String>, BlocksError>> + Send;

    /// All blocks of a pool, as they were some time ago, but not before the last [`Blocks::refresh`].
    fn list(&self, pool: &str) -> impl Future<Output = Result<Vec<Versioned>, BlocksError>> + Send;

    /// Makes sure that what is listed is not older than this call.
    fn refresh(&self) -> impl Future<Output = Result<(), BlocksError>> + Send {
        std::future::ready(Ok(()))
    }

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
        "all addresses of the pool {pool} ({prefixes}) are given; add prefixes or a pool, or see who has them with `kubectl get ipblocks -o wide`"
    )]
    Exhausted {
        /// The pool's name.
        pool: String,
        /// Its addresses.
        prefixes: String,
    },
    /// An address that is asked for is not the pool's.
    #[error("{address} was asked for and is not an address that the pool {pool} ({prefixes}) gives")]
    Outside {
        /// The address.
        address: IpAddr,
        /// The pool's name.
        pool: String,
        /// Its addresses.
        prefixes: String,
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

/// Addresses of one family that are given in blocks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pool {
    /// The pool's name.
    pub name: String,
    /// The network whose pods have the addresses.
    pub network: String,
    /// Its addresses.
    pub prefixes: Vec<IpNet>,
    /// The length of a block's prefix; a prefix that is smaller is one block.
    pub block: u8,
}

/// What is wanted of a pool.
#[derive(Debug, Clone, Copy, Default)]
pub struct Ask<'a> {
    /// The address that it must be.
    pub requested: Option<IpAddr>,
    /// The address that it is when it is free.
    pub preferred: Option<IpAddr>,
    /// Addresses that it must not be unless requested.
    pub reserved: &'a [IpAddr],
}

/// The version to write over, the block as it was, and an address of it that is free.
type Choice = (Option<u64>, Block, IpAddr);

impl Pool {
    /// Neither a prefix' first address nor, of IPv4, its last is anybody's.
    pub fn gives(&self, address: IpAddr) -> bool {
        self.prefixes.iter().any(|prefix| {
            let is_end = address == prefix.network() || (address.is_ipv4() && address == prefix.broadcast());
            prefix.contains(&address) && !is_end
        })
    }

    /// Its addresses, for people.
    fn words(&self) -> String {
        self.prefixes.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    }

    fn exhausted(&self) -> PoolError {
        PoolError::Exhausted { pool: self.name.clone(), prefixes: self.words() }
    }

    /// Gives an address to a holder on a node: from the node's blocks, else from a new block, else from another node's.
    ///
    /// # Errors
    /// [`PoolError`].
    pub async fn take<B: Blocks>(
        &self,
        blocks: &B,
        owner: &Owner,
        ask: &Ask<'_>,
    ) -> Result<IpAddr, PoolError> {
        for attempt in 0..ATTEMPTS {
            if attempt > 0 {
                blocks.refresh().await?;
            }
            let known = blocks.list(&self.name).await?;
            let chosen = match ask.requested {
                Some(address) => self.find(&known, owner, address),
                None => self.choose(&known, owner, ask),
            };
            let (over, mut block, address) = match chosen {
                // What is listed may be old.
                Err(PoolError::Exhausted { .. } | PoolError::Taken { .. }) if attempt == 0 => continue,
                chosen => chosen?,
            };
            block.given.insert(address, owner.clone());
            // One that was named says nothing of what comes next.
            if ask.requested.or(ask.preferred) != Some(address) {
                block.last = Some(address);
            }
            match blocks.write(&self.name, block, over).await {
                Ok(()) => return Ok(address),
                Err(BlocksError::Conflict) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(PoolError::Contended(self.name.clone()))
    }

    fn choose(&self, known: &[Versioned], owner: &Owner, ask: &Ask<'_>) -> Result<Choice, PoolError> {
        let preferred = ask.preferred.filter(|it| !ask.reserved.contains(it));
        if let Some(choice) = preferred.and_then(|it| self.find(known, owner, it).ok()) {
            return Ok(choice);
        }
        let with_room = |it: &Versioned, of: Part| {
            let address = it.block.free(self, ask.reserved, of)?;
            Some((Some(it.version), it.block.clone(), address))
        };
        let usable = || known.iter().filter(|it| it.block.network == self.network);
        let own = || usable().filter(|it| it.block.node == owner.node);
        let own = own()
            .find_map(|it| with_room(it, Part::Behind))
            .or_else(|| own().find_map(|it| with_room(it, Part::Whole)));
        let new = || {
            let (block, address) = self.uncut(known, owner).find_map(|block| {
                let address = block.free(self, ask.reserved, Part::Whole)?;
                Some((block, address))
            })?;
            Some((None, block, address))
        };
        let lent = || usable().find_map(|it| with_room(it, Part::Whole));
        own.or_else(new).or_else(lent).ok_or_else(|| self.exhausted())
    }

    fn find(&self, known: &[Versioned], owner: &Owner, address: IpAddr) -> Result<Choice, PoolError> {
        if !self.gives(address) {
            return Err(PoolError::Outside { address, pool: self.name.clone(), prefixes: self.words() });
        }
        let usable = |it: &&Versioned| it.block.network == self.network && it.block.prefix.contains(&address);
        if let Some(it) = known.iter().find(usable) {
            return match it.block.given.get(&address) {
                Some(owner) => Err(PoolError::Taken { address, owner: owner.clone() }),
                None => Ok((Some(it.version), it.block.clone(), address)),
            };
        }
        let block = self.uncut(known, owner).find(|block| block.prefix.contains(&address));
        Ok((None, block.ok_or_else(|| self.exhausted())?, address))
    }

    /// The blocks that there are none of yet, as they would be a node's. Blocks of other lengths may be from before the pool
    /// was changed.
    fn uncut(&self, known: &[Versioned], owner: &Owner) -> impl Iterator<Item = Block> {
        let is_new = |prefix: &IpNet| {
            let overlaps = |other: IpNet| other.contains(prefix) || prefix.contains(&other);
            !known.iter().any(|it| overlaps(it.block.prefix))
        };
        let cut = |prefix: &IpNet| {
            let length = self.block.clamp(prefix.prefix_len(), prefix.max_prefix_len());
            prefix.subnets(length).into_iter().flatten()
        };
        let (network, node) = (self.network.clone(), owner.node.clone());
        self.prefixes.iter().flat_map(cut).filter(is_new).map(move |prefix| Block {
            network: network.clone(),
            prefix,
            node: node.clone(),
            given: BTreeMap::new(),
            last: None,
        })
    }
}

/// Changes the blocks of a pool until `change` changes none of them any more; how many addresses that took back. A block
/// that nobody has anything of any more goes, so that another node can have it.
async fn amend<B: Blocks>(blocks: &B, pool: &str, change: impl Fn(&mut Block)) -> Result<usize, PoolError> {
    let (mut count, mut conflicts) = (0, 0);
    while conflicts < ATTEMPTS {
        let known = blocks.list(pool).await?;
        let changed = known.into_iter().find_map(|Versioned { block, version }| {
            let mut new = block.clone();
            change(&mut new);
            (new != block).then_some((block, new, version))
        });
        let Some((old, new, version)) = changed else { return Ok(count) };
        let taken_back = old.given.len() - new.given.len();
        let written = if new.given.is_empty() {
            blocks.remove(pool, new.prefix, version).await
        } else {
            blocks.write(pool, new, Some(version)).await
        };
        match written {
            Ok(()) => count += taken_back,
            Err(BlocksError::Conflict) => {
                conflicts += 1;
                blocks.refresh().await?;
            }
            Err(error) => return Err(error.into()),
        }
    }
    Err(PoolError::Contended(pool.to_owned()))
}

/// Takes back what a holder has of a pool, which need not be there itself any more.
///
/// # Errors
/// [`PoolError`].
pub async fn release<B: Blocks>(blocks: &B, pool: &str, owner: &Owner) -> Result<(), PoolError> {
    let take_back = |block: &mut Block| block.given.retain(|_, it| it != owner);
    if amend(blocks, pool, take_back).await? == 0 {
        // What is listed may be older than what the holder has.
        blocks.refresh().await?;
        amend(blocks, pool, take_back).await?;
    }
    Ok(())
}

/// Takes back what a node's holders have of a pool that is not valid; how many addresses that were.
///
/// # Errors
/// [`PoolError`].
pub async fn collect<B: Blocks>(
    blocks: &B,
    pool: &str,
    node: &str,
    is_valid: impl Fn(&str, IpAddr) -> bool,
) -> Result<usize, PoolError> {
    let keeps = |address: &IpAddr, owner: &Owner| owner.node != node || is_valid(&owner.holder, *address);
    amend(blocks, pool, |block| block.given.retain(|address, owner| keeps(address, owner))).await
}

/// Takes back what nodes have that are gone for good; how many addresses that were. A block of such a node of which others
/// borrowed is the first borrower's.
///
/// # Errors
/// [`PoolError`].
pub async fn bury<B: Blocks>(
    blocks: &B,
    pool: &str,
    is_gone: impl Fn(&str) -> bool,
) -> Result<usize, PoolError> {
    let take_back = |block: &mut Block| {
        block.given.retain(|_, owner| !is_gone(&owner.node));
        if is_gone(&block.node)
            && let Some(heir) = block.given.values().next()
        {
            block.node = heir.node.clone();
        }
    };
    amend(blocks, pool, take_back).await
}
