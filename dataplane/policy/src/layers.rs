//! How many tables an endpoint's rules need: one, unless wide blocks with many ports cross many narrow ones.
//!
//! A table holds, for each peer, the pieces of all lines that the peer's rules are cut into. If a block of half the
//! network has a thousand port ranges and the other half of the rules are ten thousand single addresses, one table would
//! hold ten million pieces. Put apart by breadth, the wide rules make a table of a thousand pieces, the narrow ones one
//! of ten thousand, and a look-up asks both and merges the outcomes.

use crate::matchers::{Chosen, Delta, Matchers};

/// Tables that a look-up may ask.
pub(crate) const MOST_LAYERS: usize = 4;

/// How large the tables of an endpoint and direction may become, in pieces, counted as if no rule ever hid another.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Budget {
    /// Up to here one table is best.
    pub(crate) comfortable: u64,
    /// Above, nothing is compiled.
    pub(crate) most: u64,
    /// Whether to make as many tables as there may be, whatever they cost: for tests.
    pub(crate) part_always: bool,
}

impl Default for Budget {
    /// Tables of 50 MB and of 400 MB at the worst; mostly far less, since equal lines are stored once.
    fn default() -> Budget {
        Budget { comfortable: 3_000_000, most: 24_000_000, part_always: false }
    }
}

/// The matchers of each table, or how many pieces there would be if that is too many.
///
/// `weights` are the pieces that each matcher cuts a row into, `columns` those of a row that nothing cuts.
pub(crate) fn plan(
    matchers: &Matchers<'_>,
    weights: &[u64],
    columns: u64,
    budget: Budget,
) -> Result<Vec<Chosen>, u64> {
    let enough = budget.most.saturating_mul(4);
    let cost = |chosen: &Chosen| cost(matchers, chosen, weights, columns, enough);
    let everything = matchers.all();
    let whole = cost(&everything);
    if whole <= budget.comfortable {
        return Ok(vec![everything]);
    }
    let breadths = matchers.breadths();
    let mut layers = vec![(whole, everything)];
    while layers.len() < MOST_LAYERS && layers.iter().map(|layer| layer.0).sum::<u64>() > budget.comfortable {
        layers.sort_by_key(|layer| layer.0);
        let Some((price, dearest)) = layers.pop() else { break };
        // As few in the wide table as will do: the fewer peers it tells apart, the more of it stays in the cache.
        let mut split: Option<((u64, Chosen), (u64, Chosen))> = None;
        for power in (0..u64::BITS).rev() {
            let (wide, narrow) = parted(&dearest, &breadths, 1 << power);
            if !wide.contains(&true) || !narrow.contains(&true) {
                continue;
            }
            let costs = (cost(&wide), cost(&narrow));
            if split.as_ref().is_none_or(|(wide, narrow)| costs.0 + costs.1 < wide.0 + narrow.0) {
                split = Some(((costs.0, wide), (costs.1, narrow)));
            }
            if costs.0 + costs.1 <= budget.comfortable {
                break;
            }
        }
        let split = split.filter(|(wide, narrow)| budget.part_always || wide.0 + narrow.0 < price);
        match split {
            Some((wide, narrow)) => layers.extend([wide, narrow]),
            None => {
                layers.push((price, dearest));
                break;
            }
        }
    }
    let total = layers.iter().map(|layer| layer.0).sum();
    if total > budget.most { Err(total) } else { Ok(layers.into_iter().map(|layer| layer.1).collect()) }
}

fn parted(chosen: &Chosen, breadths: &[u64], least: u64) -> (Chosen, Chosen) {
    let wide = chosen.iter().zip(breadths).map(|(chosen, breadth)| *chosen && *breadth >= least).collect();
    let narrow = chosen.iter().zip(breadths).map(|(chosen, breadth)| *chosen && *breadth < least).collect();
    (wide, narrow)
}

/// Pieces of a table, about: as if no rule ever hid another. Counts no further than `enough`, since rules that make as
/// many pieces as that could keep it busy for minutes.
fn cost(matchers: &Matchers<'_>, chosen: &Chosen, weights: &[u64], columns: u64, enough: u64) -> u64 {
    let sum = |of: &[usize]| of.iter().map(|matcher| weights[*matcher]).sum::<u64>();
    let root = columns + sum(&matchers.outside(chosen));
    let mut total = root;
    let step = |parent: &u64, delta: Delta| {
        let pieces = match delta {
            Delta::More(more) => parent + sum(&more),
            Delta::Other(all) => columns + sum(&all),
        };
        total = total.saturating_add(pieces);
        (total < enough).then_some(pieces)
    };
    matchers.walk(chosen, root, step, |_, _| {});
    total
}
