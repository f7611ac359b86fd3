//! Time-stamp counter cycles a packet from one vhost-user guest to another: taken from the one's ring, given to the other's.
//!
//! `cargo bench -p penstock-bench --bench vhost -- [FILTER]`; an iteration is a packet. The guests' own work is left out: they
//! are played on the same core between the bursts, so rings and packets are in its cache. What it costs to have them on
//! another core is measured with real peers, see `--bench peers`.

#![allow(missing_docs, clippy::unwrap_used)]

use std::time::Duration;

use criterion::{BenchmarkId, Criterion, SamplingMode, criterion_group, criterion_main};
use penstock_bench::cycles::Cycles;
use penstock_io::{BURST, Burst, FramePool, Hugepages, Port, Region, Ticks};
use penstock_vhost::features::{EVENT_IDX, INDIRECT_DESC, MRG_RXBUF, RING_PACKED, VERSION_1};
use penstock_vhost::naive::{Arena, Driver, Layout, PackedDriver, SplitDriver, Told};
use penstock_vhost::{PairSetup, Switch, VhostPort, handover};

/// Entries of each ring, and bytes of each buffer.
const SIZE: u16 = 256;
const BUFFER: u64 = 2048;
/// Bytes of the header in front of a packet.
const HEADER: u64 = 12;

/// A guest with one of its queues, and the port that serves it.
struct Guest {
    arena: Arena,
    driver: Box<dyn Driver>,
    port: VhostPort,
    /// The session's end: the pair is served for as long as it is there.
    _switch: Switch,
    /// The buffer that is offered next.
    next: u64,
}

impl Guest {
    fn new(features: u64, sends: bool, pool: &mut FramePool) -> Guest {
        let arena = Arena::new(BUFFER * (2 * u64::from(SIZE) + 16)).unwrap();
        let layout = Layout::at(0, SIZE);
        let driver: Box<dyn Driver> = if features & RING_PACKED != 0 {
            Box::new(PackedDriver::new(&arena, layout, 0, true))
        } else {
            Box::new(SplitDriver::new(&arena, layout, 0))
        };
        let ring = Some(layout.setup(driver.base()));
        let (rx, tx) = if sends { (ring, None) } else { (None, ring) };
        let (switch, intake) = handover("guest").unwrap();
        let mut port = VhostPort::new(intake).unwrap();
        switch.start(PairSetup { memory: arena.memory().unwrap(), features, rx, tx, log: None });
        port.settle(pool).unwrap();
        Guest { arena, driver, port, _switch: switch, next: 0 }
    }

    /// Takes back what was used, and offers a burst of buffers again.
    fn offer(&mut self, len: u64, write: bool, indirect: bool) {
        while self.driver.collect(&self.arena).is_some() {}
        for _ in 0..BURST {
            let at = BUFFER * (16 + 2 * (self.next % u64::from(SIZE)));
            self.next += 1;
            let told = if indirect { Told::Indirect(at + BUFFER) } else { Told::Direct };
            let buffer = (at + 116, len as u32, write);
            assert!(self.driver.offer(&self.arena, &[buffer], told).is_some());
        }
    }
}

/// Two guests and what is between them.
struct Pair {
    from: Guest,
    to: Guest,
    pool: FramePool,
    burst: Burst,
    len: u64,
    indirect: bool,
}

impl Pair {
    fn new(features: u64, len: u64, indirect: bool) -> Pair {
        let mut pool = FramePool::new(Region::map(4096, Hugepages::Auto).unwrap());
        let (from, to) = (Guest::new(features, true, &mut pool), Guest::new(features, false, &mut pool));
        Pair { from, to, pool, burst: Burst::new(), len, indirect }
    }

    /// Takes a burst from one guest to the other; returns its cycles.
    fn forward(&mut self) -> u64 {
        self.from.offer(HEADER + self.len, false, self.indirect);
        self.to.offer(BUFFER - 128, true, false);
        let start = Ticks::now();
        let got = self.from.port.rx_burst(&mut self.pool, &mut self.burst);
        let sent = self.to.port.tx_burst(&mut self.pool, &mut self.burst);
        self.from.port.settle(&mut self.pool).unwrap();
        self.to.port.settle(&mut self.pool).unwrap();
        let cycles = Ticks::now().since(start);
        assert_eq!((got, sent), (BURST, BURST));
        cycles
    }

    /// Cycles of so many packets, had every burst cost what the median one did.
    fn cost(&mut self, packets: u64) -> u64 {
        let mut bursts: Vec<u64> =
            (0..packets.div_ceil(BURST as u64).max(1)).map(|_| self.forward()).collect();
        bursts.sort_unstable();
        (u128::from(bursts[bursts.len() / 2]) * u128::from(packets) / BURST as u128) as u64
    }
}

fn guest_to_guest(criterion: &mut Criterion<Cycles>) {
    let mut group = criterion.benchmark_group("vhost");
    group.sampling_mode(SamplingMode::Flat);
    let plain = VERSION_1 | INDIRECT_DESC | EVENT_IDX;
    let kinds = [
        ("split", plain, false),
        ("split-mergeable", plain | MRG_RXBUF, false),
        ("split-indirect", plain, true),
        ("packed", plain | RING_PACKED, false),
        ("packed-mergeable", plain | RING_PACKED | MRG_RXBUF, false),
    ];
    for (name, features, indirect) in kinds {
        for len in [64, 512, 1500] {
            let mut pair: Option<Pair> = None;
            group.bench_function(BenchmarkId::new(name, len), |bench| {
                // Made when the filter lets it run.
                let pair = pair.get_or_insert_with(|| Pair::new(features, len, indirect));
                bench.iter_custom(|packets| pair.cost(packets));
            });
        }
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .with_measurement(Cycles)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
        .sample_size(20)
        .without_plots();
    targets = guest_to_guest
}
criterion_main!(benches);
