//! Hashes that are the same on every node and in every build, so that all nodes choose alike.

use std::net::IpAddr;

/// Two odd numbers without a pattern: the fractional parts of the square roots of 2 and 3.
const ROOTS: [u64; 2] = [0x6a09_e667_f3bc_c909, 0xbb67_ae85_84ca_a73b];

/// A hash in the making.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Hash(u64);

impl Hash {
    /// The hash of nothing; a `seed` makes a family of its own.
    pub(super) const fn new(seed: u64) -> Hash {
        Hash(seed ^ ROOTS[1])
    }

    /// Adds a word: one multiplication of 64 by 64 bits, folded.
    #[inline(always)]
    pub(super) const fn word(self, word: u64) -> Hash {
        let product = (self.0 ^ word) as u128 * ROOTS[0] as u128;
        // The rotation keeps a word that meets its own image from leaving nothing.
        Hash((product as u64 ^ (product >> 64) as u64).rotate_left(23) ^ ROOTS[1])
    }

    /// Adds an address; one of IPv4 is not the same as one of IPv6.
    #[inline(always)]
    pub(super) fn address(self, address: IpAddr) -> Hash {
        match address {
            IpAddr::V4(v4) => self.word(u64::from(v4.to_bits()) | 4 << 32),
            IpAddr::V6(v6) => self.word((v6.to_bits() >> 64) as u64).word(v6.to_bits() as u64),
        }
    }

    /// Adds text.
    pub(super) fn text(self, text: &str) -> Hash {
        let words = text.as_bytes().chunks(8).map(|chunk| {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            u64::from_le_bytes(word)
        });
        words.fold(self, Hash::word).word(text.len() as u64)
    }

    /// The hash of what was added.
    #[inline(always)]
    pub(super) const fn finish(self) -> u64 {
        self.word(0).0
    }
}
