//! The engine of Penstock: workers that receive, think, send; tables that are published to them; and the control side.
//!
//! ```text
//!  port.rx -> parse -> flow cache --hit--> action ------------> port.tx
//!                          | miss            ^
//!                          v                 |
//!                      slowpath: zone -> route -> link -> install
//! ```

#![forbid(unsafe_code)]

mod capture;
pub mod config;
pub mod conntrack;
pub mod control;
pub mod drop;
pub mod flow;
mod hits;
pub mod idle;
mod join;
pub mod journal;
pub mod kernel;
pub mod ledger;
mod limiter;
mod local;
pub mod mailbox;
pub mod meter;
pub mod offload;
mod outputs;
mod pipeline;
pub mod port;
mod recognise;
mod served;
pub mod slowpath;
pub mod snapshot;
mod stateful;
pub mod stats;
pub mod supervisor;
pub mod tables;
mod tally;
#[doc(hidden)]
pub mod testbed;
mod tow;
pub mod tracker;
pub mod unwrap;
mod waiting;
pub mod worker;
