//! Maglev hashing: a table that spreads evenly and hardly changes when a backend comes or goes (Eisenbud et al., NSDI 2016,
//! section 3.4).
//!
//! Every backend has its own permutation of the table's places. In turns, each takes the next place of its permutation
//! that is still free, until none is. A backend of less weight sits out turns in proportion. The table follows from the
//! set of backends alone, so that all nodes have the same one.

use super::hash::Hash;

/// The sizes of tables: the largest primes below powers of two, so that sizes change seldom as backends come and go.
const SIZES: [usize; 13] =
    [251, 509, 1021, 2039, 4093, 8191, 16_381, 32_749, 65_521, 131_071, 262_139, 524_287, 1_048_573];
/// Places for each backend, at least: shares then differ by about one in a hundred.
const PLACES_EACH: usize = 100;
/// How far weights that differ may stretch a table beyond that.
const STRETCH: usize = 10;

/// A backend that takes part.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate {
    /// What its permutation follows from.
    pub(super) identity: u64,
    /// Its share; not zero.
    pub(super) weight: u32,
    /// What the table answers.
    pub(super) member: u16,
}

/// A filled table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Maglev {
    /// Members up to 255.
    Narrow(Box<[u8]>),
    /// Members up to 65534.
    Wide(Box<[u16]>),
}

impl Default for Maglev {
    fn default() -> Self {
        Maglev::Narrow(Box::default())
    }
}

impl Maglev {
    /// Fills a table for these candidates; the order that they come in does not matter.
    pub(super) fn fill(mut candidates: Vec<Candidate>) -> Maglev {
        candidates.sort_unstable_by_key(|candidate| candidate.identity);
        let places = fill(&candidates, size_for(&candidates));
        if candidates.iter().all(|candidate| candidate.member <= u16::from(u8::MAX)) {
            Maglev::Narrow(places.iter().map(|member| *member as u8).collect())
        } else {
            Maglev::Wide(places.into())
        }
    }

    /// Whether there is no backend.
    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.size() == 0
    }

    /// The member that a hash leads to; the table is not empty.
    #[inline]
    pub(super) fn pick(&self, hash: u64) -> u16 {
        let place = ((u128::from(hash) * self.size() as u128) >> 64) as usize;
        match self {
            Maglev::Narrow(places) => places[place].into(),
            Maglev::Wide(places) => places[place],
        }
    }

    #[inline]
    fn size(&self) -> usize {
        match self {
            Maglev::Narrow(places) => places.len(),
            Maglev::Wide(places) => places.len(),
        }
    }
}

/// The table's size: one place for one backend, else a prime.
fn size_for(candidates: &[Candidate]) -> usize {
    let count = candidates.len();
    if count < 2 {
        return count;
    }
    let lightest = candidates.iter().map(|candidate| u64::from(candidate.weight)).min().unwrap_or(1);
    let whole: u64 = candidates.iter().map(|candidate| u64::from(candidate.weight)).sum();
    let shares = (whole.div_ceil(lightest) as usize).clamp(count, count * STRETCH);
    let enough = SIZES.iter().find(|size| **size >= shares * PLACES_EACH);
    *enough.unwrap_or(&SIZES[SIZES.len() - 1])
}

/// Where a candidate is in its permutation of the places.
struct Walk {
    next: usize,
    step: usize,
    /// Turns that it has earned, in units of the heaviest weight.
    earned: u64,
}

fn fill(candidates: &[Candidate], size: usize) -> Vec<u16> {
    const FREE: u16 = u16::MAX;
    let mut places = vec![FREE; size];
    if size < 2 {
        return candidates.iter().map(|candidate| candidate.member).collect();
    }
    let heaviest = candidates.iter().map(|candidate| u64::from(candidate.weight)).max().unwrap_or(1);
    let mut walks: Vec<Walk> = candidates
        .iter()
        .map(|candidate| {
            let draw = |family| Hash::new(family).word(candidate.identity).finish() as usize;
            Walk { next: draw(1) % size, step: draw(2) % (size - 1) + 1, earned: 0 }
        })
        .collect();
    let mut free = size;
    loop {
        for (candidate, walk) in candidates.iter().zip(&mut walks) {
            walk.earned += u64::from(candidate.weight);
            if walk.earned < heaviest {
                continue;
            }
            walk.earned -= heaviest;
            while places[walk.next] != FREE {
                walk.next = stepped(walk, size);
            }
            places[walk.next] = candidate.member;
            free -= 1;
            if free == 0 {
                return places;
            }
        }
    }
}

#[inline]
fn stepped(walk: &Walk, size: usize) -> usize {
    let next = walk.next + walk.step;
    if next >= size { next - size } else { next }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidates(members: impl Iterator<Item = u16>) -> Vec<Candidate> {
        members
            .map(|member| Candidate {
                identity: Hash::new(9).word(u64::from(member)).finish(),
                weight: 1,
                member,
            })
            .collect()
    }

    fn places(maglev: &Maglev) -> Vec<u16> {
        match maglev {
            Maglev::Narrow(places) => places.iter().map(|place| u16::from(*place)).collect(),
            Maglev::Wide(places) => places.to_vec(),
        }
    }

    fn shares(maglev: &Maglev, members: usize) -> Vec<usize> {
        let mut shares = vec![0; members];
        places(maglev).into_iter().for_each(|member| shares[usize::from(member)] += 1);
        shares
    }

    #[test]
    fn sizes_are_primes() {
        let is_prime = |n: usize| (2..).take_while(|d| d * d <= n).all(|d| !n.is_multiple_of(d));
        assert!(SIZES.into_iter().all(is_prime) && SIZES.is_sorted());
    }

    #[test]
    fn shares_are_even_within_a_few_in_a_hundred() {
        for count in [2, 3, 10, 100, 1000] {
            let maglev = Maglev::fill(candidates(0..count));
            let shares = shares(&maglev, count.into());
            let (least, most) = (shares.iter().min().unwrap(), shares.iter().max().unwrap());
            // Every turn gives each one place, so only the last turn can differ.
            assert!(most - least <= 1, "{count} backends: {least} to {most}");
        }
    }

    #[test]
    fn a_backend_that_goes_moves_hardly_any_place_of_the_others() {
        for count in [5u16, 10, 100, 600] {
            let before = Maglev::fill(candidates(0..count));
            let mut moved = 0;
            let mut kept = 0;
            for gone in (0..count).step_by(usize::from(count / 10).max(1)) {
                let after = Maglev::fill(candidates((0..count).filter(|member| *member != gone)));
                // Another size would be another table: the steps between sizes are the price of small tables.
                assert_eq!(after.size(), before.size());
                for (old, new) in places(&before).into_iter().zip(places(&after)) {
                    if old != gone {
                        kept += 1;
                        moved += usize::from(old != new);
                    }
                }
            }
            // The paper's figure 12 has 2 to 4 in a hundred for tables of 100 places a backend.
            assert!(moved * 100 <= kept * 8, "{count} backends: {moved} of {kept} moved");
        }
    }

    #[test]
    fn weights_are_shares() {
        let mut weighted = candidates(0..3);
        (weighted[0].weight, weighted[1].weight, weighted[2].weight) = (1, 2, 97);
        let maglev = Maglev::fill(weighted);
        let shares = shares(&maglev, 3);
        let whole = shares.iter().sum::<usize>() as f64;
        for (share, weight) in shares.iter().zip([0.01, 0.02, 0.97]) {
            let share = *share as f64 / whole;
            assert!((share / weight - 1.0).abs() < 0.05, "{share} for {weight}");
        }
    }

    #[test]
    fn the_order_of_the_backends_does_not_matter() {
        assert_eq!(Maglev::fill(candidates(0..20)), Maglev::fill(candidates((0..20).rev())));
    }

    #[test]
    fn one_backend_needs_one_place_and_many_need_wide_ones() {
        assert_eq!(places(&Maglev::fill(candidates(7..8))), [7]);
        assert!(Maglev::fill(Vec::new()).is_empty());
        assert!(matches!(Maglev::fill(candidates(0..300)), Maglev::Wide(_)));
        let maglev = Maglev::fill(candidates(0..256));
        assert_eq!(
            (maglev.pick(0), maglev.pick(u64::MAX)),
            (places(&maglev)[0], *places(&maglev).last().unwrap())
        );
    }
}
