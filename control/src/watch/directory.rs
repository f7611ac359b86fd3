//! A directory of manifests in the place of an API server: read whenever something in it changes.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use notify::{RecursiveMode, Watcher};
use thiserror::Error;
use tokio::sync::mpsc;

use super::News;
use crate::kubernetes::{Key, Kind};
use crate::manifests::{self, ManifestError};

/// After a change, how long others may follow before the directory is read: editors and copies write in several steps.
const SETTLE: Duration = Duration::from_millis(20);

/// Why a directory cannot be followed.
#[derive(Debug, Error)]
pub enum DirectoryError {
    /// It cannot be read.
    #[error(transparent)]
    Unreadable(#[from] ManifestError),
    /// Its changes cannot be watched.
    #[error("{}: cannot be watched: {source}; the limits are in fs.inotify.max_user_watches and max_user_instances", .path.display())]
    Unwatchable {
        /// The directory.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: notify::Error,
    },
}

/// Tells what the manifests in a directory hold, now and whenever they change. A file that cannot be read as manifests is
/// as it last was, and the log says what is wrong with it.
///
/// # Errors
/// [`DirectoryError`], when the directory cannot be read or watched at all.
pub async fn follow_directory(path: &Path, news: mpsc::Sender<News>) -> Result<(), DirectoryError> {
    let unwatchable = |source| DirectoryError::Unwatchable { path: path.to_owned(), source };
    // One that waits is enough: everything is looked at anyway.
    let (change, mut changed) = mpsc::channel(1);
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        if event.is_ok_and(|event| event.kind.is_access()) {
            return;
        }
        let _ = change.try_send(());
    })
    .map_err(unwatchable)?;
    watcher.watch(path, RecursiveMode::Recursive).map_err(unwatchable)?;
    let mut directory = Directory { path: path.to_owned(), files: BTreeMap::new() };
    loop {
        for it in directory.read()? {
            if news.send(it).await.is_err() {
                return Ok(());
            }
        }
        tokio::select! {
            change = changed.recv() => if change.is_none() { return Ok(()) },
            () = news.closed() => return Ok(()),
        }
        tokio::time::sleep(SETTLE).await;
        while changed.try_recv().is_ok() {}
    }
}

/// What was last read.
struct Directory {
    path: PathBuf,
    files: BTreeMap<PathBuf, File>,
}

/// What a file held when it was last sound.
#[derive(Default)]
struct File {
    /// The text that was last read, sound or not.
    text: String,
    keys: BTreeSet<Key>,
}

impl Directory {
    /// Reads what changed and says it.
    fn read(&mut self) -> Result<Vec<News>, DirectoryError> {
        let there: BTreeSet<PathBuf> = manifests::files(&self.path)?.into_iter().collect();
        self.files.retain(|path, _| there.contains(path));
        let mut news = Vec::new();
        for path in there {
            match std::fs::read_to_string(&path) {
                Ok(text) => self.take(path, text, &mut news),
                // It went while we looked: the next look will say so.
                Err(error) if error.kind() == io::ErrorKind::NotFound => drop(self.files.remove(&path)),
                Err(error) => tracing::error!("{}: {error}; what it held before stays", path.display()),
            }
        }
        for kind in Kind::ALL {
            let keys = self.files.values().flat_map(|file| &file.keys);
            news.push(News::Listed(*kind, keys.filter(|key| key.kind == *kind).cloned().collect()));
        }
        Ok(news)
    }

    /// Takes the text of a file.
    fn take(&mut self, path: PathBuf, text: String, news: &mut Vec<News>) {
        if self.files.get(&path).is_some_and(|file| file.text == text) {
            return;
        }
        let objects = match manifests::parse(&text, &path) {
            Ok(manifests) => manifests.objects,
            Err(faults) => {
                for fault in faults {
                    tracing::error!("{fault}");
                }
                tracing::error!("{}: what it held before stays", path.display());
                self.files.entry(path).or_default().text = text;
                return;
            }
        };
        let mut keys = BTreeSet::new();
        for object in objects {
            let key = object.key();
            let elsewhere =
                self.files.iter().find(|(other, file)| **other != path && file.keys.contains(&key));
            if let Some((other, _)) = elsewhere {
                tracing::error!(
                    "{}: {key} is in {} already, which counts; remove one of the two",
                    path.display(),
                    other.display()
                );
                continue;
            }
            keys.insert(key);
            news.push(News::Applied(object));
        }
        tracing::info!(objects = keys.len(), "{}: read", path.display());
        self.files.insert(path, File { text, keys });
    }
}
