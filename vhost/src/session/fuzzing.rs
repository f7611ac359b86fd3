//! What the fuzz target `session` does with its bytes: speak them to a session, and hold it to what must be true of any peer.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;

use penstock_io::{Burst, FramePool, Hugepages, Port, Region};
use vmm_sys_util::eventfd::EventFd;

use super::connection::{Connection, Step};
use crate::VhostPort;
use crate::driver::request::{self, protocol};
use crate::driver::{Area, Messenger, RegionRow, RingAddresses, bits, header, message};
use crate::features;
use crate::handover::{Intake, handover};

/// Queue pairs of the device.
const PAIRS: usize = 2;
/// Bytes of the peer's memory.
const MEMORY: usize = 1 << 20;
/// Where its guest sees it.
const GUEST: u64 = 0x10_0000;

/// The bytes as a source of choices; zeros when they are used up.
struct Choices<'a>(&'a [u8]);

impl Choices<'_> {
    fn byte(&mut self) -> u8 {
        let Some((&first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        first
    }

    fn word(&mut self) -> u64 {
        // Small numbers, numbers near a limit, and any.
        let value = u64::from(self.byte());
        match self.byte() % 6 {
            0 => value,
            1 => GUEST + value * 4096,
            2 => u64::MAX - value,
            3 => 1 << (value % 64),
            4 => value << 32 | u64::from(self.byte()),
            _ => (0..8).fold(0, |word, _| word << 8 | u64::from(self.byte())),
        }
    }
}

/// A peer with things to send.
struct Peer {
    messenger: Messenger,
    area: Area,
    event: File,
    null: File,
    log: Area,
}

impl Peer {
    fn new(stream: UnixStream) -> Option<Peer> {
        let event = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).ok()?;
        let event = File::from(owned(&event)?);
        Some(Peer {
            messenger: Messenger::new(stream).ok()?,
            area: Area::new(MEMORY, GUEST).ok()?,
            event,
            null: File::open("/dev/null").ok()?,
            log: Area::new(4096, 0).ok()?,
        })
    }

    fn file(&self, choice: u8) -> BorrowedFd<'_> {
        match choice % 4 {
            0 => self.area.file(),
            1 => self.event.as_fd(),
            2 => self.null.as_fd(),
            _ => self.log.file(),
        }
    }

    fn region(&self) -> RegionRow {
        RegionRow { guest: GUEST, len: MEMORY as u64, user: self.area.user(), offset: 0 }
    }

    /// The steps of a good handshake, one after the other: those that a peer takes before it misbehaves.
    fn good(&self, step: usize, features: u64) {
        let ring = |step: usize| (step / 6) as u32;
        let at = |ring: u32| {
            let start = self.area.user() + u64::from(ring) * 0x4000;
            RingAddresses { descriptors: start, available: start + 0x2000, used: start + 0x3000 }
        };
        let number = message::number;
        let (request, body, file) = match step {
            0 => (request::GET_FEATURES, vec![], None),
            1 => (
                request::SET_PROTOCOL_FEATURES,
                number(super::handler::PROTOCOL.bits() & !protocol::REPLY_ACK),
                None,
            ),
            2 => (request::SET_OWNER, vec![], None),
            3 => (request::SET_FEATURES, number(features), None),
            4 => (request::SET_MEM_TABLE, message::memory_table(&[self.region()]), Some(self.area.file())),
            5 => (request::SET_STATUS, number(15), None),
            _ => {
                let ring = ring(step - 6);
                match (step - 6) % 6 {
                    0 => (request::SET_VRING_NUM, message::ring_state(ring, 256), None),
                    1 => (request::SET_VRING_BASE, message::ring_state(ring, 0), None),
                    2 => (request::SET_VRING_ADDR, message::ring_addresses(ring, at(ring)), None),
                    3 => (request::SET_VRING_CALL, number(ring.into()), Some(self.event.as_fd())),
                    4 => (request::SET_VRING_KICK, number(ring.into()), Some(self.event.as_fd())),
                    _ => (request::SET_VRING_ENABLE, message::ring_state(ring, 1), None),
                }
            }
        };
        // A session that is over does not read; its end is seen by the caller.
        let _ = self.messenger.send(request, 0, &body, file.as_slice());
    }

    /// One act of the bytes' choice.
    fn act(&self, choices: &mut Choices<'_>) {
        let kind = choices.byte();
        let files: Vec<_> = (0..kind >> 6).map(|_| self.file(choices.byte())).collect();
        match kind & 7 {
            // Any bytes, whole messages or not.
            0 => {
                let (now, rest) = choices.0.split_at(choices.0.len().min(usize::from(kind)));
                choices.0 = rest;
                let _ = self.messenger.send_raw(now, &files);
            }
            // A message with any body.
            1 => {
                let request = u32::from(choices.byte() % 48);
                let body: Vec<u8> = (0..choices.byte() % 64).map(|_| choices.byte()).collect();
                let _ = self.messenger.send(request, u32::from(kind & 8), &body, &files);
            }
            // A header that lies.
            2 => {
                let words = header(choices.word() as u32, choices.word() as u32, choices.word() as u32);
                let _ = self.messenger.send_raw(&words, &files);
            }
            // A memory table of rows that may overlap, or lie beyond their file.
            3 => {
                let rows: Vec<_> = (0..choices.byte() % 5).map(|_| self.row(choices)).collect();
                let files: Vec<_> = rows.iter().map(|_| self.file(choices.byte() & 4)).collect();
                let _ = self.messenger.send(request::SET_MEM_TABLE, 0, &message::memory_table(&rows), &files);
            }
            4 => {
                let request = [request::ADD_MEM_REG, request::REM_MEM_REG][usize::from(choices.byte() & 1)];
                let row = if choices.byte() & 1 == 0 { self.region() } else { self.row(choices) };
                let files = [self.area.file()];
                let files = if request == request::ADD_MEM_REG { &files[..] } else { &[] };
                let _ = self.messenger.send(request, 0, &message::memory_region(row), files);
            }
            // A ring's number and a value.
            5 => {
                let request = choices.word() as u32 % 11 + request::SET_VRING_NUM;
                let body = message::ring_state(choices.byte() as u32 % 6, choices.word() as u32);
                let files = if request >= request::SET_VRING_KICK { &files[..] } else { &[] };
                let _ = self.messenger.send(request, 0, &body, files);
            }
            6 => {
                let [descriptors, available, used] = std::array::from_fn(|_| choices.word());
                let at = RingAddresses { descriptors, available, used };
                let body = message::ring_addresses(choices.byte() as u32 % 6, at);
                let _ = self.messenger.send(request::SET_VRING_ADDR, 0, &body, &[]);
            }
            _ => {
                let request =
                    [request::GET_INFLIGHT_FD, request::SET_INFLIGHT_FD][usize::from(choices.byte() & 1)];
                let body = message::inflight(
                    choices.word(),
                    choices.word(),
                    choices.byte().into(),
                    choices.word() as u16,
                );
                let files = if request == request::SET_INFLIGHT_FD { &files[..] } else { &[] };
                let _ = self.messenger.send(request, 0, &body, files);
            }
        }
    }

    fn row(&self, choices: &mut Choices<'_>) -> RegionRow {
        let [guest, len, user, offset] = std::array::from_fn(|_| choices.word());
        RegionRow { guest, len, user, offset }
    }
}

/// An event as a descriptor of its own.
fn owned(event: &EventFd) -> Option<OwnedFd> {
    use std::os::fd::{AsRawFd, BorrowedFd};
    // SAFETY: open for as long as `event` is borrowed.
    unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) }.try_clone_to_owned().ok()
}

/// Speaks what the bytes say to a session, after as many steps of a good handshake as the first of them says.
///
/// # Panics
/// When the session does what it never may: hang, panic itself, end without a reason, keep a pair.
pub fn session(bytes: &[u8]) {
    let Ok((ours, theirs)) = UnixStream::pair() else { return };
    let mut replies = theirs.try_clone().expect("a descriptor");
    let Some(peer) = Peer::new(theirs) else { return };
    let ends: std::io::Result<Vec<_>> = (0..PAIRS).map(|_| handover("fuzzed")).collect();
    let (switches, intakes): (Vec<_>, Vec<Intake>) = ends.expect("descriptors").into_iter().unzip();
    let offered = features::OFFERED | features::MQ;
    let mut connection = Connection::new(ours, switches.into(), offered).expect("a descriptor");

    // Half of the inputs meet a worker that serves the rings meanwhile.
    let served = bytes.get(1).is_some_and(|kind| kind & 2 != 0);
    let worker = Worker::of(intakes, served);
    let mut choices = Choices(bytes);
    let (good, kind) = (usize::from(choices.byte()) % (6 + 6 * 2 * PAIRS), choices.byte());
    let packed = if kind & 1 == 0 { 0 } else { bits::RING_PACKED };
    let agreed = bits::VERSION_1 | bits::MRG_RXBUF | packed | bits::PROTOCOL_FEATURES;
    let mut alive = true;
    for step in 0..good {
        peer.good(step, agreed);
        alive = alive && serve(&mut connection, &mut replies);
    }
    assert!(alive, "a good handshake is refused: {good} steps");
    while alive && !choices.0.is_empty() {
        peer.act(&mut choices);
        alive = serve(&mut connection, &mut replies);
    }
    connection.end().expect("a worker that works lets go");
    worker.end();
}

/// Who has the other ends of the handovers: a thread that sends back whatever comes, or nobody who cares.
struct Worker {
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    _idle: Vec<Intake>,
}

impl Worker {
    fn of(intakes: Vec<Intake>, served: bool) -> Worker {
        let ended = Arc::new(AtomicBool::new(false));
        if !served {
            return Worker { ended, thread: None, _idle: intakes };
        }
        let told = Arc::clone(&ended);
        let thread = std::thread::spawn(move || work(intakes, &told));
        Worker { ended, thread: Some(thread), _idle: Vec::new() }
    }

    fn end(self) {
        self.ended.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread {
            thread.join().expect("whatever a peer says, its worker goes on");
        }
    }
}

fn work(intakes: Vec<Intake>, ended: &AtomicBool) {
    static REGION: OnceLock<&Region> = OnceLock::new();
    let region = REGION.get_or_init(|| Region::map(4096, Hugepages::Off).expect("memory"));
    let mut pool = FramePool::new(region);
    let mut burst = Burst::new();
    let ports = intakes.into_iter().map(|intake| VhostPort::new(intake).expect("descriptors"));
    let mut ports: Vec<VhostPort> = ports.collect();
    while !ended.load(Ordering::Relaxed) {
        for port in &mut ports {
            port.rx_burst(&mut pool, &mut burst);
            port.tx_burst(&mut pool, &mut burst);
            pool.free_burst(&mut burst);
            port.settle(&mut pool).expect("a guest's fault is no port's");
        }
        std::thread::yield_now();
    }
    ports.into_iter().for_each(|port| port.close(&mut pool));
    pool.empty();
}

/// Lets the session serve all that is there; whether it goes on.
fn serve(connection: &mut Connection, replies: &mut UnixStream) -> bool {
    loop {
        let step = connection.step();
        drain(replies);
        match step {
            Ok(Step::Served) => {}
            Ok(Step::Idle | Step::Wait(_)) => return true,
            Err(ending) => {
                assert!(!matches!(ending, super::Ending::Bug(_)), "{ending}");
                assert!(ending.to_string().len() > 10, "an ending says why");
                return false;
            }
        }
    }
}

/// Reads the replies that are there, so that the session never waits for room.
fn drain(replies: &mut UnixStream) {
    let mut state =
        libc::pollfd { fd: std::os::fd::AsRawFd::as_raw_fd(replies), events: libc::POLLIN, revents: 0 };
    let mut into = [0; 8192];
    // SAFETY: one structure, exclusively borrowed; the call does not wait.
    while unsafe { libc::poll(&raw mut state, 1, 0) } == 1 {
        match replies.read(&mut into) {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
    }
}
