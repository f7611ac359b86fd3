//! The words that a table is made of: the machine's atomics, or loom's, which its models watch.

use std::io;

#[cfg(penstock_loom)]
pub(crate) use loom::sync::atomic::{AtomicU64, Ordering, fence};
#[cfg(not(penstock_loom))]
pub(crate) use std::sync::atomic::{AtomicU64, Ordering, fence};

use penstock_io::shared::SharedRegion;

/// Words of an entry.
pub(crate) const ENTRY_WORDS: usize = 16;

/// An entry's words: two cache lines.
pub(crate) type Record = [AtomicU64; ENTRY_WORDS];

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

/// Where a table's entries are.
#[derive(Clone, Copy)]
pub struct Memory {
    pub(crate) records: &'static [Record],
}

impl Memory {
    /// The words of a shared region, made with [`Plan::layout`](super::Plan::layout): they outlive the process.
    #[must_use]
    pub fn shared(region: &'static SharedRegion) -> Memory {
        #[cfg(not(penstock_loom))]
        return Memory { records: region.words().as_chunks().0 };
        // Loom watches its own words only.
        #[cfg(penstock_loom)]
        return Memory::owned(region.words().len() / ENTRY_WORDS);
    }

    /// Words of this process alone, for `capacity` entries; they are never given back.
    ///
    /// # Errors
    /// The kernel's, when there is no memory.
    pub fn private(capacity: u32) -> io::Result<Memory> {
        #[cfg(not(penstock_loom))]
        {
            let table = penstock_io::pages::Table::<Record>::zeroed(capacity as usize)?;
            Ok(Memory { records: Box::leak(Box::new(table)) })
        }
        #[cfg(penstock_loom)]
        Ok(Memory::owned(capacity as usize))
    }

    #[cfg(penstock_loom)]
    fn owned(capacity: usize) -> Memory {
        let records: Vec<Record> =
            (0..capacity).map(|_| std::array::from_fn(|_| AtomicU64::new(0))).collect();
        Memory { records: records.leak() }
    }
}
