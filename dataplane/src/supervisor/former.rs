//! What the daemon before left behind that goes on: its connections, and what its uplinks took from the kernel.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::conntrack::{Connection, NetworkId, Owner, Table};
use crate::tables::Snapshot;

/// How long objects that only the control interface tells of may be late after a restart.
const LATE: Duration = Duration::from_secs(60);

/// The daemon before, as long as not everything of its is the present one's.
#[derive(Debug)]
pub(super) struct Former {
    /// Until then its uplinks' rules count: the services and pools that they follow from may still be told.
    until: Option<Instant>,
    /// Whether its connections count against nobody's share yet.
    has_orphans: bool,
}

impl Former {
    /// A daemon that left `connections`.
    pub(super) fn that_left(connections: u32, now: Instant) -> Former {
        Former { until: Some(now + LATE), has_orphans: connections > 0 }
    }

    /// Whether what its uplinks took is still to be taken.
    pub(super) fn rules_count(&self) -> bool {
        self.until.is_some()
    }

    /// Somebody has told everything that there is.
    pub(super) fn is_replaced(&mut self) {
        self.until = None;
    }

    /// Whether it has just been waited for long enough.
    pub(super) fn is_over(&mut self, now: Instant) -> bool {
        let over = self.until.is_some_and(|until| until <= now);
        if over {
            self.until = None;
        }
        over
    }

    /// Lets its connections count against the shares of the endpoints that `snapshot` knows; returns how many do.
    pub(super) fn hand_over(&mut self, table: &Table, snapshot: &Snapshot) -> u32 {
        if !self.has_orphans {
            return 0;
        }
        let owners = owners(snapshot);
        let claimed = table.reown(|connection: &Connection| {
            owners.get(&(connection.original.network(), connection.original.src())).copied()
        });
        // Others' endpoints may come later, until everything is told.
        self.has_orphans = self.rules_count();
        claimed
    }
}

/// Who opens connections from which address.
fn owners(snapshot: &Snapshot) -> HashMap<(NetworkId, IpAddr), Owner> {
    let mut owners = HashMap::new();
    for endpoint in &snapshot.endpoints {
        let Some(network) = snapshot.networks.get(endpoint.network as usize) else { continue };
        let Some(id) = NetworkId::new(network.vni.get()) else { continue };
        let owner = Owner::endpoint(endpoint.device.0.into());
        owners.extend(endpoint.addresses.iter().map(|&address| ((id, address), owner)));
    }
    owners
}
