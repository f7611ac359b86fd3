//! The record of a split queue: `QueueRegionSplit` and `DescStateSplit` of the vhost-user specification.
//!
//! A chain is noted when it is about to be returned, which is also when it is taken: what we only looked at is still the
//! guest's, and nothing is in flight between two bursts.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::fence;

use super::{InflightQueue, SPLIT_ENTRY, SPLIT_HEAD, VERSION};
use crate::memory::Words;
use crate::ring::Lie;

/// Offsets in the region ...
const VERSION_AT: usize = 8;
const SIZE_AT: usize = 10;
const LAST_BATCH_HEAD: usize = 12;
const USED_INDEX: usize = 14;
/// ... and in an entry of it, which begins with whether its chain is in flight.
const NEXT: usize = 6;
const COUNTER: usize = 8;

/// The record of one split queue.
pub(crate) struct SplitRecord {
    queue: InflightQueue,
    /// The counter of the next chain, by which they are put in order again.
    counter: u64,
    /// The head that was returned last.
    last: u16,
}

impl SplitRecord {
    /// Goes on with a record where the used ring stands at `used`; returns the heads in flight, oldest first.
    pub(crate) fn resume(
        queue: &InflightQueue,
        size: u16,
        used: u16,
    ) -> Result<(SplitRecord, Vec<u16>), Lie> {
        if queue.packed || queue.size < size {
            return Err(Lie::Misplaced("record of descriptors in flight"));
        }
        let mut record = SplitRecord { queue: queue.clone(), counter: 0, last: 0 };
        let words = &queue.words;
        if words.load16(VERSION_AT, Relaxed) == 0 {
            words.store16(VERSION_AT, VERSION, Relaxed);
            words.store16(SIZE_AT, queue.size, Relaxed);
            words.store16(USED_INDEX, used, Relaxed);
            return Ok((record, Vec::new()));
        }
        // The last batch reached the used ring, but its chains may still be noted as in flight.
        let done = used.wrapping_sub(words.load16(USED_INDEX, Relaxed));
        record.last = words.load16(LAST_BATCH_HEAD, Relaxed);
        let mut head = record.last;
        for _ in 0..done {
            if head >= size {
                return Err(Lie::Inflight(head));
            }
            words.store8(at(head), 0, Relaxed);
            head = words.load16(at(head) + NEXT, Relaxed);
        }
        words.store16(USED_INDEX, used, Relaxed);
        let mut heads: Vec<(u64, u16)> = (0..size)
            .filter(|&head| words.load8(at(head), Relaxed) == 1)
            .map(|head| (words.load64(at(head) + COUNTER, Relaxed), head))
            .collect();
        heads.sort_unstable();
        record.counter = heads.last().map_or(0, |(counter, _)| counter.wrapping_add(1));
        Ok((record, heads.into_iter().map(|(_, head)| head).collect()))
    }

    fn words(&self) -> &Words {
        &self.queue.words
    }

    /// Notes chains that the guest is about to get back.
    #[cold]
    pub(crate) fn begin(&mut self, heads: impl Iterator<Item = u16>) {
        for head in heads {
            self.words().store64(at(head) + COUNTER, self.counter, Relaxed);
            self.counter = self.counter.wrapping_add(1);
            self.words().store16(at(head) + NEXT, self.last, Relaxed);
            self.words().store8(at(head), 1, Relaxed);
            self.last = head;
        }
        self.words().store16(LAST_BATCH_HEAD, self.last, Relaxed);
    }

    /// Notes that the guest has them, with its used index at `used`.
    #[cold]
    pub(crate) fn end(&mut self, heads: impl Iterator<Item = u16>, used: u16) {
        for head in heads {
            self.words().store8(at(head), 0, Relaxed);
        }
        // Whoever finds the new index here must not find chains in flight.
        fence(std::sync::atomic::Ordering::Release);
        self.words().store16(USED_INDEX, used, Relaxed);
    }
}

/// Where the entry of a head lies, which is less than the queue's size.
fn at(head: u16) -> usize {
    SPLIT_HEAD + usize::from(head) * SPLIT_ENTRY
}
