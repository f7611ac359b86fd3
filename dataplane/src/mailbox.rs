//! What travels between threads: commands and frames to a worker, events from it.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering, fence};
use std::sync::{Arc, Mutex, PoisonError};

use crossbeam::channel::Sender;
use crossbeam::queue::ArrayQueue;
use penstock_api::filter::Filter;
use penstock_io::{Abilities, Frame};

use crate::flow::cache::Row;
use crate::flow::{DeviceId, Key4, Key6};
use crate::journal::{Entry, Journal};
use crate::port::{OwnedPort, PortId};

/// Frames that one worker may have waiting for another.
pub const MAILBOX: usize = 1024;
/// Events that may wait for the control thread.
const EVENTS: usize = 1024;

/// Where a worker sends what leaves by a device.
#[derive(Default)]
pub enum Exit {
    /// There is no such device (any more).
    #[default]
    None,
    /// By this queue of its own, named by its number; what it takes is to be told here.
    Own(PortId, Takes),
    /// By another worker.
    Worker(Outlet),
}

/// What a device takes beyond finished packets of one chunk: its owner says so, and whoever sends by it may ask.
///
/// It may be out of date when a frame comes to the port, which looks for itself.
#[derive(Clone, Default)]
pub struct Takes(Arc<AtomicU8>);

impl Takes {
    /// Says what the device takes now.
    pub fn set(&self, takes: Abilities) {
        self.0.store(takes.to_bits(), Ordering::Relaxed);
    }

    /// What it takes.
    #[inline]
    #[must_use]
    pub fn get(&self) -> Abilities {
        Abilities::from_bits(self.0.load(Ordering::Relaxed))
    }
}

/// The sending end of a mailbox between two workers.
pub struct Outlet {
    /// What the device takes that its frames leave by.
    pub takes: Takes,
    /// Frames on their way.
    pub frames: rtrb::Producer<(DeviceId, Frame)>,
    /// Wakes the owner.
    pub bell: Arc<Bell>,
}

/// Wakes a worker that blocks.
pub struct Bell {
    asleep: AtomicBool,
    waker: mio::Waker,
}

impl Bell {
    /// A bell for the worker that polls what `waker` belongs to.
    #[must_use]
    pub fn new(waker: mio::Waker) -> Bell {
        Bell { asleep: AtomicBool::new(false), waker }
    }

    /// Wakes the worker if it sleeps; what was to be seen is written before.
    #[inline]
    pub fn ring(&self) {
        // Pairs with the fence in `asleep`: either the worker sees what was written, or we see that it sleeps.
        fence(Ordering::SeqCst);
        if self.asleep.load(Ordering::Relaxed)
            && let Err(error) = self.waker.wake()
        {
            tracing::error!("cannot wake a worker: {error}");
        }
    }

    /// Says that the worker is about to block (or no longer is). After saying so it must look once more.
    pub fn set_asleep(&self, asleep: bool) {
        self.asleep.store(asleep, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }
}

/// What a worker is told.
pub enum Command {
    /// Own this port queue.
    AddPort(Box<OwnedPort>),
    /// Close a port queue and answer when every frame is back.
    RemovePort(PortId, Sender<()>),
    /// Send what leaves by a device this way.
    SetExit(DeviceId, Exit),
    /// Take frames from this mailbox too.
    AddInlet(rtrb::Consumer<(DeviceId, Frame)>),
    /// Copy flows of the cache into these rows and send them back.
    ListFlows(FlowListing, Sender<FlowListing>),
    /// Copy frames that pass a device into the tap's queue, until it is closed.
    Capture(Arc<CaptureTap>),
    /// Stop: send what is there, close every port, and end.
    Stop,
}

/// A listing of flows, made by the worker in pieces that its buffers have room for.
#[derive(Default)]
pub struct FlowListing {
    /// Where to go on: IPv4 buckets, then IPv6 buckets; `None` when all is listed.
    pub next4: Option<u32>,
    /// As `next4`, for IPv6.
    pub next6: Option<u32>,
    /// Rows of the IPv4 cache; the capacity bounds the piece.
    pub rows4: Vec<Row<Key4>>,
    /// Rows of the IPv6 cache.
    pub rows6: Vec<Row<Key6>>,
    /// The coarse time at the worker.
    pub now: crate::flow::Coarse,
}

impl FlowListing {
    /// A listing from the beginning, in pieces of about `rows` rows.
    #[must_use]
    pub fn new(rows: usize) -> FlowListing {
        let (rows4, rows6) = (Vec::with_capacity(rows.max(64)), Vec::with_capacity(rows.max(64)));
        FlowListing { next4: Some(0), next6: Some(0), rows4, rows6, ..FlowListing::default() }
    }
}

/// A frame that passed a port under capture.
pub struct Captured {
    /// Whether it was sent rather than received.
    pub sent: bool,
    /// The worker that saw it.
    pub worker: u16,
    /// Its length on the wire.
    pub length: u32,
    /// Wall-clock time-stamp ticks.
    pub at: penstock_io::Ticks,
    /// A copy of its bytes, cut at the snap length; goes back to a pool.
    pub copy: Frame,
}

/// A capture in progress.
pub struct CaptureTap {
    /// The device.
    pub device: DeviceId,
    /// Which frames.
    pub filter: Filter,
    /// Bytes of each frame to keep.
    pub snaplen: usize,
    /// Copies on their way to the control thread.
    pub frames: ArrayQueue<Captured>,
    /// Frames that found the queue full or no free chunk.
    pub lost: std::sync::atomic::AtomicU64,
    /// Set when nobody listens any more.
    pub closed: AtomicBool,
}

/// What a worker tells the control thread.
#[derive(Clone, Debug)]
pub enum Event {
    /// A packet waits for the MAC address of a next hop.
    NeighbourWanted(DeviceId, std::net::IpAddr),
    /// The underlay says how long a packet to a peer may be.
    PathMtu(std::net::IpAddr, u16),
    /// A port is of no more use and was closed.
    PortClosed(PortId, String),
}

/// The events of all workers.
pub struct Events {
    queue: ArrayQueue<Event>,
    /// Wakes the control thread.
    pub wake: tokio::sync::Notify,
    /// What workers tell people, one a worker that was started.
    journals: Mutex<Vec<Arc<Journal>>>,
    /// Wakes whoever reads the journals.
    pub written: Arc<tokio::sync::Notify>,
}

impl Default for Events {
    fn default() -> Events {
        Events {
            queue: ArrayQueue::new(EVENTS),
            wake: tokio::sync::Notify::new(),
            journals: Mutex::default(),
            written: Arc::default(),
        }
    }
}

impl Events {
    /// Tells the control thread; an event that finds no room is one that will happen again.
    pub fn tell(&self, event: Event) {
        let _ = self.queue.push(event);
        self.wake.notify_one();
    }

    /// A journal for a worker that starts.
    #[must_use]
    pub fn journal(&self) -> Arc<Journal> {
        let journal = Arc::new(Journal::new(Arc::clone(&self.written)));
        self.journals.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&journal));
        journal
    }

    /// The entries of all journals, those of each worker in order.
    #[must_use]
    pub fn entries(&self) -> Vec<Entry> {
        let journals = self.journals.lock().unwrap_or_else(PoisonError::into_inner);
        journals.iter().flat_map(|journal| std::iter::from_fn(|| journal.next())).collect()
    }

    /// The oldest event.
    #[must_use]
    pub fn next(&self) -> Option<Event> {
        self.queue.pop()
    }
}
