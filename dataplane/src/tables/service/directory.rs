//! The services as they are wanted, on the control thread, and the tables made from them: a change rebuilds its service.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use penstock_io::TicksPerSecond;

use super::ids::{BackendId, Identity, Ids, Marks};
use super::port::{Head, ServicePort};
use super::spec::{BackendState, PortSpec, ServiceFault, ServiceSpec, Topology, TrafficPolicy};
use super::{ClusterIp, Frontend, FrontendKey, FrontendKind, Place, Services};
use crate::snapshot::Epoch;

/// What services must know of the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// The addresses that node ports are served at.
    pub addresses: Vec<IpAddr>,
    /// The zone that it is in.
    pub zone: Option<String>,
}

/// A frontend that more than one service claims. The service whose name comes first has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contested {
    /// The frontend.
    pub frontend: FrontendKey,
    /// Who has it.
    pub holder: String,
    /// Who else claims it, by name.
    pub others: Vec<String>,
}

impl fmt::Display for Contested {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let FrontendKey { place, protocol, port } = self.frontend;
        let protocol = format!("{protocol:?}").to_uppercase();
        let at = match place {
            Place::Address(_, address) => format!("{protocol} port {port} at {address}"),
            Place::Node => format!("{protocol} node port {port}"),
        };
        let others = self.others.join(", ");
        write!(
            f,
            "service {}: it has {at}, which is asked for by {others} too; give them others",
            self.holder
        )
    }
}

/// A port that a load balancer asks whether this node serves a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HealthCheck<'a> {
    /// The node port to answer on, by HTTP.
    pub port: u16,
    /// The service.
    pub service: &'a str,
    /// Ready backends on this node, counted by the address family that has more of them: with none, the answer is 503, else
    /// 200.
    pub local_ready: usize,
}

/// A service and what was made of it.
#[derive(Debug)]
struct Entry {
    spec: ServiceSpec,
    /// In the order of the specification.
    ports: Vec<Arc<ServicePort>>,
}

/// The services of a node, and their tables in the making.
#[derive(Debug)]
pub struct Directory {
    node: Node,
    rate: TicksPerSecond,
    services: BTreeMap<String, Entry>,
    ids: Ids,
    tables: Services,
    /// The services that claim a frontend, where they are more than one.
    contested: HashMap<FrontendKey, BTreeSet<String>>,
    /// The services whose outside clients are served by local backends only, and that load balancers ask about.
    asked_about: BTreeSet<String>,
    /// How many services have an address as their own.
    cluster_ips: HashMap<ClusterIp, usize>,
}

/// A claim of a service: where, which of its ports, by which kind of address.
type Claim = (FrontendKey, usize, FrontendKind);

impl Directory {
    /// A directory without services; `rate` is that of the ticks which look-ups are given.
    #[must_use]
    pub fn new(node: Node, rate: TicksPerSecond) -> Directory {
        let tables = Services { node_addresses: node.addresses.clone().into(), ..Services::default() };
        Directory {
            node,
            rate,
            services: BTreeMap::new(),
            ids: Ids::default(),
            tables,
            contested: HashMap::new(),
            asked_about: BTreeSet::new(),
            cluster_ips: HashMap::new(),
        }
    }

    /// The tables as they are now, for the next snapshot; they share what did not change with those taken before.
    #[must_use]
    pub fn tables(&self) -> Arc<Services> {
        Arc::new(self.tables.clone())
    }

    /// Adds a service or replaces the one of its name; false if it is as it was.
    ///
    /// # Errors
    /// What is wrong with it; nothing has changed then.
    pub fn upsert(&mut self, spec: ServiceSpec) -> Result<bool, ServiceFault> {
        if self.services.get(&spec.name).is_some_and(|entry| entry.spec == spec) {
            return Ok(false);
        }
        spec.check()?;
        self.check_ids(&spec)?;
        let ports = self.compile(&spec, true);
        self.replace(spec, ports);
        Ok(true)
    }

    /// Removes a service; false if there is none of that name.
    pub fn remove(&mut self, name: &str) -> bool {
        let Some(entry) = self.services.remove(name) else { return false };
        self.asked_about.remove(name);
        self.release(&entry, &[]);
        for (key, _, _) in claims(&entry.spec) {
            self.withdraw(&key, name);
        }
        self.own(&entry.spec, false);
        true
    }

    /// Makes a service what is wanted, which may be nothing; returns what is wrong with it, and the old one goes on then.
    pub fn set(&mut self, name: &str, wanted: Option<ServiceSpec>) -> Option<ServiceFault> {
        match wanted {
            Some(spec) => self.upsert(spec).err(),
            None => {
                self.remove(name);
                None
            }
        }
    }

    /// Makes these the services, all others gone; returns what is wrong with some, of which the old ones go on.
    pub fn resync(&mut self, specs: Vec<ServiceSpec>) -> Vec<ServiceFault> {
        let wanted: HashSet<&str> = specs.iter().map(|spec| spec.name.as_str()).collect();
        let gone = self.services.keys().filter(|name| !wanted.contains(name.as_str()));
        for name in gone.cloned().collect::<Vec<_>>() {
            self.remove(&name);
        }
        specs.into_iter().filter_map(|spec| self.upsert(spec).err()).collect()
    }

    /// The node has changed: other addresses, or another zone, for which services that prefer near backends are
    /// compiled anew. False if it is as it was.
    pub fn set_node(&mut self, node: Node) -> bool {
        if self.node == node {
            return false;
        }
        self.tables.node_addresses = node.addresses.clone().into();
        let zone_is_new = self.node.zone != node.zone;
        self.node = node;
        if zone_is_new {
            let near = self.services.values().filter(|entry| entry.spec.topology != Topology::Anywhere);
            for spec in near.map(|entry| entry.spec.clone()).collect::<Vec<_>>() {
                let ports = self.compile(&spec, false);
                self.replace(spec, ports);
            }
        }
        true
    }

    /// The tables taken last were published as `epoch`.
    pub fn published(&mut self, epoch: Epoch) {
        self.ids.published(epoch);
    }

    /// Whether backends are gone whose numbers are not free yet.
    #[must_use]
    pub fn has_retired(&self) -> bool {
        self.ids.has_retired()
    }

    /// Takes back the numbers of backends that are gone and that nothing holds; returns how many.
    ///
    /// In this order: read `slowest` from the publisher, then mark what connections and affinity hold, then reclaim.
    /// A worker that then still puts a number down has it from tables in which that backend exists.
    pub fn reclaim(&mut self, slowest: Epoch, marks: &Marks) -> usize {
        self.ids.reclaim(slowest, marks)
    }

    /// The services, by name.
    pub fn services(&self) -> impl Iterator<Item = (&ServiceSpec, &[Arc<ServicePort>])> {
        self.services.values().map(|entry| (&entry.spec, entry.ports.as_slice()))
    }

    /// A service.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<(&ServiceSpec, &[Arc<ServicePort>])> {
        self.services.get(name).map(|entry| (&entry.spec, entry.ports.as_slice()))
    }

    /// The frontends that more than one service claims.
    pub fn contested(&self) -> impl Iterator<Item = Contested> {
        self.contested.iter().filter_map(|(key, names)| {
            let mut names = names.iter().cloned();
            Some(Contested { frontend: *key, holder: names.next()?, others: names.collect() })
        })
    }

    /// The ports that load balancers ask: those of services whose outside clients are served by local backends only.
    pub fn health_checks(&self) -> impl Iterator<Item = HealthCheck<'_>> {
        self.asked_about.iter().filter_map(|name| {
            let Entry { spec, .. } = self.services.get(name)?;
            let backends = spec.ports.iter().flat_map(|port| &port.backends);
            let ready = backends.filter(|one| one.is_local && one.state == BackendState::Ready);
            let addresses: HashSet<IpAddr> = ready.map(|one| one.address).collect();
            // A backend that has both kinds of address is one.
            let ipv4 = addresses.iter().filter(|address| address.is_ipv4()).count();
            let local_ready = ipv4.max(addresses.len() - ipv4);
            Some(HealthCheck { port: spec.health_check_port?, service: &spec.name, local_ready })
        })
    }

    /// Whether there are numbers for all backends of a service that were not there before.
    fn check_ids(&self, spec: &ServiceSpec) -> Result<(), ServiceFault> {
        let newcomers = spec.ports.iter().map(|port| {
            let old = self.before(&spec.name, port).map(|(_, compiled)| known(compiled)).unwrap_or_default();
            port.backends.iter().filter(|one| !old.contains_key(&(one.address, one.port))).count()
        });
        if newcomers.sum::<usize>() > self.ids.left() {
            return Err(ServiceFault::OutOfIds { service: spec.name.clone(), max: BackendId::LIMIT });
        }
        Ok(())
    }

    /// The port of the same protocol and number in the service that now has the name.
    fn before(&self, service: &str, port: &PortSpec) -> Option<(&PortSpec, &Arc<ServicePort>)> {
        let entry = self.services.get(service)?;
        let is_same = |old: &PortSpec| (old.protocol, old.port) == (port.protocol, port.port);
        let at = entry.spec.ports.iter().position(is_same)?;
        Some((&entry.spec.ports[at], &entry.ports[at]))
    }

    /// Compiles a service's ports; if `may_reuse`, those that did not change are taken over from the service of its name.
    fn compile(&mut self, spec: &ServiceSpec, may_reuse: bool) -> Vec<Arc<ServicePort>> {
        let head = Head::of(spec, self.rate);
        let old = self.services.get(&spec.name).and_then(|entry| entry.ports.first());
        let head = match old.filter(|port| *port.head == head) {
            Some(port) => Arc::clone(&port.head),
            None => Arc::new(head),
        };
        let mut ports = Vec::with_capacity(spec.ports.len());
        for port in &spec.ports {
            let before = self.before(&spec.name, port);
            let is_same = |(old, compiled): &(&PortSpec, &Arc<ServicePort>)| {
                may_reuse && old.backends == port.backends && Arc::ptr_eq(&compiled.head, &head)
            };
            if let Some((_, compiled)) = before.filter(is_same) {
                ports.push(Arc::clone(compiled));
                continue;
            }
            let old = before.map(|(_, compiled)| known(compiled)).unwrap_or_default();
            let ids = number(&mut self.ids, &spec.name, port, &old);
            let zone = self.node.zone.as_deref();
            ports.push(Arc::new(ServicePort::compile(Arc::clone(&head), port, &ids, zone)));
        }
        ports
    }

    /// Puts a compiled service in the place of the one of its name.
    fn replace(&mut self, spec: ServiceSpec, ports: Vec<Arc<ServicePort>>) {
        let old = self.services.remove(&spec.name);
        let new_claims = claims(&spec);
        if let Some(old) = &old {
            self.release(old, &ports);
            let kept: HashSet<FrontendKey> = new_claims.iter().map(|(key, _, _)| *key).collect();
            for (key, _, _) in claims(&old.spec).into_iter().filter(|(key, _, _)| !kept.contains(key)) {
                self.withdraw(&key, &spec.name);
            }
            self.own(&old.spec, false);
        }
        self.own(&spec, true);
        for port in &ports {
            for at in port.backends().iter().map(|backend| backend.id.number() as usize) {
                if !self.tables.owners.get(at).is_some_and(|owner| Arc::ptr_eq(owner, port)) {
                    self.tables.owners.set(at, Some(Arc::clone(port)));
                }
            }
        }
        for (key, at, kind) in new_claims {
            self.claim(key, &spec.name, Frontend { port: Arc::clone(&ports[at]), kind });
        }
        if spec.external_policy == TrafficPolicy::Local && spec.health_check_port.is_some() {
            self.asked_about.insert(spec.name.clone());
        } else {
            self.asked_about.remove(&spec.name);
        }
        self.services.insert(spec.name.clone(), Entry { spec, ports });
    }

    /// Retires the numbers of backends that are in `old` and not in `new`.
    fn release(&mut self, old: &Entry, new: &[Arc<ServicePort>]) {
        for port in &old.ports {
            let after = new.iter().find(|other| other.port() == port.port());
            for backend in port.backends() {
                if after.is_none_or(|after| after.backend(backend.id).is_none()) {
                    self.ids.retire(port.identity(backend), backend.id);
                    self.tables.owners.set(backend.id.number() as usize, None);
                }
            }
        }
    }

    /// A service claims a frontend: it has it unless one has it whose name comes first.
    fn claim(&mut self, key: FrontendKey, name: &str, frontend: Frontend) {
        let held = self.tables.frontends.get(&key);
        if held.is_some_and(|held| Arc::ptr_eq(&held.port, &frontend.port) && held.kind == frontend.kind) {
            return;
        }
        let holder = held.map(|held| &held.port.head.name);
        if let Some(holder) = holder.filter(|holder| *holder != name) {
            let names = self.contested.entry(key).or_default();
            names.extend([holder.clone(), name.to_owned()]);
            if holder.as_str() < name {
                return;
            }
        }
        self.tables.frontends.insert(key, frontend);
    }

    /// A service claims a frontend no longer: the next by name has it, if there is one.
    fn withdraw(&mut self, key: &FrontendKey, name: &str) {
        let mut next = None;
        if let Some(names) = self.contested.get_mut(key) {
            names.remove(name);
            next = names.first().cloned();
            if names.len() < 2 {
                self.contested.remove(key);
            }
        }
        let Some(next) = next else { return self.tables.frontends.remove(key) };
        let claimed = self.services.get(&next).and_then(|entry| {
            let (_, at, kind) = claims(&entry.spec).into_iter().find(|(other, _, _)| other == key)?;
            Some(Frontend { port: Arc::clone(&entry.ports[at]), kind })
        });
        if let Some(frontend) = claimed {
            self.tables.frontends.insert(*key, frontend);
        }
    }

    /// A service's cluster addresses are taken, or given back.
    fn own(&mut self, spec: &ServiceSpec, takes: bool) {
        for address in &spec.cluster_ips {
            let key = ClusterIp(spec.network, *address);
            let count = self.cluster_ips.entry(key).or_default();
            if takes {
                *count += 1;
                if *count == 1 {
                    self.tables.cluster_ips.insert(key, ());
                }
            } else {
                *count -= 1;
                if *count == 0 {
                    self.cluster_ips.remove(&key);
                    self.tables.cluster_ips.remove(&key);
                }
            }
        }
    }
}

/// The numbers of a port's backends.
fn known(port: &Arc<ServicePort>) -> HashMap<(IpAddr, u16), BackendId> {
    port.backends().iter().map(|backend| ((backend.address, backend.port), backend.id)).collect()
}

/// Numbers for a port's backends, in their order: the old ones for those that were there before.
fn number(
    ids: &mut Ids,
    service: &str,
    port: &PortSpec,
    old: &HashMap<(IpAddr, u16), BackendId>,
) -> Vec<BackendId> {
    let service_port = ServicePort::key_of(service, port.protocol, port.port);
    let backends = port.backends.iter().map(|backend| {
        let identity = Identity { service_port, address: backend.address, port: backend.port };
        old.get(&(backend.address, backend.port)).copied().or_else(|| ids.take(&identity))
    });
    // `check_ids` has seen that there are numbers enough.
    backends.flatten().collect()
}

/// Everything that a service claims, each frontend once: a cluster address before the others.
fn claims(spec: &ServiceSpec) -> Vec<Claim> {
    let places = [
        (&spec.cluster_ips, FrontendKind::ClusterIp),
        (&spec.load_balancer_ips, FrontendKind::LoadBalancer),
        (&spec.external_ips, FrontendKind::ExternalIp),
    ];
    let mut seen = HashSet::new();
    let mut claims = Vec::new();
    for (at, port) in spec.ports.iter().enumerate() {
        for (addresses, kind) in places {
            for address in addresses {
                let place = Place::Address(spec.network, *address);
                claims.push((FrontendKey { place, protocol: port.protocol, port: port.port }, at, kind));
            }
        }
        if let Some(node_port) = port.node_port {
            let key = FrontendKey { place: Place::Node, protocol: port.protocol, port: node_port };
            claims.push((key, at, FrontendKind::NodePort));
        }
    }
    claims.retain(|(key, _, _)| seen.insert(*key));
    claims
}
