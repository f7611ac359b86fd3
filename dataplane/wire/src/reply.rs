//! What a gateway answers: whole frames made from the frame that asked.
//!
//! Every function takes the frame and what [`parse`](crate::parse::parse) found in it, writes the answer to the
//! beginning of `out` and returns its length, or `None` if the rules forbid an answer, if the frame is not what the
//! function answers, or if `out` is too short. The answer goes back to the station that sent the frame, with the VLAN
//! tags that it came with. Whether the address asked for is ours is the caller's to know.

mod echo;
mod error;
mod neighbour;
mod reset;

pub use echo::echo;
pub use error::{Problem, Unreachable, error};
pub use neighbour::{advertisement, arp};
pub use reset::reset;

use crate::parse::Parsed;
use crate::{MacAddr, ethernet};
use std::net::{Ipv4Addr, Ipv6Addr};

/// Hops of a packet that we make ourselves (RFC 1700, "IP time to live parameter").
const HOPS: u8 = 64;

/// An answer in the making.
struct Answer<'a> {
    out: &'a mut [u8],
    len: usize,
}

impl<'a> Answer<'a> {
    /// Begins with the Ethernet header and the tags of an answer to `frame` that goes to `dst`.
    fn link(
        frame: &[u8],
        parsed: &Parsed,
        dst: MacAddr,
        src: MacAddr,
        out: &'a mut [u8],
    ) -> Option<Answer<'a>> {
        let tags_and_type = frame.get(ethernet::TYPE_AT..parsed.l3.into())?;
        Answer { out, len: 0 }.then(&dst.0)?.then(&src.0)?.then(tags_and_type)
    }

    /// Goes on with `bytes`, if there is room.
    fn then(mut self, bytes: &[u8]) -> Option<Self> {
        self.out.get_mut(self.len..)?.get_mut(..bytes.len())?.copy_from_slice(bytes);
        self.len += bytes.len();
        Some(self)
    }

    fn done(self) -> Option<usize> {
        Some(self.len)
    }
}

/// The stations of a frame: destination and source, if the source is one that can be answered.
fn stations(frame: &[u8]) -> Option<(MacAddr, MacAddr)> {
    let view = ethernet::Ethernet::new_checked(frame).ok()?;
    view.src().is_unicast().then_some((view.dst(), view.src()))
}

/// Whether exactly one host can own the address, so that it may be answered (RFC 1122 section 3.2.2).
fn is_host_v4(address: Ipv4Addr) -> bool {
    // 240.0.0.0/4 is reserved and has the limited broadcast in it; 0.0.0.0/8 is "this network" (RFC 6890).
    address.octets()[0] != 0 && !address.is_loopback() && address.octets()[0] < 224
}

/// Whether exactly one host can own the address (RFC 4443 section 2.4 e.6).
fn is_host_v6(address: Ipv6Addr) -> bool {
    !address.is_unspecified() && !address.is_loopback() && !address.is_multicast()
}
