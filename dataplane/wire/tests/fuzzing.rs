//! A smoke of every fuzz target: random bytes, structured bytes, and inputs that once crashed one.

#![allow(clippy::unwrap_used, reason = "the leave for tests does not reach the functions beside them")]

mod common;

use common::any_frame;
use penstock_wire::encap::{DscpMode, EncapTemplate, OuterAddresses, OuterPath};
use penstock_wire::fuzzing::{TARGETS, Target};
use penstock_wire::geneve::GeneveOption;
use penstock_wire::{MacAddr, Vni, geneve, vxlan};
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

fn run_all(bytes: &[u8]) {
    for (_, target) in TARGETS {
        target(bytes);
    }
}

/// Where headers begin in plain, tagged and encapsulated frames; 12 puts an MTU in front of IPv4.
const STARTS: [usize; 9] = [0, 12, 14, 18, 34, 42, 50, 54, 62];

/// The frame inside a tunnel of either kind.
fn encapsulated(frame: &[u8], kind: u8) -> Vec<u8> {
    let path = OuterPath {
        src_mac: MacAddr(common::SENDER),
        dst_mac: MacAddr(common::GATEWAY),
        addresses: OuterAddresses::V4 { src: [192, 0, 2, 1].into(), dst: [192, 0, 2, 2].into() },
        dst_port: vxlan::PORT,
        ttl: 64,
        dscp: DscpMode::Copy,
        udp_checksum: false,
        inner_src_mac: MacAddr(common::SENDER),
        inner_dst_mac: MacAddr(common::GATEWAY),
    };
    let template = if kind & 1 == 0 {
        EncapTemplate::vxlan(&path, Vni::MAX)
    } else {
        let options = [GeneveOption { class: 1, kind, data: vec![kind; 4] }];
        EncapTemplate::geneve(&OuterPath { dst_port: geneve::PORT, ..path }, Vni::MAX, &options).unwrap()
    };
    let inner = frame.get(14..).unwrap_or_default();
    let mut head = vec![0; template.len()];
    template.write(&mut head, inner, inner.len() as u16, 0, 0x0800, 7);
    [&head[..], inner].concat()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2048))]

    #[test]
    fn random_bytes_do_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        run_all(&bytes);
    }

    #[test]
    fn structured_bytes_do_no_harm(frame in any_frame(), kind in any::<u8>(), changes in prop::collection::vec((0..100usize, any::<u8>()), 0..3)) {
        let mut tunnelled = encapsulated(&frame, kind);
        for (at, value) in changes {
            if let Some(byte) = tunnelled.get_mut(at) {
                *byte = value;
            }
        }
        for start in STARTS {
            run_all(frame.get(start..).unwrap_or_default());
            run_all(tunnelled.get(start..).unwrap_or_default());
        }
    }
}

fn fuzz_folder() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz"))
}

fn target_named(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|(known, _)| *known == name)
}

#[test]
fn inputs_that_once_crashed_a_target_do_no_more() {
    for folder in fs::read_dir(fuzz_folder().join("crashes")).unwrap().flatten() {
        if !folder.file_type().unwrap().is_dir() {
            continue;
        }
        let name = folder.file_name().into_string().unwrap();
        let (_, target) =
            target_named(&name).unwrap_or_else(|| panic!("fuzz/crashes/{name} is no target's folder"));
        for input in fs::read_dir(folder.path()).unwrap().flatten() {
            println!("{}", input.path().display());
            target(&fs::read(input.path()).unwrap());
        }
    }
}

#[test]
fn every_target_has_its_program() {
    let programs: BTreeSet<String> = fs::read_dir(fuzz_folder().join("fuzz_targets"))
        .unwrap()
        .map(|entry| entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned())
        .collect();
    let targets: BTreeSet<String> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(programs, targets);
    let manifest = fs::read_to_string(fuzz_folder().join("Cargo.toml")).unwrap();
    for name in targets {
        let program = fs::read_to_string(fuzz_folder().join(format!("fuzz_targets/{name}.rs"))).unwrap();
        assert!(program.contains(&format!("fuzzing::{name}(")), "{name}.rs runs its own target");
        assert!(manifest.contains(&format!("name = \"{name}\"\n")), "fuzz/Cargo.toml lists {name}");
    }
}
