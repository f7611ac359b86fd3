//! Sets of pods that policies name, kept in step with the pods: each is an identity of the dataplane, or several.
//!
//! Who selects the same pods shares a set, so that a pod that comes or goes changes the sets that it is in and no
//! policy. A set of many pods is dealt into shards by a hash of the addresses: a change then sends some hundred
//! addresses, not all.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use penstock_api::model::{Name, Prefix, Protocol};

use super::names;
use crate::cluster::{Labels, Namespaces, Pod, PodPort, PodSelector, Scoped};
use crate::kubernetes::Key;

/// The most addresses of a set that is one identity.
const WHOLE: usize = 512;

/// A name of a port as a rule gives it, with the protocol if it gives one.
pub(super) type PortName = (String, Option<Protocol>);

/// Which pods are in a set.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct SetKey {
    pub(super) pods: PodSelector,
    pub(super) having: Option<Having>,
    /// Only pods of this node.
    pub(super) local: bool,
}

/// The named ports that pods of a set have.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Having {
    /// This port among others.
    Port(PodPort),
    /// By each of these names just these ports.
    Exactly(Vec<(PortName, Vec<PodPort>)>),
}

impl Having {
    fn holds(&self, pod: &Pod) -> bool {
        match self {
            Having::Port(port) => pod.ports.contains(port),
            Having::Exactly(wanted) => {
                wanted.iter().all(|((name, protocol), ports)| pod.ports_named(name, *protocol).eq(ports))
            }
        }
    }
}

/// Who names a set.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct User(pub(super) Key);

/// The pods and namespaces as they were seen last.
#[derive(Debug, Default)]
pub(super) struct People {
    pub(super) pods: BTreeMap<Scoped, Arc<Pod>>,
    pub(super) namespaces: BTreeMap<String, Arc<Labels>>,
    /// The node whose pods are local; all are without it.
    pub(super) node: Option<String>,
    pub(super) local: BTreeSet<Scoped>,
    /// The pods that have addresses in further networks.
    pub(super) guests: BTreeSet<Scoped>,
}

impl People {
    pub(super) fn is_local(&self, pod: &Pod) -> bool {
        self.node.as_ref().is_none_or(|node| pod.node == *node)
    }

    /// The labels of a namespace. One of which nothing is known has its name.
    pub(super) fn labels(&self, namespace: &str) -> Arc<Labels> {
        self.namespaces.get(namespace).cloned().unwrap_or_else(|| {
            Arc::new(Labels::from([("kubernetes.io/metadata.name".to_owned(), namespace.to_owned())]))
        })
    }

    /// The pods of a namespace.
    fn of_namespace(&self, namespace: &str) -> impl Iterator<Item = &Arc<Pod>> {
        let first = Scoped::new(namespace, "");
        self.pods.range(first..).take_while(move |(key, _)| key.namespace == namespace).map(|(_, pod)| pod)
    }

    /// Every pod that may be in a set.
    pub(super) fn members(&self, key: &SetKey) -> Vec<&Arc<Pod>> {
        let matches = |pod: &&Arc<Pod>| self.contains(key, pod, &self.labels(&pod.key.namespace));
        if key.local && self.node.is_some() {
            return self.local.iter().filter_map(|name| self.pods.get(name)).filter(matches).collect();
        }
        match &key.pods.namespaces {
            Namespaces::One(namespace) => {
                let labels = self.labels(namespace);
                let matches = |pod: &&Arc<Pod>| self.contains(key, pod, &labels);
                self.of_namespace(namespace).filter(matches).collect()
            }
            Namespaces::Matching(selector) => {
                let mut members = Vec::new();
                let mut at: Option<(&str, Arc<Labels>, bool)> = None;
                for (name, pod) in &self.pods {
                    if at.as_ref().is_none_or(|(namespace, ..)| *namespace != name.namespace) {
                        let labels = self.labels(&name.namespace);
                        let matches = selector.matches(&labels);
                        at = Some((&name.namespace, labels, matches));
                    }
                    let inside = at.as_ref().is_some_and(|(.., matches)| *matches);
                    if inside && self.selects_pod(key, pod) {
                        members.push(pod);
                    }
                }
                members
            }
        }
    }

    /// Whether a pod is in a set, with the labels of its namespace.
    pub(super) fn contains(&self, key: &SetKey, pod: &Pod, namespace: &Labels) -> bool {
        let inside = match &key.pods.namespaces {
            Namespaces::One(name) => *name == pod.key.namespace,
            Namespaces::Matching(selector) => selector.matches(namespace),
        };
        inside && self.selects_pod(key, pod)
    }

    fn selects_pod(&self, key: &SetKey, pod: &Pod) -> bool {
        pod.is_selectable()
            && (!key.local || self.is_local(pod))
            && key.pods.pods.matches(&pod.labels)
            && key.having.as_ref().is_none_or(|having| having.holds(pod))
    }
}

/// A label that all pods of a set have, or their namespaces: what finds the sets that a pod may be in.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Anchor {
    Everything,
    Namespace(String),
    NamespaceLabel(String, String),
    PodLabel(String, String),
    PodLabelIn(String, String, String),
}

fn anchors_of_set(key: &SetKey) -> Vec<Anchor> {
    let own = |(label, values): (&str, &[String]), anchor: &dyn Fn(String, String) -> Anchor| {
        values.iter().map(|value| anchor(label.to_owned(), value.clone())).collect::<Vec<_>>()
    };
    match (&key.pods.namespaces, key.pods.pods.anchor()) {
        (Namespaces::One(name), Some(label)) => {
            own(label, &|label, value| Anchor::PodLabelIn(name.clone(), label, value))
        }
        (Namespaces::One(name), None) => vec![Anchor::Namespace(name.clone())],
        (Namespaces::Matching(_), Some(label)) => own(label, &Anchor::PodLabel),
        (Namespaces::Matching(selector), None) => match selector.anchor() {
            Some(label) => own(label, &Anchor::NamespaceLabel),
            None => vec![Anchor::Everything],
        },
    }
}

fn anchors_of_pod<'a>(pod: &'a Pod, namespace: &'a Labels) -> impl Iterator<Item = Anchor> + 'a {
    let name = &pod.key.namespace;
    let fixed = [Anchor::Everything, Anchor::Namespace(name.clone())];
    let spaces = namespace.iter().map(|(label, value)| Anchor::NamespaceLabel(label.clone(), value.clone()));
    let pods = pod.labels.iter().flat_map(move |(label, value)| {
        [
            Anchor::PodLabel(label.clone(), value.clone()),
            Anchor::PodLabelIn(name.clone(), label.clone(), value.clone()),
        ]
    });
    fixed.into_iter().chain(spaces).chain(pods)
}

/// The addresses that the pods of a set have in one network, as identities of that network.
#[derive(Debug)]
struct Dealt {
    /// Addresses by shard.
    shards: Vec<BTreeSet<IpAddr>>,
    addresses: usize,
    /// Who names its identities.
    named_by: BTreeSet<User>,
    /// The identities that the dataplane was told.
    told: Vec<Name>,
    /// The shards that it was told otherwise.
    stale: BTreeSet<usize>,
}

impl Default for Dealt {
    fn default() -> Self {
        Self {
            shards: vec![BTreeSet::new()],
            addresses: 0,
            named_by: BTreeSet::new(),
            told: Vec::new(),
            stale: BTreeSet::new(),
        }
    }
}

impl Dealt {
    fn shard_of(&self, address: IpAddr) -> usize {
        // A power of two.
        names::hash_of_address(address) as usize & (self.shards.len() - 1)
    }

    fn add(&mut self, address: IpAddr) {
        let shard = self.shard_of(address);
        self.addresses += usize::from(self.shards[shard].insert(address));
        self.stale.insert(shard);
    }

    fn take(&mut self, address: IpAddr) {
        let shard = self.shard_of(address);
        self.addresses -= usize::from(self.shards[shard].remove(&address));
        self.stale.insert(shard);
    }

    /// Deals the addresses anew if there are now too many or too few; the number of shards follows from their number.
    fn deal(&mut self) -> bool {
        let wanted =
            if self.addresses <= WHOLE { 1 } else { self.addresses.div_ceil(WHOLE / 2).next_power_of_two() };
        if wanted == self.shards.len() {
            return false;
        }
        let old = std::mem::replace(&mut self.shards, vec![BTreeSet::new(); wanted]);
        for address in old.into_iter().flatten() {
            let shard = self.shard_of(address);
            self.shards[shard].insert(address);
        }
        self.stale = (0..wanted).collect();
        true
    }

    fn names(&self, set: &str) -> Vec<Name> {
        (0..self.shards.len()).map(|shard| names::shard(set, shard, self.shards.len())).collect()
    }

    /// Adds its identities that are to be told anew, and those that are gone: all if nobody names it or it is not wanted.
    fn tell(&mut self, set: &str, further: Option<&Name>, wanted: bool, told: &mut Told) {
        if !wanted || self.named_by.is_empty() {
            told.gone.append(&mut self.told);
            return;
        }
        let mut stale = std::mem::take(&mut self.stale);
        if self.told.is_empty() {
            stale = (0..self.shards.len()).collect();
        }
        let names = self.names(set);
        for shard in stale {
            let addresses = self.shards[shard].iter();
            let prefixes = addresses.filter_map(|address| Prefix::new((*address).into()).ok()).collect();
            told.identities.push((further.cloned(), names[shard].clone(), prefixes));
        }
        let gone = std::mem::replace(&mut self.told, names);
        told.gone.extend(gone.into_iter().filter(|name| !self.told.contains(name)));
    }
}

/// What is to be told of a set.
#[derive(Debug, Default)]
pub(super) struct Told {
    /// Identities in the pods' own network or in a further one.
    pub(super) identities: Vec<(Option<Name>, Name, Vec<Prefix>)>,
    /// Identities that are gone.
    pub(super) gone: Vec<Name>,
}

/// One set.
#[derive(Debug)]
pub(super) struct Set {
    key: Arc<SetKey>,
    name: String,
    /// In the pods' own network.
    home: Dealt,
    /// In further networks, where any of its pods has an address.
    further: BTreeMap<Name, Dealt>,
    /// How many pods there are, those without an address yet among them.
    pods: usize,
    /// The named ports of its pods, with how many have each.
    pub(super) ports: BTreeMap<PodPort, usize>,
    /// Who wants to hear of it.
    users: BTreeSet<User>,
}

impl Set {
    /// Whether nobody is in it.
    pub(super) fn is_empty(&self) -> bool {
        self.pods == 0
    }

    /// The names of its identities in the pods' own network or a further one; none in one where it has no addresses.
    pub(super) fn names(&self, further: Option<&Name>) -> Vec<Name> {
        match further {
            None => self.home.names(&self.name),
            Some(network) => {
                let dealt = self.further.get(network).filter(|dealt| dealt.addresses > 0);
                dealt.map(|dealt| dealt.names(&names::on(&self.name, further))).unwrap_or_default()
            }
        }
    }

    /// The further networks in which its pods have addresses.
    pub(super) fn networks(&self) -> impl Iterator<Item = &Name> {
        self.further.iter().filter(|(_, dealt)| dealt.addresses > 0).map(|(network, _)| network)
    }

    fn all_dealt(&mut self) -> impl Iterator<Item = &mut Dealt> {
        std::iter::once(&mut self.home).chain(self.further.values_mut())
    }

    fn add(&mut self, pod: &Pod) {
        self.pods += 1;
        for port in &pod.ports {
            *self.ports.entry(port.clone()).or_default() += 1;
        }
        pod.addresses.iter().for_each(|address| self.home.add(*address));
        for (network, addresses) in &pod.further {
            let dealt = self.further.entry(network.clone()).or_default();
            addresses.iter().for_each(|address| dealt.add(*address));
        }
    }

    fn take(&mut self, pod: &Pod) {
        self.pods -= 1;
        for port in &pod.ports {
            if let Some(count) = self.ports.get_mut(port) {
                *count -= 1;
                if *count == 0 {
                    self.ports.remove(port);
                }
            }
        }
        pod.addresses.iter().for_each(|address| self.home.take(*address));
        for (network, addresses) in &pod.further {
            let dealt = self.further.entry(network.clone()).or_default();
            addresses.iter().for_each(|address| dealt.take(*address));
        }
    }

    /// Deals the addresses anew where there are now too many or too few.
    fn deal(&mut self) -> bool {
        self.all_dealt().fold(false, |dealt, it| it.deal() | dealt)
    }
}

/// What pods coming and going did to the sets.
#[derive(Debug, Default)]
pub(super) struct Stirred {
    /// Sets whose identities are to be told anew.
    pub(super) sets: BTreeSet<usize>,
    /// Users whose objects may be others now.
    pub(super) users: BTreeSet<User>,
}

/// A pod with the labels of its namespace.
pub(super) type Placed = (Arc<Pod>, Arc<Labels>);

/// All sets that anybody names.
#[derive(Debug, Default)]
pub(super) struct Sets {
    ids: HashMap<Arc<SetKey>, usize>,
    slots: Vec<Option<Set>>,
    free: Vec<usize>,
    /// The further networks that the dataplane knows.
    networks: BTreeSet<Name>,
    index: HashMap<Anchor, BTreeSet<usize>>,
}

impl Sets {
    pub(super) fn get(&self, id: usize) -> Option<&Set> {
        self.slots.get(id).and_then(Option::as_ref)
    }

    /// The set of a key, for `user`.
    pub(super) fn acquire(&mut self, key: SetKey, user: &User, people: &People) -> usize {
        if let Some(id) = self.ids.get(&key) {
            if let Some(set) = &mut self.slots[*id] {
                set.users.insert(user.clone());
            }
            return *id;
        }
        let key = Arc::new(key);
        let mut set = Set {
            key: Arc::clone(&key),
            name: names::set(&key),
            home: Dealt::default(),
            further: BTreeMap::new(),
            pods: 0,
            ports: BTreeMap::new(),
            users: BTreeSet::from([user.clone()]),
        };
        for pod in people.members(&key) {
            set.add(pod);
        }
        set.deal();
        let id = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        });
        for anchor in anchors_of_set(&key) {
            self.index.entry(anchor).or_default().insert(id);
        }
        self.ids.insert(key, id);
        self.slots[id] = Some(set);
        id
    }

    /// Ends the use of a set; answers the names of its identities if nobody else uses it.
    pub(super) fn release(&mut self, id: usize, user: &User) -> Vec<Name> {
        let Some(set) = self.slots.get_mut(id).and_then(Option::as_mut) else { return Vec::new() };
        set.users.remove(user);
        for dealt in set.all_dealt() {
            dealt.named_by.remove(user);
        }
        if !set.users.is_empty() {
            return Vec::new();
        }
        let names = set.all_dealt().flat_map(|dealt| std::mem::take(&mut dealt.told)).collect();
        let key = Arc::clone(&set.key);
        for anchor in anchors_of_set(&key) {
            if let Some(ids) = self.index.get_mut(&anchor) {
                ids.remove(&id);
                if ids.is_empty() {
                    self.index.remove(&anchor);
                }
            }
        }
        self.ids.remove(&key);
        self.slots[id] = None;
        self.free.push(id);
        names
    }

    /// Says where `user` names the identities of a set that it uses.
    pub(super) fn name(&mut self, id: usize, user: &User, is_named: impl Fn(Option<&Name>) -> bool) {
        let Some(set) = self.slots.get_mut(id).and_then(Option::as_mut) else { return };
        let further = set.further.iter_mut().map(|(network, dealt)| (Some(network), dealt));
        for (network, dealt) in std::iter::once((None, &mut set.home)).chain(further) {
            if is_named(network) {
                dealt.named_by.insert(user.clone());
            } else {
                dealt.named_by.remove(user);
            }
        }
    }

    /// The further networks that the dataplane knows, of those in which a set has addresses.
    pub(super) fn networks_of(&self, id: usize) -> Vec<Name> {
        let networks = self.get(id).into_iter().flat_map(Set::networks);
        networks.filter(|network| self.networks.contains(network)).cloned().collect()
    }

    /// Takes which further networks the dataplane knows. The sets that have anything in others than before, which are to
    /// be told anew, or nothing if these are the same.
    pub(super) fn know(&mut self, networks: BTreeSet<Name>) -> Option<BTreeSet<usize>> {
        if self.networks == networks {
            return None;
        }
        self.networks = networks;
        let sets = self
            .slots
            .iter()
            .enumerate()
            .filter(|(_, set)| set.as_ref().is_some_and(|set| !set.further.is_empty()));
        Some(sets.map(|(id, _)| id).collect())
    }

    /// Who uses any of the sets.
    pub(super) fn users_of<'a>(&'a self, sets: &'a BTreeSet<usize>) -> impl Iterator<Item = &'a User> {
        sets.iter().filter_map(|id| self.get(*id)).flat_map(|set| &set.users)
    }

    /// What is to be told of a set.
    pub(super) fn tell(&mut self, id: usize) -> Told {
        let mut told = Told::default();
        let Some(set) = self.slots.get_mut(id).and_then(Option::as_mut) else { return told };
        set.home.tell(&set.name, None, true, &mut told);
        for (network, dealt) in &mut set.further {
            let wanted = dealt.addresses > 0 && self.networks.contains(network);
            dealt.tell(&names::on(&set.name, Some(network)), Some(network), wanted, &mut told);
        }
        set.further.retain(|_, dealt| dealt.addresses > 0);
        told
    }

    fn candidates(&self, (pod, namespace): &Placed) -> BTreeSet<usize> {
        let anchors = anchors_of_pod(pod, namespace);
        anchors.filter_map(|anchor| self.index.get(&anchor)).flatten().copied().collect()
    }

    /// The sets that a pod is in.
    fn holding(&self, placed: &Placed, people: &People) -> BTreeSet<usize> {
        let mut sets = self.candidates(placed);
        sets.retain(|id| self.get(*id).is_some_and(|set| people.contains(&set.key, &placed.0, &placed.1)));
        sets
    }

    /// Moves pods from what they were to what they are.
    pub(super) fn stir(&mut self, moved: &[(Option<Placed>, Option<Placed>)], people: &People) -> Stirred {
        let mut stirred = Stirred::default();
        let mut before: BTreeMap<usize, (bool, Vec<PodPort>, Vec<Name>)> = BTreeMap::new();
        let mut joins: Vec<(usize, &Arc<Pod>)> = Vec::new();
        let mut leaves: Vec<(usize, &Arc<Pod>)> = Vec::new();
        for (old, new) in moved {
            let was = old.as_ref().map(|old| self.holding(old, people)).unwrap_or_default();
            let is = new.as_ref().map(|new| self.holding(new, people)).unwrap_or_default();
            let alike = matches!((old, new), (Some((old, _)), Some((new, _)))
                if old.addresses == new.addresses && old.further == new.further && old.ports == new.ports);
            if let Some((old, _)) = old {
                leaves.extend(was.iter().filter(|id| !alike || !is.contains(id)).map(|id| (*id, old)));
            }
            if let Some((new, _)) = new {
                joins.extend(is.iter().filter(|id| !alike || !was.contains(id)).map(|id| (*id, new)));
            }
        }
        for (id, _) in leaves.iter().chain(&joins) {
            if let Some(set) = self.get(*id) {
                let networks = || set.networks().cloned().collect();
                let state = || (set.is_empty(), set.ports.keys().cloned().collect(), networks());
                before.entry(*id).or_insert_with(state);
            }
        }
        // An address may go from one pod to another.
        for (id, pod) in leaves {
            if let Some(set) = &mut self.slots[id] {
                set.take(pod);
            }
        }
        for (id, pod) in joins {
            if let Some(set) = &mut self.slots[id] {
                set.add(pod);
            }
        }
        for (id, (was_empty, ports, networks)) in before {
            let Some(set) = &mut self.slots[id] else { continue };
            stirred.sets.insert(id);
            let dealt = set.deal();
            let others = !set.ports.keys().eq(&ports) || !set.networks().eq(&networks);
            // Policies look at each of their own pods if these have named ports.
            let own = (set.key.local || people.node.is_none()) && set.key.having.is_none();
            if dealt || others || was_empty != set.is_empty() || own {
                stirred.users.extend(set.users.iter().cloned());
            }
        }
        stirred
    }
}
