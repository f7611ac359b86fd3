//! Stage 2: who may send what from where. A packet's source is what policies know its sender by, so nobody may have another's.

use std::net::IpAddr;

use super::Facts;
use crate::drop::Cause;
use crate::tables::{Network, Snapshot, Target, Zone};

/// Whether a packet may come from where it came from.
pub(super) fn check_source(
    snapshot: &Snapshot,
    zone: Zone,
    network: &Network,
    packet: &Facts,
) -> Result<(), Cause> {
    check_addresses(packet)?;
    match zone {
        Zone::Endpoint { endpoint, .. } => {
            let endpoint = &snapshot.endpoints[endpoint as usize];
            if endpoint.addresses.contains(&packet.src) {
                return Ok(());
            }
            // A pod speaks to its gateway from its link-local address, and before it has one from none.
            let on_link = is_link_local(packet.src) || packet.src.is_unspecified();
            if on_link && packet.src.is_ipv6() { Ok(()) } else { Err(Cause::SpoofedSource) }
        }
        Zone::Tunnel { peer, .. } => match peer_of(network.route(packet.src)) {
            Some(owner) if owner == peer => Ok(()),
            _ => Err(Cause::SpoofedTunnelSource),
        },
        Zone::Served { .. } => match network.route(packet.src) {
            // Clients outside only: whoever is inside is answered through the node that it asked.
            Some(Target::Native { peer: None, .. }) => Ok(()),
            _ => Err(Cause::SpoofedTunnelSource),
        },
        Zone::Host { .. } => match network.route(packet.src) {
            Some(Target::Endpoint(_)) => Err(Cause::SpoofedSource),
            target if is_behind_tunnel(snapshot, target, packet.src) => Err(Cause::SpoofedSource),
            _ => Ok(()),
        },
        Zone::Native { .. } => match network.route(packet.src) {
            Some(Target::Endpoint(_) | Target::Host) => Err(Cause::SpoofedSource),
            target if is_behind_tunnel(snapshot, target, packet.src) => Err(Cause::SpoofedSource),
            _ => Ok(()),
        },
    }
}

/// The same for an ICMP error, which routers send as well.
pub(super) fn check_error_source(
    snapshot: &Snapshot,
    zone: Zone,
    network: &Network,
    packet: &Facts,
) -> Result<(), Cause> {
    match zone {
        // An endpoint is no router, and errors about what it was told on its link stay there.
        Zone::Endpoint { endpoint, .. } => {
            check_addresses(packet)?;
            let is_own = snapshot.endpoints[endpoint as usize].addresses.contains(&packet.src);
            if is_own { Ok(()) } else { Err(Cause::SpoofedSource) }
        }
        // A peer's dataplane speaks as the gateway, which every node has, where it has no other address.
        Zone::Tunnel { .. } | Zone::Native { .. } if network.is_gateway(packet.src) => {
            check_addresses(packet)
        }
        Zone::Tunnel { peer, .. } if snapshot.peers[peer as usize].address == packet.src => {
            check_addresses(packet)
        }
        _ if is_link_local(packet.src) => Err(Cause::LinkLocal),
        _ => check_source(snapshot, zone, network, packet),
    }
}

/// Whether the packet that an ICMP error from `sender` quotes, which was for `receiver` when it left, went where the error
/// came from. Who has not seen a packet has made up what he says of it.
pub(super) fn check_quoted(
    snapshot: &Snapshot,
    zone: Zone,
    home: &Network,
    sender: IpAddr,
    receiver: IpAddr,
) -> Result<(), Cause> {
    let target = home.route(receiver);
    let (has_seen_it, cause) = match zone {
        Zone::Endpoint { endpoint, .. } => {
            (snapshot.endpoints[endpoint as usize].addresses.contains(&receiver), Cause::SpoofedSource)
        }
        Zone::Tunnel { peer, .. } => (peer_of(target) == Some(peer), Cause::SpoofedTunnelSource),
        // Nothing of services' clients is quoted through the tunnel that brought their questions.
        Zone::Served { .. } => (false, Cause::SpoofedTunnelSource),
        // The kernel forwards as well, and may speak of what it took from an uplink itself.
        Zone::Host { .. } => (!matches!(target, Some(Target::Endpoint(_))), Cause::SpoofedSource),
        Zone::Native { .. } => {
            let has_left = match target {
                Some(Target::Native { peer, .. }) => peer.is_some() || !home.is_gateway(sender),
                _ => false,
            };
            (has_left, Cause::SpoofedSource)
        }
    };
    if has_seen_it { Ok(()) } else { Err(cause) }
}

/// Whether anybody at all may send from a packet's source to its destination.
fn check_addresses(packet: &Facts) -> Result<(), Cause> {
    if is_group(packet.src) || packet.src.is_loopback() || packet.dst.is_loopback() {
        return Err(Cause::SpoofedSource);
    }
    if is_mapped(packet.src) || is_mapped(packet.dst) {
        return Err(Cause::Martian);
    }
    Ok(())
}

/// Whether packets of `address`, to which `target` leads, come through a tunnel and in no other way. The node at its other
/// end is a neighbour on the underlay as well.
fn is_behind_tunnel(snapshot: &Snapshot, target: Option<&Target>, address: IpAddr) -> bool {
    match target {
        Some(Target::Tunnel { peer, .. } | Target::Unreachable { peer }) => {
            snapshot.peers[*peer as usize].address != address
        }
        _ => false,
    }
}

/// The peer that a route leads to.
fn peer_of(target: Option<&Target>) -> Option<u32> {
    match target? {
        Target::Tunnel { peer, .. } | Target::Unreachable { peer } => Some(*peer),
        Target::Native { peer, .. } => *peer,
        Target::Endpoint(_) | Target::Host | Target::Blackhole => None,
    }
}

pub(super) fn is_group(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_multicast() || v4.is_broadcast() || v4.octets()[0] == 0,
        IpAddr::V6(v6) => v6.is_multicast(),
    }
}

/// Whether it is an IPv4 address in IPv6's clothes, which is for programs alone (RFC 4291 section 2.5.5.2).
fn is_mapped(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some())
}

pub(super) fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local() || v6.is_unspecified(),
    }
}
