//! What a worker does when no packet comes: spin, or back off and sleep until something happens.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

use mio::unix::SourceFd;
use penstock_io::{Ticks, TicksPerSecond};

/// How a worker waits for packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Idle {
    /// Never sleeps: the core is the dataplane's alone.
    Poll,
    /// Spins for a moment, then blocks until a port, a mailbox or the control thread wakes it.
    #[default]
    Adaptive,
}

/// How long an adaptive worker spins after the last packet: a few wake-ups' worth, so that a busy conversation finds it
/// awake, and short enough that its sleep leaves the core to others.
const SPIN: Duration = Duration::from_micros(50);
/// The longest sleep: housekeeping (ageing of flows, packets that wait) goes on at this pace.
const LONGEST: Duration = Duration::from_millis(100);
/// The sleep of a worker with frames that a device has not sent yet, or with a port that cannot wake it.
const SHORTEST: Duration = Duration::from_millis(1);

/// The token of the bell; ports have none that anybody looks at.
const BELL: mio::Token = mio::Token(0);

/// A worker's waiting: when to sleep, and what wakes it.
pub(crate) struct Sleeper {
    mode: Idle,
    poll: mio::Poll,
    events: mio::Events,
    last_work: Ticks,
    spin: u64,
}

impl Sleeper {
    pub(crate) fn new(mode: Idle, rate: TicksPerSecond) -> io::Result<(Sleeper, mio::Waker)> {
        let poll = mio::Poll::new()?;
        let waker = mio::Waker::new(poll.registry(), BELL)?;
        let events = mio::Events::with_capacity(64);
        Ok((Sleeper { mode, poll, events, last_work: Ticks::default(), spin: rate.ticks(SPIN) }, waker))
    }

    /// Lets a port's descriptor wake the worker. Edges are remembered from here on, so none that comes before the worker
    /// sleeps is lost.
    pub(crate) fn watch(&mut self, fd: BorrowedFd<'_>) -> io::Result<()> {
        self.poll.registry().register(&mut SourceFd(&fd.as_raw_fd()), mio::Token(1), mio::Interest::READABLE)
    }

    pub(crate) fn forget(&mut self, fd: BorrowedFd<'_>) {
        // A descriptor that is closed is forgotten by the kernel anyway.
        let _ = self.poll.registry().deregister(&mut SourceFd(&fd.as_raw_fd()));
    }

    /// Whether to sleep after a turn.
    #[inline]
    pub(crate) fn is_time(&mut self, worked: bool, now: Ticks) -> bool {
        if worked {
            self.last_work = now;
        }
        self.mode == Idle::Adaptive && now.since(self.last_work) > self.spin
    }

    /// Sleeps until woken; `restless` when somebody may not be able to wake us. Who was woken by somebody stays awake for a
    /// while: more is likely to come.
    pub(crate) fn sleep(&mut self, restless: bool) {
        let longest = if restless { SHORTEST } else { LONGEST };
        match self.poll.poll(&mut self.events, Some(longest)) {
            Ok(()) if self.events.is_empty() => {}
            Ok(()) => self.last_work = Ticks::now(),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                tracing::error!("a worker cannot wait for its ports: {error}");
                std::thread::sleep(SHORTEST);
            }
        }
    }
}
