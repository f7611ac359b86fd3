//! The objects that the dataplane was told, by key: changed whole or not at all.
//!
//! A change is judged by what it touches: the objects themselves, those that they name, those that name them, and
//! whatever only one of them may have. `bonds` keeps the index that finds these, so that one pod or one slice of
//! backends among tens of thousands costs no look at the others.

mod bonds;
mod exposed;
mod journal;
mod judge;
mod kept;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::OnceLock;

use penstock_api::model::{
    Attachment, Backends, EgressIp, Encapsulation, Endpoint, Fault, Host, Identity, Key, Name, NatPool,
    Network, Node, Object, Peer, Policy, PortRange, Prefix, Route, RouteTarget, Service, Tier, Uplink,
};

use bonds::Bonds;
pub use exposed::Exposed;
use journal::Journal;
pub use journal::Mark;
pub use kept::Kept;

/// The configuration as it is wanted.
#[derive(Clone, Debug)]
pub struct Desired {
    /// Who this node is.
    pub node: Node,
    /// The node as a neighbour of its pods.
    pub host: Option<Host>,
    node_ports: Vec<PortRange>,
    source_ports: PortRange,
    objects: BTreeMap<Key, Object>,
    bonds: Bonds,
    /// Counted when somebody asks, and again after a change of what it follows from.
    exposed: OnceLock<Exposed>,
    journal: Journal,
    generation: u64,
    /// Keys of objects that are there as well, of which nothing else is known.
    unread: BTreeSet<Key>,
}

/// A change of the configuration.
#[derive(Clone, Debug)]
pub enum Change {
    /// Adds objects or replaces those of the same keys.
    Upsert(Vec<Object>),
    /// Removes objects.
    Delete(Vec<Key>),
    /// Replaces everything but the uplinks.
    Resync(Vec<Object>),
    /// Replaces everything, node and host included: the file was read again.
    Reload(Node, Option<Host>, Vec<Object>),
}

/// What a change replaced, in order.
type Replaced = Vec<(Key, Option<Object>)>;

/// What the configuration was before a change, see [`Desired::revert`].
#[derive(Clone, Debug)]
pub struct Undo {
    node: Node,
    host: Option<Host>,
    generation: u64,
    replaced: Replaced,
}

/// The objects of one kind. Keys sort by kind first, so they lie side by side.
macro_rules! of_kind {
    ($self:ident, $kind:ident) => {
        of_kind!($self, $kind, Key::$kind(least_name()))
    };
    ($self:ident, $kind:ident, $first:expr) => {
        $self.objects.range($first..).map_while(|(_, object)| match object {
            Object::$kind(it) => Some(it),
            _ => None,
        })
    };
}

/// The name that sorts before all others: `-` is the least of the characters that a name may have.
fn least_name() -> Name {
    "-".parse().expect("a valid name")
}

impl Desired {
    /// A configuration without objects.
    #[must_use]
    pub fn new(node: Node, host: Option<Host>) -> Desired {
        Desired {
            node,
            host,
            node_ports: vec![Desired::default_node_ports()],
            source_ports: NatPool::default_ports(),
            objects: BTreeMap::new(),
            bonds: Bonds::default(),
            exposed: OnceLock::new(),
            journal: Journal::default(),
            generation: 0,
            unread: BTreeSet::new(),
        }
    }

    /// The node ports that services may have when the node's file names none: 30000 to 32767, as in Kubernetes
    /// (`--service-node-port-range` of kube-apiserver).
    #[must_use]
    pub fn default_node_ports() -> PortRange {
        PortRange::new(30000, 32767).expect("a sound range")
    }

    /// The same with other node ports for services.
    #[must_use]
    pub fn with_node_ports(self, node_ports: Vec<PortRange>) -> Desired {
        Desired { node_ports, ..self }
    }

    /// The ports by which the node stands in for clients of services, at its own addresses.
    #[must_use]
    pub fn source_ports(&self) -> PortRange {
        self.source_ports
    }

    /// The same with other ports for that.
    #[must_use]
    pub fn with_source_ports(self, source_ports: PortRange) -> Desired {
        Desired { source_ports, ..self }
    }

    /// The same holding `objects`, and everything that is wrong with them. Of the keys in `unread` there are objects too,
    /// of which nothing else is known: nobody who names one is told that it is missing.
    #[must_use]
    pub fn holding(mut self, objects: Vec<Object>, unread: &[Key]) -> (Desired, Vec<Fault>) {
        self.unread = unread.iter().cloned().collect();
        let replaced = self.replace(objects, |_| false);
        let faults = self.judge(&replaced);
        (self, faults)
    }

    /// How often the configuration changed.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The objects in the order of their keys.
    pub fn objects(&self) -> impl Iterator<Item = &Object> {
        self.objects.values()
    }

    /// The object of a key.
    #[must_use]
    pub fn get(&self, key: &Key) -> Option<&Object> {
        self.objects.get(key)
    }

    /// The uplinks.
    pub fn uplinks(&self) -> impl Iterator<Item = &Uplink> {
        of_kind!(self, Uplink)
    }

    /// The networks.
    pub fn networks(&self) -> impl Iterator<Item = &Network> {
        of_kind!(self, Network)
    }

    /// The identities.
    pub fn identities(&self) -> impl Iterator<Item = &Identity> {
        of_kind!(self, Identity)
    }

    /// The endpoints.
    pub fn endpoints(&self) -> impl Iterator<Item = &Endpoint> {
        of_kind!(self, Endpoint)
    }

    /// The peers.
    pub fn peers(&self) -> impl Iterator<Item = &Peer> {
        of_kind!(self, Peer)
    }

    /// The routes.
    pub fn routes(&self) -> impl Iterator<Item = &Route> {
        let everything = Prefix::new(ipnet::Ipv4Net::default().into()).expect("no host bits");
        of_kind!(self, Route, Key::Route { network: least_name(), prefix: everything })
    }

    /// The tiers by name; policies meet them by their order.
    pub fn tiers(&self) -> impl Iterator<Item = &Tier> {
        of_kind!(self, Tier)
    }

    /// The policies by name.
    pub fn policies(&self) -> impl Iterator<Item = &Policy> {
        of_kind!(self, Policy)
    }

    /// The services.
    pub fn services(&self) -> impl Iterator<Item = &Service> {
        of_kind!(self, Service)
    }

    /// The slices of a service's backends.
    pub fn backends(&self, service: &Name) -> impl Iterator<Item = &Backends> {
        let first = Key::Backends { service: service.clone(), slice: least_name() };
        of_kind!(self, Backends, first).take_while(move |slice| slice.service == *service)
    }

    /// The NAT pools.
    pub fn nat_pools(&self) -> impl Iterator<Item = &NatPool> {
        of_kind!(self, NatPool)
    }

    /// The egress addresses.
    pub fn egress_ips(&self) -> impl Iterator<Item = &EgressIp> {
        of_kind!(self, EgressIp)
    }

    /// What services and translated connections have beside the pods' own.
    #[must_use]
    pub fn exposed(&self) -> &Exposed {
        self.exposed.get_or_init(|| Exposed::of(self))
    }

    /// Now, for [`Desired::changed_since`].
    #[must_use]
    pub fn mark(&self) -> Mark {
        self.journal.mark()
    }

    /// The keys of the objects that came, went or changed since a moment, some more than once; `None` if everything may
    /// have changed.
    #[must_use]
    pub fn changed_since(&self, mark: Mark) -> Option<impl Iterator<Item = &Key>> {
        self.journal.since(mark)
    }

    /// Makes a change, or none of it.
    ///
    /// # Errors
    /// Everything that is wrong with it; the configuration is as it was.
    pub fn apply(&mut self, change: Change) -> Result<Undo, Vec<Fault>> {
        let (node, host, generation) = (self.node.clone(), self.host.clone(), self.generation);
        let replaced = match change {
            Change::Upsert(objects) => self.put(objects),
            Change::Delete(keys) => self.remove(keys)?,
            Change::Resync(objects) => self.replace(objects, |key| matches!(key, Key::Uplink(_))),
            Change::Reload(node, host, objects) => {
                if (&self.node, &self.host) != (&node, &host) {
                    self.journal.note_all();
                }
                (self.node, self.host) = (node, host);
                self.replace(objects, |_| false)
            }
        };
        let faults = self.judge(&replaced);
        let undo = Undo { node, host, generation, replaced };
        if faults.is_empty() {
            self.generation += 1;
            return Ok(undo);
        }
        self.revert(undo);
        Err(faults)
    }

    /// Takes the last change back.
    pub fn revert(&mut self, undo: Undo) {
        if (&self.node, &self.host) != (&undo.node, &undo.host) {
            self.journal.note_all();
        }
        (self.node, self.host, self.generation) = (undo.node, undo.host, undo.generation);
        for (key, old) in undo.replaced.into_iter().rev() {
            self.set(&key, old);
        }
    }

    /// Puts an object in the place of a key, or nothing, and answers what was there.
    fn set(&mut self, key: &Key, object: Option<Object>) -> Option<Object> {
        self.journal.note(key);
        if Exposed::follows_from(key) {
            self.exposed.take();
        }
        let old = self.objects.remove(key);
        if let Some(old) = &old {
            self.bonds.loose(key, old);
        }
        if let Some(object) = object {
            self.bonds.tie(key, &object);
            self.objects.insert(key.clone(), object);
        }
        old
    }

    /// What is there already in just this form is no change.
    fn put(&mut self, objects: Vec<Object>) -> Replaced {
        let mut undo = Replaced::new();
        for object in objects {
            let key = object.key();
            if self.objects.get(&key) != Some(&object) {
                let old = self.set(&key, Some(object));
                undo.push((key, old));
            }
        }
        undo
    }

    fn remove(&mut self, keys: Vec<Key>) -> Result<Replaced, Vec<Fault>> {
        let unknown = keys.iter().filter(|key| !self.objects.contains_key(key));
        let mend = "list what there is with `penstock objects`";
        let unknown: Vec<Fault> =
            unknown.map(|key| Fault::new(key.to_string(), "", "there is no such object", mend)).collect();
        if !unknown.is_empty() {
            return Err(unknown);
        }
        Ok(self.discard(keys))
    }

    fn discard(&mut self, keys: Vec<Key>) -> Replaced {
        keys.into_iter()
            .map(|key| {
                let old = self.set(&key, None);
                (key, old)
            })
            .collect()
    }

    fn replace(&mut self, objects: Vec<Object>, keep: impl Fn(&Key) -> bool) -> Replaced {
        let wanted: BTreeSet<Key> = objects.iter().map(Object::key).collect();
        let doomed = self.objects.keys().filter(|key| !keep(key) && !wanted.contains(key));
        let mut undo = self.discard(doomed.cloned().collect());
        undo.extend(self.put(objects));
        undo
    }

    /// Whether packets without a tunnel may belong to a network: to and from its pods, or of clients of its services.
    #[must_use]
    pub fn is_native(&self, network: &Network) -> bool {
        self.is_reached_bare(network) || self.exposed().served.contains_key(&network.name)
    }

    /// Whether packets for a network's pods come without a tunnel. For its services' sake alone they do not: whoever is
    /// outside asks for an address outside.
    #[must_use]
    pub fn is_reached_bare(&self, network: &Network) -> bool {
        network.encapsulation == Encapsulation::None
            || network.cross_subnet
            || self
                .routes()
                .any(|route| route.network == network.name && matches!(route.via, RouteTarget::Uplink { .. }))
    }
}

/// The interface that an attachment uses, when it uses one.
#[must_use]
pub fn interface_of(attachment: &Attachment) -> Option<&str> {
    match attachment {
        Attachment::Veth { interface } | Attachment::Tap { interface } => Some(interface.as_str()),
        Attachment::Pcap { .. } | Attachment::VhostUser { .. } => None,
    }
}

#[cfg(test)]
mod tests;
