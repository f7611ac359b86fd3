//! Policies of all APIs in one form: whom they are for, and rules whose selectors and ports are understood but not yet
//! resolved.
//!
//! What cannot be understood fails closed: an allowing rule matches nothing for it, another one denies everything.

mod network;
mod tiered;

use penstock_api::model::{PolicyDirection, PortRange, Prefix, Protocol, RuleAction};

use super::selector::Selector;

pub(super) use network::network_policy;
pub(super) use tiered::{admin_policy, baseline_policy, cluster_policy};

/// Where a policy stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    /// Before network policies.
    Admin,
    /// Network policies: whoever one of them selects is closed but for what they allow.
    Network,
    /// Behind network policies, for what none of them selects.
    Baseline,
}

/// The namespaces of pods.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Namespaces {
    /// This one.
    One(String),
    /// Those with these labels.
    Matching(Selector),
}

/// Pods by their labels and those of their namespaces.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodSelector {
    /// The namespaces.
    pub namespaces: Namespaces,
    /// The pods there.
    pub pods: Selector,
}

/// The other end of what a rule matches.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Peer {
    /// Pods.
    Pods(PodSelector),
    /// Nodes, by their addresses.
    Nodes(Selector),
    /// Addresses.
    Block {
        /// The block.
        prefix: Prefix,
        /// Its holes.
        except: Vec<Prefix>,
    },
}

/// Ports as a policy writes them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Port {
    /// Ports of a protocol by number; all when absent.
    Numbers {
        /// The protocol.
        protocol: Protocol,
        /// The ports.
        ports: Option<PortRange>,
    },
    /// The port that the receiving pod has by this name.
    Named {
        /// The name.
        name: String,
        /// The protocol; any when absent.
        protocol: Option<Protocol>,
    },
}

/// One rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// What it is called in its policy: unique, and of the characters that a dataplane's names may have.
    pub name: String,
    /// Which way packets go.
    pub direction: PolicyDirection,
    /// What is done with them.
    pub action: RuleAction,
    /// The other ends; any when absent, none when empty.
    pub peers: Option<Vec<Peer>>,
    /// The ports; every packet when absent, none when empty.
    pub ports: Option<Vec<Port>>,
}

impl Rule {
    /// The names of ports that it matches by.
    pub fn port_names(&self) -> impl Iterator<Item = (&str, Option<Protocol>)> {
        self.ports.iter().flatten().filter_map(|port| match port {
            Port::Named { name, protocol } => Some((name.as_str(), *protocol)),
            Port::Numbers { .. } => None,
        })
    }
}

/// A policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// Where it stands.
    pub level: Level,
    /// Lower comes first.
    pub order: u32,
    /// Whom it is for; nobody when absent.
    pub subject: Option<PodSelector>,
    /// Whether it is about what comes in.
    pub ingress: bool,
    /// Whether it is about what goes out.
    pub egress: bool,
    /// The rules, first match first; of network policies the order says nothing.
    pub rules: Vec<Rule>,
}

/// A number of a port as Kubernetes writes it.
fn port_number(number: i32) -> Option<u16> {
    u16::try_from(number).ok().filter(|number| *number > 0)
}

/// The ports from `first` to `last` as Kubernetes writes them.
fn port_range(first: i32, last: i32) -> Option<PortRange> {
    PortRange::new(port_number(first)?, port_number(last)?).ok()
}
