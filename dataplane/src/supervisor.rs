//! The supervisor: owns memory, workers, devices and tables, and brings them to what the configuration asks for.
//!
//! ```text
//!  change --> Desired --> devices closed and opened --------------------------> new queues to workers
//!                 |                |                                            |
//!  kernel --> Knowledge -----> Underlay --compile--> Snapshot --publish--> workers --all have it--> answer
//! ```
//!
//! Everything here runs on the control thread.

mod connections;
mod deal;
mod departed;
mod device;
mod events;
mod exits;
mod former;
mod host;
mod reclaim;
mod refused;
mod steering;
mod underlay;
mod vhost;
mod watchdog;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use penstock_api::Fault;
use penstock_io::{FramePool, MapError, Region, TicksPerSecond};
use thiserror::Error;
use tokio::sync::watch;

pub use device::{Device, Facts, Owner, Queue};
pub use events::{Reply, Request};
pub(crate) use exits::answer;
pub use refused::RefusedChanges;
pub use steering::Overshadowed;
pub use watchdog::Pace;

use crate::config::Config;
use crate::control::HealthCheck;
use crate::kernel::{Kernel, KernelError, KernelView, Upkeep, Watcher};
use crate::mailbox::Events;
use crate::port::{OwnedPort, PortId};
use crate::snapshot::{Epoch, Publisher};
use crate::tables::Snapshot;
use crate::tables::compile::{Layout, Underlay, check_capacity};
use crate::tables::desired::{Change, Desired, Kept};
use crate::tables::rule_counts::RuleBooks;
use crate::tables::rulebook::Author;
use crate::tables::service::{Contested, Services};
use crate::tracker::Tracker;
use crate::worker::{Handle, Plan};
use deal::Deal;
use departed::Departures;
use device::{Spec, Surroundings};
use former::Former;
use host::HostSide;
use refused::Refusals;
use steering::{Steering, TakenPorts};
use underlay::Knowledge;
use watchdog::Watchdog;

/// Chunks that each queue of an uplink has with the kernel to receive into.
pub const UPLINK_FILL: u32 = 2048;
/// Chunks that each queue of a pod's interface has with the kernel to receive into, when it is busy.
pub const POD_FILL: u32 = 1024;
/// The same before anything came: most pods of a node are quiet most of the time.
pub const QUIET_POD_FILL: u32 = 128;
/// How soon workers that have something to do mostly go by a publication.
const FOLLOWED_WITHIN: Duration = Duration::from_millis(1);
/// How long a publication may take to be live on every worker.
const LIVE_WITHIN: Duration = Duration::from_secs(5);
/// The packets of a network whose MTU nobody knows yet.
const ETHERNET_MTU: u16 = 1500;

/// Why the daemon could not start.
#[derive(Debug, Error)]
pub enum StartError {
    /// No packet memory.
    #[error(transparent)]
    Memory(#[from] MapError),
    /// The kernel could not be asked or followed.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The connection table could not be had.
    #[error(transparent)]
    Connections(#[from] connections::OpenError),
    /// A worker did not start.
    #[error("worker {id} on CPU {cpu} did not start: {source}")]
    Worker {
        /// Its number.
        id: u16,
        /// Its CPU.
        cpu: usize,
        /// What went wrong.
        #[source]
        source: io::Error,
    },
}

/// Why a change is not live.
#[derive(Debug, Error)]
pub enum Refusal {
    /// It was wrong, and nothing of it was done.
    #[error("{} faults: {}", .0.len(), .0.iter().map(Fault::to_string).collect::<Vec<_>>().join("; "))]
    Faulty(Vec<Fault>),
    /// It was done, but a worker has not taken it up.
    #[error(
        "generation {generation} is published, but after {LIVE_WITHIN:?} not live on every worker: {laggards} took no turn; see `penstock workers` and the log"
    )]
    NotLive {
        /// The change's generation.
        generation: u64,
        /// The workers that did not move.
        laggards: String,
    },
    /// The daemon is on its way out.
    #[error("the daemon is draining")]
    Draining,
}

/// A change that is live on every worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Live {
    /// The generation that holds it.
    pub generation: u64,
    /// How long that took.
    pub took: Duration,
}

/// The running dataplane as the control thread holds it.
pub struct Engine {
    region: &'static Region,
    pool: FramePool,
    rate: TicksPerSecond,
    started: Instant,
    kernel: Kernel,
    view: KernelView,
    knowledge: Knowledge,
    upkeep: Upkeep,
    events: Arc<Events>,
    refusals: Refusals,
    publisher: Publisher<Snapshot>,
    /// Which generation each epoch held, newest last, from the oldest that a worker may still have.
    generations: VecDeque<(Epoch, u64)>,
    workers: Vec<Handle>,
    watchdog: Watchdog,
    desired: Desired,
    underlay: Arc<Underlay>,
    /// The tables without their rules.
    layout: Kept<Arc<Underlay>, Layout>,
    /// Policies and services, compiled.
    author: Author,
    /// The connections.
    tracker: Tracker,
    /// The daemon before.
    former: Former,
    /// The tables that were published last.
    shown: Arc<Mutex<Arc<Snapshot>>>,
    /// What uplinks are to take.
    steering: Steering,
    /// The ports of the node that are taken from its kernel and programs.
    taken_ports: TakenPorts,
    devices: BTreeMap<Owner, Device>,
    /// Devices that are asked for and cannot be opened, and why.
    waiting: BTreeMap<Owner, String>,
    deal: Deal,
    /// Queues that are open and that their workers get as soon as the tables know them.
    arrivals: Vec<(usize, OwnedPort)>,
    next_port: u32,
    next_device: u16,
    /// Closed devices, as long as something stands for them.
    departures: Departures,
    /// The kernel's side of the host port.
    host_side: HostSide,
    /// Flows that one worker's caches hold.
    flow_capacity: u64,
    /// Whether it is on its way out.
    draining: bool,
    /// The search for backends' numbers that can be given out again, when one is under way.
    reclaiming: Option<reclaim::Walk>,
    /// Where load balancers ask for services, and what they are told.
    health_checks: watch::Sender<Vec<HealthCheck>>,
    /// The services whose health they are told.
    told_of: Option<Arc<Services>>,
}

impl Engine {
    /// Starts memory and workers, and takes the configuration up. An endpoint or uplink whose interface is not there (yet)
    /// is waited for.
    ///
    /// # Errors
    /// [`StartError`]: nothing was left behind.
    pub async fn start(config: &Config) -> Result<(Engine, Watcher), StartError> {
        let region = Region::map(config.chunks, config.hugepages)?;
        let kernel = Kernel::open()?;
        let (view, watcher) = Watcher::start().await?;
        let events = Arc::<Events>::default();
        let desired = Desired::new(config.node.clone(), config.host.clone())
            .with_node_ports(config.services.node_ports.clone())
            .with_source_ports(config.services.source_ports);
        let rate = TicksPerSecond::measure(Duration::from_millis(20));
        let author = Author::new(config.services.zone.clone(), rate)
            .for_workers(config.cpus.len() as u16)
            .with_node_ports_at(config.services.node_port_addresses.clone());
        let (tracker, adopted) = connections::open(config, rate)?;
        let before = Snapshot::default();
        let mut publisher = Publisher::new(before);
        let mut workers = Vec::new();
        for (id, &cpu) in (0u16..).zip(&config.cpus) {
            let (idle, flows4, flows6) = (config.idle, config.flows4, config.flows6);
            let tracker = Some(tracker.for_worker(id));
            let plan = Plan { id, cpu: Some(cpu), idle, flows4, flows6, region, tracker };
            let worker = Handle::spawn(plan, publisher.reader(), Arc::clone(&events));
            workers.push(worker.map_err(|source| StartError::Worker { id, cpu, source })?);
        }
        let now = Instant::now();
        let mut engine = Engine {
            region,
            pool: FramePool::new(region),
            rate,
            author,
            tracker,
            former: Former::that_left(adopted, now),
            shown: Arc::default(),
            steering: Steering::default(),
            taken_ports: TakenPorts::recorded_in(config.socket.with_extension("reserved-ports")),
            started: now,
            kernel,
            view,
            knowledge: Knowledge::default(),
            upkeep: Upkeep::default(),
            refusals: Refusals::told_to(&events),
            events,
            generations: [(publisher.epoch(), 0)].into(),
            publisher,
            watchdog: Watchdog::over(workers.len(), now),
            deal: Deal::among(workers.len()),
            arrivals: Vec::new(),
            workers,
            desired,
            underlay: Arc::default(),
            layout: Kept::default(),
            devices: BTreeMap::new(),
            waiting: BTreeMap::new(),
            next_port: 1,
            next_device: 0,
            departures: Departures::default(),
            host_side: HostSide::default(),
            flow_capacity: (config.flows4 + config.flows6) as u64,
            draining: false,
            reclaiming: None,
            health_checks: watch::Sender::default(),
            told_of: None,
        };
        match engine.apply(config.reload()).await {
            Ok(live) => tracing::info!("generation {} is live after {:?}", live.generation, live.took),
            Err(refusal) => tracing::error!("the configuration was not taken up: {refusal}"),
        }
        Ok((engine, watcher))
    }

    /// Makes a change, and answers when it is live on every worker. A device that a change by the control interface asks
    /// for and that cannot be opened is a fault; one that the file asks for is waited for.
    ///
    /// # Errors
    /// [`Refusal`]: with faults, everything is as it was.
    pub async fn apply(&mut self, change: Change) -> Result<Live, Refusal> {
        let began = Instant::now();
        let must_open = !matches!(change, Change::Reload(..));
        let is_everything = matches!(change, Change::Resync(..));
        let known: Vec<(Owner, Spec)> = device::wanted(&self.desired);
        let undo = self.desired.apply(change).map_err(|faults| self.refusals.faulty(faults))?;
        let faults = check_capacity(&self.desired);
        let revised = if faults.is_empty() { self.author.revise(&self.desired) } else { Err(faults) };
        if let Err(faults) = revised {
            self.desired.revert(undo);
            // What was good a moment ago is good still; of the services some may have been others already.
            let _ = self.author.revise(&self.desired);
            return Err(self.refusals.too_large(faults));
        }
        self.reconcile().await;
        if must_open {
            let faults = self.faults_of_new_devices(&known);
            if !faults.is_empty() {
                self.desired.revert(undo);
                let _ = self.author.revise(&self.desired);
                self.reconcile().await;
                self.wait_until_live().await?;
                return Err(self.refusals.not_opened(faults));
            }
        }
        if is_everything {
            self.replace_former();
            self.former.is_known_to_all();
        }
        self.former.hand_over(&self.tracker.table, &self.publisher.current(), &self.desired);
        self.wait_until_live().await?;
        Ok(Live { generation: self.desired.generation(), took: began.elapsed() })
    }

    /// Brings devices and tables to what is desired.
    async fn reconcile(&mut self) {
        let published = self.publisher.current().generation;
        let wanted = device::wanted(&self.desired);
        self.close_unwanted(&wanted).await;
        self.waiting.retain(|owner, _| wanted.iter().any(|(it, _)| it == owner));
        // Uplinks first: what pods and the host are told of MTU and addresses follows from them.
        for (owner, spec) in wanted.iter().filter(|(owner, _)| matches!(owner, Owner::Uplink(_))) {
            self.open_if_closed(
                owner,
                spec,
                &Surroundings { mtu: ETHERNET_MTU, mac: Default::default(), queues: 1 },
            )
            .await;
        }
        self.knowledge.find_paths(&self.kernel, &self.desired, false).await;
        let known = self.assemble();
        let draft = self.compile(&known);
        let is_lacking =
            |owner: &Owner| !matches!(owner, Owner::Uplink(_)) && !self.devices.contains_key(owner);
        let lacking: Vec<_> = wanted.iter().filter(|(owner, _)| is_lacking(owner)).collect();
        for (owner, spec) in &lacking {
            let around = self.surroundings(owner, &draft);
            self.open_if_closed(owner, spec, &around).await;
        }
        let host_changed = self.prepare_host(&draft).await;
        // Mostly nothing was opened, and the draft it is.
        let (underlay, snapshot) = if lacking.is_empty() && !host_changed {
            (known, draft)
        } else {
            let underlay = self.assemble();
            let snapshot = self.compile(&underlay);
            (underlay, snapshot)
        };
        if underlay != self.underlay || self.desired.generation() != published {
            self.publish(underlay, snapshot);
        }
        self.admit();
    }

    /// What the kernel's view or a peer's path changed: tables, when anything differs.
    async fn refresh(&mut self, routes_changed: bool) {
        self.knowledge.find_paths(&self.kernel, &self.desired, routes_changed).await;
        let underlay = self.assemble();
        if underlay != self.underlay {
            let links = |underlay: &Underlay| -> BTreeSet<(u16, Vec<IpAddr>)> {
                underlay.uplinks.values().map(|it| (it.mtu, it.addresses.clone())).collect()
            };
            // The host port's MTU and gateway follow from the uplinks.
            if links(&underlay) != links(&self.underlay) {
                let draft = self.compile(&underlay);
                self.prepare_host(&draft).await;
            }
            let underlay = self.assemble();
            let snapshot = self.compile(&underlay);
            self.publish(underlay, snapshot);
        }
        self.probe().await;
    }

    fn assemble(&self) -> Arc<Underlay> {
        Arc::new(self.knowledge.underlay(&self.desired, &self.devices, &self.view))
    }

    fn compile(&mut self, underlay: &Arc<Underlay>) -> Snapshot {
        let addresses: BTreeSet<IpAddr> =
            underlay.uplinks.values().flat_map(|it| it.addresses.clone()).collect();
        self.author.set_addresses(&addresses);
        let layout = self.layout.follow(
            &self.desired,
            |key| Layout::follows_from(&self.desired, key),
            underlay.clone(),
            |underlay| Layout::of(&self.desired, underlay, Some(&self.publisher.current())),
        );
        layout.ruled(&self.desired, self.author.book())
    }

    /// Publishes what is there now, and lets uplinks take what the tables know what to do with.
    fn publish(&mut self, underlay: Arc<Underlay>, snapshot: Snapshot) {
        self.underlay = underlay;
        let rules = self.steering.follow(&self.desired, &snapshot);
        self.taken_ports.take(&rules);
        let generation = snapshot.generation;
        let epoch = self.publisher.publish(snapshot);
        self.author.published(epoch);
        self.tell_health();
        *self.shown.lock().unwrap_or_else(PoisonError::into_inner) = self.publisher.current();
        self.generations.push_back((epoch, generation));
        self.workers.iter().for_each(Handle::ring);
        steering::steer(&mut self.devices, &rules, self.former.rules_count());
        if !self.former.rules_count() {
            self.taken_ports.settle();
        }
        let used = self.knowledge.used(&self.desired, &self.devices);
        self.upkeep.set_used(used);
    }

    /// Tells who answers load balancers what has become of services with local backends.
    fn tell_health(&mut self) {
        let (directory, services) = (self.author.directory(), &self.author.book().services);
        if self.told_of.as_ref().is_some_and(|told| Arc::ptr_eq(told, services)) {
            return;
        }
        let checks = directory.health_checks().flat_map(|check| {
            services.node_addresses().iter().map(move |&address| HealthCheck {
                address: (address, check.port).into(),
                service: check.service.to_owned(),
                local_ready: check.local_ready,
            })
        });
        let checks: Vec<HealthCheck> = checks.collect();
        self.told_of = Some(Arc::clone(services));
        self.health_checks.send_if_modified(|told| {
            let differs = *told != checks;
            *told = checks;
            differs
        });
    }

    /// Where load balancers ask for services, and what they are to be told, now and later.
    #[must_use]
    pub fn health_checks(&self) -> watch::Receiver<Vec<HealthCheck>> {
        self.health_checks.subscribe()
    }

    /// What a device that is to be opened must know of its network.
    fn surroundings(&self, owner: &Owner, draft: &Snapshot) -> Surroundings {
        let network = match owner {
            Owner::Endpoint(name) => {
                self.desired.endpoints().find(|it| it.name.as_str() == name).map(|it| it.network.as_str())
            }
            Owner::Host => self.desired.host.as_ref().map(|it| it.network.as_str()),
            Owner::Uplink(_) => None,
        };
        let compiled = draft.networks.iter().find(|it| Some(it.name.as_str()) == network);
        let mut mac = draft.router_mac;
        // The node's end of the host port is a neighbour of the router, so its address is another: 02:71 instead of 02:70.
        mac.0[1] ^= 1;
        let queues = if *owner == Owner::Host { self.workers.len() as u32 } else { 1 };
        Surroundings { mtu: compiled.map_or(ETHERNET_MTU, |it| it.mtu), mac, queues }
    }

    /// Waits until every worker has the newest tables.
    async fn wait_until_live(&mut self) -> Result<(), Refusal> {
        let (epoch, began) = (self.publisher.epoch(), Instant::now());
        let turns: Vec<u64> = self.workers.iter().map(|worker| worker.stats.counts().turns).collect();
        while self.publisher.slowest() < epoch {
            if began.elapsed() > LIVE_WITHIN {
                let stuck = self
                    .workers
                    .iter()
                    .zip(turns)
                    .filter(|(worker, turns)| worker.stats.counts().turns == *turns);
                let names: Vec<String> = stuck.map(|(worker, _)| format!("worker {}", worker.id)).collect();
                let generation = self.desired.generation();
                return Err(Refusal::NotLive { generation, laggards: names.join(", ") });
            }
            // Workers that turn follow within microseconds, sleepers when they are awake; the kernel's timers are late by 50,
            // and the runtime's count in milliseconds.
            if began.elapsed() < FOLLOWED_WITHIN / 4 {
                std::thread::yield_now();
            } else if began.elapsed() < FOLLOWED_WITHIN {
                std::thread::sleep(FOLLOWED_WITHIN / 16);
            } else {
                tokio::time::sleep(FOLLOWED_WITHIN).await;
            }
        }
        Ok(())
    }

    /// Forgets what no worker has any more.
    fn settle_generations(&mut self) {
        let live = self.publisher.slowest();
        while self.generations.get(1).is_some_and(|(epoch, _)| *epoch <= live) {
            self.generations.pop_front();
        }
        self.publisher.reclaim();
    }

    /// The newest generation that is live on every worker.
    #[must_use]
    pub fn live_generation(&self) -> u64 {
        let live = self.publisher.slowest();
        let known = self.generations.iter().rev().find(|(epoch, _)| *epoch <= live);
        known.map_or(0, |(_, generation)| *generation)
    }

    /// The configuration as it is wanted.
    #[must_use]
    pub fn desired(&self) -> &Desired {
        &self.desired
    }

    /// The tables as they are published, now and later, for whoever reads them at his own pace.
    #[must_use]
    pub fn published(&self) -> Arc<Mutex<Arc<Snapshot>>> {
        Arc::clone(&self.shown)
    }

    /// The connections, as the control side sees them.
    #[must_use]
    pub fn tracker(&self) -> Option<&Tracker> {
        Some(&self.tracker)
    }

    /// What the rules of policies decide, as it is counted.
    #[must_use]
    pub fn rule_books(&self) -> &RuleBooks {
        self.author.counted()
    }

    /// What workers tell of what they meet.
    #[must_use]
    pub fn events(&self) -> &Arc<Events> {
        &self.events
    }

    /// The tables as they are published.
    #[must_use]
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.publisher.current()
    }

    /// The open devices.
    #[must_use]
    pub fn devices(&self) -> &BTreeMap<Owner, Device> {
        &self.devices
    }

    /// Devices that are asked for and not open, and why.
    #[must_use]
    pub fn waiting(&self) -> &BTreeMap<Owner, String> {
        &self.waiting
    }

    /// The interface that a device is or would be opened on; empty for none.
    #[must_use]
    pub fn interface_of(&self, owner: &Owner) -> String {
        let wanted = device::wanted(&self.desired);
        let spec = wanted.iter().find(|(it, _)| it == owner).map(|(_, spec)| spec.interface());
        spec.unwrap_or_default().to_owned()
    }

    /// Whether a device's link can carry packets, or why not.
    #[must_use]
    pub fn link_state(&self, device: &Device) -> String {
        if let Some(session) = &device.session {
            return vhost::state(&session.status());
        }
        let state = match self.view.links.get(&device.facts.ifindex) {
            Some(link) if !link.up => "down: the interface is set down",
            Some(link) if !link.carrier => "down: no carrier",
            _ => "up",
        };
        state.to_owned()
    }

    /// The addresses and ports that more than one service claims.
    pub fn contested(&self) -> impl Iterator<Item = Contested> {
        self.author.directory().contested()
    }

    /// The workers.
    #[must_use]
    pub fn workers(&self) -> &[Handle] {
        &self.workers
    }

    /// What a worker did in the last second.
    #[must_use]
    pub fn pace(&self, worker: usize) -> Pace {
        self.watchdog.pace(worker)
    }

    /// Whether a worker takes no turns any more.
    #[must_use]
    pub fn is_stalled(&self, worker: usize) -> bool {
        self.watchdog.is_stalled(worker)
    }

    /// Whether the daemon is on its way out.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.draining
    }

    /// Flows that one worker's caches hold.
    #[must_use]
    pub fn flow_capacity(&self) -> u64 {
        self.flow_capacity
    }

    /// The packet memory.
    #[must_use]
    pub fn region(&self) -> &'static Region {
        self.region
    }

    /// How fast time-stamp ticks pass.
    #[must_use]
    pub fn rate(&self) -> TicksPerSecond {
        self.rate
    }

    /// Since when the daemon runs.
    #[must_use]
    pub fn started(&self) -> Instant {
        self.started
    }

    fn new_port(&mut self) -> PortId {
        let id = PortId(self.next_port);
        self.next_port += 1;
        id
    }
}

#[cfg(test)]
mod tests;
