//! Addresses of services of the type LoadBalancer: which service has which, and which node says on its link that they are
//! there.
//!
//! ```text
//!  Service ──> claim ──┐
//!                      ├──> assign ──> status of the service      (one agent of the cluster)
//!  IPPool ───> pool ───┘
//!  addresses, nodes ──> elect ──> announce: ARP and NDP            (every agent, for what it is elected for)
//! ```

pub mod announce;
pub mod assign;
pub mod claim;
pub mod elect;
pub mod pool;

pub use announce::{AnnounceError, Announcer};
pub use assign::{Assignment, Refusal, assign};
pub use claim::{Claim, Unclear};
pub use elect::elected;
pub use pool::Pool;
