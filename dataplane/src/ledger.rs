//! What a worker writes down while it decides: what endpoints with limits have spent, how often rules decided, what is to
//! be told.
//!
//! Behind shared references, since decisions are made with everything else at hand; nobody but its worker has it.

use std::sync::Arc;

use penstock_io::{Ticks, TicksPerSecond};
use penstock_policy::{DecisionId, Direction, Packet, Verdict};

use crate::conntrack::Tuple;
use crate::conntrack::nat::Pool;
use crate::drop::Cause;
use crate::flow::DeviceId;
use crate::journal::{Journal, RuleMet, Shortage, Writer};
use crate::meter::{Exceeded, Wallet, Way};
use crate::pipeline::L3;
use crate::tables::{Endpoint, Network, Snapshot, Zone};

/// A worker's ledger.
pub struct Ledger {
    worker: u16,
    wallet: Wallet,
    journal: Writer,
}

/// What the rules of an endpoint said of a connection's first packet.
pub struct Ruled<'a> {
    /// The endpoint; it has a subject.
    pub endpoint: &'a Arc<Endpoint>,
    /// Which of its rules.
    pub direction: Direction,
    /// What they were asked.
    pub asked: Packet,
    /// What they said.
    pub verdict: Verdict,
    /// The packet, after services and before translation of its source.
    pub packet: Tuple,
    /// Bytes of the IP packet.
    pub len: u16,
}

/// Who met a shortage, and where.
pub struct Refusal<'a> {
    /// What the packet is refused for.
    pub cause: Cause,
    /// The endpoint that asked.
    pub endpoint: Option<&'a Arc<Endpoint>>,
    /// The network that the packet goes on in.
    pub network: Option<&'a Arc<Network>>,
    /// The pool that the packet was to leave by.
    pub pool: Option<&'a Arc<Pool>>,
    /// How much there is of what ran out.
    pub capacity: u64,
}

impl Ledger {
    /// The empty ledger of a worker, which writes that journal.
    #[must_use]
    pub fn new(worker: u16, journal: Arc<Journal>, rate: TicksPerSecond) -> Ledger {
        Ledger { worker, wallet: Wallet::default(), journal: Writer::new(journal, rate) }
    }

    /// Lets packets pass from a zone to a device, so many and of so many bytes from the IP header on, or says which limit of
    /// which end they exceed. What the sender's limits let pass is spent, be the receiver's as they may: it was sent.
    ///
    /// # Errors
    /// The limit that it exceeds.
    #[inline]
    pub fn admit(
        &self,
        snapshot: &Snapshot,
        zone: Option<Zone>,
        out: DeviceId,
        (packets, bytes): (u32, u32),
        now: Ticks,
    ) -> Result<(), Cause> {
        // Limits are of whole frames: see `penstock_api::model::Limits`.
        let bytes = bytes + packets * L3 as u32;
        for (way, endpoint) in ends(snapshot, zone, out) {
            let Some(Endpoint { device, meter: Some(meter), .. }) = endpoint else { continue };
            let passed =
                self.wallet.with(*device, meter, |purses| meter.admit(purses, way, packets, bytes, now));
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

    /// Counts what the rules of an endpoint said, and tells what those that log have met.
    pub fn ruled(&self, snapshot: &Snapshot, ruled: &Ruled<'_>, now: Ticks) {
        let Ruled { endpoint, direction, verdict, .. } = *ruled;
        let Some(counts) = &endpoint.counts else { return };
        counts.count(self.worker, direction, verdict.decision);
        if !verdict.noted {
            return;
        }
        let Some(subject) = &endpoint.subject else { return };
        let staged = subject.notes(direction, &ruled.asked, |rule| {
            counts.count(self.worker, direction, rule);
            self.logged(snapshot, ruled, rule, now);
        });
        if let Some(staged) = staged {
            counts.count_staged(self.worker, direction, staged.decision);
        }
    }

    fn logged(&self, snapshot: &Snapshot, ruled: &Ruled<'_>, rule: DecisionId, now: Ticks) {
        let Ruled { endpoint, direction, verdict, packet, len, .. } = *ruled;
        let Some(network) = snapshot.networks.get(endpoint.network as usize) else { return };
        self.journal.rule(now, || RuleMet {
            endpoint: Arc::clone(endpoint),
            network: Arc::clone(network),
            direction,
            rule,
            verdict,
            packet,
            len,
        });
    }

    /// Tells that something ran out, now and then while it lasts.
    #[cold]
    pub fn refused(&self, refusal: &Refusal<'_>, now: Ticks) {
        let Refusal { cause, endpoint, network, pool, capacity } = *refusal;
        // An address tells pools apart, the number of its device an endpoint.
        let by_endpoint = || endpoint.map_or(0, |it| usize::from(it.device.0));
        let whose = pool.map_or_else(by_endpoint, |pool| Arc::as_ptr(pool) as usize);
        self.journal.shortage(now, cause, whose, |refused| Shortage {
            cause,
            endpoint: endpoint.cloned(),
            network: network.cloned(),
            pool: pool.cloned(),
            capacity,
            refused,
        });
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
