//! See `penstock_vhost::fuzzing::session`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| penstock_vhost::fuzzing::session(bytes));
