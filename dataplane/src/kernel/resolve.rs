//! The way to an address: which interface and next hop the kernel would take, and the neighbour behind it.

use std::io;
use std::net::IpAddr;

use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState as Nud,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteMetric, RouteType, RouteVia,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::packet_core::NLM_F_CREATE;
use thiserror::Error;

use super::{Kernel, KernelError};

/// The way that the kernel would send to an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Path {
    /// The interface to send on.
    pub ifindex: u32,
    /// Whose Ethernet address the frame gets: a gateway, or the destination itself.
    pub next_hop: IpAddr,
    /// The address that the kernel would send from.
    pub preferred_source: IpAddr,
    /// The path's MTU where a route or a learnt path MTU sets one; the interface's counts otherwise.
    pub mtu: Option<u32>,
}

/// Why there is no way to an address.
#[derive(Debug, Error)]
pub enum Unreachable {
    /// No route matches.
    #[error("no route to {destination}; see `ip route get {destination}`, add a route or a default gateway")]
    NoRoute {
        /// The address asked for.
        destination: IpAddr,
    },
    /// A route says that nothing goes there.
    #[error(
        "a route forbids {destination} (blackhole, unreachable or prohibit); see `ip route get {destination}`"
    )]
    Forbidden {
        /// The address asked for.
        destination: IpAddr,
    },
    /// The address is this node's own.
    #[error("{destination} is an address of this node itself; a peer must be another node")]
    Local {
        /// The address asked for.
        destination: IpAddr,
    },
    /// A route that is not to one station on one Ethernet link.
    #[error(
        "the route to {destination} is of a kind that cannot be followed ({kind}); see `ip route get {destination}`"
    )]
    Unfit {
        /// The address asked for.
        destination: IpAddr,
        /// What the route is.
        kind: String,
    },
    /// The kernel has a route but no address of its own to send from.
    #[error(
        "there is a route to {destination} but no address of this node to send from; give the interface an address"
    )]
    NoSource {
        /// The address asked for.
        destination: IpAddr,
    },
    /// The question failed.
    #[error(transparent)]
    Kernel(#[from] KernelError),
}

impl Kernel {
    /// Asks which way the kernel would send to `destination` (`RTM_GETROUTE`, as `ip route get` does).
    ///
    /// # Errors
    /// [`Unreachable`], with the reason.
    pub async fn path_to(&self, destination: IpAddr) -> Result<Path, Unreachable> {
        let mut message = RouteMessage::default();
        message.header.address_family = family(destination);
        message.header.destination_prefix_length = if destination.is_ipv4() { 32 } else { 128 };
        message.attributes = vec![RouteAttribute::Destination(destination.into())];
        match self.requests.ask(RouteNetlinkMessage::GetRoute(message)).await {
            Ok(RouteNetlinkMessage::NewRoute(route)) => path(destination, &route),
            Ok(_) => Err(Unreachable::Unfit { destination, kind: "no route message".into() }),
            Err(source) => Err(refusal(destination, source)),
        }
    }

    /// Asks the kernel to find a neighbour's Ethernet address, or to check one that has grown stale (`NTF_USE`). Returns
    /// at once; the answer comes through the [`super::Watcher`]. Not for permanent entries, which it makes mortal. In IPv6
    /// the kernel asks from the interface's link-local address, and without one the neighbour fails.
    ///
    /// # Errors
    /// [`KernelError::Request`].
    pub async fn probe(&self, ifindex: u32, address: IpAddr) -> Result<(), KernelError> {
        let mut message = NeighbourMessage::default();
        message.header.family = family(address);
        message.header.ifindex = ifindex;
        message.header.state = Nud::None;
        message.header.flags = NeighbourFlags::Use;
        message.attributes = vec![NeighbourAttribute::Destination(neighbour_address(address))];
        let request = RouteNetlinkMessage::NewNeighbour(message);
        self.requests.tell(request, NLM_F_CREATE).await.map_err(|source| KernelError::Request {
            call: "RTM_NEWNEIGH (use)",
            object: format!("{address} on interface {ifindex}"),
            source,
        })
    }
}

pub(super) fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

pub(super) fn neighbour_address(address: IpAddr) -> NeighbourAddress {
    match address {
        IpAddr::V4(v4) => NeighbourAddress::Inet(v4),
        IpAddr::V6(v6) => NeighbourAddress::Inet6(v6),
    }
}

pub(super) fn ip_of(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(v4) => Some(IpAddr::V4(*v4)),
        RouteAddress::Inet6(v6) => Some(IpAddr::V6(*v6)),
        _ => None,
    }
}

/// What the kernel's refusal means: routes that forbid answer with an error number instead of a route in IPv4 (`fib_props`
/// in `net/ipv4/fib_semantics.c`).
fn refusal(destination: IpAddr, source: io::Error) -> Unreachable {
    match source.raw_os_error() {
        Some(ENETUNREACH) => Unreachable::NoRoute { destination },
        Some(EHOSTUNREACH | EACCES | EINVAL) => Unreachable::Forbidden { destination },
        _ => Unreachable::Kernel(KernelError::Request {
            call: "RTM_GETROUTE",
            object: destination.to_string(),
            source,
        }),
    }
}

/// Linux error numbers (`asm-generic/errno.h`).
const EACCES: i32 = 13;
const EINVAL: i32 = 22;
const ENETUNREACH: i32 = 101;
const EHOSTUNREACH: i32 = 113;

fn path(destination: IpAddr, route: &RouteMessage) -> Result<Path, Unreachable> {
    match route.header.kind {
        RouteType::Unicast => {}
        RouteType::Local => return Err(Unreachable::Local { destination }),
        RouteType::BlackHole | RouteType::Unreachable | RouteType::Prohibit => {
            return Err(Unreachable::Forbidden { destination });
        }
        kind => return Err(Unreachable::Unfit { destination, kind: format!("{kind:?}") }),
    }
    let (mut ifindex, mut gateway, mut source, mut mtu) = (None, None, None, None);
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Oif(index) => ifindex = Some(*index),
            RouteAttribute::Gateway(address) => gateway = ip_of(address),
            // An IPv4 route over an IPv6 gateway (RFC 5549).
            RouteAttribute::Via(RouteVia::Inet(v4)) => gateway = Some(IpAddr::V4(*v4)),
            RouteAttribute::Via(RouteVia::Inet6(v6)) => gateway = Some(IpAddr::V6(*v6)),
            RouteAttribute::PrefSource(address) => source = ip_of(address),
            RouteAttribute::Metrics(metrics) => {
                mtu = metrics.iter().find_map(|metric| match metric {
                    RouteMetric::Mtu(mtu) if *mtu > 0 => Some(*mtu),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    let ifindex =
        ifindex.ok_or_else(|| Unreachable::Unfit { destination, kind: "without interface".into() })?;
    let preferred_source = source.filter(|source| !source.is_unspecified());
    let preferred_source = preferred_source.ok_or(Unreachable::NoSource { destination })?;
    Ok(Path { ifindex, next_hop: gateway.unwrap_or(destination), preferred_source, mtu })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn route(attributes: Vec<RouteAttribute>) -> RouteMessage {
        let mut route = RouteMessage::default();
        route.header.kind = RouteType::Unicast;
        route.attributes = attributes;
        route
    }

    #[test]
    fn a_destination_on_the_link_is_its_own_next_hop() {
        let route = route(vec![RouteAttribute::Oif(3), RouteAttribute::PrefSource(ip("10.0.0.1").into())]);
        let expected =
            Path { ifindex: 3, next_hop: ip("10.0.0.9"), preferred_source: ip("10.0.0.1"), mtu: None };
        assert_eq!(path(ip("10.0.0.9"), &route).unwrap(), expected);
    }

    #[test]
    fn the_gateway_may_be_of_the_other_family() {
        let route = route(vec![
            RouteAttribute::Oif(3),
            RouteAttribute::Via(RouteVia::Inet6("fe80::9".parse().unwrap())),
            RouteAttribute::PrefSource(ip("10.0.0.1").into()),
            RouteAttribute::Metrics(vec![RouteMetric::Mtu(1400)]),
        ]);
        let found = path(ip("10.9.0.9"), &route).unwrap();
        assert_eq!((found.next_hop, found.mtu), (ip("fe80::9"), Some(1400)));
    }

    #[test]
    fn routes_that_lead_nowhere_say_why() {
        let mut message = route(vec![RouteAttribute::Oif(1)]);
        assert!(matches!(path(ip("10.0.0.9"), &message), Err(Unreachable::NoSource { .. })));
        message.header.kind = RouteType::Local;
        assert!(matches!(path(ip("10.0.0.9"), &message), Err(Unreachable::Local { .. })));
        message.header.kind = RouteType::Prohibit;
        assert!(matches!(path(ip("10.0.0.9"), &message), Err(Unreachable::Forbidden { .. })));
        message.header.kind = RouteType::Multicast;
        assert!(matches!(path(ip("10.0.0.9"), &message), Err(Unreachable::Unfit { .. })));
        let unknown = refusal(ip("10.0.0.9"), io::Error::from_raw_os_error(1)).to_string();
        assert!(unknown.contains("RTM_GETROUTE") && unknown.contains("CAP_NET_ADMIN"), "{unknown}");
    }
}
