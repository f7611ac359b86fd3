//! What an operator writes: identities, tiers, policies and their rules.
//!
//! Objects that come and go one by one stand behind an [`Arc`], so that a compile that follows another sees at a glance
//! what stayed.

use std::fmt;
use std::net::IpAddr;
use std::ops::{Deref, DerefMut, RangeInclusive};
use std::sync::Arc;

use ipnet::IpNet;

/// A named set of prefixes of a network: the pods of one label set, a node's addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Its name, once in its network.
    pub name: String,
    /// The network that the prefixes lie in.
    pub network: String,
    /// The addresses; a pod's are single ones (/32, /128). An identity without prefixes is nobody.
    pub prefixes: Vec<IpNet>,
}

/// One stage of the evaluation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tier {
    /// Its name, once on the node.
    pub name: String,
    /// Lower comes first; of equal ones the lesser name does.
    pub order: u32,
    /// What becomes of a packet that no rule of the tier decides, at an endpoint that the tier governs.
    pub default: TierDefault,
}

/// The end of a tier for endpoints that some enforced policy of the tier governs in the packet's direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TierDefault {
    /// The next tier decides.
    Pass,
    /// The packet is refused.
    Deny,
}

/// Rules for a set of endpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Its name, once in its network.
    pub name: String,
    /// The network whose endpoints it selects and whose identities it names.
    pub network: String,
    /// The tier that it stands in.
    pub tier: String,
    /// Its priority in the tier: lower comes first; of equal ones the lesser name does.
    pub order: u32,
    /// Whom it is for.
    pub subjects: Subjects,
    /// For which directions the tier's default holds once this policy selects an endpoint. Rules count without it.
    pub directions: Directions,
    /// The rules, first match first.
    pub rules: Vec<Rule>,
    /// Whether it only says what it would decide.
    pub staged: bool,
}

/// The endpoints that a policy selects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subjects {
    /// All endpoints of the network.
    All,
    /// Endpoints with an address in one of these identities.
    Identities(Vec<String>),
}

/// From the endpoint's point of view.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// To the endpoint; the peer is the packet's source.
    Ingress,
    /// From the endpoint; the peer is the packet's destination.
    Egress,
}

impl Direction {
    /// Both, in the order of [`Direction::index`].
    pub const BOTH: [Direction; 2] = [Direction::Ingress, Direction::Egress];

    /// A place in an array of two.
    #[inline]
    #[must_use]
    pub const fn index(self) -> usize {
        self as usize
    }
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Direction::Ingress => "ingress",
            Direction::Egress => "egress",
        })
    }
}

/// A set of directions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Directions {
    /// Packets to the endpoint.
    pub ingress: bool,
    /// Packets from the endpoint.
    pub egress: bool,
}

impl Directions {
    /// Whether `direction` is among them.
    #[must_use]
    pub fn contains(self, direction: Direction) -> bool {
        match direction {
            Direction::Ingress => self.ingress,
            Direction::Egress => self.egress,
        }
    }
}

/// A line of a policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// What it is called in answers; may be empty.
    pub name: String,
    /// The packets that it looks at.
    pub direction: Direction,
    /// What happens to a packet that matches.
    pub action: Action,
    /// The other ends that match. **Empty matches every peer**: a selector that found nobody is an identity without
    /// prefixes, not an empty list.
    pub peers: Vec<Peer>,
    /// The protocols and ports that match; empty matches every packet.
    pub ports: Vec<PortMatch>,
}

/// What a rule does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Lets the packet through; final.
    Allow,
    /// Refuses the packet; final.
    Deny,
    /// Leaves this tier for the next.
    Pass,
    /// Reports the packet; the next rule decides.
    Log,
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Action::Allow => "allow",
            Action::Deny => "deny",
            Action::Pass => "pass",
            Action::Log => "log",
        })
    }
}

/// The other end of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peer {
    /// An address of this identity.
    Identity(String),
    /// An address of `prefix` that lies in none of `except`.
    Prefix {
        /// The block.
        prefix: IpNet,
        /// Holes in this block; another peer of the rule may still match there.
        except: Vec<IpNet>,
    },
    /// An address that is in no identity of the network.
    World,
}

/// A protocol and, where it has them, ports or message types.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortMatch {
    /// The protocol.
    pub protocol: Protocol,
    /// Destination ports, both ends included; only for protocols with ports. None is every port.
    pub ports: Option<RangeInclusive<u16>>,
    /// The ICMP or ICMPv6 type. None is every type.
    pub icmp_type: Option<u8>,
    /// The code of that type. None is every code.
    pub icmp_code: Option<u8>,
}

impl PortMatch {
    /// Every packet of a protocol.
    #[must_use]
    pub const fn all(protocol: Protocol) -> PortMatch {
        PortMatch { protocol, ports: None, icmp_type: None, icmp_code: None }
    }

    /// The [keys](crate::Packet::key) that match; none if the protocol alone decides.
    ///
    /// All 65536 ports are no condition, so a packet whose ports are not seen matches them.
    #[must_use]
    pub fn keys(&self) -> Option<RangeInclusive<u16>> {
        let icmp = self.icmp_type.map(|kind| {
            let first = u16::from(kind) << 8;
            self.icmp_code
                .map_or(first..=first | 0xff, |code| first | u16::from(code)..=first | u16::from(code))
        });
        self.ports.clone().or(icmp).filter(|keys| *keys != (0..=u16::MAX))
    }
}

/// An IP protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
    /// ICMP of IPv4.
    Icmp,
    /// ICMP of IPv6.
    Icmpv6,
    /// Any, by its number (IANA, Assigned Internet Protocol Numbers).
    Number(u8),
}

impl Protocol {
    /// The number in the IP header (IANA, Assigned Internet Protocol Numbers).
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
            Protocol::Sctp => 132,
            Protocol::Icmp => 1,
            Protocol::Icmpv6 => 58,
            Protocol::Number(number) => number,
        }
    }

    /// Whether packets carry ports that are looked at.
    #[must_use]
    pub const fn has_ports(self) -> bool {
        matches!(self.number(), 6 | 17 | 132)
    }

    /// Whether packets carry a type and a code.
    #[must_use]
    pub const fn is_icmp(self) -> bool {
        matches!(self.number(), 1 | 58)
    }
}

/// What policies protect on this node: a pod, a virtual machine, the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Its name, once on the node.
    pub name: String,
    /// Its network.
    pub network: String,
    /// Its addresses; it is a subject of each identity that one of them lies in.
    pub addresses: Vec<IpAddr>,
}

/// A list of objects that is shared until it is changed: most changes of rules are about one list and leave the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shared<T>(Arc<Vec<Arc<T>>>);

impl<T> Default for Shared<T> {
    fn default() -> Shared<T> {
        Shared(Arc::default())
    }
}

impl<T> From<Vec<Arc<T>>> for Shared<T> {
    fn from(list: Vec<Arc<T>>) -> Shared<T> {
        Shared(Arc::new(list))
    }
}

impl<T> FromIterator<Arc<T>> for Shared<T> {
    fn from_iter<I: IntoIterator<Item = Arc<T>>>(objects: I) -> Shared<T> {
        objects.into_iter().collect::<Vec<_>>().into()
    }
}

impl<T> Deref for Shared<T> {
    type Target = Vec<Arc<T>>;

    fn deref(&self) -> &Vec<Arc<T>> {
        &self.0
    }
}

impl<T> DerefMut for Shared<T> {
    fn deref_mut(&mut self) -> &mut Vec<Arc<T>> {
        Arc::make_mut(&mut self.0)
    }
}

/// All that a compile needs.
///
/// Give lists that follow each other in the same order: what stands between equal beginnings and ends counts as changed.
/// Identities and policies sorted by network and name are read quickest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// The identities of all networks.
    pub identities: Shared<Identity>,
    /// The tiers, in any order.
    pub tiers: Vec<Tier>,
    /// The policies of all networks, in any order.
    pub policies: Shared<Policy>,
    /// The endpoints of this node.
    pub endpoints: Vec<Endpoint>,
}

impl Rules {
    /// Policies that select an endpoint, with their tiers, in the order of evaluation; tiers without any are left out.
    pub(crate) fn in_order<'a>(
        &'a self,
        selected: impl IntoIterator<Item = &'a Arc<Policy>>,
    ) -> Vec<(&'a Tier, Vec<&'a Arc<Policy>>)> {
        let mut tiers: Vec<(&Tier, Vec<&Arc<Policy>>)> =
            self.tiers.iter().map(|tier| (tier, Vec::new())).collect();
        tiers.sort_by_key(|(tier, _)| (tier.order, &tier.name));
        for policy in selected {
            if let Some((_, policies)) = tiers.iter_mut().find(|(tier, _)| tier.name == policy.tier) {
                policies.push(policy);
            }
        }
        for (_, policies) in &mut tiers {
            policies.sort_by_key(|policy| (policy.order, &policy.name));
        }
        tiers.retain(|(_, policies)| !policies.is_empty());
        tiers
    }
}
