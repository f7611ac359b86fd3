//! Rows of all peers merged and stored in tables, and what the values in the tables mean.

use crate::classifier::{Note, Values, noted_value, rank_value, verdict_value};
use crate::course::{NOTHING, OutcomeId, Outcomes};
use crate::layers::{self, Budget};
use crate::matchers::{Chosen, Delta, Matchers};
use crate::ports::{self, Columns, Line, Row};
use crate::table::{LineAt, RowAt, Table, TableBuilder};

/// What tables are filled from.
pub(crate) struct Filling<'a> {
    pub(crate) matchers: Matchers<'a>,
    /// By matcher: what its rules say.
    pub(crate) rows: Vec<Row>,
    pub(crate) columns: Columns,
    pub(crate) outcomes: Outcomes<'a>,
}

/// How outcomes become values.
enum Meaning {
    /// Judged here and now; what there is to report beside goes to `notes`.
    Verdicts {
        /// By outcome: the value made of it before.
        made: Vec<u32>,
        notes: Vec<Note>,
    },
    /// By the number of the rule, since outcomes are single rules.
    Ranks,
    /// As they are.
    Outcomes,
}

/// In a list of values: none was made yet.
const NOT_YET: u32 = u32::MAX;

impl Meaning {
    fn verdicts() -> Meaning {
        Meaning::Verdicts { made: Vec::new(), notes: Vec::new() }
    }

    fn value(&mut self, outcomes: &Outcomes<'_>, outcome: OutcomeId) -> u32 {
        match self {
            Meaning::Outcomes => outcome,
            Meaning::Ranks => rank_value(outcomes, outcome),
            Meaning::Verdicts { made, notes } => {
                let place = outcome as usize;
                if place >= made.len() {
                    made.resize(place + 1, NOT_YET);
                }
                if made[place] == NOT_YET {
                    made[place] = verdict_of(outcomes, outcome, notes);
                }
                made[place]
            }
        }
    }
}

fn verdict_of(outcomes: &Outcomes<'_>, outcome: OutcomeId, notes: &mut Vec<Note>) -> u32 {
    let course = outcomes.course;
    let mut logs = Vec::new();
    let judged = course.judge(outcomes.hits(outcome), false, |rule| logs.push(rule));
    let staged = course.staged.then(|| course.judge(outcomes.hits(outcome), true, |_| {}));
    let staged = staged.filter(|staged| *staged != judged);
    if logs.is_empty() && staged.is_none() {
        return verdict_value(judged);
    }
    notes.push(Note { judged, staged, logs: logs.into() });
    noted_value(notes.len() - 1)
}

/// A peer's row while a table is filled.
#[derive(Clone)]
struct Filled {
    row: Row,
    at: RowAt,
}

impl Filling<'_> {
    /// The tables of all rules: one if it is no larger than comfortable, else several.
    ///
    /// # Errors
    ///
    /// How many pieces the tables would have, if that is too many.
    pub(crate) fn tables(mut self, budget: Budget) -> Result<(Vec<Table>, Values), u64> {
        let everything = self.matchers.all();
        if !budget.part_always {
            // Mostly rules hide each other so well that one table does, whatever a plan would say.
            let mut meaning = Meaning::verdicts();
            if let Some(table) = self.fill(&everything, &mut meaning, budget.comfortable) {
                return Ok((vec![table], self.values(meaning)));
            }
        }
        let width = self.columns.count() as u64;
        let weights: Vec<u64> = self.rows.iter().map(|row| ports::pieces(row) - width).collect();
        let layers = layers::plan(&self.matchers, &weights, width, budget)?;
        let mut meaning = match (layers.len(), self.outcomes.flat) {
            (1, _) => Meaning::verdicts(),
            (_, true) => Meaning::Ranks,
            (_, false) => Meaning::Outcomes,
        };
        let tables: Option<Vec<Table>> =
            layers.iter().map(|chosen| self.fill(chosen, &mut meaning, budget.most)).collect();
        Ok((tables.ok_or(budget.most)?, self.values(meaning)))
    }

    fn values(self, meaning: Meaning) -> Values {
        match meaning {
            Meaning::Verdicts { notes, .. } => Values::Verdicts { notes },
            Meaning::Ranks => {
                let unmatched = self.outcomes.course.judge(self.outcomes.hits(NOTHING), false, |_| {});
                Values::Ranks { unmatched }
            }
            Meaning::Outcomes => Values::Outcomes { lists: self.outcomes.into_lists() },
        }
    }

    /// Fills the table of the chosen matchers, unless it takes more than so many pieces.
    fn fill(&mut self, chosen: &Chosen, meaning: &mut Meaning, most: u64) -> Option<Table> {
        let Filling { matchers, rows, columns, outcomes } = self;
        let mut builder = TableBuilder::new(columns.count());
        let blank = ports::blank(columns);
        let gather = |outcomes: &mut Outcomes<'_>, from: &Row, matchers: &[usize]| {
            matchers
                .iter()
                .fold(from.clone(), |row, matcher| ports::merge_rows(outcomes, &row, &rows[*matcher]))
        };
        let row = gather(outcomes, &blank, &matchers.outside(chosen));
        let mut pieces = ports::pieces(&row);
        let at = store(&mut builder, outcomes, meaning, &row, None);
        let mut peers: Vec<(u32, RowAt)> = Vec::new();
        let step = |parent: &Filled, delta: Delta| {
            let row = match delta {
                Delta::More(more) => gather(outcomes, &parent.row, &more),
                Delta::Other(all) => gather(outcomes, &blank, &all),
            };
            pieces += ports::pieces(&row);
            let at = store(&mut builder, outcomes, meaning, &row, Some(parent));
            (pieces <= most).then_some(Filled { row, at })
        };
        matchers.walk(chosen, Filled { row, at }, step, |set, filled| peers.push((set, filled.at)));
        if pieces > most {
            return None;
        }
        peers.sort_unstable_by_key(|(set, _)| *set);
        for (set, at) in peers {
            builder.assign(set, at);
        }
        Some(builder.finish())
    }
}

/// Stores a row; lines that it shares with the row that it grew from are stored already.
fn store(
    builder: &mut TableBuilder,
    outcomes: &Outcomes<'_>,
    meaning: &mut Meaning,
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
            _ => store_line(builder, outcomes, meaning, line),
        })
        .collect();
    builder.row(&lines)
}

fn store_line(
    builder: &mut TableBuilder,
    outcomes: &Outcomes<'_>,
    meaning: &mut Meaning,
    line: &Line,
) -> LineAt {
    let mut ranges: Vec<(u16, u32)> = Vec::with_capacity(line.len());
    for piece in &**line {
        let value = meaning.value(outcomes, piece.outcome);
        if ranges.last().is_none_or(|last| last.1 != value) {
            ranges.push((piece.first, value));
        }
    }
    builder.line(&ranges)
}
