//! A guest on vhost-user: a testpmd with two virtio-user ports on CPU 0, each of which sends what the other has received,
//! through whoever serves their sockets.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::PeerError;
use super::headers::Headers;
use super::lab::{Lab, wait_for};
use super::testpmd::{Testpmd, guest_environment};

/// The guest's rings and frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rings {
    /// Whether its rings are packed, else split.
    pub packed: bool,
    /// Bytes of each frame, check sequence included.
    pub size: u16,
}

/// How often it is looked whether frames come back: testpmd's rates are of the time between two looks.
const COMES_BACK: Duration = Duration::from_millis(100);

/// The MAC addresses of the guest's two ports.
pub const MACS: [&str; 2] = ["02:00:00:00:00:01", "02:00:00:00:00:02"];

/// The sockets of the two ports in a lab's folder.
#[must_use]
pub fn sockets(lab: &Lab) -> [PathBuf; 2] {
    ["vhost0", "vhost1"].map(|name| lab.path(name))
}

/// A guest whose frames go round.
pub struct Guest(Testpmd);

impl Guest {
    /// Starts a guest at the sockets of a lab, which somebody serves. With headers each port gives the frames that it sends
    /// those of its own, as a pod would that answers.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start(lab: &Lab, rings: Rings, headers: Option<&[Headers; 2]>) -> Result<Guest, PeerError> {
        let [left, right] = sockets(lab);
        let kind = format!("queue_size=1024,packed_vq={}", u8::from(rings.packed));
        let devices = format!(
            "{} -m 256 --single-file-segments --vdev=net_virtio_user0,path={},mac={},{kind} \
             --vdev=net_virtio_user1,path={},mac={},{kind}",
            guest_environment(),
            left.display(),
            MACS[0],
            right.display(),
            MACS[1]
        );
        let own = format!(
            "--forward-mode=io --txpkts={} --total-num-mbufs=32768 --txd=1024 --rxd=1024 --txonly-multi-flow",
            rings.size - 4
        );
        let mut testpmd = Testpmd::start(lab, 0, 2, &devices, &own)?;
        if let Some(headers) = headers {
            for (port, headers) in headers.iter().enumerate() {
                let program = headers.compile(lab, &format!("port{port}"))?;
                testpmd.tell(&format!("bpf-load tx {port} 0 J {}", program.display()))?;
            }
        }
        testpmd.tell("start tx_first")?;
        Ok(Guest(testpmd))
    }

    /// Waits until its frames come back to it; returns the packets a second.
    ///
    /// # Errors
    /// When it has ended, or they do not in time.
    pub fn come_round(&mut self) -> Result<f64, PeerError> {
        wait_for("the guest's frames to come back", || {
            std::thread::sleep(COMES_BACK);
            let (received, _) = self.0.rates()?;
            Ok((received > 0.0).then_some(received))
        })
    }

    /// Lets it go on for a while; returns the packets a second that it receives at its two ports.
    ///
    /// # Errors
    /// When it has ended, or nothing comes back.
    pub fn turn(&mut self, time: Duration) -> Result<f64, PeerError> {
        let (received, _) = self.0.turn(time)?;
        if received > 0.0 { Ok(received) } else { Err(self.0.idle("the guest's testpmd")) }
    }

    /// Stops it.
    ///
    /// # Errors
    /// When it has ended.
    pub fn pause(&self) -> Result<(), PeerError> {
        self.0.pause()
    }
}

/// Buffers of a guest besides those of the frames that it sends over and over.
const BUFFERS: u64 = 16_384;

/// MiB of huge pages that a guest of [`one_way`] takes with so many frames: a buffer with its header is less than 2.5 KiB.
#[must_use]
pub fn memory(frames: u64) -> u64 {
    64 + (BUFFERS + frames) * 5 / 2048
}

/// A guest that sends the frames of a capture, read into memory once, from a port at one socket, over and over, and that
/// takes what comes at another; either of the two, or both. `from` is (capture, frames in it, socket).
///
/// # Errors
/// When it does not start.
pub fn one_way(
    lab: &Lab,
    from: Option<(&Path, u64, &Path)>,
    to: Option<&Path>,
) -> Result<Testpmd, PeerError> {
    let port = |number: usize, socket: &Path| {
        format!(
            " --vdev=net_virtio_user{number},path={},mac={},queue_size=1024",
            socket.display(),
            MACS[number]
        )
    };
    let (mut devices, mut ports, mut buffers) = (String::new(), 0, BUFFERS);
    if let Some((capture, frames, socket)) = from {
        devices +=
            &format!(" --vdev=net_pcap0,rx_pcap={},infinite_rx=1{}", capture.display(), port(0, socket));
        ports += 2;
        // `infinite_rx` keeps every frame in a buffer of its own.
        buffers += frames;
    }
    if let Some(socket) = to {
        devices += &format!("{} --vdev=net_null0,no-rx=1", port(1, socket));
        ports += 2;
    }
    let memory = memory(buffers - BUFFERS);
    let devices = format!("{} -m {memory} --single-file-segments{devices}", guest_environment());
    let own =
        format!("--forward-mode=io --port-topology=paired --total-num-mbufs={buffers} --txd=1024 --rxd=1024");
    let mut testpmd = Testpmd::start(lab, 0, ports, &devices, &own)?;
    testpmd.tell("start")?;
    Ok(testpmd)
}
