//! See `penstock_wire::fuzzing::dsr`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| penstock_wire::fuzzing::dsr(bytes));
