//! Blocks in memory and in a file: for tests, and for nodes that share a file system instead of an API server.

use std::collections::{BTreeMap, BTreeSet};
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
    kept.pools.retain(|_, blocks| !blocks.is_empty());
    Ok(())
}

/// Blocks in memory.
#[derive(Debug, Default)]
pub struct MemoryBlocks(Mutex<Kept>);

impl Blocks for MemoryBlocks {
    async fn pools(&self) -> Result<BTreeSet<String>, BlocksError> {
        Ok(self.0.lock().unwrap_or_else(PoisonError::into_inner).pools.keys().cloned().collect())
    }

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
    async fn pools(&self) -> Result<BTreeSet<String>, BlocksError> {
        self.locked(|kept| Ok(kept.pools.keys().cloned().collect()))
    }

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
mod tests;
