//! Which backend a client met last: one table for the node, since a client's connections may come to any worker.
//!
//! ```text
//!  (client, service port) -> bucket of 8 words, one cache line
//!  word: used (1) | tag (15) | backend (24) | last seen (24), 0 when free
//! ```
//!
//! Workers read and write whole words and never wait. A lost race is harmless: two workers that meet a new client at
//! once hash the same address into the same tables and choose the same backend; if their tables differ because an
//! update is under way, either choice is right, and the word found first holds from then on. A tag that two clients
//! share gives one the other's backend, if that serves the same service port, and a new choice if not.

#[cfg(penstock_loom)]
use loom::sync::atomic::{AtomicU64, Ordering};
#[cfg(not(penstock_loom))]
use std::sync::atomic::{AtomicU64, Ordering};

use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::time::Duration;

use penstock_io::{Ticks, TicksPerSecond};

use super::hash::Hash;
use super::ids::{BackendId, Marks};

/// Words of a bucket. The model takes few, to try all interleavings.
const WAYS: usize = if cfg!(penstock_loom) { 2 } else { 8 };

/// Times are counted in steps of 2^30 ticks, about half a second; 24 bits of them wrap after months.
const STEP_BITS: u32 = 30;
const TIME_MASK: u64 = (1 << 24) - 1;
const ID_BITS: u32 = 24;
const TAG_BITS: u32 = 48;
const USED: u64 = 1 << 63;

/// An affinity's timeout, in the steps that the table counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeout(u32);

impl Timeout {
    /// The steps that cover `duration`; at most half the time in which the table's clock wraps.
    #[must_use]
    pub fn new(duration: Duration, rate: TicksPerSecond) -> Timeout {
        let steps = rate.ticks(duration).div_ceil(1 << STEP_BITS);
        Timeout(steps.min(TIME_MASK / 2) as u32)
    }
}

/// A client of a service port.
#[derive(Clone, Copy, Debug)]
pub(super) struct Client {
    pub(super) address: IpAddr,
    /// Which service port: see [`super::port::ServicePort::key`].
    pub(super) service_port: u64,
}

#[repr(align(64))]
struct Bucket([AtomicU64; WAYS]);

/// The node's table of client affinity.
pub struct Affinity {
    buckets: Box<[Bucket]>,
    /// Drawn at random: clients cannot choose addresses that collide.
    seed: u64,
}

/// A word of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    tag: u64,
    id: BackendId,
    seen: u64,
}

impl Entry {
    fn of(word: u64) -> Option<Entry> {
        let id = BackendId::new((word >> ID_BITS) as u32 & ((1 << ID_BITS) - 1))?;
        (word & USED != 0).then_some(Entry { tag: word >> TAG_BITS & 0x7fff, id, seen: word & TIME_MASK })
    }

    fn word(self) -> u64 {
        USED | self.tag << TAG_BITS | u64::from(self.id.number()) << ID_BITS | self.seen
    }

    fn age(self, now: u64) -> u64 {
        now.wrapping_sub(self.seen) & TIME_MASK
    }
}

impl Affinity {
    /// A table for about so many clients: 8 bytes for each, in a power of two of buckets.
    ///
    /// When more are within their timeouts, those seen longest ago are forgotten.
    #[must_use]
    pub fn with_capacity(clients: usize) -> Affinity {
        let buckets = clients.div_ceil(WAYS).next_power_of_two();
        let bucket = || Bucket(std::array::from_fn(|_| AtomicU64::new(0)));
        let seed = if cfg!(penstock_loom) { 0 } else { RandomState::new().hash_one(0u8) };
        Affinity { buckets: (0..buckets).map(|_| bucket()).collect(), seed }
    }

    /// The backend of a client: the one that it met within `timeout`, if that `serves`, else the `fresh` one, which
    /// is remembered.
    #[inline]
    pub(super) fn choose(
        &self,
        client: Client,
        timeout: Timeout,
        now: Ticks,
        serves: impl Fn(BackendId) -> bool,
        fresh: impl FnOnce() -> BackendId,
    ) -> BackendId {
        let (bucket, tag) = self.place(client);
        let now = now.0 >> STEP_BITS & TIME_MASK;
        let (mut place, mut place_word, mut place_rank) = (&bucket.0[0], 0, 0);
        for word in &bucket.0 {
            let value = word.load(Ordering::Relaxed);
            let entry = Entry::of(value);
            if let Some(entry) = entry.filter(|entry| entry.tag == tag) {
                if entry.age(now) <= u64::from(timeout.0) && serves(entry.id) {
                    if entry.seen != now {
                        replace(word, value, Entry { seen: now, ..entry });
                    }
                    return entry.id;
                }
                (place, place_word, place_rank) = (word, value, u64::MAX);
                continue;
            }
            // The client's own stale word is the best place, then a free one, then the one seen longest ago.
            let rank = entry.map_or(TIME_MASK + 2, |entry| entry.age(now) + 1);
            if rank > place_rank {
                (place, place_word, place_rank) = (word, value, rank);
            }
        }
        let id = fresh();
        replace(place, place_word, Entry { tag, id, seen: now });
        id
    }

    /// The bucket and the tag of a client.
    #[inline]
    fn place(&self, client: Client) -> (&Bucket, u64) {
        let hash = Hash::new(self.seed).address(client.address).word(client.service_port).finish();
        (&self.buckets[(hash as u32) as usize & (self.buckets.len() - 1)], hash >> 49)
    }

    /// The backend that a client met within `timeout`, whether it still serves or not.
    pub(super) fn remembered(&self, client: Client, timeout: Timeout, now: Ticks) -> Option<BackendId> {
        let ((bucket, tag), now) = (self.place(client), now.0 >> STEP_BITS & TIME_MASK);
        let mut entries = bucket.0.iter().filter_map(|word| Entry::of(word.load(Ordering::Relaxed)));
        let found = entries.find(|it| it.tag == tag && it.age(now) <= u64::from(timeout.0));
        found.map(|entry| entry.id)
    }

    /// A table of what is known of one client, for those who ask what would be: they change nothing here.
    pub(super) fn excerpt(&self, client: Client) -> Affinity {
        let (bucket, _) = self.place(client);
        let copy = bucket.0.each_ref().map(|word| AtomicU64::new(word.load(Ordering::Relaxed)));
        Affinity { buckets: Box::new([Bucket(copy)]), seed: self.seed }
    }

    /// Marks every backend that the table names: see [`super::Directory::reclaim`].
    pub fn mark(&self, marks: &mut Marks) {
        let words = self.buckets.iter().flat_map(|bucket| &bucket.0);
        for entry in words.filter_map(|word| Entry::of(word.load(Ordering::Relaxed))) {
            marks.add(entry.id);
        }
    }
}

/// Replaces a word, unless another worker was quicker; its word is as good.
///
/// Nothing else is published with a word, so no ordering is asked for.
#[inline]
fn replace(word: &AtomicU64, old: u64, entry: Entry) {
    let _quicker = word.compare_exchange(old, entry.word(), Ordering::Relaxed, Ordering::Relaxed);
}

#[cfg(all(test, not(penstock_loom)))]
mod tests {
    use super::*;
    use std::cell::Cell;

    const RATE: TicksPerSecond = TicksPerSecond(2_500_000_000);

    fn at(seconds: u64) -> Ticks {
        Ticks(u64::MAX / 3 + seconds * RATE.0)
    }

    fn id(number: u32) -> BackendId {
        BackendId::new(number).expect("a small number")
    }

    fn client(number: u32) -> Client {
        Client { address: std::net::Ipv4Addr::from_bits(number).into(), service_port: 7 }
    }

    /// A table whose places and tags are the same in every run.
    fn table(clients: usize) -> Affinity {
        Affinity { seed: 1, ..Affinity::with_capacity(clients) }
    }

    fn timeout(seconds: u64) -> Timeout {
        Timeout::new(Duration::from_secs(seconds), RATE)
    }

    #[test]
    fn a_client_meets_its_backend_again_until_it_has_been_away_for_the_timeout() {
        let table = table(1000);
        let meets = |at, fresh| table.choose(client(1), timeout(60), at, |_| true, || id(fresh));
        assert_eq!(meets(at(0), 5), id(5));
        assert_eq!(meets(at(50), 6), id(5));
        assert_eq!(meets(at(105), 7), id(5), "counted from the last connection");
        assert_eq!(meets(at(170), 8), id(8));
    }

    #[test]
    fn a_backend_that_no_longer_serves_is_chosen_anew_and_the_new_one_holds() {
        let table = table(1000);
        let asked = Cell::new(0);
        let meets = |gone, fresh| {
            table.choose(
                client(1),
                timeout(60),
                at(1),
                |id| id.number() != gone,
                || {
                    asked.set(asked.get() + 1);
                    id(fresh)
                },
            )
        };
        assert_eq!((meets(99, 5), meets(5, 6), meets(5, 7)), (id(5), id(6), id(6)));
        assert_eq!(asked.get(), 2);
    }

    #[test]
    fn service_ports_are_apart() {
        let table = table(1000);
        let meets = |service_port, fresh| {
            let client = Client { service_port, ..client(1) };
            table.choose(client, timeout(60), at(1), |_| true, || id(fresh))
        };
        assert_eq!((meets(1, 5), meets(2, 6), meets(1, 7)), (id(5), id(6), id(5)));
    }

    #[test]
    fn a_full_bucket_forgets_whom_it_saw_longest_ago() {
        let table = table(1);
        let meets = |number: u32, seconds, fresh| {
            table.choose(client(number), timeout(10_000), at(seconds), |_| true, || id(fresh))
        };
        (0..8).for_each(|number| assert_eq!(meets(number, u64::from(number) * 10, number), id(number)));
        assert_eq!(meets(0, 100, 77), id(0), "and is young again");
        assert_eq!(meets(100, 110, 100), id(100));
        assert_eq!(meets(1, 120, 78), id(78), "the oldest has gone");
        assert_eq!((meets(0, 130, 79), meets(100, 130, 79)), (id(0), id(100)));
    }

    #[test]
    fn marks_name_every_backend_in_the_table() {
        let table = table(1000);
        for number in 0..100 {
            table.choose(client(number), timeout(60), at(1), |_| true, || id(number * 3));
        }
        let mut marks = Marks::new();
        table.mark(&mut marks);
        assert!((0..300).all(|number| marks.has(id(number)) == number.is_multiple_of(3)));
    }
}

#[cfg(all(test, penstock_loom))]
mod loom_model {
    use super::*;
    use loom::sync::Arc;

    #[test]
    fn loom_workers_that_race_leave_one_of_their_choices_whole() {
        loom::model(|| {
            let table = Arc::new(Affinity::with_capacity(1));
            let timeout = Timeout(10);
            let meets = move |table: &Affinity, number: u32| {
                let client = Client { address: [10, 0, 0, 1].into(), service_port: 1 };
                let fresh = || BackendId::new(number).expect("a small number");
                table.choose(client, timeout, Ticks(1 << 40), |_| true, fresh).number()
            };
            let other = Arc::clone(&table);
            let thread = loom::thread::spawn(move || meets(&other, 5));
            let mine = meets(&table, 6);
            let theirs = thread.join().expect("the worker does not panic");
            assert!([5, 6].contains(&mine) && [5, 6].contains(&theirs));
            let after = meets(&table, 7);
            assert!([mine, theirs].contains(&after), "{after} was chosen by nobody");
            assert_eq!(meets(&table, 8), after);
        });
    }
}
