//! ICMPv6 headers (RFC 4443); the messages of neighbour discovery are in [`crate::ndp`].

use crate::bytes::{be16, be32, put, put16};
use crate::checksum::Sum;
use crate::{Malformed, checksum, proto};
use std::net::Ipv6Addr;

/// Bytes of every message's header.
pub const HEADER_LEN: usize = 8;
/// Offset of the checksum.
pub const CHECKSUM_AT: usize = 2;

/// Destination unreachable.
pub const UNREACHABLE: u8 = 1;
/// Packet too big; the header has the MTU.
pub const TOO_BIG: u8 = 2;
/// Time exceeded.
pub const TIME_EXCEEDED: u8 = 3;
/// Parameter problem.
pub const PARAMETER_PROBLEM: u8 = 4;
/// Echo request.
pub const ECHO_REQUEST: u8 = 128;
/// Echo reply.
pub const ECHO_REPLY: u8 = 129;
/// Redirect (RFC 4861).
pub const REDIRECT: u8 = 137;

/// Code of [`UNREACHABLE`]: no route.
pub const NO_ROUTE: u8 = 0;
/// Code of [`UNREACHABLE`]: forbidden by an administrator.
pub const PROHIBITED: u8 = 1;
/// Code of [`UNREACHABLE`]: the host does not answer.
pub const ADDRESS_UNREACHABLE: u8 = 3;
/// Code of [`UNREACHABLE`]: nobody listens on the port.
pub const PORT_UNREACHABLE: u8 = 4;
/// Code of [`TIME_EXCEEDED`]: out of hops on the way.
pub const HOP_LIMIT_EXCEEDED: u8 = 0;

/// Whether messages of this type are echo requests or replies and carry an identifier.
#[inline(always)]
pub const fn is_echo(kind: u8) -> bool {
    kind == ECHO_REQUEST || kind == ECHO_REPLY
}

/// Whether messages of this type report an error about a packet that they quote (RFC 4443 section 2.1).
#[inline]
pub const fn is_error(kind: u8) -> bool {
    kind < 128
}

/// A checked view of a message.
#[derive(Clone, Copy, Debug)]
pub struct Icmpv6<'a> {
    header: &'a [u8; HEADER_LEN],
    payload: &'a [u8],
}

impl<'a> Icmpv6<'a> {
    /// Checks that the header is there. The checksum covers the addresses too: see [`sum`].
    #[inline]
    pub fn new_checked(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let (header, payload) = bytes.split_first_chunk().ok_or(Malformed::Truncated)?;
        Ok(Icmpv6 { header, payload })
    }

    /// What the message is: [`ECHO_REQUEST`] and so on.
    #[inline]
    pub fn kind(&self) -> u8 {
        self.header[0]
    }

    /// What it is more closely: [`NO_ROUTE`] and so on.
    #[inline]
    pub fn code(&self) -> u8 {
        self.header[1]
    }

    /// The checksum.
    #[inline]
    pub fn checksum(&self) -> u16 {
        be16(self.header, CHECKSUM_AT)
    }

    /// An echo's identifier.
    #[inline]
    pub fn identifier(&self) -> Option<u16> {
        is_echo(self.kind()).then(|| be16(self.header, 4))
    }

    /// An echo's sequence number.
    #[inline]
    pub fn sequence(&self) -> Option<u16> {
        is_echo(self.kind()).then(|| be16(self.header, 6))
    }

    /// The MTU of the link that was too narrow, from a "packet too big".
    #[inline]
    pub fn next_hop_mtu(&self) -> Option<u32> {
        (self.kind() == TOO_BIG).then(|| be32(self.header, 4))
    }

    /// The beginning of the packet that an error is about, from its IPv6 header on.
    #[inline]
    pub fn quoted(&self) -> Option<&'a [u8]> {
        is_error(self.kind()).then_some(self.payload)
    }

    /// Everything behind the header.
    #[inline]
    pub fn payload(&self) -> &'a [u8] {
        self.payload
    }
}

/// The sum of a message and its pseudo header; the message is sound if the sum [is valid](Sum::is_valid).
pub fn sum(src: Ipv6Addr, dst: Ipv6Addr, message: &[u8]) -> Sum {
    checksum::pseudo_v6(src, dst, proto::ICMPV6, message.len() as u32).add_bytes(message)
}

/// The fields of a header to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Repr {
    /// What the message is.
    pub kind: u8,
    /// What it is more closely.
    pub code: u8,
    /// The four bytes behind the checksum, whose meaning depends on the type.
    pub rest: [u8; 4],
}

impl Repr {
    /// The header's bytes, with the checksum of the addresses, the header and `payload`.
    pub fn emit(&self, src: Ipv6Addr, dst: Ipv6Addr, payload: &[u8]) -> [u8; HEADER_LEN] {
        let mut header = [0; HEADER_LEN];
        header[0] = self.kind;
        header[1] = self.code;
        put(&mut header, 4, self.rest);
        let length = (HEADER_LEN + payload.len()) as u32;
        let pseudo = checksum::pseudo_v6(src, dst, proto::ICMPV6, length);
        let checksum = pseudo.add_bytes(&header).add_bytes(payload).finish();
        put16(&mut header, CHECKSUM_AT, checksum);
        header
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SRC: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
    const DST: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 2);

    #[test]
    fn view_reads_what_repr_emits() {
        let header = Repr { kind: ECHO_REPLY, code: 0, rest: [1, 2, 3, 4] }.emit(SRC, DST, b"odd");
        let message = [&header[..], b"odd"].concat();
        assert!(sum(SRC, DST, &message).is_valid());
        assert!(!sum(SRC, SRC, &message).is_valid());
        let view = Icmpv6::new_checked(&message).unwrap();
        assert_eq!((view.kind(), view.code(), view.payload()), (ECHO_REPLY, 0, &b"odd"[..]));
        assert_eq!((view.identifier(), view.sequence()), (Some(0x0102), Some(0x0304)));
        assert_eq!((view.next_hop_mtu(), view.quoted()), (None, None));
    }

    #[test]
    fn an_error_tells_its_mtu_and_what_it_is_about() {
        let header = Repr { kind: TOO_BIG, code: 0, rest: [0, 0, 5, 0x78] }.emit(SRC, DST, b"quote");
        let message = [&header[..], b"quote"].concat();
        let view = Icmpv6::new_checked(&message).unwrap();
        assert_eq!((view.next_hop_mtu(), view.quoted()), (Some(1400), Some(&b"quote"[..])));
        assert_eq!(view.checksum(), be16(&header, 2));
    }

    #[test]
    fn short_header_is_truncated() {
        assert_eq!(Icmpv6::new_checked(&[0; 7]).err(), Some(Malformed::Truncated));
    }
}
