//! What changes in a cluster, as it is told: by an API server, or by a directory of manifests in its place.
//!
//! Every kind is told of on its own: first all objects there are, then [`News::Listed`], then changes. A source that lost
//! the thread begins again; whoever listens removes then what is not among those listed. So deletes may come late, twice or
//! not at all.

mod api;
mod directory;
mod pace;

use std::collections::BTreeSet;

use crate::kubernetes::{Key, Kind, Object};

pub use api::{WatchMetrics, Watches};
pub use directory::{DirectoryError, follow_directory};

/// News that may wait for whoever listens; a source waits when there are more.
pub const NEWS: usize = 1024;

/// One thing that a source tells.
#[derive(Debug)]
pub enum News {
    /// An object is there, in this form.
    Applied(Object),
    /// An object is not there any more.
    Removed(Key),
    /// These are all objects of a kind; all of them were told as applied just before.
    Listed(Kind, BTreeSet<Key>),
}
