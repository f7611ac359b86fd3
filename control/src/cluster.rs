//! The cluster as it is known, pruned to what decides what dataplanes do: filled from an API server or from manifests.
//!
//! Objects may come in any order, twice, or late: what is known at the end depends on the last word about each alone.

mod attachment;
mod network;
mod owners;
mod pod;
mod policy;
mod pool;
mod problem;
mod selector;
mod service;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use penstock_api::model::{self, Name};

use crate::kubernetes::{Key, Kind, Object};
use owners::{Claim, Owners};
use problem::Complaints;

pub use network::{Egress, Network, NodeSettings};
pub use pod::{Node, Pod, PodPort, Scoped};
pub use policy::{Level, Namespaces, Peer, PodSelector, Policy, Port, Rule};
pub use pool::{Block, Pool};
pub use problem::Problem;
pub use selector::{InvalidSelector, Labels, Selector};
pub use service::{Service, ServicePort, Slice, SlicePlace};

/// The label that every namespace has, with its name.
const NAMESPACE_NAME: &str = "kubernetes.io/metadata.name";

/// What is known of a cluster.
#[derive(Debug)]
pub struct Cluster {
    network: Name,
    nodes: BTreeMap<String, Arc<Node>>,
    namespaces: BTreeMap<String, Arc<Labels>>,
    pods: BTreeMap<Scoped, Arc<Pod>>,
    policies: BTreeMap<Key, Arc<Policy>>,
    services: BTreeMap<Scoped, Arc<Service>>,
    slices: BTreeMap<Scoped, BTreeMap<String, Arc<Slice>>>,
    /// Which service a slice belongs to.
    sliced: BTreeMap<Scoped, Scoped>,
    networks: BTreeMap<String, Network>,
    pools: BTreeMap<String, Pool>,
    /// Pools that give pods nothing: those of services, and what cannot be understood.
    other_pools: BTreeSet<String>,
    blocks: BTreeMap<String, Block>,
    egress: BTreeMap<String, Egress>,
    settings: BTreeMap<String, NodeSettings>,
    /// Definitions of further interfaces, with the network that they lead to if it is one of ours.
    attachments: BTreeMap<Scoped, Option<Name>>,
    endpoints: BTreeMap<Name, Arc<model::Endpoint>>,
    /// Label sets that pods share.
    label_sets: HashSet<Arc<Labels>>,
    owners: Owners,
    /// The same in further networks.
    further_owners: BTreeMap<Name, Owners>,
    problems: BTreeMap<Key, Vec<Problem>>,
}

/// What of a cluster changed, to be followed by a translation.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Change {
    pub(crate) pods: BTreeSet<Scoped>,
    pub(crate) namespaces: BTreeSet<String>,
    pub(crate) policies: BTreeSet<Key>,
    pub(crate) services: BTreeSet<Scoped>,
    pub(crate) egress: BTreeSet<String>,
    pub(crate) endpoints: BTreeSet<Name>,
    /// Nodes, networks, pools, blocks of them or settings of nodes: there are few, and they are looked at together.
    pub(crate) ground: bool,
}

impl Change {
    /// Whether nothing changed.
    #[must_use]
    pub fn is_nothing(&self) -> bool {
        *self == Change::default()
    }

    /// Adds what changed thereafter.
    pub fn merge(&mut self, later: Change) {
        self.pods.extend(later.pods);
        self.namespaces.extend(later.namespaces);
        self.policies.extend(later.policies);
        self.services.extend(later.services);
        self.egress.extend(later.egress);
        self.endpoints.extend(later.endpoints);
        self.ground |= later.ground;
    }
}

impl Cluster {
    /// A cluster of which nothing is known, whose pods are in `network` unless they ask for another.
    #[must_use]
    pub fn new(network: Name) -> Cluster {
        Cluster {
            network,
            nodes: BTreeMap::new(),
            namespaces: BTreeMap::new(),
            pods: BTreeMap::new(),
            policies: BTreeMap::new(),
            services: BTreeMap::new(),
            slices: BTreeMap::new(),
            sliced: BTreeMap::new(),
            networks: BTreeMap::new(),
            pools: BTreeMap::new(),
            other_pools: BTreeSet::new(),
            blocks: BTreeMap::new(),
            egress: BTreeMap::new(),
            settings: BTreeMap::new(),
            attachments: BTreeMap::new(),
            endpoints: BTreeMap::new(),
            label_sets: HashSet::new(),
            owners: Owners::default(),
            further_owners: BTreeMap::new(),
            problems: BTreeMap::new(),
        }
    }

    /// Takes the last word about an object.
    pub fn apply(&mut self, object: &Object) -> Change {
        let key = object.key();
        let mut complaints = Complaints::default();
        let mut change = Change::default();
        match object {
            Object::Node(written) => {
                let node = Arc::new(Node::new(written, &mut complaints));
                change.ground = put(&mut self.nodes, &key.name, Some(node));
            }
            Object::Namespace(written) => {
                let mut labels = written.metadata.labels.clone().unwrap_or_default();
                labels.insert(NAMESPACE_NAME.to_owned(), key.name.clone());
                if put(&mut self.namespaces, &key.name, Some(Arc::new(labels))) {
                    change.namespaces.insert(key.name.clone());
                }
            }
            Object::Pod(written) => {
                let scoped = Scoped::new(&key.namespace, &key.name);
                let labels = self.shared(written.metadata.labels.clone().unwrap_or_default());
                change.pods = self.set_pod(&scoped, Some(Pod::new(scoped.clone(), written, labels)));
            }
            Object::NetworkPolicy(written) => {
                let policy = policy::network_policy(&key.namespace, written, &mut complaints);
                self.set_policy(&key, Some(policy), &mut change);
            }
            Object::ClusterNetworkPolicy(written) => {
                self.set_policy(
                    &key,
                    Some(policy::cluster_policy(&written.spec, &mut complaints)),
                    &mut change,
                );
            }
            Object::AdminNetworkPolicy(written) => {
                self.set_policy(
                    &key,
                    Some(policy::admin_policy(&written.spec, &mut complaints)),
                    &mut change,
                );
            }
            Object::BaselineAdminNetworkPolicy(written) => {
                self.set_policy(
                    &key,
                    Some(policy::baseline_policy(&written.spec, &mut complaints)),
                    &mut change,
                );
            }
            Object::Service(written) => {
                let scoped = Scoped::new(&key.namespace, &key.name);
                let service = Service::new(written, &mut complaints).map(Arc::new);
                if put(&mut self.services, &scoped, service) {
                    change.services.insert(scoped);
                }
            }
            Object::EndpointSlice(written) => {
                let slice = Slice::new(&key.namespace, written, &mut complaints);
                change.services = self.set_slice(&Scoped::new(&key.namespace, &key.name), slice);
            }
            Object::NetworkAttachmentDefinition(written) => {
                let network = attachment::network(&written.spec, &self.network, &mut complaints);
                self.define(&Scoped::new(&key.namespace, &key.name), Some(network), &mut change);
            }
            Object::Network(written) => {
                let network = Network::new(&written.spec, &mut complaints);
                change.ground = put(&mut self.networks, &key.name, network);
            }
            Object::IPPool(written) => {
                let pool = Pool::new(written, &mut complaints);
                if pool.is_none() {
                    self.other_pools.insert(key.name.clone());
                } else {
                    self.other_pools.remove(&key.name);
                }
                change.ground = put(&mut self.pools, &key.name, pool);
            }
            Object::IPBlock(written) => {
                change.ground = put(&mut self.blocks, &key.name, Block::new(&written.spec, &mut complaints));
            }
            Object::EgressIP(written) => {
                let egress = Egress::new(&written.spec, &mut complaints);
                if put(&mut self.egress, &key.name, egress) {
                    change.egress.insert(key.name.clone());
                }
            }
            Object::NodeConfig(written) => {
                let settings = NodeSettings::new(&written.spec, &mut complaints);
                change.ground = put(&mut self.settings, &key.name, settings);
            }
        }
        if complaints.found.is_empty() {
            self.problems.remove(&key);
        } else {
            self.problems.insert(key, complaints.found);
        }
        change
    }

    /// Forgets an object; one that is not known is none the less gone.
    pub fn remove(&mut self, key: &Key) -> Change {
        let mut change = Change::default();
        self.problems.remove(key);
        let scoped = || Scoped::new(&key.namespace, &key.name);
        match key.kind {
            Kind::Node => change.ground = put(&mut self.nodes, &key.name, None),
            Kind::Namespace => {
                if put(&mut self.namespaces, &key.name, None) {
                    change.namespaces.insert(key.name.clone());
                }
            }
            Kind::Pod => change.pods = self.set_pod(&scoped(), None),
            Kind::NetworkPolicy
            | Kind::ClusterNetworkPolicy
            | Kind::AdminNetworkPolicy
            | Kind::BaselineAdminNetworkPolicy => self.set_policy(key, None, &mut change),
            Kind::Service => {
                if put(&mut self.services, &scoped(), None) {
                    change.services.insert(scoped());
                }
            }
            Kind::EndpointSlice => change.services = self.set_slice(&scoped(), None),
            Kind::NetworkAttachmentDefinition => self.define(&scoped(), None, &mut change),
            Kind::Network => change.ground = put(&mut self.networks, &key.name, None),
            Kind::IPPool => {
                self.other_pools.remove(&key.name);
                change.ground = put(&mut self.pools, &key.name, None);
            }
            Kind::IPBlock => change.ground = put(&mut self.blocks, &key.name, None),
            Kind::EgressIP => {
                if put(&mut self.egress, &key.name, None) {
                    change.egress.insert(key.name.clone());
                }
            }
            Kind::NodeConfig => change.ground = put(&mut self.settings, &key.name, None),
        }
        change
    }

    /// Takes an endpoint of this node: what a pod is attached by, if its name is `NAMESPACE/POD` or begins so with
    /// another `/` behind. Its addresses are the pod's before Kubernetes says so, in its network.
    pub fn attach(&mut self, endpoint: model::Endpoint) -> Change {
        let name = endpoint.name.clone();
        self.set_endpoint(&name, Some(endpoint))
    }

    /// Forgets an endpoint of this node.
    pub fn detach(&mut self, name: &Name) -> Change {
        self.set_endpoint(name, None)
    }

    /// Gives a pod an address to be told apart by, where nothing else does.
    pub(crate) fn place(&mut self, pod: &Scoped, address: IpAddr) {
        if let Some(known) = self.pods.get_mut(pod) {
            let known = Arc::make_mut(known);
            known.claims.push(address);
            self.claim(pod);
            self.settle(pod);
        }
    }

    fn set_endpoint(&mut self, name: &Name, endpoint: Option<model::Endpoint>) -> Change {
        let mut change = Change::default();
        let placed = endpoint.as_ref().map(|it| (it.network.clone(), it.addresses.clone()));
        if put(&mut self.endpoints, name, endpoint.map(Arc::new)) {
            change.endpoints.insert(name.clone());
            if let Some(pod) = pod_of(name) {
                let (network, addresses) = placed.unwrap_or((self.network.clone(), Vec::new()));
                if network != self.network {
                    self.further_owners.entry(network.clone()).or_default();
                }
                // It may have been in another network before.
                let home = (&self.network, &mut self.owners);
                for (other, owners) in std::iter::once(home).chain(&mut self.further_owners) {
                    let addresses = if *other == network { addresses.clone() } else { Vec::new() };
                    owners.attach(&pod, name, addresses);
                }
                self.claim(&pod);
                change.pods = self.settle(&pod);
                change.pods.insert(pod);
            }
        }
        change
    }

    /// Takes where a definition of further interfaces leads to, or that there is none any more.
    fn define(&mut self, name: &Scoped, leads_to: Option<Option<Name>>, change: &mut Change) {
        if !put(&mut self.attachments, name, leads_to) {
            return;
        }
        // Whether the network is there is looked at with the networks.
        change.ground = true;
        let has_it = |pod: &Pod| pod.statuses.iter().any(|(by, _)| by == name);
        let having: Vec<Scoped> =
            self.pods.values().filter(|pod| has_it(pod)).map(|pod| pod.key.clone()).collect();
        for pod in having {
            self.claim(&pod);
            change.pods.extend(self.settle(&pod));
        }
    }

    /// Enters what a pod claims, in all networks: nothing if it is gone, over, or on its node's network.
    fn claim(&mut self, key: &Scoped) {
        let pod = self.pods.get(key).filter(|pod| pod.is_selectable());
        let mut annotated: BTreeMap<&Name, Vec<IpAddr>> = BTreeMap::new();
        for (by, addresses) in pod.iter().flat_map(|pod| &pod.statuses) {
            if let Some(Some(network)) = self.attachments.get(by) {
                annotated.entry(network).or_default().extend(addresses);
            }
        }
        let created = pod.map_or(0, |pod| pod.created);
        let home = pod.map(|pod| Claim {
            by_kubelet: pod.claims.clone(),
            annotated: annotated.remove(&self.network).unwrap_or_default(),
            created,
        });
        self.owners.claim(key, home);
        for network in
            annotated.keys().filter(|network| !self.further_owners.contains_key(network)).collect::<Vec<_>>()
        {
            self.further_owners.insert((*network).clone(), Owners::default());
        }
        for (network, owners) in &mut self.further_owners {
            let said = annotated.remove(network);
            let claims = pod.is_some() && (said.is_some() || owners.is_attached(key));
            let annotated = said.unwrap_or_default();
            owners.claim(key, claims.then_some(Claim { by_kubelet: Vec::new(), annotated, created }));
        }
    }

    fn set_pod(&mut self, key: &Scoped, pod: Option<Pod>) -> BTreeSet<Scoped> {
        let mut changed = BTreeSet::new();
        let old = self.pods.get(key).cloned();
        match pod {
            Some(mut pod) => {
                if let Some(old) = &old {
                    (pod.addresses, pod.further) = (old.addresses.clone(), old.further.clone());
                }
                if old.as_deref() == Some(&pod) {
                    return changed;
                }
                self.pods.insert(key.clone(), Arc::new(pod));
                self.claim(key);
                changed.insert(key.clone());
            }
            None => {
                if self.pods.remove(key).is_none() {
                    return changed;
                }
                self.claim(key);
                changed.insert(key.clone());
            }
        }
        changed.extend(self.settle(key));
        if let Some(old) = old {
            self.release(&old);
        }
        changed
    }

    /// Gives every pod whose claims meet those of `key` the addresses that are its own, and says whose changed.
    fn settle(&mut self, key: &Scoped) -> BTreeSet<Scoped> {
        let mut changed = BTreeSet::new();
        for rival in self.owners.take_unsettled(key) {
            let Some(pod) = self.pods.get_mut(&rival) else { continue };
            let addresses = if pod.is_selectable() { self.owners.owned(&rival) } else { Vec::new() };
            if pod.addresses != addresses {
                Arc::make_mut(pod).addresses = addresses;
                changed.insert(rival);
            }
        }
        for (network, owners) in &mut self.further_owners {
            for rival in owners.take_unsettled(key) {
                let Some(pod) = self.pods.get_mut(&rival) else { continue };
                let addresses = if pod.is_selectable() { owners.owned(&rival) } else { Vec::new() };
                if pod.addresses_in(Some(network)) == addresses {
                    continue;
                }
                let further = &mut Arc::make_mut(pod).further;
                match addresses.is_empty() {
                    true => further.remove(network),
                    false => further.insert(network.clone(), addresses),
                };
                changed.insert(rival);
            }
        }
        self.further_owners.retain(|_, owners| !owners.is_empty());
        changed
    }

    fn set_policy(&mut self, key: &Key, policy: Option<Policy>, change: &mut Change) {
        if put(&mut self.policies, key, policy.map(Arc::new)) {
            change.policies.insert(key.clone());
        }
    }

    /// A slice may move from one service to another.
    fn set_slice(&mut self, key: &Scoped, slice: Option<Slice>) -> BTreeSet<Scoped> {
        let mut changed = BTreeSet::new();
        let service = slice.as_ref().map(|slice| slice.service.clone());
        let old = self.sliced.get(key).cloned();
        if let Some(old) = old.filter(|old| Some(old) != service.as_ref()) {
            if let Some(slices) = self.slices.get_mut(&old) {
                slices.remove(&key.name);
                if slices.is_empty() {
                    self.slices.remove(&old);
                }
            }
            self.sliced.remove(key);
            changed.insert(old);
        }
        if let (Some(slice), Some(service)) = (slice, service) {
            self.sliced.insert(key.clone(), service.clone());
            let slices = self.slices.entry(service.clone()).or_default();
            if put(slices, &key.name, Some(Arc::new(slice))) {
                changed.insert(service);
            }
        }
        changed
    }

    fn shared(&mut self, labels: Labels) -> Arc<Labels> {
        if let Some(known) = self.label_sets.get(&labels) {
            return Arc::clone(known);
        }
        let labels = Arc::new(labels);
        self.label_sets.insert(Arc::clone(&labels));
        labels
    }

    /// Forgets a label set that only a pod which is gone had: it is held here, by `old` and by nobody else.
    fn release(&mut self, old: &Arc<Pod>) {
        if Arc::strong_count(old) == 1 && Arc::strong_count(&old.labels) <= 2 {
            self.label_sets.remove(&old.labels);
        } else if self.label_sets.len() > 2 * self.pods.len() + 64 {
            self.label_sets.retain(|labels| Arc::strong_count(labels) > 1);
        }
    }
}

/// What is known, for translations and for whoever looks.
impl Cluster {
    /// What is wrong with objects, by object.
    #[must_use]
    pub fn problems(&self) -> &BTreeMap<Key, Vec<Problem>> {
        &self.problems
    }

    /// The keys of the objects of a kind that are known, sorted: what is not in a list that Kubernetes gives is gone.
    #[must_use]
    pub fn keys(&self, kind: Kind) -> BTreeSet<Key> {
        fn scoped<'a>(kind: Kind, keys: impl Iterator<Item = &'a Scoped>) -> BTreeSet<Key> {
            keys.map(|key| Key::new(kind, &key.namespace, &key.name)).collect()
        }
        fn plain<'a>(kind: Kind, keys: impl Iterator<Item = &'a String>) -> BTreeSet<Key> {
            keys.map(|name| Key::new(kind, "", name)).collect()
        }
        let mut keys = match kind {
            Kind::Node => plain(kind, self.nodes.keys()),
            Kind::Namespace => plain(kind, self.namespaces.keys()),
            Kind::Pod => scoped(kind, self.pods.keys()),
            Kind::NetworkPolicy
            | Kind::ClusterNetworkPolicy
            | Kind::AdminNetworkPolicy
            | Kind::BaselineAdminNetworkPolicy => {
                self.policies.keys().filter(|key| key.kind == kind).cloned().collect()
            }
            Kind::Service => scoped(kind, self.services.keys()),
            Kind::EndpointSlice => scoped(kind, self.sliced.keys()),
            Kind::NetworkAttachmentDefinition => scoped(kind, self.attachments.keys()),
            Kind::Network => plain(kind, self.networks.keys()),
            Kind::IPPool => plain(kind, self.pools.keys().chain(&self.other_pools)),
            Kind::IPBlock => plain(kind, self.blocks.keys()),
            Kind::EgressIP => plain(kind, self.egress.keys()),
            Kind::NodeConfig => plain(kind, self.settings.keys()),
        };
        // Of what is of no use the complaint is still known.
        keys.extend(self.problems.keys().filter(|key| key.kind == kind).cloned());
        keys
    }

    /// The name of the network that pods are in.
    #[must_use]
    pub fn network(&self) -> &Name {
        &self.network
    }

    /// The pods.
    #[must_use]
    pub fn pods(&self) -> &BTreeMap<Scoped, Arc<Pod>> {
        &self.pods
    }

    /// The labels of namespaces.
    #[must_use]
    pub fn namespaces(&self) -> &BTreeMap<String, Arc<Labels>> {
        &self.namespaces
    }

    /// The nodes.
    #[must_use]
    pub fn nodes(&self) -> &BTreeMap<String, Arc<Node>> {
        &self.nodes
    }

    /// The policies of all APIs.
    #[must_use]
    pub fn policies(&self) -> &BTreeMap<Key, Arc<Policy>> {
        &self.policies
    }

    /// The services that have addresses.
    #[must_use]
    pub fn services(&self) -> &BTreeMap<Scoped, Arc<Service>> {
        &self.services
    }

    /// The slices of a service, by name.
    pub fn slices(&self, service: &Scoped) -> impl Iterator<Item = (&String, &Arc<Slice>)> {
        self.slices.get(service).into_iter().flatten()
    }

    /// The networks.
    #[must_use]
    pub fn networks(&self) -> &BTreeMap<String, Network> {
        &self.networks
    }

    /// The pools of pods' addresses.
    #[must_use]
    pub fn pools(&self) -> &BTreeMap<String, Pool> {
        &self.pools
    }

    /// The blocks of pools that nodes took.
    #[must_use]
    pub fn blocks(&self) -> &BTreeMap<String, Block> {
        &self.blocks
    }

    /// The egress addresses.
    #[must_use]
    pub fn egress(&self) -> &BTreeMap<String, Egress> {
        &self.egress
    }

    /// What differs from node to node.
    #[must_use]
    pub fn settings(&self) -> &BTreeMap<String, NodeSettings> {
        &self.settings
    }

    /// The definitions of further interfaces, with the network that each leads to if our plugin makes them.
    #[must_use]
    pub fn attachments(&self) -> &BTreeMap<Scoped, Option<Name>> {
        &self.attachments
    }

    /// The endpoints of this node.
    #[must_use]
    pub fn endpoints(&self) -> &BTreeMap<Name, Arc<model::Endpoint>> {
        &self.endpoints
    }
}

/// The pod that an endpoint is of, by its name.
pub(crate) fn pod_of(endpoint: &Name) -> Option<Scoped> {
    let mut parts = endpoint.as_str().split('/');
    let (namespace, name) = (parts.next()?, parts.next()?);
    (!namespace.is_empty() && !name.is_empty()).then(|| Scoped::new(namespace, name))
}

/// Puts a value in the place of a key, or nothing, and says whether that changed anything.
fn put<K: Ord + Clone, V: PartialEq>(map: &mut BTreeMap<K, V>, key: &K, value: Option<V>) -> bool {
    match value {
        Some(value) if map.get(key) == Some(&value) => false,
        Some(value) => {
            map.insert(key.clone(), value);
            true
        }
        None => map.remove(key).is_some(),
    }
}
