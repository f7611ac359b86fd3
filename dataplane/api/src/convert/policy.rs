//! Identities, tiers and policies, from the messages to the model and back.

use super::{Reader, texts};
use crate::model::{
    Identity, Policy, PolicyDirection, Protocol, Rule, RuleAction, RulePeer, RulePort, Subjects, Tier,
    TierDefault,
};
use crate::proto;

pub(super) fn identity_from_proto(m: proto::Identity, reader: &mut Reader) -> Option<Identity> {
    let name = reader.text("name", &m.name);
    let network = reader.text("network", &m.network);
    let prefixes = reader.texts("prefixes", m.prefixes);
    Some(Identity { name: name?, network: network?, prefixes: prefixes? })
}

pub(super) fn tier_from_proto(m: proto::Tier, reader: &mut Reader) -> Option<Tier> {
    let name = reader.text("name", &m.name);
    let default = match reader.enumeration("default", m.default) {
        Some(proto::TierDefault::Pass) => Some(TierDefault::Pass),
        Some(proto::TierDefault::Deny) => Some(TierDefault::Deny),
        Some(proto::TierDefault::Unspecified) => reader.present("default", None),
        None => None,
    };
    Some(Tier { name: name?, order: m.order, default: default? })
}

pub(super) fn policy_from_proto(m: proto::Policy, reader: &mut Reader) -> Option<Policy> {
    use proto::subjects::Subjects as Message;
    let name = reader.text("name", &m.name);
    let network = reader.text("network", &m.network);
    let tier = reader.text("tier", &m.tier);
    let subjects = match reader.present("subjects", m.subjects.and_then(|m| m.subjects)) {
        None => None,
        Some(Message::All(_)) => Some(Subjects::All),
        Some(Message::Identities(m)) => {
            reader.texts("subjects.identities", m.names).map(Subjects::Identities)
        }
    };
    let directions = reader.list("directions", m.directions, direction_from_proto);
    let rules = reader.list("rules", m.rules, rule_from_proto);
    Some(Policy {
        name: name?,
        network: network?,
        tier: tier?,
        order: m.order,
        subjects: subjects?,
        directions: directions?,
        staged: m.staged,
        rules: rules?,
    })
}

fn direction_from_proto(reader: &mut Reader, key: &str, direction: i32) -> Option<PolicyDirection> {
    match reader.enumeration(key, direction)? {
        proto::PolicyDirection::Ingress => Some(PolicyDirection::Ingress),
        proto::PolicyDirection::Egress => Some(PolicyDirection::Egress),
        proto::PolicyDirection::Unspecified => reader.present(key, None),
    }
}

fn action_from_proto(reader: &mut Reader, key: &str, action: i32) -> Option<RuleAction> {
    match reader.enumeration(key, action)? {
        proto::RuleAction::Allow => Some(RuleAction::Allow),
        proto::RuleAction::Deny => Some(RuleAction::Deny),
        proto::RuleAction::Pass => Some(RuleAction::Pass),
        proto::RuleAction::Log => Some(RuleAction::Log),
        proto::RuleAction::Unspecified => reader.present(key, None),
    }
}

fn rule_from_proto(reader: &mut Reader, key: &str, m: proto::Rule) -> Option<Rule> {
    let name = reader.text(&format!("{key}.name"), &m.name);
    let direction = direction_from_proto(reader, &format!("{key}.direction"), m.direction);
    let action = action_from_proto(reader, &format!("{key}.action"), m.action);
    let peers = reader.list(&format!("{key}.peers"), m.peers, peer_from_proto);
    let ports = reader.list(&format!("{key}.ports"), m.ports, port_from_proto);
    Some(Rule { name: name?, direction: direction?, action: action?, peers: peers?, ports: ports? })
}

fn peer_from_proto(reader: &mut Reader, key: &str, m: proto::RulePeer) -> Option<RulePeer> {
    use proto::rule_peer::Peer as Message;
    match reader.present(key, m.peer)? {
        Message::Identity(name) => reader.text(&format!("{key}.identity"), &name).map(RulePeer::Identity),
        Message::Prefix(m) => {
            let prefix = reader.text(&format!("{key}.prefix"), &m.prefix);
            let except = reader.texts(&format!("{key}.except"), m.except);
            Some(RulePeer::Prefix { prefix: prefix?, except: except? })
        }
    }
}

fn port_from_proto(reader: &mut Reader, key: &str, m: proto::RulePort) -> Option<RulePort> {
    let protocol = reader.number(&format!("{key}.protocol"), m.protocol).map(Protocol::new);
    let port = reader.optional(m.port, |reader, m| reader.ports(&format!("{key}.port"), m));
    let icmp_type =
        reader.optional(m.icmp_type, |reader, number| reader.number(&format!("{key}.icmp-type"), number));
    let icmp_code =
        reader.optional(m.icmp_code, |reader, number| reader.number(&format!("{key}.icmp-code"), number));
    Some(RulePort { protocol: protocol?, port: port?, icmp_type: icmp_type?, icmp_code: icmp_code? })
}

impl From<&Identity> for proto::Identity {
    fn from(identity: &Identity) -> Self {
        Self {
            name: identity.name.to_string(),
            network: identity.network.to_string(),
            prefixes: texts(&identity.prefixes),
        }
    }
}

impl From<TierDefault> for proto::TierDefault {
    fn from(default: TierDefault) -> Self {
        match default {
            TierDefault::Pass => Self::Pass,
            TierDefault::Deny => Self::Deny,
        }
    }
}

impl From<&Tier> for proto::Tier {
    fn from(tier: &Tier) -> Self {
        Self {
            name: tier.name.to_string(),
            order: tier.order,
            default: proto::TierDefault::from(tier.default).into(),
        }
    }
}

impl From<PolicyDirection> for proto::PolicyDirection {
    fn from(direction: PolicyDirection) -> Self {
        match direction {
            PolicyDirection::Ingress => Self::Ingress,
            PolicyDirection::Egress => Self::Egress,
        }
    }
}

impl From<RuleAction> for proto::RuleAction {
    fn from(action: RuleAction) -> Self {
        match action {
            RuleAction::Allow => Self::Allow,
            RuleAction::Deny => Self::Deny,
            RuleAction::Pass => Self::Pass,
            RuleAction::Log => Self::Log,
        }
    }
}

impl From<&Policy> for proto::Policy {
    fn from(policy: &Policy) -> Self {
        use proto::subjects::Subjects as Message;
        let subjects = match &policy.subjects {
            Subjects::All => Message::All(proto::Everyone {}),
            Subjects::Identities(names) => Message::Identities(proto::IdentityNames { names: texts(names) }),
        };
        let directions = policy.directions.iter();
        Self {
            name: policy.name.to_string(),
            network: policy.network.to_string(),
            tier: policy.tier.to_string(),
            order: policy.order,
            subjects: Some(proto::Subjects { subjects: Some(subjects) }),
            directions: directions.map(|it| proto::PolicyDirection::from(*it).into()).collect(),
            staged: policy.staged,
            rules: policy.rules.iter().map(proto::Rule::from).collect(),
        }
    }
}

impl From<&Rule> for proto::Rule {
    fn from(rule: &Rule) -> Self {
        Self {
            name: rule.name.to_string(),
            direction: proto::PolicyDirection::from(rule.direction).into(),
            action: proto::RuleAction::from(rule.action).into(),
            peers: rule.peers.iter().map(proto::RulePeer::from).collect(),
            ports: rule.ports.iter().map(proto::RulePort::from).collect(),
        }
    }
}

impl From<&RulePeer> for proto::RulePeer {
    fn from(peer: &RulePeer) -> Self {
        use proto::rule_peer::Peer as Message;
        let peer = match peer {
            RulePeer::Identity(name) => Message::Identity(name.to_string()),
            RulePeer::Prefix { prefix, except } => {
                Message::Prefix(proto::PrefixPeer { prefix: prefix.to_string(), except: texts(except) })
            }
        };
        Self { peer: Some(peer) }
    }
}

impl From<&RulePort> for proto::RulePort {
    fn from(port: &RulePort) -> Self {
        Self {
            protocol: port.protocol.number().into(),
            port: port.port.map(proto::PortRange::from),
            icmp_type: port.icmp_type.map(u32::from),
            icmp_code: port.icmp_code.map(u32::from),
        }
    }
}
