//! Where a tuple's entry is: buckets of one cache line, read without locks.
//!
//! ```text
//!  bucket: [ header ][ slot slot ][ slot slot ] ...  14 slots      slot: tag 7 | direction 1 | entry + 1, 24 bits
//!          lock 1 | deepest 15 | spilled 48
//! ```
//!
//! A tuple is at home in one bucket; when that is full, its slot goes to the next of a few others, and the home bucket
//! counts it, so that look-ups know how far to go. Slots never move while their entry lives: a reader cannot miss one.
//! The home bucket's lock makes "not there yet, so put it there" one step; taking a slot out needs no lock.

use std::io;

use super::tuple::Direction;
use super::words::{AtomicU64, Lines, Ordering, lines, pause, prefetch};

/// Slots in a bucket.
const SLOTS: usize = 14;
/// Buckets that a tuple may be in. With the index [`LOAD`] per cent full one tuple in thirty-six is not at home, and of
/// two million none is further away than seven buckets.
const PROBES: u32 = 16;
/// Slots in use per hundred when the table is full: 12.2 bytes a connection.
const LOAD: usize = 75;
/// Times that a bucket's lock is tried for: some tens of microseconds, then the packet is given up, not the worker. Only
/// a holder that the kernel took off its core holds one for so long.
#[cfg(not(penstock_loom))]
const SPINS: u32 = 1000;
#[cfg(penstock_loom)]
const SPINS: u32 = 4;

const LOCKED: u64 = 1 << 63;
const DEEPEST: u32 = 48;
const SPILLED: u64 = (1 << DEEPEST) - 1;

/// Entries that an index can name.
pub(crate) const MOST_ENTRIES: u32 = (1 << 24) - 2;

/// A tuple's hash and all that follows from it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    home: u32,
    stride: u32,
    tag: u32,
}

impl Place {
    pub(crate) const fn home(self) -> u32 {
        self.home
    }
}

/// What a slot names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Slot(u32);

impl Slot {
    const EMPTY: Slot = Slot(0);

    fn new(place: Place, direction: Direction, entry: u32) -> Slot {
        Slot(place.tag << 25 | (direction as u32) << 24 | (entry + 1))
    }

    const fn has_tag(self, tag: u32) -> bool {
        self.0 >> 25 == tag && self.0 != 0
    }

    pub(crate) const fn entry(self) -> u32 {
        (self.0 & 0xff_ffff) - 1
    }

    pub(crate) const fn direction(self) -> Direction {
        if self.0 >> 24 & 1 == 0 { Direction::Original } else { Direction::Reply }
    }
}

/// The index of a table.
pub(crate) struct Index {
    lines: Lines,
    buckets: u32,
}

/// A bucket's lock, held.
pub(crate) struct Guard<'a> {
    header: &'a AtomicU64,
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        self.header.fetch_and(!LOCKED, Ordering::Release);
    }
}

impl Index {
    pub(crate) fn for_entries(entries: u32) -> io::Result<Index> {
        let buckets = next_prime((2 * entries as usize * 100).div_ceil(LOAD * SLOTS));
        Ok(Index { lines: lines(buckets)?, buckets: buckets as u32 })
    }

    pub(crate) fn bytes(&self) -> usize {
        self.buckets as usize * 64
    }

    #[inline]
    pub(crate) fn place(&self, hash: u64) -> Place {
        let scale = |bits: u64, to: u32| (((bits & 0xffff_ffff) * u64::from(to)) >> 32) as u32;
        let home = scale(hash, self.buckets);
        let stride = scale(hash >> 29, self.buckets.saturating_sub(1)) + 1;
        Place { home, stride, tag: (hash >> 57) as u32 }
    }

    /// Brings a place's home bucket near.
    #[inline(always)]
    pub(crate) fn touch(&self, place: Place) {
        prefetch(&self.lines, place.home as usize);
    }

    /// Locks a place's home bucket; `None` if another writer would not let go of it.
    pub(crate) fn lock(&self, home: u32) -> Option<Guard<'_>> {
        let header = &self.lines[home as usize].0[0];
        for _ in 0..SPINS {
            if header.fetch_or(LOCKED, Ordering::Acquire) & LOCKED == 0 {
                return Some(Guard { header });
            }
            pause();
        }
        None
    }

    /// Gives `look` every slot that may be a tuple's, until it finds what it looks for.
    #[inline]
    pub(crate) fn find<T>(&self, place: Place, mut look: impl FnMut(Slot) -> Option<T>) -> Option<T> {
        let header = self.lines[place.home as usize].0[0].load(Ordering::Acquire);
        if let Some(found) = self.find_in(place.home, place.tag, &mut look) {
            return Some(found);
        }
        if header & SPILLED == 0 {
            return None;
        }
        let deepest = (header & !LOCKED) >> DEEPEST;
        (1..=deepest as u32).find_map(|probe| self.find_in(self.probe(place, probe), place.tag, &mut look))
    }

    #[inline]
    fn find_in<T>(&self, bucket: u32, tag: u32, look: &mut impl FnMut(Slot) -> Option<T>) -> Option<T> {
        for pair in &self.lines[bucket as usize].0[1..] {
            let pair = pair.load(Ordering::Acquire);
            if pair == 0 {
                continue;
            }
            for slot in [Slot(pair as u32), Slot((pair >> 32) as u32)] {
                if slot.has_tag(tag)
                    && let Some(found) = look(slot)
                {
                    return Some(found);
                }
            }
        }
        None
    }

    /// Puts an entry's slot for a tuple in; false if every bucket that it may be in is full. Its home must be locked, or
    /// nobody else may be there.
    pub(crate) fn insert(&self, place: Place, direction: Direction, entry: u32) -> bool {
        let slot = Slot::new(place, direction, entry);
        for probe in 0..PROBES.min(self.buckets) {
            if self.exchange(self.probe(place, probe), Slot::EMPTY, slot) {
                if probe > 0 {
                    self.note_spilled(place, probe);
                }
                return true;
            }
        }
        false
    }

    /// Takes an entry's slot for a tuple out; false if it is not there.
    pub(crate) fn remove(&self, place: Place, direction: Direction, entry: u32) -> bool {
        let slot = Slot::new(place, direction, entry);
        for probe in 0..PROBES.min(self.buckets) {
            if self.exchange(self.probe(place, probe), slot, Slot::EMPTY) {
                if probe > 0 {
                    self.forget_spilled(place);
                }
                return true;
            }
        }
        false
    }

    fn probe(&self, place: Place, probe: u32) -> u32 {
        let bucket = u64::from(place.home) + u64::from(probe) * u64::from(place.stride);
        (bucket % u64::from(self.buckets)) as u32
    }

    /// Replaces the first slot of a bucket that is `old` by `new`.
    fn exchange(&self, bucket: u32, old: Slot, new: Slot) -> bool {
        for word in &self.lines[bucket as usize].0[1..] {
            let mut pair = word.load(Ordering::Acquire);
            // Others may change the word's other slot meanwhile; each round one of them gets further.
            while let Some(shift) = [0, 32].into_iter().find(|shift| (pair >> shift) as u32 == old.0) {
                let next = pair & !(0xffff_ffff << shift) | u64::from(new.0) << shift;
                match word.compare_exchange(pair, next, Ordering::AcqRel, Ordering::Acquire) {
                    Ok(_) => return true,
                    Err(current) => pair = current,
                }
            }
        }
        false
    }

    fn note_spilled(&self, place: Place, probe: u32) {
        self.change_header(place, |header| {
            let deepest = ((header & !LOCKED) >> DEEPEST).max(u64::from(probe));
            header & LOCKED | deepest << DEEPEST | ((header & SPILLED) + 1)
        });
    }

    fn forget_spilled(&self, place: Place) {
        self.change_header(place, |header| match header & SPILLED {
            0 | 1 => header & LOCKED,
            _ => header - 1,
        });
    }

    fn change_header(&self, place: Place, change: impl Fn(u64) -> u64) {
        let word = &self.lines[place.home as usize].0[0];
        let mut header = word.load(Ordering::Relaxed);
        while let Err(current) =
            word.compare_exchange(header, change(header), Ordering::AcqRel, Ordering::Relaxed)
        {
            header = current;
        }
    }
}

/// The first prime from `least` on: with so many buckets, steps of whatever stride come to every one.
fn next_prime(least: usize) -> usize {
    let is_prime = |number: &usize| (2..).take_while(|d| d * d <= *number).all(|d| !number.is_multiple_of(d));
    (least.max(2)..).find(is_prime).unwrap_or(least)
}

#[cfg(test)]
#[cfg(not(penstock_loom))]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::{HashMap, HashSet};

    /// Hashes that crowd into a few buckets, so that slots spill.
    fn hash(key: u16) -> u64 {
        u64::from(key % 3) << 28 | u64::from(key) << 57
    }

    fn found(index: &Index, key: u16, entry: u32) -> bool {
        index.find(index.place(hash(key)), |slot| (slot.entry() == entry).then_some(())).is_some()
    }

    proptest! {
        #[test]
        fn the_index_agrees_with_a_map_while_buckets_spill(steps in prop::collection::vec((0u16..300, any::<bool>()), 1..600)) {
            let index = Index::for_entries(150).unwrap();
            let mut map = HashMap::new();
            for (key, insert) in steps {
                let place = index.place(hash(key));
                let entry = u32::from(key);
                if insert && !map.contains_key(&key) {
                    if index.insert(place, Direction::Original, entry) {
                        map.insert(key, entry);
                    }
                } else if !insert {
                    prop_assert_eq!(index.remove(place, Direction::Original, entry), map.remove(&key).is_some());
                }
                prop_assert_eq!(found(&index, key, entry), map.contains_key(&key));
            }
            for (key, entry) in map {
                prop_assert!(found(&index, key, entry));
                prop_assert!(index.remove(index.place(hash(key)), Direction::Original, entry));
            }
            prop_assert!(index.lines.iter().all(|line| line.0.iter().all(|word| word.load(Ordering::Relaxed) == 0)));
        }
    }

    #[test]
    fn a_tuple_may_be_in_many_buckets_whatever_its_stride() {
        assert_eq!([0, 3, 4, 836, 1 << 16].map(next_prime), [2, 3, 5, 839, 65537]);
        for entries in [100, 4096, 5000] {
            let index = Index::for_entries(entries).unwrap();
            for stride in 1..index.buckets {
                let place = Place { home: 1, stride, tag: 0 };
                let buckets: HashSet<u32> = (0..PROBES).map(|probe| index.probe(place, probe)).collect();
                assert_eq!(buckets.len() as u32, PROBES.min(index.buckets));
            }
        }
    }

    #[test]
    fn a_full_index_takes_all_its_entries() {
        let index = Index::for_entries(100_000).unwrap();
        let mut dice = 7u64;
        let mut refused = 0;
        for entry in 0..100_000 {
            for direction in [Direction::Original, Direction::Reply] {
                dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let hash = crate::conntrack::tuple::fold(dice, 0x9e37_79b9_7f4a_7c15);
                refused += u32::from(!index.insert(index.place(hash), direction, entry));
            }
        }
        assert_eq!(refused, 0);
        assert!(index.bytes() <= 13 * 100_000, "{} bytes", index.bytes());
    }

    #[test]
    fn a_locked_bucket_is_given_up_after_a_while() {
        let index = Index::for_entries(10).unwrap();
        let held = index.lock(0).unwrap();
        assert!(index.lock(0).is_none());
        drop(held);
        assert!(index.lock(0).is_some());
    }
}
