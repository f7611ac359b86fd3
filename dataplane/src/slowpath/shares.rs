//! What a new connection counts against: the shares of both its ends, and their limits on how often.

use std::sync::Arc;

use super::Watch;
use super::tracked::Stages;
use crate::conntrack::{ConnectionRef, Direction, Limits, Opening, Owner, Parties, Refused, Share, nat};
use crate::drop::Cause;
use crate::ledger::Refusal;
use crate::tables::{Endpoint, Zone};

impl<W: Watch> Stages<'_, W> {
    /// Whether both ends may have one more connection now.
    pub(super) fn meter(&self, to: Option<&Arc<Endpoint>>) -> Result<(), Cause> {
        let Some(ledger) = self.scene.ledger else { return Ok(()) };
        let mut ends = self.scene.snapshot.endpoint_in(self.zone).into_iter().chain(to);
        ends.try_for_each(|endpoint| ledger.admit_connection(endpoint, self.scene.now))
    }

    /// Whom a connection counts against that is opened to an endpoint, or to elsewhere.
    pub(super) fn parties(&self, to: Option<&Arc<Endpoint>>, backend: u32) -> Parties {
        let owner_of = |endpoint: &Arc<Endpoint>| Owner::endpoint(endpoint.device.0);
        let owner = match self.zone {
            Zone::Endpoint { .. } => {
                self.scene.snapshot.endpoint_in(self.zone).map_or(Owner::NOBODY, owner_of)
            }
            Zone::Host { .. } => Owner::NOBODY,
            Zone::Tunnel { .. } | Zone::Served { .. } | Zone::Native { .. } => Owner::OUTSIDE,
        };
        Parties { owner, receiver: to.map_or(Owner::NOBODY, owner_of), backend }
    }

    /// What whoever opens the connection may have, and the endpoint that it is opened to.
    fn limits(&self, to: Option<&Arc<Endpoint>>) -> Limits {
        let share = self.tracker.share;
        let share_of = |endpoint: &Arc<Endpoint>| Share {
            connections: endpoint.max_connections.unwrap_or(share.connections),
            ..share
        };
        let owner = match self.zone {
            Zone::Endpoint { .. } => {
                self.scene.snapshot.endpoint_in(self.zone).map_or(Share::WHOLE, share_of)
            }
            Zone::Host { .. } => Share::WHOLE,
            Zone::Tunnel { .. } | Zone::Served { .. } | Zone::Native { .. } => self.tracker.outside,
        };
        Limits { owner, receiver: to.map_or(Share::WHOLE, share_of) }
    }

    /// Opens a connection to an endpoint, or to elsewhere, from an address of the pool if there is one.
    pub(super) fn create(
        &self,
        opening: &Opening,
        to: Option<&Arc<Endpoint>>,
        pool: Option<&Arc<nat::Pool>>,
    ) -> Result<ConnectionRef, Refused> {
        let (table, worker, settings) = (&self.tracker.table, self.tracker.worker, &self.tracker.settings);
        let limits = self.limits(to);
        let now = self.tracker.seconds(self.scene.now);
        match pool {
            Some(pool) => nat::open(table, worker, opening, pool, limits, settings, now),
            None => table.create(worker, opening, limits, settings, now),
        }
    }

    /// Opens a connection to an endpoint, or to elsewhere, from another port of its client's: as it is, it has `taken`
    /// answers for its own.
    pub(super) fn create_from_another_port(
        &self,
        opening: &Opening,
        to: Option<&Arc<Endpoint>>,
        taken: Refused,
    ) -> Result<ConnectionRef, Refused> {
        for sent in nat::from_other_ports(opening.forwarded) {
            match self.create(&Opening { forwarded: sent, ..*opening }, to, None) {
                Err(Refused::Taken { ours: Direction::Reply, .. }) => {}
                decided => return decided,
            }
        }
        Err(taken)
    }

    /// Tells what there was no more of when a connection could not be opened.
    pub(super) fn ran_out(
        &self,
        refused: Refused,
        opening: &Opening,
        to: Option<&Arc<Endpoint>>,
        pool: Option<&Arc<nat::Pool>>,
    ) -> Cause {
        let cause = cause_of(refused);
        let Some(ledger) = self.scene.ledger else { return cause };
        let (limits, is_ipv4) = (self.limits(to), opening.forwarded.src().is_ipv4());
        // Of an endpoint's connections to itself either end will do.
        let (share, full) = match refused {
            Refused::OwnerLimit(owner) | Refused::HalfOpenLimit(owner) if owner != opening.parties.owner => {
                (limits.receiver, to)
            }
            _ => (limits.owner, self.scene.snapshot.endpoint_in(self.zone)),
        };
        let capacity = match refused {
            Refused::Full => self.tracker.table.capacity().into(),
            Refused::OwnerLimit(_) => share.connections.into(),
            Refused::HalfOpenLimit(_) => share.half_open.into(),
            Refused::Exhausted => pool.map_or(0, |pool| pool.size(is_ipv4)),
            Refused::Taken { .. } | Refused::UnknownOwner | Refused::Contended => return cause,
        };
        // The table is the node's as a whole.
        let is_ones_own = refused != Refused::Full;
        let endpoint = full.filter(|_| is_ones_own);
        let network = self.scene.snapshot.networks.get(self.zone.network() as usize).filter(|_| is_ones_own);
        let pool = pool.filter(|_| refused == Refused::Exhausted);
        ledger.refused(&Refusal { cause, endpoint, network, pool, capacity }, self.scene.now);
        cause
    }
}

fn cause_of(refused: Refused) -> Cause {
    match refused {
        Refused::Full => Cause::ConnectionsFull,
        Refused::OwnerLimit(Owner::OUTSIDE) => Cause::OutsideConnections,
        Refused::HalfOpenLimit(Owner::OUTSIDE) => Cause::OutsideHalfOpen,
        Refused::OwnerLimit(_) | Refused::UnknownOwner => Cause::EndpointConnections,
        Refused::HalfOpenLimit(_) => Cause::EndpointHalfOpen,
        Refused::Contended | Refused::Taken { .. } => Cause::ConnectionContended,
        Refused::Exhausted => Cause::NatExhausted,
    }
}
