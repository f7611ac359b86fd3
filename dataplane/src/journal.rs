//! What workers tell people: rules that log, and things that ran out. The control thread has a journal too.
//!
//! ```text
//!  worker: limiter -> its own queue --full or too many: lost, counted--> told with the next entry
//!                          | woken
//!                          v
//!  control thread: names, sentences -> whoever watches
//! ```
//!
//! Only first packets of flows write here, so an entry may hold counted references: the worker's tables have them too, and
//! what it drops is never the last.

use std::cell::{Cell, RefCell};
use std::sync::Arc;

use crossbeam::queue::ArrayQueue;
use penstock_api::Fault;
use penstock_io::{Ticks, TicksPerSecond};
use penstock_policy::{DecisionId, Direction, Verdict};
use tokio::sync::Notify;

use crate::conntrack::Tuple;
use crate::conntrack::nat::Pool;
use crate::drop::Cause;
use crate::limiter::Limiter;
use crate::tables::{Endpoint, Network};

/// Entries that may wait for the control thread.
const ENTRIES: usize = 1024;
/// Matches of rules that a worker tells in a second, on average and at once.
const RULES_PER_SECOND: u64 = 1000;
/// Things that run out of which a worker remembers when it last told of them.
const SHORTAGES: usize = 16;

/// A worker's journal, as the control thread reads it.
pub struct Journal {
    entries: ArrayQueue<Entry>,
    wake: Arc<Notify>,
}

impl Journal {
    /// An empty journal; `wake` is notified of every entry.
    #[must_use]
    pub fn new(wake: Arc<Notify>) -> Journal {
        Journal { entries: ArrayQueue::new(ENTRIES), wake }
    }

    /// Writes an entry, if there is room for it.
    #[must_use]
    pub fn write(&self, entry: Entry) -> bool {
        let fits = self.entries.push(entry).is_ok();
        self.wake.notify_one();
        fits
    }

    /// The oldest entry.
    #[must_use]
    pub fn next(&self) -> Option<Entry> {
        self.entries.pop()
    }
}

/// Something that a worker tells.
#[derive(Clone, Debug)]
pub struct Entry {
    /// When it was.
    pub at: Ticks,
    /// Entries before it that were not told.
    pub lost: u64,
    /// What it was.
    pub what: What,
}

/// What is told.
#[derive(Clone, Debug)]
pub enum What {
    /// A rule that logs met a packet.
    Rule(RuleMet),
    /// Something ran out.
    Shortage(Shortage),
    /// A change of the configuration is more than the tables hold, and was refused for these faults.
    TooLarge(Vec<Fault>),
}

/// A packet that a rule which logs has met.
#[derive(Clone, Debug)]
pub struct RuleMet {
    /// The endpoint whose rules were asked; it has a subject.
    pub endpoint: Arc<Endpoint>,
    /// Its network.
    pub network: Arc<Network>,
    /// Which of its rules.
    pub direction: Direction,
    /// The rule that logs.
    pub rule: DecisionId,
    /// What these rules decided.
    pub verdict: Verdict,
    /// The packet, after services and before translation of its source.
    pub packet: Tuple,
    /// Bytes of the IP packet.
    pub len: u16,
}

/// Something that ran out, so that a packet was refused.
#[derive(Clone, Debug)]
pub struct Shortage {
    /// What the packet was refused for.
    pub cause: Cause,
    /// The endpoint whose share it was, or that asked.
    pub endpoint: Option<Arc<Endpoint>>,
    /// The network that it happened in.
    pub network: Option<Arc<Network>>,
    /// The pool that has no port left.
    pub pool: Option<Arc<Pool>>,
    /// How much of it there is.
    pub capacity: u64,
    /// Packets refused for it since it was last told, this one included.
    pub refused: u64,
}

/// The worker's end of its journal.
pub struct Writer {
    journal: Arc<Journal>,
    limiter: RefCell<Limiter>,
    lost: Cell<u64>,
    shortages: RefCell<Vec<Told>>,
    /// Ticks between two entries about one shortage.
    pause: u64,
}

/// A shortage that was told.
struct Told {
    cause: Cause,
    whose: usize,
    at: Ticks,
    /// Packets refused since.
    refused: u64,
}

impl Writer {
    /// A writer of `journal`, which nobody else writes.
    #[must_use]
    pub fn new(journal: Arc<Journal>, rate: TicksPerSecond) -> Writer {
        Writer {
            journal,
            limiter: RefCell::new(Limiter::new(rate, RULES_PER_SECOND, RULES_PER_SECOND)),
            lost: Cell::new(0),
            shortages: RefCell::new(Vec::with_capacity(SHORTAGES)),
            pause: rate.0,
        }
    }

    /// Tells that a rule logged, unless too many did.
    pub fn rule(&self, now: Ticks, met: impl FnOnce() -> RuleMet) {
        if self.limiter.borrow_mut().allow(now) {
            self.write(now, What::Rule(met()));
        } else {
            self.lost.set(self.lost.get() + 1);
        }
    }

    /// Tells that something ran out, unless it was told within the last second; `whose` tells things of one kind apart.
    /// `shortage` is given how many packets were refused since.
    pub fn shortage(&self, now: Ticks, cause: Cause, whose: usize, shortage: impl FnOnce(u64) -> Shortage) {
        if let Some(refused) = self.due(now, cause, whose) {
            self.write(now, What::Shortage(shortage(refused)));
        }
    }

    /// The packets refused since the shortage was last told, if it is to be told now.
    fn due(&self, now: Ticks, cause: Cause, whose: usize) -> Option<u64> {
        let mut shortages = self.shortages.borrow_mut();
        if let Some(told) = shortages.iter_mut().find(|it| (it.cause, it.whose) == (cause, whose)) {
            told.refused += 1;
            if now.since(told.at) < self.pause {
                return None;
            }
            told.at = now;
            return Some(std::mem::take(&mut told.refused));
        }
        if shortages.len() == SHORTAGES {
            // Nobody speaks of the one that is over for the longest time.
            let oldest = (0..SHORTAGES).min_by_key(|&at| shortages[at].at).unwrap_or_default();
            shortages.swap_remove(oldest);
        }
        shortages.push(Told { cause, whose, at: now, refused: 0 });
        Some(1)
    }

    fn write(&self, at: Ticks, what: What) {
        let lost = self.lost.get();
        self.lost.set(if self.journal.write(Entry { at, lost, what }) { 0 } else { lost + 1 });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: TicksPerSecond = TicksPerSecond(1_000_000);
    const START: u64 = 1 << 40;

    fn shortage(refused: u64) -> Shortage {
        let cause = Cause::NatExhausted;
        Shortage { cause, endpoint: None, network: None, pool: None, capacity: 9, refused }
    }

    /// The journal and what is written to it.
    fn journal() -> (Arc<Journal>, Writer) {
        let journal = Arc::new(Journal::new(Arc::default()));
        (Arc::clone(&journal), Writer::new(journal, RATE))
    }

    fn refused(journal: &Journal) -> Vec<u64> {
        let entries = std::iter::from_fn(|| journal.next());
        let refused = |entry: Entry| match entry.what {
            What::Shortage(shortage) => shortage.refused,
            other => panic!("{other:?}"),
        };
        entries.map(refused).collect()
    }

    #[test]
    fn a_shortage_is_told_once_a_second_with_all_that_were_refused() {
        let (journal, writer) = journal();
        for tick in 0..=20 {
            writer.shortage(Ticks(START + tick * 100_000), Cause::NatExhausted, 1, shortage);
        }
        assert_eq!(refused(&journal), [1, 10, 10]);
    }

    #[test]
    fn shortages_of_several_things_are_told_each_for_itself() {
        let (journal, writer) = journal();
        for whose in (0..SHORTAGES + 3).chain([SHORTAGES + 2]) {
            writer.shortage(Ticks(START + whose as u64), Cause::NatExhausted, whose, shortage);
        }
        assert_eq!(refused(&journal), vec![1; SHORTAGES + 3]);
    }

    #[test]
    fn what_finds_no_room_is_counted_and_told_later() {
        let (journal, writer) = journal();
        for whose in 0..ENTRIES + 7 {
            writer.shortage(Ticks(START + whose as u64), Cause::NatExhausted, whose, shortage);
        }
        assert_eq!(refused(&journal).len(), ENTRIES);
        writer.shortage(Ticks(START), Cause::ConnectionsFull, 0, shortage);
        assert_eq!(journal.next().unwrap().lost, 7);
    }
}
