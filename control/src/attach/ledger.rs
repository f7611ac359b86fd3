//! The records of attachments on disk: one file each, written whole or not at all.

use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use penstock_cni::environment::AttachmentId;
use thiserror::Error;

use super::record::{Record, RecordKey};

/// Why records cannot be kept.
#[derive(Debug, Error)]
pub enum LedgerError {
    /// Somebody else has the folder.
    #[error("{}: another agent keeps its records there; end it first, or give this one a folder of its own", .0.display())]
    InUse(PathBuf),
    /// A file could not be read or written.
    #[error("cannot {what} {}: {source}; is the disk full or mounted read-only?", .path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A record cannot be understood.
    #[error("{}: not a record of an attachment ({source}); written by a newer version? Move it away once its container is gone", .path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
}

/// All records, in memory and on disk.
#[derive(Debug)]
pub struct Ledger {
    folder: PathBuf,
    records: BTreeMap<RecordKey, Record>,
    /// Held as long as the ledger is, so that no second agent writes here.
    _lock: File,
}

impl Ledger {
    /// Reads the records in `folder`, which is made when there is none.
    ///
    /// # Errors
    /// [`LedgerError`]. A record that cannot be read is a fault: what it holds would be given again.
    pub fn open(folder: &Path) -> Result<Self, LedgerError> {
        let io = |what, path: &Path| {
            let path = path.to_owned();
            move |source| LedgerError::Io { what, path, source }
        };
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)
            .map_err(io("make the folder", folder))?;
        let path = folder.join("lock");
        let lock = File::options().create(true).truncate(false).write(true).mode(0o600).open(&path);
        let lock = lock.map_err(io("open", &path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(LedgerError::InUse(folder.to_owned())),
            Err(TryLockError::Error(source)) => return Err(io("lock", &path)(source)),
        }
        let mut records = BTreeMap::new();
        for entry in fs::read_dir(folder).map_err(io("list", folder))? {
            let path = entry.map_err(io("list", folder))?.path();
            match path.extension().and_then(|it| it.to_str()) {
                Some("json") => {
                    let text = fs::read(&path).map_err(io("read", &path))?;
                    let record: Record = serde_json::from_slice(&text)
                        .map_err(|source| LedgerError::Foreign { path: path.clone(), source })?;
                    records.insert(record.key.clone(), record);
                }
                // Writing it was cut short: what it should have replaced holds.
                Some("new") => fs::remove_file(&path).map_err(io("remove", &path))?,
                _ => {}
            }
        }
        Ok(Self { folder: folder.to_owned(), records, _lock: lock })
    }

    fn path(&self, key: &RecordKey) -> PathBuf {
        // A person finds the container by the name's first part; the number tells all apart.
        let container: String = key.id.container_id.chars().take(64).collect();
        self.folder.join(format!("{container}-{:016x}.json", key.number()))
    }

    /// Keeps a record, in place of the one with its key. When this returns, it outlives a loss of power.
    ///
    /// # Errors
    /// [`LedgerError`]; the record before stays.
    pub fn put(&mut self, record: Record) -> Result<(), LedgerError> {
        let path = self.path(&record.key);
        let new = path.with_extension("new");
        let text = serde_json::to_vec_pretty(&record)
            .map_err(|source| LedgerError::Foreign { path: path.clone(), source })?;
        let written =
            File::options().create(true).truncate(true).write(true).mode(0o600).open(&new).and_then(
                |mut file| {
                    file.write_all(&text)?;
                    file.sync_all()?;
                    fs::rename(&new, &path)?;
                    self.sync_folder()
                },
            );
        written.map_err(|source| LedgerError::Io { what: "write", path, source })?;
        self.records.insert(record.key.clone(), record);
        Ok(())
    }

    /// Forgets a record; one that is not there is forgotten already.
    ///
    /// # Errors
    /// [`LedgerError`]; the record stays.
    pub fn remove(&mut self, key: &RecordKey) -> Result<(), LedgerError> {
        let path = self.path(key);
        let removed = match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => self.sync_folder(),
        };
        removed.map_err(|source| LedgerError::Io { what: "remove", path, source })?;
        self.records.remove(key);
        Ok(())
    }

    fn sync_folder(&self) -> io::Result<()> {
        File::open(&self.folder)?.sync_all()
    }

    /// The record of a key.
    pub fn get(&self, key: &RecordKey) -> Option<&Record> {
        self.records.get(key)
    }

    /// All records.
    pub fn records(&self) -> impl Iterator<Item = &Record> {
        self.records.values()
    }

    /// The keys of an attachment's records, in the network of this name or, without a name, in any.
    pub fn keys_of(&self, like: &RecordKey) -> Vec<RecordKey> {
        let is_meant = |key: &&RecordKey| {
            let network = like.network.is_empty() || key.network == like.network;
            network && key.holding == like.holding && key.id == like.id
        };
        self.records.keys().filter(is_meant).cloned().collect()
    }

    /// The keys of a network's records that are not among `valid`.
    pub fn keys_beside(&self, like: &RecordKey, valid: &[AttachmentId]) -> Vec<RecordKey> {
        let is_stale = |key: &&RecordKey| {
            key.network == like.network && key.holding == like.holding && !valid.contains(&key.id)
        };
        self.records.keys().filter(is_stale).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attach::record::Holding;

    fn record(container: &str, ifname: &str) -> Record {
        let id = AttachmentId { container_id: container.into(), ifname: ifname.into() };
        Record {
            key: RecordKey { holding: Holding::Lease, network: "n".into(), id },
            space: "n".into(),
            granted: Vec::new(),
            netns: "/run/netns/x".into(),
            pod: None,
            delegated: String::new(),
            wiring: None,
            endpoint: None,
            services: Vec::new(),
            backends: Vec::new(),
            result: None,
        }
    }

    #[test]
    fn records_outlive_their_keeper() {
        let folder = tempfile::tempdir().unwrap();
        let mut ledger = Ledger::open(folder.path()).unwrap();
        ledger.put(record("a", "eth0")).unwrap();
        ledger.put(record("a", "net1")).unwrap();
        ledger.put(record("b", "eth0")).unwrap();
        ledger.remove(&record("a", "net1").key).unwrap();
        ledger.remove(&record("a", "net1").key).unwrap();
        assert!(matches!(Ledger::open(folder.path()), Err(LedgerError::InUse(_))));
        drop(ledger);
        let ledger = Ledger::open(folder.path()).unwrap();
        let ids: Vec<String> = ledger.records().map(|it| it.key.id.to_string()).collect();
        assert_eq!(ids, ["a/eth0", "b/eth0"]);
    }

    #[test]
    fn half_a_file_is_not_a_record_and_what_is_none_is_not_passed_over() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("a-1.new"), b"{\"key\"").unwrap();
        drop(Ledger::open(folder.path()).unwrap());
        assert!(!folder.path().join("a-1.new").exists());
        fs::write(folder.path().join("a-1.json"), b"{\"key\"").unwrap();
        assert!(matches!(Ledger::open(folder.path()), Err(LedgerError::Foreign { .. })));
    }

    #[test]
    fn a_network_without_a_name_is_any_and_collection_keeps_to_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let mut ledger = Ledger::open(folder.path()).unwrap();
        let mut other = record("a", "eth0");
        other.key.network = "m".into();
        ledger.put(other.clone()).unwrap();
        ledger.put(record("a", "eth0")).unwrap();
        let mut any = record("a", "eth0").key;
        any.network.clear();
        assert_eq!(ledger.keys_of(&any).len(), 2);
        assert_eq!(ledger.keys_beside(&other.key, &[]), [other.key.clone()]);
        assert_eq!(ledger.keys_beside(&other.key, &[other.key.id.clone()]), []);
    }
}
