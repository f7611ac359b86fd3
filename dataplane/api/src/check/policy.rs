//! What must hold within an identity, a tier or a policy.

use std::collections::BTreeSet;

use super::Faults;
use crate::model::{Identity, Policy, Prefix, Rule, RulePeer, RulePort, Subjects};

pub(super) fn check_identity(identity: &Identity, faults: &mut Faults) {
    faults.distinct("prefixes", &identity.prefixes);
}

pub(super) fn check_policy(policy: &Policy, faults: &mut Faults) {
    if policy.directions.is_empty() {
        faults.say(
            "directions",
            "is empty, so that it would select nothing",
            "write \"ingress\", \"egress\" or both",
        );
    }
    faults.distinct("directions", &policy.directions);
    if let Subjects::Identities(names) = &policy.subjects {
        faults.distinct("subjects.identities", names);
    }
    let mut names = BTreeSet::new();
    for (i, rule) in policy.rules.iter().enumerate() {
        let key = format!("rules[{i}]");
        if !names.insert(&rule.name) {
            let problem = format!("{:?} is the name of an earlier rule too", rule.name.as_str());
            faults.say(&format!("{key}.name"), problem, "give each rule of a policy a name of its own");
        }
        // Before the first direction is named there is nothing to compare with, and that has been said.
        if !policy.directions.is_empty() && !policy.directions.contains(&rule.direction) {
            faults.say(
                &format!("{key}.direction"),
                format!("the policy selects nothing in the direction {:?}", rule.direction.to_string()),
                "add the direction to the policy's directions, or take the rule out",
            );
        }
        check_rule(&key, rule, faults);
    }
}

fn check_rule(key: &str, rule: &Rule, faults: &mut Faults) {
    for (i, peer) in rule.peers.iter().enumerate() {
        if let RulePeer::Prefix { prefix, except } = peer {
            for (j, hole) in except.iter().enumerate() {
                check_hole(&format!("{key}.peers[{i}].except[{j}]"), *prefix, *hole, faults);
            }
        }
    }
    for (i, port) in rule.ports.iter().enumerate() {
        check_port(&format!("{key}.ports[{i}]"), port, faults);
    }
}

fn check_hole(key: &str, prefix: Prefix, hole: Prefix, faults: &mut Faults) {
    if !prefix.net().contains(&hole.net()) {
        let problem = format!("{hole} does not lie in {prefix}, so that there is nothing to except");
        faults.say(key, problem, "write a part of the prefix, or take it out");
    } else if hole == prefix {
        faults.say(key, "is the prefix itself, so that nothing is left", "write a part of the prefix");
    }
}

fn check_port(key: &str, port: &RulePort, faults: &mut Faults) {
    let protocol = port.protocol;
    if port.port.is_some() && !protocol.has_ports() {
        let problem = format!("{protocol} has no ports");
        faults.say(&format!("{key}.port"), problem, "take the port out, or choose tcp, udp or sctp");
    }
    for (name, value) in [("icmp-type", port.icmp_type), ("icmp-code", port.icmp_code)] {
        if value.is_some() && !protocol.is_icmp() {
            let problem = format!("{protocol} is not ICMP");
            faults.say(&format!("{key}.{name}"), problem, "take the key out, or choose icmp or icmpv6");
        }
    }
    if port.icmp_code.is_some() && port.icmp_type.is_none() {
        faults.say(
            &format!("{key}.icmp-code"),
            "a code says nothing without its type",
            "write icmp-type as well",
        );
    }
}

#[cfg(test)]
mod tests {
    use crate::check::tests::keys;

    #[test]
    fn every_fault_of_a_policy_is_named() {
        let found = keys(
            r#"
            [[identity]]
            name = "i"
            network = "n"
            prefixes = ["10.0.0.0/8", "10.0.0.0/8"]

            [[policy]]
            name = "none"
            network = "n"
            tier = "t"
            subjects = "all"
            directions = []

            [[policy]]
            name = "p"
            network = "n"
            tier = "t"
            subjects = { identities = ["i", "i"] }
            directions = ["ingress", "ingress"]

            [[policy.rules]]
            name = "r"
            direction = "egress"
            action = "allow"
            peers = [
                { prefix = "10.0.0.0/8", except = ["11.0.0.0/16", "10.0.0.0/8", "10.1.0.0/16", "fd00::/64"] },
                { identity = "i" },
            ]

            [[policy.rules]]
            name = "r"
            direction = "ingress"
            action = "log"
            ports = [
                { protocol = 47, port = 80 },
                { protocol = "tcp", icmp-type = 1, icmp-code = 1 },
                { protocol = "icmp", icmp-code = 1 },
                { protocol = "sctp", port = "1-65535" },
            ]
            "#,
        );
        assert_eq!(
            found,
            [
                "identity \"i\" prefixes[1]",
                "policy \"none\" directions",
                "policy \"p\" directions[1]",
                "policy \"p\" subjects.identities[1]",
                "policy \"p\" rules[0].direction",
                "policy \"p\" rules[0].peers[0].except[0]",
                "policy \"p\" rules[0].peers[0].except[1]",
                "policy \"p\" rules[0].peers[0].except[3]",
                "policy \"p\" rules[1].name",
                "policy \"p\" rules[1].ports[0].port",
                "policy \"p\" rules[1].ports[1].icmp-type",
                "policy \"p\" rules[1].ports[1].icmp-code",
                "policy \"p\" rules[1].ports[2].icmp-code",
            ]
        );
    }
}
