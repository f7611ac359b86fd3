//! A worker's own counters: plain numbers, published once a turn.

use penstock_io::{Burst, Frame, FramePool};

use crate::drop::{Cause, Reason};
use crate::stats::Counts;

/// The counters while the worker works.
pub(crate) struct Tally {
    pub(crate) counts: Counts,
    pub(crate) drops: [u64; Reason::COUNT],
}

impl Default for Tally {
    fn default() -> Tally {
        Tally { counts: Counts::default(), drops: [0; Reason::COUNT] }
    }
}

impl Tally {
    /// Counts a drop.
    #[inline]
    pub(crate) fn count(&mut self, reason: impl Into<Reason>) {
        self.drops[reason.into().number()] += 1;
        self.counts.dropped += 1;
    }

    /// Drops a frame and counts it.
    #[inline]
    pub(crate) fn drop(&mut self, reason: impl Into<Reason>, frame: Frame, pool: &mut FramePool) {
        self.count(reason);
        pool.free(frame);
    }

    /// Drops every frame of a burst.
    pub(crate) fn drop_burst(&mut self, cause: Cause, burst: &mut Burst, pool: &mut FramePool) {
        while let Some(frame) = burst.pop() {
            self.drop(cause, frame, pool);
        }
    }
}
