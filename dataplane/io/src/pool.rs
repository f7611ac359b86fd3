//! The pool: the free chunks of one worker, used last in, first out, so that few of them stay warm in the cache.

use crate::burst::{BURST, Burst};
use crate::frame::Frame;
use crate::region::{BATCH, Batch, CHUNK, HEADROOM, Holder, Region};

/// Chunks a pool keeps before it gives a batch back to the region.
const KEEP: usize = 8 * BATCH;

/// Sixty-four-byte colours that [`FramePool::alloc_for`] spreads packets over. Chunks are 2048 bytes apart, so packets at
/// one offset share a few sets of the L1 and L2 caches; eight colours take a third off a small forwarding loop.
const COLOURS: usize = 8;

/// The longest packet that is coloured: it fits a chunk behind the last colour.
const COLOURED: usize = CHUNK - HEADROOM - COLOURS * 64;

/// Where a packet begins in its chunk if it is given one of `colours` colours, a power of two.
#[inline(always)]
fn coloured_offset(chunk: u32, colours: usize) -> usize {
    let colour = (chunk as usize + chunk as usize / COLOURS) & (colours - 1);
    HEADROOM + colour * 64
}

/// The free chunks of one worker. Not shared: frames come and go without a lock, and the region's depot is met only when
/// the pool runs dry or over.
pub struct FramePool {
    region: &'static Region,
    free: Vec<u32>,
}

impl FramePool {
    /// An empty pool over `region`; it takes chunks as it needs them.
    #[must_use]
    pub fn new(region: &'static Region) -> FramePool {
        FramePool { region, free: Vec::with_capacity(KEEP + 2 * BATCH) }
    }

    /// The region that the pool's chunks are of.
    #[must_use]
    pub fn region(&self) -> &'static Region {
        self.region
    }

    /// Free chunks in this pool.
    #[must_use]
    pub fn free_chunks(&self) -> usize {
        self.free.len()
    }

    /// An empty frame with the headroom of a received one, or `None` when the region has no free chunk left.
    #[inline(always)]
    pub fn alloc(&mut self) -> Option<Frame> {
        let chunk = self.pop()?;
        // SAFETY: a number on the free list has no token and is not with the kernel; HEADROOM is inside the chunk.
        Some(unsafe { self.region.mint(chunk, HEADROOM, 0) })
    }

    /// An empty frame with room for `len` bytes, its start coloured where the length allows it.
    #[inline(always)]
    pub fn alloc_for(&mut self, len: usize) -> Option<Frame> {
        let chunk = self.pop()?;
        let offset = coloured_offset(chunk, if len <= COLOURED { COLOURS } else { 1 });
        // SAFETY: as in `alloc`; the largest colour leaves room inside the chunk.
        Some(unsafe { self.region.mint(chunk, offset, 0) })
    }

    /// Puts up to `count` empty frames with room for `len` bytes into a burst, as [`FramePool::alloc_for`] gives them;
    /// returns how many there were.
    #[inline(always)]
    pub(crate) fn alloc_into(&mut self, into: &mut Burst, count: usize, len: usize) -> usize {
        let count = count.min(into.room());
        while self.free.len() < count && self.refill() {}
        let left = self.free.len() - count.min(self.free.len());
        let (region, colours) = (self.region, if len <= COLOURED { COLOURS } else { 1 });
        let taken = &self.free[left..];
        // Last in, first out, as one by one.
        into.extend(taken.iter().rev().map(|&chunk| {
            region.pass(chunk, Holder::Free, Holder::User);
            let offset = coloured_offset(chunk, colours);
            // SAFETY: a number on the free list has no token and is not with the kernel, and it leaves the list below; the
            // largest colour leaves room inside the chunk.
            unsafe { region.mint(chunk, offset, 0) }
        }));
        let got = taken.len();
        self.free.truncate(left);
        got
    }

    /// Takes a frame back.
    ///
    /// # Panics
    /// If the frame is of another region.
    #[inline(always)]
    pub fn free(&mut self, mut frame: Frame) {
        if !frame.is_plain() {
            self.free_pieces(&mut frame);
        }
        let Some(chunk) = self.region.chunk_of(frame.into_raw()) else { foreign() };
        self.region.pass(chunk, Holder::User, Holder::Free);
        self.push(chunk);
    }

    /// Takes the further chunks of a chain back.
    #[cold]
    #[inline(never)]
    fn free_pieces(&mut self, frame: &mut Frame) {
        while let Some(piece) = frame.take_piece() {
            self.free(piece);
        }
    }

    /// Takes every frame of a burst back.
    #[inline]
    pub fn free_burst(&mut self, burst: &mut Burst) {
        let mut chunks = [0; BURST];
        let count = burst.len();
        for (chunk, mut frame) in chunks.iter_mut().zip(burst.drain()) {
            if !frame.is_plain() {
                self.free_pieces(&mut frame);
            }
            *chunk = self.region.chunk_of(frame.into_raw()).unwrap_or_else(|| foreign());
            self.region.pass(*chunk, Holder::User, Holder::Free);
        }
        while self.free.len() + count > KEEP {
            self.spill();
        }
        self.free.extend_from_slice(&chunks[..count]);
    }

    /// Takes a free chunk for the kernel to receive into.
    #[inline]
    pub(crate) fn take_for_fill(&mut self) -> Option<u32> {
        let chunk = self.pop()?;
        self.region.pass(chunk, Holder::User, Holder::Fill);
        Some(chunk)
    }

    /// Takes a chunk back from the kernel.
    #[inline]
    pub(crate) fn take_back(&mut self, chunk: u32, from: Holder) {
        self.region.pass(chunk, from, Holder::Free);
        self.push(chunk);
    }

    /// Gives every free chunk back to the region, for a pool that is used now and then.
    pub fn empty(&mut self) {
        while !self.free.is_empty() {
            self.spill();
        }
    }

    #[inline(always)]
    fn pop(&mut self) -> Option<u32> {
        if self.free.is_empty() {
            self.refill();
        }
        let chunk = self.free.pop()?;
        self.region.pass(chunk, Holder::Free, Holder::User);
        Some(chunk)
    }

    #[inline(always)]
    fn push(&mut self, chunk: u32) {
        if self.free.len() >= KEEP {
            self.spill();
        }
        self.free.push(chunk);
    }

    #[cold]
    fn refill(&mut self) -> bool {
        match self.region.take() {
            Some(batch) => {
                self.free.extend_from_slice(&batch.chunks[..batch.len]);
                true
            }
            None => false,
        }
    }

    /// Gives the coldest batch back: the bottom of the stack.
    #[cold]
    fn spill(&mut self) {
        let len = BATCH.min(self.free.len());
        let mut batch = Batch { chunks: [0; BATCH], len };
        batch.chunks[..len].copy_from_slice(&self.free[..len]);
        self.free.copy_within(len.., 0);
        self.free.truncate(self.free.len() - len);
        self.region.give(batch);
    }
}

impl Drop for FramePool {
    fn drop(&mut self) {
        self.empty();
    }
}

#[cold]
#[inline(never)]
fn foreign() -> ! {
    panic!("a frame was given to the pool of another region");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chain::ANNEX;
    use crate::region::{Census, Hugepages};

    fn pool() -> FramePool {
        FramePool::new(Region::map(1024, Hugepages::Off).unwrap())
    }

    #[test]
    fn every_chunk_can_be_had_once_and_comes_back() {
        let mut pool = pool();
        let all: Vec<Frame> = std::iter::from_fn(|| pool.alloc()).collect();
        assert_eq!(all.len(), 1024);
        let mut heads: Vec<_> = all.iter().map(|frame| frame.head()).collect();
        heads.sort();
        heads.dedup();
        assert_eq!(heads.len(), 1024);
        for frame in all {
            pool.free(frame);
        }
        let region = pool.region();
        drop(pool);
        assert_eq!(region.census(), Census { free: 1024, ..Census::default() });
        assert_eq!(region.in_depot(), 1024);
        assert_eq!(std::iter::from_fn(|| region.take()).map(|batch| batch.len).sum::<usize>(), 1024);
        assert_eq!(region.in_depot(), 0);
    }

    #[test]
    fn a_dropped_frame_is_a_bug_that_debug_builds_name_and_none_is_lost() {
        let mut pool = pool();
        let frame = pool.alloc().unwrap();
        let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drop(frame)));
        assert!(caught.is_err());
        assert_eq!(pool.region().strays(), 1);
        assert_eq!(pool.region().census().user, 0);
    }

    #[test]
    fn frames_lost_to_a_panic_come_back_to_the_region() {
        let mut pool = pool();
        let frames: Vec<Frame> = (0..10).filter_map(|_| pool.alloc()).collect();
        let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
            let _held = frames;
            panic!("a worker fell over");
        }));
        assert!(caught.is_err());
        assert_eq!(pool.region().strays(), 10);
        assert_eq!(pool.region().census().user, 0);
    }

    #[test]
    fn a_packet_can_grow_at_the_front_up_to_its_headroom() {
        let mut pool = pool();
        let mut frame = pool.alloc().unwrap();
        frame.fill_from(&[1, 2, 3]).unwrap();
        let room = HEADROOM - ANNEX;
        assert_eq!(frame.grow_front(room + 1), Err(NoHeadroom));
        frame.grow_front(room).unwrap();
        assert_eq!(frame.headroom(), 0);
        assert_eq!(&frame.bytes()[room..], &[1, 2, 3]);
        frame.trim_front(room).unwrap();
        assert_eq!(frame.trim_front(3), Err(TooShort));
        assert_eq!(frame.bytes(), &[1, 2, 3]);
        pool.free(frame);
    }

    #[test]
    fn the_tail_ends_with_the_chunk() {
        let mut pool = pool();
        let mut frame = pool.alloc_for(64).unwrap();
        let room = frame.tailroom();
        assert_eq!(frame.grow_tail(room + 1), Err(NoTailroom));
        frame.grow_tail(room).unwrap();
        assert_eq!(frame.offset() + frame.len(), CHUNK);
        assert!(frame.window::<CHUNK>().is_none());
        pool.free(frame);
    }

    use crate::frame::{NoHeadroom, NoTailroom, TooShort};
}
