//! The rules of one endpoint and direction in the order of evaluation, and what a set of matching ones comes to.
//!
//! Rules are numbered through all tiers. What matters of the rules that match a packet is an *outcome*: their numbers in
//! order, without those that an earlier rule of the same tier always hides. Outcomes of overlapping rules merge into the
//! outcome of the overlap, so tables can be built piece by piece, and even looked up in parts.

use crate::hash::NumberMap;
use crate::rules::Action;
use crate::verdict::DecisionId;

/// A rule that matches, in an outcome: its number * 2, plus 1 if the packet does not show whether it matches.
///
/// Only Pass rules are ever in doubt: on a packet without ports, a Deny rule with ports matches and others do not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Hit(u32);

impl Hit {
    pub(crate) fn new(rule: u32, in_doubt: bool) -> Hit {
        Hit(rule << 1 | u32::from(in_doubt))
    }

    pub(crate) fn rule(self) -> u32 {
        self.0 >> 1
    }

    fn in_doubt(self) -> bool {
        self.0 & 1 != 0
    }
}

/// What the evaluation must know of a rule.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Step {
    pub(crate) tier: u16,
    pub(crate) action: Action,
    pub(crate) staged: bool,
}

/// What happens at the end of a tier.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct TierEnd {
    /// Whether it refuses, as enforced.
    pub(crate) denies: bool,
    /// Whether it would refuse if staged policies were enforced.
    pub(crate) would_deny: bool,
}

/// The rules and tiers of one endpoint and direction.
#[derive(Clone, Debug, Default)]
pub(crate) struct Course {
    pub(crate) steps: Vec<Step>,
    pub(crate) tiers: Vec<TierEnd>,
    /// Whether any policy is staged.
    pub(crate) staged: bool,
}

/// What a set of matching rules comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Judged {
    pub(crate) allow: bool,
    pub(crate) decision: DecisionId,
}

impl Course {
    /// The numbers of decisions: rules, then defaults of tiers, then the end.
    pub(crate) fn decisions(&self) -> u32 {
        (self.steps.len() + self.tiers.len()) as u32 + 1
    }

    /// Bytes that it takes.
    pub(crate) fn bytes(&self) -> usize {
        self.steps.len() * size_of::<Step>() + self.tiers.len() * size_of::<TierEnd>()
    }

    /// Whether an outcome is a single rule: the first that matches decides, and there is nothing to report.
    fn is_flat(&self) -> bool {
        let Some(first) = self.steps.first() else { return !self.staged };
        let plain =
            |step: &Step| step.tier == first.tier && matches!(step.action, Action::Allow | Action::Deny);
        let reached = self.tiers[..usize::from(first.tier)].iter().all(|tier| !tier.denies);
        !self.staged && reached && self.steps.iter().all(plain)
    }

    /// Evaluates hits in order; each Log rule met is told to `log`.
    pub(crate) fn judge(
        &self,
        hits: impl Iterator<Item = Hit>,
        with_staged: bool,
        mut log: impl FnMut(u32),
    ) -> Judged {
        let mut hits = hits.peekable();
        // An Allow that holds only if the tiers behind it, where a doubtful Pass would have led, allow as well.
        let mut doubtful: Option<Judged> = None;
        for (number, tier) in self.tiers.iter().enumerate() {
            let (mut in_doubt, mut met) = (false, None);
            while let Some(hit) =
                hits.next_if(|hit| usize::from(self.steps[hit.rule() as usize].tier) == number)
            {
                let step = self.steps[hit.rule() as usize];
                if met.is_some() || (step.staged && !with_staged) {
                    continue;
                }
                match step.action {
                    Action::Log => log(hit.rule()),
                    Action::Pass if hit.in_doubt() => in_doubt = true,
                    action => met = Some((action, hit.rule())),
                }
            }
            let denies = if with_staged { tier.would_deny } else { tier.denies };
            match met {
                Some((Action::Deny, rule)) => return Judged { allow: false, decision: DecisionId(rule) },
                None if denies => {
                    return Judged {
                        allow: false,
                        decision: DecisionId(self.steps.len() as u32 + number as u32),
                    };
                }
                Some((Action::Allow, rule)) => {
                    let judged = doubtful.unwrap_or(Judged { allow: true, decision: DecisionId(rule) });
                    if !in_doubt {
                        return judged;
                    }
                    doubtful = Some(judged);
                }
                _ => {}
            }
        }
        doubtful.unwrap_or(Judged { allow: true, decision: DecisionId(self.decisions() - 1) })
    }

    /// Drops what an earlier hit of the same tier hides, whatever else may match.
    fn prune(&self, hits: &mut Vec<Hit>) {
        let (mut tier, mut closed, mut staged_closed, mut in_doubt) = (u16::MAX, false, false, false);
        hits.retain(|hit| {
            let step = self.steps[hit.rule() as usize];
            if step.tier != tier {
                (tier, closed, staged_closed, in_doubt) = (step.tier, false, false, false);
            }
            if closed || (step.staged && staged_closed) {
                return false;
            }
            match (step.action, hit.in_doubt(), step.staged) {
                (Action::Log, _, _) | (_, true, true) => {}
                (_, true, false) => {
                    if in_doubt {
                        return false;
                    }
                    in_doubt = true;
                }
                (_, false, true) => staged_closed = true,
                (_, false, false) => closed = true,
            }
            true
        });
    }
}

/// The number of an outcome.
pub(crate) type OutcomeId = u32;

/// The outcome of no rule.
pub(crate) const NOTHING: OutcomeId = 0;

/// All outcomes met so far, each with a number.
///
/// Where outcomes are single rules (`flat`), the number is the hit itself plus one and nothing is stored.
#[derive(Debug)]
pub(crate) struct Outcomes<'a> {
    pub(crate) course: &'a Course,
    pub(crate) flat: bool,
    lists: Vec<Box<[Hit]>>,
    ids: NumberMap<Box<[Hit]>, OutcomeId>,
    merged: NumberMap<(OutcomeId, OutcomeId), OutcomeId>,
}

impl<'a> Outcomes<'a> {
    pub(crate) fn new(course: &'a Course) -> Outcomes<'a> {
        let empty: Box<[Hit]> = Box::default();
        let ids = NumberMap::from_iter([(empty.clone(), NOTHING)]);
        Outcomes { course, flat: course.is_flat(), lists: vec![empty], ids, merged: NumberMap::default() }
    }

    /// The outcome of one rule.
    pub(crate) fn of(&mut self, hit: Hit) -> OutcomeId {
        if self.flat { hit.0 + 1 } else { self.id(vec![hit]) }
    }

    fn id(&mut self, hits: Vec<Hit>) -> OutcomeId {
        let hits = hits.into_boxed_slice();
        if let Some(id) = self.ids.get(&hits) {
            return *id;
        }
        let id = self.lists.len() as u32;
        self.lists.push(hits.clone());
        self.ids.insert(hits, id);
        id
    }

    /// The outcome of both together.
    #[inline]
    pub(crate) fn merge(&mut self, a: OutcomeId, b: OutcomeId) -> OutcomeId {
        if a == NOTHING || b == NOTHING || a == b {
            return a.max(b);
        }
        if self.flat { a.min(b) } else { self.merge_lists(a.min(b), a.max(b)) }
    }

    fn merge_lists(&mut self, a: OutcomeId, b: OutcomeId) -> OutcomeId {
        if let Some(id) = self.merged.get(&(a, b)) {
            return *id;
        }
        let mut hits = [&*self.lists[a as usize], &*self.lists[b as usize]].concat();
        hits.sort_unstable();
        hits.dedup();
        self.course.prune(&mut hits);
        let id = self.id(hits);
        self.merged.insert((a, b), id);
        id
    }

    /// The hits of an outcome, in order.
    pub(crate) fn hits(&self, id: OutcomeId) -> impl Iterator<Item = Hit> + Clone + '_ {
        let flat = (self.flat && id != NOTHING).then(|| Hit(id - 1));
        let list: &[Hit] = if self.flat { &[] } else { &self.lists[id as usize] };
        flat.into_iter().chain(list.iter().copied())
    }

    /// The lists by number, for tables that merge as they are looked up.
    pub(crate) fn into_lists(self) -> Vec<Box<[Hit]>> {
        self.lists
    }
}

/// The hits of a listed outcome.
pub(crate) fn hits_of(lists: &[Box<[Hit]>], id: OutcomeId) -> &[Hit] {
    lists.get(id as usize).map_or(&[], |list| list)
}

/// Several outcomes walked as one, without storing it.
#[derive(Clone, Debug)]
pub(crate) struct Merge<'a, const N: usize>(pub(crate) [&'a [Hit]; N]);

impl<const N: usize> Iterator for Merge<'_, N> {
    type Item = Hit;

    fn next(&mut self) -> Option<Hit> {
        let least = self.0.iter().filter_map(|list| list.first()).min().copied()?;
        for list in &mut self.0 {
            if list.first() == Some(&least) {
                *list = &list[1..];
            }
        }
        Some(least)
    }
}
