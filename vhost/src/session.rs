//! The session: one small thread a port that speaks vhost-user with whoever is at the other end of its socket.
//!
//! ```text
//!  socket ── wire ── connection ─┬─ rust-vmm's handler ─┐
//!   (whole messages)             └─ status, MTU ────────┴── device ── handover ── the workers' ports
//! ```
//!
//! A peer that hangs, lies or leaves ends its own connection, with a reason; the session then waits for the next one. As a
//! client it connects, with growing pauses; as a server it listens, and serves one peer at a time.

mod connection;
mod device;
mod handler;
mod refusal;
mod run;
mod socket;
#[cfg(test)]
mod tests;
mod wire;

#[cfg(feature = "driver")]
pub(crate) mod fuzzing;

use std::io;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use thiserror::Error;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

pub use device::RingStatus;
pub use refusal::{Ending, Refusal, Request};
pub use socket::{Access, MAX_PATH, SocketError, check as check_path};

use crate::features;
use crate::handover::{Intake, Switch, handover};
use run::Runner;
use socket::Served;

/// Queue pairs of a device at most: a ring's number has one byte in the messages that carry its doorbells.
pub const MAX_PAIRS: u16 = 128;

/// Which end of the socket is ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The application or QEMU serves the socket; we connect, and connect again.
    Client,
    /// We serve the socket.
    Server(Access),
}

/// What a session is opened with.
#[derive(Clone, Debug)]
pub struct SessionConfig {
    /// The port's name.
    pub name: String,
    /// The socket.
    pub path: PathBuf,
    /// Which end of it is ours.
    pub role: Role,
    /// Queue pairs that a guest may have.
    pub pairs: u16,
    /// Virtio features to offer, see [`features::OFFERED`].
    pub features: u64,
}

impl SessionConfig {
    /// A client's, with one queue pair and all that we offer.
    #[must_use]
    pub fn new(name: impl Into<String>, path: impl Into<PathBuf>) -> SessionConfig {
        SessionConfig {
            name: name.into(),
            path: path.into(),
            role: Role::Client,
            pairs: 1,
            features: features::OFFERED,
        }
    }
}

/// Why a session was not opened.
#[derive(Debug, Error)]
pub enum OpenError {
    /// There is no socket to be had.
    #[error("{name}: {source}")]
    Socket {
        /// The port's name.
        name: String,
        /// Why.
        #[source]
        source: SocketError,
    },
    /// Too many queue pairs, or none.
    #[error("{name}: {pairs} queue pairs; a vhost-user port has 1 to {MAX_PAIRS}")]
    Pairs {
        /// The port's name.
        name: String,
        /// What was asked for.
        pairs: u16,
    },
    /// The kernel refused a thread or a descriptor.
    #[error("{name}: {what}: {source}; raise the limits of this process (LimitNOFILE, TasksMax)")]
    System {
        /// The port's name.
        name: String,
        /// What was to be made.
        what: &'static str,
        /// What it said.
        #[source]
        source: io::Error,
    },
}

/// Where a session stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum State {
    /// Nobody is there yet; a client tries again and again.
    #[default]
    Waiting,
    /// Somebody is there, and no ring is started.
    Negotiating,
    /// A ring is started.
    Running,
    /// The connection is over and a worker has not let go of its memory.
    Clearing,
}

/// What a session can tell of itself.
#[derive(Clone, Debug)]
pub struct Status {
    /// The port's name.
    pub name: String,
    /// The socket.
    pub path: PathBuf,
    /// Which end of it is ours.
    pub role: Role,
    /// Where it stands.
    pub state: State,
    /// Virtio features that both sides acknowledged, see [`features::names`].
    pub features: u64,
    /// Protocol features that both sides acknowledged.
    pub protocol: u64,
    /// The rings: even ones are what the guest receives by, odd ones what it sends by.
    pub rings: Vec<RingStatus>,
    /// Queue pairs that their workers have in hand.
    pub served: usize,
    /// The MTU that the front-end shows its guest, if it said so.
    pub mtu: Option<u16>,
    /// Connections since the session was opened: one more than reconnects.
    pub connections: u64,
    /// Connections that ended because somebody was to blame.
    pub faults: u64,
    /// Peers that came while another was served.
    pub turned_away: u64,
    /// Why the last connection ended, or why there is none.
    pub reason: Option<String>,
    /// Why the last connection ended that somebody was to blame for.
    pub fault: Option<String>,
}

/// A vhost-user session. Dropping it closes it.
pub struct Session {
    status: Arc<Mutex<Status>>,
    switches: Arc<[Switch]>,
    stop: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl Session {
    /// Opens a session; returns it and one intake a queue pair, for the pair's port.
    ///
    /// # Errors
    /// [`OpenError`]. A client whose server is not there is no error: it waits for it.
    pub fn open(config: SessionConfig) -> Result<(Session, Vec<Intake>), OpenError> {
        let name = config.name.clone();
        if config.pairs == 0 || config.pairs > MAX_PAIRS {
            return Err(OpenError::Pairs { name, pairs: config.pairs });
        }
        let served = match config.role {
            Role::Client => socket::check(&config.path).map(|()| None),
            Role::Server(access) => Served::bind(&config.path, access).map(Some),
        };
        let served = served.map_err(|source| OpenError::Socket { name, source })?;
        Session::launch(config, served, None)
    }

    /// Opens a session over a connection that is there already, and ends with it.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn over(stream: UnixStream, config: SessionConfig) -> Result<(Session, Vec<Intake>), OpenError> {
        Session::launch(config, None, Some(stream))
    }

    fn launch(
        config: SessionConfig,
        served: Option<Served>,
        stream: Option<UnixStream>,
    ) -> Result<(Session, Vec<Intake>), OpenError> {
        let failed = |what| {
            let name = config.name.clone();
            move |source| OpenError::System { name, what, source }
        };
        let pair = |_| handover(config.name.clone());
        let pairs: io::Result<Vec<_>> = (0..config.pairs).map(pair).collect();
        let (switches, intakes): (Vec<_>, Vec<_>) =
            pairs.map_err(failed("event descriptor"))?.into_iter().unzip();
        let stop = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(failed("event descriptor"))?;
        let stop = Arc::new(stop);
        let status = Arc::new(Mutex::new(Status::new(&config)));
        let switches: Arc<[Switch]> = switches.into();
        let runner =
            Runner::new(&config, served, Arc::clone(&switches), Arc::clone(&status), Arc::clone(&stop));
        let thread = std::thread::Builder::new().name(thread_name(&config.name));
        let thread = thread.spawn(move || runner.run(stream)).map_err(failed("thread"))?;
        Ok((Session { status, switches, stop, thread: Some(thread) }, intakes))
    }

    /// How it is just now.
    #[must_use]
    pub fn status(&self) -> Status {
        let mut status = self.status.lock().unwrap_or_else(PoisonError::into_inner).clone();
        status.served = self.switches.iter().filter(|switch| switch.is_served()).count();
        status
    }

    /// Hangs up, takes every pair back from its worker and waits until that is done: a burst when the worker works, some
    /// seconds at most when it does not.
    pub fn close(self) {}
}

impl Drop for Session {
    fn drop(&mut self) {
        // A counter that is full wakes as well.
        let _ = self.stop.write(1);
        if let Some(thread) = self.thread.take() {
            // Its panics are caught where they may come from; what is left has been told by the panic hook.
            let _ = thread.join();
        }
    }
}

impl Status {
    fn new(config: &SessionConfig) -> Status {
        Status {
            name: config.name.clone(),
            path: config.path.clone(),
            role: config.role,
            state: State::default(),
            features: 0,
            protocol: 0,
            rings: Vec::new(),
            served: 0,
            mtu: None,
            connections: 0,
            faults: 0,
            turned_away: 0,
            reason: None,
            fault: None,
        }
    }
}

/// The kernel keeps 15 bytes of a thread's name.
fn thread_name(port: &str) -> String {
    let mut name = format!("vhost {port}");
    while name.len() > 15 {
        name.pop();
    }
    name
}
