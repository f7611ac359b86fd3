//! ICMP errors: the error itself gets other addresses, and the packet that it quotes gets others too.

use super::{CannotRewrite, Change, Rewrite, transport};
use crate::bytes::{array, be16, put16};
use crate::checksum::{self, Sum};
use crate::parse::{Fragment, Net, Parsed, parse_quoted};
use crate::{Malformed, ethernet, icmp, icmpv6, ipv4, ipv6, proto};

/// Bytes of a quoted transport header that a rewrite may touch: up to the end of TCP's checksum.
const TOUCHED: usize = 18;

/// Rewrites an ICMP error as `outer` says, and the packet that it quotes as `quoted` says.
///
/// `quoted` is about the quotation's own source and destination: those of the packet that the error answers. Its
/// checksums are kept right as far as the quotation reaches; one cut before its TCP checksum has only its ports changed.
///
/// # Errors
/// See [`CannotRewrite`]; the frame is as it was.
pub fn rewrite_error(
    frame: &mut [u8],
    parsed: &Parsed,
    outer: &Change,
    quoted: &Change,
) -> Result<(), CannotRewrite> {
    let (l3, l4, end) = (usize::from(parsed.l3), usize::from(parsed.l4), usize::from(parsed.end));
    let ethertype = ethertype_of(parsed)?;
    let outer = Rewrite::new(&parsed.net, outer)?;
    let message = frame.get_mut(l4..end).ok_or(CannotRewrite::Truncated)?;
    let (header, quotation) =
        message.split_first_chunk_mut::<{ icmp::HEADER_LEN }>().ok_or(CannotRewrite::NotAnError)?;
    let inner = parse_quoted(ethertype, quotation).map_err(CannotRewrite::Quotation)?;
    let inner_l4 = usize::from(inner.l4);
    let sent_end = end_as_sent(&inner, quotation)?;
    let rewrite = Rewrite::new(&inner.net, quoted)?;

    let reach = quotation.len().min(inner_l4 + TOUCHED);
    let before = checksum::sum(&quotation[..reach]);
    if !rewrite.apply(quotation, inner.l3.into(), inner_l4, sent_end) {
        return Err(CannotRewrite::Quotation(Malformed::Truncated));
    }
    let after = checksum::sum(&quotation[..reach]);
    // Both regions begin at an even offset of the message, so their sums are parts of the message's sum.
    let delta = Sum::ZERO.add16(!before.fold()).add(after).fold();
    let checksum = transport::updated(array(header, icmp::CHECKSUM_AT), delta);
    put16(header, icmp::CHECKSUM_AT, checksum);
    // What this asks for was there a moment ago.
    if outer.apply(frame, l3, l4, end) { Ok(()) } else { Err(CannotRewrite::Truncated) }
}

/// The Ethernet type of what an error quotes: that of the error.
fn ethertype_of(parsed: &Parsed) -> Result<u16, CannotRewrite> {
    let (is_error, fragment, ethertype) = match parsed.net {
        Net::V4(flow) => {
            let is_error = flow.proto == proto::ICMP && icmp::is_error((flow.dport >> 8) as u8);
            (is_error, flow.fragment, ethernet::IPV4)
        }
        Net::V6(flow) => {
            let is_error = flow.proto == proto::ICMPV6 && icmpv6::is_error((flow.dport >> 8) as u8);
            (is_error, flow.fragment, ethernet::IPV6)
        }
        Net::Arp | Net::Other(_) => return Err(CannotRewrite::NotIp),
    };
    // A later fragment has no type; it could pass for any.
    if is_error && fragment != Fragment::Later { Ok(ethertype) } else { Err(CannotRewrite::NotAnError) }
}

/// Where the quoted packet ended when it was sent, counted from its first byte: an SCTP checksum covers all of it.
fn end_as_sent(inner: &Parsed, quotation: &[u8]) -> Result<usize, CannotRewrite> {
    let truncated = CannotRewrite::Quotation(Malformed::Truncated);
    match inner.net {
        Net::V4(_) => {
            let header: &[u8; ipv4::HEADER_LEN] = quotation.first_chunk().ok_or(truncated)?;
            Ok(be16(header, ipv4::TOTAL_LEN_AT).into())
        }
        _ => {
            let header: &[u8; ipv6::HEADER_LEN] = quotation.first_chunk().ok_or(truncated)?;
            Ok(ipv6::HEADER_LEN + usize::from(be16(header, ipv6::PAYLOAD_LEN_AT)))
        }
    }
}
