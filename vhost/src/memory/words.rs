//! Words that are shared with a guest: each read and written once, atomically, inside bounds.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

/// A run of mapped bytes that somebody else may change at any time. Words in it are little-endian, as virtio has them, and
/// aligned to their size.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Words {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: the address may be used from any thread; every access through it is atomic.
unsafe impl Send for Words {}
// SAFETY: as above.
unsafe impl Sync for Words {}

macro_rules! word {
    ($load:ident, $store:ident, $cell:ident, $atomic:ty, $int:ty) => {
        #[inline(always)]
        pub(crate) fn $load(&self, offset: usize, order: Ordering) -> $int {
            <$int>::from_le(self.$cell(offset).load(order))
        }

        #[inline(always)]
        pub(crate) fn $store(&self, offset: usize, value: $int, order: Ordering) {
            self.$cell(offset).store(value.to_le(), order);
        }

        #[inline(always)]
        fn $cell(&self, offset: usize) -> &$atomic {
            let at = self.at(offset, size_of::<$int>());
            // SAFETY: mapped for as long as `self` (`new`), inside it and aligned (`at`); all that we do there is atomic.
            unsafe { <$atomic>::from_ptr(at.as_ptr().cast()) }
        }
    };
}

impl Words {
    /// # Safety
    /// `len` bytes from `base` on are mapped for as long as the value is used.
    pub(crate) unsafe fn new(base: NonNull<u8>, len: usize) -> Words {
        Words { base, len }
    }

    pub(crate) fn base(&self) -> NonNull<u8> {
        self.base
    }

    word!(load8, store8, cell8, AtomicU8, u8);
    word!(load16, store16, cell16, AtomicU16, u16);
    word!(load32, store32, cell32, AtomicU32, u32);
    word!(load64, store64, cell64, AtomicU64, u64);

    /// The words of 64 bits from `offset` on, `count` of them, in the guest's byte order.
    #[inline(always)]
    pub(crate) fn row64(&self, offset: usize, count: usize) -> &[AtomicU64] {
        let first = self.at(offset, count * size_of::<u64>());
        // SAFETY: mapped for as long as `self` (`new`), inside it and aligned (`at`); all that is done there is atomic.
        unsafe { std::slice::from_raw_parts(first.as_ptr().cast(), count) }
    }

    /// Sets bits of a byte; others may set theirs at the same time.
    #[inline(always)]
    pub(crate) fn set_bits(&self, offset: usize, bits: u8) {
        self.cell8(offset).fetch_or(bits, Ordering::Relaxed);
    }

    /// Asks for the cache line at `offset`; any offset is fine.
    #[inline(always)]
    pub(crate) fn prefetch(&self, offset: usize) {
        crate::copy::prefetch(self.base.as_ptr().wrapping_add(offset));
    }

    /// The same for a line that will be written.
    #[inline(always)]
    pub(crate) fn prefetch_to_write(&self, offset: usize) {
        crate::copy::prefetch_to_write(self.base.as_ptr().wrapping_add(offset));
    }

    #[inline(always)]
    fn at(&self, offset: usize, size: usize) -> NonNull<u8> {
        if offset > self.len || self.len - offset < size {
            outside();
        }
        // SAFETY: inside the bytes that are mapped (checked above).
        let at = unsafe { self.base.add(offset) };
        debug_assert!((at.as_ptr() as usize).is_multiple_of(size.clamp(1, 8)));
        at
    }
}

#[cold]
#[inline(never)]
fn outside() -> ! {
    panic!("a ring's word lies outside the ring: its size was not checked");
}
