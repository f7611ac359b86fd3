//! Addresses: which are given, to whom, and which comes next.
//!
//! ```text
//!  ranges (as host-local writes them) ──┐
//!  addresses asked for ─────────────────┼──> Book::take ──> addresses, each somebody's ──> the ledger of attachments
//!  what is given already ───────────────┘
//! ```
//!
//! Nothing here is kept on disk: a book is made from the ledger's records, so an address cannot outlive its record. Pools are
//! many nodes' together: their blocks are kept where all of them can write, at the API server.

pub mod blocks;
mod book;
mod memory;
mod ranges;
mod server;

pub use book::{Book, Granted, IpamFault, Wanted};
pub use memory::{FileBlocks, MemoryBlocks};
pub use ranges::{RangeFault, RangeSet, Span};
pub use server::{ServerBlocks, Sight, Unreadable};
