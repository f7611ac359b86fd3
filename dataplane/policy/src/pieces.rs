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
#[derive(Clone, Copy, Debug)]
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
}

/// A prefix and its set.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Piece {
    pub(crate) bits: u128,
    pub(crate) len: u8,
    pub(crate) set: u32,
    /// The place of the piece around this one.
    around: Option<u32>,
}

impl Piece {
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
        let stay = self.edges.iter().filter(|edge| gone.is_empty() || !gone.contains(&edge.atom));
        let mut edges: Vec<Edge> = stay.chain(added).copied().collect();
        // Stable, because such a sort is quick where most is sorted already.
        edges.sort_by_key(|edge| (edge.bits, edge.len, edge.atom));
        let pieces = cut(&edges, numbering);
        Pieces { edges, pieces }
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

fn cut(edges: &[Edge], numbering: &mut Arc<Numbering>) -> Vec<Piece> {
    let mut pieces: Vec<Piece> = Vec::with_capacity(edges.len());
    let mut around: Vec<u32> = Vec::new();
    // Most edges are pods that join their identity inside one and the same piece.
    let mut joined: NumberMap<(u32, u32), u32> = NumberMap::default();
    for here in edges.chunk_by(|a, b| (a.bits, a.len) == (b.bits, b.len)) {
        let (bits, len) = (here[0].bits, here[0].len);
        while around.last().is_some_and(|&last| !pieces[last as usize].contains(bits)) {
            around.pop();
        }
        let parent = around.last().map_or(PeerId::OUTSIDE.0, |&last| pieces[last as usize].set);
        let set = match here {
            [Edge { kind: EdgeKind::Identity, atom, .. }] => {
                *joined.entry((parent, *atom)).or_insert_with(|| step_in(numbering, parent, here))
            }
            _ => step_in(numbering, parent, here),
        };
        if set != parent {
            pieces.push(Piece { bits, len, set, around: around.last().copied() });
            around.push(pieces.len() as u32 - 1);
        }
    }
    pieces
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
