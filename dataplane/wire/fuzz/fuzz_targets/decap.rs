//! See `penstock_wire::fuzzing::decap`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| penstock_wire::fuzzing::decap(bytes));
