//! The record of a packed queue: `QueueRegionPacked` and `DescStatePacked` of the vhost-user specification.
//!
//! Descriptors of a packed ring are written over when they are returned, so the record keeps copies. Its entries are a list
//! of free ones and lists of chains; each change exists twice, as begun and as done, so that one that a crash cut short is
//! undone or done. What the list looks like is kept here as well: the front-end can change the memory at any time.

use std::sync::atomic::Ordering::{Relaxed, Release};
use std::sync::atomic::fence;

use super::{InflightQueue, PACKED_ENTRY, PACKED_HEAD, VERSION};
use crate::memory::Words;
use crate::ring::{Lie, RawDescriptor};

/// Offsets in the region ...
const VERSION_AT: usize = 8;
const SIZE_AT: usize = 10;
const FREE: usize = 12;
const OLD_FREE: usize = 14;
const USED: usize = 16;
const OLD_USED: usize = 18;
const USED_WRAP: usize = 20;
const OLD_USED_WRAP: usize = 21;
/// ... and in an entry of it, which begins with whether its chain is in flight.
const NEXT: usize = 2;
const LAST: usize = 4;
const COUNT: usize = 6;
const COUNTER: usize = 8;
const ID: usize = 16;
const FLAGS: usize = 18;
const LEN: usize = 20;
const ADDRESS: usize = 24;

/// The wrap counter in a place's word.
const WRAP: u16 = 1 << 15;

/// A chain that was in flight.
pub(crate) struct Recorded {
    /// Its first entry in the record.
    pub(crate) entry: u16,
    /// The buffer's id.
    pub(crate) id: u16,
    /// Its descriptors.
    pub(crate) descriptors: Vec<RawDescriptor>,
}

/// What a record knew.
pub(crate) struct Resumed {
    pub(crate) record: PackedRecord,
    /// Where the next used descriptor goes: its index, and the wrap counter above it.
    pub(crate) used: u16,
    /// The chains in flight, oldest first.
    pub(crate) again: Vec<Recorded>,
}

/// The record of one packed queue.
pub(crate) struct PackedRecord {
    queue: InflightQueue,
    counter: u64,
    free: u16,
    /// What follows each entry in its list, and which is the last of the chain that begins with it.
    next: Vec<u16>,
    last: Vec<u16>,
    /// Chains between `begin` and `end`.
    begun: Vec<u16>,
    used: u16,
}

impl PackedRecord {
    /// Goes on with a record. An empty one begins where the ring stands, at `used`; `is_available` tells whether the
    /// descriptor at an index is still the guest's offer in a round with such a wrap counter.
    pub(crate) fn resume(
        queue: &InflightQueue,
        size: u16,
        used: u16,
        is_available: impl Fn(u16, bool) -> bool,
    ) -> Result<Resumed, Lie> {
        if !queue.packed || queue.size < size {
            return Err(Lie::Misplaced("record of descriptors in flight"));
        }
        let words = &queue.words;
        if words.load16(VERSION_AT, Relaxed) == 0 {
            begin_anew(words, queue.size, used);
        }
        let (index, wrap) = (words.load16(OLD_USED, Relaxed), words.load8(OLD_USED_WRAP, Relaxed) != 0);
        if index >= size {
            return Err(Lie::Inflight(index));
        }
        // A batch that was cut short reached the guest if its first descriptor did, which is written last.
        let cut_short =
            words.load16(USED, Relaxed) != index || (words.load8(USED_WRAP, Relaxed) != 0) != wrap;
        if cut_short && !is_available(index, wrap) {
            settle(words, OLD_FREE, FREE);
        } else {
            settle(words, FREE, OLD_FREE);
        }
        let used = words.load16(USED, Relaxed) | if words.load8(USED_WRAP, Relaxed) != 0 { WRAP } else { 0 };
        if used & !WRAP >= size {
            return Err(Lie::Inflight(used & !WRAP));
        }
        let mut record = PackedRecord {
            queue: queue.clone(),
            counter: 0,
            free: words.load16(FREE, Relaxed),
            next: (0..queue.size).map(|entry| words.load16(at(entry) + NEXT, Relaxed)).collect(),
            last: (0..queue.size).map(|entry| words.load16(at(entry) + LAST, Relaxed)).collect(),
            begun: Vec::with_capacity(crate::ring::CHAINS),
            used,
        };
        let again = record.chains_in_flight(size)?;
        Ok(Resumed { record, used, again })
    }

    /// The chains in flight, oldest first; every entry must be in one list only.
    fn chains_in_flight(&mut self, size: u16) -> Result<Vec<Recorded>, Lie> {
        let words = self.queue.words;
        let mut met = vec![false; usize::from(self.queue.size)];
        let mut meet = |entry: u16| match met.get_mut(usize::from(entry)) {
            Some(met @ false) => {
                *met = true;
                Ok(())
            }
            _ => Err(Lie::Inflight(entry)),
        };
        let in_flight = |entry: u16| words.load8(at(entry), Relaxed) == 1;
        let mut heads = Vec::new();
        let mut free = self.free;
        // The free list ends past the last entry, or where a full record's chains begin.
        while free < self.queue.size && meet(free).is_ok() {
            words.store8(at(free), 0, Relaxed);
            free = self.next[usize::from(free)];
        }
        for entry in (0..self.queue.size).filter(|&entry| in_flight(entry)) {
            heads.push((words.load64(at(entry) + COUNTER, Relaxed), entry));
        }
        heads.sort_unstable();
        self.counter = heads.last().map_or(0, |(counter, _)| counter.wrapping_add(1));
        let mut chains = Vec::new();
        for (_, head) in heads {
            let count = words.load16(at(head) + COUNT, Relaxed);
            if count == 0 || count > size {
                return Err(Lie::Inflight(head));
            }
            let (mut entry, mut descriptors) = (head, Vec::new());
            for left in (0..count).rev() {
                meet(entry)?;
                descriptors.push(self.descriptor(entry));
                if left > 0 {
                    entry = self.next[usize::from(entry)];
                }
            }
            self.last[usize::from(head)] = entry;
            chains.push(Recorded { entry: head, id: words.load16(at(entry) + ID, Relaxed), descriptors });
        }
        Ok(chains)
    }

    fn descriptor(&self, entry: u16) -> RawDescriptor {
        let words = &self.queue.words;
        let rest = u64::from(words.load32(at(entry) + LEN, Relaxed))
            | u64::from(words.load16(at(entry) + ID, Relaxed)) << 32
            | u64::from(words.load16(at(entry) + FLAGS, Relaxed)) << 48;
        RawDescriptor { address: words.load64(at(entry) + ADDRESS, Relaxed), rest }
    }

    /// Notes a chain as in flight; returns its first entry.
    #[cold]
    pub(crate) fn take(&mut self, descriptors: impl Iterator<Item = RawDescriptor>) -> u16 {
        let words = self.queue.words;
        let head = self.free;
        let (mut last, mut count) = (head, 0u16);
        for raw in descriptors {
            // As many entries as the ring has, of which none is in two chains: there is always a free one.
            let entry = self.free;
            if entry >= self.queue.size {
                break;
            }
            words.store64(at(entry) + ADDRESS, raw.address, Relaxed);
            words.store32(at(entry) + LEN, raw.rest as u32, Relaxed);
            words.store16(at(entry) + ID, (raw.rest >> 32) as u16, Relaxed);
            words.store16(at(entry) + FLAGS, (raw.rest >> 48) as u16, Relaxed);
            (last, count) = (entry, count + 1);
            self.free = self.next[usize::from(entry)];
        }
        if count > 0 {
            words.store16(at(head) + LAST, last, Relaxed);
            words.store16(at(head) + COUNT, count, Relaxed);
            words.store64(at(head) + COUNTER, self.counter, Relaxed);
            words.store8(at(head), 1, Relaxed);
            words.store16(FREE, self.free, Relaxed);
            words.store16(OLD_FREE, self.free, Relaxed);
            self.last[usize::from(head)] = last;
            self.counter = self.counter.wrapping_add(1);
        }
        head
    }

    /// Frees the entries of a chain that the guest is about to get back.
    #[cold]
    pub(crate) fn give(&mut self, head: u16) {
        let Some(&last) = self.last.get(usize::from(head)) else { return };
        self.next[usize::from(last)] = self.free;
        self.queue.words.store16(at(last) + NEXT, self.free, Relaxed);
        self.free = head;
        self.begun.push(head);
    }

    /// Notes where the ring will stand when they are back: at `used`, an index with the wrap counter above it.
    #[cold]
    pub(crate) fn begin(&mut self, used: u16) {
        let words = &self.queue.words;
        words.store16(FREE, self.free, Relaxed);
        words.store16(USED, used & !WRAP, Relaxed);
        words.store8(USED_WRAP, u8::from(used & WRAP != 0), Relaxed);
        self.used = used;
    }

    /// Notes that they are back.
    #[cold]
    pub(crate) fn end(&mut self) {
        for &head in &self.begun {
            self.queue.words.store8(at(head), 0, Relaxed);
        }
        self.begun.clear();
        fence(Release);
        settle(&self.queue.words, OLD_FREE, FREE);
    }
}

/// Makes what was begun done (`OLD_FREE` from `FREE`), or undoes it (the other way round).
fn settle(words: &Words, to: usize, from: usize) {
    // The three pairs follow each other in the same order, the last of them bytes.
    words.store16(to, words.load16(from, Relaxed), Relaxed);
    let (to, from) = if to == OLD_FREE { (OLD_USED, USED) } else { (USED, OLD_USED) };
    words.store16(to, words.load16(from, Relaxed), Relaxed);
    let (to, from) = if to == OLD_USED { (OLD_USED_WRAP, USED_WRAP) } else { (USED_WRAP, OLD_USED_WRAP) };
    words.store8(to, words.load8(from, Relaxed), Relaxed);
}

/// An empty record: all entries in the free list.
fn begin_anew(words: &Words, size: u16, used: u16) {
    for entry in 0..size {
        words.store8(at(entry), 0, Relaxed);
        words.store16(at(entry) + NEXT, entry + 1, Relaxed);
    }
    words.store16(SIZE_AT, size, Relaxed);
    words.store16(FREE, 0, Relaxed);
    words.store16(USED, used & !WRAP, Relaxed);
    words.store8(USED_WRAP, u8::from(used & WRAP != 0), Relaxed);
    settle(words, OLD_FREE, FREE);
    fence(Release);
    words.store16(VERSION_AT, VERSION, Relaxed);
}

/// Where an entry lies, which is less than the queue's size.
fn at(entry: u16) -> usize {
    PACKED_HEAD + usize::from(entry) * PACKED_ENTRY
}

#[cfg(test)]
mod tests {
    use super::super::Inflight;
    use super::*;

    /// A descriptor that tells its number.
    fn descriptor(number: u64) -> RawDescriptor {
        RawDescriptor { address: number << 12, rest: 64 | number << 32 }
    }

    fn numbers(again: &[Recorded]) -> Vec<Vec<u64>> {
        again.iter().map(|chain| chain.descriptors.iter().map(|raw| raw.address >> 12).collect()).collect()
    }

    #[test]
    fn a_batch_that_was_cut_short_anywhere_comes_again_or_is_done_as_a_whole() {
        // How far a process comes before it ends: so many chains taken, so many given, begun, ended.
        for steps in 0..=8 {
            let (inflight, _file) = Inflight::create(1, 16, true).unwrap();
            let queue = inflight.queue(0).unwrap();
            let start = 14 | WRAP;
            let mut record = PackedRecord::resume(&queue, 16, start, |_, _| true).ok().unwrap().record;
            // An earlier batch, so that the free list is not in order any more.
            let heads = [
                record.take([descriptor(90), descriptor(91)].into_iter()),
                record.take([descriptor(92)].into_iter()),
            ];
            heads.into_iter().for_each(|head| record.give(head));
            record.begin(1);
            record.end();
            let batch: [&[u64]; 3] = [&[1, 2], &[3], &[4, 5, 6]];
            let mut heads = Vec::new();
            for step in 0..steps {
                match step {
                    0..3 => heads.push(record.take(batch[step].iter().map(|&number| descriptor(number)))),
                    3..6 => record.give(heads[step - 3]),
                    6 => record.begin(7),
                    _ => record.end(),
                }
            }
            // The guest has the batch only if it was begun; whether it has, the ring tells.
            for published in [false, true] {
                if published && steps < 7 || !published && steps == 8 {
                    continue;
                }
                let copy = Inflight::create(1, 16, true).unwrap().0.queue(0).unwrap();
                for at in 0..PACKED_HEAD + 16 * PACKED_ENTRY {
                    copy.words.store8(at, queue.words.load8(at, Relaxed), Relaxed);
                }
                let resumed = PackedRecord::resume(&copy, 16, 0, |_, _| !published).ok().unwrap();
                let expected = if published { 0 } else { steps.min(3) };
                assert_eq!(
                    numbers(&resumed.again),
                    batch[..expected],
                    "{steps} steps, published: {published}"
                );
                assert_eq!(resumed.used, if published { 7 } else { 1 });
            }
        }
    }
}
