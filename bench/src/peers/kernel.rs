//! Frames through a machine between two veths: a generator sends on CPU 0, somebody forwards on CPU 1, the far end counts.
//! The forwarder may be the kernel itself: by a route, a bridge, a VXLAN device, under nftables.

use std::fmt::Write;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::{Duration, Instant};

use super::PeerError;
use super::daemon::{CACHED, Daemon, GATEWAY, settings};
use super::lab::{Lab, Program, run};
use super::testpmd::{Testpmd, between};
use penstock_wire::MacAddr;

use crate::forwarder::{FORWARDING, SENDING};
use crate::node::policies;
use crate::profile::{Popularity, Segment, Size};
use crate::traffic::{Ends, Stream};

/// What is done with the frames between the veths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// Each goes out as it came in.
    Wire,
    /// Each is sent on by its destination's MAC address.
    Bridge,
    /// Each is routed.
    Route,
    /// Each is routed into a VXLAN tunnel.
    Vxlan,
    /// Each is of a tracked connection, under so many rules that it does not match, and routed.
    Rules(u32),
}

/// Who does it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// The kernel.
    Kernel,
    /// Our daemon.
    Daemon,
    /// Our ports alone.
    Ports,
    /// testpmd with `net_af_xdp`.
    Testpmd,
}

enum Forwarder {
    Kernel,
    Daemon(Daemon),
    Ports(Program),
    Testpmd(Testpmd),
}

/// The places of the lab.
const GENERATOR: usize = 0;
const MACHINE: usize = 1;
const SINK: usize = 2;
/// Who sends and who is sent to.
const FROM: Ipv4Addr = Ipv4Addr::new(10, 1, 1, 1);
const TO: Ipv4Addr = Ipv4Addr::new(10, 1, 2, 1);
/// Flows that the generator sends.
const FLOWS: u32 = 1000;

/// A generator, a forwarder and a far end.
pub struct Street {
    // Programs end before the namespaces that they are in.
    forwarder: Forwarder,
    generator: Program,
    lab: Lab,
}

impl Street {
    /// Builds one; everything in it stands still.
    ///
    /// # Errors
    /// When something is missing or the kernel refuses.
    pub fn build(who: Who, work: Work) -> Result<Street, PeerError> {
        let lab = Lab::new(&["gen", "dut", "sink"])?;
        lab.join((GENERATOR, "gen"), (MACHINE, "left"))?;
        lab.join((MACHINE, "right"), (SINK, "sink"))?;
        for (place, name) in [(MACHINE, "right"), (SINK, "sink")] {
            // Room for a tunnel's headers.
            lab.inside(place, &format!("ip link set {name} mtu 1600"))?;
        }
        let mac = |place, name| lab.sysfs(place, name, "address");
        let (left, sink) = (mac(MACHINE, "left")?, mac(SINK, "sink")?);
        if work == Work::Vxlan {
            lab.inside(MACHINE, "ip addr add 192.168.9.1/24 dev right")?;
            lab.inside(SINK, "ip addr add 192.168.9.2/24 dev sink")?;
        }
        let forwarder = match who {
            Who::Kernel => {
                kernel(&lab, work, &sink)?;
                Forwarder::Kernel
            }
            Who::Daemon => Forwarder::Daemon(daemon(&lab, work, &mac(GENERATOR, "gen")?, &sink)?),
            Who::Ports => Forwarder::Ports(lab.start_part(
                MACHINE,
                "1",
                &["forward-veths", "left", "right"],
                FORWARDING,
            )?),
            Who::Testpmd => Forwarder::Testpmd(between(&lab, MACHINE, "left", "right")?),
        };
        let station = match (who, work) {
            (_, Work::Wire | Work::Bridge) if who != Who::Daemon => &sink,
            (Who::Kernel, _) => &left,
            _ => "02:00:00:00:00:fe",
        };
        let frames = lab.path("frames.pcap");
        traffic(station, &mac(GENERATOR, "gen")?, &frames)?;
        let arguments = ["generate", "gen", &frames.to_string_lossy()];
        let generator = lab.start_part(GENERATOR, "0", &arguments, SENDING)?;
        let street = Street { forwarder, generator, lab };
        street.pause()?;
        Ok(street)
    }

    fn pause(&self) -> Result<(), PeerError> {
        self.generator.pause()?;
        match &self.forwarder {
            Forwarder::Kernel => Ok(()),
            Forwarder::Daemon(daemon) => daemon.pause(),
            Forwarder::Ports(program) => program.pause(),
            Forwarder::Testpmd(testpmd) => testpmd.pause(),
        }
    }

    fn resume(&self) -> Result<(), PeerError> {
        match &self.forwarder {
            Forwarder::Kernel => {}
            Forwarder::Daemon(daemon) => daemon.resume()?,
            Forwarder::Ports(program) => program.resume()?,
            Forwarder::Testpmd(testpmd) => testpmd.resume()?,
        }
        self.generator.resume()
    }

    /// Lets frames come for a while, after a moment to come to pace; returns the packets a second that arrive, and those
    /// that were sent.
    ///
    /// # Errors
    /// When nothing arrives.
    pub fn turn(&self, time: Duration) -> Result<(f64, f64), PeerError> {
        self.resume()?;
        std::thread::sleep(time / 3);
        let (start, before) = (Instant::now(), self.counts()?);
        std::thread::sleep(time);
        let (after, elapsed) = (self.counts()?, start.elapsed().as_secs_f64());
        let drops = match &self.forwarder {
            Forwarder::Daemon(daemon) if after.1 == before.1 => format!("drops: {:?}", daemon.drops()?),
            Forwarder::Ports(program) if after.1 == before.1 => program.log()?,
            Forwarder::Testpmd(testpmd) if after.1 == before.1 => testpmd.log()?,
            _ => String::new(),
        };
        self.pause()?;
        if after.1 == before.1 {
            return Err(PeerError::Idle { peer: "the machine between the veths", log: super::tail(&drops) });
        }
        Ok(((after.1 - before.1) as f64 / elapsed, (after.0 - before.0) as f64 / elapsed))
    }

    /// Frames sent and frames that arrived.
    fn counts(&self) -> Result<(u64, u64), PeerError> {
        let count = |place, name, file| -> Result<u64, PeerError> {
            Ok(self.lab.sysfs(place, name, file)?.parse().unwrap_or(0))
        };
        Ok((count(GENERATOR, "gen", "statistics/tx_packets")?, count(SINK, "sink", "statistics/rx_packets")?))
    }
}

/// Writes what the generator sends: 64-byte datagrams to a station.
fn traffic(station: &str, own: &str, path: &Path) -> Result<(), PeerError> {
    let stream = Stream {
        flows: FLOWS,
        size: Size::Bytes(64),
        popularity: Popularity::Uniform,
        segment: Segment::Udp,
        // What leaves a pod has one.
        has_checksum: true,
        seed: 1,
    };
    let mac = |text: &str| {
        text.parse::<MacAddr>().map_err(|fault| PeerError::Refused {
            command: format!("read the MAC address \"{text}\""),
            said: fault.to_string(),
        })
    };
    let ends = Ends { dst_mac: mac(station)?, src_mac: mac(own)?, src: FROM.into(), dst: TO.into() };
    let written =
        stream.traffic(&ends).map_err(std::io::Error::other).and_then(|traffic| traffic.write(path));
    written.map_err(|source| PeerError::File { path: path.to_owned(), source })
}

/// Lets the kernel forward: what comes in at `left` is worked on on CPU 1 (receive packet steering), else the generator's own
/// CPU would.
fn kernel(lab: &Lab, work: Work, sink: &str) -> Result<(), PeerError> {
    let namespace = lab.namespace(MACHINE);
    let steering = "echo 2 > /sys/class/net/left/queues/rx-0/rps_cpus";
    run("ip", &["netns", "exec", namespace, "sh", "-c", steering])?;
    if matches!(work, Work::Wire | Work::Bridge) {
        lab.inside(MACHINE, "ip link add name switch type bridge")?;
        for name in ["left", "right"] {
            lab.inside(MACHINE, &format!("ip link set {name} master switch"))?;
        }
        lab.inside(MACHINE, "ip link set switch up")?;
        return Ok(());
    }
    lab.inside(MACHINE, "sysctl -qw net.ipv4.ip_forward=1")?;
    lab.inside(MACHINE, "ip addr add 10.1.1.254/24 dev left")?;
    let out = if work == Work::Vxlan {
        lab.inside(
            MACHINE,
            "ip link add vx type vxlan id 100 dstport 4789 local 192.168.9.1 remote 192.168.9.2 dev right",
        )?;
        lab.inside(MACHINE, "ip link set vx up")?;
        lab.inside(MACHINE, &format!("ip neigh replace 192.168.9.2 lladdr {sink} dev right nud permanent"))?;
        "vx"
    } else {
        "right"
    };
    lab.inside(MACHINE, &format!("ip addr add 10.1.2.254/24 dev {out}"))?;
    lab.inside(MACHINE, &format!("ip neigh replace {TO} lladdr {sink} dev {out} nud permanent"))?;
    if let Work::Rules(count) = work {
        let path = lab.path("rules.nft");
        std::fs::write(&path, ruleset(count))
            .map_err(|source| PeerError::File { path: path.clone(), source })?;
        lab.inside(MACHINE, &format!("nft -f {}", path.display()))?;
    }
    Ok(())
}

/// The rules of [`policies`], in the kernel's words.
fn ruleset(count: u32) -> String {
    let mut text = String::from(
        "table ip bench {\n chain forward {\n  type filter hook forward priority 0; policy accept;\n  \
         ct state established,related accept\n",
    );
    for number in 0..count {
        let address = Ipv4Addr::from(0xac10_0000 + number);
        let verdict = if number % 3 == 0 { "drop" } else { "accept" };
        // A string takes all that is written to it.
        let _ = writeln!(text, "  ip daddr {address} tcp dport {} {verdict}", 1 + number % 60_000);
    }
    text + "  ip daddr 10.1.0.0/16 udp dport 1-65535 accept\n  drop\n }\n}\n"
}

/// Our daemon in the kernel's place.
fn daemon(lab: &Lab, work: Work, from: &str, to: &str) -> Result<Daemon, PeerError> {
    let mut objects = format!(
        "[[network]]\nname = \"default\"\nvni = 100\nprefixes = [\"10.1.0.0/16\"]\n\
         [[endpoint]]\nname = \"a\"\nnetwork = \"default\"\nmac = \"{from}\"\naddresses = [\"{FROM}\"]\n\
         attachment = {{ veth = {{ interface = \"left\" }} }}\n"
    );
    if work == Work::Vxlan {
        objects += "[[uplink]]\nname = \"uplink\"\ninterface = \"right\"\n\
                    [[peer]]\nname = \"node2\"\naddress = \"192.168.9.2\"\n\
                    [[route]]\nnetwork = \"default\"\nprefix = \"10.1.2.0/24\"\nvia = { peer = \"node2\" }\n";
    } else {
        let _ = write!(
            objects,
            "[[endpoint]]\nname = \"b\"\nnetwork = \"default\"\nmac = \"{to}\"\naddresses = [\"{TO}\"]\n\
             attachment = {{ veth = {{ interface = \"right\" }} }}\n"
        );
    }
    if let Work::Rules(count) = work {
        objects += &policies(count);
    }
    let daemon = Daemon::start(
        lab,
        MACHINE,
        "node1",
        "0,1",
        &(settings(lab, "node1", 1, "poll", GATEWAY, CACHED) + &objects),
    )?;
    daemon.await_ports(&["a"])?;
    Ok(daemon)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_gets_the_rules_that_we_get() {
        let rules = ruleset(3);
        assert_eq!(rules.matches(" drop\n").count() + rules.matches(" accept\n").count(), 6, "{rules}");
        assert!(rules.contains("ip daddr 172.16.0.2 tcp dport 3 accept"), "{rules}");
        let ours = policies(3);
        assert!(ours.contains("172.16.0.2/32") && ours.contains("port = 3 }"), "{ours}");
    }
}
