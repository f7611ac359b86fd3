//! IPv4 headers and options (RFC 791).

use crate::bytes::{be16, be32, put, put16};
use crate::{Malformed, checksum};
use std::net::Ipv4Addr;

/// Bytes of the unit that an IPv4 header tells its length in (RFC 791 section 3.1).
pub const WORD: usize = 4;
/// Bytes of a header without options.
pub const HEADER_LEN: usize = 20;
/// Bytes of the longest header.
pub const MAX_HEADER_LEN: usize = 60;
/// The version and header length of a header without options.
pub const VERSION_AND_LENGTH: u8 = 0x45;
/// Don't fragment, in the fragment word.
pub const DONT_FRAGMENT: u16 = 0x4000;
/// More fragments follow, in the fragment word.
pub const MORE_FRAGMENTS: u16 = 0x2000;
/// The offset in units of eight bytes, in the fragment word.
pub const FRAGMENT_OFFSET: u16 = 0x1fff;
/// The smallest MTU of an IPv4 link (RFC 791 section 3.2).
pub const MIN_MTU: u16 = 68;
/// Offset of the type of service (RFC 2474, RFC 3168: DSCP and ECN).
pub const TOS_AT: usize = 1;
/// Offset of the total length.
pub const TOTAL_LEN_AT: usize = 2;
/// Offset of the time to live.
pub const TTL_AT: usize = 8;
/// Offset of the header checksum.
pub const CHECKSUM_AT: usize = 10;

/// A checked view of a packet.
#[derive(Clone, Copy, Debug)]
pub struct Ipv4<'a> {
    header: &'a [u8; HEADER_LEN],
    options: &'a [u8],
    payload: &'a [u8],
}

impl<'a> Ipv4<'a> {
    /// Checks version, lengths and the header checksum; bytes behind the total length are left out as padding.
    pub fn new_checked(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let header: &[u8; HEADER_LEN] = bytes.first_chunk().ok_or(Malformed::Truncated)?;
        if header[0] >> 4 != 4 {
            return Err(Malformed::BadVersion);
        }
        let header_len = usize::from(header[0] & 0xf) * 4;
        let packet = bytes.get(..usize::from(be16(header, TOTAL_LEN_AT))).ok_or(Malformed::BadTotalLength)?;
        if header_len < HEADER_LEN {
            return Err(Malformed::BadHeaderLength);
        }
        let (whole, payload) = packet.split_at_checked(header_len).ok_or(Malformed::BadTotalLength)?;
        if !checksum::verify(whole) {
            return Err(Malformed::BadChecksum);
        }
        Ok(Ipv4 { header, options: &whole[HEADER_LEN..], payload })
    }

    /// Bytes of the header, options included.
    #[inline]
    pub fn header_len(&self) -> usize {
        HEADER_LEN + self.options.len()
    }

    /// DSCP and ECN.
    #[inline]
    pub fn tos(&self) -> u8 {
        self.header[TOS_AT]
    }

    /// Bytes of the packet, header included.
    #[inline]
    pub fn total_len(&self) -> u16 {
        be16(self.header, TOTAL_LEN_AT)
    }

    /// What ties fragments together.
    #[inline]
    pub fn identification(&self) -> u16 {
        be16(self.header, 4)
    }

    /// Whether routers must not fragment.
    #[inline]
    pub fn dont_fragment(&self) -> bool {
        be16(self.header, 6) & DONT_FRAGMENT != 0
    }

    /// Whether fragments behind this one follow.
    #[inline]
    pub fn more_fragments(&self) -> bool {
        be16(self.header, 6) & MORE_FRAGMENTS != 0
    }

    /// Where in the original payload this fragment belongs, in bytes.
    #[inline]
    pub fn fragment_offset(&self) -> usize {
        usize::from(be16(self.header, 6) & FRAGMENT_OFFSET) * 8
    }

    /// Hops left.
    #[inline]
    pub fn ttl(&self) -> u8 {
        self.header[TTL_AT]
    }

    /// What the payload is, see [`crate::proto`].
    #[inline]
    pub fn protocol(&self) -> u8 {
        self.header[9]
    }

    /// The sender.
    #[inline]
    pub fn src(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(be32(self.header, 12))
    }

    /// The receiver.
    #[inline]
    pub fn dst(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(be32(self.header, 16))
    }

    /// The options, in order.
    #[inline]
    pub fn options(&self) -> Options<'a> {
        Options { rest: self.options }
    }

    /// Everything behind the header, padding excluded.
    #[inline]
    pub fn payload(&self) -> &'a [u8] {
        self.payload
    }
}

/// End of the option list.
pub const OPTION_END: u8 = 0;
/// One byte of padding.
pub const OPTION_NOP: u8 = 1;
/// Loose source route: the sender names routers to pass (RFC 791).
pub const OPTION_LOOSE_ROUTE: u8 = 131;
/// Strict source route: the sender names every router (RFC 791).
pub const OPTION_STRICT_ROUTE: u8 = 137;

/// One option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ipv4Option<'a> {
    /// Copied flag, class and number.
    pub kind: u8,
    /// The option's bytes, kind and length included.
    pub bytes: &'a [u8],
}

impl Ipv4Option<'_> {
    /// Whether every fragment carries the option, not only the first (RFC 791, the copied flag).
    #[inline]
    pub const fn is_copied(&self) -> bool {
        self.kind & 0x80 != 0
    }
}

/// The options of a header, padding left out; an option that breaks the rules is the last item.
#[derive(Clone, Debug)]
pub struct Options<'a> {
    rest: &'a [u8],
}

impl<'a> Options<'a> {
    /// Reads `bytes`, the part of a header behind its first twenty bytes.
    pub fn new(bytes: &'a [u8]) -> Self {
        Options { rest: bytes }
    }
}

impl<'a> Iterator for Options<'a> {
    type Item = Result<Ipv4Option<'a>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            match *self.rest {
                [] | [OPTION_END, ..] => return None,
                [OPTION_NOP, ref rest @ ..] => self.rest = rest,
                [kind, length, ..] if length >= 2 && usize::from(length) <= self.rest.len() => {
                    let (bytes, rest) = self.rest.split_at(length.into());
                    self.rest = rest;
                    return Some(Ok(Ipv4Option { kind, bytes }));
                }
                _ => {
                    self.rest = &[];
                    return Some(Err(Malformed::BadOption));
                }
            }
        }
    }
}

/// The fields of an option-free, unfragmented header to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Repr {
    /// The sender.
    pub src: Ipv4Addr,
    /// The receiver.
    pub dst: Ipv4Addr,
    /// What the payload is, see [`crate::proto`].
    pub protocol: u8,
    /// DSCP and ECN.
    pub tos: u8,
    /// Hops left.
    pub ttl: u8,
    /// Whether routers must not fragment.
    pub dont_fragment: bool,
    /// Bytes behind the header.
    pub payload_len: u16,
}

impl Repr {
    /// The header's bytes, checksum included.
    ///
    /// The identification is zero: nothing that is not fragmented needs one (RFC 6864 section 4.1).
    pub fn emit(&self) -> [u8; HEADER_LEN] {
        let mut header = [0; HEADER_LEN];
        header[0] = VERSION_AND_LENGTH;
        header[TOS_AT] = self.tos;
        put16(&mut header, TOTAL_LEN_AT, self.payload_len.saturating_add(HEADER_LEN as u16));
        put16(&mut header, 6, if self.dont_fragment { DONT_FRAGMENT } else { 0 });
        header[TTL_AT] = self.ttl;
        header[9] = self.protocol;
        put(&mut header, 12, self.src.octets());
        put(&mut header, 16, self.dst.octets());
        let checksum = checksum::sum(&header).finish();
        put16(&mut header, CHECKSUM_AT, checksum);
        header
    }
}

/// Takes one hop off the time to live and mends the checksum; the caller has seen that it is at least one.
#[inline]
pub fn decrement_ttl(header: &mut [u8; HEADER_LEN]) {
    header[TTL_AT] = header[TTL_AT].wrapping_sub(1);
    // RFC 1624 for a word that becomes 0x0100 less: the checksum grows by as much, carry wrapped round (as RFC 1141 has
    // it, and never left at 0xffff, which a header's checksum cannot be).
    let grown = u32::from(be16(header, CHECKSUM_AT)) + 0x0100;
    put16(header, CHECKSUM_AT, (grown + u32::from(grown >= 0xffff)) as u16);
}

/// Replaces DSCP and ECN and mends the checksum.
#[inline]
pub fn set_tos(header: &mut [u8; HEADER_LEN], tos: u8) {
    let old = be16(header, 0);
    patch(header, 0, old, old & 0xff00 | u16::from(tos));
}

/// Replaces the word at `at` and mends the checksum.
#[inline(always)]
fn patch(header: &mut [u8; HEADER_LEN], at: usize, old: u16, new: u16) {
    let checksum = checksum::update16(be16(header, CHECKSUM_AT), old, new);
    put16(header, at, new);
    put16(header, CHECKSUM_AT, checksum);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn repr() -> Repr {
        Repr {
            src: Ipv4Addr::new(192, 0, 2, 1),
            dst: Ipv4Addr::new(198, 51, 100, 2),
            protocol: 17,
            tos: 0x2e << 2,
            ttl: 64,
            dont_fragment: true,
            payload_len: 3,
        }
    }

    #[test]
    fn view_reads_what_repr_emits_and_leaves_padding_out() {
        let repr = repr();
        let mut packet = repr.emit().to_vec();
        packet.extend([1, 2, 3, 0, 0, 0]);
        let view = Ipv4::new_checked(&packet).unwrap();
        assert_eq!((view.src(), view.dst(), view.protocol()), (repr.src, repr.dst, 17));
        assert_eq!((view.tos(), view.ttl(), view.total_len()), (repr.tos, 64, 23));
        assert!(view.dont_fragment() && !view.more_fragments() && view.fragment_offset() == 0);
        assert_eq!(view.payload(), [1, 2, 3]);
        assert_eq!(view.options().count(), 0);
    }

    #[test]
    fn each_broken_rule_is_named() {
        let good = [&repr().emit()[..], &[1, 2, 3]].concat();
        let broken = |at: usize, value: u8| {
            let mut packet = good.clone();
            packet[at] = value;
            Ipv4::new_checked(&packet).err()
        };
        assert_eq!(Ipv4::new_checked(&good[..19]).err(), Some(Malformed::Truncated));
        assert_eq!(broken(0, 0x65), Some(Malformed::BadVersion));
        assert_eq!(broken(0, 0x44), Some(Malformed::BadHeaderLength));
        assert_eq!(broken(0, 0x46), Some(Malformed::BadTotalLength));
        assert_eq!(broken(3, 24), Some(Malformed::BadTotalLength));
        assert_eq!(broken(3, 19), Some(Malformed::BadTotalLength));
        assert_eq!(broken(8, 63), Some(Malformed::BadChecksum));
    }

    #[test]
    fn options_are_walked_and_a_lying_length_ends_the_walk() {
        let good: Vec<_> = Options::new(&[1, 131, 3, 4, 1, 7, 2, 0, 99]).collect();
        assert_eq!(
            good,
            [Ok(Ipv4Option { kind: 131, bytes: &[131, 3, 4] }), Ok(Ipv4Option { kind: 7, bytes: &[7, 2] })]
        );
        for lying in [&[7, 0][..], &[7, 1], &[7, 3], &[7]] {
            assert_eq!(Options::new(lying).collect::<Vec<_>>(), [Err(Malformed::BadOption)]);
        }
    }

    #[test]
    fn rewrites_keep_the_checksum_right() {
        for ttl in 1..=255 {
            let mut header = Repr { ttl, ..repr() }.emit();
            decrement_ttl(&mut header);
            set_tos(&mut header, ttl);
            assert_eq!(header, Repr { ttl: ttl - 1, tos: ttl, ..repr() }.emit());
        }
    }
}
