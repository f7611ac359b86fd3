//! What goes back to the API server: how the node fares, and what of the cluster's wishes cannot be honoured, and why.

mod lease;

pub use lease::Lease;
