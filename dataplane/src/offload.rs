//! Work that a sender left for a network card: finishing a transport checksum.
//!
//! A pod on a veth whose transmit checksum offload is on hands over packets whose checksum field holds the folded sum of
//! the pseudo header only (`CHECKSUM_PARTIAL`, `linux/skbuff.h`). Such a field says so itself, and is summed anew; a sound
//! packet that has that value by chance gets the same checksum again.

use penstock_wire::checksum;
use penstock_wire::parse::{Fragment, Net, Parsed};
use penstock_wire::{icmpv6, proto, tcp, udp};

/// Finishes the transport checksum of a whole packet if its sender left that to a card; tells whether it did.
pub fn finish_checksum(frame: &mut [u8], parsed: &Parsed) -> bool {
    let (l4, end) = (usize::from(parsed.l4), usize::from(parsed.end));
    let Some(segment) = frame.get_mut(l4..end) else { return false };
    let (protocol, pseudo) = match parsed.net {
        Net::V4(flow) if flow.fragment == Fragment::Whole => {
            (flow.proto, checksum::pseudo_v4(flow.src, flow.dst, flow.proto, segment.len() as u16))
        }
        Net::V6(flow) if flow.fragment == Fragment::Whole => {
            (flow.proto, checksum::pseudo_v6(flow.src, flow.dst, flow.proto, segment.len() as u32))
        }
        _ => return false,
    };
    let at = match protocol {
        proto::TCP => tcp::CHECKSUM_AT,
        proto::UDP => udp::CHECKSUM_AT,
        proto::ICMPV6 => icmpv6::CHECKSUM_AT,
        _ => return false,
    };
    let Some(field) = segment.get(at..at + 2) else { return false };
    if [field[0], field[1]] != pseudo.fold().to_be_bytes() {
        return false;
    }
    segment[at..at + 2].fill(0);
    let sum = pseudo.add(checksum::sum(segment)).finish();
    let sum = if protocol == proto::UDP { udp::checksum_or_ones(sum) } else { sum };
    segment[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    true
}

/// Whether the UDP checksum of a whole packet is right. Zero means that there is none, and `may_be_partial` that a field
/// with the pseudo header's sum alone is one left for a card to finish.
#[must_use]
pub fn udp_checksum_holds(frame: &[u8], parsed: &Parsed, may_be_partial: bool) -> bool {
    let (l4, end) = (usize::from(parsed.l4), usize::from(parsed.end));
    let Some(segment) = frame.get(l4..end) else { return false };
    let Some(view) = segment.get(..udp::HEADER_LEN) else { return false };
    let field = [view[udp::CHECKSUM_AT], view[udp::CHECKSUM_AT + 1]];
    if field == [0, 0] {
        return true;
    }
    let length = usize::from(u16::from_be_bytes([view[udp::LEN_AT], view[udp::LEN_AT + 1]]));
    let Some(segment) = segment.get(..length) else { return false };
    let pseudo = match parsed.net {
        Net::V4(flow) => checksum::pseudo_v4(flow.src, flow.dst, proto::UDP, length as u16),
        Net::V6(flow) => checksum::pseudo_v6(flow.src, flow.dst, proto::UDP, length as u32),
        Net::Arp | Net::Other(_) => return false,
    };
    may_be_partial && field == pseudo.fold().to_be_bytes() || pseudo.add(checksum::sum(segment)).is_valid()
}
