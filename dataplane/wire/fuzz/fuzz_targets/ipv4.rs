//! See `penstock_wire::fuzzing::ipv4`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| penstock_wire::fuzzing::ipv4(bytes));
