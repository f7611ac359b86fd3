//! Plain forwarding between vhost-user ports: what comes in at one goes out at the next, queue pair by queue pair.

use std::os::fd::AsRawFd;

use penstock_io::{Burst, FramePool, Port, PortCounters, PortFault, Region};
use penstock_vhost::{Intake, VhostPort};

/// One queue pair of a port, and where its frames go.
struct Lane {
    port: VhostPort,
    /// The lane that they leave by.
    to: usize,
    /// Frames that the other side had no room for.
    dropped: u64,
}

/// Ports that are joined two by two.
pub(crate) struct Forwarder {
    lanes: Vec<Lane>,
    pool: FramePool,
    burst: Burst,
}

impl Forwarder {
    /// Joins the first device with the second, the third with the fourth and so on; a last one alone answers to itself.
    /// Each device has one intake a queue pair.
    pub(crate) fn new(region: &'static Region, devices: Vec<Vec<Intake>>) -> Forwarder {
        let pairs: Vec<usize> = devices.iter().map(Vec::len).collect();
        let firsts: Vec<usize> =
            pairs.iter().scan(0, |at, &count| Some(std::mem::replace(at, *at + count))).collect();
        let mut lanes = Vec::new();
        for (device, intakes) in devices.into_iter().enumerate() {
            let other = if device ^ 1 < pairs.len() { device ^ 1 } else { device };
            for (pair, intake) in intakes.into_iter().enumerate() {
                // More pairs here than there: they share those.
                let to = firsts[other] + pair % pairs[other];
                lanes.push(Lane {
                    port: VhostPort::new(intake).expect("descriptors for a port"),
                    to,
                    dropped: 0,
                });
            }
        }
        Forwarder { lanes, pool: FramePool::new(region), burst: Burst::new() }
    }

    /// Moves a burst of each lane; how many frames came.
    ///
    /// # Errors
    /// A port's fault that is no guest's.
    pub(crate) fn turn(&mut self) -> Result<usize, PortFault> {
        let mut moved = 0;
        for from in 0..self.lanes.len() {
            let got = self.lanes[from].port.rx_burst(&mut self.pool, &mut self.burst);
            if got > 0 {
                moved += got;
                let to = self.lanes[from].to;
                self.lanes[to].port.tx_burst(&mut self.pool, &mut self.burst);
                self.lanes[from].dropped += self.burst.len() as u64;
                self.pool.free_burst(&mut self.burst);
            }
        }
        for lane in &mut self.lanes {
            lane.port.settle(&mut self.pool)?;
        }
        Ok(moved)
    }

    /// Sleeps until a port has something or some milliseconds are over.
    pub(crate) fn sleep(&mut self, millis: i32) {
        let mut restless = false;
        for lane in &mut self.lanes {
            restless |= lane.port.is_restless();
        }
        if !restless {
            let descriptors = self.lanes.iter().filter_map(|lane| lane.port.readiness());
            let mut waits: Vec<libc::pollfd> = descriptors
                .map(|fd| libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 })
                .collect();
            // SAFETY: the structures are exclusively borrowed, and their count is right.
            unsafe { libc::poll(waits.as_mut_ptr(), waits.len() as libc::nfds_t, millis) };
        }
        self.lanes.iter_mut().for_each(|lane| lane.port.wake());
    }

    /// Counters of each lane, and the frames that found no room at its other end.
    pub(crate) fn counters(&self) -> impl Iterator<Item = (PortCounters, u64)> {
        self.lanes.iter().map(|lane| (lane.port.counters(), lane.dropped))
    }

    /// Closes all ports; the pool has every chunk again.
    #[allow(dead_code, reason = "the program runs until it is killed; tests close")]
    pub(crate) fn close(mut self) -> FramePool {
        for lane in self.lanes {
            lane.port.close(&mut self.pool);
        }
        self.pool
    }
}
