//! VLAN tags (IEEE 802.1Q), as they follow the type that announces them.

use crate::Malformed;
use crate::bytes::be16;

/// Bytes of a tag behind its announcing type: control information and the next type.
pub const HEADER_LEN: usize = 4;
/// The identifier's bits in the control information.
pub const ID_MASK: u16 = 0x0fff;

/// A checked view of a tag.
#[derive(Clone, Copy, Debug)]
pub struct Vlan<'a> {
    header: &'a [u8; HEADER_LEN],
    payload: &'a [u8],
}

impl<'a> Vlan<'a> {
    /// Checks that the tag is there.
    #[inline]
    pub fn new_checked(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let (header, payload) = bytes.split_first_chunk().ok_or(Malformed::Truncated)?;
        Ok(Vlan { header, payload })
    }

    /// The VLAN, 1 to 4094; 0 means that the tag carries a priority only.
    #[inline]
    pub fn id(&self) -> u16 {
        be16(self.header, 0) & ID_MASK
    }

    /// The priority code point, 0 to 7.
    #[inline]
    pub fn priority(&self) -> u8 {
        self.header[0] >> 5
    }

    /// What follows the tag.
    #[inline]
    pub fn ethertype(&self) -> u16 {
        be16(self.header, 2)
    }

    /// Everything behind the tag.
    #[inline]
    pub fn payload(&self) -> &'a [u8] {
        self.payload
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tag_is_read() {
        let view = Vlan::new_checked(&[0xa1, 0x23, 0x08, 0x00, 0x45]).unwrap();
        assert_eq!((view.id(), view.priority(), view.ethertype()), (0x123, 5, 0x0800));
        assert_eq!(view.payload(), [0x45]);
    }

    #[test]
    fn short_tag_is_truncated() {
        assert_eq!(Vlan::new_checked(&[0; 3]).err(), Some(Malformed::Truncated));
    }
}
