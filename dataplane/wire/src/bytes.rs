//! Big-endian words at constant offsets of fixed-size windows.
//!
//! With a constant offset into an array the bounds checks are decided by the compiler, and what is left is one load.

/// The `M` bytes at `at`, as one load: bytes picked one by one would stay single loads once other code uses them too.
#[inline(always)]
pub(crate) fn array<const N: usize, const M: usize>(window: &[u8; N], at: usize) -> [u8; M] {
    let mut bytes = [0; M];
    bytes.copy_from_slice(&window[at..at + M]);
    bytes
}

/// The 16-bit word at `at`.
#[inline(always)]
pub(crate) fn be16<const N: usize>(window: &[u8; N], at: usize) -> u16 {
    u16::from_be_bytes(array(window, at))
}

/// The 32-bit word at `at`.
#[inline(always)]
pub(crate) fn be32<const N: usize>(window: &[u8; N], at: usize) -> u32 {
    u32::from_be_bytes(array(window, at))
}

/// Stores a 16-bit word at `at`.
#[inline(always)]
pub(crate) fn put16<const N: usize>(window: &mut [u8; N], at: usize, value: u16) {
    put(window, at, value.to_be_bytes());
}

/// Stores `M` bytes at `at`.
#[inline(always)]
pub(crate) fn put<const N: usize, const M: usize>(window: &mut [u8; N], at: usize, value: [u8; M]) {
    window[at..at + M].copy_from_slice(&value);
}
