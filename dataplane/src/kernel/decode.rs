//! From netlink messages to events of the view.

use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState as Nud,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use penstock_wire::MacAddr;

use super::view::{Event, Link, Neighbour, NeighbourState};

/// What a message says, if it is of our concern.
pub(super) fn event(message: &RouteNetlinkMessage) -> Option<Event> {
    match message {
        RouteNetlinkMessage::NewLink(link) => self::link(link).map(|(index, link)| Event::Link(index, link)),
        // A bridge says that a port left it with a message of its own family; the link itself stays.
        RouteNetlinkMessage::DelLink(link) if link.header.interface_family == AddressFamily::Unspec => {
            Some(Event::LinkGone(link.header.index))
        }
        RouteNetlinkMessage::NewAddress(message) => {
            let address = self::address(message)?;
            let index = message.header.index;
            Some(if usable(message) {
                Event::Address(index, address)
            } else {
                Event::AddressGone(index, address)
            })
        }
        RouteNetlinkMessage::DelAddress(message) => {
            self::address(message).map(|address| Event::AddressGone(message.header.index, address))
        }
        RouteNetlinkMessage::NewNeighbour(message) => {
            let address = neighbour_address(message)?;
            let index = message.header.ifindex;
            Some(match neighbour(message) {
                Some(neighbour) => Event::Neighbour(index, address, neighbour),
                None => Event::NeighbourGone(index, address),
            })
        }
        RouteNetlinkMessage::DelNeighbour(message) => {
            neighbour_address(message).map(|address| Event::NeighbourGone(message.header.ifindex, address))
        }
        RouteNetlinkMessage::NewRoute(_)
        | RouteNetlinkMessage::DelRoute(_)
        | RouteNetlinkMessage::NewRule(_)
        | RouteNetlinkMessage::DelRule(_) => Some(Event::Route),
        _ => None,
    }
}

/// A link's index and facts; `None` for messages about a bridge's ports or a wireless event.
pub(super) fn link(message: &LinkMessage) -> Option<(u32, Link)> {
    if message.header.interface_family != AddressFamily::Unspec {
        return None;
    }
    let flags = message.header.flags;
    let (up, carrier) = (flags.contains(LinkFlags::Up), flags.contains(LinkFlags::LowerUp));
    let mut link = Link { name: String::new(), mac: None, mtu: 0, up, carrier };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Address(bytes) => link.mac = mac(bytes),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            _ => {}
        }
    }
    (!link.name.is_empty()).then_some((message.header.index, link))
}

/// The interface's own address: of a point-to-point link, IFA_ADDRESS is the other end's.
pub(super) fn address(message: &AddressMessage) -> Option<IpNet> {
    let find = |local| {
        message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Local(address) if local => Some(*address),
            AddressAttribute::Address(address) if !local => Some(*address),
            _ => None,
        })
    };
    IpNet::new(find(true).or_else(|| find(false))?, message.header.prefix_len).ok()
}

/// Whether duplicate address detection has found nothing against it.
fn usable(message: &AddressMessage) -> bool {
    let wide = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Flags(flags) => Some(*flags),
        _ => None,
    });
    let flags = wide.unwrap_or(AddressFlags::from_bits_retain(u32::from(message.header.flags.bits())));
    let optimistic = flags.contains(AddressFlags::Optimistic);
    !flags.contains(AddressFlags::Dadfailed) && (optimistic || !flags.contains(AddressFlags::Tentative))
}

/// The address that a neighbour message is about; `None` for forwarding entries of bridges and tunnels, for proxies and
/// for multicast.
fn neighbour_address(message: &NeighbourMessage) -> Option<IpAddr> {
    if message.header.flags.contains(NeighbourFlags::Proxy) {
        return None;
    }
    let address = message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => Some(IpAddr::V4(*v4)),
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => Some(IpAddr::V6(*v6)),
        _ => None,
    });
    address.filter(|address| !address.is_multicast())
}

fn neighbour(message: &NeighbourMessage) -> Option<Neighbour> {
    let state = match message.header.state {
        Nud::Incomplete => NeighbourState::Incomplete,
        Nud::Reachable => NeighbourState::Reachable,
        Nud::Stale => NeighbourState::Stale,
        Nud::Delay | Nud::Probe => NeighbourState::Probing,
        Nud::Failed => NeighbourState::Failed,
        Nud::Permanent | Nud::Noarp => NeighbourState::Permanent,
        _ => return None,
    };
    let mac = message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::LinkLayerAddress(bytes) => mac(bytes),
        _ => None,
    });
    Some(Neighbour { mac, state })
}

fn mac(bytes: &[u8]) -> Option<MacAddr> {
    bytes.try_into().ok().map(MacAddr)
}

#[cfg(test)]
mod tests {
    use super::*;
    use netlink_packet_route::address::AddressHeaderFlags;

    fn address_message(flags: AddressHeaderFlags, attributes: Vec<AddressAttribute>) -> RouteNetlinkMessage {
        let mut message = AddressMessage::default();
        message.header.index = 3;
        message.header.prefix_len = 24;
        message.header.flags = flags;
        message.attributes = attributes;
        RouteNetlinkMessage::NewAddress(message)
    }

    #[test]
    fn a_point_to_point_link_has_its_local_address() {
        let (local, far): (IpAddr, IpAddr) = ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
        let message = address_message(
            AddressHeaderFlags::empty(),
            vec![AddressAttribute::Address(far), AddressAttribute::Local(local)],
        );
        assert_eq!(event(&message), Some(Event::Address(3, "10.0.0.1/24".parse().unwrap())));
    }

    #[test]
    fn an_address_counts_once_no_duplicate_is_found() {
        let of = |flags| {
            let address = "10.0.0.1".parse().unwrap();
            event(&address_message(flags, vec![AddressAttribute::Address(address)])).unwrap()
        };
        assert!(matches!(of(AddressHeaderFlags::Permanent), Event::Address(..)));
        assert!(matches!(of(AddressHeaderFlags::Tentative), Event::AddressGone(..)));
        assert!(matches!(of(AddressHeaderFlags::Dadfailed), Event::AddressGone(..)));
        assert!(matches!(
            of(AddressHeaderFlags::Tentative | AddressHeaderFlags::Optimistic),
            Event::Address(..)
        ));
    }

    #[test]
    fn forwarding_entries_and_multicast_are_no_neighbours() {
        let mut message = NeighbourMessage::default();
        message.header.state = Nud::Reachable;
        message.attributes = vec![NeighbourAttribute::LinkLayerAddress(vec![2, 0, 0, 0, 0, 1])];
        assert_eq!(event(&RouteNetlinkMessage::NewNeighbour(message.clone())), None);
        let group = NeighbourAddress::Inet6("ff02::1".parse().unwrap());
        message.attributes.push(NeighbourAttribute::Destination(group));
        assert_eq!(event(&RouteNetlinkMessage::NewNeighbour(message)), None);
    }

    #[test]
    fn a_port_that_leaves_a_bridge_is_no_link_that_goes() {
        let mut message = LinkMessage::default();
        message.header.index = 3;
        assert_eq!(event(&RouteNetlinkMessage::DelLink(message.clone())), Some(Event::LinkGone(3)));
        message.header.interface_family = AddressFamily::Bridge;
        assert_eq!(event(&RouteNetlinkMessage::DelLink(message)), None);
    }
}
