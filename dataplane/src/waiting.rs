//! Packets that wait: for a next hop that has not answered yet, or for the first fragment, which has their ports.
//!
//! Each kind has a room of its own, and in it whoever sends has a share: neither takes the other's seats, and nobody all of
//! them. A packet that is called and must wait on keeps the time at which it came, so that none waits for longer than its
//! room's patience, however often it is called.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::time::Duration;

use penstock_io::{Frame, Ticks, TicksPerSecond};
use penstock_wire::Vni;

use crate::conntrack::fragments::FragmentKey;
use crate::drop::Cause;
use crate::flow::{DeviceId, ZoneId};
use crate::tables::{Device, Snapshot, Zone};

/// Packets that may wait for next hops at a time.
const SEATS: usize = 64;
/// How many of them may be from one endpoint or peer.
const SHARE: usize = 16;
/// How long one waits: as long as the kernel asks for a neighbour (three probes, a second apart, `neigh/retrans_time_ms`).
const PATIENCE: Duration = Duration::from_secs(3);

/// Later fragments that may wait for first ones at a time.
const EARLY_SEATS: usize = 192;
/// How many of them may be from one endpoint or peer: all of the longest packet, which an MTU of 1500 cuts into 45.
const EARLY_SHARE: usize = 48;
/// How long one waits: a packet's fragments are sent at once and overtake one another by milliseconds.
const EARLY_PATIENCE: Duration = Duration::from_secs(1);

/// Where a packet came from, in words that mean the same to all tables: the numbers of zones do not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// From its device as it was.
    Bare,
    /// Out of the tunnel from that peer for that network.
    Tunnel(IpAddr, Vni),
    /// Out of a tunnel for that network, for a service.
    Served(Vni),
}

impl Origin {
    /// The origin that `snapshot` has a number for; `None` if it has none.
    pub(crate) fn of(snapshot: &Snapshot, zone: ZoneId) -> Option<Origin> {
        let zone = *snapshot.zones.get(zone.number())?;
        let vni = snapshot.networks.get(zone.network() as usize)?.vni;
        Some(match zone {
            Zone::Endpoint { .. } | Zone::Host { .. } | Zone::Native { .. } => Origin::Bare,
            Zone::Tunnel { peer, .. } => Origin::Tunnel(snapshot.peers.get(peer as usize)?.address, vni),
            Zone::Served { .. } => Origin::Served(vni),
        })
    }

    /// The number that `snapshot` has for what comes from here by `device`; `None` if nothing does any more.
    pub(crate) fn zone(self, snapshot: &Snapshot, device: DeviceId) -> Option<ZoneId> {
        let device = *snapshot.devices.get(usize::from(device.0))?;
        match (self, device) {
            (Origin::Bare, Device::Endpoint { zone, .. } | Device::Host { zone }) => Some(zone),
            (Origin::Bare, Device::Uplink { native, .. }) => native,
            (Origin::Tunnel(peer, vni), Device::Uplink { .. }) => {
                snapshot.tunnels.get(&(peer, vni)).map(|tunnel| tunnel.zone)
            }
            (Origin::Served(vni), Device::Uplink { .. }) => {
                let mut tunnels = snapshot.tunnels.iter().filter(|((_, network), _)| *network == vni);
                tunnels.find_map(|(_, tunnel)| tunnel.served)
            }
            _ => None,
        }
    }
}

/// A packet that waits.
pub(crate) struct Guest {
    pub(crate) frame: Frame,
    pub(crate) origin: Origin,
    /// The device that it came by.
    pub(crate) device: DeviceId,
    /// What it is given up for.
    pub(crate) cause: Cause,
    /// When it came.
    pub(crate) since: Ticks,
    /// The packet whose first fragment it waits for; without one, it waits for a next hop.
    pub(crate) follows: Option<FragmentKey>,
}

/// Packets that wait for the same kind of thing, oldest first.
struct Room {
    guests: VecDeque<Guest>,
    seats: usize,
    share: usize,
    patience: u64,
}

impl Room {
    fn new(seats: usize, share: usize, patience: u64) -> Room {
        Room { guests: VecDeque::with_capacity(seats), seats, share, patience }
    }

    fn enter(&mut self, guest: Guest) -> Result<(), Frame> {
        if self.guests.len() >= self.seats {
            return Err(guest.frame);
        }
        let is_of_the_same = |other: &&Guest| (other.device, other.origin) == (guest.device, guest.origin);
        if self.guests.iter().filter(is_of_the_same).count() >= self.share {
            return Err(guest.frame);
        }
        // One that was called takes its old place again.
        let place = self.guests.partition_point(|other| other.since <= guest.since);
        self.guests.insert(place, guest);
        Ok(())
    }

    fn give_up(&mut self, now: Ticks) -> Option<Guest> {
        let oldest = self.guests.front()?;
        if now.since(oldest.since) < self.patience { None } else { self.guests.pop_front() }
    }
}

/// Everybody who waits.
pub(crate) struct WaitingRoom {
    /// For next hops.
    hops: Room,
    /// For first fragments.
    early: Room,
    /// Those who waited for a next hop and have been called, oldest first.
    called: VecDeque<Guest>,
}

impl WaitingRoom {
    pub(crate) fn new(rate: TicksPerSecond) -> WaitingRoom {
        WaitingRoom {
            hops: Room::new(SEATS, SHARE, rate.ticks(PATIENCE)),
            early: Room::new(EARLY_SEATS, EARLY_SHARE, rate.ticks(EARLY_PATIENCE)),
            called: VecDeque::with_capacity(SEATS),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.hops.guests.len() + self.early.guests.len() + self.called.len()
    }

    /// Lets a packet wait, or gives it back when every seat that it might have is taken.
    pub(crate) fn enter(&mut self, guest: Guest) -> Result<(), Frame> {
        let room = if guest.follows.is_some() { &mut self.early } else { &mut self.hops };
        room.enter(guest)
    }

    /// Calls all who wait for a next hop; [`WaitingRoom::called`] has them one by one.
    pub(crate) fn call(&mut self) {
        // What is left from the last time, if anything, is older.
        self.called.extend(self.hops.guests.drain(..));
    }

    /// The oldest of those who were called.
    pub(crate) fn called(&mut self) -> Option<Guest> {
        self.called.pop_front()
    }

    /// The oldest fragment that waits for the first one of a packet, which has come.
    pub(crate) fn follower(&mut self, of: &FragmentKey) -> Option<Guest> {
        let at = self.early.guests.iter().position(|guest| guest.follows.as_ref() == Some(of))?;
        self.early.guests.remove(at)
    }

    /// One who waited for too long.
    pub(crate) fn give_up(&mut self, now: Ticks) -> Option<Guest> {
        self.hops.give_up(now).or_else(|| self.early.give_up(now))
    }

    /// Anybody, to close the rooms.
    pub(crate) fn pop(&mut self) -> Option<Guest> {
        let rooms = [&mut self.called, &mut self.hops.guests, &mut self.early.guests];
        rooms.into_iter().find_map(VecDeque::pop_front)
    }
}

#[cfg(test)]
mod tests;
