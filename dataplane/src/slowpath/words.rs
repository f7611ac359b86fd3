//! The slow path in words: what `penstock explain` prints.

use std::net::{IpAddr, SocketAddr};

use super::facts::Fact;
use super::{Facts, Scene, Verdict, Watch, decide};
use crate::conntrack::Tuple;
use crate::drop::Reason;
use crate::flow::ZoneId;
use crate::tables::{Network, RouteRow, Snapshot, Target, Zone};

/// The zone in words.
#[must_use]
pub fn describe_zone(snapshot: &Snapshot, zone: Zone) -> String {
    match zone {
        Zone::Endpoint { endpoint, .. } => snapshot
            .endpoints
            .get(endpoint as usize)
            .map_or("endpoint ?".into(), |e| format!("endpoint {}", e.name)),
        Zone::Host { .. } => "host".into(),
        Zone::Tunnel { peer, .. } => {
            snapshot.peers.get(peer as usize).map_or("peer ?".into(), |peer| format!("peer {}", peer.name))
        }
        Zone::Served { .. } => "a peer, for a service".into(),
        Zone::Native { .. } => "uplink".into(),
    }
}

pub(super) fn describe_target(snapshot: &Snapshot, target: &Target) -> String {
    let peer = |peer: &u32| snapshot.peers[*peer as usize].name.clone();
    match target {
        Target::Endpoint(endpoint) => format!("endpoint {}", snapshot.endpoints[*endpoint as usize].name),
        Target::Tunnel { peer: to, .. } | Target::Unreachable { peer: to } => format!("peer {}", peer(to)),
        Target::Native { peer: Some(to), .. } => format!("peer {} without a tunnel", peer(to)),
        Target::Native { next_hop: Some(next_hop), .. } => format!("uplink through {next_hop}"),
        Target::Native { .. } => "uplink".into(),
        Target::Host => "host".into(),
        Target::Blackhole => "blackhole".into(),
    }
}

/// The route that a destination matches.
pub(super) fn longest_row(network: &Network, dst: IpAddr) -> Option<&RouteRow> {
    let matching = network.rows.iter().filter(|row| row.prefix.contains(&dst));
    matching.max_by_key(|row| row.prefix.prefix_len())
}

pub(super) fn matching_row(network: &Network, dst: IpAddr) -> String {
    longest_row(network, dst).map_or_else(String::new, |row| {
        format!("{} in network {}{}", row.prefix, network.name, if row.implied { " (implied)" } else { "" })
    })
}

/// A tuple in words.
pub(crate) fn describe_tuple(tuple: &Tuple) -> String {
    let [from, to] =
        [SocketAddr::new(tuple.src(), tuple.sport()), SocketAddr::new(tuple.dst(), tuple.dport())];
    format!("{} {from} to {to}", penstock_api::model::Protocol::new(tuple.protocol()))
}

/// A packet that somebody asks about.
pub type Question = Facts;

/// One stage of an explanation.
#[derive(Clone, Debug)]
pub struct Step {
    /// Its name.
    pub stage: &'static str,
    /// What it decided.
    pub decision: String,
    /// Why.
    pub ground: String,
    /// What it decided, part by part.
    pub fact: Option<Fact>,
}

impl Watch for Vec<Step> {
    fn stage(&mut self, stage: &'static str, say: impl FnOnce() -> (String, String)) {
        let (decision, ground) = say();
        self.push(Step { stage, decision, ground, fact: None });
    }

    fn fact(&mut self, fact: impl FnOnce() -> Fact) {
        if let Some(step) = self.last_mut() {
            step.fact = Some(fact());
        }
    }
}

/// Where a packet would go, and why: the stages, the verdict in a sentence, and whether it leaves or is answered.
#[must_use]
pub fn explain(scene: Scene<'_>, from: ZoneId, packet: &Question) -> (Vec<Step>, String, bool) {
    let mut steps = Vec::new();
    let verdict = decide(Scene { ledger: None, ..scene }, from, packet, &mut steps);
    let (sentence, delivered) = match verdict {
        Verdict::Go(way) if packet.len > way.action.max_len() => {
            let sentence = format!(
                "too long for the way: {} bytes, and {} fit; the sender is told, or the packet is cut",
                packet.len,
                way.action.max_len()
            );
            (sentence, false)
        }
        Verdict::Go(_) => ("delivered".into(), true),
        Verdict::Answer(_) => ("answered by the dataplane itself".into(), true),
        Verdict::Refuse(reason, _) => {
            (format!("refused, and the sender is told: {}", reason.sentence()), false)
        }
        Verdict::Wait(cause, _) => (format!("waits: {}", Reason::from(cause).sentence()), false),
        Verdict::Drop(reason) => (format!("dropped: {}", reason.sentence()), false),
    };
    (steps, sentence, delivered)
}
