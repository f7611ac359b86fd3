//! Whether an expression holds for a frame.

use std::net::IpAddr;

use penstock_wire::geneve::{self, Geneve};
use penstock_wire::parse::{Fragment, Net, Parsed};
use penstock_wire::vxlan::{self, Vxlan};
use penstock_wire::{Vni, proto, udp};

use super::{Expr, Term};

/// What is known of a frame, found once however many terms ask.
pub(super) struct Facts<'a> {
    frame: &'a [u8],
    /// `None` when the frame is malformed.
    parsed: Option<Parsed>,
}

impl<'a> Facts<'a> {
    pub(super) fn of(frame: &'a [u8]) -> Self {
        Self { frame, parsed: penstock_wire::parse::parse(frame).ok() }
    }

    /// The network and the frame inside, when this is a tunnel's packet.
    ///
    /// Geneve options are not judged: who captures wants to see also what the dataplane refuses.
    fn tunnel(&self) -> Option<(Vni, &'a [u8])> {
        let parsed = self.parsed?;
        let packet = Packet::of(&parsed).filter(|packet| packet.protocol == proto::UDP)?;
        let start = usize::from(parsed.l4) + udp::HEADER_LEN;
        let payload = self.frame.get(start..usize::from(parsed.end))?;
        let (_, port) = packet.ports?;
        let (vni, header_len) = match port {
            vxlan::PORT => (Vxlan::new_checked(payload).ok()?.vni(), vxlan::HEADER_LEN),
            geneve::PORT => {
                let header = Geneve::new_checked(payload).ok()?;
                (header.vni(), header.header_len())
            }
            _ => return None,
        };
        Some((vni, payload.get(header_len..)?))
    }
}

/// Who speaks to whom in an IP packet of either version.
struct Packet {
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    /// The ports of TCP, UDP or SCTP; `None` for other protocols and later fragments.
    ports: Option<(u16, u16)>,
}

impl Packet {
    fn of(parsed: &Parsed) -> Option<Self> {
        let (source, destination, protocol, ports, fragment) = match parsed.net {
            Net::V4(f) => (f.src.into(), f.dst.into(), f.proto, (f.sport, f.dport), f.fragment),
            Net::V6(f) => (f.src.into(), f.dst.into(), f.proto, (f.sport, f.dport), f.fragment),
            Net::Arp | Net::Other(_) => return None,
        };
        let has_ports =
            matches!(protocol, proto::TCP | proto::UDP | proto::SCTP) && fragment != Fragment::Later;
        Some(Self { source, destination, protocol, ports: has_ports.then_some(ports) })
    }
}

/// Whether `expr` holds. Recursion is as deep as the expression, which its parser has bounded.
pub(super) fn holds(expr: &Expr, facts: &Facts<'_>) -> bool {
    match expr {
        Expr::Term(term) => term_holds(*term, facts).unwrap_or(false),
        Expr::Not(expr) => !holds(expr, facts),
        Expr::All(exprs) => exprs.iter().all(|expr| holds(expr, facts)),
        Expr::Any(exprs) => exprs.iter().any(|expr| holds(expr, facts)),
        Expr::Inner(expr) => facts.tunnel().is_some_and(|(_, frame)| holds(expr, &Facts::of(frame))),
    }
}

/// `None` where the frame is nothing that the term could be asked about.
fn term_holds(term: Term, facts: &Facts<'_>) -> Option<bool> {
    let parsed = facts.parsed.as_ref()?;
    Some(match term {
        Term::Arp => parsed.net == Net::Arp,
        Term::Ipv4 => matches!(parsed.net, Net::V4(_)),
        Term::Ipv6 => matches!(parsed.net, Net::V6(_)),
        Term::Icmp => matches!(parsed.net, Net::V4(flow) if flow.proto == proto::ICMP),
        Term::Icmpv6 => matches!(parsed.net, Net::V6(flow) if flow.proto == proto::ICMPV6),
        Term::Protocol(protocol) => Packet::of(parsed)?.protocol == protocol,
        Term::Net { side, net } => {
            let packet = Packet::of(parsed)?;
            side.holds(net.contains(&packet.source), net.contains(&packet.destination))
        }
        Term::Port { side, port, protocol } => {
            let packet = Packet::of(parsed)?;
            let (source, destination) = packet.ports?;
            protocol.is_none_or(|protocol| protocol == packet.protocol)
                && side.holds(source == port, destination == port)
        }
        Term::Vni(vni) => facts.tunnel()?.0 == vni,
    })
}
