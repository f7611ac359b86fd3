//! Identities, endpoints, tiers and policies of the API in the words of the policy engine.

use penstock_policy as policy;

use crate::model::{
    Endpoint, Identity, Policy, PolicyDirection, Rule, RuleAction, RulePeer, RulePort, Subjects, Tier,
    TierDefault,
};

impl From<&Identity> for policy::Identity {
    /// With the prefixes that the identity lists. Endpoints that name it bring their own addresses besides.
    fn from(identity: &Identity) -> Self {
        Self {
            name: identity.name.to_string(),
            network: identity.network.to_string(),
            prefixes: identity.prefixes.iter().map(|prefix| prefix.net()).collect(),
        }
    }
}

impl From<&Endpoint> for policy::Endpoint {
    fn from(endpoint: &Endpoint) -> Self {
        Self {
            name: endpoint.name.to_string(),
            network: endpoint.network.to_string(),
            addresses: endpoint.addresses.clone(),
        }
    }
}

impl From<&Tier> for policy::Tier {
    fn from(tier: &Tier) -> Self {
        let default = match tier.default {
            TierDefault::Pass => policy::TierDefault::Pass,
            TierDefault::Deny => policy::TierDefault::Deny,
        };
        Self { name: tier.name.to_string(), order: tier.order, default }
    }
}

impl From<&Policy> for policy::Policy {
    fn from(object: &Policy) -> Self {
        Self {
            name: object.name.to_string(),
            network: object.network.to_string(),
            tier: object.tier.to_string(),
            order: object.order,
            subjects: match &object.subjects {
                Subjects::All => policy::Subjects::All,
                Subjects::Identities(names) => {
                    policy::Subjects::Identities(names.iter().map(ToString::to_string).collect())
                }
            },
            directions: policy::Directions {
                ingress: object.directions.contains(&PolicyDirection::Ingress),
                egress: object.directions.contains(&PolicyDirection::Egress),
            },
            rules: object.rules.iter().map(policy::Rule::from).collect(),
            staged: object.staged,
        }
    }
}

impl From<&Rule> for policy::Rule {
    fn from(rule: &Rule) -> Self {
        Self {
            name: rule.name.to_string(),
            direction: match rule.direction {
                PolicyDirection::Ingress => policy::Direction::Ingress,
                PolicyDirection::Egress => policy::Direction::Egress,
            },
            action: match rule.action {
                RuleAction::Allow => policy::Action::Allow,
                RuleAction::Deny => policy::Action::Deny,
                RuleAction::Pass => policy::Action::Pass,
                RuleAction::Log => policy::Action::Log,
            },
            peers: rule.peers.iter().map(policy::Peer::from).collect(),
            ports: rule.ports.iter().map(policy::PortMatch::from).collect(),
        }
    }
}

impl From<&RulePeer> for policy::Peer {
    fn from(peer: &RulePeer) -> Self {
        match peer {
            RulePeer::Identity(name) => Self::Identity(name.to_string()),
            RulePeer::Prefix { prefix, except } => {
                Self::Prefix { prefix: prefix.net(), except: except.iter().map(|hole| hole.net()).collect() }
            }
        }
    }
}

impl From<&RulePort> for policy::PortMatch {
    fn from(port: &RulePort) -> Self {
        Self {
            protocol: policy::Protocol::Number(port.protocol.number()),
            ports: port.port.map(|range| range.first()..=range.last()),
            icmp_type: port.icmp_type,
            icmp_code: port.icmp_code,
        }
    }
}
