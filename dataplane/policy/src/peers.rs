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
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::check::changed;
use crate::hash::NumberSet;
use crate::pieces::{Edge, EdgeKind, Pieces};
use crate::rules::{Identity, Shared};

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
pub(crate) struct Numbering {
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
    identities: Shared<Identity>,
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
        identities: Shared<Identity>,
        blocks: Vec<Block>,
        previous: Option<&Arc<Peers>>,
    ) -> Arc<Peers> {
        let nothing = Peers::default();
        let old = previous.map_or(&nothing, |previous| &**previous);
        if let Some(previous) = previous
            && old.identities == identities
            && old.blocks == blocks
        {
            return previous.clone();
        }
        let mut peers = old.recut(identities, blocks);
        let atoms = peers.identities.len() + peers.blocks.len();
        let numbers = &peers.numbering;
        if numbers.sets.len() > 2 * peers.pieces() + STALE || numbers.atoms.len() > 2 * atoms + STALE {
            let generation = peers.generation + 1;
            peers = Peers { generation, ..nothing.recut(peers.identities, peers.blocks) };
        }
        let same_numbers = Arc::ptr_eq(&old.numbering, &peers.numbering);
        peers.tree =
            if same_numbers { old.tree.clone() } else { Arc::new(SetTree::grow(&peers.numbering.sets)) };
        Arc::new(peers)
    }

    /// The peers of other identities and blocks, in the numbers of these; without a tree.
    fn recut(&self, identities: Shared<Identity>, blocks: Vec<Block>) -> Peers {
        let mut numbering = self.numbering.clone();
        let (fresh, gone) = changed(&identities, &self.identities);
        let gone_blocks = self.blocks.iter().filter(|block| blocks.binary_search(block).is_err());
        let gone: NumberSet<u32> = gone
            .iter()
            .map(|identity| Atom::Identity(identity.name.clone()))
            .chain(gone_blocks.cloned().map(Atom::Block))
            .filter_map(|atom| numbering.atom_ids.get(&atom).copied())
            .collect();
        let mut added = Vec::new();
        for identity in &identities[fresh] {
            let atom = atom_id(&mut numbering, Atom::Identity(identity.name.clone()));
            added.extend(identity.prefixes.iter().map(|prefix| Edge::new(*prefix, atom, EdgeKind::Identity)));
        }
        for block in blocks.iter().filter(|block| self.blocks.binary_search(block).is_err()) {
            let atom = atom_id(&mut numbering, Atom::Block(block.clone()));
            added.push(Edge::new(block.prefix, atom, EdgeKind::Block));
            added.extend(block.except.iter().map(|hole| Edge::new(*hole, atom, EdgeKind::Hole)));
        }
        let v4 = self.v4.recut(&gone, added.iter().filter(|edge| edge.v4), &mut numbering);
        let v6 = self.v6.recut(&gone, added.iter().filter(|edge| !edge.v4), &mut numbering);
        Peers { identities, blocks, numbering, generation: self.generation, v4, v6, tree: Arc::default() }
    }

    fn pieces(&self) -> usize {
        self.v4.pieces.len() + self.v6.pieces.len()
    }

    /// Every prefix of both families with its peer. An address that none matches is [`PeerId::OUTSIDE`].
    pub fn prefixes(&self) -> impl Iterator<Item = (IpNet, PeerId)> + '_ {
        let v4 = self.rows(true).map(|(bits, len, peer)| {
            (Ipv4Net::new_assert(Ipv4Addr::from((bits >> 96) as u32), len).into(), peer)
        });
        let v6 =
            self.rows(false).map(|(bits, len, peer)| (Ipv6Net::new_assert(bits.into(), len).into(), peer));
        v4.chain(v6)
    }

    /// Every prefix of a family with its peer, in order, outer ones first, as a longest-prefix table takes them: the address
    /// with its first bit the highest, and how many bits count.
    pub fn rows(&self, ipv4: bool) -> impl Iterator<Item = (u128, u8, PeerId)> + '_ {
        let family = if ipv4 { &self.v4 } else { &self.v6 };
        family.pieces.iter().map(|piece| (piece.bits, piece.len, PeerId(piece.set)))
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

impl Numbering {
    /// Whether any atom of `set` is an identity.
    pub(crate) fn knows(&self, set: u32) -> bool {
        self.sets[set as usize].known
    }

    /// Whether `atom` is in `set`.
    pub(crate) fn holds(&self, set: u32, atom: u32) -> bool {
        let mut at = set;
        while at != PeerId::OUTSIDE.0 {
            let here = &self.sets[at as usize];
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

pub(crate) fn set_id(numbering: &mut Arc<Numbering>, set: PeerSet) -> u32 {
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
        let peers = Peers::cut(identities.into(), Vec::new(), None);
        assert_eq!(at(&peers, "10.1.1.1"), ["all", "web"]);
        assert_eq!(at(&peers, "10.1.1.2"), ["all"]);
        assert_eq!(at(&peers, "fd00::1"), ["all", "web"]);
        assert_eq!(at(&peers, "192.0.2.1"), ["node"]);
        assert!(at(&peers, "::10.1.1.1").is_empty());
        assert_eq!(peers.look_up("8.8.8.8".parse().unwrap()), PeerId::OUTSIDE);
    }

    #[test]
    fn a_pod_that_joins_an_identity_needs_no_new_id() {
        let before = Peers::cut(vec![identity("web", &["10.1.1.1/32"])].into(), Vec::new(), None);
        let after = Peers::cut(
            vec![identity("web", &["10.1.1.1/32", "10.1.1.2/32"])].into(),
            Vec::new(),
            Some(&before),
        );
        assert_eq!(before.count(), after.count());
        let peer = |address: &str| after.look_up(address.parse().unwrap());
        assert_eq!(peer("10.1.1.1"), peer("10.1.1.2"));
        assert_eq!(peer("10.1.1.1"), before.look_up("10.1.1.1".parse().unwrap()));
    }

    #[test]
    fn a_network_that_has_seen_many_sets_is_numbered_anew() {
        let mut peers = Peers::cut(Shared::default(), Vec::new(), None);
        for round in 0..2 * STALE as u32 {
            let block = Block::new(IpNet::new(std::net::Ipv4Addr::from(round << 8).into(), 24).unwrap(), &[]);
            peers = Peers::cut(Shared::default(), vec![block], Some(&peers));
        }
        assert!(peers.count() < 2 + STALE as u32 + 2);
        assert!(peers.generation() > 0);
    }
}
