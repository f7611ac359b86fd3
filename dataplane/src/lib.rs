//! The engine and its daemon penstockd.

#![forbid(unsafe_code)]

pub mod kernel;
