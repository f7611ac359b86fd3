//! DPDK's testpmd: MAC forwarding of frames replayed from memory, and frames forwarded with `net_af_xdp`.

use std::path::Path;
use std::time::Duration;

use super::lab::{Lab, Program};
use super::{PeerError, tail};

/// The arguments of every testpmd here: forwarding on one core, no device of the machine, memory that goes with it.
fn environment(prefix: &str, main_core: u8) -> String {
    let own = std::process::id();
    format!("-l 0,1 --main-lcore {main_core} --no-pci --no-telemetry --in-memory --file-prefix {prefix}{own}")
}

/// What a port says of its rate.
const RECEIVED: &str = "Rx-pps:";
const SENT: &str = "Tx-pps:";

/// A testpmd that is asked by typing at it, and stopped while it is not its turn.
pub struct Testpmd {
    program: Program,
    ports: usize,
}

impl Testpmd {
    /// Starts one with `ports` ports and the arguments in two lines: of the environment (cores, devices), and its own.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start(
        lab: &Lab,
        place: usize,
        ports: usize,
        environment: &str,
        own: &str,
    ) -> Result<Testpmd, PeerError> {
        let line = format!("{environment} -- --interactive {own}");
        let mut program =
            lab.start(place, "0,1", "dpdk-testpmd", &line.split_whitespace().collect::<Vec<_>>())?;
        program.wait_for(0, "testpmd>", 1)?;
        Ok(Testpmd { program, ports })
    }

    /// Types a command.
    ///
    /// # Errors
    /// When it has ended.
    pub fn tell(&mut self, command: &str) -> Result<(), PeerError> {
        self.program.tell(command)
    }

    /// What it has said.
    ///
    /// # Errors
    /// When its log is gone.
    pub fn log(&self) -> Result<String, PeerError> {
        self.program.log()
    }

    /// Stops it.
    ///
    /// # Errors
    /// When it has ended.
    pub fn pause(&self) -> Result<(), PeerError> {
        self.program.pause()
    }

    /// Lets it go on.
    ///
    /// # Errors
    /// When it has ended.
    pub fn resume(&self) -> Result<(), PeerError> {
        self.program.resume()
    }

    /// Packets a second, received and sent by all ports, since it was last asked; by its own clock.
    pub(super) fn rates(&mut self) -> Result<(f64, f64), PeerError> {
        let from = self.program.log()?.len();
        self.program.tell("show port stats all")?;
        let said = self.program.wait_for(from, "Tx-bps", self.ports)?;
        Ok((rates(&said, RECEIVED).iter().sum(), rates(&said, SENT).iter().sum()))
    }

    /// Lets it go on for a while, after a moment to come to its pace; returns what it received and sent a second.
    ///
    /// # Errors
    /// When it has ended.
    pub fn turn(&mut self, time: Duration) -> Result<(f64, f64), PeerError> {
        self.resume()?;
        std::thread::sleep(time / 5);
        self.rates()?;
        std::thread::sleep(time);
        let rates = self.rates()?;
        self.pause()?;
        Ok(rates)
    }

    /// That it did nothing.
    #[must_use]
    pub fn idle(&self, peer: &'static str) -> PeerError {
        PeerError::Idle { peer, log: tail(&self.log().unwrap_or_default()) }
    }
}

fn rates(log: &str, label: &str) -> Vec<f64> {
    let rate = |line: &str| line.trim().strip_prefix(label)?.split_whitespace().next()?.parse().ok();
    log.lines().filter_map(rate).collect()
}

/// `mac` forwarding on CPU 1 of `pcap`'s frames, read into memory once and received over and over (`net_pcap`,
/// `infinite_rx`), to a port that discards them.
///
/// # Errors
/// When testpmd does not start.
pub fn from_memory(lab: &Lab, pcap: &Path, frames: usize) -> Result<Testpmd, PeerError> {
    // `infinite_rx` keeps every frame in a buffer of its own.
    let buffers = frames + 16_384;
    let devices = format!(
        "{} --vdev=net_pcap0,rx_pcap={},infinite_rx=1 --vdev=net_null0,no-rx=1",
        environment("mem", 0),
        pcap.display()
    );
    let own = format!("--forward-mode=mac --port-topology=chained --auto-start --total-num-mbufs={buffers}");
    let testpmd = Testpmd::start(lab, 0, 2, &devices, &own)?;
    testpmd.pause()?;
    Ok(testpmd)
}

/// Forwards every frame between two interfaces of a place, on CPU 1.
///
/// # Errors
/// When it does not start.
pub fn between(lab: &Lab, place: usize, left: &str, right: &str) -> Result<Testpmd, PeerError> {
    let devices = format!(
        "{} -m 128 --vdev=net_af_xdp0,iface={left} --vdev=net_af_xdp1,iface={right}",
        environment("dut", 0)
    );
    Testpmd::start(lab, place, 2, &devices, "--forward-mode=io --auto-start --total-num-mbufs=32768")
}

/// A switch that serves two vhost-user sockets and forwards between them on CPU 1 (`net_vhost`, `io`).
///
/// # Errors
/// When it does not start.
pub fn switch(lab: &Lab, sockets: &[std::path::PathBuf; 2]) -> Result<Testpmd, PeerError> {
    let [left, right] = sockets;
    let devices = format!(
        "{} -m 256 --vdev=net_vhost0,iface={},queues=1 --vdev=net_vhost1,iface={},queues=1",
        environment("switch", 0),
        left.display(),
        right.display()
    );
    Testpmd::start(lab, 0, 2, &devices, "--forward-mode=io --auto-start --total-num-mbufs=32768")
}

/// The environment of a guest on CPU 0.
pub(super) fn guest_environment() -> String {
    environment("guest", 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_read_from_what_testpmd_prints() {
        let log = "  Throughput (since last show)\n  Rx-pps:            0          Rx-bps:            0\n  \
                   Tx-pps:      1234567          Tx-bps:    592592160\n  Tx-pps:            1          Tx-bps: 0\n";
        assert_eq!(rates(log, SENT), [1_234_567.0, 1.0]);
        assert_eq!(rates(log, RECEIVED), [0.0]);
    }
}
