//! Bytes between guest memory and ours: raw pointers all the way, and no call for small packets.

use std::ptr::NonNull;

/// Asks the processor to bring a cache line near; any address is fine.
#[inline(always)]
pub(crate) fn prefetch(address: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch never faults, whatever the address.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(address.cast())
    };
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

/// The same for a line that will be written: it is asked for exclusively at once.
#[inline(always)]
pub(crate) fn prefetch_to_write(address: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch never faults, whatever the address; processors of x86-64 without PREFETCHW take it for a no-op.
    unsafe {
        std::arch::asm!("prefetchw [{}]", in(reg) address, options(nostack, preserves_flags, readonly))
    };
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

/// Copies `len` bytes; 32 to 256 of them without a call.
///
/// Guest memory may change meanwhile: then some mixture arrives, and nobody but the guest is the worse for it.
///
/// # Safety
/// `len` bytes are mapped at both ends, do not overlap, and nobody else in this process uses the one of the two that is ours.
#[inline(always)]
pub(crate) unsafe fn copy(from: NonNull<u8>, to: NonNull<u8>, len: usize) {
    #[cfg(target_arch = "x86_64")]
    match len {
        // SAFETY: the lengths are those of the arm; the rest is the caller's word, in all of these.
        32..=64 => return unsafe { wide::up_to_64(from, to, len) },
        // SAFETY: as above.
        65..=128 => return unsafe { wide::up_to_128(from, to, len) },
        // SAFETY: as above.
        129..=256 => return unsafe { wide::up_to_256(from, to, len) },
        _ => {}
    }
    // SAFETY: the caller's word.
    unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to.as_ptr(), len) }
}

/// Copies of a first and a last part that overlap in the middle, so that each takes a fixed number of registers. All is
/// read before anything is written: a read behind a write that is 4096 bytes off, as packets in chunks often are, waits
/// for it.
#[cfg(target_arch = "x86_64")]
mod wide {
    use std::arch::x86_64::__m256i;
    use std::ptr::NonNull;

    /// # Safety
    /// The register's bytes from offset `at` on are mapped.
    #[inline(always)]
    unsafe fn load(from: NonNull<u8>, at: usize) -> __m256i {
        // SAFETY: mapped (the caller's word).
        let place = unsafe { from.add(at) };
        // SAFETY: as above; an unaligned read.
        unsafe { place.cast::<__m256i>().read_unaligned() }
    }

    /// # Safety
    /// The register's bytes from offset `at` on are mapped, and ours or the guest's.
    #[inline(always)]
    unsafe fn store(to: NonNull<u8>, at: usize, value: __m256i) {
        // SAFETY: mapped (the caller's word).
        let place = unsafe { to.add(at) };
        // SAFETY: as above; an unaligned write.
        unsafe { place.cast::<__m256i>().write_unaligned(value) }
    }

    /// A copy that takes so many registers for the first part and as many for the last.
    macro_rules! copy_of {
        ($name:ident, $($at:literal $head:ident $tail:ident),+) => {
            /// # Safety
            /// As [`super::copy`], with a length from half its limit to the limit.
            #[inline(always)]
            pub(super) unsafe fn $name(from: NonNull<u8>, to: NonNull<u8>, len: usize) {
                let last = len - 32 * [$($at),+].len();
                // SAFETY: no offset is beyond `len - 32`, in all of these.
                $(let $head = unsafe { load(from, 32 * $at) };)+
                // SAFETY: as above.
                $(let $tail = unsafe { load(from, last + 32 * $at) };)+
                // SAFETY: as above.
                $(unsafe { store(to, 32 * $at, $head) };)+
                // SAFETY: as above.
                $(unsafe { store(to, last + 32 * $at, $tail) };)+
            }
        };
    }

    copy_of!(up_to_64, 0 a b);
    copy_of!(up_to_128, 0 a b, 1 c d);
    copy_of!(up_to_256, 0 a b, 1 c d, 2 e f, 3 g h);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_length_is_copied_whole_and_no_byte_more() {
        let from: Vec<u8> = (0..600).map(|i| (i % 251) as u8).collect();
        for len in 0..=520 {
            let mut to = vec![0xeeu8; 600];
            let (a, b) = (NonNull::from(&from[..]).cast(), NonNull::from(&mut to[..]).cast());
            // SAFETY: both have 600 bytes, which is more than any `len`.
            unsafe { copy(a, b, len) };
            assert_eq!(to[..len], from[..len]);
            assert!(to[len..].iter().all(|&byte| byte == 0xee), "{len}");
        }
    }
}
