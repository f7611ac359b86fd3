//! What the policies that select an endpoint come to: a classifier for each direction, and the names behind its answers.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use crate::classifier::{Classifier, MOST_RULES};
use crate::course::{Course, Judged, Step, TierEnd};
use crate::fault::Fault;
use crate::layers::Budget;
use crate::peers::{Block, Peers};
use crate::rules::{Direction, Peer, Policy, Rule, TierDefault};
use crate::verdict::{Answer, Decider, DecisionId, Ground, Packet, RulePath, Verdict};

/// A tier with the policies that select an endpoint, in the order of evaluation.
#[derive(Clone, Debug)]
pub(crate) struct Stage {
    pub(crate) tier: String,
    pub(crate) default: TierDefault,
    pub(crate) policies: Vec<Arc<Policy>>,
}

impl Stage {
    /// Whether it decides alike, whomever else its policies select.
    pub(crate) fn decides_as(&self, other: &Stage) -> bool {
        self.tier == other.tier
            && self.default == other.default
            && self.policies.len() == other.policies.len()
            && self.policies.iter().zip(&other.policies).all(|(a, b)| Arc::ptr_eq(a, b) || same_rules(a, b))
    }
}

fn same_rules(a: &Policy, b: &Policy) -> bool {
    a.name == b.name
        && a.network == b.network
        && a.directions == b.directions
        && a.staged == b.staged
        && a.rules == b.rules
}

/// Whom rules name.
#[derive(Debug, Default)]
pub(crate) struct Named {
    identities: HashSet<String>,
    /// Whether one is for whoever is in no identity.
    world: bool,
    pub(crate) blocks: BTreeSet<Block>,
}

impl Named {
    pub(crate) fn by(stages: &[Stage]) -> Named {
        let mut named = Named::default();
        let policies = stages.iter().flat_map(|stage| &stage.policies);
        for peer in policies.flat_map(|policy| &policy.rules).flat_map(|rule| &rule.peers) {
            match peer {
                Peer::Identity(name) if named.identities.contains(name) => {}
                Peer::Identity(name) => drop(named.identities.insert(name.clone())),
                Peer::World => named.world = true,
                Peer::Prefix { prefix, except } => drop(named.blocks.insert(Block::new(*prefix, except))),
            }
        }
        named
    }

    /// Whether these rules mean others once these identities have other prefixes.
    pub(crate) fn depends_on(&self, changed: &HashSet<&str>) -> bool {
        !changed.is_empty() && (self.world || changed.iter().any(|name| self.identities.contains(*name)))
    }
}

/// The program of all endpoints that the same policies select.
#[derive(Debug)]
pub struct Subject {
    revision: u64,
    network: String,
    stages: Vec<Stage>,
    named: Named,
    /// Where the policies of its stages are, sorted. They stay there as long as it does.
    addresses: Vec<usize>,
    /// By direction.
    classifiers: [Classifier; 2],
}

/// What the staged policies would decide, where that is something else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Staged {
    /// Whether the packet would be let through.
    pub allow: bool,
    /// What would decide.
    pub decision: DecisionId,
}

impl From<Judged> for Staged {
    fn from(judged: Judged) -> Staged {
        Staged { allow: judged.allow, decision: judged.decision }
    }
}

impl Subject {
    /// Compiles what `stages` say, which name so and so, for `endpoint`, whose name is for faults only.
    pub(crate) fn compile(
        (stages, named): (Vec<Stage>, Named),
        revision: u64,
        endpoint: &str,
        network: &str,
        peers: &Peers,
        budget: Budget,
    ) -> Result<Subject, Fault> {
        let compile = |direction| compile_direction(&stages, direction, endpoint, peers, budget);
        let (ingress, egress) = (compile(Direction::Ingress)?, compile(Direction::Egress)?);
        let addresses = addresses_of(stages.iter().flat_map(|stage| &stage.policies));
        Ok(Subject {
            revision,
            network: network.to_owned(),
            stages,
            named,
            addresses,
            classifiers: [ingress, egress],
        })
    }

    /// A number that no other decision function of this line of programs has.
    ///
    /// While an endpoint's revision stays, every packet between the same addresses is judged as before; once it changes,
    /// flows of the endpoint must be judged again.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Judges a packet of an endpoint of this program.
    #[inline]
    #[must_use]
    pub fn classify(&self, direction: Direction, packet: &Packet) -> Verdict {
        self.classifiers[direction.index()].classify(packet)
    }

    /// Judges several packets, whose look-ups overlap.
    #[inline]
    #[must_use]
    pub fn classify_many<const N: usize>(&self, direction: Direction, packets: &[Packet; N]) -> [Verdict; N] {
        self.classifiers[direction.index()].classify_many(packets)
    }

    /// What is to be reported of a packet whose verdict is [noted](Verdict::noted): each Log rule that it met, in order,
    /// goes to `log`; the answer is the staged verdict, if it is another than the enforced one.
    pub fn notes(
        &self,
        direction: Direction,
        packet: &Packet,
        log: impl FnMut(DecisionId),
    ) -> Option<Staged> {
        self.classifiers[direction.index()].notes(packet, log).map(Staged::from)
    }

    /// How many decisions there are in a direction: the length of an array of counters.
    #[must_use]
    pub fn decisions(&self, direction: Direction) -> u32 {
        self.classifiers[direction.index()].course().decisions()
    }

    /// Spells out what decided.
    #[must_use]
    pub fn decider(&self, direction: Direction, decision: DecisionId) -> Decider {
        let rules = self.classifiers[direction.index()].course().steps.len();
        let number = decision.0 as usize;
        if number < rules {
            return self.rule(direction, number).map_or(Decider::End, Decider::Rule);
        }
        match self.stages.get(number - rules) {
            Some(stage) => Decider::TierDefault(stage.tier.clone()),
            None => Decider::End,
        }
    }

    /// Everything that can decide in a direction, in the order of the numbers of decisions.
    pub fn grounds(&self, direction: Direction) -> impl Iterator<Item = Ground<'_>> {
        let policies = self.stages.iter().flat_map(|stage| stage.policies.iter().map(move |it| (stage, it)));
        let rules = policies.flat_map(move |(stage, policy)| {
            let rules = policy.rules.iter().filter(move |rule| rule.direction == direction);
            rules.map(move |rule| Ground::Rule { tier: &stage.tier, policy, rule })
        });
        let ends = self.stages.iter().map(|stage| Ground::TierDefault(&stage.tier));
        rules.chain(ends).chain(std::iter::once(Ground::End))
    }

    /// What decided, with all that its author wrote; by a walk, for people.
    #[must_use]
    pub fn ground(&self, direction: Direction, decision: DecisionId) -> Ground<'_> {
        self.grounds(direction).nth(decision.0 as usize).unwrap_or(Ground::End)
    }

    /// Whether a staged policy is among those that select the endpoint.
    #[must_use]
    pub fn has_staged(&self, direction: Direction) -> bool {
        self.classifiers[direction.index()].course().staged
    }

    /// Spells out a verdict.
    #[must_use]
    pub fn answer(&self, direction: Direction, verdict: Verdict) -> Answer {
        Answer { allow: verdict.allow, decider: self.decider(direction, verdict.decision) }
    }

    /// The rule of a number, by a walk: names are for people, who wait.
    fn rule(&self, direction: Direction, number: usize) -> Option<RulePath> {
        let policies =
            self.stages.iter().flat_map(|stage| stage.policies.iter().map(move |policy| (stage, policy)));
        let mut rules = policies.flat_map(|(stage, policy)| {
            rules_of(policy, direction).map(move |(index, rule)| (stage, policy, index, rule))
        });
        let (stage, policy, index, rule) = rules.nth(number)?;
        Some(RulePath {
            tier: stage.tier.clone(),
            policy: policy.name.clone(),
            rule: rule.name.clone(),
            index,
        })
    }

    /// The names of the policies, in the order of evaluation, each with its tier.
    pub fn policies(&self) -> impl Iterator<Item = (&str, &str)> {
        self.stages
            .iter()
            .flat_map(|stage| stage.policies.iter().map(|policy| (stage.tier.as_str(), policy.name.as_str())))
    }

    /// Bytes that its tables take, about.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.classifiers.iter().map(Classifier::bytes).sum()
    }

    /// How many tables a look-up asks: mostly one.
    #[must_use]
    pub fn tables(&self, direction: Direction) -> usize {
        self.classifiers[direction.index()].probes()
    }

    pub(crate) fn network(&self) -> &str {
        &self.network
    }

    pub(crate) fn stages(&self) -> &[Stage] {
        &self.stages
    }

    /// Whether it was made of these policies and no others.
    pub(crate) fn is_of(&self, addresses: &[usize]) -> bool {
        self.addresses == addresses
    }

    pub(crate) fn named(&self) -> &Named {
        &self.named
    }

    /// Whether its tables, which are right for `before`, are so for `peers`.
    pub(crate) fn fits(&self, before: &Peers, peers: &Peers) -> bool {
        let all_fit = || self.classifiers.iter().all(|classifier| classifier.fits(peers, before.count()));
        before.generation() == peers.generation() && all_fit()
    }
}

/// Where policies are in memory, sorted: tells sets of them apart at a glance.
pub(crate) fn addresses_of<'a>(policies: impl IntoIterator<Item = &'a Arc<Policy>>) -> Vec<usize> {
    let mut addresses: Vec<usize> = policies.into_iter().map(|policy| Arc::as_ptr(policy).addr()).collect();
    addresses.sort_unstable();
    addresses
}

fn rules_of(policy: &Policy, direction: Direction) -> impl Iterator<Item = (usize, &Rule)> {
    policy.rules.iter().enumerate().filter(move |(_, rule)| rule.direction == direction)
}

fn compile_direction(
    stages: &[Stage],
    direction: Direction,
    endpoint: &str,
    peers: &Peers,
    budget: Budget,
) -> Result<Classifier, Fault> {
    let mut course = Course::default();
    let mut rules: Vec<&Rule> = Vec::new();
    for (number, stage) in stages.iter().enumerate() {
        let mut end = TierEnd::default();
        for policy in &stage.policies {
            let denies = stage.default == TierDefault::Deny && policy.directions.contains(direction);
            end.denies |= denies && !policy.staged;
            end.would_deny |= denies;
            course.staged |= policy.staged;
            for (_, rule) in rules_of(policy, direction) {
                course.steps.push(Step { tier: number as u16, action: rule.action, staged: policy.staged });
                rules.push(rule);
            }
        }
        course.tiers.push(end);
    }
    if rules.len() > MOST_RULES || stages.len() > usize::from(u16::MAX) {
        return Err(Fault::TooManyRules {
            endpoint: endpoint.to_owned(),
            direction,
            rules: rules.len(),
            limit: MOST_RULES,
        });
    }
    Classifier::compile(&rules, course, peers, budget).map_err(|cells| Fault::TooComplex {
        endpoint: endpoint.to_owned(),
        direction,
        cells,
        limit: budget.most,
    })
}
