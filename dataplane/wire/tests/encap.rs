//! Templates against an emitter that writes every field by itself, and against a parser that is not ours.

#![allow(clippy::unwrap_used, reason = "the leave for tests does not reach the functions beside them")]

use penstock_wire::dsr::ServedAs;
use penstock_wire::encap::{DscpMode, ENTROPY_PORTS, EncapTemplate, OuterAddresses, OuterPath};
use penstock_wire::geneve::{self, GeneveOption};
use penstock_wire::{MacAddr, Vni, decap, ecn, parse, vxlan};
use proptest::prelude::*;
use std::net::{Ipv4Addr, Ipv6Addr};

/// Which tunnel a case is about.
#[derive(Clone, Debug)]
enum Tunnel {
    Vxlan,
    Geneve(Vec<GeneveOption>),
}

/// The fields that differ from packet to packet.
#[derive(Clone, Debug)]
struct Inner {
    packet: Vec<u8>,
    tos: u8,
    ethertype: u16,
    entropy: u32,
}

/// RFC 1071 as its text has it: word by word, carries wrapped at once.
fn slow_checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = 0;
    for pair in bytes.chunks(2) {
        sum += u32::from(pair[0]) * 256 + pair.get(1).map_or(0, |low| u32::from(*low));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// The headers in front of `inner`, field by field from the RFCs' pictures.
fn slow_headers(path: &OuterPath, vni: Vni, tunnel: &Tunnel, inner: &Inner) -> Vec<u8> {
    let mut shim = Vec::new();
    match tunnel {
        Tunnel::Vxlan => shim.extend([8, 0, 0, 0]),
        Tunnel::Geneve(options) => {
            let words: usize = options.iter().map(|option| 1 + option.data.len() / 4).sum();
            let critical = options.iter().any(|option| option.kind >= 128);
            shim.extend([words as u8, if critical { 0x40 } else { 0 }, 0x65, 0x58]);
        }
    }
    shim.extend(&vni.get().to_be_bytes()[1..]);
    shim.push(0);
    if let Tunnel::Geneve(options) = tunnel {
        for option in options {
            shim.extend(option.class.to_be_bytes());
            shim.push(option.kind);
            shim.push((option.data.len() / 4) as u8);
            shim.extend(&option.data);
        }
    }
    shim.extend(path.inner_dst_mac.0);
    shim.extend(path.inner_src_mac.0);
    shim.extend(inner.ethertype.to_be_bytes());

    let udp_len = (8 + shim.len() + inner.packet.len()) as u16;
    let mixed = (inner.entropy & 0xffff) ^ (inner.entropy >> 16);
    let source_port = 49152 + (mixed % 16384) as u16;
    let tos = match path.dscp {
        DscpMode::Copy => inner.tos,
        DscpMode::Fixed(dscp) => (dscp % 64) * 4 + inner.tos % 4,
    };

    let mut ip = Vec::new();
    let mut pseudo = Vec::new();
    match path.addresses {
        OuterAddresses::V4 { src, dst } => {
            ip.extend([0x45, tos]);
            ip.extend((20 + udp_len).to_be_bytes());
            ip.extend([0, 0, 0x40, 0, path.ttl, 17, 0, 0]);
            ip.extend(src.octets());
            ip.extend(dst.octets());
            let checksum = slow_checksum(&ip);
            ip[10..12].copy_from_slice(&checksum.to_be_bytes());
            pseudo.extend(src.octets());
            pseudo.extend(dst.octets());
            pseudo.extend([0, 17]);
            pseudo.extend(udp_len.to_be_bytes());
        }
        OuterAddresses::V6 { src, dst } => {
            let label = (inner.entropy % (1 << 20)) | 1;
            let word = 6 << 28 | u32::from(tos) << 20 | label;
            ip.extend(word.to_be_bytes());
            ip.extend(udp_len.to_be_bytes());
            ip.extend([17, path.ttl]);
            ip.extend(src.octets());
            ip.extend(dst.octets());
            pseudo.extend(src.octets());
            pseudo.extend(dst.octets());
            pseudo.extend(u32::from(udp_len).to_be_bytes());
            pseudo.extend([0, 0, 0, 17]);
        }
    }

    let mut udp = Vec::new();
    udp.extend(source_port.to_be_bytes());
    udp.extend(path.dst_port.to_be_bytes());
    udp.extend(udp_len.to_be_bytes());
    udp.extend([0, 0]);
    if path.udp_checksum {
        let checksum = slow_checksum(&[&pseudo[..], &udp, &shim, &inner.packet].concat());
        let field = if checksum == 0 { 0xffff } else { checksum };
        udp[6..8].copy_from_slice(&field.to_be_bytes());
    }

    let ethertype = if matches!(path.addresses, OuterAddresses::V4 { .. }) { [8, 0] } else { [0x86, 0xdd] };
    [&path.dst_mac.0[..], &path.src_mac.0, &ethertype, &ip, &udp, &shim].concat()
}

fn template(path: &OuterPath, vni: Vni, tunnel: &Tunnel) -> EncapTemplate {
    match tunnel {
        Tunnel::Vxlan => EncapTemplate::vxlan(path, vni),
        Tunnel::Geneve(options) => EncapTemplate::geneve(path, vni, options).unwrap(),
    }
}

fn stamped(template: &EncapTemplate, inner: &Inner) -> Vec<u8> {
    let mut head = vec![0xa5; template.len()];
    let length = inner.packet.len() as u16;
    template.write(&mut head, &inner.packet, length, inner.tos, inner.ethertype, inner.entropy);
    head
}

fn any_mac() -> impl Strategy<Value = MacAddr> {
    any::<[u8; 6]>().prop_map(MacAddr)
}

fn any_vni() -> impl Strategy<Value = Vni> {
    (0..1u32 << 24).prop_map(|vni| Vni::new(vni).unwrap())
}

fn any_path() -> impl Strategy<Value = OuterPath> {
    let v4 = any::<([u8; 4], [u8; 4])>()
        .prop_map(|(src, dst)| OuterAddresses::V4 { src: src.into(), dst: dst.into() });
    let v6 = any::<([u8; 16], [u8; 16])>()
        .prop_map(|(src, dst)| OuterAddresses::V6 { src: src.into(), dst: dst.into() });
    let dscp = prop_oneof![Just(DscpMode::Copy), any::<u8>().prop_map(DscpMode::Fixed)];
    let macs = (any_mac(), any_mac(), any_mac(), any_mac());
    (macs, prop_oneof![v4, v6], any::<u16>(), any::<u8>(), dscp, any::<bool>()).prop_map(
        |((src_mac, dst_mac, inner_src_mac, inner_dst_mac), addresses, dst_port, ttl, dscp, udp_checksum)| {
            OuterPath {
                src_mac,
                dst_mac,
                addresses,
                dst_port,
                ttl,
                dscp,
                udp_checksum,
                inner_src_mac,
                inner_dst_mac,
            }
        },
    )
}

/// At most 44 bytes with headers, so that they fit over IPv6 too.
fn any_tunnel() -> impl Strategy<Value = Tunnel> {
    let option =
        (any::<u16>(), any::<u8>(), 0..=2usize, any::<[u8; 8]>()).prop_map(|(class, kind, words, data)| {
            GeneveOption { class, kind, data: data[..words * 4].to_vec() }
        });
    prop_oneof![Just(Tunnel::Vxlan), prop::collection::vec(option, 0..=3).prop_map(Tunnel::Geneve),]
}

fn any_inner() -> impl Strategy<Value = Inner> {
    (prop::collection::vec(any::<u8>(), 0..1600), any::<u8>(), any::<u16>(), any::<u32>())
        .prop_map(|(packet, tos, ethertype, entropy)| Inner { packet, tos, ethertype, entropy })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2048))]

    #[test]
    fn template_writes_what_the_slow_emitter_writes(path in any_path(), vni in any_vni(), tunnel in any_tunnel(), inner in any_inner()) {
        let template = template(&path, vni, &tunnel);
        let expected = slow_headers(&path, vni, &tunnel, &inner);
        prop_assert_eq!(template.len(), expected.len());
        prop_assert_eq!(stamped(&template, &inner), expected);
    }

    #[test]
    fn what_is_encapsulated_is_found_again(path in any_path(), vni in any_vni(), tunnel in any_tunnel(), inner in any_inner()) {
        let template = template(&path, vni, &tunnel);
        let frame = [stamped(&template, &inner), inner.packet.clone()].concat();
        let parsed = parse::parse(&frame).unwrap();
        prop_assert_eq!(usize::from(parsed.end), frame.len());
        let (sport, dport, tos) = match parsed.net {
            parse::Net::V4(flow) => { prop_assert!(flow.dont_fragment); (flow.sport, flow.dport, flow.tos) }
            parse::Net::V6(flow) => { prop_assert!(flow.flow_label != 0); (flow.sport, flow.dport, flow.tclass) }
            other => return Err(TestCaseError::fail(format!("{other:?}"))),
        };
        prop_assert!(ENTROPY_PORTS.contains(&sport));
        prop_assert_eq!(dport, path.dst_port);
        prop_assert_eq!(tos & ecn::MASK, inner.tos & ecn::MASK);
        let (kind, critical) = match &tunnel {
            Tunnel::Vxlan => (decap::TunnelKind::Vxlan, false),
            Tunnel::Geneve(options) => (decap::TunnelKind::Geneve, options.iter().any(|option| option.kind & geneve::CRITICAL_OPTION != 0)),
        };
        match decap::tunnel(&frame, parsed.l4, kind) {
            Ok(found) => {
                prop_assert!(!critical);
                prop_assert_eq!((found.vni, usize::from(found.inner) + 14), (vni, template.len()));
            }
            Err(rule) => prop_assert!(critical && rule == penstock_wire::Malformed::UnknownCriticalOption),
        }
    }

    #[test]
    fn etherparse_agrees_with_what_is_written(path in any_path(), vni in any_vni(), inner in any_inner()) {
        let path = OuterPath { udp_checksum: true, ..path };
        let frame = [stamped(&EncapTemplate::vxlan(&path, vni), &inner), inner.packet.clone()].concat();
        let headers = etherparse::PacketHeaders::from_ethernet_slice(&frame).unwrap();
        let udp = headers.transport.unwrap().udp().unwrap();
        let payload = headers.payload.slice();
        match headers.net.unwrap() {
            etherparse::NetHeaders::Ipv4(ip, _) => {
                prop_assert_eq!(ip.header_checksum, ip.calc_header_checksum());
                prop_assert_eq!(udp.checksum, udp.calc_checksum_ipv4(&ip, payload).unwrap());
            }
            etherparse::NetHeaders::Ipv6(ip, _) => {
                prop_assert_eq!(udp.checksum, udp.calc_checksum_ipv6(&ip, payload).unwrap());
            }
            etherparse::NetHeaders::Arp(_) => prop_assert!(false, "an encapsulated packet is no ARP"),
        }
    }
}

fn plain_path(addresses: OuterAddresses) -> OuterPath {
    OuterPath {
        src_mac: MacAddr([2, 0, 0, 0, 0, 1]),
        dst_mac: MacAddr([2, 0, 0, 0, 0, 2]),
        addresses,
        dst_port: vxlan::PORT,
        ttl: 64,
        dscp: DscpMode::Copy,
        udp_checksum: true,
        inner_src_mac: MacAddr([2, 0x70, 0, 0, 0, 1]),
        inner_dst_mac: MacAddr([2, 0x70, 0, 0, 0, 2]),
    }
}

const V4: OuterAddresses =
    OuterAddresses::V4 { src: Ipv4Addr::new(192, 0, 2, 1), dst: Ipv4Addr::new(192, 0, 2, 2) };
const V6: OuterAddresses = OuterAddresses::V6 {
    src: Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1),
    dst: Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2),
};

#[test]
fn every_inner_length_gets_the_right_lengths_and_checksums() {
    for addresses in [V4, V6] {
        for udp_checksum in [false, true] {
            let path = OuterPath { udp_checksum, ..plain_path(addresses) };
            let template = EncapTemplate::vxlan(&path, Vni::MAX);
            for length in 0..=9000 {
                let inner =
                    Inner { packet: vec![0x5a; length], tos: 1, ethertype: 0x0800, entropy: length as u32 };
                let expected = slow_headers(&path, Vni::MAX, &Tunnel::Vxlan, &inner);
                assert_eq!(stamped(&template, &inner), expected, "inner length {length}");
            }
        }
    }
}

#[test]
fn overhead_is_50_over_ipv4_and_70_over_ipv6() {
    for (addresses, overhead) in [(V4, 50), (V6, 70)] {
        let path = plain_path(addresses);
        assert_eq!(EncapTemplate::vxlan(&path, Vni::MAX).overhead(), overhead);
        let option = GeneveOption { class: 1, kind: 1, data: vec![0; 4] };
        assert_eq!(EncapTemplate::geneve(&path, Vni::MAX, &[]).unwrap().overhead(), overhead);
        assert_eq!(EncapTemplate::geneve(&path, Vni::MAX, &[option]).unwrap().overhead(), overhead + 8);
    }
}

#[test]
fn options_that_do_not_fit_the_template_are_refused() {
    for (addresses, room) in [(V4, 64), (V6, 44)] {
        let path = plain_path(addresses);
        let options = |bytes: usize| [GeneveOption { class: 1, kind: 1, data: vec![0; bytes - 4] }];
        assert_eq!(EncapTemplate::geneve(&path, Vni::MAX, &options(room)).unwrap().len(), 128);
        let error = EncapTemplate::geneve(&path, Vni::MAX, &options(room + 4)).unwrap_err();
        assert_eq!(error, geneve::OptionsTooLong::Total { len: room + 4, max: room });
    }
}

#[test]
fn entropy_reaches_every_source_port_alike() {
    let template = EncapTemplate::vxlan(&plain_path(V4), Vni::MAX);
    let mut seen = vec![0; 1 << 16];
    for entropy in 0..1u32 << 14 {
        let inner = Inner { packet: vec![], tos: 0, ethertype: 0x0800, entropy };
        let head = stamped(&template, &inner);
        seen[usize::from(u16::from_be_bytes([head[34], head[35]]))] += 1;
    }
    for (port, count) in seen.into_iter().enumerate() {
        assert_eq!(count, usize::from(ENTROPY_PORTS.contains(&(port as u16))), "port {port}");
    }
}

#[test]
fn a_blank_that_is_stamped_is_as_if_made_for_the_service() {
    let services = [
        ServedAs { address: "192.0.2.80".parse().unwrap(), port: 443 },
        ServedAs { address: "2001:db8::80".parse().unwrap(), port: 0xfffe },
    ];
    let other = GeneveOption { class: 0x0102, kind: 1, data: vec![1, 2, 3, 4] };
    let packet: Vec<u8> = (0..101).collect();
    let other = vec![other];
    for (path, options) in [(V4, vec![]), (V4, other.clone()), (V6, other)] {
        for udp_checksum in [false, true] {
            let path = OuterPath { udp_checksum, ..plain_path(path) };
            for served_as in services {
                let with = |last| [&options[..], &[last]].concat();
                let blank = ServedAs::blank(served_as.address.is_ipv4());
                let template = EncapTemplate::geneve(&path, Vni::MAX, &with(blank)).unwrap();
                let made = EncapTemplate::geneve(&path, Vni::MAX, &with(served_as.to_option())).unwrap();
                let [mut head, mut expected] = [vec![0; template.len()], vec![0; made.len()]];
                template.write(&mut head, &packet, 101, 0, 0x0800, 77);
                made.write(&mut expected, &packet, 101, 0, 0x0800, 77);
                assert!(template.stamp_served_as(&mut head, &served_as));
                assert_eq!(head, expected);
            }
            let plain = EncapTemplate::geneve(&path, Vni::MAX, &options).unwrap();
            let mut head = vec![0; plain.len()];
            assert!(!plain.stamp_served_as(&mut head, &services[0]), "it has no room");
            assert!(head.iter().all(|byte| *byte == 0));
        }
    }
}
