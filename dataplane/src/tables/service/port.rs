//! A port of a service, compiled: who may answer whom, and who does.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use penstock_io::Ticks;
use penstock_wire::Vni;

use super::affinity::{Affinity, Client, Timeout};
use super::hash::Hash;
use super::ids::{BackendId, Identity};
use super::maglev::{Candidate, Maglev};
use super::spec::{BackendSpec, BackendState, PortSpec, Protocol, ServiceSpec, Topology, TrafficPolicy};
use super::{Answer, Chosen, DropCause, FrontendKind, Origin, Query, RejectCause, SourceNat};

/// What the ports of a service share.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) name: String,
    rules: Rules,
    source_ranges: Box<[IpNet]>,
    topology: Topology,
}

/// What every decision asks of the service: each port has a copy, so that no other line of memory is read for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Rules {
    network: Vni,
    affinity: Option<Timeout>,
    internal: TrafficPolicy,
    external: TrafficPolicy,
    is_direct: bool,
    has_ranges: bool,
}

impl Head {
    pub(super) fn of(spec: &ServiceSpec, rate: penstock_io::TicksPerSecond) -> Head {
        let rules = Rules {
            network: spec.network,
            affinity: spec.affinity.map(|timeout| Timeout::new(timeout, rate)),
            internal: spec.internal_policy,
            external: spec.external_policy,
            is_direct: spec.is_direct,
            has_ranges: !spec.source_ranges.is_empty(),
        };
        Head {
            name: spec.name.clone(),
            rules,
            source_ranges: spec.source_ranges.clone().into(),
            topology: spec.topology,
        }
    }

    fn admits(&self, src: IpAddr) -> bool {
        self.source_ranges.iter().any(|range| range.contains(&src))
    }

    fn uses_local(&self) -> bool {
        [self.rules.internal, self.rules.external].contains(&TrafficPolicy::Local)
    }
}

/// A backend of a service port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backend {
    /// Its number.
    pub id: BackendId,
    /// Its address.
    pub address: IpAddr,
    /// Its port.
    pub port: u16,
    /// Whether it is on this node.
    pub is_local: bool,
    /// Whether it takes new connections.
    pub state: BackendState,
    /// Which pools it is in, one bit for each.
    pools: u8,
}

/// Backends to choose from: one pool for each address family and policy.
type Pools = [Maglev; 4];

/// The pool of a family and a policy.
const fn pool_of(is_ipv6: bool, policy: TrafficPolicy) -> usize {
    is_ipv6 as usize * 2 + matches!(policy, TrafficPolicy::Local) as usize
}

/// A port of a service, as the snapshot has it.
#[derive(Debug)]
pub struct ServicePort {
    pub(super) head: Arc<Head>,
    rules: Rules,
    protocol: Protocol,
    port: u16,
    /// Tells service ports apart, alike on every node.
    key: u64,
    /// By number.
    backends: Box<[Backend]>,
    pools: Pools,
    /// Whether any node has a backend of weight, for IPv4 and IPv6.
    has_any: [bool; 2],
}

impl ServicePort {
    /// The key of a service's port, alike on every node.
    pub(super) fn key_of(service: &str, protocol: Protocol, port: u16) -> u64 {
        Hash::new(3).text(service).word(u64::from(port) << 2 | protocol as u64).finish()
    }

    /// Compiles a port whose backends have been given numbers, in the order of the specification; `zone` is the node's.
    pub(super) fn compile(
        head: Arc<Head>,
        spec: &PortSpec,
        ids: &[BackendId],
        zone: Option<&str>,
    ) -> ServicePort {
        let mut order: Vec<usize> = (0..ids.len()).collect();
        order.sort_unstable_by_key(|at| ids[*at]);
        let specs: Vec<&BackendSpec> = order.iter().map(|at| &spec.backends[*at]).collect();
        let mut backends: Vec<Backend> = order
            .iter()
            .zip(&specs)
            .map(|(at, spec)| Backend {
                id: ids[*at],
                address: spec.address,
                port: spec.port,
                is_local: spec.is_local,
                state: spec.state,
                pools: 0,
            })
            .collect();
        let rules = head.rules;
        let (mut pools, mut has_any) = (Pools::default(), [false; 2]);
        for is_ipv6 in [false, true] {
            has_any[usize::from(is_ipv6)] = specs.iter().any(|spec| counts(spec, is_ipv6));
            for policy in [TrafficPolicy::Cluster, TrafficPolicy::Local] {
                if policy == TrafficPolicy::Local && !head.uses_local() {
                    continue;
                }
                let at = pool_of(is_ipv6, policy);
                let usable = usable(&specs, is_ipv6, policy, head.topology, zone);
                usable.iter().for_each(|member| backends[usize::from(*member)].pools |= 1 << at);
                pools[at] = Maglev::fill(usable.iter().map(|member| candidate(&specs, *member)).collect());
            }
        }
        let key = ServicePort::key_of(&head.name, spec.protocol, spec.port);
        let backends = backends.into();
        ServicePort { head, rules, protocol: spec.protocol, port: spec.port, key, backends, pools, has_any }
    }

    /// The service's name.
    #[must_use]
    pub fn service(&self) -> &str {
        &self.head.name
    }

    /// The protocol and the port at the service's addresses.
    #[must_use]
    pub fn port(&self) -> (Protocol, u16) {
        (self.protocol, self.port)
    }

    /// Every backend, by number.
    #[must_use]
    pub fn backends(&self) -> &[Backend] {
        &self.backends
    }

    /// The backend of a number, if it is one of this port's.
    #[inline]
    #[must_use]
    pub fn backend(&self, id: BackendId) -> Option<&Backend> {
        let at = self.backends.binary_search_by_key(&id, |backend| backend.id).ok()?;
        Some(&self.backends[at])
    }

    /// What a backend's number stands for.
    pub(super) fn identity(&self, backend: &Backend) -> Identity {
        Identity { service_port: self.key, address: backend.address, port: backend.port }
    }

    /// Who answers a new connection that came to a frontend of this `kind`.
    #[inline]
    pub(super) fn decide(
        &self,
        kind: FrontendKind,
        query: &Query,
        affinity: &Affinity,
        now: Ticks,
    ) -> Answer {
        if kind == FrontendKind::LoadBalancer && self.rules.has_ranges && !self.head.admits(query.src) {
            return Answer::Drop(DropCause::SourceNotAllowed);
        }
        let policy = self.policy(kind, query.origin);
        let is_ipv6 = query.dst.is_ipv6();
        let at = pool_of(is_ipv6, policy);
        if self.pools[at].is_empty() {
            let elsewhere = policy == TrafficPolicy::Local && self.has_any[usize::from(is_ipv6)];
            return if elsewhere {
                Answer::Drop(DropCause::NoLocalBackend)
            } else {
                Answer::Reject(RejectCause::NoBackend)
            };
        }
        Answer::Backend(self.answered_by(self.choose(at, query, affinity, now), kind, query))
    }

    /// What [`ServicePort::decide`] would answer, and whether the client's earlier connections choose the backend. Nothing
    /// is remembered of it.
    pub(super) fn foresee(
        &self,
        kind: FrontendKind,
        query: &Query,
        affinity: &Affinity,
        now: Ticks,
    ) -> (Answer, bool) {
        let client = Client { address: query.src, service_port: self.key };
        let known = affinity.excerpt(client);
        let before = self.rules.affinity.and_then(|timeout| known.remembered(client, timeout, now));
        let answer = self.decide(kind, query, &known, now);
        let is_met_again = matches!(answer, Answer::Backend(chosen) if Some(chosen.backend) == before);
        (answer, is_met_again)
    }

    /// Which policy holds. Who asks an outside address from inside the cluster may use every backend (kube-proxy does the
    /// same): a Local policy keeps the addresses of clients outside, and those inside keep theirs anyway.
    fn policy(&self, kind: FrontendKind, origin: Origin) -> TrafficPolicy {
        match (kind, origin) {
            (FrontendKind::ClusterIp, _) => self.rules.internal,
            (_, Origin::Outside) => self.rules.external,
            _ => TrafficPolicy::Cluster,
        }
    }

    #[inline]
    fn choose(&self, at: usize, query: &Query, affinity: &Affinity, now: Ticks) -> &Backend {
        let hash = Hash::new(self.key).address(query.src);
        let pick = |hash: Hash| &self.backends[usize::from(self.pools[at].pick(hash.finish()))];
        let Some(timeout) = self.rules.affinity else {
            return pick(hash.word(u64::from(query.sport)));
        };
        // By the address alone: workers that meet a client at once choose the same backend.
        let fresh = || pick(hash).id;
        let serves = |id| self.backend(id).is_some_and(|backend| backend.pools >> at & 1 == 1);
        let client = Client { address: query.src, service_port: self.key };
        let id = affinity.choose(client, timeout, now, serves, fresh);
        self.backend(id).unwrap_or_else(|| pick(hash))
    }

    #[inline]
    fn answered_by(&self, backend: &Backend, kind: FrontendKind, query: &Query) -> Chosen {
        // Clients inside know this node by its tunnel, and would not believe another node's answers.
        let is_outside = query.origin == Origin::Outside && kind != FrontendKind::ClusterIp;
        let is_direct = self.rules.is_direct && !backend.is_local && is_outside;
        let source = if backend.address == query.src {
            SourceNat::Hairpin
        } else if backend.is_local || is_direct || query.origin == Origin::Endpoint {
            SourceNat::Keep
        } else {
            SourceNat::Node
        };
        Chosen {
            backend: backend.id,
            address: backend.address,
            port: backend.port,
            network: self.rules.network,
            kind,
            is_local: backend.is_local,
            is_direct,
            source,
        }
    }
}

/// Whether a backend of that family has a share at all.
fn counts(spec: &BackendSpec, is_ipv6: bool) -> bool {
    spec.address.is_ipv6() == is_ipv6 && spec.weight > 0
}

/// The positions of the backends that a policy may use: the ready ones, nearest first, else the terminating ones.
fn usable(
    specs: &[&BackendSpec],
    is_ipv6: bool,
    policy: TrafficPolicy,
    topology: Topology,
    zone: Option<&str>,
) -> Vec<u16> {
    let those = |wanted: &dyn Fn(&BackendSpec) -> bool| -> Vec<u16> {
        let all = specs.iter().enumerate().filter(|(_, spec)| counts(spec, is_ipv6) && wanted(spec));
        all.map(|(at, _)| at as u16).collect()
    };
    let may = |spec: &BackendSpec| policy == TrafficPolicy::Cluster || spec.is_local;
    let ready = |spec: &BackendSpec| may(spec) && spec.state == BackendState::Ready;
    let near_node = |spec: &BackendSpec| ready(spec) && spec.is_local;
    let near_zone = |spec: &BackendSpec| ready(spec) && zone.is_some() && spec.zone.as_deref() == zone;
    let steps: &[&dyn Fn(&BackendSpec) -> bool] = match topology {
        Topology::Anywhere => &[&ready, &may],
        Topology::SameZone => &[&near_zone, &ready, &may],
        Topology::SameNode => &[&near_node, &near_zone, &ready, &may],
    };
    steps.iter().map(|wanted| those(wanted)).find(|found| !found.is_empty()).unwrap_or_default()
}

fn candidate(specs: &[&BackendSpec], member: u16) -> Candidate {
    let spec = specs[usize::from(member)];
    let identity = Hash::new(5).address(spec.address).word(u64::from(spec.port)).finish();
    Candidate { identity, weight: spec.weight, member }
}
