//! ICMP and ICMPv6 errors about packets that cannot go on.

use super::{Answer, HOPS, is_host_v4, is_host_v6, stations};
use crate::parse::{Fragment, Net, Parsed, V4Flow, V6Flow};
use crate::{MacAddr, icmp, icmpv6, ipv4, ipv6, proto};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Bytes of an IPv4 error at most, header included (RFC 1812 section 4.3.2.3).
const MAX_V4: usize = 576;
/// Internetwork control: what routers send errors with (RFC 1812 section 4.3.2.5).
const TOS_CONTROL: u8 = 0xc0;

/// Why a packet cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Problem {
    /// It is out of hops.
    HopsExceeded,
    /// It does not fit the next link and may not be fragmented.
    TooBig {
        /// The longest IP packet that would fit, in bytes.
        mtu: u16,
    },
    /// It cannot reach its destination.
    Unreachable(Unreachable),
}

/// Why a destination cannot be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unreachable {
    /// No route leads there.
    Network,
    /// The host does not answer.
    Host,
    /// Nobody listens on the port.
    Port,
    /// An administrator forbids it.
    Prohibited,
}

impl Problem {
    fn v4(self) -> (u8, u8, [u8; 4]) {
        match self {
            Problem::HopsExceeded => (icmp::TIME_EXCEEDED, icmp::TTL_EXCEEDED, [0; 4]),
            Problem::TooBig { mtu } => {
                let [high, low] = mtu.to_be_bytes();
                (icmp::UNREACHABLE, icmp::FRAGMENTATION_NEEDED, [0, 0, high, low])
            }
            Problem::Unreachable(why) => {
                let code = match why {
                    Unreachable::Network => icmp::NET_UNREACHABLE,
                    Unreachable::Host => icmp::HOST_UNREACHABLE,
                    Unreachable::Port => icmp::PORT_UNREACHABLE,
                    Unreachable::Prohibited => icmp::PROHIBITED,
                };
                (icmp::UNREACHABLE, code, [0; 4])
            }
        }
    }

    fn v6(self) -> (u8, u8, [u8; 4]) {
        match self {
            Problem::HopsExceeded => (icmpv6::TIME_EXCEEDED, icmpv6::HOP_LIMIT_EXCEEDED, [0; 4]),
            Problem::TooBig { mtu } => (icmpv6::TOO_BIG, 0, u32::from(mtu).to_be_bytes()),
            Problem::Unreachable(why) => {
                let code = match why {
                    Unreachable::Network => icmpv6::NO_ROUTE,
                    Unreachable::Host => icmpv6::ADDRESS_UNREACHABLE,
                    Unreachable::Port => icmpv6::PORT_UNREACHABLE,
                    Unreachable::Prohibited => icmpv6::PROHIBITED,
                };
                (icmpv6::UNREACHABLE, code, [0; 4])
            }
        }
    }
}

/// The error to the sender of `frame`, from our address `from`, quoting as much of the packet as the RFCs allow.
///
/// None is sent about an error, about a later fragment, to or about a group or a broadcast, or to an address that no
/// single host has (RFC 1122 section 3.2.2, RFC 4443 section 2.4 e; of the latter's leave to report "too big" about
/// groups no use is made, because groups are not forwarded). `from` must be of the packet's family.
pub fn error(frame: &[u8], parsed: &Parsed, problem: Problem, from: IpAddr, out: &mut [u8]) -> Option<usize> {
    let (ours, theirs) = stations(frame)?;
    let packet = frame.get(parsed.l3.into()..parsed.end.into())?;
    match (parsed.net, from) {
        (Net::V4(flow), IpAddr::V4(from)) if may_answer_v4(&flow, ours) => {
            let answer = Answer::link(frame, parsed, theirs, ours, out)?;
            error_v4(answer, packet, flow.src, from, problem)
        }
        (Net::V6(flow), IpAddr::V6(from)) if may_answer_v6(&flow, ours) => {
            let answer = Answer::link(frame, parsed, theirs, ours, out)?;
            error_v6(answer, packet, flow.src, from, problem)
        }
        _ => None,
    }
}

fn error_v4(
    answer: Answer<'_>,
    packet: &[u8],
    to: Ipv4Addr,
    from: Ipv4Addr,
    problem: Problem,
) -> Option<usize> {
    let quote = &packet[..packet.len().min(MAX_V4 - ipv4::HEADER_LEN - icmp::HEADER_LEN)];
    let (kind, code, rest) = problem.v4();
    let header = ipv4::Repr {
        src: from,
        dst: to,
        protocol: proto::ICMP,
        tos: TOS_CONTROL,
        ttl: HOPS,
        dont_fragment: true,
        payload_len: (icmp::HEADER_LEN + quote.len()) as u16,
    };
    let message = icmp::Repr { kind, code, rest }.emit(quote);
    answer.then(&header.emit())?.then(&message)?.then(quote)?.done()
}

fn error_v6(
    answer: Answer<'_>,
    packet: &[u8],
    to: Ipv6Addr,
    from: Ipv6Addr,
    problem: Problem,
) -> Option<usize> {
    let room = usize::from(ipv6::MIN_MTU) - ipv6::HEADER_LEN - icmpv6::HEADER_LEN;
    let quote = &packet[..packet.len().min(room)];
    let (kind, code, rest) = problem.v6();
    let header = ipv6::Repr {
        src: from,
        dst: to,
        next_header: proto::ICMPV6,
        traffic_class: TOS_CONTROL,
        flow_label: 0,
        hop_limit: HOPS,
        payload_len: (icmpv6::HEADER_LEN + quote.len()) as u16,
    };
    let message = icmpv6::Repr { kind, code, rest }.emit(from, to, quote);
    answer.then(&header.emit())?.then(&message)?.then(quote)?.done()
}

fn may_answer_v4(flow: &V4Flow, station: MacAddr) -> bool {
    let is_error = flow.proto == proto::ICMP && icmp::is_error((flow.dport >> 8) as u8);
    !station.is_multicast()
        && flow.fragment != Fragment::Later
        && !is_error
        && is_host_v4(flow.src)
        && !flow.dst.is_multicast()
        && !flow.dst.is_broadcast()
}

fn may_answer_v6(flow: &V6Flow, station: MacAddr) -> bool {
    let kind = (flow.dport >> 8) as u8;
    let is_icmp = flow.proto == proto::ICMPV6;
    // A later fragment hides what kind of message it belongs to: it may be an error's.
    let is_error =
        is_icmp && (flow.fragment == Fragment::Later || icmpv6::is_error(kind) || kind == icmpv6::REDIRECT);
    !station.is_multicast() && !is_error && is_host_v6(flow.src) && !flow.dst.is_multicast()
}
