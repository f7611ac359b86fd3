//! Connections of clients outside to a service that another node was asked for and an endpoint here serves.

use penstock_wire::dsr::ServedAs;
use penstock_wire::parse::Fragment;

use super::source::check_source;
use super::tracked::Stages;
use super::{Facts, Scene, network_of};
use crate::conntrack::{Direction, NetworkId, Tuple};
use crate::drop::{Cause, Reason};
use crate::flow::ZoneId;
use crate::tables::service::Protocol;

/// Sees to it that there is a connection for a packet that came from `zone`, a peer's for a service: from its client to the
/// service, and on to the backend, as whose the packet came.
///
/// # Errors
/// Why the packet is to be dropped.
pub fn admit(scene: Scene<'_>, zone: ZoneId, served_as: &ServedAs, packet: &Facts) -> Result<(), Reason> {
    let tracker = scene.tracker.ok_or(Cause::Unsolicited)?;
    let (zone, network) = network_of(scene.snapshot, zone).ok_or(Cause::UnknownPort)?;
    // Later fragments follow the first.
    if packet.fragment == Fragment::Later {
        return Ok(());
    }
    let own = NetworkId::new(network.vni.get()).unwrap_or_default();
    let sent = Tuple::new(own, packet.src, packet.dst, packet.proto, packet.sport, packet.dport);
    let sent = sent.filter(Tuple::has_source_port).ok_or(Cause::NotServed)?;
    let asked = sent.with_destination(served_as.address, served_as.port).ok_or(Cause::NotServed)?;
    let asked = asked.in_network(NetworkId::default());
    let now = tracker.seconds(scene.now);
    if let Some(known) = tracker.table.find(&asked, now)
        && let Some(connection) = tracker.table.view(known.connection)
    {
        if known.direction == Direction::Original && connection.leaves_as(Direction::Original) == sent {
            return Ok(());
        }
        // The node that was asked has chosen anew: what was there before is over.
        tracker.table.remove(tracker.worker, known.connection);
    }
    check_source(scene.snapshot, zone, network, packet)?;
    let services = &scene.snapshot.services;
    let protocol = Protocol::of(packet.proto).ok_or(Cause::NotServed)?;
    let (at, backend) = ((served_as.address, served_as.port), (packet.dst, packet.dport));
    if services.backend_of(network.vni, at, protocol, backend).is_none() {
        return Err(Cause::NotServed.into());
    }
    Stages { scene, tracker, zone, network, packet, watch: &mut () }.admit(asked, sent)
}
