//! The compiled rules of one endpoint and direction: at most a few probes, however many rules there are.

use crate::course::{Course, Hit, Judged, Merge, NOTHING, OutcomeId, Outcomes, flat_hit, hits_of};
use crate::layers::{self, Budget, MOST_LAYERS};
use crate::matchers::{Chosen, Delta, Matchers};
use crate::peers::Peers;
use crate::ports::{self, Columns, Line, Row};
use crate::rules::Rule;
use crate::table::{LineAt, RowAt, Table, TableBuilder, VALUE_BITS};
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
struct Note {
    judged: Judged,
    /// What would happen with the staged policies enforced, if that is something else.
    staged: Option<Judged>,
    /// The Log rules met.
    logs: Box<[u32]>,
}

/// What the values of the tables are.
#[derive(Debug)]
enum Values {
    /// One table; a value is a verdict, or the place of a note.
    Verdicts { notes: Vec<Note> },
    /// Several tables; a value is an outcome, and the outcomes of all tables merge at the look-up.
    Outcomes {
        /// Whether an outcome is a single rule.
        flat: bool,
        /// The hits of outcomes that are not.
        lists: Vec<Box<[Hit]>>,
    },
}

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
        let width = columns.count() as u64;
        let weights: Vec<u64> = rows.iter().map(|row| ports::pieces(row) - width).collect();
        let layers = layers::plan(&matchers, &weights, width, budget)?;
        let mut values = ValueMaker { merged: layers.len() > 1, made: Vec::new(), notes: Vec::new() };
        let tables = layers
            .iter()
            .map(|chosen| fill(&matchers, chosen, &rows, &columns, &mut outcomes, &mut values))
            .collect();
        let (named, names_world) = matchers.named();
        let values = if values.merged {
            Values::Outcomes { flat: outcomes.flat, lists: outcomes.into_lists() }
        } else {
            Values::Verdicts { notes: values.notes }
        };
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
        let (column, key) = self.columns.find(packet.protocol, packet.key);
        match (&self.values, &*self.tables) {
            (Values::Verdicts { notes }, [table]) => verdict(notes, table.find(packet.peer.0, column, key)),
            _ => self.judge_merged(packet).0,
        }
    }

    #[inline]
    pub(crate) fn classify_many<const N: usize>(&self, packets: &[Packet; N]) -> [Verdict; N] {
        match (&self.values, &*self.tables) {
            (Values::Verdicts { notes }, [table]) => {
                let asked = packets.each_ref().map(|packet| {
                    let (column, key) = self.columns.find(packet.protocol, packet.key);
                    (packet.peer.0, column, key)
                });
                table.find_many(&asked).map(|value| verdict(notes, value))
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
            _ => {
                let found = self.outcomes_of(packet);
                self.course.judge(self.hits(&found), false, |rule| log(DecisionId(rule)));
                self.judge_merged(packet).1
            }
        }
    }

    /// The outcome of each table.
    fn outcomes_of(&self, packet: &Packet) -> [OutcomeId; MOST_LAYERS] {
        let (column, key) = self.columns.find(packet.protocol, packet.key);
        let mut found = [NOTHING; MOST_LAYERS];
        for (outcome, table) in found.iter_mut().zip(&self.tables) {
            *outcome = table.find(packet.peer.0, column, key);
        }
        found
    }

    /// The hits of several outcomes that are lists.
    fn hits(&self, found: &[OutcomeId; MOST_LAYERS]) -> Merge<'_, MOST_LAYERS> {
        match &self.values {
            Values::Outcomes { lists, .. } => Merge(found.map(|outcome| hits_of(lists, outcome))),
            Values::Verdicts { .. } => Merge([&[]; MOST_LAYERS]),
        }
    }

    /// The verdict of several tables, and the staged one if it is another.
    fn judge_merged(&self, packet: &Packet) -> (Verdict, Option<Judged>) {
        let found = self.outcomes_of(packet);
        if let Values::Outcomes { flat: true, .. } = self.values {
            let first = found.into_iter().filter(|outcome| *outcome != NOTHING).min().unwrap_or(NOTHING);
            let judged = self.course.judge(flat_hit(first).into_iter(), false, |_| {});
            // A course of flat outcomes may still have a staged policy without rules.
            let staged = self.staged(judged, || self.course.judge(flat_hit(first).into_iter(), true, |_| {}));
            return (judged.verdict(staged.is_some()), staged);
        }
        let mut logged = false;
        let judged = self.course.judge(self.hits(&found), false, |_| logged = true);
        let staged = self.staged(judged, || self.course.judge(self.hits(&found), true, |_| {}));
        (judged.verdict(logged || staged.is_some()), staged)
    }

    fn staged(&self, judged: Judged, with_staged: impl FnOnce() -> Judged) -> Option<Judged> {
        self.course.staged.then(with_staged).filter(|staged| *staged != judged)
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
            Values::Outcomes { lists, .. } => {
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

/// Turns outcomes into values.
struct ValueMaker {
    /// Whether tables merge, so that an outcome is its own value.
    merged: bool,
    /// By outcome, what it was turned into before.
    made: Vec<u32>,
    notes: Vec<Note>,
}

impl ValueMaker {
    const NOT_YET: u32 = u32::MAX;

    fn value(&mut self, outcomes: &Outcomes<'_>, outcome: OutcomeId) -> u32 {
        if self.merged {
            return outcome;
        }
        let place = outcome as usize;
        if place >= self.made.len() {
            self.made.resize(place + 1, ValueMaker::NOT_YET);
        }
        if self.made[place] == ValueMaker::NOT_YET {
            self.made[place] = self.make(outcomes, outcome);
        }
        self.made[place]
    }

    fn make(&mut self, outcomes: &Outcomes<'_>, outcome: OutcomeId) -> u32 {
        let course = outcomes.course;
        let mut logs = Vec::new();
        let judged = course.judge(outcomes.hits(outcome), false, |rule| logs.push(rule));
        let staged = course.staged.then(|| course.judge(outcomes.hits(outcome), true, |_| {}));
        let staged = staged.filter(|staged| *staged != judged);
        if logs.is_empty() && staged.is_none() {
            return if judged.allow { ALLOW | judged.decision.0 } else { judged.decision.0 };
        }
        self.notes.push(Note { judged, staged, logs: logs.into() });
        NOTED | (self.notes.len() as u32 - 1)
    }
}

/// A peer's row while a table is filled.
#[derive(Clone)]
struct Filled {
    row: Row,
    at: RowAt,
}

/// Fills the table of the chosen matchers.
fn fill(
    matchers: &Matchers<'_>,
    chosen: &Chosen,
    rows: &[Row],
    columns: &Columns,
    outcomes: &mut Outcomes<'_>,
    values: &mut ValueMaker,
) -> Table {
    let mut builder = TableBuilder::new(columns.count());
    let blank = ports::blank(columns);
    let gather = |outcomes: &mut Outcomes<'_>, from: &Row, matchers: &[usize]| {
        matchers.iter().fold(from.clone(), |row, matcher| ports::merge_rows(outcomes, &row, &rows[*matcher]))
    };
    let row = gather(outcomes, &blank, &matchers.outside(chosen));
    let at = store(&mut builder, outcomes, values, &row, None);
    let root = Filled { row, at };
    // Two closures use the builder by turns: one stores rows, the other hands them out at the end.
    let mut peers: Vec<(u32, RowAt)> = Vec::new();
    let step = |parent: &Filled, delta: Delta| {
        let row = match delta {
            Delta::More(more) => gather(outcomes, &parent.row, &more),
            Delta::Other(all) => gather(outcomes, &blank, &all),
        };
        let at = store(&mut builder, outcomes, values, &row, Some(parent));
        Some(Filled { row, at })
    };
    matchers.walk(chosen, root, step, |set, filled| peers.push((set, filled.at)));
    peers.sort_unstable_by_key(|(set, _)| *set);
    for (set, at) in peers {
        builder.assign(set, at);
    }
    builder.finish()
}

/// Stores a row; lines that it shares with the row that it grew from are stored already.
fn store(
    builder: &mut TableBuilder,
    outcomes: &Outcomes<'_>,
    values: &mut ValueMaker,
    row: &Row,
    parent: Option<&Filled>,
) -> RowAt {
    let lines: Vec<LineAt> = row
        .iter()
        .enumerate()
        .map(|(column, line)| match parent {
            Some(parent) if std::rc::Rc::ptr_eq(line, &parent.row[column]) => {
                builder.line_of(parent.at, column)
            }
            _ => store_line(builder, outcomes, values, line),
        })
        .collect();
    builder.row(&lines)
}

fn store_line(
    builder: &mut TableBuilder,
    outcomes: &Outcomes<'_>,
    values: &mut ValueMaker,
    line: &Line,
) -> LineAt {
    let mut ranges: Vec<(u16, u32)> = Vec::with_capacity(line.len());
    for piece in &**line {
        let value = values.value(outcomes, piece.outcome);
        if ranges.last().is_none_or(|last| last.1 != value) {
            ranges.push((piece.first, value));
        }
    }
    builder.line(&ranges)
}
