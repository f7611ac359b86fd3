//! One connection, from its first message to its ending.

use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use vhost::vhost_user::BackendReqHandler;
use vhost::vhost_user::message::VhostUserProtocolFeatures as Protocol;

use super::device::Device;
use super::handler::{Answer, has_body, is_ours};
use super::refusal::{Ending, Refusal};
use super::wire::{Header, Look, Wire, number};
use crate::handover::Switch;

/// How soon a message whose beginning is there is looked at again.
const GLANCE: Duration = Duration::from_millis(5);

/// What there is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// A message was served; there may be another.
    Served,
    /// There is none.
    Idle,
    /// There is a part of one: look again after this time.
    Wait(Duration),
}

/// A connection with its device.
pub(super) struct Connection {
    wire: Wire,
    handler: BackendReqHandler<Mutex<Device>>,
    device: Arc<Mutex<Device>>,
    switches: Arc<[Switch]>,
    /// A ring was started at some time.
    pub(super) worked: bool,
}

impl Connection {
    pub(super) fn new(
        stream: UnixStream,
        switches: Arc<[Switch]>,
        offered: u64,
    ) -> std::io::Result<Connection> {
        // The crate reads what is there whole, and writes what has room: neither waits.
        stream.set_nonblocking(false)?;
        let device = Arc::new(Mutex::new(Device::new(Arc::clone(&switches), offered)));
        let handler = BackendReqHandler::from_stream(stream.try_clone()?, Arc::clone(&device));
        Ok(Connection { wire: Wire::new(stream), handler, device, switches, worked: false })
    }

    pub(super) fn device(&self) -> MutexGuard<'_, Device> {
        self.device.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Serves one message, if one is there. A panic in it is a bug of ours that ends this connection alone.
    ///
    /// # Errors
    /// The connection's [`Ending`].
    pub(super) fn step(&mut self) -> Result<Step, Ending> {
        match catch_unwind(AssertUnwindSafe(|| self.serve())) {
            Ok(outcome) => outcome,
            Err(panic) => {
                let words = panic.downcast_ref::<String>().map(String::as_str);
                let words = words.or_else(|| panic.downcast_ref::<&str>().copied());
                Err(Ending::Bug(words.unwrap_or("a panic").to_owned()))
            }
        }
    }

    fn serve(&mut self) -> Result<Step, Ending> {
        self.rings()?;
        match self.wire.look()? {
            Look::Nothing => Ok(Step::Idle),
            Look::Part => Ok(Step::Wait(GLANCE)),
            Look::Whole(header) if is_ours(header.request) => self.serve_ours(header).map(|()| Step::Served),
            Look::Whole(header) => {
                let outcome = self.handler.handle_request();
                outcome.map_err(|said| Ending::of_protocol(header.request, said))?;
                Ok(Step::Served)
            }
        }
    }

    fn serve_ours(&mut self, header: Header) -> Result<(), Ending> {
        let body = self.wire.take(header)?;
        let value = if has_body(header.request) { number(header, &body)? } else { 0 };
        let mut device = self.device();
        let answer = device.serve(header.request, value)?;
        let acknowledged = header.needs_reply && device.has_agreed(Protocol::REPLY_ACK.bits());
        drop(device);
        match answer {
            Answer::Value(value) => self.wire.reply(header, value),
            Answer::Acknowledgement(value) if acknowledged => self.wire.reply(header, value),
            Answer::Acknowledgement(_) => Ok(()),
        }
    }

    /// Rings the bells that workers want rung; whether one of them reported what a ring cannot be.
    fn rings(&self) -> Result<(), Ending> {
        for (pair, switch) in self.switches.iter().enumerate() {
            let fault = switch.fault();
            switch.ring_bells();
            if let Some(fault) = fault {
                return Err(Ending::Ring { pair, fault });
            }
        }
        Ok(())
    }

    /// Descriptors that have something to say: the socket, then each pair's.
    pub(super) fn waits(&self) -> impl Iterator<Item = libc::pollfd> {
        let wait = |fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        std::iter::once(wait(self.wire.as_raw_fd()))
            .chain(self.switches.iter().map(move |switch| wait(switch.reports().as_fd().as_raw_fd())))
    }

    /// Whether the peer has hung up.
    pub(super) fn is_over(&self) -> bool {
        self.wire.is_cut_off()
    }

    /// Takes every pair back from its worker.
    ///
    /// # Errors
    /// A worker does not let go: to be tried again.
    pub(super) fn end(&self) -> Result<(), Refusal> {
        self.device().end()
    }
}
