//! Captures: copies of the frames that pass a device, for somebody who looks on.
//!
//! A copy is a frame of packet memory like any other, so a capture allocates nothing; what the looker-on is too slow for is
//! counted as lost. While nobody looks on, all this costs one comparison a burst.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use penstock_io::{Frame, FramePool, Ticks};

use crate::flow::DeviceId;
use crate::mailbox::{CaptureTap, Captured};

/// The captures that run on a worker.
pub(crate) struct Captures {
    worker: u16,
    taps: Vec<Arc<CaptureTap>>,
}

impl Captures {
    pub(crate) fn new(worker: u16) -> Captures {
        Captures { worker, taps: Vec::with_capacity(16) }
    }

    pub(crate) fn add(&mut self, tap: Arc<CaptureTap>) {
        self.taps.push(tap);
    }

    #[inline(always)]
    pub(crate) fn any(&self) -> bool {
        !self.taps.is_empty()
    }

    /// Copies the frames that somebody wants to see.
    #[cold]
    pub(crate) fn look(
        &mut self,
        device: DeviceId,
        sent: bool,
        frames: &[Frame],
        pool: &mut FramePool,
        now: Ticks,
    ) {
        self.taps.retain(|tap| !tap.closed.load(Ordering::Relaxed));
        for tap in self.taps.iter().filter(|tap| tap.device == device) {
            for frame in frames.iter().filter(|frame| tap.filter.matches(frame.bytes())) {
                // Of a packet of several chunks the first does: it has all headers.
                let bytes = &frame.bytes()[..frame.len().min(tap.snaplen)];
                let Some(mut copy) = pool.alloc() else {
                    tap.lost.fetch_add(1, Ordering::Relaxed);
                    continue;
                };
                let fits = copy.fill_from(bytes).is_ok();
                let captured =
                    Captured { sent, worker: self.worker, length: frame.total_len() as u32, at: now, copy };
                if !fits {
                    tap.lost.fetch_add(1, Ordering::Relaxed);
                    pool.free(captured.copy);
                } else if let Err(refused) = tap.frames.push(captured) {
                    tap.lost.fetch_add(1, Ordering::Relaxed);
                    pool.free(refused.copy);
                }
            }
        }
    }
}
