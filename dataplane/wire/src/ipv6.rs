//! IPv6 headers and extension headers (RFC 8200).

use crate::bytes::{array, be16, be32, put, put16};
use crate::{Malformed, proto};
use std::net::Ipv6Addr;

/// Bytes of the fixed header.
pub const HEADER_LEN: usize = 40;
/// Bytes of a fragment header.
pub const FRAGMENT_LEN: usize = 8;
/// Extension headers accepted in one packet; real packets have at most three or four.
pub const MAX_EXTENSIONS: usize = 8;
/// The smallest MTU of an IPv6 link (RFC 8200 section 5).
pub const MIN_MTU: u16 = 1280;
/// Offset of the payload length.
pub const PAYLOAD_LEN_AT: usize = 4;
/// Offset of the hop limit.
pub const HOP_LIMIT_AT: usize = 7;

/// A checked view of a packet.
#[derive(Clone, Copy, Debug)]
pub struct Ipv6<'a> {
    header: &'a [u8; HEADER_LEN],
    payload: &'a [u8],
}

impl<'a> Ipv6<'a> {
    /// Checks version and length; bytes behind the payload length are left out as padding.
    pub fn new_checked(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let (header, rest) = bytes.split_first_chunk::<HEADER_LEN>().ok_or(Malformed::Truncated)?;
        if header[0] >> 4 != 6 {
            return Err(Malformed::BadVersion);
        }
        let payload =
            rest.get(..usize::from(be16(header, PAYLOAD_LEN_AT))).ok_or(Malformed::BadTotalLength)?;
        Ok(Ipv6 { header, payload })
    }

    /// DSCP and ECN.
    #[inline]
    pub fn traffic_class(&self) -> u8 {
        (be16(self.header, 0) >> 4) as u8
    }

    /// The flow label, 20 bits (RFC 6437).
    #[inline]
    pub fn flow_label(&self) -> u32 {
        be32(self.header, 0) & 0xf_ffff
    }

    /// Bytes behind the fixed header.
    #[inline]
    pub fn payload_len(&self) -> u16 {
        be16(self.header, PAYLOAD_LEN_AT)
    }

    /// What directly follows the fixed header, see [`crate::proto`].
    #[inline]
    pub fn next_header(&self) -> u8 {
        self.header[6]
    }

    /// Hops left.
    #[inline]
    pub fn hop_limit(&self) -> u8 {
        self.header[HOP_LIMIT_AT]
    }

    /// The sender.
    #[inline]
    pub fn src(&self) -> Ipv6Addr {
        Ipv6Addr::from(array::<HEADER_LEN, 16>(self.header, 8))
    }

    /// The receiver.
    #[inline]
    pub fn dst(&self) -> Ipv6Addr {
        Ipv6Addr::from(array::<HEADER_LEN, 16>(self.header, 24))
    }

    /// The extension headers, in order.
    #[inline]
    pub fn extensions(&self) -> Extensions<'a> {
        Extensions::new(self.next_header(), self.payload)
    }

    /// Everything behind the fixed header, padding excluded.
    #[inline]
    pub fn payload(&self) -> &'a [u8] {
        self.payload
    }
}

/// One extension header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extension<'a> {
    /// Which header this is, see [`crate::proto`].
    pub kind: u8,
    /// The header's bytes, from its next-header field on.
    pub bytes: &'a [u8],
}

/// Where a fragment belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FragmentHeader {
    /// Offset in the original packet's fragmentable part, in bytes.
    pub offset: usize,
    /// Whether fragments behind this one follow.
    pub more: bool,
    /// What ties fragments together.
    pub identification: u32,
}

impl Extension<'_> {
    /// The fragment fields, if this is a fragment header.
    #[inline]
    pub fn fragment(&self) -> Option<FragmentHeader> {
        if self.kind != proto::FRAGMENT {
            return None;
        }
        let bytes: &[u8; FRAGMENT_LEN] = self.bytes.first_chunk()?;
        let word = be16(bytes, 2);
        Some(FragmentHeader {
            offset: usize::from(word & !7),
            more: word & 1 != 0,
            identification: be32(bytes, 4),
        })
    }
}

/// The chain of extension headers; a header that breaks the rules is the last item.
///
/// The chain ends at the first header that is not an extension, and behind a fragment header whose offset is not zero,
/// because what follows that one is the middle of something.
#[derive(Clone, Debug)]
pub struct Extensions<'a> {
    next: u8,
    rest: &'a [u8],
    seen: usize,
    ended: bool,
}

impl<'a> Extensions<'a> {
    /// Walks `payload`, the bytes behind a fixed header that names `next`.
    #[inline]
    pub fn new(next: u8, payload: &'a [u8]) -> Self {
        Extensions { next, rest: payload, seen: 0, ended: false }
    }

    /// What follows the headers walked so far: once the walk is over, the upper-layer protocol.
    #[inline]
    pub fn next_header(&self) -> u8 {
        self.next
    }

    /// What is behind the headers walked so far.
    #[inline]
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// How long the header at hand is, or which rule it breaks; `None` if it is not an extension.
    fn step(&self) -> Option<Result<usize, Malformed>> {
        let length = match self.next {
            proto::HOP_BY_HOP if self.seen > 0 => return Some(Err(Malformed::BadExtension)),
            proto::HOP_BY_HOP
            | proto::ROUTING
            | proto::DESTINATION
            | proto::MOBILITY
            | proto::HIP
            | proto::SHIM6 => self.rest.get(1).map(|units| usize::from(*units) * 8 + 8),
            // RFC 4302 section 2.2: counted in units of four bytes, less two.
            proto::AH => self.rest.get(1).map(|units| usize::from(*units) * 4 + 8),
            proto::FRAGMENT => Some(FRAGMENT_LEN),
            _ => return None,
        };
        let Some(length) = length.filter(|length| *length <= self.rest.len()) else {
            return Some(Err(Malformed::Truncated));
        };
        if self.seen == MAX_EXTENSIONS { Some(Err(Malformed::TooManyExtensions)) } else { Some(Ok(length)) }
    }
}

impl<'a> Iterator for Extensions<'a> {
    type Item = Result<Extension<'a>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        match self.step() {
            None => {
                self.ended = true;
                None
            }
            Some(Err(rule)) => {
                self.ended = true;
                Some(Err(rule))
            }
            Some(Ok(length)) => {
                let (bytes, rest) = self.rest.split_at(length);
                let extension = Extension { kind: self.next, bytes };
                self.ended = extension.fragment().is_some_and(|fragment| fragment.offset != 0);
                self.next = bytes[0];
                self.rest = rest;
                self.seen += 1;
                Some(Ok(extension))
            }
        }
    }
}

/// The fields of a header to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Repr {
    /// The sender.
    pub src: Ipv6Addr,
    /// The receiver.
    pub dst: Ipv6Addr,
    /// What follows, see [`crate::proto`].
    pub next_header: u8,
    /// DSCP and ECN.
    pub traffic_class: u8,
    /// The flow label, of which 20 bits are sent.
    pub flow_label: u32,
    /// Hops left.
    pub hop_limit: u8,
    /// Bytes behind the header.
    pub payload_len: u16,
}

impl Repr {
    /// The header's bytes.
    pub fn emit(&self) -> [u8; HEADER_LEN] {
        let mut header = [0; HEADER_LEN];
        put(&mut header, 0, first_word(self.traffic_class, self.flow_label).to_be_bytes());
        put16(&mut header, PAYLOAD_LEN_AT, self.payload_len);
        header[6] = self.next_header;
        header[HOP_LIMIT_AT] = self.hop_limit;
        put(&mut header, 8, self.src.octets());
        put(&mut header, 24, self.dst.octets());
        header
    }
}

/// Version, traffic class and flow label, of which 20 bits are taken.
#[inline(always)]
pub(crate) const fn first_word(traffic_class: u8, flow_label: u32) -> u32 {
    6 << 28 | (traffic_class as u32) << 20 | flow_label & 0xf_ffff
}

/// Takes one hop off the hop limit; the caller has seen that it is at least one.
#[inline]
pub fn decrement_hop_limit(header: &mut [u8; HEADER_LEN]) {
    header[HOP_LIMIT_AT] = header[HOP_LIMIT_AT].wrapping_sub(1);
}

/// Replaces DSCP and ECN.
#[inline]
pub fn set_traffic_class(header: &mut [u8; HEADER_LEN], traffic_class: u8) {
    header[0] = 0x60 | traffic_class >> 4;
    header[1] = header[1] & 0x0f | traffic_class << 4;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn repr() -> Repr {
        Repr {
            src: "2001:db8::1".parse().unwrap(),
            dst: "2001:db8::2".parse().unwrap(),
            next_header: proto::UDP,
            traffic_class: 0xb9,
            flow_label: 0xabcde,
            hop_limit: 64,
            payload_len: 2,
        }
    }

    #[test]
    fn view_reads_what_repr_emits_and_leaves_padding_out() {
        let repr = repr();
        let packet = [&repr.emit()[..], &[7, 8, 0, 0]].concat();
        let view = Ipv6::new_checked(&packet).unwrap();
        let read = Repr {
            src: view.src(),
            dst: view.dst(),
            next_header: view.next_header(),
            traffic_class: view.traffic_class(),
            flow_label: view.flow_label(),
            hop_limit: view.hop_limit(),
            payload_len: view.payload_len(),
        };
        assert_eq!(read, repr);
        assert_eq!(view.payload(), [7, 8]);
    }

    #[test]
    fn each_broken_rule_is_named() {
        let mut packet = [&repr().emit()[..], &[7, 8]].concat();
        assert_eq!(Ipv6::new_checked(&packet[..39]).err(), Some(Malformed::Truncated));
        assert_eq!(Ipv6::new_checked(&packet[..41]).err(), Some(Malformed::BadTotalLength));
        packet[0] = 0x45;
        assert_eq!(Ipv6::new_checked(&packet).err(), Some(Malformed::BadVersion));
    }

    #[test]
    fn rewrites_touch_only_their_field() {
        let mut header = repr().emit();
        set_traffic_class(&mut header, 0x46);
        decrement_hop_limit(&mut header);
        assert_eq!(header, Repr { traffic_class: 0x46, hop_limit: 63, ..repr() }.emit());
    }

    #[test]
    fn chain_is_walked_to_the_upper_layer() {
        let mut payload = vec![proto::DESTINATION, 0, 0, 0, 0, 0, 0, 0];
        payload.extend([proto::FRAGMENT, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        payload.extend([proto::UDP, 0, 0, 1, 0, 0, 0, 9]);
        payload.push(0xaa);
        let mut walk = Extensions::new(proto::HOP_BY_HOP, &payload);
        let kinds: Vec<_> = walk.by_ref().map(|extension| extension.unwrap().kind).collect();
        assert_eq!(kinds, [proto::HOP_BY_HOP, proto::DESTINATION, proto::FRAGMENT]);
        assert_eq!((walk.next_header(), walk.rest()), (proto::UDP, &[0xaa][..]));
    }

    #[test]
    fn chain_ends_behind_a_later_fragment() {
        let payload = [proto::HOP_BY_HOP, 0, 0, 8, 0, 0, 0, 9, 0xff];
        let mut walk = Extensions::new(proto::FRAGMENT, &payload);
        let fragment = walk.next().unwrap().unwrap().fragment().unwrap();
        assert_eq!(fragment, FragmentHeader { offset: 8, more: false, identification: 9 });
        assert!(walk.next().is_none());
        assert_eq!(walk.rest(), [0xff]);
    }

    #[test]
    fn loops_lies_and_misplaced_headers_end_the_walk() {
        let looping: Vec<u8> = [proto::DESTINATION, 0, 0, 0, 0, 0, 0, 0].repeat(20);
        let last = Extensions::new(proto::DESTINATION, &looping).last();
        assert_eq!(last, Some(Err(Malformed::TooManyExtensions)));
        let lying = [proto::UDP, 200, 0, 0, 0, 0, 0, 0];
        assert_eq!(Extensions::new(proto::ROUTING, &lying).last(), Some(Err(Malformed::Truncated)));
        let late = [proto::HOP_BY_HOP, 0, 0, 0, 0, 0, 0, 0, proto::UDP, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(Extensions::new(proto::DESTINATION, &late).last(), Some(Err(Malformed::BadExtension)));
    }
}
