//! What a worker writes down while it decides: what endpoints with limits have spent.
//!
//! Behind shared references, since decisions are made with everything else at hand; nobody but its worker has it.

use penstock_io::Ticks;

use crate::drop::Cause;
use crate::flow::DeviceId;
use crate::meter::{Exceeded, Wallet, Way};
use crate::pipeline::L3;
use crate::tables::{Endpoint, Snapshot, Zone};

/// A worker's ledger.
#[derive(Default)]
pub struct Ledger {
    wallet: Wallet,
}

impl Ledger {
    /// Lets a packet of `len` bytes pass from a zone to a device, or says which limit of which end it exceeds. What the
    /// sender's limits let pass is spent, be the receiver's as they may: it was sent.
    ///
    /// # Errors
    /// The limit that it exceeds.
    #[inline]
    pub fn admit(
        &self,
        snapshot: &Snapshot,
        zone: Option<Zone>,
        out: DeviceId,
        len: u16,
        now: Ticks,
    ) -> Result<(), Cause> {
        // Limits are of whole frames: see `penstock_api::model::Limits`.
        let bytes = len.saturating_add(L3 as u16);
        for (way, endpoint) in ends(snapshot, zone, out) {
            let Some(Endpoint { device, meter: Some(meter), .. }) = endpoint else { continue };
            let passed = self.wallet.with(*device, meter, |purses| meter.admit(purses, way, 1, bytes, now));
            passed.map_err(|exceeded| cause_of(way, exceeded))?;
        }
        Ok(())
    }

    /// Lets an endpoint have a new connection, opened by it or to it.
    ///
    /// # Errors
    /// When it has had too many of late.
    pub fn admit_connection(&self, endpoint: &Endpoint, now: Ticks) -> Result<(), Cause> {
        let Some(meter) = &endpoint.meter else { return Ok(()) };
        let passed = self.wallet.with(endpoint.device, meter, |purses| meter.admit_connection(purses, now));
        passed.map_err(|_| Cause::EndpointConnectionRate)
    }
}

/// Whether packets from a zone to a device must be measured.
#[must_use]
pub fn is_metered(snapshot: &Snapshot, zone: Zone, out: DeviceId) -> bool {
    let is_limited = |(way, endpoint): (Way, Option<&Endpoint>)| {
        endpoint.and_then(|it| it.meter.as_ref()).is_some_and(|meter| !meter.is_open(way))
    };
    ends(snapshot, Some(zone), out).into_iter().any(is_limited)
}

/// The endpoints of this node that a packet from a zone to a device comes from and goes to.
#[inline]
fn ends(snapshot: &Snapshot, zone: Option<Zone>, out: DeviceId) -> [(Way, Option<&Endpoint>); 2] {
    let from = zone.and_then(|zone| snapshot.endpoint_in(zone));
    let to = snapshot.endpoint_of(out);
    [(Way::Egress, from.map(|it| &**it)), (Way::Ingress, to.map(|it| &**it))]
}

fn cause_of(way: Way, exceeded: Exceeded) -> Cause {
    match (way, exceeded) {
        (_, Exceeded::Connections) => Cause::EndpointConnectionRate,
        (Way::Egress, Exceeded::Bandwidth) => Cause::EgressBandwidth,
        (Way::Ingress, Exceeded::Bandwidth) => Cause::IngressBandwidth,
        (Way::Egress, Exceeded::Packets) => Cause::EgressPacketRate,
        (Way::Ingress, Exceeded::Packets) => Cause::IngressPacketRate,
    }
}
