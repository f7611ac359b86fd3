//! Blocks in memory and in a file: for tests, and for nodes that share a file system instead of an API server.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::blocks::{Block, Blocks, BlocksError, Versioned};

/// All pools' blocks.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct Kept {
    /// The last version that was given to a block. Each is given once, so that a block that went and came again is not taken
    /// for what it was.
    version: u64,
    pools: BTreeMap<String, Vec<Versioned>>,
}

fn write(kept: &mut Kept, pool: &str, block: Block, over: Option<u64>) -> Result<(), BlocksError> {
    let version = kept.version + 1;
    let blocks = kept.pools.entry(pool.to_owned()).or_default();
    let found = blocks.iter_mut().find(|it| it.block.prefix == block.prefix);
    match (found, over) {
        (Some(it), Some(read)) if it.version == read => *it = Versioned { block, version },
        (None, None) => blocks.push(Versioned { block, version }),
        _ => return Err(BlocksError::Conflict),
    }
    kept.version = version;
    Ok(())
}

fn remove(kept: &mut Kept, pool: &str, prefix: IpNet, version: u64) -> Result<(), BlocksError> {
    let blocks = kept.pools.entry(pool.to_owned()).or_default();
    let place = blocks.iter().position(|it| it.block.prefix == prefix && it.version == version);
    blocks.remove(place.ok_or(BlocksError::Conflict)?);
    Ok(())
}

/// Blocks in memory.
#[derive(Debug, Default)]
pub struct MemoryBlocks(Mutex<Kept>);

impl Blocks for MemoryBlocks {
    async fn list(&self, pool: &str) -> Result<Vec<Versioned>, BlocksError> {
        let listed = self.0.lock().unwrap_or_else(PoisonError::into_inner).pools.get(pool).cloned();
        // Others have their turn between what is read and what is written.
        tokio::task::yield_now().await;
        Ok(listed.unwrap_or_default())
    }

    async fn write(&self, pool: &str, block: Block, over: Option<u64>) -> Result<(), BlocksError> {
        write(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner), pool, block, over)
    }

    async fn remove(&self, pool: &str, prefix: IpNet, version: u64) -> Result<(), BlocksError> {
        remove(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner), pool, prefix, version)
    }
}

/// Blocks in one file, which is locked while it is changed.
#[derive(Debug)]
pub struct FileBlocks(PathBuf);

fn away(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> BlocksError {
    BlocksError::Away(error.into())
}

impl FileBlocks {
    /// The blocks in a file, which is made when there is none.
    pub fn at(path: &Path) -> Self {
        Self(path.to_owned())
    }

    /// The file is locked, not replaced: whoever waits for the lock reads what was written last.
    fn locked<T>(&self, change: impl FnOnce(&mut Kept) -> Result<T, BlocksError>) -> Result<T, BlocksError> {
        let mut file = File::options()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(&self.0)
            .map_err(away)?;
        file.lock().map_err(away)?;
        let mut text = String::new();
        file.read_to_string(&mut text).map_err(away)?;
        let mut kept: Kept =
            if text.is_empty() { Kept::default() } else { serde_json::from_str(&text).map_err(away)? };
        let before = kept.clone();
        let done = change(&mut kept)?;
        if kept != before {
            let text = serde_json::to_vec(&kept).map_err(away)?;
            file.rewind().map_err(away)?;
            file.write_all(&text).map_err(away)?;
            file.set_len(text.len() as u64).map_err(away)?;
            file.sync_all().map_err(away)?;
        }
        Ok(done)
    }
}

impl Blocks for FileBlocks {
    async fn list(&self, pool: &str) -> Result<Vec<Versioned>, BlocksError> {
        self.locked(|kept| Ok(kept.pools.get(pool).cloned().unwrap_or_default()))
    }

    async fn write(&self, pool: &str, block: Block, over: Option<u64>) -> Result<(), BlocksError> {
        self.locked(|kept| write(kept, pool, block, over))
    }

    async fn remove(&self, pool: &str, prefix: IpNet, version: u64) -> Result<(), BlocksError> {
        self.locked(|kept| remove(kept, pool, prefix, version))
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;
    use std::sync::Arc;

    use super::super::blocks::{Owner, Pool, PoolError};
    use super::*;
    use proptest::prelude::*;

    fn owner(node: usize, holder: usize) -> Owner {
        Owner { node: format!("node{node}"), holder: format!("pod{holder}") }
    }

    fn run<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
    }

    /// Every address that is given, and to whom.
    fn given(blocks: &impl Blocks) -> BTreeMap<IpAddr, Owner> {
        run(blocks.list("p")).unwrap().into_iter().flat_map(|it| it.block.given).collect()
    }

    #[test]
    fn a_node_takes_from_its_own_blocks_and_borrows_when_the_pool_is_full() {
        let blocks = MemoryBlocks::default();
        // Two blocks of 64 addresses.
        let pool = Pool::new("p".into(), "10.0.0.0/25".parse().unwrap());
        let take = |node, holder| run(pool.take(&blocks, &owner(node, holder), None));
        assert_eq!(take(1, 0).unwrap().to_string(), "10.0.0.1");
        assert_eq!(take(2, 0).unwrap().to_string(), "10.0.0.64");
        for holder in 1..63 {
            assert!(take(1, holder).unwrap() < "10.0.0.64".parse::<IpAddr>().unwrap());
        }
        // The first block is full, and there is no third one.
        assert_eq!(take(1, 63).unwrap().to_string(), "10.0.0.65");
        for holder in 1..62 {
            take(2, holder).unwrap();
        }
        assert!(matches!(take(3, 0), Err(PoolError::Exhausted { .. })));
        // Everything of node 1 is collected, and its block is another's to have.
        assert_eq!(run(pool.collect(&blocks, "node1", &[])).unwrap(), 64);
        assert_eq!(take(3, 0).unwrap().to_string(), "10.0.0.1");
    }

    #[test]
    fn an_address_that_is_asked_for_is_given_once() {
        let blocks = MemoryBlocks::default();
        let pool = Pool::new("p".into(), "fd00::/112".parse().unwrap());
        let wanted: IpAddr = "fd00::99".parse().unwrap();
        let take = |node, address| run(pool.take(&blocks, &owner(node, 0), Some(address)));
        assert_eq!(take(1, wanted).unwrap(), wanted);
        assert!(matches!(take(2, wanted), Err(PoolError::Taken { .. })));
        assert!(matches!(take(2, "fd01::1".parse().unwrap()), Err(PoolError::Outside { .. })));
        run(pool.release(&blocks, &owner(1, 0))).unwrap();
        assert_eq!(take(2, wanted).unwrap(), wanted);
    }

    #[test]
    fn a_file_keeps_blocks_for_all_who_share_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("blocks");
        let pool = Pool::new("p".into(), "10.0.0.0/24".parse().unwrap());
        let threads: Vec<_> = (0..4)
            .map(|node| {
                let (path, pool) = (path.clone(), pool.clone());
                std::thread::spawn(move || {
                    let blocks = FileBlocks::at(&path);
                    let take = |holder| run(pool.take(&blocks, &owner(node, holder), None)).unwrap();
                    (0..20).map(take).collect::<Vec<IpAddr>>()
                })
            })
            .collect();
        let all: Vec<IpAddr> = threads.into_iter().flat_map(|it| it.join().unwrap()).collect();
        let distinct: std::collections::BTreeSet<&IpAddr> = all.iter().collect();
        assert_eq!((all.len(), distinct.len()), (80, 80));
        assert_eq!(given(&FileBlocks::at(&path)).len(), 80);
    }

    /// What one node does to one of its pods.
    #[derive(Debug, Clone)]
    enum Step {
        Add,
        Del,
        /// The node dies between what it does and the note of it, and collects when it is back.
        Crash,
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn nodes_at_the_same_time_give_no_address_twice_and_lose_none(
            steps in proptest::collection::vec(
                (0..3usize, 0..8usize, prop_oneof![4 => Just(Step::Add), 3 => Just(Step::Del), 1 => Just(Step::Crash)]),
                1..60,
            )
        ) {
            let blocks = Arc::new(MemoryBlocks::default());
            // Small, so that blocks are borrowed and the pool runs out.
            let pool = Pool { block: 30, ..Pool::new("p".into(), "10.0.0.0/28".parse().unwrap()) };
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let local = tokio::task::LocalSet::new();
            let mut nodes = Vec::new();
            for node in 0..3 {
                let own: Vec<_> = steps.iter().filter(|it| it.0 == node).map(|it| (it.1, it.2.clone())).collect();
                let (blocks, pool) = (Arc::clone(&blocks), pool.clone());
                nodes.push(local.spawn_local(async move {
                    // What the node's own records say.
                    let mut model: BTreeMap<usize, IpAddr> = BTreeMap::new();
                    for (holder, step) in own {
                        match step {
                            Step::Add if !model.contains_key(&holder) => {
                                if let Ok(address) = pool.take(&*blocks, &owner(node, holder), None).await {
                                    model.insert(holder, address);
                                }
                            }
                            Step::Add => {}
                            Step::Del => {
                                pool.release(&*blocks, &owner(node, holder)).await.unwrap();
                                model.remove(&holder);
                            }
                            Step::Crash => {
                                let _lost = pool.take(&*blocks, &owner(node, 100 + holder), None).await;
                                let valid: Vec<String> = model.keys().map(|it| format!("pod{it}")).collect();
                                pool.collect(&*blocks, &format!("node{node}"), &valid).await.unwrap();
                            }
                        }
                    }
                    model
                }));
            }
            let models = runtime.block_on(local.run_until(async {
                let mut models = Vec::new();
                for node in nodes {
                    models.push(node.await.unwrap());
                }
                models
            }));
            let mut expected = BTreeMap::new();
            for (node, model) in models.into_iter().enumerate() {
                for (holder, address) in model {
                    prop_assert!(expected.insert(address, owner(node, holder)).is_none(), "{} is given twice", address);
                }
            }
            prop_assert_eq!(given(&*blocks), expected);
        }
    }
}
