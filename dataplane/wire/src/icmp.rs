//! ICMP headers (RFC 792).

use crate::Malformed;
use crate::bytes::{be16, put, put16};

/// Bytes of every message's header.
pub const HEADER_LEN: usize = 8;
/// Offset of the checksum.
pub const CHECKSUM_AT: usize = 2;

/// Echo reply.
pub const ECHO_REPLY: u8 = 0;
/// Destination unreachable.
pub const UNREACHABLE: u8 = 3;
/// Source quench, deprecated (RFC 6633).
pub const SOURCE_QUENCH: u8 = 4;
/// Redirect.
pub const REDIRECT: u8 = 5;
/// Echo request.
pub const ECHO_REQUEST: u8 = 8;
/// Time exceeded.
pub const TIME_EXCEEDED: u8 = 11;
/// Parameter problem.
pub const PARAMETER_PROBLEM: u8 = 12;

/// Code of [`UNREACHABLE`]: no route to the network.
pub const NET_UNREACHABLE: u8 = 0;
/// Code of [`UNREACHABLE`]: the host does not answer.
pub const HOST_UNREACHABLE: u8 = 1;
/// Code of [`UNREACHABLE`]: nobody listens on the port.
pub const PORT_UNREACHABLE: u8 = 3;
/// Code of [`UNREACHABLE`]: too big and not to be fragmented; the header has the MTU (RFC 1191).
pub const FRAGMENTATION_NEEDED: u8 = 4;
/// Code of [`UNREACHABLE`]: forbidden by an administrator (RFC 1812 section 5.2.7.1).
pub const PROHIBITED: u8 = 13;
/// Code of [`TIME_EXCEEDED`]: out of hops on the way.
pub const TTL_EXCEEDED: u8 = 0;

/// Whether messages of this type are echo requests or replies and carry an identifier.
#[inline(always)]
pub const fn is_echo(kind: u8) -> bool {
    kind == ECHO_REQUEST || kind == ECHO_REPLY
}

/// Whether messages of this type report an error about a packet that they quote, so that no error may answer them
/// (RFC 1122 section 3.2.2).
#[inline]
pub const fn is_error(kind: u8) -> bool {
    matches!(kind, UNREACHABLE | SOURCE_QUENCH | REDIRECT | TIME_EXCEEDED | PARAMETER_PROBLEM)
}

/// A checked view of a message.
#[derive(Clone, Copy, Debug)]
pub struct Icmp<'a> {
    header: &'a [u8; HEADER_LEN],
    payload: &'a [u8],
}

impl<'a> Icmp<'a> {
    /// Checks that the header is there. The checksum covers the whole message: see [`crate::checksum::verify`].
    #[inline]
    pub fn new_checked(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let (header, payload) = bytes.split_first_chunk().ok_or(Malformed::Truncated)?;
        Ok(Icmp { header, payload })
    }

    /// What the message is: [`ECHO_REQUEST`] and so on.
    #[inline]
    pub fn kind(&self) -> u8 {
        self.header[0]
    }

    /// What it is more closely: [`PORT_UNREACHABLE`] and so on.
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

    /// The MTU of the link that was too narrow, from a "fragmentation needed" of a router that says it (RFC 1191).
    #[inline]
    pub fn next_hop_mtu(&self) -> Option<u16> {
        let says = self.kind() == UNREACHABLE && self.code() == FRAGMENTATION_NEEDED;
        says.then(|| be16(self.header, 6)).filter(|mtu| *mtu != 0)
    }

    /// The beginning of the packet that an error is about, from its IPv4 header on.
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
    /// The header's bytes, with the checksum of the header and `payload`.
    pub fn emit(&self, payload: &[u8]) -> [u8; HEADER_LEN] {
        let mut header = [0; HEADER_LEN];
        header[0] = self.kind;
        header[1] = self.code;
        put(&mut header, 4, self.rest);
        let checksum = crate::checksum::sum(&header).add_bytes(payload).finish();
        put16(&mut header, CHECKSUM_AT, checksum);
        header
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checksum;

    #[test]
    fn view_reads_what_repr_emits() {
        let header = Repr { kind: ECHO_REQUEST, code: 0, rest: [1, 2, 3, 4] }.emit(b"odd");
        let message = [&header[..], b"odd"].concat();
        assert!(checksum::verify(&message));
        let view = Icmp::new_checked(&message).unwrap();
        assert_eq!((view.kind(), view.code(), view.payload()), (ECHO_REQUEST, 0, &b"odd"[..]));
        assert_eq!((view.identifier(), view.sequence()), (Some(0x0102), Some(0x0304)));
        assert_eq!((view.next_hop_mtu(), view.quoted()), (None, None));
    }

    #[test]
    fn an_error_tells_its_mtu_and_what_it_is_about() {
        let header =
            Repr { kind: UNREACHABLE, code: FRAGMENTATION_NEEDED, rest: [0, 0, 5, 0x78] }.emit(b"quote");
        let message = [&header[..], b"quote"].concat();
        let view = Icmp::new_checked(&message).unwrap();
        assert_eq!((view.next_hop_mtu(), view.quoted()), (Some(1400), Some(&b"quote"[..])));
        assert_eq!(view.identifier(), None);
        assert_eq!(view.checksum(), be16(&header, 2));
    }

    #[test]
    fn short_header_is_truncated() {
        assert_eq!(Icmp::new_checked(&[0; 7]).err(), Some(Malformed::Truncated));
    }
}
