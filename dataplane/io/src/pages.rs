//! Anonymous memory in 2 MiB pages where the machine has them, and tables that live in it.

use std::io;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;

use zerocopy::FromZeros;

/// Bytes of one huge page on x86-64 and on 4 KiB-granule arm64.
pub const HUGE: usize = 2 << 20;

/// Bytes of a page of the smallest size.
const PAGE: usize = 4096;

/// Mappings of at least so many huge pages are not rounded up to whole ones: the rest at their end is a small part of
/// what is looked up, and up to a huge page of memory.
const ROUNDED: usize = 16;

/// An anonymous, private, zeroed mapping; unmapped on drop.
#[derive(Debug)]
pub(crate) struct Mapping {
    base: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the mapping is plain memory that this value owns; nothing about it is tied to a thread.
unsafe impl Send for Mapping {}
// SAFETY: a shared `Mapping` only gives out its address and size.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `bytes`, rounded up to whole huge pages, from the hugetlbfs pool.
    pub(crate) fn huge(bytes: usize) -> io::Result<Mapping> {
        Mapping::with_flags(bytes.next_multiple_of(HUGE), libc::MAP_HUGETLB)
    }

    /// Maps `bytes`, aligned to a huge page and, if they are few, rounded up to whole ones, of ordinary pages, and asks
    /// the kernel to back them with transparent huge pages when it can.
    pub(crate) fn ordinary(bytes: usize) -> io::Result<Mapping> {
        let bytes = bytes.next_multiple_of(if bytes < ROUNDED * HUGE { HUGE } else { PAGE });
        // Ask for one huge page more than needed, then give back the two ends around the aligned middle.
        let mut whole = Mapping::with_flags(bytes + HUGE, 0)?;
        let start = whole.base.as_ptr() as usize;
        let lead = start.next_multiple_of(HUGE) - start;
        whole.give_back_front(lead);
        whole.give_back_tail(whole.bytes - bytes);
        // Advice only: without transparent huge pages the memory works all the same, one level of page table deeper.
        // SAFETY: the range is exactly this mapping.
        unsafe { libc::madvise(whole.base.as_ptr().cast(), whole.bytes, libc::MADV_HUGEPAGE) };
        Ok(whole)
    }

    /// Maps `bytes` of what `fd` offers at `offset`, shared with the kernel: a ring of an AF_XDP socket.
    pub(crate) fn of_ring(fd: BorrowedFd<'_>, bytes: usize, offset: libc::off_t) -> io::Result<Mapping> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_SHARED | libc::MAP_POPULATE;
        // SAFETY: a mapping at an address of the kernel's choice touches no memory of ours.
        let base =
            unsafe { libc::mmap(std::ptr::null_mut(), bytes, protection, flags, fd.as_raw_fd(), offset) };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast::<u8>()).ok_or_else(io::Error::last_os_error)?;
        Ok(Mapping { base, bytes })
    }

    pub(crate) fn base(&self) -> NonNull<u8> {
        self.base
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    fn with_flags(bytes: usize, flags: libc::c_int) -> io::Result<Mapping> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | flags;
        // SAFETY: an anonymous mapping at an address of the kernel's choice touches no memory of ours.
        let base = unsafe { libc::mmap(std::ptr::null_mut(), bytes, protection, flags, -1, 0) };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast::<u8>()).ok_or_else(io::Error::last_os_error)?;
        Ok(Mapping { base, bytes })
    }

    fn give_back_front(&mut self, bytes: usize) {
        if bytes > 0 {
            // SAFETY: the first `bytes` of the mapping are ours and are never touched again: `base` moves past them.
            unsafe { libc::munmap(self.base.as_ptr().cast(), bytes) };
            // SAFETY: `bytes` is less than the mapping's size.
            self.base = unsafe { self.base.add(bytes) };
            self.bytes -= bytes;
        }
    }

    fn give_back_tail(&mut self, bytes: usize) {
        if bytes > 0 {
            self.bytes -= bytes;
            // SAFETY: `bytes` before the subtraction bounded this offset, so the address is inside the mapping.
            let tail = unsafe { self.base.add(self.bytes) };
            // SAFETY: the last `bytes` of the mapping are ours and are never touched again: the size excludes them.
            unsafe { libc::munmap(tail.as_ptr().cast(), bytes) };
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range is exactly this mapping, and its owner is going away.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.bytes) };
    }
}

/// A fixed-size table of plain values, zeroed at first, in huge pages when the machine has them to spare.
///
/// A table of a million 64-byte entries costs about 7 cycles more a look-up in 4 KiB pages, so tables prefer the huge
/// page pool, then transparent huge pages, then what there is.
pub struct Table<T> {
    mapping: Mapping,
    len: usize,
    plain: PhantomData<T>,
}

impl<T: FromZeros> Table<T> {
    /// Maps a table of `len` zeroed values.
    ///
    /// # Errors
    /// The kernel's, when not even ordinary pages are to be had.
    pub fn zeroed(len: usize) -> io::Result<Table<T>> {
        assert!(align_of::<T>() <= PAGE, "a table's values are at most page-aligned");
        let bytes = (len * size_of::<T>()).max(1);
        // A small table would waste most of a huge page from the pool that packet memory needs.
        let huge = if bytes >= HUGE { Mapping::huge(bytes) } else { Err(io::ErrorKind::Other.into()) };
        let mapping = huge.or_else(|_| Mapping::ordinary(bytes))?;
        Ok(Table { mapping, len, plain: PhantomData })
    }
}

impl<T> Deref for Table<T> {
    type Target = [T];

    #[inline]
    fn deref(&self) -> &[T] {
        // SAFETY: the mapping holds `len` values of `T` (or more), page-aligned, and zero is a valid `T` (`FromZeros`).
        unsafe { std::slice::from_raw_parts(self.mapping.base().as_ptr().cast(), self.len) }
    }
}

impl<T> DerefMut for Table<T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `deref`; `&mut self` makes the borrow exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.mapping.base().as_ptr().cast(), self.len) }
    }
}

// SAFETY: the table owns its memory and its values; it moves between threads when they may.
unsafe impl<T: Send> Send for Table<T> {}
// SAFETY: shared access only gives out `&[T]`.
unsafe impl<T: Sync> Sync for Table<T> {}

/// Asks the processor to bring the cache line of `slice[index]` near, for reading or writing soon.
///
/// Any index is fine: one past the end is a wasted hint, not a fault.
#[inline(always)]
pub fn prefetch<T>(slice: &[T], index: usize) {
    let address = slice.as_ptr().wrapping_add(index);
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch never faults, whatever the address.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(address.cast())
    };
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_starts_zeroed_and_keeps_what_is_written() {
        let mut table = Table::<[u64; 8]>::zeroed(100_000).unwrap();
        assert!(table.iter().all(|line| line == &[0; 8]));
        table[99_999] = [7; 8];
        assert_eq!(table[99_999], [7; 8]);
        assert_eq!(table.as_ptr() as usize % 4096, 0);
    }

    #[test]
    fn ordinary_mappings_are_aligned_to_huge_pages() {
        let mapping = Mapping::ordinary(3 * HUGE + 1).unwrap();
        assert_eq!(mapping.base().as_ptr() as usize % HUGE, 0);
        assert_eq!(mapping.bytes(), 4 * HUGE);
    }

    #[test]
    fn prefetching_past_the_end_does_no_harm() {
        prefetch(&[1u8, 2, 3], 1 << 40);
    }
}
