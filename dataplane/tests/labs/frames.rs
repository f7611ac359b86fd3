//! Frames written by hand, so that they can be wrong in just one place.

use std::fmt::Write;
use std::net::{Ipv4Addr, Ipv6Addr};

/// An Ethernet frame.
pub fn ethernet(to: [u8; 6], from: [u8; 6], kind: u16, payload: &[u8]) -> Vec<u8> {
    [&to[..], &from, &kind.to_be_bytes(), payload].concat()
}

/// An IPv4 packet with TTL 64 and a right checksum.
pub fn ipv4(from: Ipv4Addr, to: Ipv4Addr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 0, 0, 1, 0, 0, 64, protocol, 0, 0];
    packet[2..4].copy_from_slice(&(20 + payload.len() as u16).to_be_bytes());
    packet.extend(from.octets());
    packet.extend(to.octets());
    seal(&mut packet);
    packet.extend(payload);
    packet
}

/// Puts the right checksum into an IPv4 header of twenty bytes.
pub fn seal(packet: &mut [u8]) {
    packet[10..12].fill(0);
    let checksum = checksum(&packet[..20]);
    packet[10..12].copy_from_slice(&checksum);
}

/// The Internet checksum (RFC 1071) of an even number of bytes.
fn checksum(bytes: &[u8]) -> [u8; 2] {
    let mut sum: u32 = bytes.chunks(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]]))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!(sum as u16)).to_be_bytes()
}

/// An ICMP echo request (RFC 792).
pub fn echo(identifier: u16, sequence: u16) -> Vec<u8> {
    let mut message =
        [&[8, 0, 0, 0][..], &identifier.to_be_bytes(), &sequence.to_be_bytes(), &[0x5a; 32]].concat();
    let checksum = checksum(&message);
    message[2..4].copy_from_slice(&checksum);
    message
}

/// An IPv6 packet with hop limit 64.
pub fn ipv6(from: Ipv6Addr, to: Ipv6Addr, next: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0, 0, 0, next, 64];
    packet[4..6].copy_from_slice(&(payload.len() as u16).to_be_bytes());
    packet.extend(from.octets());
    packet.extend(to.octets());
    packet.extend(payload);
    packet
}

/// A UDP datagram without a checksum, which IPv4 allows.
pub fn udp(from: u16, to: u16, payload: &[u8]) -> Vec<u8> {
    let length = 8 + payload.len() as u16;
    [&from.to_be_bytes()[..], &to.to_be_bytes(), &length.to_be_bytes(), &[0, 0], payload].concat()
}

/// A VXLAN header and what it carries (RFC 7348, section 5).
pub fn vxlan(vni: u32, frame: &[u8]) -> Vec<u8> {
    [&[8, 0, 0, 0][..], &(vni << 8).to_be_bytes(), frame].concat()
}

/// A Geneve header with `options` and what it carries (RFC 8926, section 3.4).
pub fn geneve(vni: u32, options: &[u8], frame: &[u8]) -> Vec<u8> {
    [&[options.len() as u8 / 4, 0, 0x65, 0x58][..], &(vni << 8).to_be_bytes(), options, frame].concat()
}

/// The frames as trafgen reads them.
pub fn trafgen(frames: &[Vec<u8>]) -> String {
    let mut text = String::new();
    for frame in frames {
        let bytes: Vec<_> = frame.iter().map(|byte| format!("{byte:#04x}")).collect();
        writeln!(text, "{{ {} }}", bytes.join(", ")).expect("a string takes all");
    }
    text
}
