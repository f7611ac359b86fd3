//! Policy: rules in, a classifier out that answers in a handful of probes, and the linear walk that it must agree with.
//!
//! ```text
//!  Rules ── compile ──> Program ── peers(network) ────> prefixes -> PeerId      (the caller's longest-prefix table)
//!    │                          └─ endpoint(name) ────> Subject: (direction, PeerId, protocol, port) -> Verdict
//!    └── linear::judge ──> Judgement: the same answer by walking the rules, and the way there
//! ```
//!
//! Tiers are evaluated in their order, policies of a tier in theirs, rules as written. Allow and Deny are final, Pass
//! leaves the tier, Log reports. A tier that nothing in it decided ends with its default, which holds for endpoints and
//! directions that an enforced policy of the tier governs. After the last tier a packet is let through. Both the egress
//! rules of the source and the ingress rules of the destination must allow a packet; bringing the two together is the
//! caller's part. Staged policies are left out of all this; what would happen if they were enforced is reported beside.
//!
//! * [`rules`] is what operators write, [`compile()`] makes a [`Program`] of it and reuses the one before,
//! * `peers` cuts the address space so that one longest-prefix match finds a [`PeerId`],
//! * `ports`, `course`, `matchers`, `layers` and `fill` build the tables, `table` and `classifier` look packets up,
//! * [`linear`] is the oracle and what `explain` prints.
//!
//! A packet without ports (a later fragment) is never let through by what its ports might be: see [`linear`].

#![forbid(unsafe_code)]

mod check;
mod classifier;
mod compile;
mod course;
mod fault;
mod fill;
mod hash;
mod layers;
mod matchers;
mod peers;
mod pieces;
mod ports;
mod selection;
mod subject;
mod table;
mod verdict;

#[cfg(test)]
mod against_linear;

pub mod linear;
pub mod rules;

pub use compile::{Program, compile};
pub use fault::{CompileError, Fault};
pub use peers::{PeerId, Peers};
pub use rules::{
    Action, Direction, Directions, Endpoint, Identity, Peer, Policy, PortMatch, Protocol, Rule, Rules,
    Shared, Subjects, Tier, TierDefault,
};
pub use subject::{Staged, Subject};
pub use verdict::{Answer, Decider, DecisionId, Ground, Packet, RulePath, Verdict};
