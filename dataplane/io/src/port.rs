//! What every port can do, and what it counts.

use std::io;
use std::os::fd::BorrowedFd;

use thiserror::Error;

use crate::burst::Burst;
use crate::offload::Abilities;
use crate::pool::FramePool;

/// One queue of a device, owned by one worker.
///
/// rx and tx are from the worker's point of view. Neither `rx_burst` nor `tx_burst` makes a system call or waits;
/// [`Port::settle`] is the one place for what must be asked of the kernel, once a turn.
pub trait Port {
    /// Receives up to `into.room()` frames; returns how many.
    fn rx_burst(&mut self, pool: &mut FramePool, into: &mut Burst) -> usize;

    /// Hands frames to the device, first to last, and returns how many it took. What stays in `frames` was refused for
    /// lack of room; the caller frees and counts it.
    fn tx_burst(&mut self, pool: &mut FramePool, frames: &mut Burst) -> usize;

    /// Refills, takes completions back, wakes the kernel.
    ///
    /// # Errors
    /// [`PortFault`] when the device is gone or broken: the port is to be closed.
    fn settle(&mut self, pool: &mut FramePool) -> Result<(), PortFault>;

    /// What it takes beyond finished packets of one chunk. It may change when the other side changes its mind; a frame that
    /// comes in spite of that is discarded and counted as `tx_invalid`.
    fn abilities(&self) -> Abilities {
        Abilities::NONE
    }

    /// What it has counted since it was opened.
    fn counters(&self) -> PortCounters;

    /// A descriptor that becomes readable when `rx_burst` would find something; `None` for ports that only polling serves.
    fn readiness(&self) -> Option<BorrowedFd<'_>>;

    /// Chunks with the kernel: (to receive into, to send). Zero for ports that copy.
    fn with_kernel(&self) -> (u32, u32) {
        (0, 0)
    }

    /// Whether the port wants a [`Port::settle`] soon although nothing may come to wake its worker: frames that the device
    /// has yet to take, or a lack of chunks to receive into.
    fn is_restless(&mut self) -> bool {
        false
    }

    /// Its worker slept: whatever pacing there is, the next `rx_burst` looks. The descriptor tells of each arrival once, so a
    /// look that pacing leaves out after it has told would leave frames lying.
    fn wake(&mut self) {}

    /// Closes the port and takes every chunk back from it.
    fn close(self, pool: &mut FramePool);
}

/// Counters of one port queue since it was opened. Plain numbers of its worker; merged when somebody asks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortCounters {
    /// Frames received.
    pub rx_packets: u64,
    /// Bytes received, Ethernet header included, frame check sequence not.
    pub rx_bytes: u64,
    /// Frames the device took.
    pub tx_packets: u64,
    /// Bytes of these.
    pub tx_bytes: u64,
    /// Frames that could not be received for lack of a free chunk.
    pub rx_no_chunk: u64,
    /// Frames that could not be received because they were too large or malformed for the port.
    pub rx_invalid: u64,
    /// Frames discarded because the device could not send such: too short for Ethernet, or with work left to do that it
    /// does not do.
    pub tx_invalid: u64,
    /// System calls made to wake the kernel.
    pub kicks: u64,
}

/// Why a port is of no more use.
#[derive(Debug, Error)]
pub enum PortFault {
    /// The device went down or was removed.
    #[error("{port}: the device is gone or down ({source}); the port is closed until it comes back")]
    Gone {
        /// The port's name.
        port: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A system call failed that should not.
    #[error("{port}: {call} failed: {source}")]
    System {
        /// The port's name.
        port: String,
        /// The system call.
        call: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The kernel handed over a descriptor that makes no sense.
    #[error(
        "{port}: the ring handed over chunk address {address:#x}, which the kernel did not hold; the port is closed"
    )]
    ForeignChunk {
        /// The port's name.
        port: String,
        /// The address in the descriptor.
        address: u64,
    },
}
