//! vhost-user network devices: pods and virtual machines that are attached by shared memory.

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

pub use handover::{Bases, Doorbell, Intake, PairSetup, RingSetup, StopError, Switch, handover};
pub use memory::{GuestMemory, MemoryError, RegionSetup};
pub use port::VhostPort;
pub use ring::{Lie, RingFault, Side};
pub use session::{Session, SessionConfig};
