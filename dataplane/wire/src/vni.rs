//! Virtual network identifiers.

use std::fmt;

/// A 24-bit virtual network identifier, as VXLAN (RFC 7348) and Geneve (RFC 8926) carry it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Vni(u32);

impl Vni {
    /// The largest identifier.
    pub const MAX: Vni = Vni(0xff_ffff);

    /// The identifier `value`, if it fits 24 bits.
    #[inline]
    pub const fn new(value: u32) -> Option<Vni> {
        if value <= Vni::MAX.0 { Some(Vni(value)) } else { None }
    }

    /// The identifier as a number.
    #[inline]
    pub const fn get(self) -> u32 {
        self.0
    }

    /// The identifier in the three bytes that carry it.
    #[inline]
    pub const fn from_bytes([a, b, c]: [u8; 3]) -> Vni {
        Vni(u32::from_be_bytes([0, a, b, c]))
    }

    /// The three bytes that carry the identifier.
    #[inline]
    pub const fn to_bytes(self) -> [u8; 3] {
        let [_, a, b, c] = self.0.to_be_bytes();
        [a, b, c]
    }
}

impl fmt::Display for Vni {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_than_24_bits_are_refused() {
        assert_eq!(Vni::new(0xff_ffff), Some(Vni::MAX));
        assert_eq!(Vni::new(0x100_0000), None);
    }

    #[test]
    fn bytes_go_round() {
        let vni = Vni::new(0x01_02_03).unwrap();
        assert_eq!(vni.to_bytes(), [1, 2, 3]);
        assert_eq!(Vni::from_bytes(vni.to_bytes()), vni);
    }
}
