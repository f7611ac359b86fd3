//! The session's thread: finds a peer, serves it to its ending, and finds the next.

use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tracing::{info, warn};
use vmm_sys_util::eventfd::EventFd;

use super::connection::{Connection, Step};
use super::refusal::Ending;
use super::socket::{self, Served};
use super::{SessionConfig, State, Status};
use crate::features;
use crate::handover::Switch;

/// The first pause before a client connects again, or before a server takes the next peer after one that was to blame;
/// each further one is twice as long.
const SHORTEST: Duration = Duration::from_millis(20);
/// The longest of a client.
const LONGEST: Duration = Duration::from_secs(1);
/// The longest of a server: a good peer may be waiting.
const LONGEST_SERVING: Duration = Duration::from_millis(200);

/// What the thread works with.
pub(super) struct Runner {
    path: PathBuf,
    features: u64,
    served: Option<Served>,
    switches: Arc<[Switch]>,
    status: Arc<Mutex<Status>>,
    stop: Arc<EventFd>,
    pause: Duration,
}

/// The session is to end.
struct Stopped;

impl Runner {
    pub(super) fn new(
        config: &SessionConfig,
        served: Option<Served>,
        switches: Arc<[Switch]>,
        status: Arc<Mutex<Status>>,
        stop: Arc<EventFd>,
    ) -> Runner {
        let several = if config.pairs > 1 { features::MQ } else { 0 };
        let (path, features) = (config.path.clone(), config.features | several);
        Runner { path, features, served, switches, status, stop, pause: SHORTEST }
    }

    /// Serves the peer at the other end of `stream`, or one peer after the other until told to stop.
    pub(super) fn run(mut self, stream: Option<UnixStream>) {
        // Either way it ends because somebody asked for it, or because the one connection is over.
        let _ = match stream {
            Some(stream) => self.serve(stream).map(|_| ()),
            None => self.serve_all(),
        };
    }

    fn serve_all(&mut self) -> Result<(), Stopped> {
        loop {
            let stream = match &self.served {
                Some(_) => self.await_peer()?,
                None => self.reach_peer()?,
            };
            let blamed = self.serve(stream)?;
            // A peer that makes and ends connections without a pause must not keep us and the log busy.
            if blamed || self.served.is_none() {
                self.rest()?;
            }
        }
    }

    fn status(&self) -> MutexGuard<'_, Status> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for one of the descriptors, or for the session's end.
    fn wait(
        &self,
        waits: impl IntoIterator<Item = libc::pollfd>,
        patience: Option<Duration>,
    ) -> Result<(), Stopped> {
        let stop = libc::pollfd { fd: self.stop.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        let mut waits: Vec<libc::pollfd> = std::iter::once(stop).chain(waits).collect();
        // Rounded up, so that a short wait is none that spins.
        let millis = patience.map_or(-1, |time| time.as_millis().max(1) as libc::c_int);
        // SAFETY: the structures are exclusively borrowed, and their count is right.
        unsafe { libc::poll(waits.as_mut_ptr(), waits.len() as libc::nfds_t, millis) };
        if waits[0].revents != 0 { Err(Stopped) } else { Ok(()) }
    }

    /// As a server: the next peer.
    fn await_peer(&self) -> Result<UnixStream, Stopped> {
        loop {
            if let Some(stream) = self.accept() {
                return Ok(stream);
            }
            self.wait(self.listener().map(readable), None)?;
        }
    }

    fn listener(&self) -> Option<RawFd> {
        self.served.as_ref().map(|served| served.listener.as_raw_fd())
    }

    fn accept(&self) -> Option<UnixStream> {
        match self.served.as_ref()?.accept() {
            Ok(stream) => stream,
            Err(error) => {
                // Out of descriptors, most likely: the peer waits in the queue; neither it nor we are to spin.
                self.tell(&format!("accept failed: {error}; raise the limit of open files"));
                std::thread::sleep(SHORTEST);
                None
            }
        }
    }

    /// As a client: connects, again and again.
    fn reach_peer(&mut self) -> Result<UnixStream, Stopped> {
        loop {
            match socket::connect(&self.path) {
                Ok(stream) => return Ok(stream),
                Err(error) => self.tell(&error.to_string()),
            }
            self.rest()?;
        }
    }

    /// Keeps a reason; says it if it is news.
    fn tell(&self, reason: &str) {
        let mut status = self.status();
        if status.reason.as_deref() != Some(reason) {
            info!(port = status.name, "vhost-user: {reason}");
            status.reason = Some(reason.to_owned());
        }
    }

    fn rest(&mut self) -> Result<(), Stopped> {
        let pause = self.pause;
        self.pause = (2 * pause).min(if self.served.is_some() { LONGEST_SERVING } else { LONGEST });
        self.wait([], Some(pause))
    }

    /// Serves a peer to the connection's ending; whether it was to blame for that.
    fn serve(&mut self, stream: UnixStream) -> Result<bool, Stopped> {
        // What a former peer's rings were blamed for is not this one's.
        for switch in self.switches.iter() {
            let _ = switch.fault();
        }
        let mut connection = match Connection::new(stream, Arc::clone(&self.switches), self.features) {
            Ok(connection) => connection,
            Err(error) => {
                self.tell(&Ending::Socket(error).to_string());
                return Ok(true);
            }
        };
        self.status().connections += 1;
        let outcome = self.converse(&mut connection);
        self.clear(&connection)?;
        let ending = outcome?;
        if connection.worked && !ending.is_fault() {
            self.pause = SHORTEST;
        }
        self.conclude(&ending);
        Ok(ending.is_fault())
    }

    /// Messages and reports, until the connection ends.
    fn converse(&self, connection: &mut Connection) -> Result<Ending, Stopped> {
        loop {
            let step = connection.step();
            self.publish(connection);
            let patience = match step {
                Err(ending) => return Ok(ending),
                // Between two messages as well, the session may be told to end.
                Ok(Step::Served) => Some(Duration::ZERO),
                Ok(Step::Wait(time)) => Some(time),
                Ok(Step::Idle) => None,
            };
            match patience {
                Some(Duration::ZERO) => self.glance()?,
                // The socket is readable all the while: only the rest is waited for.
                Some(time) => self.wait(connection.waits().skip(1), Some(time))?,
                None => {
                    self.wait(connection.waits().chain(self.listener().map(readable)), None)?;
                    self.turn_away(connection);
                }
            }
        }
    }

    /// Whether the session is to end, without waiting.
    fn glance(&self) -> Result<(), Stopped> {
        if self.stop.read().is_ok() {
            // It stays rung for whoever looks next.
            let _ = self.stop.write(1);
            return Err(Stopped);
        }
        Ok(())
    }

    /// A second peer while the first is there is told so by being hung up on. One that is gone makes room.
    fn turn_away(&self, connection: &Connection) {
        if self.served.is_none() || connection.is_over() {
            return;
        }
        if let Some(stream) = self.accept() {
            drop(stream);
            let mut status = self.status();
            status.turned_away += 1;
            warn!(
                port = status.name,
                "vhost-user: a second front-end was turned away: one is connected already"
            );
        }
    }

    /// Takes everything back from the workers; a worker that does not let go is waited for.
    fn clear(&self, connection: &Connection) -> Result<(), Stopped> {
        while let Err(refusal) = connection.end() {
            self.status().state = State::Clearing;
            self.tell(&refusal.to_string());
            self.glance()?;
        }
        Ok(())
    }

    fn publish(&self, connection: &mut Connection) {
        let mut status = self.status();
        let device = connection.device();
        status.rings.clear();
        status.rings.extend(device.ring_status());
        let running = status.rings.iter().any(|ring| ring.started);
        status.state = if running { State::Running } else { State::Negotiating };
        (status.features, status.protocol) = (device.acknowledged.unwrap_or(0), device.protocol.unwrap_or(0));
        status.mtu = device.mtu;
        drop(device);
        connection.worked |= running;
    }

    fn conclude(&self, ending: &Ending) {
        let mut status = self.status();
        status.state = State::Waiting;
        (status.features, status.protocol, status.mtu) = (0, 0, None);
        status.rings.clear();
        status.reason = Some(ending.to_string());
        if ending.is_fault() {
            status.faults += 1;
            status.fault = status.reason.clone();
            warn!(port = status.name, "vhost-user: {ending}");
        } else {
            info!(port = status.name, "vhost-user: {ending}");
        }
    }
}

fn readable(fd: RawFd) -> libc::pollfd {
    libc::pollfd { fd, events: libc::POLLIN, revents: 0 }
}
