//! Whether an expression holds for a frame.

use penstock_wire::parse::Net;
use penstock_wire::proto;

use super::{Expr, Term};
use crate::dissect::{Facts, Packet};

/// Whether `expr` holds. Recursion is as deep as the expression, which its parser has bounded.
pub(super) fn holds(expr: &Expr, facts: &Facts<'_>) -> bool {
    match expr {
        Expr::Term(term) => term_holds(*term, facts).unwrap_or(false),
        Expr::Not(expr) => !holds(expr, facts),
        Expr::All(exprs) => exprs.iter().all(|expr| holds(expr, facts)),
        Expr::Any(exprs) => exprs.iter().any(|expr| holds(expr, facts)),
        Expr::Inner(expr) => facts.tunnel().is_some_and(|tunnel| holds(expr, &Facts::of(tunnel.frame))),
    }
}

/// `None` where the frame is nothing that the term could be asked about.
fn term_holds(term: Term, facts: &Facts<'_>) -> Option<bool> {
    let parsed = facts.parsed.as_ref().ok()?;
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
        Term::Vni(vni) => facts.tunnel()?.vni == vni,
    })
}
