//! Connections: who speaks with whom, in both directions, how far they are, and how their addresses are translated.
//!
//! ```text
//!  packet -> Tuple -> Table::find -> (ConnectionRef, Direction) -> Table::view -> Connection: what the packet becomes
//!                         | none                                   Table::advance(packet): the life cycle
//!                         v
//!              policy, services, routes -> Opening -> Table::create, or nat::open with a source port of a pool
//!
//!  index (private): bucket = { lock | spilled }, 14 x { tag, direction, entry }      rebuilt when a table is adopted
//!  entries (shared): 128 bytes = { control, original tuple, life, decision | reply tuple, parties, uses, receiver }
//! ```
//!
//! One table serves the node. Readers never lock; writers lock the one bucket that a tuple is at home in, and only to
//! create. An entry's tuples never change while it lives, and what changes is one word each, so a writer that is killed
//! anywhere leaves an entry that is either whole or not there. No clock is read here: [`Seconds`] are handed in, and
//! everything but opening a table works without allocation.

mod adopt;
mod census;
mod entry;
pub mod fragments;
mod index;
pub mod life;
pub mod nat;
pub mod related;
pub mod sctp;
mod shares;
pub mod table;
pub mod tcp;
mod tuple;
mod upkeep;
mod words;

// Two attributes each: clippy knows a test module by `cfg(test)` alone.
#[cfg(test)]
#[cfg(not(penstock_loom))]
mod churn;
#[cfg(test)]
#[cfg(not(penstock_loom))]
mod crash;
#[cfg(test)]
#[cfg(penstock_loom)]
mod loom_model;
#[cfg(test)]
#[cfg(not(penstock_loom))]
mod model;
#[cfg(test)]
#[cfg(not(penstock_loom))]
mod nat_model;
#[cfg(test)]
#[cfg(not(penstock_loom))]
mod oracle;

pub use adopt::Adoption;
pub use census::Counts;
pub use entry::{Connection, ConnectionRef, Decision, Parties};
pub use life::{Invalid, Packet, Seconds, Settings, State, Status, Timeouts};
pub use sctp::Chunks;
pub use shares::{Fate, Limits, Owner, Resettled, Share};
pub use table::{Match, Opening, Plan, Refused, Table, WorkerId};
pub use tuple::{Direction, HashSeed, NetworkId, Tuple};
pub use upkeep::{Progress, Swept};
pub use words::Memory;
