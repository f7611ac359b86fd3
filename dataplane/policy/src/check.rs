//! Whether rules make sense: names that exist once, ranges with something in them, ports where there are ports.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;

use crate::fault::{CompileError, Fault};
use crate::rules::{Identity, Peer, Policy, PortMatch, Rules, Subjects};

/// Every fault of `rules`; policies that stayed as they were since `previous`, which had none, are not read again.
pub(crate) fn check(rules: &Rules, previous: Option<&Rules>) -> Result<(), CompileError> {
    let mut faults = Vec::new();
    let nothing = Rules::default();
    let before = previous.unwrap_or(&nothing);
    let (identities, gone) = changed(&rules.identities, &before.identities);
    let renamed =
        gone.iter().any(|old| !rules.identities[identities.clone()].iter().any(|new| same_key(old, new)));
    let tiers_stay = before.tiers.iter().all(|old| rules.tiers.iter().any(|new| new.name == old.name));
    let (policies, _) = changed(&rules.policies, &before.policies);
    // A name that went may be one that an old policy needs, so then all are read.
    let policies = if renamed || !tiers_stay { 0..rules.policies.len() } else { policies };

    if previous.is_none() || rules.tiers != before.tiers {
        twice("tier", rules.tiers.iter().map(|tier| ("", tier.name.as_str())), &mut faults);
    }
    if !identities.is_empty() {
        twice("identity", rules.identities.iter().map(|identity| key(identity)), &mut faults);
    }
    if !policies.is_empty() {
        let keys = rules.policies.iter().map(|policy| (policy.network.as_str(), policy.name.as_str()));
        twice("policy", keys, &mut faults);
        let known: HashSet<(&str, &str)> = rules.identities.iter().map(|identity| key(identity)).collect();
        let tiers: HashSet<&str> = rules.tiers.iter().map(|tier| tier.name.as_str()).collect();
        for policy in &rules.policies[policies] {
            check_policy(policy, &known, &tiers, &mut faults);
        }
    }
    twice("endpoint", rules.endpoints.iter().map(|endpoint| ("", endpoint.name.as_str())), &mut faults);
    if faults.is_empty() { Ok(()) } else { Err(CompileError { faults }) }
}

fn key(identity: &Identity) -> (&str, &str) {
    (&identity.network, &identity.name)
}

fn same_key(a: &Identity, b: &Identity) -> bool {
    key(a) == key(b)
}

/// Where `now` differs from `before`, and what stood there before; what is the same at both ends is left out.
pub(crate) fn changed<'a, T>(now: &[Arc<T>], before: &'a [Arc<T>]) -> (Range<usize>, &'a [Arc<T>]) {
    let same = |(a, b): &(&Arc<T>, &Arc<T>)| Arc::ptr_eq(a, b);
    let head = now.iter().zip(before).take_while(same).count();
    let tail = now[head..].iter().rev().zip(before[head..].iter().rev()).take_while(same).count();
    (head..now.len() - tail, &before[head..before.len() - tail])
}

fn twice<'a>(
    kind: &'static str,
    keys: impl ExactSizeIterator<Item = (&'a str, &'a str)>,
    faults: &mut Vec<Fault>,
) {
    let mut seen = HashSet::with_capacity(keys.len());
    let repeated = keys.filter(|key| !seen.insert(*key));
    faults.extend(repeated.map(|(_, name)| Fault::Twice { kind, name: name.to_owned() }));
}

fn check_policy(
    policy: &Policy,
    known: &HashSet<(&str, &str)>,
    tiers: &HashSet<&str>,
    faults: &mut Vec<Fault>,
) {
    if !tiers.contains(policy.tier.as_str()) {
        faults.push(Fault::UnknownTier { policy: policy.name.clone(), tier: policy.tier.clone() });
    }
    let subjects = match &policy.subjects {
        Subjects::All => &[][..],
        Subjects::Identities(names) => names,
    };
    let peers = policy.rules.iter().flat_map(|rule| &rule.peers).filter_map(|peer| match peer {
        Peer::Identity(name) => Some(name),
        Peer::Prefix { .. } | Peer::World => None,
    });
    let unknown =
        subjects.iter().chain(peers).filter(|name| !known.contains(&(policy.network.as_str(), name)));
    faults.extend(unknown.map(|identity| Fault::UnknownIdentity {
        policy: policy.name.clone(),
        network: policy.network.clone(),
        identity: identity.clone(),
    }));
    for (i, rule) in policy.rules.iter().enumerate() {
        for peer in &rule.peers {
            check_holes(policy, i + 1, peer, faults);
        }
        faults.extend(rule.ports.iter().filter_map(|ports| check_ports(policy, i + 1, ports)));
    }
}

fn check_holes(policy: &Policy, rule: usize, peer: &Peer, faults: &mut Vec<Fault>) {
    let Peer::Prefix { prefix, except } = peer else { return };
    let outside =
        except.iter().filter(|hole| !prefix.contains(*hole) || hole.prefix_len() == prefix.prefix_len());
    faults.extend(outside.map(|hole| Fault::ExceptOutside {
        policy: policy.name.clone(),
        rule,
        except: *hole,
        prefix: *prefix,
    }));
}

fn check_ports(policy: &Policy, rule: usize, ports: &PortMatch) -> Option<Fault> {
    let (policy, protocol) = (policy.name.clone(), ports.protocol.number());
    if let Some(range) = &ports.ports {
        if !ports.protocol.has_ports() {
            return Some(Fault::NoPorts { policy, rule, protocol });
        }
        if range.is_empty() {
            return Some(Fault::EmptyRange { policy, rule, first: *range.start(), last: *range.end() });
        }
    }
    let (kind, code) = (ports.icmp_type, ports.icmp_code);
    let misplaced = (kind.is_some() || code.is_some()) && !ports.protocol.is_icmp();
    (misplaced || (code.is_some() && kind.is_none())).then_some(Fault::NoIcmp { policy, rule, protocol })
}
