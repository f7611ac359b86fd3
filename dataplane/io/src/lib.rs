//! Packet memory, bursts, ports and XDP steering: everything between the engine and the kernel.
//!
//! This crate and the vhost device are the only ones that hold `unsafe`. What they hand to the engine is safe to use:
//! a [`Frame`] is an exclusive token for one chunk of packet memory, a [`Burst`] is a short queue of them, and a
//! [`Port`] exchanges bursts with the world.

pub mod burst;
pub mod chain;
pub mod clock;
pub mod frame;
pub mod lanes;
pub mod mem;
pub mod netdev;
pub mod offload;
pub mod pages;
pub mod pcap;
pub mod pool;
pub mod port;
pub mod region;
pub mod shared;
pub mod steer;
pub mod tap;
pub mod virtio_net;
pub mod xsk;

pub use burst::{BURST, Burst};
pub use clock::{Ticks, TicksPerSecond};
pub use frame::{Frame, NoHeadroom, NoTailroom, TooShort};
pub use netdev::{Netdev, NetdevError};
pub use offload::{Abilities, Offload, Partial, SegmentKind, Segments};
pub use pool::FramePool;
pub use port::{Port, PortCounters, PortFault};
pub use region::{CHUNK, Census, HEADROOM, Hugepages, MapError, PageSize, Region};
pub use xsk::{XskConfig, XskError, XskPort};
