//! The driver's side of a virtqueue of either format: buffers are offered, used ones collected.

use std::collections::VecDeque;
use std::sync::Arc;

use super::area::Area;
use super::packed::PackedRing;
use super::split::SplitRing;

/// A descriptor goes on in the next one (virtio 1.2, `VIRTQ_DESC_F_NEXT`).
pub(super) const NEXT: u16 = 1;
/// The device writes to the buffer (`VIRTQ_DESC_F_WRITE`).
pub(super) const WRITE: u16 = 2;
/// The buffer is a table of descriptors (`VIRTQ_DESC_F_INDIRECT`).
pub(super) const INDIRECT: u16 = 4;
/// Bytes of a descriptor in both formats.
pub(super) const DESCRIPTOR: usize = 16;
/// Descriptors that an indirect table of ours has room for.
pub(super) const TABLE: usize = 64;

/// One buffer of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffer {
    /// Its guest physical address.
    pub address: u64,
    /// Its length in bytes.
    pub len: u32,
    /// Whether the device writes to it rather than reads.
    pub writable: bool,
}

/// A chain that the device is done with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Used {
    /// The number that the offer gave.
    pub id: u16,
    /// Bytes that the device says it wrote.
    pub len: u32,
}

/// What a ring is made with.
#[derive(Clone, Copy, Debug)]
pub struct RingOptions {
    /// Descriptors; a power of two for a split ring.
    pub size: u16,
    /// Packed rather than split.
    pub packed: bool,
    /// Notifications are asked for by index (`VIRTIO_F_EVENT_IDX`).
    pub event_index: bool,
    /// The device may use buffers in order and name only the last of several (`VIRTIO_F_IN_ORDER`).
    pub in_order: bool,
    /// Where the indices begin: the first descriptor and used index of a split ring, so that tests reach their wrap soon.
    pub first: u16,
}

/// Where a ring lies, in the front-end's own addresses: what `VHOST_USER_SET_VRING_ADDR` takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingAddresses {
    /// The descriptors.
    pub descriptors: u64,
    /// The available ring, or the driver's event structure of a packed ring.
    pub available: u64,
    /// The used ring, or the device's event structure of a packed ring.
    pub used: u64,
}

/// A virtqueue as its driver sees it.
pub enum Ring {
    /// The format of virtio 1.2 section 2.7.
    Split(SplitRing),
    /// The format of section 2.8.
    Packed(PackedRing),
}

impl Ring {
    /// Lays a ring out in `area`.
    #[must_use]
    pub fn new(area: Arc<Area>, options: RingOptions) -> Ring {
        if options.packed {
            Ring::Packed(PackedRing::new(area, options))
        } else {
            Ring::Split(SplitRing::new(area, options))
        }
    }

    /// Offers a chain, through a table of its own if `indirect`; `None` when the ring has no room for it.
    pub fn offer(&mut self, chain: &[Buffer], indirect: bool) -> Option<u16> {
        match self {
            Ring::Split(ring) => ring.offer(chain, indirect),
            Ring::Packed(ring) => ring.offer(chain, indirect),
        }
    }

    /// Shows the device what was offered; whether it wants to be told.
    pub fn publish(&mut self) -> bool {
        match self {
            Ring::Split(ring) => ring.publish(),
            Ring::Packed(ring) => ring.publish(),
        }
    }

    /// The next chain that the device is done with.
    pub fn collect(&mut self) -> Option<Used> {
        match self {
            Ring::Split(ring) => ring.collect(),
            Ring::Packed(ring) => ring.collect(),
        }
    }

    /// Whether [`Ring::collect`] would find something.
    #[must_use]
    pub fn has_used(&self) -> bool {
        match self {
            Ring::Split(ring) => ring.has_used(),
            Ring::Packed(ring) => ring.has_used(),
        }
    }

    /// Asks for a call at the next used chain, or for none.
    pub fn want_call(&mut self, wanted: bool) {
        match self {
            Ring::Split(ring) => ring.want_call(wanted),
            Ring::Packed(ring) => ring.want_call(wanted),
        }
    }

    /// Where a device that knows nothing of the ring goes on: at the oldest chain that was offered and not collected.
    #[must_use]
    pub fn base(&self) -> u32 {
        match self {
            Ring::Split(ring) => ring.base(),
            Ring::Packed(ring) => ring.base(),
        }
    }

    /// Where it lies.
    #[must_use]
    pub fn addresses(&self) -> RingAddresses {
        match self {
            Ring::Split(ring) => ring.addresses(),
            Ring::Packed(ring) => ring.addresses(),
        }
    }

    /// Chains offered and not collected.
    #[must_use]
    pub fn outstanding(&self) -> usize {
        match self {
            Ring::Split(ring) => ring.order.len(),
            Ring::Packed(ring) => ring.order.len(),
        }
    }
}

/// Writes one descriptor of an indirect table, or of a split ring: address, length, flags, next.
pub(super) fn write_descriptor(area: &Area, at: u64, buffer: Buffer, flags: u16, next: u16) {
    let flags = flags | if buffer.writable { WRITE } else { 0 };
    let mut bytes = [0; DESCRIPTOR];
    bytes[..8].copy_from_slice(&buffer.address.to_le_bytes());
    bytes[8..12].copy_from_slice(&buffer.len.to_le_bytes());
    bytes[12..14].copy_from_slice(&flags.to_le_bytes());
    bytes[14..].copy_from_slice(&next.to_le_bytes());
    area.write(at, &bytes);
}

/// Whether one side wants to be told that the other's index moved from `old` to `new`, having asked for `event`
/// (virtio 1.2 section 2.7.10.1).
pub(super) fn passes(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

/// The chains up to `id` in the order in which they were offered: what a device that uses buffers in order is done with
/// when it names the last of several. The lengths of those that it does not name are not known: zero.
pub(super) fn up_to(order: &mut VecDeque<u16>, last: Used, in_order: bool) -> Vec<Used> {
    let at = order.iter().position(|&id| id == last.id);
    let at = at.unwrap_or_else(|| panic!("the device used chain {}, which it was not offered", last.id));
    if !in_order {
        order.remove(at);
        return vec![last];
    }
    order.drain(..=at).map(|id| if id == last.id { last } else { Used { id, len: 0 } }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_that_passes_the_asked_one_is_told_also_across_the_wrap() {
        assert!(passes(0, 1, 0));
        assert!(!passes(1, 1, 0));
        assert!(passes(u16::MAX, 0, u16::MAX));
        assert!(passes(u16::MAX - 1, 3, u16::MAX - 1));
        assert!(!passes(5, 3, u16::MAX));
    }

    #[test]
    fn a_batch_used_in_order_names_its_last_alone() {
        let mut order = VecDeque::from([4, 5, 6, 7]);
        let used = up_to(&mut order, Used { id: 6, len: 9 }, true);
        assert_eq!(used, [Used { id: 4, len: 0 }, Used { id: 5, len: 0 }, Used { id: 6, len: 9 }]);
        assert_eq!(order, [7]);
    }
}
