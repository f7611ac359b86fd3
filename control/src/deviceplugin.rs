//! What pods ask for by resources: the kubelet's device plugin API, v1beta1, served by the agent.
//!
//! ```text
//!  kubelet.sock <──Register── Post ──serves──> penstock-….sock <──ListAndWatch, Allocate── kubelet
//!                              │ again whenever the kubelet began anew
//!                             Pool: which devices there are, what a container gets with them
//! ```
//!
//! The kubelet allocates before it has a sandbox made: when the CNI plugin is called, the folder of a vhost-user socket is
//! mounted in the pod already, and `runtimeConfig.deviceID` says which one it is.

mod dataplane;
mod folders;
mod functions;
mod pool;
mod post;
mod preference;
mod service;

pub use dataplane::Outside;
pub use folders::SocketFolders;
pub use functions::{CardFunctions, FunctionPool, PoolFault, disjoint};
pub use pool::{AllocationError, Device, Grant, Pool};
pub use preference::preferred;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;

use self::functions::FunctionDevices;
use self::post::Post;
use crate::sysfs::Sysfs;

/// The messages of the kubelet's API.
#[allow(missing_docs, unreachable_pub, clippy::all, reason = "generated")]
pub mod proto {
    tonic::include_proto!("v1beta1");
}

/// The domain of all resources.
pub const DOMAIN: &str = "penstock.dev";

/// Where the kubelet's sockets are unless it is told otherwise.
pub const KUBELET_FOLDER: &str = "/var/lib/kubelet/device-plugins";

/// A pod that is bound to a node whose devices are unhealthy is refused for good, and a restart of the dataplane takes less
/// than this.
pub const GRACE: Duration = Duration::from_secs(30);

/// What is offered, and to whom.
#[derive(Debug, Clone)]
pub struct Offer {
    /// The kubelet's folder of device plugins.
    pub kubelet: PathBuf,
    /// The dataplane's socket: devices are healthy while it is there.
    pub dataplane: PathBuf,
    /// The folder in which each vhost-user device has one of its own.
    pub devices: PathBuf,
    /// How many vhost-user devices there are; no such resource when 0.
    pub vhost_user: u32,
    /// Which functions of network cards there are, each a resource; no function is in two.
    pub functions: Vec<FunctionPool>,
    /// Where the kernel shows them.
    pub sysfs: Sysfs,
    /// How long the dataplane may be away before devices are said to be unhealthy.
    pub grace: Duration,
}

/// Serves every resource of an offer, for ever.
pub async fn run(offer: Offer) {
    let (tell, outside) = tokio::sync::watch::channel(Outside::default());
    let mut tasks = JoinSet::new();
    tasks.spawn(dataplane::follow(offer.dataplane.clone(), offer.grace, offer.sysfs.clone(), tell));
    let mut pools: Vec<Arc<dyn Pool>> = Vec::new();
    if offer.vhost_user > 0 {
        pools.push(Arc::new(SocketFolders::new(offer.devices.clone(), offer.vhost_user)));
    }
    for pool in &offer.functions {
        pools.push(Arc::new(FunctionDevices::new(pool.clone(), offer.sysfs.clone())));
    }
    for pool in pools {
        tracing::info!("{}/{} is offered to the kubelet at {}", DOMAIN, pool.name(), offer.kubelet.display());
        tasks.spawn(Post::new(offer.kubelet.clone(), pool, outside.clone()).hold());
    }
    while let Some(ended) = tasks.join_next().await {
        if let Err(error) = ended {
            tracing::error!("a resource is not offered any more: {error}");
        }
    }
}
