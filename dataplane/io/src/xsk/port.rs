//! The port over one AF_XDP socket.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use crate::burst::Burst;
use crate::chain::ANNEX;
use crate::clock::Ticks;
use crate::frame::Frame;
use crate::netdev::Netdev;
use crate::offload::{Abilities, Offload};
use crate::pages::prefetch;
use crate::pool::FramePool;
use crate::port::{Port, PortCounters, PortFault};
use crate::region::{CHUNK, Holder, Region};
use crate::xsk::error::XskError;
use crate::xsk::held::Held;
use crate::xsk::open::{self, Target};
use crate::xsk::ring::Desc;
use crate::xsk::socket::{Rings, Socket};
use crate::xsk::{MOST_PIECES, PACE_BELOW, Transfer, XdpStatistics, XskConfig, pace_ticks};

/// Chunks that go to the fill ring, or come back from the completion ring, at a time.
const BATCH: u32 = 64;
/// An Ethernet header: nothing shorter is sent, the kernel would refuse it without a completion.
const SHORTEST: usize = 14;

/// One queue of an interface, by an AF_XDP socket.
pub struct XskPort {
    // Hot: met every turn.
    rings: Rings,
    region: &'static Region,
    /// Chunks that the kernel holds to receive into: in the fill ring or, with a packet, in the receive ring.
    fill: Held,
    /// Chunks that the kernel holds to send: in the transmit ring, under way, or in the completion ring.
    tx: Held,
    pace: u64,
    ask_after: Ticks,
    /// Chunks that the kernel is kept supplied with now, at least, and at most.
    fill_now: u32,
    fill_at_first: u32,
    fill_most: u32,
    tx_slots: u32,
    counters: PortCounters,
    copies: bool,
    polls: bool,
    /// The address of a chunk that the kernel did not hold, once it has handed one over.
    foreign: Option<u64>,
    /// Whether packets may lie in several chunks.
    chains: bool,
    /// The beginning of a packet of several chunks, the rest of which the receive ring has not given out yet.
    begun: Option<Frame>,
    // Cold.
    socket: Option<Socket>,
    name: String,
    queue: u32,
    netdev: Netdev,
    because: Option<String>,
}

impl XskPort {
    /// Opens a port over `queue` of `netdev`, in the network namespace of the calling thread. Its chunks are of the
    /// pool's region. Packets come once a steering program sends them (`Steer::bind`).
    ///
    /// # Errors
    /// [`XskError`], which names the port, the likely gate and the mend; every chunk is then back in the pool.
    pub fn open(
        netdev: &Netdev,
        queue: u32,
        config: &XskConfig,
        pool: &mut FramePool,
    ) -> Result<XskPort, XskError> {
        let name = format!("{}:{queue}", netdev.name);
        let region = pool.region();
        let target = Target { port: &name, netdev, queue, region };
        open::check(&target, config)?;
        let mut fill = Held::none(region);
        let wanted = config.fill_at_first;
        let chunks = fill_up(&mut fill, wanted, pool);
        let opened = if fill.count() < wanted {
            Err(XskError::NoChunks { port: name.clone(), wanted, got: fill.count() })
        } else {
            open::open(&target, config, &chunks)
        };
        let opened = match opened {
            Ok(opened) => opened,
            Err(error) => {
                fill.drain(|chunk| pool.take_back(chunk, Holder::Fill));
                return Err(error);
            }
        };
        Ok(XskPort {
            rings: opened.rings,
            region,
            fill,
            tx: Held::none(region),
            pace: pace_ticks(config.pace),
            ask_after: Ticks(0),
            fill_now: config.fill_at_first,
            fill_at_first: config.fill_at_first,
            fill_most: config.fill_level,
            tx_slots: config.tx_ring,
            counters: PortCounters::default(),
            copies: opened.transfer == Transfer::Copy,
            polls: config.busy_poll.is_some(),
            foreign: None,
            chains: opened.chains,
            begun: None,
            socket: Some(opened.socket),
            queue,
            netdev: netdev.clone(),
            because: opened.because,
            name,
        })
    }

    /// Its name, `interface:queue`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The queue's number.
    #[must_use]
    pub fn queue(&self) -> u32 {
        self.queue
    }

    /// Whether packets are copied between the device and the chunks.
    #[must_use]
    pub fn transfer(&self) -> Transfer {
        if self.copies { Transfer::Copy } else { Transfer::ZeroCopy }
    }

    /// Why packets are copied, where zero-copy would have been preferred.
    #[must_use]
    pub fn copies_because(&self) -> Option<&str> {
        self.because.as_deref()
    }

    /// What the kernel counted on this socket: a system call, for who asks and not for every turn.
    ///
    /// # Errors
    /// The kernel's.
    pub fn statistics(&self) -> io::Result<XdpStatistics> {
        self.socket.as_ref().map_or(Ok(XdpStatistics::default()), Socket::statistics)
    }

    /// Turns a descriptor into the frame that it stands for; `None` when the chunk is not one that the kernel holds.
    #[inline(always)]
    fn accept(&mut self, desc: Desc) -> Option<Frame> {
        let (chunk, offset, len) =
            (desc.address / CHUNK as u64, desc.address as usize % CHUNK, desc.len as usize);
        if offset < ANNEX || offset + len > CHUNK || !self.fill.give_up(chunk) {
            self.foreign = Some(desc.address);
            return None;
        }
        let chunk = chunk as u32;
        self.region.pass(chunk, Holder::Fill, Holder::User);
        // SAFETY: the chunk was the kernel's until now (its bit was set and is cleared), so it has no other token; the
        // packet lies inside it (checked above).
        Some(unsafe { self.region.mint(chunk, offset, len) })
    }

    /// Puts a packet of several chunks together; it is there when its last one is.
    #[cold]
    fn assemble(&mut self, piece: Frame, more: bool) -> Option<Frame> {
        let whole = match self.begun.take() {
            Some(mut begun) => {
                begun.append(piece);
                begun
            }
            None => piece,
        };
        if more {
            self.begun = Some(whole);
            return None;
        }
        Some(whole)
    }

    /// Free slots of the transmit ring: as many completions may be under way as the completion ring has slots.
    #[inline(always)]
    fn room(&mut self, want: u32) -> u32 {
        self.rings.tx.room(want).min(self.tx_slots - self.tx.count().min(self.tx_slots))
    }

    /// Hands a packet of several chunks to the kernel; there is room for it.
    #[cold]
    fn push_chain(&mut self, mut frame: Frame) {
        while let Some(rest) = frame.take_rest() {
            self.push(frame, libc::XDP_PKT_CONTD);
            frame = rest;
        }
        self.push(frame, 0);
    }

    /// Hands a chunk of this region to the kernel; there is room for it.
    #[inline(always)]
    fn push(&mut self, frame: Frame, options: u32) {
        let (offset, len) = (frame.offset() as u64, frame.len() as u32);
        let head = frame.into_raw();
        let chunk = self.region.chunk_of(head).unwrap_or_default();
        let address = u64::from(chunk) * CHUNK as u64 + offset;
        self.region.pass(chunk, Holder::User, Holder::Tx);
        self.tx.take(chunk);
        let pushed = self.rings.tx.push(Desc { address, len, options });
        debug_assert!(pushed, "room was asked for");
    }

    /// The slots of the transmit ring that a frame needs; `None` if it cannot be sent at all.
    #[inline(always)]
    fn slots_for(&self, frame: &Frame) -> Option<u32> {
        if frame.is_plain() {
            return (frame.len() >= SHORTEST).then_some(1);
        }
        self.slots_for_chain(frame)
    }

    #[cold]
    fn slots_for_chain(&self, frame: &Frame) -> Option<u32> {
        let pieces = frame.pieces().count();
        let fits = pieces == 1 || self.chains && pieces <= MOST_PIECES;
        (fits && frame.offload() == Offload::NONE && frame.len() >= SHORTEST).then_some(pieces as u32)
    }

    /// Takes the chunks of sent packets back, once there are enough to be worth the ring's cache lines.
    #[inline]
    fn reap(&mut self, pool: &mut FramePool) {
        if self.tx.count() >= BATCH {
            self.reap_now(pool);
        }
    }

    fn reap_now(&mut self, pool: &mut FramePool) {
        if self.rings.completion.available(BATCH) == 0 {
            return;
        }
        while let Some(address) = self.rings.completion.pop() {
            let chunk = address / CHUNK as u64;
            if !self.tx.give_up(chunk) {
                self.foreign = Some(address);
                break;
            }
            pool.take_back(chunk as u32, Holder::Tx);
        }
        self.rings.completion.release();
    }

    /// Has more chunks with the kernel where bursts ask for them and memory allows it, and fewer where memory is short.
    fn measure(&mut self) {
        let (free, all) = (self.region.in_depot(), self.region.chunks());
        if free < all / 4 {
            self.fill_now = self.fill_at_first;
        } else if free > all / 2 && self.rings.fill.unconsumed() <= self.fill_now / 2 {
            self.fill_now = (self.fill_now * 2).min(self.fill_most);
        }
    }

    /// Gives the kernel chunks to receive into, a batch at a time.
    #[inline]
    fn refill(&mut self, pool: &mut FramePool) {
        if self.fill.count() + BATCH > self.fill_now {
            return;
        }
        if self.fill_at_first < self.fill_most {
            self.measure();
        }
        while self.fill.count() + BATCH <= self.fill_now {
            let before = self.fill.count();
            for _ in 0..BATCH {
                let Some(chunk) = pool.take_for_fill() else { break };
                self.fill.take(chunk);
                let pushed = self.rings.fill.push(u64::from(chunk) * CHUNK as u64);
                debug_assert!(pushed, "the fill ring has room for the fill level");
            }
            self.rings.fill.publish();
            if self.fill.count() - before < BATCH {
                break;
            }
        }
    }

    /// Has the kernel send what is in the transmit ring. One call sends up to the transmit budget, so it is called again
    /// as long as it gets on; what is left then waits for the next turn.
    fn wake_transmit(&mut self, pool: &mut FramePool) -> Result<(), PortFault> {
        let mut left = self.rings.tx.unconsumed();
        while left > 0 && (self.copies || self.polls || self.rings.tx.needs_wakeup()) {
            let Some(socket) = &self.socket else { return Ok(()) };
            let outcome = socket.wake_transmit();
            self.counters.kicks += 1;
            match outcome.as_ref().map_err(io::Error::raw_os_error) {
                // EAGAIN: the budget is used up, or memory; ENOBUFS: the device's queue is full; EBUSY: it is being set up.
                Ok(()) | Err(Some(libc::EAGAIN | libc::ENOBUFS | libc::EBUSY | libc::EINTR)) => {}
                Err(_) => outcome.map_err(|source| self.fault("sendto", source))?,
            }
            // The kernel stops as well when the completion ring is full.
            self.reap(pool);
            let now = self.rings.tx.unconsumed();
            if now == left || !self.copies {
                break;
            }
            left = now;
        }
        Ok(())
    }

    #[inline]
    fn wake_receive(&mut self) -> Result<(), PortFault> {
        if !self.polls && !self.rings.fill.needs_wakeup() {
            return Ok(());
        }
        let Some(socket) = &self.socket else { return Ok(()) };
        let outcome = socket.wake_receive();
        self.counters.kicks += 1;
        match outcome.as_ref().map_err(io::Error::raw_os_error) {
            Ok(()) | Err(Some(libc::EAGAIN | libc::ENOBUFS | libc::EBUSY | libc::EINTR)) => Ok(()),
            Err(_) => outcome.map_err(|source| self.fault("recvfrom", source)),
        }
    }

    #[cold]
    fn fault(&self, call: &'static str, source: io::Error) -> PortFault {
        let port = self.name.clone();
        match source.raw_os_error() {
            Some(libc::ENETDOWN | libc::ENXIO | libc::ENODEV) => PortFault::Gone { port, source },
            _ => PortFault::System { port, call, source },
        }
    }

    /// Closes the socket and hands out each chunk that the kernel held: what the bitmaps say is the truth, whatever was in
    /// which ring. In copy mode the kernel touches no chunk once the socket is closed (it waits for a grace period); a
    /// zero-copy driver goes on for a moment, which is waited for.
    fn surrender(&mut self, mut each: impl FnMut(u32, Holder)) {
        if let Some(socket) = self.socket.take() {
            drop(socket);
            let target =
                Target { port: &self.name, netdev: &self.netdev, queue: self.queue, region: self.region };
            if !self.copies && !open::await_release(&target, open::BUSY_LIMIT) {
                // Better a smaller pool than packets that a device writes over.
                let (fill, tx) = self.with_kernel();
                tracing::error!(
                    port = self.name,
                    "the driver did not let go of the queue: {fill} + {tx} chunks are lost"
                );
                self.fill.drain(drop);
                self.tx.drain(drop);
                return;
            }
        }
        self.fill.drain(|chunk| each(chunk, Holder::Fill));
        self.tx.drain(|chunk| each(chunk, Holder::Tx));
    }
}

/// Takes up to `level` chunks from the pool for the kernel.
fn fill_up(fill: &mut Held, level: u32, pool: &mut FramePool) -> Vec<u32> {
    let chunks: Vec<u32> = (0..level).map_while(|_| pool.take_for_fill()).collect();
    chunks.iter().for_each(|&chunk| fill.take(chunk));
    chunks
}

impl Port for XskPort {
    #[inline(always)]
    fn rx_burst(&mut self, pool: &mut FramePool, into: &mut Burst) -> usize {
        if self.pace != 0 && Ticks::now() < self.ask_after {
            return 0;
        }
        let want = into.room();
        let got = (self.rings.rx.available(want as u32) as usize).min(want);
        if got > 0 && got < PACE_BELOW && self.pace != 0 {
            self.ask_after = Ticks(Ticks::now().0 + self.pace);
        }
        if got == 0 || self.foreign.is_some() {
            return 0;
        }
        let (mut packets, mut bytes) = (0, 0);
        for _ in 0..got {
            let Some(desc) = self.rings.rx.pop() else { break };
            let Some(frame) = self.accept(desc) else { break };
            let more = desc.options & libc::XDP_PKT_CONTD != 0;
            let frame = if more || self.begun.is_some() {
                match self.assemble(frame, more) {
                    Some(whole) => whole,
                    None => continue,
                }
            } else {
                frame
            };
            bytes += frame.total_len() as u64;
            packets += 1;
            // The kernel wrote it, likely on another core; its headers are read next.
            prefetch(frame.bytes(), 0);
            if let Err(frame) = into.push(frame) {
                pool.free(frame);
            }
        }
        self.rings.rx.release();
        self.counters.rx_packets += packets;
        self.counters.rx_bytes += bytes;
        packets as usize
    }

    #[inline(always)]
    fn tx_burst(&mut self, pool: &mut FramePool, frames: &mut Burst) -> usize {
        let want = frames.len() as u32;
        let mut room = self.room(want);
        let (mut taken, mut bytes) = (0, 0);
        while let Some(frame) = frames.frames().first() {
            let slots = self.slots_for(frame);
            let needed = slots.unwrap_or_default();
            if needed > room {
                room = if needed > 1 { self.room(needed) } else { 0 };
                if needed > room {
                    break;
                }
            }
            let Some(frame) = frames.pop() else { break };
            taken += 1;
            if slots.is_none() {
                self.counters.tx_invalid += 1;
                pool.free(frame);
                continue;
            }
            room -= needed;
            bytes += frame.total_len() as u64;
            self.counters.tx_packets += 1;
            if needed > 1 { self.push_chain(frame) } else { self.push(frame, 0) }
        }
        self.rings.tx.publish();
        self.counters.tx_bytes += bytes;
        taken
    }

    #[inline]
    fn settle(&mut self, pool: &mut FramePool) -> Result<(), PortFault> {
        if self.tx.count() > 0 {
            self.wake_transmit(pool)?;
            self.reap(pool);
        }
        self.refill(pool);
        self.wake_receive()?;
        match self.foreign {
            None => Ok(()),
            Some(address) => Err(PortFault::ForeignChunk { port: self.name.clone(), address }),
        }
    }

    fn abilities(&self) -> Abilities {
        Abilities::CHAINS.when(self.chains)
    }

    fn counters(&self) -> PortCounters {
        self.counters
    }

    fn readiness(&self) -> Option<BorrowedFd<'_>> {
        self.socket.as_ref().map(Socket::as_fd)
    }

    fn with_kernel(&self) -> (u32, u32) {
        (self.fill.count(), self.tx.count())
    }

    /// Packets that were sent and not yet taken back are no reason: they come back with the next ones.
    fn is_restless(&mut self) -> bool {
        self.rings.tx.unconsumed() > 0 || self.fill.count() + BATCH <= self.fill_now
    }

    fn wake(&mut self) {
        self.ask_after = Ticks(0);
    }

    fn close(mut self, pool: &mut FramePool) {
        if let Some(begun) = self.begun.take() {
            pool.free(begun);
        }
        self.surrender(|chunk, from| pool.take_back(chunk, from));
    }
}

impl Drop for XskPort {
    /// A port that is dropped instead of closed (by a panic) gives its chunks to the region.
    fn drop(&mut self) {
        let region = self.region;
        let mut pool = FramePool::new(region);
        if let Some(begun) = self.begun.take() {
            pool.free(begun);
        }
        self.surrender(|chunk, from| pool.take_back(chunk, from));
    }
}

impl AsFd for XskPort {
    /// The socket, for the steering program's map.
    ///
    /// # Panics
    /// Never: the socket is there until the port is closed.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_ref().expect("the socket is there until the port is closed").as_fd()
    }
}

#[cfg(test)]
mod tests;
