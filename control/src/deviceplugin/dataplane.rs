//! Whether the dataplane is there, and near which memory its workers are.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use penstock_api::client::{Client, ClientError};
use penstock_api::query::EventOrder;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use crate::sysfs::Sysfs;

/// How long to wait before a dataplane that is not there is looked for again.
const PAUSE: Duration = Duration::from_millis(500);

/// What is known of the dataplane.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Outside {
    /// Whether it is there, or was a moment ago.
    pub is_there: bool,
    /// The NUMA nodes of its workers' processors; none when these are pinned nowhere.
    pub nodes: BTreeSet<u32>,
}

/// Follows the dataplane, for ever.
pub(super) async fn follow(socket: PathBuf, grace: Duration, sysfs: Sysfs, tell: watch::Sender<Outside>) {
    let mut away_since = Instant::now();
    loop {
        if let Err(error) = attend(&socket, &sysfs, &tell).await {
            tracing::debug!("the dataplane is not there: {error}");
        } else {
            away_since = Instant::now();
        }
        sleep(PAUSE).await;
        if away_since.elapsed() >= grace {
            let was_there = tell.send_if_modified(|outside| std::mem::replace(&mut outside.is_there, false));
            if was_there {
                tracing::warn!(
                    "the dataplane has been away for {} s: its devices are unhealthy",
                    grace.as_secs()
                );
            }
        }
    }
}

/// Tells that the dataplane is there, and waits until it has ended.
async fn attend(socket: &Path, sysfs: &Sysfs, tell: &watch::Sender<Outside>) -> Result<(), ClientError> {
    let mut client = Client::connect(socket).await?;
    let mut events = client.events(&EventOrder::default()).await?;
    let cpus = client.workers().await?.into_iter().filter_map(|worker| worker.cpu);
    let now = Outside { is_there: true, nodes: sysfs.nodes_of_cpus(cpus) };
    tell.send_if_modified(|outside| {
        let differs = *outside != now;
        *outside = now;
        differs
    });
    while let Ok(Some(_)) = events.next().await {}
    Ok(())
}
