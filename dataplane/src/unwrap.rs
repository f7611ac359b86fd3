//! Frames from an uplink: out of which tunnel, or out of none.

use std::net::IpAddr;

use penstock_io::Frame;
use penstock_wire::decap::{self, TunnelKind};
use penstock_wire::dsr::ServedAs;
use penstock_wire::parse::{Fragment, Net, Parsed, parse_any, parse_quoted, plain};
use penstock_wire::{Malformed, Vni, ecn, ethernet, icmp, icmpv6, ipv4, ipv6, proto, udp};

use crate::drop::{Cause, Reason};
use crate::flow::ZoneId;
use crate::offload;
use crate::snapshot::Epoch;
use crate::tables::{Snapshot, TunnelZone};

/// Slots of the memo: peers times networks that are busy at a time.
const MEMO: usize = 64;

/// What came in on an uplink.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrived {
    /// An inner frame: the tunnel's headers are off.
    Tunnel(ZoneId),
    /// The same, sent on for a service that the peer's client asked.
    Served(ZoneId, ServedAs),
    /// No tunnel packet.
    Bare,
    /// The underlay says that packets to a peer may only be so long.
    PathMtu(IpAddr, u16),
}

/// Remembers which zones the last tunnels led to, so that most packets need no hash map.
pub struct Unwrapper {
    memo: Box<[Option<(IpAddr, Vni, TunnelZone)>; MEMO]>,
    epoch: Epoch,
}

impl Default for Unwrapper {
    fn default() -> Unwrapper {
        Unwrapper { memo: Box::new([None; MEMO]), epoch: Epoch(0) }
    }
}

impl Unwrapper {
    /// Looks at a frame from an uplink and takes the tunnel's headers off.
    ///
    /// # Errors
    /// Why the frame is to be dropped.
    #[inline(always)]
    pub fn unwrap(
        &mut self,
        snapshot: &Snapshot,
        epoch: Epoch,
        frame: &mut Frame,
    ) -> Result<Arrived, Reason> {
        match plain(frame.bytes()) {
            Some(parsed) => self.unwrap_parsed(snapshot, epoch, frame, parsed),
            None => self.unwrap_any(snapshot, epoch, frame),
        }
    }

    #[inline(never)]
    fn unwrap_any(
        &mut self,
        snapshot: &Snapshot,
        epoch: Epoch,
        frame: &mut Frame,
    ) -> Result<Arrived, Reason> {
        let parsed = parse_any(frame.bytes())?;
        self.unwrap_parsed(snapshot, epoch, frame, parsed)
    }

    #[inline(always)]
    fn unwrap_parsed(
        &mut self,
        snapshot: &Snapshot,
        epoch: Epoch,
        frame: &mut Frame,
        parsed: Parsed,
    ) -> Result<Arrived, Reason> {
        let Some((src, dst, protocol, dport, tos, fragment)) = outer(&parsed) else {
            return Ok(Arrived::Bare);
        };
        let kind = if protocol == proto::UDP { kind_of(snapshot, dport) } else { None };
        let (Some(kind), Fragment::Whole) = (kind, fragment) else {
            return Ok(if protocol == proto::ICMP || protocol == proto::ICMPV6 {
                path_mtu(snapshot, frame.bytes(), parsed).unwrap_or(Arrived::Bare)
            } else {
                Arrived::Bare
            });
        };
        if !snapshot.underlay_addresses.contains(&dst) {
            return Err(Cause::NotOurTunnel.into());
        }
        if has_checksum(frame.bytes(), &parsed) && !checksum_holds(snapshot, frame.bytes(), parsed) {
            return Err(Malformed::BadChecksum.into());
        }
        let end = usize::from(parsed.end);
        let tunnel = decap::tunnel(&frame.bytes()[..end], parsed.l4, kind)?;
        let zone = self.zone(snapshot, epoch, src, tunnel.vni)?;
        if zone.kind != kind {
            return Err(Cause::WrongTunnelKind.into());
        }
        let served_as =
            if tunnel.is_served { Some(decap::served_as(frame.bytes(), parsed.l4)?) } else { None };
        frame.truncate(end);
        // The inner Ethernet header is all there (`decap::tunnel`), so at least that stays.
        frame.trim_front(tunnel.inner.into()).map_err(|_| Malformed::Truncated)?;
        if tos & ecn::MASK != 0 {
            carry_congestion(frame.bytes_mut(), tos)?;
        }
        if let Some(served_as) = served_as {
            let zone = zone.served.ok_or(Malformed::UnknownCriticalOption)?;
            return Ok(Arrived::Served(zone, served_as));
        }
        Ok(Arrived::Tunnel(zone.zone))
    }

    #[inline(always)]
    fn zone(
        &mut self,
        snapshot: &Snapshot,
        epoch: Epoch,
        src: IpAddr,
        vni: Vni,
    ) -> Result<TunnelZone, Cause> {
        if self.epoch != epoch {
            self.memo.fill(None);
            self.epoch = epoch;
        }
        let low = match src {
            IpAddr::V4(v4) => v4.to_bits(),
            IpAddr::V6(v6) => v6.to_bits() as u32,
        };
        let slot = &mut self.memo[(low ^ vni.get()) as usize % MEMO];
        match slot {
            Some((known, network, zone)) if *known == src && *network == vni => Ok(*zone),
            _ => {
                let zone = known_tunnel(snapshot, src, vni)?;
                *slot = Some((src, vni, zone));
                Ok(zone)
            }
        }
    }
}

#[inline(never)]
fn known_tunnel(snapshot: &Snapshot, src: IpAddr, vni: Vni) -> Result<TunnelZone, Cause> {
    snapshot.tunnels.get(&(src, vni)).copied().ok_or_else(|| unknown(snapshot, src, vni))
}

fn unknown(snapshot: &Snapshot, src: IpAddr, vni: Vni) -> Cause {
    if snapshot.networks.iter().all(|network| network.vni != vni) {
        Cause::UnknownVni
    } else if snapshot.peers.iter().all(|peer| peer.address != src) {
        Cause::UnknownPeer
    } else {
        Cause::WrongTunnelKind
    }
}

#[inline(always)]
fn outer(parsed: &Parsed) -> Option<(IpAddr, IpAddr, u8, u16, u8, Fragment)> {
    match parsed.net {
        Net::V4(flow) => {
            Some((flow.src.into(), flow.dst.into(), flow.proto, flow.dport, flow.tos, flow.fragment))
        }
        Net::V6(flow) => {
            Some((flow.src.into(), flow.dst.into(), flow.proto, flow.dport, flow.tclass, flow.fragment))
        }
        Net::Arp | Net::Other(_) => None,
    }
}

#[inline(always)]
fn kind_of(snapshot: &Snapshot, port: u16) -> Option<TunnelKind> {
    snapshot.tunnel_ports.iter().find(|(known, _)| *known == port).map(|(_, kind)| *kind)
}

/// Whether the outer UDP header has a checksum at all: most tunnels over IPv4 have none.
#[inline(always)]
fn has_checksum(frame: &[u8], parsed: &Parsed) -> bool {
    let at = usize::from(parsed.l4) + udp::CHECKSUM_AT;
    frame.get(at..at + 2) != Some(&[0, 0])
}

#[inline(never)]
fn checksum_holds(snapshot: &Snapshot, frame: &[u8], parsed: Parsed) -> bool {
    offload::udp_checksum_holds(frame, &parsed, snapshot.partial_underlay)
}

/// Carries the outer header's congestion mark over to the inner one (RFC 6040).
fn carry_congestion(inner: &mut [u8], outer_tos: u8) -> Result<(), Reason> {
    let Some((link, packet)) = inner.split_first_chunk_mut::<{ ethernet::HEADER_LEN }>() else {
        return Ok(());
    };
    let ethertype = u16::from_be_bytes([link[12], link[13]]);
    if ethertype == ethernet::IPV4
        && let Some(header) = packet.first_chunk_mut::<{ ipv4::HEADER_LEN }>()
    {
        let tos = header[ipv4::TOS_AT];
        let carried = ecn::decapsulate(outer_tos, tos).map_err(|_| Cause::CongestionNotCarried)?;
        if carried != tos {
            ipv4::set_tos(header, carried);
        }
    } else if ethertype == ethernet::IPV6
        && let Some(header) = packet.first_chunk_mut::<{ ipv6::HEADER_LEN }>()
    {
        let class = header[0] << 4 | header[1] >> 4;
        let carried = ecn::decapsulate(outer_tos, class).map_err(|_| Cause::CongestionNotCarried)?;
        if carried != class {
            ipv6::set_traffic_class(header, carried);
        }
    }
    Ok(())
}

/// A router's word that a tunnel packet of ours was too long; the control side judges what of it to believe.
#[cold]
fn path_mtu(snapshot: &Snapshot, frame: &[u8], parsed: Parsed) -> Option<Arrived> {
    let message = frame.get(parsed.l4.into()..parsed.end.into())?;
    let (mtu, ethertype, quoted) = match parsed.net {
        Net::V4(flow) if flow.proto == proto::ICMP => {
            let icmp = icmp::Icmp::new_checked(message).ok()?;
            (u32::from(icmp.next_hop_mtu()?), ethernet::IPV4, icmp.quoted()?)
        }
        Net::V6(flow) if flow.proto == proto::ICMPV6 => {
            let icmp = icmpv6::Icmpv6::new_checked(message).ok()?;
            (icmp.next_hop_mtu()?, ethernet::IPV6, icmp.quoted()?)
        }
        _ => return None,
    };
    let quoted = parse_quoted(ethertype, quoted).ok()?;
    let (src, dst, protocol, dport, ..) = outer(&quoted)?;
    let ours = protocol == proto::UDP && snapshot.underlay_addresses.contains(&src);
    let to_peer = snapshot.peers.iter().any(|peer| peer.address == dst);
    let known_port = kind_of(snapshot, dport).is_some();
    (ours && to_peer && known_port).then(|| Arrived::PathMtu(dst, mtu.min(65_535) as u16))
}
