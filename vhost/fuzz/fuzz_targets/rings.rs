//! See `penstock_vhost::fuzzing::rings`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| penstock_vhost::fuzzing::rings(bytes));
