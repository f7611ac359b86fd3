//! Time-stamp counter cycles as what criterion measures, in the place of seconds.

use criterion::measurement::{Measurement, ValueFormatter};
use criterion::{BenchmarkGroup, BenchmarkId, Throughput};
use penstock_io::{BURST, Ticks};

use crate::windows::costs;

/// Cycles of the time-stamp counter.
pub struct Cycles;

impl Measurement for Cycles {
    type Intermediate = Ticks;
    type Value = u64;

    fn start(&self) -> Ticks {
        Ticks::now()
    }

    fn end(&self, start: Ticks) -> u64 {
        Ticks::now().since(start)
    }

    fn add(&self, a: &u64, b: &u64) -> u64 {
        a + b
    }

    fn zero(&self) -> u64 {
        0
    }

    fn to_f64(&self, value: &u64) -> f64 {
        *value as f64
    }

    fn formatter(&self) -> &dyn ValueFormatter {
        &Cycles
    }
}

impl ValueFormatter for Cycles {
    fn scale_values(&self, _typical: f64, _values: &mut [f64]) -> &'static str {
        "cycles"
    }

    fn scale_throughputs(&self, _typical: f64, throughput: &Throughput, values: &mut [f64]) -> &'static str {
        if let Throughput::Elements(count) = throughput {
            values.iter_mut().for_each(|value| *value /= *count as f64);
        }
        "cycles/packet"
    }

    fn scale_for_machines(&self, _values: &mut [f64]) -> &'static str {
        "cycles"
    }
}

/// Measures `burst`, which takes [`BURST`] packets through; an iteration is a packet.
pub fn measure(group: &mut BenchmarkGroup<'_, Cycles>, name: BenchmarkId, mut burst: impl FnMut(Ticks)) {
    group.bench_function(name, |bench| {
        bench.iter_custom(|packets| {
            let bursts = packets.div_ceil(BURST as u64);
            let cycles = costs(bursts, &mut burst).median;
            (u128::from(cycles) * u128::from(packets) / (u128::from(bursts) * BURST as u128)) as u64
        });
    });
}
