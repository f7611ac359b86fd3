//! The pods of this node and what their addresses come from, as the cluster says and attachments ask.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::PodSpec;
use kube::api::{Api, Patch, PatchParams};
use penstock_api::model::Prefix;
use penstock_cni::config::Range;
use penstock_cni::failure::{Code, Failure};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::timeout;

use super::pools::{Pools, PoolsKnown, without_server};
use crate::attach::{FromPools, Ground, Pod, PodFacts, Pods, SHARED_VOLUME};
use crate::cluster::{Cluster, Labels, Scoped};
use crate::ipam::{Granted, RangeSet};
use crate::kubernetes::{self, Key, Kind, Object};

/// The annotation of a static pod's mirror that holds the UID which its kubelet gave the pod (kubernetes.io's list of
/// well-known annotations).
const MIRROR: &str = "kubernetes.io/config.mirror";

/// The annotation that lists a pod's sockets (github.com/intel/userspace-cni-network-plugin, pkg/annotations).
const CONFIGURATION: &str = "userspace/configuration-data";

/// The annotation that says where the pod's containers have them, ending in a slash (as above).
const MAPPED_DIR: &str = "userspace/mapped-dir";

/// The label that every namespace has, with its name.
const NAMESPACE_NAME: &str = "kubernetes.io/metadata.name";

/// How long a pod may be unknown that a runtime attaches: kubelet heard of it from the same API server.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a pod of this node says for itself.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Resident {
    /// Absent in manifests that nobody was given one for.
    uid: Option<String>,
    /// The one that the API server gave it; a static pod's mirror has its own.
    server_uid: Option<String>,
    /// Where its first container that does so mounts the volume for userspace networking.
    shared_dir: Option<String>,
    annotations: BTreeMap<String, String>,
    labels: Labels,
}

/// What is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Known {
    pub(super) node: String,
    /// Whether every pod's namespace is told of: by an API server it is, in manifests it may be left out.
    with_namespaces: bool,
    pods: BTreeMap<Scoped, Resident>,
    namespaces: BTreeMap<String, Labels>,
    prefixes: Vec<Prefix>,
    own: Vec<IpAddr>,
    pub(super) pools: PoolsKnown,
    /// All nodes.
    pub(super) nodes: BTreeSet<String>,
}

impl Known {
    /// Nothing yet, of a node.
    pub(super) fn of_node(node: &str, with_namespaces: bool) -> Self {
        Self {
            node: node.to_owned(),
            with_namespaces,
            pods: BTreeMap::new(),
            namespaces: BTreeMap::new(),
            prefixes: Vec::new(),
            own: Vec::new(),
            pools: PoolsKnown::default(),
            nodes: BTreeSet::new(),
        }
    }

    /// Takes the last word about an object. Whether it matters here.
    pub(super) fn apply(&mut self, object: &Object) -> bool {
        match object {
            Object::Namespace(namespace) => {
                let labels = namespace.metadata.labels.clone().unwrap_or_default();
                let name = object.key().name;
                self.namespaces.insert(name.clone(), labels.clone()) != Some(labels)
            }
            Object::Pod(pod) => {
                let Key { namespace, name, .. } = object.key();
                let key = Scoped::new(namespace, name);
                let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
                if node != Some(self.node.as_str()) {
                    return self.pods.remove(&key).is_some();
                }
                let annotations = pod.metadata.annotations.clone().unwrap_or_default();
                // The runtime knows a static pod by the UID that its kubelet gave it, of which the API server has a mirror.
                let uid = annotations.get(MIRROR).cloned().or_else(|| pod.metadata.uid.clone());
                let labels = pod.metadata.labels.clone().unwrap_or_default();
                let server_uid = pod.metadata.uid.clone();
                let shared_dir = pod.spec.as_ref().and_then(shared_dir);
                let resident = Resident { uid, server_uid, shared_dir, annotations, labels };
                let before = self.pods.insert(key.clone(), resident);
                before.as_ref() != self.pods.get(&key)
            }
            _ => false,
        }
    }

    /// Forgets an object. Whether it mattered here.
    pub(super) fn remove(&mut self, key: &Key) -> bool {
        match key.kind {
            Kind::Namespace => self.namespaces.remove(&key.name).is_some(),
            Kind::Pod => self.pods.remove(&Scoped::new(&key.namespace, &key.name)).is_some(),
            _ => false,
        }
    }

    /// Looks at what the cluster says of the node. Whether that is something else than before.
    pub(super) fn look(&mut self, cluster: &Cluster) -> bool {
        let node = cluster.nodes().get(&self.node);
        let prefixes = node.map(|node| node.pod_prefixes.clone()).unwrap_or_default();
        let own = node.map(|node| node.addresses.clone()).unwrap_or_default();
        let pools = PoolsKnown::of(cluster, node.map(|node| &node.labels));
        let nodes: BTreeSet<String> = cluster.nodes().keys().cloned().collect();
        let changed =
            self.prefixes != prefixes || self.own != own || self.pools != pools || self.nodes != nodes;
        (self.prefixes, self.own, self.pools, self.nodes) = (prefixes, own, pools, nodes);
        changed
    }

    /// A pod by its name, unless it is one that had the name before or its namespace is not known yet.
    fn find(&self, pod: &Pod) -> Option<&Resident> {
        if self.with_namespaces && !self.namespaces.contains_key(&pod.namespace) {
            return None;
        }
        let found = self.pods.get(&Scoped::new(&pod.namespace, &pod.name))?;
        let is_other = matches!((&found.uid, &pod.uid), (Some(known), Some(asked)) if known != asked);
        (!is_other).then_some(found)
    }

    /// The labels of a pod's namespace, and its own.
    pub(super) fn labels(&self, pod: &Pod) -> Option<(Labels, Labels)> {
        let found = self.pods.get(&Scoped::new(&pod.namespace, &pod.name))?;
        let mut namespace = self.namespaces.get(&pod.namespace).cloned().unwrap_or_default();
        namespace.insert(NAMESPACE_NAME.to_owned(), pod.namespace.clone());
        Some((namespace, found.labels.clone()))
    }
}

/// Where a pod's containers have the volume for userspace networking.
fn shared_dir(spec: &PodSpec) -> Option<String> {
    let mounts = spec.containers.iter().flat_map(|it| it.volume_mounts.iter().flatten());
    mounts.filter(|it| it.name == SHARED_VOLUME).map(|it| it.mount_path.clone()).next()
}

/// The pods of this node, for who attaches them.
#[derive(Clone)]
pub(super) struct Residents {
    known: watch::Receiver<Known>,
    pools: Option<Arc<Pools>>,
    /// Of the API server, if there is one.
    client: Option<kube::Client>,
    patience: Duration,
}

impl Residents {
    /// The pods that are known now and later; with an API server there may be pools, and pods can be written to.
    pub(super) fn of(
        known: watch::Receiver<Known>,
        pools: Option<Pools>,
        client: Option<kube::Client>,
    ) -> Self {
        Self { known, pools: pools.map(Arc::new), client, patience: PATIENCE }
    }

    /// Waits until something could not be given back, so that pools and records may not agree.
    pub(super) async fn owing(&self) {
        match &self.pools {
            Some(pools) => pools.owing().await,
            None => std::future::pending().await,
        }
    }
}

impl Pods for Residents {
    /// One address of each family that the node has pod CIDRs of.
    fn ground(&self) -> Option<Ground> {
        let known = self.known.borrow();
        let family = |ipv4: bool| -> Vec<Range> {
            let prefixes = known.prefixes.iter().map(|it| it.net()).filter(|it| it.addr().is_ipv4() == ipv4);
            prefixes
                .map(|subnet| Range { subnet, range_start: None, range_end: None, gateway: None })
                .collect()
        };
        let lists: Vec<Vec<Range>> =
            [family(true), family(false)].into_iter().filter(|it| !it.is_empty()).collect();
        let ranges = RangeSet::all(&lists).unwrap_or_else(|fault| {
            tracing::error!("node {}: spec.podCIDRs: {fault}; no address is given", known.node);
            Vec::new()
        });
        Some(Ground { ranges, reserved: known.own.clone() })
    }

    async fn facts(&self, pod: &Pod) -> Result<PodFacts, Failure> {
        let mut watched = self.known.clone();
        let found = timeout(self.patience, watched.wait_for(|known| known.find(pod).is_some())).await;
        let resident = match found {
            Ok(Ok(known)) => known.find(pod).cloned(),
            // The core has ended, and this process will.
            Ok(Err(_)) | Err(_) => None,
        };
        let Some(resident) = resident else {
            let node = &self.known.borrow().node;
            let msg = format!(
                "pod {pod} is not known as one of node {node} after {} s, and what policies say of it neither; does the API server answer the agent?",
                self.patience.as_secs()
            );
            return Err(Failure::new(Code::TryAgainLater, msg));
        };
        Ok(PodFacts { annotations: resident.annotations, identity: None })
    }

    async fn describe(&self, pod: &Pod, sockets: &[Value]) -> Result<(), Failure> {
        let Some(client) = &self.client else { return Ok(()) };
        // Who is gone from the node meanwhile needs none.
        let Some(resident) = self.known.borrow().find(pod).cloned() else { return Ok(()) };
        let mut annotations = json!({CONFIGURATION: Value::from(sockets).to_string()});
        if let Some(folder) = &resident.shared_dir {
            // Readers put the socket's name right behind.
            annotations[MAPPED_DIR] = format!("{}/", folder.trim_end_matches('/')).into();
        }
        let patch = json!({"metadata": {"uid": resident.server_uid, "annotations": annotations}});
        let pods: Api<kubernetes::Pod> = Api::namespaced(client.clone(), &pod.namespace);
        let (parameters, patch) = (PatchParams::default(), Patch::Merge(patch));
        let written = timeout(self.patience, pods.patch_status(&pod.name, &parameters, &patch)).await;
        let why = match written {
            Ok(Ok(_)) => return Ok(()),
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("the API server did not answer within {} s", self.patience.as_secs()),
        };
        let msg = format!(
            "pod {pod} has a volume {SHARED_VOLUME:?}, and its annotation {CONFIGURATION} cannot be written: {why}; \
             the agent needs the right to patch pods/status"
        );
        Err(Failure::new(Code::TryAgainLater, msg))
    }

    async fn take(&self, wanted: &FromPools<'_>) -> Result<Vec<Granted>, Failure> {
        let candidates = {
            let known = self.known.borrow();
            known.pools.candidates(&known, wanted)?
        };
        match &self.pools {
            Some(pools) => pools.take(&candidates, wanted).await,
            None if candidates.is_empty() => wanted.refuse_names().map(|()| Vec::new()),
            None => Err(without_server(&candidates)),
        }
    }

    async fn give_back(&self, pool: &str, holder: &str) {
        if let Some(pools) = &self.pools {
            pools.give_back(pool, holder).await;
        }
    }

    async fn collect(&self, valid: &[(String, IpAddr, String)]) -> Result<(), Failure> {
        let Some(pools) = &self.pools else { return Ok(()) };
        let known = self.known.borrow().pools.clone();
        pools.collect(&known, valid).await
    }

    fn has_pools(&self, network: &str) -> bool {
        self.pools.is_some() && self.known.borrow().pools.serves(network)
    }

    fn astray(&self, valid: &[(String, IpAddr, String)]) -> Vec<String> {
        self.pools.as_ref().map(|pools| pools.astray(valid)).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str, uid: Option<&str>, node: &str) -> Object {
        let mut pod = kubernetes::Pod::default();
        pod.metadata.name = Some(name.into());
        pod.metadata.namespace = Some("shop".into());
        pod.metadata.uid = uid.map(str::to_owned);
        pod.spec.get_or_insert_default().node_name = Some(node.into());
        pod.into()
    }

    fn asked(name: &str, uid: Option<&str>) -> Pod {
        Pod { namespace: "shop".into(), name: name.into(), uid: uid.map(str::to_owned) }
    }

    #[test]
    fn a_pod_that_had_the_name_before_is_not_the_one_that_is_attached() {
        let mut known = Known::of_node("a", false);
        assert!(known.apply(&pod("web-0", Some("old"), "a")));
        assert!(!known.apply(&pod("web-0", Some("old"), "a")));
        assert!(known.find(&asked("web-0", Some("new"))).is_none());
        assert!(known.find(&asked("web-0", None)).is_some());
        assert!(known.apply(&pod("web-0", Some("new"), "a")));
        assert!(known.find(&asked("web-0", Some("new"))).is_some());
        // It was told of before it had a node, or went to another.
        assert!(known.apply(&pod("web-0", Some("new"), "b")));
        assert!(known.find(&asked("web-0", Some("new"))).is_none());
    }

    #[test]
    fn an_api_servers_pod_is_known_with_its_namespace() {
        let mut known = Known::of_node("a", true);
        known.apply(&pod("web-0", None, "a"));
        assert!(known.find(&asked("web-0", None)).is_none());
        let mut namespace = kubernetes::Namespace::default();
        namespace.metadata.name = Some("shop".into());
        assert!(known.apply(&namespace.into()));
        assert!(known.find(&asked("web-0", None)).is_some());
        assert!(known.remove(&Key::new(Kind::Namespace, "", "shop")));
        assert!(known.find(&asked("web-0", None)).is_none());
    }

    #[test]
    fn the_folder_of_sockets_is_where_a_container_mounts_the_volume() {
        let spec = |mounts: serde_json::Value| -> PodSpec {
            serde_json::from_value(
                json!({"containers": [{"name": "a"}, {"name": "b", "volumeMounts": mounts}]}),
            )
            .unwrap()
        };
        let other = json!({"name": "data", "mountPath": "/data"});
        let shared = json!({"name": "shared-dir", "mountPath": "/var/lib/usrsp"});
        assert_eq!(shared_dir(&spec(json!([other]))), None);
        assert_eq!(shared_dir(&spec(json!([other, shared]))).as_deref(), Some("/var/lib/usrsp"));
    }

    #[tokio::test]
    async fn a_pod_is_awaited_and_an_unknown_one_comes_later() {
        let (tell, told) = watch::channel(Known::of_node("a", false));
        let residents = Residents { patience: Duration::from_secs(20), ..Residents::of(told, None, None) };
        let (asked_for, uid) = (asked("web-0", Some("u")), Some("u"));
        let (found, ()) = tokio::join!(residents.facts(&asked_for), async {
            tokio::task::yield_now().await;
            tell.send_modify(|known| assert!(known.apply(&pod("web-0", uid, "a"))));
        });
        found.unwrap();
        let hasty = Residents { patience: Duration::from_millis(10), ..residents };
        let failure = hasty.facts(&asked("web-1", None)).await.unwrap_err();
        assert_eq!(failure.code, Code::TryAgainLater);
    }
}
