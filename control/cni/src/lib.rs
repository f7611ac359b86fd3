//! What the CNI plugin and the node's agent say to each other, and what the plugin does by itself.
//!
//! ```text
//!  runtime --environment, stdin--> plugin: names and config checked --one line of JSON--> agent (unix socket)
//!          <-stdout: result, as old as asked for-- delegated IPAM run here <--one line--
//! ```
//!
//! The plugin keeps nothing and touches no interface: addresses, plumbing and the dataplane are the agent's.

#![forbid(unsafe_code)]

pub mod config;
pub mod delegate;
pub mod environment;
pub mod failure;
pub mod protocol;
pub mod result;
pub mod verbs;
pub mod version;
