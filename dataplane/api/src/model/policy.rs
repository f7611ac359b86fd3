//! Who may speak to whom: identities, tiers and policies.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{Name, PortRange, Prefix, Protocol};

/// A named set of addresses: the pods of one label set, the nodes, a partner's network. Sets may overlap.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Identity {
    /// The identity's key.
    pub name: Name,
    /// The network that the addresses are in.
    pub network: Name,
    /// The addresses. Those of endpoints that name the identity count without being listed.
    #[serde(default)]
    pub prefixes: Vec<Prefix>,
}

/// What a tier says of packets that its policies select an endpoint for and that no rule decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TierDefault {
    /// The next tier decides.
    Pass,
    /// They are dropped.
    Deny,
}

words!(TierDefault { Pass => "pass", Deny => "deny" });

/// A level of policies. Tiers are asked in their order; what no tier decides is allowed.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Tier {
    /// The tier's key.
    pub name: Name,
    /// Lower comes first; ties go by name.
    pub order: u32,
    /// What holds at its end for endpoints and directions that one of its policies selects. Those that none selects
    /// pass it by.
    pub default: TierDefault,
}

/// Which way packets go, seen from the endpoint that a policy selects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PolicyDirection {
    /// To the endpoint.
    Ingress,
    /// From the endpoint.
    Egress,
}

words!(PolicyDirection { Ingress => "ingress", Egress => "egress" });

/// What a rule does with the packets that it matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RuleAction {
    /// Allowed in this direction; later tiers are not asked.
    Allow,
    /// Dropped.
    Deny,
    /// The rest of the tier, its end included, is left out.
    Pass,
    /// Told to whoever watches events; the next rule is asked.
    Log,
}

words!(RuleAction { Allow => "allow", Deny => "deny", Pass => "pass", Log => "log" });

/// The other end of what a rule matches: `{ identity = NAME }` or `{ prefix = PREFIX, except = [PREFIX, …] }`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "RawPeer", into = "RawPeer")]
pub enum RulePeer {
    /// The addresses of an identity.
    Identity(Name),
    /// Addresses, inside the cluster or outside.
    Prefix {
        /// The addresses.
        prefix: Prefix,
        /// What of them is not meant.
        except: Vec<Prefix>,
    },
}

/// `web`, or `10.0.0.0/8 except 10.1.0.0/16`.
impl fmt::Display for RulePeer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Identity(name) => name.fmt(f),
            Self::Prefix { prefix, except } => {
                write!(f, "{prefix}")?;
                for (i, hole) in except.iter().enumerate() {
                    write!(f, "{}{hole}", if i == 0 { " except " } else { ", " })?;
                }
                Ok(())
            }
        }
    }
}

/// A peer as it stands in a file, before it is known to be one of the two.
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct RawPeer {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    identity: Option<Name>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    prefix: Option<Prefix>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    except: Vec<Prefix>,
}

impl TryFrom<RawPeer> for RulePeer {
    type Error = &'static str;

    fn try_from(raw: RawPeer) -> Result<Self, &'static str> {
        match (raw.identity, raw.prefix) {
            (Some(_), None) if !raw.except.is_empty() => Err("an identity has no exceptions"),
            (Some(identity), None) => Ok(Self::Identity(identity)),
            (None, Some(prefix)) => Ok(Self::Prefix { prefix, except: raw.except }),
            (Some(_), Some(_)) => Err("names both an identity and a prefix"),
            (None, None) => Err("names neither an identity nor a prefix"),
        }
    }
}

impl From<RulePeer> for RawPeer {
    fn from(peer: RulePeer) -> Self {
        match peer {
            RulePeer::Identity(name) => Self { identity: Some(name), prefix: None, except: Vec::new() },
            RulePeer::Prefix { prefix, except } => Self { identity: None, prefix: Some(prefix), except },
        }
    }
}

/// A protocol and what of it a rule matches.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct RulePort {
    /// The protocol.
    pub protocol: Protocol,
    /// The destination ports, after services have been translated; all when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<PortRange>,
    /// The ICMP or ICMPv6 type; all when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub icmp_type: Option<u8>,
    /// The ICMP or ICMPv6 code; all when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub icmp_code: Option<u8>,
}

/// `tcp 8000-8999`, `udp`, or `icmp type 3 code 4`.
impl fmt::Display for RulePort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.protocol)?;
        if let Some(port) = self.port {
            write!(f, " {port}")?;
        }
        if let Some(icmp_type) = self.icmp_type {
            write!(f, " type {icmp_type}")?;
        }
        if let Some(icmp_code) = self.icmp_code {
            write!(f, " code {icmp_code}")?;
        }
        Ok(())
    }
}

/// One rule of a policy.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Rule {
    /// The rule's name in its policy: counters, events and explanations call it by this.
    pub name: Name,
    /// Which way the packets go.
    pub direction: PolicyDirection,
    /// What is done with them.
    pub action: RuleAction,
    /// The other ends: sources of what comes in, destinations of what goes out; any when empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub peers: Vec<RulePeer>,
    /// Protocols and destination ports; everything when empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<RulePort>,
}

/// The endpoints that a policy selects.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Subjects {
    /// Every endpoint of the policy's network.
    All,
    /// The endpoints of these identities.
    Identities(Vec<Name>),
}

/// Rules for a set of endpoints, on one level.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Policy {
    /// The policy's key.
    pub name: Name,
    /// The network of the endpoints.
    pub network: Name,
    /// The tier that it belongs to.
    pub tier: Name,
    /// Lower comes first in the tier; ties go by name.
    #[serde(default)]
    pub order: u32,
    /// The endpoints that it selects.
    pub subjects: Subjects,
    /// The directions in which it selects them, whether it has rules for them or not.
    pub directions: Vec<PolicyDirection>,
    /// Whether it only counts what it would have decided; it selects nothing then.
    #[serde(default)]
    pub staged: bool,
    /// The rules in order; the first that decides holds.
    #[serde(default)]
    pub rules: Vec<Rule>,
}

impl Policy {
    /// Every identity that the policy names, with the key that names it: `subjects.identities[0]`.
    pub fn identities(&self) -> impl Iterator<Item = (String, &Name)> {
        let subjects = match &self.subjects {
            Subjects::All => &[][..],
            Subjects::Identities(names) => names,
        };
        let subjects =
            subjects.iter().enumerate().map(|(i, name)| (format!("subjects.identities[{i}]"), name));
        let peers = self.rules.iter().enumerate().flat_map(|(i, rule)| {
            rule.peers.iter().enumerate().filter_map(move |(j, peer)| match peer {
                RulePeer::Identity(name) => Some((format!("rules[{i}].peers[{j}].identity"), name)),
                RulePeer::Prefix { .. } => None,
            })
        });
        subjects.chain(peers)
    }
}
