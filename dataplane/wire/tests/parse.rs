//! The parser against etherparse, against itself by another way, and against a table of broken frames.

#![allow(clippy::unwrap_used, reason = "the leave for tests does not reach the functions beside them")]

mod common;

use common::{Network, Sound, Transport, any_frame, any_sound};
use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use penstock_wire::parse::{Fragment, Net, Parsed, parse, parse_l3, parse_quoted};
use penstock_wire::{Malformed, checksum, ethernet, ipv6, proto};
use proptest::prelude::*;
use std::net::IpAddr;

/// Internet group management (RFC 9776).
const IGMP: u8 = 2;

/// The facts that both families have.
#[derive(Debug, PartialEq, Eq)]
struct Facts {
    src: IpAddr,
    dst: IpAddr,
    proto: u8,
    sport: u16,
    dport: u16,
    tos: u8,
    hops: u8,
    fragmented: bool,
}

fn facts(parsed: &Parsed) -> Option<Facts> {
    match parsed.net {
        Net::V4(flow) => Some(Facts {
            src: flow.src.into(),
            dst: flow.dst.into(),
            proto: flow.proto,
            sport: flow.sport,
            dport: flow.dport,
            tos: flow.tos,
            hops: flow.ttl,
            fragmented: flow.fragment != Fragment::Whole,
        }),
        Net::V6(flow) => Some(Facts {
            src: flow.src.into(),
            dst: flow.dst.into(),
            proto: flow.proto,
            sport: flow.sport,
            dport: flow.dport,
            tos: flow.tclass,
            hops: flow.hop_limit,
            fragmented: flow.fragment != Fragment::Whole,
        }),
        _ => None,
    }
}

/// The same facts, and the bytes of the IP payload, as etherparse sees them.
fn oracle(frame: &[u8]) -> Option<(Facts, usize)> {
    let sliced = SlicedPacket::from_ethernet(frame).ok()?;
    let (src, dst, payload, tos, hops): (IpAddr, IpAddr, _, _, _) = match sliced.net.as_ref()? {
        NetSlice::Ipv4(ip) => {
            let header = ip.header();
            let tos = header.dcp().value() << 2 | header.ecn().value();
            (header.source_addr().into(), header.destination_addr().into(), ip.payload(), tos, header.ttl())
        }
        NetSlice::Ipv6(ip) => {
            let header = ip.header();
            let (src, dst) = (header.source_addr().into(), header.destination_addr().into());
            (src, dst, ip.payload(), header.traffic_class(), header.hop_limit())
        }
        NetSlice::Arp(_) => return None,
    };
    let (sport, dport) = match sliced.transport.as_ref() {
        Some(TransportSlice::Udp(udp)) => (udp.source_port(), udp.destination_port()),
        Some(TransportSlice::Tcp(tcp)) => (tcp.source_port(), tcp.destination_port()),
        Some(TransportSlice::Icmpv4(icmp)) => {
            let kind = u16::from_be_bytes([icmp.type_u8(), icmp.code_u8()]);
            (if matches!(icmp.type_u8(), 0 | 8) { word(&icmp.bytes5to8()) } else { 0 }, kind)
        }
        Some(TransportSlice::Icmpv6(icmp)) => {
            let kind = u16::from_be_bytes([icmp.type_u8(), icmp.code_u8()]);
            (if matches!(icmp.type_u8(), 128 | 129) { word(&icmp.bytes5to8()) } else { 0 }, kind)
        }
        Some(TransportSlice::Igmp(_)) | None => (0, 0),
    };
    let proto = payload.ip_number.0;
    let facts = Facts { src, dst, proto, sport, dport, tos, hops, fragmented: payload.fragmented };
    Some((facts, payload.payload.len()))
}

fn word(bytes: &[u8; 4]) -> u16 {
    u16::from_be_bytes([bytes[0], bytes[1]])
}

/// Frames on which the two parsers mean the same. They do not on SCTP, which etherparse does not know; on IGMP, which
/// only it looks into; on AH over IPv4, which it
/// looks behind; on an IPv6 payload length of zero, which it takes for "all there is"; on fragments, of whose first it
/// reads no ports; and on extension headers, which the chain test covers.
fn means_the_same(parsed: &Parsed) -> bool {
    match parsed.net {
        Net::V4(flow) => {
            ![IGMP, proto::AH, proto::SCTP].contains(&flow.proto) && flow.fragment == Fragment::Whole
        }
        Net::V6(flow) => {
            ![IGMP, proto::SCTP].contains(&flow.proto) && !flow.extensions && parsed.end > parsed.l4
        }
        _ => false,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn sound_frames_are_read_as_etherparse_reads_them(sound in any_sound(), padding in 0..60usize) {
        let mut frame = sound.frame();
        let end = frame.len();
        frame.resize(end + padding, 0);
        let parsed = parse(&frame).unwrap();
        let (expected, payload_len) = oracle(&frame[..end]).unwrap();
        prop_assert_eq!(facts(&parsed), Some(expected));
        prop_assert_eq!(usize::from(parsed.end), end);
        prop_assert_eq!(usize::from(parsed.l4), end - payload_len);
        prop_assert_eq!(parsed.vlan, sound.vlan.unwrap_or(0));
        prop_assert_eq!(usize::from(parsed.l3), if sound.vlan.is_some() { 18 } else { 14 });
    }

    #[test]
    fn what_is_accepted_of_broken_frames_is_read_as_etherparse_reads_it(frame in any_frame()) {
        if let Ok(parsed) = parse(&frame) && means_the_same(&parsed) {
            let Some((expected, payload_len)) = oracle(&frame) else {
                return Err(TestCaseError::fail(format!("etherparse refuses what is read as {parsed:?}")));
            };
            prop_assert_eq!(facts(&parsed), Some(expected));
            prop_assert_eq!(usize::from(parsed.end - parsed.l4), payload_len);
        }
    }

    #[test]
    fn offsets_are_in_order_and_inside_the_frame(frame in any_frame()) {
        if let Ok(parsed) = parse(&frame) {
            prop_assert!(14 <= parsed.l3 && parsed.l3 <= parsed.l4 && parsed.l4 <= parsed.end);
            prop_assert!(usize::from(parsed.end) <= frame.len());
        }
    }

    #[test]
    fn plain_and_general_path_agree(frame in any_frame()) {
        let Some((header, packet)) = frame.split_first_chunk::<{ ethernet::HEADER_LEN }>() else { return Ok(()) };
        let ethertype = u16::from_be_bytes([header[12], header[13]]);
        if ethertype == ethernet::VLAN || ethertype == ethernet::SERVICE_VLAN {
            return Ok(());
        }
        let shifted = parse_l3(ethertype, packet)
            .map(|found| Parsed { l3: found.l3 + 14, l4: found.l4 + 14, end: found.end + 14, ..found });
        prop_assert_eq!(parse(&frame), shifted);
    }

    #[test]
    fn a_quotation_of_eight_transport_bytes_is_enough(sound in any_sound(), more in 0..100usize, hops in any::<u8>()) {
        let frame = sound.frame();
        let parsed = parse(&frame).unwrap();
        let (l3, l4) = (usize::from(parsed.l3), usize::from(parsed.l4));
        let ethertype = u16::from_be_bytes([frame[l3 - 2], frame[l3 - 1]]);
        let mut quote = frame[l3..frame.len().min(l4 + 8 + more)].to_vec();
        // A router took hops off and, as some do, left the checksum.
        quote[if ethertype == ethernet::IPV4 { 8 } else { 7 }] = hops;
        let quoted = parse_quoted(ethertype, &quote).unwrap();
        let expected = facts(&parsed).map(|facts| Facts { hops, ..facts });
        prop_assert_eq!(facts(&quoted), expected);
        prop_assert_eq!(usize::from(quoted.l4), l4 - l3);
        prop_assert_eq!(usize::from(quoted.end), quote.len());
    }

    #[test]
    fn chains_of_extension_headers_lead_to_the_ports(kinds in prop::collection::vec(prop::sample::select(&[proto::ROUTING, proto::DESTINATION, proto::AH, proto::MOBILITY, proto::HIP, proto::SHIM6][..]), 0..=10), hop_by_hop in any::<bool>(), units in prop::collection::vec(0..4u8, 12)) {
        let mut kinds = kinds;
        if hop_by_hop {
            kinds.insert(0, proto::HOP_BY_HOP);
        }
        let mut payload = Vec::new();
        for (at, kind) in kinds.iter().enumerate() {
            let next = kinds.get(at + 1).copied().unwrap_or(proto::UDP);
            let length = if *kind == proto::AH { usize::from(units[at]) * 4 + 8 } else { usize::from(units[at]) * 8 + 8 };
            let start = payload.len();
            payload.extend([next, units[at]]);
            payload.resize(start + length, 0xee);
        }
        let l4 = 40 + payload.len();
        payload.extend([0x11, 0x11, 0x22, 0x22, 0, 9, 0, 0, 0xff]);
        let packet = v6_packet(kinds.first().copied().unwrap_or(proto::UDP), &payload);
        let parsed = parse_l3(ethernet::IPV6, &packet);
        if kinds.len() > ipv6::MAX_EXTENSIONS {
            prop_assert_eq!(parsed, Err(Malformed::TooManyExtensions));
        } else {
            let parsed = parsed.unwrap();
            let Net::V6(flow) = parsed.net else { panic!("{parsed:?}") };
            prop_assert_eq!((flow.proto, flow.sport, flow.dport), (proto::UDP, 0x1111, 0x2222));
            prop_assert_eq!((usize::from(parsed.l4), flow.extensions), (l4, !kinds.is_empty()));
        }
    }
}

fn v6_packet(next_header: u8, payload: &[u8]) -> Vec<u8> {
    let header = ipv6::Repr {
        src: "2001:db8::1".parse().unwrap(),
        dst: "2001:db8::2".parse().unwrap(),
        next_header,
        traffic_class: 0,
        flow_label: 7,
        hop_limit: 64,
        payload_len: payload.len() as u16,
    };
    [&header.emit()[..], payload].concat()
}

fn v4_frame(transport: Transport) -> Vec<u8> {
    let network = Network::V4([192, 0, 2, 1], [198, 51, 100, 2]);
    Sound { vlan: None, network, hops: 64, transport, payload: vec![7; 64] }.frame()
}

/// Changes bytes of the IPv4 header at offset 14 and mends its checksum.
fn mended(frame: &[u8], changes: &[(usize, u8)]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    for (at, value) in changes {
        frame[*at] = *value;
    }
    let header_len = usize::from(frame[14] & 0xf) * 4;
    frame[24..26].fill(0);
    let sum = checksum::sum(&frame[14..14 + header_len]).finish();
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    frame
}

#[test]
fn each_broken_ipv4_rule_is_named() {
    let udp = v4_frame(Transport::Udp(1, 2));
    let tcp = v4_frame(Transport::Tcp(1, 2));
    let table: &[(&str, Vec<u8>, Malformed)] = &[
        ("empty", vec![], Malformed::Truncated),
        ("half an Ethernet header", udp[..13].to_vec(), Malformed::Truncated),
        ("half an IPv4 header", udp[..33].to_vec(), Malformed::Truncated),
        ("version 6", mended(&udp, &[(14, 0x65)]), Malformed::BadVersion),
        ("header of 16 bytes", mended(&udp, &[(14, 0x44)]), Malformed::BadHeaderLength),
        ("total length below the header", mended(&udp, &[(16, 0), (17, 19)]), Malformed::BadTotalLength),
        ("total length past the frame", mended(&udp, &[(17, udp[17] + 1)]), Malformed::BadTotalLength),
        ("cut payload", udp[..udp.len() - 1].to_vec(), Malformed::BadTotalLength),
        (
            "flipped bit",
            mended(&udp, &[]).iter().enumerate().map(|(at, byte)| byte ^ u8::from(at == 30)).collect(),
            Malformed::BadChecksum,
        ),
        ("UDP length of 7", mended(&udp, &[(38, 0), (39, 7)]), Malformed::BadSegmentLength),
        ("UDP length past the packet", mended(&udp, &[(39, udp[39] + 1)]), Malformed::BadSegmentLength),
        ("IPv4 ends inside UDP", mended(&udp, &[(17, 27)]), Malformed::Truncated),
        ("IPv4 ends inside TCP", mended(&tcp, &[(17, 39)]), Malformed::Truncated),
        ("IPv4 ends inside SCTP", mended(&udp, &[(17, 31), (23, proto::SCTP)]), Malformed::Truncated),
        ("IPv4 ends inside ICMP", mended(&udp, &[(17, 27), (23, proto::ICMP)]), Malformed::Truncated),
        ("TCP header of 16 bytes", mended(&tcp, &[(46, 0x40)]), Malformed::BadHeaderLength),
        ("TCP header past the packet", mended(&tcp, &[(46, 0xf0), (17, 60)]), Malformed::BadHeaderLength),
        ("first fragment without all of TCP", mended(&tcp, &[(17, 36), (20, 0x20)]), Malformed::TinyFragment),
        ("fragment over TCP's flags", mended(&tcp, &[(21, 1)]), Malformed::TinyFragment),
        ("fragment past 65535", mended(&udp, &[(20, 0x1f), (21, 0xff)]), Malformed::BadFragment),
        (
            "middle fragment of 7 bytes",
            mended(&udp, &[(17, 27), (20, 0x20), (21, 9)]),
            Malformed::BadFragment,
        ),
        (
            "middle fragment of nothing",
            mended(&udp, &[(17, 20), (20, 0x20), (21, 9)]),
            Malformed::BadFragment,
        ),
        ("longer than offsets reach", vec![0; 65536], Malformed::FrameTooLong),
    ];
    for (what, frame, rule) in table {
        assert_eq!(parse(frame), Err(*rule), "{what}");
    }
}

#[test]
fn each_broken_ipv6_rule_is_named() {
    let fragment = |word: u16, next: u8, rest: &[u8]| {
        let [high, low] = word.to_be_bytes();
        v6_packet(proto::FRAGMENT, &[&[next, 0, high, low, 0, 0, 0, 1], rest].concat())
    };
    let mut long = v6_packet(proto::UDP, &[0, 1, 0, 2, 0, 8, 0, 0]);
    long[5] = 9;
    let mut version = v6_packet(proto::UDP, &[0, 1, 0, 2, 0, 8, 0, 0]);
    version[0] = 0x40;
    let table: &[(&str, Vec<u8>, Malformed)] = &[
        ("half a header", vec![0x60; 39], Malformed::Truncated),
        ("version 4", version, Malformed::BadVersion),
        ("payload length past the packet", long, Malformed::BadTotalLength),
        ("no UDP behind the header", v6_packet(proto::UDP, &[]), Malformed::Truncated),
        (
            "extension past the packet",
            v6_packet(proto::ROUTING, &[17, 1, 0, 0, 0, 0, 0, 0]),
            Malformed::Truncated,
        ),
        ("hop-by-hop in second place", v6_packet(proto::DESTINATION, &[0; 16]), Malformed::BadExtension),
        (
            "loop of destination options",
            v6_packet(proto::DESTINATION, &[60, 0, 0, 0, 0, 0, 0, 0].repeat(9)),
            Malformed::TooManyExtensions,
        ),
        (
            "first fragment ends in its chain",
            fragment(1, proto::ROUTING, &[17, 1, 0, 0, 0, 0, 0, 0]),
            Malformed::TinyFragment,
        ),
        ("first fragment ends in TCP", fragment(1, proto::TCP, &[0; 16]), Malformed::TinyFragment),
        ("middle fragment of 7 bytes", fragment(9, proto::UDP, &[0; 7]), Malformed::BadFragment),
        ("fragment past 65535", fragment(0xfff8, proto::UDP, &[0; 16]), Malformed::BadFragment),
        (
            "fragment in a fragment",
            fragment(1, proto::FRAGMENT, &[17, 0, 0, 1, 0, 0, 0, 1]),
            Malformed::BadExtension,
        ),
    ];
    for (what, packet, rule) in table {
        assert_eq!(parse_l3(ethernet::IPV6, packet), Err(*rule), "{what}");
    }
}

#[test]
fn fragments_have_ports_only_in_the_first() {
    let udp = v4_frame(Transport::Udp(1, 2));
    for (high, low, fragment, ports) in [
        (0x40, 0, Fragment::Whole, (1, 2)),
        (0x20, 0, Fragment::First, (1, 2)),
        (0x20, 8, Fragment::Later, (0, 0)),
        (0x00, 9, Fragment::Later, (0, 0)),
    ] {
        let parsed = parse(&mended(&udp, &[(20, high), (21, low)])).unwrap();
        let Net::V4(flow) = parsed.net else { panic!("{parsed:?}") };
        assert_eq!((flow.fragment, (flow.sport, flow.dport)), (fragment, ports));
        assert_eq!(flow.dont_fragment, high == 0x40);
    }
    for (word, fragment, ports) in
        [(0u16, Fragment::Whole, (1, 2)), (1, Fragment::First, (1, 2)), (8, Fragment::Later, (0, 0))]
    {
        let [high, low] = word.to_be_bytes();
        let payload = [proto::UDP, 0, high, low, 0, 0, 0, 9, 0, 1, 0, 2, 0, 8, 0, 0];
        let parsed = parse_l3(ethernet::IPV6, &v6_packet(proto::FRAGMENT, &payload)).unwrap();
        let Net::V6(flow) = parsed.net else { panic!("{parsed:?}") };
        assert_eq!((flow.fragment, (flow.sport, flow.dport), flow.extensions), (fragment, ports, true));
        assert_eq!((flow.proto, parsed.l4, flow.flow_label), (proto::UDP, 48, 7));
    }
}

#[test]
fn options_of_ipv4_are_said_and_stepped_over() {
    let udp = v4_frame(Transport::Udp(1, 2));
    let mut frame = [&udp[..34], &[1, 1, 1, 0], &udp[34..]].concat();
    frame[17] += 4;
    let parsed = parse(&mended(&frame, &[(14, 0x46)])).unwrap();
    let Net::V4(flow) = parsed.net else { panic!("{parsed:?}") };
    assert!(flow.options);
    assert_eq!((parsed.l4, flow.sport, flow.dport), (38, 1, 2));
}

#[test]
fn sctp_has_ports_like_the_others() {
    let frame = mended(&v4_frame(Transport::Udp(36412, 2905)), &[(23, proto::SCTP)]);
    let parsed = parse(&frame).unwrap();
    let Net::V4(flow) = parsed.net else { panic!("{parsed:?}") };
    assert_eq!((flow.proto, flow.sport, flow.dport), (proto::SCTP, 36412, 2905));
}

#[test]
fn tags_are_stepped_over_up_to_two() {
    let udp = v4_frame(Transport::Udp(1, 2));
    let tag = |tpid: u16, id: u16| [tpid.to_be_bytes(), id.to_be_bytes()].concat();
    let tagged = |tags: &[Vec<u8>]| [&udp[..12], &tags.concat(), &udp[12..]].concat();
    let cases = [
        (vec![], 14, 0),
        (vec![tag(0x8100, 0xe064)], 18, 100),
        (vec![tag(0x8100, 0xe000)], 18, 0),
        (vec![tag(0x88a8, 200), tag(0x8100, 100)], 22, 200),
    ];
    for (tags, l3, vlan) in cases {
        let parsed = parse(&tagged(&tags)).unwrap();
        assert_eq!((parsed.l3, parsed.vlan), (l3, vlan));
        assert!(matches!(parsed.net, Net::V4(flow) if flow.dport == 2));
    }
    let three = tagged(&[tag(0x88a8, 3), tag(0x8100, 2), tag(0x8100, 1)]);
    assert_eq!(parse(&three).unwrap().net, Net::Other(0x8100));
    assert_eq!(parse(&tagged(&[tag(0x8100, 1)])[..16]), Err(Malformed::Truncated));
}

#[test]
fn what_is_not_ip_is_named_and_left_alone() {
    let mut frame = vec![0; 60];
    frame[12..14].copy_from_slice(&ethernet::ARP.to_be_bytes());
    assert_eq!(parse(&frame), Ok(Parsed { l3: 14, l4: 14, end: 60, vlan: 0, net: Net::Arp }));
    frame[12..14].copy_from_slice(&0x88ccu16.to_be_bytes());
    assert_eq!(parse(&frame).unwrap().net, Net::Other(0x88cc));
}
