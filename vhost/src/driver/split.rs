//! The driver's side of a split virtqueue (virtio 1.2 section 2.7).

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use super::area::Area;
use super::ring::{
    Buffer, DESCRIPTOR, INDIRECT, NEXT, RingAddresses, RingOptions, TABLE, Used, passes, up_to,
    write_descriptor,
};

/// The driver wants no calls (`VIRTQ_AVAIL_F_NO_INTERRUPT`).
const NO_INTERRUPT: u16 = 1;
/// The device wants no kicks (`VIRTQ_USED_F_NO_NOTIFY`).
const NO_NOTIFY: u16 = 1;

/// A split virtqueue.
pub struct SplitRing {
    area: Arc<Area>,
    size: u16,
    descriptors: u64,
    available: u64,
    used: u64,
    /// One indirect table for each descriptor that may stand for one.
    tables: u64,
    /// First in, first out: a device that uses chains in order sees descriptors in the order of the ring.
    free: VecDeque<u16>,
    /// Descriptors of the chain that begins with each.
    chains: Vec<Vec<u16>>,
    /// Heads of what is offered and not collected, oldest first.
    pub(super) order: VecDeque<u16>,
    /// Collected from the ring and not asked for yet.
    ready: VecDeque<Used>,
    next_available: u16,
    published: u16,
    next_used: u16,
    event_index: bool,
    in_order: bool,
}

impl SplitRing {
    pub(super) fn new(area: Arc<Area>, options: RingOptions) -> SplitRing {
        let RingOptions { size, event_index, in_order, first, .. } = options;
        assert!(size.is_power_of_two(), "a split ring's size is a power of two");
        let count = usize::from(size);
        let descriptors = area.take(count * DESCRIPTOR, DESCRIPTOR);
        let available = area.take(6 + 2 * count, 2);
        let used = area.take(6 + 8 * count, 4);
        let tables = area.take(count * TABLE * DESCRIPTOR, DESCRIPTOR);
        area.store16(available + 2, first);
        area.store16(used + 2, first);
        SplitRing {
            area,
            size,
            descriptors,
            available,
            used,
            tables,
            free: (0..size).collect(),
            chains: vec![Vec::new(); count],
            order: VecDeque::new(),
            ready: VecDeque::new(),
            next_available: first,
            published: first,
            next_used: first,
            event_index,
            in_order,
        }
    }

    pub(super) fn offer(&mut self, chain: &[Buffer], indirect: bool) -> Option<u16> {
        let wanted = if indirect { 1 } else { chain.len() };
        if chain.is_empty() || chain.len() > TABLE || self.free.len() < wanted {
            return None;
        }
        let taken: Vec<u16> = self.free.drain(..wanted).collect();
        let head = taken[0];
        if indirect {
            let table = self.tables + u64::from(head) * (TABLE * DESCRIPTOR) as u64;
            self.write_chain(table, chain, &(0..chain.len() as u16).collect::<Vec<_>>());
            let whole = Buffer { address: table, len: (chain.len() * DESCRIPTOR) as u32, writable: false };
            write_descriptor(&self.area, self.descriptor(head), whole, INDIRECT, 0);
        } else {
            self.write_chain(self.descriptors, chain, &taken);
        }
        self.chains[usize::from(head)] = taken;
        self.order.push_back(head);
        let slot = self.available + 4 + 2 * u64::from(self.next_available % self.size);
        self.area.store16(slot, head);
        self.next_available = self.next_available.wrapping_add(1);
        Some(head)
    }

    /// Writes a chain into the descriptors `places` of a table.
    fn write_chain(&self, table: u64, chain: &[Buffer], places: &[u16]) {
        for (i, (&buffer, &place)) in chain.iter().zip(places).enumerate() {
            let next = places.get(i + 1);
            let at = table + u64::from(place) * DESCRIPTOR as u64;
            write_descriptor(&self.area, at, buffer, next.map_or(0, |_| NEXT), next.copied().unwrap_or(0));
        }
    }

    fn descriptor(&self, index: u16) -> u64 {
        self.descriptors + u64::from(index) * DESCRIPTOR as u64
    }

    pub(super) fn publish(&mut self) -> bool {
        let (old, new) = (self.published, self.next_available);
        if old == new {
            return false;
        }
        self.area.store16(self.available + 2, new);
        self.published = new;
        // The device first says what it waits for and then looks: one of the two sides sees the other.
        fence(Ordering::SeqCst);
        if self.event_index {
            let event = self.area.load16(self.used + 4 + 8 * u64::from(self.size));
            return passes(event, new, old);
        }
        self.area.load16(self.used) & NO_NOTIFY == 0
    }

    pub(super) fn collect(&mut self) -> Option<Used> {
        if self.ready.is_empty() && self.area.load16(self.used + 2) != self.next_used {
            let element = self.used + 4 + 8 * u64::from(self.next_used % self.size);
            let last = Used { id: self.area.load32(element) as u16, len: self.area.load32(element + 4) };
            let used = up_to(&mut self.order, last, self.in_order);
            self.next_used = self.next_used.wrapping_add(used.len() as u16);
            self.ready.extend(used);
            if self.event_index && self.area.load16(self.available) & NO_INTERRUPT == 0 {
                self.area.store16(self.event(), self.next_used);
            }
        }
        let used = self.ready.pop_front()?;
        self.free.extend(self.chains[usize::from(used.id)].drain(..));
        Some(used)
    }

    pub(super) fn has_used(&self) -> bool {
        !self.ready.is_empty() || self.area.load16(self.used + 2) != self.next_used
    }

    pub(super) fn want_call(&mut self, wanted: bool) {
        if self.event_index {
            let event = if wanted { self.next_used } else { self.next_used.wrapping_sub(1) };
            self.area.store16(self.event(), event);
        } else {
            self.area.store16(self.available, if wanted { 0 } else { NO_INTERRUPT });
        }
        fence(Ordering::SeqCst);
    }

    /// `used_event`, behind the available ring.
    fn event(&self) -> u64 {
        self.available + 4 + 2 * u64::from(self.size)
    }

    pub(super) fn base(&self) -> u32 {
        u32::from(self.area.load16(self.used + 2))
    }

    pub(super) fn addresses(&self) -> RingAddresses {
        RingAddresses {
            descriptors: self.area.user_of(self.descriptors),
            available: self.area.user_of(self.available),
            used: self.area.user_of(self.used),
        }
    }
}
