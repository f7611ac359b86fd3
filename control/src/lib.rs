//! What Kubernetes wants, put into the words of a dataplane: the library below the agent and the command line.
//!
//! ```text
//!  API server ──┐
//!               ├── kubernetes::Object ──> cluster::Cluster ──> translate ──> objects of penstock-api ──> the dataplane
//!  manifests ───┘        as written          what is needed        pure           keyed, whole
//! ```

#![forbid(unsafe_code)]

pub mod addresses;
pub mod agent;
pub mod attach;
pub mod cluster;
pub mod deviceplugin;
pub mod install;
pub mod ipam;
pub mod judge;
pub mod kubernetes;
pub mod manifests;
pub mod push;
pub mod status;
pub mod sysfs;
pub mod translate;
pub mod watch;
