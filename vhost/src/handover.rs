//! The handover: what a session gives the worker of a queue pair, and how it gets it back.
//!
//! ```text
//!  session thread                    shared                        worker
//!  Switch::start(PairSetup)  --> offer, generation + 1 -->  Intake (VhostPort::settle): rings are made and served
//!  Switch::stop()            --> recall, generation + 1 --> rings are dropped, memory let go, their bases returned
//!  Switch::reports()         <-- fault -------------------  a ring stopped: RingFault
//!  Switch::ring_bells()      <-- Doorbell::want ----------  the guest is to be told
//! ```
//!
//! The worker looks at the generation once a turn, which is one load. It never waits for the session; the session waits
//! for it, within bounds, because memory may only be unmapped when no ring uses it.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use thiserror::Error;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::bell::{Doorbell, Ringer};
use crate::inflight::InflightQueue;
use crate::log::DirtyLog;
use crate::memory::GuestMemory;
use crate::ring::RingFault;

/// A queue pair, ready to be served.
#[derive(Debug)]
pub struct PairSetup {
    /// The guest's memory.
    pub memory: Arc<GuestMemory>,
    /// The features that both sides acknowledged (see [`crate::features`]).
    pub features: u64,
    /// What the guest sends by: virtqueue 2n + 1. `None` while it is not started.
    pub rx: Option<RingSetup>,
    /// What the guest receives by: virtqueue 2n. `None` while it is not started.
    pub tx: Option<RingSetup>,
    /// Where to note what we write, while [`crate::features::LOG_ALL`] is acknowledged.
    pub log: Option<Arc<DirtyLog>>,
}

/// One started virtqueue.
#[derive(Clone, Debug)]
pub struct RingSetup {
    /// Entries (`SET_VRING_NUM`).
    pub size: u32,
    /// The descriptor table, or the packed ring: a front-end address (`SET_VRING_ADDR`).
    pub desc: u64,
    /// The available ring, or the packed ring's driver area.
    pub avail: u64,
    /// The used ring, or the packed ring's device area.
    pub used: u64,
    /// Where the used ring is in the dirty log (`VHOST_VRING_F_LOG`): a guest address.
    pub used_log: Option<u64>,
    /// Where to go on (`SET_VRING_BASE`). Split: the next available index. Packed: bits 0 to 14 and 15 the next available
    /// entry and its wrap counter, bits 16 to 30 and 31 the same of the next used one.
    pub base: u32,
    /// By what the guest wakes us; `None` when it expects to be polled.
    pub kick: Option<Arc<Doorbell>>,
    /// By what we wake the guest; `None` when it polls.
    pub call: Option<Arc<Doorbell>>,
    /// Whether packets flow (`SET_VRING_ENABLE`).
    pub enabled: bool,
    /// The record of what is in flight.
    pub inflight: Option<InflightQueue>,
}

/// Where each ring of a pair stands, as `GET_VRING_BASE` tells it; `None` for one that was not started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bases {
    /// Of virtqueue 2n + 1.
    pub rx: Option<u32>,
    /// Of virtqueue 2n.
    pub tx: Option<u32>,
}

/// Why a pair could not be stopped.
#[derive(Debug, Error)]
pub enum StopError {
    /// Its worker does not answer.
    #[error(
        "{port}: its worker did not let go of the guest's memory within {waited:?}; it is stalled or very busy"
    )]
    Busy {
        /// The port's name.
        port: String,
        /// How long we waited.
        waited: Duration,
    },
}

/// What both ends of a handover have in common.
struct Shared {
    /// The port's name.
    name: String,
    /// How often the session changed its mind.
    generation: AtomicU64,
    desk: Mutex<Desk>,
    /// The port let go of what it held.
    let_go: Condvar,
    /// Wakes the port's worker.
    call: EventFd,
    /// Wakes the session.
    report: EventFd,
}

#[derive(Default)]
struct Desk {
    /// What the port is to take next.
    offer: Option<Box<PairSetup>>,
    /// Whether it is to give back what it holds.
    recall: bool,
    /// Whether it holds something.
    held: bool,
    /// Where the rings stood when it last let go.
    bases: Bases,
    /// By what the guest of the last offer is told.
    bells: [Option<Arc<Doorbell>>; 2],
    /// Why a ring stopped, until the session has asked.
    fault: Option<RingFault>,
    /// Rings that stopped since the beginning.
    faults: u64,
    /// The port is gone.
    closed: bool,
}

/// The two ends of a handover, for the port of that name.
///
/// # Errors
/// The kernel's, when there are no descriptors left, or it refuses `io_setup`.
pub fn handover(name: impl Into<String>) -> io::Result<(Switch, Intake)> {
    let event = || EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC);
    let shared = Arc::new(Shared {
        name: name.into(),
        generation: AtomicU64::new(0),
        desk: Mutex::default(),
        let_go: Condvar::new(),
        call: event()?,
        report: event()?,
    });
    let ringer = Ringer::new()?;
    Ok((Switch { shared: Arc::clone(&shared), ringer }, Intake { shared, seen: 0 }))
}

impl Shared {
    fn desk(&self) -> MutexGuard<'_, Desk> {
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the port that something on the desk changed.
    fn turn_over(&self, desk: MutexGuard<'_, Desk>) {
        self.generation.fetch_add(1, Ordering::Release);
        drop(desk);
        ring(&self.call);
    }
}

/// The session's end of a queue pair.
pub struct Switch {
    shared: Arc<Shared>,
    ringer: Ringer,
}

impl Switch {
    /// Lets the port serve a pair. One that it still serves is replaced; one that it has not come to is forgotten.
    pub fn start(&self, setup: PairSetup) {
        let mut desk = self.shared.desk();
        if desk.closed {
            return;
        }
        desk.bells = [&setup.rx, &setup.tx].map(|ring| ring.as_ref().and_then(|ring| ring.call.clone()));
        desk.offer = Some(Box::new(setup));
        self.shared.turn_over(desk);
    }

    /// Takes the pair back and says where its rings stand; when it returns, the port uses none of its memory.
    ///
    /// # Errors
    /// [`StopError::Busy`] after `patience`. The memory stays mapped for as long as the port holds on to it.
    pub fn stop(&self, patience: Duration) -> Result<Bases, StopError> {
        let mut desk = self.shared.desk();
        let offer = desk.offer.take();
        if !desk.held {
            if let Some(offer) = offer {
                desk.bases = offer.bases();
            }
            return Ok(desk.bases);
        }
        desk.recall = true;
        self.shared.turn_over(desk);
        let (desk, timeout) = self
            .shared
            .let_go
            .wait_timeout_while(self.shared.desk(), patience, |desk| desk.held)
            .unwrap_or_else(PoisonError::into_inner);
        if timeout.timed_out() && desk.held {
            return Err(StopError::Busy { port: self.shared.name.clone(), waited: patience });
        }
        // Where an offer was waiting, its rings are the ones that the session speaks of.
        let bases = offer.map_or(desk.bases, |offer| offer.bases());
        drop(desk);
        self.ring_bells();
        Ok(bases)
    }

    /// Tells the guest what the port wants it told.
    pub fn ring_bells(&self) {
        let bells = self.shared.desk().bells.clone();
        for bell in bells.iter().flatten().filter(|bell| bell.take_want()) {
            if let Err(error) = self.ringer.ring(bell) {
                tracing::error!("{}: the guest is not told of its packets: {error}", self.shared.name);
            }
        }
    }

    /// Why a ring stopped, told once.
    #[must_use]
    pub fn fault(&self) -> Option<RingFault> {
        // Nobody else reads it; one that was not rung has nothing to forget.
        let _ = self.shared.report.read();
        self.shared.desk().fault.take()
    }

    /// Rings that stopped since the beginning.
    #[must_use]
    pub fn faults(&self) -> u64 {
        self.shared.desk().faults
    }

    /// Whether the port serves a pair.
    #[must_use]
    pub fn is_served(&self) -> bool {
        self.shared.desk().held
    }

    /// Whether the port was closed: nobody serves the pair any more.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.shared.desk().closed
    }

    /// A descriptor that becomes readable when [`Switch::fault`] has something to say, or [`Switch::ring_bells`] something
    /// to do; the former makes it quiet again, so it is to be asked first.
    #[must_use]
    pub fn reports(&self) -> BorrowedFd<'_> {
        borrow(&self.shared.report)
    }
}

impl PairSetup {
    fn bases(&self) -> Bases {
        let base = |ring: &Option<RingSetup>| ring.as_ref().map(|ring| ring.base);
        Bases { rx: base(&self.rx), tx: base(&self.tx) }
    }
}

/// The port's end of a queue pair.
pub struct Intake {
    shared: Arc<Shared>,
    /// The generation that was acted upon.
    seen: u64,
}

/// What the session wants.
pub(crate) enum Wish {
    /// Let go, see [`Intake::let_go`].
    Stop,
    /// Let go of what is held, if anything, and serve this.
    Start(Box<PairSetup>),
}

impl Intake {
    /// The port's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// Whether the session may want something.
    #[inline(always)]
    pub(crate) fn is_due(&self) -> bool {
        self.shared.generation.load(Ordering::Acquire) != self.seen
    }

    /// What it wants; `None` also when it is at the desk itself just now, then [`Intake::is_due`] stays true.
    #[cold]
    pub(crate) fn wish(&mut self) -> Option<Wish> {
        let mut desk = match self.shared.desk.try_lock() {
            Ok(desk) => desk,
            Err(std::sync::TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(std::sync::TryLockError::WouldBlock) => return None,
        };
        self.seen = self.shared.generation.load(Ordering::Acquire);
        // One that was not rung has nothing to forget.
        let _ = self.shared.call.read();
        if let Some(setup) = desk.offer.take() {
            (desk.recall, desk.held) = (false, true);
            return Some(Wish::Start(setup));
        }
        std::mem::take(&mut desk.recall).then_some(Wish::Stop)
    }

    /// Says that nothing of the pair is used any more, and where its rings stand.
    #[cold]
    pub(crate) fn let_go(&self, bases: Bases) {
        let mut desk = self.shared.desk();
        (desk.held, desk.bases) = (false, bases);
        drop(desk);
        self.shared.let_go.notify_all();
    }

    /// Tells the session why a ring stopped.
    #[cold]
    pub(crate) fn report(&self, fault: RingFault) {
        let mut desk = self.shared.desk();
        desk.faults += 1;
        desk.fault.get_or_insert(fault);
        drop(desk);
        ring(&self.shared.report);
    }

    /// Wakes the session: a bell is to be rung.
    #[cold]
    pub(crate) fn wake_session(&self) {
        ring(&self.shared.report);
    }

    /// A descriptor that becomes readable when the session wants something.
    pub(crate) fn called(&self) -> BorrowedFd<'_> {
        borrow(&self.shared.call)
    }
}

impl Drop for Intake {
    fn drop(&mut self) {
        let mut desk = self.shared.desk();
        (desk.closed, desk.held, desk.offer) = (true, false, None);
        drop(desk);
        self.shared.let_go.notify_all();
    }
}

/// A counter that is full wakes as well as one that was written to.
fn ring(event: &EventFd) {
    let _ = event.write(1);
}

fn borrow(event: &EventFd) -> BorrowedFd<'_> {
    // SAFETY: the descriptor is open for as long as `event` is borrowed.
    unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) }
}
