//! Neighbour discovery: solicitations and advertisements (RFC 4861).

use crate::bytes::{array, be16, put, put16};
use crate::{MacAddr, Malformed, icmpv6};
use std::net::Ipv6Addr;

/// Bytes of a solicitation or advertisement without options, ICMPv6 header included.
pub const HEADER_LEN: usize = 24;
/// Bytes of an option that carries an Ethernet address.
pub const LINK_OPTION_LEN: usize = 8;
/// Neighbour solicitation: who has the target address?
pub const SOLICITATION: u8 = 135;
/// Neighbour advertisement: the sender has.
pub const ADVERTISEMENT: u8 = 136;
/// The hop limit of every message: a packet that was routed has less, and is no neighbour's.
pub const HOP_LIMIT: u8 = 255;
/// Option: the sender's station, in a solicitation.
pub const OPTION_SOURCE: u8 = 1;
/// Option: the target's station, in an advertisement.
pub const OPTION_TARGET: u8 = 2;
/// Advertisement flag: the sender is a router.
pub const ROUTER: u8 = 0x80;
/// Advertisement flag: somebody asked.
pub const SOLICITED: u8 = 0x40;
/// Advertisement flag: replace what you know.
pub const OVERRIDE: u8 = 0x20;
/// All nodes of the link.
pub const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
/// The stations of [`ALL_NODES`] (RFC 2464 section 7).
pub const ALL_NODES_MAC: MacAddr = MacAddr([0x33, 0x33, 0, 0, 0, 1]);

/// The group of those whose address might be `target` (RFC 4291 section 2.7.1).
pub fn solicited_node(target: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b, c] = target.octets();
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | u16::from(a), u16::from_be_bytes([b, c]))
}

/// A checked view of a solicitation or an advertisement, from its ICMPv6 header on.
#[derive(Clone, Copy, Debug)]
pub struct Neighbour<'a> {
    header: &'a [u8; HEADER_LEN],
    options: &'a [u8],
}

impl<'a> Neighbour<'a> {
    /// Checks type, code, target and options. Hop limit, addresses and checksum are the caller's to check: they are
    /// not in the message.
    pub fn new_checked(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let (header, options) = bytes.split_first_chunk::<HEADER_LEN>().ok_or(Malformed::Truncated)?;
        let view = Neighbour { header, options };
        if !matches!(header[0], SOLICITATION | ADVERTISEMENT)
            || header[1] != 0
            || view.target().is_multicast()
        {
            return Err(Malformed::BadNeighbour);
        }
        for option in view.options() {
            option?;
        }
        Ok(view)
    }

    /// [`SOLICITATION`] or [`ADVERTISEMENT`].
    #[inline]
    pub fn kind(&self) -> u8 {
        self.header[0]
    }

    /// An advertisement's flags: [`ROUTER`], [`SOLICITED`], [`OVERRIDE`].
    #[inline]
    pub fn flags(&self) -> u8 {
        self.header[4] & (ROUTER | SOLICITED | OVERRIDE)
    }

    /// The checksum.
    #[inline]
    pub fn checksum(&self) -> u16 {
        be16(self.header, icmpv6::CHECKSUM_AT)
    }

    /// The address that the message is about.
    #[inline]
    pub fn target(&self) -> Ipv6Addr {
        Ipv6Addr::from(array::<HEADER_LEN, 16>(self.header, 8))
    }

    /// The options, in order: type, and the bytes behind type and length.
    #[inline]
    pub fn options(&self) -> Options<'a> {
        Options { rest: self.options }
    }

    /// The station that an option of this type names: [`OPTION_SOURCE`] or [`OPTION_TARGET`].
    pub fn link_address(&self, kind: u8) -> Option<MacAddr> {
        let (_, data) = self.options().flatten().find(|(found, _)| *found == kind)?;
        data.first_chunk().map(|mac| MacAddr(*mac))
    }
}

/// The options of a message; one that breaks the rules is the last item.
#[derive(Clone, Debug)]
pub struct Options<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Options<'a> {
    type Item = Result<(u8, &'a [u8]), Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        match *self.rest {
            [kind, units, ..] if units > 0 && usize::from(units) * 8 <= self.rest.len() => {
                let (option, rest) = self.rest.split_at(usize::from(units) * 8);
                self.rest = rest;
                Some(Ok((kind, &option[2..])))
            }
            _ => {
                self.rest = &[];
                Some(Err(Malformed::BadOption))
            }
        }
    }
}

/// The fields of a message to send, with one option that names a station.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Repr {
    /// [`SOLICITATION`] or [`ADVERTISEMENT`].
    pub kind: u8,
    /// An advertisement's flags.
    pub flags: u8,
    /// The address that the message is about.
    pub target: Ipv6Addr,
    /// The sender's station, which is the target's in an advertisement.
    pub mac: MacAddr,
}

impl Repr {
    /// Bytes of the message.
    pub const LEN: usize = HEADER_LEN + LINK_OPTION_LEN;

    /// The message's bytes, with the checksum for a packet between these addresses.
    pub fn emit(&self, src: Ipv6Addr, dst: Ipv6Addr) -> [u8; Repr::LEN] {
        let mut message = [0; Repr::LEN];
        message[0] = self.kind;
        message[4] = self.flags;
        put(&mut message, 8, self.target.octets());
        message[HEADER_LEN] = if self.kind == SOLICITATION { OPTION_SOURCE } else { OPTION_TARGET };
        message[HEADER_LEN + 1] = (LINK_OPTION_LEN / 8) as u8;
        put(&mut message, HEADER_LEN + 2, self.mac.0);
        let checksum = icmpv6::sum(src, dst, &message).finish();
        put16(&mut message, icmpv6::CHECKSUM_AT, checksum);
        message
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn repr() -> Repr {
        Repr {
            kind: ADVERTISEMENT,
            flags: ROUTER | OVERRIDE,
            target: "fe80::1".parse().unwrap(),
            mac: MacAddr([2, 0, 0, 0, 0, 1]),
        }
    }

    fn bytes() -> [u8; Repr::LEN] {
        repr().emit(repr().target, ALL_NODES)
    }

    #[test]
    fn view_reads_what_repr_emits() {
        let bytes = bytes();
        assert!(icmpv6::sum(repr().target, ALL_NODES, &bytes).is_valid());
        let view = Neighbour::new_checked(&bytes).unwrap();
        let mac = view.link_address(OPTION_TARGET).unwrap();
        assert_eq!(Repr { kind: view.kind(), flags: view.flags(), target: view.target(), mac }, repr());
        assert_eq!(view.link_address(OPTION_SOURCE), None);
        assert_eq!(view.checksum(), be16(&bytes, 2));
    }

    #[test]
    fn each_broken_rule_is_named() {
        let broken = |at: usize, value: u8| {
            let mut bytes = bytes();
            bytes[at] = value;
            Neighbour::new_checked(&bytes).err()
        };
        assert_eq!(Neighbour::new_checked(&bytes()[..23]).err(), Some(Malformed::Truncated));
        assert_eq!(broken(0, 134), Some(Malformed::BadNeighbour));
        assert_eq!(broken(1, 1), Some(Malformed::BadNeighbour));
        assert_eq!(broken(8, 0xff), Some(Malformed::BadNeighbour));
        assert_eq!(broken(25, 0), Some(Malformed::BadOption));
        assert_eq!(broken(25, 2), Some(Malformed::BadOption));
    }

    #[test]
    fn solicited_node_group_has_the_last_three_bytes() {
        let group = solicited_node("2001:db8::12:3456:789a".parse().unwrap());
        assert_eq!(group, "ff02::1:ff56:789a".parse::<Ipv6Addr>().unwrap());
    }
}
