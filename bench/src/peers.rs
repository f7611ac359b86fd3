//! The programs that the dataplane is measured beside: started on the same frames, read, and ended.
//!
//! They need root, huge pages and their Debian packages (`scripts/setup --bench`); what is missing is said.

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
    /// A peer ran and forwarded nothing.
    #[error("{peer} forwarded nothing; its log ends: {log}")]
    Idle {
        /// The peer.
        peer: &'static str,
        /// The end of its log.
        log: String,
    },
    /// Not root.
    #[error("the peers need root: namespaces, huge pages and AF_XDP sockets (sudo -E cargo bench ...)")]
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

/// The last lines of a text.
fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(5)..].join(" | ")
}
