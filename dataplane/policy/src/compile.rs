//! From rules to programs; what did not change since the last compile is taken over from it.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use crate::check::{Sorted, changed, check};
use crate::fault::CompileError;
use crate::layers::Budget;
use crate::peers::{Block, Peers};
use crate::rules::{Identity, Rules, Shared};
use crate::selection::Selection;
use crate::subject::{Named, Stage, Subject, addresses_of};

/// Compiled rules; by default of none.
#[derive(Clone, Debug, Default)]
pub struct Program {
    rules: Arc<Rules>,
    sorted: Sorted,
    /// By network.
    peers: BTreeMap<String, Arc<Peers>>,
    /// By endpoint.
    subjects: HashMap<String, Arc<Subject>>,
    /// Which policies select which endpoints.
    selection: Selection,
    /// The next revision.
    next: u64,
}

impl Program {
    /// The rules that it was compiled from.
    #[must_use]
    pub fn rules(&self) -> &Arc<Rules> {
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
pub fn compile(rules: &Arc<Rules>, previous: Option<&Program>) -> Result<Program, CompileError> {
    compile_within(rules, previous, Budget::default())
}

/// [`compile`] with tables of a given size.
pub(crate) fn compile_within(
    rules: &Arc<Rules>,
    previous: Option<&Program>,
    budget: Budget,
) -> Result<Program, CompileError> {
    let sorted = check(rules, previous.map(|program| (&*program.rules, program.sorted)))?;
    let before = Before::new(rules, previous);
    let selection = Selection::new(rules, previous.map(|program| (&*program.rules, &program.selection)));
    let groups = groups(rules, &selection, &before);
    let peers = cut(rules, &groups, previous);
    let mut program = Program {
        rules: rules.clone(),
        sorted,
        peers,
        subjects: HashMap::new(),
        selection,
        next: before.next,
    };
    let mut faults = Vec::new();
    for group in groups {
        let peers = &program.peers[group.network];
        let first = group.endpoints[0];
        let subject = match group.rules {
            Decided::AsBy(old) if before.peers(group.network).is_some_and(|it| old.fits(it, peers)) => {
                Ok(old.clone())
            }
            // Other ids may need other tables; what they decide is the same.
            Decided::AsBy(old) => {
                let rules = (old.stages().to_vec(), Named::by(old.stages()));
                Subject::compile(rules, old.revision(), first, group.network, peers, budget).map(Arc::new)
            }
            Decided::Anew(stages, named) => {
                program.next += 1;
                let revision = program.next - 1;
                Subject::compile((stages, named), revision, first, group.network, peers, budget).map(Arc::new)
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
    rules: Decided<'a>,
    endpoints: Vec<&'a str>,
}

/// By what is decided about the endpoints of a group.
enum Decided<'a> {
    /// As by a program of before.
    AsBy(&'a Arc<Subject>),
    /// By policies of which there is no program yet.
    Anew(Vec<Stage>, Named),
}

impl Group<'_> {
    fn named(&self) -> &Named {
        match &self.rules {
            Decided::AsBy(old) => old.named(),
            Decided::Anew(_, named) => named,
        }
    }
}

/// The endpoints by what selects them, in the order in which they are given.
fn groups<'a>(rules: &'a Rules, selection: &Selection, before: &Before<'a>) -> Vec<Group<'a>> {
    let mut places: HashMap<(&str, Vec<usize>), usize> = HashMap::new();
    let mut groups: Vec<Group<'_>> = Vec::new();
    for (endpoint, policies) in rules.endpoints.iter().zip(&selection.policies) {
        let key = addresses_of(policies);
        let (network, name) = (endpoint.network.as_str(), endpoint.name.as_str());
        let place = places.entry((network, key)).or_insert_with_key(|(_, key)| {
            let rules = before.unchanged(network, key, name).unwrap_or_else(|| {
                let stages = rules.in_order(policies).into_iter().map(|(tier, policies)| Stage {
                    tier: tier.name.clone(),
                    default: tier.default,
                    policies: policies.into_iter().cloned().collect(),
                });
                before.decided(network, stages.collect(), name)
            });
            groups.push(Group { network, rules, endpoints: Vec::new() });
            groups.len() - 1
        });
        groups[*place].endpoints.push(name);
    }
    groups
}

/// Cuts the space of each network along its identities and the blocks of the policies in use.
fn cut(rules: &Rules, groups: &[Group<'_>], previous: Option<&Program>) -> BTreeMap<String, Arc<Peers>> {
    let mut spaces: BTreeMap<&str, (Shared<Identity>, BTreeSet<&Block>)> = BTreeMap::new();
    for identities in rules.identities.chunk_by(|a, b| a.network == b.network) {
        let (all, _) = spaces.entry(&identities[0].network).or_default();
        // Most clusters have one network, whose list is that of all.
        match identities.len() == rules.identities.len() {
            true => *all = rules.identities.clone(),
            false => all.extend_from_slice(identities),
        }
    }
    for group in groups {
        spaces.entry(group.network).or_default().1.extend(&group.named().blocks);
    }
    let cut = |(network, (identities, blocks)): (&str, (_, BTreeSet<&Block>))| {
        let old = previous.and_then(|program| program.peers.get(network));
        (network.to_owned(), Peers::cut(identities, blocks.into_iter().cloned().collect(), old))
    };
    spaces.into_iter().map(cut).collect()
}

/// What the program before can lend.
struct Before<'a> {
    program: Option<&'a Program>,
    subjects: Vec<&'a Arc<Subject>>,
    /// Identities whose prefixes changed, by network.
    changed: HashMap<&'a str, HashSet<&'a str>>,
    same_tiers: bool,
    next: u64,
}

impl<'a> Before<'a> {
    fn new(rules: &'a Rules, previous: Option<&'a Program>) -> Before<'a> {
        let Some(program) = previous else {
            let (subjects, changed) = Default::default();
            return Before { program: None, subjects, changed, same_tiers: false, next: 1 };
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
        let same_tiers = rules.tiers == program.rules.tiers;
        Before {
            program: previous,
            subjects: program.subjects().collect(),
            changed,
            same_tiers,
            next: program.next,
        }
    }

    fn peers(&self, network: &str) -> Option<&'a Arc<Peers>> {
        self.program?.peers.get(network)
    }

    /// The program of an endpoint, if the policies at these addresses, which select it now, did when it was made.
    fn unchanged(&self, network: &str, addresses: &[usize], endpoint: &str) -> Option<Decided<'a>> {
        let former = self.program.filter(|_| self.same_tiers)?.endpoint(endpoint)?;
        let is_same = former.network() == network && former.is_of(addresses);
        (is_same && self.means_the_same(former)).then_some(Decided::AsBy(former))
    }

    /// Whether whom the rules of a program name has the prefixes that they had.
    fn means_the_same(&self, subject: &Subject) -> bool {
        self.changed.get(subject.network()).is_none_or(|changed| !subject.named().depends_on(changed))
    }

    /// By what is decided about endpoints that these policies select, e.g. the one of this name.
    fn decided(&self, network: &str, stages: Vec<Stage>, endpoint: &str) -> Decided<'a> {
        let decides_alike = |subject: &&'a Arc<Subject>| {
            subject.network() == network
                && subject.stages().len() == stages.len()
                && subject.stages().iter().zip(&stages).all(|(a, b)| a.decides_as(b))
        };
        // Most endpoints are decided about as they were.
        let former = self.program.and_then(|program| program.endpoint(endpoint)).filter(decides_alike);
        let alike = former.or_else(|| self.subjects.iter().copied().find(decides_alike));
        match alike.filter(|it| self.means_the_same(it)) {
            Some(alike) => Decided::AsBy(alike),
            None => {
                let named = Named::by(&stages);
                Decided::Anew(stages, named)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;
    use crate::fault::Fault;
    use crate::peers::PeerId;
    use crate::rules::{
        Action, Direction, Directions, Endpoint, Peer, Policy, PortMatch, Protocol, Rule, Subjects, Tier,
        TierDefault,
    };
    use crate::verdict::{Answer, Decider, Packet};

    /// 200 rules for any peer, each with a port of its own, and 200 for one address each and any port.
    fn crossing() -> Arc<Rules> {
        let rule = |number: u16| {
            let address = IpAddr::from([10, 0, 0, number as u8]);
            let wide = number.is_multiple_of(2);
            Rule {
                name: String::new(),
                direction: Direction::Ingress,
                action: Action::Allow,
                peers: if wide {
                    Vec::new()
                } else {
                    vec![Peer::Prefix { prefix: address.into(), except: Vec::new() }]
                },
                ports: if wide {
                    vec![PortMatch { ports: Some(number..=number), ..PortMatch::all(Protocol::Tcp) }]
                } else {
                    Vec::new()
                },
            }
        };
        let policy = Policy {
            name: "crossing".into(),
            network: "default".into(),
            tier: "network".into(),
            order: 0,
            subjects: Subjects::All,
            directions: Directions { ingress: true, egress: false },
            rules: (0..200).map(rule).collect(),
            staged: false,
        };
        Arc::new(Rules {
            identities: Vec::new().into(),
            tiers: vec![Tier { name: "network".into(), order: 0, default: TierDefault::Deny }],
            policies: vec![Arc::new(policy)].into(),
            endpoints: vec![Endpoint {
                name: "pod".into(),
                network: "default".into(),
                addresses: vec![[10, 0, 1, 1].into()],
            }],
        })
    }

    #[test]
    fn wide_rules_that_cross_narrow_ones_have_a_table_of_their_own() {
        let tables = |comfortable| {
            let budget = Budget { comfortable, ..Budget::default() };
            let program = compile_within(&crossing(), None, budget).unwrap();
            (program.endpoint("pod").unwrap().tables(Direction::Ingress), program.bytes())
        };
        let (one, together) = tables(u64::MAX);
        let (two, apart) = tables(1_000);
        assert_eq!((one, two), (1, 2));
        assert!(apart < together, "{apart} bytes apart, {together} together");
    }

    #[test]
    fn a_tier_that_refuses_before_the_rules_is_heard_from_several_tables_too() {
        let mut rules = (*crossing()).clone();
        let earlier = Policy {
            name: "a".into(),
            tier: "first".into(),
            rules: Vec::new(),
            ..(*rules.policies[0]).clone()
        };
        rules.policies.push(Arc::new(earlier));
        rules.tiers.push(Tier { name: "first".into(), order: 0, default: TierDefault::Deny });
        let budget = Budget { comfortable: 1_000, ..Budget::default() };
        let program = compile_within(&Arc::new(rules), None, budget).unwrap();
        let subject = program.endpoint("pod").unwrap();
        let packet = Packet { peer: PeerId::OUTSIDE, protocol: Protocol::Tcp.number(), key: Some(2) };
        let answer = subject.answer(Direction::Ingress, subject.classify(Direction::Ingress, &packet));
        assert_eq!(subject.tables(Direction::Ingress), 2);
        assert_eq!(answer, Answer { allow: false, decider: Decider::TierDefault("first".into()) });
    }

    #[test]
    fn rules_whose_tables_would_not_fit_are_refused_by_name() {
        let budget = Budget { comfortable: 10, most: 100, ..Budget::default() };
        let faults = compile_within(&crossing(), None, budget).unwrap_err().faults;
        assert!(
            matches!(&faults[..], [Fault::TooComplex { endpoint, limit: 100, .. }] if endpoint == "pod"),
            "{faults:?}"
        );
    }
}
