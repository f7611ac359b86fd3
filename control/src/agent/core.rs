//! The agent's own loop: news change the cluster, a changed cluster changes what the dataplane is to hold.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use penstock_api::model::{Key as SaidKey, Object as Said};
use penstock_api::proto;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use tokio::sync::{mpsc, watch};
use tokio::time::{MissedTickBehavior, interval};

use super::attaching::Order;
use super::balancer::Plan;
use super::health::Health;
use super::residents::Known;
use super::{Options, Source};
use crate::cluster::{Change, Cluster};
use crate::ipam::Sight;
use crate::kubernetes::{Key, Kind, Object};
use crate::push::{Dataplane, PushMetrics, Pusher, Ticket, Wanted};
use crate::status::{Outlook, is_answered};
use crate::translate::{Settings, Translation};
use crate::watch::{NEWS, News};

/// How often the loop breathes when there are no news.
const BREATH: Duration = Duration::from_secs(1);

/// What the loop counts. Clones count together.
#[derive(Debug, Clone)]
pub(super) struct CoreMetrics {
    news: Counter,
    objects: Gauge,
    problems: Gauge,
    translated_in: Histogram,
}

impl Default for CoreMetrics {
    fn default() -> Self {
        let bounds = [0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.05, 0.2, 1.0, 5.0];
        Self {
            news: Counter::default(),
            objects: Gauge::default(),
            problems: Gauge::default(),
            translated_in: Histogram::new(bounds),
        }
    }
}

impl CoreMetrics {
    /// Shows them in a registry.
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register("news", "What was told of the cluster", self.news.clone());
        registry.register("wanted_objects", "Objects that the dataplane is to hold", self.objects.clone());
        registry.register(
            "unusable_objects",
            "Objects of the cluster that cannot be honoured as they are",
            self.problems.clone(),
        );
        registry.register_with_unit(
            "translated_in",
            "From news to what the dataplane is to hold",
            Unit::Seconds,
            self.translated_in.clone(),
        );
    }
}

/// The loop.
pub(super) struct Core {
    cluster: Cluster,
    /// What changed in it since it was last translated.
    change: Change,
    translation: Translation,
    wanted: Wanted,
    health: Health,
    metrics: CoreMetrics,
    push_metrics: PushMetrics,
    dataplane: Dataplane,
    /// Whether every kind is known, so that what is not there is really not there.
    is_complete: bool,
    pusher: tokio::task::JoinSet<()>,
    /// Where what the dataplane tells goes.
    events: mpsc::Sender<proto::Event>,
    outlook: watch::Sender<Outlook>,
    /// Who is to have which address outside.
    plan: Plan,
    plan_changed: bool,
    /// What of it the balancer knows: nothing before every kind is known, for it would take back what it does not see.
    plan_told: watch::Sender<Option<Plan>>,
    /// Whether an object came or went whose status says if it is honoured.
    answers_changed: bool,
    /// The pods of this node, for who attaches them.
    residents: watch::Sender<Known>,
    /// What attachments want besides endpoints, since it was last said: the ports of the node that lead to a pod.
    beside: Vec<(SaidKey, Option<Arc<Said>>)>,
    /// The blocks of pools, for who takes addresses of them.
    blocks: Sight,
    /// Whether it is an API server that tells, and not a directory, whose objects have no versions.
    has_server: bool,
}

impl Core {
    /// A loop that knows nothing yet.
    pub(super) fn new(
        options: &Options,
        wanted: Wanted,
        health: Health,
        metrics: CoreMetrics,
        events: mpsc::Sender<proto::Event>,
    ) -> Self {
        let network = "default".parse().expect("a sound name");
        Self {
            cluster: Cluster::new(network),
            change: Change::default(),
            translation: Translation::new(Settings::of_node(options.node.as_str())),
            wanted,
            health,
            metrics,
            push_metrics: PushMetrics::default(),
            dataplane: options.dataplane.clone(),
            is_complete: false,
            pusher: tokio::task::JoinSet::new(),
            events,
            outlook: watch::Sender::default(),
            plan: Plan::default(),
            plan_changed: true,
            plan_told: watch::Sender::default(),
            answers_changed: false,
            residents: {
                let with_namespaces = matches!(options.source, Source::Kubernetes { .. });
                watch::Sender::new(Known::of_node(options.node.as_str(), with_namespaces))
            },
            beside: Vec::new(),
            blocks: Sight::default(),
            has_server: matches!(options.source, Source::Kubernetes { .. }),
        }
    }

    /// The pods of this node, now and whenever they change.
    pub(super) fn residents(&self) -> watch::Receiver<Known> {
        self.residents.subscribe()
    }

    /// The blocks of pools as they are known.
    pub(super) fn blocks(&self) -> Sight {
        self.blocks.clone()
    }

    /// Takes what is attached, or is no more: it is told with what comes next.
    pub(super) fn attach(&mut self, changes: impl IntoIterator<Item = (SaidKey, Option<Said>)>) {
        for (key, object) in changes {
            match (key, object) {
                (_, Some(Said::Endpoint(endpoint))) => self.change.merge(self.cluster.attach(endpoint)),
                (SaidKey::Endpoint(name), None) => self.change.merge(self.cluster.detach(&name)),
                (key, object) => self.beside.push((key, object.map(Arc::new))),
            }
        }
    }

    /// What is thought of the cluster's objects, now and whenever that changes.
    pub(super) fn outlook(&self) -> watch::Receiver<Outlook> {
        self.outlook.subscribe()
    }

    /// What the way to the dataplane counts.
    pub(super) fn push_metrics(&self) -> &PushMetrics {
        &self.push_metrics
    }

    /// Who is to have which address outside, now and whenever that may change.
    pub(super) fn plan(&self) -> watch::Receiver<Option<Plan>> {
        self.plan_told.subscribe()
    }

    /// Goes on until nobody tells anything any more.
    pub(super) async fn run(mut self, mut told: mpsc::Receiver<News>, mut orders: mpsc::Receiver<Order>) {
        let mut breath = interval(BREATH);
        breath.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut batch = Vec::with_capacity(NEWS);
        let mut answers = Vec::new();
        loop {
            tokio::select! {
                count = told.recv_many(&mut batch, NEWS) => if count == 0 { return },
                // Not before all is known: whoever attaches a pod wants its policies with it.
                Some(order) = orders.recv(), if self.is_complete => {
                    for order in std::iter::once(order).chain(std::iter::from_fn(|| orders.try_recv().ok())) {
                        self.attach(order.changes);
                        answers.push(order.answer);
                    }
                }
                _ = breath.tick() => {}
            }
            self.health.breathe();
            if batch.is_empty() && answers.is_empty() {
                continue;
            }
            let since = Instant::now();
            self.metrics.news.inc_by(batch.len() as u64);
            batch.drain(..).for_each(|news| self.take(news));
            if self.is_complete {
                let ticket = self.publish(since);
                for answer in answers.drain(..) {
                    // Who asked may have had no patience.
                    let _ = answer.send(ticket);
                }
            }
        }
    }

    /// Changes the cluster as it is told.
    fn take(&mut self, news: News) {
        let kind = match &news {
            News::Applied(object) => object.key().kind,
            News::Removed(key) => key.kind,
            News::Listed(kind, _) => *kind,
        };
        self.answers_changed |= is_answered(kind);
        match news {
            News::Applied(object) => {
                self.plan_changed |= self.plan.apply(&object);
                self.residents.send_if_modified(|known| known.apply(&object));
                self.change.merge(self.cluster.apply(&object));
                if let Object::IPBlock(block) = &object
                    && self.has_server
                    && let Err(unreadable) = self.blocks.apply(block)
                {
                    tracing::error!("{unreadable}");
                }
            }
            News::Removed(key) => self.forget(&key),
            News::Listed(kind, keys) => {
                for gone in self.cluster.keys(kind).difference(&keys) {
                    self.forget(gone);
                }
                if self.health.listed(kind) {
                    self.is_complete = true;
                }
            }
        }
    }

    fn forget(&mut self, key: &Key) {
        self.plan_changed |= self.plan.remove(key);
        self.residents.send_if_modified(|known| known.remove(key));
        self.change.merge(self.cluster.remove(key));
        if key.kind == Kind::IPBlock {
            self.blocks.remove(&key.name);
        }
    }

    /// Says what the dataplane is to hold now.
    fn publish(&mut self, since: Instant) -> Ticket {
        let change = std::mem::take(&mut self.change);
        if change.ground {
            self.residents.send_if_modified(|known| known.look(&self.cluster));
        }
        let delta = self.translation.follow(&self.cluster, &change);
        let upserts = delta.upserts.into_iter().map(|object| (object.key(), Some(object)));
        let deletes = delta.deletes.into_iter().map(|key| (key, None));
        let ticket = self.wanted.change(since, deletes.chain(upserts).chain(self.beside.drain(..)));
        self.metrics.translated_in.observe(since.elapsed().as_secs_f64());
        self.metrics.objects.set(self.wanted.len() as i64);
        self.look_out();
        if std::mem::take(&mut self.plan_changed) {
            self.plan_told.send_replace(Some(self.plan.clone()));
        }
        if self.pusher.is_empty() {
            // Not before: a dataplane must not be told to forget what is only not known yet.
            let (wanted, metrics) = (self.wanted.clone(), self.push_metrics.clone());
            let pusher = Pusher::new(self.dataplane.clone(), wanted, metrics, self.events.clone());
            self.pusher.spawn(pusher.run());
        }
        ticket
    }

    /// Says what cannot be honoured.
    fn look_out(&mut self) {
        let mut problems: BTreeMap<Key, Vec<String>> = BTreeMap::new();
        for (key, of_input) in self.cluster.problems() {
            problems.entry(key.clone()).or_default().extend(of_input.iter().map(ToString::to_string));
        }
        for (key, problem) in self.translation.refusals() {
            problems.entry(key.clone()).or_default().push(problem.to_string());
        }
        self.metrics.problems.set(problems.len() as i64);
        let answered = std::mem::take(&mut self.answers_changed).then(|| {
            let kinds = Kind::ALL.iter().filter(|kind| is_answered(**kind));
            kinds.flat_map(|kind| self.cluster.keys(*kind)).collect::<BTreeSet<Key>>()
        });
        self.outlook.send_if_modified(|outlook| {
            let new = problems.iter().filter(|(key, said)| outlook.problems.get(*key) != Some(*said));
            for (key, said) in new {
                said.iter().for_each(|problem| tracing::warn!("{key}: {problem}"));
            }
            let changed = outlook.problems != problems
                || answered.as_ref().is_some_and(|answered| outlook.answered != *answered);
            outlook.problems = problems;
            if let Some(answered) = answered {
                outlook.answered = answered;
            }
            changed
        });
    }
}
