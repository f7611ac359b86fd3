//! Stage 8: how a packet gets to the next station.

use std::net::IpAddr;

use penstock_wire::MacAddr;
use penstock_wire::reply::{Problem, Unreachable};

use super::{Facts, Verdict, Watch, Way};
use crate::drop::Cause;
use crate::flow::{Action, DeviceId, LinkId};
use crate::tables::{Device, Snapshot, Target};

/// The way to a target, or why there is none now.
pub(super) fn link(snapshot: &Snapshot, target: &Target, packet: &Facts, watch: &mut impl Watch) -> Verdict {
    match target {
        Target::Endpoint(endpoint) => {
            let endpoint = &snapshot.endpoints[*endpoint as usize];
            watch.stage("link", || {
                (format!("to {}", endpoint.mac), format!("endpoint {}, MTU {}", endpoint.name, endpoint.mtu))
            });
            Verdict::Go(Way::of(Action::forward(endpoint.device, endpoint.link, endpoint.mtu)))
        }
        Target::Host => match &snapshot.host {
            Some(host) => {
                watch.stage("link", || {
                    (format!("to {}", station_of(snapshot, host.link)), "the host port".into())
                });
                Verdict::Go(Way::of(Action::forward(host.device, host.link, host.mtu)))
            }
            None => Verdict::Drop(Cause::NoHost.into()),
        },
        Target::Tunnel { template: Some(id), peer } => {
            let template = &snapshot.templates[usize::from(id.0)];
            watch.stage("link", || {
                let peer = &snapshot.peers[*peer as usize];
                (
                    format!("tunnel to {}", peer.address),
                    format!("{} bytes of headers, MTU {}", template.header.len(), template.max_len),
                )
            });
            Verdict::Go(Way::of(Action::encapsulate(template.device, *id, template.max_len)))
        }
        Target::Tunnel { template: None, peer } => {
            let path = snapshot.peers[*peer as usize].path.as_ref();
            watch.stage("link", || ("wait".into(), "the underlay's next hop has not answered".into()));
            Verdict::Wait(Cause::PeerUnresolved, path.map(|path| (path.device, path.next_hop)))
        }
        Target::Native { device, next_hop, mtu, .. } => {
            native(snapshot, *device, next_hop.unwrap_or(packet.dst), *mtu, watch)
        }
        Target::Unreachable { peer } => {
            watch.stage("link", || {
                (
                    "refuse".into(),
                    format!("no underlay route to peer {}", snapshot.peers[*peer as usize].name),
                )
            });
            Verdict::Refuse(Cause::PeerUnresolved.into(), Problem::Unreachable(Unreachable::Host))
        }
        Target::Blackhole => Verdict::Drop(Cause::Blackhole.into()),
    }
}

fn native(
    snapshot: &Snapshot,
    device: DeviceId,
    next_hop: IpAddr,
    mtu: u16,
    watch: &mut impl Watch,
) -> Verdict {
    let Some(Device::Uplink { .. }) = snapshot.devices.get(usize::from(device.0)) else {
        return Verdict::Drop(Cause::PortGone.into());
    };
    let Some(&link) = snapshot.neighbours.get(&(device, next_hop)) else {
        watch.stage("link", || ("wait".into(), format!("{next_hop} has not answered")));
        return Verdict::Wait(Cause::NeighbourUnresolved, Some((device, next_hop)));
    };
    watch.stage("link", || {
        (format!("to {}", station_of(snapshot, link)), format!("{next_hop} on the underlay, MTU {mtu}"))
    });
    Verdict::Go(Way::of(Action::forward(device, link, mtu)))
}

/// Whom frames of a link are sent to.
fn station_of(snapshot: &Snapshot, link: LinkId) -> MacAddr {
    snapshot.links[usize::from(link.0)].dst()
}
