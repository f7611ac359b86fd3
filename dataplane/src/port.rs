//! The closed set of ports that a worker can own.

use std::os::fd::BorrowedFd;

use penstock_io::mem::MemPort;
use penstock_io::pcap::PcapPort;
use penstock_io::tap::TapPort;
use penstock_io::xsk::{XdpStatistics, XskPort};
use penstock_io::{Abilities, Burst, FramePool, Port, PortCounters, PortFault};
use penstock_vhost::VhostPort;

use crate::flow::DeviceId;

/// A port queue's number; it is never used again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortId(pub u32);

/// One queue of one device, of whichever kind: a match instead of a virtual call per burst.
pub enum AnyPort {
    /// An AF_XDP socket.
    Xsk(Box<XskPort>),
    /// A queue of a tap.
    Tap(Box<TapPort>),
    /// Memory.
    Mem(Box<MemPort>),
    /// Capture files.
    Pcap(Box<PcapPort>),
    /// A queue pair of a vhost-user device.
    Vhost(Box<VhostPort>),
}

macro_rules! each {
    ($any:expr, $port:ident => $body:expr) => {
        match $any {
            AnyPort::Xsk($port) => $body,
            AnyPort::Tap($port) => $body,
            AnyPort::Mem($port) => $body,
            AnyPort::Pcap($port) => $body,
            AnyPort::Vhost($port) => $body,
        }
    };
}

impl AnyPort {
    /// The adapter's name.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            AnyPort::Xsk(_) => "xsk",
            AnyPort::Tap(_) => "tap",
            AnyPort::Mem(_) => "mem",
            AnyPort::Pcap(_) => "pcap",
            AnyPort::Vhost(_) => "vhost-user",
        }
    }

    /// What the kernel counts for an AF_XDP socket.
    #[must_use]
    pub fn xdp_statistics(&self) -> Option<XdpStatistics> {
        match self {
            AnyPort::Xsk(port) => port.statistics().ok(),
            AnyPort::Tap(_) | AnyPort::Mem(_) | AnyPort::Pcap(_) | AnyPort::Vhost(_) => None,
        }
    }
}

impl Port for AnyPort {
    #[inline(always)]
    fn rx_burst(&mut self, pool: &mut FramePool, into: &mut Burst) -> usize {
        each!(self, port => port.rx_burst(pool, into))
    }

    #[inline(always)]
    fn tx_burst(&mut self, pool: &mut FramePool, frames: &mut Burst) -> usize {
        each!(self, port => port.tx_burst(pool, frames))
    }

    #[inline(always)]
    fn settle(&mut self, pool: &mut FramePool) -> Result<(), PortFault> {
        each!(self, port => port.settle(pool))
    }

    fn abilities(&self) -> Abilities {
        each!(self, port => port.abilities())
    }

    fn counters(&self) -> PortCounters {
        each!(self, port => port.counters())
    }

    fn readiness(&self) -> Option<BorrowedFd<'_>> {
        each!(self, port => port.readiness())
    }

    fn with_kernel(&self) -> (u32, u32) {
        each!(self, port => port.with_kernel())
    }

    fn is_restless(&mut self) -> bool {
        each!(self, port => port.is_restless())
    }

    fn wake(&mut self) {
        each!(self, port => port.wake());
    }

    fn close(self, pool: &mut FramePool) {
        each!(self, port => port.close(pool));
    }
}

/// A port queue in its worker's hands.
pub struct OwnedPort {
    /// The queue's number.
    pub id: PortId,
    /// The device that it is a queue of.
    pub device: DeviceId,
    /// The queue itself.
    pub port: AnyPort,
}
