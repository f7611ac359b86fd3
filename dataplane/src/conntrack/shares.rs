//! Whom connections count against, how many each may have, and what becomes of those whose owner changes or goes.

use std::ops::Range;

use super::census::Lane;
use super::entry::{Connection, PARTIES, Parties};
use super::life::{Seconds, State};
use super::table::{Refused, Table, WorkerId};
use super::words::{AtomicU64, Ordering, Record};

/// Whose share a connection counts against.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Owner(pub(crate) u16);

/// The first endpoint's owner: those before are [`Owner`]'s constants.
const FIRST_ENDPOINT: u16 = 3;

impl Owner {
    /// Nobody: the node itself, and bindings. Neither counted nor limited.
    pub const NOBODY: Owner = Owner(0);
    /// Everybody beyond this node: its peers, their endpoints, and the world outside.
    pub const OUTSIDE: Owner = Owner(1);
    /// An endpoint that the daemon before knew, until the present one knows it as well. Counted, never limited: it opens
    /// nothing.
    pub const FORMER: Owner = Owner(2);

    /// The endpoint of that number, which must be below what [`Plan::owners`](super::Plan::owners) was made for: no table
    /// counts for the last few numbers.
    #[must_use]
    pub const fn endpoint(number: u16) -> Owner {
        Owner(number.saturating_add(FIRST_ENDPOINT))
    }

    /// Owners that there are where so many endpoints are numbered from zero.
    #[must_use]
    pub const fn of_endpoints(count: u16) -> u16 {
        count.saturating_add(FIRST_ENDPOINT)
    }

    /// The endpoint's number.
    #[must_use]
    pub const fn number(self) -> Option<u16> {
        self.0.checked_sub(FIRST_ENDPOINT)
    }
}

/// What one owner may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// Connections.
    pub connections: u32,
    /// Connections whose handshake is not done.
    pub half_open: u32,
}

impl Share {
    /// As many as the table holds.
    pub const WHOLE: Share = Share { connections: u32::MAX, half_open: u32::MAX };
}

/// What those may have whom a connection counts against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// [`Parties::owner`].
    pub owner: Share,
    /// [`Parties::receiver`].
    pub receiver: Share,
}

impl Limits {
    /// As many as the table holds.
    pub const NONE: Limits = Limits { owner: Share::WHOLE, receiver: Share::WHOLE };
}

/// What is to become of a connection when those whom it counts against are known anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It goes on as it is.
    Stays,
    /// It is these parties' from now on.
    Passes(Parties),
    /// It ends: one of its endpoints is gone.
    Ends,
}

/// What became of connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Resettled {
    /// That are somebody else's now.
    pub passed: u32,
    /// That ended.
    pub ended: u32,
}

const ONE_CONNECTION: u64 = 1 << 32;

const fn weight(half_open: bool) -> u64 {
    ONE_CONNECTION + half_open as u64
}

/// What each owner has: connections in the upper half of a word, half-open ones in the lower.
pub(crate) fn counters(owners: u16) -> Box<[AtomicU64]> {
    (0..owners.max(1)).map(|_| AtomicU64::new(0)).collect()
}

impl Table {
    /// An owner's connections, and how many of them are half-open. One that it has with itself counts twice: it is at both
    /// ends.
    #[must_use]
    pub fn share(&self, owner: Owner) -> (u32, u32) {
        let word = self.shares.get(owner.0 as usize).map_or(0, |word| word.load(Ordering::Relaxed));
        ((word >> 32) as u32, word as u32)
    }

    /// Counts a connection against the shares of both ends, or of none.
    pub(crate) fn enter(
        &self,
        lane: &Lane,
        parties: &Parties,
        half_open: bool,
        limits: &Limits,
        now: Seconds,
    ) -> Result<(), Refused> {
        self.enter_one(lane, parties.owner, half_open, limits.owner, now)?;
        let entered = self.enter_one(lane, parties.receiver, half_open, limits.receiver, now);
        entered.inspect_err(|_| self.leave_one(parties.owner, half_open))
    }

    fn enter_one(
        &self,
        lane: &Lane,
        owner: Owner,
        half_open: bool,
        limit: Share,
        now: Seconds,
    ) -> Result<(), Refused> {
        if owner == Owner::NOBODY {
            return Ok(());
        }
        let share = self.shares.get(owner.0 as usize).ok_or(Refused::UnknownOwner)?;
        let mut may_make_room = true;
        // Twice: the second time one of the owner's own connections may have given way.
        loop {
            let before = share.fetch_add(weight(half_open), Ordering::Relaxed);
            let lacks_half_open = half_open && before as u32 >= limit.half_open;
            if !lacks_half_open && ((before >> 32) as u32) < limit.connections {
                return Ok(());
            }
            share.fetch_sub(weight(half_open), Ordering::Relaxed);
            if !may_make_room || !self.make_room(lane, Some((owner, lacks_half_open)), now) {
                return Err(if lacks_half_open {
                    Refused::HalfOpenLimit(owner)
                } else {
                    Refused::OwnerLimit(owner)
                });
            }
            may_make_room = false;
        }
    }

    pub(crate) fn leave(&self, parties: &Parties, half_open: bool) {
        self.leave_one(parties.owner, half_open);
        self.leave_one(parties.receiver, half_open);
    }

    /// Counts a connection against both shares, whatever they hold; false if one of them is not counted for.
    pub(crate) fn join(&self, parties: &Parties, half_open: bool) -> bool {
        let joined = self.join_one(parties.owner, half_open);
        if joined && !self.join_one(parties.receiver, half_open) {
            self.leave_one(parties.owner, half_open);
            return false;
        }
        joined
    }

    /// A connection of theirs has done its handshake.
    pub(crate) fn settle(&self, lane: &Lane, parties: &Parties) {
        lane.opened();
        for owner in [parties.owner, parties.receiver] {
            self.change(owner, |share| share.fetch_sub(1, Ordering::Relaxed));
        }
    }

    fn leave_one(&self, owner: Owner, half_open: bool) {
        self.change(owner, |share| share.fetch_sub(weight(half_open), Ordering::Relaxed));
    }

    fn join_one(&self, owner: Owner, half_open: bool) -> bool {
        self.change(owner, |share| share.fetch_add(weight(half_open), Ordering::Relaxed))
    }

    /// Changes what an owner has; false if the table does not count for that one.
    fn change(&self, owner: Owner, change: impl FnOnce(&AtomicU64) -> u64) -> bool {
        owner == Owner::NOBODY || self.shares.get(owner.0 as usize).map(change).is_some()
    }

    /// Asks what is to become of each connection among these entries, and sees to it. One thread beside the workers may do
    /// so. What counts as half-open keeps its owners: it is soon over, or the next time it is not half-open.
    pub fn resettle(&self, entries: Range<u32>, fate: impl Fn(&Connection) -> Fate) -> Resettled {
        let mut done = Resettled::default();
        for index in entries.start..entries.end.min(self.capacity()) {
            let Some((reference, life)) = self.living_at(index) else { continue };
            if life.status.state == State::Binding {
                continue;
            }
            let Some(connection) = self.view(reference) else { continue };
            match fate(&connection) {
                Fate::Stays => {}
                Fate::Passes(parties) => done.passed += u32::from(self.pass(&connection, parties)),
                Fate::Ends => done.ended += u32::from(self.remove(WorkerId::CONTROL, reference)),
            }
        }
        done
    }

    /// Makes a connection these parties', as far as it was not ended or changed meanwhile.
    fn pass(&self, connection: &Connection, mut parties: Parties) -> bool {
        let (old, generation) = (connection.parties, connection.reference.generation());
        if connection.status.is_half_open() {
            // Whoever sees the handshake done counts it off, against those that it was opened by.
            (parties.owner, parties.receiver) = (old.owner, old.receiver);
        }
        let [before, after] = [old, parties].map(|parties| parties.word(generation));
        // Counted before: whoever ends the connection right after the exchange counts it off again.
        if before == after || !self.join(&parties, false) {
            return false;
        }
        let record = self.records.at(connection.reference.index());
        let won =
            record[PARTIES].compare_exchange(before, after, Ordering::AcqRel, Ordering::Relaxed).is_ok();
        self.leave(if won { &old } else { &parties }, false);
        won
    }
}

/// Whose an entry is.
pub(crate) fn parties_of(record: Record) -> Parties {
    Parties::of(record[PARTIES].load(Ordering::Relaxed))
}

/// Takes a dead entry's parties away, so that nobody is made its owner any more.
pub(crate) fn take_parties(record: Record) -> Parties {
    Parties::of(record[PARTIES].swap(0, Ordering::Release))
}
