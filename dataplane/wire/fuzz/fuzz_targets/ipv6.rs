//! See `penstock_wire::fuzzing::ipv6`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| penstock_wire::fuzzing::ipv6(bytes));
