//! Answers to "who has this address?".

use super::{Answer, stations};
use crate::arp::{self, Arp};
use crate::parse::{Fragment, Net, Parsed};
use crate::{MacAddr, icmpv6, ipv6, ndp, proto};

/// The ARP reply that gives `mac` for the address asked for (RFC 826).
///
/// Announcements (sender and target are one) have none; probes (RFC 5227: no sender) do, which defends the address.
pub fn arp(frame: &[u8], parsed: &Parsed, mac: MacAddr, out: &mut [u8]) -> Option<usize> {
    if parsed.net != Net::Arp {
        return None;
    }
    let (_, theirs) = stations(frame)?;
    let request = Arp::new_checked(frame.get(parsed.l3.into()..)?).ok()?;
    let asks = request.operation() == arp::REQUEST
        && request.sender_mac().is_unicast()
        && request.sender() != request.target();
    if !asks {
        return None;
    }
    let reply = arp::Repr {
        operation: arp::REPLY,
        sender_mac: mac,
        sender: request.target(),
        target_mac: request.sender_mac(),
        target: request.sender(),
    };
    Answer::link(frame, parsed, theirs, mac, out)?.then(&reply.emit())?.done()
}

/// The advertisement that gives `mac` for the address solicited (RFC 4861 section 7.2.4); `is_router` sets its flag.
///
/// The solicitation must be sound by section 7.1.1. One without a sender (RFC 4862: is the address taken?) is
/// answered to all nodes.
pub fn advertisement(
    frame: &[u8],
    parsed: &Parsed,
    mac: MacAddr,
    is_router: bool,
    out: &mut [u8],
) -> Option<usize> {
    let Net::V6(flow) = parsed.net else { return None };
    let (_, theirs) = stations(frame)?;
    let message = frame.get(parsed.l4.into()..parsed.end.into())?;
    let is_sound = flow.proto == proto::ICMPV6
        && flow.fragment == Fragment::Whole
        && flow.hop_limit == ndp::HOP_LIMIT
        && icmpv6::sum(flow.src, flow.dst, message).is_valid();
    if !is_sound || flow.src.is_multicast() {
        return None;
    }
    let solicitation = ndp::Neighbour::new_checked(message).ok()?;
    if solicitation.kind() != ndp::SOLICITATION {
        return None;
    }
    let target = solicitation.target();
    let router = if is_router { ndp::ROUTER } else { 0 };
    let (to, station, flags) = if flow.src.is_unspecified() {
        let is_probe = flow.dst == ndp::solicited_node(target)
            && solicitation.link_address(ndp::OPTION_SOURCE).is_none();
        if !is_probe {
            return None;
        }
        (ndp::ALL_NODES, ndp::ALL_NODES_MAC, router | ndp::OVERRIDE)
    } else {
        (flow.src, theirs, router | ndp::OVERRIDE | ndp::SOLICITED)
    };
    let header = ipv6::Repr {
        src: target,
        dst: to,
        next_header: proto::ICMPV6,
        traffic_class: 0,
        flow_label: 0,
        hop_limit: ndp::HOP_LIMIT,
        payload_len: ndp::Repr::LEN as u16,
    };
    let reply = ndp::Repr { kind: ndp::ADVERTISEMENT, flags, target, mac };
    Answer::link(frame, parsed, station, mac, out)?
        .then(&header.emit())?
        .then(&reply.emit(target, to))?
        .done()
}
