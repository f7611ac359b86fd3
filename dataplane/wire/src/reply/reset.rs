//! Resets: the answer to TCP segments that nobody takes.

use super::{Answer, HOPS, is_host_v4, is_host_v6, stations};
use crate::bytes::put16;
use crate::parse::{Fragment, Net, Parsed};
use crate::tcp::{self, Tcp};
use crate::{checksum, ecn, ipv4, ipv6, proto};

/// The reset that a TCP segment for a port without a listener is answered with (RFC 9293 section 3.10.7.1).
///
/// It comes from the address and port that were asked, and from no window. A segment with an acknowledgement names the
/// reset's sequence number; of another the reset acknowledges all that it takes up, so that its sender believes it
/// (section 3.10.7.3). Resets, fragments and segments for groups have none. The checksum is not looked at: pods leave
/// theirs to a network card.
pub fn reset(frame: &[u8], parsed: &Parsed, out: &mut [u8]) -> Option<usize> {
    let (ours, theirs) = stations(frame).filter(|(dst, _)| !dst.is_multicast())?;
    let segment = Tcp::new_checked(frame.get(parsed.l4.into()..parsed.end.into())?).ok()?;
    let header = header_of(&segment)?;
    let answer = Answer::link(frame, parsed, theirs, ours, out)?;
    match parsed.net {
        Net::V4(flow) if flow.proto == proto::TCP && flow.fragment == Fragment::Whole => {
            if !is_host_v4(flow.src) || !is_host_v4(flow.dst) {
                return None;
            }
            let ip = ipv4::Repr {
                src: flow.dst,
                dst: flow.src,
                protocol: proto::TCP,
                tos: flow.tos & !ecn::MASK,
                ttl: HOPS,
                dont_fragment: true,
                payload_len: tcp::HEADER_LEN as u16,
            };
            let pseudo = checksum::pseudo_v4(flow.dst, flow.src, proto::TCP, tcp::HEADER_LEN as u16);
            answer.then(&ip.emit())?.then(&summed(header, pseudo))?.done()
        }
        Net::V6(flow) if flow.proto == proto::TCP && flow.fragment == Fragment::Whole => {
            if !is_host_v6(flow.src) || !is_host_v6(flow.dst) {
                return None;
            }
            let ip = ipv6::Repr {
                src: flow.dst,
                dst: flow.src,
                next_header: proto::TCP,
                traffic_class: flow.tclass & !ecn::MASK,
                flow_label: flow.flow_label,
                hop_limit: HOPS,
                payload_len: tcp::HEADER_LEN as u16,
            };
            let pseudo = checksum::pseudo_v6(flow.dst, flow.src, proto::TCP, tcp::HEADER_LEN as u32);
            answer.then(&ip.emit())?.then(&summed(header, pseudo))?.done()
        }
        _ => None,
    }
}

/// The reset's header without its checksum; `None` for a reset, which has no answer.
fn header_of(segment: &Tcp<'_>) -> Option<[u8; tcp::HEADER_LEN]> {
    let flags = segment.flags();
    if flags & tcp::RST != 0 {
        return None;
    }
    let (sequence, acknowledgement, flags) = if flags & tcp::ACK != 0 {
        (segment.acknowledgement(), 0, tcp::RST)
    } else {
        // SYN and FIN take up a number each (section 3.4).
        let length = segment.payload().len() as u32
            + [tcp::SYN, tcp::FIN].map(|it| u32::from(flags & it != 0)).iter().sum::<u32>();
        (0, segment.sequence().wrapping_add(length), tcp::RST | tcp::ACK)
    };
    let mut header = [0; tcp::HEADER_LEN];
    put16(&mut header, 0, segment.dst_port());
    put16(&mut header, 2, segment.src_port());
    header[4..8].copy_from_slice(&sequence.to_be_bytes());
    header[8..12].copy_from_slice(&acknowledgement.to_be_bytes());
    header[tcp::OFFSET_AT] = (tcp::HEADER_LEN as u8 / 4) << 4;
    header[tcp::FLAGS_AT] = flags;
    Some(header)
}

fn summed(mut header: [u8; tcp::HEADER_LEN], pseudo: checksum::Sum) -> [u8; tcp::HEADER_LEN] {
    let sum = pseudo.add_bytes(&header).finish();
    put16(&mut header, tcp::CHECKSUM_AT, sum);
    header
}
