//! Header views, parse, checksums and encapsulation templates: bytes in, facts out, no I/O.
//!
//! * One module per header, all with the same anatomy: the constants of the wire format, a checked view that borrows
//!   the bytes (`new_checked`, then getters that cannot fail) and, for what Penstock sends, a `Repr` with `emit`.
//! * [`parse::parse`] goes from Ethernet to ports in one pass and is what a worker calls for every packet.
//! * [`encap::EncapTemplate`] puts a whole tunnel header in front of a packet with one copy and a few patches;
//!   [`decap::tunnel`] finds what is behind such a header.
//! * [`rewrite`] gives packets other addresses and ports, [`dsr`] tells a backend's node who is to answer.
//! * [`reply`] writes what a gateway answers, [`fragment`] cuts IPv4 packets, [`segment`] cuts and joins TCP and UDP.
//!
//! Offsets and lengths are bytes; integers are in host order once they have left the wire.

#![forbid(unsafe_code)]

mod bytes;
mod mac;
mod malformed;
mod vni;

pub mod arp;
pub mod checksum;
pub mod crc32c;
pub mod decap;
pub mod dsr;
pub mod ecn;
pub mod encap;
pub mod ethernet;
pub mod fragment;
#[doc(hidden)]
pub mod fuzzing;
pub mod geneve;
pub mod icmp;
pub mod icmpv6;
pub mod ipv4;
pub mod ipv6;
pub mod ndp;
pub mod parse;
pub mod proto;
pub mod reply;
pub mod rewrite;
pub mod sctp;
pub mod segment;
pub mod tcp;
pub mod udp;
pub mod vlan;
pub mod vxlan;

pub use mac::{BadMac, MacAddr};
pub use malformed::Malformed;
pub use vni::Vni;
