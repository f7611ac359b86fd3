//! Services and slices of the places where they are served, pruned to what a dataplane is told of them.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Service as WrittenService, ServiceSpec};
use k8s_openapi::api::discovery::v1::{Endpoint as WrittenEndpoint, EndpointSlice};
use penstock_api::model::{
    Affinity, BackendState, Name, Prefix, ServiceProtocol, TopologyPreference, TrafficPolicy,
};

use super::pod::Scoped;
use super::problem::Complaints;

/// One port of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServicePort {
    /// Its name; empty for an only port without one.
    pub name: String,
    /// The protocol.
    pub protocol: ServiceProtocol,
    /// The port at the service's addresses.
    pub port: u16,
    /// The port at the nodes' addresses.
    pub node_port: Option<u16>,
}

/// A service that has addresses: not one that only is a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// Addresses inside the cluster.
    pub cluster_ips: Vec<IpAddr>,
    /// Addresses outside that somebody routes here.
    pub external_ips: Vec<IpAddr>,
    /// Addresses of its load balancer.
    pub load_balancer_ips: Vec<IpAddr>,
    /// The ports.
    pub ports: Vec<ServicePort>,
    /// Whether a client keeps its backend.
    pub affinity: Option<Affinity>,
    /// Whose backends serve clients inside.
    pub internal_policy: TrafficPolicy,
    /// Whose backends serve clients outside.
    pub external_policy: TrafficPolicy,
    /// Which backends are preferred, if all of them say for whom they are meant.
    pub topology: TopologyPreference,
    /// The port that tells whether a node has backends.
    pub health_check_node_port: Option<u16>,
    /// The clients of load balancer addresses.
    pub source_ranges: Vec<Prefix>,
    /// Whether backends serve before they are ready.
    pub publish_not_ready: bool,
    /// When it was created, in seconds since 1970.
    pub created: i64,
}

impl Service {
    /// What of `written` counts; none if it has no addresses of its own: headless, or another name for one outside.
    pub(super) fn new(written: &WrittenService, complaints: &mut Complaints) -> Option<Service> {
        let spec = written.spec.as_ref()?;
        let kind = spec.type_.as_deref().unwrap_or("ClusterIP");
        if kind == "ExternalName" || spec.cluster_ip.as_deref() == Some("None") {
            return None;
        }
        let none = Vec::new();
        let several = spec.cluster_ips.as_ref().filter(|ips| !ips.is_empty());
        let single: Vec<String> = spec.cluster_ip.iter().filter(|ip| !ip.is_empty()).cloned().collect();
        let external_local = spec.external_traffic_policy.as_deref() == Some("Local");
        let metadata = &written.metadata;
        Some(Service {
            cluster_ips: complaints.addresses("spec.clusterIPs", several.unwrap_or(&single)),
            external_ips: complaints
                .addresses("spec.externalIPs", spec.external_ips.as_ref().unwrap_or(&none)),
            load_balancer_ips: if kind == "LoadBalancer" {
                complaints.addresses("status.loadBalancer.ingress", &load_balancer_ips(written))
            } else {
                Vec::new()
            },
            ports: ports(spec, complaints),
            affinity: affinity(spec),
            internal_policy: policy(spec.internal_traffic_policy.as_deref() == Some("Local")),
            external_policy: policy(external_local),
            topology: topology(written, spec),
            health_check_node_port: spec
                .health_check_node_port
                .and_then(|port| u16::try_from(port).ok())
                .filter(|port| *port > 0 && external_local && kind == "LoadBalancer"),
            source_ranges: complaints
                .prefixes("spec.loadBalancerSourceRanges", spec.load_balancer_source_ranges.iter().flatten()),
            publish_not_ready: spec.publish_not_ready_addresses.unwrap_or(false),
            created: metadata.creation_timestamp.as_ref().map_or(0, |time| time.0.as_second()),
        })
    }
}

fn policy(local: bool) -> TrafficPolicy {
    if local { TrafficPolicy::Local } else { TrafficPolicy::Cluster }
}

/// Those that packets keep on their way here: `ipMode: Proxy` means that they do not.
fn load_balancer_ips(written: &WrittenService) -> Vec<String> {
    let status = written.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let listed = status.and_then(|status| status.ingress.as_ref()).into_iter().flatten();
    let kept = listed.filter(|ingress| ingress.ip_mode.as_deref() != Some("Proxy"));
    kept.filter_map(|ingress| ingress.ip.clone()).collect()
}

fn ports(spec: &ServiceSpec, complaints: &mut Complaints) -> Vec<ServicePort> {
    let mut ports = Vec::new();
    for (i, written) in spec.ports.iter().flatten().enumerate() {
        let protocol = match written.protocol.as_deref().unwrap_or("TCP") {
            "TCP" => Some(ServiceProtocol::Tcp),
            "UDP" => Some(ServiceProtocol::Udp),
            "SCTP" => Some(ServiceProtocol::Sctp),
            _ => None,
        };
        let port = u16::try_from(written.port).ok().filter(|port| *port > 0);
        let (Some(protocol), Some(port)) = (protocol, port) else {
            let problem = "is no port of TCP, UDP or SCTP and is left out";
            complaints.say(
                format!("spec.ports[{i}]"),
                problem,
                "write a port from 1 to 65535 and its protocol",
            );
            continue;
        };
        let node_port = written.node_port.and_then(|port| u16::try_from(port).ok()).filter(|port| *port > 0);
        ports.push(ServicePort { name: written.name.clone().unwrap_or_default(), protocol, port, node_port });
    }
    ports
}

fn affinity(spec: &ServiceSpec) -> Option<Affinity> {
    (spec.session_affinity.as_deref() == Some("ClientIP")).then(|| {
        let config = spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref());
        let seconds = config.and_then(|config| config.timeout_seconds).unwrap_or(10800);
        Affinity::ClientIp { timeout_s: u32::try_from(seconds).unwrap_or(1).clamp(1, 86400) }
    })
}

/// `trafficDistribution`, or the annotation that came before it.
fn topology(written: &WrittenService, spec: &ServiceSpec) -> TopologyPreference {
    let annotations = written.metadata.annotations.as_ref();
    let mode = annotations.and_then(|all| {
        all.get("service.kubernetes.io/topology-mode")
            .or_else(|| all.get("service.kubernetes.io/topology-aware-hints"))
    });
    match spec.traffic_distribution.as_deref() {
        Some("PreferSameNode") => TopologyPreference::Node,
        Some("PreferClose" | "PreferSameZone") => TopologyPreference::Zone,
        _ if mode.is_some_and(|mode| mode.eq_ignore_ascii_case("auto")) => TopologyPreference::Zone,
        _ => TopologyPreference::None,
    }
}

/// One place where a service is served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlicePlace {
    /// Its address.
    pub address: IpAddr,
    /// What it may be given.
    pub state: BackendState,
    /// The node that it runs on.
    pub node: Option<Name>,
    /// The zone that it is in.
    pub zone: Option<Name>,
    /// The zones that it is meant for.
    pub for_zones: Vec<Name>,
    /// The nodes that it is meant for.
    pub for_nodes: Vec<Name>,
}

/// A slice of the places where a service is served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slice {
    /// The service.
    pub service: Scoped,
    /// The names of the service's ports, and where the places serve them.
    pub ports: Vec<(String, u16)>,
    /// The places.
    pub places: Vec<SlicePlace>,
}

impl Slice {
    /// What of `written` counts; none if it belongs to no service or holds names in the place of addresses.
    pub(super) fn new(
        namespace: &str,
        written: &EndpointSlice,
        complaints: &mut Complaints,
    ) -> Option<Slice> {
        let service = written.metadata.labels.as_ref()?.get("kubernetes.io/service-name")?;
        if !matches!(written.address_type.as_str(), "IPv4" | "IPv6") {
            let problem = format!("addresses of the type {:?} are not served", written.address_type);
            complaints.say("addressType", problem, "give addresses of the type IPv4 or IPv6");
            return None;
        }
        let mut ports: Vec<(String, u16)> = Vec::new();
        for port in written.ports.iter().flatten() {
            let name = port.name.clone().unwrap_or_default();
            let number = port.port.and_then(|port| u16::try_from(port).ok()).filter(|port| *port > 0);
            if let Some(number) = number.filter(|_| !ports.iter().any(|(other, _)| *other == name)) {
                ports.push((name, number));
            }
        }
        let mut places: Vec<SlicePlace> = Vec::new();
        for (i, endpoint) in written.endpoints.iter().flatten().enumerate() {
            // The addresses of one place are alike, and the first is the one to use (EndpointSlice's reference).
            let Some(address) = endpoint.addresses.first().and_then(|text| text.parse::<IpAddr>().ok())
            else {
                let problem = "has no address and is left out";
                complaints.say(format!("endpoints[{i}].addresses"), problem, "write one address");
                continue;
            };
            if !places.iter().any(|place| place.address == address) {
                places.push(place(address, endpoint));
            }
        }
        Some(Slice { service: Scoped::new(namespace, service), ports, places })
    }
}

fn place(address: IpAddr, endpoint: &WrittenEndpoint) -> SlicePlace {
    let conditions = endpoint.conditions.clone().unwrap_or_default();
    let ready = conditions.ready.unwrap_or(true);
    let serving = conditions.serving.unwrap_or(ready);
    let state = match conditions.terminating.unwrap_or(false) {
        _ if ready => BackendState::Ready,
        true if serving => BackendState::Terminating,
        _ => BackendState::NotReady,
    };
    let name = |text: &Option<String>| text.as_ref().and_then(|text| text.parse().ok());
    let hints = endpoint.hints.clone().unwrap_or_default();
    SlicePlace {
        address,
        state,
        node: name(&endpoint.node_name),
        zone: name(&endpoint.zone),
        for_zones: hints.for_zones.iter().flatten().filter_map(|zone| zone.name.parse().ok()).collect(),
        for_nodes: hints.for_nodes.iter().flatten().filter_map(|node| node.name.parse().ok()).collect(),
    }
}
