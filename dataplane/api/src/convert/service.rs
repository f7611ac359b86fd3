//! Services, backends, NAT pools and egress addresses, from the messages to the model and back.

use super::{Reader, texts};
use crate::model::{
    Affinity, Backend, BackendPort, BackendState, Backends, EgressIp, NatPool, Service, ServicePort,
    ServiceProtocol, TopologyPreference, TrafficPolicy,
};
use crate::proto;

pub(super) fn service_from_proto(m: proto::Service, reader: &mut Reader) -> Option<Service> {
    let name = reader.text("name", &m.name);
    let network = reader.text("network", &m.network);
    let cluster_ips = reader.addresses("cluster-ips", m.cluster_ips);
    let external_ips = reader.addresses("external-ips", m.external_ips);
    let load_balancer_ips = reader.addresses("load-balancer-ips", m.load_balancer_ips);
    let ports = reader.list("ports", m.ports, service_port_from_proto);
    let internal_policy = reader.enumeration("internal-policy", m.internal_policy);
    let external_policy = reader.enumeration("external-policy", m.external_policy);
    let topology = reader.enumeration("topology", m.topology);
    let health = reader
        .optional(m.health_check_node_port, |reader, port| reader.number("health-check-node-port", port));
    let source_ranges = reader.texts("source-ranges", m.source_ranges);
    Some(Service {
        name: name?,
        network: network?,
        cluster_ips: cluster_ips?,
        external_ips: external_ips?,
        load_balancer_ips: load_balancer_ips?,
        ports: ports?,
        affinity: m.affinity.map(|m| Affinity::ClientIp { timeout_s: m.timeout_s }),
        internal_policy: traffic_from_proto(internal_policy?),
        external_policy: traffic_from_proto(external_policy?),
        topology: topology_from_proto(topology?),
        dsr: m.dsr,
        health_check_node_port: health?,
        source_ranges: source_ranges?,
    })
}

fn service_port_from_proto(reader: &mut Reader, key: &str, m: proto::ServicePort) -> Option<ServicePort> {
    let name = reader.text(&format!("{key}.name"), &m.name);
    let protocol =
        reader.enumeration(&format!("{key}.protocol"), m.protocol).map(|protocol| match protocol {
            proto::ServiceProtocol::Tcp => ServiceProtocol::Tcp,
            proto::ServiceProtocol::Udp => ServiceProtocol::Udp,
            proto::ServiceProtocol::Sctp => ServiceProtocol::Sctp,
        });
    let port = reader.number(&format!("{key}.port"), m.port);
    let node_port =
        reader.optional(m.node_port, |reader, port| reader.number(&format!("{key}.node-port"), port));
    Some(ServicePort { name: name?, protocol: protocol?, port: port?, node_port: node_port? })
}

fn traffic_from_proto(policy: proto::TrafficPolicy) -> TrafficPolicy {
    match policy {
        proto::TrafficPolicy::Cluster => TrafficPolicy::Cluster,
        proto::TrafficPolicy::Local => TrafficPolicy::Local,
    }
}

fn topology_from_proto(preference: proto::TopologyPreference) -> TopologyPreference {
    match preference {
        proto::TopologyPreference::None => TopologyPreference::None,
        proto::TopologyPreference::Zone => TopologyPreference::Zone,
        proto::TopologyPreference::Node => TopologyPreference::Node,
    }
}

pub(super) fn backends_from_proto(m: proto::Backends, reader: &mut Reader) -> Option<Backends> {
    let service = reader.text("service", &m.service);
    let slice = reader.unless_empty(&m.slice, |reader, text| reader.text("slice", text));
    let ports = reader.list("ports", m.ports, |reader, key, m| {
        let name = reader.text(&format!("{key}.name"), &m.name);
        let port = reader.number(&format!("{key}.port"), m.port);
        Some(BackendPort { name: name?, port: port? })
    });
    let members = reader.list("members", m.members, backend_from_proto);
    let slice = slice?.unwrap_or_else(Backends::default_slice);
    Some(Backends { service: service?, slice, ports: ports?, members: members? })
}

fn backend_from_proto(reader: &mut Reader, key: &str, m: proto::Backend) -> Option<Backend> {
    let address = reader.address(&format!("{key}.address"), &m.address);
    let state = reader.enumeration(&format!("{key}.state"), m.state).map(|state| match state {
        proto::BackendState::Ready => BackendState::Ready,
        proto::BackendState::Terminating => BackendState::Terminating,
        proto::BackendState::NotReady => BackendState::NotReady,
    });
    let node = reader.unless_empty(&m.node, |reader, text| reader.text(&format!("{key}.node"), text));
    let zone = reader.unless_empty(&m.zone, |reader, text| reader.text(&format!("{key}.zone"), text));
    let for_zones = reader.texts(&format!("{key}.for-zones"), m.for_zones);
    let weight = match m.weight {
        None => Some(Backend::default_weight()),
        Some(weight) => reader.number(&format!("{key}.weight"), weight),
    };
    Some(Backend {
        address: address?,
        state: state?,
        node: node?,
        zone: zone?,
        for_zones: for_zones?,
        weight: weight?,
    })
}

pub(super) fn nat_pool_from_proto(m: proto::NatPool, reader: &mut Reader) -> Option<NatPool> {
    let name = reader.text("name", &m.name);
    let network = reader.text("network", &m.network);
    let sources = reader.texts("sources", m.sources);
    let exclusions = reader.texts("exclusions", m.exclusions);
    let addresses = reader.addresses("addresses", m.addresses);
    let ports = match m.ports {
        None => Some(NatPool::default_ports()),
        Some(ports) => reader.ports("ports", ports),
    };
    Some(NatPool {
        name: name?,
        network: network?,
        sources: sources?,
        exclusions: exclusions?,
        addresses: addresses?,
        ports: ports?,
        endpoint_independent: m.endpoint_independent,
    })
}

pub(super) fn egress_ip_from_proto(m: proto::EgressIp, reader: &mut Reader) -> Option<EgressIp> {
    let name = reader.text("name", &m.name);
    let network = reader.text("network", &m.network);
    let identities = reader.texts("identities", m.identities);
    let endpoints = reader.texts("endpoints", m.endpoints);
    let exclusions = reader.texts("exclusions", m.exclusions);
    let address = reader.address("address", &m.address);
    let ports = match m.ports {
        None => Some(NatPool::default_ports()),
        Some(ports) => reader.ports("ports", ports),
    };
    Some(EgressIp {
        name: name?,
        network: network?,
        identities: identities?,
        endpoints: endpoints?,
        exclusions: exclusions?,
        address: address?,
        ports: ports?,
    })
}

impl From<TrafficPolicy> for proto::TrafficPolicy {
    fn from(policy: TrafficPolicy) -> Self {
        match policy {
            TrafficPolicy::Cluster => Self::Cluster,
            TrafficPolicy::Local => Self::Local,
        }
    }
}

impl From<TopologyPreference> for proto::TopologyPreference {
    fn from(preference: TopologyPreference) -> Self {
        match preference {
            TopologyPreference::None => Self::None,
            TopologyPreference::Zone => Self::Zone,
            TopologyPreference::Node => Self::Node,
        }
    }
}

impl From<ServiceProtocol> for proto::ServiceProtocol {
    fn from(protocol: ServiceProtocol) -> Self {
        match protocol {
            ServiceProtocol::Tcp => Self::Tcp,
            ServiceProtocol::Udp => Self::Udp,
            ServiceProtocol::Sctp => Self::Sctp,
        }
    }
}

impl From<BackendState> for proto::BackendState {
    fn from(state: BackendState) -> Self {
        match state {
            BackendState::Ready => Self::Ready,
            BackendState::Terminating => Self::Terminating,
            BackendState::NotReady => Self::NotReady,
        }
    }
}

impl From<&Service> for proto::Service {
    fn from(service: &Service) -> Self {
        let port = |port: &ServicePort| proto::ServicePort {
            name: port.name.to_string(),
            protocol: proto::ServiceProtocol::from(port.protocol).into(),
            port: port.port.into(),
            node_port: port.node_port.map(u32::from),
        };
        Self {
            name: service.name.to_string(),
            network: service.network.to_string(),
            cluster_ips: texts(&service.cluster_ips),
            external_ips: texts(&service.external_ips),
            load_balancer_ips: texts(&service.load_balancer_ips),
            ports: service.ports.iter().map(port).collect(),
            affinity: service
                .affinity
                .map(|Affinity::ClientIp { timeout_s }| proto::ClientIpAffinity { timeout_s }),
            internal_policy: proto::TrafficPolicy::from(service.internal_policy).into(),
            external_policy: proto::TrafficPolicy::from(service.external_policy).into(),
            topology: proto::TopologyPreference::from(service.topology).into(),
            dsr: service.dsr,
            health_check_node_port: service.health_check_node_port.map(u32::from),
            source_ranges: texts(&service.source_ranges),
        }
    }
}

impl From<&Backends> for proto::Backends {
    fn from(backends: &Backends) -> Self {
        let ports = backends.ports.iter();
        Self {
            service: backends.service.to_string(),
            slice: backends.slice.to_string(),
            ports: ports
                .map(|port| proto::BackendPort { name: port.name.to_string(), port: port.port.into() })
                .collect(),
            members: backends.members.iter().map(proto::Backend::from).collect(),
        }
    }
}

impl From<&Backend> for proto::Backend {
    fn from(backend: &Backend) -> Self {
        Self {
            address: backend.address.to_string(),
            state: proto::BackendState::from(backend.state).into(),
            node: backend.node.as_ref().map(ToString::to_string).unwrap_or_default(),
            zone: backend.zone.as_ref().map(ToString::to_string).unwrap_or_default(),
            for_zones: texts(&backend.for_zones),
            weight: Some(backend.weight.into()),
        }
    }
}

impl From<&NatPool> for proto::NatPool {
    fn from(pool: &NatPool) -> Self {
        Self {
            name: pool.name.to_string(),
            network: pool.network.to_string(),
            sources: texts(&pool.sources),
            exclusions: texts(&pool.exclusions),
            addresses: texts(&pool.addresses),
            ports: Some(pool.ports.into()),
            endpoint_independent: pool.endpoint_independent,
        }
    }
}

impl From<&EgressIp> for proto::EgressIp {
    fn from(egress: &EgressIp) -> Self {
        Self {
            name: egress.name.to_string(),
            network: egress.network.to_string(),
            identities: texts(&egress.identities),
            endpoints: texts(&egress.endpoints),
            exclusions: texts(&egress.exclusions),
            address: egress.address.to_string(),
            ports: Some(egress.ports.into()),
        }
    }
}
