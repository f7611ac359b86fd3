//! The device's side of virtqueues: what a guest makes available is taken in bursts and given back in the same burst.

use thiserror::Error;

/// Which of a pair's two queues, seen from the worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// What the guest sends: its transmit queue, an odd virtqueue.
    Rx,
    /// What the guest receives: its receive queue, an even virtqueue.
    Tx,
}

impl std::fmt::Display for Side {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Side::Rx => "the guest's transmit queue",
            Side::Tx => "the guest's receive queue",
        })
    }
}

/// What a ring says that cannot be true.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Lie {
    /// Not a size that this kind of ring can have.
    #[error("a ring of {0} entries: a split ring has a power of two, a packed one 1 to 32768")]
    Size(u32),
    /// A part of the ring is not in shared memory, or not aligned.
    #[error("the {0} lies outside the shared memory or is not aligned")]
    Misplaced(&'static str),
    /// More was made available than the ring has entries.
    #[error("the available index jumped to {0}")]
    IndexJump(u16),
    /// A descriptor's number that the ring does not have.
    #[error("there is no descriptor {0}")]
    NoDescriptor(u16),
    /// A chain of more descriptors than there are: a loop.
    #[error("the chain of descriptors is a loop or longer than {0}")]
    TooLong(u16),
    /// A buffer that is not in shared memory.
    #[error("a buffer of {len} bytes at {address:#x} lies outside the shared memory")]
    Outside {
        /// Its guest address.
        address: u64,
        /// Its length.
        len: u32,
    },
    /// An indirect table whose length is no whole number of descriptors, or none.
    #[error("an indirect table of {0} bytes")]
    IndirectLength(u32),
    /// An indirect descriptor that leads on or stands where it must not.
    #[error("an indirect descriptor inside a chain or a table")]
    IndirectInside,
    /// Indirect descriptors were not negotiated.
    #[error("an indirect descriptor, which was not negotiated")]
    IndirectRefused,
    /// A buffer to receive into that may only be read.
    #[error("a buffer to receive into that may not be written")]
    ReadOnly,
    /// What was left by a crash of ours makes no sense.
    #[error("the record of descriptors in flight names descriptor {0}, which cannot be")]
    Inflight(u16),
    /// The file behind the memory was truncated, or there was no page for it.
    #[error("the guest's memory went away (its file was truncated, or the host has no page left for it)")]
    MemoryGone,
}

/// Why a ring stopped. The port stays; the session closes the connection and says this.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("{side} stopped at {index}: {what}")]
pub struct RingFault {
    /// Whose ring it is.
    pub side: Side,
    /// What is wrong.
    pub what: Lie,
    /// Where in the ring we were: the available index, or the packed ring's position.
    pub index: u16,
}

mod batch;
mod packed;
mod queue;
mod reach;
mod split;

pub(crate) use batch::{Batch, CHAINS, Chain, Piece};
pub(crate) use queue::Queue;
pub(crate) use reach::{RawDescriptor, Reach};

/// A descriptor leads on to another (`VRING_DESC_F_NEXT`, `linux/virtio_ring.h`).
const NEXT: u16 = 1;
/// Its buffer is for us to write (`VRING_DESC_F_WRITE`).
const WRITE: u16 = 2;
/// Its buffer is a table of descriptors (`VRING_DESC_F_INDIRECT`).
const INDIRECT: u16 = 4;
/// Bytes of a descriptor, of either kind of ring.
const DESCRIPTOR: usize = 16;

/// Whether somebody who asked to be told of index `event` is to be told now that the index went from `old` to `new`
/// (`vring_need_event`, `linux/virtio_ring.h`).
fn passes(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}
