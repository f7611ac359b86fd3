//! A port in memory: frames come from a set of templates or from a test, and what is sent is counted or kept.
//!
//! The whole pipeline runs on it without root, and benches measure on it: its receive cost is one copy of the template.

use std::collections::VecDeque;
use std::os::fd::BorrowedFd;

use crate::burst::Burst;
use crate::frame::{Frame, LINE};
use crate::offload::{Abilities, Offload};
use crate::pages::Table;
use crate::pool::FramePool;
use crate::port::{Port, PortCounters, PortFault};
use crate::region::{CHUNK, HEADROOM};

/// A port in memory.
#[derive(Default)]
pub struct MemPort {
    /// Frames replayed endlessly.
    replay: Option<Replay>,
    /// Frames that a test wants received once, in order, with what is left to do to each.
    inbox: VecDeque<(Vec<u8>, Offload)>,
    /// What was sent, when the port keeps it, with what was left to do to each.
    outbox: Option<VecDeque<(Vec<u8>, Offload)>>,
    abilities: Abilities,
    /// Frames that `tx_burst` takes in one call before it refuses.
    room: usize,
    /// Frames of the replay that have arrived and were not received yet; without end unless they come at a pace.
    arrived: u64,
    counters: PortCounters,
}

/// Frames to replay, in the order in which they are received: reading them is one stream, as from a ring.
struct Replay {
    /// The frames, each in as many whole cache lines as the longest of them needs.
    lines: Table<[u8; LINE]>,
    /// The length of each.
    lengths: Vec<u16>,
    /// The longest.
    longest: usize,
    /// The one that comes next.
    next: usize,
}

impl MemPort {
    /// A port that receives what [`MemPort::deliver`] is given and keeps what is sent for [`MemPort::sent`].
    #[must_use]
    pub fn new() -> MemPort {
        MemPort { outbox: Some(VecDeque::new()), room: usize::MAX, ..MemPort::default() }
    }

    /// A port that replays `frames` for ever in the given `order` (numbers of frames) and discards what is sent.
    ///
    /// # Panics
    /// If the order is empty or names a frame that is not there, if a frame is longer than a chunk has room for, or
    /// without memory for a copy of each frame as often as the order names it.
    #[must_use]
    pub fn replay(frames: &[Vec<u8>], order: Vec<u32>) -> MemPort {
        assert!(!order.is_empty() && order.iter().all(|&i| (i as usize) < frames.len()));
        assert!(frames.iter().all(|frame| frame.len() <= CHUNK - HEADROOM), "a frame fits a chunk");
        let longest = frames.iter().map(Vec::len).max().unwrap_or_default();
        let stride = longest.div_ceil(LINE);
        let mut lines = Table::zeroed(order.len() * stride).expect("memory for the frames");
        let mut lengths = Vec::with_capacity(order.len());
        for (room, &i) in lines.chunks_exact_mut(stride).zip(&order) {
            let frame = &frames[i as usize];
            room.as_flattened_mut()[..frame.len()].copy_from_slice(frame);
            lengths.push(frame.len() as u16);
        }
        let replay = Some(Replay { lines, lengths, longest, next: 0 });
        MemPort { replay, room: usize::MAX, arrived: u64::MAX, ..MemPort::default() }
    }

    /// Whether a port of [`MemPort::replay`] receives only what has arrived by [`MemPort::arrive`], nothing as yet, or all that
    /// there is room for.
    pub fn set_paced(&mut self, is_paced: bool) {
        self.arrived = if is_paced { 0 } else { u64::MAX };
    }

    /// The next `frames` of the replay have arrived. Returns how many are there to be received, the earlier ones included.
    pub fn arrive(&mut self, frames: u64) -> u64 {
        self.arrived = self.arrived.saturating_add(frames);
        self.arrived
    }

    /// A port that receives nothing and discards what is sent.
    #[must_use]
    pub fn discard() -> MemPort {
        MemPort { room: usize::MAX, ..MemPort::default() }
    }

    /// Queues a frame to be received.
    pub fn deliver(&mut self, frame: &[u8]) {
        self.deliver_unfinished(frame, Offload::NONE);
    }

    /// Queues a frame to be received with something left to do. What a chunk does not hold comes in several.
    pub fn deliver_unfinished(&mut self, frame: &[u8], left: Offload) {
        self.inbox.push_back((frame.to_vec(), left));
    }

    /// The oldest frame that was sent and not asked for yet.
    pub fn sent(&mut self) -> Option<Vec<u8>> {
        self.sent_unfinished().map(|(frame, _)| frame)
    }

    /// The same, with what was left to do to it.
    pub fn sent_unfinished(&mut self) -> Option<(Vec<u8>, Offload)> {
        self.outbox.as_mut()?.pop_front()
    }

    /// Says what the port takes beyond finished packets of one chunk.
    pub fn enable(&mut self, abilities: Abilities) {
        self.abilities = abilities;
    }

    /// Makes `tx_burst` refuse all but `frames` in each call, as a device with a full ring does.
    pub fn limit_room(&mut self, frames: usize) {
        self.room = frames;
    }

    #[inline(always)]
    fn received(&mut self, packets: usize, bytes: u64) -> usize {
        self.counters.rx_packets += packets as u64;
        self.counters.rx_bytes += bytes;
        packets
    }
}

impl Replay {
    /// Receives up to `want` frames, fewer when the chunks run out; returns how many and their bytes.
    #[inline(never)]
    fn receive(&mut self, pool: &mut FramePool, into: &mut Burst, want: usize) -> (usize, u64) {
        let (mut got, mut bytes) = (0, 0);
        while got < want {
            let before = into.len();
            let count = pool.alloc_into(into, (want - got).min(self.lengths.len() - self.next), self.longest);
            if count == 0 {
                break;
            }
            let frames = &mut into.frames_mut()[before..];
            bytes += match self.longest.div_ceil(LINE) {
                // The common frame without and with a tunnel.
                1 => self.copy_lines::<1>(frames),
                2 => self.copy_lines::<2>(frames),
                stride => self.copy_bytes(stride, frames),
            };
            got += count;
            self.next = (self.next + count) % self.lengths.len();
        }
        (got, bytes)
    }

    /// Copies the next frames, whole lines at a time; returns their bytes.
    #[inline(always)]
    fn copy_lines<const N: usize>(&self, frames: &mut [Frame]) -> u64 {
        let (lines, _) = self.lines.as_chunks::<N>();
        let mut bytes = 0;
        for ((frame, lines), &len) in
            frames.iter_mut().zip(&lines[self.next..]).zip(&self.lengths[self.next..])
        {
            // Every frame fits its chunk (`MemPort::replay`).
            let _ = frame.fill_from_lines(lines, len.into());
            bytes += u64::from(len);
        }
        bytes
    }

    /// The same for frames of many lines, of which only what they are long is copied.
    fn copy_bytes(&self, stride: usize, frames: &mut [Frame]) -> u64 {
        let mut bytes = 0;
        let lines = self.lines.chunks_exact(stride);
        for ((frame, lines), &len) in
            frames.iter_mut().zip(lines.skip(self.next)).zip(&self.lengths[self.next..])
        {
            // As above.
            let _ = frame.fill_from(&lines.as_flattened()[..usize::from(len)]);
            bytes += u64::from(len);
        }
        bytes
    }
}

impl Port for MemPort {
    #[inline(always)]
    fn rx_burst(&mut self, pool: &mut FramePool, into: &mut Burst) -> usize {
        if let Some(replay) = &mut self.replay {
            let want = into.room().min(usize::try_from(self.arrived).unwrap_or(usize::MAX));
            let (got, bytes) = replay.receive(pool, into, want);
            // An endless supply stays one for longer than any clock runs.
            self.arrived -= got as u64;
            self.counters.rx_no_chunk += (want - got) as u64;
            return self.received(got, bytes);
        }
        let (mut got, mut bytes) = (0, 0);
        while into.room() > 0
            && let Some((next, left)) = self.inbox.front()
        {
            let Some(mut frame) = pool.alloc_chain(next) else {
                self.counters.rx_no_chunk += 1;
                break;
            };
            frame.set_offload(*left);
            bytes += next.len() as u64;
            self.inbox.pop_front();
            if let Err(frame) = into.push(frame) {
                pool.free(frame);
            } else {
                got += 1;
            }
        }
        self.received(got, bytes)
    }

    #[inline(always)]
    fn tx_burst(&mut self, pool: &mut FramePool, frames: &mut Burst) -> usize {
        let taken = frames.len().min(self.room);
        let sent = &frames.frames()[..taken];
        let bytes: usize = sent.iter().map(Frame::len).sum();
        if let Some(outbox) = &mut self.outbox {
            outbox.extend(sent.iter().map(|frame| (frame.to_vec(), frame.offload())));
        }
        self.counters.tx_packets += taken as u64;
        self.counters.tx_bytes += bytes as u64;
        if taken == frames.len() {
            pool.free_burst(frames);
        } else {
            std::iter::from_fn(|| frames.pop()).take(taken).for_each(|frame| pool.free(frame));
        }
        taken
    }

    fn settle(&mut self, _pool: &mut FramePool) -> Result<(), PortFault> {
        Ok(())
    }

    fn abilities(&self) -> Abilities {
        self.abilities
    }

    fn counters(&self) -> PortCounters {
        self.counters
    }

    fn readiness(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn close(self, _pool: &mut FramePool) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{BURST, Hugepages, Region};

    fn pool() -> FramePool {
        FramePool::new(Region::map(1024, Hugepages::Off).unwrap())
    }

    #[test]
    fn what_is_delivered_is_received_and_what_is_sent_is_kept() {
        let (mut pool, mut port, mut burst) = (pool(), MemPort::new(), Burst::new());
        port.deliver(&[1; 60]);
        port.deliver(&[2; 1514]);
        assert_eq!(port.rx_burst(&mut pool, &mut burst), 2);
        assert_eq!(port.tx_burst(&mut pool, &mut burst), 2);
        assert_eq!(port.sent().unwrap(), [1; 60]);
        assert_eq!(port.sent().unwrap(), [2; 1514]);
        assert_eq!((port.counters().rx_bytes, port.counters().tx_bytes), (1574, 1574));
    }

    #[test]
    fn a_full_device_leaves_the_rest_with_the_caller() {
        let (mut pool, mut port, mut burst) = (pool(), MemPort::new(), Burst::new());
        (0..5).for_each(|i| port.deliver(&[i; 60]));
        port.limit_room(2);
        port.rx_burst(&mut pool, &mut burst);
        assert_eq!(port.tx_burst(&mut pool, &mut burst), 2);
        assert_eq!(burst.len(), 3);
        pool.free_burst(&mut burst);
    }

    #[test]
    fn replayed_frames_are_the_templates_byte_for_byte() {
        let (mut pool, mut burst) = (pool(), Burst::new());
        let frames: Vec<Vec<u8>> =
            [60usize, 64, 65, 1514].iter().map(|&len| (0..len).map(|b| b as u8).collect()).collect();
        let mut port = MemPort::replay(&frames, vec![3, 0, 1, 2]);
        assert_eq!(port.rx_burst(&mut pool, &mut burst), BURST);
        for (i, frame) in burst.frames().iter().enumerate() {
            assert_eq!(frame.bytes(), frames[[3, 0, 1, 2][i % 4]]);
        }
        pool.free_burst(&mut burst);
    }

    #[test]
    fn at_a_pace_only_what_has_arrived_is_received() {
        let (mut pool, mut burst) = (pool(), Burst::new());
        let mut port = MemPort::replay(&[vec![0; 60], vec![1; 60]], vec![0, 1]);
        port.set_paced(true);
        assert_eq!(port.rx_burst(&mut pool, &mut burst), 0);
        assert_eq!((port.arrive(3), port.rx_burst(&mut pool, &mut burst)), (3, 3));
        assert_eq!(burst.frames().iter().map(|frame| frame.bytes()[0]).collect::<Vec<_>>(), [0, 1, 0]);
        assert_eq!((port.arrive(70), port.rx_burst(&mut pool, &mut burst)), (70, BURST - 3));
        assert_eq!(port.arrive(0), 70 - (BURST as u64 - 3));
        pool.free_burst(&mut burst);
    }

    #[test]
    fn running_out_of_chunks_is_counted() {
        let mut pool = pool();
        let held: Vec<_> = std::iter::from_fn(|| pool.alloc()).collect();
        let (mut port, mut burst) = (MemPort::replay(&[vec![0; 60]], vec![0]), Burst::new());
        assert_eq!(port.rx_burst(&mut pool, &mut burst), 0);
        assert_eq!(port.counters().rx_no_chunk, BURST as u64);
        held.into_iter().for_each(|frame| pool.free(frame));
    }
}
