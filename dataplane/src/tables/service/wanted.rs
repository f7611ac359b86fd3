//! Services of the configuration in the words of the [`Directory`](super::Directory).

use std::cell::OnceCell;
use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::time::Duration;

use penstock_api::model::{self, Affinity, Key, Name, Object};
use penstock_wire::Vni;

use super::spec::{BackendSpec, BackendState, PortSpec, Protocol, ServiceSpec, Topology, TrafficPolicy};
use crate::tables::desired::Desired;

/// Services of a configuration, one by one; a service whose network there is not is none.
pub struct Wanted<'a> {
    desired: &'a Desired,
    /// The node's.
    zone: Option<&'a Name>,
    networks: HashMap<&'a Name, Vni>,
    /// The addresses of this node's endpoints, as soon as a backend is asked for that does not say where it is.
    local: OnceCell<HashSet<(&'a Name, IpAddr)>>,
}

impl<'a> Wanted<'a> {
    /// The services of a configuration; `zone` is the node's.
    #[must_use]
    pub fn of(desired: &'a Desired, zone: Option<&'a Name>) -> Wanted<'a> {
        let networks = desired.networks().map(|it| (&it.name, it.vni)).collect();
        Wanted { desired, zone, networks, local: OnceCell::new() }
    }

    /// All of them.
    #[must_use]
    pub fn all(&self) -> Vec<ServiceSpec> {
        self.desired.services().filter_map(|service| self.spec(service)).collect()
    }

    /// The one of a name.
    #[must_use]
    pub fn get(&self, name: &Name) -> Option<ServiceSpec> {
        match self.desired.get(&Key::Service(name.clone())) {
            Some(Object::Service(service)) => self.spec(service),
            _ => None,
        }
    }

    /// Whether what was answered depends on which endpoints this node has.
    #[must_use]
    pub fn follows_endpoints(&self) -> bool {
        self.local.get().is_some()
    }

    fn spec(&self, service: &model::Service) -> Option<ServiceSpec> {
        let ports = service.ports.iter().map(|port| PortSpec {
            protocol: protocol_of(port.protocol),
            port: port.port,
            node_port: port.node_port,
            backends: self.backends(service, port),
        });
        Some(ServiceSpec {
            name: service.name.to_string(),
            network: *self.networks.get(&service.network)?,
            cluster_ips: service.cluster_ips.clone(),
            external_ips: service.external_ips.clone(),
            load_balancer_ips: service.load_balancer_ips.clone(),
            ports: ports.collect(),
            affinity: service
                .affinity
                .map(|Affinity::ClientIp { timeout_s }| Duration::from_secs(timeout_s.into())),
            internal_policy: traffic_of(service.internal_policy),
            external_policy: traffic_of(service.external_policy),
            topology: match service.topology {
                model::TopologyPreference::None => Topology::Anywhere,
                model::TopologyPreference::Zone => Topology::SameZone,
                model::TopologyPreference::Node => Topology::SameNode,
            },
            is_direct: service.dsr,
            health_check_port: service.health_check_node_port,
            source_ranges: service.source_ranges.iter().map(|range| range.net()).collect(),
        })
    }

    fn backends(&self, service: &model::Service, port: &model::ServicePort) -> Vec<BackendSpec> {
        let slices = self.desired.backends(&service.name).filter_map(|slice| {
            let at = slice.ports.iter().find(|it| it.name == port.name)?.port;
            Some((slice, at))
        });
        let backend = |backend: &model::Backend, port| BackendSpec {
            address: backend.address,
            port,
            is_local: self.is_local(service, backend),
            zone: zone_for(backend, self.zone).map(Name::to_string),
            state: match backend.state {
                model::BackendState::Terminating => BackendState::Terminating,
                model::BackendState::Ready | model::BackendState::NotReady => BackendState::Ready,
            },
            // One that is not ready keeps its connections and has no share of the new ones.
            weight: if backend.state == model::BackendState::NotReady { 0 } else { backend.weight.into() },
        };
        slices.flat_map(|(slice, at)| slice.members.iter().map(move |member| backend(member, at))).collect()
    }

    fn is_local(&self, service: &model::Service, backend: &model::Backend) -> bool {
        if let Some(node) = &backend.node {
            return *node == self.desired.node.name;
        }
        let local = self.local.get_or_init(|| {
            let endpoints = self.desired.endpoints();
            endpoints.flat_map(|it| it.addresses.iter().map(|&address| (&it.network, address))).collect()
        });
        local.contains(&(&service.network, backend.address))
    }
}

/// The zone that a backend counts to, as seen from `here`: ours if it is meant for clients of ours.
fn zone_for<'a>(backend: &'a model::Backend, here: Option<&'a Name>) -> Option<&'a Name> {
    if backend.for_zones.is_empty() {
        return backend.zone.as_ref();
    }
    here.filter(|here| backend.for_zones.contains(here))
}

fn protocol_of(protocol: model::ServiceProtocol) -> Protocol {
    match protocol {
        model::ServiceProtocol::Tcp => Protocol::Tcp,
        model::ServiceProtocol::Udp => Protocol::Udp,
        model::ServiceProtocol::Sctp => Protocol::Sctp,
    }
}

fn traffic_of(policy: model::TrafficPolicy) -> TrafficPolicy {
    match policy {
        model::TrafficPolicy::Cluster => TrafficPolicy::Cluster,
        model::TrafficPolicy::Local => TrafficPolicy::Local,
    }
}
