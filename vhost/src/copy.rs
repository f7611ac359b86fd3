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

/// Copies `len` bytes; up to 256 of them without a call.
///
/// Guest memory may change meanwhile: then some mixture arrives, and nobody but the guest is the worse for it.
///
/// # Safety
/// `len` bytes are mapped at both ends, do not overlap, and nobody else in this process uses the one of the two that is ours.
#[inline(always)]
pub(crate) unsafe fn copy(from: NonNull<u8>, to: NonNull<u8>, len: usize) {
    match len {
        // SAFETY: the lengths are those of the arm; the rest is the caller's word, in all of these.
        33..=64 => unsafe { ends::<32>(from, to, len) },
        // SAFETY: as above.
        65..=128 => unsafe { ends::<64>(from, to, len) },
        // SAFETY: as above.
        129..=256 => unsafe { ends::<128>(from, to, len) },
        // SAFETY: as above.
        16..=32 => unsafe { ends::<16>(from, to, len) },
        // SAFETY: as above.
        _ => unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to.as_ptr(), len) },
    }
}

/// Copies the first and the last `N` bytes of a run that is `N` to `2 * N` long.
///
/// # Safety
/// As [`copy`], with such a `len`.
#[inline(always)]
unsafe fn ends<const N: usize>(from: NonNull<u8>, to: NonNull<u8>, len: usize) {
    debug_assert!(len >= N && len <= 2 * N);
    let (from, to, last) = (from.cast::<[u8; N]>(), to.cast::<[u8; N]>(), len - N);
    // SAFETY: `N` bytes fit (`len` is at least that).
    let head = unsafe { from.read() };
    // SAFETY: `last + N` is `len`.
    let tail = unsafe { from.byte_add(last) };
    // SAFETY: as above.
    let tail = unsafe { tail.read() };
    // SAFETY: as for the reading.
    unsafe { to.write(head) };
    // SAFETY: as above.
    let end = unsafe { to.byte_add(last) };
    // SAFETY: as above.
    unsafe { end.write(tail) };
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
