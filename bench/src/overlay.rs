//! Round trips from a pod of one node to a pod of another, through both daemons and the tunnel between them.

use std::error::Error;
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use crate::document::quantiles;
use crate::peers::PeerError;
use crate::peers::daemon::{CACHED, Daemon, settings};
use crate::peers::lab::{Lab, Program};

/// The places of the lab.
const PODS: [usize; 2] = [0, 3];
const NODES: [usize; 2] = [1, 2];
/// Where the far pod echoes.
const PORT: u16 = 7;
/// How long an answer is waited for after the last question.
const LAST: Duration = Duration::from_millis(500);
/// A sleep is this much too long at times: the rest is waited for with the clock in hand.
const OVERSLEPT: Duration = Duration::from_micros(200);
/// Answers later than this count as this late.
const LONGEST: u64 = 10_000_000_000;

/// Two nodes, a pod on each, and an echo in the second.
pub struct Overlay {
    _echo: Program,
    _daemons: [Daemon; 2],
    lab: Lab,
}

/// What round trips took.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Trips {
    /// Questions sent.
    pub sent: u64,
    /// Answers received.
    pub received: u64,
    /// (quantile, nanoseconds).
    pub quantiles: Vec<(f64, u64)>,
    /// The longest.
    pub max: u64,
}

impl Overlay {
    /// Builds it.
    ///
    /// # Errors
    /// When something is missing or does not come up.
    pub fn build() -> Result<Overlay, PeerError> {
        let lab = Lab::new(&["pod1", "node1", "node2", "pod2"])?;
        lab.join((NODES[0], "under"), (NODES[1], "under"))?;
        let mut daemons = Vec::new();
        for (number, (&pod, &node)) in (1u8..).zip(PODS.iter().zip(&NODES)) {
            lab.join((pod, "eth0"), (node, "pod"))?;
            lab.inside(node, &format!("ip addr add 192.168.9.{number}/24 dev under"))?;
            // Room for the tunnel's headers.
            lab.inside(node, "ip link set under mtu 1600")?;
            lab.inside(pod, &format!("ip addr add 10.1.{number}.1/32 dev eth0"))?;
            lab.inside(pod, "ip route add 169.254.1.1 dev eth0 scope link")?;
            lab.inside(pod, "ip route add default via 169.254.1.1")?;
            let mac = lab.sysfs(pod, "eth0", "address")?;
            let file =
                settings(&lab, &format!("node{number}"), usize::from(number) - 1, "adaptive", "", CACHED)
                    + &objects(number, 3 - number, &mac);
            let name = format!("node{number}");
            daemons.push(Daemon::start(&lab, node, &name, "0,1", &file)?);
        }
        let Ok(daemons) = <[Daemon; 2]>::try_from(daemons) else {
            return Err(PeerError::Waited { what: "two daemons" });
        };
        let echo = lab.start_part(PODS[1], "0,1", &["echo", &PORT.to_string()], "echoing")?;
        Ok(Overlay { _echo: echo, _daemons: daemons, lab })
    }

    /// Sends so many questions a second, by schedule, for so many seconds.
    ///
    /// # Errors
    /// When the program that does cannot be run or says nonsense.
    pub fn trips(&self, rate: f64, time: Duration) -> Result<Trips, PeerError> {
        let program = std::env::current_exe().unwrap_or_default().display().to_string();
        let line = format!("{program} probe 10.1.2.1:{PORT} {rate} {}", time.as_secs_f64());
        let said = self.lab.inside(PODS[0], &line)?;
        serde_json::from_str(&said)
            .map_err(|fault| PeerError::Refused { command: line, said: fault.to_string() })
    }
}

/// The objects of node `number`, whose peer is the other one.
fn objects(number: u8, other: u8, mac: &str) -> String {
    format!(
        "[[uplink]]\nname = \"uplink\"\ninterface = \"under\"\n\
         [[network]]\nname = \"default\"\nvni = 100\nprefixes = [\"10.1.0.0/16\"]\n\
         [[endpoint]]\nname = \"pod\"\nnetwork = \"default\"\nmac = \"{mac}\"\naddresses = [\"10.1.{number}.1\"]\n\
         attachment = {{ veth = {{ interface = \"pod\" }} }}\n\
         [[peer]]\nname = \"other\"\naddress = \"192.168.9.{other}\"\n\
         [[route]]\nnetwork = \"default\"\nprefix = \"10.1.{other}.0/24\"\nvia = {{ peer = \"other\" }}\n"
    )
}

/// Sends everything back, for ever.
pub(crate) fn echo(port: u16) -> Result<(), Box<dyn Error>> {
    let socket = UdpSocket::bind(("0.0.0.0", port))?;
    println!("echoing");
    let mut buffer = [0; 2048];
    loop {
        let (len, from) = socket.recv_from(&mut buffer)?;
        // Whoever has gone takes no answer.
        let _ = socket.send_to(&buffer[..len], from);
    }
}

/// Asks by schedule and says what the answers took.
pub(crate) fn probe(to: SocketAddr, rate: f64, seconds: f64) -> Result<(), Box<dyn Error>> {
    let socket = UdpSocket::bind(("0.0.0.0", 0))?;
    socket.connect(to)?;
    socket.set_read_timeout(Some(Duration::from_millis(50)))?;
    await_answer(&socket)?;
    let count = (rate * seconds) as u64;
    let between = Duration::from_secs_f64(1.0 / rate);
    let (start, is_over) = (Instant::now() + Duration::from_millis(20), AtomicBool::new(false));
    let intended = |number: u64| start + Duration::from_secs_f64(between.as_secs_f64() * number as f64);
    let latencies = std::thread::scope(|scope| {
        let receiver = scope.spawn(|| receive(&socket, &is_over, intended));
        for number in 0..count {
            wait_until(intended(number));
            // What cannot be sent is not answered, and counted so.
            let _ = socket.send(&number.to_be_bytes());
        }
        std::thread::sleep(LAST);
        is_over.store(true, Ordering::Relaxed);
        receiver.join()
    });
    let latencies = match latencies {
        Ok(latencies) => latencies?,
        Err(panic) => std::panic::resume_unwind(panic),
    };
    let trips = Trips {
        sent: count,
        received: latencies.len(),
        quantiles: quantiles(&latencies),
        max: latencies.max(),
    };
    println!("{}", serde_json::to_string(&trips)?);
    Ok(())
}

/// The first packet asks for neighbours and opens connections; it is none that is measured.
fn await_answer(socket: &UdpSocket) -> Result<(), Box<dyn Error>> {
    let mut buffer = [0; 16];
    for _ in 0..200 {
        let _ = socket.send(&[0; 16]);
        if socket.recv(&mut buffer).is_ok() {
            // What else is on its way is longer than what is measured, and left out by that.
            return Ok(());
        }
    }
    Err("no answer in ten seconds".into())
}

fn wait_until(moment: Instant) {
    let ahead = moment.saturating_duration_since(Instant::now());
    if ahead > OVERSLEPT {
        std::thread::sleep(ahead - OVERSLEPT);
    }
    while Instant::now() < moment {
        std::hint::spin_loop();
    }
}

fn receive(
    socket: &UdpSocket,
    is_over: &AtomicBool,
    intended: impl Fn(u64) -> Instant,
) -> Result<Histogram<u64>, std::io::Error> {
    let mut latencies = Histogram::new_with_max(LONGEST, 3).map_err(std::io::Error::other)?;
    let mut buffer = [0; 32];
    while !is_over.load(Ordering::Relaxed) {
        let Ok(len) = socket.recv(&mut buffer) else { continue };
        let now = Instant::now();
        if let Ok(number) = <[u8; 8]>::try_from(&buffer[..len]) {
            let took = now.saturating_duration_since(intended(u64::from_be_bytes(number)));
            latencies.saturating_record(took.as_nanos().clamp(1, u128::from(LONGEST)) as u64);
        }
    }
    Ok(latencies)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_waited_for_and_not_missed_by_much() {
        let moment = Instant::now() + Duration::from_millis(5);
        wait_until(moment);
        assert!(Instant::now() >= moment);
    }

    #[test]
    fn nodes_know_each_other() {
        let objects = objects(1, 2, "02:00:00:00:00:01");
        assert!(objects.contains("192.168.9.2") && objects.contains("10.1.2.0/24"), "{objects}");
    }
}
