//! Frames on their way out: gathered by device while a burst is worked on, then handed over in bursts.

use std::collections::VecDeque;

use penstock_io::{Abilities, BURST, Burst, Frame, FramePool, Port, Ticks};

use crate::capture::Captures;
use crate::drop::Cause;
use crate::flow::DeviceId;
use crate::join::join;
use crate::mailbox::{Outlet, Takes};
use crate::tally::Tally;
use crate::worker::Slots;

/// Frames that wait for room in their burst at most: the segments of some packets.
const BEHIND: usize = 4096;

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
    /// What the port takes beyond finished packets of one chunk, be it this worker's or another's.
    takes: Takes,
    burst: Burst,
    /// What the burst had no room for: a packet may become more segments than a burst has places.
    behind: VecDeque<Frame>,
}

/// The frames that leave, by device.
#[derive(Default)]
pub(crate) struct Outputs {
    devices: Vec<Output>,
    /// Devices with frames to send.
    pending: Vec<u16>,
}

impl Outputs {
    /// Says how frames for a device leave from now on, and where it is written what it takes.
    pub(crate) fn set(&mut self, device: DeviceId, way: Way, takes: Takes) {
        let index = usize::from(device.0);
        if self.devices.len() <= index {
            self.devices.resize_with(index + 1, Output::default);
            self.pending.reserve(self.devices.len());
        }
        self.devices[index].way = way;
        self.devices[index].takes = takes;
    }

    /// Says, to all workers, what a device's port takes now, which is this worker's own.
    pub(crate) fn set_abilities(&self, device: DeviceId, takes: Abilities) {
        if let Some(output) = self.devices.get(usize::from(device.0)) {
            output.takes.set(takes);
        }
    }

    /// What the port of a device takes beyond finished packets of one chunk.
    pub(crate) fn abilities(&self, device: DeviceId) -> Abilities {
        self.devices.get(usize::from(device.0)).map_or(Abilities::NONE, |output| output.takes.get())
    }

    /// The slot of the worker's own port for a device.
    pub(crate) fn own_slot(&self, device: DeviceId) -> Option<usize> {
        match self.devices.get(usize::from(device.0)) {
            Some(Output { way: Way::Own(slot), .. }) => Some(*slot),
            _ => None,
        }
    }

    /// Queues a frame, behind the burst where that is full; one that finds no room there either is dropped and counted.
    #[inline]
    pub(crate) fn send(&mut self, device: DeviceId, frame: Frame, pool: &mut FramePool, tally: &mut Tally) {
        match self.open(device) {
            Some(output) => {
                if let Err(frame) = output.burst.push(frame) {
                    output.push_behind(frame, pool, tally);
                }
            }
            None => tally.drop(Cause::PortGone, frame, pool),
        }
    }

    /// Queues the first frames of a burst, each for its exit, as [`Outputs::send`] does. Frames that leave by the same device
    /// move together.
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
            match self.open(exit) {
                Some(output) => {
                    let moved = frames.move_front(&mut output.burst, count);
                    for frame in std::iter::from_fn(|| frames.pop()).take(count - moved) {
                        output.push_behind(frame, pool, tally);
                    }
                }
                None => {
                    for frame in std::iter::from_fn(|| frames.pop()).take(count) {
                        tally.drop(Cause::PortGone, frame, pool);
                    }
                }
            }
        }
    }

    /// What is to leave by a device, to add to; `None` if there is no such device.
    #[inline]
    fn open(&mut self, device: DeviceId) -> Option<&mut Output> {
        let output = self.devices.get_mut(usize::from(device.0))?;
        if output.burst.is_empty() {
            self.pending.push(device.0);
        }
        Some(output)
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
            loop {
                if captures.any() {
                    captures.look(DeviceId(device), true, output.burst.frames(), pool, now);
                }
                output.hand_over(DeviceId(device), slots, pool, tally);
                if output.behind.is_empty() {
                    break;
                }
                output.burst.extend(output.behind.drain(..output.behind.len().min(BURST)));
            }
            debug_assert!(output.burst.is_empty());
        }
    }
}

impl Output {
    /// Keeps a frame that the burst has no room for.
    #[cold]
    fn push_behind(&mut self, frame: Frame, pool: &mut FramePool, tally: &mut Tally) {
        if self.behind.len() < BEHIND {
            self.behind.push_back(frame);
        } else {
            tally.drop(Cause::TxRingFull, frame, pool);
        }
    }

    /// Hands the burst over.
    fn hand_over(&mut self, device: DeviceId, slots: &mut Slots, pool: &mut FramePool, tally: &mut Tally) {
        match &mut self.way {
            Way::Own(slot) => match slots.get_mut(*slot).and_then(Option::as_mut) {
                Some(slot) => {
                    let takes = self.takes.get();
                    if takes.has(Abilities::CHECKSUM) && self.burst.len() > 1 {
                        tally.counts.consumed += join(&mut self.burst, takes);
                    }
                    tally.counts.tx += slot.port.tx_burst(pool, &mut self.burst) as u64;
                    slot.tx_drops += self.burst.len() as u64;
                    tally.drop_burst(Cause::TxRingFull, &mut self.burst, pool);
                }
                None => tally.drop_burst(Cause::PortGone, &mut self.burst, pool),
            },
            Way::Worker(outlet) => post(device, outlet, &mut self.burst, pool, tally),
            Way::None => tally.drop_burst(Cause::PortGone, &mut self.burst, pool),
        }
    }
}

/// Puts frames into another worker's mailbox.
fn post(device: DeviceId, outlet: &mut Outlet, burst: &mut Burst, pool: &mut FramePool, tally: &mut Tally) {
    for _ in 0..BURST {
        let Some(frame) = burst.pop() else { break };
        // It counts as sent when its owner's device takes it.
        if let Err(rtrb::PushError::Full((_, frame))) = outlet.frames.push((device, frame)) {
            tally.drop(Cause::MailboxFull, frame, pool);
        }
    }
    outlet.bell.ring();
}
