//! Objects of the API in the words of the policy engine.

use penstock_api::model;
use penstock_policy as policy;

pub(super) fn identity(identity: &model::Identity) -> policy::Identity {
    policy::Identity {
        name: identity.name.to_string(),
        network: identity.network.to_string(),
        prefixes: identity.prefixes.iter().map(|prefix| prefix.net()).collect(),
    }
}

pub(super) fn tier(tier: &model::Tier) -> policy::Tier {
    let default = match tier.default {
        model::TierDefault::Pass => policy::TierDefault::Pass,
        model::TierDefault::Deny => policy::TierDefault::Deny,
    };
    policy::Tier { name: tier.name.to_string(), order: tier.order, default }
}

pub(super) fn policy(object: &model::Policy) -> policy::Policy {
    use model::PolicyDirection::{Egress, Ingress};
    policy::Policy {
        name: object.name.to_string(),
        network: object.network.to_string(),
        tier: object.tier.to_string(),
        order: object.order,
        subjects: match &object.subjects {
            model::Subjects::All => policy::Subjects::All,
            model::Subjects::Identities(names) => {
                policy::Subjects::Identities(names.iter().map(ToString::to_string).collect())
            }
        },
        directions: policy::Directions {
            ingress: object.directions.contains(&Ingress),
            egress: object.directions.contains(&Egress),
        },
        rules: object.rules.iter().map(rule).collect(),
        staged: object.staged,
    }
}

fn rule(rule: &model::Rule) -> policy::Rule {
    policy::Rule {
        name: rule.name.to_string(),
        direction: match rule.direction {
            model::PolicyDirection::Ingress => policy::Direction::Ingress,
            model::PolicyDirection::Egress => policy::Direction::Egress,
        },
        action: match rule.action {
            model::RuleAction::Allow => policy::Action::Allow,
            model::RuleAction::Deny => policy::Action::Deny,
            model::RuleAction::Pass => policy::Action::Pass,
            model::RuleAction::Log => policy::Action::Log,
        },
        peers: rule.peers.iter().map(peer).collect(),
        ports: rule.ports.iter().map(port).collect(),
    }
}

fn peer(peer: &model::RulePeer) -> policy::Peer {
    match peer {
        model::RulePeer::Identity(name) => policy::Peer::Identity(name.to_string()),
        model::RulePeer::Prefix { prefix, except } => policy::Peer::Prefix {
            prefix: prefix.net(),
            except: except.iter().map(|hole| hole.net()).collect(),
        },
    }
}

fn port(port: &model::RulePort) -> policy::PortMatch {
    policy::PortMatch {
        protocol: policy::Protocol::Number(port.protocol.number()),
        ports: port.port.map(|range| range.first()..=range.last()),
        icmp_type: port.icmp_type,
        icmp_code: port.icmp_code,
    }
}
