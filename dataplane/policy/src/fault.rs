//! What can be wrong with rules: each fault names the object, the problem and the mend.

use ipnet::IpNet;

use crate::rules::Direction;

/// The rules cannot be compiled; the program before goes on. All faults at once.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
pub struct CompileError {
    /// The faults, at least one.
    pub faults: Vec<Fault>,
}

/// One fault.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Two objects of one kind and name.
    #[error("{kind} \"{name}\" is there twice; keep one of the two")]
    Twice {
        /// What it is.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// A policy stands in no known tier.
    #[error("policy \"{policy}\" names tier \"{tier}\", which does not exist; create the tier first")]
    UnknownTier {
        /// The policy.
        policy: String,
        /// The tier.
        tier: String,
    },
    /// A policy names an identity that its network does not have.
    #[error(
        "policy \"{policy}\" names identity \"{identity}\", which network \"{network}\" does not have; \
         create the identity first, if need be without prefixes"
    )]
    UnknownIdentity {
        /// The policy.
        policy: String,
        /// Its network.
        network: String,
        /// The identity.
        identity: String,
    },
    /// A hole that is not within its block: most likely a slip of the pen that would leave the block whole.
    #[error(
        "rule {rule} of policy \"{policy}\" excepts {except}, which is no part of {prefix}; give a longer prefix within it"
    )]
    ExceptOutside {
        /// The policy.
        policy: String,
        /// The rule's place, from 1.
        rule: usize,
        /// The hole.
        except: IpNet,
        /// The block.
        prefix: IpNet,
    },
    /// A range that ends before it begins would match nothing.
    #[error("rule {rule} of policy \"{policy}\" has ports {first} to {last}; give the lower one first")]
    EmptyRange {
        /// The policy.
        policy: String,
        /// The rule's place, from 1.
        rule: usize,
        /// Where it begins.
        first: u16,
        /// Where it ends.
        last: u16,
    },
    /// Ports of a protocol that has none, or whose ports are not looked at.
    #[error(
        "rule {rule} of policy \"{policy}\" gives ports for protocol {protocol}; only TCP, UDP and SCTP have them here"
    )]
    NoPorts {
        /// The policy.
        policy: String,
        /// The rule's place, from 1.
        rule: usize,
        /// The protocol's number.
        protocol: u8,
    },
    /// An ICMP type or code with another protocol, or a code without its type.
    #[error(
        "rule {rule} of policy \"{policy}\" gives an ICMP type or code that does not fit protocol {protocol}; \
         codes need a type, and both need icmp or icmpv6"
    )]
    NoIcmp {
        /// The policy.
        policy: String,
        /// The rule's place, from 1.
        rule: usize,
        /// The protocol's number.
        protocol: u8,
    },
    /// The rules of an endpoint cross so many peers with so many ports that no table of bearable size holds them.
    #[error(
        "the {direction} rules of endpoint \"{endpoint}\" need about {cells} table cells, {limit} are allowed: \
         many overlapping blocks meet many port ranges; merge ranges or blocks"
    )]
    TooComplex {
        /// One of the endpoints.
        endpoint: String,
        /// The direction.
        direction: Direction,
        /// The size of the table.
        cells: u64,
        /// The largest allowed.
        limit: u64,
    },
    /// More rules for one endpoint and direction than their numbers can tell apart.
    #[error("{rules} {direction} rules select endpoint \"{endpoint}\", {limit} are allowed; select fewer")]
    TooManyRules {
        /// One of the endpoints.
        endpoint: String,
        /// The direction.
        direction: Direction,
        /// How many there are.
        rules: usize,
        /// The most.
        limit: usize,
    },
}
