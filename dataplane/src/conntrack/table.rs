//! The table of connections: found without locks, created in both directions at once.

use std::io;

use penstock_io::shared::Layout;
use thiserror::Error;

use super::census::{Count, Counts, Lane, Lanes};
use super::entry::{
    self, CONTROL, Connection, ConnectionRef, DECISION, Decision, LIFE, Life, NEXT, PARTIES, Parties,
};
use super::index::{Guard, Index, MOST_ENTRIES, Place};
use super::life::{Seconds, Settings, State, Status};
use super::shares::{Limits, Owner, counters};
use super::tuple::{Direction, HashSeed, Tuple};
use super::words::{AtomicU64, ENTRY_WORDS, Memory, Ordering, Records, fence};

/// The version of an entry's words: raised with every change of their meaning.
const LAYOUT_VERSION: u32 = 4;

/// A worker's number, from zero: one thread's at a time, since its counters have one writer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WorkerId(pub u16);

impl WorkerId {
    /// The thread beside the workers that ends connections and passes them on. It creates and sweeps none.
    pub const CONTROL: WorkerId = WorkerId(u16::MAX);
}

/// What a table is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Connections and bindings that it holds at most; up to 2^24 - 2.
    pub capacity: u32,
    /// Owners that it counts for, see [`Owner::of_endpoints`](super::Owner::of_endpoints); eight bytes each.
    pub owners: u16,
    /// Threads that write to it and share its upkeep.
    pub workers: u16,
}

impl Plan {
    /// The layout of the shared region that holds such a table.
    #[must_use]
    pub const fn layout(&self) -> Layout {
        Layout {
            version: LAYOUT_VERSION,
            words: self.capacity as usize * ENTRY_WORDS,
            shape: self.capacity as u64,
        }
    }
}

/// A connection to be.
#[derive(Clone, Copy, Debug)]
pub struct Opening {
    /// The packet that opens it, as it came.
    pub original: Tuple,
    /// The same packet as it goes on: to the backend that a service chose, from the address that it is given. Its answer
    /// comes as this one's inverse.
    pub forwarded: Tuple,
    /// How far it is, see [`life::open`](super::life::open).
    pub status: Status,
    /// Whose it is.
    pub parties: Parties,
    /// What was decided about it.
    pub decision: Decision,
}

/// What a tuple was found to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Match {
    /// A packet of this connection ...
    pub connection: ConnectionRef,
    /// ... in this direction.
    pub direction: Direction,
    /// How far it is.
    pub status: Status,
}

/// Why a connection was not created.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Refused {
    /// One of its tuples belongs to another connection.
    #[error("the tuple in the {:?} direction is another connection's", .ours)]
    Taken {
        /// Which of the two. The original one: another worker was quicker with the same connection.
        ours: Direction,
        /// Whose it is.
        by: Match,
    },
    /// No entry is free, and none of those looked at could give way.
    #[error("the connection table is full of assured connections: raise its capacity")]
    Full,
    /// One whom it counts against has all the connections that it may have.
    #[error("the endpoint has as many connections as it may have")]
    OwnerLimit(Owner),
    /// One whom it counts against has all the half-open connections that it may have.
    #[error("the endpoint has as many half-open connections as it may have: is it being flooded?")]
    HalfOpenLimit(Owner),
    /// The owner's number is beyond what the table was planned for.
    #[error("the table counts for fewer endpoints than there are: raise the number of owners")]
    UnknownOwner,
    /// Another worker did not let go of a bucket for some microseconds: it was interrupted.
    #[error("another worker holds the bucket; the next packet will find it free")]
    Contended,
    /// No external port was free, see [`nat::open`](super::nat::open).
    #[error("no external port is free for this destination: the pool needs more addresses or ports")]
    Exhausted,
}

/// The connections of a node.
pub struct Table {
    pub(crate) records: Records,
    pub(crate) index: Index,
    pub(crate) lanes: Lanes,
    /// What each owner has.
    pub(crate) shares: Box<[AtomicU64]>,
    pub(crate) seed: HashSeed,
}

impl Table {
    /// A table without entries, all of them dead or not yet judged.
    pub(crate) fn bare(memory: Memory, seed: HashSeed, plan: Plan) -> io::Result<Table> {
        let capacity = plan.capacity as usize;
        if plan.capacity == 0 || plan.capacity > MOST_ENTRIES || memory.records.count() < capacity {
            let fault = format!(
                "a connection table of {capacity} entries in memory for {}: between 1 and {MOST_ENTRIES} can be",
                memory.records.count()
            );
            return Err(io::Error::new(io::ErrorKind::InvalidInput, fault));
        }
        Ok(Table {
            records: memory.records.first(capacity),
            index: Index::for_entries(plan.capacity)?,
            lanes: Lanes::new(plan.workers, plan.capacity),
            shares: counters(plan.owners),
            seed,
        })
    }

    /// Connections and bindings that fit.
    #[must_use]
    pub fn capacity(&self) -> u32 {
        self.records.count() as u32
    }

    /// Bytes of memory, index and counters included.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.records.bytes() + self.index.bytes() + size_of_val(&*self.shares)
    }

    /// What was counted.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.lanes.counts(self.capacity())
    }

    /// Brings near what a look-up of this tuple begins with.
    #[inline]
    pub fn touch(&self, tuple: &Tuple) {
        self.index.touch(self.place(tuple));
    }

    /// Brings near what a look-up of this tuple reads next, once [`Table::touch`] has had its effect.
    #[inline]
    pub(crate) fn touch_entries(&self, tuple: &Tuple) {
        let is_wide = tuple.packed().is_none();
        self.index.find(self.place(tuple), |slot| {
            self.records.touch(slot.entry(), is_wide);
            None::<()>
        });
    }

    /// The connection that a packet belongs to.
    #[inline]
    #[must_use]
    pub fn find(&self, tuple: &Tuple, now: Seconds) -> Option<Match> {
        self.find_at(self.place(tuple), tuple).filter(|(_, life)| !life.is_over(now)).map(|(found, _)| found)
    }

    /// Whether a connection still lives: one load.
    #[inline(always)]
    #[must_use]
    pub fn is_live(&self, connection: ConnectionRef) -> bool {
        let generation = connection.generation();
        generation & 1 == 1
            && self
                .records
                .word(connection.index(), CONTROL)
                .is_some_and(|control| entry::generation_of(control.load(Ordering::Acquire)) == generation)
    }

    /// A copy of a connection.
    #[must_use]
    pub fn view(&self, connection: ConnectionRef) -> Option<Connection> {
        entry::copy(self.records.get(connection.index())?, connection)
    }

    /// Copies connections for which `keep` is true from entry `from` on into `rows` until its capacity is used; returns
    /// the entry to go on with, or `None` at the end.
    pub fn list(
        &self,
        from: u32,
        rows: &mut Vec<Connection>,
        keep: impl Fn(&Connection) -> bool,
    ) -> Option<u32> {
        for index in from..self.capacity() {
            if rows.len() == rows.capacity() {
                return Some(index);
            }
            let record = self.records.at(index);
            let generation = entry::generation_of(record[CONTROL].load(Ordering::Acquire));
            let copied = entry::copy(record, ConnectionRef::new(index, generation));
            rows.extend(copied.filter(|connection| keep(connection)));
        }
        None
    }

    /// Whose the live connections among these entries are.
    pub fn parties(&self, entries: std::ops::Range<u32>) -> impl Iterator<Item = Parties> {
        entries.filter_map(|index| Some(self.view(self.living_at(index)?.0)?.parties))
    }

    /// Creates a connection: both its directions are found from the same moment on, or neither.
    ///
    /// A tuple that belongs to a connection whose time is over is free. When no entry is, an unassured connection gives
    /// way, if one is found among a few.
    ///
    /// # Errors
    /// [`Refused`]; each is counted.
    pub fn create(
        &self,
        worker: WorkerId,
        opening: &Opening,
        limits: Limits,
        settings: &Settings,
        now: Seconds,
    ) -> Result<ConnectionRef, Refused> {
        let lane = self.lanes.lane(worker);
        let half_open = opening.status.is_half_open();
        let created = self.enter(lane, &opening.parties, half_open, &limits, now).and_then(|()| {
            let created = self.place_new(worker, opening, settings, now);
            created.inspect_err(|_| self.leave(&opening.parties, half_open))
        });
        match &created {
            Ok(_) => {
                lane.note(Count::Created);
                lane.begun(half_open);
            }
            Err(refused) => lane.note(match refused {
                Refused::Taken { .. } => Count::Taken,
                Refused::Full => Count::Full,
                Refused::OwnerLimit(_) | Refused::UnknownOwner => Count::OwnerLimit,
                Refused::HalfOpenLimit(_) => Count::HalfOpenLimit,
                Refused::Contended => Count::Contended,
                Refused::Exhausted => Count::Exhausted,
            }),
        }
        created
    }

    #[inline]
    pub(crate) fn place(&self, tuple: &Tuple) -> Place {
        self.index.place(tuple.hash(self.seed))
    }

    /// The live entry of a tuple, be its time over or not.
    #[inline]
    pub(crate) fn find_at(&self, place: Place, tuple: &Tuple) -> Option<(Match, Life)> {
        self.index.find(place, |slot| {
            let (index, direction) = (slot.entry(), slot.direction());
            let (generation, life) = entry::matches(self.records.get(index)?, direction, tuple)?;
            let connection = ConnectionRef::new(index, generation);
            Some((Match { connection, direction, status: life.status }, life))
        })
    }

    fn place_new(
        &self,
        worker: WorkerId,
        opening: &Opening,
        settings: &Settings,
        now: Seconds,
    ) -> Result<ConnectionRef, Refused> {
        let lane = self.lanes.lane(worker);
        let reply = opening.forwarded.inverse();
        let places = [self.place(&opening.original), self.place(&reply)];
        // On their way while the entry is written.
        places.iter().for_each(|place| self.index.touch(*place));
        let index = self.take_free(worker, now).ok_or(Refused::Full)?;
        let deadline = now.after(settings.timeouts.of(opening.status));
        let control = self.inscribe(index, opening, &reply, deadline);
        let published = self.publish(lane, index, control, places, [&opening.original, &reply], now);
        if published.is_err() {
            self.give_free(lane, index);
        }
        published
    }

    /// Writes everything but the control word of an entry that is nobody's; returns that word.
    fn inscribe(&self, index: u32, opening: &Opening, reply: &Tuple, deadline: Seconds) -> u64 {
        let record = self.records.at(index);
        let generation = entry::generation_of(record[CONTROL].load(Ordering::Relaxed)).wrapping_add(1);
        // A reader that sees any word written below also sees that the entry was dead before.
        fence(Ordering::Release);
        entry::store_tuples(record, &opening.original, reply);
        record[PARTIES].store(opening.parties.word(generation), Ordering::Relaxed);
        // An exchange, so that a late decision about the entry's former connection comes before it or fails.
        record[DECISION].swap(opening.decision.word(generation), Ordering::Relaxed);
        let life = Life { deadline, status: opening.status, generation: generation as u16 };
        record[LIFE].store(life.word(), Ordering::Relaxed);
        entry::control(generation, &opening.original, reply)
    }

    /// Puts an entry into the index and to life, unless one of its tuples is taken.
    fn publish(
        &self,
        lane: &Lane,
        index: u32,
        control: u64,
        places: [Place; 2],
        tuples: [&Tuple; 2],
        now: Seconds,
    ) -> Result<ConnectionRef, Refused> {
        let _homes = self.lock_homes(places).ok_or(Refused::Contended)?;
        for (at, ours) in [Direction::Original, Direction::Reply].into_iter().enumerate() {
            while let Some((by, life)) = self.find_at(places[at], tuples[at]) {
                // A binding whose time is over may still be held: it is the sweep's to forget.
                if !life.is_over(now) || life.status.state == State::Binding {
                    return Err(Refused::Taken { ours, by });
                }
                self.retire(lane, by.connection, life, Count::Expired);
            }
        }
        // A host that speaks to itself from and to one port has the same tuple both ways, and one slot.
        let one_way = tuples[0] == tuples[1];
        if !self.index.insert(places[0], Direction::Original, index) {
            return Err(Refused::Full);
        }
        if !one_way && !self.index.insert(places[1], Direction::Reply, index) {
            self.index.remove(places[0], Direction::Original, index);
            return Err(Refused::Full);
        }
        // The one store that brings both directions to life.
        self.records.at(index)[CONTROL].store(control, Ordering::Release);
        Ok(ConnectionRef::new(index, entry::generation_of(control)))
    }

    /// Locks the home buckets of two tuples, the lower one first, so that no two workers wait for each other.
    fn lock_homes(&self, places: [Place; 2]) -> Option<(Guard<'_>, Option<Guard<'_>>)> {
        let [a, b] = places.map(Place::home);
        let first = self.index.lock(a.min(b))?;
        let second = if a == b { None } else { Some(self.index.lock(a.max(b))?) };
        Some((first, second))
    }

    /// A free entry: the worker's own, another's, or one whose connection gives way.
    fn take_free(&self, worker: WorkerId, now: Seconds) -> Option<u32> {
        let next = |entry: u32| {
            let link = self.link(entry);
            // It will be the next to be written.
            if let Some(after) = link.checked_sub(1) {
                self.records.touch(after, false);
            }
            link
        };
        let pop = || self.lanes.from(worker).find_map(|lane| lane.pop(next));
        pop().or_else(|| {
            self.make_room(self.lanes.lane(worker), None, now);
            pop()
        })
    }

    pub(crate) fn give_free(&self, lane: &Lane, index: u32) {
        lane.push(index, |next| self.set_link(index, next));
    }

    /// What a free entry links to: the number of the next one plus one, or zero. It is kept as the distance from the entry
    /// behind, so that memory of zeros is a free list that nobody had to write.
    fn link(&self, index: u32) -> u32 {
        let word = self.records.word(index, NEXT);
        word.map_or(0, |word| (word.load(Ordering::Relaxed) as u32).wrapping_add(index + 2))
    }

    /// Links a free entry to another.
    pub(crate) fn set_link(&self, index: u32, next: u32) {
        let record = self.records.at(index);
        let word = &record[NEXT];
        let distance = u64::from(next.wrapping_sub(index + 2));
        if word.load(Ordering::Relaxed) != distance {
            word.store(distance, Ordering::Relaxed);
        }
    }

    /// The part of the table whose entries a worker gives out first and looks after.
    pub(crate) fn part(&self, worker: u16) -> std::ops::Range<u32> {
        let of = self.lanes.count() as u64;
        let edge = |number: u64| (u64::from(self.capacity()) * number / of) as u32;
        let number = u64::from(worker) % of;
        edge(number)..edge(number + 1)
    }
}
