//! The words that a table is made of: the machine's atomics, or loom's, which its models watch.

use std::io;
use std::ops::Index;

#[cfg(penstock_loom)]
pub(crate) use loom::sync::atomic::{AtomicU64, Ordering, fence};
#[cfg(not(penstock_loom))]
pub(crate) use std::sync::atomic::{AtomicU64, Ordering, fence};

use penstock_io::shared::SharedRegion;

/// Words of an entry that every connection has: one cache line.
pub(crate) const NEAR_WORDS: usize = 8;
/// Words of an entry beside them, for addresses that do not fit there.
const FAR_WORDS: usize = 6;
/// Words of an entry.
pub(crate) const ENTRY_WORDS: usize = NEAR_WORDS + FAR_WORDS;

/// An entry's words.
#[derive(Clone, Copy)]
pub(crate) struct Record {
    near: &'static [AtomicU64; NEAR_WORDS],
    /// For wider addresses than the near ones hold.
    pub(crate) far: &'static [AtomicU64; FAR_WORDS],
}

impl Index<usize> for Record {
    type Output = AtomicU64;

    /// A near word.
    #[inline(always)]
    fn index(&self, at: usize) -> &AtomicU64 {
        &self.near[at]
    }
}

/// A cache line of the index.
#[cfg_attr(not(penstock_loom), derive(zerocopy::FromZeros))]
#[repr(C, align(64))]
pub(crate) struct Line(pub(crate) [AtomicU64; 8]);

#[cfg(not(penstock_loom))]
pub(crate) type Lines = penstock_io::pages::Table<Line>;
#[cfg(penstock_loom)]
pub(crate) type Lines = Box<[Line]>;

/// Zeroed lines.
pub(crate) fn lines(count: usize) -> io::Result<Lines> {
    #[cfg(not(penstock_loom))]
    return Lines::zeroed(count);
    #[cfg(penstock_loom)]
    return Ok((0..count).map(|_| Line(std::array::from_fn(|_| AtomicU64::new(0)))).collect());
}

/// Brings a line near.
#[inline(always)]
pub(crate) fn prefetch<T>(slice: &[T], index: usize) {
    #[cfg(not(penstock_loom))]
    penstock_io::pages::prefetch(slice, index);
    #[cfg(penstock_loom)]
    let _ = (slice, index);
}

/// A breath between two attempts at what another thread is about to finish.
#[inline(always)]
pub(crate) fn pause() {
    #[cfg(not(penstock_loom))]
    std::hint::spin_loop();
    #[cfg(penstock_loom)]
    loom::thread::yield_now();
}

/// The entries of a table: first the near words of all of them, then the far ones.
#[derive(Clone, Copy)]
pub(crate) struct Records {
    near: &'static [[AtomicU64; NEAR_WORDS]],
    far: &'static [[AtomicU64; FAR_WORDS]],
}

impl Records {
    /// How many entries there are.
    pub(crate) fn count(&self) -> usize {
        self.near.len()
    }

    /// Bytes that they take.
    pub(crate) fn bytes(&self) -> usize {
        size_of_val(self.near) + size_of_val(self.far)
    }

    /// The first `count` of them.
    pub(crate) fn first(&self, count: usize) -> Records {
        Records { near: &self.near[..count], far: &self.far[..count] }
    }

    #[inline(always)]
    pub(crate) fn get(&self, index: u32) -> Option<Record> {
        let index = index as usize;
        Some(Record { near: self.near.get(index)?, far: self.far.get(index)? })
    }

    /// An entry that there is.
    #[inline(always)]
    pub(crate) fn at(&self, index: u32) -> Record {
        Record { near: &self.near[index as usize], far: &self.far[index as usize] }
    }

    /// One near word of an entry.
    #[inline(always)]
    pub(crate) fn word(&self, index: u32, at: usize) -> Option<&'static AtomicU64> {
        self.near.get(index as usize).map(|near| &near[at])
    }

    /// Brings an entry's near words near, and the far ones if they are wanted.
    #[inline(always)]
    pub(crate) fn touch(&self, index: u32, far: bool) {
        prefetch(self.near, index as usize);
        if far {
            prefetch(self.far, index as usize);
        }
    }
}

/// Where a table's entries are.
#[derive(Clone, Copy)]
pub struct Memory {
    pub(crate) records: Records,
}

impl Memory {
    /// The words of a shared region, made with [`Plan::layout`](super::Plan::layout): they outlive the process.
    #[must_use]
    pub fn shared(region: &'static SharedRegion) -> Memory {
        #[cfg(not(penstock_loom))]
        {
            let words = region.words();
            let (near, far) = words.split_at(words.len() / ENTRY_WORDS * NEAR_WORDS);
            Memory { records: Records { near: near.as_chunks().0, far: far.as_chunks().0 } }
        }
        // Loom watches its own words only.
        #[cfg(penstock_loom)]
        Memory::owned(region.words().len() / ENTRY_WORDS)
    }

    /// Words of this process alone, for `capacity` entries; they are never given back.
    ///
    /// # Errors
    /// The kernel's, when there is no memory.
    pub fn private(capacity: u32) -> io::Result<Memory> {
        #[cfg(not(penstock_loom))]
        {
            use penstock_io::pages::Table;
            let near = Box::leak(Box::new(Table::zeroed(capacity as usize)?));
            let far = Box::leak(Box::new(Table::zeroed(capacity as usize)?));
            Ok(Memory { records: Records { near, far } })
        }
        #[cfg(penstock_loom)]
        Ok(Memory::owned(capacity as usize))
    }

    #[cfg(penstock_loom)]
    fn owned(capacity: usize) -> Memory {
        fn zeros<const WORDS: usize>(count: usize) -> &'static [[AtomicU64; WORDS]] {
            let records: Vec<_> = (0..count).map(|_| std::array::from_fn(|_| AtomicU64::new(0))).collect();
            records.leak()
        }
        Memory { records: Records { near: zeros(capacity), far: zeros(capacity) } }
    }
}
