//! The Geneve option that asks a backend's node to answer in a service's name (direct server return).
//!
//! The node that a client's packet came to has chosen the backend and put its address into the packet. The option
//! says which address and port the client knows, so that the backend's node can send the answers from there, directly.
//!
//! ```text
//!   0                   1                   2                   3
//!   0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//!  |     class 0xff50              |1|  type 0x01  |0 0 0| length  |
//!  |     service port              |          reserved             |
//!  |     service address: 4 bytes (length 2) or 16 bytes (length 5) |
//! ```
//!
//! The option is critical: a node that does not know it would let the backend answer in its own name, to a client that
//! has never heard of it; RFC 8926 section 3.5 makes such a node drop the packet instead.

use crate::Malformed;
use crate::bytes::{be16, put, put16};
use crate::geneve::{CRITICAL_OPTION, GeneveOption, OPTION_HEADER_LEN, Options};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The option's class, from the range for experimental use, 0xff00 to 0xffff (RFC 8926 section 7).
pub const CLASS: u16 = 0xff50;
/// The option's type within the class.
pub const KIND: u8 = CRITICAL_OPTION | 0x01;
/// Bytes of data that name an IPv4 service.
const V4_LEN: usize = 8;
/// Bytes of data that name an IPv6 service.
const V6_LEN: usize = 20;
/// Bytes of the longest option, its header included.
pub const MAX_LEN: usize = OPTION_HEADER_LEN + V6_LEN;

/// Whom a backend's node answers as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ServedAs {
    /// The service's address, as the client knows it.
    pub address: IpAddr,
    /// The service's port, as the client knows it.
    pub port: u16,
}

impl ServedAs {
    /// Whether an option of this class and type is this one.
    #[inline]
    #[must_use]
    pub const fn is(class: u16, kind: u8) -> bool {
        class == CLASS && kind == KIND
    }

    /// Finds the option among those of a packet.
    ///
    /// # Errors
    /// [`Malformed::BadOption`] for options that reach past their list, for one of ours of a wrong length, and for two
    /// of them.
    pub fn find(options: Options<'_>) -> Result<Option<ServedAs>, Malformed> {
        let mut found = None;
        for option in options {
            let option = option?;
            if ServedAs::is(option.class, option.kind) {
                let served_as = ServedAs::parse(option.data).ok_or(Malformed::BadOption)?;
                if found.replace(served_as).is_some() {
                    return Err(Malformed::BadOption);
                }
            }
        }
        Ok(found)
    }

    /// Reads the option's data.
    fn parse(data: &[u8]) -> Option<ServedAs> {
        let (head, address) = data.split_first_chunk::<4>()?;
        let address = match *address {
            [a, b, c, d] => Ipv4Addr::new(a, b, c, d).into(),
            _ => Ipv6Addr::from(<[u8; 16]>::try_from(address).ok()?).into(),
        };
        Some(ServedAs { address, port: be16(head, 0) })
    }

    /// The option that stands for one of this IP version in a template: every packet gets its own address and port
    /// ([`crate::encap::EncapTemplate::stamp_served_as`]).
    #[must_use]
    pub fn blank(is_ipv4: bool) -> GeneveOption {
        let address = if is_ipv4 { Ipv4Addr::UNSPECIFIED.into() } else { IpAddr::V6(Ipv6Addr::UNSPECIFIED) };
        ServedAs { address, port: 0 }.to_option()
    }

    /// Bytes of the option, its header included.
    #[must_use]
    pub const fn option_len(&self) -> usize {
        OPTION_HEADER_LEN + if self.address.is_ipv4() { V4_LEN } else { V6_LEN }
    }

    /// The option's bytes, header included; [`ServedAs::option_len`] of them count, the rest is zero.
    #[must_use]
    pub fn emit(&self) -> [u8; MAX_LEN] {
        let mut option = [0; MAX_LEN];
        put16(&mut option, 0, CLASS);
        option[2] = KIND;
        option[3] = ((self.option_len() - OPTION_HEADER_LEN) / 4) as u8;
        put16(&mut option, OPTION_HEADER_LEN, self.port);
        match self.address {
            IpAddr::V4(address) => put(&mut option, OPTION_HEADER_LEN + 4, address.octets()),
            IpAddr::V6(address) => put(&mut option, OPTION_HEADER_LEN + 4, address.octets()),
        }
        option
    }

    /// The option for a tunnel's template: see [`crate::encap::EncapTemplate::geneve`].
    #[must_use]
    pub fn to_option(&self) -> GeneveOption {
        GeneveOption {
            class: CLASS,
            kind: KIND,
            data: self.emit()[OPTION_HEADER_LEN..self.option_len()].to_vec(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Vni;
    use crate::geneve::{Geneve, MAX_OPTIONS_LEN, Repr};

    fn services() -> [ServedAs; 2] {
        [
            ServedAs { address: "192.0.2.80".parse().unwrap(), port: 443 },
            ServedAs { address: "2001:db8::80".parse().unwrap(), port: 65_535 },
        ]
    }

    fn packet(options: &[GeneveOption]) -> Vec<u8> {
        Repr { vni: Vni::MAX, options }.emit(MAX_OPTIONS_LEN).unwrap()
    }

    fn find(packet: &[u8]) -> Result<Option<ServedAs>, Malformed> {
        ServedAs::find(Geneve::new_checked(packet)?.options())
    }

    #[test]
    fn what_is_sent_is_found_among_other_options() {
        let other = GeneveOption { class: 0x0102, kind: 0x01, data: vec![0; 8] };
        for served_as in services() {
            let packet = packet(&[other.clone(), served_as.to_option(), other.clone()]);
            assert_eq!(find(&packet), Ok(Some(served_as)));
            assert!(Geneve::new_checked(&packet).unwrap().has_critical());
        }
        assert_eq!(find(&packet(&[other])), Ok(None));
        assert_eq!(find(&packet(&[])), Ok(None));
    }

    #[test]
    fn emitted_bytes_are_those_of_the_option() {
        for served_as in services() {
            let packet = packet(&[served_as.to_option()]);
            assert_eq!(served_as.emit()[..served_as.option_len()], packet[crate::geneve::HEADER_LEN..]);
            assert!(served_as.emit()[served_as.option_len()..].iter().all(|byte| *byte == 0));
        }
    }

    #[test]
    fn wrong_lengths_and_two_of_a_kind_are_refused() {
        for len in [0, 4, 12, 16, 24] {
            let short = GeneveOption { class: CLASS, kind: KIND, data: vec![0; len] };
            assert_eq!(find(&packet(&[short])), Err(Malformed::BadOption), "{len} bytes");
        }
        let twice = [services()[0].to_option(), services()[1].to_option()];
        assert_eq!(find(&packet(&twice)), Err(Malformed::BadOption));
    }
}
