//! Other addresses and ports for a packet, every checksum kept right by what changed (RFC 1624, RFC 5382 section 7).
//!
//! ```text
//!  Change + the flow -> Rewrite4 | Rewrite6, once per flow -> apply(frame, l3, l4, end), per packet
//!  Change of an ICMP error + Change of what it quotes -> rewrite_error(frame, parsed, …), per error
//! ```
//!
//! A packet keeps the checksum errors that it came with: nothing is computed anew.

mod one_end;
mod quoted;
mod transport;

pub use one_end::OneEnd4;
pub use quoted::rewrite_error;

use crate::bytes::{array, be32, put, put16};
use crate::checksum::Sum;
use crate::parse::{Net, Parsed, V4Flow, V6Flow};
use crate::{Malformed, ipv4, ipv6};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use transport::{Flow, Transport};

/// What a packet gets in the place of what it has; `None` leaves a field as it is.
///
/// Ports are those of [`Parsed`]: an ICMP echo, request or reply, has its identifier in `sport`. Ports of protocols and
/// fragments that have none are passed over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Change {
    /// The sender's address.
    pub src: Option<IpAddr>,
    /// The receiver's address.
    pub dst: Option<IpAddr>,
    /// The sender's port, or an echo's identifier.
    pub sport: Option<u16>,
    /// The receiver's port.
    pub dport: Option<u16>,
}

/// Why a packet cannot be rewritten. It is as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CannotRewrite {
    /// An IPv4 packet was to get an IPv6 address, or the other way round.
    #[error("an address of the other IP version cannot stand in this packet")]
    OtherFamily,
    /// The CRC32c of an SCTP packet covers all its fragments, so that the first alone cannot get other ports.
    #[error("the ports of a fragmented SCTP packet are covered by a checksum over all its fragments")]
    FragmentedSctp,
    /// The packet is no IP packet.
    #[error("only IP packets have addresses to rewrite")]
    NotIp,
    /// The packet is no ICMP error, or it quotes none of the packet that it is about.
    #[error("the packet is no ICMP error that quotes a packet")]
    NotAnError,
    /// What an ICMP error quotes breaks a rule.
    #[error("the packet quoted by an ICMP error is malformed: {0}")]
    Quotation(#[source] Malformed),
    /// The frame is shorter than its own facts say: they are those of another frame.
    #[error("the frame ends before the headers that it was parsed to have")]
    Truncated,
}

/// Gives `frame` other addresses and ports; it was `parsed` as it is now.
///
/// Flows that go on are served by [`Rewrite4`] and [`Rewrite6`], which work the deltas out once.
///
/// # Errors
/// See [`CannotRewrite`]; the frame is as it was.
pub fn rewrite(frame: &mut [u8], parsed: &Parsed, change: &Change) -> Result<(), CannotRewrite> {
    let done = Rewrite::new(&parsed.net, change)?.apply(
        frame,
        parsed.l3.into(),
        parsed.l4.into(),
        parsed.end.into(),
    );
    if done { Ok(()) } else { Err(CannotRewrite::Truncated) }
}

/// A rewrite of either IP version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rewrite {
    V4(Rewrite4),
    V6(Rewrite6),
}

impl Rewrite {
    fn new(net: &Net, change: &Change) -> Result<Rewrite, CannotRewrite> {
        match net {
            Net::V4(flow) => Rewrite4::new(flow, change).map(Rewrite::V4),
            Net::V6(flow) => Rewrite6::new(flow, change).map(Rewrite::V6),
            Net::Arp | Net::Other(_) => Err(CannotRewrite::NotIp),
        }
    }

    fn apply(&self, frame: &mut [u8], l3: usize, l4: usize, end: usize) -> bool {
        match self {
            Rewrite::V4(rewrite) => rewrite.apply(frame, l3, l4, end),
            Rewrite::V6(rewrite) => rewrite.apply(frame, l3, l4, end),
        }
    }
}

/// New addresses and ports for the packets of one IPv4 flow, worked out once: 20 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, zerocopy::FromZeros)]
#[repr(C)]
pub struct Rewrite4 {
    /// Both addresses, as they stand in the header.
    addresses: [u8; 8],
    transport: Transport,
    /// What the header checksum's complement grows by.
    ip_delta: u16,
    reserved: u16,
}

/// Where the addresses stand in an IPv4 header.
const V4_ADDRESSES_AT: usize = 12;

impl Rewrite4 {
    /// Works out what `change` makes of packets of `flow`; for a later fragment the addresses only.
    ///
    /// # Errors
    /// [`CannotRewrite::OtherFamily`] and [`CannotRewrite::FragmentedSctp`].
    pub fn new(flow: &V4Flow, change: &Change) -> Result<Rewrite4, CannotRewrite> {
        let addresses = [v4(change.src)?.unwrap_or(flow.src), v4(change.dst)?.unwrap_or(flow.dst)];
        let ports = [change.sport.unwrap_or(flow.sport), change.dport.unwrap_or(flow.dport)];
        Rewrite4::between(flow, addresses, ports)
    }

    /// Works out what packets of `flow` get that go between these addresses and ports, the sender's first.
    #[inline(always)]
    fn between(flow: &V4Flow, addresses: [Ipv4Addr; 2], ports: [u16; 2]) -> Result<Rewrite4, CannotRewrite> {
        let [src, dst] = addresses;
        let delta = Sum::ZERO
            .add32(!flow.src.to_bits())
            .add32(!flow.dst.to_bits())
            .add32(src.to_bits())
            .add32(dst.to_bits());
        let mut addresses = [0; 8];
        put(&mut addresses, 0, src.octets());
        put(&mut addresses, 4, dst.octets());
        let (protocol, fragment) = (flow.proto, flow.fragment);
        let flow = Flow { protocol, fragment, sport: flow.sport, dport: flow.dport };
        let transport = Transport::new(&flow, ports, delta)?;
        Ok(Rewrite4 { addresses, transport, ip_delta: delta.fold(), reserved: 0 })
    }

    /// Rewrites a packet of the flow, which was parsed to begin at `l3`, to have its transport header at `l4` and to
    /// end before `end`, all counted from the frame's first byte.
    ///
    /// False if the frame has no room for these headers; it is as it was then.
    #[inline(always)]
    #[must_use]
    pub fn apply(&self, frame: &mut [u8], l3: usize, l4: usize, end: usize) -> bool {
        let Some((head, segment)) = frame.split_at_mut_checked(l4) else { return false };
        let Some(header) = head.get_mut(l3..).and_then(|header| header.first_chunk_mut()) else {
            return false;
        };
        if !self.transport.apply(segment, end.saturating_sub(l4)) {
            return false;
        }
        self.apply_to_header(header);
        true
    }

    /// Rewrites the addresses of a later fragment of a packet of the flow.
    #[inline]
    pub fn apply_to_header(&self, header: &mut [u8; ipv4::HEADER_LEN]) {
        let checksum = transport::updated(array(header, ipv4::CHECKSUM_AT), self.ip_delta);
        put16(header, ipv4::CHECKSUM_AT, checksum);
        put(header, V4_ADDRESSES_AT, self.addresses);
    }

    /// The sender's new address.
    #[must_use]
    pub fn src(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(be32(&self.addresses, 0))
    }

    /// The receiver's new address.
    #[must_use]
    pub fn dst(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(be32(&self.addresses, 4))
    }
}

/// New addresses and ports for the packets of one IPv6 flow, worked out once: 40 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, zerocopy::FromZeros)]
#[repr(C)]
pub struct Rewrite6 {
    /// Both addresses, as they stand in the header.
    addresses: [u8; 32],
    transport: Transport,
}

/// Where the addresses stand in an IPv6 header.
const V6_ADDRESSES_AT: usize = 8;

impl Rewrite6 {
    /// Works out what `change` makes of packets of `flow`; for a later fragment the addresses only.
    ///
    /// # Errors
    /// [`CannotRewrite::OtherFamily`] and [`CannotRewrite::FragmentedSctp`].
    pub fn new(flow: &V6Flow, change: &Change) -> Result<Rewrite6, CannotRewrite> {
        let src = v6(change.src)?.unwrap_or(flow.src);
        let dst = v6(change.dst)?.unwrap_or(flow.dst);
        let (mut delta, mut addresses) = (Sum::ZERO, [0; 32]);
        for (old, new) in [(flow.src, src), (flow.dst, dst)] {
            for (old, new) in old.segments().into_iter().zip(new.segments()) {
                delta = delta.add16(!old).add16(new);
            }
        }
        put(&mut addresses, 0, src.octets());
        put(&mut addresses, 16, dst.octets());
        let (protocol, fragment) = (flow.proto, flow.fragment);
        let ports = [change.sport.unwrap_or(flow.sport), change.dport.unwrap_or(flow.dport)];
        let flow = Flow { protocol, fragment, sport: flow.sport, dport: flow.dport };
        Ok(Rewrite6 { addresses, transport: Transport::new(&flow, ports, delta)? })
    }

    /// Rewrites a packet of the flow: see [`Rewrite4::apply`].
    #[inline(always)]
    #[must_use]
    pub fn apply(&self, frame: &mut [u8], l3: usize, l4: usize, end: usize) -> bool {
        let Some((head, segment)) = frame.split_at_mut_checked(l4) else { return false };
        let Some(header) = head.get_mut(l3..).and_then(|header| header.first_chunk_mut()) else {
            return false;
        };
        if !self.transport.apply(segment, end.saturating_sub(l4)) {
            return false;
        }
        self.apply_to_header(header);
        true
    }

    /// Rewrites the addresses of a later fragment of a packet of the flow.
    #[inline]
    pub fn apply_to_header(&self, header: &mut [u8; ipv6::HEADER_LEN]) {
        put(header, V6_ADDRESSES_AT, self.addresses);
    }

    /// The sender's new address.
    #[must_use]
    pub fn src(&self) -> Ipv6Addr {
        Ipv6Addr::from(array::<32, 16>(&self.addresses, 0))
    }

    /// The receiver's new address.
    #[must_use]
    pub fn dst(&self) -> Ipv6Addr {
        Ipv6Addr::from(array::<32, 16>(&self.addresses, 16))
    }
}

fn v4(address: Option<IpAddr>) -> Result<Option<Ipv4Addr>, CannotRewrite> {
    match address {
        Some(IpAddr::V6(_)) => Err(CannotRewrite::OtherFamily),
        Some(IpAddr::V4(address)) => Ok(Some(address)),
        None => Ok(None),
    }
}

fn v6(address: Option<IpAddr>) -> Result<Option<Ipv6Addr>, CannotRewrite> {
    match address {
        Some(IpAddr::V4(_)) => Err(CannotRewrite::OtherFamily),
        Some(IpAddr::V6(address)) => Ok(Some(address)),
        None => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rewrites_are_as_small_as_they_say() {
        assert_eq!((size_of::<Rewrite4>(), size_of::<Rewrite6>()), (20, 40));
    }
}
