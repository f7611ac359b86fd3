//! DPDK's testpmd: MAC forwarding of frames replayed from memory, and frames sent and forwarded with `net_af_xdp`.

use std::path::Path;
use std::time::Duration;

use super::lab::{Lab, Program};
use super::{PeerError, tail};

/// What testpmd takes to read its frames and to come to its pace.
const WARM_UP: Duration = Duration::from_secs(4);

/// The arguments of every testpmd here: forwarding on one core, no device of the machine, memory that goes with it.
fn environment(prefix: &str, main_core: u8) -> String {
    format!("-l 0,1 --main-lcore {main_core} --no-pci --in-memory --file-prefix {prefix}")
}

/// Starts testpmd with the arguments in `line`.
pub(super) fn start(lab: &Lab, place: usize, line: &str) -> Result<Program, PeerError> {
    lab.start(place, "0,1", "dpdk-testpmd", &line.split_whitespace().collect::<Vec<_>>())
}

/// Packets a second of `mac` forwarding on CPU 1, from `pcap`'s frames, read into memory once and received over and over
/// (`net_pcap`, `infinite_rx`), to a port that discards them.
///
/// # Errors
/// When testpmd does not run or forwards nothing.
pub fn from_memory(lab: &Lab, pcap: &Path, frames: usize, time: Duration) -> Result<f64, PeerError> {
    // `infinite_rx` keeps every frame in a buffer of its own.
    let buffers = frames + 16_384;
    let line = format!(
        "{} --vdev=net_pcap0,rx_pcap={},infinite_rx=1 --vdev=net_null0,no-rx=1 -- --forward-mode=mac \
         --port-topology=chained --auto-start --stats-period 1 --total-num-mbufs={buffers}",
        environment("mem", 0),
        pcap.display()
    );
    let program = start(lab, 0, &line)?;
    std::thread::sleep(WARM_UP);
    let before = sent_rates(&program.log()?).len();
    std::thread::sleep(time);
    let log = program.log()?;
    let rates = sent_rates(&log);
    let steady = &rates[before.min(rates.len())..];
    if steady.is_empty() {
        return Err(PeerError::Idle { peer: "testpmd", log: tail(&log) });
    }
    Ok(steady.iter().sum::<f64>() / steady.len() as f64)
}

/// The rates that it printed, without its idle ports' zeros.
fn sent_rates(log: &str) -> Vec<f64> {
    rates(log, "Tx-pps:")
}

/// The same of what it received.
pub(super) fn received_rates(log: &str) -> Vec<f64> {
    rates(log, "Rx-pps:")
}

fn rates(log: &str, label: &str) -> Vec<f64> {
    let rate = |line: &str| line.trim().strip_prefix(label)?.split_whitespace().next()?.parse().ok();
    log.lines().filter_map(rate).filter(|&rate: &f64| rate > 0.0).collect()
}

/// Starts to forward every frame between two interfaces, on CPU 1.
///
/// # Errors
/// When it does not start.
pub fn forward(lab: &Lab, place: usize, left: &str, right: &str) -> Result<Program, PeerError> {
    let line = format!(
        "{} -m 128 --vdev=net_af_xdp0,iface={left} --vdev=net_af_xdp1,iface={right} -- --forward-mode=io \
         --auto-start --stats-period 1 --total-num-mbufs=32768",
        environment("dut", 0)
    );
    start(lab, place, &line)
}

/// Starts to send 64-byte frames to a station as fast as CPU 0 can.
///
/// # Errors
/// When it does not start.
pub fn send(lab: &Lab, place: usize, interface: &str, station: &str) -> Result<Program, PeerError> {
    let line = format!(
        "{} -m 128 --vdev=net_af_xdp0,iface={interface} -- --forward-mode=txonly --auto-start \
         --stats-period 1 --txpkts=64 --total-num-mbufs=16384 --eth-peer=0,{station}",
        environment("gen", 1)
    );
    start(lab, place, &line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_read_from_what_testpmd_prints() {
        let log = "  Throughput (since last show)\n  Rx-pps:            0          Rx-bps:            0\n  \
                   Tx-pps:      1234567          Tx-bps:    592592160\n  Tx-pps:            0          Tx-bps: 0\n";
        assert_eq!(sent_rates(log), [1_234_567.0]);
    }
}
