//! What each worker keeps for itself beside the table: its free entries, its place in the sweep, its counters.

use crossbeam::utils::CachePadded;

use super::table::WorkerId;
use super::words::{AtomicU64, Ordering};

macro_rules! counts {
    ($($(#[$doc:meta])* $variant:ident $field:ident;)*) => {
        /// What is counted.
        #[derive(Clone, Copy, Debug)]
        pub(crate) enum Count { $($variant,)* }

        const COUNTS: usize = [$(Count::$variant),*].len();

        /// What a table has counted since the daemon began.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Counts {
            $($(#[$doc])* pub $field: u64,)*
            /// Connections and bindings that there are.
            pub live: u64,
            /// Connections whose handshake is not done.
            pub half_open: u64,
            /// Entries that there could be.
            pub capacity: u64,
        }

        impl Counts {
            /// Names and values, for metrics.
            pub fn rows(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [
                    $((stringify!($field), self.$field),)*
                    ("live", self.live), ("half_open", self.half_open), ("capacity", self.capacity),
                ]
                .into_iter()
            }

            fn add(&mut self, lane: &Lane) {
                $(self.$field += lane.counts[Count::$variant as usize].load(Ordering::Relaxed);)*
                let of = |word: &AtomicU64| word.load(Ordering::Relaxed);
                // One worker's gauge may be negative: it ended what another began. Together they are not.
                self.live = self.live.wrapping_add(of(&lane.live));
                self.half_open = self.half_open.wrapping_add(of(&lane.half_open));
            }
        }
    };
}

counts! {
    /// Connections and bindings created.
    Created created;
    /// Forgotten when their time was over.
    Expired expired;
    /// Ended or replaced before that.
    Removed removed;
    /// Unassured ones that gave way to a newcomer.
    EarlyDropped early_dropped;
    /// Refused: no entry is free, and none could be made to give way.
    Full full;
    /// Refused: the owner has all connections that it may have.
    OwnerLimit owner_limit;
    /// Refused: the owner has all half-open connections that it may have.
    HalfOpenLimit half_open_limit;
    /// Refused: one of the tuples belongs to another connection.
    Taken taken;
    /// Refused: another worker did not let go of a bucket.
    Contended contended;
    /// Refused: no external port was free.
    Exhausted exhausted;
}

/// A worker's own corner, a cache line or more away from the others'.
pub(crate) struct Lane {
    /// The first free entry plus one, and above it a number that changes with every change.
    free: AtomicU64,
    /// The next entry that the sweep looks at.
    pub(crate) hand: AtomicU64,
    /// The next entry that is looked at when one must give way.
    early_hand: AtomicU64,
    counts: [AtomicU64; COUNTS],
    live: AtomicU64,
    half_open: AtomicU64,
}

/// All workers' corners, and behind them that of the control thread.
pub(crate) struct Lanes(Box<[CachePadded<Lane>]>);

impl Lanes {
    pub(crate) fn new(workers: u16, capacity: u32) -> Lanes {
        let workers = u64::from(workers.max(1));
        let lane = |number: u64| {
            CachePadded::new(Lane {
                free: AtomicU64::new(0),
                hand: AtomicU64::new(0),
                early_hand: AtomicU64::new(u64::from(capacity) * number / workers),
                counts: std::array::from_fn(|_| AtomicU64::new(0)),
                live: AtomicU64::new(0),
                half_open: AtomicU64::new(0),
            })
        };
        Lanes((0..=workers).map(lane).collect())
    }

    /// Workers.
    pub(crate) fn count(&self) -> usize {
        self.0.len() - 1
    }

    pub(crate) fn lane(&self, worker: WorkerId) -> &Lane {
        &self.0[self.place(worker)]
    }

    fn place(&self, worker: WorkerId) -> usize {
        if worker == WorkerId::CONTROL { self.count() } else { usize::from(worker.0) % self.count() }
    }

    /// Every lane, a worker's own first.
    pub(crate) fn from(&self, worker: WorkerId) -> impl Iterator<Item = &Lane> {
        let own = self.place(worker);
        self.0[own..].iter().chain(&self.0[..own]).map(|lane| &**lane)
    }

    pub(crate) fn counts(&self, capacity: u32) -> Counts {
        let mut counts = Counts { capacity: capacity.into(), ..Counts::default() };
        self.0.iter().for_each(|lane| counts.add(lane));
        counts
    }
}

impl Lane {
    #[inline]
    pub(crate) fn note(&self, count: Count) {
        add(&self.counts[count as usize], 1);
    }

    #[inline]
    pub(crate) fn begun(&self, half_open: bool) {
        add(&self.live, 1);
        add(&self.half_open, i64::from(half_open));
    }

    #[inline]
    pub(crate) fn ended(&self, half_open: bool) {
        add(&self.live, -1);
        add(&self.half_open, -i64::from(half_open));
    }

    #[inline]
    pub(crate) fn opened(&self) {
        add(&self.half_open, -1);
    }

    /// The next turn of the walk that looks for a connection to give way.
    #[inline]
    pub(crate) fn early_turn(&self) -> u64 {
        add(&self.early_hand, 1);
        self.early_hand.load(Ordering::Relaxed)
    }

    /// Makes `entry` the first of a free list that is linked already. Nobody else may know the lane yet.
    pub(crate) fn begin_with(&self, entry: u32) {
        self.free.store(u64::from(entry + 1), Ordering::Relaxed);
    }

    /// Takes a free entry; `next` reads an entry's link.
    pub(crate) fn pop(&self, next: impl Fn(u32) -> u32) -> Option<u32> {
        let mut head = self.free.load(Ordering::Acquire);
        loop {
            let entry = (head as u32).checked_sub(1)?;
            // If the entry is taken and used by another worker meanwhile, the link is nonsense, and the exchange fails.
            let after = changed(head, next(entry));
            match self.free.compare_exchange(head, after, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return Some(entry),
                Err(current) => head = current,
            }
        }
    }

    /// Gives an entry back; `link` writes its link.
    pub(crate) fn push(&self, entry: u32, link: impl Fn(u32)) {
        let mut head = self.free.load(Ordering::Relaxed);
        loop {
            link(head as u32);
            let after = changed(head, entry + 1);
            match self.free.compare_exchange(head, after, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => return,
                Err(current) => head = current,
            }
        }
    }
}

/// Adds to a word that one thread alone writes: a worker's number is one thread's at a time.
#[inline(always)]
fn add(word: &AtomicU64, by: i64) {
    word.store(word.load(Ordering::Relaxed).wrapping_add_signed(by), Ordering::Relaxed);
}

/// The next head of a free list: another first entry, another number.
fn changed(head: u64, first: u32) -> u64 {
    ((head >> 32) + 1) << 32 | u64::from(first)
}
