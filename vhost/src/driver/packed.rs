//! The driver's side of a packed virtqueue (virtio 1.2 section 2.8).

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use super::area::Area;
use super::ring::{
    Buffer, DESCRIPTOR, INDIRECT, NEXT, RingAddresses, RingOptions, TABLE, Used, WRITE, passes, up_to,
    write_descriptor,
};

/// The driver's half of a descriptor's state (`VIRTQ_DESC_F_AVAIL`).
const AVAILABLE: u16 = 1 << 7;
/// The device's half (`VIRTQ_DESC_F_USED`).
const USED: u16 = 1 << 15;
/// The other side tells of every descriptor (`RING_EVENT_FLAGS_ENABLE`).
const EVENTS_ON: u16 = 0;
/// The other side tells of none (`RING_EVENT_FLAGS_DISABLE`).
const EVENTS_OFF: u16 = 1;
/// The other side tells when it passes a named descriptor (`RING_EVENT_FLAGS_DESC`).
const EVENTS_AT: u16 = 2;

/// A place in the ring, with the wrap counter there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    index: u16,
    wrap: bool,
}

impl Place {
    fn ahead(self, count: u16, size: u16) -> Place {
        let index = u32::from(self.index) + u32::from(count);
        let turns = index / u32::from(size);
        Place { index: (index % u32::from(size)) as u16, wrap: self.wrap ^ (turns % 2 == 1) }
    }

    /// As the event structures and vring bases write it.
    fn word(self) -> u16 {
        self.index | u16::from(self.wrap) << 15
    }

    /// The flags with which the driver makes a descriptor available here.
    fn available(self) -> u16 {
        if self.wrap { AVAILABLE } else { USED }
    }
}

/// A packed virtqueue.
pub struct PackedRing {
    area: Arc<Area>,
    size: u16,
    descriptors: u64,
    driver_event: u64,
    device_event: u64,
    /// One indirect table for each id.
    tables: u64,
    ids: VecDeque<u16>,
    /// Descriptors in the ring of the chain with each id.
    spans: Vec<u16>,
    /// Ids of what is offered and not collected, oldest first.
    pub(super) order: VecDeque<u16>,
    /// Collected from the ring and not asked for yet.
    ready: VecDeque<Used>,
    room: u16,
    next: Place,
    /// Where the device was last shown something.
    published: Place,
    used: Place,
    event_index: bool,
    in_order: bool,
}

impl PackedRing {
    pub(super) fn new(area: Arc<Area>, options: RingOptions) -> PackedRing {
        let RingOptions { size, event_index, in_order, .. } = options;
        let count = usize::from(size);
        let descriptors = area.take(count * DESCRIPTOR, DESCRIPTOR);
        let driver_event = area.take(4, 4);
        let device_event = area.take(4, 4);
        let tables = area.take(count * TABLE * DESCRIPTOR, DESCRIPTOR);
        let start = Place { index: 0, wrap: true };
        PackedRing {
            area,
            size,
            descriptors,
            driver_event,
            device_event,
            tables,
            ids: (0..size).collect(),
            spans: vec![0; count],
            order: VecDeque::new(),
            ready: VecDeque::new(),
            room: size,
            next: start,
            published: start,
            used: start,
            event_index,
            in_order,
        }
    }

    pub(super) fn offer(&mut self, chain: &[Buffer], indirect: bool) -> Option<u16> {
        let span = if indirect { 1 } else { chain.len() };
        if chain.is_empty() || chain.len() > TABLE || span > usize::from(self.room) {
            return None;
        }
        let id = self.ids.pop_front()?;
        let start = self.next;
        if indirect {
            let table = self.tables + u64::from(id) * (TABLE * DESCRIPTOR) as u64;
            for (i, &buffer) in chain.iter().enumerate() {
                write_descriptor(&self.area, table + (i * DESCRIPTOR) as u64, buffer, 0, 0);
            }
            let whole = Buffer { address: table, len: (chain.len() * DESCRIPTOR) as u32, writable: false };
            self.write(start, whole, id, INDIRECT);
        } else {
            // The first descriptor's flags hand the whole chain over, so it is written last.
            for (i, &buffer) in chain.iter().enumerate().rev() {
                let more = if i + 1 < chain.len() { NEXT } else { 0 };
                self.write(start.ahead(i as u16, self.size), buffer, id, more);
            }
        }
        self.next = start.ahead(span as u16, self.size);
        self.room -= span as u16;
        self.spans[usize::from(id)] = span as u16;
        self.order.push_back(id);
        Some(id)
    }

    fn descriptor(&self, place: Place) -> u64 {
        self.descriptors + u64::from(place.index) * DESCRIPTOR as u64
    }

    /// Writes a descriptor and then, with release, its flags.
    fn write(&self, place: Place, buffer: Buffer, id: u16, flags: u16) {
        let at = self.descriptor(place);
        let mut bytes = [0; 14];
        bytes[..8].copy_from_slice(&buffer.address.to_le_bytes());
        bytes[8..12].copy_from_slice(&buffer.len.to_le_bytes());
        bytes[12..].copy_from_slice(&id.to_le_bytes());
        self.area.write(at, &bytes);
        let writable = if buffer.writable { WRITE } else { 0 };
        self.area.store16(at + 14, flags | writable | place.available());
    }

    pub(super) fn publish(&mut self) -> bool {
        let (old, new) = (self.published, self.next);
        if old == new {
            return false;
        }
        self.published = new;
        // The device first says what it waits for and then looks: one of the two sides sees the other.
        fence(Ordering::SeqCst);
        match self.area.load16(self.device_event + 2) {
            EVENTS_OFF => false,
            EVENTS_AT => {
                let event = self.area.load16(self.device_event);
                let (index, wrap) = (event & 0x7fff, event >> 15 == 1);
                // Both in the turn of `new`; what is of the turn before lies below zero.
                let turn = |index: u16, wrap: bool| {
                    if wrap == new.wrap { index } else { index.wrapping_sub(self.size) }
                };
                passes(turn(index, wrap), new.index, turn(old.index, old.wrap))
            }
            _ => true,
        }
    }

    /// The chain that the device used at `place`, where one is expected.
    fn peek(&self, place: Place) -> Option<Used> {
        let at = self.descriptor(place);
        let flags = self.area.load16(at + 14);
        let (available, used) = (flags & AVAILABLE != 0, flags & USED != 0);
        (available == place.wrap && used == place.wrap)
            .then(|| Used { id: self.area.load16(at + 12), len: self.area.load32(at + 8) })
    }

    pub(super) fn collect(&mut self) -> Option<Used> {
        if self.ready.is_empty()
            && let Some(last) = self.peek(self.used)
        {
            let used = up_to(&mut self.order, last, self.in_order);
            for chain in &used {
                self.used = self.used.ahead(self.spans[usize::from(chain.id)], self.size);
            }
            self.ready.extend(used);
            if self.event_index && self.area.load16(self.driver_event + 2) == EVENTS_AT {
                self.area.store16(self.driver_event, self.used.word());
            }
        }
        let used = self.ready.pop_front()?;
        self.room += self.spans[usize::from(used.id)];
        self.ids.push_back(used.id);
        Some(used)
    }

    pub(super) fn has_used(&self) -> bool {
        !self.ready.is_empty() || self.peek(self.used).is_some()
    }

    pub(super) fn want_call(&mut self, wanted: bool) {
        if wanted && self.event_index {
            self.area.store16(self.driver_event, self.used.word());
        }
        let flags = match (wanted, self.event_index) {
            (true, true) => EVENTS_AT,
            (true, false) => EVENTS_ON,
            (false, _) => EVENTS_OFF,
        };
        self.area.store16(self.driver_event + 2, flags);
        fence(Ordering::SeqCst);
    }

    pub(super) fn base(&self) -> u32 {
        // What the device has used and the driver not collected is behind the device all the same.
        let mut place = self.used;
        let mut order = self.order.iter();
        while let Some(used) = self.peek(place) {
            for &id in order.by_ref() {
                place = place.ahead(self.spans[usize::from(id)], self.size);
                if id == used.id {
                    break;
                }
            }
            // Everything is used: the next descriptor is free, and what it says is of an earlier turn.
            if order.len() == 0 {
                break;
            }
        }
        let word = u32::from(place.word());
        word | word << 16
    }

    pub(super) fn addresses(&self) -> RingAddresses {
        RingAddresses {
            descriptors: self.area.user_of(self.descriptors),
            available: self.area.user_of(self.driver_event),
            used: self.area.user_of(self.device_event),
        }
    }
}
