//! Traffic, nodes in memory, peers and measurements for the benches.

#![forbid(unsafe_code)]

pub mod contest;
pub mod cycles;
pub mod peers;
pub mod scenario;
pub mod stateful;
pub mod traffic;
pub mod windows;
