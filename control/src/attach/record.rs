//! What is remembered of an attachment from before it is made until after it is gone.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::PathBuf;

use penstock_api::model::{Backends, Key};
use penstock_api::model::{Endpoint, Object, Service};
use penstock_cni::config::Mode;
use penstock_cni::environment::AttachmentId;
use penstock_cni::protocol::Given;
use penstock_cni::result::AddResult;
use serde::{Deserialize, Serialize};

use super::sriov::Handed;
use crate::ipam::Granted;

/// What somebody holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Holding {
    /// An interface with its addresses.
    Attachment,
    /// Addresses only: another plugin plumbs.
    Lease,
}

/// What one record is found by.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct RecordKey {
    /// What is held.
    pub holding: Holding,
    /// The CNI network's name.
    pub network: String,
    /// The container and its interface.
    pub id: AttachmentId,
}

impl RecordKey {
    /// The name that the record's addresses are held under.
    pub fn holder(&self) -> String {
        format!("{}/{}", self.network, self.id)
    }

    /// A number that stays the same over restarts and versions: FNV-1a over the key's words.
    pub fn number(&self) -> u64 {
        let holding = match self.holding {
            Holding::Attachment => "attachment",
            Holding::Lease => "lease",
        };
        let words = [holding, &self.network, &self.id.container_id, &self.id.ifname];
        let bytes = words.iter().flat_map(|word| word.bytes().chain([0]));
        bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
    }
}

/// The pod that a container belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Pod {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its unique identifier.
    pub uid: Option<String>,
}

impl std::fmt::Display for Pod {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// What has to be undone on the node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Wiring {
    /// How the container is attached.
    pub mode: Mode,
    /// The interface on the node; empty when there is none.
    #[serde(default)]
    pub interface: String,
    /// The folder of the vhost-user socket.
    #[serde(default)]
    pub folder: Option<PathBuf>,
    /// Whether the folder is ours to remove.
    #[serde(default)]
    pub owns_folder: bool,
    /// The volume of the pod that the folder stands for, under a name that is short enough for sockets.
    #[serde(default)]
    pub shared: Option<PathBuf>,
    /// Files that were written and links that were made, other than in that folder.
    #[serde(default)]
    pub files: Vec<PathBuf>,
    /// The function of a network card that was handed over.
    #[serde(default)]
    pub function: Option<Handed>,
}

impl Wiring {
    /// Whether the container's interface only stands for one that the kernel has no part in.
    pub fn is_placeheld(&self) -> bool {
        self.mode == Mode::VhostUser || self.function.as_ref().is_some_and(|it| it.interface.is_none())
    }
}

/// What is remembered of an attachment or a lease.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Record {
    /// What it is found by.
    pub key: RecordKey,
    /// The space that its addresses are given in.
    pub space: String,
    /// The addresses that were given; empty when another plugin gave them.
    pub granted: Vec<Granted>,
    /// The container's network namespace.
    pub netns: PathBuf,
    /// The pod.
    #[serde(default)]
    pub pod: Option<Pod>,
    /// The configuration word for word, when another plugin gave the addresses.
    #[serde(default)]
    pub delegated: String,
    /// What has to be undone; absent for a lease.
    #[serde(default)]
    pub wiring: Option<Wiring>,
    /// What the dataplane is told.
    #[serde(default)]
    pub endpoint: Option<Endpoint>,
    /// The services that stand for ports of the node.
    #[serde(default)]
    pub services: Vec<Service>,
    /// Their backends.
    #[serde(default)]
    pub backends: Vec<Backends>,
    /// What ADD gave; absent until all is done.
    #[serde(default)]
    pub result: Option<AddResult>,
}

impl Record {
    /// Whether ADD came to its end.
    pub fn is_complete(&self) -> bool {
        self.result.is_some()
    }

    /// Everything that the dataplane is told, in the order in which it may be created.
    pub fn objects(&self) -> Vec<Object> {
        let endpoint = self.endpoint.iter().cloned().map(Object::Endpoint);
        let services = self.services.iter().cloned().map(Object::Service);
        let backends = self.backends.iter().cloned().map(Object::Backends);
        endpoint.chain(services).chain(backends).collect()
    }

    /// The keys of [`Record::objects`].
    pub fn object_keys(&self) -> Vec<Key> {
        self.objects().iter().map(Object::key).collect()
    }

    /// The Ethernet address of the container's interface; none of a lease.
    pub fn mac(&self) -> Option<[u8; 6]> {
        match (&self.endpoint, &self.wiring) {
            (Some(endpoint), _) => Some(endpoint.mac.get().0),
            (None, Some(wiring)) => wiring.function.as_ref().map(|it| it.mac),
            (None, None) => None,
        }
    }

    /// The addresses that are taken back when it goes.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.granted.iter().map(|granted| granted.address.addr())
    }

    /// The pools that addresses are of.
    pub fn pools(&self) -> BTreeSet<String> {
        self.granted.iter().filter_map(|granted| granted.pool.clone()).collect()
    }

    /// What a person sees of it.
    pub fn given(&self) -> Given {
        Given {
            network: self.key.network.clone(),
            id: self.key.id.clone(),
            addresses: match &self.endpoint {
                Some(endpoint) => endpoint.addresses.clone(),
                None => self.addresses().collect(),
            },
            pools: self.pools().into_iter().collect(),
            holder: match self.key.holding {
                Holding::Attachment => "attachment".to_owned(),
                Holding::Lease => "lease".to_owned(),
            },
            complete: self.is_complete(),
            pod: self.pod.as_ref().map(Pod::to_string),
            netns: self.netns.clone(),
        }
    }
}
