//! Traffic, nodes in memory, peers and measurements: the parts of `penstock-bench` and of the benches.

#![forbid(unsafe_code)]

mod args;
pub mod command;
pub mod contest;
pub mod cycles;
pub mod document;
pub mod machine;
pub mod node;
pub mod peers;
pub mod profile;
mod progress;
pub mod report;
pub mod scenario;
pub mod search;
pub mod stateful;
pub mod statistics;
pub mod traffic;
pub mod trial;
pub mod validity;
pub mod windows;
