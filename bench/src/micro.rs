//! Look-ups beside others of their kind, in the same tables with the same questions: longest prefixes, flows, rules.

pub mod prefixes;
pub mod rules;

use penstock_dataplane::flow::{Action, Cache, Coarse, DeviceId, Found, Key4, LinkId, Seed, ZoneId};
use penstock_dataplane::snapshot::Epoch;
use penstock_io::BURST;
use penstock_wire::parse::{Net, parse};

use crate::document::Lookup;
use crate::peers::PeerError;
use crate::peers::lab::Lab;
use crate::scenario;
use crate::traffic::shuffled;
use crate::windows::costs;

/// Rounds of a measurement, each of a burst.
const ROUNDS: u64 = 20_000;
/// Keys of DPDK's own measurement: three quarters of a table of 65,536.
const KEYS: u32 = 49_152;

/// How many times longer than anything else DPDK's measurement of its hash table may take.
const PATIENT: usize = 4;

/// The arguments of every DPDK program here, before its own.
const ENVIRONMENT: [&str; 8] =
    ["-l", "1", "--no-pci", "--in-memory", "--no-telemetry", "-m", "512", "--no-shconf"];

/// Cycles a look-up of ours: the median window of bursts.
fn cycles(burst: impl FnMut(penstock_io::Ticks)) -> f64 {
    costs(ROUNDS, burst).median as f64 / (ROUNDS * BURST as u64) as f64
}

/// Known flows: ours in bursts, and DPDK's hash table with keys of about the same length in bulk.
///
/// # Errors
/// When DPDK's program is missing.
pub fn flows() -> Result<Vec<Lookup>, PeerError> {
    let title = format!("known flow among {KEYS}");
    let ours = Lookup {
        title: title.clone(),
        contender: "Penstock's flow cache".into(),
        cycles: cached(),
        note: format!("bursts of {BURST} in a random order; hash, look-up and the count of the hit"),
    };
    let lab = Lab::new(&["hash"])?;
    let mut program = lab.start(0, "1", "dpdk-test", &ENVIRONMENT)?;
    program.wait_for(0, "RTE>>", 1)?;
    program.tell("hash_perf_autotest")?;
    let mut said = program.wait_for(0, "With pre-computed hash values", 1);
    // On a busy machine it takes minutes.
    for _ in 0..PATIENT {
        if matches!(said, Err(PeerError::Waited { .. })) {
            said = program.wait_for(0, "With pre-computed hash values", 1);
        }
    }
    let said = said?;
    let cycles = bulk(&said).ok_or_else(|| PeerError::Idle { peer: "dpdk-test", log: said.clone() })?;
    let theirs = Lookup {
        title,
        contender: "DPDK's rte_hash".into(),
        cycles,
        note: "dpdk-test hash_perf_autotest: keys of 13 bytes, looked up in bulk, hashes not computed before"
            .into(),
    };
    Ok(vec![ours, theirs])
}

/// The row of 13-byte keys: `13 618 544 197 1082` are its add, look-up, bulk look-up and delete.
fn bulk(said: &str) -> Option<f64> {
    let row = said.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    row.into_iter().find(|row| row.len() == 5 && row[0] == "13")?[3].parse().ok()
}

fn cached() -> f64 {
    let frames = scenario::frames(scenario::Path::Forward, KEYS);
    let key = |frame: &[u8]| match parse(frame).map(|parsed| parsed.net) {
        Ok(Net::V4(flow)) => Some(Key4::new(ZoneId::default(), &flow)),
        _ => None,
    };
    let keys: Vec<Key4> = shuffled(KEYS).iter().filter_map(|&flow| key(&frames[flow as usize])).collect();
    let mut cache = Cache::with_capacity(2 * keys.len(), Seed::random()).expect("memory for the cache");
    let action = Action::forward(DeviceId(1), LinkId(0), 1500);
    for key in &keys {
        cache.install(key, action, Epoch(1), Coarse(0));
    }
    let mut bursts = keys.as_chunks::<BURST>().0.iter().cycle();
    cycles(|_| {
        let Some(keys) = bursts.next() else { return };
        let hashes = keys.map(|key| cache.hash(&key));
        hashes.iter().for_each(|&hash| cache.touch(hash));
        let candidates = hashes.map(|hash| cache.candidate(hash));
        for lane in 0..BURST {
            if let Found::Current(index) = cache.find(&keys[lane], hashes[lane], candidates[lane], Epoch(1)) {
                std::hint::black_box(cache.count(index, 60, Coarse(0)));
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bulk_look_up_of_keys_like_ours_is_read() {
        let said = "Keysize  Add  Lookup  Lookup_bulk  Delete\n9   618  544  197  1082\n13   562   1000   211   1149\n";
        assert_eq!(bulk(said), Some(211.0));
        assert_eq!(bulk("nothing"), None);
    }

    #[test]
    fn known_flows_cost_cycles() {
        assert!(cached() > 1.0);
    }
}
