//! A port with its pool, as a worker has it.

#![allow(dead_code, unreachable_pub, clippy::unwrap_used, reason = "each test uses its part")]

use std::fs::File;
use std::os::fd::{FromRawFd, IntoRawFd};
use std::sync::Arc;

use penstock_io::{Burst, FramePool, Hugepages, Port, Region};
use penstock_vhost::features::{INDIRECT_DESC, MRG_RXBUF, RING_PACKED, VERSION_1};
use penstock_vhost::naive::Arena;
use penstock_vhost::{Doorbell, PairSetup, RingSetup, Switch, VhostPort, handover};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// What a plain version 1 guest agrees to.
pub const PLAIN: u64 = VERSION_1 | INDIRECT_DESC;
/// The same with mergeable buffers, with a packed ring, with both.
pub const MERGEABLE: u64 = PLAIN | MRG_RXBUF;
pub const PACKED: u64 = PLAIN | RING_PACKED;

/// Bytes of the header in front of a packet.
pub const HEADER: usize = 12;

pub struct Device {
    pub port: VhostPort,
    pub switch: Switch,
    pub pool: FramePool,
    pub burst: Burst,
}

impl Device {
    pub fn new() -> Device {
        let (switch, intake) = handover("pod").unwrap();
        let pool = FramePool::new(Region::map(1024, Hugepages::Off).unwrap());
        Device { port: VhostPort::new(intake).unwrap(), switch, pool, burst: Burst::new() }
    }

    /// One that serves these rings of an arena.
    pub fn serving(arena: &Arena, features: u64, rx: Option<RingSetup>, tx: Option<RingSetup>) -> Device {
        let mut device = Device::new();
        device.start(PairSetup { memory: arena.memory().unwrap(), features, rx, tx, log: None });
        device
    }

    pub fn start(&mut self, pair: PairSetup) {
        self.switch.start(pair);
        self.settle();
    }

    pub fn settle(&mut self) {
        self.port.settle(&mut self.pool).unwrap();
        // As the session does when the port wakes it.
        self.switch.ring_bells();
    }

    /// One burst from the guest.
    pub fn receive(&mut self) -> Vec<Vec<u8>> {
        let got = self.port.rx_burst(&mut self.pool, &mut self.burst);
        assert_eq!(got, self.burst.len());
        let frames = self.burst.frames().iter().map(|frame| frame.to_vec()).collect();
        self.pool.free_burst(&mut self.burst);
        frames
    }

    /// One burst to the guest; returns how many it took.
    pub fn send(&mut self, packets: &[Vec<u8>]) -> usize {
        for packet in packets {
            let frame = self.pool.alloc_chain(packet).unwrap();
            self.burst.push(frame).unwrap();
        }
        let taken = self.port.tx_burst(&mut self.pool, &mut self.burst);
        assert_eq!(self.burst.len(), packets.len() - taken);
        self.pool.free_burst(&mut self.burst);
        taken
    }

    /// Ends the port; no frame may be missing.
    pub fn close(mut self) {
        let region = self.pool.region();
        self.port.close(&mut self.pool);
        drop(self.pool);
        assert_eq!(region.strays(), 0);
        #[cfg(debug_assertions)]
        assert_eq!(region.census().free, region.chunks());
    }
}

/// A bell, and the other end of its rope.
pub fn bell() -> (Arc<Doorbell>, EventFd) {
    let event = EventFd::new(EFD_NONBLOCK).unwrap();
    let other = event.try_clone().unwrap();
    // SAFETY: the descriptor was given up by its owner.
    let file = unsafe { File::from_raw_fd(event.into_raw_fd()) };
    (Arc::new(Doorbell::new(file).unwrap()), other)
}

/// Bytes of the longest packet.
pub const LONGEST: usize = 14 + 4 + 65535;

/// A packet of `len` bytes that tells its number.
pub fn packet(number: u64, len: usize) -> Vec<u8> {
    (0..len as u64).map(|at| (number.wrapping_mul(31).wrapping_add(at * 7)) as u8).collect()
}
