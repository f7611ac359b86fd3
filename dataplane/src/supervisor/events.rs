//! What the supervisor waits for, one thing at a time: requests, the kernel, the workers, the clock.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};
use tokio::time::MissedTickBehavior;

use super::{Device, Engine, Live, Owner, Refusal, Spec, device, steering};
use crate::flow::DeviceId;
use crate::kernel::{Change as KernelChange, Watcher};
use crate::mailbox::Event;
use crate::tables::desired::Change;

/// How often counters, neighbours and what is waited for are looked after.
const TICK: Duration = Duration::from_secs(1);

/// Where the outcome of a change goes.
pub type Reply = oneshot::Sender<Result<Live, Refusal>>;

/// What the supervisor is asked.
pub enum Request {
    /// Change the configuration.
    Change(Change, Reply),
    /// Look at the engine; what is seen goes where the question says.
    Look(Box<dyn FnOnce(&Engine) + Send>),
    /// Stop.
    Drain,
}

impl Engine {
    /// Serves until it is told to drain, or until nobody is left to ask; then drains.
    pub async fn run(mut self, watcher: Watcher, mut requests: mpsc::Receiver<Request>) {
        let mut watcher = Some(watcher);
        let events = Arc::clone(&self.events);
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                request = requests.recv() => match request {
                    Some(Request::Change(change, reply)) => {
                        // Whoever asked may have gone away; the change is made all the same.
                        let _ = reply.send(self.apply(change).await);
                        // The answer goes out before the tables of before are taken down.
                        tokio::task::yield_now().await;
                        self.settle_generations();
                    }
                    Some(Request::Look(look)) => look(&self),
                    Some(Request::Drain) | None => break,
                },
                changes = next(&mut watcher) => match changes {
                    Some(changes) => self.follow(&changes).await,
                    None => watcher = None,
                },
                () = events.wake.notified() => self.hear().await,
                _ = tick.tick() => {
                    if watcher.is_none() {
                        watcher = self.follow_again().await;
                    }
                    self.look_after().await;
                }
            }
        }
        self.drain(requests).await;
    }

    /// What the kernel says has changed.
    async fn follow(&mut self, changes: &[KernelChange]) {
        let (mut routes, mut links) = (false, false);
        for change in changes {
            self.view.apply(change);
            match change {
                KernelChange::Routes | KernelChange::Addresses { .. } => routes = true,
                KernelChange::Link { ifindex, link } => {
                    (routes, links) = (true, true);
                    if link.is_none() {
                        // A tap may have gone to a pod's namespace, where it is as good as here. One that is no more says so
                        // itself: its port cannot be read.
                        self.break_devices(
                            |device| device.facts.ifindex == *ifindex && !device.may_move(),
                            "its interface is gone",
                        );
                    }
                }
                KernelChange::Neighbour { .. } => {}
            }
        }
        if links && self.needs_devices() {
            self.reconcile().await;
        }
        self.refresh(routes).await;
    }

    /// Starts to follow the kernel again after the socket broke.
    async fn follow_again(&mut self) -> Option<Watcher> {
        match Watcher::start().await {
            Ok((view, watcher)) => {
                self.view = view;
                self.refresh(true).await;
                Some(watcher)
            }
            Err(error) => {
                tracing::error!("the kernel is not followed, trying again in {TICK:?}: {error}");
                None
            }
        }
    }

    /// What the workers say.
    async fn hear(&mut self) {
        let (now, mut differs) = (Instant::now(), false);
        while let Some(event) = self.events.next() {
            match event {
                Event::NeighbourWanted(device, address) => {
                    if let Some(ifindex) = self.ifindex_of(device) {
                        self.knowledge.want(ifindex, address, now);
                        differs = true;
                    }
                }
                Event::PathMtu(peer, mtu) => {
                    if self.knowledge.learn(peer, mtu, now) {
                        tracing::info!("the underlay carries packets of {mtu} bytes to {peer}");
                        differs = true;
                    }
                }
                Event::PortClosed(port, why) => {
                    self.break_devices(|device| device.queues.iter().any(|queue| queue.id == port), &why);
                }
            }
        }
        if self.needs_devices() {
            self.reconcile().await;
        }
        if differs {
            let used = self.knowledge.used(&self.desired, &self.devices);
            self.upkeep.set_used(used);
            self.refresh(false).await;
        }
    }

    /// What is due every second.
    async fn look_after(&mut self) {
        let now = Instant::now();
        for index in 0..self.workers.len() {
            let (id, counts) = (self.workers[index].id, self.workers[index].stats.counts());
            match self.watchdog.look(index, counts, now) {
                Some(true) => tracing::error!("worker {id} is stalled: it has taken no turn for a second"),
                Some(false) => tracing::warn!("worker {id} turns again"),
                None => {}
            }
        }
        if self.needs_devices() {
            self.reconcile().await;
        }
        if self.former.is_over(now) {
            self.replace_former();
            self.former.hand_over(&self.tracker.table, &self.publisher.current(), &self.desired);
        }
        if self.knowledge.expire(&self.view, now) {
            self.refresh(false).await;
        }
        self.probe().await;
        self.taken_ports.look_for_listeners();
        self.settle_generations();
        self.end_departed();
        self.reclaim_backends();
    }

    /// Nothing of the daemon before counts any more but its connections.
    pub(super) fn replace_former(&mut self) {
        self.former.is_replaced();
        steering::forget_former(&mut self.devices);
        self.taken_ports.settle();
    }

    /// Asks the kernel for the neighbours that are due.
    pub(super) async fn probe(&mut self) {
        for (ifindex, address) in self.upkeep.due(&self.view, Instant::now()) {
            if let Err(error) = self.kernel.probe(ifindex, address).await {
                tracing::debug!("{error}");
            }
        }
    }

    /// Whether something is to be closed, or waits for what may be there by now.
    fn needs_devices(&self) -> bool {
        let broken = self.devices.values().any(|device| device.broken.is_some());
        let retry = self.waiting.keys().any(|owner| match owner {
            Owner::Host => true,
            Owner::Uplink(_) | Owner::Endpoint(_) => self.interface_is_there(owner),
        });
        broken || retry
    }

    /// Whether the interface of a device that waits is there, so that opening it may succeed now.
    fn interface_is_there(&self, owner: &Owner) -> bool {
        let wanted = device::wanted(&self.desired);
        let spec = wanted.iter().find(|(it, _)| it == owner).map(|(_, spec)| spec);
        match spec {
            Some(Spec::Uplink(_) | Spec::Veth { .. }) => {
                spec.is_some_and(|spec| self.view.ifindex(spec.interface()).is_some())
            }
            Some(Spec::Tap { .. } | Spec::Pcap { .. } | Spec::Vhost(_)) => true,
            None => false,
        }
    }

    fn break_devices(&mut self, which: impl Fn(&Device) -> bool, why: &str) {
        for device in self.devices.values_mut() {
            if which(device) && device.broken.is_none() {
                device.broken = Some(why.to_owned());
            }
        }
    }

    fn ifindex_of(&self, id: DeviceId) -> Option<u32> {
        self.devices.values().find(|device| device.id == id).map(|device| device.facts.ifindex)
    }
}

/// The next changes; never, when the kernel is not followed.
async fn next(watcher: &mut Option<Watcher>) -> Option<Vec<KernelChange>> {
    match watcher {
        Some(watcher) => watcher.changes().await,
        None => std::future::pending().await,
    }
}
