//! The table that is looked up: peer -> row, column -> line, key -> value.
//!
//! A line is a tree over keys of 16 bits whose nodes are whole cache lines, and most lines are one node or none:
//!
//! ```text
//!  peer -> row of references, one a column -> value
//!                                          -> fork: 10 keys that divide 11 ranges   -> value or fork
//!                                          -> page: 256 entries, by a byte of the key -> value, fork or page
//! ```
//!
//! Equal nodes and equal rows are stored once.

use std::hash::Hash;
use std::hint::select_unpredictable;

use crate::hash::{NumberMap, hash_of};

/// Bits of a value.
pub(crate) const VALUE_BITS: u32 = 30;

/// Ranges that a fork tells apart: what fits a cache line of 64 bytes.
const WAYS: usize = 11;

/// Where to go on: two bits of kind, then a value or the place of a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct Ref(u32);

const VALUE: u32 = 0;
const FORK: u32 = 1;
const HIGH_PAGE: u32 = 2;
const LOW_PAGE: u32 = 3;

/// The place of a fork that no line leads to.
const SPARE_FORK: usize = 0;

impl Ref {
    fn new(kind: u32, rest: u32) -> Ref {
        debug_assert!(rest >> VALUE_BITS == 0);
        Ref(kind << VALUE_BITS | rest)
    }

    #[inline(always)]
    fn rest(self) -> usize {
        (self.0 & ((1 << VALUE_BITS) - 1)) as usize
    }

    #[inline(always)]
    fn kind(self) -> u32 {
        self.0 >> VALUE_BITS
    }
}

/// A node of up to 11 ranges; unused ones repeat the last.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[repr(align(64))]
struct Fork {
    /// Where each range but the first begins.
    firsts: [u16; WAYS - 1],
    refs: [Ref; WAYS],
}

impl Fork {
    fn new(ranges: &[(u16, Ref)]) -> Fork {
        let last = ranges[ranges.len() - 1].1;
        let mut fork = Fork { firsts: [u16::MAX; WAYS - 1], refs: [last; WAYS] };
        for (i, (first, reference)) in ranges.iter().enumerate() {
            fork.refs[i] = *reference;
            if i > 0 {
                fork.firsts[i - 1] = *first;
            }
        }
        fork
    }

    #[inline(always)]
    fn find(&self, key: u16) -> Ref {
        let way: u16 = self.firsts.iter().map(|first| u16::from(*first <= key)).sum();
        self.refs[usize::from(way)]
    }
}

/// Where in the cells the rows of peers are. Peers without an entry have the first row.
#[derive(Debug)]
enum Rows {
    /// Peer by peer: a load less, and no more memory where nearly every peer has a row that no other has.
    Own {
        /// How many peers there are.
        peers: u32,
        /// Cells of a row.
        columns: u32,
    },
    /// By peer: where its row begins.
    Shared(Vec<u32>),
}

/// Rows of lines, by peer.
#[derive(Debug)]
pub(crate) struct Table {
    rows: Rows,
    cells: Vec<Ref>,
    forks: Vec<Fork>,
    pages: Vec<[Ref; 256]>,
    /// The most forks above one another at the roots of lines.
    depth: u8,
}

impl Table {
    /// The value of a key.
    #[inline]
    pub(crate) fn find(&self, peer: u32, column: u32, key: u16) -> u32 {
        let mut at = self.cells[self.cell(peer, column)];
        for _ in 0..self.depth {
            at = self.step(at, key);
        }
        self.finish(at, key)
    }

    /// The values of several keys, in stages, so that the loads of one do not wait for those of another.
    #[inline]
    pub(crate) fn find_many<const N: usize>(&self, asked: &[(u32, u32, u16); N]) -> [u32; N] {
        let mut at = [Ref::default(); N];
        for (at, (peer, column, _)) in at.iter_mut().zip(asked) {
            *at = self.cells[self.cell(*peer, *column)];
        }
        for _ in 0..self.depth {
            for (at, (_, _, key)) in at.iter_mut().zip(asked) {
                *at = self.step(*at, *key);
            }
        }
        let mut values = [0; N];
        for ((value, at), (_, _, key)) in values.iter_mut().zip(at).zip(asked) {
            *value = self.finish(at, *key);
        }
        values
    }

    #[inline(always)]
    fn cell(&self, peer: u32, column: u32) -> usize {
        let row = match self.rows {
            Rows::Own { peers, columns } => {
                if peer < peers {
                    peer * columns
                } else {
                    0
                }
            }
            Rows::Shared(ref starts) => starts.get(peer as usize).copied().unwrap_or(0),
        };
        (row + column) as usize
    }

    /// From a fork on to what it leads to; anything else stays. Which it is is as good as random and a wrong guess costs
    /// more than a search in vain, so there is always a search: if need be in a fork that no line leads to.
    #[inline(always)]
    fn step(&self, at: Ref, key: u16) -> Ref {
        let is_fork = at.kind() == FORK;
        let found = self.forks[select_unpredictable(is_fork, at.rest(), SPARE_FORK)].find(key);
        select_unpredictable(is_fork, found, at)
    }

    /// The way that is left: none, but for lines of very many ranges.
    #[inline(always)]
    fn finish(&self, from: Ref, key: u16) -> u32 {
        let mut at = from;
        while at.kind() != VALUE {
            at = match at.kind() {
                FORK => self.forks[at.rest()].find(key),
                HIGH_PAGE => self.pages[at.rest()][usize::from(key >> 8)],
                _ => self.pages[at.rest()][usize::from(key & 0xff)],
            };
        }
        at.0
    }

    /// Bytes that the table takes.
    pub(crate) fn bytes(&self) -> usize {
        let starts = match &self.rows {
            Rows::Own { .. } => 0,
            Rows::Shared(starts) => starts.len(),
        };
        (starts + self.cells.len()) * 4
            + self.forks.len() * size_of::<Fork>()
            + self.pages.len() * size_of::<[Ref; 256]>()
    }
}

/// A table in the making.
#[derive(Debug)]
pub(crate) struct TableBuilder {
    table: Table,
    columns: usize,
    /// By peer: where its row begins.
    starts: Vec<u32>,
    forks: NumberMap<u64, u32>,
    pages: NumberMap<u64, u32>,
    rows: NumberMap<u64, u32>,
}

/// Where a row is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RowAt(u32);

/// What a line is stored as.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LineAt(Ref);

impl TableBuilder {
    pub(crate) fn new(columns: usize) -> TableBuilder {
        let spare = Fork::new(&[(0, Ref::default())]);
        let table = Table {
            rows: Rows::Shared(Vec::new()),
            cells: Vec::new(),
            forks: vec![spare],
            pages: Vec::new(),
            depth: 0,
        };
        TableBuilder {
            table,
            columns,
            starts: Vec::new(),
            forks: NumberMap::default(),
            pages: NumberMap::default(),
            rows: NumberMap::default(),
        }
    }

    /// Stores a line: where each range begins, the first at 0, and its value.
    pub(crate) fn line(&mut self, ranges: &[(u16, u32)]) -> LineAt {
        let ranges: Vec<(u16, Ref)> =
            ranges.iter().map(|&(first, value)| (first, Ref::new(VALUE, value))).collect();
        if ranges.len() > WAYS * WAYS {
            return LineAt(self.high_page(&ranges));
        }
        let depth = u8::from(ranges.len() > 1) + u8::from(ranges.len() > WAYS);
        self.table.depth = self.table.depth.max(depth);
        LineAt(self.fork(&ranges))
    }

    /// A line that is stored already.
    pub(crate) fn line_of(&self, row: RowAt, column: usize) -> LineAt {
        LineAt(self.table.cells[row.0 as usize + column])
    }

    /// Stores a row, a line for each column; the first one is for all peers without one of their own.
    pub(crate) fn row(&mut self, lines: &[LineAt]) -> RowAt {
        debug_assert_eq!(lines.len(), self.columns);
        let row: Vec<Ref> = lines.iter().map(|line| line.0).collect();
        let (cells, columns) = (&self.table.cells, self.columns);
        let next = cells.len() as u32;
        let at = known(&mut self.rows, hash_of(&row), next, |at| cells[at as usize..][..columns] == row);
        if at == next {
            self.table.cells.extend_from_slice(&row);
        }
        RowAt(at)
    }

    /// Gives a peer its row.
    pub(crate) fn assign(&mut self, peer: u32, row: RowAt) {
        let starts = &mut self.starts;
        if peer as usize >= starts.len() {
            if row.0 == 0 {
                return;
            }
            starts.resize(peer as usize + 1, 0);
        }
        starts[peer as usize] = row.0;
    }

    pub(crate) fn finish(self) -> Table {
        let TableBuilder { mut table, columns, starts, .. } = self;
        let (shared, own) = (starts.len() + table.cells.len(), starts.len() * columns);
        if shared < own {
            table.rows = Rows::Shared(starts);
        } else if !starts.is_empty() {
            table.cells =
                starts.iter().flat_map(|start| &table.cells[*start as usize..][..columns]).copied().collect();
            table.rows = Rows::Own { peers: starts.len() as u32, columns: columns as u32 };
        }
        table.cells.shrink_to_fit();
        table.forks.shrink_to_fit();
        table.pages.shrink_to_fit();
        table
    }

    fn fork(&mut self, ranges: &[(u16, Ref)]) -> Ref {
        if let [(_, only)] = ranges {
            return *only;
        }
        if ranges.len() > WAYS {
            // Evenly, so that no fork is nearly empty.
            let ways = ranges.len().div_ceil(WAYS);
            let each = ranges.len().div_ceil(ways);
            let above: Vec<(u16, Ref)> =
                ranges.chunks(each).map(|below| (below[0].0, self.fork(below))).collect();
            return self.fork(&above);
        }
        let fork = Fork::new(ranges);
        let forks = &self.table.forks;
        let next = forks.len() as u32;
        let at = known(&mut self.forks, hash_of(&fork), next, |at| forks[at as usize] == fork);
        if at == next {
            self.table.forks.push(fork);
        }
        Ref::new(FORK, at)
    }

    fn page(&mut self, kind: u32, page: [Ref; 256]) -> Ref {
        let pages = &self.table.pages;
        let next = pages.len() as u32;
        let at = known(&mut self.pages, hash_of(&page), next, |at| pages[at as usize] == page);
        if at == next {
            self.table.pages.push(page);
        }
        Ref::new(kind, at)
    }

    fn high_page(&mut self, ranges: &[(u16, Ref)]) -> Ref {
        let mut page = [Ref::default(); 256];
        for (high, entry) in page.iter_mut().enumerate() {
            let first = (high as u16) << 8;
            // From the range that the page's first key lies in to the last that begins in it.
            let from = ranges.partition_point(|range| range.0 <= first) - 1;
            let to = ranges.partition_point(|range| range.0 <= first | 0xff);
            let here = &ranges[from..to];
            *entry = if here.len() <= WAYS { self.fork(here) } else { self.low_page(here, first) };
        }
        self.page(HIGH_PAGE, page)
    }

    fn low_page(&mut self, ranges: &[(u16, Ref)], first: u16) -> Ref {
        let page = std::array::from_fn(|low| {
            let key = first | low as u16;
            ranges[ranges.partition_point(|range| range.0 <= key) - 1].1
        });
        self.page(LOW_PAGE, page)
    }
}

/// The place of an equal node that is stored already, or `next`, which is then its place.
fn known(places: &mut NumberMap<u64, u32>, hash: u64, next: u32, same: impl Fn(u32) -> bool) -> u32 {
    let mut hash = hash;
    loop {
        match places.get(&hash) {
            None => {
                places.insert(hash, next);
                return next;
            }
            Some(&at) if same(at) => return at,
            // Another node of the same hash.
            Some(_) => hash = hash.wrapping_add(1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_fork_is_a_cache_line() {
        assert_eq!((size_of::<Fork>(), align_of::<Fork>()), (64, 64));
    }

    proptest! {
        #[test]
        fn every_key_has_the_value_of_its_range(
            firsts in prop::collection::btree_set(prop_oneof![any::<u16>(), 500u16..1100, Just(u16::MAX)], 0..700),
            keys in prop::collection::vec(any::<u16>(), 100),
        ) {
            let mut ranges = vec![(0, 7)];
            ranges.extend(firsts.iter().filter(|first| **first > 0).map(|first| (*first, u32::from(*first) + 8)));
            let mut builder = TableBuilder::new(1);
            let line = builder.line(&ranges);
            let row = builder.row(&[line]);
            builder.assign(3, row);
            let table = builder.finish();
            let near = ranges.iter().flat_map(|range| [range.0, range.0.saturating_sub(1), range.0.saturating_add(1)]);
            for key in keys.into_iter().chain(near) {
                let expected = ranges[ranges.partition_point(|range| range.0 <= key) - 1].1;
                prop_assert_eq!(table.find(3, 0, key), expected);
            }
        }
    }

    #[test]
    fn equal_lines_and_rows_are_stored_once() {
        let mut builder = TableBuilder::new(2);
        let first = builder.line(&[(0, 1), (80, 2), (81, 1)]);
        let second = builder.line(&[(0, 1), (80, 2), (81, 1)]);
        let (a, b) = (builder.row(&[first, second]), builder.row(&[second, first]));
        assert_eq!(a, b);
        assert_eq!((builder.table.forks.len() - 1, builder.table.cells.len()), (1, 2));
    }
}
