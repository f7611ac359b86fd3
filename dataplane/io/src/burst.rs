//! The burst: a short first-in, first-out queue of frames, of fixed size, on the stack or in its owner.

use std::mem::MaybeUninit;

use crate::frame::Frame;

/// Frames in a burst. Measured: 32 to 64 is where prefetching pays best; larger bursts fall out of the L1 cache.
pub const BURST: usize = 64;

/// Up to [`BURST`] frames, in order.
pub struct Burst {
    frames: [MaybeUninit<Frame>; BURST],
    /// `frames[start..end]` are initialised and owned; the rest is not. Both are zero when it is empty.
    start: usize,
    end: usize,
}

impl Default for Burst {
    fn default() -> Burst {
        Burst::new()
    }
}

impl Burst {
    /// An empty burst.
    #[must_use]
    pub const fn new() -> Burst {
        Burst { frames: [const { MaybeUninit::uninit() }; BURST], start: 0, end: 0 }
    }

    /// Frames in it.
    #[inline(always)]
    #[must_use]
    pub fn len(&self) -> usize {
        self.end - self.start
    }

    /// Whether it has none.
    #[inline(always)]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.end == 0
    }

    /// Frames that can still be pushed.
    #[inline]
    #[must_use]
    pub fn room(&self) -> usize {
        BURST - self.len()
    }

    /// Adds a frame at the end.
    ///
    /// # Errors
    /// Gives the frame back when the burst is full.
    #[inline(always)]
    pub fn push(&mut self, frame: Frame) -> Result<(), Frame> {
        let Some(slot) = self.frames.get_mut(self.end) else { return self.push_compacted(frame) };
        slot.write(frame);
        self.end += 1;
        Ok(())
    }

    /// Adds a frame behind the last slot: at the end of what has moved to the front.
    #[cold]
    #[inline(never)]
    fn push_compacted(&mut self, frame: Frame) -> Result<(), Frame> {
        if self.start == 0 {
            return Err(frame);
        }
        self.compact();
        self.frames[self.end].write(frame);
        self.end += 1;
        Ok(())
    }

    /// Adds frames at the end for as long as there is room; what the iterator still has is not asked for.
    #[inline(always)]
    pub fn extend(&mut self, frames: impl IntoIterator<Item = Frame>) {
        if self.start > 0 {
            self.compact();
        }
        let mut end = self.end;
        for (slot, frame) in self.frames[self.end..].iter_mut().zip(frames) {
            slot.write(frame);
            end += 1;
        }
        self.end = end;
    }

    /// Takes the frame at the front.
    #[inline(always)]
    pub fn pop(&mut self) -> Option<Frame> {
        if self.is_empty() {
            return None;
        }
        // SAFETY: `start` is inside `start..end`, so the slot is initialised; moving `start` past it gives up ownership.
        let frame = unsafe { self.frames[self.start].assume_init_read() };
        self.start += 1;
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
        Some(frame)
    }

    /// Moves up to `count` frames from the front to the end of `into`, for as long as there is room; returns how many.
    #[inline]
    pub fn move_front(&mut self, into: &mut Burst, count: usize) -> usize {
        let count = count.min(self.len()).min(into.room());
        if into.end + count > BURST {
            into.compact();
        }
        let moving = &self.frames[self.start..][..count];
        let room = &mut into.frames[into.end..][..count];
        // SAFETY: as many slots each, of two bursts; `moving` is inside `start..end`, so initialised, and given up below.
        unsafe { std::ptr::copy_nonoverlapping(moving.as_ptr(), room.as_mut_ptr(), count) };
        into.end += count;
        self.start += count;
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
        count
    }

    /// Takes every frame, first to last: cheaper than popping them one by one.
    #[inline(always)]
    pub fn drain(&mut self) -> Drain<'_> {
        let held = self.start..self.end;
        (self.start, self.end) = (0, 0);
        Drain { slots: self.frames[held].iter() }
    }

    /// The frames, first to last.
    #[inline(always)]
    pub fn frames(&self) -> &[Frame] {
        let held = &self.frames[self.start..self.end];
        // SAFETY: `MaybeUninit<Frame>` has `Frame`'s layout, and `start..end` is initialised.
        unsafe { &*(std::ptr::from_ref(held) as *const [Frame]) }
    }

    /// The frames, first to last, to change.
    #[inline(always)]
    pub fn frames_mut(&mut self) -> &mut [Frame] {
        let held = &mut self.frames[self.start..self.end];
        // SAFETY: as in `frames`; `&mut self` makes the borrow exclusive.
        unsafe { &mut *(std::ptr::from_mut(held) as *mut [Frame]) }
    }

    /// Moves what is left to the front of the array.
    #[cold]
    fn compact(&mut self) {
        let len = self.len();
        for slot in 0..len {
            self.frames.swap(slot, self.start + slot);
        }
        (self.start, self.end) = (0, len);
    }
}

impl Drop for Burst {
    fn drop(&mut self) {
        // Each frame's own drop takes it home and, in a debug build, names the bug.
        while self.pop().is_some() {}
    }
}

/// The frames of a burst on their way out, see [`Burst::drain`].
pub struct Drain<'a> {
    /// All of them initialised and owned by nobody else: the burst gave them up.
    slots: std::slice::Iter<'a, MaybeUninit<Frame>>,
}

impl Iterator for Drain<'_> {
    type Item = Frame;

    #[inline(always)]
    fn next(&mut self) -> Option<Frame> {
        let slot = self.slots.next()?;
        // SAFETY: the slot is initialised, and the iterator never comes back to it.
        Some(unsafe { slot.assume_init_read() })
    }

    #[inline(always)]
    fn size_hint(&self) -> (usize, Option<usize>) {
        self.slots.size_hint()
    }
}

impl ExactSizeIterator for Drain<'_> {}

impl Drop for Drain<'_> {
    #[inline(always)]
    fn drop(&mut self) {
        // Each frame's own drop takes it home, as in `Burst`'s.
        self.for_each(drop);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{FramePool, Hugepages, Region};

    #[test]
    fn frames_move_to_another_burst_in_order_as_far_as_it_has_room() {
        let mut pool = FramePool::new(Region::map(1024, Hugepages::Off).unwrap());
        let (mut from, mut into) = (Burst::new(), Burst::new());
        let mut fill = |burst: &mut Burst, numbers: std::ops::Range<u8>| {
            for number in numbers {
                let mut frame = pool.alloc().unwrap();
                frame.fill_from(&[number]).unwrap();
                burst.push(frame).unwrap();
            }
        };
        fill(&mut from, 0..64);
        fill(&mut into, 100..103);
        assert_eq!(from.move_front(&mut into, 10), 10);
        let first = into.pop().unwrap();
        assert_eq!(first.bytes(), [100]);
        // One place at the front of the array is free again: what is there moves to it.
        assert_eq!(from.move_front(&mut into, 64), 52);
        assert_eq!((from.len(), into.len()), (2, BURST));
        let numbers: Vec<u8> = into.frames().iter().map(|frame| frame.bytes()[0]).collect();
        assert_eq!(numbers, [101, 102].into_iter().chain(0..62).collect::<Vec<u8>>());
        assert_eq!(from.frames()[0].bytes(), [62]);
        pool.free(first);
        pool.free_burst(&mut from);
        pool.free_burst(&mut into);
    }

    #[test]
    fn frames_leave_in_the_order_they_came_across_the_end_of_the_array() {
        let mut pool = FramePool::new(Region::map(1024, Hugepages::Off).unwrap());
        let mut burst = Burst::new();
        let (mut put, mut got) = (0u8, 0u8);
        for _ in 0..500 {
            while burst.room() > 0 {
                let mut frame = pool.alloc().unwrap();
                frame.fill_from(&[put]).unwrap();
                put = put.wrapping_add(1);
                burst.push(frame).unwrap();
            }
            let refused = pool.alloc().unwrap();
            let refused = burst.push(refused).unwrap_err();
            pool.free(refused);
            assert_eq!(burst.frames().len(), BURST);
            for _ in 0..7 {
                let frame = burst.pop().unwrap();
                assert_eq!(frame.bytes(), &[got]);
                got = got.wrapping_add(1);
                pool.free(frame);
            }
        }
        pool.free_burst(&mut burst);
        assert!(burst.is_empty());
    }

    #[test]
    fn a_burst_extended_and_drained_keeps_the_order_and_asks_for_no_more_than_fits() {
        let mut pool = FramePool::new(Region::map(1024, Hugepages::Off).unwrap());
        let mut burst = Burst::new();
        let mut made = 0u8;
        let mut next = |pool: &mut FramePool| {
            let mut frame = pool.alloc().unwrap();
            frame.fill_from(&[made]).unwrap();
            made += 1;
            frame
        };
        burst.extend((0..3).map(|_| next(&mut pool)));
        let first = burst.pop().unwrap();
        pool.free(first);
        burst.extend((0..100).map(|_| next(&mut pool)));
        assert_eq!((burst.len(), made), (BURST, BURST as u8 + 1));
        let drained: Vec<u8> = burst
            .drain()
            .map(|frame| {
                let number = frame.bytes()[0];
                pool.free(frame);
                number
            })
            .collect();
        assert_eq!(drained, (1..=BURST as u8).collect::<Vec<_>>());
        assert!(burst.is_empty());
    }

    #[test]
    fn frames_left_in_a_drain_are_not_lost() {
        let mut pool = FramePool::new(Region::map(1024, Hugepages::Off).unwrap());
        let mut burst = Burst::new();
        burst.extend((0..4).map(|_| pool.alloc().unwrap()));
        let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let mut frames = burst.drain();
            frames.next().into_iter().for_each(|frame| pool.free(frame));
            panic!("a worker fell over");
        }));
        assert!(caught.is_err());
        assert_eq!((burst.len(), pool.region().strays()), (0, 3));
    }
}
