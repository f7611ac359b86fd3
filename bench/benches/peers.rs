//! The dataplane beside its peers, measured in turns on this machine: medians, spread and paired ratios.
//!
//! `cargo bench -p penstock-bench --bench peers -- [memory|stateful|veth|vhost] [--rounds N] [--seconds N]`, as root. It needs
//! two CPUs that nothing else uses: CPU 1 forwards, CPU 0 sends. `memory` replays the same frames from memory to testpmd
//! (`mac`), to Open vSwitch on DPDK and to our ports and worker; `stateful` the same to Open vSwitch with `ct` and to our
//! worker with connections, policy and translation; `veth` has testpmd's `net_af_xdp` and our AF_XDP ports forward between
//! two veths what testpmd sends; `vhost` has testpmd's `net_vhost` and our vhost-user ports forward between two virtio-user
//! ports of a testpmd that is the guest. Figures are packets over wall time, for all of them.

#![allow(missing_docs)]

use std::error::Error;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use penstock_bench::contest::{self, Contender, Row, print};
use penstock_bench::peers::lab::Lab;
use penstock_bench::peers::{self, PeerError, ovs, testpmd, vhost};
use penstock_bench::scenario::{self, PortToPort, Running};
use penstock_bench::stateful::Work;
use penstock_bench::traffic::shuffled;
use penstock_io::steer::{Role, Steer, XdpMode};
use penstock_io::{
    BURST, Burst, FramePool, Hugepages, Netdev, Port, Region, Ticks, TicksPerSecond, XskConfig, XskPort, pcap,
};
use penstock_vhost::VhostPort;
use penstock_vhost::session::{self, Session, SessionConfig};

/// Huge pages that the hungriest peer takes: 100,000 frames in buffers of their own.
const MEMORY_PAGES: u64 = 640;
const VETH_PAGES: u64 = 192;
/// A forwarder of ours ends by itself after this long, should nobody be left to end it.
const LIFE: Duration = Duration::from_secs(300);
/// What a forwarder takes to open its ports, and a generator to come to its pace.
const WARM_UP: Duration = Duration::from_secs(4);

struct Options {
    memory: bool,
    stateful: bool,
    veth: bool,
    vhost: bool,
    rounds: usize,
    time: Duration,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let outcome = match words[..] {
        ["forward", left, right] => forward(left, right),
        ["switch", left, right] => switch(left, right),
        _ => options(&words).and_then(compare),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("peers: {error}");
            ExitCode::FAILURE
        }
    }
}

fn options(words: &[&str]) -> Result<Options, Box<dyn Error>> {
    let parts = ["memory", "stateful", "veth", "vhost"];
    let wants = |part: &str| words.contains(&part) || !words.iter().any(|word| parts.contains(word));
    let [memory, stateful, veth, vhost] = parts.map(wants);
    let mut options = Options { memory, stateful, veth, vhost, rounds: 5, time: Duration::from_secs(4) };
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let mut number = || words.next().ok_or(format!("{word} takes a number"));
        match *word {
            part if parts.contains(&part) => {}
            "--rounds" => options.rounds = number()?.parse()?,
            "--seconds" => options.time = Duration::from_secs(number()?.parse()?),
            _ => return Err("usage: peers [memory|stateful|veth|vhost] [--rounds N] [--seconds N]".into()),
        }
    }
    Ok(options)
}

fn compare(options: Options) -> Result<(), Box<dyn Error>> {
    let needed = if options.memory || options.stateful || options.vhost { MEMORY_PAGES } else { VETH_PAGES };
    peers::check(needed)?;
    let rate = TicksPerSecond::measure(Duration::from_millis(100)).0 as f64;
    if options.memory {
        for flows in [1_000, 100_000] {
            in_memory(flows, &options, rate)?;
        }
    }
    if options.stateful {
        stateful(&options, rate)?;
    }
    if options.veth {
        let ours = |time| {
            between_veths(time, |lab| {
                let program = std::env::current_exe().unwrap_or_default();
                lab.start(1, "1", &program.to_string_lossy(), &["forward", "left", "right"])
            })
        };
        let theirs = |time| between_veths(time, |lab| testpmd::forward(lab, 1, "left", "right"));
        let contenders = vec![
            Contender { name: "penstock xsk", run: Box::new(ours) },
            Contender { name: "testpmd net_af_xdp", run: Box::new(theirs) },
        ];
        let scores = contest(&options, contenders)?;
        print("AF_XDP between veths, 64-byte frames, one direction", &scores, rate);
    }
    if options.vhost {
        for packed in [false, true] {
            // With their check sequence the frames have 64, 512 and 1500 bytes.
            for size in [60, 508, 1496] {
                between_guests(vhost::Guest { packed, size }, &options, rate)?;
            }
        }
    }
    Ok(())
}

/// Plain forwarding between two ports of a guest.
fn between_guests(guest: vhost::Guest, options: &Options, rate: f64) -> Result<(), PeerError> {
    let ours = |time| {
        let lab = Lab::new(&["vhost"])?;
        let program = std::env::current_exe().unwrap_or_default();
        let sockets = vhost::sockets(&lab).map(|path| path.to_string_lossy().into_owned());
        let arguments = ["switch", &sockets[0], &sockets[1]];
        let _switch = lab.start(0, "1", &program.to_string_lossy(), &arguments)?;
        vhost::circulate(&lab, guest, time)
    };
    let theirs = |time| {
        let lab = Lab::new(&["vhost"])?;
        let _switch = vhost::switch(&lab)?;
        vhost::circulate(&lab, guest, time)
    };
    let contenders = vec![
        Contender { name: "penstock vhost", run: Box::new(ours) },
        Contender { name: "testpmd net_vhost", run: Box::new(theirs) },
    ];
    let rings = if guest.packed { "packed" } else { "split" };
    let title = format!("vhost-user, {rings} rings, {} bytes, plain forwarding, both ways", guest.size + 4);
    print(&title, &contest(options, contenders)?, rate);
    Ok(())
}

/// Our switch between two sockets that it serves: the ports alone.
fn switch(left: &str, right: &str) -> Result<(), Box<dyn Error>> {
    let region = Region::map(16384, Hugepages::Auto)?;
    let mut pool = FramePool::new(region);
    let open = |name: &str, path: &str| -> Result<(Session, VhostPort), Box<dyn Error>> {
        let role = session::Role::Server(session::Access::default());
        let config = SessionConfig { role, ..SessionConfig::new(name, path) };
        let (session, intakes) = Session::open(config)?;
        let intake = intakes.into_iter().next().ok_or("a session of one pair has one")?;
        Ok((session, VhostPort::new(intake)?))
    };
    let (_one, left) = open("left", left)?;
    let (_other, right) = open("right", right)?;
    shuttle(left, right, &mut pool)
}

fn contest(options: &Options, contenders: Vec<Contender<'_>>) -> Result<Vec<contest::Score>, PeerError> {
    contest::alternate(contenders, options.rounds, options.time)
}

/// Everything that forwards from memory, on the same frames in the same order.
fn in_memory(flows: u32, options: &Options, rate: f64) -> Result<(), PeerError> {
    let files = Lab::new(&["memory"])?;
    let plain = capture(&files, &scenario::frames(scenario::Path::Forward, flows))?;
    let scores = contest(
        options,
        vec![
            Contender { name: "penstock ports", run: Box::new(|time| Ok(ports(flows, time))) },
            Contender {
                name: "testpmd mac",
                run: Box::new(|time| testpmd::from_memory(&files, &plain, flows as usize, time)),
            },
        ],
    )?;
    print(&format!("forward only, {flows} flows"), &scores, rate);
    let works = [
        (scenario::Path::Forward, ovs::Work::Forward, "L3 forward"),
        (scenario::Path::Encap, ovs::Work::Vxlan, "VXLAN"),
    ];
    for (path, work, title) in works {
        let ours = move |time| Ok(worker(|| Running::new(path, flows), time));
        let theirs = |time| ovs::from_memory(&plain, work, time);
        let scores = contest(
            options,
            vec![
                Contender { name: "penstock worker", run: Box::new(ours) },
                Contender { name: "ovs-dpdk", run: Box::new(theirs) },
            ],
        )?;
        print(&format!("{title}, {flows} flows"), &scores, rate);
    }
    Ok(())
}

/// Connections, beside Open vSwitch's: each kind of work at a thousand and at a hundred thousand.
fn stateful(options: &Options, rate: f64) -> Result<(), PeerError> {
    let works = [
        (Work::Policed, ovs::Work::TrackedVxlan, "connection + policy + VXLAN"),
        (Work::SourceNat, ovs::Work::SourceNat, "source NAT"),
        (Work::Service, ovs::Work::DestinationNat, "service (destination NAT)"),
    ];
    let mut rows = Vec::new();
    for (work, theirs, title) in works {
        for connections in [1_000, 100_000] {
            let files = Lab::new(&["stateful"])?;
            let plain = capture(&files, &work.frames(connections))?;
            let ours = move |time| Ok(worker(|| work.running(connections), time));
            let theirs = |time| ovs::from_memory(&plain, theirs, time);
            let scores = contest(
                options,
                vec![
                    Contender { name: "penstock worker", run: Box::new(ours) },
                    Contender { name: "ovs-dpdk with ct", run: Box::new(theirs) },
                ],
            )?;
            let title = format!("{title}, {connections}");
            print(&title, &scores, rate);
            rows.push(Row { title, scores });
        }
    }
    contest::table(&rows, rate);
    Ok(())
}

/// Writes frames in the order in which our own ports replay them.
fn capture(lab: &Lab, frames: &[Vec<u8>]) -> Result<PathBuf, PeerError> {
    let file = lab.path("frames.pcap");
    let write = |path: &Path| {
        let mut writer = pcap::Writer::new(BufWriter::new(File::create(path)?))?;
        for number in shuffled(frames.len() as u32) {
            let frame = &frames[number as usize];
            writer.write(Duration::ZERO, frame, frame.len() as u32)?;
        }
        writer.get_mut().flush()
    };
    write(&file).map_err(|source| PeerError::File { path: file.clone(), source })?;
    Ok(file)
}

fn worker(made: impl FnOnce() -> Running + Send, time: Duration) -> f64 {
    on_cpu_1(move || {
        let mut running = made();
        let rate = packets_a_second(time, |now| running.turn(now));
        running.check();
        rate
    })
}

fn ports(flows: u32, time: Duration) -> f64 {
    on_cpu_1(move || {
        let mut ports = PortToPort::new(flows);
        packets_a_second(time, |_| ports.turn())
    })
}

/// Runs on a thread of its own that is pinned to CPU 1.
fn on_cpu_1(work: impl FnOnce() -> f64 + Send) -> f64 {
    std::thread::scope(|scope| {
        let pinned = scope.spawn(|| {
            assert!(
                core_affinity::set_for_current(core_affinity::CoreId { id: 1 }),
                "CPU 1 is in this process's cpuset"
            );
            work()
        });
        match pinned.join() {
            Ok(rate) => rate,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// Takes bursts through for a while.
fn packets_a_second(time: Duration, mut turn: impl FnMut(Ticks)) -> f64 {
    let (start, mut bursts) = (Instant::now(), 0u64);
    while start.elapsed() < time {
        let now = Ticks::now();
        (0..1000).for_each(|_| turn(now));
        bursts += 1000;
    }
    (bursts * BURST as u64) as f64 / start.elapsed().as_secs_f64()
}

/// Packets a second that reach the far end of: generator - left [forwarder] right - sink.
fn between_veths(
    time: Duration,
    forwarder: impl FnOnce(&Lab) -> Result<peers::lab::Program, PeerError>,
) -> Result<f64, PeerError> {
    let lab = Lab::new(&["gen", "dut", "sink"])?;
    lab.join((0, "gen"), (1, "left"))?;
    lab.join((1, "right"), (2, "sink"))?;
    let forwarder = forwarder(&lab)?;
    std::thread::sleep(WARM_UP);
    let station = lab.sysfs(1, "left", "address")?;
    let _generator = testpmd::send(&lab, 0, "gen", &station)?;
    std::thread::sleep(WARM_UP);
    let count = |place, interface, file| -> Result<u64, PeerError> {
        Ok(lab.sysfs(place, interface, file)?.parse().unwrap_or(0))
    };
    let counts = || -> Result<(u64, u64), PeerError> {
        Ok((count(0, "gen", "statistics/tx_packets")?, count(2, "sink", "statistics/rx_packets")?))
    };
    let (start, before) = (Instant::now(), counts()?);
    std::thread::sleep(time);
    let (after, elapsed) = (counts()?, start.elapsed());
    let (sent, arrived) = (after.0 - before.0, after.1 - before.1);
    if arrived == 0 {
        return Err(PeerError::Idle { peer: "the forwarder between veths", log: forwarder.log()? });
    }
    if arrived * 100 > sent * 98 {
        eprintln!("peers: {arrived} of {sent} frames arrived: the generator is the limit, not the forwarder");
    }
    Ok(arrived as f64 / elapsed.as_secs_f64())
}

/// Our forwarder between veths: the ports alone, every frame from left to right and back.
fn forward(left: &str, right: &str) -> Result<(), Box<dyn Error>> {
    let region = Region::map(32768, Hugepages::Auto)?;
    let mut pool = FramePool::new(region);
    let (_left_steer, left) = open(left, &mut pool)?;
    let (_right_steer, right) = open(right, &mut pool)?;
    shuttle(left, right, &mut pool)
}

fn open(name: &str, pool: &mut FramePool) -> Result<(Steer, XskPort), Box<dyn Error>> {
    let netdev = Netdev::named(name)?;
    let steer = Steer::attach(&netdev, Role::Pod, XdpMode::Auto)?;
    let port = XskPort::open(&netdev, 0, &XskConfig::default(), pool)?;
    steer.bind(0, &port)?;
    Ok((steer, port))
}

/// Takes every frame from left to right and back, until its life is over.
fn shuttle<P: Port>(mut left: P, mut right: P, pool: &mut FramePool) -> Result<(), Box<dyn Error>> {
    let (start, mut burst) = (Instant::now(), Burst::new());
    while start.elapsed() < LIFE {
        for _ in 0..1000 {
            for _ in 0..2 {
                left.rx_burst(pool, &mut burst);
                right.tx_burst(pool, &mut burst);
                pool.free_burst(&mut burst);
                std::mem::swap(&mut left, &mut right);
            }
            left.settle(pool)?;
            right.settle(pool)?;
        }
    }
    Ok(())
}
