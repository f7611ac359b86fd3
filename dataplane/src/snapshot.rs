//! Publication of tables: one writer, readers that never wait, and destructors that never run on a reader.
//!
//! ```text
//!  Publisher                       Shared                       Reader (one per worker)
//!  publish(next) --slot, then epoch-->  { slot, epoch }  <--one load a turn-- refresh()
//!  reclaim()     <--------- last seen, one padded word per reader ---------- stores what it saw
//! ```
//!
//! A reader compares one word a turn. When it changed, it tries the slot's lock and takes the new snapshot; if the writer
//! holds the lock that instant, it keeps the old one for another turn. The publisher keeps every retired snapshot until
//! all readers have told of a later one, so freeing big tables falls to the publisher's thread.

use std::sync::Arc as StdArc;

use crossbeam::utils::CachePadded;

#[cfg(penstock_loom)]
use loom::sync::{
    Arc, Mutex,
    atomic::{AtomicU64, Ordering},
};
#[cfg(not(penstock_loom))]
use std::sync::{
    Arc, Mutex,
    atomic::{AtomicU64, Ordering},
};

/// The number of a publication; the first is 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(pub u64);

struct Versioned<T> {
    epoch: Epoch,
    value: StdArc<T>,
}

impl<T> Clone for Versioned<T> {
    fn clone(&self) -> Versioned<T> {
        Versioned { epoch: self.epoch, value: StdArc::clone(&self.value) }
    }
}

struct Shared<T> {
    epoch: CachePadded<AtomicU64>,
    slot: Mutex<Versioned<T>>,
}

/// The writing side.
pub struct Publisher<T> {
    shared: Arc<Shared<T>>,
    /// Snapshots that a reader may still hold, oldest first.
    retired: Vec<Versioned<T>>,
    readers: Vec<Arc<CachePadded<AtomicU64>>>,
}

/// A reading side: one per worker.
pub struct Reader<T> {
    shared: Arc<Shared<T>>,
    held: Versioned<T>,
    seen: Arc<CachePadded<AtomicU64>>,
}

/// What a reader that went away leaves behind as its last word.
const GONE: u64 = u64::MAX;

impl<T> Publisher<T> {
    /// Publishes the first snapshot.
    #[must_use]
    pub fn new(first: T) -> Publisher<T> {
        let first = Versioned { epoch: Epoch(1), value: StdArc::new(first) };
        let shared = Shared { epoch: CachePadded::new(AtomicU64::new(1)), slot: Mutex::new(first) };
        Publisher { shared: Arc::new(shared), retired: Vec::new(), readers: Vec::new() }
    }

    /// A new reader, which holds the newest snapshot.
    #[must_use]
    pub fn reader(&mut self) -> Reader<T> {
        let held = self.newest();
        let seen = Arc::new(CachePadded::new(AtomicU64::new(held.epoch.0)));
        self.readers.push(Arc::clone(&seen));
        Reader { shared: Arc::clone(&self.shared), held, seen }
    }

    /// Makes `next` the newest snapshot, and frees what nobody can hold any more.
    pub fn publish(&mut self, next: T) -> Epoch {
        let old = {
            let mut slot = lock(&self.shared.slot);
            let epoch = Epoch(slot.epoch.0 + 1);
            std::mem::replace(&mut *slot, Versioned { epoch, value: StdArc::new(next) })
        };
        let epoch = Epoch(old.epoch.0 + 1);
        self.retired.push(old);
        // After the slot: a reader that sees the new number finds the new snapshot.
        self.shared.epoch.store(epoch.0, Ordering::Release);
        self.reclaim();
        epoch
    }

    /// The newest snapshot.
    #[must_use]
    pub fn current(&self) -> StdArc<T> {
        self.newest().value
    }

    /// The number of the newest snapshot.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.newest().epoch
    }

    /// The oldest epoch that a reader still works with: what is published up to it is live everywhere.
    #[must_use]
    pub fn slowest(&self) -> Epoch {
        let newest = self.newest().epoch;
        let oldest = self.readers.iter().map(|seen| seen.load(Ordering::Acquire)).min();
        Epoch(oldest.unwrap_or(GONE)).min(newest)
    }

    /// Frees the snapshots that every reader has left behind; returns how many.
    pub fn reclaim(&mut self) -> usize {
        self.readers.retain(|seen| seen.load(Ordering::Acquire) != GONE);
        let slowest = self.slowest();
        let before = self.retired.len();
        self.retired.retain(|old| old.epoch >= slowest);
        before - self.retired.len()
    }

    fn newest(&self) -> Versioned<T> {
        lock(&self.shared.slot).clone()
    }
}

impl<T> Reader<T> {
    /// Takes the newest snapshot if there is a new one to be had without waiting; tells whether it did.
    #[inline]
    pub fn refresh(&mut self) -> bool {
        self.refresh_is_due() && self.take()
    }

    /// Whether there is a newer snapshot than the one that this reader works with.
    #[inline]
    #[must_use]
    pub fn refresh_is_due(&self) -> bool {
        self.shared.epoch.load(Ordering::Acquire) != self.held.epoch.0
    }

    #[cold]
    fn take(&mut self) -> bool {
        let Ok(slot) = self.shared.slot.try_lock() else { return false };
        let newest = slot.clone();
        drop(slot);
        // The publisher still holds the one that goes here, so its tables are not freed on this thread.
        self.held = newest;
        // After the old snapshot is let go: the publisher frees it once it reads this.
        self.seen.store(self.held.epoch.0, Ordering::Release);
        true
    }

    /// The snapshot that this reader works with.
    #[inline]
    #[must_use]
    pub fn current(&self) -> &T {
        &self.held.value
    }

    /// The number of the snapshot that this reader works with.
    #[inline]
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.held.epoch
    }
}

impl<T> Drop for Reader<T> {
    fn drop(&mut self) {
        self.seen.store(GONE, Ordering::Release);
    }
}

#[cfg(not(penstock_loom))]
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // A panic while the lock is held cannot leave the slot half-written: it is replaced in one move.
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[cfg(penstock_loom)]
fn lock<T>(mutex: &Mutex<T>) -> loom::sync::MutexGuard<'_, T> {
    mutex.lock().expect("loom's mutexes are not poisoned")
}

#[cfg(all(test, not(penstock_loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_retired_snapshot_lives_until_the_slowest_reader_has_left_it() {
        let mut publisher = Publisher::new(vec![1]);
        let (mut quick, mut slow) = (publisher.reader(), publisher.reader());
        assert_eq!(publisher.publish(vec![2]), Epoch(2));
        assert!(quick.refresh());
        assert_eq!((publisher.slowest(), publisher.reclaim()), (Epoch(1), 0));
        assert_eq!((slow.current(), quick.current()), (&vec![1], &vec![2]));
        assert!(slow.refresh() && !slow.refresh());
        assert_eq!((publisher.slowest(), publisher.reclaim()), (Epoch(2), 1));
    }

    #[test]
    fn a_reader_that_is_gone_holds_nothing_back() {
        let mut publisher = Publisher::new(0);
        drop(publisher.reader());
        let epoch = publisher.publish(1);
        assert_eq!(publisher.slowest(), epoch);
        assert!(publisher.retired.is_empty());
    }
}

#[cfg(all(test, penstock_loom))]
mod loom_model {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering as StdOrdering};

    /// Counts the drops that happen on the reader's thread.
    struct Table {
        number: u64,
        freed_by_reader: StdArc<AtomicUsize>,
    }

    loom::thread_local! { static ON_READER: std::cell::Cell<bool> = std::cell::Cell::new(false); }

    impl Drop for Table {
        fn drop(&mut self) {
            if ON_READER.with(std::cell::Cell::get) {
                self.freed_by_reader.fetch_add(1, StdOrdering::Relaxed);
            }
        }
    }

    #[test]
    fn loom_readers_see_whole_snapshots_in_order_and_free_none() {
        loom::model(|| {
            let freed_by_reader = StdArc::new(AtomicUsize::new(0));
            let table = |number| Table { number, freed_by_reader: StdArc::clone(&freed_by_reader) };
            let mut publisher = Publisher::new(table(1));
            let mut reader = publisher.reader();
            let thread = loom::thread::spawn(move || {
                ON_READER.with(|on| on.set(true));
                let mut last = 0;
                for _ in 0..2 {
                    reader.refresh();
                    assert_eq!(reader.current().number, reader.epoch().0);
                    assert!(reader.current().number >= last);
                    last = reader.current().number;
                    loom::thread::yield_now();
                }
                reader
            });
            publisher.publish(table(2));
            publisher.publish(table(3));
            let mut reader = thread.join().expect("the reader does not panic");
            assert_eq!(freed_by_reader.load(StdOrdering::Relaxed), 0);
            while reader.refresh() {}
            assert_eq!(reader.current().number, 3);
            assert_eq!(publisher.slowest(), Epoch(3));
        });
    }
}
