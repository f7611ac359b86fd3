//! Limits per endpoint: bandwidth each way, packets and new connections per second; integers and ticks only.
//!
//! ```text
//!  worker's purse --empty--> endpoint's bucket (one shared word) --> whole portions of tokens, or none
//!       | spend                    full again at a known time; a portion moves that time on
//!       v
//!   the packet passes
//! ```
//!
//! An endpoint's queues may be on several workers. Tokens therefore leave the bucket in portions, at most a 64th of its depth,
//! into a purse of each worker, and most packets touch the purse only. What purses hold adds to the burst: over any
//! time `t` at most `rate * t + burst + workers * portion` passes, and a sender that is always at the limit loses
//! nothing. Time is handed in; it may differ between workers by a few ticks.

use std::cell::RefCell;
use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam::utils::CachePadded;
use penstock_io::{Ticks, TicksPerSecond};

use crate::flow::DeviceId;

/// Portions in a full bucket: what a purse can hold beyond the limit is this part of the burst.
const PORTIONS: u64 = 64;
/// The fewest bytes that a bucket for bytes holds: the longest IP packet, which could never pass otherwise.
const LONGEST_PACKET: u64 = 65_535;

/// A rate and a burst.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Rate {
    /// How many in a second; zero lets nothing pass.
    pub per_second: u64,
    /// How many at once after a quiet time.
    pub burst: u64,
}

/// What an endpoint may do; `None` is no limit. "Ingress" is towards the endpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Limits {
    /// Bytes towards the endpoint; see [`Rate::bits`].
    pub ingress_bytes: Option<Rate>,
    /// Bytes from the endpoint.
    pub egress_bytes: Option<Rate>,
    /// Packets towards the endpoint.
    pub ingress_packets: Option<Rate>,
    /// Packets from the endpoint.
    pub egress_packets: Option<Rate>,
    /// New connections of the endpoint, both ways.
    pub connections: Option<Rate>,
}

impl Rate {
    /// A rate of bytes from one of bits; the burst is in bytes. Never less of either than asked for.
    #[must_use]
    pub fn bits(per_second: u64, burst: u64) -> Rate {
        Rate { per_second: per_second.div_ceil(8), burst }
    }
}

/// Which way a packet goes, as the endpoint sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Way {
    /// Towards the endpoint.
    Ingress,
    /// From the endpoint.
    Egress,
}

/// The limit that a packet met.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Exceeded {
    /// Bytes per second.
    Bandwidth,
    /// Packets per second.
    Packets,
    /// New connections per second.
    Connections,
}

/// A bucket of tokens that workers share.
///
/// Its state is the time at which it will be full again; a portion taken moves that time on by what the portion takes
/// to come back. No more is taken once it lies a whole bucket ahead.
#[derive(Debug)]
struct Bucket {
    full_at: CachePadded<AtomicU64>,
    /// Tokens of a portion.
    portion: u32,
    /// Ticks in which a portion comes back.
    portion_ticks: u64,
    /// Portions of a full bucket.
    depth: u64,
}

impl Bucket {
    /// A full bucket; `least` is the most that one packet may need.
    fn new(limit: Rate, least: u64, rate: TicksPerSecond) -> Bucket {
        let burst = limit.burst.max(least).min(u64::from(u32::MAX) / 2);
        if limit.per_second == 0 {
            return Bucket { full_at: CachePadded::default(), portion: 1, portion_ticks: 1, depth: 0 };
        }
        // No more than a second brings, so that what portions take in ticks cannot overflow.
        let portion = (burst / PORTIONS).clamp(1, limit.per_second);
        let ticks = u128::from(portion) * u128::from(rate.0);
        let per_second = u128::from(limit.per_second);
        let portion_ticks = ((ticks + per_second / 2) / per_second).max(1) as u64;
        let depth = burst.div_ceil(portion);
        Bucket { full_at: CachePadded::default(), portion: portion as u32, portion_ticks, depth }
    }

    /// Tokens of a full bucket.
    fn capacity(&self) -> u32 {
        self.depth as u32 * self.portion
    }

    /// Takes as many portions as hold `tokens`, or none; returns the tokens taken.
    #[cold]
    fn draw(&self, tokens: u32, now: Ticks) -> u32 {
        let portions = tokens.div_ceil(self.portion);
        let ahead = self.depth * self.portion_ticks;
        let taken = u64::from(portions) * self.portion_ticks;
        // The word stands for itself: no other memory is read by its leave.
        let drawn = self.full_at.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |full_at| {
            let next = full_at.max(now.0) + taken;
            (next - now.0 <= ahead).then_some(next)
        });
        if drawn.is_ok() { portions * self.portion } else { 0 }
    }
}

/// Tokens that a worker has drawn and not spent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Purse(u32);

impl Purse {
    /// Spends tokens, with what more it takes from the bucket; false if there are too few.
    #[inline(always)]
    fn spend(&mut self, tokens: u32, bucket: &Bucket, now: Ticks) -> bool {
        if let Some(rest) = self.0.checked_sub(tokens) {
            self.0 = rest;
            return true;
        }
        self.refill(tokens, bucket, now)
    }

    #[cold]
    fn refill(&mut self, tokens: u32, bucket: &Bucket, now: Ticks) -> bool {
        if bucket.depth == 0 {
            return false;
        }
        // A frame of more segments than the bucket holds passes when that is full.
        let tokens = tokens.min(bucket.capacity()).max(self.0);
        let has = self.0 + bucket.draw(tokens - self.0, now);
        let enough = has >= tokens;
        self.0 = if enough { has - tokens } else { has };
        enough
    }
}

/// One worker's purses for one endpoint: 20 bytes, all empty at first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Purses {
    bytes: [Purse; 2],
    packets: [Purse; 2],
    connections: Purse,
}

/// The limits of one endpoint, shared by all workers.
///
/// It lives as long as the endpoint and its limits: a new one starts with full buckets.
#[derive(Debug, Default)]
pub struct Meter {
    /// No other meter of this process has it.
    number: u64,
    limits: Limits,
    bytes: [Option<Bucket>; 2],
    packets: [Option<Bucket>; 2],
    connections: Option<Bucket>,
}

impl Meter {
    /// A meter for these limits, its buckets full.
    #[must_use]
    pub fn new(limits: Limits, rate: TicksPerSecond) -> Meter {
        let bucket = |limit: Option<Rate>, least| limit.map(|limit| Bucket::new(limit, least, rate));
        static METERS: AtomicU64 = AtomicU64::new(1);
        Meter {
            number: METERS.fetch_add(1, Ordering::Relaxed),
            limits,
            bytes: [limits.ingress_bytes, limits.egress_bytes].map(|limit| bucket(limit, LONGEST_PACKET)),
            packets: [limits.ingress_packets, limits.egress_packets].map(|limit| bucket(limit, 1)),
            connections: bucket(limits.connections, 1),
        }
    }

    /// What it was made for: while an endpoint's limits are these, it keeps the meter.
    #[must_use]
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Whether packets of that way need not be asked about.
    #[inline]
    #[must_use]
    pub fn is_open(&self, way: Way) -> bool {
        self.bytes[way as usize].is_none() && self.packets[way as usize].is_none()
    }

    /// Lets a packet pass, or says which limit it exceeds; nothing is spent then.
    ///
    /// `packets` is more than one for a frame that stands for several segments.
    ///
    /// # Errors
    /// The limit that it exceeds.
    #[inline]
    pub fn admit(
        &self,
        purses: &mut Purses,
        way: Way,
        packets: u32,
        bytes: u32,
        now: Ticks,
    ) -> Result<(), Exceeded> {
        let way = way as usize;
        if let Some(bucket) = &self.packets[way]
            && !purses.packets[way].spend(packets, bucket, now)
        {
            return Err(Exceeded::Packets);
        }
        if let Some(bucket) = &self.bytes[way]
            && !purses.bytes[way].spend(bytes, bucket, now)
        {
            if let Some(bucket) = &self.packets[way] {
                purses.packets[way].0 += packets.min(bucket.capacity());
            }
            return Err(Exceeded::Bandwidth);
        }
        Ok(())
    }

    /// Lets a new connection pass.
    ///
    /// # Errors
    /// [`Exceeded::Connections`].
    #[inline]
    pub fn admit_connection(&self, purses: &mut Purses, now: Ticks) -> Result<(), Exceeded> {
        match &self.connections {
            Some(bucket) if !purses.connections.spend(1, bucket, now) => Err(Exceeded::Connections),
            _ => Ok(()),
        }
    }
}

/// A worker's purses for all endpoints, by the number of the endpoint's device.
#[derive(Debug, Default)]
pub struct Wallet {
    /// Each with the number of the meter that filled it: another endpoint, or other limits, begin with an empty one.
    purses: RefCell<Vec<(u64, Purses)>>,
}

impl Wallet {
    /// Lets `spend` have the purses for a meter, which is that of the endpoint at `device`.
    #[inline]
    pub fn with<T>(&self, device: DeviceId, meter: &Meter, spend: impl FnOnce(&mut Purses) -> T) -> T {
        let mut purses = self.purses.borrow_mut();
        let place = usize::from(device.0);
        if purses.len() <= place {
            // Once for the largest number so far, not for a packet.
            purses.resize_with((place + 1).next_power_of_two(), Default::default);
        }
        let (filled_by, purses) = &mut purses[place];
        if *filled_by != meter.number {
            (*filled_by, *purses) = (meter.number, Purses::default());
        }
        spend(purses)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const RATE: TicksPerSecond = TicksPerSecond(2_500_000_000);
    const START: u64 = 77 << 40;

    fn only_egress(limit: Rate) -> Meter {
        Meter::new(Limits { egress_bytes: Some(limit), ..Limits::default() }, RATE)
    }

    /// How many bytes of a sender that always has more pass in `ticks`, in steps of `step`, through so many workers.
    fn greedy(meter: &Meter, workers: usize, ticks: u64, step: u64, len: u16) -> u64 {
        let mut purses = vec![Purses::default(); workers];
        let mut passed = 0;
        for (turn, at) in (START..START + ticks).step_by(step as usize).enumerate() {
            let purse = &mut purses[turn % workers];
            while meter.admit(purse, Way::Egress, 1, len.into(), Ticks(at)).is_ok() {
                passed += u64::from(len);
            }
        }
        passed
    }

    #[test]
    fn rates_from_a_megabit_to_a_hundred_gigabits_hold_within_one_in_a_hundred() {
        for (bits, burst) in
            [(1_000_000, 0), (1_000_000_000, 1 << 20), (10_000_000_000, 1 << 20), (100_000_000_000, 8 << 20)]
        {
            for workers in [1, 2, 7] {
                let limit = Rate::bits(bits, burst);
                let seconds = if bits < 10_000_000 { 60 } else { 1 };
                // The first round takes the burst, so that what follows is the rate alone.
                let meter = only_egress(limit);
                let burst = greedy(&meter, workers, 1, 1, 1500);
                let passed = burst + greedy_after(&meter, workers, seconds);
                let exact = limit.per_second * seconds + limit.burst.max(LONGEST_PACKET);
                let error = passed as f64 / exact as f64 - 1.0;
                assert!(error.abs() < 0.01, "{bits} bit/s, {workers} workers: {passed} of {exact} bytes");
            }
        }
    }

    fn greedy_after(meter: &Meter, workers: usize, seconds: u64) -> u64 {
        greedy(meter, workers, seconds * RATE.0, RATE.0 / 10_000, 1500)
    }

    #[test]
    fn a_burst_passes_at_once_and_then_the_rate_holds() {
        let limits = Limits { connections: Some(Rate { per_second: 1000, burst: 50 }), ..Limits::default() };
        let (meter, mut purses) = (Meter::new(limits, RATE), Purses::default());
        let mut pass = |ticks: u64| {
            (0..200).filter(|_| meter.admit_connection(&mut purses, Ticks(START + ticks)).is_ok()).count()
        };
        assert_eq!(pass(0), 50);
        assert_eq!(pass(RATE.0 / 100), 10);
        assert_eq!(pass(RATE.0 * 9), 50);
        assert_eq!(
            meter.admit_connection(&mut purses, Ticks(START + RATE.0 * 9)),
            Err(Exceeded::Connections)
        );
    }

    #[test]
    fn the_longest_packet_passes_a_small_bucket_and_nothing_a_rate_of_zero() {
        let mut purses = Purses::default();
        let meter = only_egress(Rate { per_second: 1000, burst: 0 });
        assert_eq!(meter.admit(&mut purses, Way::Egress, 1, u16::MAX.into(), Ticks(START)), Ok(()));
        assert_eq!(meter.admit(&mut purses, Way::Ingress, 1, u16::MAX.into(), Ticks(START)), Ok(()));
        assert!(meter.is_open(Way::Ingress) && !meter.is_open(Way::Egress));
        let closed = only_egress(Rate { per_second: 0, burst: 1 << 30 });
        let later = Ticks(START + 1000 * RATE.0);
        assert_eq!(closed.admit(&mut Purses::default(), Way::Egress, 1, 1, later), Err(Exceeded::Bandwidth));
    }

    #[test]
    fn a_packet_that_exceeds_one_limit_spends_none_of_the_other() {
        let limits = Limits {
            egress_packets: Some(Rate { per_second: 1, burst: 2 }),
            egress_bytes: Some(Rate { per_second: 1000, burst: 0 }),
            ..Limits::default()
        };
        let (meter, mut purses) = (Meter::new(limits, RATE), Purses::default());
        let mut send = |bytes| meter.admit(&mut purses, Way::Egress, 1, bytes, Ticks(START));
        assert_eq!(send(60_000), Ok(()));
        assert_eq!(send(60_000), Err(Exceeded::Bandwidth));
        assert_eq!(send(60_000), Err(Exceeded::Bandwidth));
        assert_eq!(send(1000), Ok(()));
        assert_eq!(send(1000), Err(Exceeded::Packets));
    }

    #[test]
    fn a_frame_of_more_segments_than_a_burst_passes_a_full_bucket_and_no_other() {
        let limits = Limits { ingress_packets: Some(Rate { per_second: 10, burst: 3 }), ..Limits::default() };
        let (meter, mut purses) = (Meter::new(limits, RATE), Purses::default());
        let mut send = |packets, seconds: u64| {
            let now = Ticks(START + seconds * RATE.0);
            meter.admit(&mut purses, Way::Ingress, packets, 1, now)
        };
        assert_eq!((send(44, 0), send(1, 0)), (Ok(()), Err(Exceeded::Packets)));
        assert_eq!((send(1, 1), send(44, 1), send(44, 2)), (Ok(()), Err(Exceeded::Packets), Ok(())));
    }

    /// Tokens as an exact fraction: in units of a token times a tick.
    struct Naive {
        tokens: u128,
        depth: u128,
        per_second: u128,
        last: u64,
    }

    impl Naive {
        fn new(limit: Rate) -> Naive {
            let depth = u128::from(limit.burst) * u128::from(RATE.0);
            Naive { tokens: depth, depth, per_second: limit.per_second.into(), last: START }
        }

        fn level(&mut self, now: u64) -> u128 {
            self.tokens = (self.tokens + self.per_second * u128::from(now - self.last)).min(self.depth);
            self.last = now;
            self.tokens / u128::from(RATE.0)
        }

        fn spend(&mut self, tokens: u64) {
            self.tokens = self.tokens.saturating_sub(u128::from(tokens) * u128::from(RATE.0));
        }
    }

    proptest! {
        #[test]
        fn one_worker_passes_what_an_exact_bucket_passes_but_for_a_portion(
            megabits in 1..20_000u64, burst in 66_000..2_000_000u64,
            packets in prop::collection::vec((0..3_000_000u64, 40..9000u16), 1..800),
        ) {
            let limit = Rate::bits(megabits * 1_000_000, burst);
            let (meter, mut purses) = (only_egress(limit), Purses::default());
            let mut naive = Naive::new(limit);
            let portion = u128::from(burst / PORTIONS + 1);
            let mut now = START;
            for (gap, len) in packets {
                now += gap;
                let level = naive.level(now);
                let passes = meter.admit(&mut purses, Way::Egress, 1, len.into(), Ticks(now)).is_ok();
                // Rounding moves the rate by less than one in a thousand; the level that is owed grows with it.
                let slack = portion * 2 + u128::from(len) + u128::from(burst) / 500 + 4000;
                if level >= u128::from(len) + slack {
                    prop_assert!(passes, "{} tokens, {} bytes refused", level, len);
                }
                if passes {
                    prop_assert!(level + slack >= u128::from(len), "{} tokens, {} bytes passed", level, len);
                    naive.spend(len.into());
                }
            }
        }

        #[test]
        fn workers_together_never_pass_more_than_rate_burst_and_their_purses(
            per_second in 100..5_000_000u64, burst in 1..10_000u64, workers in 1..8usize,
            asks in prop::collection::vec((0..200_000u64, 0..8usize, 1..5u16), 1..1500),
        ) {
            let limits = Limits { ingress_packets: Some(Rate { per_second, burst }), ..Limits::default() };
            let meter = Meter::new(limits, RATE);
            let mut purses = vec![Purses::default(); workers];
            let (mut now, mut passed) = (START, 0);
            for (gap, worker, packets) in asks {
                now += gap;
                if meter.admit(&mut purses[worker % workers], Way::Ingress, u32::from(packets), 1, Ticks(now)).is_ok() {
                    passed += u64::from(packets);
                }
                let portion = (burst / PORTIONS).max(1);
                let earned = u128::from(now - START) * u128::from(per_second) / u128::from(RATE.0);
                let most = earned as u64 * 1002 / 1000 + burst + portion * (workers as u64 + 1);
                prop_assert!(passed <= most, "{} of at most {}", passed, most);
            }
        }
    }

    #[test]
    fn a_purse_is_not_inherited_with_the_devices_number() {
        let limits = |per_second| Limits {
            egress_packets: Some(Rate { per_second, burst: 64 * 100 }),
            ..Limits::default()
        };
        let (rich, closed) = (Meter::new(limits(1000), RATE), Meter::new(limits(0), RATE));
        let wallet = Wallet::default();
        let send = |meter: &Meter| {
            wallet.with(DeviceId(3), meter, |purses| meter.admit(purses, Way::Egress, 1, 1, Ticks(START)))
        };
        assert_eq!((send(&rich), send(&closed)), (Ok(()), Err(Exceeded::Packets)));
    }

    #[test]
    fn workers_on_threads_share_one_bucket() {
        let meter = Meter::new(
            Limits { connections: Some(Rate { per_second: 1000, burst: 10_000 }), ..Limits::default() },
            RATE,
        );
        let passed: usize = std::thread::scope(|scope| {
            let worker = || {
                let mut purses = Purses::default();
                (0..20_000).filter(|_| meter.admit_connection(&mut purses, Ticks(START)).is_ok()).count()
            };
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(worker)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        // 10000 in portions of 156: the bucket rounds up to whole portions.
        assert!((10_000..10_156).contains(&passed), "{passed}");
    }
}
