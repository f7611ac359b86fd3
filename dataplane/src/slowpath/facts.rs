//! What the stages of an explanation decided, part by part.

use std::net::IpAddr;

use penstock_api::proto;
pub use penstock_api::proto::explain_step::Fact;
use penstock_policy::{DecisionId, Direction as Side, Ground, Packet as Judged, Subject, Verdict as Ruling};

use super::Watch;
use super::tracked::Stages;
use super::words::longest_row;
use crate::conntrack::nat::Pool;
use crate::conntrack::{Connection, Direction, State};
use crate::tables::service::{Chosen, ServicePort};
use crate::tables::{Network, Snapshot};

/// What stands in for the name of a pool where the node's own addresses do.
pub(crate) const NODE: &str = "node";
/// What stands in for the name of an endpoint where everybody beyond this node is meant.
pub(crate) const OUTSIDE: &str = "outside";

/// The state in the words of other connection tables: `SynSent` is "syn-sent".
#[must_use]
pub fn state_name(state: State) -> String {
    let mut words = String::new();
    for letter in format!("{state:?}").chars() {
        if letter.is_ascii_uppercase() && !words.is_empty() {
            words.push('-');
        }
        words.push(letter.to_ascii_lowercase());
    }
    words
}

/// A connection that there is not yet.
pub(super) fn new_connection() -> Fact {
    Fact::Connection(proto::ConnectionFact { state: "new".into(), reply: false })
}

pub(super) fn known_connection(state: State, direction: Direction) -> Fact {
    let reply = direction == Direction::Reply;
    Fact::Connection(proto::ConnectionFact { state: state_name(state), reply })
}

/// The service's port stays open here: only the configuration knows its name.
pub(super) fn service(port: &ServicePort, chosen: Option<&Chosen>, affinity: bool) -> Fact {
    Fact::Service(proto::ServiceFact {
        service: port.service().to_owned(),
        port: String::new(),
        backend: chosen.map(|it| it.address.to_string()).unwrap_or_default(),
        backend_port: chosen.map_or(0, |it| it.port.into()),
        affinity,
    })
}

pub(super) fn route(network: &Network, dst: IpAddr) -> Fact {
    let prefix = longest_row(network, dst).map(|row| row.prefix.to_string());
    Fact::Route(proto::RouteFact { network: network.name.clone(), prefix: prefix.unwrap_or_default() })
}

/// What of an endpoint's rules `decision` stands for.
#[must_use]
pub fn rule(subject: &Subject, direction: Side, decision: DecisionId) -> proto::RuleFact {
    let fact = proto::RuleFact { direction: direction.to_string(), ..proto::RuleFact::default() };
    match subject.ground(direction, decision) {
        Ground::Rule { tier, policy, rule } => proto::RuleFact {
            tier: tier.to_owned(),
            policy: policy.name.clone(),
            rule: rule.name.clone(),
            action: rule.action.to_string(),
            staged: policy.staged,
            ..fact
        },
        // Only a tier's end that denies decides.
        Ground::TierDefault(tier) => proto::RuleFact { tier: tier.to_owned(), action: "deny".into(), ..fact },
        Ground::End => proto::RuleFact { action: "allow".into(), ..fact },
    }
}

/// A source address that is yet to be chosen: it is known beforehand where a pool has just one.
pub(super) fn nat_by(object: String, pool: &Pool, is_ipv4: bool) -> Fact {
    let address = match pool.addresses(is_ipv4) {
        [only] => only.to_string(),
        _ => String::new(),
    };
    Fact::Nat(proto::NatFact { object, address, port: 0 })
}

pub(super) fn nat_as(network: &Network, address: IpAddr, port: u16) -> Fact {
    let pool = network.masquerades.iter().find(|way| way.covers(address, port));
    let object = pool.map_or_else(|| NODE.to_owned(), |way| way.key());
    Fact::Nat(proto::NatFact { object, address: address.to_string(), port: port.into() })
}

pub(super) fn tunnel(snapshot: &Snapshot, network: &Network, peer: u32) -> Fact {
    let peer = snapshot.peers.get(peer as usize);
    Fact::Tunnel(proto::TunnelFact {
        peer: peer.map(|peer| peer.name.clone()).unwrap_or_default(),
        address: peer.map(|peer| peer.address.to_string()).unwrap_or_default(),
        network: network.name.clone(),
    })
}

impl<W: Watch> Stages<'_, W> {
    /// Tells which service was asked, and who answers.
    pub(super) fn tell_service(
        &mut self,
        port: Option<&ServicePort>,
        chosen: Option<&Chosen>,
        by_affinity: bool,
    ) {
        if let Some(port) = port {
            self.watch.fact(|| service(port, chosen, by_affinity));
        }
    }

    /// Tells what decided, and who asks also which rules logged and what the staged ones would decide.
    pub(super) fn tell(&mut self, side: Side, subject: &Subject, asked: &Judged, ruling: Ruling) {
        if self.scene.is_trial() && ruling.noted {
            let mut logs = Vec::new();
            let staged = subject.notes(side, asked, |rule| logs.push(rule));
            logs.into_iter().for_each(|rule| self.tell_decision(side, subject, "log", rule));
            if let Some(staged) = staged {
                let would = if staged.allow {
                    "allow, if staged were enforced"
                } else {
                    "deny, if staged were enforced"
                };
                self.tell_decision(side, subject, would, staged.decision);
            }
        }
        self.tell_decision(side, subject, if ruling.allow { "allow" } else { "deny" }, ruling.decision);
    }

    fn tell_decision(&mut self, side: Side, subject: &Subject, what: &str, decision: DecisionId) {
        self.watch
            .stage("policy", || (format!("{side}: {what}"), subject.decider(side, decision).to_string()));
        self.watch.fact(|| Fact::Rule(rule(subject, side, decision)));
    }

    /// Tells under which address a known connection goes on.
    pub(super) fn tell_translation(&mut self, connection: &Connection) {
        if !connection.translates_source() {
            return;
        }
        let leaves = connection.leaves_as(Direction::Original);
        let home = self.scene.snapshot.network(connection.original.network()).unwrap_or(self.network);
        self.watch.stage("nat", || {
            let outside = std::net::SocketAddr::new(leaves.src(), leaves.sport());
            (format!("as {outside}"), "as it was chosen for its first packet".into())
        });
        self.watch.fact(|| nat_as(home, leaves.src(), leaves.sport()));
    }
}
