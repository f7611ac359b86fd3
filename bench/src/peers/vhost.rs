//! vhost-user: two virtio-user ports of one testpmd, the guest on CPU 0, and testpmd's `net_vhost` on CPU 1 between them in
//! the place that ours takes.

use std::path::PathBuf;
use std::time::Duration;

use super::lab::{Lab, Program};
use super::testpmd::{received_rates, start};
use super::{PeerError, tail};

/// What a switch takes to serve its sockets, and a guest to come to its pace.
const WARM_UP: Duration = Duration::from_secs(4);

/// The guest's rings and frames.
#[derive(Clone, Copy, Debug)]
pub struct Guest {
    /// Whether its rings are packed, else split.
    pub packed: bool,
    /// Bytes of each frame, check sequence not included.
    pub size: u16,
}

/// The sockets of the two ports in a lab's folder.
#[must_use]
pub fn sockets(lab: &Lab) -> [PathBuf; 2] {
    ["vhost0", "vhost1"].map(|name| lab.path(name))
}

/// Starts testpmd's plain forwarding between the two sockets, which it serves, on CPU 1.
///
/// # Errors
/// When it does not start.
pub fn switch(lab: &Lab) -> Result<Program, PeerError> {
    let [left, right] = sockets(lab);
    let line = format!(
        "-l 0,1 --main-lcore 0 --no-pci --in-memory --file-prefix switch -m 256 --vdev=net_vhost0,iface={},queues=1 \
         --vdev=net_vhost1,iface={},queues=1 -- --forward-mode=io --auto-start --stats-period 1 \
         --total-num-mbufs=32768",
        left.display(),
        right.display()
    );
    start(lab, 0, &line)
}

/// Packets a second that a guest receives at its two ports, each of which sends what the other has received, through
/// whoever serves the sockets.
///
/// # Errors
/// When testpmd does not run or nothing comes back.
pub fn circulate(lab: &Lab, guest: Guest, time: Duration) -> Result<f64, PeerError> {
    std::thread::sleep(WARM_UP);
    let [left, right] = sockets(lab);
    let device = format!("queue_size=1024,packed_vq={}", u8::from(guest.packed));
    let line = format!(
        "-l 0,1 --main-lcore 1 --no-pci --in-memory --file-prefix guest -m 256 --single-file-segments \
         --vdev=net_virtio_user0,path={},{device} --vdev=net_virtio_user1,path={},{device} -- --forward-mode=io \
         --auto-start --tx-first --txpkts={} --stats-period 1 --total-num-mbufs=32768 --txd=1024 --rxd=1024",
        left.display(),
        right.display(),
        guest.size
    );
    let program = start(lab, 0, &line)?;
    std::thread::sleep(WARM_UP);
    let before = received_rates(&program.log()?).len();
    std::thread::sleep(time);
    let log = program.log()?;
    let rates = received_rates(&log);
    let steady = &rates[before.min(rates.len())..];
    if steady.is_empty() {
        return Err(PeerError::Idle { peer: "the guest's testpmd", log: tail(&log) });
    }
    // Each of the two ports prints its own.
    Ok(2.0 * steady.iter().sum::<f64>() / steady.len() as f64)
}
