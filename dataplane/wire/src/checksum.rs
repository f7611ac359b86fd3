//! The Internet checksum (RFC 1071): full, incremental (RFC 1624) and with pseudo headers.
//!
//! A [`Sum`] is the running one's complement sum. Sums of parts add up to the sum of the whole as long as every part
//! but the last has an even length, so a header, its pseudo header and its payload may be summed apart.

use std::net::{Ipv4Addr, Ipv6Addr};

/// A running one's complement sum of big-endian 16-bit words.
///
/// It holds 2^47 words before it overflows: more than any packet.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sum(u64);

impl Sum {
    /// The sum of nothing.
    pub const ZERO: Sum = Sum(0);

    /// Adds one word.
    #[inline(always)]
    #[must_use]
    pub const fn add16(self, word: u16) -> Sum {
        Sum(self.0 + word as u64)
    }

    /// Adds two words.
    #[inline(always)]
    #[must_use]
    pub const fn add32(self, words: u32) -> Sum {
        Sum(self.0 + (words >> 16) as u64 + (words & 0xffff) as u64)
    }

    /// Adds another sum.
    #[inline(always)]
    #[must_use]
    pub const fn add(self, other: Sum) -> Sum {
        Sum(self.0 + other.0)
    }

    /// Adds bytes; an odd last byte counts as the high half of a word, so only the last part of a packet may be odd.
    #[inline]
    #[must_use]
    pub fn add_bytes(self, bytes: &[u8]) -> Sum {
        self.add(sum(bytes))
    }

    /// The sum in 16 bits, carries wrapped round. It is zero only if every word was zero.
    #[inline(always)]
    pub const fn fold(self) -> u16 {
        fold64(self.0)
    }

    /// The checksum to send: the complement of the folded sum.
    #[inline(always)]
    pub const fn finish(self) -> u16 {
        !self.fold()
    }

    /// Whether bytes that contain their own checksum add up.
    #[inline(always)]
    pub const fn is_valid(self) -> bool {
        self.fold() == 0xffff
    }
}

/// Folds with the end-around carry of one's complement: a rotation by half adds the halves and their carry in one go.
#[inline(always)]
const fn fold64(sum: u64) -> u16 {
    let half = (sum.wrapping_add(sum.rotate_left(32)) >> 32) as u32;
    (half.wrapping_add(half.rotate_left(16)) >> 16) as u16
}

/// The sum of `bytes`.
///
/// The words are added in the machine's byte order, 64 bytes at a time into sixteen lanes that the compiler keeps in
/// vector registers; one's complement sums do not mind the order (RFC 1071 section 2B), so one swap at the end is
/// enough.
#[inline]
pub fn sum(bytes: &[u8]) -> Sum {
    let (blocks, rest) = bytes.as_chunks::<64>();
    let wide = if blocks.is_empty() { 0 } else { sum_blocks(blocks) };
    let (quads, tail) = rest.as_chunks::<4>();
    let quads: u64 = quads.iter().map(|quad| u64::from(u32::from_ne_bytes(*quad))).sum();
    let tail = match *tail {
        [a] => u32::from_ne_bytes([a, 0, 0, 0]),
        [a, b] => u32::from_ne_bytes([a, b, 0, 0]),
        [a, b, c] => u32::from_ne_bytes([a, b, c, 0]),
        _ => 0,
    };
    Sum(u64::from(u16::from_be_bytes(fold64(wide + quads + u64::from(tail)).to_ne_bytes())))
}

/// The native-order sum of whole blocks; each lane takes 32 bits a block, so it cannot overflow.
fn sum_blocks(blocks: &[[u8; 64]]) -> u64 {
    let mut lanes = [0u64; 16];
    for block in blocks {
        let (quads, _) = block.as_chunks::<4>();
        for (lane, quad) in lanes.iter_mut().zip(quads) {
            *lane += u64::from(u32::from_ne_bytes(*quad));
        }
    }
    lanes.iter().sum()
}

/// Whether `bytes`, which contain their own checksum, add up.
#[inline]
pub fn verify(bytes: &[u8]) -> bool {
    sum(bytes).is_valid()
}

/// Whether the twenty bytes of an option-free IPv4 header add up.
#[inline(always)]
pub fn verify_ipv4_header(header: &[u8; 20]) -> bool {
    let (quads, _) = header.as_chunks::<4>();
    fold64(quads.iter().map(|quad| u64::from(u32::from_ne_bytes(*quad))).sum()) == 0xffff
}

/// The pseudo header of TCP, UDP over IPv4 (RFC 9293 section 3.1); `length` is the segment's in bytes.
#[inline]
pub fn pseudo_v4(src: Ipv4Addr, dst: Ipv4Addr, protocol: u8, length: u16) -> Sum {
    Sum::ZERO.add32(src.to_bits()).add32(dst.to_bits()).add16(protocol.into()).add16(length)
}

/// The pseudo header of IPv6 (RFC 8200 section 8.1); `length` is the upper-layer packet's in bytes.
#[inline]
pub fn pseudo_v6(src: Ipv6Addr, dst: Ipv6Addr, protocol: u8, length: u32) -> Sum {
    sum(&src.octets()).add(sum(&dst.octets())).add16(protocol.into()).add32(length)
}

/// The checksum after one word of what it covers changed from `old` to `new` (RFC 1624 equation 3).
#[inline(always)]
#[must_use]
pub const fn update16(checksum: u16, old: u16, new: u16) -> u16 {
    Sum::ZERO.add16(!checksum).add16(!old).add16(new).finish()
}

/// The checksum after two aligned words, such as an IPv4 address, changed from `old` to `new` (RFC 1624 equation 3).
#[inline(always)]
#[must_use]
pub const fn update32(checksum: u16, old: u32, new: u32) -> u16 {
    Sum::ZERO.add16(!checksum).add32(!old).add32(new).finish()
}
