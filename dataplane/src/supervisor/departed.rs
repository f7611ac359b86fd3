//! Endpoints that are gone: their connections end, and only then somebody else may have their number.
//!
//! ```text
//!  device closed -> no worker's tables know it -> its endpoint is open again: its connections pass to the new number
//!                                              -> it is gone: its connections end                   -> number is free
//! ```
//!
//! The connection table is not walked at once on the thread that answers changes: every second a piece of it is. Nothing is
//! missed behind the walk, since no worker has tables any more by which it could open a connection of that number.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;

use super::Engine;
use super::device::Owner as DeviceOwner;
use crate::conntrack::{Connection, Fate, Owner, Parties, Table};
use crate::flow::DeviceId;
use crate::snapshot::Epoch;
use crate::tables::desired::Desired;

/// Connections that are looked at in one piece: a few milliseconds.
const PIECE: u32 = 1 << 17;

/// A device that was closed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Departed {
    /// Its number.
    pub(super) device: DeviceId,
    /// The endpoint that it was the attachment of, if that is still wanted.
    pub(super) endpoint: Option<String>,
    /// The first epoch whose tables do not know it.
    pub(super) since: Epoch,
    /// Whether the number may be given out again: not if a port of it may still be open somewhere.
    pub(super) may_return: bool,
}

/// What has become of an endpoint whose device was closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Whereabouts {
    /// It has another device now.
    At(DeviceId),
    /// It is wanted, and not open.
    Awaited,
    /// It is gone.
    Gone,
}

/// The devices that were closed, and what is on its way to be forgotten of them.
#[derive(Debug, Default)]
pub(super) struct Departures {
    /// In the order in which they were closed.
    waiting: VecDeque<Departed>,
    walk: Option<Walk>,
    free: VecDeque<DeviceId>,
}

/// A walk over the connections under way.
#[derive(Debug)]
struct Walk {
    doomed: Vec<Departed>,
    /// Whose their connections are from now on; `None` ends them.
    heirs: HashMap<Owner, Option<Owner>>,
    next: u32,
}

impl Departures {
    /// A device was closed.
    pub(super) fn add(&mut self, departed: Departed) {
        self.waiting.push_back(departed);
    }

    /// A device's number that nothing stands for any more.
    pub(super) fn take_free(&mut self) -> Option<DeviceId> {
        self.free.pop_front()
    }

    /// Goes on with what is to be done about the connections of devices that no tables from `live` on know. Connections
    /// that ended are returned.
    pub(super) fn go_on(
        &mut self,
        table: &Table,
        live: Epoch,
        whereabouts: impl Fn(&str) -> Whereabouts,
    ) -> u32 {
        let Some(mut walk) = self.walk.take().or_else(|| self.begin(table, live, whereabouts)) else {
            return 0;
        };
        let end = walk.next.saturating_add(PIECE).min(table.capacity());
        let ended = walk.piece(table, walk.next..end);
        walk.next = end;
        if end < table.capacity() {
            self.walk = Some(walk);
        } else {
            walk.doomed.into_iter().for_each(|departed| self.settle(table, departed));
        }
        ended
    }

    fn begin(
        &mut self,
        table: &Table,
        live: Epoch,
        whereabouts: impl Fn(&str) -> Whereabouts,
    ) -> Option<Walk> {
        let mut walk = Walk { doomed: Vec::new(), heirs: HashMap::new(), next: 0 };
        for departed in std::mem::take(&mut self.waiting) {
            let owner = Owner::endpoint(departed.device.0);
            let place = departed.endpoint.as_deref().map_or(Whereabouts::Gone, &whereabouts);
            let heir = match place {
                _ if departed.since > live => None,
                Whereabouts::At(device) => Some(Some(Owner::endpoint(device.0))),
                Whereabouts::Awaited => None,
                Whereabouts::Gone => Some(None),
            };
            match heir {
                None => self.waiting.push_back(departed),
                Some(_) if table.share(owner).0 == 0 => self.settle(table, departed),
                Some(heir) => {
                    walk.heirs.insert(owner, heir);
                    walk.doomed.push(departed);
                }
            }
        }
        (!walk.doomed.is_empty()).then_some(walk)
    }

    /// Frees a device's number if no connection is left of it.
    fn settle(&mut self, table: &Table, departed: Departed) {
        if table.share(Owner::endpoint(departed.device.0)).0 > 0 {
            self.waiting.push_back(departed);
        } else if departed.may_return {
            self.free.push_back(departed.device);
        }
    }
}

impl Engine {
    /// A device number that no worker's tables know and no connection counts against: flows and shares of a closed device
    /// must not be the next one's.
    pub(super) fn new_device(&mut self) -> Option<DeviceId> {
        if let Some(id) = self.departures.take_free() {
            return Some(id);
        }
        let id = DeviceId(self.next_device);
        self.next_device = self.next_device.checked_add(1)?;
        Some(id)
    }

    /// A device is closed, all of it or but for a port that a worker may still have open.
    pub(super) fn retire_device(&mut self, owner: &DeviceOwner, device: DeviceId, is_whole: bool) {
        let endpoint = match owner {
            DeviceOwner::Endpoint(name) if is_wanted(&self.desired, name) => Some(name.clone()),
            _ => None,
        };
        let since = Epoch(self.publisher.epoch().0 + 1);
        self.departures.add(Departed { device, endpoint, since, may_return: is_whole });
    }

    /// Ends the connections of endpoints that are gone, a piece of the table at a time.
    pub(super) fn end_departed(&mut self) {
        let (snapshot, desired) = (self.publisher.current(), &self.desired);
        let whereabouts = |name: &str| {
            let open = snapshot.endpoints.iter().find(|endpoint| endpoint.name == name);
            match open {
                Some(endpoint) => Whereabouts::At(endpoint.device),
                None if is_wanted(desired, name) => Whereabouts::Awaited,
                None => Whereabouts::Gone,
            }
        };
        let ended = self.departures.go_on(&self.tracker.table, self.publisher.slowest(), whereabouts);
        if ended > 0 {
            tracing::info!("{ended} connections of endpoints that are gone have ended");
        }
    }
}

fn is_wanted(desired: &Desired, endpoint: &str) -> bool {
    desired.endpoints().any(|it| it.name.as_str() == endpoint)
}

impl Walk {
    fn piece(&self, table: &Table, entries: Range<u32>) -> u32 {
        table.resettle(entries, |connection| self.fate(connection)).ended
    }

    fn fate(&self, connection: &Connection) -> Fate {
        let parties = connection.parties;
        let heir = |owner: Owner| self.heirs.get(&owner).copied().unwrap_or(Some(owner));
        let (Some(owner), Some(receiver)) = (heir(parties.owner), heir(parties.receiver)) else {
            return Fate::Ends;
        };
        let passed = Parties { owner, receiver, ..parties };
        match passed == parties {
            true => Fate::Stays,
            // A handshake counts against whom it was begun by, so it cannot pass: it is begun anew.
            false if connection.status.is_half_open() => Fate::Ends,
            false => Fate::Passes(passed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conntrack::{
        Decision, HashSeed, Limits, Memory, NetworkId, Opening, Plan, Seconds, Settings, State, Status,
        Tuple, WorkerId,
    };

    const NOW: Seconds = Seconds(1);

    /// A table with so many open connections of each device, to nobody here.
    fn table_of(devices: &[(u16, u16)]) -> Table {
        let plan = Plan { capacity: 2 * PIECE, owners: 64, workers: 1 };
        let memory = Memory::private(plan.capacity).unwrap();
        let (table, _) = Table::over(memory, HashSeed::new([1, 2]), plan, NOW, |_| None).unwrap();
        for &(device, count) in devices {
            (0..count).for_each(|port| create(&table, device, port, State::Established));
        }
        table
    }

    fn create(table: &Table, device: u16, port: u16, state: State) {
        let src = std::net::IpAddr::from([10, 0, 0, device as u8]);
        let dst = std::net::IpAddr::from([192, 0, 2, 1]);
        let original = Tuple::new(NetworkId::default(), src, dst, 6, 1024 + port, 80).unwrap();
        let parties = Parties { owner: Owner::endpoint(device), ..Parties::default() };
        let (status, decision) = (Status::of(state), Decision::default());
        let opening = Opening { original, forwarded: original, status, parties, decision };
        table.create(WorkerId(0), &opening, Limits::NONE, &Settings::default(), NOW).unwrap();
    }

    fn departed(device: u16, endpoint: Option<&str>, since: u64) -> Departed {
        let endpoint = endpoint.map(str::to_owned);
        Departed { device: DeviceId(device), endpoint, since: Epoch(since), may_return: true }
    }

    fn share(table: &Table, device: u16) -> (u32, u32) {
        table.share(Owner::endpoint(device))
    }

    fn gone(_: &str) -> Whereabouts {
        Whereabouts::Gone
    }

    #[test]
    fn a_number_is_free_only_when_its_connections_have_ended() {
        let table = table_of(&[(3, 100), (4, 50)]);
        let mut departures = Departures::default();
        departures.add(departed(3, None, 7));
        assert_eq!(departures.go_on(&table, Epoch(6), gone), 0, "workers may still open connections of it");
        assert_eq!(departures.take_free(), None);
        let ended = departures.go_on(&table, Epoch(7), gone);
        assert_eq!(departures.take_free(), None, "the walk has not come round");
        assert_eq!(ended + departures.go_on(&table, Epoch(7), gone), 100);
        assert_eq!((share(&table, 3), share(&table, 4)), ((0, 0), (50, 0)));
        assert_eq!((departures.take_free(), departures.take_free()), (Some(DeviceId(3)), None));
    }

    #[test]
    fn connections_of_an_endpoint_that_is_open_again_pass_to_its_new_number() {
        let table = table_of(&[(3, 10)]);
        create(&table, 3, 77, State::SynSent);
        let mut departures = Departures::default();
        departures.add(departed(3, Some("web"), 7));
        for _ in 0..3 {
            assert_eq!(departures.go_on(&table, Epoch(9), |_| Whereabouts::Awaited), 0);
        }
        assert_eq!((share(&table, 3), departures.take_free()), ((11, 1), None));
        let at = |name: &str| if name == "web" { Whereabouts::At(DeviceId(5)) } else { Whereabouts::Gone };
        let ended: u32 = (0..2).map(|_| departures.go_on(&table, Epoch(9), at)).sum();
        assert_eq!((share(&table, 3), share(&table, 5), ended), ((0, 0), (10, 0), 1));
        assert_eq!(departures.take_free(), Some(DeviceId(3)));
    }

    #[test]
    fn devices_without_connections_are_free_at_once_and_doubtful_ones_never() {
        let table = table_of(&[(4, 1)]);
        let mut departures = Departures::default();
        departures.add(departed(3, None, 7));
        departures.add(Departed { may_return: false, ..departed(4, None, 7) });
        let ended: u32 = (0..3).map(|_| departures.go_on(&table, Epoch(7), gone)).sum();
        assert_eq!(ended, 1);
        assert_eq!((departures.take_free(), departures.take_free()), (Some(DeviceId(3)), None));
        assert_eq!(share(&table, 4), (0, 0));
    }
}
