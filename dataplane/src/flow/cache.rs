//! The flow cache: one per worker and address family, of fixed size, without locks.
//!
//! ```text
//!  hash -> bucket: [16 one-byte tags]  -> slot: | key | counters | epoch, seen | action | connection | rewrite |
//!          one load, one comparison          compared in full; one line (IPv4), two (IPv6)
//! ```
//!
//! A look-up comes in three stages, so that a burst's memory accesses overlap: [`Cache::touch`] prefetches the tags,
//! [`Cache::candidate`] compares them and prefetches the slot, [`Cache::find`] compares the key. A full bucket spills into
//! a second one; when both are full, the flow that was quiet for longest gives way, or, when all are busy, now and then
//! one does: a scan of addresses cannot empty the cache.

use std::io;

use penstock_io::lanes::equal;
use penstock_io::pages::{Table, prefetch};

use super::action::{Action, Remembered, Tracked};
use super::key::{Key, Seed};
use crate::snapshot::Epoch;

/// Slots in a bucket: as many as there are tags in one comparison.
const WAYS: usize = 16;

/// Buckets of the largest cache: the two choices of a flow share no bit of its hash that tells as many apart.
const MOST_BUCKETS: usize = 1 << 24;

/// A newcomer displaces one of sixteen busy flows with a chance of one in this many.
const DISPLACE_ONE_IN: u32 = 16;

/// How often the sweep comes round while a flow becomes quiet.
const ROUNDS: usize = 4;

/// Coarse time: time-stamp ticks divided by 2^24, about 7 ms. It wraps after months at most of which ages never are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Coarse(pub u32);

impl Coarse {
    /// The coarse time of a moment.
    #[inline(always)]
    #[must_use]
    pub fn of(now: penstock_io::Ticks) -> Coarse {
        Coarse((now.0 >> 24) as u32)
    }

    /// The period of 128 steps, about a second, that a moment is in.
    #[inline(always)]
    #[must_use]
    pub fn period(self) -> u32 {
        self.0 >> 7
    }

    /// Steps from `earlier` to here.
    #[inline(always)]
    #[must_use]
    pub fn since(self, earlier: Coarse) -> u32 {
        self.0.wrapping_sub(earlier.0)
    }
}

/// A known flow: its key and everything that a packet of it needs, in one cache line (two for IPv6).
#[derive(Clone, Copy, zerocopy::FromZeros)]
#[repr(C, align(64))]
struct Slot<K: Key> {
    key: K,
    packets: u64,
    /// Bytes in the low 40 bits would do for hours only, so they have a word of their own.
    bytes: u64,
    epoch: u32,
    seen: u32,
    action: Action,
    /// Of use only if the action says that there is a connection.
    tracked: u64,
    /// Other addresses and ports; of use only if the action says that there are some, and not apart.
    near: K::Near,
}

impl<K: Key> Slot<K> {
    /// What a look-up says that found its key in this slot, the one of number `index`.
    #[inline(always)]
    fn found(&self, index: usize, epoch: Epoch) -> Found {
        if self.epoch == epoch.0 as u32 { Found::Current(index) } else { Found::Stale(index) }
    }

    /// The slot's other addresses and ports, its own number being `index`.
    #[inline(always)]
    fn rewrite(&self, apart: &Table<K::Rewrite>, index: usize) -> K::Rewrite {
        if self.action.rewrites_apart() { apart[index] } else { self.key.unfold(&self.near) }
    }
}

/// What the tags said: the first slot that may hold the key, or none.
#[derive(Clone, Copy, Debug, Default)]
pub struct Candidate(u32);

impl Candidate {
    /// No tag matches: a slot that no cache has.
    const NONE: Candidate = Candidate(u32::MAX);
}

/// What a look-up found.
pub enum Found {
    /// The flow, decided under the current tables. The number names its slot.
    Current(usize),
    /// The flow, decided under older tables: it must be decided again.
    Stale(usize),
    /// Nothing.
    Absent,
}

/// A known flow that a packet belongs to.
pub struct Hit<'a, K: Key> {
    slot: &'a mut Slot<K>,
    apart: &'a Table<K::Rewrite>,
    index: usize,
}

impl<K: Key> Hit<'_, K> {
    /// Counts the packet.
    #[inline(always)]
    pub fn count(&mut self, bytes: usize, now: Coarse) {
        self.slot.packets += 1;
        self.slot.bytes += bytes as u64;
        self.slot.seen = now.0;
    }

    /// What is to be done with it.
    #[inline(always)]
    #[must_use]
    pub fn action(&self) -> &Action {
        &self.slot.action
    }

    /// Whether the flow's last packet came in another [`Coarse::period`] than `now`.
    #[inline(always)]
    #[must_use]
    pub fn is_new_period(&self, now: Coarse) -> bool {
        Coarse(self.slot.seen).period() != now.period()
    }

    /// The flow's other addresses and ports; of use only if its action says that it has some.
    #[inline(always)]
    #[must_use]
    pub fn rewrite(&self) -> K::Rewrite {
        self.slot.rewrite(self.apart, self.index)
    }
}

/// A flow in a listing.
#[derive(Clone, Copy, Debug)]
pub struct Row<K> {
    /// The key.
    pub key: K,
    /// What its packets get.
    pub action: Action,
    /// Packets since it was installed.
    pub packets: u64,
    /// Bytes of their IP packets.
    pub bytes: u64,
    /// When the last one came.
    pub seen: Coarse,
    /// Whether it was decided under older tables.
    pub stale: bool,
}

/// The known flows of one worker and one address family.
pub struct Cache<K: Key> {
    tags: Table<[u8; WAYS]>,
    slots: Table<Slot<K>>,
    /// Other addresses and ports of the few slots that have no room for them.
    apart: Table<K::Rewrite>,
    seed: Seed,
    used: usize,
    /// The next bucket that the sweep looks at.
    hand: u32,
    /// When the sweep's account was last settled, and the buckets that it owes.
    swept: Coarse,
    owed: usize,
    dice: u32,
}

impl<K: Key + zerocopy::FromZeros> Cache<K> {
    /// A cache for at least `flows` flows, rounded up to whole buckets; the first of them cost no memory yet.
    ///
    /// # Errors
    /// The kernel's, when there is no memory.
    pub fn with_capacity(flows: usize, seed: Seed) -> io::Result<Cache<K>> {
        let buckets = flows.div_ceil(WAYS).clamp(1, MOST_BUCKETS);
        Ok(Cache {
            tags: Table::zeroed(buckets)?,
            slots: Table::zeroed(buckets * WAYS)?,
            apart: Table::zeroed(buckets * WAYS)?,
            seed,
            used: 0,
            hand: 0,
            swept: Coarse(0),
            owed: 0,
            dice: 0x9e37_79b9,
        })
    }

    /// Flows that fit.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.slots.len()
    }

    /// Bytes of its tags and slots. Other addresses and ports that are kept apart come on top, as far as there are any.
    #[must_use]
    pub fn bytes(&self) -> usize {
        size_of_val(&*self.tags) + size_of_val(&*self.slots)
    }

    /// Flows in it.
    #[must_use]
    pub fn used(&self) -> usize {
        self.used
    }

    /// Hashes a key with this cache's seed.
    #[inline(always)]
    #[must_use]
    pub fn hash(&self, key: &K) -> u64 {
        key.hash(self.seed)
    }

    /// The bucket that a flow belongs in.
    #[inline(always)]
    fn first(&self, hash: u64) -> usize {
        self.share(hash as u32)
    }

    /// First stage: brings the bucket's tags near.
    #[inline(always)]
    pub fn touch(&self, hash: u64) {
        prefetch(&self.tags, self.first(hash));
    }

    /// Second stage: compares the tags and brings the likely slot near.
    #[inline(always)]
    #[must_use]
    pub fn candidate(&self, hash: u64) -> Candidate {
        let bucket = self.first(hash);
        let matches = equal(&self.tags[bucket], tag_of(hash));
        let slot = bucket * WAYS + matches.trailing_zeros() as usize % WAYS;
        prefetch(&self.slots, slot);
        if matches == 0 { Candidate::NONE } else { Candidate(slot as u32) }
    }

    /// Third stage for most hits: a flow of the current tables in the first slot that its tags name. `None` for anything
    /// else, which [`Cache::find`] tells apart.
    #[inline(always)]
    pub fn hit(&mut self, key: &K, candidate: Candidate, epoch: Epoch) -> Option<Hit<'_, K>> {
        let index = candidate.0 as usize;
        let slot = self.slots.get_mut(index)?;
        let is_hit = slot.key == *key && slot.epoch == epoch.0 as u32;
        is_hit.then_some(Hit { slot, apart: &self.apart, index })
    }

    /// Third stage: finds the flow, or not.
    #[inline(always)]
    #[must_use]
    pub fn find(&self, key: &K, hash: u64, candidate: Candidate, epoch: Epoch) -> Found {
        match self.slots.get(candidate.0 as usize) {
            Some(slot) if slot.key == *key => slot.found(candidate.0 as usize, epoch),
            _ => self.search(key, hash, epoch),
        }
    }

    /// Looks at every slot that the flow may be in: those of its first bucket and, if that is full, those of its second.
    #[inline(never)]
    fn search(&self, key: &K, hash: u64, epoch: Epoch) -> Found {
        for bucket in [self.first(hash), self.second(hash)] {
            let tags = &self.tags[bucket];
            let mut matches = equal(tags, tag_of(hash));
            while matches != 0 {
                let index = bucket * WAYS + matches.trailing_zeros() as usize;
                // A slot that was given up keeps its key, so one without a tag does not count.
                if self.slots[index].key == *key {
                    return self.slots[index].found(index, epoch);
                }
                matches &= matches - 1;
            }
            if equal(tags, 0) != 0 {
                break;
            }
        }
        Found::Absent
    }

    /// A look-up in one go.
    #[must_use]
    pub fn look_up(&self, key: &K, epoch: Epoch) -> Found {
        let hash = self.hash(key);
        self.find(key, hash, self.candidate(hash), epoch)
    }

    /// Counts a packet of the flow in a slot and tells what to do with it.
    #[inline(always)]
    pub fn count(&mut self, index: usize, bytes: usize, now: Coarse) -> &Action {
        let slot = &mut self.slots[index];
        slot.packets += 1;
        slot.bytes += bytes as u64;
        slot.seen = now.0;
        &slot.action
    }

    /// What is to be done with packets of the flow in a slot.
    #[inline(always)]
    #[must_use]
    pub fn action(&self, index: usize) -> &Action {
        &self.slots[index].action
    }

    /// The connection of the flow in a slot.
    #[inline(always)]
    #[must_use]
    pub fn tracked(&self, index: usize) -> Tracked {
        Tracked::from_bits(self.slots[index].tracked)
    }

    /// The other addresses and ports of the flow in a slot; of use only if its action says that it has some.
    #[inline(always)]
    #[must_use]
    pub fn rewrite(&self, index: usize) -> K::Rewrite {
        self.slots[index].rewrite(&self.apart, index)
    }

    /// Whether the last packet of the flow in a slot came in another [`Coarse::period`] than `now`.
    #[inline(always)]
    #[must_use]
    pub fn is_new_period(&self, index: usize, now: Coarse) -> bool {
        Coarse(self.slots[index].seen).period() != now.period()
    }

    /// Installs a flow or gives a known one a new action; its counters go on. Returns its slot, or `None` without a
    /// place: a busy bucket refuses most newcomers.
    pub fn install(
        &mut self,
        key: &K,
        flow: impl Into<Remembered<K::Rewrite>>,
        epoch: Epoch,
        now: Coarse,
    ) -> Option<usize> {
        let (flow, hash) = (flow.into(), self.hash(key));
        let near = flow.rewrite.and_then(|rewrite| key.fold(&rewrite));
        let action = flow
            .action
            .tracking(flow.tracked != Tracked::NONE)
            .rewriting(flow.rewrite.is_some())
            .rewriting_apart(flow.rewrite.is_some() && near.is_none());
        let index = match self.find(key, hash, self.candidate(hash), epoch) {
            Found::Current(index) | Found::Stale(index) => index,
            Found::Absent => {
                let index = self.place(hash, now)?;
                self.tags[index / WAYS][index % WAYS] = tag_of(hash);
                let slot = &mut self.slots[index];
                (slot.key, slot.packets, slot.bytes, slot.seen) = (*key, 0, 0, now.0);
                self.used += 1;
                index
            }
        };
        let slot = &mut self.slots[index];
        (slot.action, slot.tracked, slot.epoch) = (action, flow.tracked.to_bits(), epoch.0 as u32);
        match (near, flow.rewrite) {
            (Some(near), _) => slot.near = near,
            (None, Some(rewrite)) => self.apart[index] = rewrite,
            (None, None) => {}
        }
        Some(index)
    }

    /// Forgets flows that were quiet for `quiet` steps: looks at the buckets that are due, at most `buckets` of them, from
    /// where the last call stopped. All are due `ROUNDS` times in `quiet` steps: a look at a bucket is a cache miss for
    /// each flow in it, too dear for every turn of a busy worker.
    #[inline]
    pub fn sweep(&mut self, buckets: usize, quiet: u32, now: Coarse) -> usize {
        let all = self.tags.len();
        if self.swept != now {
            let due = now.since(self.swept) as usize * (all * ROUNDS).div_ceil(quiet.max(1) as usize);
            self.owed = (self.owed + due).min(all);
            self.swept = now;
        }
        let buckets = buckets.min(self.owed);
        self.owed -= buckets;
        if buckets == 0 { 0 } else { self.sweep_on(buckets, quiet, now) }
    }

    #[inline(never)]
    fn sweep_on(&mut self, buckets: usize, quiet: u32, now: Coarse) -> usize {
        let mut forgotten = 0;
        for _ in 0..buckets {
            let bucket = self.hand as usize;
            let next = self.hand + 1;
            self.hand = if (next as usize) < self.tags.len() { next } else { 0 };
            let mut taken = !equal(&self.tags[bucket], 0) & 0xffff;
            while taken != 0 {
                let way = taken.trailing_zeros() as usize;
                if now.since(Coarse(self.slots[bucket * WAYS + way].seen)) > quiet {
                    self.tags[bucket][way] = 0;
                    self.used -= 1;
                    forgotten += 1;
                }
                taken &= taken - 1;
            }
        }
        forgotten
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.tags.fill([0; WAYS]);
        self.used = 0;
    }

    /// Lists flows from bucket `from` on into `rows`, as long as a whole bucket still fits its capacity; returns the
    /// bucket to go on with, or `None` at the end.
    pub fn list(&self, from: u32, epoch: Epoch, rows: &mut Vec<Row<K>>) -> Option<u32> {
        for bucket in from..self.tags.len() as u32 {
            if rows.capacity() - rows.len() < WAYS {
                return Some(bucket);
            }
            let mut taken = !equal(&self.tags[bucket as usize], 0) & 0xffff;
            while taken != 0 {
                let slot = &self.slots[bucket as usize * WAYS + taken.trailing_zeros() as usize];
                rows.push(Row {
                    key: slot.key,
                    action: slot.action,
                    packets: slot.packets,
                    bytes: slot.bytes,
                    seen: Coarse(slot.seen),
                    stale: slot.epoch != epoch.0 as u32,
                });
                taken &= taken - 1;
            }
        }
        None
    }

    fn second(&self, hash: u64) -> usize {
        self.share((hash >> 24) as u32)
    }

    /// The bucket in which an even share of all 32-bit numbers falls, this one among them. Any number of buckets does, so
    /// none is there only to make a power of two.
    #[inline(always)]
    fn share(&self, bits: u32) -> usize {
        ((u64::from(bits) * self.tags.len() as u64) >> 32) as usize
    }

    /// A free slot for a newcomer: in its first bucket, in its second, or by making one give way.
    fn place(&mut self, hash: u64, now: Coarse) -> Option<usize> {
        for bucket in [self.first(hash), self.second(hash)] {
            let free = equal(&self.tags[bucket], 0);
            if free != 0 {
                return Some(bucket * WAYS + free.trailing_zeros() as usize);
            }
        }
        let first = self.first(hash) * WAYS;
        let age = |slot: &Slot<K>| now.since(Coarse(slot.seen));
        let (way, oldest) =
            self.slots[first..first + WAYS].iter().map(age).enumerate().max_by_key(|&(_, age)| age)?;
        if oldest == 0 && !self.roll() {
            return None;
        }
        self.used -= 1;
        Some(first + way)
    }

    /// True one time in [`DISPLACE_ONE_IN`] (xorshift).
    fn roll(&mut self) -> bool {
        self.dice ^= self.dice << 13;
        self.dice ^= self.dice >> 17;
        self.dice ^= self.dice << 5;
        self.dice.is_multiple_of(DISPLACE_ONE_IN)
    }
}

/// The tag of a hash: its top byte, of which zero means an empty slot.
#[inline(always)]
fn tag_of(hash: u64) -> u8 {
    ((hash >> 56) as u8).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::action::{DeviceId, LinkId};
    use crate::flow::key::{Key4, ZoneId};
    use penstock_wire::parse::{Fragment, V4Flow};
    use std::collections::HashMap;

    fn key(number: u32) -> Key4 {
        let flow = V4Flow {
            src: std::net::Ipv4Addr::from_bits(0x0a00_0000 + number),
            dst: std::net::Ipv4Addr::from_bits(0x0a80_0001),
            proto: 17,
            sport: 1024,
            dport: 53,
            tos: 0,
            ttl: 64,
            dont_fragment: false,
            fragment: Fragment::Whole,
            options: false,
        };
        Key4::new(ZoneId::new(1).unwrap(), &flow)
    }

    fn action(device: u16) -> Action {
        Action::forward(DeviceId(device), LinkId(0), 1500)
    }

    fn found(cache: &Cache<Key4>, number: u32, epoch: Epoch) -> Option<u16> {
        match cache.look_up(&key(number), epoch) {
            Found::Current(index) => Some(cache.action(index).out().0),
            _ => None,
        }
    }

    #[test]
    fn an_ipv4_flow_is_one_cache_line_and_an_ipv6_flow_two() {
        assert_eq!(size_of::<Slot<Key4>>(), 64);
        assert_eq!(size_of::<Slot<crate::flow::Key6>>(), 128);
    }

    #[test]
    fn the_cache_agrees_with_a_map_while_it_has_room() {
        let mut cache = Cache::with_capacity(16_384, Seed::random()).unwrap();
        let mut map = HashMap::new();
        // Six of sixteen ways on average: that both buckets of a flow are full happens once in many millions.
        for number in 0..6_000 {
            assert!(cache.install(&key(number), action(number as u16), Epoch(1), Coarse(1)).is_some());
            map.insert(number, number as u16);
        }
        assert_eq!(cache.used(), map.len());
        assert!((0..6_000).all(|number| found(&cache, number, Epoch(1)) == map.get(&number).copied()));
        assert!((6_000..7_000).all(|number| found(&cache, number, Epoch(1)).is_none()));
    }

    #[test]
    fn any_number_of_buckets_is_filled_evenly() {
        for flows in [1, 17, 1_000, 12_345, 20_000] {
            let mut cache = Cache::with_capacity(flows, Seed::random()).unwrap();
            assert_eq!(cache.capacity(), flows.next_multiple_of(WAYS));
            (0..8 * cache.capacity() as u32).for_each(|n| {
                cache.install(&key(n), action(0), Epoch(1), Coarse(n));
            });
            let used = cache.used();
            assert!(used * 100 >= cache.capacity() * 99, "{used} of {flows}");
            assert_eq!(cache.sweep(cache.capacity() / WAYS, 0, Coarse(u32::MAX / 2)), used);
        }
    }

    #[test]
    fn stale_epoch_is_revalidated_in_place_and_keeps_its_counters() {
        let mut cache = Cache::with_capacity(64, Seed::random()).unwrap();
        cache.install(&key(1), action(1), Epoch(1), Coarse(0));
        let Found::Current(index) = cache.look_up(&key(1), Epoch(1)) else { panic!("not found") };
        cache.count(index, 100, Coarse(0));
        assert!(matches!(cache.look_up(&key(1), Epoch(2)), Found::Stale(_)));
        cache.install(&key(1), action(2), Epoch(2), Coarse(0));
        assert_eq!(found(&cache, 1, Epoch(2)), Some(2));
        let mut rows = Vec::with_capacity(64);
        cache.list(0, Epoch(2), &mut rows);
        assert_eq!((rows.len(), rows[0].packets, rows[0].bytes), (1, 1, 100));
    }

    #[test]
    fn quiet_flows_are_swept_and_busy_ones_stay() {
        let mut cache = Cache::with_capacity(1024, Seed::random()).unwrap();
        (0..300).for_each(|n| assert!(cache.install(&key(n), action(0), Epoch(1), Coarse(0)).is_some()));
        for number in 0..150 {
            if let Found::Current(index) = cache.look_up(&key(number), Epoch(1)) {
                cache.count(index, 1, Coarse(50));
            }
        }
        assert_eq!(cache.sweep(1024 / WAYS, 40, Coarse(60)), 150);
        assert_eq!(cache.used(), 150);
        assert!((0..150).all(|number| found(&cache, number, Epoch(1)).is_some()));
    }

    #[test]
    fn a_scan_cannot_push_busy_flows_out() {
        let mut cache = Cache::with_capacity(1024, Seed::random()).unwrap();
        // Seeds differ, and with some a few of these already find both of their buckets full.
        let installs = |n: &u32| cache.install(&key(*n), action(0), Epoch(1), Coarse(5)).is_some();
        assert!((0..700).filter(installs).count() > 650);
        let mut refused = 0;
        for number in 10_000..14_000 {
            refused += usize::from(cache.install(&key(number), action(0), Epoch(1), Coarse(5)).is_none());
        }
        assert!(refused > 3_000, "only {refused} of 4000 scanning flows were refused");
        let kept = (0..700).filter(|&number| found(&cache, number, Epoch(1)).is_some()).count();
        assert!(kept > 500, "only {kept} of 700 busy flows are left");
        assert!(cache.used() <= cache.capacity());
    }

    #[test]
    fn old_flows_give_way_to_new_ones_at_once() {
        let mut cache = Cache::with_capacity(64, Seed::random()).unwrap();
        (0..500).for_each(|n| assert!(cache.install(&key(n), action(0), Epoch(1), Coarse(n)).is_some()));
        assert!(found(&cache, 499, Epoch(1)).is_some());
    }

    #[test]
    fn a_listing_goes_on_where_it_stopped() {
        let mut cache = Cache::with_capacity(4096, Seed::random()).unwrap();
        (0..1000).for_each(|n| assert!(cache.install(&key(n), action(0), Epoch(1), Coarse(0)).is_some()));
        let (mut from, mut total) = (Some(0), 0);
        while let Some(bucket) = from {
            let mut rows = Vec::with_capacity(100);
            from = cache.list(bucket, Epoch(1), &mut rows);
            total += rows.len();
        }
        assert_eq!(total, 1000);
    }
}
