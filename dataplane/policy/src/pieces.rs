//! The prefixes of one address family in order, and what is inside of which.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::hash::{NumberMap, NumberSet};
use crate::peers::{Numbering, PeerId, PeerSet, set_id};

/// What happens at an edge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EdgeKind {
    /// An identity begins.
    Identity,
    /// A block begins.
    Block,
    /// A hole of a block begins.
    Hole,
}

/// A prefix at which something begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Edge {
    /// The address, its first bit the highest.
    bits: u128,
    len: u8,
    pub(crate) v4: bool,
    kind: EdgeKind,
    atom: u32,
}

impl Edge {
    pub(crate) fn new(prefix: IpNet, atom: u32, kind: EdgeKind) -> Edge {
        let (bits, v4) = match prefix.network() {
            IpAddr::V4(v4) => (u128::from(v4.to_bits()) << 96, true),
            IpAddr::V6(v6) => (v6.to_bits(), false),
        };
        Edge { bits, len: prefix.prefix_len(), v4, kind, atom }
    }

    fn order(&self) -> (u128, u8, u32) {
        (self.bits, self.len, self.atom)
    }

    fn place(&self) -> (u128, u8) {
        (self.bits, self.len)
    }
}

/// A prefix and its set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) bits: u128,
    pub(crate) len: u8,
    pub(crate) set: u32,
    /// The place of the piece around this one.
    around: Option<u32>,
}

impl Piece {
    /// All of it but where the others are.
    fn what(&self) -> (u128, u8, u32) {
        (self.bits, self.len, self.set)
    }

    fn contains(&self, bits: u128) -> bool {
        self.len == 0 || (self.bits ^ bits) >> (128 - u32::from(self.len)) == 0
    }
}

/// The space of one family, cut up.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pieces {
    /// Sorted by address, outer ones first; kept for the next cut.
    edges: Vec<Edge>,
    /// In the same order.
    pub(crate) pieces: Vec<Piece>,
}

impl Pieces {
    /// Cuts the space anew: without the edges of the atoms that are `gone`, with those that were `added`.
    pub(crate) fn recut<'a>(
        &'a self,
        gone: &NumberSet<u32>,
        added: impl Iterator<Item = &'a Edge>,
        numbering: &mut Arc<Numbering>,
    ) -> Pieces {
        let mut added: Vec<Edge> = added.copied().collect();
        added.sort_by_key(Edge::order);
        let mut edges = Vec::with_capacity(self.edges.len() + added.len());
        let mut added = added.into_iter().peekable();
        for edge in &self.edges {
            if gone.contains(&edge.atom) {
                continue;
            }
            while let Some(new) = added.next_if(|new| new.order() < edge.order()) {
                edges.push(new);
            }
            edges.push(*edge);
        }
        edges.extend(added);
        let pieces = self.cut(&edges, numbering);
        Pieces { edges, pieces }
    }

    /// The pieces of other edges than these. Where the edges are the same, before the first difference and, inside of the
    /// same pieces, behind the last, the pieces are too.
    fn cut(&self, edges: &[Edge], numbering: &mut Arc<Numbering>) -> Vec<Piece> {
        let same = |(a, b): &(&Edge, &Edge)| a == b;
        let head = edges.iter().zip(&self.edges).take_while(same).count();
        let (new, old) = (&edges[head..], &self.edges[head..]);
        let tail = new.iter().rev().zip(old.iter().rev()).take_while(same).count();
        // Edges of one prefix make one piece, so what is taken over begins and ends with a prefix.
        let first = [new.first(), old.first()].into_iter().flatten().map(Edge::place).min();
        let lasts = [new, old].map(|edges| edges[..edges.len() - tail].last());
        let last = lasts.into_iter().flatten().map(Edge::place).max();
        let kept = first.map_or(self.pieces.len(), |place| self.before(place));
        let mut cutter = Cutter::after(&self.pieces[..kept]);
        let start = first.map_or(edges.len(), |place| edges.partition_point(|edge| edge.place() < place));
        for here in edges[start..].chunk_by(|a, b| a.place() == b.place()) {
            let place = here[0].place();
            if last.is_none_or(|last| place > last) && cutter.resume(place, self) {
                break;
            }
            cutter.step(here, numbering);
        }
        cutter.pieces
    }

    /// How many pieces stand before a place.
    fn before(&self, place: (u128, u8)) -> usize {
        self.pieces.partition_point(|piece| (piece.bits, piece.len) < place)
    }

    pub(crate) fn look_up(&self, bits: u128) -> PeerId {
        let behind = self.pieces.partition_point(|piece| piece.bits <= bits);
        let mut at = behind.checked_sub(1).map(|last| last as u32);
        while let Some(place) = at {
            let piece = &self.pieces[place as usize];
            if piece.contains(bits) {
                return PeerId(piece.set);
            }
            at = piece.around;
        }
        PeerId::OUTSIDE
    }
}

/// Pieces in the making.
#[derive(Default)]
struct Cutter {
    pieces: Vec<Piece>,
    /// The places of those that are around the last edge, outer ones first.
    around: Vec<u32>,
    /// Most edges are pods that join their identity inside one and the same piece.
    joined: NumberMap<(u32, u32), u32>,
}

impl Cutter {
    /// Goes on after the first pieces of others.
    fn after(pieces: &[Piece]) -> Cutter {
        let mut around: Vec<u32> =
            chain(pieces, pieces.len().checked_sub(1).map(|last| last as u32)).collect();
        around.reverse();
        Cutter { pieces: pieces.to_vec(), around, ..Cutter::default() }
    }

    /// Leaves the pieces that an address is not in.
    fn leave(&mut self, bits: u128) {
        while self.around.last().is_some_and(|&last| !self.pieces[last as usize].contains(bits)) {
            self.around.pop();
        }
    }

    /// Cuts at a prefix, whose edges are `here`.
    fn step(&mut self, here: &[Edge], numbering: &mut Arc<Numbering>) {
        let (bits, len) = here[0].place();
        self.leave(bits);
        let parent = self.around.last().map_or(PeerId::OUTSIDE.0, |&last| self.pieces[last as usize].set);
        let set = match here {
            [Edge { kind: EdgeKind::Identity, atom, .. }] => {
                *self.joined.entry((parent, *atom)).or_insert_with(|| step_in(numbering, parent, here))
            }
            _ => step_in(numbering, parent, here),
        };
        if set != parent {
            self.pieces.push(Piece { bits, len, set, around: self.around.last().copied() });
            self.around.push(self.pieces.len() as u32 - 1);
        }
    }

    /// Takes over the `old` pieces from a place on, if what is around it there are the same pieces as here.
    fn resume(&mut self, place: (u128, u8), old: &Pieces) -> bool {
        self.leave(place.0);
        let from = old.before(place);
        let last = from.checked_sub(1).map(|last| last as u32);
        let mut theirs: Vec<u32> =
            chain(&old.pieces, last).filter(|&at| old.pieces[at as usize].contains(place.0)).collect();
        theirs.reverse();
        let ours = self.around.iter().map(|&at| &self.pieces[at as usize]);
        let others = theirs.iter().map(|&at| &old.pieces[at as usize]);
        if !ours.map(Piece::what).eq(others.map(Piece::what)) {
            return false;
        }
        let (from, to) = (from as u32, self.pieces.len() as u32);
        let around = &self.around;
        let moved = |at: u32| match at.checked_sub(from) {
            Some(behind) => Some(to + behind),
            None => theirs.iter().position(|&it| it == at).map(|depth| around[depth]),
        };
        let rest = old.pieces[from as usize..].iter();
        self.pieces.extend(rest.map(|piece| Piece { around: piece.around.and_then(moved), ..*piece }));
        true
    }
}

/// A piece and those around it, inner ones first.
fn chain(pieces: &[Piece], innermost: Option<u32>) -> impl Iterator<Item = u32> + '_ {
    std::iter::successors(innermost, |&at| pieces[at as usize].around)
}

/// The set within a piece whose edges are `here`, inside a piece of set `parent`.
fn step_in(numbering: &mut Arc<Numbering>, parent: u32, here: &[Edge]) -> u32 {
    let mut set = PeerSet { parent, known: numbering.knows(parent), ..PeerSet::default() };
    for edge in here {
        match edge.kind {
            // An identity may list a prefix within another of its own, or the same one again.
            EdgeKind::Identity => {
                if !set.added.contains(&edge.atom) && !numbering.holds(parent, edge.atom) {
                    set.added.push(edge.atom);
                    set.known = true;
                }
            }
            EdgeKind::Block => set.added.push(edge.atom),
            // A hole within a hole is none.
            EdgeKind::Hole => {
                if numbering.holds(parent, edge.atom) {
                    set.removed.push(edge.atom);
                }
            }
        }
    }
    if set.added.is_empty() && set.removed.is_empty() { parent } else { set_id(numbering, set) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KINDS: [EdgeKind; 3] = [EdgeKind::Identity, EdgeKind::Block, EdgeKind::Hole];

    proptest! {
        #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]
        #[test]
        fn pieces_that_follow_others_are_those_that_are_cut_anew(
            // Some atoms of a kind each; prefixes of few bits, so that they nest, repeat and touch.
            steps in prop::collection::vec(prop::collection::vec((0u128..64, 0u8..=6, 0u32..12), 0..12), 1..12),
        ) {
            let mut numbering = Arc::new(Numbering::default());
            let mut pieces = Pieces::default();
            for step in steps {
                // What an atom is in this step stands in place of what it was.
                let gone: NumberSet<u32> = step.iter().map(|(.., atom)| *atom).collect();
                let added: Vec<Edge> = step
                    .iter()
                    .filter(|(bits, ..)| *bits != 0)
                    .map(|&(bits, len, atom)| {
                        let bits = if len == 0 { 0 } else { bits << 122 & (u128::MAX << (128 - u32::from(len))) };
                        Edge { bits, len, v4: false, kind: KINDS[atom as usize % 3], atom }
                    })
                    .collect();
                pieces = pieces.recut(&gone, added.iter(), &mut numbering);
                let anew = Pieces::default().cut(&pieces.edges, &mut numbering);
                prop_assert_eq!(&pieces.pieces, &anew);
            }
        }
    }
}
