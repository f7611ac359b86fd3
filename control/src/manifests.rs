//! Manifests in the place of an API server: a folder of YAML or JSON files as `kubectl apply -f` takes them.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::batch::v1::{CronJob, Job};
use k8s_openapi::api::core::v1::{PodTemplateSpec, ReplicationController};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use penstock_api::Fault;
use serde::de::DeserializeOwned;
use serde_json::Value;
use thiserror::Error;

use crate::kubernetes::{Key, Object, Pod};

/// Objects of manifests.
#[derive(Debug, Clone, Default)]
pub struct Manifests {
    /// What is watched where there is an API server, each key once.
    pub objects: Vec<Object>,
    /// What would make pods if it were applied, with one of its pods; pods that stand there themselves among them.
    pub workloads: Vec<Workload>,
}

/// Something that makes pods, all of them alike.
#[derive(Debug, Clone)]
pub struct Workload {
    /// What it is: `Deployment`, or `Pod`.
    pub kind: String,
    /// One of its pods, by the workload's own name.
    pub pod: Pod,
}

impl Workload {
    /// `shop/web[Deployment]`.
    #[must_use]
    pub fn title(&self) -> String {
        let namespace = self.pod.metadata.namespace.as_deref().unwrap_or(DEFAULT);
        format!("{namespace}/{}[{}]", self.pod.metadata.name.as_deref().unwrap_or_default(), self.kind)
    }
}

/// Why manifests cannot be used.
#[derive(Debug, Error)]
pub enum ManifestError {
    /// A file or folder that cannot be read.
    #[error(
        "{path} cannot be read: {source}; name a folder with .yaml, .yml or .json files that this user may read"
    )]
    Io {
        /// What was to be read.
        path: PathBuf,
        /// Why it cannot be.
        source: io::Error,
    },
    /// Everything that is wrong in the files.
    #[error("{}", lines(.0))]
    Faults(Vec<Fault>),
}

fn lines(faults: &[Fault]) -> String {
    faults.iter().map(Fault::to_string).collect::<Vec<_>>().join("\n")
}

/// The namespace of what names none.
const DEFAULT: &str = "default";

/// The deepest nesting of lists in lists.
const DEEPEST: usize = 8;

/// Reads every manifest of a folder and the folders in it, or one file.
///
/// # Errors
/// What cannot be read, or everything that is wrong with the manifests.
pub fn read(path: &Path) -> Result<Manifests, ManifestError> {
    let mut all = Manifests::default();
    let mut faults = Vec::new();
    let mut seen: BTreeMap<Key, PathBuf> = BTreeMap::new();
    for file in files(path)? {
        let text =
            fs::read_to_string(&file).map_err(|source| ManifestError::Io { path: file.clone(), source })?;
        match parse(&text, &file) {
            Ok(manifests) => {
                for object in &manifests.objects {
                    if let Some(other) = seen.insert(object.key(), file.clone()) {
                        let problem = format!("{} is in {} too", object.key(), other.display());
                        faults.push(Fault::new(
                            file.display().to_string(),
                            "",
                            problem,
                            "keep one of the two",
                        ));
                    }
                }
                all.objects.extend(manifests.objects);
                all.workloads.extend(manifests.workloads);
            }
            Err(more) => faults.extend(more),
        }
    }
    if faults.is_empty() { Ok(all) } else { Err(ManifestError::Faults(faults)) }
}

/// The manifests of a folder and the folders in it, sorted; files whose names begin with a dot are nobody's.
///
/// # Errors
/// What cannot be read.
pub fn files(path: &Path) -> Result<Vec<PathBuf>, ManifestError> {
    let failed = |source| ManifestError::Io { path: path.to_owned(), source };
    if !fs::metadata(path).map_err(failed)?.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut found = Vec::new();
    for entry in fs::read_dir(path).map_err(failed)? {
        let entry = entry.map_err(failed)?.path();
        let hidden = entry.file_name().is_none_or(|name| name.to_string_lossy().starts_with('.'));
        let suffix = entry.extension().and_then(|suffix| suffix.to_str()).unwrap_or_default();
        if hidden {
            continue;
        } else if entry.is_dir() {
            found.extend(files(&entry)?);
        } else if matches!(suffix, "yaml" | "yml" | "json") {
            found.push(entry);
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// Reads the documents of one file, whose path is for faults only. Kinds that say nothing about networks are left out.
///
/// # Errors
/// Everything that is wrong with them.
pub fn parse(text: &str, path: &Path) -> Result<Manifests, Vec<Fault>> {
    let at = path.display().to_string();
    let documents: Vec<Value> = match serde_saphyr::from_multiple(text) {
        Ok(documents) => documents,
        Err(error) => {
            let said = error.to_string();
            let problem = format!("is no YAML: {}", said.lines().next().unwrap_or_default());
            return Err(vec![Fault::new(
                at,
                "",
                problem,
                "see the place named; `kubectl apply --dry-run=client -f` helps",
            )]);
        }
    };
    let mut reader = Reader { at, manifests: Manifests::default(), faults: Vec::new() };
    for (i, document) in documents.into_iter().enumerate() {
        reader.document(document, format!("document {}", i + 1), 0);
    }
    if reader.faults.is_empty() { Ok(reader.manifests) } else { Err(reader.faults) }
}

struct Reader {
    at: String,
    manifests: Manifests,
    faults: Vec<Fault>,
}

impl Reader {
    fn fault(&mut self, place: &str, problem: impl Into<String>, mend: &str) {
        self.faults.push(Fault::new(&self.at, place, problem, mend));
    }

    fn document(&mut self, document: Value, place: String, depth: usize) {
        if document.is_null() {
            return;
        }
        let text = |key: &str| document.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        let (version, kind) = (text("apiVersion"), text("kind"));
        if version.is_empty() || kind.is_empty() {
            self.fault(
                &place,
                "has no apiVersion or no kind",
                "write both, as every object of Kubernetes has them",
            );
            return;
        }
        if let (true, Some(Value::Array(items))) = (kind.ends_with("List"), document.get("items")) {
            if depth == DEEPEST {
                self.fault(&place, "nests lists too deeply", "take the inner lists apart");
                return;
            }
            for (i, item) in items.clone().into_iter().enumerate() {
                self.document(item, format!("{place}, items[{i}]"), depth + 1);
            }
            return;
        }
        let group = version.split_once('/').map_or("", |(group, _)| group);
        let known = matches!(
            (group, kind.as_str()),
            ("", "Node" | "Namespace" | "Pod" | "Service" | "ReplicationController")
                | ("networking.k8s.io", "NetworkPolicy")
                | (
                    "policy.networking.k8s.io",
                    "ClusterNetworkPolicy" | "AdminNetworkPolicy" | "BaselineAdminNetworkPolicy",
                )
                | ("discovery.k8s.io", "EndpointSlice")
                | ("k8s.cni.cncf.io", "NetworkAttachmentDefinition")
                | ("penstock.dev", "Network" | "IPPool" | "IPBlock" | "EgressIP" | "NodeConfig")
                | ("apps", "Deployment" | "ReplicaSet" | "StatefulSet" | "DaemonSet")
                | ("batch", "Job" | "CronJob")
        );
        if known {
            self.object(document, &kind, &place);
        }
    }

    fn object(&mut self, document: Value, kind: &str, place: &str) {
        match kind {
            "Deployment"
            | "ReplicaSet"
            | "StatefulSet"
            | "DaemonSet"
            | "Job"
            | "CronJob"
            | "ReplicationController" => self.workload(document, kind, place),
            "Pod" => {
                let Some(mut pod) = self.typed::<Pod>(document, kind, place) else { return };
                pod.metadata.namespace.get_or_insert_with(|| DEFAULT.to_owned());
                let owner =
                    pod.metadata.owner_references.iter().flatten().find(|it| it.controller == Some(true));
                if owner.is_none() {
                    self.manifests.workloads.push(Workload { kind: kind.to_owned(), pod: pod.clone() });
                }
                self.keep(pod, place);
            }
            "Node" => self.plain::<crate::kubernetes::Node>(document, kind, place),
            "Namespace" => self.plain::<crate::kubernetes::Namespace>(document, kind, place),
            "Service" => self.scoped::<crate::kubernetes::Service>(document, kind, place),
            "NetworkPolicy" => self.scoped::<crate::kubernetes::NetworkPolicy>(document, kind, place),
            "EndpointSlice" => self.scoped::<crate::kubernetes::EndpointSlice>(document, kind, place),
            "ClusterNetworkPolicy" => {
                self.plain::<crate::kubernetes::ClusterNetworkPolicy>(document, kind, place);
            }
            "AdminNetworkPolicy" => {
                self.plain::<crate::kubernetes::AdminNetworkPolicy>(document, kind, place)
            }
            "BaselineAdminNetworkPolicy" => {
                self.plain::<crate::kubernetes::BaselineAdminNetworkPolicy>(document, kind, place);
            }
            "NetworkAttachmentDefinition" => {
                self.scoped::<crate::kubernetes::NetworkAttachmentDefinition>(document, kind, place);
            }
            "Network" => self.plain::<crate::kubernetes::Network>(document, kind, place),
            "IPPool" => self.plain::<crate::kubernetes::IPPool>(document, kind, place),
            "IPBlock" => self.plain::<crate::kubernetes::IPBlock>(document, kind, place),
            "EgressIP" => self.plain::<crate::kubernetes::EgressIP>(document, kind, place),
            _ => self.plain::<crate::kubernetes::NodeConfig>(document, kind, place),
        }
    }

    fn typed<T: DeserializeOwned>(&mut self, document: Value, kind: &str, place: &str) -> Option<T> {
        match serde_json::from_value::<T>(document) {
            Ok(object) => Some(object),
            Err(error) => {
                let mend = "write it as the API reference of its version says; `kubectl explain` shows that";
                self.fault(place, format!("is no {kind}: {error}"), mend);
                None
            }
        }
    }

    fn plain<T: DeserializeOwned + Into<Object>>(&mut self, document: Value, kind: &str, place: &str) {
        if let Some(object) = self.typed::<T>(document, kind, place) {
            self.keep(object, place);
        }
    }

    fn scoped<T>(&mut self, document: Value, kind: &str, place: &str)
    where
        T: DeserializeOwned + Into<Object> + kube::Resource,
    {
        if let Some(mut object) = self.typed::<T>(document, kind, place) {
            object.meta_mut().namespace.get_or_insert_with(|| DEFAULT.to_owned());
            self.keep(object, place);
        }
    }

    fn keep(&mut self, object: impl Into<Object>, place: &str) {
        let object = object.into();
        let key = object.key();
        if key.name.is_empty() {
            self.fault(place, "has no name", "write one in its metadata; generateName is for the API server");
        } else if self.manifests.objects.iter().any(|other| other.key() == key) {
            self.fault(place, format!("{key} is there twice"), "keep one of the two");
        } else {
            self.manifests.objects.push(object);
        }
    }

    fn workload(&mut self, document: Value, kind: &str, place: &str) {
        let template = match kind {
            "Deployment" => self
                .typed::<Deployment>(document, kind, place)
                .map(|it| (it.metadata, Some(it.spec.template))),
            "ReplicaSet" => {
                self.typed::<ReplicaSet>(document, kind, place).map(|it| (it.metadata, it.spec.template))
            }
            "StatefulSet" => self
                .typed::<StatefulSet>(document, kind, place)
                .map(|it| (it.metadata, Some(it.spec.template))),
            "DaemonSet" => {
                self.typed::<DaemonSet>(document, kind, place).map(|it| (it.metadata, Some(it.spec.template)))
            }
            "Job" => self
                .typed::<Job>(document, kind, place)
                .map(|it| (it.metadata, it.spec.map(|spec| spec.template))),
            "CronJob" => self.typed::<CronJob>(document, kind, place).map(|it| {
                let job = it.spec.job_template.spec;
                (it.metadata, job.map(|job| job.template))
            }),
            _ => self
                .typed::<ReplicationController>(document, kind, place)
                .map(|it| (it.metadata, it.spec.and_then(|spec| spec.template))),
        };
        let Some((metadata, template)) = template else { return };
        match (metadata.name.clone(), template) {
            (Some(name), Some(template)) => {
                let pod = pod_of(name, metadata, template);
                self.manifests.workloads.push(Workload { kind: kind.to_owned(), pod });
            }
            _ => self.fault(place, "has no name or no template of pods", "write both"),
        }
    }
}

/// A pod as a workload makes it, under the workload's own name.
fn pod_of(name: String, metadata: ObjectMeta, template: PodTemplateSpec) -> Pod {
    let inner = template.metadata.unwrap_or_default();
    Pod {
        metadata: ObjectMeta {
            name: Some(name),
            namespace: Some(metadata.namespace.unwrap_or_else(|| DEFAULT.to_owned())),
            labels: inner.labels,
            annotations: inner.annotations,
            ..ObjectMeta::default()
        },
        spec: template.spec,
        status: None,
    }
}
