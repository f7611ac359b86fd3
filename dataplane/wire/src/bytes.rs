//! Big-endian words at constant offsets of fixed-size windows.
//!
//! With a constant offset into an array the bounds checks are decided by the compiler, and what is left is one load.

/// The 16-bit word at `at`.
#[inline(always)]
pub(crate) const fn be16<const N: usize>(window: &[u8; N], at: usize) -> u16 {
    u16::from_be_bytes([window[at], window[at + 1]])
}

/// The 32-bit word at `at`.
#[inline(always)]
pub(crate) const fn be32<const N: usize>(window: &[u8; N], at: usize) -> u32 {
    u32::from_be_bytes([window[at], window[at + 1], window[at + 2], window[at + 3]])
}

/// The `M` bytes at `at`.
#[inline(always)]
pub(crate) fn array<const N: usize, const M: usize>(window: &[u8; N], at: usize) -> [u8; M] {
    std::array::from_fn(|i| window[at + i])
}

/// Stores a 16-bit word at `at`.
#[inline(always)]
pub(crate) const fn put16<const N: usize>(window: &mut [u8; N], at: usize, value: u16) {
    let bytes = value.to_be_bytes();
    window[at] = bytes[0];
    window[at + 1] = bytes[1];
}

/// Stores `M` bytes at `at`.
#[inline(always)]
pub(crate) fn put<const N: usize, const M: usize>(window: &mut [u8; N], at: usize, value: [u8; M]) {
    window[at..at + M].copy_from_slice(&value);
}
