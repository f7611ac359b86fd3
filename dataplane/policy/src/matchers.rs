//! Which rules look at which peers, and the walk over the peers that differ.

use ipnet::IpNet;

use crate::peers::{Block, PeerSet, Peers};
use crate::rules::{Peer, Rule};

/// What rules can ask of a peer: any, world, or one of the atoms that they name. The numbers below are places.
const ANY: usize = 0;
const WORLD: usize = 1;
const FIRST_ATOM: usize = 2;

/// An atom that no rule names.
const UNNAMED: u32 = u32::MAX;

/// The rules by what they ask of the peer.
#[derive(Debug)]
pub(crate) struct Matchers<'a> {
    peers: &'a Peers,
    /// By matcher: the numbers of the rules.
    pub(crate) rules: Vec<Vec<u32>>,
    /// By matcher, from the first atom on.
    atoms: Vec<u32>,
    /// By atom: its matcher.
    of_atom: Vec<u32>,
}

/// Which matchers a table is made of, by place.
pub(crate) type Chosen = Vec<bool>;

/// How a set differs, for the chosen matchers, from the one that it grew from.
pub(crate) enum Delta {
    /// It is in more.
    More(Vec<usize>),
    /// It is in less, and perhaps in more; these are all it is in.
    Other(Vec<usize>),
}

impl<'a> Matchers<'a> {
    pub(crate) fn new(peers: &'a Peers, rules: &[&Rule]) -> Matchers<'a> {
        let mut matchers = Matchers {
            peers,
            rules: vec![Vec::new(); FIRST_ATOM],
            atoms: Vec::new(),
            of_atom: vec![UNNAMED; peers.atom_count()],
        };
        for (number, rule) in rules.iter().enumerate() {
            if rule.peers.is_empty() {
                matchers.rules[ANY].push(number as u32);
            }
            for peer in &rule.peers {
                let matcher = matchers.of_peer(peer);
                matchers.rules[matcher].push(number as u32);
            }
        }
        matchers
    }

    fn of_peer(&mut self, peer: &Peer) -> usize {
        let atom = match peer {
            Peer::World => return WORLD,
            Peer::Identity(name) => self.peers.identity(name),
            Peer::Prefix { prefix, except } => self.block(prefix, except),
        };
        let atom = atom.expect("the space is cut along the peers of every policy that is compiled");
        let known = &mut self.of_atom[atom as usize];
        if *known == UNNAMED {
            *known = self.rules.len() as u32;
            self.rules.push(Vec::new());
            self.atoms.push(atom);
        }
        *known as usize
    }

    fn block(&self, prefix: &IpNet, except: &[IpNet]) -> Option<u32> {
        self.peers.block(Block::new(*prefix, except))
    }

    /// Every matcher.
    pub(crate) fn all(&self) -> Chosen {
        vec![true; self.rules.len()]
    }

    /// What every peer is in, among the chosen.
    pub(crate) fn everywhere(&self, chosen: &Chosen) -> Vec<usize> {
        if chosen[ANY] { vec![ANY] } else { Vec::new() }
    }

    /// What an address outside all sets is in.
    pub(crate) fn outside(&self, chosen: &Chosen) -> Vec<usize> {
        (ANY..=WORLD).filter(|matcher| chosen[*matcher]).collect()
    }

    /// In how many sets each matcher is, about.
    pub(crate) fn breadths(&self) -> Vec<u64> {
        let tree = self.peers.tree();
        let all = tree.order.len() as u64;
        let of_atom = |atom: &u32| {
            let grown = tree.touching.get(*atom as usize).into_iter().flatten().filter(|place| {
                let set = tree.order[**place as usize];
                self.peers.sets()[set as usize].added.contains(atom)
            });
            grown.map(|place| u64::from(tree.end[*place as usize] - place)).sum()
        };
        [all, all].into_iter().chain(self.atoms.iter().map(of_atom)).collect()
    }

    /// Walks the sets in which some chosen matcher makes a difference, each after the one that it grew from.
    ///
    /// `root` is the state of the empty set; `step` makes the state of a set that differs from the state of the one that
    /// it grew from, or ends the walk; `visit` sees each set with its state.
    pub(crate) fn walk<S: Clone>(
        &self,
        chosen: &Chosen,
        root: S,
        mut step: impl FnMut(&S, Delta) -> Option<S>,
        mut visit: impl FnMut(u32, &S),
    ) {
        let tree = self.peers.tree();
        let mut around: Vec<(u32, S)> = vec![(u32::MAX, root)];
        for (from, to) in self.regions(chosen) {
            for place in from..to {
                while around.last().is_some_and(|(end, _)| *end <= place) {
                    around.pop();
                }
                let set = tree.order[place as usize];
                let Some((_, parent)) = around.last() else { return };
                if let Some(delta) = self.delta(chosen, set) {
                    let Some(state) = step(parent, delta) else { return };
                    visit(set, &state);
                    around.push((tree.end[place as usize], state));
                } else {
                    visit(set, parent);
                }
            }
        }
    }

    /// The stretches of the tree below sets that a chosen matcher looks at, in order and apart.
    fn regions(&self, chosen: &Chosen) -> Vec<(u32, u32)> {
        let tree = self.peers.tree();
        if chosen[WORLD] && !self.rules[WORLD].is_empty() {
            return vec![(1, tree.order.len() as u32)];
        }
        let mut touched: Vec<u32> = self
            .atoms
            .iter()
            .enumerate()
            .filter(|(i, _)| chosen[FIRST_ATOM + i])
            .filter_map(|(_, atom)| tree.touching.get(*atom as usize))
            .flatten()
            .copied()
            .collect();
        touched.sort_unstable();
        let mut regions: Vec<(u32, u32)> = Vec::new();
        for place in touched {
            if regions.last().is_none_or(|(_, end)| *end <= place) {
                regions.push((place, tree.end[place as usize]));
            }
        }
        regions
    }

    fn delta(&self, chosen: &Chosen, set: u32) -> Option<Delta> {
        let here: &PeerSet = &self.peers.sets()[set as usize];
        let parent = &self.peers.sets()[here.parent as usize];
        let left_world = chosen[WORLD] && here.known && !parent.known && !self.rules[WORLD].is_empty();
        if left_world || self.matchers(chosen, &here.removed).next().is_some() {
            let mut all = self.everywhere(chosen);
            if chosen[WORLD] && !here.known {
                all.push(WORLD);
            }
            all.extend(self.matchers(chosen, &self.peers.atoms_of(set)));
            return Some(Delta::Other(all));
        }
        let more: Vec<usize> = self.matchers(chosen, &here.added).collect();
        (!more.is_empty()).then_some(Delta::More(more))
    }

    fn matchers<'b>(&'b self, chosen: &'b Chosen, atoms: &'b [u32]) -> impl Iterator<Item = usize> + 'b {
        atoms
            .iter()
            .map(|atom| self.of_atom[*atom as usize])
            .filter(|matcher| *matcher != UNNAMED && chosen[*matcher as usize])
            .map(|matcher| matcher as usize)
    }

    /// The atoms that rules name, sorted, and whether any names world.
    pub(crate) fn named(&self) -> (Vec<u32>, bool) {
        let mut atoms = self.atoms.clone();
        atoms.sort_unstable();
        (atoms, !self.rules[WORLD].is_empty())
    }
}
