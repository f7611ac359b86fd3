//! vhost-user network devices: pods and virtual machines that are attached by shared memory.
//!
//! ```text
//!  front-end (QEMU, a DPDK application)                 this process
//!
//!  socket: messages, descriptors  <-->  session, a small thread of its own
//!                                          | PairSetup: memory, features, rings, log     ^ where the rings stand,
//!                                          v            (handover)                       | RingFault
//!  guest memory: rings, packets   <-->  VhostPort, one per queue pair, owned by one worker
//!                                          ring: chains of buffers, checked <-> packet: header and copy <-> Frame
//! ```
//!
//! What a guest says is read once and checked once (`ring`, `memory`); a ring that lies stops with a reason, and everybody
//! else goes on. A file that is truncated behind its mapping reads as zeros (`memory::guard`).

mod bell;
mod copy;
#[cfg(feature = "driver")]
pub mod driver;
pub mod features;
#[cfg(any(test, feature = "driver"))]
#[doc(hidden)]
pub mod fuzzing;
pub mod handover;
mod header;
pub mod inflight;
pub mod log;
pub mod memory;
#[cfg(any(test, feature = "driver"))]
#[doc(hidden)]
pub mod naive;
mod packet;
mod port;
pub mod ring;
pub mod session;

pub use bell::Doorbell;
pub use handover::{Bases, Intake, PairSetup, RingSetup, StopError, Switch, handover};
pub use memory::{GuestMemory, MemoryError, RegionSetup};
pub use port::VhostPort;
pub use ring::{Lie, RingFault, Side};
pub use session::{Session, SessionConfig};
