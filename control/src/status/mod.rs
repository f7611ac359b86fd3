//! What goes back to the API server: how the node fares, and what of the cluster's wishes cannot be honoured, and why.

mod lease;
mod objects;
mod reporter;

use std::collections::{BTreeMap, BTreeSet};

use crate::kubernetes::Key;

pub use lease::Lease;
pub(crate) use objects::is_answered;
pub use reporter::{Reporter, Sources};

/// What an agent thinks of the cluster's objects.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outlook {
    /// What cannot be honoured, and why.
    pub problems: BTreeMap<Key, Vec<String>>,
    /// The objects that are there of kinds whose status says whether they are honoured.
    pub answered: BTreeSet<Key>,
}
