//! A switch in this process, and pods at it.

#![allow(dead_code, reason = "each test uses its part")]
#![allow(clippy::unwrap_used, reason = "the leave for tests does not reach the functions beside them")]

#[path = "../../examples/switch/forward.rs"]
mod forward;
pub(crate) mod program;
pub(crate) mod tcp;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use forward::Forwarder;
use penstock_io::{FramePool, Hugepages, Region};
use penstock_vhost::driver::{Pod, PodConfig};
use penstock_vhost::session::{Access, Role, State, Status};
use penstock_vhost::{Session, SessionConfig};

/// How long a test waits for what must come.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A socket's path that no other test has.
pub(crate) fn path() -> PathBuf {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    std::env::temp_dir().join(format!("penstock-fabric-{}-{number}", std::process::id()))
}

/// Waits until something is so.
pub(crate) fn until(what: &str, mut is: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !is() {
        assert!(Instant::now() < end, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A switch: the first port is joined with the second, the third with the fourth.
pub(crate) struct Fabric {
    pub(crate) sessions: Vec<Session>,
    pub(crate) paths: Vec<PathBuf>,
    region: &'static Region,
    ended: Arc<AtomicBool>,
    awake: Arc<AtomicBool>,
    carried: Arc<AtomicUsize>,
    thread: Option<JoinHandle<FramePool>>,
}

impl Fabric {
    /// One that serves the sockets.
    pub(crate) fn serving(paths: &[PathBuf], pairs: u16) -> Fabric {
        Fabric::new(paths, pairs, Role::Server(Access::default()))
    }

    /// One that connects to them.
    pub(crate) fn calling(paths: &[PathBuf], pairs: u16) -> Fabric {
        Fabric::new(paths, pairs, Role::Client)
    }

    fn new(paths: &[PathBuf], pairs: u16, role: Role) -> Fabric {
        let region = Region::map(4096, Hugepages::Off).unwrap();
        let open = |path: &PathBuf| {
            Session::open(SessionConfig { role, pairs, ..SessionConfig::new("pod", path) }).unwrap()
        };
        let (sessions, devices): (Vec<_>, Vec<_>) = paths.iter().map(open).unzip();
        let ended = Arc::new(AtomicBool::new(false));
        let awake = Arc::new(AtomicBool::new(false));
        let (told, stay) = (Arc::clone(&ended), Arc::clone(&awake));
        let carried = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&carried);
        let thread = std::thread::spawn(move || {
            let mut forwarder = Forwarder::new(region, devices);
            let mut idle = 0;
            while !told.load(Ordering::Relaxed) {
                let moved = forwarder.turn().unwrap();
                count.fetch_add(moved, Ordering::Relaxed);
                idle = if moved == 0 { idle + 1 } else { 0 };
                if idle > 50 && !stay.load(Ordering::Relaxed) {
                    forwarder.sleep(20);
                    idle = 0;
                }
            }
            forwarder.close()
        });
        Fabric { sessions, paths: paths.to_vec(), region, ended, awake, carried, thread: Some(thread) }
    }

    /// Two ports that serve their sockets.
    pub(crate) fn pair(pairs: u16) -> Fabric {
        Fabric::serving(&[path(), path()], pairs)
    }

    pub(crate) fn status(&self, port: usize) -> Status {
        self.sessions[port].status()
    }

    /// The first two ports' pods, which have heard of each other.
    pub(crate) fn pods(&self, left: PodConfig, right: PodConfig) -> (Pod, Pod) {
        let (mut left, mut right) = (self.pod(0, left), self.pod(1, right));
        greet(&mut left, &mut right);
        (left, right)
    }

    /// Packets that it took from all ports.
    pub(crate) fn carried(&self) -> usize {
        self.carried.load(Ordering::Relaxed)
    }

    /// It polls from here on.
    pub(crate) fn stay_awake(&self) {
        self.awake.store(true, Ordering::Relaxed);
    }

    /// A pod at a port that serves its socket.
    pub(crate) fn pod(&self, port: usize, config: PodConfig) -> Pod {
        let pod = connect(&self.paths[port], config);
        until("the port runs", || self.status(port).state == State::Running);
        pod
    }
}

pub(crate) fn connect(path: &Path, config: PodConfig) -> Pod {
    Pod::connect(path, PATIENCE, config).unwrap()
}

impl Drop for Fabric {
    /// Every chunk is home again, whatever was done to the ports.
    fn drop(&mut self) {
        self.sessions.clear();
        self.ended.store(true, Ordering::Relaxed);
        let pool = self.thread.take().unwrap().join();
        if std::thread::panicking() {
            return;
        }
        drop(pool.unwrap());
        assert_eq!(self.region.strays(), 0, "frames were dropped");
        if cfg!(debug_assertions) {
            let census = self.region.census();
            assert_eq!((census.free, census.user), (self.region.chunks(), 0), "frames leaked");
        }
    }
}

/// A frame from one pod to another with a number in it.
pub(crate) fn numbered(number: u32) -> Vec<u8> {
    let mut frame = vec![0x02; 60 + number as usize % 1400];
    frame[12..14].copy_from_slice(&0x88b5u16.to_be_bytes());
    frame[14..18].copy_from_slice(&number.to_be_bytes());
    frame
}

/// The number in a frame, whose every byte is looked at.
pub(crate) fn number(frame: &[u8]) -> u32 {
    let number = u32::from_be_bytes(*frame[14..].first_chunk().unwrap());
    assert_eq!(frame, numbered(number), "frame {number} arrived as it was sent");
    number
}

/// Sends frames both ways on all pairs until one of each has arrived: workers take a ring in hand a moment after its
/// front-end was told so, and what they have not is not forwarded.
pub(crate) fn greet(left: &mut Pod, right: &mut Pod) {
    let hello = |from: &mut Pod, to: &mut Pod| {
        for pair in 0..from.config().pairs {
            let into = pair.min(to.config().pairs - 1);
            until("a greeting arrives", || {
                from.send(pair, &[0x55; 60]);
                to.wait(Duration::from_millis(2));
                to.receive(into).is_some()
            });
        }
    };
    hello(left, right);
    hello(right, left);
    // Those that came late.
    let mut quiet = 0;
    while quiet < 20 {
        let late = left.receive_any().is_some() | right.receive_any().is_some();
        quiet = if late { 0 } else { quiet + 1 };
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Sends `count` numbered frames on a pair and receives them, in order and each once.
pub(crate) fn exchange(from: &mut Pod, to: &mut Pod, pair: u16, count: u32) {
    let end = Instant::now() + PATIENCE;
    let (mut sent, mut got) = (0, 0);
    while got < count {
        // Fewer on the way than the rings have room for: nothing may be lost.
        while sent < count && sent - got < 32 && from.send(pair, &numbered(sent)) {
            sent += 1;
        }
        match to.receive(pair) {
            Some(packet) => {
                assert_eq!(number(&packet.bytes), got, "in order, none twice");
                got += 1;
            }
            None => to.wait(Duration::from_millis(1)),
        }
        assert!(
            Instant::now() < end,
            "{got} of {count} frames arrived; {sent} sent, {} not taken",
            from.unsent()
        );
    }
}
