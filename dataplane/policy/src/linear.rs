//! The rules walked as they are written: the oracle that the classifier is tested against, and what `explain` prints.
//!
//! A packet whose ports are not seen (a later fragment) must not be let through where some port would be refused. So a
//! rule with ports, on such a packet: Deny matches; Allow and Log do not; Pass may or may not match, and the packet is
//! allowed only if both ways lead there.

use std::net::IpAddr;
use std::sync::Arc;

use crate::rules::{
    Action, Direction, Endpoint, Peer, Policy, PortMatch, Rule, Rules, Subjects, Tier, TierDefault,
};
use crate::verdict::{Answer, Decider, RulePath};

/// A packet as the oracle sees it: with the peer's address where the classifier has its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probe {
    /// Which way it goes.
    pub direction: Direction,
    /// The other end.
    pub remote: IpAddr,
    /// The number in the IP header.
    pub protocol: u8,
    /// The destination port, or ICMP type * 256 + code; none if the packet does not show it.
    pub key: Option<u16>,
}

/// How the rules judge a packet, and the way there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judgement {
    /// What happens to the packet.
    pub answer: Answer,
    /// What each tier that has policies for the endpoint said, up to the one that decided.
    pub tiers: Vec<TierStep>,
    /// The Log rules that it met, in order.
    pub logs: Vec<RulePath>,
    /// What would happen if the staged policies were enforced, where that is something else.
    pub staged: Option<Answer>,
}

/// What one tier said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TierStep {
    /// The tier.
    pub tier: String,
    /// The policies of the tier that were looked at, in order; the last may be the one that decided.
    pub policies: Vec<String>,
    /// The rule that ended the tier, and its action.
    pub met: Option<(RulePath, Action)>,
    /// A Pass rule with ports that a packet without them may or may not have matched.
    pub in_doubt: bool,
    /// The tier's default, if no rule was met and some enforced policy governs the endpoint in this direction.
    pub default: Option<TierDefault>,
}

/// Judges a packet of `endpoint`, or of none if there is no endpoint of that name.
#[must_use]
pub fn judge(rules: &Rules, endpoint: &str, probe: &Probe) -> Option<Judgement> {
    let endpoint = rules.endpoints.iter().find(|candidate| candidate.name == endpoint)?;
    let enforced = walk(rules, endpoint, probe, false);
    let pending = walk(rules, endpoint, probe, true);
    let staged = (pending.answer != enforced.answer).then_some(pending.answer);
    Some(Judgement { answer: enforced.answer, tiers: enforced.tiers, logs: enforced.logs, staged })
}

struct Walk {
    answer: Answer,
    tiers: Vec<TierStep>,
    logs: Vec<RulePath>,
}

fn walk(rules: &Rules, endpoint: &Endpoint, probe: &Probe, with_staged: bool) -> Walk {
    let selected = rules.policies.iter().filter(|policy| {
        policy.network == endpoint.network
            && selects(rules, endpoint, &policy.subjects)
            && (with_staged || !policy.staged)
    });
    let end = Answer { allow: true, decider: Decider::End };
    let mut walk = Walk { answer: end, tiers: Vec::new(), logs: Vec::new() };
    // An Allow that holds only if the tiers behind it, where a doubtful Pass would have led, allow as well.
    let mut doubtful: Option<Answer> = None;
    for (tier, policies) in rules.in_order(selected) {
        let step = in_tier(rules, tier, &policies, probe, &mut walk.logs);
        let (said, in_doubt) = (step.said(), step.in_doubt);
        walk.tiers.push(step);
        let Some(said) = said else { continue };
        if !said.allow {
            walk.answer = said;
            return walk;
        }
        let answer = doubtful.take().unwrap_or(said);
        if !in_doubt {
            walk.answer = answer;
            return walk;
        }
        doubtful = Some(answer);
    }
    if let Some(answer) = doubtful {
        walk.answer = answer;
    }
    walk
}

fn in_tier(
    rules: &Rules,
    tier: &Tier,
    policies: &[&Arc<Policy>],
    probe: &Probe,
    logs: &mut Vec<RulePath>,
) -> TierStep {
    let mut step =
        TierStep { tier: tier.name.clone(), policies: Vec::new(), met: None, in_doubt: false, default: None };
    for policy in policies {
        step.policies.push(policy.name.clone());
        for (index, rule) in policy.rules.iter().enumerate() {
            let path = || RulePath {
                tier: tier.name.clone(),
                policy: policy.name.clone(),
                rule: rule.name.clone(),
                index,
            };
            match (rule.action, matches(rules, &policy.network, rule, probe)) {
                (_, Match::No) | (Action::Allow | Action::Log, Match::Perhaps) => {}
                (Action::Log, Match::Yes) => logs.push(path()),
                (Action::Pass, Match::Perhaps) => step.in_doubt = true,
                (Action::Deny, Match::Perhaps | Match::Yes) | (Action::Allow | Action::Pass, Match::Yes) => {
                    step.met = Some((path(), rule.action));
                    return step;
                }
            }
        }
    }
    let governed = policies.iter().any(|policy| policy.directions.contains(probe.direction));
    step.default = governed.then_some(tier.default);
    step
}

impl TierStep {
    /// What the tier decides; none if the next one does.
    fn said(&self) -> Option<Answer> {
        let (allow, decider) = match (&self.met, self.default) {
            (Some((path, Action::Allow)), _) => (true, Decider::Rule(path.clone())),
            (Some((path, Action::Deny)), _) => (false, Decider::Rule(path.clone())),
            (None, Some(TierDefault::Deny)) => (false, Decider::TierDefault(self.tier.clone())),
            _ => return None,
        };
        Some(Answer { allow, decider })
    }
}

fn selects(rules: &Rules, endpoint: &Endpoint, subjects: &Subjects) -> bool {
    match subjects {
        Subjects::All => true,
        Subjects::Identities(names) => names.iter().any(|name| {
            endpoint.addresses.iter().any(|address| is_in(rules, &endpoint.network, name, *address))
        }),
    }
}

fn is_in(rules: &Rules, network: &str, name: &str, address: IpAddr) -> bool {
    rules
        .identities
        .iter()
        .filter(|identity| identity.network == network && identity.name == name)
        .any(|identity| identity.prefixes.iter().any(|prefix| prefix.contains(&address)))
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Match {
    No,
    Perhaps,
    Yes,
}

fn matches(rules: &Rules, network: &str, rule: &Rule, probe: &Probe) -> Match {
    if rule.direction != probe.direction {
        return Match::No;
    }
    let from_peer =
        rule.peers.is_empty() || rule.peers.iter().any(|peer| is_peer(rules, network, peer, probe.remote));
    if !from_peer {
        return Match::No;
    }
    if rule.ports.is_empty() {
        return Match::Yes;
    }
    rule.ports.iter().map(|ports| on_port(ports, probe)).max().unwrap_or(Match::No)
}

fn is_peer(rules: &Rules, network: &str, peer: &Peer, remote: IpAddr) -> bool {
    match peer {
        Peer::Identity(name) => is_in(rules, network, name, remote),
        Peer::Prefix { prefix, except } => {
            prefix.contains(&remote) && !except.iter().any(|hole| hole.contains(&remote))
        }
        Peer::World => !rules
            .identities
            .iter()
            .any(|identity| identity.network == network && is_in(rules, network, &identity.name, remote)),
    }
}

fn on_port(ports: &PortMatch, probe: &Probe) -> Match {
    if ports.protocol.number() != probe.protocol {
        return Match::No;
    }
    match (ports.keys(), probe.key) {
        (None, _) => Match::Yes,
        (Some(_), None) => Match::Perhaps,
        (Some(keys), Some(key)) => {
            if keys.contains(&key) {
                Match::Yes
            } else {
                Match::No
            }
        }
    }
}
