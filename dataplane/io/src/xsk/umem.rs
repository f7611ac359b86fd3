//! Which bound sockets lend their UMEM to the next one.
//!
//! A [`Region`] is registered with the kernel by the first socket that binds; every later one binds with
//! `XDP_SHARED_UMEM` and names any socket that is bound. Two things about that are the kernel's
//! (`xsk_bind` and `xp_assign_dev_shared`, checked on 6.18):
//!
//! * A socket that shares takes no flags of its own: whether it copies, whether it wants wake-ups and whether its packets
//!   may lie in several chunks is the UMEM's. One UMEM therefore serves zero-copy devices or copying ones, never both (a veth cannot bind to the UMEM of a zero-copy
//!   NIC). The region is registered once for each of the two; a frame still moves between them by its number, because
//!   both registrations pin the same memory at the same addresses.
//! * Different devices, queues and network namespaces may share: each (device, queue) has fill and completion rings of
//!   its own.

use std::os::fd::RawFd;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::region::Region;
use crate::xsk::Transfer;

/// A bound socket: the registry names it by number, so that it alone decides when it closes.
struct Lender {
    fd: RawFd,
    region: usize,
    mode: Mode,
    /// Interface and queue that it is bound to.
    place: (u32, u32),
}

/// What a UMEM, and so every socket that shares it, was bound for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mode {
    /// How packets get between the device and the chunks.
    pub(crate) transfer: Transfer,
    /// Whether a packet may lie in several chunks.
    pub(crate) chains: bool,
}

/// The bound sockets of this process. Held while a socket binds, so that a lender does not close meanwhile.
pub(crate) struct Lenders(Vec<Lender>);

static LENDERS: Mutex<Lenders> = Mutex::new(Lenders(Vec::new()));

impl Lenders {
    /// Waits for other sockets' binds and closes.
    pub(crate) fn lock() -> MutexGuard<'static, Lenders> {
        LENDERS.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A socket whose UMEM is `region`, in the same mode, but not one on the very queue (`place`) that is to be bound: with
    /// that the kernel would take it for a second socket on the same rings.
    pub(crate) fn find(&self, region: &Region, mode: Mode, place: (u32, u32)) -> Option<RawFd> {
        let region = region.base().as_ptr() as usize;
        let fits = |lender: &&Lender| lender.region == region && lender.mode == mode && lender.place != place;
        self.0.iter().find(fits).map(|lender| lender.fd)
    }

    pub(crate) fn add(&mut self, fd: RawFd, region: &Region, mode: Mode, place: (u32, u32)) {
        self.0.push(Lender { fd, region: region.base().as_ptr() as usize, mode, place });
    }

    pub(crate) fn remove(&mut self, fd: RawFd) {
        self.0.retain(|lender| lender.fd != fd);
    }
}
