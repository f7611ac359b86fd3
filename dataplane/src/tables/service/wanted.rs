//! Services of the configuration in the words of the [`Directory`](super::Directory).

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use penstock_api::model::{self, Affinity, Name};
use penstock_wire::Vni;

use super::spec::{BackendSpec, BackendState, PortSpec, Protocol, ServiceSpec, Topology, TrafficPolicy};
use crate::tables::desired::Desired;

/// Every service whose network there is, with its backends; `zone` is the node's.
pub fn wanted(desired: &Desired, zone: Option<&Name>) -> Vec<ServiceSpec> {
    let networks: HashMap<&Name, Vni> = desired.networks().map(|it| (&it.name, it.vni)).collect();
    let local: std::collections::HashSet<(&Name, IpAddr)> = desired
        .endpoints()
        .flat_map(|it| it.addresses.iter().map(move |&address| (&it.network, address)))
        .collect();
    let spec = |service: &model::Service| {
        let is_local = |backend: &model::Backend| {
            let here = || local.contains(&(&service.network, backend.address));
            backend.node.as_ref().map_or_else(here, |node| *node == desired.node.name)
        };
        let ports = service.ports.iter().map(|port| PortSpec {
            protocol: protocol_of(port.protocol),
            port: port.port,
            node_port: port.node_port,
            backends: backends_of(desired, service, port, &is_local, zone),
        });
        Some(ServiceSpec {
            name: service.name.to_string(),
            network: *networks.get(&service.network)?,
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
    };
    desired.services().filter_map(spec).collect()
}

fn backends_of(
    desired: &Desired,
    service: &model::Service,
    port: &model::ServicePort,
    is_local: &impl Fn(&model::Backend) -> bool,
    zone: Option<&Name>,
) -> Vec<BackendSpec> {
    let slices = desired.backends(&service.name).filter_map(|slice| {
        let at = slice.ports.iter().find(|it| it.name == port.name)?.port;
        Some((slice, at))
    });
    let backend = |backend: &model::Backend, port| BackendSpec {
        address: backend.address,
        port,
        is_local: is_local(backend),
        zone: zone_for(backend, zone).map(Name::to_string),
        state: match backend.state {
            model::BackendState::Terminating => BackendState::Terminating,
            model::BackendState::Ready | model::BackendState::NotReady => BackendState::Ready,
        },
        // One that is not ready keeps its connections and has no share of the new ones.
        weight: if backend.state == model::BackendState::NotReady { 0 } else { backend.weight.into() },
    };
    slices.flat_map(|(slice, at)| slice.members.iter().map(move |member| backend(member, at))).collect()
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
