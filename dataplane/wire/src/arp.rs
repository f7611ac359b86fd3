//! ARP messages about IPv4 over Ethernet (RFC 826).

use crate::bytes::{array, be16, be32, put, put16};
use crate::{MacAddr, Malformed, ethernet};
use std::net::Ipv4Addr;

/// Bytes of a message about IPv4 over Ethernet.
pub const HEADER_LEN: usize = 28;
/// The hardware type of Ethernet.
pub const HARDWARE_ETHERNET: u16 = 1;
/// Who has the target address?
pub const REQUEST: u16 = 1;
/// The sender has.
pub const REPLY: u16 = 2;

/// Hardware type, protocol type and their address lengths: the only ones there are here.
const PREAMBLE: [u8; 6] =
    [0, HARDWARE_ETHERNET as u8, (ethernet::IPV4 >> 8) as u8, ethernet::IPV4 as u8, 6, 4];

/// A checked view of a message.
#[derive(Clone, Copy, Debug)]
pub struct Arp<'a> {
    header: &'a [u8; HEADER_LEN],
}

impl<'a> Arp<'a> {
    /// Checks that the message is whole and about IPv4 over Ethernet.
    #[inline]
    pub fn new_checked(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let header: &[u8; HEADER_LEN] = bytes.first_chunk().ok_or(Malformed::Truncated)?;
        if !header.starts_with(&PREAMBLE) {
            return Err(Malformed::BadArp);
        }
        Ok(Arp { header })
    }

    /// [`REQUEST`] or [`REPLY`].
    #[inline]
    pub fn operation(&self) -> u16 {
        be16(self.header, 6)
    }

    /// The sender's station.
    #[inline]
    pub fn sender_mac(&self) -> MacAddr {
        MacAddr(array(self.header, 8))
    }

    /// The sender's address; unspecified if the sender only asks whether the target is taken (RFC 5227).
    #[inline]
    pub fn sender(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(be32(self.header, 14))
    }

    /// The target's station; meaningless in a request.
    #[inline]
    pub fn target_mac(&self) -> MacAddr {
        MacAddr(array(self.header, 18))
    }

    /// The address that the message is about.
    #[inline]
    pub fn target(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(be32(self.header, 24))
    }
}

/// The fields of a message to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Repr {
    /// [`REQUEST`] or [`REPLY`].
    pub operation: u16,
    /// The sender's station.
    pub sender_mac: MacAddr,
    /// The sender's address.
    pub sender: Ipv4Addr,
    /// The target's station; zero in a request.
    pub target_mac: MacAddr,
    /// The target's address.
    pub target: Ipv4Addr,
}

impl Repr {
    /// The message's bytes.
    pub fn emit(&self) -> [u8; HEADER_LEN] {
        let mut header = [0; HEADER_LEN];
        put(&mut header, 0, PREAMBLE);
        put16(&mut header, 6, self.operation);
        put(&mut header, 8, self.sender_mac.0);
        put(&mut header, 14, self.sender.octets());
        put(&mut header, 18, self.target_mac.0);
        put(&mut header, 24, self.target.octets());
        header
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn repr() -> Repr {
        Repr {
            operation: REQUEST,
            sender_mac: MacAddr([2, 0, 0, 0, 0, 1]),
            sender: Ipv4Addr::new(10, 0, 0, 1),
            target_mac: MacAddr::ZERO,
            target: Ipv4Addr::new(10, 0, 0, 2),
        }
    }

    #[test]
    fn view_reads_what_repr_emits() {
        let bytes = repr().emit();
        let view = Arp::new_checked(&bytes).unwrap();
        let read = Repr {
            operation: view.operation(),
            sender_mac: view.sender_mac(),
            sender: view.sender(),
            target_mac: view.target_mac(),
            target: view.target(),
        };
        assert_eq!(read, repr());
    }

    #[test]
    fn other_hardware_and_protocols_are_refused() {
        assert_eq!(Arp::new_checked(&[0; 27]).err(), Some(Malformed::Truncated));
        for at in 0..PREAMBLE.len() {
            let mut bytes = repr().emit();
            bytes[at] ^= 0x10;
            assert_eq!(Arp::new_checked(&bytes).err(), Some(Malformed::BadArp), "byte {at}");
        }
    }
}
