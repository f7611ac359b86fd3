//! From a cluster to the objects of one node's dataplane: pure, and only what a change touches is done anew.
//!
//! ```text
//!  Change ──> pods ───────> sets of pods ──> identities
//!         ├─> policies ──> rules that name them           only those that select a pod of the node
//!         ├─> services ──> services, slices of backends
//!         └─> ground ────> networks, peers, routes, ways out
//! ```

mod ground;
mod guests;
mod names;
mod rules;
mod services;
mod sets;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use penstock_api::model::{
    Encapsulation, Identity, Key as SaidKey, Name, Object as Said, Policy as SaidPolicy, PolicyDirection,
    Prefix, Subjects,
};
use penstock_wire::Vni;

use crate::cluster::{Change, Cluster, Level, Network, Policy, Problem, Scoped, pod_of};
use crate::kubernetes::{Key, Kind};
use ground::{Builder, Ground};
use guests::Guests;
use rules::{NodesOn, Writer};
use services::Claims;
use sets::{People, Placed, Sets, User};

/// Whose dataplane is meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// The one of this node: policies for its pods, routes to the others.
    Node(String),
    /// One that has all pods: for looking at policies without a node.
    All,
}

/// What the cluster does not say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Whose dataplane is meant.
    pub scope: Scope,
    /// The uplink that pods leave by, by its name in the node's file, where no `NodeConfig` names one.
    pub uplink: Name,
    /// The network that pods are in as long as there is no `Network` of its name.
    pub default_network: Network,
}

impl Settings {
    /// The settings of a node that nothing was set for: an uplink named `uplink`, VXLAN with the VNI 1, and pods that
    /// leave under their node's address.
    #[must_use]
    pub fn of_node(node: impl Into<String>) -> Settings {
        Settings { scope: Scope::Node(node.into()), ..Settings::of_all() }
    }

    /// The same for all pods at once.
    #[must_use]
    pub fn of_all() -> Settings {
        Settings {
            scope: Scope::All,
            uplink: names::name("uplink"),
            default_network: Network {
                vni: Vni::new(1).expect("1 fits in 24 bits"),
                prefixes: Vec::new(),
                mtu: None,
                encapsulation: Encapsulation::Vxlan,
                cross_subnet: false,
                nat_outgoing: true,
            },
        }
    }

    /// The name of the network that pods are in unless they ask for another: `default`.
    #[must_use]
    pub fn network() -> Name {
        names::name("default")
    }

    fn node(&self) -> Option<&String> {
        match &self.scope {
            Scope::Node(node) => Some(node),
            Scope::All => None,
        }
    }
}

/// What cannot be honoured and why, by the object that asks for it.
pub type Refusals = BTreeMap<Key, Vec<Problem>>;

/// What is to be told the dataplane after a change: first the new objects together, then what is gone.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Delta {
    /// Objects to be put in the place of those with their keys; what is named comes before what names it.
    pub upserts: Vec<Arc<Said>>,
    /// Keys of objects to be taken away; what names comes before what is named.
    pub deletes: Vec<SaidKey>,
}

impl Delta {
    /// Whether there is nothing to tell.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.upserts.is_empty() && self.deletes.is_empty()
    }
}

/// What one policy became.
#[derive(Debug)]
struct Ruled {
    policy: Arc<Policy>,
    used: BTreeSet<usize>,
    nodes: BTreeSet<NodesOn>,
    said: BTreeSet<SaidKey>,
}

/// A cluster in the words of one dataplane, kept in step with it.
#[derive(Debug)]
pub struct Translation {
    settings: Settings,
    people: People,
    sets: Sets,
    policies: BTreeMap<Key, Ruled>,
    /// Who names which nodes.
    nodes: BTreeMap<NodesOn, BTreeSet<User>>,
    claims: Claims,
    services: BTreeMap<Scoped, Vec<SaidKey>>,
    direct_server_return: bool,
    /// Networks in which endpoints of unknown pods are closed.
    closed: BTreeSet<Name>,
    /// What is built anew as a whole.
    ground: Ground,
    ground_refusals: Refusals,
    guests: Guests,
    desired: BTreeMap<SaidKey, Arc<Said>>,
    refusals: Refusals,
    /// What changed in the round at hand: what there was before.
    touched: BTreeMap<SaidKey, Option<Arc<Said>>>,
}

/// A translation of a cluster from scratch.
#[must_use]
pub fn translate(cluster: &Cluster, settings: Settings) -> Translation {
    let mut translation = Translation::new(settings);
    translation.follow(cluster, &Change::everything(cluster));
    translation
}

impl Change {
    /// The change from nothing to all that is known.
    #[must_use]
    pub fn everything(cluster: &Cluster) -> Change {
        Change {
            pods: cluster.pods().keys().cloned().collect(),
            namespaces: cluster.namespaces().keys().cloned().collect(),
            policies: cluster.policies().keys().cloned().collect(),
            services: cluster.services().keys().cloned().collect(),
            egress: cluster.egress().keys().cloned().collect(),
            endpoints: cluster.endpoints().keys().cloned().collect(),
            ground: true,
        }
    }
}

impl Translation {
    /// A translation of a cluster of which nothing is known.
    #[must_use]
    pub fn new(settings: Settings) -> Translation {
        Translation {
            people: People { node: settings.node().cloned(), ..People::default() },
            settings,
            sets: Sets::default(),
            policies: BTreeMap::new(),
            nodes: BTreeMap::new(),
            claims: Claims::default(),
            services: BTreeMap::new(),
            direct_server_return: false,
            closed: BTreeSet::new(),
            ground: Ground::new(),
            ground_refusals: Refusals::new(),
            guests: Guests::default(),
            desired: BTreeMap::new(),
            refusals: Refusals::new(),
            touched: BTreeMap::new(),
        }
    }

    /// The objects that the dataplane is to have.
    #[must_use]
    pub fn desired(&self) -> &BTreeMap<SaidKey, Arc<Said>> {
        &self.desired
    }

    /// What cannot be honoured.
    pub fn refusals(&self) -> impl Iterator<Item = (&Key, &Problem)> {
        let all = self.refusals.iter().chain(&self.ground_refusals);
        all.flat_map(|(key, problems)| problems.iter().map(move |problem| (key, problem)))
    }

    /// Follows what changed in the cluster, all of it since the last time, and says what that changes for the dataplane.
    pub fn follow(&mut self, cluster: &Cluster, change: &Change) -> Delta {
        let network = cluster.network().clone();
        let mut dirty: BTreeSet<User> = BTreeSet::new();
        for key in &change.policies {
            if let Some(policy) = cluster.policies().get(key) {
                let ruled = self.policies.entry(key.clone()).or_insert_with(|| Ruled {
                    policy: Arc::clone(policy),
                    used: BTreeSet::new(),
                    nodes: BTreeSet::new(),
                    said: BTreeSet::new(),
                });
                ruled.policy = Arc::clone(policy);
                self.watch(key);
            }
            dirty.insert(User(key.clone()));
        }
        let locals = self.local_change(cluster, change);
        let stirred = self.move_pods(cluster, change);
        dirty.extend(stirred.users);
        let mut told = stirred.sets;
        let rebuilt = self.follow_ground(cluster, change, locals);
        self.follow_guests(change, rebuilt);
        let others = if rebuilt { self.sets.know(self.further_networks(&network)) } else { None };
        if let Some(sets) = &others {
            dirty.extend(self.sets.users_of(sets).cloned());
            told.extend(sets);
        }
        for User(key) in &dirty {
            told.extend(self.rule(cluster, key, &network));
        }
        for set in told {
            self.tell_set(set, &network);
        }
        if change.ground {
            self.tell_nodes(cluster, &network);
        }
        self.follow_services(cluster, change);
        self.follow_endpoints(cluster, change, locals || others.is_some());
        self.delta()
    }

    /// Lets a policy hear of its own pods before it says anything: it is silent as long as there are none.
    fn watch(&mut self, key: &Key) {
        let Some(ruled) = self.policies.get_mut(key) else { return };
        let Some(subject) = &ruled.policy.subject else { return };
        let local = self.people.node.is_some();
        let wanted = sets::SetKey { pods: subject.clone(), having: None, local };
        let id = self.sets.acquire(wanted, &User(key.clone()), &self.people);
        ruled.used.insert(id);
    }

    /// Whether pods of this node are among those that changed.
    fn local_change(&self, cluster: &Cluster, change: &Change) -> bool {
        !change.namespaces.is_empty()
            || change.pods.iter().any(|key| {
                let now = cluster.pods().get(key).is_some_and(|pod| self.people.is_local(pod));
                now || self.people.local.contains(key)
            })
    }

    fn move_pods(&mut self, cluster: &Cluster, change: &Change) -> sets::Stirred {
        let mut keys = change.pods.clone();
        for namespace in &change.namespaces {
            let first = Scoped::new(namespace, "");
            let own = self.people.pods.range(first..).take_while(|(key, _)| key.namespace == *namespace);
            keys.extend(own.map(|(key, _)| key.clone()));
        }
        let mut moved: Vec<(Option<Placed>, Option<Placed>)> = Vec::new();
        for key in &keys {
            let labels = self.people.labels(&key.namespace);
            let old = self.people.pods.get(key).map(|pod| (Arc::clone(pod), labels));
            moved.push((old, None));
        }
        for namespace in &change.namespaces {
            match cluster.namespaces().get(namespace) {
                Some(labels) => self.people.namespaces.insert(namespace.clone(), Arc::clone(labels)),
                None => self.people.namespaces.remove(namespace),
            };
        }
        for (key, (_, new)) in keys.iter().zip(&mut moved) {
            match cluster.pods().get(key) {
                Some(pod) => {
                    *new = Some((Arc::clone(pod), self.people.labels(&key.namespace)));
                    self.people.pods.insert(key.clone(), Arc::clone(pod));
                    if pod.further.is_empty() {
                        self.people.guests.remove(key);
                    } else {
                        self.people.guests.insert(key.clone());
                    }
                    if self.people.is_local(pod) {
                        self.people.local.insert(key.clone());
                    } else {
                        self.people.local.remove(key);
                    }
                }
                None => {
                    self.people.pods.remove(key);
                    self.people.local.remove(key);
                    self.people.guests.remove(key);
                }
            }
        }
        self.sets.stir(&moved, &self.people)
    }

    /// Puts a policy into words anew; answers the sets whose identities are to be told.
    fn rule(&mut self, cluster: &Cluster, key: &Key, network: &Name) -> BTreeSet<usize> {
        let user = User(key.clone());
        let known = cluster.policies().get(key);
        let Some(ruled) = self.policies.remove(key) else { return BTreeSet::new() };
        let mut writer = Writer {
            user: user.clone(),
            network,
            people: &self.people,
            sets: &mut self.sets,
            used: BTreeSet::new(),
            named: BTreeSet::new(),
            nodes: BTreeSet::new(),
            at: None,
        };
        let said = if known.is_some() { writer.write(&ruled.policy) } else { Vec::new() };
        let Writer { mut used, named, nodes, .. } = writer;
        if let (true, Some(subject)) = (known.is_some(), &ruled.policy.subject) {
            // A silent policy goes on hearing of its own pods.
            let local = self.people.node.is_some();
            let wanted = sets::SetKey { pods: subject.clone(), having: None, local };
            used.insert(self.sets.acquire(wanted, &user, &self.people));
        }
        let left: Vec<usize> = ruled.used.difference(&used).copied().collect();
        for id in &left {
            for name in self.sets.release(*id, &user) {
                self.say(SaidKey::Identity(name), None);
            }
        }
        for id in &used {
            self.sets.name(*id, &user, |network| named.contains(&(*id, network.cloned())));
        }
        self.name_nodes(cluster, &user, &ruled.nodes, &nodes, network);
        let now: BTreeSet<SaidKey> = said.iter().map(|policy| SaidKey::Policy(policy.name.clone())).collect();
        for gone in ruled.said.difference(&now) {
            self.say(gone.clone(), None);
        }
        for policy in said {
            self.say(SaidKey::Policy(policy.name.clone()), Some(Said::Policy(policy)));
        }
        if known.is_some() {
            let policy = ruled.policy;
            self.policies.insert(key.clone(), Ruled { policy, used: used.clone(), nodes, said: now });
        }
        // A set that is left may be one that others only listen to.
        used.extend(left);
        used
    }

    /// The identities of a set; those of other shards than it has now are gone.
    fn tell_set(&mut self, id: usize, home: &Name) {
        let told = self.sets.tell(id);
        for name in told.gone {
            self.say(SaidKey::Identity(name), None);
        }
        for (network, name, prefixes) in told.identities {
            let network = network.unwrap_or_else(|| home.clone());
            self.say(
                SaidKey::Identity(name.clone()),
                Some(Said::Identity(Identity { name, network, prefixes })),
            );
        }
    }

    fn name_nodes(
        &mut self,
        cluster: &Cluster,
        user: &User,
        before: &BTreeSet<NodesOn>,
        now: &BTreeSet<NodesOn>,
        network: &Name,
    ) {
        for nodes in now.difference(before) {
            self.nodes.entry(nodes.clone()).or_default().insert(user.clone());
            self.tell_nodes_of(cluster, nodes, network);
        }
        for nodes in before.difference(now) {
            let users = self.nodes.entry(nodes.clone()).or_default();
            users.remove(user);
            if users.is_empty() {
                self.nodes.remove(nodes);
                self.say(SaidKey::Identity(names::nodes(&nodes.1, nodes.0.as_ref())), None);
            }
        }
    }

    fn tell_nodes(&mut self, cluster: &Cluster, network: &Name) {
        let all: Vec<NodesOn> = self.nodes.keys().cloned().collect();
        for nodes in all {
            self.tell_nodes_of(cluster, &nodes, network);
        }
    }

    fn tell_nodes_of(&mut self, cluster: &Cluster, (at, selector): &NodesOn, home: &Name) {
        let chosen = cluster.nodes().values().filter(|node| selector.matches(&node.labels));
        let mut prefixes: Vec<Prefix> = chosen
            .flat_map(|node| &node.addresses)
            .filter_map(|address| Prefix::new((*address).into()).ok())
            .collect();
        prefixes.sort_unstable();
        prefixes.dedup();
        let name = names::nodes(selector, at.as_ref());
        let network = at.as_ref().unwrap_or(home).clone();
        self.say(SaidKey::Identity(name.clone()), Some(Said::Identity(Identity { name, network, prefixes })));
    }

    /// Whether it was built anew.
    fn follow_ground(&mut self, cluster: &Cluster, change: &Change, locals: bool) -> bool {
        let leaving = !change.egress.is_empty() || (locals && !cluster.egress().is_empty());
        // At first there is none, whatever changed.
        if !change.ground && !leaving && !self.ground.is_empty() {
            return false;
        }
        let mut refusals = Refusals::new();
        let mut builder =
            Builder { cluster, settings: &self.settings, refusals: &mut refusals, ground: Ground::new() };
        builder.build();
        ground::egress(&mut builder, &self.people);
        let now = builder.ground;
        let before = std::mem::take(&mut self.ground);
        for gone in before.keys().filter(|key| !now.contains_key(key)) {
            self.say(gone.clone(), None);
        }
        for (key, object) in &now {
            if before.get(key) != Some(object) {
                self.say(key.clone(), Some(object.clone()));
            }
        }
        self.ground = now;
        self.ground_refusals = refusals;
        true
    }

    fn follow_guests(&mut self, change: &Change, rebuilt: bool) {
        let mut pods: BTreeSet<Scoped> = BTreeSet::new();
        if rebuilt {
            pods = self.guests.stand_on(&self.ground);
            pods.extend(self.people.guests.iter().cloned());
        }
        let is_guest = |key: &&Scoped| self.guests.has(key) || self.people.guests.contains(*key);
        pods.extend(change.pods.iter().filter(is_guest).cloned());
        let (now, gone) = self.guests.follow(&pods, &self.people, &self.ground);
        for key in gone {
            self.say(key, None);
        }
        for way in now {
            let said = Said::Route(way);
            self.say(said.key(), Some(said));
        }
    }

    /// The networks that the dataplane knows, besides the pods' own.
    fn further_networks(&self, home: &Name) -> BTreeSet<Name> {
        let networks = self.ground.keys().filter_map(|key| match key {
            SaidKey::Network(name) if name != home => Some(name.clone()),
            _ => None,
        });
        networks.collect()
    }

    fn follow_services(&mut self, cluster: &Cluster, change: &Change) {
        let mut dirty: BTreeSet<Scoped> = BTreeSet::new();
        if change.ground {
            let node = self.settings.node().and_then(|name| cluster.nodes().get(name));
            let special = node.and_then(|node| ground::special(cluster, node));
            let direct = special.is_some_and(|special| special.direct_server_return);
            if direct != self.direct_server_return {
                self.direct_server_return = direct;
                dirty.extend(cluster.services().keys().cloned());
            }
        }
        for key in &change.services {
            dirty.extend(self.claims.enter(key, cluster.services().get(key).map(|service| &**service)));
            dirty.insert(key.clone());
        }
        for key in dirty {
            let (said, problems) = services::service(cluster, &self.claims, &key, self.direct_server_return);
            let keys = services::keys(&said);
            for gone in self.services.remove(&key).unwrap_or_default() {
                if !keys.contains(&gone) {
                    self.say(gone, None);
                }
            }
            for object in said {
                self.say(object.key(), Some(object));
            }
            let about = Key::new(Kind::Service, &key.namespace, &key.name);
            if problems.is_empty() {
                self.refusals.remove(&about);
            } else {
                self.refusals.insert(about, problems);
            }
            if !keys.is_empty() {
                self.services.insert(key, keys);
            }
        }
    }

    /// Endpoints are passed on. One whose pod is not known, or is over, is closed: nobody knows who that is.
    fn follow_endpoints(&mut self, cluster: &Cluster, change: &Change, anyway: bool) {
        for name in &change.endpoints {
            let endpoint = cluster.endpoints().get(name).map(|it| Said::Endpoint((**it).clone()));
            self.say(SaidKey::Endpoint(name.clone()), endpoint);
        }
        if change.endpoints.is_empty() && !anyway {
            return;
        }
        let mut unknown: BTreeMap<Name, BTreeSet<Prefix>> = BTreeMap::new();
        for (name, endpoint) in cluster.endpoints() {
            let Some(pod) = pod_of(name) else { continue };
            // One in a network that there is not is nowhere.
            let is_somewhere = self.ground.contains_key(&SaidKey::Network(endpoint.network.clone()));
            if is_somewhere && cluster.pods().get(&pod).is_none_or(|pod| !pod.is_selectable()) {
                let prefixes = endpoint.addresses.iter().filter_map(|it| Prefix::new((*it).into()).ok());
                unknown.entry(endpoint.network.clone()).or_default().extend(prefixes);
            }
        }
        let now: BTreeSet<Name> = unknown.keys().cloned().collect();
        for network in std::mem::replace(&mut self.closed, now.clone()).union(&now) {
            let further = (network != cluster.network()).then_some(network);
            let name = names::name(&names::on("Penstock/unknown-pods", further));
            let prefixes = unknown.remove(network).map(|it| it.into_iter().collect());
            self.close(name, network, prefixes);
        }
    }

    /// Lets nothing through from or to addresses of a network, if there are any.
    fn close(&mut self, name: Name, network: &Name, prefixes: Option<Vec<Prefix>>) {
        let closed = prefixes.is_some().then(|| SaidPolicy {
            name: name.clone(),
            network: network.clone(),
            tier: rules::tier(Level::Admin),
            order: 0,
            subjects: Subjects::Identities(vec![name.clone()]),
            directions: vec![PolicyDirection::Ingress, PolicyDirection::Egress],
            staged: false,
            rules: rules::deny_everything(),
        });
        let identity = |prefixes| Identity { name: name.clone(), network: network.clone(), prefixes };
        let identity = prefixes.map(|prefixes| Said::Identity(identity(prefixes)));
        self.say(SaidKey::Identity(name.clone()), identity);
        self.say(SaidKey::Policy(name), closed.map(Said::Policy));
    }

    /// Puts an object in the place of a key, or nothing.
    fn say(&mut self, key: SaidKey, object: Option<Said>) {
        if self.desired.get(&key).map(|known| &**known) == object.as_ref() {
            return;
        }
        let before = match object {
            Some(object) => self.desired.insert(key.clone(), Arc::new(object)),
            None => self.desired.remove(&key),
        };
        self.touched.entry(key).or_insert(before);
    }

    fn delta(&mut self) -> Delta {
        let mut delta = Delta::default();
        for (key, before) in std::mem::take(&mut self.touched) {
            match self.desired.get(&key) {
                Some(now) if before.as_ref() != Some(now) => delta.upserts.push(Arc::clone(now)),
                None if before.is_some() => delta.deletes.push(key),
                _ => {}
            }
        }
        delta.deletes.reverse();
        delta
    }
}

#[cfg(test)]
mod tests;
