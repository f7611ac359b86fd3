//! Sixteen bytes compared in one instruction.

/// A bit for each of the sixteen bytes that equals `wanted`, the first byte's the lowest.
#[inline(always)]
#[must_use]
pub fn equal(bytes: &[u8; 16], wanted: u8) -> u32 {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{__m128i, _mm_cmpeq_epi8, _mm_loadu_si128, _mm_movemask_epi8, _mm_set1_epi8};
        // SAFETY: sixteen readable bytes, of any alignment; SSE2 is part of x86-64.
        let held = unsafe { _mm_loadu_si128(bytes.as_ptr().cast::<__m128i>()) };
        // SAFETY: SSE2 is part of x86-64.
        let wanted = unsafe { _mm_set1_epi8(wanted as i8) };
        // SAFETY: SSE2 is part of x86-64.
        let same = unsafe { _mm_cmpeq_epi8(held, wanted) };
        // SAFETY: SSE2 is part of x86-64.
        unsafe { _mm_movemask_epi8(same) as u32 }
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        bytes.iter().enumerate().fold(0, |bits, (lane, &held)| bits | u32::from(held == wanted) << lane)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_equal_byte_has_its_bit() {
        let mut bytes = [0u8; 16];
        (bytes[0], bytes[7], bytes[15]) = (0xff, 0xff, 0xff);
        assert_eq!(equal(&bytes, 0xff), 1 | 1 << 7 | 1 << 15);
        assert_eq!(equal(&bytes, 0), 0x7f7e);
    }
}
