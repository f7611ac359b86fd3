//! Sessions with a pod at one end and a worker that only takes and gives back at the other.

use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::*;
use crate::driver::request::{self, protocol};
use crate::driver::{Pod, PodConfig, PodError, bits, dial, message};
use crate::handover::{Bases, PairSetup, RingSetup, Wish};
use crate::ring::{Lie, RingFault, Side};

const PATIENCE: Duration = Duration::from_secs(20);

/// A socket's path that no other test has.
fn path() -> PathBuf {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    std::env::temp_dir().join(format!("penstock-session-{}-{number}", std::process::id()))
}

/// What a worker was given and what it is to do.
#[derive(Default)]
struct Bench {
    ended: AtomicBool,
    /// Lets nothing go while set.
    stubborn: AtomicBool,
    fault: Mutex<Option<RingFault>>,
    setups: Mutex<Vec<(usize, Arc<PairSetup>)>>,
}

/// A worker of all pairs of a session, on its own thread.
struct Worker {
    bench: Arc<Bench>,
    thread: Option<JoinHandle<()>>,
}

/// Each ring of this worker advances by as much whenever it is held.
const ADVANCE: u32 = 7;

impl Worker {
    fn of(intakes: Vec<Intake>) -> Worker {
        let bench = Arc::new(Bench::default());
        let shared = Arc::clone(&bench);
        let thread = std::thread::spawn(move || work(&shared, intakes));
        Worker { bench, thread: Some(thread) }
    }

    /// The setup that a pair was given last.
    fn last(&self, pair: usize) -> Option<Arc<PairSetup>> {
        let setups = self.bench.setups.lock().unwrap();
        setups.iter().rev().find(|(of, _)| *of == pair).map(|(_, setup)| Arc::clone(setup))
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.bench.ended.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap();
    }
}

fn work(bench: &Bench, mut intakes: Vec<Intake>) {
    let mut held: Vec<Option<Arc<PairSetup>>> = vec![None; intakes.len()];
    while !bench.ended.load(Ordering::Relaxed) {
        if let Some(fault) = bench.fault.lock().unwrap().take() {
            intakes[0].report(fault);
        }
        for (pair, intake) in intakes.iter_mut().enumerate() {
            if bench.stubborn.load(Ordering::Relaxed) || !intake.is_due() {
                continue;
            }
            match intake.wish() {
                Some(Wish::Start(setup)) => {
                    let setup = Arc::new(*setup);
                    bench.setups.lock().unwrap().push((pair, Arc::clone(&setup)));
                    held[pair] = Some(setup);
                }
                Some(Wish::Stop) => {
                    let setup = held[pair].take();
                    let stands = |ring: Option<&RingSetup>| ring.map(|ring| ring.base + ADVANCE);
                    let bases = setup.map_or(Bases::default(), |setup| Bases {
                        rx: stands(setup.rx.as_ref()),
                        tx: stands(setup.tx.as_ref()),
                    });
                    intake.let_go(bases);
                }
                None => {}
            }
        }
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// A session that serves a socket, and its worker.
fn server(pairs: u16) -> (Session, Worker, PathBuf) {
    let path = path();
    let role = Role::Server(Access::default());
    let config = SessionConfig { role, pairs, ..SessionConfig::new("pod", &path) };
    let (session, intakes) = Session::open(config).unwrap();
    (session, Worker::of(intakes), path)
}

fn pod(path: &Path) -> Pod {
    Pod::connect(path, PATIENCE, PodConfig { size: 64, ..PodConfig::default() }).unwrap()
}

/// Waits until something is so.
fn until(what: &str, mut is: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !is() {
        assert!(Instant::now() < end, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn a_pod_that_connects_has_its_rings_handed_to_the_worker() {
    let (session, worker, path) = server(1);
    let pod = pod(&path);
    until("both rings are enabled", || {
        worker.last(0).is_some_and(|setup| {
            let on = |ring: &Option<RingSetup>| ring.as_ref().is_some_and(|ring| ring.enabled);
            on(&setup.rx) && on(&setup.tx)
        })
    });
    let setup = worker.last(0).unwrap();
    assert_eq!(setup.features, pod.features());
    assert_eq!(setup.rx.as_ref().unwrap().size, 64);
    assert!(setup.memory.guest_address(setup.tx.as_ref().unwrap().desc).is_some());
    let all = [RingStatus { size: 64, started: true, enabled: true }; 2];
    until("that is told", || session.status().rings == all);
    let status = session.status();
    assert_eq!((status.state, status.connections, status.faults), (State::Running, 1, 0));
}

#[test]
fn a_client_waits_for_its_server_and_connects_again_when_that_went_away() {
    let path = path();
    let (session, intakes) = Session::open(SessionConfig::new("pod", &path)).unwrap();
    let worker = Worker::of(intakes);
    until("the missing server is told", || {
        session.status().reason.is_some_and(|why| why.contains("nobody serves"))
    });
    let config = PodConfig { size: 64, ..PodConfig::default() };
    for round in 1..=3 {
        let listener = UnixListener::bind(&path).unwrap();
        let mut pod = Pod::accept(&listener, PATIENCE, config.clone()).unwrap();
        until("the session runs", || session.status().state == State::Running);
        assert_eq!(session.status().connections, round);
        pod.detach();
        until("the session waits", || session.status().state == State::Waiting);
        std::fs::remove_file(&path).unwrap();
    }
    assert_eq!(session.status().faults, 0);
    drop(worker);
}

#[test]
fn a_second_peer_is_turned_away_and_served_once_the_first_has_left() {
    let (session, _worker, path) = server(1);
    let mut first = pod(&path);
    let second = Pod::connect(&path, PATIENCE, PodConfig::default());
    assert!(matches!(second, Err(PodError::System { .. })), "{second:?}");
    until("that is counted", || session.status().turned_away == 1);
    assert!(first.is_connected());
    first.detach();
    until("there is room", || Pod::connect(&path, PATIENCE, PodConfig::default()).is_ok());
}

#[test]
fn rings_go_on_where_the_worker_left_them_through_every_change() {
    let (session, worker, path) = server(1);
    // A packed ring: a split one says itself where it stands.
    let features = PodConfig::default().features | bits::RING_PACKED;
    let pod = Pod::connect(&path, PATIENCE, PodConfig { features, ..small() }).unwrap();
    until("the worker has it in hand", || session.status().served == 1);
    let before = pod.stop().unwrap();
    // From zero, in the first turn of either half of a base.
    let moved = |base: u32| (base & !0x8000_8000).is_multiple_of(ADVANCE) && base & 0x7fff > 0;
    assert!(before.iter().all(|&base| moved(base)), "{before:x?}");
    // Stopped already: they stay where they are.
    assert_eq!(pod.stop().unwrap(), before);
    drop(worker);
}

#[test]
fn memory_may_be_added_and_taken_away_while_rings_run() {
    let (_session, worker, path) = server(1);
    let mut pod = pod(&path);
    pod.extend_memory().unwrap();
    until("three areas are there", || worker.last(0).is_some_and(|setup| setup.memory.regions() == 3));
    // This worker uses no buffer, so those of the first area stay with the device.
    assert!(!pod.shrink_memory().unwrap(), "buffers of it are with the device");
    assert!(pod.is_connected());
}

#[test]
fn a_ring_that_lies_ends_the_connection_with_what_the_worker_said_and_the_next_peer_is_served() {
    let (session, worker, path) = server(1);
    let pod = pod(&path);
    *worker.bench.fault.lock().unwrap() =
        Some(RingFault { side: Side::Rx, what: Lie::IndexJump(4711), index: 3 });
    until("the pod is hung up on", || !pod.is_connected());
    until("the reason is told", || session.status().reason.is_some_and(|why| why.contains("4711")));
    assert_eq!(session.status().faults, 1);
    self::pod(&path);
}

#[test]
fn a_worker_that_does_not_let_go_is_told_and_no_peer_is_served_before_it_does() {
    let (session, worker, path) = server(1);
    let pod = pod(&path);
    until("the worker has it in hand", || session.status().served == 1);
    worker.bench.stubborn.store(true, Ordering::Relaxed);
    drop(pod);
    until("the worker is blamed", || session.status().state == State::Clearing);
    until("it is told", || session.status().reason.is_some_and(|why| why.contains("did not let go")));
    worker.bench.stubborn.store(false, Ordering::Relaxed);
    until("it has let go", || session.status().state == State::Waiting);
}

/// A message that is refused, and what the reason says.
type Bad = (&'static str, fn(&Pod));

#[test]
fn what_a_hostile_peer_says_ends_its_session_alone_and_says_why() {
    let say = |pod: &Pod, request, body: &[u8]| pod.session().unwrap().send(request, 0, body, &[]).unwrap();
    let bad: [Bad; 14] = [
        ("1 to 32768", |pod| drop(pod.session().unwrap().send(8, 0, &message::ring_state(0, 0), &[]))),
        ("1 to 32768", |pod| drop(pod.session().unwrap().send(8, 0, &message::ring_state(0, 65_536), &[]))),
        ("queue pairs", |pod| drop(pod.session().unwrap().send(8, 0, &message::ring_state(2, 64), &[]))),
        ("queue pairs", |pod| {
            drop(pod.session().unwrap().send(18, 0, &message::ring_state(u32::MAX, 1), &[]))
        }),
        ("not offered", |pod| drop(pod.session().unwrap().send(2, 0, &message::number(1 << 60), &[]))),
        ("not offered", |pod| drop(pod.session().unwrap().send(16, 0, &message::number(1 << 5), &[]))),
        ("overlap", |pod| {
            let rows = pod.areas().iter().map(|area| area_row(area, 0x1000));
            let files: Vec<_> = pod.areas().iter().map(|area| area.file()).collect();
            let table = message::memory_table(&rows.collect::<Vec<_>>());
            drop(pod.session().unwrap().send(request::SET_MEM_TABLE, 0, &table, &files));
        }),
        ("share=on", |pod| {
            let area = &pod.areas()[0];
            let mut row = area_row(area, area.guest());
            row.len *= 2;
            let table = message::memory_table(&[row]);
            drop(pod.session().unwrap().send(request::SET_MEM_TABLE, 0, &table, &[area.file()]));
        }),
        ("SET_MEM_TABLE", |pod| {
            let area = &pod.areas()[0];
            let table = message::memory_table(&[area_row(area, area.guest())]);
            drop(pod.session().unwrap().send(request::SET_MEM_TABLE, 0, &table, &[area.file(), area.file()]));
        }),
        ("SET_MEM_TABLE", |pod| {
            let table = message::memory_table(&[area_row(&pod.areas()[0], 0)]);
            drop(pod.session().unwrap().send(request::SET_MEM_TABLE, 0, &table[..20], &[]));
        }),
        ("not an event descriptor", |pod| {
            let area = &pod.areas()[0];
            drop(pod.session().unwrap().send(
                request::SET_VRING_KICK,
                0,
                &message::number(0),
                &[area.file()],
            ));
        }),
        ("no region", |pod| {
            let row = area_row(&pod.areas()[0], 0x5000);
            drop(pod.session().unwrap().send(request::REM_MEM_REG, 0, &message::memory_region(row), &[]));
        }),
        ("in flight", |pod| {
            let body = message::inflight(64, 0, 2, 256);
            let file = std::fs::File::open("/dev/null").unwrap();
            let file = std::os::fd::AsFd::as_fd(&file);
            drop(pod.session().unwrap().send(request::SET_INFLIGHT_FD, 0, &body, &[file]));
        }),
        ("cut off", |pod| drop(pod.session().unwrap().send_raw(&[2, 0, 0], &[]))),
    ];
    let (session, _worker, path) = server(1);
    let (_bystander, _other, elsewhere) = server(1);
    let witness = pod(&elsewhere);
    let config = PodConfig { protocol: protocol::CONFIGURE_MEM_SLOTS | protocol::INFLIGHT_SHMFD, ..small() };
    for (words, act) in bad {
        let pod = Pod::connect(&path, PATIENCE, config.clone()).unwrap();
        act(&pod);
        if words == "cut off" {
            drop(pod);
        }
        until(words, || {
            session.status().state == State::Waiting
                && session.status().reason.is_some_and(|why| why.contains(words))
        });
    }
    assert!(witness.is_connected());
    say(&witness, request::SET_OWNER, &[]);
    assert_eq!(session.status().faults, 13);
}

fn small() -> PodConfig {
    PodConfig { size: 64, ..PodConfig::default() }
}

fn area_row(area: &crate::driver::Area, guest: u64) -> crate::driver::RegionRow {
    crate::driver::RegionRow { guest, len: area.len() as u64, user: area.user(), offset: 0 }
}

#[test]
fn half_a_message_holds_its_own_session_up_and_no_longer_than_seconds() {
    let (session, _worker, path) = server(1);
    let pod = pod(&path);
    pod.session().unwrap().send_raw(&crate::driver::header(2, 1, 8), &[]).unwrap();
    until("patience is over", || session.status().reason.is_some_and(|why| why.contains("12 of 20 bytes")));
}

#[test]
fn a_peer_that_never_reads_is_hung_up_on() {
    let (session, _worker, path) = server(1);
    let pod = pod(&path);
    let ask = |pod: &Pod| pod.session().unwrap().send(request::GET_FEATURES, 0, &[], &[]);
    until("it is hung up on", || ask(&pod).is_err());
    until("it is told", || session.status().reason.is_some_and(|why| why.contains("were not read")));
}

#[test]
fn a_session_closes_at_once_whatever_its_peer_does() {
    let (session, worker, path) = server(1);
    let pod = pod(&path);
    pod.session().unwrap().send_raw(&[1], &[]).unwrap();
    let from = Instant::now();
    session.close();
    assert!(from.elapsed() < Duration::from_secs(2), "{:?}", from.elapsed());
    assert!(!path.exists());
    until("the pod is hung up on", || !pod.is_connected());
    drop(worker);
}

#[test]
fn what_the_protocols_crate_does_not_know_is_answered() {
    let (session, _worker, path) = server(1);
    let config = PodConfig { protocol: PodConfig::default().protocol | protocol::NET_MTU, ..small() };
    let pod = Pod::connect(&path, PATIENCE, config).unwrap();
    assert_eq!(pod.ask(request::GET_STATUS).unwrap(), 15);
    pod.tell(request::NET_SET_MTU, &message::number(9000), &[]).unwrap();
    until("it is told", || session.status().mtu == Some(9000));
    let refused = pod.tell(request::NET_SET_MTU, &message::number(5), &[]);
    assert!(matches!(refused, Err(PodError::Refused { request: request::NET_SET_MTU })), "{refused:?}");
    assert!(pod.is_connected(), "an MTU that is no good is refused, and that is all");
}

#[test]
fn a_request_of_a_feature_that_was_not_agreed_upon_is_refused() {
    let (session, _worker, path) = server(1);
    let pod = Pod::connect(&path, PATIENCE, PodConfig { protocol: 0, ..small() }).unwrap();
    pod.session().unwrap().send(request::GET_STATUS, 0, &[], &[]).unwrap();
    until("it is refused", || {
        session.status().reason.is_some_and(|why| why.contains("GET_STATUS, which needs"))
    });
}

#[test]
fn a_reset_stops_all_rings_and_the_driver_may_start_anew() {
    let (session, worker, path) = server(1);
    let config = PodConfig { protocol: PodConfig::default().protocol | protocol::RESET_DEVICE, ..small() };
    let mut pod = Pod::connect(&path, PATIENCE, config).unwrap();
    pod.tell(request::RESET_DEVICE, &[], &[]).unwrap();
    let still = |ring: &RingStatus| !ring.started && !ring.enabled;
    until("all stand still", || session.status().rings.iter().all(still));
    pod.restart().unwrap();
    pod.enable(0, true).unwrap();
    until("the session runs", || session.status().state == State::Running);
    drop(worker);
}

#[test]
fn rings_of_a_peer_without_protocol_features_are_enabled_at_once() {
    let (session, _worker, path) = server(1);
    let config = PodConfig { features: bits::VERSION_1, ..small() };
    let _pod = Pod::connect(&path, PATIENCE, config).unwrap();
    until("they are", || {
        session.status().rings == [RingStatus { size: 64, started: true, enabled: true }; 2]
    });
}

#[test]
fn pairs_are_enabled_and_disabled_one_by_one() {
    let (session, worker, path) = server(2);
    let pod = Pod::connect(&path, PATIENCE, PodConfig { pairs: 2, ..small() }).unwrap();
    pod.enable(1, false).unwrap();
    let enabled = || session.status().rings.iter().map(|ring| ring.enabled).collect::<Vec<_>>();
    until("one pair is not", || enabled() == [true, true, false, false]);
    until("the worker knows", || {
        worker.last(1).is_some_and(|setup| setup.rx.as_ref().is_some_and(|ring| !ring.enabled))
    });
    assert!(worker.last(0).unwrap().rx.as_ref().unwrap().enabled);
}

#[test]
fn a_record_of_descriptors_in_flight_is_made_once_and_kept_by_the_peer() {
    let (session, worker, path) = server(1);
    let config = PodConfig { protocol: PodConfig::default().protocol | protocol::INFLIGHT_SHMFD, ..small() };
    let mut pod = Pod::connect(&path, PATIENCE, config).unwrap();
    let has = |worker: &Worker| {
        worker.last(0).is_some_and(|setup| setup.rx.as_ref().is_some_and(|ring| ring.inflight.is_some()))
    };
    until("the ring has it", || has(&worker));
    pod.detach();
    pod.attach(dial(&path, PATIENCE).unwrap()).unwrap();
    until("the ring has it again", || session.status().served == 1 && has(&worker));
}

/// As DPDK's virtio-user does when its back-end comes back: it resets the device by what it agreed upon with the one before.
#[test]
fn a_peer_may_reset_its_rings_on_a_fresh_connection_before_it_agrees_upon_anything() {
    let (session, _worker, path) = server(1);
    let messenger = crate::driver::Messenger::new(dial(&path, PATIENCE).unwrap()).unwrap();
    for ring in [0, 1] {
        messenger.send(request::SET_VRING_ENABLE, 0, &message::ring_state(ring, 0), &[]).unwrap();
        messenger.send(request::GET_VRING_BASE, 0, &message::ring_state(ring, 0), &[]).unwrap();
        messenger.reply(request::GET_VRING_BASE).unwrap();
    }
    messenger.send(request::SET_STATUS, crate::driver::NEED_REPLY, &message::number(0), &[]).unwrap();
    assert_eq!(message::first_number(&messenger.reply(request::SET_STATUS).unwrap().0), Some(0));
    assert_eq!(session.status().faults, 0);
}
