//! Longest-prefix match: a poptrie (Asai and Ohara, SIGCOMM 2015) over left-aligned 128-bit keys.
//!
//! ```text
//!  direct table (16 bits, when there are many prefixes) -> node: 64 slots, 6 bits of the key -> node ... -> leaf
//! ```
//!
//! A node is two 64-bit maps and two bases: which slots lead on to a child, and where a run of equal leaves begins; the
//! position of a child or a leaf is a count of bits. One structure serves IPv4 and IPv6; IPv4 keys use the top 32 bits.

use std::net::IpAddr;

/// Bits of the key that a node looks at.
const STRIDE: u32 = 6;
/// Bits of the key that the direct table looks at, in a table that has one.
const DIRECT: u32 = 16;
/// Prefixes from which on a direct table of 256 KiB is worth its place in the cache.
const MANY: usize = 256;
/// An entry of the direct table that is a value and no node.
const LEAF: u32 = 1 << 31;

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

/// A table of prefixes of one address family; values are below 2^31.
#[derive(Debug)]
pub struct Lpm {
    direct_bits: u32,
    direct: Vec<u32>,
    nodes: Vec<Node>,
    leaves: Vec<u32>,
}

impl Lpm {
    /// What a look-up finds where no prefix matches.
    pub const NONE: u32 = LEAF - 1;

    /// Builds the table; of two equal prefixes the later one counts.
    #[must_use]
    pub fn build(prefixes: impl IntoIterator<Item = (LeftAligned, u32)>) -> Lpm {
        let mut entries: Vec<(LeftAligned, u32)> = prefixes.into_iter().collect();
        if !entries.is_sorted_by(|(a, _), (b, _)| a < b) {
            let sorted: std::collections::BTreeMap<LeftAligned, u32> = entries.into_iter().collect();
            entries = sorted.into_iter().collect();
        }
        let direct_bits = if entries.len() >= MANY { DIRECT } else { 0 };
        let mut lpm = Lpm { direct_bits, direct: Vec::new(), nodes: Vec::new(), leaves: Vec::new() };
        let mut values = vec![Lpm::NONE; 1 << direct_bits];
        let deeper = paint(&entries, 0, direct_bits, &mut values);
        let mut direct: Vec<u32> = values.iter().map(|value| value | LEAF).collect();
        for (slot, entries) in deeper {
            let node = lpm.nodes.len() as u32;
            lpm.nodes.push(Node::default());
            lpm.fill(node as usize, entries, direct_bits, values[slot]);
            direct[slot] = node;
        }
        lpm.direct = direct;
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

    /// Fills a node that looks at the bits from `depth` on with entries that all share the bits before.
    fn fill(&mut self, node: usize, entries: &[(LeftAligned, u32)], depth: u32, inherited: u32) {
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
            self.fill(first_child + child, entries, depth + STRIDE, values[slot]);
        }
    }
}

/// Entries that lead on below a slot.
type Deeper<'a> = Vec<(usize, &'a [(LeftAligned, u32)])>;

/// Writes the value of each slot of `stride` bits from `depth` on, and returns the longer prefixes below each slot that has
/// some.
fn paint<'a>(entries: &'a [(LeftAligned, u32)], depth: u32, stride: u32, values: &mut [u32]) -> Deeper<'a> {
    let slot_of = |prefix: LeftAligned| ((prefix.bits << depth >> 1) >> (127 - stride)) as usize;
    let is_short = |(prefix, _): &&(LeftAligned, u32)| u32::from(prefix.len) <= depth + stride;
    let mut short: Vec<_> = entries.iter().filter(is_short).collect();
    short.sort_by_key(|(prefix, _)| prefix.len);
    for &&(prefix, value) in &short {
        let first = slot_of(prefix);
        let span = 1usize << (depth + stride - u32::from(prefix.len).max(depth)).min(stride);
        values[first..first + span].fill(value);
    }
    if short.len() == entries.len() {
        return Deeper::new();
    }
    // Entries are sorted, so those of a slot stand together; the short ones among them are painted already.
    let slots = entries.chunk_by(|(a, _), (b, _)| slot_of(*a) == slot_of(*b));
    let below = slots.map(|here| (slot_of(here[0].0), long_of(here, depth + stride)));
    below.filter(|(_, long)| !long.is_empty()).collect()
}

/// The entries of a slot without those that end in it: in sorted order they stand at its front.
fn long_of(entries: &[(LeftAligned, u32)], depth: u32) -> &[(LeftAligned, u32)] {
    let short = entries.iter().take_while(|(prefix, _)| u32::from(prefix.len) <= depth).count();
    &entries[short..]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn mask(len: u8) -> u128 {
        if len == 0 { 0 } else { u128::MAX << (128 - len) }
    }

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
