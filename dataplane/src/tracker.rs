//! What a worker has of the node's connections: the table that all share, and how they are kept.

use std::sync::Arc;

use penstock_io::Ticks;
use penstock_io::shared::RegionClock;

use crate::conntrack::{Seconds, Settings, Share, Table, WorkerId};
use crate::tables::service::Affinity;

/// The connections of the node, as one worker meets them.
#[derive(Clone)]
pub struct Tracker {
    /// The connections.
    pub table: Arc<Table>,
    /// Clients that stay with their backend.
    pub affinity: Arc<Affinity>,
    /// How connections are tracked.
    pub settings: Settings,
    /// What one endpoint may have unless it is told otherwise.
    pub share: Share,
    /// What may be opened from beyond this node, all together.
    pub outside: Share,
    /// The clock that the table's times are told by.
    pub clock: RegionClock,
    /// The worker that asks.
    pub worker: WorkerId,
}

impl Tracker {
    /// The table's time.
    #[inline]
    #[must_use]
    pub fn seconds(&self, now: Ticks) -> Seconds {
        Seconds(self.clock.seconds(now))
    }

    /// The same connections, met by another worker.
    #[must_use]
    pub fn for_worker(&self, worker: u16) -> Tracker {
        Tracker { worker: WorkerId(worker), ..self.clone() }
    }
}
