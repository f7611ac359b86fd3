//! Answers: small ones for packets, spelled-out ones for people.

use std::fmt;

use crate::peers::PeerId;
use crate::rules::{Policy, Rule};

/// What the classifier looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// The other end: what the longest prefix match over [`Peers::prefixes`](crate::Peers::prefixes) gives.
    pub peer: PeerId,
    /// The number in the IP header, or behind IPv6's extension headers.
    pub protocol: u8,
    /// The destination port of TCP, UDP and SCTP; type * 256 + code of ICMP and ICMPv6; none if the packet does not
    /// show it, as a later fragment. Of no meaning for other protocols.
    pub key: Option<u16>,
}

/// What happens to a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Whether it may go on.
    pub allow: bool,
    /// Whether there are Log rules or a staged verdict to report: ask [`Subject::notes`](crate::Subject::notes).
    pub noted: bool,
    /// What decided; [`Subject::decider`](crate::Subject::decider) spells it out.
    pub decision: DecisionId,
}

/// What decided, within one [`Subject`](crate::Subject) and direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DecisionId(pub(crate) u32);

impl DecisionId {
    /// The number, for counters: below [`Subject::decisions`](crate::Subject::decisions).
    #[must_use]
    pub fn get(self) -> u32 {
        self.0
    }
}

/// What decided, by name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Decider {
    /// A rule.
    Rule(RulePath),
    /// No rule of this tier matched, and the tier refuses what it governs.
    TierDefault(String),
    /// No tier decided, so the packet may go.
    End,
}

impl fmt::Display for Decider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Decider::Rule(path) => path.fmt(f),
            Decider::TierDefault(tier) => write!(f, "the default of tier \"{tier}\""),
            Decider::End => f.write_str("no tier (the last one passes)"),
        }
    }
}

/// What decided, as it was written.
#[derive(Clone, Copy, Debug)]
pub enum Ground<'a> {
    /// A rule.
    Rule {
        /// The tier's name.
        tier: &'a str,
        /// The policy.
        policy: &'a Policy,
        /// The rule.
        rule: &'a Rule,
    },
    /// The end of the tier of this name.
    TierDefault(&'a str),
    /// No tier.
    End,
}

/// A rule's place.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RulePath {
    /// Its tier.
    pub tier: String,
    /// Its policy.
    pub policy: String,
    /// Its name; may be empty.
    pub rule: String,
    /// Its place among the policy's rules, from 0.
    pub index: usize,
}

impl fmt::Display for RulePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rule {} ", self.index + 1)?;
        if !self.rule.is_empty() {
            write!(f, "\"{}\" ", self.rule)?;
        }
        write!(f, "of policy \"{}\" in tier \"{}\"", self.policy, self.tier)
    }
}

/// An answer with its reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Whether the packet may go on.
    pub allow: bool,
    /// What decided.
    pub decider: Decider,
}
