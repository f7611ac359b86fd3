//! The region: the one mapping that holds every packet of a NUMA node.
//!
//! It is the UMEM of every AF_XDP socket, so that a frame received on one socket is sent on another by its number
//! alone. A region is never unmapped: a chunk of it may at any time be in the hands of a kernel ring.

use std::io;
use std::ptr::NonNull;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crossbeam::queue::ArrayQueue;
use thiserror::Error;

use crate::frame::Frame;
use crate::pages::Mapping;

/// Bytes of one chunk. A power of two, as an aligned UMEM wants (`Documentation/networking/af_xdp.rst`); two chunks fit
/// a page, and a 1500-byte MTU fits a chunk with its headroom.
pub const CHUNK: usize = 2048;

/// Where a received packet starts in its chunk: the kernel's own `XDP_PACKET_HEADROOM` (`linux/bpf.h`, 256). Enough for
/// any encapsulation that we push in front.
pub const HEADROOM: usize = 256;

/// Chunks that move between a worker's pool and the region's depot at a time.
pub(crate) const BATCH: usize = 64;

/// What the memory is backed with when the region is mapped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Hugepages {
    /// 2 MiB pages when there are enough of them, else ordinary pages, and the log says so.
    #[default]
    Auto,
    /// 2 MiB pages or an error.
    Require,
    /// Ordinary pages (still advised to be transparent huge pages).
    Off,
}

/// The pages a region got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageSize {
    /// From the huge page pool.
    Huge2M,
    /// Ordinary pages.
    Small4K,
}

/// Why a region could not be mapped.
#[derive(Debug, Error)]
pub enum MapError {
    /// The huge page pool has too few pages.
    #[error(
        "no {needed} free huge pages of 2 MiB for {chunks} chunks of packet memory; reserve them with \
         `echo {needed} > /sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages` or set hugepages = \"auto\""
    )]
    NoHugepages {
        /// Chunks asked for.
        chunks: u32,
        /// Huge pages they need.
        needed: usize,
        /// What `mmap` said.
        #[source]
        source: io::Error,
    },
    /// Not even ordinary memory.
    #[error("no memory for {chunks} chunks of packet memory ({} MiB); ask for fewer with memory.chunks", chunks >> 9)]
    NoMemory {
        /// Chunks asked for.
        chunks: u32,
        /// What `mmap` said.
        #[source]
        source: io::Error,
    },
    /// A region of no chunks, or of more than descriptors can name.
    #[error("{chunks} chunks of packet memory: ask for {} to {}", BATCH, u32::MAX >> 1)]
    Size {
        /// Chunks asked for.
        chunks: u32,
    },
}

/// A few chunk numbers on their way between a pool and the depot.
pub(crate) struct Batch {
    pub(crate) chunks: [u32; BATCH],
    pub(crate) len: usize,
}

/// The packet memory of a NUMA node, cut into chunks of [`CHUNK`] bytes.
pub struct Region {
    base: NonNull<u8>,
    bytes: usize,
    chunks: u32,
    pages: PageSize,
    /// Chunks that no pool holds. Workers meet it once per [`BATCH`] frames at most.
    depot: ArrayQueue<Batch>,
    /// Chunks in the depot's batches.
    in_depot: AtomicU32,
    /// Frames that were dropped instead of handed on, e.g. by a worker's panic, and came back by themselves.
    strays: AtomicU64,
    #[cfg(debug_assertions)]
    states: Box<[std::sync::atomic::AtomicU8]>,
}

// SAFETY: the address of the mapping is shared, never its bytes: those are reached through `Frame`s alone, each of which
// owns its chunk exclusively.
unsafe impl Send for Region {}
// SAFETY: as above; everything else in a region is atomic or immutable.
unsafe impl Sync for Region {}

/// Every region of this process, for frames that must find their way home (`Frame`'s drop).
static REGIONS: Mutex<Vec<&'static Region>> = Mutex::new(Vec::new());

/// Who holds a chunk. Debug builds keep one per chunk and stop at a transition that cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Holder {
    /// A pool or the depot.
    Free = 0,
    /// A `Frame` in the program's hands.
    User = 1,
    /// The kernel, to receive into.
    Fill = 2,
    /// The kernel, to send.
    Tx = 3,
}

/// How many chunks each holder has. The four always add up to the region's chunks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Census {
    /// In pools and in the depot.
    pub free: u32,
    /// In the program's hands.
    pub user: u32,
    /// With the kernel, to receive into.
    pub fill: u32,
    /// With the kernel, to send.
    pub tx: u32,
}

impl Region {
    /// Maps `chunks` chunks (rounded up to whole huge pages) for the life of the process.
    ///
    /// # Errors
    /// [`MapError`], which names the shortage and the mend. With [`Hugepages::Auto`] a lack of huge pages is a warning
    /// in the log, and [`Region::pages`] tells which pages it got.
    pub fn map(chunks: u32, want: Hugepages) -> Result<&'static Region, MapError> {
        if (chunks as usize) < BATCH || chunks > u32::MAX >> 1 {
            return Err(MapError::Size { chunks });
        }
        let (mapping, pages) = back_with_pages(chunks, want)?;
        let chunks = (mapping.bytes() / CHUNK) as u32;
        let region = Box::leak(Box::new(Region {
            base: mapping.base(),
            bytes: mapping.bytes(),
            chunks,
            pages,
            // Twice what full batches need: pools that shut down leave short ones.
            depot: ArrayQueue::new(2 * (chunks as usize).div_ceil(BATCH) + BATCH),
            in_depot: AtomicU32::new(0),
            strays: AtomicU64::new(0),
            #[cfg(debug_assertions)]
            states: (0..chunks).map(|_| std::sync::atomic::AtomicU8::new(Holder::Free as u8)).collect(),
        }));
        std::mem::forget(mapping);
        // Low numbers last into the depot would come out last; a queue keeps the order, so memory is used from the start.
        for first in (0..chunks).step_by(BATCH) {
            let mut batch = Batch { chunks: [0; BATCH], len: 0 };
            for chunk in first..chunks.min(first + BATCH as u32) {
                batch.chunks[batch.len] = chunk;
                batch.len += 1;
            }
            region.give(batch);
        }
        REGIONS.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(region);
        Ok(region)
    }

    /// Chunks in the region.
    #[must_use]
    pub fn chunks(&self) -> u32 {
        self.chunks
    }

    /// Bytes in the region.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// What the region is backed with.
    #[must_use]
    pub fn pages(&self) -> PageSize {
        self.pages
    }

    /// Frames that were dropped on the floor (by a panic) and picked up again since the start.
    #[must_use]
    pub fn strays(&self) -> u64 {
        self.strays.load(Ordering::Relaxed)
    }

    /// Free chunks that no pool holds, as of some moment ago.
    #[must_use]
    pub fn in_depot(&self) -> u32 {
        self.in_depot.load(Ordering::Relaxed)
    }

    /// Where each chunk is, counted one by one: debug builds only.
    #[cfg(debug_assertions)]
    #[must_use]
    pub fn census(&self) -> Census {
        let mut census = Census::default();
        for state in &self.states {
            match state.load(Ordering::Relaxed) {
                0 => census.free += 1,
                1 => census.user += 1,
                2 => census.fill += 1,
                _ => census.tx += 1,
            }
        }
        census
    }

    /// The mapping's first byte, for the registration as UMEM and for descriptors.
    pub(crate) fn base(&self) -> NonNull<u8> {
        self.base
    }

    /// The chunk that an address lies in, if it is one of this region's.
    #[inline(always)]
    pub(crate) fn chunk_of(&self, address: NonNull<u8>) -> Option<u32> {
        let offset = (address.as_ptr() as usize).wrapping_sub(self.base.as_ptr() as usize);
        (offset < self.bytes).then_some((offset / CHUNK) as u32)
    }

    /// Notes that `chunk` passes from one holder to the next; debug builds stop when it was not where it should be.
    #[inline(always)]
    pub(crate) fn pass(&self, chunk: u32, from: Holder, to: Holder) {
        #[cfg(debug_assertions)]
        {
            let was = self.states[chunk as usize].swap(to as u8, Ordering::Relaxed);
            assert_eq!(was, from as u8, "chunk {chunk} was to pass from {from:?} to {to:?}");
        }
        #[cfg(not(debug_assertions))]
        let _ = (chunk, from, to);
    }

    /// Takes a batch of free chunks.
    pub(crate) fn take(&self) -> Option<Batch> {
        let batch = self.depot.pop()?;
        self.in_depot.fetch_sub(batch.len as u32, Ordering::Relaxed);
        Some(batch)
    }

    /// Gives free chunks back.
    pub(crate) fn give(&self, batch: Batch) {
        // The depot has room for twice the region in full batches and short ones come one per pool's end, so it is never
        // full; if it were, losing chunks quietly would be worse than stopping.
        // Counted before it can be taken again: the count never falls below what is there.
        self.in_depot.fetch_add(batch.len as u32, Ordering::Relaxed);
        assert!(self.depot.push(batch).is_ok(), "the depot of free chunks overflowed");
    }

    /// Picks up a frame that was dropped instead of handed on.
    pub(crate) fn stray(address: NonNull<u8>) {
        let regions = REGIONS.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        for region in regions.iter() {
            if let Some(chunk) = region.chunk_of(address) {
                region.pass(chunk, Holder::User, Holder::Free);
                region.strays.fetch_add(1, Ordering::Relaxed);
                let mut batch = Batch { chunks: [0; BATCH], len: 1 };
                batch.chunks[0] = chunk;
                // Room for strays is not reserved: a flood of them (a bug in itself) may lose chunks, never crash twice.
                if region.depot.push(batch).is_ok() {
                    region.in_depot.fetch_add(1, Ordering::Relaxed);
                }
                return;
            }
        }
    }

    /// The token for a chunk whose packet starts `offset` bytes into it.
    ///
    /// # Safety
    /// No other `Frame` for `chunk` exists and the kernel does not hold it; `chunk` is one of the region's and
    /// `offset + len` is at most [`CHUNK`], `offset` less than it.
    #[inline(always)]
    pub(crate) unsafe fn mint(&self, chunk: u32, offset: usize, len: usize) -> Frame {
        debug_assert!(chunk < self.chunks && offset < CHUNK && offset + len <= CHUNK);
        // SAFETY: the chunk lies inside the mapping (the caller's word).
        let head = unsafe { self.base.add(chunk as usize * CHUNK + offset) };
        // SAFETY: exclusivity is the caller's word.
        unsafe { Frame::from_raw(head, len as u32) }
    }
}

fn back_with_pages(chunks: u32, want: Hugepages) -> Result<(Mapping, PageSize), MapError> {
    let bytes = chunks as usize * CHUNK;
    let needed = bytes.div_ceil(crate::pages::HUGE);
    if want != Hugepages::Off {
        match Mapping::huge(bytes) {
            Ok(mapping) => return Ok((mapping, PageSize::Huge2M)),
            Err(source) if want == Hugepages::Require => {
                return Err(MapError::NoHugepages { chunks, needed, source });
            }
            Err(source) => tracing::warn!(
                "packet memory in 4 KiB pages: no {needed} free huge pages ({source}); forwarding is slower; mend: \
                 echo {needed} > /sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages"
            ),
        }
    }
    let mapping = Mapping::ordinary(bytes).map_err(|source| MapError::NoMemory { chunks, source })?;
    Ok((mapping, PageSize::Small4K))
}
