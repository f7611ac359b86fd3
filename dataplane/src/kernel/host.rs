//! The host port's kernel side: a tap that leads the node itself to its pods.
//!
//! All pod prefixes are routed to one gateway per family, whose Ethernet address the kernel is told for good, so that it
//! never asks for one on the tap. What is there already is left alone; what differs is changed, and nothing else.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnet::IpNet;
use netlink_packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage, AddressScope};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use netlink_packet_route::neighbour::{NeighbourAttribute, NeighbourMessage, NeighbourState as Nud};
use netlink_packet_route::route::{
    RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use penstock_wire::MacAddr;
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};

use super::resolve::{family, ip_of, neighbour_address};
use super::sysctl::{self, Setting};
use super::view::{Event, Link, NeighbourState};
use super::{Kernel, KernelError, decode};

/// The gateway of the pods' IPv4 routes on the host, the same as in pods: link-local (RFC 3927), so it is nobody's.
pub const GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);

/// The gateway of the pods' IPv6 routes on the host, the same as in pods.
pub const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// How our routes are told from everybody else's (`rtm_protocol`; `ip route show proto 112`).
const ROUTE_PROTOCOL: RouteProtocol = RouteProtocol::Other(112);

/// The least MTU that IPv6 works with (RFC 8200, section 5).
const IPV6_MIN_MTU: u32 = 1280;

/// Before the tap comes up: no address of its own making and none from routers, so that it is usable at once and sends
/// nothing by itself; replies may take another way than requests.
const SETTINGS: [Setting; 4] = [
    Setting { family: "ipv4", name: "rp_filter", value: "2" },
    Setting { family: "ipv6", name: "addr_gen_mode", value: "1" },
    Setting { family: "ipv6", name: "accept_dad", value: "0" },
    Setting { family: "ipv6", name: "accept_ra", value: "0" },
];

/// Where the node's default is to have no IPv6 on new interfaces.
const WITH_IPV6: Setting = Setting { family: "ipv6", name: "disable_ipv6", value: "0" };

/// What the kernel's side of the host port is to look like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPort {
    /// The tap's name.
    pub interface: String,
    /// The tap's own address.
    pub mac: MacAddr,
    /// Bytes of the largest IP packet.
    pub mtu: u32,
    /// The dataplane's address: what frames to the pods are sent to.
    pub gateway_mac: MacAddr,
    /// The node's addresses in the network, may be none. The first of a family is what the node sends to pods from.
    pub addresses: Vec<IpAddr>,
    /// What lies behind the tap: the pods' prefixes.
    pub prefixes: Arc<[IpNet]>,
}

impl Kernel {
    /// Makes the host port as wanted; returns how many things had to be changed.
    ///
    /// # Errors
    /// [`KernelError`] at the first thing that cannot be done; what was done before stays, and a later call goes on.
    pub async fn prepare_host(&self, port: &HostPort) -> Result<usize, KernelError> {
        let wants_ipv6 = port.has(AddressFamily::Inet6);
        if wants_ipv6 && port.mtu < IPV6_MIN_MTU {
            return Err(KernelError::MtuBelowIpv6 { interface: port.interface.clone(), mtu: port.mtu });
        }
        let (ifindex, link) = self.link(&port.interface).await?;
        let mut changed = 0;
        if wants_ipv6 {
            changed += sysctl::set(&port.interface, &[WITH_IPV6])?;
        }
        changed += sysctl::set(&port.interface, &SETTINGS)?;
        let tap = Tap { kernel: self, port, ifindex };
        changed += tap.set_link(&link).await?;
        changed += tap.set_addresses().await?;
        changed += tap.set_gateways().await?;
        changed += tap.set_routes().await?;
        Ok(changed)
    }

    /// Sets an interface up, e.g. an endpoint's tap.
    ///
    /// # Errors
    /// [`KernelError`].
    pub async fn bring_up(&self, interface: &str) -> Result<(), KernelError> {
        let (ifindex, link) = self.link(interface).await?;
        if link.up {
            return Ok(());
        }
        let request = RouteNetlinkMessage::SetLink(up(ifindex));
        self.tell("RTM_SETLINK", request, 0, || interface.to_owned()).await
    }

    /// Index and facts of the interface of this name.
    ///
    /// # Errors
    /// [`KernelError`], also when there is none.
    pub async fn link(&self, interface: &str) -> Result<(u32, Link), KernelError> {
        let missing = || KernelError::NoInterface { interface: interface.to_owned() };
        let mut message = LinkMessage::default();
        message.attributes = vec![LinkAttribute::IfName(interface.to_owned())];
        match self.requests.ask(RouteNetlinkMessage::GetLink(message)).await {
            Ok(RouteNetlinkMessage::NewLink(answer)) => decode::link(&answer).ok_or_else(missing),
            Ok(_) => Err(missing()),
            // ENODEV (`errno.h`).
            Err(error) if error.raw_os_error() == Some(19) => Err(missing()),
            Err(source) => {
                Err(KernelError::Request { call: "RTM_GETLINK", object: interface.to_owned(), source })
            }
        }
    }

    async fn tell(
        &self,
        call: &'static str,
        request: RouteNetlinkMessage,
        flags: u16,
        object: impl FnOnce() -> String,
    ) -> Result<(), KernelError> {
        let told = self.requests.tell(request, flags).await;
        told.map_err(|source| KernelError::Request { call, object: object(), source })
    }
}

impl HostPort {
    fn has(&self, family: AddressFamily) -> bool {
        self.prefixes_of(family).next().is_some() || self.address(family).is_some()
    }

    fn prefixes_of(&self, of: AddressFamily) -> impl Iterator<Item = IpNet> + '_ {
        self.prefixes.iter().filter(move |prefix| family(prefix.addr()) == of).map(IpNet::trunc)
    }

    fn address(&self, of: AddressFamily) -> Option<IpAddr> {
        self.addresses.iter().copied().find(|address| family(*address) == of)
    }
}

/// A host port and the interface that it is to become.
struct Tap<'a> {
    kernel: &'a Kernel,
    port: &'a HostPort,
    ifindex: u32,
}

/// A route into the tap, reduced to what may differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct PodRoute {
    prefix: IpNet,
    gateway: Option<IpAddr>,
    source: Option<IpAddr>,
}

fn up(ifindex: u32) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = ifindex;
    (message.header.flags, message.header.change_mask) = (LinkFlags::Up, LinkFlags::Up);
    message
}

impl Tap<'_> {
    fn named(&self, what: impl std::fmt::Display) -> String {
        format!("{what} on {}", self.port.interface)
    }

    async fn set_link(&self, now: &Link) -> Result<usize, KernelError> {
        let HostPort { interface, mac, mtu, .. } = self.port;
        let mut message = up(self.ifindex);
        if now.mac != Some(*mac) {
            message.attributes.push(LinkAttribute::Address(mac.0.to_vec()));
        }
        if now.mtu != *mtu {
            message.attributes.push(LinkAttribute::Mtu(*mtu));
        }
        let differing = message.attributes.len() + usize::from(!now.up);
        if differing > 0 {
            let object = || format!("{interface} (up, address {mac}, MTU {mtu})");
            self.kernel.tell("RTM_SETLINK", RouteNetlinkMessage::SetLink(message), 0, object).await?;
        }
        Ok(differing)
    }

    async fn dump(&self, request: RouteNetlinkMessage) -> Result<Vec<RouteNetlinkMessage>, KernelError> {
        self.kernel.requests.dump(request).await.map_err(|source| KernelError::Request {
            call: "a listing",
            object: self.port.interface.clone(),
            source,
        })
    }

    async fn set_addresses(&self) -> Result<usize, KernelError> {
        let wanted: BTreeSet<IpNet> = self.port.addresses.iter().copied().map(IpNet::from).collect();
        let mut there = BTreeSet::new();
        for answer in self.dump(RouteNetlinkMessage::GetAddress(AddressMessage::default())).await? {
            if let RouteNetlinkMessage::NewAddress(message) = answer
                && message.header.index == self.ifindex
                && let Some(address) = decode::address(&message)
                // A link-local one is made by the kernel or by an operator; it does no harm.
                && !matches!(address.addr(), IpAddr::V6(v6) if v6.is_unicast_link_local())
            {
                there.insert(address);
            }
        }
        for address in there.difference(&wanted) {
            let request = RouteNetlinkMessage::DelAddress(self.address(*address));
            self.kernel.tell("RTM_DELADDR", request, 0, || self.named(address)).await?;
        }
        for address in wanted.difference(&there) {
            let request = RouteNetlinkMessage::NewAddress(self.address(*address));
            self.kernel
                .tell("RTM_NEWADDR", request, NLM_F_CREATE | NLM_F_EXCL, || self.named(address))
                .await?;
        }
        Ok(there.symmetric_difference(&wanted).count())
    }

    fn address(&self, address: IpNet) -> AddressMessage {
        let mut message = AddressMessage::default();
        message.header.family = family(address.addr());
        message.header.prefix_len = address.prefix_len();
        message.header.scope = AddressScope::Universe;
        message.header.index = self.ifindex;
        if address.addr().is_ipv6() {
            // The far end is the dataplane, which never takes the address: usable without a wait.
            message.header.flags = AddressHeaderFlags::Nodad;
        }
        message.attributes =
            vec![AddressAttribute::Local(address.addr()), AddressAttribute::Address(address.addr())];
        message
    }

    /// Tells the kernel the gateways' Ethernet address for good.
    async fn set_gateways(&self) -> Result<usize, KernelError> {
        let mut changed = 0;
        for gateway in [IpAddr::V4(GATEWAY_V4), IpAddr::V6(GATEWAY_V6)] {
            let mut wanted = NeighbourMessage::default();
            wanted.header.family = family(gateway);
            if self.port.prefixes_of(family(gateway)).next().is_none() {
                continue;
            }
            let there = self.dump(RouteNetlinkMessage::GetNeighbour(wanted.clone())).await?;
            let right = |answer: &RouteNetlinkMessage| {
                matches!(decode::event(answer), Some(Event::Neighbour(index, address, neighbour))
                    if (index, address) == (self.ifindex, gateway)
                        && neighbour.state == NeighbourState::Permanent
                        && neighbour.mac == Some(self.port.gateway_mac))
            };
            if there.iter().any(right) {
                continue;
            }
            wanted.header.ifindex = self.ifindex;
            wanted.header.state = Nud::Permanent;
            wanted.header.kind = RouteType::Unicast;
            wanted.attributes = vec![
                NeighbourAttribute::Destination(neighbour_address(gateway)),
                NeighbourAttribute::LinkLayerAddress(self.port.gateway_mac.0.to_vec()),
            ];
            let request = RouteNetlinkMessage::NewNeighbour(wanted);
            let flags = NLM_F_CREATE | NLM_F_REPLACE;
            self.kernel.tell("RTM_NEWNEIGH", request, flags, || self.named(gateway)).await?;
            changed += 1;
        }
        Ok(changed)
    }

    async fn set_routes(&self) -> Result<usize, KernelError> {
        let wanted: BTreeSet<PodRoute> =
            self.port.prefixes.iter().map(|prefix| self.route(*prefix)).collect();
        let mut there = BTreeSet::new();
        for of in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut message = RouteMessage::default();
            message.header.address_family = of;
            let answers = self.dump(RouteNetlinkMessage::GetRoute(message)).await?;
            there.extend(answers.iter().filter_map(|answer| self.ours(answer)));
        }
        // A route may differ in its source alone, so the old one goes before the new one comes.
        for route in there.difference(&wanted) {
            let request = RouteNetlinkMessage::DelRoute(self.message(route));
            self.kernel.tell("RTM_DELROUTE", request, 0, || self.named(route.prefix)).await?;
        }
        for route in wanted.difference(&there) {
            // Exclusive: another's route for the same prefix is not to be replaced.
            let request = RouteNetlinkMessage::NewRoute(self.message(route));
            let flags = NLM_F_CREATE | NLM_F_EXCL;
            self.kernel.tell("RTM_NEWROUTE", request, flags, || self.named(route.prefix)).await?;
        }
        Ok(there.symmetric_difference(&wanted).count())
    }

    fn route(&self, prefix: IpNet) -> PodRoute {
        let gateway = match prefix {
            IpNet::V4(_) => IpAddr::V4(GATEWAY_V4),
            IpNet::V6(_) => IpAddr::V6(GATEWAY_V6),
        };
        let source = self.port.address(family(prefix.addr()));
        PodRoute { prefix: prefix.trunc(), gateway: Some(gateway), source }
    }

    /// The route that a message is about, if it is one of ours.
    fn ours(&self, message: &RouteNetlinkMessage) -> Option<PodRoute> {
        let RouteNetlinkMessage::NewRoute(message) = message else { return None };
        let unspecified = match message.header.address_family {
            AddressFamily::Inet => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            AddressFamily::Inet6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
            _ => return None,
        };
        if message.header.protocol != ROUTE_PROTOCOL {
            return None;
        }
        // A default route has no destination.
        let (mut destination, mut gateway, mut source, mut ifindex) = (unspecified, None, None, None);
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::Destination(address) => destination = ip_of(address)?,
                RouteAttribute::Gateway(address) => gateway = ip_of(address),
                RouteAttribute::PrefSource(address) => source = ip_of(address),
                RouteAttribute::Oif(index) => ifindex = Some(*index),
                _ => {}
            }
        }
        let prefix = IpNet::new(destination, message.header.destination_prefix_length).ok()?;
        (ifindex == Some(self.ifindex)).then_some(PodRoute { prefix, gateway, source })
    }

    fn message(&self, route: &PodRoute) -> RouteMessage {
        let mut message = RouteMessage::default();
        message.header.address_family = family(route.prefix.addr());
        message.header.destination_prefix_length = route.prefix.prefix_len();
        message.header.table = RouteHeader::RT_TABLE_MAIN;
        message.header.protocol = ROUTE_PROTOCOL;
        message.header.scope = RouteScope::Universe;
        message.header.kind = RouteType::Unicast;
        // The gateway lies in no prefix of the tap.
        message.header.flags = RouteFlags::Onlink;
        message.attributes =
            vec![RouteAttribute::Destination(route.prefix.addr().into()), RouteAttribute::Oif(self.ifindex)];
        message.attributes.extend(route.gateway.map(|gateway| RouteAttribute::Gateway(gateway.into())));
        message.attributes.extend(route.source.map(|source| RouteAttribute::PrefSource(source.into())));
        message
    }
}
