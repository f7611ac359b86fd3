//! Whether the agent does its work, and whether it has begun to.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::kubernetes::Kind;
use crate::push::Progress;

/// How long the agent's own loop may be quiet. It breathes every second when it has nothing to do, and takes no longer
/// than this for the largest cluster.
const QUIET: Duration = Duration::from_secs(60);

/// Whether the agent does its work. Clones are the same.
#[derive(Debug, Clone)]
pub(super) struct Health {
    state: Arc<Mutex<State>>,
    progress: watch::Receiver<Progress>,
}

#[derive(Debug)]
struct State {
    breath: Instant,
    /// The kinds of which not all objects were told yet.
    missing: BTreeSet<Kind>,
}

impl Health {
    /// A healthy agent that knows nothing yet.
    pub(super) fn new(progress: watch::Receiver<Progress>) -> Self {
        let missing = Kind::ALL.iter().copied().collect();
        Self { state: Arc::new(Mutex::new(State { breath: Instant::now(), missing })), progress }
    }

    /// The loop is at work.
    pub(super) fn breathe(&self) {
        self.with(|state| state.breath = Instant::now());
    }

    /// All objects of a kind were told. Whether that is so of every kind now.
    pub(super) fn listed(&self, kind: Kind) -> bool {
        self.with(|state| {
            state.missing.remove(&kind);
            state.missing.is_empty()
        })
    }

    /// What makes a restart worth a try.
    pub(super) fn ailments(&self) -> Vec<String> {
        let quiet = self.with(|state| state.breath.elapsed());
        if quiet < QUIET {
            Vec::new()
        } else {
            vec![format!("the agent's loop has been quiet for {} s", quiet.as_secs())]
        }
    }

    /// What is missing before the dataplane can be what the cluster wants.
    pub(super) fn missing(&self) -> Vec<String> {
        let mut missing = self.ailments();
        let kinds = self.with(|state| state.missing.clone());
        missing.extend(kinds.iter().map(|kind| format!("{kind}: not all of them are known yet")));
        if !self.progress.borrow().connected {
            missing.push("the dataplane is not there, or not yet as it is wanted".to_owned());
        }
        missing
    }

    fn with<T>(&self, look: impl FnOnce(&mut State) -> T) -> T {
        look(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_is_ready_once_every_kind_is_known_and_the_dataplane_is_as_wanted() {
        let (progress, seen) = watch::channel(Progress::default());
        let health = Health::new(seen);
        assert!(health.ailments().is_empty());
        let (last, others) = Kind::ALL.split_last().unwrap();
        assert!(others.iter().all(|kind| !health.listed(*kind)));
        assert!(health.listed(*last));
        assert_eq!(health.missing().len(), 1);
        progress.send_modify(|it| it.connected = true);
        assert!(health.missing().is_empty());
    }
}
