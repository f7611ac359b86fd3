//! The compiled rules of one endpoint and direction: at most a few probes, however many rules there are.

use crate::course::{Course, Hit, Judged, Merge, OutcomeId, Outcomes, hits_of};
use crate::fill::Filling;
use crate::layers::{Budget, MOST_LAYERS};
use crate::matchers::Matchers;
use crate::peers::Peers;
use crate::ports::{self, Columns, Row};
use crate::rules::{Action, Rule};
use crate::table::{Table, VALUE_BITS};
use crate::verdict::{DecisionId, Packet, Verdict};

/// In a value: the verdict has notes, and the rest is their place.
const NOTED: u32 = 1 << (VALUE_BITS - 1);
/// In a value: the packet may go.
const ALLOW: u32 = 1 << (VALUE_BITS - 2);
/// In a value: the decision, or the place of the note.
const REST: u32 = ALLOW - 1;

/// The most rules of one endpoint and direction: outcomes must fit a value.
pub(crate) const MOST_RULES: usize = 1 << (VALUE_BITS - 4);

/// What is to be reported beside a verdict.
#[derive(Clone, Debug)]
pub(crate) struct Note {
    pub(crate) judged: Judged,
    /// What would happen with the staged policies enforced, if that is something else.
    pub(crate) staged: Option<Judged>,
    /// The Log rules met.
    pub(crate) logs: Box<[u32]>,
}

/// What the values of the tables are.
#[derive(Debug)]
pub(crate) enum Values {
    /// One table; a value is a verdict, or the place of a note.
    Verdicts { notes: Vec<Note> },
    /// Several tables, and a single rule decides: a value is its number * 2, plus 1 if it allows. The least counts.
    Ranks {
        /// What happens where no rule matches.
        unmatched: Judged,
    },
    /// Several tables; a value is an outcome, and the outcomes of all tables merge at the look-up.
    Outcomes {
        /// By outcome: the rules that match.
        lists: Vec<Box<[Hit]>>,
    },
}

/// The rank where no rule matches: behind all others.
const UNRANKED: u32 = (1 << VALUE_BITS) - 1;

/// Rules compiled for look-up.
#[derive(Debug)]
pub(crate) struct Classifier {
    columns: Columns,
    tables: Vec<Table>,
    values: Values,
    course: Course,
    /// The atoms that rules name, sorted.
    named: Vec<u32>,
    names_world: bool,
}

impl Classifier {
    /// Compiles `rules`, whose numbers are their places and whose tiers and actions `course` tells.
    ///
    /// # Errors
    ///
    /// How many pieces the tables would have, if that is too many.
    pub(crate) fn compile(
        rules: &[&Rule],
        course: Course,
        peers: &Peers,
        budget: Budget,
    ) -> Result<Classifier, u64> {
        let columns = Columns::new(rules.iter().copied());
        let matchers = Matchers::new(peers, rules);
        let mut outcomes = Outcomes::new(&course);
        let rows: Vec<Row> = matchers
            .rules
            .iter()
            .map(|numbers| {
                let rows = numbers
                    .iter()
                    .map(|number| ports::row_of(&mut outcomes, &columns, *number, rules[*number as usize]))
                    .collect();
                ports::merge_all(&mut outcomes, &columns, rows)
            })
            .collect();
        let (named, names_world) = matchers.named();
        let filling = Filling { matchers, rows, columns: columns.clone(), outcomes };
        let (tables, values) = filling.tables(budget)?;
        Ok(Classifier { columns, tables, values, course, named, names_world })
    }

    /// Whether the tables are right for peers from `first` on, which came after it was compiled.
    pub(crate) fn fits(&self, peers: &Peers, first: u32) -> bool {
        let named = |atom: &u32| self.named.binary_search(atom).is_ok();
        (first..peers.count()).all(|set| {
            let world_alike = !self.names_world || !peers.sets()[set as usize].known;
            world_alike && !peers.atoms_of(set).iter().any(named)
        })
    }

    #[inline]
    pub(crate) fn classify(&self, packet: &Packet) -> Verdict {
        let [verdict] = self.classify_many(std::array::from_ref(packet));
        verdict
    }

    #[inline]
    pub(crate) fn classify_many<const N: usize>(&self, packets: &[Packet; N]) -> [Verdict; N] {
        let asked = packets.each_ref().map(|packet| {
            let (column, key) = self.columns.find(packet.protocol, packet.key);
            (packet.peer.0, column, key)
        });
        match (&self.values, &*self.tables) {
            (Values::Verdicts { notes }, [table]) => {
                table.find_many(&asked).map(|value| verdict(notes, value))
            }
            (Values::Ranks { unmatched }, tables) => {
                let mut ranks = [UNRANKED; N];
                for table in tables {
                    let found = table.find_many(&asked);
                    ranks = std::array::from_fn(|lane| ranks[lane].min(found[lane]));
                }
                ranks.map(|rank| ranked(*unmatched, rank))
            }
            _ => packets.each_ref().map(|packet| self.judge_merged(packet).0),
        }
    }

    /// The Log rules that a packet met, one by one, and what the staged policies would make of it.
    pub(crate) fn notes(&self, packet: &Packet, mut log: impl FnMut(DecisionId)) -> Option<Judged> {
        match (&self.values, &*self.tables) {
            (Values::Verdicts { notes }, [table]) => {
                let (column, key) = self.columns.find(packet.protocol, packet.key);
                let value = table.find(packet.peer.0, column, key);
                let note = (value & NOTED != 0).then(|| &notes[(value & REST) as usize])?;
                note.logs.iter().for_each(|rule| log(DecisionId(*rule)));
                note.staged
            }
            (Values::Ranks { .. }, _) => None,
            _ => {
                self.course.judge(self.hits(packet), false, |rule| log(DecisionId(rule)));
                self.judge_merged(packet).1
            }
        }
    }

    /// The rules that a packet matches, from tables whose values are outcomes.
    fn hits(&self, packet: &Packet) -> Merge<'_, MOST_LAYERS> {
        let mut merge = Merge([&[][..]; MOST_LAYERS]);
        if let Values::Outcomes { lists } = &self.values {
            let (column, key) = self.columns.find(packet.protocol, packet.key);
            for (hits, table) in merge.0.iter_mut().zip(&self.tables) {
                *hits = hits_of(lists, table.find(packet.peer.0, column, key));
            }
        }
        merge
    }

    /// The verdict of tables whose values are outcomes, and the staged one if it is another.
    fn judge_merged(&self, packet: &Packet) -> (Verdict, Option<Judged>) {
        let hits = self.hits(packet);
        let mut logged = false;
        let judged = self.course.judge(hits.clone(), false, |_| logged = true);
        let staged = self.course.staged.then(|| self.course.judge(hits, true, |_| {}));
        let staged = staged.filter(|staged| *staged != judged);
        (judged.verdict(logged || staged.is_some()), staged)
    }

    pub(crate) fn course(&self) -> &Course {
        &self.course
    }

    /// Bytes that it takes, about.
    pub(crate) fn bytes(&self) -> usize {
        let beside = match &self.values {
            Values::Verdicts { notes } => {
                notes.iter().map(|note| size_of::<Note>() + note.logs.len() * 4).sum::<usize>()
            }
            Values::Ranks { .. } => 0,
            Values::Outcomes { lists } => {
                lists.iter().map(|list| size_of::<Box<[Hit]>>() + list.len() * size_of::<Hit>()).sum()
            }
        };
        let tables: usize = self.tables.iter().map(Table::bytes).sum();
        tables + beside + self.course.bytes() + self.named.len() * 4
    }

    /// How many tables a look-up asks.
    pub(crate) fn probes(&self) -> usize {
        self.tables.len()
    }
}

impl Judged {
    #[inline(always)]
    fn verdict(self, noted: bool) -> Verdict {
        Verdict { allow: self.allow, noted, decision: self.decision }
    }
}

#[inline(always)]
fn verdict(notes: &[Note], value: u32) -> Verdict {
    if value & NOTED == 0 {
        return Verdict { allow: value & ALLOW != 0, noted: false, decision: DecisionId(value & REST) };
    }
    notes[(value & REST) as usize].judged.verdict(true)
}

#[inline(always)]
fn ranked(unmatched: Judged, rank: u32) -> Verdict {
    if rank == UNRANKED {
        return unmatched.verdict(false);
    }
    Verdict { allow: rank & 1 != 0, noted: false, decision: DecisionId(rank >> 1) }
}

/// The value of a verdict without notes.
pub(crate) fn verdict_value(judged: Judged) -> u32 {
    if judged.allow { ALLOW | judged.decision.0 } else { judged.decision.0 }
}

/// The value of the verdict whose note has this place.
pub(crate) fn noted_value(note: usize) -> u32 {
    NOTED | note as u32
}

/// The rank of an outcome that is a single rule.
pub(crate) fn rank_value(outcomes: &Outcomes<'_>, outcome: OutcomeId) -> u32 {
    let allows = |rule: u32| outcomes.course.steps[rule as usize].action == Action::Allow;
    let rank = |hit: Hit| hit.rule() << 1 | u32::from(allows(hit.rule()));
    outcomes.hits(outcome).next().map_or(UNRANKED, rank)
}
