//! The address space of a network, cut so that one longest-prefix match tells which identities and blocks an address
//! is in.
//!
//! What an address can be in is an *atom*: an identity, or a block with its holes. The prefixes of all atoms, holes
//! included, nest; walking them in order, each piece is in what the piece around it is in, plus what begins here, less
//! what has a hole here. A set of atoms reached that way is a peer, and its number the peer id:
//!
//! ```text
//!  10.0.0.0/8     in {all-pods}             peer 1
//!    10.1.0.0/16  in {all-pods, block}      peer 2 = 1 + block
//!      10.1.9.9   in {all-pods}             peer 3 = 2 - block      (another number for the same set: only larger)
//!      10.1.1.1   in {all-pods, block, web} peer 4 = 2 + web
//! ```
//!
//! Numbers stay from one compile to the next, so tables made for them stay right.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::rules::Identity;

/// Which identities and blocks an address is in, as a dense number within a network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerId(pub(crate) u32);

impl PeerId {
    /// An address that no prefix matches: in no identity and in no block.
    pub const OUTSIDE: PeerId = PeerId(0);

    /// The id with this number, as it comes out of a longest-prefix match.
    #[inline]
    #[must_use]
    pub const fn new(number: u32) -> PeerId {
        PeerId(number)
    }

    /// The number.
    #[inline]
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }
}

/// A block of addresses with holes, as a rule names it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Block {
    prefix: IpNet,
    except: Vec<IpNet>,
}

impl Block {
    pub(crate) fn new(prefix: IpNet, except: &[IpNet]) -> Block {
        let mut except: Vec<IpNet> = except.iter().map(IpNet::trunc).collect();
        except.sort_unstable();
        except.dedup();
        Block { prefix: prefix.trunc(), except }
    }
}

/// What an address can be in.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Atom {
    Identity(String),
    Block(Block),
}

/// A set of atoms, told by how it differs from the set of the piece around.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct PeerSet {
    /// The set of the piece around; the empty set is its own.
    pub(crate) parent: u32,
    pub(crate) added: Vec<u32>,
    pub(crate) removed: Vec<u32>,
    /// Whether any atom of the set is an identity, so that the address is not world.
    pub(crate) known: bool,
}

/// The numbers of atoms and sets. They only grow; too many stale ones, and the network is numbered anew.
#[derive(Clone, Debug)]
struct Numbering {
    atoms: Vec<Arc<Atom>>,
    atom_ids: HashMap<Arc<Atom>, u32>,
    sets: Vec<Arc<PeerSet>>,
    set_ids: HashMap<Arc<PeerSet>, u32>,
}

impl Default for Numbering {
    fn default() -> Numbering {
        let empty = Arc::new(PeerSet::default());
        Numbering {
            atoms: Vec::new(),
            atom_ids: HashMap::new(),
            sets: vec![empty.clone()],
            set_ids: HashMap::from([(empty, PeerId::OUTSIDE.0)]),
        }
    }
}

/// Stale numbers that are put up with, beside as many as there are live ones.
const STALE: usize = 1024;

/// The peers of a network.
#[derive(Clone, Debug, Default)]
pub struct Peers {
    identities: Vec<Arc<Identity>>,
    blocks: Vec<Block>,
    numbering: Arc<Numbering>,
    /// Counts how often the network was numbered anew.
    generation: u64,
    v4: Pieces,
    v6: Pieces,
    tree: Arc<SetTree>,
}

impl Peers {
    /// Cuts the space. `blocks` are sorted and none is there twice.
    pub(crate) fn cut(
        identities: Vec<Arc<Identity>>,
        blocks: Vec<Block>,
        previous: Option<&Arc<Peers>>,
    ) -> Arc<Peers> {
        if let Some(previous) = previous
            && previous.identities == identities
            && previous.blocks == blocks
        {
            return previous.clone();
        }
        let (numbering, generation) =
            previous.map_or_else(Default::default, |old| (old.numbering.clone(), old.generation));
        let mut peers = Peers { identities, blocks, numbering, generation, ..Peers::default() };
        let pieces = peers.cut_both();
        let atoms = peers.identities.len() + peers.blocks.len();
        let numbers = &peers.numbering;
        if numbers.sets.len() > 2 * pieces + STALE || numbers.atoms.len() > 2 * atoms + STALE {
            (peers.numbering, peers.generation) = (Arc::default(), generation + 1);
            peers.cut_both();
        }
        peers.tree = match previous {
            Some(old) if Arc::ptr_eq(&old.numbering, &peers.numbering) => old.tree.clone(),
            _ => Arc::new(SetTree::grow(&peers.numbering.sets)),
        };
        Arc::new(peers)
    }

    /// Cuts both families; the answer is how many pieces there are, so no fewer than sets in use.
    fn cut_both(&mut self) -> usize {
        let edges = self.edges();
        let (mut v4, mut v6): (Vec<Edge>, Vec<Edge>) = edges.into_iter().partition(|edge| edge.v4);
        self.v4 = Pieces::cut(&mut v4, &mut self.numbering);
        self.v6 = Pieces::cut(&mut v6, &mut self.numbering);
        self.v4.0.len() + self.v6.0.len()
    }

    /// Where atoms begin and where they have holes.
    fn edges(&mut self) -> Vec<Edge> {
        let mut edges =
            Vec::with_capacity(self.identities.iter().map(|identity| identity.prefixes.len()).sum());
        let numbering = &mut self.numbering;
        for identity in &self.identities {
            let atom = atom_id(numbering, Atom::Identity(identity.name.clone()));
            edges.extend(identity.prefixes.iter().map(|prefix| Edge::new(*prefix, atom, EdgeKind::Identity)));
        }
        for block in &self.blocks {
            let atom = atom_id(numbering, Atom::Block(block.clone()));
            edges.push(Edge::new(block.prefix, atom, EdgeKind::Block));
            edges.extend(block.except.iter().map(|hole| Edge::new(*hole, atom, EdgeKind::Hole)));
        }
        edges
    }

    /// Every prefix of both families with its peer. An address that none matches is [`PeerId::OUTSIDE`].
    pub fn prefixes(&self) -> impl Iterator<Item = (IpNet, PeerId)> + '_ {
        let v4 = self.v4.0.iter().map(|piece| {
            let address = std::net::Ipv4Addr::from((piece.bits >> 96) as u32);
            (Ipv4Net::new_assert(address, piece.len).into(), PeerId(piece.set))
        });
        let v6 = self
            .v6
            .0
            .iter()
            .map(|piece| (Ipv6Net::new_assert(piece.bits.into(), piece.len).into(), PeerId(piece.set)));
        v4.chain(v6)
    }

    /// The peer of an address, by a plain search: for tests and for questions of people.
    #[must_use]
    pub fn look_up(&self, address: IpAddr) -> PeerId {
        match address {
            IpAddr::V4(v4) => self.v4.look_up(u128::from(v4.to_bits()) << 96),
            IpAddr::V6(v6) => self.v6.look_up(v6.to_bits()),
        }
    }

    /// How many peer ids there are; all are below.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.numbering.sets.len() as u32
    }

    /// The names of the identities that a peer is in, sorted; none of them is world.
    #[must_use]
    pub fn identities(&self, peer: PeerId) -> Vec<&str> {
        let mut names: Vec<&str> = self
            .atoms_of(peer.0)
            .into_iter()
            .filter_map(|atom| match &*self.numbering.atoms[atom as usize] {
                Atom::Identity(name) => Some(name.as_str()),
                Atom::Block(_) => None,
            })
            .collect();
        names.sort_unstable();
        names
    }

    /// Changes when ids are given anew, so that tables made for older ids are void.
    pub(crate) fn generation(&self) -> u64 {
        self.generation
    }

    pub(crate) fn identity(&self, name: &str) -> Option<u32> {
        self.numbering.atom_ids.get(&Atom::Identity(name.to_owned())).copied()
    }

    pub(crate) fn block(&self, block: Block) -> Option<u32> {
        self.numbering.atom_ids.get(&Atom::Block(block)).copied()
    }

    pub(crate) fn atom_count(&self) -> usize {
        self.numbering.atoms.len()
    }

    pub(crate) fn sets(&self) -> &[Arc<PeerSet>] {
        &self.numbering.sets
    }

    pub(crate) fn tree(&self) -> &SetTree {
        &self.tree
    }

    /// The atoms that a set holds.
    pub(crate) fn atoms_of(&self, set: u32) -> Vec<u32> {
        let (mut atoms, mut removed) = (Vec::new(), Vec::new());
        let mut at = set;
        while at != PeerId::OUTSIDE.0 {
            let here = &self.numbering.sets[at as usize];
            removed.extend_from_slice(&here.removed);
            atoms.extend(here.added.iter().filter(|atom| !removed.contains(atom)));
            at = here.parent;
        }
        atoms
    }
}

fn atom_id(numbering: &mut Arc<Numbering>, atom: Atom) -> u32 {
    if let Some(id) = numbering.atom_ids.get(&atom) {
        return *id;
    }
    let numbering = Arc::make_mut(numbering);
    let id = numbering.atoms.len() as u32;
    let atom = Arc::new(atom);
    numbering.atoms.push(atom.clone());
    numbering.atom_ids.insert(atom, id);
    id
}

fn set_id(numbering: &mut Arc<Numbering>, set: PeerSet) -> u32 {
    if let Some(id) = numbering.set_ids.get(&set) {
        return *id;
    }
    let numbering = Arc::make_mut(numbering);
    let id = numbering.sets.len() as u32;
    let set = Arc::new(set);
    numbering.sets.push(set.clone());
    numbering.set_ids.insert(set, id);
    id
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum EdgeKind {
    Identity,
    Block,
    Hole,
}

/// A prefix at which something begins or ends.
#[derive(Clone, Copy, Debug)]
struct Edge {
    /// The address, its first bit the highest.
    bits: u128,
    len: u8,
    v4: bool,
    kind: EdgeKind,
    atom: u32,
}

impl Edge {
    fn new(prefix: IpNet, atom: u32, kind: EdgeKind) -> Edge {
        let (bits, v4) = match prefix.network() {
            IpAddr::V4(v4) => (u128::from(v4.to_bits()) << 96, true),
            IpAddr::V6(v6) => (v6.to_bits(), false),
        };
        Edge { bits, len: prefix.prefix_len(), v4, kind, atom }
    }
}

/// A prefix and its set.
#[derive(Clone, Copy, Debug)]
struct Piece {
    bits: u128,
    len: u8,
    set: u32,
    /// The place of the piece around this one.
    around: Option<u32>,
}

impl Piece {
    fn contains(&self, bits: u128) -> bool {
        self.len == 0 || (self.bits ^ bits) >> (128 - u32::from(self.len)) == 0
    }
}

/// The pieces of one family, sorted by address, outer ones first.
#[derive(Clone, Debug, Default)]
struct Pieces(Vec<Piece>);

impl Pieces {
    fn cut(edges: &mut [Edge], numbering: &mut Arc<Numbering>) -> Pieces {
        edges.sort_unstable_by_key(|edge| (edge.bits, edge.len, edge.atom));
        let mut pieces: Vec<Piece> = Vec::with_capacity(edges.len());
        let mut around: Vec<u32> = Vec::new();
        for here in edges.chunk_by(|a, b| (a.bits, a.len) == (b.bits, b.len)) {
            let (bits, len) = (here[0].bits, here[0].len);
            while around.last().is_some_and(|&last| !pieces[last as usize].contains(bits)) {
                around.pop();
            }
            let parent = around.last().map_or(PeerId::OUTSIDE.0, |&last| pieces[last as usize].set);
            let set = step_in(numbering, parent, here);
            if set != parent {
                pieces.push(Piece { bits, len, set, around: around.last().copied() });
                around.push(pieces.len() as u32 - 1);
            }
        }
        Pieces(pieces)
    }

    fn look_up(&self, bits: u128) -> PeerId {
        let behind = self.0.partition_point(|piece| piece.bits <= bits);
        let mut at = behind.checked_sub(1).map(|last| last as u32);
        while let Some(place) = at {
            let piece = &self.0[place as usize];
            if piece.contains(bits) {
                return PeerId(piece.set);
            }
            at = piece.around;
        }
        PeerId::OUTSIDE
    }
}

/// The set within a piece whose edges are `here`, inside a piece of set `parent`.
fn step_in(numbering: &mut Arc<Numbering>, parent: u32, here: &[Edge]) -> u32 {
    let mut set = PeerSet { parent, known: numbering.sets[parent as usize].known, ..PeerSet::default() };
    for edge in here {
        match edge.kind {
            // An identity may list a prefix within another of its own, or the same one again.
            EdgeKind::Identity => {
                if !set.added.contains(&edge.atom) && !holds(numbering, parent, edge.atom) {
                    set.added.push(edge.atom);
                    set.known = true;
                }
            }
            EdgeKind::Block => set.added.push(edge.atom),
            // A hole within a hole is none.
            EdgeKind::Hole => {
                if holds(numbering, parent, edge.atom) {
                    set.removed.push(edge.atom);
                }
            }
        }
    }
    if set.added.is_empty() && set.removed.is_empty() { parent } else { set_id(numbering, set) }
}

/// Whether `atom` is in `set`.
fn holds(numbering: &Numbering, set: u32, atom: u32) -> bool {
    let mut at = set;
    while at != PeerId::OUTSIDE.0 {
        let here = &numbering.sets[at as usize];
        if here.added.contains(&atom) {
            return true;
        }
        if here.removed.contains(&atom) {
            return false;
        }
        at = here.parent;
    }
    false
}

/// The sets in an order in which each comes right before all that grew from it.
#[derive(Clone, Debug, Default)]
pub(crate) struct SetTree {
    /// Set ids in that order.
    pub(crate) order: Vec<u32>,
    /// By place in the order: the place behind the last set that grew from this one.
    pub(crate) end: Vec<u32>,
    /// By atom: the places of the sets that add or remove it.
    pub(crate) touching: Vec<Vec<u32>>,
}

impl SetTree {
    fn grow(sets: &[Arc<PeerSet>]) -> SetTree {
        // A parent's number is lower than its children's, so sizes add up backwards and places follow forwards.
        let mut size = vec![1u32; sets.len()];
        for set in (1..sets.len()).rev() {
            size[sets[set].parent as usize] += size[set];
        }
        let mut place = vec![0u32; sets.len()];
        let mut next_child = vec![1u32; sets.len()];
        let mut tree = SetTree { order: vec![0; sets.len()], end: vec![0; sets.len()], touching: Vec::new() };
        for set in 0..sets.len() {
            if set > 0 {
                let parent = sets[set].parent as usize;
                place[set] = place[parent] + next_child[parent];
                next_child[parent] += size[set];
            }
            tree.order[place[set] as usize] = set as u32;
            tree.end[place[set] as usize] = place[set] + size[set];
            for &atom in sets[set].added.iter().chain(&sets[set].removed) {
                let atoms = tree.touching.len().max(atom as usize + 1);
                tree.touching.resize(atoms, Vec::new());
                tree.touching[atom as usize].push(place[set]);
            }
        }
        tree
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn identity(name: &str, prefixes: &[&str]) -> Arc<Identity> {
        let prefixes = prefixes.iter().map(|prefix| net(prefix)).collect();
        Arc::new(Identity { name: name.into(), network: "n".into(), prefixes })
    }

    fn at(peers: &Peers, address: &str) -> Vec<String> {
        let peer = peers.look_up(address.parse().unwrap());
        peers.identities(peer).into_iter().map(str::to_owned).collect()
    }

    #[test]
    fn an_address_is_in_every_identity_around_it() {
        let identities = vec![
            identity("all", &["10.0.0.0/8", "fd00::/8"]),
            identity("web", &["10.1.1.1/32", "fd00::1/128"]),
            identity("node", &["192.0.2.1/32"]),
        ];
        let peers = Peers::cut(identities, Vec::new(), None);
        assert_eq!(at(&peers, "10.1.1.1"), ["all", "web"]);
        assert_eq!(at(&peers, "10.1.1.2"), ["all"]);
        assert_eq!(at(&peers, "fd00::1"), ["all", "web"]);
        assert_eq!(at(&peers, "192.0.2.1"), ["node"]);
        assert!(at(&peers, "::10.1.1.1").is_empty());
        assert_eq!(peers.look_up("8.8.8.8".parse().unwrap()), PeerId::OUTSIDE);
    }

    #[test]
    fn a_pod_that_joins_an_identity_needs_no_new_id() {
        let before = Peers::cut(vec![identity("web", &["10.1.1.1/32"])], Vec::new(), None);
        let after =
            Peers::cut(vec![identity("web", &["10.1.1.1/32", "10.1.1.2/32"])], Vec::new(), Some(&before));
        assert_eq!(before.count(), after.count());
        let peer = |address: &str| after.look_up(address.parse().unwrap());
        assert_eq!(peer("10.1.1.1"), peer("10.1.1.2"));
        assert_eq!(peer("10.1.1.1"), before.look_up("10.1.1.1".parse().unwrap()));
    }

    #[test]
    fn a_network_that_has_seen_many_sets_is_numbered_anew() {
        let mut peers = Peers::cut(Vec::new(), Vec::new(), None);
        for round in 0..2 * STALE as u32 {
            let block = Block::new(IpNet::new(std::net::Ipv4Addr::from(round << 8).into(), 24).unwrap(), &[]);
            peers = Peers::cut(Vec::new(), vec![block], Some(&peers));
        }
        assert!(peers.count() < 2 + STALE as u32 + 2);
        assert!(peers.generation() > 0);
    }
}
