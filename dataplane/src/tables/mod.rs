//! The tables of a snapshot: what the slow path asks, and the little that the fast path needs.
//!
//! Everything here is immutable once it is published. [`compile`](compile::compile) makes it from the objects of the
//! control interface and from what the kernel says of the underlay.

pub mod compile;
pub mod desired;
pub mod lpm;
mod meters;
pub mod nat;
pub mod policies;
pub mod rule_counts;
pub mod rulebook;
pub mod service;

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use penstock_wire::decap::TunnelKind;
use penstock_wire::encap::EncapTemplate;
use penstock_wire::{MacAddr, Vni};

use crate::conntrack::NetworkId;
use crate::conntrack::nat::Pool;
use crate::flow::{DeviceId, LinkId, TemplateId, ZoneId};
use crate::meter::Meter;
use lpm::Lpm;
use nat::Masquerade;
use policies::Policies;
use rule_counts::SubjectCounts;
use service::Services;

/// Everything that packets are decided by.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// The generation of the configuration that this was made from.
    pub generation: u64,
    /// The MAC address of this node's router: the gateway that pods see, and the inner address of tunnels to us.
    pub router_mac: MacAddr,
    /// The networks; zones and endpoints name them by position.
    pub networks: Vec<Arc<Network>>,
    /// The endpoints; zones and routes name them by position.
    pub endpoints: Vec<Arc<Endpoint>>,
    /// Where packets can come from, by [`ZoneId`].
    pub zones: Vec<Zone>,
    /// What each device is, by [`DeviceId`].
    pub devices: Vec<Device>,
    /// Which zone a tunnel packet comes from, by (outer source, network identifier).
    pub tunnels: HashMap<(IpAddr, Vni), TunnelZone>,
    /// The UDP ports that tunnels of each kind come in on.
    pub tunnel_ports: Vec<(u16, TunnelKind)>,
    /// The local tunnel endpoints.
    pub underlay_addresses: Vec<IpAddr>,
    /// Whether what comes from the underlay may carry checksums left for a network card to finish.
    pub partial_underlay: bool,
    /// The peers; routes name them by position.
    pub peers: Arc<[Peer]>,
    /// The tunnel headers, by [`TemplateId`].
    pub templates: Vec<Template>,
    /// Who speaks to whom on the links without a tunnel, by [`LinkId`].
    pub links: Vec<Link>,
    /// The host port.
    pub host: Option<Host>,
    /// What endpoints may send and receive.
    pub policies: Arc<Policies>,
    /// Which backends answer for services.
    pub services: Arc<Services>,
    /// Addresses outside the cluster, other than the uplinks', that services and connections have here.
    pub outside_addresses: Arc<HashSet<IpAddr>>,
    /// The addresses and ports of the node that stand in for clients whose answers must come back here.
    pub node_pool: Option<Arc<Pool>>,
    /// The same, for answers that come through tunnels or from this node's own endpoints: the addresses that the node has in
    /// its network, as far as it is told any.
    pub inner_pool: Option<Arc<Pool>>,
    /// The links to the underlay's neighbours, by device.
    pub neighbours: HashMap<(DeviceId, IpAddr), LinkId>,
}

impl Snapshot {
    /// The network that connections of that number are kept in; `None` for those outside of all networks.
    #[must_use]
    pub fn network(&self, id: NetworkId) -> Option<&Network> {
        self.networks.iter().find(|network| network.vni.get() == id.number()).map(|network| &**network)
    }

    /// The endpoint that a device is the attachment of.
    #[inline]
    #[must_use]
    pub fn endpoint_of(&self, device: DeviceId) -> Option<&Arc<Endpoint>> {
        let Device::Endpoint { zone, .. } = self.devices.get(usize::from(device.0))? else { return None };
        self.endpoint_in(*self.zones.get(zone.number())?)
    }

    /// The endpoint that packets from a zone come from.
    #[inline]
    #[must_use]
    pub fn endpoint_in(&self, zone: Zone) -> Option<&Arc<Endpoint>> {
        let Zone::Endpoint { endpoint, .. } = zone else { return None };
        self.endpoints.get(endpoint as usize)
    }

    /// Whether packets from outside to `address` are for this node, or for a service or a connection that it keeps.
    #[must_use]
    pub fn is_own_address(&self, address: IpAddr) -> bool {
        self.underlay_addresses.contains(&address) || self.outside_addresses.contains(&address)
    }
}

/// A device and its part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Device {
    /// Not in use (any more).
    #[default]
    Unused,
    /// An endpoint's attachment.
    Endpoint {
        /// Where its packets come from.
        zone: ZoneId,
        /// The only source MAC address.
        mac: MacAddr,
    },
    /// The host port.
    Host {
        /// Where its packets come from.
        zone: ZoneId,
    },
    /// An uplink.
    Uplink {
        /// Our station on it.
        mac: MacAddr,
        /// Where packets come from that are in no tunnel, if there is a network for them.
        native: Option<ZoneId>,
        /// The longest IP packet that the link carries.
        mtu: u16,
    },
}

/// Where a packet came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Zone {
    /// From an endpoint.
    Endpoint {
        /// Its network.
        network: u32,
        /// The endpoint.
        endpoint: u32,
    },
    /// From the node itself.
    Host {
        /// The network that the node takes part in.
        network: u32,
    },
    /// Out of a tunnel.
    Tunnel {
        /// The network of its VNI.
        network: u32,
        /// The peer that sent it.
        peer: u32,
    },
    /// Out of a tunnel from a peer that was asked for a service which an endpoint here serves: its clients are outside.
    Served {
        /// The network of its VNI.
        network: u32,
    },
    /// From the underlay, without a tunnel.
    Native {
        /// The network that such packets belong to.
        network: u32,
    },
}

impl Zone {
    /// The network that the zone is in.
    #[must_use]
    pub fn network(self) -> u32 {
        match self {
            Zone::Endpoint { network, .. }
            | Zone::Host { network }
            | Zone::Tunnel { network, .. }
            | Zone::Served { network }
            | Zone::Native { network } => network,
        }
    }
}

/// What a tunnel's packets are checked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TunnelZone {
    /// The zone.
    pub zone: ZoneId,
    /// The encapsulation that its network speaks.
    pub kind: TunnelKind,
    /// Where packets come from that the peer sends on for a service; nowhere by VXLAN, which cannot say so.
    pub served: Option<ZoneId>,
}

/// A network.
#[derive(Debug)]
pub struct Network {
    /// Its name.
    pub name: String,
    /// Its identifier.
    pub vni: Vni,
    /// The longest IP packet in it, as configured.
    pub mtu: u16,
    /// The addresses that the dataplane answers for.
    pub gateways: Vec<IpAddr>,
    /// The IPv4 routes: positions in `targets`.
    pub routes4: Lpm,
    /// The IPv6 routes: positions in `targets`.
    pub routes6: Lpm,
    /// Who leaves the cluster under another address, see [`nat::way_out`].
    pub masquerades: Vec<Masquerade>,
    /// Where routes lead.
    pub targets: Vec<Target>,
    /// The routes as a list, for people.
    pub rows: Vec<RouteRow>,
}

impl Network {
    /// Where packets for `address` go.
    #[inline]
    #[must_use]
    pub fn route(&self, address: IpAddr) -> Option<&Target> {
        let routes = if address.is_ipv4() { &self.routes4 } else { &self.routes6 };
        self.targets.get(routes.look_up(lpm::key_of(address)) as usize)
    }

    /// Whether the dataplane answers for `address`.
    #[must_use]
    pub fn is_gateway(&self, address: IpAddr) -> bool {
        self.gateways.contains(&address)
    }
}

/// A route for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteRow {
    /// The destination.
    pub prefix: IpNet,
    /// Where it leads, in words.
    pub target: String,
    /// Whether it follows from another object instead of being one.
    pub implied: bool,
}

/// Where a route leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// To a local endpoint.
    Endpoint(u32),
    /// To a peer, through a tunnel.
    Tunnel {
        /// The peer.
        peer: u32,
        /// The tunnel's header; `None` while the underlay's next hop is not known.
        template: Option<TemplateId>,
    },
    /// Out of an uplink as it is, to a next hop or, without one, to the destination itself.
    Native {
        /// The uplink.
        device: DeviceId,
        /// The next hop.
        next_hop: Option<IpAddr>,
        /// The peer that this leads to, when it does.
        peer: Option<u32>,
        /// The longest IP packet on the way.
        mtu: u16,
    },
    /// To a peer that no underlay route leads to.
    Unreachable {
        /// The peer.
        peer: u32,
    },
    /// To the node itself.
    Host,
    /// Nowhere.
    Blackhole,
}

/// A local endpoint.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// Its name.
    pub name: String,
    /// Its network.
    pub network: u32,
    /// Its device.
    pub device: DeviceId,
    /// Where its packets come from.
    pub zone: ZoneId,
    /// Its MAC address.
    pub mac: MacAddr,
    /// The link to it.
    pub link: LinkId,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// The longest IP packet that it takes.
    pub mtu: u16,
    /// Whether what it sends may carry checksums left for a network card to finish.
    pub partial_checksums: bool,
    /// Connections that it may have at one time, if it is told a number of its own.
    pub max_connections: Option<u32>,
    /// How much it may send, receive and open, if it has limits.
    pub meter: Option<Arc<Meter>>,
    /// What policies say of it; nothing if none selects it.
    pub subject: Option<Arc<penstock_policy::Subject>>,
    /// The last change of policies that was about it, see [`Policies::since`].
    pub judged_since: u32,
    /// How often its rules decided; there if the subject is.
    pub counts: Option<Arc<SubjectCounts>>,
}

/// Another node.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Its name.
    pub name: String,
    /// Its tunnel endpoint.
    pub address: IpAddr,
    /// How it is reached; `None` without an underlay route.
    pub path: Option<PeerPath>,
    /// The path's longest IP packet as learnt from ICMP.
    pub learnt_mtu: Option<u16>,
    /// Tunnel headers that lead to it.
    pub templates: u32,
}

/// The way to a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerPath {
    /// The uplink.
    pub device: DeviceId,
    /// The uplink's interface.
    pub interface: String,
    /// The next hop.
    pub next_hop: IpAddr,
    /// The next hop's MAC address, once known.
    pub mac: Option<MacAddr>,
    /// The longest IP packet that the first link carries.
    pub mtu: u16,
}

/// A tunnel's header and its way out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    /// The header.
    pub header: EncapTemplate,
    /// The uplink.
    pub device: DeviceId,
    /// The longest inner IP packet.
    pub max_len: u16,
    /// The same with room for what a client outside asked for, by IPv4 and by IPv6; only where a service wants it.
    pub served: [Option<TemplateId>; 2],
}

/// The two stations that a frame goes between.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// Destination and source MAC address, as they stand in the frame.
    pub(crate) stations: [u8; 12],
}

impl Link {
    /// From `src` to `dst`.
    #[must_use]
    pub fn between(src: MacAddr, dst: MacAddr) -> Link {
        let mut stations = [0; 12];
        stations[..6].copy_from_slice(&dst.0);
        stations[6..].copy_from_slice(&src.0);
        Link { stations }
    }

    /// Who is sent to.
    #[must_use]
    pub fn dst(&self) -> MacAddr {
        let [a, b, c, d, e, f, ..] = self.stations;
        MacAddr([a, b, c, d, e, f])
    }
}

/// The host port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// Its device.
    pub device: DeviceId,
    /// Its network.
    pub network: u32,
    /// The link to it.
    pub link: LinkId,
    /// The node's own addresses.
    pub addresses: Vec<IpAddr>,
    /// The longest IP packet that it takes.
    pub mtu: u16,
}
