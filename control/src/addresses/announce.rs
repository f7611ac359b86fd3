//! Says on a link that addresses are here: the kernel answers ARP and NDP for them (proxy neighbours, `ip neigh show proxy`),
//! and those who know another station for them are told of the change.
//!
//! The kernel does not own the addresses, so packets to them go where its routes say: into the dataplane. It answers only
//! where it forwards, and only for what it does not reach by the same link.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, OwnedFd};

use futures::TryStreamExt;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::link::{LinkAttribute, LinkMessage};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage,
};
use netlink_packet_route::route::RouteProtocol;
use nix::sys::socket::{self, LinkAddr, MsgFlags, SockFlag, SockType};
use penstock_wire::{MacAddr, arp, ethernet, ipv6, ndp, proto};
use thiserror::Error;

use super::pool::Family;

/// How our entries are told from everybody else's (`NDA_PROTOCOL`), as the dataplane's routes are.
const PROTOCOL: RouteProtocol = RouteProtocol::Other(112);

/// What a link must be set to so that the kernel answers for others, at once (`Documentation/networking/ip-sysctl.rst`).
const SETTINGS: [(Family, &str, &str); 3] = [
    (Family::V4, "ipv4/neigh/{}/proxy_delay", "0"),
    (Family::V6, "ipv6/neigh/{}/proxy_delay", "0"),
    (Family::V6, "ipv6/conf/{}/proxy_ndp", "1"),
];

/// Why an address is not announced.
#[derive(Debug, Error)]
pub enum AnnounceError {
    /// There is no such link.
    #[error("there is no interface {0}: is it the node's uplink?")]
    NoInterface(String),
    /// The kernel refused.
    #[error(
        "{what}: {source}; announcing takes CAP_NET_ADMIN and CAP_NET_RAW in the node's network namespace"
    )]
    Kernel {
        /// What was to be done.
        what: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The kernel answers for nobody else there.
    #[error(
        "the kernel does not forward {family} on {interface}, so it answers for no address but its own: sysctl -w {setting}=1"
    )]
    NotForwarding {
        /// The link.
        interface: String,
        /// The family.
        family: Family,
        /// The setting that would do.
        setting: String,
    },
}

/// Announces addresses on one link.
pub struct Announcer {
    handle: rtnetlink::Handle,
    interface: String,
    index: u32,
    mac: MacAddr,
    link: LinkAddr,
    /// Sends frames as they are; receives none.
    wire: OwnedFd,
    announced: BTreeSet<IpAddr>,
}

impl Announcer {
    /// For the link of this name; what a former agent announced there is taken over.
    ///
    /// # Errors
    /// [`AnnounceError`].
    pub async fn on(handle: rtnetlink::Handle, interface: &str) -> Result<Announcer, AnnounceError> {
        let missing = || AnnounceError::NoInterface(interface.to_owned());
        let mut links = handle.link().get().match_name(interface.to_owned()).execute();
        let message = links.try_next().await.ok().flatten().ok_or_else(missing)?;
        let mac = station(&message).ok_or_else(missing)?;
        let link = link_address(interface).ok_or_else(missing)?;
        let wire = socket::socket(socket::AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None)
            .map_err(|errno| kernel("opening a packet socket", errno.into()))?;
        let index = message.header.index;
        let mut announcer = Announcer {
            handle,
            interface: interface.to_owned(),
            index,
            mac,
            link,
            wire,
            announced: BTreeSet::new(),
        };
        announcer.announced = announcer.entries().await?;
        Ok(announcer)
    }

    /// What is announced.
    #[must_use]
    pub fn announced(&self) -> &BTreeSet<IpAddr> {
        &self.announced
    }

    /// Announces exactly `wanted` from now on. What could not be done is tried again by the next call.
    ///
    /// # Errors
    /// The first [`AnnounceError`]; everything that can be done is done all the same.
    pub async fn announce(&mut self, wanted: &BTreeSet<IpAddr>) -> Result<(), AnnounceError> {
        let mut outcome = Ok(());
        for address in self.announced.difference(wanted).copied().collect::<Vec<_>>() {
            let withdrawn = self.withdraw(address).await;
            outcome = outcome.and(withdrawn);
        }
        for address in wanted.difference(&self.announced.clone()).copied() {
            let begun = self.begin(address).await;
            outcome = outcome.and(begun);
        }
        outcome
    }

    /// Tells everybody on the link once more where the addresses are: for those who missed it.
    ///
    /// # Errors
    /// The kernel's.
    pub fn repeat(&self) -> Result<(), AnnounceError> {
        self.announced.iter().try_for_each(|&address| self.tell(address))
    }

    async fn begin(&mut self, address: IpAddr) -> Result<(), AnnounceError> {
        self.prepare(Family::of(address))?;
        let mut request =
            self.handle.neighbours().add(self.index, address).flags(NeighbourFlags::Proxy).replace();
        request.message_mut().attributes.push(NeighbourAttribute::Protocol(PROTOCOL));
        request.execute().await.map_err(|error| self.refused(&format!("announcing {address}"), error))?;
        self.announced.insert(address);
        self.tell(address)
    }

    async fn withdraw(&mut self, address: IpAddr) -> Result<(), AnnounceError> {
        let mut message = NeighbourMessage::default();
        message.header.family = family(address);
        message.header.ifindex = self.index;
        message.header.flags = NeighbourFlags::Proxy;
        message.attributes.push(NeighbourAttribute::Destination(destination(address)));
        match self.handle.neighbours().del(message).execute().await {
            Ok(()) => {}
            // Somebody else took it away: so it is gone.
            Err(rtnetlink::Error::NetlinkError(error)) if error.raw_code() == -nix::libc::ENOENT => {}
            Err(error) => return Err(self.refused(&format!("no longer announcing {address}"), error)),
        }
        self.announced.remove(&address);
        Ok(())
    }

    /// What of ours is announced on the link.
    async fn entries(&self) -> Result<BTreeSet<IpAddr>, AnnounceError> {
        let mut found = BTreeSet::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut entries = self.handle.neighbours().get().proxies().set_address_family(family).execute();
            while let Some(entry) =
                entries.try_next().await.map_err(|error| self.refused("listing what is announced", error))?
            {
                let ours = entry.attributes.contains(&NeighbourAttribute::Protocol(PROTOCOL));
                if ours && entry.header.ifindex == self.index {
                    found.extend(entry.attributes.iter().find_map(address_of));
                }
            }
        }
        Ok(found)
    }

    /// Has the kernel answer for others on the link.
    fn prepare(&self, family: Family) -> Result<(), AnnounceError> {
        let word = if family == Family::V4 { "ipv4" } else { "ipv6" };
        let forwarding = format!("/proc/sys/net/{word}/conf/{}/forwarding", self.interface);
        let text = fs::read_to_string(&forwarding).map_err(|error| kernel(&forwarding, error))?;
        if text.trim() == "0" {
            let setting = format!("net.{word}.conf.{}.forwarding", self.interface.replace('.', "/"));
            return Err(AnnounceError::NotForwarding { interface: self.interface.clone(), family, setting });
        }
        for (_, place, value) in SETTINGS.into_iter().filter(|(of, ..)| *of == family) {
            let path = format!("/proc/sys/net/{}", place.replace("{}", &self.interface));
            if fs::read_to_string(&path).is_ok_and(|text| text.trim() == value) {
                continue;
            }
            fs::write(&path, value).map_err(|error| kernel(&path, error))?;
        }
        Ok(())
    }

    /// Tells everybody on the link where an address is.
    fn tell(&self, address: IpAddr) -> Result<(), AnnounceError> {
        let frame = match address {
            IpAddr::V4(address) => announcement_v4(address, self.mac),
            IpAddr::V6(address) => announcement_v6(address, self.mac),
        };
        socket::sendto(self.wire.as_raw_fd(), &frame, &self.link, MsgFlags::empty())
            .map(drop)
            .map_err(|errno| kernel(&format!("telling {} of {address}", self.interface), errno.into()))
    }

    fn refused(&self, what: &str, error: rtnetlink::Error) -> AnnounceError {
        let source = match error {
            rtnetlink::Error::NetlinkError(message) => message.to_io(),
            other => io::Error::other(other),
        };
        kernel(&format!("{}: {what}", self.interface), source)
    }
}

fn kernel(what: &str, source: io::Error) -> AnnounceError {
    AnnounceError::Kernel { what: what.to_owned(), source }
}

/// An Ethernet interface's own address.
fn station(link: &LinkMessage) -> Option<MacAddr> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Address(bytes) => Some(MacAddr(bytes.as_slice().try_into().ok()?)),
        _ => None,
    })
}

/// The interface as packet sockets know it.
fn link_address(interface: &str) -> Option<LinkAddr> {
    let mut all = nix::ifaddrs::getifaddrs().ok()?.filter(|it| it.interface_name == interface);
    all.find_map(|it| it.address?.as_link_addr().copied())
}

fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

fn destination(address: IpAddr) -> NeighbourAddress {
    match address {
        IpAddr::V4(v4) => NeighbourAddress::Inet(v4),
        IpAddr::V6(v6) => NeighbourAddress::Inet6(v6),
    }
}

fn address_of(attribute: &NeighbourAttribute) -> Option<IpAddr> {
    match attribute {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => Some((*v4).into()),
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => Some((*v6).into()),
        _ => None,
    }
}

/// An announcement of an IPv4 address (RFC 5227 section 2.3).
fn announcement_v4(address: Ipv4Addr, mac: MacAddr) -> Vec<u8> {
    let message = arp::Repr {
        operation: arp::REQUEST,
        sender_mac: mac,
        sender: address,
        target_mac: MacAddr::ZERO,
        target: address,
    };
    [&link_header(MacAddr::BROADCAST, mac, ethernet::ARP)[..], &message.emit()].concat()
}

/// An unsolicited advertisement of an IPv6 address that overrides what others know (RFC 4861 section 7.2.6).
fn announcement_v6(address: Ipv6Addr, mac: MacAddr) -> Vec<u8> {
    let header = ipv6::Repr {
        src: address,
        dst: ndp::ALL_NODES,
        next_header: proto::ICMPV6,
        traffic_class: 0,
        flow_label: 0,
        hop_limit: ndp::HOP_LIMIT,
        payload_len: ndp::Repr::LEN as u16,
    };
    let message = ndp::Repr { kind: ndp::ADVERTISEMENT, flags: ndp::OVERRIDE, target: address, mac };
    let link = link_header(ndp::ALL_NODES_MAC, mac, ethernet::IPV6);
    [&link[..], &header.emit(), &message.emit(address, ndp::ALL_NODES)].concat()
}

fn link_header(to: MacAddr, from: MacAddr, ethertype: u16) -> Vec<u8> {
    [&to.0[..], &from.0, &ethertype.to_be_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use penstock_wire::arp::Arp;
    use penstock_wire::icmpv6;
    use penstock_wire::ndp::Neighbour;
    use penstock_wire::parse::{Net, parse};

    const MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 7]);

    #[test]
    fn an_ipv4_announcement_is_to_all_and_about_itself() {
        let address = Ipv4Addr::new(192, 0, 2, 7);
        let frame = announcement_v4(address, MAC);
        assert_eq!(frame[..6], MacAddr::BROADCAST.0);
        let parsed = parse(&frame).unwrap();
        assert_eq!(parsed.net, Net::Arp);
        let message = Arp::new_checked(&frame[parsed.l3.into()..]).unwrap();
        assert_eq!((message.sender(), message.target(), message.sender_mac()), (address, address, MAC));
    }

    #[test]
    fn an_ipv6_announcement_is_sound_and_overrides() {
        let address: Ipv6Addr = "2001:db8::7".parse().unwrap();
        let frame = announcement_v6(address, MAC);
        let parsed = parse(&frame).unwrap();
        let Net::V6(flow) = parsed.net else { panic!("not IPv6: {:?}", parsed.net) };
        let message = &frame[parsed.l4.into()..parsed.end.into()];
        assert!(icmpv6::sum(flow.src, flow.dst, message).is_valid() && flow.hop_limit == ndp::HOP_LIMIT);
        let neighbour = Neighbour::new_checked(message).unwrap();
        assert_eq!((neighbour.target(), neighbour.flags()), (address, ndp::OVERRIDE));
        assert_eq!(neighbour.link_address(ndp::OPTION_TARGET), Some(MAC));
    }
}
