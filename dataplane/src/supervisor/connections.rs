//! The connection table: made, or taken over from the daemon that was here before.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use penstock_io::shared::{Opened, SharedError, SharedRegion};
use penstock_io::{Ticks, TicksPerSecond};
use thiserror::Error;

use super::former::as_former;
use crate::config::Config;
use crate::conntrack::{
    Connection, HashSeed, Memory, Owner, Plan, Seconds, Settings, Table, Timeouts, WorkerId,
};
use crate::tables::service::Affinity;
use crate::tracker::Tracker;

/// Clients that are kept at their backend; each takes eight bytes.
const AFFINE_CLIENTS: usize = 1 << 17;

/// Why there is no connection table.
#[derive(Debug, Error)]
pub enum OpenError {
    /// Its file cannot be had.
    #[error("connections: {0}")]
    Region(#[from] SharedError),
    /// There is no memory for what goes with it.
    #[error("connections: no memory for the index ({0}); lower connections.capacity")]
    Index(#[source] io::Error),
    /// The region's path names no file.
    #[error("connections: region {0:?} is no file's path; give it one such as /run/penstock/connections")]
    Path(PathBuf),
}

/// Opens the table that the configuration names, and takes over what a former daemon left there: so many connections.
pub(super) fn open(config: &Config, rate: TicksPerSecond) -> Result<(Tracker, u32), OpenError> {
    let settings = &config.connections;
    let path = settings.region(&config.socket);
    let (Some(directory), Some(name)) = (path.parent(), path.file_name().and_then(|name| name.to_str()))
    else {
        return Err(OpenError::Path(path));
    };
    let workers = config.cpus.len() as u16;
    // A device's number is its endpoint's.
    let owners = Owner::of_endpoints(u16::MAX);
    let plan = Plan { capacity: settings.capacity, owners, workers };
    let now = Ticks::now();
    let (region, opened) = SharedRegion::open(directory, name, plan.layout(), now, rate)?;
    let region = region.leak();
    let (clock, seed) = (region.clock(), HashSeed::new(region.seed()));
    let seconds = Seconds(clock.seconds(now));
    let claim = |connection: &Connection| Some(as_former(connection.parties));
    let (table, adoption) =
        Table::over(Memory::shared(region), seed, plan, seconds, claim).map_err(OpenError::Index)?;
    match opened {
        Opened::Fresh => tracing::info!("connections: a table for {} in {}", plan.capacity, path.display()),
        Opened::Adopted { .. } => tracing::info!(
            "connections: {} of the daemon before go on; {} had expired, {} were being written when it ended",
            adoption.kept,
            adoption.expired,
            adoption.broken
        ),
        Opened::SetAside { why, .. } => tracing::warn!(
            "connections: begins without any, the table in {} was set aside: {why}",
            path.display()
        ),
    }
    let tracker = Tracker {
        table: Arc::new(table),
        affinity: Arc::new(Affinity::with_capacity(AFFINE_CLIENTS)),
        settings: Settings { timeouts: timeouts(&settings.timeouts_s), pick_up: settings.pick_up },
        share: settings.endpoint_share(),
        outside: settings.outside_share(),
        clock,
        worker: WorkerId(0),
    };
    Ok((tracker, adoption.kept))
}

/// The timeouts of the configuration; both lists have the same names.
fn timeouts(told: &crate::config::stateful::Timeouts) -> Timeouts {
    Timeouts {
        tcp_syn_sent: told.tcp_syn_sent,
        tcp_syn_received: told.tcp_syn_received,
        tcp_established: told.tcp_established,
        tcp_fin_wait: told.tcp_fin_wait,
        tcp_close_wait: told.tcp_close_wait,
        tcp_last_ack: told.tcp_last_ack,
        tcp_time_wait: told.tcp_time_wait,
        tcp_close: told.tcp_close,
        tcp_unacknowledged: told.tcp_unacknowledged,
        udp: told.udp,
        udp_stream: told.udp_stream,
        icmp: told.icmp,
        sctp_closed: told.sctp_closed,
        sctp_cookie_wait: told.sctp_cookie_wait,
        sctp_cookie_echoed: told.sctp_cookie_echoed,
        sctp_established: told.sctp_established,
        sctp_shutdown: told.sctp_shutdown,
        sctp_picked_up: told.sctp_picked_up,
        other: told.other,
        binding: told.binding,
    }
}
