//! What a worker counts, where others can read it.
//!
//! The worker adds up in plain numbers of its own and stores them once a turn: no shared write a packet, and readers never
//! disturb it. Each worker's block is its own cache lines.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use penstock_io::PortCounters;
use penstock_io::xsk::XdpStatistics;

use crate::drop::Reason;
use crate::port::PortId;

/// Makes a struct of plain numbers and its twin of shared words.
macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// A worker's counters, as plain numbers.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Counts { $($(#[$doc])* pub $name: u64,)* }

        #[derive(Debug, Default)]
        struct Shared { $($name: AtomicU64,)* }

        impl Shared {
            fn store(&self, counts: &Counts) { $(self.$name.store(counts.$name, Ordering::Relaxed);)* }
            fn load(&self) -> Counts { Counts { $($name: self.$name.load(Ordering::Relaxed),)* } }
        }
    };
}

counters! {
    /// Turns of the loop.
    turns,
    /// Turns that moved at least one packet.
    busy_turns,
    /// Time-stamp ticks spent in turns that moved packets.
    busy_ticks,
    /// Time-stamp ticks since the worker started.
    ticks,
    /// Times it blocked for want of packets.
    sleeps,
    /// Frames received.
    rx,
    /// Frames handed to a device.
    tx,
    /// Frames dropped, for whatever reason.
    dropped,
    /// Frames that the dataplane kept for itself: asked of the gateway, say.
    consumed,
    /// Frames that the dataplane made: answers, errors, fragments.
    made,
    /// ICMP errors that were not sent because too many were.
    errors_withheld,
    /// Packets of a known flow.
    hits,
    /// Packets of a flow that was decided under older tables.
    stale,
    /// Packets of an unknown flow.
    misses,
    /// Packets that are never looked up.
    slow_only,
    /// Flows in the IPv4 cache.
    flows4,
    /// Flows in the IPv6 cache.
    flows6,
    /// Chunks on the worker's own free list.
    free,
    /// Chunks with the kernel, to receive into.
    fill,
    /// Chunks with the kernel, to send.
    to_send,
    /// Chunks in the program's hands: waiting for a next hop.
    held,
}

/// One port queue's counters.
#[derive(Clone, Copy, Debug, Default)]
pub struct PortStats {
    /// What the port counts.
    pub counters: PortCounters,
    /// Frames received here and dropped.
    pub rx_drops: u64,
    /// Frames that found no room to be sent.
    pub tx_drops: u64,
    /// What the kernel counts.
    pub kernel: Option<XdpStatistics>,
}

/// What others see of a worker.
#[derive(Debug)]
pub struct WorkerStats {
    shared: crossbeam::utils::CachePadded<Shared>,
    drops: Vec<AtomicU64>,
    /// Stored a few times a second, and only if nobody reads at that moment.
    ports: Mutex<BTreeMap<PortId, PortStats>>,
}

impl Default for WorkerStats {
    fn default() -> WorkerStats {
        WorkerStats {
            shared: Default::default(),
            drops: (0..Reason::COUNT).map(|_| AtomicU64::new(0)).collect(),
            ports: Mutex::default(),
        }
    }
}

impl WorkerStats {
    /// A block that a worker and its readers share.
    #[must_use]
    pub fn shared() -> Arc<WorkerStats> {
        Arc::default()
    }

    /// The counters as of the last turn.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.shared.load()
    }

    /// Dropped frames of one reason.
    #[must_use]
    pub fn drops(&self, reason: Reason) -> u64 {
        self.drops[reason.number()].load(Ordering::Relaxed)
    }

    /// The ports' counters as of some tenths of a second ago.
    #[must_use]
    pub fn ports(&self) -> BTreeMap<PortId, PortStats> {
        self.ports.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn publish(&self, counts: &Counts) {
        self.shared.store(counts);
    }

    pub(crate) fn publish_drops(&self, drops: &[u64; Reason::COUNT]) {
        for (shared, &count) in self.drops.iter().zip(drops) {
            shared.store(count, Ordering::Relaxed);
        }
    }

    /// Offers the ports' counters; a reader that holds the lock makes this a no-op rather than a wait.
    pub(crate) fn publish_port(&self, id: PortId, stats: Option<PortStats>) {
        if let Ok(mut ports) = self.ports.try_lock() {
            match stats {
                Some(stats) => ports.insert(id, stats),
                None => ports.remove(&id),
            };
        }
    }
}
