//! The routes of the kernel's main table, as ways by which packets can leave through an interface.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use netlink_packet_route::route::{
    RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteNextHop, RouteType, RouteVia,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::resolve::ip_of;
use super::{Kernel, KernelError};

/// A route by one interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Way {
    /// The interface's index.
    pub ifindex: u32,
    /// Where it leads.
    pub prefix: IpNet,
    /// The kernel prefers the lowest (`RTA_PRIORITY`, `linux/rtnetlink.h`).
    pub metric: u32,
    /// The router; without one the destinations are on the link.
    pub gateway: Option<IpAddr>,
}

impl Kernel {
    /// The unicast routes of the main table, those to link-local addresses left out; sorted. Of a route with several next
    /// hops the first counts.
    ///
    /// # Errors
    /// [`KernelError::Request`].
    pub async fn ways(&self) -> Result<Vec<Way>, KernelError> {
        let mut ways = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut message = RouteMessage::default();
            message.header.address_family = family;
            let answers = self.requests.dump(RouteNetlinkMessage::GetRoute(message)).await;
            let answers = answers.map_err(|source| KernelError::Request {
                call: "RTM_GETROUTE",
                object: "the main table".to_owned(),
                source,
            })?;
            ways.extend(answers.iter().filter_map(|answer| match answer {
                RouteNetlinkMessage::NewRoute(route) => way(route),
                _ => None,
            }));
        }
        ways.sort_unstable();
        Ok(ways)
    }
}

fn way(route: &RouteMessage) -> Option<Way> {
    let header = &route.header;
    // What the kernel has learnt of single addresses (path MTUs, redirects) is no route.
    let is_learnt = header.flags.contains(RouteFlags::Cloned);
    if header.kind != RouteType::Unicast || header.table != RouteHeader::RT_TABLE_MAIN || is_learnt {
        return None;
    }
    // A default route has no destination.
    let mut destination = match header.address_family {
        AddressFamily::Inet => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        AddressFamily::Inet6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        _ => return None,
    };
    let (mut ifindex, mut metric) = (None, 0);
    let mut gateway = gateway_of(&route.attributes);
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Destination(address) => destination = ip_of(address)?,
            RouteAttribute::Oif(index) => ifindex = Some(*index),
            RouteAttribute::Priority(priority) => metric = *priority,
            RouteAttribute::MultiPath(hops) => {
                let RouteNextHop { interface_index, attributes, .. } = hops.first()?;
                (ifindex, gateway) = (Some(*interface_index), gateway_of(attributes));
            }
            _ => {}
        }
    }
    let is_link_local = match destination {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    if is_link_local {
        return None;
    }
    let prefix = IpNet::new(destination, header.destination_prefix_length).ok()?;
    Some(Way { ifindex: ifindex?, prefix, metric, gateway })
}

fn gateway_of(attributes: &[RouteAttribute]) -> Option<IpAddr> {
    attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Gateway(address) => ip_of(address),
        // An IPv4 route over an IPv6 router (RFC 5549).
        RouteAttribute::Via(RouteVia::Inet(v4)) => Some(IpAddr::V4(*v4)),
        RouteAttribute::Via(RouteVia::Inet6(v6)) => Some(IpAddr::V6(*v6)),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use netlink_packet_route::route::RouteAddress;

    use super::*;

    fn route(attributes: Vec<RouteAttribute>) -> RouteMessage {
        let mut message = RouteMessage::default();
        message.header.address_family = AddressFamily::Inet;
        message.header.kind = RouteType::Unicast;
        message.header.table = RouteHeader::RT_TABLE_MAIN;
        message.attributes = attributes;
        message
    }

    fn gateway(last: u8) -> RouteAttribute {
        RouteAttribute::Gateway(RouteAddress::Inet(Ipv4Addr::new(192, 0, 2, last)))
    }

    #[test]
    fn a_default_route_leads_everywhere_and_its_first_hop_counts() {
        let one =
            way(&route(vec![RouteAttribute::Oif(3), gateway(1), RouteAttribute::Priority(100)])).unwrap();
        let everywhere: IpNet = "0.0.0.0/0".parse().unwrap();
        let wanted = Way { ifindex: 3, prefix: everywhere, metric: 100, gateway: "192.0.2.1".parse().ok() };
        assert_eq!(one, wanted);
        let hop = |ifindex, last| {
            let mut hop = RouteNextHop::default();
            (hop.interface_index, hop.attributes) = (ifindex, vec![gateway(last)]);
            hop
        };
        let two = way(&route(vec![RouteAttribute::MultiPath(vec![hop(5, 7), hop(3, 1)])])).unwrap();
        assert_eq!((two.ifindex, two.gateway), (5, "192.0.2.7".parse().ok()));
    }

    #[test]
    fn what_is_no_way_out_is_left_out() {
        let mut local = route(vec![RouteAttribute::Oif(3)]);
        local.header.table = 255; // RT_TABLE_LOCAL
        let mut closed = route(vec![RouteAttribute::Oif(3)]);
        closed.header.kind = RouteType::BlackHole;
        let near = RouteAttribute::Destination(RouteAddress::Inet(Ipv4Addr::new(169, 254, 0, 0)));
        let mut near = route(vec![RouteAttribute::Oif(3), near]);
        near.header.destination_prefix_length = 16;
        assert_eq!([local, closed, near].iter().find_map(way), None);
    }
}
