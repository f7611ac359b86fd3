//! A port in memory: frames come from a set of templates or from a test, and what is sent is counted or kept.
//!
//! The whole pipeline runs on it without root, and benches measure on it: its receive cost is one copy of the template.

use std::collections::VecDeque;
use std::os::fd::BorrowedFd;

use crate::burst::{BURST, Burst};
use crate::pool::FramePool;
use crate::port::{Port, PortCounters, PortFault};

/// A port in memory.
#[derive(Default)]
pub struct MemPort {
    /// Frames replayed endlessly, laid end to end with a stride of 64-byte lines.
    templates: Vec<Template>,
    order: Vec<u32>,
    next: usize,
    /// Frames that a test wants received once, in order.
    inbox: VecDeque<Vec<u8>>,
    /// What was sent, when the port keeps it.
    outbox: Option<VecDeque<Vec<u8>>>,
    /// Frames that `tx_burst` takes in one call before it refuses.
    room: usize,
    counters: PortCounters,
}

/// A frame to replay: whole cache lines, so that the common small frame is one aligned copy.
#[derive(Clone)]
#[repr(align(64))]
struct Template {
    head: [u8; 64],
    len: u32,
    /// What does not fit the first line.
    rest: Box<[u8]>,
}

impl Template {
    fn new(bytes: &[u8]) -> Template {
        let mut head = [0; 64];
        let first = bytes.len().min(64);
        head[..first].copy_from_slice(&bytes[..first]);
        Template { head, len: bytes.len() as u32, rest: bytes[first..].into() }
    }
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
    /// If the order is empty or names a frame that is not there.
    #[must_use]
    pub fn replay(frames: &[Vec<u8>], order: Vec<u32>) -> MemPort {
        assert!(!order.is_empty() && order.iter().all(|&i| (i as usize) < frames.len()));
        let templates = frames.iter().map(|bytes| Template::new(bytes)).collect();
        MemPort { templates, order, room: usize::MAX, ..MemPort::default() }
    }

    /// A port that receives nothing and discards what is sent.
    #[must_use]
    pub fn discard() -> MemPort {
        MemPort { room: usize::MAX, ..MemPort::default() }
    }

    /// Queues a frame to be received.
    pub fn deliver(&mut self, frame: &[u8]) {
        self.inbox.push_back(frame.to_vec());
    }

    /// The oldest frame that was sent and not asked for yet.
    pub fn sent(&mut self) -> Option<Vec<u8>> {
        self.outbox.as_mut()?.pop_front()
    }

    /// Makes `tx_burst` refuse all but `frames` in each call, as a device with a full ring does.
    pub fn limit_room(&mut self, frames: usize) {
        self.room = frames;
    }

    #[inline(always)]
    fn replay_burst(&mut self, pool: &mut FramePool, into: &mut Burst) -> usize {
        let want = into.room();
        let mut bytes = 0;
        for got in 0..want {
            let template = &self.templates[self.order[self.next] as usize];
            let Some(mut frame) = pool.alloc_for(template.len as usize) else {
                self.counters.rx_no_chunk += (want - got) as u64;
                return self.received(got, bytes);
            };
            self.next += 1;
            if self.next == self.order.len() {
                self.next = 0;
            }
            copy_template(template, &mut frame);
            bytes += template.len as u64;
            if let Err(frame) = into.push(frame) {
                pool.free(frame);
                return self.received(got, bytes);
            }
        }
        self.received(want, bytes)
    }

    #[inline(always)]
    fn received(&mut self, packets: usize, bytes: u64) -> usize {
        self.counters.rx_packets += packets as u64;
        self.counters.rx_bytes += bytes;
        packets
    }
}

#[inline(always)]
fn copy_template(template: &Template, frame: &mut crate::Frame) {
    if let Some(head) = frame.window_mut::<64>() {
        *head = template.head;
    }
    // Both grow within the chunk: templates longer than a chunk's room are cut, which `replay`'s callers never make.
    let len = (template.len as usize).min(frame.tailroom());
    if frame.grow_tail(len).is_ok() && len > 64 {
        frame.bytes_mut()[64..].copy_from_slice(&template.rest[..len - 64]);
    }
}

impl Port for MemPort {
    #[inline(always)]
    fn rx_burst(&mut self, pool: &mut FramePool, into: &mut Burst) -> usize {
        if !self.templates.is_empty() {
            return self.replay_burst(pool, into);
        }
        let (mut got, mut bytes) = (0, 0);
        while into.room() > 0
            && let Some(next) = self.inbox.front()
        {
            let Some(mut frame) = pool.alloc_for(next.len()) else {
                self.counters.rx_no_chunk += 1;
                break;
            };
            let fits = frame.fill_from(next).is_ok();
            bytes += next.len() as u64;
            self.inbox.pop_front();
            if !fits {
                self.counters.rx_invalid += 1;
                pool.free(frame);
            } else if let Err(frame) = into.push(frame) {
                pool.free(frame);
            } else {
                got += 1;
            }
        }
        self.received(got, bytes)
    }

    #[inline(always)]
    fn tx_burst(&mut self, pool: &mut FramePool, frames: &mut Burst) -> usize {
        let taken = frames.len().min(self.room).min(BURST);
        let mut bytes = 0;
        for _ in 0..taken {
            let Some(frame) = frames.pop() else { break };
            bytes += frame.len() as u64;
            if let Some(outbox) = &mut self.outbox {
                outbox.push_back(frame.bytes().to_vec());
            }
            pool.free(frame);
        }
        self.counters.tx_packets += taken as u64;
        self.counters.tx_bytes += bytes;
        taken
    }

    fn settle(&mut self, _pool: &mut FramePool) -> Result<(), PortFault> {
        Ok(())
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
    use crate::{Hugepages, Region};

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
    fn running_out_of_chunks_is_counted() {
        let mut pool = pool();
        let held: Vec<_> = std::iter::from_fn(|| pool.alloc()).collect();
        let (mut port, mut burst) = (MemPort::replay(&[vec![0; 60]], vec![0]), Burst::new());
        assert_eq!(port.rx_burst(&mut pool, &mut burst), 0);
        assert_eq!(port.counters().rx_no_chunk, BURST as u64);
        held.into_iter().for_each(|frame| pool.free(frame));
    }
}
