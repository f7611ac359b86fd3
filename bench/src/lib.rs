//! Traffic, nodes in memory, peers and measurements: the parts of `penstock-bench` and of the benches.

#![forbid(unsafe_code)]

mod args;
pub mod churn;
pub mod command;
mod compare;
pub mod cycles;
pub mod document;
mod forwarder;
pub mod instructions;
pub mod live;
pub mod machine;
pub mod micro;
pub mod node;
pub mod overlay;
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
