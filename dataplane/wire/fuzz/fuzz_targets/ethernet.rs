//! See `penstock_wire::fuzzing::ethernet`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| penstock_wire::fuzzing::ethernet(bytes));
