//! From objects and the kernel's view of the underlay to a snapshot: a pure function.

mod routes;

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use penstock_api::model::{Attachment, Encapsulation, Key, RouteTarget};
use penstock_api::{Fault, model};
use penstock_wire::decap::TunnelKind;
use penstock_wire::dsr::ServedAs;
use penstock_wire::encap::{DscpMode, EncapTemplate, OuterAddresses, OuterPath};
use penstock_wire::geneve::GeneveOption;
use penstock_wire::{MacAddr, Vni};

use routes::Rows;

use super::desired::Desired;
use super::lpm::{LeftAligned, Lpm};
use super::nat;
use super::rulebook::Rulebook;
use super::{
    Device, Endpoint, Host, Link, Network, Peer, PeerPath, RouteRow, Snapshot, Target, Template, TunnelZone,
    Zone,
};
use crate::conntrack::nat::Pool;
use crate::flow::{DeviceId, LinkId, TemplateId, ZoneId};

/// Hops that the underlay may take: the default of RFC 1700 for IP.
const UNDERLAY_TTL: u8 = 64;
/// The IP packet that every link carries when nothing else is known.
const ETHERNET_MTU: u16 = 1500;

/// What is known of the machine: devices that are open, and the kernel's view of the underlay.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Underlay {
    /// The uplinks that are open, by name.
    pub uplinks: HashMap<String, UplinkFacts>,
    /// The endpoints' devices that are open, by the endpoint's name.
    pub endpoints: HashMap<String, DeviceId>,
    /// The host port, when it is open.
    pub host: Option<HostFacts>,
    /// The way to each peer, by its address.
    pub paths: HashMap<IpAddr, PathFacts>,
    /// The kernel's routes by each uplink, by its name: the router of a prefix, or none where it is on the link.
    pub ways: BTreeMap<String, BTreeMap<IpNet, Option<IpAddr>>>,
    /// Neighbours on the uplinks.
    pub neighbours: HashMap<(DeviceId, IpAddr), MacAddr>,
    /// Path MTUs learnt from ICMP, by the peer's address.
    pub learnt_mtus: HashMap<IpAddr, u16>,
}

/// An open uplink.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UplinkFacts {
    /// Its device.
    pub device: DeviceId,
    /// Its interface.
    pub interface: String,
    /// Its MAC address.
    pub mac: MacAddr,
    /// The longest IP packet that it carries.
    pub mtu: u16,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Whether senders on this link may leave checksums to a card that is not there: a veth.
    pub partial_checksums: bool,
}

/// The open host port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostFacts {
    /// Its device.
    pub device: DeviceId,
    /// The tap's MAC address.
    pub mac: MacAddr,
    /// The longest IP packet that it takes.
    pub mtu: u16,
}

/// The kernel's way to an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathFacts {
    /// The uplink's name.
    pub uplink: String,
    /// The gateway, or the address itself on its own link.
    pub next_hop: IpAddr,
    /// The address to send from.
    pub source: IpAddr,
    /// The longest IP packet, when the route says.
    pub mtu: Option<u16>,
}

/// Makes the snapshot. Parts of `before` whose inputs did not change are taken over.
#[must_use]
pub fn compile(
    desired: &Desired,
    underlay: &Underlay,
    rules: &Rulebook,
    before: Option<&Snapshot>,
) -> Snapshot {
    Layout::of(desired, underlay, before).ruled(desired, rules)
}

/// All of a snapshot but its rules, which change much more often.
#[derive(Clone, Debug)]
pub struct Layout(Arc<Snapshot>);

impl Layout {
    /// Lays a configuration out on a machine. Parts of `before` whose inputs did not change are taken over.
    #[must_use]
    pub fn of(desired: &Desired, underlay: &Underlay, before: Option<&Snapshot>) -> Layout {
        Layout(Arc::new(Compiler::new(desired, underlay).run(before)))
    }

    /// Whether layouts may be others when an object changes.
    #[must_use]
    pub fn follows_from(desired: &Desired, key: &Key) -> bool {
        match key {
            Key::Policy(_) | Key::Tier(_) | Key::Backends { .. } => false,
            // Whoever is of it may leave under a chosen address.
            Key::Identity(_) => desired.egress_ips().next().is_some(),
            _ => true,
        }
    }

    /// The snapshot with these rules.
    #[must_use]
    pub fn ruled(&self, desired: &Desired, rules: &Rulebook) -> Snapshot {
        let endpoint = |endpoint: &Arc<Endpoint>| {
            let name = endpoint.name.as_str();
            let subject = rules.policies.subject(name).cloned();
            Arc::new(Endpoint {
                meter: rules.meters.get(name).cloned(),
                counts: subject.as_ref().and_then(|it| rules.counts.get(&it.revision())).cloned(),
                judged_since: rules.policies.since(name),
                subject,
                ..Endpoint::clone(endpoint)
            })
        };
        Snapshot {
            generation: desired.generation(),
            policies: Arc::clone(&rules.policies),
            services: Arc::clone(&rules.services),
            endpoints: self.0.endpoints.iter().map(endpoint).collect(),
            ..Snapshot::clone(&self.0)
        }
    }
}

/// The MAC address of this node's router.
#[must_use]
pub fn router_mac(node: &model::Node, underlay_addresses: &[IpAddr]) -> MacAddr {
    let derived = || underlay_addresses.first().map(|&address| MacAddr::from_underlay(address));
    // Without an address nothing is sent to peers yet; pods still need a gateway.
    node.mac.map(model::UnicastMac::get).or_else(derived).unwrap_or(MacAddr([0x02, 0x70, 0, 0, 0, 0]))
}

struct Compiler<'a> {
    desired: &'a Desired,
    underlay: &'a Underlay,
    networks: Vec<&'a model::Network>,
    peers: Vec<&'a model::Peer>,
    network_index: HashMap<&'a str, u32>,
    peer_index: HashMap<&'a str, u32>,
    /// The peers as they are reached.
    reached: Vec<Peer>,
    snapshot: Snapshot,
    template_of: HashMap<(u32, u32), Option<TemplateId>>,
}

impl<'a> Compiler<'a> {
    fn new(desired: &'a Desired, underlay: &'a Underlay) -> Compiler<'a> {
        let networks: Vec<_> = desired.networks().collect();
        let network_index =
            networks.iter().enumerate().map(|(i, network)| (network.name.as_str(), i as u32)).collect();
        let peers: Vec<_> = desired.peers().collect();
        let peer_index = peers.iter().enumerate().map(|(i, peer)| (peer.name.as_str(), i as u32)).collect();
        let mut underlay_addresses: Vec<IpAddr> = desired
            .uplinks()
            .filter_map(|uplink| underlay.uplinks.get(uplink.name.as_str()))
            .flat_map(|facts| facts.addresses.clone())
            .collect();
        underlay_addresses.sort();
        underlay_addresses.dedup();
        let snapshot = Snapshot {
            router_mac: router_mac(&desired.node, &underlay_addresses),
            underlay_addresses,
            partial_underlay: underlay.uplinks.values().any(|uplink| uplink.partial_checksums),
            // Zone 0 is nobody's: it stands for ports that no table knows.
            zones: vec![Zone::Native { network: u32::MAX }],
            ..Snapshot::default()
        };
        Compiler {
            desired,
            underlay,
            networks,
            peers,
            network_index,
            peer_index,
            reached: Vec::new(),
            snapshot,
            template_of: HashMap::new(),
        }
    }

    fn run(mut self, before: Option<&Snapshot>) -> Snapshot {
        self.peers();
        self.host();
        self.uplinks();
        self.endpoints();
        self.neighbours();
        self.tunnels();
        self.outside();
        let mut rows: Vec<Rows> = self.networks.iter().map(|_| Vec::new()).collect();
        self.kernel_routes(&mut rows);
        self.implied_routes(&mut rows);
        self.configured_routes(&mut rows);
        for (network, rows) in rows.into_iter().enumerate() {
            let compiled = self.network(network, rows, before);
            self.snapshot.networks.push(compiled);
        }
        self.snapshot.peers = self.reached.into();
        self.snapshot
    }

    fn zone(&mut self, zone: Zone) -> ZoneId {
        // Configurations with more zones than a flow key can tell apart are refused by `check_capacity`.
        let id = ZoneId::new(self.snapshot.zones.len() as u32).unwrap_or_default();
        self.snapshot.zones.push(zone);
        id
    }

    fn device(&mut self, id: DeviceId, device: Device) {
        let index = usize::from(id.0);
        if self.snapshot.devices.len() <= index {
            self.snapshot.devices.resize(index + 1, Device::Unused);
        }
        self.snapshot.devices[index] = device;
    }

    fn peers(&mut self) {
        for peer in self.desired.peers() {
            let path = self.underlay.paths.get(&peer.address).and_then(|path| {
                let uplink = self.underlay.uplinks.get(&path.uplink)?;
                Some(PeerPath {
                    device: uplink.device,
                    interface: uplink.interface.clone(),
                    next_hop: path.next_hop,
                    mac: self.underlay.neighbours.get(&(uplink.device, path.next_hop)).copied(),
                    mtu: path.mtu.unwrap_or(uplink.mtu).min(uplink.mtu),
                })
            });
            self.reached.push(Peer {
                name: peer.name.to_string(),
                address: peer.address,
                path,
                learnt_mtu: self.underlay.learnt_mtus.get(&peer.address).copied(),
                templates: 0,
            });
        }
    }

    fn host(&mut self) {
        let (Some(host), Some(facts)) = (&self.desired.host, &self.underlay.host) else { return };
        let Some(&network) = self.network_index.get(host.network.as_str()) else { return };
        let zone = self.zone(Zone::Host { network });
        self.device(facts.device, Device::Host { zone });
        let addresses = self.host_addresses();
        let link = self.link(self.snapshot.router_mac, facts.mac).unwrap_or_default();
        self.snapshot.host = Some(Host { device: facts.device, network, link, addresses, mtu: facts.mtu });
    }

    /// The node's addresses: those it is told, else those of its uplinks.
    fn host_addresses(&self) -> Vec<IpAddr> {
        let told = self.desired.host.as_ref().map_or(&[][..], |host| &host.addresses);
        if told.is_empty() { self.snapshot.underlay_addresses.clone() } else { told.to_vec() }
    }

    fn uplinks(&mut self) {
        let native = self.networks.iter().position(|network| self.desired.is_native(network));
        let native = native.map(|network| self.zone(Zone::Native { network: network as u32 }));
        for uplink in self.desired.uplinks() {
            if let Some(facts) = self.underlay.uplinks.get(uplink.name.as_str()) {
                self.device(facts.device, Device::Uplink { mac: facts.mac, native, mtu: facts.mtu });
            }
        }
    }

    /// The link between two stations; `None` when there are as many as actions can tell apart.
    fn link(&mut self, src: MacAddr, dst: MacAddr) -> Option<LinkId> {
        let id = LinkId(u16::try_from(self.snapshot.links.len()).ok()?);
        self.snapshot.links.push(Link::between(src, dst));
        Some(id)
    }

    /// Last of those that have links, so that neighbours, who come and go, never leave an endpoint without.
    fn neighbours(&mut self) {
        for (&(device, address), &theirs) in &self.underlay.neighbours {
            let Some(&Device::Uplink { mac: ours, .. }) = self.snapshot.devices.get(usize::from(device.0))
            else {
                continue;
            };
            // One too many is not spoken to, as one that does not answer.
            let Some(link) = self.link(ours, theirs) else { break };
            self.snapshot.neighbours.insert((device, address), link);
        }
    }

    fn endpoints(&mut self) {
        for endpoint in self.desired.endpoints() {
            let (Some(&device), Some(&network)) = (
                self.underlay.endpoints.get(endpoint.name.as_str()),
                self.network_index.get(endpoint.network.as_str()),
            ) else {
                continue;
            };
            let index = self.snapshot.endpoints.len() as u32;
            let zone = self.zone(Zone::Endpoint { network, endpoint: index });
            let mac = endpoint.mac.get();
            // There is one for every device at least.
            let link = self.link(self.snapshot.router_mac, mac).unwrap_or_default();
            self.device(device, Device::Endpoint { zone, mac });
            self.snapshot.endpoints.push(Arc::new(Endpoint {
                name: endpoint.name.to_string(),
                network,
                device,
                zone,
                mac,
                link,
                addresses: endpoint.addresses.clone(),
                mtu: endpoint.mtu.unwrap_or_else(|| self.network_mtu(network)),
                partial_checksums: matches!(endpoint.attachment, Attachment::Veth { .. }),
                max_connections: endpoint.limits.and_then(|limits| limits.max_connections),
                meter: None,
                subject: None,
                judged_since: 0,
                counts: None,
            }));
        }
    }

    /// A network's own MTU, or what its tunnels leave of the narrowest uplink.
    fn network_mtu(&self, network: u32) -> u16 {
        let network = self.networks[network as usize];
        let link = self.underlay.uplinks.values().map(|uplink| uplink.mtu).min().unwrap_or(ETHERNET_MTU);
        let by_ipv6 = self.desired.peers().any(|peer| peer.address.is_ipv6());
        network.mtu.unwrap_or_else(|| link.saturating_sub(overhead(network, by_ipv6)))
    }

    fn tunnels(&mut self) {
        for index in 0..self.networks.len() as u32 {
            let network = self.networks[index as usize];
            let Some(kind) = kind_of(network) else { continue };
            let served = (kind == TunnelKind::Geneve).then(|| self.zone(Zone::Served { network: index }));
            for (peer, object) in self.desired.peers().enumerate() {
                let zone = self.zone(Zone::Tunnel { network: index, peer: peer as u32 });
                let zone = TunnelZone { zone, kind, served };
                self.snapshot.tunnels.insert((object.address, network.vni), zone);
            }
        }
        self.snapshot.tunnel_ports =
            [TunnelKind::Vxlan, TunnelKind::Geneve].map(|kind| (kind.port(), kind)).to_vec();
    }

    /// What services and connections have outside the cluster.
    fn outside(&mut self) {
        self.snapshot.outside_addresses = Arc::clone(&self.desired.exposed().outside);
        let ports = self.desired.source_ports();
        let pool =
            |addresses: &[IpAddr]| Pool::new(addresses, ports.first()..=ports.last()).ok().map(Arc::new);
        let outer = &self.snapshot.underlay_addresses;
        // An underlay of one family has no address for clients of the other, and an overlay of both has.
        let told = self.desired.host.as_ref().map_or(&[][..], |host| &host.addresses);
        let of_family = |ipv4: bool| {
            let told: Vec<IpAddr> = told.iter().filter(|it| it.is_ipv4() == ipv4).copied().collect();
            let outer = outer.iter().filter(move |it| it.is_ipv4() == ipv4).copied();
            if told.is_empty() { outer.collect() } else { told }
        };
        let inner = [true, false].map(of_family).concat();
        (self.snapshot.node_pool, self.snapshot.inner_pool) = (pool(outer), pool(&inner));
    }

    fn template(&mut self, network: u32, peer: u32) -> Option<TemplateId> {
        let object = self.networks[network as usize];
        let facts = &self.reached[peer as usize];
        let path = facts.path.as_ref()?;
        let way = self.underlay.paths.get(&facts.address)?;
        let configured = *self.peers.get(peer as usize)?;
        let (uplink, kind) = (self.underlay.uplinks.get(&way.uplink)?, kind_of(object)?);
        let outer = OuterPath {
            src_mac: uplink.mac,
            dst_mac: path.mac?,
            addresses: OuterAddresses::new(way.source, facts.address)?,
            dst_port: configured.port.unwrap_or(kind.port()),
            ttl: UNDERLAY_TTL,
            dscp: object.dscp.map_or(DscpMode::Copy, DscpMode::Fixed),
            udp_checksum: object.udp_checksum.unwrap_or(facts.address.is_ipv6()),
            inner_src_mac: self.snapshot.router_mac,
            inner_dst_mac: configured
                .mac
                .map_or(MacAddr::from_underlay(facts.address), model::UnicastMac::get),
        };
        let header = build_header(kind, &outer, object.vni, object)?;
        let (device, link) = (path.device, facts.learnt_mtu.unwrap_or(path.mtu).min(path.mtu));
        let served = if self.serves_directly(object) {
            [true, false].map(|is_ipv4| {
                let options = [&geneve_options(object)[..], &[ServedAs::blank(is_ipv4)]].concat();
                let header = EncapTemplate::geneve(&outer, object.vni, &options).ok()?;
                self.add_template(peer, object, device, link, header, [None; 2])
            })
        } else {
            [None; 2]
        };
        self.add_template(peer, object, device, link, header, served)
    }

    fn add_template(
        &mut self,
        peer: u32,
        network: &model::Network,
        device: DeviceId,
        link: u16,
        header: EncapTemplate,
        served: [Option<TemplateId>; 2],
    ) -> Option<TemplateId> {
        let id = TemplateId(u16::try_from(self.snapshot.templates.len()).ok()?);
        let max_len = link.saturating_sub(header.overhead() as u16).min(network.mtu.unwrap_or(u16::MAX));
        self.snapshot.templates.push(Template { header, device, max_len, served });
        self.reached[peer as usize].templates += 1;
        Some(id)
    }

    /// Whether a service of the network wants its backends to answer clients outside past this node, and tunnels can say so.
    fn serves_directly(&self, network: &model::Network) -> bool {
        kind_of(network) == Some(TunnelKind::Geneve) && self.desired.exposed().direct.contains(&network.name)
    }

    fn network(&self, index: usize, rows: Rows, before: Option<&Snapshot>) -> Arc<Network> {
        let object = self.networks[index];
        let (rows, targets): (Vec<RouteRow>, Vec<Target>) = rows.into_iter().unzip();
        let mtu = self.network_mtu(index as u32);
        let masquerades = nat::of_network(object, self.desired, self.underlay);
        let old = before.and_then(|before| before.networks.iter().find(|network| network.vni == object.vni));
        if let Some(old) = old
            && old.rows == rows
            && old.targets == targets
            && old.masquerades == masquerades
            && (old.name.as_str(), old.mtu, &old.gateways) == (object.name.as_str(), mtu, &object.gateways)
        {
            return Arc::clone(old);
        }
        let of_family = |ipv4: bool| {
            let numbered =
                rows.iter().enumerate().filter(move |(_, row)| row.prefix.addr().is_ipv4() == ipv4);
            Lpm::build(numbered.map(|(i, row)| (LeftAligned::from(row.prefix), i as u32)))
        };
        let (routes4, routes6) = (of_family(true), of_family(false));
        Arc::new(Network {
            name: object.name.to_string(),
            vni: object.vni,
            mtu,
            gateways: object.gateways.clone(),
            routes4,
            routes6,
            masquerades,
            targets,
            rows,
        })
    }
}

/// What a network's tunnels put in front of an IP packet.
pub(crate) fn overhead(network: &model::Network, ipv6: bool) -> u16 {
    let Some(kind) = kind_of(network) else { return 0 };
    let any: IpAddr =
        if ipv6 { std::net::Ipv6Addr::LOCALHOST.into() } else { std::net::Ipv4Addr::LOCALHOST.into() };
    let Some(addresses) = OuterAddresses::new(any, any) else { return 0 };
    let path = OuterPath {
        src_mac: MacAddr::ZERO,
        dst_mac: MacAddr::ZERO,
        addresses,
        dst_port: kind.port(),
        ttl: UNDERLAY_TTL,
        dscp: DscpMode::Copy,
        udp_checksum: false,
        inner_src_mac: MacAddr::ZERO,
        inner_dst_mac: MacAddr::ZERO,
    };
    build_header(kind, &path, network.vni, network).map_or(0, |header| header.overhead() as u16)
}

fn build_header(
    kind: TunnelKind,
    path: &OuterPath,
    vni: Vni,
    network: &model::Network,
) -> Option<EncapTemplate> {
    match kind {
        TunnelKind::Vxlan => Some(EncapTemplate::vxlan(path, vni)),
        TunnelKind::Geneve => EncapTemplate::geneve(path, vni, &geneve_options(network)).ok(),
    }
}

fn geneve_options(network: &model::Network) -> Vec<GeneveOption> {
    let options = network.geneve_options.iter();
    options
        .map(|option| GeneveOption {
            class: option.class,
            kind: option.kind | if option.critical { 0x80 } else { 0 },
            data: option.data.as_bytes().to_vec(),
        })
        .collect()
}

fn kind_of(network: &model::Network) -> Option<TunnelKind> {
    match network.encapsulation {
        Encapsulation::Vxlan => Some(TunnelKind::Vxlan),
        Encapsulation::Geneve => Some(TunnelKind::Geneve),
        Encapsulation::None => None,
    }
}

/// Whether a configuration fits what tables and flow keys can name.
#[must_use]
pub fn check_capacity(desired: &Desired) -> Vec<Fault> {
    let (networks, peers) = (desired.networks().count(), desired.peers().count());
    let mut faults = Vec::new();
    if networks * (peers + 1) + desired.endpoints().count() + 3 >= ZoneId::LIMIT as usize {
        let problem = format!(
            "{networks} networks times {peers} peers are more sources of packets than flows can tell apart"
        );
        faults.push(Fault::new("node", "", problem, "use fewer networks or peers on one node"));
    }
    let mut pairs: Vec<(&str, &str)> = desired
        .routes()
        .filter_map(|route| match &route.via {
            RouteTarget::Peer(peer) => Some((route.network.as_str(), peer.as_str())),
            _ => None,
        })
        .collect();
    pairs.sort_unstable();
    pairs.dedup();
    // Services that are answered directly take two more for each.
    let each = if desired.exposed().direct.is_empty() { 1 } else { 3 };
    if (pairs.len() + peers) * each > usize::from(u16::MAX) {
        let problem = format!(
            "routes name {} pairs of network and peer; there is room for {}",
            pairs.len(),
            65535 / each
        );
        faults.push(Fault::new("node", "", problem, "use fewer networks or peers on one node"));
    }
    for network in desired.networks().filter(|network| kind_of(network) == Some(TunnelKind::Geneve)) {
        if overhead(network, desired.peers().any(|peer| peer.address.is_ipv6())) == 0 {
            faults.push(Fault::new(
                format!("network \"{}\"", network.name),
                "geneve-options",
                "the options do not fit the tunnel header",
                "use at most 64 bytes of options over IPv4, 44 over IPv6",
            ));
        }
    }
    faults
}

#[cfg(test)]
mod tests;
