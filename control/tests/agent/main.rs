//! The agent's halves against pretended others: a dataplane that is a map, an API server that says what it is told to.

#![allow(clippy::unwrap_used, unreachable_pub, reason = "all of it is a test's")]

mod apiserver;
mod blocks;
mod dataplane;
mod devices;
mod directory;
mod push;
mod watches;

use std::time::{Duration, Instant};

/// How long anything may take before a test calls it broken.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Asks again and again until `condition` holds, but not for ever.
pub async fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let from = Instant::now();
    while !condition() {
        assert!(from.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
