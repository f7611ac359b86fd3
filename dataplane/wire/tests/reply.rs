//! What the gateway answers, and what it must leave unanswered.

#![allow(clippy::unwrap_used, reason = "the leave for tests does not reach the functions beside them")]

mod common;

use common::{GATEWAY, Network, SENDER, Sound, Transport, any_frame};
use penstock_wire::arp::{self, Arp};
use penstock_wire::ethernet::{self, Ethernet};
use penstock_wire::icmp::{self, Icmp};
use penstock_wire::icmpv6::{self, Icmpv6};
use penstock_wire::ipv4::Ipv4;
use penstock_wire::ipv6::{self, Ipv6};
use penstock_wire::ndp::{self, Neighbour};
use penstock_wire::parse::{Net, parse, parse_quoted};
use penstock_wire::reply::{self, Problem, Unreachable};
use penstock_wire::tcp::{self, Tcp};
use penstock_wire::{MacAddr, checksum, proto};
use proptest::prelude::*;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const MAC: MacAddr = MacAddr([2, 0x70, 0, 0, 0, 1]);
const POD_V4: [u8; 4] = [10, 1, 0, 5];
const FAR_V4: [u8; 4] = [10, 2, 0, 9];
const POD_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 1, 0, 0, 0, 5);
const FAR_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 2, 0, 0, 0, 9);
const ROUTER_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
const ROUTER_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

fn v4() -> Network {
    Network::V4(POD_V4, FAR_V4)
}

fn v6() -> Network {
    Network::V6(POD_V6.octets(), FAR_V6.octets())
}

fn frame(network: Network, transport: Transport, payload: usize) -> Vec<u8> {
    Sound { vlan: None, network, hops: 1, transport, payload: vec![0x42; payload] }.frame()
}

/// The answer that `write` gives, in a buffer of frame size.
fn answer(write: impl FnOnce(&mut [u8]) -> Option<usize>) -> Option<Vec<u8>> {
    let mut out = vec![0xa5; 2048];
    let len = write(&mut out)?;
    assert!(out[len..].iter().all(|byte| *byte == 0xa5), "bytes behind the answer are left alone");
    out.truncate(len);
    Some(out)
}

fn error(frame: &[u8], problem: Problem) -> Option<Vec<u8>> {
    let parsed = parse(frame).unwrap();
    let from = if matches!(parsed.net, Net::V4(_)) { IpAddr::V4(ROUTER_V4) } else { IpAddr::V6(ROUTER_V6) };
    answer(|out| reply::error(frame, &parsed, problem, from, out))
}

fn echo(frame: &[u8]) -> Option<Vec<u8>> {
    answer(|out| reply::echo(frame, &parse(frame).unwrap(), out))
}

fn arp_request(repr: arp::Repr) -> Vec<u8> {
    let header = ethernet::Repr { dst: MacAddr::BROADCAST, src: repr.sender_mac, ethertype: ethernet::ARP };
    [&header.emit()[..], &repr.emit(), &[0; 18]].concat()
}

fn arp_answer(repr: arp::Repr) -> Option<Vec<u8>> {
    let frame = arp_request(repr);
    answer(|out| reply::arp(&frame, &parse(&frame).unwrap(), MAC, out))
}

const WHO_HAS: arp::Repr = arp::Repr {
    operation: arp::REQUEST,
    sender_mac: MacAddr(SENDER),
    sender: Ipv4Addr::new(10, 1, 0, 5),
    target_mac: MacAddr::ZERO,
    target: ROUTER_V4,
};

#[test]
fn arp_request_is_answered_to_who_asked() {
    let reply = arp_answer(WHO_HAS).unwrap();
    let link = Ethernet::new_checked(&reply).unwrap();
    assert_eq!((link.dst(), link.src(), link.ethertype()), (MacAddr(SENDER), MAC, ethernet::ARP));
    let view = Arp::new_checked(link.payload()).unwrap();
    assert_eq!((view.operation(), view.sender_mac(), view.sender()), (arp::REPLY, MAC, ROUTER_V4));
    assert_eq!((view.target_mac(), view.target()), (MacAddr(SENDER), WHO_HAS.sender));
}

#[test]
fn arp_announcements_and_replies_are_left_alone_and_probes_are_not() {
    assert_eq!(arp_answer(arp::Repr { sender: ROUTER_V4, ..WHO_HAS }), None);
    assert_eq!(arp_answer(arp::Repr { operation: arp::REPLY, ..WHO_HAS }), None);
    assert_eq!(arp_answer(arp::Repr { sender_mac: MacAddr::BROADCAST, ..WHO_HAS }), None);
    assert!(arp_answer(arp::Repr { sender: Ipv4Addr::UNSPECIFIED, ..WHO_HAS }).is_some());
}

/// A solicitation for the router; `src` unspecified makes it a probe.
fn solicitation(src: Ipv6Addr, dst: Ipv6Addr, hop_limit: u8, with_source: bool) -> Vec<u8> {
    let mut message = vec![ndp::SOLICITATION, 0, 0, 0, 0, 0, 0, 0];
    message.extend(ROUTER_V6.octets());
    if with_source {
        message.extend([ndp::OPTION_SOURCE, 1]);
        message.extend(SENDER);
    }
    let sum = icmpv6::sum(src, dst, &message).finish();
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    let payload_len = message.len() as u16;
    let next_header = proto::ICMPV6;
    let ip = ipv6::Repr { src, dst, next_header, traffic_class: 0, flow_label: 0, hop_limit, payload_len };
    let link = ethernet::Repr {
        dst: MacAddr([0x33, 0x33, 0xff, 0, 0, 1]),
        src: MacAddr(SENDER),
        ethertype: ethernet::IPV6,
    };
    [&link.emit()[..], &ip.emit(), &message].concat()
}

fn advertisement(frame: &[u8]) -> Option<Vec<u8>> {
    answer(|out| reply::advertisement(frame, &parse(frame).unwrap(), MAC, true, out))
}

#[test]
fn solicitation_is_answered_to_who_asked() {
    let reply = advertisement(&solicitation(POD_V6, ndp::solicited_node(ROUTER_V6), 255, true)).unwrap();
    let link = Ethernet::new_checked(&reply).unwrap();
    assert_eq!((link.dst(), link.src()), (MacAddr(SENDER), MAC));
    let ip = Ipv6::new_checked(link.payload()).unwrap();
    assert_eq!((ip.src(), ip.dst(), ip.hop_limit()), (ROUTER_V6, POD_V6, 255));
    assert!(icmpv6::sum(ip.src(), ip.dst(), ip.payload()).is_valid());
    let view = Neighbour::new_checked(ip.payload()).unwrap();
    assert_eq!((view.kind(), view.target()), (ndp::ADVERTISEMENT, ROUTER_V6));
    assert_eq!(view.flags(), ndp::ROUTER | ndp::SOLICITED | ndp::OVERRIDE);
    assert_eq!(view.link_address(ndp::OPTION_TARGET), Some(MAC));
}

#[test]
fn a_probe_for_the_address_is_answered_to_all_nodes() {
    let group = ndp::solicited_node(ROUTER_V6);
    let reply = advertisement(&solicitation(Ipv6Addr::UNSPECIFIED, group, 255, false)).unwrap();
    let link = Ethernet::new_checked(&reply).unwrap();
    let ip = Ipv6::new_checked(link.payload()).unwrap();
    assert_eq!((link.dst(), ip.dst()), (ndp::ALL_NODES_MAC, ndp::ALL_NODES));
    assert_eq!(Neighbour::new_checked(ip.payload()).unwrap().flags(), ndp::ROUTER | ndp::OVERRIDE);
}

#[test]
fn unsound_solicitations_are_left_alone() {
    let group = ndp::solicited_node(ROUTER_V6);
    assert_eq!(advertisement(&solicitation(POD_V6, group, 254, true)), None, "it was routed");
    let mut wrong = solicitation(POD_V6, group, 255, true);
    wrong[56] ^= 1;
    assert_eq!(advertisement(&wrong), None, "its checksum is wrong");
    let unspecified = Ipv6Addr::UNSPECIFIED;
    assert_eq!(advertisement(&solicitation(unspecified, group, 255, true)), None, "a probe names no station");
    assert_eq!(
        advertisement(&solicitation(unspecified, ROUTER_V6, 255, false)),
        None,
        "a probe goes to the group"
    );
    assert_eq!(advertisement(&frame(v6(), Transport::Udp(1, 2), 8)), None, "it is no solicitation");
}

#[test]
fn pings_come_back_with_what_they_carried() {
    for payload in [0, 1, 56, 1400] {
        let request = frame(v4(), Transport::Echo(7, 9), payload);
        let reply = echo(&request).unwrap();
        let link = Ethernet::new_checked(&reply).unwrap();
        assert_eq!((link.dst(), link.src()), (MacAddr(SENDER), MacAddr(GATEWAY)));
        let ip = Ipv4::new_checked(link.payload()).unwrap();
        assert_eq!((ip.src(), ip.dst(), ip.ttl()), (FAR_V4.into(), POD_V4.into(), 64));
        assert!(checksum::verify(ip.payload()));
        let message = Icmp::new_checked(ip.payload()).unwrap();
        assert_eq!(
            (message.kind(), message.identifier(), message.sequence()),
            (icmp::ECHO_REPLY, Some(7), Some(9))
        );
        assert_eq!(message.payload(), vec![0x42; payload]);

        let reply = echo(&frame(v6(), Transport::Echo(7, 9), payload)).unwrap();
        let ip = Ipv6::new_checked(&reply[14..]).unwrap();
        assert_eq!((ip.src(), ip.dst()), (FAR_V6, POD_V6));
        assert!(icmpv6::sum(ip.src(), ip.dst(), ip.payload()).is_valid());
        let message = Icmpv6::new_checked(ip.payload()).unwrap();
        assert_eq!((message.kind(), message.identifier(), message.sequence()), (129, Some(7), Some(9)));
        assert_eq!(message.payload(), vec![0x42; payload]);
    }
}

#[test]
fn pings_with_a_wrong_checksum_or_to_a_group_are_left_alone() {
    for network in [v4(), v6()] {
        let mut wrong = frame(network, Transport::Echo(7, 9), 8);
        *wrong.last_mut().unwrap() ^= 1;
        assert_eq!(echo(&wrong), None);
    }
    assert_eq!(echo(&frame(Network::V4(POD_V4, [224, 0, 0, 1]), Transport::Echo(7, 9), 8)), None);
    assert_eq!(
        echo(&frame(Network::V6(POD_V6.octets(), ndp::ALL_NODES.octets()), Transport::Echo(7, 9), 8)),
        None
    );
    assert_eq!(echo(&frame(Network::V4([255; 4], FAR_V4), Transport::Echo(7, 9), 8)), None);
    let mut broadcast = frame(v4(), Transport::Echo(7, 9), 8);
    broadcast[..6].fill(0xff);
    assert_eq!(echo(&broadcast), None);
    assert_eq!(echo(&frame(v4(), Transport::Udp(7, 9), 8)), None);
}

#[test]
fn errors_name_the_problem_and_quote_the_packet() {
    let table = [
        (Problem::HopsExceeded, (11, 0, 0), (3, 0, 0)),
        (Problem::TooBig { mtu: 1400 }, (3, 4, 1400), (2, 0, 1400)),
        (Problem::Unreachable(Unreachable::Network), (3, 0, 0), (1, 0, 0)),
        (Problem::Unreachable(Unreachable::Host), (3, 1, 0), (1, 3, 0)),
        (Problem::Unreachable(Unreachable::Port), (3, 3, 0), (1, 4, 0)),
        (Problem::Unreachable(Unreachable::Prohibited), (3, 13, 0), (1, 1, 0)),
    ];
    for (problem, of_v4, of_v6) in table {
        let packet = frame(v4(), Transport::Udp(1000, 53), 100);
        let reply = error(&packet, problem).unwrap();
        let ip = Ipv4::new_checked(&reply[14..]).unwrap();
        assert_eq!((ip.src(), ip.dst(), ip.tos()), (ROUTER_V4, POD_V4.into(), 0xc0));
        assert!(checksum::verify(ip.payload()));
        let message = Icmp::new_checked(ip.payload()).unwrap();
        let mtu = u32::from_be_bytes(ip.payload()[4..8].try_into().unwrap());
        assert_eq!((message.kind(), message.code(), mtu), of_v4);
        assert_eq!(message.quoted(), Some(&packet[14..]));
        let quoted = parse_quoted(ethernet::IPV4, message.quoted().unwrap()).unwrap();
        assert!(matches!(quoted.net, Net::V4(flow) if (flow.sport, flow.dport) == (1000, 53)));

        let packet = frame(v6(), Transport::Tcp(1000, 53), 100);
        let reply = error(&packet, problem).unwrap();
        let ip = Ipv6::new_checked(&reply[14..]).unwrap();
        assert_eq!((ip.src(), ip.dst()), (ROUTER_V6, POD_V6));
        assert!(icmpv6::sum(ip.src(), ip.dst(), ip.payload()).is_valid());
        let message = Icmpv6::new_checked(ip.payload()).unwrap();
        let mtu = u32::from_be_bytes(ip.payload()[4..8].try_into().unwrap());
        assert_eq!((message.kind(), message.code(), mtu), of_v6);
        assert_eq!(message.quoted(), Some(&packet[14..]));
    }
}

/// A TCP frame with these flags, acknowledgement number 7777, and a payload; etherparse gives sequence number 1.
fn tcp_frame(network: Network, flags: u8, payload: usize) -> Vec<u8> {
    let mut frame = frame(network, Transport::Tcp(1000, 80), payload);
    let l4 = usize::from(parse(&frame).unwrap().l4);
    frame[l4 + 8..l4 + 12].copy_from_slice(&7777u32.to_be_bytes());
    frame[l4 + tcp::FLAGS_AT] = flags;
    frame
}

fn reset(frame: &[u8]) -> Option<Vec<u8>> {
    answer(|out| reply::reset(frame, &parse(frame).unwrap(), out))
}

#[test]
fn a_reset_acknowledges_what_it_refuses_or_takes_the_number_that_was_expected() {
    use tcp::{ACK, FIN, PSH, RST, SYN};
    let table = [
        (SYN, 0, (0, 2, RST | ACK)),
        (SYN | FIN, 10, (0, 13, RST | ACK)),
        (PSH, 10, (0, 11, RST | ACK)),
        (ACK, 0, (7777, 0, RST)),
        (SYN | ACK, 0, (7777, 0, RST)),
        (FIN | ACK | PSH, 500, (7777, 0, RST)),
    ];
    for (flags, payload, expected) in table {
        for network in [v4(), v6()] {
            let reply = reset(&tcp_frame(network, flags, payload)).unwrap();
            let link = Ethernet::new_checked(&reply).unwrap();
            assert_eq!((link.dst(), link.src()), (MacAddr(SENDER), MacAddr(GATEWAY)));
            let parsed = parse(&reply).unwrap();
            let bytes = &reply[parsed.l4.into()..parsed.end.into()];
            let pseudo = match parsed.net {
                Net::V4(flow) => {
                    assert_eq!((flow.src, flow.dst, flow.ttl), (FAR_V4.into(), POD_V4.into(), 64));
                    checksum::pseudo_v4(flow.src, flow.dst, proto::TCP, bytes.len() as u16)
                }
                Net::V6(flow) => {
                    assert_eq!((flow.src, flow.dst, flow.hop_limit), (FAR_V6, POD_V6, 64));
                    checksum::pseudo_v6(flow.src, flow.dst, proto::TCP, bytes.len() as u32)
                }
                _ => panic!("no IP packet"),
            };
            assert!(pseudo.add_bytes(bytes).is_valid());
            let view = Tcp::new_checked(bytes).unwrap();
            assert_eq!((view.src_port(), view.dst_port(), view.payload().len()), (80, 1000, 0));
            assert_eq!((view.sequence(), view.acknowledgement(), view.flags()), expected, "to {flags:#x}");
        }
    }
}

#[test]
fn resets_other_protocols_and_groups_are_not_reset() {
    for network in [v4(), v6()] {
        assert_eq!(reset(&tcp_frame(network.clone(), tcp::RST, 0)), None);
        assert_eq!(reset(&tcp_frame(network.clone(), tcp::RST | tcp::ACK, 0)), None);
        assert_eq!(reset(&frame(network.clone(), Transport::Udp(1, 2), 30)), None);
        let mut broadcast = tcp_frame(network, tcp::SYN, 0);
        broadcast[..6].fill(0xff);
        assert_eq!(reset(&broadcast), None);
    }
    assert_eq!(reset(&tcp_frame(Network::V4(POD_V4, [224, 0, 0, 1]), tcp::SYN, 0)), None);
    assert_eq!(reset(&tcp_frame(Network::V4([0; 4], FAR_V4), tcp::SYN, 0)), None);
    let mut fragment = tcp_frame(v4(), tcp::SYN, 12);
    fragment[20] = 0x20;
    fragment[24..26].fill(0);
    let sum = checksum::sum(&fragment[14..34]).finish();
    fragment[24..26].copy_from_slice(&sum.to_be_bytes());
    assert_eq!(reset(&fragment), None);
}

#[test]
fn quotations_stop_at_the_limits_of_the_rfcs() {
    let reply = error(&frame(v4(), Transport::Udp(1, 2), 1400), Problem::HopsExceeded).unwrap();
    assert_eq!(reply.len(), 14 + 576);
    let reply = error(&frame(v6(), Transport::Udp(1, 2), 1400), Problem::HopsExceeded).unwrap();
    assert_eq!(reply.len(), 14 + 1280);
}

#[test]
fn tags_of_the_question_are_on_the_answer() {
    let tagged =
        Sound { vlan: Some(100), network: v4(), hops: 1, transport: Transport::Echo(1, 1), payload: vec![] };
    let tagged = tagged.frame();
    let reply = echo(&tagged).unwrap();
    assert_eq!(parse(&reply).unwrap().vlan, 100);
    let reply = error(&tagged, Problem::HopsExceeded).unwrap();
    assert_eq!(parse(&reply).unwrap().vlan, 100);
}

#[test]
fn no_error_is_sent_about_errors_groups_or_nobody() {
    let udp = Transport::Udp(1, 2);
    for src in [[0; 4], [127, 0, 0, 1], [224, 0, 0, 1], [255; 4], [240, 0, 0, 1]] {
        assert_eq!(error(&frame(Network::V4(src, FAR_V4), udp.clone(), 8), Problem::HopsExceeded), None);
    }
    for dst in [[224, 0, 0, 1], [255; 4]] {
        assert_eq!(error(&frame(Network::V4(POD_V4, dst), udp.clone(), 8), Problem::HopsExceeded), None);
    }
    for (src, dst) in [
        (Ipv6Addr::UNSPECIFIED, FAR_V6),
        (Ipv6Addr::LOCALHOST, FAR_V6),
        (ndp::ALL_NODES, FAR_V6),
        (POD_V6, ndp::ALL_NODES),
    ] {
        let network = Network::V6(src.octets(), dst.octets());
        assert_eq!(error(&frame(network, udp.clone(), 8), Problem::HopsExceeded), None);
    }
    for network in [v4(), v6()] {
        let packet = frame(network, udp.clone(), 8);
        let about = error(&packet, Problem::HopsExceeded).unwrap();
        assert_eq!(error(&about, Problem::HopsExceeded), None);
        let mut broadcast = packet;
        broadcast[..6].fill(0xff);
        assert_eq!(error(&broadcast, Problem::HopsExceeded), None);
    }
}

#[test]
fn no_error_is_sent_about_later_fragments() {
    let mut packet = frame(v4(), Transport::Udp(1, 2), 8);
    for (word, answered) in [([0x20, 0x00], true), ([0x20, 0x08], false), ([0x00, 0x08], false)] {
        packet[20..22].copy_from_slice(&word);
        packet[24..26].fill(0);
        let sum = checksum::sum(&packet[14..34]).finish();
        packet[24..26].copy_from_slice(&sum.to_be_bytes());
        assert_eq!(error(&packet, Problem::HopsExceeded).is_some(), answered, "{word:x?}");
    }
}

#[test]
fn an_address_of_the_other_family_cannot_answer() {
    let packet = frame(v4(), Transport::Udp(1, 2), 8);
    let mut out = [0; 2048];
    let parsed = parse(&packet).unwrap();
    assert_eq!(reply::error(&packet, &parsed, Problem::HopsExceeded, ROUTER_V6.into(), &mut out), None);
}

/// Something that writes an answer into the bytes it is given.
type Writer<'a> = &'a dyn Fn(&mut [u8]) -> Option<usize>;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2048))]

    /// Whatever comes in, what goes out is sound, goes to a single host and asks for no answer; a short buffer is
    /// never overrun.
    #[test]
    fn every_answer_is_sound_and_answered_by_none(frame in any_frame(), room in 0..1600usize) {
        let Ok(parsed) = parse(&frame) else { return Ok(()) };
        let mut out = vec![0; room];
        let from = if matches!(parsed.net, Net::V4(_)) { IpAddr::V4(ROUTER_V4) } else { IpAddr::V6(ROUTER_V6) };
        let writers: [Writer<'_>; 5] = [
            &|out| reply::arp(&frame, &parsed, MAC, out),
            &|out| reply::advertisement(&frame, &parsed, MAC, false, out),
            &|out| reply::echo(&frame, &parsed, out),
            &|out| reply::error(&frame, &parsed, Problem::HopsExceeded, from, out),
            &|out| reply::reset(&frame, &parsed, out),
        ];
        for (which, write) in writers.iter().enumerate() {
            let Some(len) = write(&mut out) else { continue };
            let answer = &out[..len];
            let again = parse(answer).unwrap();
            let mut behind = [0; 2048];
            prop_assert_eq!(reply::arp(answer, &again, MAC, &mut behind), None);
            prop_assert_eq!(reply::advertisement(answer, &again, MAC, false, &mut behind), None);
            prop_assert_eq!(reply::echo(answer, &again, &mut behind), None);
            prop_assert_eq!(reply::reset(answer, &again, &mut behind), None);
            if which == 3 {
                prop_assert_eq!(reply::error(answer, &again, Problem::HopsExceeded, from, &mut behind), None);
            }
        }
    }
}
