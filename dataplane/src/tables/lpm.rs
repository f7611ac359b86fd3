//! Longest-prefix match: a poptrie (Asai and Ohara, SIGCOMM 2015) over left-aligned 128-bit keys.
//!
//! ```text
//!  direct table (16 bits, when there are many prefixes) -> node: 64 slots, 6 bits of the key -> node ... -> leaf
//! ```
//!
//! A node is two 64-bit maps and two bases: which slots lead on to a child, and where a run of equal leaves begins; the
//! position of a child or a leaf is a count of bits. One structure serves IPv4 and IPv6; IPv4 keys use the top 32 bits.
//!
//! A table that follows another takes its nodes over as they are and makes those on the way to a change anew, behind the
//! others; those that nothing leads to any more stay until they are as many as the rest.

use std::net::IpAddr;

/// Bits of the key that a node looks at.
const STRIDE: u32 = 6;
/// Bits of the key that the direct table looks at, in a table that has one.
const DIRECT: u32 = 16;
/// Prefixes from which on a direct table of 256 KiB is worth its place in the cache.
const MANY: usize = 256;
/// An entry of the direct table that is a value and no node.
const LEAF: u32 = 1 << 31;
/// Nodes and leaves that nothing leads to which are put up with, beside as many as there were when the table was built.
const STALE: usize = 4096;

/// A prefix: the top `len` bits of `bits`; the rest of them zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LeftAligned {
    /// The address, its first bit the highest.
    pub bits: u128,
    /// How many bits count.
    pub len: u8,
}

/// An address as a key.
#[inline(always)]
#[must_use]
pub fn key_of(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(v4.to_bits()) << 96,
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

impl From<ipnet::IpNet> for LeftAligned {
    fn from(net: ipnet::IpNet) -> LeftAligned {
        LeftAligned { bits: key_of(net.network()), len: net.prefix_len() }
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Node {
    /// Slots that lead on to a child.
    children: u64,
    /// Slots at which a new run of equal leaves begins.
    runs: u64,
    first_child: u32,
    first_leaf: u32,
}

/// A prefix and its value; values are below 2^31.
type Entry = (LeftAligned, u32);

/// A table of prefixes of one address family.
#[derive(Clone, Debug)]
pub struct Lpm {
    direct_bits: u32,
    direct: Vec<u32>,
    nodes: Vec<Node>,
    leaves: Vec<u32>,
    /// Nodes and leaves when the table was last built as a whole.
    built: usize,
}

impl Lpm {
    /// What a look-up finds where no prefix matches.
    pub const NONE: u32 = LEAF - 1;

    /// Builds the table; of two equal prefixes the later one counts.
    #[must_use]
    pub fn build(prefixes: impl IntoIterator<Item = (LeftAligned, u32)>) -> Lpm {
        let mut entries: Vec<Entry> = prefixes.into_iter().collect();
        if !entries.is_sorted_by(|(a, _), (b, _)| a < b) {
            let sorted: std::collections::BTreeMap<LeftAligned, u32> = entries.into_iter().collect();
            entries = sorted.into_iter().collect();
        }
        Lpm::of_sorted(&entries)
    }

    fn of_sorted(entries: &[Entry]) -> Lpm {
        let direct_bits = direct_bits(entries);
        let mut lpm =
            Lpm { direct_bits, direct: Vec::new(), nodes: Vec::new(), leaves: Vec::new(), built: 0 };
        let mut values = vec![Lpm::NONE; 1 << direct_bits];
        let deeper = paint(entries, 0, direct_bits, &mut values);
        let mut direct: Vec<u32> = values.iter().map(|value| value | LEAF).collect();
        for (slot, entries) in deeper {
            direct[slot] = lpm.grow(entries, direct_bits, values[slot]);
        }
        lpm.direct = direct;
        lpm.built = lpm.nodes.len() + lpm.leaves.len();
        lpm
    }

    /// The table of other prefixes than those `before`, of which this one is. Both are sorted, and no prefix is there twice.
    #[must_use]
    pub fn follow(
        &self,
        before: impl IntoIterator<Item = (LeftAligned, u32)>,
        now: impl IntoIterator<Item = (LeftAligned, u32)>,
    ) -> Lpm {
        let entries: Vec<Entry> = now.into_iter().collect();
        let changed = changed(before.into_iter(), &entries);
        let is_wide = |prefix: &LeftAligned| u32::from(prefix.len) <= DIRECT;
        let is_direct = self.direct_bits == DIRECT && direct_bits(&entries) == DIRECT;
        let is_worn = self.nodes.len() + self.leaves.len() > 2 * self.built + STALE;
        if !is_direct || is_worn || changed.iter().any(is_wide) {
            return Lpm::of_sorted(&entries);
        }
        let mut lpm = self.clone();
        for changed in changed.chunk_by(|a, b| a.slot(0, DIRECT) == b.slot(0, DIRECT)) {
            let slot = changed[0].slot(0, DIRECT);
            let start = entries.partition_point(|(prefix, _)| prefix.slot(0, DIRECT) < slot);
            let end = start + entries[start..].partition_point(|(prefix, _)| prefix.slot(0, DIRECT) == slot);
            let below = long_of(&entries[start..end], DIRECT);
            let value = value_around(
                &entries,
                LeftAligned { bits: (slot as u128) << (128 - DIRECT), len: DIRECT as u8 },
            );
            lpm.direct[slot] = match lpm.direct[slot] {
                _ if below.is_empty() => value | LEAF,
                leaf if leaf & LEAF != 0 => lpm.grow(below, DIRECT, value),
                node => lpm.renew(lpm.nodes[node as usize], below, changed, DIRECT, value),
            };
        }
        lpm
    }

    /// The value of the longest prefix that `key` lies in, or [`Lpm::NONE`].
    #[inline]
    #[must_use]
    pub fn look_up(&self, key: u128) -> u32 {
        // In two steps, because a shift by all 128 bits is none.
        let slot = ((key >> 1) >> (127 - self.direct_bits)) as usize;
        let mut found = self.direct[slot];
        let mut rest = key << self.direct_bits;
        while found & LEAF == 0 {
            let node = &self.nodes[found as usize];
            let slot = (rest >> (128 - STRIDE)) as u32;
            let up_to = u64::MAX >> (63 - slot);
            if node.children >> slot & 1 == 0 {
                let leaf = node.first_leaf + (node.runs & up_to).count_ones() - 1;
                return self.leaves[leaf as usize];
            }
            found = node.first_child + (node.children & up_to).count_ones() - 1;
            rest <<= STRIDE;
        }
        found & !LEAF
    }

    /// Bytes that the table takes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.direct.len() * 4 + self.nodes.len() * size_of::<Node>() + self.leaves.len() * 4
    }

    /// Adds a node that looks at the bits from `depth` on, and all below it.
    fn grow(&mut self, entries: &[Entry], depth: u32, inherited: u32) -> u32 {
        let node = self.nodes.len();
        self.nodes.push(Node::default());
        self.fill(node, entries, depth, inherited, None);
        node as u32
    }

    /// Adds a node in the place of an `old` one, below which some prefixes changed.
    fn renew(
        &mut self,
        old: Node,
        entries: &[Entry],
        changed: &[LeftAligned],
        depth: u32,
        inherited: u32,
    ) -> u32 {
        let node = self.nodes.len();
        self.nodes.push(Node::default());
        self.fill(node, entries, depth, inherited, Some((old, changed)));
        node as u32
    }

    /// Fills a node that looks at the bits from `depth` on with entries that all share the bits before. Of a node that was
    /// there before, with what changed since, it takes the children over that did not.
    fn fill(
        &mut self,
        node: usize,
        entries: &[Entry],
        depth: u32,
        inherited: u32,
        before: Option<(Node, &[LeftAligned])>,
    ) {
        let mut values = [inherited; 1 << STRIDE];
        let deeper = paint(entries, depth, STRIDE, &mut values);
        let first_leaf = self.leaves.len() as u32;
        let children = deeper.iter().fold(0u64, |map, (slot, _)| map | 1 << slot);
        let mut runs = 0u64;
        let mut last = None;
        for (slot, &value) in values.iter().enumerate() {
            if children >> slot & 1 == 0 && last != Some(value) {
                runs |= 1 << slot;
                self.leaves.push(value);
                last = Some(value);
            }
        }
        let first_child = self.nodes.len();
        self.nodes[node] = Node { children, runs, first_child: first_child as u32, first_leaf };
        self.nodes.resize(first_child + deeper.len(), Node::default());
        for (child, (slot, entries)) in deeper.into_iter().enumerate() {
            let (at, depth) = (first_child + child, depth + STRIDE);
            match before.and_then(|(old, changed)| self.known_below(old, changed, depth, slot)) {
                Some((known, [])) => self.nodes[at] = known,
                known => self.fill(at, entries, depth, values[slot], known),
            }
        }
    }

    /// The child that an `old` node had in a slot, and what changed below it, if all of what changed there is below it:
    /// a prefix that ends in the slot or before changes what the child inherits. `depth` is the child's.
    fn known_below<'a>(
        &self,
        old: Node,
        changed: &'a [LeftAligned],
        depth: u32,
        slot: usize,
    ) -> Option<(Node, &'a [LeftAligned])> {
        let up_to = u64::MAX >> (63 - slot);
        let known = old.first_child + ((old.children & up_to).count_ones()).checked_sub(1)?;
        let is_child = old.children >> slot & 1 != 0;
        let covers = |prefix: &LeftAligned| {
            u32::from(prefix.len) <= depth && prefix.span(depth - STRIDE, STRIDE).contains(&slot)
        };
        if !is_child || changed.iter().any(covers) {
            return None;
        }
        let start = changed.partition_point(|prefix| prefix.slot(depth - STRIDE, STRIDE) < slot);
        let here = changed[start..].partition_point(|prefix| prefix.slot(depth - STRIDE, STRIDE) == slot);
        Some((self.nodes[known as usize], &changed[start..start + here]))
    }
}

/// The bits that a direct table of these prefixes looks at.
fn direct_bits(entries: &[Entry]) -> u32 {
    if entries.len() >= MANY { DIRECT } else { 0 }
}

/// The prefixes that came, went or have another value, sorted.
fn changed(before: impl Iterator<Item = Entry>, now: &[Entry]) -> Vec<LeftAligned> {
    let mut changed = Vec::new();
    let mut now = now.iter().copied().peekable();
    for old in before {
        while let Some((new, _)) = now.next_if(|(new, _)| *new < old.0) {
            changed.push(new);
        }
        match now.next_if(|(new, _)| *new == old.0) {
            Some(new) if new == old => {}
            _ => changed.push(old.0),
        }
    }
    changed.extend(now.map(|(new, _)| new));
    changed
}

/// The value of the longest prefix that holds all of this one, itself included.
fn value_around(entries: &[Entry], prefix: LeftAligned) -> u32 {
    let around = (0..=prefix.len).rev().map(|len| LeftAligned { bits: prefix.bits & mask(len), len });
    let known = around.filter_map(|it| entries.binary_search_by(|(entry, _)| entry.cmp(&it)).ok());
    known.map(|place| entries[place].1).next().unwrap_or(Lpm::NONE)
}

/// The top `len` bits.
fn mask(len: u8) -> u128 {
    if len == 0 { 0 } else { u128::MAX << (128 - len) }
}

impl LeftAligned {
    /// The first slot that it has of a node that looks at `stride` bits from `depth` on.
    fn slot(self, depth: u32, stride: u32) -> usize {
        // In two steps, because a shift by all 128 bits is none.
        ((self.bits << depth >> 1) >> (127 - stride)) as usize
    }

    /// All slots that it has there, of a node that lies along its way.
    fn span(self, depth: u32, stride: u32) -> std::ops::Range<usize> {
        let first = self.slot(depth, stride);
        first..first + (1 << (depth + stride - u32::from(self.len).max(depth)).min(stride))
    }
}

/// Entries that lead on below a slot.
type Deeper<'a> = Vec<(usize, &'a [Entry])>;

/// Writes the value of each slot of `stride` bits from `depth` on, and returns the longer prefixes below each slot that has
/// some.
fn paint<'a>(entries: &'a [Entry], depth: u32, stride: u32, values: &mut [u32]) -> Deeper<'a> {
    let (mut short, mut deeper) = (Vec::new(), Deeper::new());
    let mut rest = entries;
    while let Some((first, _)) = rest.first() {
        // Entries are sorted, so those of a slot stand together, and those that end in it at its front.
        let slot = first.slot(depth, stride);
        let (here, behind) = rest.split_at(run(rest, |(prefix, _)| prefix.slot(depth, stride) == slot));
        let long = long_of(here, depth + stride);
        short.extend_from_slice(&here[..here.len() - long.len()]);
        if !long.is_empty() {
            deeper.push((slot, long));
        }
        rest = behind;
    }
    short.sort_by_key(|(prefix, _)| prefix.len);
    for (prefix, value) in short {
        values[prefix.span(depth, stride)].fill(value);
    }
    deeper
}

/// How many entries at the front are alike: a few at most, or many.
fn run(entries: &[Entry], is_alike: impl Fn(&Entry) -> bool) -> usize {
    const FEW: usize = 8;
    let few = entries.iter().take(FEW).take_while(|it| is_alike(it)).count();
    if few < FEW { few } else { FEW + entries[FEW..].partition_point(is_alike) }
}

/// The entries of a slot without those that end in it: in sorted order they stand at its front.
fn long_of(entries: &[Entry], depth: u32) -> &[Entry] {
    let short = entries.iter().take_while(|(prefix, _)| u32::from(prefix.len) <= depth).count();
    &entries[short..]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn naive(prefixes: &[(LeftAligned, u32)], key: u128) -> u32 {
        let matching = prefixes.iter().filter(|(prefix, _)| key & mask(prefix.len) == prefix.bits);
        matching
            .enumerate()
            .max_by_key(|(i, (prefix, _))| (prefix.len, *i))
            .map_or(Lpm::NONE, |(_, (_, value))| *value)
    }

    fn prefix(bits: u128, len: u8) -> LeftAligned {
        LeftAligned { bits: bits & mask(len), len }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]
        #[test]
        fn the_longest_prefix_wins_as_in_a_naive_search(
            // Few distinct bits, so that prefixes nest and keys hit.
            raw in prop::collection::vec((0u128..1 << 20, 0u8..=128, 0u32..1000), 0..400),
            keys in prop::collection::vec((0u128..1 << 20, any::<u128>()), 50),
        ) {
            let spread = |bits: u128| bits << 108 | (bits & 0xfff) << 60 | bits & 0xff;
            let prefixes: Vec<_> = raw.iter().map(|&(bits, len, value)| (prefix(spread(bits), len), value)).collect();
            let lpm = Lpm::build(prefixes.iter().copied());
            let near = prefixes.iter().flat_map(|(p, _)| [p.bits, p.bits | !mask(p.len), p.bits.wrapping_sub(1)]);
            for key in keys.iter().flat_map(|&(near, far)| [spread(near), far]).chain(near) {
                prop_assert_eq!(lpm.look_up(key), naive(&prefixes, key), "key {:x}", key);
            }
        }
    }

    /// As the policies' rows are: sorted, each prefix once.
    fn sorted(prefixes: &[(LeftAligned, u32)]) -> Vec<Entry> {
        let sorted: std::collections::BTreeMap<LeftAligned, u32> = prefixes.iter().copied().collect();
        sorted.into_iter().collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]
        #[test]
        fn a_table_that_follows_another_finds_what_one_made_anew_finds(
            raw in prop::collection::vec((0u128..1 << 14, 0u8..=128, 0u32..1000), 200..700),
            steps in prop::collection::vec(
                prop::collection::vec((any::<bool>(), 0u128..1 << 14, 0u8..=128, 0u32..1000), 0..6), 1..40),
            keys in prop::collection::vec(0u128..1 << 14, 20),
        ) {
            // Most of the prefixes differ in the first 16 bits or in the last of 32.
            let spread = |bits: u128| (bits & 0x3f) << 112 | (bits >> 6) << 96 | (bits & 0xff) << 40;
            let mut entries: Vec<Entry> =
                sorted(&raw.iter().map(|&(bits, len, value)| (prefix(spread(bits), len), value)).collect::<Vec<_>>());
            let mut lpm = Lpm::build(entries.iter().copied());
            for step in steps {
                let mut now: std::collections::BTreeMap<LeftAligned, u32> = entries.iter().copied().collect();
                for (comes, bits, len, value) in step {
                    let near = prefix(spread(bits), len);
                    let other = entries.get(bits as usize % entries.len().max(1)).map_or(near, |(it, _)| *it);
                    if comes { now.insert(near, value) } else { now.remove(&other) };
                }
                let now: Vec<Entry> = now.into_iter().collect();
                lpm = lpm.follow(entries.iter().copied(), now.iter().copied());
                let anew = Lpm::build(now.iter().copied());
                let near = now.iter().flat_map(|(p, _)| [p.bits, p.bits | !mask(p.len), p.bits.wrapping_sub(1)]);
                for key in keys.iter().map(|&key| spread(key)).chain(near) {
                    prop_assert_eq!(lpm.look_up(key), anew.look_up(key), "key {:x}", key);
                }
                entries = now;
            }
        }
    }

    #[test]
    fn a_table_that_follows_others_for_long_does_not_grow() {
        let host = |i: u32| prefix(u128::from(0x0a00_0000 + i * 2) << 96, 32);
        let rows = |turn: u32| (0..5000).map(move |i| (host(i), if i == 7 { turn } else { i }));
        let mut lpm = Lpm::build(rows(0));
        let most = 3 * lpm.bytes();
        for turn in 1..2000 {
            lpm = lpm.follow(rows(turn - 1), rows(turn));
            assert_eq!((lpm.look_up(host(7).bits), lpm.look_up(host(8).bits)), (turn, 8));
            assert!(lpm.bytes() < most, "{} bytes after {turn} changes", lpm.bytes());
        }
    }

    #[test]
    fn an_empty_table_knows_no_route_and_a_default_route_matches_all() {
        assert_eq!(Lpm::build([]).look_up(7 << 100), Lpm::NONE);
        let lpm = Lpm::build([(prefix(0, 0), 5)]);
        assert_eq!((lpm.look_up(0), lpm.look_up(u128::MAX)), (5, 5));
    }

    #[test]
    fn ten_thousand_host_routes_are_found_and_their_neighbours_are_not() {
        let host = |i: u32| u128::from(0x0a00_0000 + i * 2) << 96;
        let lpm = Lpm::build((0..10_000).map(|i| (prefix(host(i), 32), i)));
        assert!(
            (0..10_000).all(|i| lpm.look_up(host(i)) == i && lpm.look_up(host(i) + (1 << 96)) == Lpm::NONE)
        );
    }
}
