//! The worker: a pinned thread that owns ports and takes packets from one to another, a turn at a time.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam::channel::{Receiver, Sender, unbounded};
use penstock_io::{Burst, Frame, FramePool, Port, Region, Ticks, TicksPerSecond};

use crate::drop::Cause;
use crate::flow::{Coarse, DeviceId};
pub use crate::idle::Idle;
use crate::idle::Sleeper;
use crate::mailbox::{Bell, Command, Event, Events, Exit, FlowListing, Takes};
use crate::outputs::Way;
use crate::pipeline::{Moment, Pipeline};
use crate::port::{AnyPort, OwnedPort, PortId};
use crate::snapshot::Reader;
use crate::stats::{PortStats, WorkerStats};
use crate::tables::Snapshot;
use crate::tracker::Tracker;

/// Buckets of each flow cache that a turn looks at for flows to forget.
const SWEEP: usize = 4;
/// Connections that a turn looks at for those whose time is over ...
const A_FEW: u32 = 4;
/// ... and that are looked at each time that counters are published, so that an idle worker gets round as well.
const MANY: u32 = 4096;
/// A flow without packets for this long is forgotten.
const QUIET: Duration = Duration::from_secs(60);
/// How much longer a worker pauses after each further panic, up to a hundred of them.
const PANIC_PAUSE: Duration = Duration::from_millis(10);
/// How often the ports' counters are published.
const PUBLISH: Duration = Duration::from_millis(100);

/// What a worker is made from.
pub struct Plan {
    /// The worker's number.
    pub id: u16,
    /// The CPU that it is pinned to.
    pub cpu: Option<usize>,
    /// How it waits.
    pub idle: Idle,
    /// IPv4 flows that its cache holds.
    pub flows4: usize,
    /// IPv6 flows that its cache holds.
    pub flows6: usize,
    /// The memory of its packets.
    pub region: &'static Region,
    /// The connections, as it meets them; `None` where none are kept.
    pub tracker: Option<Tracker>,
}

/// How a worker fares.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// Whether it has ended.
    pub stopped: bool,
    /// Panics that it was started again after.
    pub restarts: u32,
    /// What the last panic said.
    pub last_panic: String,
}

/// What a turn did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Turn {
    /// Frames received.
    pub received: u64,
    /// Frames sent.
    pub sent: u64,
    /// Frames dropped.
    pub dropped: u64,
}

/// The control side of a worker.
pub struct Handle {
    /// The worker's number.
    pub id: u16,
    /// The CPU that it is pinned to.
    pub cpu: Option<usize>,
    /// What it counts.
    pub stats: Arc<WorkerStats>,
    commands: Sender<Command>,
    bell: Arc<Bell>,
    health: Arc<Mutex<Health>>,
    thread: JoinHandle<()>,
}

/// A port in its place.
pub(crate) struct Slot {
    pub(crate) id: PortId,
    pub(crate) device: DeviceId,
    pub(crate) port: AnyPort,
    pub(crate) rx_drops: u64,
    pub(crate) tx_drops: u64,
}

/// A worker's ports; a place stays where it is while others go.
pub(crate) type Slots = Vec<Option<Slot>>;

impl Handle {
    /// Starts a worker on its own pinned thread; its memory is first touched there.
    ///
    /// # Errors
    /// When there is no thread, no memory for its caches or no descriptor to sleep on, or when its CPU cannot be had.
    pub fn spawn(plan: Plan, reader: Reader<Snapshot>, events: Arc<Events>) -> io::Result<Handle> {
        let (id, cpu) = (plan.id, plan.cpu);
        let (sender, commands) = unbounded();
        let (ready, started) = std::sync::mpsc::sync_channel(1);
        let (stats, health) = (WorkerStats::shared(), Arc::<Mutex<Health>>::default());
        let (shared, noted) = (Arc::clone(&stats), Arc::clone(&health));
        let thread = std::thread::Builder::new().name(format!("worker-{id}")).spawn(move || {
            let built = pin(cpu).and_then(|()| Worker::new(&plan, reader, events, commands, shared));
            match built {
                Ok(mut worker) => {
                    let _ = ready.send(Ok(Arc::clone(&worker.bell)));
                    worker.run_guarded(&noted);
                    lock(&noted).stopped = true;
                }
                Err(error) => drop(ready.send(Err(error))),
            }
        })?;
        let bell = started.recv().map_err(|_| io::Error::other("the worker ended before it began"))??;
        Ok(Handle { id, cpu, stats, commands: sender, bell, health, thread })
    }

    /// Queues a command and wakes the worker.
    pub fn tell(&self, command: Command) {
        // A worker that has ended takes no commands; whoever waits for an answer sees the channel close.
        let _ = self.commands.send(command);
        self.bell.ring();
    }

    /// Wakes the worker: there are new tables.
    pub fn ring(&self) {
        self.bell.ring();
    }

    /// What wakes it.
    #[must_use]
    pub fn bell(&self) -> &Arc<Bell> {
        &self.bell
    }

    /// How it fares.
    #[must_use]
    pub fn health(&self) -> Health {
        lock(&self.health).clone()
    }

    /// Waits for its end, after [`Command::Stop`].
    pub fn join(self) {
        if self.thread.join().is_err() {
            tracing::error!("worker {} ended in a panic outside of its loop", self.id);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn pin(cpu: Option<usize>) -> io::Result<()> {
    match cpu {
        // By explicit number: the crate's own list leaves out isolated CPUs.
        Some(id) if !core_affinity::set_for_current(core_affinity::CoreId { id }) => {
            Err(io::Error::other(format!("cannot pin a worker to CPU {id}: is it in this process's cpuset?")))
        }
        _ => Ok(()),
    }
}

/// A worker on its own thread.
pub struct Worker {
    slots: Slots,
    pipeline: Pipeline,
    reader: Reader<Snapshot>,
    commands: Receiver<Command>,
    inlets: Vec<rtrb::Consumer<(DeviceId, Frame)>>,
    burst: Burst,
    sleeper: Sleeper,
    bell: Arc<Bell>,
    stats: Arc<WorkerStats>,
    published: Ticks,
    published_drops: u64,
    publish_every: u64,
    quiet: u32,
    started: Ticks,
    /// When the last turn began, if it moved packets.
    busy_since: Option<Ticks>,
    stopping: bool,
}

impl Worker {
    /// A worker without ports. Tests and benches drive [`Worker::turn`] themselves.
    ///
    /// # Errors
    /// When there is no memory for its caches or no descriptor to sleep on.
    pub fn new(
        plan: &Plan,
        reader: Reader<Snapshot>,
        events: Arc<Events>,
        commands: Receiver<Command>,
        stats: Arc<WorkerStats>,
    ) -> io::Result<Worker> {
        let rate = TicksPerSecond::measure(Duration::from_millis(20));
        let pool = FramePool::new(plan.region);
        let (sleeper, waker) = Sleeper::new(plan.idle, rate)?;
        Ok(Worker {
            slots: Vec::with_capacity(64),
            pipeline: Pipeline::new(
                plan.id,
                pool,
                (plan.flows4, plan.flows6),
                rate,
                events,
                plan.tracker.clone(),
            )?,
            reader,
            commands,
            inlets: Vec::with_capacity(16),
            burst: Burst::new(),
            sleeper,
            bell: Arc::new(Bell::new(waker)),
            stats,
            published: Ticks::default(),
            published_drops: 0,
            publish_every: rate.ticks(PUBLISH),
            quiet: (rate.ticks(QUIET) >> 24) as u32,
            started: Ticks::now(),
            busy_since: None,
            stopping: false,
        })
    }

    /// Turns until it is told to stop; a panic is caught, noted, and the worker goes on with empty caches.
    fn run_guarded(&mut self, health: &Mutex<Health>) {
        while let Err(panic) = catch_unwind(AssertUnwindSafe(|| self.run())) {
            let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
            let text = text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
            tracing::error!("a worker panicked and goes on: {text}");
            let restarts = {
                let mut health = lock(health);
                (health.restarts, health.last_panic) = (health.restarts + 1, text);
                health.restarts
            };
            // What is left of its burst must not be taken for the next port's.
            let pipeline = &mut self.pipeline;
            pipeline.tally.drop_burst(Cause::WorkerPanicked, &mut self.burst, &mut pipeline.pool);
            pipeline.cache4.clear();
            pipeline.cache6.clear();
            // A panic that comes again and again must not fill the disk with its log.
            std::thread::sleep(PANIC_PAUSE * restarts.min(100));
        }
    }

    fn run(&mut self) {
        while !self.stopping {
            let now = Ticks::now();
            let turn = self.turn(now);
            if self.sleeper.is_time(turn.received > 0, now) {
                self.doze();
            }
        }
        self.close_all();
    }

    /// One breath: commands, tables, receive and think, send, settle.
    pub fn turn(&mut self, now: Ticks) -> Turn {
        let before = self.pipeline.tally.counts;
        // Asking first costs two loads, where taking from an empty channel is a fence.
        if !self.commands.is_empty() {
            self.obey();
        }
        let renewed = self.reader.refresh();
        let moment = Moment { snapshot: self.reader.current(), epoch: self.reader.epoch(), now };
        if renewed {
            self.pipeline.call_waiting(moment);
        }
        for slot in 0..self.slots.len() {
            let Some(Slot { port, device, .. }) = &mut self.slots[slot] else { continue };
            let received = port.rx_burst(&mut self.pipeline.pool, &mut self.burst);
            if received > 0 {
                let device = *device;
                let dropped = self.pipeline.tally.counts.dropped;
                self.pipeline.tally.counts.rx += received as u64;
                self.pipeline.process(moment, device, &mut self.burst);
                let dropped = self.pipeline.tally.counts.dropped - dropped;
                if let Some(slot) = &mut self.slots[slot] {
                    slot.rx_drops += dropped;
                }
                self.pipeline.flush(&mut self.slots, now);
            }
        }
        self.take_in(now);
        self.pipeline.flush(&mut self.slots, now);
        self.settle();
        self.keep_house(now);
        self.account(&before, now)
    }

    /// Frames that other workers have for our ports.
    fn take_in(&mut self, now: Ticks) {
        for inlet in &mut self.inlets {
            for _ in 0..penstock_io::BURST {
                let Ok((device, frame)) = inlet.pop() else { break };
                let pipeline = &mut self.pipeline;
                if pipeline.outputs.own_slot(device).is_some() {
                    pipeline.outputs.send(device, frame, &mut pipeline.pool, &mut pipeline.tally);
                } else {
                    pipeline.tally.drop(Cause::PortGone, frame, &mut pipeline.pool);
                }
            }
            self.pipeline.flush(&mut self.slots, now);
        }
    }

    /// What must be asked of the kernel, port by port; one that is broken is closed.
    fn settle(&mut self) {
        for slot in 0..self.slots.len() {
            let Some(Slot { port, .. }) = &mut self.slots[slot] else { continue };
            if let Err(fault) = port.settle(&mut self.pipeline.pool)
                && let Some(slot) = self.slots[slot].take()
            {
                tracing::error!("{fault}");
                self.pipeline.events.tell(Event::PortClosed(slot.id, fault.to_string()));
                self.close(slot);
            }
        }
    }

    fn keep_house(&mut self, now: Ticks) {
        let coarse = Coarse::of(now);
        self.pipeline.cache4.sweep(SWEEP, self.quiet, coarse);
        self.pipeline.cache6.sweep(SWEEP, self.quiet, coarse);
        self.pipeline.dismiss_waiting(now);
        self.pipeline.forget_connections(A_FEW, now);
        if now.since(self.published) > self.publish_every {
            self.published = now;
            self.pipeline.forget_connections(MANY, now);
            self.take_census();
            for slot in self.slots.iter().flatten() {
                self.stats.publish_port(slot.id, Some(slot.stats()));
                if self.pipeline.outputs.own_slot(slot.device).is_some() {
                    self.pipeline.outputs.set_abilities(slot.device, slot.port.abilities());
                }
            }
        }
    }

    /// Counts our chunks, all at one moment: counted apart they would not add up.
    fn take_census(&mut self) {
        let counts = &mut self.pipeline.tally.counts;
        (counts.fill, counts.to_send) = (0, 0);
        for slot in self.slots.iter().flatten() {
            let (fill, to_send) = slot.port.with_kernel();
            counts.fill += u64::from(fill);
            counts.to_send += u64::from(to_send);
        }
        counts.free = self.pipeline.pool.free_chunks() as u64;
    }

    /// Adds the turn up and shows it to the others.
    fn account(&mut self, before: &crate::stats::Counts, now: Ticks) -> Turn {
        let tally = &mut self.pipeline.tally;
        let counts = &mut tally.counts;
        let turn = Turn {
            received: counts.rx - before.rx,
            sent: counts.tx - before.tx,
            dropped: counts.dropped - before.dropped,
        };
        counts.turns += 1;
        if turn.received > 0 {
            counts.busy_turns += 1;
        }
        // A turn's length is known when the next one begins; none sleeps in between, because a busy turn is never followed
        // by a sleep.
        if let Some(since) = self.busy_since.take() {
            counts.busy_ticks += now.since(since);
        }
        self.busy_since = (turn.received > 0).then_some(now);
        counts.ticks = now.since(self.started);
        counts.flows4 = self.pipeline.cache4.used() as u64;
        counts.flows6 = self.pipeline.cache6.used() as u64;
        counts.held = self.pipeline.waiting.len() as u64;
        self.stats.publish(counts);
        if counts.dropped != self.published_drops {
            self.published_drops = counts.dropped;
            self.stats.publish_drops(&tally.drops);
        }
        turn
    }

    /// Sleeps, unless something happened just now.
    fn doze(&mut self) {
        self.bell.set_asleep(true);
        let called = !self.commands.is_empty()
            || self.inlets.iter().any(|inlet| !inlet.is_empty())
            || self.reader.refresh_is_due();
        if !called {
            self.pipeline.tally.counts.sleeps += 1;
            self.take_census();
            self.stats.publish(&self.pipeline.tally.counts);
            let restless = |slot: &mut Slot| slot.port.is_restless() || slot.port.readiness().is_none();
            self.sleeper.sleep(self.slots.iter_mut().flatten().any(restless));
            self.slots.iter_mut().flatten().for_each(|slot| slot.port.wake());
        }
        self.bell.set_asleep(false);
    }

    fn obey(&mut self) {
        while let Ok(command) = self.commands.try_recv() {
            match command {
                Command::AddPort(owned) => self.add_port(*owned),
                Command::RemovePort(id, done) => {
                    self.remove_port(id);
                    let _ = done.send(());
                }
                Command::SetExit(device, exit) => self.set_exit(device, exit),
                Command::AddInlet(inlet) => {
                    self.inlets.retain(|old| !old.is_abandoned() || !old.is_empty());
                    self.inlets.push(inlet);
                }
                Command::ListFlows(listing, reply) => {
                    let _ = reply.send(self.list_flows(listing));
                }
                Command::Capture(tap) => self.pipeline.captures.add(tap),
                Command::Stop => self.stopping = true,
            }
        }
    }

    fn add_port(&mut self, owned: OwnedPort) {
        let OwnedPort { id, device, port } = owned;
        if let Some(fd) = port.readiness()
            && let Err(error) = self.sleeper.watch(fd)
        {
            tracing::error!(
                "port {}: cannot be waited for ({error}); it is served a thousand times a second",
                id.0
            );
        }
        let abilities = port.abilities();
        let slot = Some(Slot { id, device, port, rx_drops: 0, tx_drops: 0 });
        let place = self.slots.iter().position(Option::is_none).unwrap_or(self.slots.len());
        if place == self.slots.len() {
            self.slots.push(slot);
        } else {
            self.slots[place] = slot;
        }
        // What waits in it may be for us to answer, before we are told where others send what leaves by it.
        if self.pipeline.outputs.own_slot(device).is_none() {
            let takes = Takes::default();
            takes.set(abilities);
            self.pipeline.outputs.set(device, Way::Own(place), takes);
        }
    }

    fn remove_port(&mut self, id: PortId) {
        let found = self.slots.iter_mut().find(|slot| slot.as_ref().is_some_and(|slot| slot.id == id));
        if let Some(slot) = found.and_then(Option::take) {
            self.close(slot);
        }
    }

    fn set_exit(&mut self, device: DeviceId, exit: Exit) {
        let position =
            |id| self.slots.iter().position(|slot| slot.as_ref().is_some_and(|slot| slot.id == id));
        let (way, takes) = match exit {
            Exit::None => (Way::None, Takes::default()),
            Exit::Own(id, takes) => {
                let slot = position(id);
                if let Some(slot) = slot.and_then(|slot| self.slots[slot].as_ref()) {
                    takes.set(slot.port.abilities());
                }
                (slot.map_or(Way::None, Way::Own), takes)
            }
            Exit::Worker(outlet) => {
                let takes = outlet.takes.clone();
                (Way::Worker(outlet), takes)
            }
        };
        self.pipeline.outputs.set(device, way, takes);
    }

    fn close(&mut self, slot: Slot) {
        if self.pipeline.outputs.own_slot(slot.device).is_some() {
            self.pipeline.outputs.set(slot.device, Way::None, Takes::default());
        }
        if let Some(fd) = slot.port.readiness() {
            self.sleeper.forget(fd);
        }
        slot.port.close(&mut self.pipeline.pool);
        self.stats.publish_port(slot.id, None);
    }

    fn close_all(&mut self) {
        self.settle();
        while let Some(slot) = self.slots.pop() {
            if let Some(slot) = slot {
                self.close(slot);
            }
        }
        for guest in std::iter::from_fn(|| self.pipeline.waiting.pop()).collect::<Vec<_>>() {
            self.pipeline.tally.drop(guest.cause, guest.frame, &mut self.pipeline.pool);
        }
        for inlet in &mut self.inlets {
            while let Ok((_, frame)) = inlet.pop() {
                self.pipeline.tally.drop(Cause::PortGone, frame, &mut self.pipeline.pool);
            }
        }
        self.stats.publish(&self.pipeline.tally.counts);
        self.stats.publish_drops(&self.pipeline.tally.drops);
    }

    fn list_flows(&self, mut listing: FlowListing) -> FlowListing {
        let epoch = self.reader.epoch();
        listing.rows4.clear();
        listing.rows6.clear();
        listing.now = Coarse::of(Ticks::now());
        if let Some(bucket) = listing.next4 {
            listing.next4 = self.pipeline.cache4.list(bucket, epoch, &mut listing.rows4);
        }
        if let Some(bucket) = listing.next6 {
            listing.next6 = self.pipeline.cache6.list(bucket, epoch, &mut listing.rows6);
        }
        listing
    }

    /// The port in memory of that number, for tests and benches to feed and to look at.
    pub fn mem_port(&mut self, id: PortId) -> Option<&mut penstock_io::mem::MemPort> {
        self.slots.iter_mut().flatten().find(|slot| slot.id == id).and_then(|slot| match &mut slot.port {
            AnyPort::Mem(port) => Some(&mut **port),
            AnyPort::Xsk(_) | AnyPort::Tap(_) | AnyPort::Pcap(_) | AnyPort::Vhost(_) => None,
        })
    }

    /// What the worker has counted up to its last turn.
    #[must_use]
    pub fn counts(&self) -> crate::stats::Counts {
        self.pipeline.tally.counts
    }

    /// Frames dropped for a reason up to the last turn.
    #[must_use]
    pub fn drops(&self, reason: impl Into<crate::drop::Reason>) -> u64 {
        self.pipeline.tally.drops[reason.into().number()]
    }
}

impl Slot {
    fn stats(&self) -> PortStats {
        PortStats {
            counters: self.port.counters(),
            rx_drops: self.rx_drops,
            tx_drops: self.tx_drops,
            kernel: self.port.xdp_statistics(),
        }
    }
}
