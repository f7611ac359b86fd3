//! How often rules decided: counted by each worker for itself, added up by name when somebody asks.
//!
//! ```text
//!  worker: Endpoint -> SubjectCounts -> [worker][direction][decision] += 1      live as long as their program
//!  asked:  live + retired + settled -> RuleTotals, by policy and rule
//! ```
//!
//! A change of policies makes new programs with counts of their own. Those of the programs before are retired, and settled
//! once no tables name them: nothing is lost over a change, and nothing is kept of policies that are gone.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use penstock_api::model::{Key, Name, Object};
use penstock_policy::{DecisionId, Direction, Ground, Subject};

use super::desired::Desired;
use super::policies::Policies;

/// A worker's counts of one direction, by the decision's number. Only its worker writes; words of other workers lie elsewhere.
#[derive(Debug)]
struct Sheet {
    decided: Box<[AtomicU64]>,
    /// What would be decided if staged policies were enforced, where that is something else; empty if none is staged.
    would_decide: Box<[AtomicU64]>,
}

impl Sheet {
    fn of(subject: &Subject, direction: Direction) -> Sheet {
        let words = |count: u32| (0..count).map(|_| AtomicU64::new(0)).collect();
        let decisions = subject.decisions(direction);
        let staged = if subject.has_staged(direction) { decisions } else { 0 };
        Sheet { decided: words(decisions), would_decide: words(staged) }
    }
}

fn add_one(counts: &[AtomicU64], decision: DecisionId) {
    if let Some(count) = counts.get(decision.get() as usize) {
        count.store(count.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }
}

/// How often the rules of a program decided.
#[derive(Debug)]
pub struct SubjectCounts {
    subject: Arc<Subject>,
    /// By worker, then by direction: ingress, egress.
    sheets: Box<[[Sheet; 2]]>,
}

impl SubjectCounts {
    fn new(subject: &Arc<Subject>, workers: u16) -> SubjectCounts {
        let sheets = |_| DIRECTIONS.map(|direction| Sheet::of(subject, direction));
        SubjectCounts { subject: Arc::clone(subject), sheets: (0..workers).map(sheets).collect() }
    }

    fn sheet(&self, worker: u16, direction: Direction) -> Option<&Sheet> {
        self.sheets.get(usize::from(worker)).map(|sheets| &sheets[place_of(direction)])
    }

    /// A decision was made.
    #[inline]
    pub fn count(&self, worker: u16, direction: Direction, decision: DecisionId) {
        if let Some(sheet) = self.sheet(worker, direction) {
            add_one(&sheet.decided, decision);
        }
    }

    /// A decision would have been made, had staged policies been enforced.
    pub fn count_staged(&self, worker: u16, direction: Direction, decision: DecisionId) {
        if let Some(sheet) = self.sheet(worker, direction) {
            add_one(&sheet.would_decide, decision);
        }
    }

    fn add_to(&self, totals: &mut RuleTotals) {
        for direction in DIRECTIONS {
            let sum = |of: fn(&Sheet) -> &[AtomicU64], number: usize| -> u64 {
                let sheets = self.sheets.iter().map(|sheets| of(&sheets[place_of(direction)]));
                sheets.filter_map(|counts| Some(counts.get(number)?.load(Ordering::Relaxed))).sum()
            };
            for (number, ground) in self.subject.grounds(direction).enumerate() {
                let decided = sum(|sheet| &sheet.decided, number);
                let would_decide = sum(|sheet| &sheet.would_decide, number);
                totals.add(ground, decided, would_decide);
            }
        }
    }
}

const DIRECTIONS: [Direction; 2] = [Direction::Ingress, Direction::Egress];

fn place_of(direction: Direction) -> usize {
    usize::from(direction == Direction::Egress)
}

/// How often rules and the ends of tiers decided.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RuleTotals {
    /// By policy, then by rule.
    rules: HashMap<String, HashMap<String, u64>>,
    /// By tier: what its end decided, and what it would have decided with staged policies enforced.
    ends: HashMap<String, (u64, u64)>,
}

impl RuleTotals {
    /// Decisions of a rule, matches of one that logs; for a rule of a staged policy, those that it would have made.
    #[must_use]
    pub fn rule(&self, policy: &str, rule: &str) -> u64 {
        self.rules.get(policy).and_then(|rules| rules.get(rule)).copied().unwrap_or_default()
    }

    /// Decisions of a tier's end, and those that it would have made beside if staged policies were enforced.
    #[must_use]
    pub fn tier_end(&self, tier: &str) -> (u64, u64) {
        self.ends.get(tier).copied().unwrap_or_default()
    }

    #[cfg(test)]
    pub(crate) fn of(rules: &[(&str, &str, u64)], ends: &[(&str, u64, u64)]) -> RuleTotals {
        let mut totals = RuleTotals::default();
        for (policy, rule, count) in rules {
            totals.rules.entry((*policy).to_owned()).or_default().insert((*rule).to_owned(), *count);
        }
        totals.ends =
            ends.iter().map(|(tier, made, staged)| ((*tier).to_owned(), (*made, *staged))).collect();
        totals
    }

    fn add(&mut self, ground: Ground<'_>, decided: u64, would_decide: u64) {
        match ground {
            Ground::Rule { policy, rule, .. } => {
                let count = if policy.staged { would_decide } else { decided };
                if count == 0 {
                    return;
                }
                let rules = self.rules.entry(policy.name.clone()).or_default();
                *rules.entry(rule.name.clone()).or_default() += count;
            }
            Ground::TierDefault(tier) if decided + would_decide > 0 => {
                let end = self.ends.entry(tier.to_owned()).or_default();
                *end = (end.0 + decided, end.1 + would_decide);
            }
            Ground::TierDefault(_) | Ground::End => {}
        }
    }

    /// Forgets what is about policies, rules and tiers that are not there any more.
    fn keep_known(&mut self, desired: &Desired) {
        // Few have counts of the many that there may be.
        self.rules.retain(|policy, counts| {
            let Some(Object::Policy(policy)) = named(desired, policy, Key::Policy) else { return false };
            let known: HashSet<&str> = policy.rules.iter().map(|rule| rule.name.as_str()).collect();
            counts.retain(|rule, _| known.contains(rule.as_str()));
            true
        });
        self.ends.retain(|tier, _| named(desired, tier, Key::Tier).is_some());
    }
}

/// The object of a kind that has this name.
fn named<'a>(desired: &'a Desired, name: &str, kind: fn(Name) -> Key) -> Option<&'a Object> {
    desired.get(&kind(name.parse().ok()?))
}

/// Counts by the revision of the program.
pub(super) type LiveCounts = HashMap<u64, Arc<SubjectCounts>>;

/// The counts of all programs that there are and were.
#[derive(Debug, Default)]
struct Books {
    live: Arc<LiveCounts>,
    /// Of programs that some tables may still name.
    retired: Vec<Arc<SubjectCounts>>,
    /// Of programs that nobody names any more.
    settled: RuleTotals,
}

/// The counts of a node's rules, for those who compile and those who ask.
#[derive(Clone, Debug, Default)]
pub struct RuleBooks(Arc<Mutex<Books>>);

impl RuleBooks {
    /// What rules decided so far. Looks at every rule of every program.
    #[must_use]
    pub fn totals(&self) -> RuleTotals {
        let books = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut totals = books.settled.clone();
        books.live.values().chain(&books.retired).for_each(|counts| counts.add_to(&mut totals));
        totals
    }

    /// The counts of newly compiled policies; the programs that are the same go on counting where they were.
    pub(super) fn revise(&self, policies: &Policies, desired: &Desired, workers: u16) -> Arc<LiveCounts> {
        let mut books = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let subjects = desired.endpoints().filter_map(|endpoint| policies.subject(endpoint.name.as_str()));
        let mut live = LiveCounts::new();
        for subject in subjects {
            let known = books.live.get(&subject.revision());
            let counts = || known.cloned().unwrap_or_else(|| Arc::new(SubjectCounts::new(subject, workers)));
            live.entry(subject.revision()).or_insert_with(counts);
        }
        let before = std::mem::replace(&mut books.live, Arc::new(live));
        let live = Arc::clone(&books.live);
        let gone = before.iter().filter(|(revision, _)| !live.contains_key(revision));
        books.retired.extend(gone.map(|(_, counts)| Arc::clone(counts)));
        drop(before);
        books.settle(desired);
        live
    }
}

impl Books {
    /// Adds up the retired that nobody names any more, and forgets what is about policies that are gone.
    fn settle(&mut self, desired: &Desired) {
        let retired = std::mem::take(&mut self.retired);
        let (over, named): (Vec<_>, Vec<_>) =
            retired.into_iter().partition(|counts| Arc::strong_count(counts) == 1);
        self.retired = named;
        if !over.is_empty() {
            over.iter().for_each(|counts| counts.add_to(&mut self.settled));
            self.settled.keep_known(desired);
        }
    }
}
