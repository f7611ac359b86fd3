//! Answers to pings.

use super::{Answer, HOPS, is_host_v4, is_host_v6, stations};
use crate::parse::{Fragment, Net, Parsed, V4Flow, V6Flow};
use crate::{checksum, ecn, icmp, icmpv6, ipv4, ipv6, proto};

/// The reply to an ICMP or ICMPv6 echo request for one host (RFC 792, RFC 4443 section 4.2).
///
/// A request with a wrong checksum, to a group, or in fragments has none.
pub fn echo(frame: &[u8], parsed: &Parsed, out: &mut [u8]) -> Option<usize> {
    let (ours, theirs) = stations(frame).filter(|(dst, _)| !dst.is_multicast())?;
    let message = frame.get(parsed.l4.into()..parsed.end.into())?;
    let answer = Answer::link(frame, parsed, theirs, ours, out)?;
    match parsed.net {
        Net::V4(flow) if is_request_v4(&flow, message) => {
            let header = ipv4::Repr {
                src: flow.dst,
                dst: flow.src,
                protocol: proto::ICMP,
                tos: flow.tos & !ecn::MASK,
                ttl: HOPS,
                dont_fragment: true,
                payload_len: message.len() as u16,
            };
            answer
                .then(&header.emit())?
                .then(&retyped(message, icmp::ECHO_REPLY)?)?
                .then(&message[4..])?
                .done()
        }
        Net::V6(flow) if is_request_v6(&flow, message) => {
            let header = ipv6::Repr {
                src: flow.dst,
                dst: flow.src,
                next_header: proto::ICMPV6,
                traffic_class: flow.tclass & !ecn::MASK,
                flow_label: flow.flow_label,
                hop_limit: HOPS,
                payload_len: message.len() as u16,
            };
            answer
                .then(&header.emit())?
                .then(&retyped(message, icmpv6::ECHO_REPLY)?)?
                .then(&message[4..])?
                .done()
        }
        _ => None,
    }
}

fn is_request_v4(flow: &V4Flow, message: &[u8]) -> bool {
    flow.proto == proto::ICMP
        && flow.dport == u16::from(icmp::ECHO_REQUEST) << 8
        && flow.fragment == Fragment::Whole
        && is_host_v4(flow.src)
        && is_host_v4(flow.dst)
        && checksum::verify(message)
}

fn is_request_v6(flow: &V6Flow, message: &[u8]) -> bool {
    flow.proto == proto::ICMPV6
        && flow.dport == u16::from(icmpv6::ECHO_REQUEST) << 8
        && flow.fragment == Fragment::Whole
        && is_host_v6(flow.src)
        && is_host_v6(flow.dst)
        && icmpv6::sum(flow.src, flow.dst, message).is_valid()
}

/// The first four bytes of the message with another type; swapped addresses leave the sum as it is.
fn retyped(message: &[u8], kind: u8) -> Option<[u8; 4]> {
    let [old_kind, code, high, low] = *message.first_chunk::<4>()?;
    let old = u16::from_be_bytes([old_kind, code]);
    let new = u16::from_be_bytes([kind, code]);
    let [high, low] = checksum::update16(u16::from_be_bytes([high, low]), old, new).to_be_bytes();
    Some([kind, code, high, low])
}
