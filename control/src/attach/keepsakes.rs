//! The addresses that pods had, for those that come again under their name: a StatefulSet's.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::ledger::LedgerError;
use super::record::Pod;

/// How many pods are remembered; who came longest ago is forgotten first.
const MOST: usize = 4096;

/// The file beside the records.
const FILE: &str = "sticky.kept";

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Keepsake {
    space: String,
    /// `namespace/name`
    pod: String,
    addresses: Vec<IpAddr>,
    /// Counts up with every keepsake that is put.
    order: u64,
}

/// What is remembered, in memory and on disk.
#[derive(Debug)]
pub(super) struct Keepsakes {
    path: PathBuf,
    kept: BTreeMap<(String, String), Keepsake>,
}

/// Whether a pod will come again under its name: a StatefulSet's pods are called after it and their number.
pub(super) fn comes_again(pod: &Pod) -> bool {
    let number = pod.name.rsplit_once('-').map(|(_, number)| number);
    number.is_some_and(|it| !it.is_empty() && it.bytes().all(|byte| byte.is_ascii_digit()))
}

impl Keepsakes {
    /// Reads what is remembered in a folder.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub(super) fn open(folder: &Path) -> Result<Self, LedgerError> {
        let path = folder.join(FILE);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => b"[]".to_vec(),
            Err(source) => return Err(LedgerError::Io { what: "read", path, source }),
        };
        let kept: Vec<Keepsake> = serde_json::from_slice(&text)
            .map_err(|source| LedgerError::Foreign { path: path.clone(), source })?;
        let kept = kept.into_iter().map(|it| ((it.space.clone(), it.pod.clone()), it)).collect();
        Ok(Self { path, kept })
    }

    /// The addresses that a pod had.
    pub(super) fn of(&self, space: &str, pod: &Pod) -> Vec<IpAddr> {
        let kept = self.kept.get(&(space.to_owned(), pod.to_string()));
        kept.map(|it| it.addresses.clone()).unwrap_or_default()
    }

    /// The addresses that other pods of a space had, or all when there is no pod.
    pub(super) fn of_others(&self, space: &str, pod: Option<&Pod>) -> Vec<IpAddr> {
        let own = pod.map(ToString::to_string);
        let others = self.kept.values().filter(|it| it.space == space && Some(&it.pod) != own.as_ref());
        others.flat_map(|it| it.addresses.iter().copied()).collect()
    }

    /// Remembers a pod's addresses. When this returns, that outlives a loss of power.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub(super) fn put(&mut self, space: &str, pod: &Pod, addresses: Vec<IpAddr>) -> Result<(), LedgerError> {
        if self.of(space, pod) == addresses {
            return Ok(());
        }
        // Whose address this is now, nobody else will get again.
        self.kept
            .retain(|_, it| it.space != space || it.addresses.iter().all(|had| !addresses.contains(had)));
        let order = self.kept.values().map(|it| it.order + 1).max().unwrap_or(0);
        let keepsake = Keepsake { space: space.to_owned(), pod: pod.to_string(), addresses, order };
        self.kept.insert((keepsake.space.clone(), keepsake.pod.clone()), keepsake);
        if self.kept.len() > MOST {
            let oldest =
                self.kept.values().min_by_key(|it| it.order).map(|it| (it.space.clone(), it.pod.clone()));
            oldest.and_then(|key| self.kept.remove(&key));
        }
        self.write().map_err(|source| LedgerError::Io { what: "write", path: self.path.clone(), source })
    }

    fn write(&self) -> io::Result<()> {
        let all: Vec<&Keepsake> = self.kept.values().collect();
        let new = self.path.with_extension("new");
        let mut file = File::options().create(true).truncate(true).write(true).mode(0o600).open(&new)?;
        file.write_all(&serde_json::to_vec(&all)?)?;
        file.sync_all()?;
        fs::rename(&new, &self.path)?;
        self.path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str) -> Pod {
        Pod { namespace: "shop".to_owned(), name: name.to_owned(), uid: None }
    }

    fn address(last: u8) -> IpAddr {
        [10, 0, 0, last].into()
    }

    #[test]
    fn who_comes_again_is_told_by_the_name() {
        for (name, again) in
            [("db-0", true), ("db-12", true), ("web-7d9f-x2k4q", false), ("db", false), ("db-", false)]
        {
            assert_eq!(comes_again(&pod(name)), again, "{name}");
        }
    }

    #[test]
    fn an_address_is_remembered_of_the_pod_that_had_it_last() {
        let folder = tempfile::tempdir().unwrap();
        let mut kept = Keepsakes::open(folder.path()).unwrap();
        kept.put("default", &pod("db-0"), vec![address(1)]).unwrap();
        kept.put("other", &pod("db-0"), vec![address(1)]).unwrap();
        kept.put("default", &pod("db-1"), vec![address(2)]).unwrap();
        drop(kept);
        let mut kept = Keepsakes::open(folder.path()).unwrap();
        assert_eq!(kept.of("default", &pod("db-0")), [address(1)]);
        assert_eq!(kept.of_others("default", Some(&pod("db-0"))), [address(2)]);
        assert_eq!(kept.of_others("default", None), [address(1), address(2)]);
        kept.put("default", &pod("db-1"), vec![address(1)]).unwrap();
        assert_eq!(kept.of("default", &pod("db-0")), [] as [IpAddr; 0]);
        assert_eq!(kept.of("other", &pod("db-0")), [address(1)]);
    }

    #[test]
    fn who_came_longest_ago_is_forgotten_first() {
        let folder = tempfile::tempdir().unwrap();
        let mut kept = Keepsakes::open(folder.path()).unwrap();
        for number in 0..MOST {
            let keepsake = Keepsake {
                space: "default".to_owned(),
                pod: format!("shop/db-{number}"),
                addresses: Vec::new(),
                order: number as u64,
            };
            kept.kept.insert((keepsake.space.clone(), keepsake.pod.clone()), keepsake);
        }
        kept.put("default", &pod("new-0"), vec![address(1)]).unwrap();
        assert_eq!(kept.kept.len(), MOST);
        assert!(!kept.kept.contains_key(&("default".to_owned(), "shop/db-0".to_owned())));
        assert_eq!(kept.of("default", &pod("new-0")), [address(1)]);
    }
}
