//! Taking over the entries that a former daemon left, however it ended.

use std::io;

use super::entry::{
    self, CONTROL, Connection, ConnectionRef, DEAD, DECISION, Decision, LIFE, Life, PARTIES, Parties,
};
use super::life::{Marks, Seconds, State};
use super::table::{Plan, Table, WorkerId};
use super::tuple::{Direction, HashSeed};
use super::upkeep::binding_key;
use super::words::{Memory, Ordering, Record};

/// Entries between one that is judged and one whose buckets are brought near.
const AHEAD: u32 = 16;

/// What a table found in its memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Adoption {
    /// Connections and bindings that go on.
    pub kept: u32,
    /// Whose time was over.
    pub expired: u32,
    /// That nobody claimed.
    pub disowned: u32,
    /// That were being written or removed when the writer ended, or are damaged.
    pub broken: u32,
}

impl Table {
    /// A table over `memory`: new if that is zero, else with all whole connections that a former one left there.
    ///
    /// Every entry is judged by itself: one whose writer was killed on the way is dropped, never completed by guess.
    /// The index, the owners' counts and the free list are made anew. Decisions are forgotten (their epochs begin anew),
    /// and `claim` says whose each connection is now; `None` ends it. Bindings are not asked for.
    ///
    /// # Errors
    /// The kernel's, when there is no memory for the index; a capacity of zero, or more than the memory holds.
    pub fn over(
        memory: Memory,
        seed: HashSeed,
        plan: Plan,
        now: Seconds,
        mut claim: impl FnMut(&Connection) -> Option<Parties>,
    ) -> io::Result<(Table, Adoption)> {
        let table = Table::bare(memory, seed, plan)?;
        let (mut adoption, mut kept) = (Adoption::default(), Vec::new());
        for worker in 0..table.lanes.count() as u16 {
            // One walk, and what is right already is not written: most of a table is free, and the daemon is waited for.
            let mut last = None;
            for index in table.part(worker) {
                table.touch_homes(index + AHEAD);
                match table.judge(index, now, &mut claim) {
                    Verdict::Kept => {
                        kept.push(index);
                        continue;
                    }
                    Verdict::Free => {}
                    Verdict::Expired => adoption.expired += 1,
                    Verdict::Disowned => adoption.disowned += 1,
                    Verdict::Broken => adoption.broken += 1,
                }
                bury(table.records.at(index));
                match last.replace(index) {
                    Some(before) => table.set_link(before, index + 1),
                    None => table.lanes.lane(WorkerId(worker)).begin_with(index),
                }
            }
            if let Some(last) = last {
                table.set_link(last, 0);
            }
        }
        adoption.kept = kept.len() as u32;
        table.count_bindings_uses(&kept);
        Ok((table, adoption))
    }

    /// Brings the buckets of an entry that is soon to be judged near, if there is one.
    fn touch_homes(&self, index: u32) {
        if let Some(record) = self.records.get(index)
            && entry::lives(record[CONTROL].load(Ordering::Relaxed))
        {
            entry::load_tuples(record).iter().for_each(|tuple| self.touch(tuple));
        }
    }

    fn judge(
        &self,
        index: u32,
        now: Seconds,
        claim: &mut impl FnMut(&Connection) -> Option<Parties>,
    ) -> Verdict {
        let record = self.records.at(index);
        let control = record[CONTROL].load(Ordering::Relaxed);
        if !entry::lives(control) {
            return Verdict::Free;
        }
        let generation = entry::generation_of(control);
        let Some(connection) = entry::copy(record, ConnectionRef::new(index, generation)) else {
            return Verdict::Broken;
        };
        let (original, reply) = (connection.original, connection.reply);
        if entry::control(generation, &original, &reply) != control {
            return Verdict::Broken;
        }
        let parties = if connection.status.state == State::Binding {
            // Nobody's, and the sweep's to forget once no connection is found to use it.
            Parties::default()
        } else if connection.deadline <= now {
            return Verdict::Expired;
        } else if let Some(parties) = claim(&connection) {
            parties
        } else {
            return Verdict::Disowned;
        };
        let places = [self.place(&original), self.place(&reply)];
        let free = |at: usize, tuple| {
            self.find_at(places[at], tuple).is_none_or(|(by, _)| by.connection.index() == index)
        };
        let half_open = connection.status.is_half_open();
        if !free(0, &original) || !free(1, &reply) || !self.join(&parties, half_open) {
            return Verdict::Broken;
        }
        let placed = self.index.insert(places[0], Direction::Original, index)
            && (original == reply || self.index.insert(places[1], Direction::Reply, index));
        if !placed {
            self.index.remove(places[0], Direction::Original, index);
            self.leave(&parties, half_open);
            return Verdict::Broken;
        }
        // A binding's uses are counted once all connections are known.
        record[PARTIES].store(parties.word(generation), Ordering::Relaxed);
        record[DECISION].store(Decision::default().word(generation), Ordering::Relaxed);
        self.lanes.lane(WorkerId(0)).begun(half_open);
        Verdict::Kept
    }

    /// Counts anew which of the connections in `entries` hold which bindings.
    fn count_bindings_uses(&self, entries: &[u32]) {
        let is_bound = |life: &Life| life.status.marks.has(Marks::BOUND);
        let living = entries.iter().filter_map(|&index| self.living_at(index));
        for (connection, _) in living.filter(|(_, life)| is_bound(life)) {
            let [original, reply] = entry::load_tuples(self.records.at(connection.index()));
            let key = binding_key(&original, &reply);
            if let Some((found, _)) = self.find_at(self.place(&key), &key) {
                self.records.at(found.connection.index())[PARTIES].fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Kept,
    Free,
    Expired,
    Disowned,
    Broken,
}

/// Makes an entry a free one of a generation that was not yet.
fn bury(record: Record) {
    let control = record[CONTROL].load(Ordering::Relaxed);
    let generation = entry::generation_of(control);
    let next = if generation & 1 == 1 { generation.wrapping_add(1) } else { generation };
    if record[LIFE].load(Ordering::Relaxed) != DEAD {
        record[LIFE].store(DEAD, Ordering::Relaxed);
    }
    if control != entry::dead(next) {
        record[CONTROL].store(entry::dead(next), Ordering::Release);
    }
}
