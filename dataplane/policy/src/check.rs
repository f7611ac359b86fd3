//! Whether rules make sense: names that exist once, ranges with something in them, ports where there are ports.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;

use crate::fault::{CompileError, Fault};
use crate::rules::{Identity, Peer, Policy, PortMatch, Rules, Subjects};

/// Which lists are sorted by network and name, so that no name can be there twice and names are quickly found.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sorted {
    identities: bool,
    policies: bool,
}

/// Every fault of `rules`; what stayed as it was since `previous`, which had none, is not read again if it can be helped.
pub(crate) fn check(rules: &Rules, previous: Option<(&Rules, Sorted)>) -> Result<Sorted, CompileError> {
    let mut faults = Vec::new();
    let nothing = (&Rules::default(), Sorted { identities: true, policies: true });
    let (before, sorted_before) = previous.unwrap_or(nothing);
    let (identities, gone) = changed(&rules.identities, &before.identities);
    let (policies, _) = changed(&rules.policies, &before.policies);
    let sorted = Sorted {
        identities: sorted_before.identities && ascends(&rules.identities, &identities),
        policies: sorted_before.policies && ascends(&rules.policies, &policies),
    };
    if rules.tiers != before.tiers {
        twice("tier", rules.tiers.iter().map(|tier| ("", tier.name.as_str())), &mut faults);
    }
    if !sorted.identities && !identities.is_empty() {
        twice("identity", rules.identities.iter().map(|identity| identity.key()), &mut faults);
    }
    if !sorted.policies && !policies.is_empty() {
        twice("policy", rules.policies.iter().map(|policy| policy.key()), &mut faults);
    }
    twice("endpoint", rules.endpoints.iter().map(|endpoint| ("", endpoint.name.as_str())), &mut faults);

    // A name that went may be one that an old policy needs, so then all are read.
    let renamed =
        gone.iter().any(|old| !rules.identities[identities.clone()].iter().any(|new| old.key() == new.key()));
    let tiers_stay = before.tiers.iter().all(|old| rules.tiers.iter().any(|new| new.name == old.name));
    let unread = if renamed || !tiers_stay { 0..rules.policies.len() } else { policies };
    if !unread.is_empty() {
        let known = Known::new(&rules.identities, sorted.identities);
        let tiers: HashSet<&str> = rules.tiers.iter().map(|tier| tier.name.as_str()).collect();
        for policy in &rules.policies[unread] {
            check_policy(policy, &known, &tiers, &mut faults);
        }
    }
    if faults.is_empty() { Ok(sorted) } else { Err(CompileError { faults }) }
}

/// An object of a network.
trait Keyed {
    /// Its network and its name.
    fn key(&self) -> (&str, &str);
}

impl Keyed for Identity {
    fn key(&self) -> (&str, &str) {
        (&self.network, &self.name)
    }
}

impl Keyed for Policy {
    fn key(&self) -> (&str, &str) {
        (&self.network, &self.name)
    }
}

/// Whether keys ascend from the object before `fresh` to the one behind.
fn ascends<T: Keyed>(objects: &[Arc<T>], fresh: &Range<usize>) -> bool {
    let around = fresh.start.saturating_sub(1)..objects.len().min(fresh.end + 1);
    objects[around].is_sorted_by(|a, b| a.key() < b.key())
}

/// The identities, to be found by network and name.
enum Known<'a> {
    Sorted(&'a [Arc<Identity>]),
    Hashed(HashSet<(&'a str, &'a str)>),
}

impl<'a> Known<'a> {
    fn new(identities: &'a [Arc<Identity>], sorted: bool) -> Known<'a> {
        if sorted {
            Known::Sorted(identities)
        } else {
            Known::Hashed(identities.iter().map(|identity| identity.key()).collect())
        }
    }

    fn contains(&self, key: (&str, &str)) -> bool {
        match self {
            Known::Sorted(identities) => {
                identities.binary_search_by(|identity| identity.key().cmp(&key)).is_ok()
            }
            Known::Hashed(keys) => keys.contains(&key),
        }
    }
}

/// Where `now` differs from `before`, and what stood there before; what is the same at both ends is left out.
pub(crate) fn changed<'a, T>(now: &[Arc<T>], before: &'a [Arc<T>]) -> (Range<usize>, &'a [Arc<T>]) {
    if std::ptr::eq(now, before) {
        return (now.len()..now.len(), &[]);
    }
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

fn check_policy(policy: &Policy, known: &Known<'_>, tiers: &HashSet<&str>, faults: &mut Vec<Fault>) {
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
        subjects.iter().chain(peers).filter(|name| !known.contains((policy.network.as_str(), name.as_str())));
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
