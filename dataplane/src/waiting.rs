//! The waiting room: a few packets whose next hop has not answered yet.

use std::collections::VecDeque;
use std::time::Duration;

use penstock_io::{Frame, Ticks, TicksPerSecond};

use crate::drop::Cause;
use crate::flow::{DeviceId, ZoneId};

/// Packets that may wait at a time.
const SEATS: usize = 64;
/// How long one waits: as long as the kernel asks for a neighbour (three probes, a second apart, `neigh/retrans_time_ms`).
const PATIENCE: Duration = Duration::from_secs(3);

/// A packet that waits.
pub(crate) struct Guest {
    pub(crate) frame: Frame,
    pub(crate) zone: ZoneId,
    pub(crate) device: DeviceId,
    /// What it is given up for.
    pub(crate) cause: Cause,
    since: Ticks,
}

/// Packets that wait, oldest first.
pub(crate) struct WaitingRoom {
    guests: VecDeque<Guest>,
    patience: u64,
}

impl WaitingRoom {
    pub(crate) fn new(rate: TicksPerSecond) -> WaitingRoom {
        WaitingRoom { guests: VecDeque::with_capacity(SEATS), patience: rate.ticks(PATIENCE) }
    }

    pub(crate) fn len(&self) -> usize {
        self.guests.len()
    }

    /// Lets a packet wait, or gives it back when every seat is taken.
    pub(crate) fn enter(
        &mut self,
        frame: Frame,
        zone: ZoneId,
        device: DeviceId,
        cause: Cause,
        now: Ticks,
    ) -> Result<(), Frame> {
        if self.guests.len() == SEATS {
            return Err(frame);
        }
        self.guests.push_back(Guest { frame, zone, device, cause, since: now });
        Ok(())
    }

    /// The oldest guest, whose turn has come or not.
    pub(crate) fn call(&mut self) -> Option<Guest> {
        self.guests.pop_front()
    }

    /// The oldest guest, if it waited for too long.
    pub(crate) fn give_up(&mut self, now: Ticks) -> Option<Guest> {
        let oldest = self.guests.front()?;
        if now.since(oldest.since) < self.patience { None } else { self.guests.pop_front() }
    }
}
