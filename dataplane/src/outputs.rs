//! Frames on their way out: gathered by device while a burst is worked on, then handed over in bursts.

use penstock_io::{BURST, Burst, Frame, FramePool, Port, Ticks};

use crate::capture::Captures;
use crate::drop::Cause;
use crate::flow::DeviceId;
use crate::mailbox::Outlet;
use crate::tally::Tally;
use crate::worker::Slots;

/// How frames for a device leave this worker.
#[derive(Default)]
pub(crate) enum Way {
    /// There is no such device (any more).
    #[default]
    None,
    /// By the worker's own port in this slot.
    Own(usize),
    /// By another worker.
    Worker(Outlet),
}

#[derive(Default)]
struct Output {
    way: Way,
    burst: Burst,
}

/// The frames that leave, by device.
#[derive(Default)]
pub(crate) struct Outputs {
    devices: Vec<Output>,
    /// Devices with frames to send.
    pending: Vec<u16>,
}

impl Outputs {
    /// Says how frames for a device leave from now on.
    pub(crate) fn set(&mut self, device: DeviceId, way: Way) {
        let index = usize::from(device.0);
        if self.devices.len() <= index {
            self.devices.resize_with(index + 1, Output::default);
            self.pending.reserve(self.devices.len());
        }
        self.devices[index].way = way;
    }

    /// The slot of the worker's own port for a device.
    pub(crate) fn own_slot(&self, device: DeviceId) -> Option<usize> {
        match self.devices.get(usize::from(device.0)) {
            Some(Output { way: Way::Own(slot), .. }) => Some(*slot),
            _ => None,
        }
    }

    /// Queues a frame; one that finds no room is dropped and counted.
    #[inline]
    pub(crate) fn send(&mut self, device: DeviceId, frame: Frame, pool: &mut FramePool, tally: &mut Tally) {
        match self.open(device) {
            Some(burst) => {
                if let Err(frame) = burst.push(frame) {
                    tally.drop(Cause::TxRingFull, frame, pool);
                }
            }
            None => tally.drop(Cause::PortGone, frame, pool),
        }
    }

    /// Queues the first frames of a burst, each for its exit; those that find no room are dropped and counted. Frames that
    /// leave by the same device move together.
    pub(crate) fn send_run(
        &mut self,
        exits: impl Iterator<Item = DeviceId>,
        frames: &mut Burst,
        pool: &mut FramePool,
        tally: &mut Tally,
    ) {
        let mut exits = exits.peekable();
        while let Some(exit) = exits.next() {
            let mut count = 1;
            while exits.next_if_eq(&exit).is_some() {
                count += 1;
            }
            let (moved, cause) = match self.open(exit) {
                Some(burst) => (frames.move_front(burst, count), Cause::TxRingFull),
                None => (0, Cause::PortGone),
            };
            for frame in std::iter::from_fn(|| frames.pop()).take(count - moved) {
                tally.drop(cause, frame, pool);
            }
        }
    }

    /// The frames that are to leave by a device, to add to; `None` if there is no such device.
    #[inline]
    fn open(&mut self, device: DeviceId) -> Option<&mut Burst> {
        let output = self.devices.get_mut(usize::from(device.0))?;
        if output.burst.is_empty() {
            self.pending.push(device.0);
        }
        Some(&mut output.burst)
    }

    /// Hands everything over.
    pub(crate) fn flush(
        &mut self,
        slots: &mut Slots,
        pool: &mut FramePool,
        tally: &mut Tally,
        captures: &mut Captures,
        now: Ticks,
    ) {
        while let Some(device) = self.pending.pop() {
            let output = &mut self.devices[usize::from(device)];
            if captures.any() {
                captures.look(DeviceId(device), true, output.burst.frames(), pool, now);
            }
            match &mut output.way {
                Way::Own(slot) => match slots.get_mut(*slot).and_then(Option::as_mut) {
                    Some(slot) => {
                        tally.counts.tx += slot.port.tx_burst(pool, &mut output.burst) as u64;
                        slot.tx_drops += output.burst.len() as u64;
                        tally.drop_burst(Cause::TxRingFull, &mut output.burst, pool);
                    }
                    None => tally.drop_burst(Cause::PortGone, &mut output.burst, pool),
                },
                Way::Worker(outlet) => hand_over(DeviceId(device), outlet, &mut output.burst, pool, tally),
                Way::None => tally.drop_burst(Cause::PortGone, &mut output.burst, pool),
            }
            debug_assert!(output.burst.is_empty());
        }
    }
}

/// Puts frames into another worker's mailbox.
fn hand_over(
    device: DeviceId,
    outlet: &mut Outlet,
    burst: &mut Burst,
    pool: &mut FramePool,
    tally: &mut Tally,
) {
    for _ in 0..BURST {
        let Some(frame) = burst.pop() else { break };
        // It counts as sent when its owner's device takes it.
        if let Err(rtrb::PushError::Full((_, frame))) = outlet.frames.push((device, frame)) {
            tally.drop(Cause::MailboxFull, frame, pool);
        }
    }
    outlet.bell.ring();
}
