//! What every fuzz target does with its bytes: decode them, ask everything, and hold the answers to what must be true.
//!
//! The programs under `fuzz/` only call these functions, and `tests/fuzzing.rs` runs them on random, structured and
//! once-crashing inputs, so an ordinary test run exercises each.

use crate::decap::{TunnelKind, tunnel};
use crate::dsr::ServedAs;
use crate::parse::{Net, Parsed, parse as parse_frame, parse_l3, parse_quoted as parse_quotation};
use crate::reply::{self, Problem, Unreachable};
use crate::rewrite::{self, Change};
use crate::{MacAddr, checksum, ethernet as eth, fragment as frag, ipv4 as ip4, ipv6 as ip6};
use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A target: its name, which is that of its program, and what it does.
pub type Target = (&'static str, fn(&[u8]));

/// Every target.
pub const TARGETS: &[Target] = &[
    ("arp", arp),
    ("decap", decap),
    ("dsr", dsr),
    ("ethernet", ethernet),
    ("fragment", fragment),
    ("geneve", geneve),
    ("icmp", icmp),
    ("icmpv6", icmpv6),
    ("ipv4", ipv4),
    ("ipv6", ipv6),
    ("ndp", ndp),
    ("parse", parse),
    ("quoted", quoted),
    ("replies", replies),
    ("rewrite", rewrite),
    ("sctp", sctp),
    ("tcp", tcp),
    ("udp", udp),
    ("vlan", vlan),
    ("vxlan", vxlan),
];

/// Decodes an Ethernet header.
pub fn ethernet(bytes: &[u8]) {
    if let Ok(view) = eth::Ethernet::new_checked(bytes) {
        let repr = eth::Repr { dst: view.dst(), src: view.src(), ethertype: view.ethertype() };
        assert_eq!([&repr.emit()[..], view.payload()].concat(), bytes);
    }
}

/// Decodes a VLAN tag.
pub fn vlan(bytes: &[u8]) {
    if let Ok(view) = crate::vlan::Vlan::new_checked(bytes) {
        assert!(view.id() <= crate::vlan::ID_MASK && view.priority() < 8);
        black_box(view.ethertype());
        assert_eq!(view.payload().len(), bytes.len() - crate::vlan::HEADER_LEN);
    }
}

/// Decodes an ARP message.
pub fn arp(bytes: &[u8]) {
    if let Ok(view) = crate::arp::Arp::new_checked(bytes) {
        let repr = crate::arp::Repr {
            operation: view.operation(),
            sender_mac: view.sender_mac(),
            sender: view.sender(),
            target_mac: view.target_mac(),
            target: view.target(),
        };
        assert_eq!(repr.emit(), bytes[..crate::arp::HEADER_LEN]);
    }
}

/// The bytes with the checksum of the IPv4 header at `l3` made right: a fuzzer would hardly ever guess it.
fn mended(bytes: &[u8], l3: usize) -> Vec<u8> {
    let mut mended = bytes.to_vec();
    if let Some(packet) = mended.get_mut(l3..)
        && let Some(header_len) = packet.first().map(|byte| usize::from(byte & 0xf) * 4)
        && let Some(header) = packet.get_mut(..header_len.max(ip4::HEADER_LEN))
    {
        header[ip4::CHECKSUM_AT..][..2].fill(0);
        let checksum = checksum::sum(header).finish();
        header[ip4::CHECKSUM_AT..][..2].copy_from_slice(&checksum.to_be_bytes());
    }
    mended
}

/// Decodes an IPv4 header and its options.
pub fn ipv4(bytes: &[u8]) {
    read_ipv4(bytes);
    read_ipv4(&mended(bytes, 0));
}

fn read_ipv4(bytes: &[u8]) {
    let Ok(view) = ip4::Ipv4::new_checked(bytes) else { return };
    assert_eq!(view.header_len() + view.payload().len(), view.total_len().into());
    assert!((ip4::HEADER_LEN..=ip4::MAX_HEADER_LEN).contains(&view.header_len()));
    let options_len: usize = view.options().flatten().map(|option| option.bytes.len()).sum();
    assert!(options_len <= view.header_len() - ip4::HEADER_LEN);
    black_box((view.identification(), view.dont_fragment(), view.more_fragments(), view.fragment_offset()));
    black_box((view.tos(), view.ttl(), view.protocol(), view.src(), view.dst()));
}

/// Decodes an IPv6 header and walks its extension headers.
pub fn ipv6(bytes: &[u8]) {
    let Ok(view) = ip6::Ipv6::new_checked(bytes) else { return };
    assert_eq!(view.payload().len(), view.payload_len().into());
    assert!(view.flow_label() <= 0xf_ffff);
    let mut walk = view.extensions();
    let mut walked = 0;
    for (seen, extension) in walk.by_ref().enumerate() {
        assert!(seen <= ip6::MAX_EXTENSIONS);
        if let Ok(extension) = extension {
            walked += extension.bytes.len();
            black_box(extension.fragment());
        }
    }
    assert_eq!(walked + walk.rest().len(), view.payload().len());
    black_box((view.traffic_class(), view.hop_limit(), view.src(), view.dst(), walk.next_header()));
}

/// Decodes an ICMP message.
pub fn icmp(bytes: &[u8]) {
    if let Ok(view) = crate::icmp::Icmp::new_checked(bytes) {
        assert!(view.identifier().is_none() || view.quoted().is_none());
        assert!(view.next_hop_mtu().is_none() || view.quoted().is_some());
        black_box((view.code(), view.checksum(), view.sequence(), view.payload()));
    }
}

/// Decodes an ICMPv6 message.
pub fn icmpv6(bytes: &[u8]) {
    if let Ok(view) = crate::icmpv6::Icmpv6::new_checked(bytes) {
        assert!(view.identifier().is_none() || view.quoted().is_none());
        assert!(view.next_hop_mtu().is_none() || view.quoted().is_some());
        black_box((view.code(), view.checksum(), view.sequence(), view.payload()));
    }
}

/// Decodes a neighbour-discovery message.
pub fn ndp(bytes: &[u8]) {
    if let Ok(view) = crate::ndp::Neighbour::new_checked(bytes) {
        assert!(!view.target().is_multicast() && view.options().all(|option| option.is_ok()));
        black_box((view.kind(), view.flags(), view.checksum()));
        black_box((
            view.link_address(crate::ndp::OPTION_SOURCE),
            view.link_address(crate::ndp::OPTION_TARGET),
        ));
    }
}

/// Decodes a TCP header.
pub fn tcp(bytes: &[u8]) {
    if let Ok(view) = crate::tcp::Tcp::new_checked(bytes) {
        assert!(view.payload().len() <= bytes.len() - crate::tcp::HEADER_LEN);
        black_box((view.src_port(), view.dst_port(), view.sequence(), view.acknowledgement()));
        black_box((view.flags(), view.window(), view.checksum(), view.maximum_segment_size()));
    }
}

/// Decodes a UDP header.
pub fn udp(bytes: &[u8]) {
    if let Ok(view) = crate::udp::Udp::new_checked(bytes) {
        assert_eq!(view.payload().len() + crate::udp::HEADER_LEN, view.length().into());
        black_box((view.src_port(), view.dst_port(), view.checksum()));
    }
}

/// Decodes an SCTP common header.
pub fn sctp(bytes: &[u8]) {
    if let Ok(view) = crate::sctp::Sctp::new_checked(bytes) {
        assert_eq!(view.first_chunk(), view.chunks().first().copied());
        black_box((view.src_port(), view.dst_port(), view.verification_tag(), view.crc32c()));
    }
}

/// Decodes a VXLAN header.
pub fn vxlan(bytes: &[u8]) {
    if let Ok(view) = crate::vxlan::Vxlan::new_checked(bytes) {
        assert_eq!(view.payload().len(), bytes.len() - crate::vxlan::HEADER_LEN);
        assert_eq!(crate::vxlan::Repr { vni: view.vni() }.emit()[4..7], bytes[4..7]);
    }
}

/// Decodes a Geneve header and walks its options.
pub fn geneve(bytes: &[u8]) {
    let Ok(view) = crate::geneve::Geneve::new_checked(bytes) else { return };
    assert_eq!(view.header_len() + view.payload().len(), bytes.len());
    let walked: usize = view.options().flatten().map(|option| 4 + option.data.len()).sum();
    let is_sound = view.options().all(|option| option.is_ok());
    assert!(walked <= view.header_len() - crate::geneve::HEADER_LEN);
    assert_eq!(is_sound, walked == view.header_len() - crate::geneve::HEADER_LEN);
    black_box((view.is_control(), view.has_critical(), view.protocol(), view.vni()));
}

/// Finds the option of direct server return among Geneve options; the bytes begin with the Geneve header.
pub fn dsr(bytes: &[u8]) {
    let Ok(view) = crate::geneve::Geneve::new_checked(bytes) else { return };
    if let Ok(Some(served_as)) = ServedAs::find(view.options()) {
        let data = served_as.to_option().data;
        let ours = view.options().flatten().find(|option| ServedAs::is(option.class, option.kind));
        let same = |received: &[u8]| received[..2] == data[..2] && received[4..] == data[4..];
        assert!(ours.is_some_and(|ours| ours.data.len() == data.len() && same(ours.data)));
    }
}

/// Finds what is behind a tunnel header; the bytes begin with the outer UDP header.
pub fn decap(bytes: &[u8]) {
    for kind in [TunnelKind::Vxlan, TunnelKind::Geneve] {
        if let Ok(found) = tunnel(bytes, 0, kind) {
            assert!(usize::from(found.inner) + eth::HEADER_LEN <= bytes.len());
            black_box(parse_frame(&bytes[found.inner.into()..]).is_ok());
        }
    }
}

/// Parses a frame.
pub fn parse(bytes: &[u8]) {
    read_frame(bytes);
    read_frame(&mended(bytes, eth::HEADER_LEN));
}

fn read_frame(bytes: &[u8]) {
    if let Ok(parsed) = parse_frame(bytes) {
        in_order(&parsed, eth::HEADER_LEN, bytes.len());
    }
    for ethertype in [eth::IPV4, eth::IPV6] {
        if let Ok(parsed) = parse_l3(ethertype, bytes) {
            in_order(&parsed, 0, bytes.len());
            // What is sound as a whole is sound as a quotation and says the same.
            let quoted = parse_quotation(ethertype, bytes);
            assert_eq!(quoted, Ok(parsed));
        }
    }
}

/// Parses the quotation of an ICMP error.
pub fn quoted(bytes: &[u8]) {
    for ethertype in [eth::IPV4, eth::IPV6, eth::ARP, 0] {
        if let Ok(parsed) = parse_quotation(ethertype, bytes) {
            in_order(&parsed, 0, bytes.len());
        }
    }
}

fn in_order(parsed: &Parsed, from: usize, to: usize) {
    let (l3, l4, end) = (usize::from(parsed.l3), usize::from(parsed.l4), usize::from(parsed.end));
    assert!(from <= l3 && l3 <= l4 && l4 <= end && end <= to, "{parsed:?} of {from}..{to}");
}

/// Answers a frame in every way there is; what comes out must be sound.
pub fn replies(bytes: &[u8]) {
    answer(bytes);
    answer(&mended(bytes, eth::HEADER_LEN));
}

fn answer(bytes: &[u8]) {
    let Ok(parsed) = parse_frame(bytes) else { return };
    let mac = MacAddr([2, 0, 0, 0, 0, 1]);
    let from = match parsed.net {
        Net::V6(_) => IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1)),
        _ => IpAddr::V4(Ipv4Addr::new(169, 254, 1, 1)),
    };
    let mut out = vec![0; bytes.len() + 2048];
    let check = |written: Option<usize>, out: &[u8]| {
        if let Some(len) = written {
            let again = parse_frame(&out[..len]);
            assert!(again.is_ok_and(|again| usize::from(again.end) == len), "an unsound answer: {again:?}");
        }
    };
    check(reply::arp(bytes, &parsed, mac, &mut out), &out);
    check(reply::advertisement(bytes, &parsed, mac, true, &mut out), &out);
    check(reply::echo(bytes, &parsed, &mut out), &out);
    check(reply::reset(bytes, &parsed, &mut out), &out);
    let problems =
        [Problem::HopsExceeded, Problem::TooBig { mtu: 1400 }, Problem::Unreachable(Unreachable::Network)];
    for problem in problems {
        check(reply::error(bytes, &parsed, problem, from, &mut out), &out);
    }
}

/// Cuts an IPv4 packet; the first two bytes choose the MTU.
pub fn fragment(bytes: &[u8]) {
    let Some((mtu, packet)) = bytes.split_first_chunk::<2>() else { return };
    let mtu = u16::from_be_bytes(*mtu);
    cut(packet, mtu);
    cut(&mended(packet, 0), mtu);
}

fn cut(packet: &[u8], mtu: u16) {
    let Ok(pieces) = frag::pieces(packet, mtu) else { return };
    let mut next = None;
    for piece in pieces {
        assert!(piece.header().len() + piece.payload().len() <= mtu.into());
        assert!(next.is_none_or(|next| piece.payload().start == next && !piece.payload().is_empty()));
        let whole = [piece.header(), &packet[piece.payload()]].concat();
        assert!(ip4::Ipv4::new_checked(&whole).is_ok());
        next = Some(piece.payload().end);
    }
    let total_len = ip4::Ipv4::new_checked(packet).map(|view| usize::from(view.total_len()));
    assert_eq!(next, total_len.ok());
}

/// Rewrites a frame there and back, and an ICMP error with what it quotes; the outcome must be as sound as the frame.
pub fn rewrite(bytes: &[u8]) {
    readdress(bytes);
    readdress(&mended(bytes, eth::HEADER_LEN));
}

fn readdress(bytes: &[u8]) {
    let Ok(parsed) = parse_frame(bytes) else { return };
    let there = match parsed.net {
        Net::V4(_) => Change { src: Some(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1))), ..PORTS },
        _ => Change { src: Some(IpAddr::V6(Ipv6Addr::LOCALHOST)), ..PORTS },
    };
    let mut frame = bytes.to_vec();
    if rewrite::rewrite(&mut frame, &parsed, &there).is_ok() {
        let Ok(changed) = parse_frame(&frame) else { panic!("a rewrite made {parsed:?} unsound") };
        assert_eq!((changed.l4, changed.end), (parsed.l4, parsed.end));
        let (src, sport) = match parsed.net {
            Net::V4(flow) => (flow.src.into(), flow.sport),
            Net::V6(flow) => (flow.src.into(), flow.sport),
            Net::Arp | Net::Other(_) => panic!("only IP packets are rewritten"),
        };
        let back = Change { src: Some(src), sport: Some(sport), ..Change::default() };
        assert_eq!(rewrite::rewrite(&mut frame, &changed, &back), Ok(()));
        assert_eq!(parse_frame(&frame), Ok(parsed));
    } else {
        assert_eq!(frame, bytes);
    }
    let mut frame = bytes.to_vec();
    match rewrite::rewrite_error(&mut frame, &parsed, &there, &there) {
        Ok(()) => assert!(parse_frame(&frame).is_ok_and(|again| again.end == parsed.end)),
        Err(_) => assert_eq!(frame, bytes),
    }
}

/// A change of ports, whatever they were.
const PORTS: Change = Change { src: None, dst: None, sport: Some(40_000), dport: None };
