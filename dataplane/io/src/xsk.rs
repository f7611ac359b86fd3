//! AF_XDP: a port over one queue of a NIC, a virtual function or a veth.
//!
//! The rings are our own rather than the `xsk-rs` crate's. Its `FrameDesc` has no way to move where a packet starts, so
//! nothing could be encapsulated or decapsulated in place; its `Umem` brings its own memory, so one region could not be
//! shared by every socket; every ring operation is a call into C; and it pins an older libbpf-sys than the loader of the
//! steering program wants. Side by side on veths it forwards as fast as inline rings, the kernel being most of the cost:
//! the reason is the packet's start, not speed.

mod error;
mod held;
mod open;
mod port;
mod ring;
pub(crate) mod socket;
mod umem;

use std::sync::OnceLock;
use std::time::Duration;

use crate::clock::TicksPerSecond;

pub use error::XskError;
pub use port::XskPort;

/// Whether packets are copied between the device and the chunks: what is wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CopyMode {
    /// Zero-copy where the driver has it, else copying, and the log says so.
    #[default]
    Auto,
    /// Zero-copy or an error.
    ZeroCopy,
    /// Copying.
    Copy,
}

/// Whether packets are copied between the device and the chunks: what it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transfer {
    /// The device reads and writes the chunks itself.
    ZeroCopy,
    /// The kernel copies every packet.
    Copy,
}

impl std::fmt::Display for Transfer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Transfer::ZeroCopy => "zero-copy",
            Transfer::Copy => "copy",
        })
    }
}

/// Preferred busy polling (`Documentation/networking/napi.rst`): our system calls run the device's receive work. It is
/// for NICs; on veths it did nothing or harm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BusyPoll {
    /// Packets in one go (`SO_BUSY_POLL_BUDGET`).
    pub budget: u32,
    /// Microseconds that a call may poll for (`SO_BUSY_POLL`).
    pub timeout_us: u32,
}

/// How an AF_XDP port is set up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct XskConfig {
    /// Slots of the receive ring, a power of two.
    pub rx_ring: u32,
    /// Slots of the transmit ring and of the completion ring, a power of two.
    pub tx_ring: u32,
    /// Chunks that the kernel is kept supplied with to receive into, 64 to 32768: how long a burst may be while the worker
    /// is elsewhere, and how much memory the packets pass through. On veths 1024 carried 6 % more than 2048 and 12 % more
    /// than 4096, because what passes through then stays in the cache.
    pub fill_level: u32,
    /// Chunks that it begins with, 64 to `fill_level`. It has more as soon as the kernel used half of what it has between
    /// two looks, as long as half of all memory is free, and gives them up again when three quarters are in use: many
    /// quiet ports fit where a few busy ones do.
    pub fill_at_first: u32,
    /// Whether packets may be copied.
    pub copy: CopyMode,
    /// Preferred busy polling, if any.
    pub busy_poll: Option<BusyPoll>,
    /// Packets that one wake-up sends in copy mode (`XDP_MAX_TX_SKB_BUDGET`, Linux 6.17), 32 up to `tx_ring`. By default
    /// [`TX_BUDGET`] where the kernel has the option.
    pub tx_budget: Option<u32>,
    /// How long a receive ring that had some packets but fewer than [`PACE_BELOW`] is left alone before it is looked at
    /// again: its cache lines are what two processors fight for, and a wake-up for a few packets costs as much as one for
    /// many. A ring that was empty is looked at again at once, so a lone packet does not wait. Zero turns it off.
    pub pace: Duration,
}

impl Default for XskConfig {
    fn default() -> XskConfig {
        XskConfig {
            rx_ring: 2048,
            tx_ring: 2048,
            fill_level: 1024,
            fill_at_first: 1024,
            copy: CopyMode::Auto,
            busy_poll: None,
            tx_budget: None,
            pace: PACE,
        }
    }
}

/// Packets that one wake-up sends, unless configured.
pub const TX_BUDGET: u32 = 128;

/// How long a nearly empty receive ring is left alone, unless configured.
pub const PACE: Duration = Duration::from_micros(5);

/// Chunks that a packet is sent in at most: as many fragments as a socket buffer has (`MAX_SKB_FRAGS`, 17 unless the kernel
/// was configured otherwise; `linux/skbuff.h`).
pub const MOST_PIECES: usize = 17;

/// A receive ring with fewer packets than this is nearly empty.
pub const PACE_BELOW: usize = 32;

/// `XDP_STATISTICS` of `linux/if_xdp.h`: what the kernel counted on this socket since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct XdpStatistics {
    /// Packets dropped for other reasons than the following: mostly that they do not fit a chunk.
    pub rx_dropped: u64,
    /// Descriptors in the fill ring that made no sense.
    pub rx_invalid: u64,
    /// Descriptors in the transmit ring that made no sense.
    pub tx_invalid: u64,
    /// Packets dropped because the receive ring was full.
    pub rx_ring_full: u64,
    /// Packets dropped because the fill ring was empty.
    pub fill_ring_empty: u64,
    /// Times the transmit ring was found empty.
    pub tx_ring_empty: u64,
}

/// Ticks in `pace`, by a measurement that the process makes once.
fn pace_ticks(pace: Duration) -> u64 {
    static RATE: OnceLock<TicksPerSecond> = OnceLock::new();
    if pace.is_zero() {
        0
    } else {
        RATE.get_or_init(|| TicksPerSecond::measure(Duration::from_millis(5))).ticks(pace)
    }
}
