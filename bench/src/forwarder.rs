//! The parts of a comparison that run as programs of their own, in namespaces: a generator, and forwarders of ports alone.

use std::collections::BTreeMap;
use std::error::Error;
use std::path::Path;
use std::time::{Duration, Instant};

use penstock_io::mem::MemPort;
use penstock_io::pcap::Reader;
use penstock_io::steer::{Role, Steer, XdpMode};
use penstock_io::tap::{Tap, TapPort};
use penstock_io::{Burst, FramePool, Hugepages, Netdev, Port, Region, Ticks, XskConfig, XskPort};
use penstock_vhost::VhostPort;
use penstock_vhost::session::{Access, Role as Side, Session, SessionConfig};
use serde::{Deserialize, Serialize};

/// What a forwarder says when it is at work.
pub(crate) const FORWARDING: &str = "forwarding";
/// What a generator says when it is.
pub(crate) const SENDING: &str = "sending";
/// They end by themselves after this long, should nobody be left to end them.
const LIFE: Duration = Duration::from_secs(3600);

type Outcome = Result<(), Box<dyn Error>>;

/// Takes every frame from one veth to the other and back.
pub(crate) fn veths(left: &str, right: &str) -> Outcome {
    let mut pool = FramePool::new(Region::map(32_768, Hugepages::Auto)?);
    let (_left_steer, left) = xsk(left, &mut pool)?;
    let (_right_steer, right) = xsk(right, &mut pool)?;
    shuttle(left, right, &mut pool)
}

fn xsk(name: &str, pool: &mut FramePool) -> Result<(Steer, XskPort), Box<dyn Error>> {
    let netdev = Netdev::named(name)?;
    let steer = Steer::attach(&netdev, Role::Pod, XdpMode::Auto)?;
    let port = XskPort::open(&netdev, 0, &XskConfig::default(), pool)?;
    steer.bind(0, &port)?;
    Ok((steer, port))
}

/// Takes every frame from one vhost-user socket, which it serves, to the other and back.
pub(crate) fn sockets(left: &Path, right: &Path) -> Outcome {
    let mut pool = FramePool::new(Region::map(16_384, Hugepages::Auto)?);
    let open = |name: &str, path: &Path| -> Result<(Session, VhostPort), Box<dyn Error>> {
        let config =
            SessionConfig { role: Side::Server(Access::default()), ..SessionConfig::new(name, path) };
        let (session, intakes) = Session::open(config)?;
        let intake = intakes.into_iter().next().ok_or("a session of one pair has one")?;
        Ok((session, VhostPort::new(intake)?))
    };
    let (_one, left) = open("left", left)?;
    let (_other, right) = open("right", right)?;
    shuttle(left, right, &mut pool)
}

/// Takes every frame from one tap, which it makes and leaves down, to the other and back.
pub(crate) fn taps(left: &str, right: &str) -> Outcome {
    let mut pool = FramePool::new(Region::map(16_384, Hugepages::Auto)?);
    let open = |name: &str, last: u8| -> Result<TapPort, Box<dyn Error>> {
        let tap = Tap { name: name.to_owned(), queues: 1, mac: [2, 0, 0, 0, 1, last], mtu: 1500 };
        Ok(tap.open()?.into_iter().next().ok_or("a tap of one queue has one")?)
    };
    let (left, right) = (open(left, 1)?, open(right, 2)?);
    shuttle(left, right, &mut pool)
}

/// What a forwarder of ports alone has counted, which it prints as a line from time to time.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Counted {
    /// Frames received.
    pub(crate) received: u64,
    /// Frames that left by the other port.
    pub(crate) sent: u64,
    /// Frames lost, by reason.
    pub(crate) lost: BTreeMap<String, u64>,
    /// Turns that moved frames.
    pub(crate) turns: u64,
    /// What these took, in ticks of the time-stamp counter.
    pub(crate) ticks: u64,
}

/// What the line begins with.
pub(crate) const COUNTED: &str = "counted ";
/// How often it is printed.
const PRINTED: Duration = Duration::from_millis(50);

/// A port that says what was lost in front of it, by reason.
trait Loses {
    fn lost(&self) -> Vec<(&'static str, u64)> {
        Vec::new()
    }
}

impl Loses for XskPort {
    fn lost(&self) -> Vec<(&'static str, u64)> {
        // The figures are as good as without them when the kernel does not tell.
        let kernel = self.statistics().unwrap_or_default();
        vec![
            ("rx-too-long", kernel.rx_dropped.saturating_sub(kernel.fill_ring_empty)),
            ("rx-no-buffer", kernel.fill_ring_empty),
            ("rx-ring-full", kernel.rx_ring_full),
        ]
    }
}

impl Loses for VhostPort {}
impl Loses for TapPort {}

fn shuttle<P: Port + Loses>(left: P, right: P, pool: &mut FramePool) -> Outcome {
    println!("{FORWARDING}");
    let mut ports = [left, right];
    let (start, mut burst, mut refused) = (Instant::now(), Burst::new(), 0);
    let (mut printed, mut counted) = (start, Counted::default());
    while start.elapsed() < LIFE {
        for _ in 0..100 {
            let before = Ticks::now();
            let mut received = 0;
            for _ in 0..2 {
                let [from, to] = &mut ports;
                received += from.rx_burst(pool, &mut burst);
                to.tx_burst(pool, &mut burst);
                refused += burst.len() as u64;
                pool.free_burst(&mut burst);
                ports.swap(0, 1);
            }
            for port in &mut ports {
                port.settle(pool)?;
            }
            if received > 0 {
                counted.turns += 1;
                counted.ticks += Ticks::now().since(before);
            }
        }
        if printed.elapsed() > PRINTED {
            printed = Instant::now();
            counted.look(&ports, refused);
            println!("{COUNTED}{}", serde_json::to_string(&counted)?);
        }
    }
    Ok(())
}

impl Counted {
    fn look<P: Port + Loses>(&mut self, ports: &[P; 2], refused: u64) {
        let counters = ports.each_ref().map(P::counters);
        self.received = counters.iter().map(|it| it.rx_packets).sum();
        self.sent = counters.iter().map(|it| it.tx_packets).sum();
        let mut lost = vec![("tx-ring-full", refused)];
        for (port, it) in ports.iter().zip(&counters) {
            lost.extend([
                ("rx-no-buffer", it.rx_no_chunk),
                ("rx-invalid", it.rx_invalid),
                ("tx-invalid", it.tx_invalid),
            ]);
            lost.extend(port.lost());
        }
        self.lost.clear();
        for (reason, count) in lost.into_iter().filter(|(_, count)| *count > 0) {
            *self.lost.entry(reason.to_owned()).or_default() += count;
        }
    }
}

/// Longer than this between two looks at the clock, a generator was stopped: what was due meanwhile is not sent.
const STOPPED: Duration = Duration::from_millis(10);

/// Sends the frames of a capture file from an interface over and over: as fast as it takes them, or so many a second.
pub(crate) fn generate(interface: &str, frames: &Path, rate: Option<f64>) -> Outcome {
    let mut pool = FramePool::new(Region::map(16_384, Hugepages::Auto)?);
    let netdev = Netdev::named(interface)?;
    let mut port = XskPort::open(&netdev, 0, &XskConfig::default(), &mut pool)?;
    let file = std::fs::read(frames)?;
    let frames: Vec<Vec<u8>> = Reader::new(&file)?
        .map(|record| Ok(record?.bytes.to_vec()))
        .collect::<Result<_, Box<dyn Error>>>()?;
    let mut source = MemPort::replay(&frames, (0..frames.len() as u32).collect());
    source.set_paced(rate.is_some());
    println!("{SENDING}");
    let (start, mut burst) = (Instant::now(), Burst::new());
    let (mut last, mut due, mut arrived) = (start, 0.0, 0);
    while start.elapsed() < LIFE {
        for _ in 0..100 {
            if let Some(rate) = rate {
                let now = Instant::now();
                let passed = now - std::mem::replace(&mut last, now);
                due += if passed > STOPPED { 0.0 } else { passed.as_secs_f64() * rate };
                source.arrive(due as u64 - arrived);
                arrived = due as u64;
            }
            source.rx_burst(&mut pool, &mut burst);
            port.tx_burst(&mut pool, &mut burst);
            pool.free_burst(&mut burst);
            port.settle(&mut pool)?;
        }
    }
    Ok(())
}
