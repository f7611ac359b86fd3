//! See `penstock_wire::fuzzing::rewrite`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| penstock_wire::fuzzing::rewrite(bytes));
