//! From rules to programs; what did not change since the last compile is taken over from it.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use crate::check::{changed, check};
use crate::fault::CompileError;
use crate::layers::Budget;
use crate::peers::{Block, Peers};
use crate::rules::{Endpoint, Identity, Peer, Rules, Subjects};
use crate::subject::{Stage, Subject, peers_of};

/// Compiled rules; by default of none.
#[derive(Clone, Debug, Default)]
pub struct Program {
    rules: Rules,
    /// By network.
    peers: BTreeMap<String, Arc<Peers>>,
    /// By endpoint.
    subjects: HashMap<String, Arc<Subject>>,
    /// The next revision.
    next: u64,
}

impl Program {
    /// The rules that it was compiled from.
    #[must_use]
    pub fn rules(&self) -> &Rules {
        &self.rules
    }

    /// The program of an endpoint.
    #[must_use]
    pub fn endpoint(&self, name: &str) -> Option<&Arc<Subject>> {
        self.subjects.get(name)
    }

    /// The peers of a network that has endpoints or identities. The same `Arc` as before if none of its prefixes or ids
    /// changed, so that its longest-prefix table need not be built again.
    #[must_use]
    pub fn peers(&self, network: &str) -> Option<&Arc<Peers>> {
        self.peers.get(network)
    }

    /// The different programs, in no order.
    pub fn subjects(&self) -> impl Iterator<Item = &Arc<Subject>> {
        let mut seen = HashSet::new();
        self.subjects.values().filter(move |subject| seen.insert(Arc::as_ptr(subject)))
    }

    /// Bytes that all tables take, about.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.subjects().map(|subject| subject.bytes()).sum()
    }
}

/// Compiles rules. With the program before, what stayed the same is shared with it and keeps its revision.
///
/// # Errors
///
/// Every fault of the rules, or the endpoints whose tables would not fit. Then nothing is compiled, and the caller goes
/// on with the program that it has: closed where it was closed.
pub fn compile(rules: &Rules, previous: Option<&Program>) -> Result<Program, CompileError> {
    compile_within(rules, previous, Budget::default())
}

/// [`compile`] with tables of a given size.
pub(crate) fn compile_within(
    rules: &Rules,
    previous: Option<&Program>,
    budget: Budget,
) -> Result<Program, CompileError> {
    check(rules, previous.map(|program| &program.rules))?;
    let before = Before::new(rules, previous);
    let groups = groups(rules);
    let peers = cut(rules, &groups, previous);
    let mut program = Program { rules: rules.clone(), peers, subjects: HashMap::new(), next: before.next };
    let mut faults = Vec::new();
    for group in groups {
        let peers = &program.peers[group.network];
        let old = before.alike(&group);
        let subject = match old {
            Some(old) if before.peers(group.network).is_some_and(|before| old.fits(before, peers)) => {
                Ok(old.clone())
            }
            _ => {
                // Other ids may need other tables; what they decide is the same.
                let revision = old.map_or(program.next, |old| old.revision());
                program.next += u64::from(old.is_none());
                Subject::compile(group.stages, revision, group.endpoints[0], group.network, peers, budget)
                    .map(Arc::new)
            }
        };
        match subject {
            Ok(subject) => {
                let named = group.endpoints.iter().map(|name| ((*name).to_owned(), subject.clone()));
                program.subjects.extend(named);
            }
            Err(fault) => faults.push(fault),
        }
    }
    if faults.is_empty() { Ok(program) } else { Err(CompileError { faults }) }
}

/// Endpoints that the same policies select.
struct Group<'a> {
    network: &'a str,
    stages: Vec<Stage>,
    endpoints: Vec<&'a str>,
}

fn groups(rules: &Rules) -> Vec<Group<'_>> {
    let mut by_policies: BTreeMap<(&str, Vec<usize>), Vec<&str>> = BTreeMap::new();
    for (endpoint, selected) in rules.endpoints.iter().zip(selected(rules)) {
        by_policies.entry((endpoint.network.as_str(), selected)).or_default().push(&endpoint.name);
    }
    let group = |((network, selected), endpoints): ((_, Vec<usize>), _)| {
        let stages = rules.in_order(selected.iter().map(|policy| &rules.policies[*policy]));
        let stages = stages.into_iter().map(|(tier, policies)| Stage {
            tier: tier.name.clone(),
            default: tier.default,
            policies: policies.into_iter().cloned().collect(),
        });
        Group { network, stages: stages.collect(), endpoints }
    };
    by_policies.into_iter().map(group).collect()
}

/// By endpoint: the places of the policies that select it.
fn selected(rules: &Rules) -> Vec<Vec<usize>> {
    let members = members(rules);
    let mut selected: Vec<Vec<usize>> = vec![Vec::new(); rules.endpoints.len()];
    for (place, policy) in rules.policies.iter().enumerate() {
        match &policy.subjects {
            Subjects::All => {
                let all = rules.endpoints.iter().zip(&mut selected);
                all.filter(|(endpoint, _)| endpoint.network == policy.network)
                    .for_each(|(_, policies)| policies.push(place));
            }
            Subjects::Identities(names) => {
                let members =
                    names.iter().filter_map(|name| members.get(&(policy.network.as_str(), name.as_str())));
                for &endpoint in members.flatten() {
                    if selected[endpoint].last() != Some(&place) {
                        selected[endpoint].push(place);
                    }
                }
            }
        }
    }
    selected
}

/// By identity: the places of the endpoints that have an address in it. Identities of nobody here are left out.
fn members(rules: &Rules) -> HashMap<(&str, &str), BTreeSet<usize>> {
    let mut by_address: HashMap<IpAddr, Vec<usize>> = HashMap::new();
    for (place, endpoint) in rules.endpoints.iter().enumerate() {
        for address in &endpoint.addresses {
            by_address.entry(*address).or_default().push(place);
        }
    }
    let has_one_in =
        |endpoint: &Endpoint, prefix: &ipnet::IpNet| endpoint.addresses.iter().any(|a| prefix.contains(a));
    let mut members: HashMap<(&str, &str), BTreeSet<usize>> = HashMap::new();
    for identity in &rules.identities {
        for prefix in &identity.prefixes {
            let found: Vec<usize> = if prefix.prefix_len() == prefix.max_prefix_len() {
                by_address.get(&prefix.addr()).cloned().unwrap_or_default()
            } else {
                (0..rules.endpoints.len())
                    .filter(|place| has_one_in(&rules.endpoints[*place], prefix))
                    .collect()
            };
            let here = found.into_iter().filter(|place| rules.endpoints[*place].network == identity.network);
            for place in here {
                members.entry((identity.network.as_str(), identity.name.as_str())).or_default().insert(place);
            }
        }
    }
    members
}

/// Cuts the space of each network along its identities and the blocks of the policies in use.
fn cut(rules: &Rules, groups: &[Group<'_>], previous: Option<&Program>) -> BTreeMap<String, Arc<Peers>> {
    let mut spaces: BTreeMap<&str, (Vec<Arc<Identity>>, BTreeSet<Block>)> = BTreeMap::new();
    for identity in &rules.identities {
        spaces.entry(identity.network.as_str()).or_default().0.push(identity.clone());
    }
    for group in groups {
        let blocks = peers_of(&group.stages).filter_map(|peer| match peer {
            Peer::Prefix { prefix, except } => Some(Block::new(*prefix, except)),
            Peer::Identity(_) | Peer::World => None,
        });
        spaces.entry(group.network).or_default().1.extend(blocks);
    }
    let cut = |(network, (identities, blocks)): (&str, (_, BTreeSet<Block>))| {
        let old = previous.and_then(|program| program.peers.get(network));
        (network.to_owned(), Peers::cut(identities, blocks.into_iter().collect(), old))
    };
    spaces.into_iter().map(cut).collect()
}

/// What the program before can lend.
struct Before<'a> {
    program: Option<&'a Program>,
    subjects: Vec<&'a Arc<Subject>>,
    /// Identities whose prefixes changed, by network.
    changed: HashMap<&'a str, HashSet<&'a str>>,
    next: u64,
}

impl<'a> Before<'a> {
    fn new(rules: &'a Rules, previous: Option<&'a Program>) -> Before<'a> {
        let Some(program) = previous else {
            return Before { program: None, subjects: Vec::new(), changed: HashMap::new(), next: 1 };
        };
        let (now, gone) = changed(&rules.identities, &program.rules.identities);
        let now: HashMap<_, &Identity> = rules.identities[now]
            .iter()
            .map(|identity| ((&*identity.network, &*identity.name), &**identity))
            .collect();
        let gone: HashMap<_, &Identity> =
            gone.iter().map(|identity| ((&*identity.network, &*identity.name), &**identity)).collect();
        let mut changed: HashMap<&str, HashSet<&str>> = HashMap::new();
        for (network, name) in now.keys().chain(gone.keys()) {
            if now.get(&(*network, *name)) != gone.get(&(*network, *name)) {
                changed.entry(*network).or_default().insert(*name);
            }
        }
        Before { program: previous, subjects: program.subjects().collect(), changed, next: program.next }
    }

    fn peers(&self, network: &str) -> Option<&'a Arc<Peers>> {
        self.program?.peers.get(network)
    }

    /// A program that decides as the policies of `group` do.
    fn alike(&self, group: &Group<'_>) -> Option<&'a Arc<Subject>> {
        let nothing = HashSet::new();
        let changed = self.changed.get(group.network).unwrap_or(&nothing);
        let other_peers = !changed.is_empty()
            && peers_of(&group.stages).any(|peer| match peer {
                Peer::Identity(name) => changed.contains(name.as_str()),
                Peer::World => true,
                Peer::Prefix { .. } => false,
            });
        if other_peers {
            return None;
        }
        self.subjects.iter().copied().find(|subject| {
            let stages = subject.stages();
            subject.network() == group.network
                && stages.len() == group.stages.len()
                && stages.iter().zip(&group.stages).all(|(a, b)| a.decides_as(b))
        })
    }
}
