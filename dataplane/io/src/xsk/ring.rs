//! The rings that an AF_XDP socket shares with the kernel: one side produces slots, the other consumes them.
//!
//! Both indices run freely and wrap at 2^32; a slot is the index modulo the ring's size, a power of two
//! (`net/xdp/xsk_queue.h`). The words are read through raw pointers and atomics, once, and what the kernel says is
//! bounded before it is used.

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use zerocopy::FromBytes;

use crate::pages::Mapping;

/// A received or to be sent packet: `struct xdp_desc` of `linux/if_xdp.h`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes)]
#[repr(C)]
pub(crate) struct Desc {
    /// Where the packet starts, in bytes from the start of the UMEM.
    pub(crate) address: u64,
    /// Its length in bytes.
    pub(crate) len: u32,
    /// `XDP_PKT_CONTD` and its like.
    pub(crate) options: u32,
}

/// The memory of one ring.
struct Shared<T> {
    producer: NonNull<AtomicU32>,
    consumer: NonNull<AtomicU32>,
    flags: NonNull<AtomicU32>,
    slots: NonNull<T>,
    size: u32,
    _memory: Arc<Mapping>,
}

// SAFETY: the pointers are into `_memory`, which is held as long and is not tied to a thread; `T` is plain data.
unsafe impl<T: Send> Send for Shared<T> {}

impl<T: FromBytes + Copy> Shared<T> {
    /// A ring of `size` slots that lies in `memory` at `offsets`; `None` when it would not lie inside, aligned, or when
    /// `size` is no power of two.
    fn over(memory: Arc<Mapping>, offsets: &libc::xdp_ring_offset, size: u32) -> Option<Shared<T>> {
        let slots = place::<T>(&memory, offsets.desc, size as usize)?;
        let producer = place::<AtomicU32>(&memory, offsets.producer, 1)?;
        let consumer = place::<AtomicU32>(&memory, offsets.consumer, 1)?;
        let flags = place::<AtomicU32>(&memory, offsets.flags, 1)?;
        size.is_power_of_two().then_some(Shared { producer, consumer, flags, slots, size, _memory: memory })
    }

    #[inline(always)]
    fn producer(&self) -> &AtomicU32 {
        // SAFETY: `place` checked that the word lies inside the mapping, aligned; it is only ever used as an atomic.
        unsafe { self.producer.as_ref() }
    }

    #[inline(always)]
    fn consumer(&self) -> &AtomicU32 {
        // SAFETY: as in `producer`.
        unsafe { self.consumer.as_ref() }
    }

    #[inline(always)]
    fn needs_wakeup(&self) -> bool {
        // SAFETY: as in `producer`.
        let flags = unsafe { self.flags.as_ref() };
        flags.load(Ordering::Relaxed) & libc::XDP_RING_NEED_WAKEUP != 0
    }

    #[inline(always)]
    fn slot(&self, index: u32) -> NonNull<T> {
        // SAFETY: the masked index is less than `size`, and `place` checked that `size` slots lie inside the mapping.
        unsafe { self.slots.add((index & (self.size - 1)) as usize) }
    }
}

/// The address of `count` values of `T` at `offset` into `memory`, if they lie inside it and are aligned.
fn place<T>(memory: &Mapping, offset: u64, count: usize) -> Option<NonNull<T>> {
    let start = usize::try_from(offset).ok()?;
    let end = start.checked_add(count.checked_mul(size_of::<T>())?)?;
    if end > memory.bytes() || !start.is_multiple_of(align_of::<T>()) {
        return None;
    }
    // SAFETY: `start` is inside the mapping, checked above.
    Some(unsafe { memory.base().add(start) }.cast())
}

/// Our side of a ring that we fill: the fill ring (`u64`) and the transmit ring (`Desc`).
pub(crate) struct Producer<T> {
    ring: Shared<T>,
    /// The next slot to write.
    next: u32,
    /// What the kernel is known to have consumed.
    consumed: u32,
}

impl<T: FromBytes + Copy> Producer<T> {
    pub(crate) fn over(
        memory: Arc<Mapping>,
        offsets: &libc::xdp_ring_offset,
        size: u32,
    ) -> Option<Producer<T>> {
        let ring = Shared::over(memory, offsets, size)?;
        let next = ring.producer().load(Ordering::Relaxed);
        let consumed = ring.consumer().load(Ordering::Acquire);
        Some(Producer { ring, next, consumed })
    }

    /// Free slots, the kernel's progress being asked for only when fewer than `want` are known to be free.
    #[inline(always)]
    pub(crate) fn room(&mut self, want: u32) -> u32 {
        let known = self.ring.size - self.pending();
        if known >= want { known } else { self.ring.size - self.unconsumed() }
    }

    /// Writes the next slot, which the kernel sees after [`Producer::publish`]; false when the ring is full.
    #[inline(always)]
    pub(crate) fn push(&mut self, value: T) -> bool {
        if self.room(1) == 0 {
            return false;
        }
        // SAFETY: the slot is inside the ring and, not being published, ours alone.
        unsafe { self.ring.slot(self.next).write(value) };
        self.next = self.next.wrapping_add(1);
        true
    }

    /// Shows the kernel everything that was pushed.
    #[inline(always)]
    pub(crate) fn publish(&mut self) {
        self.ring.producer().store(self.next, Ordering::Release);
    }

    /// Slots that the kernel has not consumed, asked for now.
    #[inline(always)]
    pub(crate) fn unconsumed(&mut self) -> u32 {
        let consumed = self.ring.consumer().load(Ordering::Acquire);
        // The kernel may only move forward, and not past what we pushed; anything else would be taken for free room.
        if self.next.wrapping_sub(consumed) <= self.pending() {
            self.consumed = consumed;
        }
        self.pending()
    }

    /// Whether the kernel asks to be woken before it goes on with this ring.
    #[inline(always)]
    pub(crate) fn needs_wakeup(&self) -> bool {
        self.ring.needs_wakeup()
    }

    #[inline(always)]
    fn pending(&self) -> u32 {
        self.next.wrapping_sub(self.consumed)
    }
}

/// Our side of a ring that the kernel fills: the receive ring (`Desc`) and the completion ring (`u64`).
pub(crate) struct Consumer<T> {
    ring: Shared<T>,
    /// The next slot to read.
    next: u32,
    /// What the kernel is known to have produced.
    produced: u32,
}

impl<T: FromBytes + Copy> Consumer<T> {
    pub(crate) fn over(
        memory: Arc<Mapping>,
        offsets: &libc::xdp_ring_offset,
        size: u32,
    ) -> Option<Consumer<T>> {
        let ring = Shared::over(memory, offsets, size)?;
        let next = ring.consumer().load(Ordering::Relaxed);
        // Nothing counts as produced until `available` has asked.
        Some(Consumer { ring, next, produced: next })
    }

    /// Slots to read, the kernel being asked only when fewer than `want` are known.
    #[inline(always)]
    pub(crate) fn available(&mut self, want: u32) -> u32 {
        if self.produced.wrapping_sub(self.next) < want {
            let produced = self.ring.producer().load(Ordering::Acquire);
            // More than the ring holds cannot be: such a word is not believed.
            if produced.wrapping_sub(self.next) <= self.ring.size {
                self.produced = produced;
            }
        }
        self.produced.wrapping_sub(self.next)
    }

    /// Reads the next slot of those that [`Consumer::available`] found.
    #[inline(always)]
    pub(crate) fn pop(&mut self) -> Option<T> {
        if self.next == self.produced {
            return None;
        }
        // SAFETY: the slot is inside the ring, holds any bytes (`FromBytes`), and the kernel leaves it alone until `release`.
        let value = unsafe { self.ring.slot(self.next).read_volatile() };
        self.next = self.next.wrapping_add(1);
        Some(value)
    }

    /// Gives the slots that were read back to the kernel.
    #[inline(always)]
    pub(crate) fn release(&mut self) {
        self.ring.consumer().store(self.next, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OFFSETS: libc::xdp_ring_offset =
        libc::xdp_ring_offset { producer: 0, consumer: 64, desc: 256, flags: 128 };
    const SIZE: u32 = 8;

    /// Both sides of a ring on plain memory whose indices stand at `start`.
    fn pair(start: u32) -> (Producer<u64>, Consumer<u64>) {
        let memory = Arc::new(Mapping::ordinary(4096).unwrap());
        let words = Shared::<u64>::over(memory.clone(), &OFFSETS, SIZE).unwrap();
        words.producer().store(start, Ordering::Relaxed);
        words.consumer().store(start, Ordering::Relaxed);
        let producer = Producer::over(memory.clone(), &OFFSETS, SIZE).unwrap();
        (producer, Consumer::over(memory, &OFFSETS, SIZE).unwrap())
    }

    #[test]
    fn indices_wrap_past_the_largest_number() {
        let (mut producer, mut consumer) = pair(u32::MAX - 2);
        for round in 0..40u64 {
            for i in 0..u64::from(SIZE) {
                assert!(producer.push(round * 100 + i));
            }
            assert!(!producer.push(0), "a full ring takes no more");
            assert_eq!(consumer.available(1), 0, "nothing is seen before it is published");
            producer.publish();
            assert_eq!(consumer.available(SIZE), SIZE);
            for i in 0..u64::from(SIZE) {
                assert_eq!(consumer.pop(), Some(round * 100 + i));
            }
            assert_eq!(consumer.pop(), None);
            assert_eq!(producer.room(1), 0, "what is read is not free before it is released");
            consumer.release();
            assert_eq!(producer.room(1), SIZE);
        }
    }

    #[test]
    fn partial_batches_across_the_wrap_keep_their_order() {
        let (mut producer, mut consumer) = pair(u32::MAX);
        let (mut put, mut got) = (0u64, 0u64);
        for step in 1..200u32 {
            for _ in 0..producer.room(SIZE).min(step % 7) {
                assert!(producer.push(put));
                put += 1;
            }
            producer.publish();
            for _ in 0..consumer.available(SIZE).min(step % 5) {
                assert_eq!(consumer.pop(), Some(got));
                got += 1;
            }
            consumer.release();
        }
        assert!(put > 300 && put - got <= u64::from(SIZE));
    }

    #[test]
    fn indices_that_cannot_be_are_not_believed() {
        let (mut producer, mut consumer) = pair(5);
        producer.push(1);
        producer.ring.consumer().store(1000, Ordering::Relaxed);
        assert_eq!(producer.unconsumed(), 1);
        consumer.ring.producer().store(5 + SIZE + 1, Ordering::Relaxed);
        assert_eq!(consumer.available(1), 0);
    }

    #[test]
    fn a_ring_outside_its_memory_is_refused() {
        let memory = Arc::new(Mapping::ordinary(4096).unwrap());
        let bytes = memory.bytes() as u64;
        let outside = libc::xdp_ring_offset { desc: bytes - 8, ..OFFSETS };
        assert!(Producer::<u64>::over(memory.clone(), &outside, SIZE).is_none());
        let askew = libc::xdp_ring_offset { flags: 2, ..OFFSETS };
        assert!(Producer::<u64>::over(memory.clone(), &askew, SIZE).is_none());
        assert!(Consumer::<u64>::over(memory, &OFFSETS, 6).is_none());
    }

    #[test]
    fn two_threads_pass_every_value_once_and_in_order() {
        const VALUES: u64 = 200_000;
        let (mut producer, mut consumer) = pair(u32::MAX - 1000);
        let sender = std::thread::spawn(move || {
            let mut next = 0;
            while next < VALUES {
                while next < VALUES && producer.push(next) {
                    next += 1;
                }
                producer.publish();
                std::thread::yield_now();
            }
        });
        let mut expected = 0;
        while expected < VALUES {
            for _ in 0..consumer.available(1) {
                assert_eq!(consumer.pop(), Some(expected));
                expected += 1;
            }
            consumer.release();
            std::thread::yield_now();
        }
        sender.join().unwrap();
    }
}
