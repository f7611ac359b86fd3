//! The other side of a device, for tests: a pod in this process, with its front-end and its driver.
//!
//! ```text
//!   smoltcp ── device ── Pod ── queue ── ring (split, packed) ── area    memory that both sides map
//!                         │
//!                         └── messenger ── message, request              the session's socket
//! ```
//!
//! It shares no code with the device's side, feature bits and layouts included, so that the two check each other. It is
//! made for clarity: a packet costs allocations.

mod area;
mod device;
mod messenger;
mod packed;
mod pod;
mod queue;
mod ring;
mod split;

pub mod bits;
pub mod message;
pub mod request;

pub use area::Area;
pub use device::{Received, Sending};
pub use message::RegionRow;
pub use messenger::{HEADER, Messenger, NEED_REPLY, REPLY, VERSION, header};
pub use packed::PackedRing;
pub use pod::{Pod, PodConfig, PodError, answer, dial};
pub use queue::{Layout, NET_HEADER, NetHeader, Packet};
pub use ring::{Buffer, Ring, RingAddresses, RingOptions, Used};
pub use split::SplitRing;
