//! An accelerated pod: front-end and driver of one network device, in this process.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use thiserror::Error;

use super::area::Area;
use super::bits;
use super::message::{self, RegionRow};
use super::messenger::{Messenger, NEED_REPLY};
use super::queue::{Layout, NET_HEADER, NetHeader, Packet, Queue};
use super::request::{self, protocol};
use super::ring::RingOptions;

/// Where the guest sees its first area; each further one a gigabyte on.
const GUEST_BASE: u64 = 0x1_0000_0000;

/// How a pod is made.
#[derive(Clone, Debug)]
pub struct PodConfig {
    /// Queue pairs.
    pub pairs: u16,
    /// Descriptors of each ring.
    pub size: u16,
    /// Virtio features that it takes if they are offered.
    pub features: u64,
    /// Protocol features that it takes if they are offered.
    pub protocol: u64,
    /// The largest packet without its Ethernet header.
    pub mtu: usize,
    /// Bytes of one buffer, virtio header included where it begins a packet.
    pub buffer: usize,
    /// How packets that it sends are laid out.
    pub layout: Layout,
    /// Index with which split rings begin.
    pub first_index: u16,
}

impl Default for PodConfig {
    fn default() -> PodConfig {
        PodConfig {
            pairs: 1,
            size: 256,
            features: bits::VERSION_1
                | bits::PROTOCOL_FEATURES
                | bits::MRG_RXBUF
                | bits::INDIRECT_DESC
                | bits::MQ,
            protocol: protocol::MQ | protocol::REPLY_ACK | protocol::CONFIGURE_MEM_SLOTS | protocol::STATUS,
            mtu: 1500,
            buffer: 2048,
            layout: Layout::Joined,
            first_index: 0,
        }
    }
}

/// Why a pod and its back-end did not come together.
#[derive(Debug, Error)]
pub enum PodError {
    /// The socket, or memory.
    #[error("pod: {what}: {source}")]
    System {
        /// What was to be done.
        what: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The back-end said no.
    #[error("pod: the back-end refused request {request}")]
    Refused {
        /// The request's number.
        request: u32,
    },
    /// The back-end lacks what this pod cannot do without.
    #[error("pod: the back-end offers features {offered:#x}, and {missing:#x} are missing")]
    Missing {
        /// What it offers.
        offered: u64,
        /// What is missing.
        missing: u64,
    },
    /// There is no session.
    #[error("pod: not connected")]
    Apart,
}

fn failed(what: &'static str) -> impl FnOnce(io::Error) -> PodError {
    move |source| PodError::System { what, source }
}

/// An accelerated pod.
pub struct Pod {
    config: PodConfig,
    areas: Vec<Arc<Area>>,
    /// Even: what it receives; odd: what it sends.
    queues: Vec<Queue>,
    session: Option<Messenger>,
    /// Virtio features agreed upon; fixed by the first session, since the rings are laid out for them.
    features: Option<u64>,
    protocol: u64,
    /// The record of descriptors in flight that the back-end made: its file, size and offset.
    inflight: Option<(OwnedFd, u64, u64)>,
    /// The pair whose packets are looked at first next time.
    turn: usize,
}

impl fmt::Debug for Pod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pod")
            .field("config", &self.config)
            .field("features", &self.features)
            .finish_non_exhaustive()
    }
}

impl Pod {
    /// A pod that is not connected to anything.
    #[must_use]
    pub fn new(config: PodConfig) -> Pod {
        Pod {
            config,
            areas: Vec::new(),
            queues: Vec::new(),
            session: None,
            features: None,
            protocol: 0,
            inflight: None,
            turn: 0,
        }
    }

    /// A pod connected to the back-end that serves `path`, tried for as long as `patience`.
    ///
    /// # Errors
    /// [`PodError`].
    pub fn connect(path: &Path, patience: Duration, config: PodConfig) -> Result<Pod, PodError> {
        let mut pod = Pod::new(config);
        pod.attach(dial(path, patience).map_err(failed("connect"))?)?;
        Ok(pod)
    }

    /// A pod with the back-end that connects to `listener` within `patience`.
    ///
    /// # Errors
    /// [`PodError`].
    pub fn accept(listener: &UnixListener, patience: Duration, config: PodConfig) -> Result<Pod, PodError> {
        let mut pod = Pod::new(config);
        pod.attach(answer(listener, patience).map_err(failed("accept"))?)?;
        Ok(pod)
    }

    /// Negotiates over a fresh connection and starts the rings: empty ones the first time, later where a back-end that is
    /// gone left them.
    ///
    /// # Errors
    /// [`PodError`]; the pod is then not connected.
    pub fn attach(&mut self, stream: UnixStream) -> Result<(), PodError> {
        self.session = Some(Messenger::new(stream).map_err(failed("socket"))?);
        let outcome = self.negotiate().and_then(|()| self.start());
        if outcome.is_err() {
            self.session = None;
        }
        outcome
    }

    fn negotiate(&mut self) -> Result<(), PodError> {
        let offered = self.ask(request::GET_FEATURES)?;
        let features = self.features.unwrap_or(offered & self.config.features);
        let missing = features & !offered | bits::VERSION_1 & !features;
        if missing != 0 {
            return Err(PodError::Missing { offered, missing });
        }
        self.protocol = 0;
        if features & bits::PROTOCOL_FEATURES != 0 {
            let wanted = self.ask(request::GET_PROTOCOL_FEATURES)? & self.config.protocol;
            self.tell(request::SET_PROTOCOL_FEATURES, &message::number(wanted), &[])?;
            self.protocol = wanted;
        }
        self.tell(request::SET_OWNER, &[], &[])?;
        if self.protocol & protocol::MQ != 0 {
            let most = self.ask(request::GET_QUEUE_NUM)?;
            if most < u64::from(self.config.pairs) {
                return Err(PodError::Refused { request: request::GET_QUEUE_NUM });
            }
        }
        if self.features.is_none() {
            self.features = Some(features);
            self.lay_out(features).map_err(failed("memory"))?;
        }
        self.status(0)?;
        // Acknowledge, driver, features agreed upon (virtio 1.2 section 2.1).
        self.status(1 | 2)?;
        self.tell(request::SET_FEATURES, &message::number(features), &[])?;
        self.status(1 | 2 | 8)
    }

    /// Makes memory, rings and buffers.
    fn lay_out(&mut self, features: u64) -> io::Result<()> {
        let options = RingOptions {
            size: self.config.size,
            packed: features & bits::RING_PACKED != 0,
            event_index: features & bits::EVENT_IDX != 0,
            in_order: features & bits::IN_ORDER != 0,
            first: self.config.first_index,
        };
        let (queues, size) = (2 * usize::from(self.config.pairs), usize::from(self.config.size));
        // Rings with their tables, and as many buffers as descriptors.
        let rings = Arc::new(Area::new(queues * size * 2048, GUEST_BASE)?);
        let buffers =
            Area::new(queues * size * self.config.buffer.next_multiple_of(64), GUEST_BASE + (1 << 30))?;
        let buffers = Arc::new(buffers);
        for _ in 0..queues {
            let mut queue = Queue::new(&rings, options, self.config.buffer, self.config.layout)?;
            queue.add_slots(&buffers, size);
            self.queues.push(queue);
        }
        self.areas = vec![rings, buffers];
        Ok(())
    }

    /// Shares memory and rings; the back-end may work from here on.
    fn start(&mut self) -> Result<(), PodError> {
        self.share_inflight()?;
        self.share_memory()?;
        for index in 0..self.queues.len() {
            self.start_ring(index)?;
        }
        if self.features.unwrap_or(0) & bits::PROTOCOL_FEATURES != 0 {
            for pair in 0..self.config.pairs {
                self.enable(pair, true)?;
            }
        }
        // Driver ready (virtio 1.2 section 2.1).
        self.status(1 | 2 | 8 | 4)?;
        self.post();
        // What was offered to a back-end that is gone has been told to nobody.
        self.queues.iter_mut().for_each(Queue::ring_bell);
        Ok(())
    }

    fn share_inflight(&mut self) -> Result<(), PodError> {
        if self.protocol & protocol::INFLIGHT_SHMFD == 0 {
            return Ok(());
        }
        let (queues, size) = (self.queues.len() as u16, self.config.size);
        if self.inflight.is_none() {
            let session = self.session()?;
            let body = message::inflight(0, 0, queues, size);
            session.send(request::GET_INFLIGHT_FD, 0, &body, &[]).map_err(failed("GET_INFLIGHT_FD"))?;
            let (said, file) = session.reply(request::GET_INFLIGHT_FD).map_err(failed("GET_INFLIGHT_FD"))?;
            let number = |at: usize| said.get(at..).and_then(message::first_number);
            let (Some(file), Some(bytes), Some(offset)) = (file, number(0), number(8)) else {
                return Err(PodError::Refused { request: request::GET_INFLIGHT_FD });
            };
            self.inflight = Some((file, bytes, offset));
        }
        let Some((file, bytes, offset)) = &self.inflight else { return Ok(()) };
        let body = message::inflight(*bytes, *offset, queues, size);
        self.tell(request::SET_INFLIGHT_FD, &body, &[file.as_fd()])
    }

    fn rows(&self) -> Vec<RegionRow> {
        self.areas.iter().map(|area| row(area)).collect()
    }

    fn share_memory(&self) -> Result<(), PodError> {
        let files: Vec<BorrowedFd<'_>> = self.areas.iter().map(|area| area.file()).collect();
        self.tell(request::SET_MEM_TABLE, &message::memory_table(&self.rows()), &files)
    }

    fn start_ring(&self, index: usize) -> Result<(), PodError> {
        let queue = &self.queues[index];
        let number = index as u32;
        self.tell(request::SET_VRING_CALL, &message::number(index as u64), &[as_fd(&queue.call)])?;
        self.tell(request::SET_VRING_NUM, &message::ring_state(number, self.config.size.into()), &[])?;
        self.tell(request::SET_VRING_BASE, &message::ring_state(number, queue.ring.base()), &[])?;
        self.tell(request::SET_VRING_ADDR, &message::ring_addresses(number, queue.ring.addresses()), &[])?;
        self.tell(request::SET_VRING_KICK, &message::number(index as u64), &[as_fd(&queue.kick)])
    }

    /// Enables or disables the rings of a pair.
    ///
    /// # Errors
    /// [`PodError`].
    pub fn enable(&self, pair: u16, enabled: bool) -> Result<(), PodError> {
        for index in [2 * u32::from(pair), 2 * u32::from(pair) + 1] {
            self.tell(request::SET_VRING_ENABLE, &message::ring_state(index, enabled.into()), &[])?;
        }
        Ok(())
    }

    /// Stops all rings; where the back-end says they stand. The session stays.
    ///
    /// # Errors
    /// [`PodError`].
    pub fn stop(&self) -> Result<Vec<u32>, PodError> {
        let session = self.session()?;
        let stop = |index: u32| {
            session.send(request::GET_VRING_BASE, 0, &message::ring_state(index, 0), &[])?;
            let (body, _) = session.reply(request::GET_VRING_BASE)?;
            Ok(message::first_number(&body).map_or(0, |word| (word >> 32) as u32))
        };
        (0..self.queues.len() as u32).map(stop).collect::<io::Result<_>>().map_err(failed("GET_VRING_BASE"))
    }

    /// Starts the rings again after [`Pod::stop`].
    ///
    /// # Errors
    /// [`PodError`].
    pub fn restart(&mut self) -> Result<(), PodError> {
        (0..self.queues.len()).try_for_each(|index| self.start_ring(index))?;
        self.queues.iter_mut().for_each(Queue::ring_bell);
        Ok(())
    }

    /// Shares one more area and takes new buffers from it alone; the old area stays shared.
    ///
    /// # Errors
    /// [`PodError`].
    pub fn extend_memory(&mut self) -> Result<(), PodError> {
        let slots = usize::from(self.config.size);
        let bytes = self.queues.len() * slots * self.config.buffer.next_multiple_of(64);
        let at = self.areas.iter().map(|area| area.guest()).max().unwrap_or(GUEST_BASE) + (1 << 30);
        let area = Arc::new(Area::new(bytes, at).map_err(failed("memory"))?);
        self.areas.push(Arc::clone(&area));
        if self.protocol & protocol::CONFIGURE_MEM_SLOTS != 0 {
            self.tell(request::ADD_MEM_REG, &message::memory_region(row(&area)), &[area.file()])?;
        } else {
            self.share_memory()?;
        }
        self.queues.iter_mut().for_each(|queue| queue.add_slots(&area, slots));
        Ok(())
    }

    /// Takes the oldest area of buffers out of use and, once none of them is with the device, away from the back-end;
    /// whether it is gone. To be called until it is, with traffic between.
    ///
    /// # Errors
    /// [`PodError`].
    pub fn shrink_memory(&mut self) -> Result<bool, PodError> {
        let Some(oldest) = self.areas.get(1).cloned() else { return Ok(true) };
        if !self.queues.iter_mut().map(|queue| queue.retire(&oldest)).fold(true, |all, one| all & one) {
            return Ok(false);
        }
        self.areas.remove(1);
        if self.protocol & protocol::CONFIGURE_MEM_SLOTS != 0 {
            self.tell(request::REM_MEM_REG, &message::memory_region(row(&oldest)), &[])?;
        } else {
            self.share_memory()?;
        }
        Ok(true)
    }

    /// Sends a packet on a pair; whether there was room.
    pub fn send(&mut self, pair: u16, packet: &[u8]) -> bool {
        self.send_with(pair, NetHeader::default(), packet)
    }

    /// Sends a packet with a header of its own; whether there was room.
    pub fn send_with(&mut self, pair: u16, header: NetHeader, packet: &[u8]) -> bool {
        let queue = &mut self.queues[2 * usize::from(pair) + 1];
        queue.reclaim();
        let sent = queue.send(header, packet);
        queue.publish();
        sent
    }

    /// The next packet received on a pair; its buffers are offered again.
    pub fn receive(&mut self, pair: u16) -> Option<Packet> {
        let slots = self.slots_each();
        let queue = &mut self.queues[2 * usize::from(pair)];
        let packet = queue.receive();
        queue.post(slots);
        queue.publish();
        packet
    }

    /// The next packet received on any pair.
    pub fn receive_any(&mut self) -> Option<Packet> {
        let pairs = usize::from(self.config.pairs);
        for _ in 0..pairs {
            self.turn = (self.turn + 1) % pairs;
            if let Some(packet) = self.receive(self.turn as u16) {
                return Some(packet);
            }
        }
        None
    }

    /// Packets that were sent and not taken by the device yet.
    pub fn unsent(&mut self) -> usize {
        let mut left = 0;
        for queue in self.queues.iter_mut().skip(1).step_by(2) {
            queue.reclaim();
            left += queue.ring.outstanding();
        }
        left
    }

    /// Buffers to receive into that are with the device.
    #[must_use]
    pub fn posted(&self) -> usize {
        self.queues.iter().step_by(2).map(|queue| queue.ring.outstanding()).sum()
    }

    /// Waits until a packet was received, the back-end hung up, or `patience` is over; asks for calls meanwhile.
    pub fn wait(&mut self, patience: Duration) {
        let receiving = || (0..usize::from(self.config.pairs)).map(|pair| 2 * pair);
        for index in receiving() {
            self.queues[index].ring.want_call(true);
        }
        if !receiving().any(|index| self.queues[index].ring.has_used()) {
            let mut waits: Vec<libc::pollfd> = receiving()
                .map(|index| libc::pollfd {
                    fd: self.queues[index].call.as_raw_fd(),
                    events: libc::POLLIN,
                    revents: 0,
                })
                .collect();
            if let Some(session) = &self.session {
                waits.push(libc::pollfd {
                    fd: session.as_fd().as_raw_fd(),
                    events: libc::POLLRDHUP,
                    revents: 0,
                });
            }
            let millis = patience.as_millis().min(i32::MAX as u128) as i32;
            // SAFETY: the structures are exclusively borrowed, and their count is right.
            unsafe { libc::poll(waits.as_mut_ptr(), waits.len() as libc::nfds_t, millis) };
        }
        for index in 0..self.queues.len() {
            let queue = &mut self.queues[index];
            queue.ring.want_call(false);
            // Empty already: nobody called.
            let _ = queue.call.read();
        }
    }

    /// Kicks every ring, asked or not.
    pub fn ring_bells(&mut self) {
        self.queues.iter_mut().for_each(Queue::ring_bell);
    }

    /// Whether there is a session and the back-end has not closed it.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.session.as_ref().is_some_and(|session| !session.is_closed())
    }

    /// Hangs up.
    pub fn detach(&mut self) {
        self.session = None;
    }

    /// Virtio features agreed upon.
    #[must_use]
    pub fn features(&self) -> u64 {
        self.features.unwrap_or(0)
    }

    /// Protocol features agreed upon.
    #[must_use]
    pub fn protocol(&self) -> u64 {
        self.protocol
    }

    /// How it was made.
    #[must_use]
    pub fn config(&self) -> &PodConfig {
        &self.config
    }

    /// Its areas of memory, rings first.
    #[must_use]
    pub fn areas(&self) -> &[Arc<Area>] {
        &self.areas
    }

    /// Kicks that it gave to the device.
    #[must_use]
    pub fn kicks(&self) -> u64 {
        self.queues.iter().map(|queue| queue.kicks).sum()
    }

    /// The session, to write messages of one's own.
    ///
    /// # Errors
    /// [`PodError::Apart`].
    pub fn session(&self) -> Result<&Messenger, PodError> {
        self.session.as_ref().ok_or(PodError::Apart)
    }

    /// Sends a request that is answered by a number, and reads that.
    ///
    /// # Errors
    /// [`PodError`].
    pub fn ask(&self, request: u32) -> Result<u64, PodError> {
        let session = self.session()?;
        session.send(request, 0, &[], &[]).map_err(failed("send"))?;
        let (body, _) = session.reply(request).map_err(failed("receive"))?;
        message::first_number(&body).ok_or(PodError::Refused { request })
    }

    /// Sends a request without an answer of its own; with `REPLY_ACK` it is acknowledged.
    ///
    /// # Errors
    /// [`PodError`].
    pub fn tell(&self, request: u32, body: &[u8], files: &[BorrowedFd<'_>]) -> Result<(), PodError> {
        let session = self.session()?;
        let acknowledged = self.protocol & protocol::REPLY_ACK != 0;
        session
            .send(request, if acknowledged { NEED_REPLY } else { 0 }, body, files)
            .map_err(failed("send"))?;
        if acknowledged {
            let (body, _) = session.reply(request).map_err(failed("acknowledgement"))?;
            if message::first_number(&body) != Some(0) {
                return Err(PodError::Refused { request });
            }
        }
        Ok(())
    }

    /// Tells the device's status, where that is spoken.
    fn status(&self, status: u64) -> Result<(), PodError> {
        if self.protocol & protocol::STATUS == 0 {
            return Ok(());
        }
        self.tell(request::SET_STATUS, &message::number(status), &[])
    }

    /// Offers every free buffer of the rings that receive.
    fn post(&mut self) {
        let slots = self.slots_each();
        for queue in self.queues.iter_mut().step_by(2) {
            queue.ring.want_call(false);
            queue.post(slots);
            queue.publish();
        }
        self.queues.iter_mut().skip(1).step_by(2).for_each(|queue| queue.ring.want_call(false));
    }

    /// Buffers of one chain to receive into: one when packets may fill several chains, else enough for any packet.
    fn slots_each(&self) -> usize {
        if self.features() & bits::MRG_RXBUF != 0 {
            return 1;
        }
        // The Ethernet header, with a VLAN tag.
        let longest =
            if self.features() & bits::GUEST_TSO4 != 0 { 65_535 } else { self.config.mtu } + 18 + NET_HEADER;
        longest.div_ceil(self.config.buffer)
    }
}

fn row(area: &Area) -> RegionRow {
    RegionRow { guest: area.guest(), len: area.len() as u64, user: area.user(), offset: 0 }
}

fn as_fd(event: &vmm_sys_util::eventfd::EventFd) -> BorrowedFd<'_> {
    // SAFETY: the descriptor is open for as long as the event that is borrowed.
    unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) }
}

/// Connects to a socket that may be there only in a moment.
///
/// # Errors
/// What the last attempt failed with.
pub fn dial(path: &Path, patience: Duration) -> io::Result<UnixStream> {
    let end = Instant::now() + patience;
    loop {
        match UnixStream::connect(path) {
            Err(error) if Instant::now() >= end => return Err(error),
            Err(_) => std::thread::sleep(Duration::from_millis(5)),
            Ok(stream) => return Ok(stream),
        }
    }
}

/// Waits for somebody to connect.
///
/// # Errors
/// `TimedOut` when nobody did.
pub fn answer(listener: &UnixListener, patience: Duration) -> io::Result<UnixStream> {
    let mut state = libc::pollfd { fd: listener.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    let millis = patience.as_millis().min(i32::MAX as u128) as i32;
    // SAFETY: one structure, exclusively borrowed.
    if unsafe { libc::poll(&raw mut state, 1, millis) } <= 0 {
        return Err(io::Error::new(io::ErrorKind::TimedOut, "no back-end connected"));
    }
    Ok(listener.accept()?.0)
}
