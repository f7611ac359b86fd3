//! Attaching pods: what the CNI plugin asks for is planned, written down, done, and undone when it fails or is to go.
//!
//! ```text
//!  plugin ──line──> server ──> Attacher ──plan──> ledger (begun) ──> interface ──> dataplane, live ──> addresses ──> ledger (complete)
//!                                  └── undo, from the ledger's record alone: DEL, GC, a failure, a crash in between
//! ```
//!
//! A container's interface comes up only once the dataplane has it, its policies included, on every worker: nothing that
//! the container sends goes by another way.

mod actions;
mod attacher;
mod cards;
mod check;
mod dataplane;
mod keepsakes;
mod ledger;
mod netns;
mod plan;
mod record;
mod server;
mod shared;
mod sockets;
mod sriov;

pub use actions::{FaultPoint, FaultPoints};
pub use attacher::{Attacher, FromPools, Ground, NoPods, Pods, Settings};
pub use cards::{Cards, FunctionState, KernelCards, Setting};
pub use dataplane::{Dataplane, DataplaneError, Direct, NetworkFacts, PortState};
pub use ledger::{Ledger, LedgerError};
pub use netns::{LinkError, Links, Namespace};
pub use plan::{Folders, Footprint, Plan, PodFacts};
pub use record::{Holding, Pod, Record, RecordKey, Wiring};
pub use server::{ServeError, Server};
pub(crate) use shared::VOLUME as SHARED_VOLUME;
pub use sriov::{Functions, Handed};
