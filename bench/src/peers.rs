//! The programs that the dataplane is measured beside: started on the same frames, read, and ended.
//!
//! They need root, huge pages and their Debian packages (`scripts/setup --bench`); what is missing is said.

pub mod daemon;
pub mod headers;
pub mod kernel;
pub mod lab;
pub mod ovs;
pub mod testpmd;
pub mod vhost;

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

/// Why a peer could not be measured.
#[derive(Debug, Error)]
pub enum PeerError {
    /// A program is not there or does not start.
    #[error(
        "cannot run {program}: {source}; the peers come with: scripts/setup --bench (Debian's {package})"
    )]
    Missing {
        /// The program.
        program: String,
        /// The package that it is in.
        package: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A command did not do what it was asked.
    #[error("`{command}` failed: {said}")]
    Refused {
        /// The command.
        command: String,
        /// The end of its output.
        said: String,
    },
    /// A program ended before its time.
    #[error("{program} ended by itself; its log ends: {log}")]
    Ended {
        /// The program.
        program: String,
        /// The end of its log.
        log: String,
    },
    /// Something did not come.
    #[error("waited in vain for: {what}")]
    Waited {
        /// What was waited for.
        what: &'static str,
    },
    /// A program of ours is not beside this one.
    #[error("{} is not there; build it: cargo build --release --workspace --bins", .0.display())]
    NotBuilt(PathBuf),
    /// A peer ran and forwarded nothing.
    #[error("{peer} forwarded nothing; its log ends: {log}")]
    Idle {
        /// The peer.
        peer: &'static str,
        /// The end of its log.
        log: String,
    },
    /// Not root.
    #[error("the peers need root: namespaces, huge pages and AF_XDP sockets (sudo)")]
    NotRoot,
    /// Too few huge pages.
    #[error(
        "{free} free huge pages of 2 MiB, the peers need {needed}; reserve them with \
         `echo {needed} > /sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages`"
    )]
    NoHugepages {
        /// What is free.
        free: u64,
        /// What is needed.
        needed: u64,
    },
    /// A file of ours could not be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// Checks what every peer needs.
///
/// # Errors
/// What is missing.
pub fn check(hugepages: u64) -> Result<(), PeerError> {
    let owner = std::fs::metadata("/proc/self").map(|meta| std::os::unix::fs::MetadataExt::uid(&meta));
    if owner.ok() != Some(0) {
        return Err(PeerError::NotRoot);
    }
    let path = Path::new("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages");
    let free = read(path)?.trim().parse().unwrap_or(0);
    if free < hugepages { Err(PeerError::NoHugepages { free, needed: hugepages }) } else { Ok(()) }
}

/// A text file.
fn read(path: &Path) -> Result<String, PeerError> {
    std::fs::read_to_string(path).map_err(|source| PeerError::File { path: path.to_owned(), source })
}

/// A program of ours, which is built beside this one.
///
/// # Errors
/// When it is not there.
pub fn beside(name: &str) -> Result<PathBuf, PeerError> {
    let own = std::env::current_exe().unwrap_or_default();
    // Tests run from a folder below.
    let folders = own.ancestors().skip(1).take(2);
    let found = folders.map(|folder| folder.join(name)).find(|path| path.is_file());
    found.ok_or_else(|| PeerError::NotBuilt(own.with_file_name(name)))
}

/// The last lines of a text.
pub(crate) fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(5)..].join(" | ")
}
