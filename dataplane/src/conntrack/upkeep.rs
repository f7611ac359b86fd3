//! What happens to a connection after it is created: it goes on, is decided anew, ends, expires, or gives way.

use super::census::{Count, Lane};
use super::entry::{self, CONTROL, ConnectionRef, DEAD, DECISION, Decision, LIFE, Life, PARTIES};
use super::life::{self, Invalid, Marks, Packet, Seconds, Settings, State, Status, Step};
use super::shares::{Owner, parties_of, take_parties};
use super::table::{Table, WorkerId};
use super::tuple::{Direction, Tuple};
use super::words::{Ordering, Record, fence};

/// Entries that are looked at before the best of them gives way.
const EARLY_LOOK: u32 = 16;
/// Entries that are looked at if none of the first can.
const EARLY_MOST: u32 = 64;
/// A deadline is written anew only when it moves by more than one part in this many of the timeout: workers that share a
/// connection then seldom write into each other's cache lines.
const SLACK: u32 = 16;

/// What became of a connection by a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// It goes on like this.
    Going(Status),
    /// The packet passes, and the connection is as before.
    Ignored(Status),
    /// The packet passes, and the connection is gone with it.
    Ended,
    /// The connection was over and is gone; the packet opens a new one.
    Reopened,
    /// The packet does not fit.
    Invalid(Invalid),
    /// The connection was gone already.
    Gone,
}

/// What a piece of the sweep did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Entries looked at.
    pub looked: u32,
    /// Connections and bindings forgotten.
    pub expired: u32,
}

impl Table {
    /// Takes a connection on by a packet that goes in `direction`.
    ///
    /// Whoever translates the packet looks at the connection first: it may end here.
    pub fn advance(
        &self,
        worker: WorkerId,
        connection: ConnectionRef,
        direction: Direction,
        packet: Packet,
        settings: &Settings,
        now: Seconds,
    ) -> Progress {
        let lane = self.lanes.lane(worker);
        while let Some((record, life)) = self.living(connection) {
            let step = match life.status.state {
                State::Binding => Step::Invalid(Invalid::OutOfTurn),
                _ => life::advance(life.status, direction, packet),
            };
            match step {
                Step::To(status) => {
                    if self.write_life(lane, record, life, status, settings, now) {
                        return Progress::Going(status);
                    }
                }
                Step::Ignore => return Progress::Ignored(life.status),
                Step::Invalid(why) => return Progress::Invalid(why),
                Step::End | Step::Reopen => {
                    if self.retire(lane, connection, life, Count::Removed) {
                        return if step == Step::End { Progress::Ended } else { Progress::Reopened };
                    }
                }
            }
        }
        Progress::Gone
    }

    /// Notes that packets of a connection took the fast path in `direction` a moment ago; false if it is gone or is watched
    /// packet by packet by now, e.g. since the other side ended it, so that the flow must go.
    pub fn keep_alive(
        &self,
        worker: WorkerId,
        connection: ConnectionRef,
        direction: Direction,
        settings: &Settings,
        now: Seconds,
    ) -> bool {
        let lane = self.lanes.lane(worker);
        while let Some((record, life)) = self.living(connection) {
            if !life.status.is_cacheable() {
                return false;
            }
            let status = life::keep_alive(life.status, direction);
            let timeout = settings.timeouts.of(status);
            let barely = now.after(timeout).0.saturating_sub(life.deadline.0) <= timeout / SLACK;
            if status == life.status && barely || self.write_life(lane, record, life, status, settings, now) {
                return true;
            }
        }
        false
    }

    /// Writes down what was decided about a connection; false if it is gone.
    pub fn decide(&self, connection: ConnectionRef, decision: Decision) -> bool {
        while let Some((record, _)) = self.living(connection) {
            let old = record[DECISION].load(Ordering::Acquire);
            if old as u16 != connection.generation() as u16 {
                return false;
            }
            let new = decision.word(connection.generation());
            if record[DECISION].compare_exchange(old, new, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                return true;
            }
        }
        false
    }

    /// Ends a connection; false if it was gone, or is a binding that connections still use.
    pub fn remove(&self, worker: WorkerId, connection: ConnectionRef) -> bool {
        let lane = self.lanes.lane(worker);
        while let Some((_, life)) = self.living(connection) {
            if life.status.state == State::Binding {
                return self.retire_binding(lane, connection, life);
            }
            if self.retire(lane, connection, life, Count::Removed) {
                return true;
            }
        }
        false
    }

    /// Looks at the next `budget` entries of a worker's part of the table and forgets those whose time is over.
    ///
    /// Worker `n` of the plan's `workers` has the `n`th part, so all of them together look at every entry.
    pub fn sweep(&self, worker: WorkerId, budget: u32, now: Seconds) -> Swept {
        let lane = self.lanes.lane(worker);
        let std::ops::Range { start, end } = self.part(worker.0);
        let (start, end) = (u64::from(start), u64::from(end));
        let mut swept = Swept::default();
        if start == end {
            return swept;
        }
        let mut hand = lane.hand.load(Ordering::Relaxed).clamp(start, end - 1);
        for _ in 0..u64::from(budget).min(end - start) {
            swept.looked += 1;
            swept.expired += u32::from(self.expire(lane, hand as u32, now));
            hand = if hand + 1 == end { start } else { hand + 1 };
        }
        lane.hand.store(hand, Ordering::Relaxed);
        swept
    }

    fn expire(&self, lane: &Lane, index: u32, now: Seconds) -> bool {
        let Some((connection, life)) = self.living_at(index) else { return false };
        life.is_over(now)
            && if life.status.state == State::Binding {
                self.retire_binding(lane, connection, life)
            } else {
                self.retire(lane, connection, life, Count::Expired)
            }
    }

    /// Makes a connection give way: one whose time is over, else the unassured one with the least time left among a few.
    /// `of` tells whose it must be, and whether it must be half-open.
    pub(crate) fn make_room(&self, lane: &Lane, of: Option<(Owner, bool)>, now: Seconds) -> bool {
        let capacity = u64::from(self.capacity());
        let mut oldest: Option<(ConnectionRef, Life)> = None;
        for look in 0..EARLY_MOST.min(2 * self.capacity()) {
            if look >= EARLY_LOOK.min(self.capacity()) && oldest.is_some() {
                break;
            }
            // Steps of the golden ratio: neighbours are often assured together, so the looks are spread evenly.
            let turn = lane.early_turn().wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let index = ((turn >> 32) * capacity) >> 32;
            let Some((connection, life)) = self.living_at(index as u32) else { continue };
            let is_other = of.is_some_and(|(owner, half_open)| {
                let parties = parties_of(self.records.at(index as u32));
                let is_theirs = owner == parties.owner || owner == parties.receiver;
                !is_theirs || half_open && !life.status.is_half_open()
            });
            if life.status.state == State::Binding || is_other {
                continue;
            }
            if life.is_over(now) && self.retire(lane, connection, life, Count::Expired) {
                return true;
            }
            if !life.status.is_assured() && oldest.is_none_or(|(_, least)| life.deadline < least.deadline) {
                oldest = Some((connection, life));
            }
        }
        oldest.is_some_and(|(connection, life)| self.retire(lane, connection, life, Count::EarlyDropped))
    }

    /// A connection's words, if it lives.
    pub(crate) fn living(&self, connection: ConnectionRef) -> Option<(Record, Life)> {
        let record = self.records.get(connection.index())?;
        let control = record[CONTROL].load(Ordering::Acquire);
        if !entry::lives(control) || entry::generation_of(control) != connection.generation() {
            return None;
        }
        let life = Life::of(record[LIFE].load(Ordering::Acquire))?;
        (life.generation == connection.generation() as u16).then_some((record, life))
    }

    pub(crate) fn living_at(&self, index: u32) -> Option<(ConnectionRef, Life)> {
        let control = self.records.word(index, CONTROL)?.load(Ordering::Acquire);
        let connection = ConnectionRef::new(index, entry::generation_of(control));
        self.living(connection).map(|(_, life)| (connection, life))
    }

    /// Replaces a word of life that was read as `old`; false if another worker was quicker.
    fn write_life(
        &self,
        lane: &Lane,
        record: Record,
        old: Life,
        status: Status,
        settings: &Settings,
        now: Seconds,
    ) -> bool {
        let new = Life { deadline: now.after(settings.timeouts.of(status)), status, ..old };
        // Read before the exchange: if it succeeds, the entry was the same connection's all along.
        let parties = parties_of(record);
        let won = new == old
            || record[LIFE]
                .compare_exchange(old.word(), new.word(), Ordering::AcqRel, Ordering::Relaxed)
                .is_ok();
        if won && old.status.is_half_open() && !status.is_half_open() {
            self.settle(lane, &parties);
        }
        won
    }

    /// Ends a connection whose word of life was read as `life`; false if that has changed. Whoever exchanges that word
    /// for death has the entry to itself from then on.
    pub(crate) fn retire(&self, lane: &Lane, connection: ConnectionRef, life: Life, why: Count) -> bool {
        let index = connection.index();
        let record = self.records.at(index);
        if record[LIFE].compare_exchange(life.word(), DEAD, Ordering::AcqRel, Ordering::Relaxed).is_err() {
            return false;
        }
        let [original, reply] = entry::load_tuples(record);
        let parties = take_parties(record);
        record[CONTROL].store(entry::dead(connection.generation().wrapping_add(1)), Ordering::Release);
        // A reader that sees the free list's link in the tuple's place also sees that the entry is dead.
        fence(Ordering::Release);
        self.index.remove(self.place(&original), Direction::Original, index);
        if original != reply {
            self.index.remove(self.place(&reply), Direction::Reply, index);
        }
        if life.status.marks.has(Marks::BOUND) {
            self.let_go_of_binding(&binding_key(&original, &reply));
        }
        let half_open = life.status.is_half_open();
        self.leave(&parties, half_open);
        lane.note(why);
        lane.ended(half_open);
        self.give_free(lane, index);
        true
    }

    /// Takes hold of a binding, so that it lives as long as the connection that is to use it; the external address and
    /// port are its reply's destination. `Err` if its bucket's lock could not be had.
    pub(crate) fn hold_binding(
        &self,
        key: &Tuple,
        settings: &Settings,
        now: Seconds,
    ) -> Result<Option<Tuple>, super::Refused> {
        let place = self.place(key);
        let _home = self.index.lock(place.home()).ok_or(super::Refused::Contended)?;
        let Some((found, life)) = self.find_at(place, key) else { return Ok(None) };
        let record = self.records.at(found.connection.index());
        // Bindings end under this lock only, so the entry stays what it is.
        record[PARTIES].fetch_add(1, Ordering::Relaxed);
        let renewed = Life { deadline: now.after(settings.timeouts.of(life.status)), ..life };
        record[LIFE].store(renewed.word(), Ordering::Release);
        let [_, reply] = entry::load_tuples(record);
        Ok(Some(reply))
    }

    /// Lets go of a binding: the sweep may forget it once nobody holds it.
    pub(crate) fn let_go_of_binding(&self, key: &Tuple) {
        if let Some((found, _)) = self.find_at(self.place(key), key) {
            self.records.at(found.connection.index())[PARTIES].fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Forgets a binding that nobody holds.
    fn retire_binding(&self, lane: &Lane, connection: ConnectionRef, life: Life) -> bool {
        let record = self.records.at(connection.index());
        let [key, _] = entry::load_tuples(record);
        let Some(_home) = self.index.lock(self.place(&key).home()) else { return false };
        entry::uses_of(record) == 0 && self.retire(lane, connection, life, Count::Expired)
    }
}

/// The key of the binding that a bound connection uses.
pub(crate) fn binding_key(original: &Tuple, reply: &Tuple) -> Tuple {
    original.to_anybody(reply.network())
}
