//! The transport header's share of a rewrite: ports or an echo's identifier, and the checksum.

use super::CannotRewrite;
use crate::bytes::{array, put16};
use crate::checksum::Sum;
use crate::parse::Fragment;
use crate::{crc32c, icmp, icmpv6, proto, sctp, tcp, udp};

/// Where an ICMP echo has its identifier.
const IDENTIFIER_AT: usize = 4;

/// Whose ports are rewritten.
pub(super) struct Flow {
    pub(super) protocol: u8,
    pub(super) fragment: Fragment,
    pub(super) sport: u16,
    pub(super) dport: u16,
}

/// What the transport header of a flow's packets gets: 8 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, zerocopy::FromZeros)]
#[repr(C)]
pub(super) struct Transport {
    /// Both ports as they stand in the header, or an echo's identifier twice.
    ports: [u8; 4],
    /// What the checksum's complement grows by.
    delta: u16,
    kind: Kind,
}

/// Which fields there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, zerocopy::FromZeros)]
#[repr(u8)]
enum Kind {
    /// None that changes.
    #[default]
    Nothing,
    Tcp,
    Udp,
    /// An echo of either ICMP.
    Echo,
    /// An ICMPv6 message other than an echo: its checksum covers the addresses.
    Icmpv6,
    Sctp,
}

impl Transport {
    /// Works out what becomes of the transport header that gets `ports`; `addresses` is by what the addresses' sum grows.
    #[inline(always)]
    pub(super) fn new(flow: &Flow, ports: [u16; 2], addresses: Sum) -> Result<Transport, CannotRewrite> {
        if flow.fragment == Fragment::Later {
            return Ok(Transport::default());
        }
        let [sport, dport] = ports;
        let source = Sum::ZERO.add16(!flow.sport).add16(sport);
        let both = source.add16(!flow.dport).add16(dport);
        let icmp_type = (flow.dport >> 8) as u8;
        let (kind, sum) = match flow.protocol {
            proto::TCP => (Kind::Tcp, addresses.add(both)),
            proto::UDP => (Kind::Udp, addresses.add(both)),
            proto::ICMP if icmp::is_echo(icmp_type) => (Kind::Echo, source),
            proto::ICMPV6 if icmpv6::is_echo(icmp_type) => (Kind::Echo, addresses.add(source)),
            proto::ICMPV6 => (Kind::Icmpv6, addresses),
            proto::SCTP if (sport, dport) == (flow.sport, flow.dport) => (Kind::Nothing, Sum::ZERO),
            proto::SCTP if flow.fragment == Fragment::First => return Err(CannotRewrite::FragmentedSctp),
            proto::SCTP => (Kind::Sctp, Sum::ZERO),
            _ => (Kind::Nothing, Sum::ZERO),
        };
        let second = if kind == Kind::Echo { sport } else { dport };
        let [[a, b], [c, d]] = [sport.to_be_bytes(), second.to_be_bytes()];
        Ok(Transport { ports: [a, b, c, d], delta: sum.fold(), kind })
    }

    /// Both ports as they stand in the header, or an echo's identifier twice.
    pub(super) fn ports(&self) -> [u8; 4] {
        self.ports
    }

    /// Rewrites `segment`, which was `length` bytes when it was sent; false, and nothing done, if it has no ports.
    ///
    /// A quotation may end before the checksum, which then stays unwritten.
    #[inline(always)]
    pub(super) fn apply(&self, segment: &mut [u8], length: usize) -> bool {
        match self.kind {
            Kind::Nothing => true,
            Kind::Tcp => {
                let Some(ports) = segment.first_chunk_mut() else { return false };
                *ports = self.ports;
                if let Some(header) = segment.first_chunk_mut::<{ tcp::CHECKSUM_AT + 2 }>() {
                    let checksum = updated(array(header, tcp::CHECKSUM_AT), self.delta);
                    put16(header, tcp::CHECKSUM_AT, checksum);
                }
                true
            }
            Kind::Udp => {
                let Some(header) = segment.first_chunk_mut::<{ udp::HEADER_LEN }>() else { return false };
                let old = array(header, udp::CHECKSUM_AT);
                // RFC 768: zero says that there is no checksum, so one that adds up to zero is sent as its complement.
                if old != [0; 2] {
                    let checksum = updated(old, self.delta);
                    put16(header, udp::CHECKSUM_AT, if checksum == 0 { 0xffff } else { checksum });
                }
                header[..4].copy_from_slice(&self.ports);
                true
            }
            Kind::Echo | Kind::Icmpv6 => self.apply_to_icmp(segment),
            Kind::Sctp => self.apply_to_sctp(segment, length),
        }
    }

    #[inline(never)]
    fn apply_to_icmp(&self, segment: &mut [u8]) -> bool {
        let Some(header) = segment.first_chunk_mut::<{ icmp::HEADER_LEN }>() else { return false };
        let checksum = updated(array(header, icmp::CHECKSUM_AT), self.delta);
        put16(header, icmp::CHECKSUM_AT, checksum);
        if self.kind == Kind::Echo {
            header[IDENTIFIER_AT..][..2].copy_from_slice(&self.ports[..2]);
        }
        true
    }

    #[inline(never)]
    fn apply_to_sctp(&self, segment: &mut [u8], length: usize) -> bool {
        let Some(ports) = segment.first_chunk_mut::<4>() else { return false };
        let old = std::mem::replace(ports, self.ports);
        if let Some(header) = segment.first_chunk_mut::<{ sctp::HEADER_LEN }>() {
            let crc = u32::from_le_bytes(array(header, sctp::CHECKSUM_AT));
            let crc = crc32c::update(crc, old, self.ports, length as u16);
            header[sctp::CHECKSUM_AT..].copy_from_slice(&crc.to_le_bytes());
        }
        true
    }
}

/// A checksum whose complement grows by `delta` (RFC 1624 equation 3).
#[inline(always)]
pub(super) fn updated(checksum: [u8; 2], delta: u16) -> u16 {
    // Two words cannot carry more than once.
    let (sum, carry) = (!u16::from_be_bytes(checksum)).overflowing_add(delta);
    !(sum + u16::from(carry))
}
