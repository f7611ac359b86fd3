//! CRC32c, which SCTP packets carry (RFC 9260 appendix A): in full, and for a change of a packet's first four bytes.
//!
//! A CRC is linear: changing bytes changes it by the CRC of the difference, and bytes that stay do not matter but for
//! how many they are. New ports thus cost one multiplication of polynomials, whatever the packet's length, and a packet
//! that arrived damaged stays damaged, as with RFC 1624 for the Internet checksum.
//!
//! Bits are reflected: the most significant bit of a word is the coefficient of x to the 0.

/// The Castagnoli polynomial, reflected (RFC 3720 section 12.1).
const POLYNOMIAL: u32 = 0x82f6_3b78;
/// Lengths whose power of x is looked up in one step: every packet of a common MTU.
const SHORT: usize = 2048;
/// Steps of [`SHORT`] bytes up to the longest IP packet.
const STEPS: usize = 32;

/// `TABLES[k][b]`: what byte `b`, followed by `k` bytes of zeros, does to an empty register.
static TABLES: [[u32; 256]; 8] = tables();
/// x to the power of 8 times the index.
static SHORT_POWERS: [u32; SHORT] = powers::<SHORT>(0x8000_0000 >> 8);
/// x to the power of 8 times [`SHORT`] times the index.
static LONG_POWERS: [u32; STEPS] = powers::<STEPS>(times_x8(powers::<SHORT>(0x8000_0000 >> 8)[SHORT - 1]));

const fn times_x8(mut word: u32) -> u32 {
    let mut bit = 0;
    while bit < 8 {
        word = word >> 1 ^ POLYNOMIAL & (word & 1).wrapping_neg();
        bit += 1;
    }
    word
}

const fn tables() -> [[u32; 256]; 8] {
    let mut tables = [[0; 256]; 8];
    let mut byte = 0;
    while byte < 256 {
        let mut register = byte as u32;
        let mut zeros = 0;
        while zeros < 8 {
            register = times_x8(register);
            tables[zeros][byte] = register;
            zeros += 1;
        }
        byte += 1;
    }
    tables
}

/// The powers 0, 1, … of `base`.
const fn powers<const N: usize>(base: u32) -> [u32; N] {
    let mut powers = [0x8000_0000; N];
    let mut at = 1;
    while at < N {
        powers[at] = multiply(powers[at - 1], base);
        at += 1;
    }
    powers
}

/// The product of two polynomials modulo [`POLYNOMIAL`].
#[inline]
const fn multiply(a: u32, mut b: u32) -> u32 {
    let mut product = 0;
    let mut bit = 32;
    while bit > 0 {
        bit -= 1;
        product ^= b & (a >> bit & 1).wrapping_neg();
        b = b >> 1 ^ POLYNOMIAL & (b & 1).wrapping_neg();
    }
    product
}

/// A CRC in the making.
#[derive(Clone, Copy, Debug)]
pub struct Crc32c(u32);

impl Crc32c {
    /// The CRC of nothing yet.
    pub const START: Crc32c = Crc32c(!0);

    /// With these bytes behind those before, eight at a time.
    #[must_use]
    pub fn with(self, bytes: &[u8]) -> Crc32c {
        let (blocks, tail) = bytes.as_chunks::<8>();
        let mut register = self.0;
        for block in blocks {
            let word = u64::from_le_bytes(*block) ^ u64::from(register);
            register = 0;
            for (at, byte) in word.to_le_bytes().into_iter().enumerate() {
                register ^= TABLES[7 - at][usize::from(byte)];
            }
        }
        for byte in tail {
            register = register >> 8 ^ TABLES[0][usize::from(register as u8 ^ byte)];
        }
        Crc32c(register)
    }

    /// The CRC of what was added.
    #[must_use]
    pub const fn finish(self) -> u32 {
        !self.0
    }
}

/// The CRC32c of `bytes`.
#[must_use]
pub fn crc32c(bytes: &[u8]) -> u32 {
    Crc32c::START.with(bytes).finish()
}

/// The CRC of `length` bytes after their first four changed from `old` to `new`; it was `crc` before.
#[inline]
#[must_use]
pub fn update(crc: u32, old: [u8; 4], new: [u8; 4], length: u16) -> u32 {
    let difference = u32::from_le_bytes(old) ^ u32::from_le_bytes(new);
    let length = usize::from(length);
    let mut moved = multiply(difference, SHORT_POWERS[length % SHORT]);
    if length >= SHORT {
        moved = multiply(moved, LONG_POWERS[length / SHORT]);
    }
    crc ^ moved
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Bit by bit, as the definition has it.
    fn slow(bytes: &[u8]) -> u32 {
        let register = bytes.iter().fold(!0u32, |register, byte| {
            (0..8).fold(register ^ u32::from(*byte), |register, _| {
                if register & 1 == 1 { register >> 1 ^ POLYNOMIAL } else { register >> 1 }
            })
        });
        !register
    }

    #[test]
    fn examples_of_rfc_3720_hold() {
        // Appendix B.4 lists the bytes of the CRC in the order of the wire.
        let wire = |bytes: &[u8]| crc32c(bytes).to_le_bytes();
        assert_eq!(wire(&[0; 32]), [0xaa, 0x36, 0x91, 0x8a]);
        assert_eq!(wire(&[0xff; 32]), [0x43, 0xab, 0xa8, 0x62]);
        let rising: Vec<u8> = (0..32).collect();
        assert_eq!(wire(&rising), [0x4e, 0x79, 0xdd, 0x46]);
        let falling: Vec<u8> = (0..32).rev().collect();
        assert_eq!(wire(&falling), [0x5c, 0xdb, 0x3f, 0x11]);
        let mut read = [0; 48];
        read[..2].copy_from_slice(&[0x01, 0xc0]);
        (read[16], read[22], read[27], read[31]) = (0x14, 0x04, 0x14, 0x18);
        (read[32], read[40]) = (0x28, 0x02);
        assert_eq!(wire(&read), [0x56, 0x3a, 0x96, 0xd9]);
    }

    proptest! {
        #[test]
        fn eight_at_a_time_is_bit_by_bit(bytes in prop::collection::vec(any::<u8>(), 0..100), cut in any::<prop::sample::Index>()) {
            let (left, right) = bytes.split_at(cut.index(bytes.len() + 1));
            prop_assert_eq!(Crc32c::START.with(left).with(right).finish(), slow(&bytes));
        }

        #[test]
        fn a_changed_beginning_gives_the_full_crc(
            length in prop_oneof![4..100usize, 2040..2060usize, 4..65_536usize], fill: u8, old: [u8; 4], new: [u8; 4],
        ) {
            let mut bytes = vec![fill; length];
            bytes[..4].copy_from_slice(&old);
            let before = crc32c(&bytes);
            bytes[..4].copy_from_slice(&new);
            prop_assert_eq!(update(before, old, new, length as u16), crc32c(&bytes));
        }
    }
}
