//! The meters of endpoints with limits: an endpoint keeps its meter for as long as its limits are the same.

use std::collections::HashMap;
use std::sync::Arc;

use penstock_api::model;
use penstock_io::TicksPerSecond;

use super::desired::Desired;
use crate::meter::{Limits, Meter, Rate};

/// Meters by the endpoint's name.
pub(super) type Meters = HashMap<String, Arc<Meter>>;

/// Of a limit's second, what may pass at once where no burst is told: a tenth.
const BURST_PART: u64 = 10;

/// The meters of a configuration; those of `before` go on where limits did not change.
pub(super) fn meters_of(desired: &Desired, before: &Meters, rate: TicksPerSecond) -> Meters {
    let limited = desired.endpoints().filter_map(|endpoint| Some((endpoint, limits_of(&endpoint.limits?)?)));
    let meters = limited.map(|(endpoint, limits)| {
        let known = before.get(endpoint.name.as_str()).filter(|meter| *meter.limits() == limits);
        let meter = known.cloned().unwrap_or_else(|| Arc::new(Meter::new(limits, rate)));
        (endpoint.name.to_string(), meter)
    });
    meters.collect()
}

/// Limits in the words of the meter; `None` where no rate is limited.
fn limits_of(told: &model::Limits) -> Option<Limits> {
    let bytes = |bits: Option<u64>| {
        bits.map(|bits| Rate::bits(bits, told.burst_bytes.unwrap_or(bits.div_ceil(8 * BURST_PART))))
    };
    let packets = told.packets_per_second.map(|packets| {
        let per_second = u64::from(packets);
        Rate { per_second, burst: per_second.div_ceil(BURST_PART) }
    });
    // A program that starts opens many connections at once: they may have a second's worth of them.
    let connections = told.connections_per_second.map(|connections| {
        let per_second = u64::from(connections);
        Rate { per_second, burst: per_second }
    });
    let limits = Limits {
        ingress_bytes: bytes(told.ingress_bits_per_second),
        egress_bytes: bytes(told.egress_bits_per_second),
        ingress_packets: packets,
        egress_packets: packets,
        connections,
    };
    (limits != Limits::default()).then_some(limits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_a_tenth_of_a_second_unless_told() {
        let told = model::Limits { egress_bits_per_second: Some(80_000_000), ..model::Limits::default() };
        let burst = |told: &model::Limits| limits_of(told).unwrap().egress_bytes.unwrap();
        assert_eq!(burst(&told), Rate { per_second: 10_000_000, burst: 1_000_000 });
        let told = model::Limits { burst_bytes: Some(5000), ..told };
        assert_eq!(burst(&told).burst, 5000);
    }

    #[test]
    fn a_number_of_connections_is_no_rate() {
        let told = model::Limits { max_connections: Some(7), ..model::Limits::default() };
        assert_eq!(limits_of(&told), None);
    }
}
