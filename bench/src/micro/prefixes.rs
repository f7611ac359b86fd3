//! Longest prefixes: ours, DPDK's FIB library, and the kernel's map for eBPF programs.

use std::fmt::Write;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use libbpf_rs::{MapCore, MapFlags, ObjectBuilder, ProgramInput};
use penstock_dataplane::tables::lpm::{LeftAligned, Lpm, key_of};
use penstock_io::{BURST, TicksPerSecond};

use super::{ENVIRONMENT, cycles};
use crate::document::Lookup;
use crate::peers::PeerError;
use crate::peers::lab::{Lab, run};
use crate::profile::counted;
use crate::traffic::Dice;

/// Addresses that are asked for, each below some prefix: more than the branch predictor learns by heart.
const QUESTIONS: usize = 1 << 16;
/// Addresses that the eBPF program asks for in one run.
const ASKED: u32 = 256;
/// How often it runs.
const RUNS: u32 = 2_000;

/// Prefixes in 10.0.0.0/8, of 16 to 28 bits, and addresses below them.
fn table(count: usize) -> (Vec<Ipv4Net>, Vec<Ipv4Addr>) {
    let mut dice = Dice::new(1);
    let mut nets = std::collections::BTreeSet::new();
    while nets.len() < count {
        // Most of many are long: there are but 256 prefixes of 16 bits.
        let len = 28 - dice.below(13).min(dice.below(13)) as u8;
        let address = Ipv4Addr::from(0x0a00_0000 | dice.below(1 << 24) as u32);
        nets.insert(Ipv4Net::new(address, len).expect("at most 32 bits").trunc());
    }
    let nets: Vec<Ipv4Net> = nets.into_iter().collect();
    let below = |dice: &mut Dice| {
        let net = nets[dice.below(nets.len() as u64) as usize];
        Ipv4Addr::from(u32::from(net.network()) | dice.roll() as u32 & u32::from(net.hostmask()))
    };
    let questions = (0..QUESTIONS).map(|_| below(&mut dice)).collect();
    (nets, questions)
}

/// Look-ups among so many prefixes.
///
/// # Errors
/// When a peer is missing.
pub fn prefixes(count: usize) -> Result<Vec<Lookup>, PeerError> {
    let (nets, questions) = table(count);
    let title = format!("longest IPv4 prefix of {}", counted(count as u32));
    let row = |contender: &str, cycles, note: &str| Lookup {
        title: title.clone(),
        contender: contender.into(),
        cycles,
        note: note.into(),
    };
    let lab = Lab::new(&["lpm"])?;
    Ok(vec![
        row(
            "Penstock's poptrie",
            ours(&nets, &questions),
            &format!("addresses in a random order, bursts of {BURST}"),
        ),
        row(
            "DPDK's rte_fib",
            fib(&lab, &nets, &questions)?,
            "dpdk-test-fib, dir24_8, scalar: the same prefixes and addresses",
        ),
        row(
            "the kernel's BPF_MAP_TYPE_LPM_TRIE",
            kernel(&lab, &nets, &questions)?,
            "look-ups in an eBPF program (BPF_PROG_TEST_RUN), each with one in an array for its address",
        ),
    ])
}

fn ours(nets: &[Ipv4Net], questions: &[Ipv4Addr]) -> f64 {
    let values =
        nets.iter().zip(1u32..).map(|(&net, value)| (LeftAligned::from(ipnet::IpNet::V4(net)), value));
    let lpm = Lpm::build(values);
    let keys: Vec<u128> = questions.iter().map(|&address| key_of(address.into())).collect();
    let mut bursts = keys.as_chunks::<BURST>().0.iter().cycle();
    cycles(|_| {
        if let Some(keys) = bursts.next() {
            std::hint::black_box(keys.map(|key| lpm.look_up(key)));
        }
    })
}

fn fib(lab: &Lab, nets: &[Ipv4Net], questions: &[Ipv4Addr]) -> Result<f64, PeerError> {
    let (mut routes, mut addresses) = (String::new(), String::new());
    for (net, hop) in nets.iter().zip(0u32..) {
        // A string takes all that is written to it.
        let _ = writeln!(routes, "{net} {}", hop % 200);
    }
    for address in questions {
        let _ = writeln!(addresses, "{address}");
    }
    let [routes_at, addresses_at] =
        [("routes", routes), ("addresses", addresses)].map(|(name, text)| (lab.path(name), text));
    for (path, text) in [&routes_at, &addresses_at] {
        std::fs::write(path, text).map_err(|source| PeerError::File { path: path.clone(), source })?;
    }
    let [routes, addresses] = [routes_at.0, addresses_at.0].map(|path| path.display().to_string());
    let own = ["--", "-f", &routes, "-t", &addresses, "-v", "s1", "-g", "65535"];
    let said = run("dpdk-test-fib", &[&ENVIRONMENT[..], &own].concat())?;
    looked_up(&said).ok_or(PeerError::Idle { peer: "dpdk-test-fib", log: said })
}

/// `AVG FIB lookup 92.1`.
fn looked_up(said: &str) -> Option<f64> {
    said.lines().find_map(|line| line.trim().strip_prefix("AVG FIB lookup ")?.trim().parse().ok())
}

/// The eBPF program: it asks for some addresses in a row, from where it stopped the last time.
fn program(prefixes: usize) -> String {
    format!(
        "#define SEC(name) __attribute__((section(name), used))\n\
         struct key {{ unsigned len; unsigned address; }};\n\
         struct {{ int (*type)[11]; int (*max_entries)[{prefixes}]; int (*map_flags)[1]; struct key *key; unsigned *value; }} \
         routes SEC(\".maps\");\n\
         struct {{ int (*type)[2]; int (*max_entries)[{QUESTIONS}]; unsigned *key; unsigned *value; }} questions SEC(\".maps\");\n\
         static void *(*look_up)(void *map, const void *key) = (void *)1;\n\
         unsigned next = 0;\n\
         SEC(\"xdp\") int ask(void *context) {{\n  \
         for (int i = 0; i < {ASKED}; i++) {{\n    \
         unsigned at = (next + i) & {};\n    \
         unsigned *address = look_up(&questions, &at);\n    \
         if (!address) return 0;\n    \
         struct key key = {{ 32, *address }};\n    \
         if (!look_up(&routes, &key)) return 1;\n  }}\n  \
         next += {ASKED};\n  return 2;\n}}\n\
         char _license[] SEC(\"license\") = \"GPL\";\n",
        QUESTIONS - 1
    )
}

fn kernel(lab: &Lab, nets: &[Ipv4Net], questions: &[Ipv4Addr]) -> Result<f64, PeerError> {
    let [source, object] = ["lpm.c", "lpm.o"].map(|name| lab.path(name));
    std::fs::write(&source, program(nets.len()))
        .map_err(|fault| PeerError::File { path: source.clone(), source: fault })?;
    let [from, to] = [&source, &object].map(|path| path.display().to_string());
    run("clang", &["-O2", "-g", "-target", "bpf", "-c", "-o", &to, &from])?;
    let refused =
        |fault: libbpf_rs::Error| PeerError::Refused { command: "bpf()".into(), said: fault.to_string() };
    let open = ObjectBuilder::default().open_file(&object).map_err(refused)?;
    let loaded = open.load().map_err(refused)?;
    for map in loaded.maps() {
        let name = map.name().to_string_lossy().into_owned();
        if name == "routes" {
            for (net, value) in nets.iter().zip(1u32..) {
                let key = [&u32::from(net.prefix_len()).to_ne_bytes()[..], &net.network().octets()].concat();
                map.update(&key, &value.to_ne_bytes(), MapFlags::ANY).map_err(refused)?;
            }
        } else if name == "questions" {
            for (address, at) in questions.iter().zip(0u32..) {
                map.update(&at.to_ne_bytes(), &address.octets(), MapFlags::ANY).map_err(refused)?;
            }
        }
    }
    let program = loaded.progs_mut().next().ok_or(PeerError::Waited { what: "the eBPF program" })?;
    let frame = [0u8; 64];
    let input = ProgramInput { data_in: Some(&frame), repeat: RUNS, ..ProgramInput::default() };
    let output = program.test_run(input).map_err(refused)?;
    // XDP_PASS says that all were found.
    if output.return_value != 2 {
        return Err(PeerError::Idle {
            peer: "the kernel's prefix map",
            log: "an address was not found".into(),
        });
    }
    let rate = TicksPerSecond::measure(std::time::Duration::from_millis(20)).0 as f64;
    Ok(output.duration.as_secs_f64() * rate / f64::from(ASKED))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_question_has_an_answer_among_the_prefixes() {
        let (nets, questions) = table(1000);
        assert_eq!(nets.len(), 1000);
        assert!(questions.iter().step_by(611).all(|address| nets.iter().any(|net| net.contains(address))));
    }

    #[test]
    fn the_cost_is_read_from_what_dpdk_prints() {
        assert_eq!(looked_up("Lookup tuples: 1000\nAVG FIB lookup 92.1\nAVG FIB delete 5\n"), Some(92.1));
        assert_eq!(looked_up("Can not init lookup function\n"), None);
    }
}
