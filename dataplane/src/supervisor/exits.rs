//! Devices in the workers' hands: queues dealt out, ways to them for everybody else, and everything taken back.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, TryRecvError, bounded};
use penstock_io::Port;
use penstock_io::steer::{Role, ip_name};
use tokio::sync::mpsc;

use super::device::{self, Device, Opened, Owner, Queue, Spec, Surroundings};
use super::{Engine, Refusal, Request};
use crate::flow::DeviceId;
use crate::mailbox::{Command, Exit, MAILBOX, Outlet, Takes};
use crate::port::OwnedPort;
use crate::stats::Counts;

/// How long a worker may take to close a port.
const CLOSED_WITHIN: Duration = Duration::from_secs(2);
/// How long workers may take to forward what is inside when the daemon ends. It takes milliseconds, unless the node itself
/// goes on sending to its pods.
const DRY_WITHIN: Duration = Duration::from_millis(200);

impl Engine {
    /// Opens a device unless it is open; notes why when it cannot be.
    pub(super) async fn open_if_closed(&mut self, owner: &Owner, spec: &Spec, around: &Surroundings) {
        if self.devices.contains_key(owner) {
            return;
        }
        if let Spec::Veth { interface, .. } = spec
            && let Err(error) = self.kernel.bring_up(interface).await
        {
            return self.wait_for(owner, error.to_string());
        }
        let opened = device::open(spec, around, &mut self.pool);
        // What is left over is the workers'.
        self.pool.empty();
        let opened = match opened {
            Ok(opened) => opened,
            Err(error) => return self.wait_for(owner, error.to_string()),
        };
        // The host port comes up when it is prepared.
        if let (Spec::Tap { interface, .. }, Owner::Endpoint(_)) = (spec, owner)
            && let Err(error) = self.kernel.bring_up(interface).await
        {
            tracing::warn!("{owner}: {error}");
        }
        self.waiting.remove(owner);
        self.hand_out(owner, spec, opened);
    }

    fn wait_for(&mut self, owner: &Owner, why: String) {
        if self.waiting.get(owner) != Some(&why) {
            tracing::warn!("{owner} waits: {why}");
        }
        self.waiting.insert(owner.clone(), why);
    }

    /// Deals a device's queues out. The workers get them once the tables know the device ([`Engine::admit`]).
    fn hand_out(&mut self, owner: &Owner, spec: &Spec, opened: Opened) {
        let Some(id) = self.new_device() else {
            opened.ports.into_iter().for_each(|port| port.close(&mut self.pool));
            self.pool.empty();
            // A pod's interface stays closed, as while it waits for any other reason after it was open.
            drop((opened.steer, opened.session));
            return self.wait_for(owner, "there are 65536 devices already".to_owned());
        };
        let mut queues = Vec::new();
        for port in opened.ports {
            let (queue, worker) = (self.new_port(), self.deal.take());
            self.arrivals.push((worker, OwnedPort { id: queue, device: id, port }));
            queues.push(Queue { id: queue, worker });
        }
        let facts = opened.facts;
        let mode =
            if facts.xdp.is_empty() { String::new() } else { format!(", {} XDP, {}", facts.xdp, facts.copy) };
        tracing::info!("{owner}: {} {} open with {} queues{mode}", facts.kind, facts.interface, queues.len());
        let device = Device {
            id,
            facts,
            queues,
            spec: spec.clone(),
            steer: opened.steer,
            session: opened.session,
            rules: Default::default(),
            broken: None,
        };
        self.devices.insert(owner.clone(), device);
    }

    /// Gives new queues to their workers and tells everybody the way. The tables are published before: a worker takes them
    /// up in the turn in which it gets the port, so nothing that waits in it, a file to be replayed say, comes from a port
    /// that is unknown.
    pub(super) fn admit(&mut self) {
        let mut new: BTreeSet<DeviceId> = BTreeSet::new();
        for (worker, port) in std::mem::take(&mut self.arrivals) {
            new.insert(port.device);
            self.workers[worker].tell(Command::AddPort(Box::new(port)));
        }
        for device in self.devices.values().filter(|device| new.contains(&device.id)) {
            self.tell_ways(device.id, &device.queues);
        }
    }

    /// Workers that own a queue use it; the others hand their frames to the owner of the first.
    fn tell_ways(&self, id: DeviceId, queues: &[Queue]) {
        let Some(first) = queues.first() else { return };
        // What the first queue takes, whose owner sends for those that have none.
        let firsts = Takes::default();
        for (index, worker) in self.workers.iter().enumerate() {
            if let Some(own) = queues.iter().find(|queue| queue.worker == index) {
                let takes = if own.id == first.id { firsts.clone() } else { Takes::default() };
                worker.tell(Command::SetExit(id, Exit::Own(own.id, takes)));
                continue;
            }
            let owner = &self.workers[first.worker];
            let (frames, inlet) = rtrb::RingBuffer::new(MAILBOX);
            owner.tell(Command::AddInlet(inlet));
            let outlet = Outlet { takes: firsts.clone(), frames, bell: owner.bell().clone() };
            worker.tell(Command::SetExit(id, Exit::Worker(outlet)));
        }
    }

    /// Closes what is not asked for any more, what is to be opened otherwise, and what is broken.
    pub(super) async fn close_unwanted(&mut self, wanted: &[(Owner, Spec)]) {
        let doomed: Vec<Owner> = self
            .devices
            .iter()
            .filter(|(owner, device)| {
                let spec = wanted.iter().find(|(it, _)| it == *owner).map(|(_, spec)| spec);
                device.broken.is_some() || spec != Some(&device.spec)
            })
            .map(|(owner, _)| owner.clone())
            .collect();
        for owner in doomed {
            let spec = wanted.iter().find(|(it, _)| *it == owner).map(|(_, spec)| spec);
            self.close(&owner, spec).await;
        }
    }

    /// Closes a device: its queues at the workers, then its steering, which stays closed if the interface is to be opened
    /// again by `wanted`.
    async fn close(&mut self, owner: &Owner, wanted: Option<&Spec>) {
        let Some(device) = self.devices.remove(owner) else { return };
        let keep_closed = wanted.is_some_and(|spec| spec.interface() == device.facts.interface);
        let replies: Vec<Receiver<()>> = device
            .queues
            .iter()
            .map(|queue| {
                let (done, reply) = bounded(1);
                self.workers[queue.worker].tell(Command::RemovePort(queue.id, done));
                self.deal.give_back(queue.worker);
                reply
            })
            .collect();
        for worker in &self.workers {
            worker.tell(Command::SetExit(device.id, Exit::None));
        }
        let mut closed = true;
        for reply in replies {
            closed &= answer(&reply, CLOSED_WITHIN).await.is_some();
        }
        // It has nothing to wait for: its ports are closed.
        drop(device.session);
        if let Some(steer) = device.steer
            && let Err(error) = steer.detach(keep_closed)
        {
            tracing::warn!("{owner}: {error}");
        }
        match (&device.broken, closed) {
            (_, false) => {
                tracing::error!("{owner}: a worker did not close its port within {CLOSED_WITHIN:?}")
            }
            // A number whose port may still be open somewhere is not given out again.
            (Some(why), true) => tracing::warn!("{owner}: closed: {why}"),
            (None, true) => tracing::info!("{owner}: closed"),
        }
        self.retire_device(owner, device.id, closed);
    }

    /// Ends in good order: lets nothing more in, forwards what is inside, then stops the workers and takes the uplinks'
    /// steering off. The pods' interfaces stay closed, and so does an uplink to ports that the kernel would answer for:
    /// the connections go on with the next daemon. Whoever looks meanwhile is answered; changes are refused.
    pub(super) async fn drain(mut self, mut requests: mpsc::Receiver<Request>) {
        self.draining = true;
        self.let_nothing_in();
        let mut before: Vec<Counts> = vec![Counts::default(); self.workers.len()];
        let dry = |engine: &Engine| {
            engine.workers.iter().zip(&mut before).fold(true, |dry, (worker, before)| {
                let now = worker.stats.counts();
                let was = std::mem::replace(before, now);
                worker.ring();
                dry && now.turns > was.turns && now.rx == was.rx
            })
        };
        self.answer_until(&mut requests, DRY_WITHIN, dry).await;
        for worker in &self.workers {
            worker.tell(Command::Stop);
        }
        let stopped = |engine: &Engine| engine.workers.iter().all(|worker| worker.health().stopped);
        self.answer_until(&mut requests, CLOSED_WITHIN, stopped).await;
        requests.close();
        while let Some(request) = requests.recv().await {
            self.answer_late(request);
        }
        for worker in self.workers.drain(..) {
            if worker.health().stopped {
                worker.join();
            } else {
                tracing::error!(
                    "worker {} did not stop within {CLOSED_WITHIN:?}; it ends with the process",
                    worker.id
                );
            }
        }
        let mut closed = false;
        for (owner, device) in std::mem::take(&mut self.devices) {
            let Some(steer) = device.steer else { continue };
            let is_pod = steer.role() == Role::Pod;
            let keep_closed = is_pod || device.rules.have_ports();
            if keep_closed && !is_pod {
                closed = true;
                tracing::info!(
                    "{owner}: closed to the ports of services and translated connections, which go on with the next \
                     daemon; to give the ports back to the kernel: ip link set dev {} {} off, and take those of \
                     connections out of net.ipv4.ip_local_reserved_ports",
                    device.facts.interface,
                    ip_name(steer.mode().native)
                );
            }
            if let Err(error) = steer.detach(keep_closed) {
                tracing::warn!("{owner}: {error}");
            }
        }
        if !closed {
            // Nothing is left that would take an answer to a translated connection, be it the daemon before's.
            self.taken_ports.settle();
        }
        tracing::info!("drained");
    }

    /// From here on an uplink takes nothing more, and a pod's interface drops everything; what the queues hold already is
    /// still forwarded. The host port stays open: the kernel would take a closed one for a dead link.
    fn let_nothing_in(&self) {
        for (owner, device) in &self.devices {
            let Some(steer) = &device.steer else { continue };
            if let Err(error) = (0..steer.queues()).try_for_each(|queue| steer.unbind(queue)) {
                tracing::warn!("{owner}: {error}");
            }
        }
    }

    /// Answers requests until `done` says so, or until it has taken too long.
    async fn answer_until(
        &self,
        requests: &mut mpsc::Receiver<Request>,
        within: Duration,
        mut done: impl FnMut(&Engine) -> bool,
    ) {
        let began = Instant::now();
        while !done(self) && began.elapsed() < within {
            let pause = tokio::time::sleep(Duration::from_millis(1));
            tokio::select! {
                // With nobody left to ask, only time passes.
                Some(request) = requests.recv() => self.answer_late(request),
                () = pause => {}
            }
        }
    }

    /// Answers a request that came after the one to drain.
    fn answer_late(&self, request: Request) {
        match request {
            Request::Look(look) => look(self),
            // Whoever asked may have gone away.
            Request::Change(_, reply) => drop(reply.send(Err(Refusal::Draining))),
            Request::Drain => {}
        }
    }
}

/// Waits for a worker's answer; `None` when it is late or gone.
pub(crate) async fn answer<T>(reply: &Receiver<T>, within: Duration) -> Option<T> {
    let began = Instant::now();
    loop {
        match reply.try_recv() {
            Ok(answer) => return Some(answer),
            Err(TryRecvError::Disconnected) => return None,
            Err(TryRecvError::Empty) if began.elapsed() > within => return None,
            Err(TryRecvError::Empty) => tokio::time::sleep(Duration::from_micros(200)).await,
        }
    }
}
