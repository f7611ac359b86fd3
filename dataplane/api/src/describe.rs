//! A frame in one line, for people who watch packets pass.

use std::fmt;

use penstock_wire::arp::{self, Arp};
use penstock_wire::ethernet::Ethernet;
use penstock_wire::parse::{Fragment, Net, Parsed};
use penstock_wire::{proto, tcp};

use crate::dissect::{Facts, Packet};

/// How many tunnels inside each other are looked into.
const MAX_TUNNELS: u8 = 2;

/// Describes a frame, from its Ethernet header on: ``10.1.0.7:5353 > 10.2.0.9:53 udp, 120 bytes``.
///
/// The length is that of the IP packet. A tunnel is followed by what it carries, in braces. Any bytes will do.
#[derive(Debug, Clone, Copy)]
pub struct Description<'a> {
    frame: &'a [u8],
    /// Bytes that were on the wire, when the frame at hand was cut.
    wire_len: usize,
    tunnels: u8,
}

impl<'a> Description<'a> {
    /// The description of `frame`, of which `wire_len` bytes were on the wire.
    pub fn of(frame: &'a [u8], wire_len: usize) -> Self {
        Self { frame, wire_len, tunnels: 0 }
    }

    fn inside(&self, frame: &'a [u8]) -> Self {
        Self { frame, wire_len: frame.len(), tunnels: self.tunnels + 1 }
    }
}

impl fmt::Display for Description<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Ok(ethernet) = Ethernet::new_checked(self.frame) else {
            return write!(f, "no whole Ethernet header, {} bytes", self.frame.len());
        };
        let facts = Facts::of(self.frame);
        let parsed = match facts.parsed {
            Ok(parsed) => parsed,
            Err(why) => {
                write!(f, "{} > {} type {:#06x}, ", ethernet.src(), ethernet.dst(), ethernet.ethertype())?;
                return if self.frame.len() < self.wire_len {
                    write!(f, "cut after {} of {} bytes", self.frame.len(), self.wire_len)
                } else {
                    write!(f, "malformed: {}", why.name())
                };
            }
        };
        if parsed.vlan != 0 {
            write!(f, "vlan {} ", parsed.vlan)?;
        }
        match Packet::of(&parsed) {
            Some(packet) => {
                write_packet(f, &facts, &parsed, &packet)?;
                self.write_tunnel(f, &facts)
            }
            None => write_other(f, &facts, &parsed, &ethernet),
        }
    }
}

impl Description<'_> {
    fn write_tunnel(&self, f: &mut fmt::Formatter<'_>, facts: &Facts<'_>) -> fmt::Result {
        let Some(tunnel) = facts.tunnel().filter(|_| self.tunnels < MAX_TUNNELS) else { return Ok(()) };
        let kind = match tunnel.kind {
            penstock_wire::decap::TunnelKind::Vxlan => "vxlan",
            penstock_wire::decap::TunnelKind::Geneve => "geneve",
        };
        write!(f, ", {kind} vni {} {{ {} }}", tunnel.vni.get(), self.inside(tunnel.frame))
    }
}

fn write_packet(
    f: &mut fmt::Formatter<'_>,
    facts: &Facts<'_>,
    parsed: &Parsed,
    packet: &Packet,
) -> fmt::Result {
    let Packet { source, destination, .. } = packet;
    match packet.ports {
        Some((from, to)) if source.is_ipv4() => write!(f, "{source}:{from} > {destination}:{to} ")?,
        Some((from, to)) => write!(f, "[{source}]:{from} > [{destination}]:{to} ")?,
        None => write!(f, "{source} > {destination} ")?,
    }
    let (fragment, echo, type_and_code) = match parsed.net {
        Net::V4(flow) => (flow.fragment, flow.sport, flow.dport),
        Net::V6(flow) => (flow.fragment, flow.sport, flow.dport),
        Net::Arp | Net::Other(_) => (Fragment::Whole, 0, 0),
    };
    let [kind, code] = type_and_code.to_be_bytes();
    match packet.protocol {
        proto::TCP => write_tcp(f, facts, parsed, fragment)?,
        proto::UDP => f.write_str("udp")?,
        proto::SCTP => f.write_str("sctp")?,
        proto::ICMP if fragment != Fragment::Later => write_icmp(f, "icmp", [8, 0], kind, code, echo)?,
        proto::ICMPV6 if fragment != Fragment::Later => write_icmp(f, "icmp6", [128, 129], kind, code, echo)?,
        number => write!(f, "proto {number}")?,
    }
    if fragment != Fragment::Whole {
        f.write_str(if fragment == Fragment::First { ", first fragment" } else { ", fragment" })?;
    }
    write!(f, ", {} bytes", usize::from(parsed.end) - usize::from(parsed.l3))
}

fn write_tcp(
    f: &mut fmt::Formatter<'_>,
    facts: &Facts<'_>,
    parsed: &Parsed,
    fragment: Fragment,
) -> fmt::Result {
    f.write_str("tcp")?;
    let flags_at = usize::from(parsed.l4) + tcp::OFFSET_AT + 1;
    let (false, Some(flags)) = (fragment == Fragment::Later, facts.frame.get(flags_at)) else {
        return Ok(());
    };
    // RFC 9293, section 3.1, from the lowest bit.
    let names = ["fin", "syn", "rst", "psh", "ack", "urg"];
    for (bit, name) in names.iter().enumerate().filter(|(bit, _)| flags >> bit & 1 == 1) {
        write!(f, "{}{name}", if flags.trailing_zeros() as usize == bit { " " } else { "+" })?;
    }
    Ok(())
}

fn write_icmp(
    f: &mut fmt::Formatter<'_>,
    name: &str,
    [request, reply]: [u8; 2],
    kind: u8,
    code: u8,
    echo: u16,
) -> fmt::Result {
    if kind == request {
        write!(f, "{name} echo request id {echo}")
    } else if kind == reply {
        write!(f, "{name} echo reply id {echo}")
    } else {
        write!(f, "{name} type {kind} code {code}")
    }
}

fn write_other(
    f: &mut fmt::Formatter<'_>,
    facts: &Facts<'_>,
    parsed: &Parsed,
    ethernet: &Ethernet<'_>,
) -> fmt::Result {
    let body = facts.frame.get(usize::from(parsed.l3)..).unwrap_or_default();
    match (parsed.net, Arp::new_checked(body)) {
        (Net::Arp, Ok(message)) if message.operation() == arp::REQUEST => {
            write!(f, "arp who has {} tell {}", message.target(), message.sender())
        }
        (Net::Arp, Ok(message)) if message.operation() == arp::REPLY => {
            write!(f, "arp {} is at {}", message.sender(), message.sender_mac())
        }
        (Net::Arp, _) => write!(f, "arp from {}", ethernet.src()),
        (_, _) => write!(f, "{} > {} type {:#06x}", ethernet.src(), ethernet.dst(), ethernet.ethertype()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use penstock_wire::{checksum, udp};
    use proptest::prelude::*;

    fn ipv4(protocol: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0];
        let mut header = [0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
        header[2..4].copy_from_slice(&(20 + payload.len() as u16).to_be_bytes());
        let sum = checksum::sum(&header).finish();
        header[10..12].copy_from_slice(&sum.to_be_bytes());
        frame.extend(header);
        frame.extend(payload);
        frame
    }

    fn udp_to(port: u16, payload: &[u8]) -> Vec<u8> {
        let mut datagram = [[0xc0, 0], port.to_be_bytes()].concat();
        datagram.extend((udp::HEADER_LEN as u16 + payload.len() as u16).to_be_bytes());
        datagram.extend([0, 0]);
        datagram.extend(payload);
        ipv4(proto::UDP, &datagram)
    }

    fn said(frame: &[u8]) -> String {
        Description::of(frame, frame.len()).to_string()
    }

    #[test]
    fn a_datagram_is_described_with_its_ports_and_length() {
        assert_eq!(said(&udp_to(53, &[0; 4])), "10.0.0.1:49152 > 10.0.0.2:53 udp, 32 bytes");
    }

    #[test]
    fn a_tunnel_is_described_with_what_it_carries() {
        let mut vxlan = vec![8, 0, 0, 0, 0, 0, 7, 0];
        vxlan.extend(udp_to(53, &[]));
        assert_eq!(
            said(&udp_to(4789, &vxlan)),
            "10.0.0.1:49152 > 10.0.0.2:4789 udp, 78 bytes, vxlan vni 7 { 10.0.0.1:49152 > 10.0.0.2:53 udp, 28 bytes }"
        );
    }

    #[test]
    fn tcp_flags_and_icmp_kinds_are_named() {
        let segment = [0, 80, 0, 81, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x12, 0, 64, 0, 0, 0, 0];
        assert_eq!(said(&ipv4(proto::TCP, &segment)), "10.0.0.1:80 > 10.0.0.2:81 tcp syn+ack, 40 bytes");
        let echo = [8, 0, 0, 0, 0, 9, 0, 1];
        assert_eq!(said(&ipv4(proto::ICMP, &echo)), "10.0.0.1 > 10.0.0.2 icmp echo request id 9, 28 bytes");
        let unreachable = [3, 4, 0, 0, 0, 0, 5, 120];
        assert_eq!(
            said(&ipv4(proto::ICMP, &unreachable)),
            "10.0.0.1 > 10.0.0.2 icmp type 3 code 4, 28 bytes"
        );
    }

    #[test]
    fn arp_is_described_as_question_and_answer() {
        let mut frame = vec![0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 1, 8, 6];
        let message = arp::Repr {
            operation: arp::REQUEST,
            sender_mac: penstock_wire::MacAddr([2, 0, 0, 0, 0, 1]),
            sender: [10, 0, 0, 1].into(),
            target_mac: penstock_wire::MacAddr::ZERO,
            target: [169, 254, 1, 1].into(),
        };
        frame.extend(message.emit());
        assert_eq!(said(&frame), "arp who has 169.254.1.1 tell 10.0.0.1");
        frame.truncate(14);
        frame.extend(arp::Repr { operation: arp::REPLY, ..message }.emit());
        assert_eq!(said(&frame), "arp 10.0.0.1 is at 02:00:00:00:00:01");
    }

    #[test]
    fn a_cut_frame_is_not_called_malformed() {
        let frame = udp_to(53, &[0; 100]);
        assert!(
            Description::of(&frame[..40], frame.len()).to_string().ends_with("cut after 40 of 142 bytes")
        );
        assert!(said(&frame[..40]).contains("malformed: "));
        assert_eq!(said(&frame[..3]), "no whole Ethernet header, 3 bytes");
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn any_bytes_can_be_described(mut bytes in prop::collection::vec(any::<u8>(), 0..200), net in 0..4) {
            if let (true, Some(kind)) = (bytes.len() > 14, [[8_u8, 0], [8, 6], [0x86, 0xdd]].get(net as usize)) {
                bytes[12..14].copy_from_slice(kind);
            }
            prop_assert!(!said(&bytes).is_empty());
            prop_assert!(!said(&udp_to(4789, &bytes)).is_empty());
        }
    }
}
