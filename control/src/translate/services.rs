//! Services in the words of the dataplane.
//!
//! An address with a port, and a port of the nodes, is one service's. Inside the cluster Kubernetes gives each only once,
//! so of two the younger has it and the last word about the older is yet to come; addresses from outside anybody may
//! write down, so there the older keeps it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use penstock_api::model::{
    Backend, BackendPort, BackendState, Backends, Key as SaidKey, Name, Object as Said,
    Service as SaidService, ServicePort, ServiceProtocol, TopologyPreference,
};

use super::names;
use crate::cluster::{Cluster, Problem, Scoped, Service, Slice, SlicePlace};

/// What only one service may have.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Claim {
    /// An address with a port.
    Address(IpAddr, u16, ServiceProtocol),
    /// A port of the nodes.
    NodePort(u16, ServiceProtocol),
}

/// A service's right to it: the greatest has it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Right {
    given_by_kubernetes: bool,
    rank: i64,
    service: Scoped,
}

/// Who has what.
#[derive(Debug, Default)]
pub(super) struct Claims {
    rights: BTreeMap<Claim, BTreeSet<Right>>,
    entered: BTreeMap<Scoped, Vec<(Claim, Right)>>,
}

impl Claims {
    /// Enters what a service claims now, or nothing; answers who else may have lost or won by it.
    pub(super) fn enter(&mut self, key: &Scoped, service: Option<&Service>) -> BTreeSet<Scoped> {
        let mut touched = BTreeSet::new();
        for (claim, right) in self.entered.remove(key).unwrap_or_default() {
            if let Some(rights) = self.rights.get_mut(&claim) {
                rights.remove(&right);
                touched.extend(rights.iter().map(|right| right.service.clone()));
                if rights.is_empty() {
                    self.rights.remove(&claim);
                }
            }
        }
        let Some(service) = service else { return touched };
        let mut entered = Vec::new();
        for (claim, given_by_kubernetes) in claims(service) {
            let rank = if given_by_kubernetes { service.created } else { -service.created };
            let right = Right { given_by_kubernetes, rank, service: key.clone() };
            let rights = self.rights.entry(claim.clone()).or_default();
            touched.extend(rights.iter().map(|right| right.service.clone()));
            rights.insert(right.clone());
            entered.push((claim, right));
        }
        self.entered.insert(key.clone(), entered);
        touched.remove(key);
        touched
    }

    fn has(&self, key: &Scoped, claim: &Claim) -> bool {
        let greatest = self.rights.get(claim).and_then(BTreeSet::last);
        greatest.is_some_and(|right| right.service == *key)
    }

    fn holder(&self, claim: &Claim) -> String {
        let greatest = self.rights.get(claim).and_then(BTreeSet::last);
        greatest.map(|right| right.service.to_string()).unwrap_or_default()
    }
}

/// What a service claims, and whether Kubernetes gave it that.
fn claims(service: &Service) -> Vec<(Claim, bool)> {
    let inside = service.cluster_ips.iter().map(|address| (*address, true));
    let outside =
        service.load_balancer_ips.iter().chain(&service.external_ips).map(|address| (*address, false));
    let addresses: Vec<(IpAddr, bool)> = inside.chain(outside).collect();
    let mut claims = Vec::new();
    for port in &service.ports {
        let at =
            |(address, given): &(IpAddr, bool)| (Claim::Address(*address, port.port, port.protocol), *given);
        claims.extend(addresses.iter().map(at));
        claims.extend(port.node_port.map(|number| (Claim::NodePort(number, port.protocol), true)));
    }
    let health = service.health_check_node_port;
    claims.extend(health.map(|number| (Claim::NodePort(number, ServiceProtocol::Tcp), true)));
    claims
}

/// A service with its slices, and what of it cannot be honoured.
pub(super) fn service(
    cluster: &Cluster,
    claims: &Claims,
    key: &Scoped,
    direct_server_return: bool,
) -> (Vec<Said>, Vec<Problem>) {
    let Some(service) = cluster.services().get(key) else { return (Vec::new(), Vec::new()) };
    let mut writer = Writer { claims, key, service, problems: Vec::new() };
    let ports = writer.ports();
    let mut taken = BTreeSet::new();
    let cluster_ips = writer.addresses("spec.clusterIPs", &service.cluster_ips, &mut taken);
    let load_balancer_ips =
        writer.addresses("status.loadBalancer.ingress", &service.load_balancer_ips, &mut taken);
    let external_ips = writer.addresses("spec.externalIPs", &service.external_ips, &mut taken);
    let health = service
        .health_check_node_port
        .filter(|port| claims.has(key, &Claim::NodePort(*port, ServiceProtocol::Tcp)));
    let problems = writer.problems;
    let unreachable = taken.is_empty() && ports.iter().all(|port| port.node_port.is_none());
    if ports.is_empty() || unreachable {
        return (Vec::new(), problems);
    }
    let name = names::name(&key.to_string());
    let slices: Vec<(&String, &Slice)> = cluster.slices(key).map(|(name, slice)| (name, &**slice)).collect();
    let mut said = vec![Said::Service(SaidService {
        name: name.clone(),
        network: cluster.network().clone(),
        cluster_ips,
        external_ips,
        load_balancer_ips,
        affinity: service.affinity,
        internal_policy: service.internal_policy,
        external_policy: service.external_policy,
        topology: topology(service.topology, &slices),
        dsr: direct_server_return,
        health_check_node_port: health,
        source_ranges: service.source_ranges.clone(),
        ports: ports.clone(),
    })];
    for (slice_name, slice) in slices {
        for (part, places) in slice.places.chunks(Backends::MAX_MEMBERS).enumerate() {
            let slice_name = if part == 0 { slice_name.clone() } else { format!("{slice_name}/{part}") };
            let ports = backend_ports(&ports, slice);
            if ports.is_empty() {
                continue;
            }
            let members = places.iter().map(|place| backend(service, place)).collect();
            let slice = names::name(&slice_name);
            said.push(Said::Backends(Backends { service: name.clone(), slice, ports, members }));
        }
    }
    (said, problems)
}

struct Writer<'a> {
    claims: &'a Claims,
    key: &'a Scoped,
    service: &'a Service,
    problems: Vec<Problem>,
}

impl Writer<'_> {
    /// The ports, of which none has the name of another, nor its number and protocol.
    fn ports(&mut self) -> Vec<ServicePort> {
        let mut ports: Vec<ServicePort> = Vec::new();
        for (i, port) in self.service.ports.iter().enumerate() {
            let name = port_name(&port.name);
            let alike = |other: &ServicePort| {
                other.name == name || (other.protocol, other.port) == (port.protocol, port.port)
            };
            if ports.iter().any(alike) {
                let mend = "give each port a name of its own, and each protocol a number once";
                self.problems.push(Problem::new(
                    format!("spec.ports[{i}]"),
                    "is there twice and left out",
                    mend,
                ));
                continue;
            }
            let node_port = port.node_port.filter(|number| {
                let claim = Claim::NodePort(*number, port.protocol);
                let has = self.claims.has(self.key, &claim);
                if !has {
                    let problem = format!("{number} is the node port of {}", self.claims.holder(&claim));
                    let field = format!("spec.ports[{i}].nodePort");
                    self.problems.push(Problem::new(field, problem, "choose another one"));
                }
                has
            });
            ports.push(ServicePort { name, protocol: port.protocol, port: port.port, node_port });
        }
        ports
    }

    /// The addresses of which it has all of its ports, and that it has not in another way already.
    fn addresses(&mut self, field: &str, addresses: &[IpAddr], taken: &mut BTreeSet<IpAddr>) -> Vec<IpAddr> {
        let mut own = Vec::new();
        for address in addresses.iter().copied() {
            if taken.contains(&address) {
                continue;
            }
            let claims = self.service.ports.iter().map(|it| Claim::Address(address, it.port, it.protocol));
            match claims.into_iter().find(|claim| !self.claims.has(self.key, claim)) {
                Some(lost) => {
                    let problem = format!("{address} is served by {} already", self.claims.holder(&lost));
                    let mend = "choose another address, or other ports there";
                    self.problems.push(Problem::new(field, problem, mend));
                }
                None => {
                    taken.insert(address);
                    own.push(address);
                }
            }
        }
        own
    }
}

/// The name of a port; an only port may have none.
fn port_name(name: &str) -> Name {
    names::name(if name.is_empty() { "main" } else { name })
}

fn backend_ports(ports: &[ServicePort], slice: &Slice) -> Vec<BackendPort> {
    let known = |name: &Name| ports.iter().any(|port| port.name == *name);
    let all = slice.ports.iter().map(|(name, port)| BackendPort { name: port_name(name), port: *port });
    all.filter(|port| known(&port.name)).collect()
}

fn backend(service: &Service, place: &SlicePlace) -> Backend {
    let state = match place.state {
        BackendState::NotReady if service.publish_not_ready => BackendState::Ready,
        state => state,
    };
    Backend {
        address: place.address,
        state,
        node: place.node.clone(),
        zone: place.zone.clone(),
        for_zones: place.for_zones.clone(),
        weight: 1,
    }
}

/// What is preferred, given that hints count only where every ready place has one (kube-proxy's rule).
fn topology(wanted: TopologyPreference, slices: &[(&String, &Slice)]) -> TopologyPreference {
    let places = || slices.iter().flat_map(|(_, slice)| &slice.places);
    let mut ready = places().filter(|place| place.state == BackendState::Ready);
    match wanted {
        TopologyPreference::Node if ready.clone().all(|place| !place.for_nodes.is_empty()) => wanted,
        TopologyPreference::None => TopologyPreference::None,
        _ if ready.all(|place| !place.for_zones.is_empty()) => TopologyPreference::Zone,
        _ => TopologyPreference::None,
    }
}

/// The keys of what a service became.
pub(super) fn keys(said: &[Said]) -> Vec<SaidKey> {
    said.iter().map(Said::key).collect()
}
