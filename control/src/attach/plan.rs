//! What an attachment is to be, from what was asked for and what is known: nothing is touched here.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use penstock_api::model::{
    Attachment, Backend, BackendPort, BackendState, Backends, Endpoint, InterfaceName, Limits, Name, Service,
    ServicePort, ServiceProtocol, SocketPath, SocketRole, TrafficPolicy, UnicastMac, XdpMode,
};
use penstock_cni::config::{Config, Mode, Role};
use penstock_cni::environment::is_name;
use penstock_cni::failure::{Code, Failure};
use penstock_cni::protocol::Attach;
use penstock_cni::result::{AddResult, Dns, Interface, IpConfig, Route};
use penstock_wire::MacAddr;

use super::dataplane::NetworkFacts;
use super::record::{Pod, RecordKey, Wiring};
use super::shared;
use crate::ipam::Granted;

/// The longest name of a socket's folder that leaves room for the socket.
const SOCKET_ROOM: usize = SocketPath::MAX_LEN;

/// An attachment as it is to be.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// How and where.
    pub wiring: Wiring,
    /// The container's own Ethernet address.
    pub mac: MacAddr,
    /// The largest IP packet in bytes.
    pub mtu: u16,
    /// Queues, each way.
    pub queues: u32,
    /// The addresses of the interface in the container.
    pub addresses: Vec<IpNet>,
    /// Routes that were asked for; the usual ones when empty.
    pub routes: Vec<Route>,
    /// What the dataplane is told of it; nothing where it has no part.
    pub endpoint: Option<Endpoint>,
    /// Ports of the node that lead to it.
    pub services: Vec<Service>,
    /// The backends of these.
    pub backends: Vec<Backends>,
    /// The vhost-user socket.
    pub socket: Option<SocketPath>,
    /// Whether its folder was mounted in the pod before: then it is there, or it is of no use.
    pub is_device: bool,
}

/// What annotations of the pod change.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PodFacts {
    /// The pod's annotations.
    pub annotations: std::collections::BTreeMap<String, String>,
    /// The identity that its addresses belong to.
    pub identity: Option<Name>,
}

/// The interface of the pods' own network, as kubelets and runtimes have them call it.
const FIRST: &str = "eth0";

impl PodFacts {
    /// What they say of one interface: annotations as they stand are about the first, `eth0`; of another one, those that end
    /// with its name are (`penstock.dev/interface.net1`).
    #[must_use]
    pub fn of_interface(mut self, ifname: &str) -> Self {
        if ifname == FIRST {
            return self;
        }
        let own = |key: &str| {
            key.starts_with("penstock.dev/") || [INGRESS_ANNOTATION, EGRESS_ANNOTATION].contains(&key)
        };
        let ending = format!(".{ifname}");
        let meant = self.annotations.iter().filter_map(|(key, value)| {
            let key = key.strip_suffix(&ending).filter(|key| own(key))?;
            Some((key.to_owned(), value.clone()))
        });
        let meant: Vec<(String, String)> = meant.collect();
        self.annotations.retain(|key, _| !own(key));
        self.annotations.extend(meant);
        self
    }
}

fn wrong(msg: impl Into<String>) -> Failure {
    Failure::new(Code::Config, msg)
}

/// The annotation that says how a pod is attached; of further interfaces with their name behind ([`PodFacts::of_interface`]).
pub(super) const MODE_ANNOTATION: &str = "penstock.dev/interface";
/// The annotation that says which addresses a pod gets, parted by commas.
pub(super) const ADDRESSES_ANNOTATION: &str = "penstock.dev/addresses";
/// The annotation that says which pools a pod gets its addresses from, parted by commas.
pub(super) const POOL_ANNOTATION: &str = "penstock.dev/ip-pool";
/// Bits a second to a pod, as a quantity of Kubernetes.
pub(super) const INGRESS_ANNOTATION: &str = "kubernetes.io/ingress-bandwidth";
/// Bits a second from a pod, as a quantity of Kubernetes.
pub(super) const EGRESS_ANNOTATION: &str = "kubernetes.io/egress-bandwidth";

/// How a container is attached: what its pod says comes before what the network says.
///
/// # Errors
/// [`Code::Config`].
pub(super) fn mode(config: &Config, facts: &PodFacts) -> Result<Mode, Failure> {
    match facts.annotations.get(MODE_ANNOTATION) {
        None => Ok(config.interface.unwrap_or_default()),
        Some(text) => Mode::parse(text).ok_or_else(|| {
            wrong(format!(
                "the annotation {MODE_ANNOTATION} is {text:?}; veth, vhost-user, tap and sriov are known"
            ))
        }),
    }
}

/// The addresses that a container must get.
///
/// # Errors
/// [`Code::Config`].
pub(super) fn requested(config: &Config, facts: &PodFacts) -> Result<Vec<IpAddr>, Failure> {
    let annotated = facts.annotations.get(ADDRESSES_ANNOTATION).map(String::as_str).unwrap_or_default();
    let annotated = annotated.split(',').map(str::trim).filter(|it| !it.is_empty());
    let texts = config.runtime_config.ips.iter().map(String::as_str).chain(annotated);
    let parsed = texts.map(|text| {
        let address = text.split('/').next().unwrap_or_default().parse();
        address.map_err(|_| wrong(format!("{text:?} was asked for and is no address")))
    });
    let mut addresses = parsed.collect::<Result<Vec<IpAddr>, Failure>>()?;
    addresses.extend(&config.ipam.addresses);
    addresses.sort_unstable();
    addresses.dedup();
    Ok(addresses)
}

/// The pools that a container must get its addresses from: what its pod says comes before what the network says.
pub(super) fn named_pools(config: &Config, facts: &PodFacts) -> Vec<String> {
    match facts.annotations.get(POOL_ANNOTATION) {
        Some(text) => text.split(',').map(str::trim).filter(|it| !it.is_empty()).map(str::to_owned).collect(),
        None => config.ipam.pools.clone(),
    }
}

/// The name that the dataplane knows an endpoint by.
///
/// # Errors
/// [`Code::Environment`] for names that no endpoint can have.
pub(super) fn endpoint_name(key: &RecordKey, pod: Option<&Pod>) -> Result<Name, Failure> {
    let name = match pod {
        Some(pod) => format!("{pod}/{}", key.id.ifname),
        None => format!("{}/{}", key.id.container_id, key.id.ifname),
    };
    name.parse().map_err(|error| {
        Failure::new(Code::Environment, format!("no endpoint can be called {name:?}: {error}"))
    })
}

/// The name of the node's end: found again from the key alone, and nobody else's.
pub(super) fn node_interface(key: &RecordKey) -> String {
    format!("ps{:012x}", key.number() & 0xffff_ffff_ffff)
}

/// What tells endpoints that attachments made from those of a node's file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Footprint {
    /// The folder of attachments' sockets.
    pub sockets: PathBuf,
    /// The folder of the device plugin's.
    pub devices: PathBuf,
}

impl Footprint {
    /// Whether an attachment made this endpoint: its interface has a name of ours, or its socket is in our folders.
    #[must_use]
    pub fn is_of(&self, endpoint: &Endpoint) -> bool {
        let is_ours = |name: &InterfaceName| {
            let digits = name.as_str().strip_prefix("ps").unwrap_or_default();
            digits.len() == 12 && digits.bytes().all(|it| matches!(it, b'0'..=b'9' | b'a'..=b'f'))
        };
        match &endpoint.attachment {
            Attachment::Veth { interface } | Attachment::Tap { interface } => is_ours(interface),
            Attachment::VhostUser { socket, .. } => {
                let socket = Path::new(socket.as_str());
                socket.starts_with(&self.sockets) || socket.starts_with(&self.devices)
            }
            _ => false,
        }
    }
}

/// The first twelve bytes of a container's ID: how sockets of it are named.
pub(super) fn short(container_id: &str) -> &str {
    container_id.get(..12).unwrap_or(container_id)
}

/// A locally administered unicast address that follows from the key.
pub(super) fn derived_mac(key: &RecordKey) -> MacAddr {
    let [_, _, _, a, b, c, d, e] = key.number().to_be_bytes();
    MacAddr([0x02, a, b, c, d, e])
}

fn mac(config: &Config, key: &RecordKey) -> Result<MacAddr, Failure> {
    let Some(text) = config.runtime_config.mac.as_deref().filter(|text| !text.is_empty()) else {
        return Ok(derived_mac(key));
    };
    let mac: UnicastMac =
        text.parse().map_err(|error| wrong(format!("runtimeConfig.mac cannot be had: {error}")))?;
    Ok(mac.get())
}

/// What the container may use at most.
///
/// # Errors
/// [`Code::Config`].
pub(super) fn limits(config: &Config, facts: &PodFacts) -> Result<Option<Limits>, Failure> {
    let annotated = |key: &str| facts.annotations.get(key).map(|text| bits(key, text)).transpose();
    let asked = config.runtime_config.bandwidth.unwrap_or_default();
    let positive = |rate: u64| Some(rate).filter(|rate| *rate > 0);
    let ingress = positive(asked.ingress_rate).or(annotated(INGRESS_ANNOTATION)?);
    let egress = positive(asked.egress_rate).or(annotated(EGRESS_ANNOTATION)?);
    if ingress.is_none() && egress.is_none() {
        return Ok(None);
    }
    // The dataplane has one burst for both ways. libcni's callers write the largest number for "no limit".
    let bursts = [asked.ingress_burst, asked.egress_burst].map(|it| it / 8);
    let burst = bursts.into_iter().filter(|it| *it > 0 && *it < u64::from(u32::MAX) / 8).min();
    Ok(Some(Limits {
        ingress_bits_per_second: ingress,
        egress_bits_per_second: egress,
        burst_bytes: burst.map(|it| it.max(16 << 10)),
        ..Limits::default()
    }))
}

/// A quantity of Kubernetes (`10M`, `1Gi`, `500k`) in bits.
fn bits(key: &str, text: &str) -> Result<u64, Failure> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let unit = match &text[digits.len()..] {
        "" => 1,
        "k" => 1_000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        "T" => 1_000_000_000_000,
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        "Ti" => 1 << 40,
        _ => 0,
    };
    let number = digits.parse::<u64>().ok().and_then(|it| it.checked_mul(unit)).filter(|it| *it > 0);
    number.ok_or_else(|| wrong(format!("the annotation {key} is {text:?}; it is bits a second, such as 10M")))
}

/// The addresses of the interface and routes beside it, whoever gave them.
fn addressing(attach: &Attach, granted: &[Granted]) -> (Vec<IpNet>, Vec<Route>) {
    match &attach.delegated {
        Some(result) => {
            let addresses = result.ips.iter().map(|ip| IpNet::from(ip.address.addr())).collect();
            let routes: Vec<Route> =
                result.routes.iter().map(|it| Route { gw: None, ..it.clone() }).collect();
            (addresses, routes)
        }
        None => {
            let addresses = granted.iter().map(|it| IpNet::from(it.address.addr())).collect();
            (addresses, attach.config.ipam.routes.clone())
        }
    }
}

/// Where sockets of attachments are.
pub struct Folders<'a> {
    /// For attachments without a device plugin's folder.
    pub sockets: &'a Path,
    /// Of the device plugin: one folder a device.
    pub devices: &'a Path,
    /// The kubelet's: one folder a pod, in which its volumes are.
    pub pods: &'a Path,
}

impl Plan {
    /// Plans an attachment.
    ///
    /// # Errors
    /// [`Code::Config`] and [`Code::Environment`].
    pub fn new(
        attach: &Attach,
        key: &RecordKey,
        pod: Option<&Pod>,
        facts: &PodFacts,
        network: &NetworkFacts,
        granted: &[Granted],
        folders: &Folders<'_>,
    ) -> Result<Self, Failure> {
        let config = &attach.config;
        let mode = mode(config, facts)?;
        let mac = mac(config, key)?;
        let (addresses, routes) = addressing(attach, granted);
        let mtu = config.mtu.unwrap_or(network.mtu).min(network.mtu);
        let queues = config.queues.unwrap_or(network.workers).clamp(1, 64);
        let mut wiring = Wiring {
            mode,
            interface: String::new(),
            folder: None,
            owns_folder: false,
            shared: None,
            files: config.runtime_config.device_info_file.iter().cloned().collect(),
            function: None,
        };
        let (mut socket, mut is_device) = (None, false);
        let attachment = match mode {
            Mode::Veth | Mode::Tap => {
                wiring.interface = node_interface(key);
                let interface: InterfaceName =
                    wiring.interface.parse().map_err(|error| wrong(format!("{error}")))?;
                if mode == Mode::Veth {
                    Attachment::Veth { interface }
                } else {
                    Attachment::Tap { interface }
                }
            }
            Mode::VhostUser => {
                let (folder, owns);
                (folder, owns, is_device) = socket_folder(config, key, folders)?;
                let path = socket_path(&folder, key)?;
                socket = Some(path.clone());
                wiring.shared = shared::volume(folders.pods, pod).filter(|_| owns);
                (wiring.folder, wiring.owns_folder) = (Some(folder), owns);
                Attachment::VhostUser {
                    socket: path,
                    role: match config.vhost_user.role {
                        Role::Client => SocketRole::Client,
                        Role::Server => SocketRole::Server,
                    },
                    group: config.vhost_user.group.clone(),
                    permissions: None,
                }
            }
            Mode::Sriov => {
                let msg = "a function of a card is no endpoint of the dataplane, and was planned for as one";
                return Err(Failure::new(Code::Internal, msg));
            }
        };
        if addresses.is_empty() {
            return Err(Failure::new(Code::Addresses, "no address was given, and an endpoint needs one"));
        }
        let identity = match (&facts.identity, &config.identity) {
            (Some(identity), _) => Some(identity.clone()),
            (None, Some(text)) => Some(text.parse().map_err(|error| wrong(format!("identity: {error}")))?),
            (None, None) => None,
        };
        let endpoint = Endpoint {
            name: endpoint_name(key, pod)?,
            network: network.name.clone(),
            attachment,
            mac: UnicastMac::new(mac).map_err(|error| wrong(error.to_string()))?,
            addresses: addresses.iter().map(IpNet::addr).collect(),
            mtu: Some(mtu),
            xdp: XdpMode::Auto,
            queues: Some(queues),
            identity,
            limits: limits(config, facts)?,
        };
        let (services, backends) = host_ports(config, &endpoint)?;
        let endpoint = Some(endpoint);
        Ok(Self {
            wiring,
            mac,
            mtu,
            queues,
            addresses,
            routes,
            endpoint,
            services,
            backends,
            socket,
            is_device,
        })
    }

    /// The default routes by the network's gateways for the families that have none, else routes to the network.
    pub fn usual_routes(&self, network: &NetworkFacts, has_default: impl Fn(bool) -> bool) -> Vec<Route> {
        let route =
            |dst, gw| Route { dst, gw, mtu: None, advmss: None, priority: None, table: None, scope: None };
        let mut routes = Vec::new();
        for ipv4 in [true, false] {
            let gateway = network.gateways.iter().copied().find(|it| it.is_ipv4() == ipv4);
            if !self.addresses.iter().any(|it| it.addr().is_ipv4() == ipv4) || gateway.is_none() {
                continue;
            }
            if !has_default(ipv4) {
                // Other plugins make routes by the gateway in tables of their own, and want it to be reached (`sbr`).
                if ipv4 {
                    routes.extend(gateway.map(|gateway| route(IpNet::from(gateway), None)));
                }
                let any: IpAddr = if ipv4 { [0, 0, 0, 0].into() } else { [0u16; 8].into() };
                routes.extend(IpNet::new(any, 0).map(|dst| route(dst, gateway)));
                continue;
            }
            let prefixes = network.prefixes.iter().filter(|it| it.is_ipv4() == ipv4);
            routes.extend(prefixes.map(|prefix| route(prefix.net(), gateway)));
        }
        routes
    }

    /// Routes that were asked for go by the network's gateway when they name none.
    pub fn asked_routes(&self, network: &NetworkFacts) -> Vec<Route> {
        let gateway = |ipv4: bool| network.gateways.iter().copied().find(|it| it.is_ipv4() == ipv4);
        self.routes
            .iter()
            .map(|route| Route {
                gw: route.gw.or_else(|| gateway(route.dst.addr().is_ipv4())),
                ..route.clone()
            })
            .collect()
    }

    /// What ADD gives back.
    pub fn result(&self, attach: &Attach, network: &NetworkFacts, routes: Vec<Route>) -> AddResult {
        let mut interfaces = Vec::new();
        if self.wiring.mode == Mode::Veth {
            interfaces.push(Interface {
                name: self.wiring.interface.clone(),
                mtu: Some(self.mtu.into()),
                ..Interface::default()
            });
        }
        interfaces.push(Interface {
            name: attach.id.ifname.clone(),
            mac: Some(self.mac.to_string()),
            mtu: Some(self.mtu.into()),
            sandbox: Some(attach.netns.display().to_string()),
            socket_path: self.socket.as_ref().map(|it| it.as_str().to_owned()),
            pci_id: self.wiring.function.as_ref().map(|it| it.address.clone()),
        });
        let place = interfaces.len() - 1;
        let ips = self.addresses.iter().map(|address| IpConfig {
            address: *address,
            gateway: network.gateways.iter().copied().find(|it| it.is_ipv4() == address.addr().is_ipv4()),
            interface: Some(place),
        });
        let ours = AddResult { interfaces, ips: ips.collect(), routes, dns: dns(&attach.config) };
        match &attach.config.prev_result {
            Some(before) => before.clone().chained(ours),
            None => ours,
        }
    }
}

fn dns(config: &Config) -> Dns {
    match &config.runtime_config.dns {
        Some(dns) => Dns {
            nameservers: dns.servers.clone(),
            domain: None,
            search: dns.searches.clone(),
            options: dns.options.clone(),
        },
        None => config.dns.clone(),
    }
}

/// The folder of a vhost-user socket, whether it is made for this attachment alone, and whether it is a device's.
fn socket_folder(
    config: &Config,
    key: &RecordKey,
    folders: &Folders<'_>,
) -> Result<(PathBuf, bool, bool), Failure> {
    Ok(match (&config.vhost_user.directory, config.device()) {
        (Some(folder), _) => (folder.clone(), false, false),
        (None, Some(device)) if is_name(device) => (folders.devices.join(device), false, true),
        (None, Some(device)) => {
            return Err(wrong(format!(
                "deviceID is {device:?}, and devices of penstock.dev/vhost-user are called vhost-user-0 and so on; does the network name another resource?"
            )));
        }
        (None, None) => {
            let own = format!("{}-{}", short(&key.id.container_id), key.id.ifname);
            (folders.sockets.join(own), true, false)
        }
    })
}

fn socket_path(folder: &Path, key: &RecordKey) -> Result<SocketPath, Failure> {
    let path = folder.join(format!("{}-{}", short(&key.id.container_id), key.id.ifname));
    let text = path.display().to_string();
    text.parse().map_err(|error| {
        wrong(format!(
            "the socket {text:?} cannot be: {error} (at most {SOCKET_ROOM} bytes); name a shorter folder"
        ))
    })
}

/// Ports of the node that lead to the container, one service each.
fn host_ports(config: &Config, endpoint: &Endpoint) -> Result<(Vec<Service>, Vec<Backends>), Failure> {
    let (mut services, mut backends) = (Vec::new(), Vec::new());
    for mapping in config.runtime_config.port_mappings.iter().filter(|it| it.host_port != 0) {
        let protocol = match mapping.protocol.to_ascii_lowercase().as_str() {
            "" | "tcp" => ServiceProtocol::Tcp,
            "udp" => ServiceProtocol::Udp,
            "sctp" => ServiceProtocol::Sctp,
            other => {
                return Err(wrong(format!(
                    "a port mapping has the protocol {other:?}; tcp, udp and sctp are known"
                )));
            }
        };
        let host_ip = mapping.host_ip.as_deref().filter(|it| !matches!(*it, "" | "0.0.0.0" | "::"));
        if let Some(address) = host_ip {
            let msg = format!(
                "a port mapping has the hostIP {address}, and host ports are at all of the node's addresses here; leave hostIP out"
            );
            return Err(Failure::new(Code::UnsupportedField, msg));
        }
        let port: Name = "p".parse().map_err(|error| wrong(format!("{error}")))?;
        let name = format!("host-port/{:?}/{}", protocol, mapping.host_port).to_lowercase();
        let name: Name = name.parse().map_err(|error| wrong(format!("{error}")))?;
        services.push(Service {
            name: name.clone(),
            network: endpoint.network.clone(),
            cluster_ips: Vec::new(),
            external_ips: Vec::new(),
            load_balancer_ips: Vec::new(),
            ports: vec![ServicePort {
                name: port.clone(),
                protocol,
                port: mapping.container_port,
                node_port: Some(mapping.host_port),
            }],
            affinity: None,
            internal_policy: TrafficPolicy::Cluster,
            external_policy: TrafficPolicy::Cluster,
            topology: Default::default(),
            dsr: false,
            health_check_node_port: None,
            source_ranges: Vec::new(),
        });
        backends.push(Backends {
            service: name,
            slice: port.clone(),
            ports: vec![BackendPort { name: port, port: mapping.container_port }],
            members: endpoint
                .addresses
                .iter()
                .map(|&address| Backend {
                    address,
                    state: BackendState::Ready,
                    node: None,
                    zone: None,
                    for_zones: Vec::new(),
                    weight: 1,
                })
                .collect(),
        });
    }
    Ok((services, backends))
}

#[cfg(test)]
mod tests;
