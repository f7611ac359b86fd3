//! Rewrites against a slow one: set the fields, then make every checksum anew.

#![allow(clippy::unwrap_used, reason = "the leave for tests does not reach the functions beside them")]

mod common;

use common::{Network, Sound, Transport, any_network, any_sound, slow_sum};
use penstock_wire::parse::{Net, Parsed, parse, parse_l3};
use penstock_wire::rewrite::{CannotRewrite, Change, Rewrite4, rewrite, rewrite_error};
use penstock_wire::{checksum, ethernet, fragment, icmp, icmpv6, ipv4, ipv6, proto, sctp};
use proptest::prelude::*;
use std::net::IpAddr;

/// Bytes of Ethernet in front of untagged packets.
const L2: usize = ethernet::HEADER_LEN;

/// Sound frames, SCTP and UDP without a checksum among them.
fn any_packet() -> impl Strategy<Value = Vec<u8>> {
    let sctp = (any_network(), any::<[u8; 8]>(), prop::collection::vec(any::<u8>(), 0..3000))
        .prop_map(|(network, head, chunks)| sctp_frame(network, head, &chunks));
    let silent = any_sound().prop_map(|sound| {
        let mut frame = sound.frame();
        let parsed = parse(&frame).unwrap();
        if matches!(sound.transport, Transport::Udp(..)) {
            frame[usize::from(parsed.l4) + 6..][..2].fill(0);
        }
        frame
    });
    prop_oneof![4 => any_sound().prop_map(|sound| sound.frame()), 1 => sctp, 1 => silent]
}

fn sctp_frame(network: Network, head: [u8; 8], chunks: &[u8]) -> Vec<u8> {
    let mut payload = [&head[..], &[0; 4], chunks].concat();
    sctp::finish_checksum(&mut payload).unwrap();
    Sound { vlan: None, network, hops: 64, transport: Transport::Raw(proto::SCTP), payload }.frame()
}

/// Changes of some fields, addresses of either version.
#[derive(Clone, Copy, Debug)]
struct Wish {
    src: Option<[u8; 16]>,
    dst: Option<[u8; 16]>,
    sport: Option<u16>,
    dport: Option<u16>,
}

impl Wish {
    fn of(self, is_v4: bool) -> Change {
        let address = |bytes: [u8; 16]| -> IpAddr {
            if is_v4 { <[u8; 4]>::try_from(&bytes[..4]).unwrap().into() } else { bytes.into() }
        };
        let (src, dst) = (self.src.map(address), self.dst.map(address));
        Change { src, dst, sport: self.sport, dport: self.dport }
    }
}

prop_compose! {
    fn any_wish()(
        src in any::<Option<[u8; 16]>>(), dst in any::<Option<[u8; 16]>>(),
        sport in any::<Option<u16>>(), dport in any::<Option<u16>>(),
    ) -> Wish { Wish { src, dst, sport, dport } }
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

/// The sum of the pseudo header, word by word, and of the segment behind it.
fn with_pseudo(addresses: &[u8], protocol: u8, segment: &[u8]) -> u16 {
    let length = (segment.len() as u32).to_be_bytes();
    slow_sum(&[addresses, &length, &[0, 0, 0, protocol], segment].concat())
}

/// Sets the fields that `change` names, then makes every checksum anew.
fn slow(frame: &[u8], parsed: &Parsed, change: &Change) -> Vec<u8> {
    let mut frame = frame.to_vec();
    let (l3, l4, end) = (usize::from(parsed.l3), usize::from(parsed.l4), usize::from(parsed.end));
    let (protocol, at, len) = match parsed.net {
        Net::V4(flow) => (flow.proto, l3 + 12, 4),
        Net::V6(flow) => (flow.proto, l3 + 8, 16),
        _ => panic!("no IP packet"),
    };
    for (address, at) in [(change.src, at), (change.dst, at + len)] {
        match address {
            Some(IpAddr::V4(address)) => put(&mut frame, at, &address.octets()),
            Some(IpAddr::V6(address)) => put(&mut frame, at, &address.octets()),
            None => {}
        }
    }
    if len == 4 {
        put(&mut frame, l3 + 10, &[0, 0]);
        let sum = !slow_sum(&frame[l3..l4]);
        put(&mut frame, l3 + 10, &sum.to_be_bytes());
    }
    let addresses = frame[at..at + 2 * len].to_vec();
    slow_transport(&mut frame[l4..end], protocol, &addresses, change);
    frame
}

fn slow_transport(segment: &mut [u8], protocol: u8, addresses: &[u8], change: &Change) {
    let is_echo = match protocol {
        proto::ICMP => icmp::is_echo(segment[0]),
        proto::ICMPV6 => icmpv6::is_echo(segment[0]),
        _ => false,
    };
    let places: &[(Option<u16>, usize)] = match protocol {
        proto::TCP | proto::UDP | proto::SCTP => &[(change.sport, 0), (change.dport, 2)],
        _ if is_echo => &[(change.sport, 4)],
        _ => &[],
    };
    for (port, at) in places {
        if let Some(port) = port {
            put(segment, *at, &port.to_be_bytes());
        }
    }
    let at = match protocol {
        proto::TCP => 16,
        proto::UDP if segment[6..8] == [0, 0] => return,
        proto::UDP => 6,
        proto::ICMP | proto::ICMPV6 => 2,
        proto::SCTP => return sctp::finish_checksum(segment).unwrap(),
        _ => return,
    };
    put(segment, at, &[0, 0]);
    let sum =
        if protocol == proto::ICMP { slow_sum(segment) } else { with_pseudo(addresses, protocol, segment) };
    let sum = if protocol == proto::UDP && !sum == 0 { 0xffff } else { !sum };
    put(segment, at, &sum.to_be_bytes());
}

fn is_v4(parsed: &Parsed) -> bool {
    matches!(parsed.net, Net::V4(_))
}

/// The fields that a rewrite may change, as the parser tells them.
fn fields(parsed: &Parsed) -> (IpAddr, IpAddr, u16, u16) {
    match parsed.net {
        Net::V4(flow) => (flow.src.into(), flow.dst.into(), flow.sport, flow.dport),
        Net::V6(flow) => (flow.src.into(), flow.dst.into(), flow.sport, flow.dport),
        _ => panic!("no IP packet"),
    }
}

/// An ICMP error about `quotation`, an IP packet's beginning, with its checksums right.
fn error_about(quotation: &[u8], is_v4: bool) -> Vec<u8> {
    let (src, dst) = ([192, 0, 2, 1].into(), [192, 0, 2, 2].into());
    if is_v4 {
        let message =
            [&icmp::Repr { kind: 3, code: 1, rest: [0; 4] }.emit(quotation)[..], quotation].concat();
        let header = ipv4::Repr {
            src,
            dst,
            protocol: proto::ICMP,
            tos: 0,
            ttl: 64,
            dont_fragment: false,
            payload_len: message.len() as u16,
        };
        return [&[0; 12][..], &ethernet::IPV4.to_be_bytes(), &header.emit(), &message].concat();
    }
    let (src, dst) = (src.to_ipv6_mapped(), dst.to_ipv6_mapped());
    let repr = icmpv6::Repr { kind: 1, code: 3, rest: [0; 4] };
    let message = [&repr.emit(src, dst, quotation)[..], quotation].concat();
    let header = ipv6::Repr {
        src,
        dst,
        next_header: proto::ICMPV6,
        traffic_class: 0,
        flow_label: 0,
        hop_limit: 64,
        payload_len: message.len() as u16,
    };
    [&[0; 12][..], &ethernet::IPV6.to_be_bytes(), &header.emit(), &message].concat()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    #[test]
    fn a_rewrite_is_what_setting_the_fields_and_summing_anew_gives(frame in any_packet(), wish in any_wish()) {
        let parsed = parse(&frame).unwrap();
        let change = wish.of(is_v4(&parsed));
        let expected = slow(&frame, &parsed, &change);
        let mut rewritten = frame.clone();
        rewrite(&mut rewritten, &parsed, &change).unwrap();
        prop_assert_eq!(&rewritten, &expected);
        // And back again, byte by byte.
        let (src, dst, sport, dport) = fields(&parsed);
        let back = Change { src: Some(src), dst: Some(dst), sport: Some(sport), dport: Some(dport) };
        rewrite(&mut rewritten, &parse(&expected).unwrap(), &back).unwrap();
        prop_assert_eq!(&rewritten, &frame);
    }

    #[test]
    fn fragments_of_a_rewritten_packet_are_the_rewritten_fragments(
        sound in any_sound(), wish in any_wish(), mtu in 68..200u16,
    ) {
        let mut sound = Sound { vlan: None, ..sound };
        sound.network = Network::V4([10, 0, 0, 1], [10, 0, 0, 2]);
        let mut frame = sound.frame();
        // Whatever the sender said of it, this packet may be cut.
        frame[L2 + 6..L2 + 8].fill(0);
        let whole = parse_mended(&mut frame);
        let change = wish.of(true);
        let expected = slow(&frame, &whole, &change);
        let cut = |frame: &[u8]| -> Vec<Vec<u8>> {
            let packet = &frame[L2..];
            fragment::pieces(packet, mtu).unwrap().map(|piece| [piece.header(), &packet[piece.payload()]].concat()).collect()
        };
        for (mut piece, expected) in cut(&frame).into_iter().zip(cut(&expected)) {
            let parsed = parse_l3(ethernet::IPV4, &piece).unwrap();
            rewrite(&mut piece, &parsed, &change).unwrap();
            prop_assert_eq!(piece, expected);
        }
    }

    #[test]
    fn an_error_and_what_it_quotes_are_as_if_sent_about_the_rewritten_packet(
        frame in any_packet(), outer in any_wish(), inner in any_wish(), cut in any::<prop::sample::Index>(),
    ) {
        let parsed = parse(&frame).unwrap();
        let v4 = is_v4(&parsed);
        let (l3, l4, end) = (usize::from(parsed.l3), usize::from(parsed.l4), usize::from(parsed.end));
        let least = (l4 - l3 + 8).min(end - l3);
        let len = least + cut.index((end - l3 - least + 1).min(600));
        // A quotation that ends inside a checksum has the old half of it; that is nobody's loss, and not compared.
        let reach = l3 + len - l4;
        prop_assume!(!(reach == 17 || (9..12).contains(&reach)));
        let inner = inner.of(v4);
        let about = slow(&frame, &parsed, &inner);
        let mut error = error_about(&frame[l3..l3 + len], v4);
        let expected = error_about(&about[l3..l3 + len], v4);
        let outer = Change { sport: None, dport: None, ..outer.of(v4) };
        let expected = slow(&expected, &parse(&expected).unwrap(), &outer);
        let parsed_error = parse(&error).unwrap();
        let written = rewrite_error(&mut error, &parsed_error, &outer, &inner);
        // Quotations of less than eight bytes of ports are malformed; `any_packet` has none.
        prop_assert_eq!(written, Ok(()));
        prop_assert_eq!(error, expected);
    }
}

/// Mends the header checksum of an untagged IPv4 frame and parses it.
fn parse_mended(frame: &mut [u8]) -> Parsed {
    frame[L2 + 10..L2 + 12].fill(0);
    let sum = checksum::sum(&frame[L2..L2 + 20]).finish();
    put(frame, L2 + 10, &sum.to_be_bytes());
    parse(frame).unwrap()
}

fn udp() -> Vec<u8> {
    let network = Network::V4([10, 0, 0, 1], [10, 0, 0, 2]);
    Sound { vlan: None, network, hops: 64, transport: Transport::Udp(1, 2), payload: vec![0; 30] }.frame()
}

#[test]
fn a_damaged_packet_stays_damaged() {
    let mut frame = udp();
    let parsed = parse(&frame).unwrap();
    frame[50] ^= 1;
    rewrite(&mut frame, &parsed, &Change { sport: Some(9), ..Change::default() }).unwrap();
    let segment = &frame[34..];
    assert_ne!(with_pseudo(&frame[26..34], proto::UDP, segment), 0xffff);
}

#[test]
fn what_cannot_be_rewritten_is_left_as_it_was() {
    let frame = udp();
    let parsed = parse(&frame).unwrap();
    let refused = |parsed: &Parsed, change: Change, frame: &[u8]| {
        let mut rewritten = frame.to_vec();
        let error = rewrite(&mut rewritten, parsed, &change).unwrap_err();
        assert_eq!(rewritten, frame);
        error
    };
    let other = Change { dst: Some([0; 16].into()), ..Change::default() };
    assert_eq!(refused(&parsed, other, &frame), CannotRewrite::OtherFamily);
    assert_eq!(refused(&parsed, Change::default(), &frame[..40]), CannotRewrite::Truncated);
    let arp = Parsed { net: Net::Arp, ..parsed };
    assert_eq!(refused(&arp, Change::default(), &frame), CannotRewrite::NotIp);
    let not_an_error = rewrite_error(&mut frame.clone(), &parsed, &Change::default(), &Change::default());
    assert_eq!(not_an_error, Err(CannotRewrite::NotAnError));
}

#[test]
fn the_first_fragment_of_sctp_keeps_its_ports_or_is_refused() {
    let network = Network::V4([10, 0, 0, 1], [10, 0, 0, 2]);
    let mut frame = sctp_frame(network, [0, 1, 0, 2, 0, 0, 0, 0], &[0; 60]);
    frame[L2 + 6] = 0x20;
    let parsed = parse_mended(&mut frame);
    let Net::V4(flow) = parsed.net else { panic!("this is IPv4") };
    let ports = Change { dport: Some(7), ..Change::default() };
    assert_eq!(Rewrite4::new(&flow, &ports), Err(CannotRewrite::FragmentedSctp));
    let address = Change { dst: Some([10, 0, 0, 9].into()), ..Change::default() };
    let before = frame[34..].to_vec();
    assert_eq!(rewrite(&mut frame, &parsed, &address), Ok(()));
    assert_eq!(frame[34..], before);
}
