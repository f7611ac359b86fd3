//! Devices of one resource, and what a container gets with some of them.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;

use thiserror::Error;

use super::dataplane::Outside;
use super::proto;

/// A device that a container can ask for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// Its name: what the CNI plugin gets as `runtimeConfig.deviceID`.
    pub id: String,
    /// Whether it can be used now.
    pub is_healthy: bool,
    /// The NUMA nodes that it is near; any when empty.
    pub nodes: BTreeSet<u32>,
    /// What it shares with others, such as its network card: containers are spread over these.
    pub group: String,
}

impl From<&Device> for proto::Device {
    fn from(device: &Device) -> Self {
        let nodes = device.nodes.iter().map(|&node| proto::NumaNode { id: node.into() });
        let nodes: Vec<_> = nodes.collect();
        Self {
            id: device.id.clone(),
            health: if device.is_healthy { "Healthy" } else { "Unhealthy" }.to_owned(),
            topology: (!nodes.is_empty()).then_some(proto::TopologyInfo { nodes }),
        }
    }
}

/// What a container gets with its devices.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Grant {
    /// Variables of its environment.
    pub variables: BTreeMap<String, String>,
    /// Folders that it sees under the same path.
    pub folders: Vec<PathBuf>,
    /// Device nodes that it may read and write, under the same path.
    pub nodes: Vec<PathBuf>,
}

impl From<Grant> for proto::ContainerAllocateResponse {
    fn from(grant: Grant) -> Self {
        let text = |path: &PathBuf| path.display().to_string();
        let mount =
            |path| proto::Mount { container_path: text(path), host_path: text(path), read_only: false };
        let node = |path| proto::DeviceSpec {
            container_path: text(path),
            host_path: text(path),
            permissions: "rw".to_owned(),
        };
        Self {
            envs: grant.variables.into_iter().collect(),
            mounts: grant.folders.iter().map(mount).collect(),
            devices: grant.nodes.iter().map(node).collect(),
            annotations: Default::default(),
        }
    }
}

/// Why a container does not get its devices.
#[derive(Debug, Error)]
pub enum AllocationError {
    /// There is no such device.
    #[error(
        "there is no device {id:?} of {resource}; was the agent's configuration changed while the kubelet ran?"
    )]
    Unknown {
        /// The resource.
        resource: String,
        /// What was asked for.
        id: String,
    },
    /// The folder of a device cannot be made ready.
    #[error("the folder {} cannot be made ready: {source}; is there room, and may the agent write there?", .path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// The devices of one resource.
pub trait Pool: Send + Sync + std::fmt::Debug + 'static {
    /// The resource's name, behind its domain.
    fn name(&self) -> &str;

    /// All devices as they are now, the same order each time.
    fn devices(&self, outside: &Outside) -> Vec<Device>;

    /// Makes devices ready for a container.
    ///
    /// # Errors
    /// [`AllocationError`].
    fn allocate(&self, ids: &[String]) -> Result<Grant, AllocationError>;
}
