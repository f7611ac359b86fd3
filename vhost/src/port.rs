//! The port: one queue pair of a vhost-user device, served by one worker.
//!
//! A packet is copied between the guest's buffers and our chunks, and the buffers go back to the guest in the same burst, so
//! nothing is ever in flight between two bursts. What the session changes comes in at [`Port::settle`], see
//! [`crate::handover`].

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::Arc;

use penstock_io::{Abilities, Burst, FramePool, Port, PortCounters, PortFault};

use crate::handover::{Bases, Intake, PairSetup, RingSetup, Wish};
use crate::memory::{Alarm, GuestMemory};
use crate::packet::{self, Format, Unreceived, Unsent};
use crate::ring::{Batch, CHAINS, Lie, Queue, RingFault, Side};

/// Bytes after which a burst ends early: packets of 64 KiB must not keep the worker from its other ports.
const BYTES_A_BURST: usize = 1 << 18;

/// One queue pair of a vhost-user device.
pub struct VhostPort {
    /// What the guest sends by.
    rx: Option<Queue>,
    /// What the guest receives by.
    tx: Option<Queue>,
    /// How packets lie in the guest's buffers.
    format: Format,
    batch: Batch,
    counters: PortCounters,
    alarm: Alarm,
    /// Held for as long as the queues are: their rings are in it.
    memory: Option<Arc<GuestMemory>>,
    intake: Intake,
    /// Readable when the session or the guest wants something.
    watched: Watched,
}

impl VhostPort {
    /// A port that serves what comes in by `intake`.
    ///
    /// # Errors
    /// The kernel's, when there are no descriptors left.
    pub fn new(intake: Intake) -> io::Result<VhostPort> {
        let watched = Watched::new()?;
        watched.add(intake.called())?;
        Ok(VhostPort {
            rx: None,
            tx: None,
            format: Format::default(),
            batch: Batch::new(),
            counters: PortCounters::default(),
            alarm: Alarm::new(),
            memory: None,
            intake,
            watched,
        })
    }

    /// The port's name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.intake.name()
    }

    /// Does what the session wants.
    #[cold]
    fn attend(&mut self) {
        match self.intake.wish() {
            None => {}
            Some(Wish::Stop) => {
                let bases = self.let_go();
                self.intake.let_go(bases);
            }
            Some(Wish::Start(pair)) => {
                self.let_go();
                self.serve(&pair);
            }
        }
    }

    fn serve(&mut self, pair: &PairSetup) {
        self.memory = Some(Arc::clone(&pair.memory));
        self.format = Format::new(pair.features);
        self.batch.read_from(self.format.read_from());
        self.rx = self.open(pair, pair.rx.as_ref(), Side::Rx);
        self.tx = self.open(pair, pair.tx.as_ref(), Side::Tx);
        if let Some(kick) = self.rx.as_ref().and_then(Queue::kick)
            && let Err(error) = self.watched.add(kick)
        {
            tracing::error!("{}: the guest cannot wake its worker: {error}", self.intake.name());
        }
        // Something may have gone while nobody looked.
        self.check_memory();
    }

    fn open(&self, pair: &PairSetup, setup: Option<&RingSetup>, side: Side) -> Option<Queue> {
        Queue::new(pair, setup?, side).map_err(|fault| self.intake.report(fault)).ok()
    }

    /// Drops the rings and the memory; returns where the rings stand.
    fn let_go(&mut self) -> Bases {
        if let Some(kick) = self.rx.as_ref().and_then(Queue::kick) {
            self.watched.remove(kick);
        }
        let (rx, tx) = (self.rx.take(), self.tx.take());
        self.memory = None;
        let last = |queue: Option<Queue>| {
            queue.map(|mut queue| {
                if queue.tell() {
                    self.intake.wake_session();
                }
                queue.base()
            })
        };
        Bases { rx: last(rx), tx: last(tx) }
    }

    /// Stops both rings if a part of their memory went away.
    #[cold]
    fn check_memory(&mut self) {
        if self.memory.as_ref().is_some_and(|memory| memory.is_poisoned()) {
            self.stop(Side::Rx, Lie::MemoryGone);
            self.stop(Side::Tx, Lie::MemoryGone);
        }
    }

    /// Stops a ring that lied; the port and the other ring go on.
    #[cold]
    fn stop(&mut self, side: Side, lie: Lie) {
        let queue = match side {
            Side::Rx => &mut self.rx,
            Side::Tx => &mut self.tx,
        };
        let Some(queue) = queue.as_mut().filter(|queue| queue.flows()) else { return };
        // A file that was truncated behind the ring reads as zeros, which looks like a lie of another kind.
        let gone = self.memory.as_ref().is_some_and(|memory| memory.is_poisoned());
        let fault: RingFault = queue.stop(if gone { Lie::MemoryGone } else { lie });
        self.intake.report(fault);
    }

    /// Sends what fits the buffers of one batch of up to `want`; says how many frames left and how many chains there were.
    #[inline(always)]
    fn send_batch(
        &mut self,
        pool: &mut FramePool,
        frames: &mut Burst,
        want: usize,
    ) -> Result<(usize, usize), Lie> {
        let Some(queue) = &mut self.tx else { return Ok((0, 0)) };
        queue.take(want, &mut self.batch)?;
        let chains = self.batch.chains().len();
        let mut lengths = [0; CHAINS];
        let (mut used, mut done, mut sent, mut bytes) = (0, 0, 0, 0);
        for (number, frame) in frames.frames().iter().enumerate() {
            if let Some(next) = frames.frames().get(number + 1) {
                self.batch.approach(used + 1, self.format.header() + next.len());
            }
            let room = &mut lengths[used..chains];
            match packet::send(frame, &self.format, &self.batch, used, room, queue.reach()) {
                Ok(buffers) => {
                    used += buffers;
                    sent += 1;
                    bytes += frame.total_len();
                }
                Err(Unsent::NoRoom) => break,
                Err(Unsent::Unable) => self.counters.tx_invalid += 1,
                Err(Unsent::Lie(lie)) => return Err(lie),
            }
            done += 1;
        }
        queue.give(&self.batch, &lengths[..used]);
        self.counters.tx_packets += sent;
        self.counters.tx_bytes += bytes as u64;
        if done == frames.len() {
            pool.free_burst(frames);
        } else {
            std::iter::from_fn(|| frames.pop()).take(done).for_each(|frame| pool.free(frame));
        }
        Ok((done, chains))
    }
}

impl Port for VhostPort {
    #[inline]
    fn rx_burst(&mut self, pool: &mut FramePool, into: &mut Burst) -> usize {
        let Some(queue) = self.rx.as_mut().filter(|queue| queue.flows()) else { return 0 };
        if let Err(lie) = queue.take(into.room(), &mut self.batch) {
            self.stop(Side::Rx, lie);
            return 0;
        }
        let chains = self.batch.chains();
        let (mut taken, mut got, mut bytes) = (0, 0, 0);
        for (number, chain) in chains.iter().enumerate() {
            if let Some(next) = chains.get(number + 1) {
                self.batch.approach(number + 1, next.bytes as usize);
            }
            match packet::receive(pool, &self.format, self.batch.pieces(chain), chain) {
                Ok(frame) => {
                    bytes += frame.total_len();
                    match into.push(frame) {
                        Ok(()) => got += 1,
                        // No more was asked for than there is room.
                        Err(frame) => pool.free(frame),
                    }
                }
                Err(Unreceived::Malformed) => self.counters.rx_invalid += 1,
                Err(Unreceived::NoChunk) => {
                    // They stay with the guest.
                    self.counters.rx_no_chunk += (chains.len() - taken) as u64;
                    break;
                }
            }
            taken += 1;
            if bytes > BYTES_A_BURST {
                break;
            }
        }
        // We write nothing into what the guest sends.
        queue.give(&self.batch, &[0; CHAINS][..taken]);
        self.counters.rx_packets += got as u64;
        self.counters.rx_bytes += bytes as u64;
        got
    }

    #[inline]
    fn tx_burst(&mut self, pool: &mut FramePool, frames: &mut Burst) -> usize {
        if !self.tx.as_ref().is_some_and(Queue::flows) {
            return 0;
        }
        let mut taken = 0;
        let mut want = frames.len();
        while !frames.is_empty() {
            let (done, chains) = match self.send_batch(pool, frames, want) {
                Ok(progress) => progress,
                Err(lie) => {
                    self.stop(Side::Tx, lie);
                    break;
                }
            };
            taken += done;
            // A packet that is spread over buffers takes more than were asked for.
            if chains == 0 || (done == 0 && (chains < want || want == CHAINS)) {
                break;
            }
            want = if done == 0 { CHAINS } else { frames.len() };
        }
        taken
    }

    #[inline]
    fn settle(&mut self, _pool: &mut FramePool) -> Result<(), PortFault> {
        if self.intake.is_due() {
            self.attend();
        }
        if self.alarm.rings() {
            self.check_memory();
        }
        for queue in [&mut self.rx, &mut self.tx].into_iter().flatten() {
            if queue.tell() {
                self.counters.kicks += 1;
                self.intake.wake_session();
            }
        }
        Ok(())
    }

    fn abilities(&self) -> Abilities {
        if self.tx.is_some() { self.format.abilities } else { Abilities::NONE }
    }

    fn counters(&self) -> PortCounters {
        self.counters
    }

    fn readiness(&self) -> Option<BorrowedFd<'_>> {
        Some(self.watched.0.as_fd())
    }

    fn is_restless(&mut self) -> bool {
        if self.intake.is_due() {
            return true;
        }
        let Some(queue) = self.rx.as_mut().filter(|queue| queue.flows()) else { return false };
        queue.ask_to_be_told(true);
        // Without a bell the guest cannot wake us.
        queue.kick().is_none() || queue.has_more()
    }

    fn wake(&mut self) {
        if let Some(queue) = &mut self.rx {
            queue.ask_to_be_told(false);
        }
    }

    fn close(mut self, _pool: &mut FramePool) {
        let bases = self.let_go();
        self.intake.let_go(bases);
    }
}

/// An epoll instance: a worker waits for one descriptor of ours, whatever is behind it.
struct Watched(OwnedFd);

impl Watched {
    fn new() -> io::Result<Watched> {
        // SAFETY: makes a descriptor and touches no memory.
        let fd = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a descriptor just made, which nobody else owns.
        Ok(Watched(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    fn add(&self, fd: BorrowedFd<'_>) -> io::Result<()> {
        let mut event = libc::epoll_event { events: libc::EPOLLIN as u32, u64: 0 };
        // SAFETY: both descriptors are open, and the event lives through the call.
        let done = unsafe {
            libc::epoll_ctl(self.0.as_raw_fd(), libc::EPOLL_CTL_ADD, fd.as_raw_fd(), &raw mut event)
        };
        if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    fn remove(&self, fd: BorrowedFd<'_>) {
        // One that is not in it (it could not be added) need not be removed.
        // SAFETY: both descriptors are open; the event may be null (epoll_ctl(2)).
        unsafe {
            libc::epoll_ctl(self.0.as_raw_fd(), libc::EPOLL_CTL_DEL, fd.as_raw_fd(), std::ptr::null_mut())
        };
    }
}
