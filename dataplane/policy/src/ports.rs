//! What rules say over the ports of a protocol: a line of ranges, each with its outcome.
//!
//! A protocol that some rule names has a column of its own, and a second one for its packets that do not show their
//! ports; all others share a column. In a line, a range begins at its first key and ends where the next one begins.

use std::rc::Rc;

use crate::course::{Hit, NOTHING, OutcomeId, Outcomes};
use crate::rules::{Action, Rule};

/// A range of keys, up to the next piece of its line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Piece {
    pub(crate) first: u16,
    pub(crate) outcome: OutcomeId,
}

/// The outcome of each key of a column: pieces in order, the first at key 0, neighbours different.
pub(crate) type Line = Rc<[Piece]>;

/// The lines of a peer, by column.
pub(crate) type Row = Rc<[Line]>;

/// Which column a packet is looked up in.
#[derive(Clone, Debug)]
pub(crate) struct Columns {
    /// By protocol number: its column, or 0 for one that no rule names.
    of: Box<[u16; 256]>,
    /// Protocols that some rule names.
    named: u16,
}

impl Columns {
    pub(crate) fn new<'a>(rules: impl Iterator<Item = &'a Rule>) -> Columns {
        let mut columns = Columns { of: Box::new([0; 256]), named: 0 };
        for ports in rules.flat_map(|rule| &rule.ports) {
            let column = &mut columns.of[usize::from(ports.protocol.number())];
            if *column == 0 {
                columns.named += 1;
                *column = columns.named;
            }
        }
        columns
    }

    /// How many columns there are: one for all others, two for each named protocol.
    pub(crate) fn count(&self) -> usize {
        1 + 2 * usize::from(self.named)
    }

    /// The column of a packet and its key there.
    #[inline(always)]
    pub(crate) fn find(&self, protocol: u8, key: Option<u16>) -> (u32, u16) {
        let column = u32::from(self.of[usize::from(protocol)]);
        match key {
            Some(key) => (column, key),
            None if column == 0 => (0, 0),
            None => (column + u32::from(self.named), 0),
        }
    }
}

/// A line that has the same outcome everywhere.
pub(crate) fn constant(outcome: OutcomeId) -> Line {
    Rc::new([Piece { first: 0, outcome }])
}

/// A row on which nothing matches.
pub(crate) fn blank(columns: &Columns) -> Row {
    let line = constant(NOTHING);
    (0..columns.count()).map(|_| line.clone()).collect()
}

/// Pieces in all lines of a row.
pub(crate) fn pieces(row: &Row) -> u64 {
    row.iter().map(|line| line.len() as u64).sum()
}

/// What one rule says.
pub(crate) fn row_of(outcomes: &mut Outcomes<'_>, columns: &Columns, number: u32, rule: &Rule) -> Row {
    let sure = outcomes.of(Hit::new(number, false));
    if rule.ports.is_empty() {
        let line = constant(sure);
        return (0..columns.count()).map(|_| line.clone()).collect();
    }
    // On a packet without ports, for a rule with ports; see `linear`.
    let unseen = match rule.action {
        Action::Allow | Action::Log => NOTHING,
        Action::Deny => sure,
        Action::Pass => outcomes.of(Hit::new(number, true)),
    };
    let mut row: Vec<Line> = blank(columns).to_vec();
    for ports in &rule.ports {
        let column = usize::from(columns.of[usize::from(ports.protocol.number())]);
        let hidden = column + usize::from(columns.named);
        let (line, seen_as) = match ports.keys() {
            None => (constant(sure), sure),
            Some(keys) => (range(*keys.start(), *keys.end(), sure), unseen),
        };
        row[column] = merge_lines(outcomes, &row[column], &line);
        if seen_as == sure || row[hidden][0].outcome == NOTHING {
            row[hidden] = constant(seen_as);
        }
    }
    row.into()
}

fn range(first: u16, last: u16, outcome: OutcomeId) -> Line {
    let mut pieces = Vec::with_capacity(3);
    if first > 0 {
        pieces.push(Piece { first: 0, outcome: NOTHING });
    }
    pieces.push(Piece { first, outcome });
    if last < u16::MAX {
        pieces.push(Piece { first: last + 1, outcome: NOTHING });
    }
    pieces.into()
}

/// What both rows say together.
pub(crate) fn merge_rows(outcomes: &mut Outcomes<'_>, a: &Row, b: &Row) -> Row {
    a.iter().zip(&**b).map(|(a, b)| merge_lines(outcomes, a, b)).collect()
}

/// What many rows say together, merged in pairs so that long rows are walked only a few times.
pub(crate) fn merge_all(outcomes: &mut Outcomes<'_>, columns: &Columns, rows: Vec<Row>) -> Row {
    let mut rows = rows;
    while rows.len() > 1 {
        rows = rows
            .chunks(2)
            .map(|pair| match pair {
                [a, b] => merge_rows(outcomes, a, b),
                _ => pair[0].clone(),
            })
            .collect();
    }
    rows.pop().unwrap_or_else(|| blank(columns))
}

fn merge_lines(outcomes: &mut Outcomes<'_>, a: &Line, b: &Line) -> Line {
    let is_blank = |line: &Line| line.len() == 1 && line[0].outcome == NOTHING;
    if Rc::ptr_eq(a, b) || is_blank(b) {
        return a.clone();
    }
    if is_blank(a) {
        return b.clone();
    }
    let mut merged: Vec<Piece> = Vec::with_capacity(a.len() + b.len());
    let (mut i, mut j) = (0, 0);
    let mut first = 0;
    loop {
        let outcome = outcomes.merge(a[i].outcome, b[j].outcome);
        if merged.last().is_none_or(|last| last.outcome != outcome) {
            merged.push(Piece { first, outcome });
        }
        let next_a = a.get(i + 1).map(|piece| piece.first);
        let next_b = b.get(j + 1).map(|piece| piece.first);
        first = match (next_a, next_b) {
            (None, None) => return merged.into(),
            (Some(key), None) | (None, Some(key)) => key,
            (Some(a), Some(b)) => a.min(b),
        };
        i += usize::from(next_a == Some(first));
        j += usize::from(next_b == Some(first));
    }
}
