//! What is counted on the way to the dataplane.

use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

/// The bounds of the times that changes take, in seconds.
const TIMES: [f64; 13] = [0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0, 30.0];

/// What is counted on the way to the dataplane. Clones count together.
#[derive(Debug, Clone)]
pub struct PushMetrics {
    pub(super) connected: Gauge,
    pub(super) resyncs: Counter,
    pub(super) batches: Counter,
    pub(super) upserts: Counter,
    pub(super) deletes: Counter,
    pub(super) refused: Gauge,
    pub(super) failures: Counter,
    pub(super) generation: Gauge,
    live_after: Histogram,
}

impl Default for PushMetrics {
    fn default() -> Self {
        Self {
            connected: Gauge::default(),
            resyncs: Counter::default(),
            batches: Counter::default(),
            upserts: Counter::default(),
            deletes: Counter::default(),
            refused: Gauge::default(),
            failures: Counter::default(),
            generation: Gauge::default(),
            live_after: Histogram::new(TIMES),
        }
    }
}

impl PushMetrics {
    /// Shows them in a registry.
    pub fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("dataplane");
        registry.register("connected", "Whether the dataplane is there", self.connected.clone());
        registry.register(
            "resyncs",
            "How often all that the dataplane holds was compared with what is wanted",
            self.resyncs.clone(),
        );
        registry.register("batches", "Batches of changes that went out", self.batches.clone());
        registry.register("upserts", "Objects that were added or replaced", self.upserts.clone());
        registry.register("deletes", "Objects that were removed", self.deletes.clone());
        registry.register(
            "refused_objects",
            "Objects that the dataplane does not take as they are wanted",
            self.refused.clone(),
        );
        registry.register("failures", "Calls that failed on the way", self.failures.clone());
        registry.register(
            "generation",
            "The dataplane's generation that holds the last batch",
            self.generation.clone(),
        );
        registry.register_with_unit(
            "live_after",
            "From a change of what is wanted to live on every worker",
            Unit::Seconds,
            self.live_after.clone(),
        );
    }

    pub(super) fn took(&self, time: Duration) {
        self.live_after.observe(time.as_secs_f64());
    }
}
