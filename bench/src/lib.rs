//! Traffic and measurements for the benches: flows made once, and a clock of time-stamp counter cycles.

#![forbid(unsafe_code)]

pub mod traffic;
