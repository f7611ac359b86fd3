//! One virtqueue of a pod with its buffers and its two doorbells: packets in, packets out.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use super::area::Area;
use super::ring::{Buffer, Ring, RingOptions};

/// Bytes of `struct virtio_net_hdr_v1` (`linux/virtio_net.h`).
pub const NET_HEADER: usize = 12;

/// How a packet is laid out in descriptors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Layout {
    /// Header and packet in one run of buffers.
    #[default]
    Joined,
    /// The header in a descriptor of its own, as Linux has it without `VIRTIO_F_ANY_LAYOUT`.
    Apart,
    /// In one run of buffers, named by a table.
    Indirect,
}

/// The header in front of every packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NetHeader {
    /// `VIRTIO_NET_HDR_F_…`.
    pub flags: u8,
    /// `VIRTIO_NET_HDR_GSO_…`.
    pub segment_kind: u8,
    /// Length of the headers of a packet to be segmented, a hint.
    pub header_len: u16,
    /// Bytes of a segment's payload.
    pub segment_size: u16,
    /// Where the checksum begins, from the packet's first byte.
    pub checksum_start: u16,
    /// Where it is put, from there.
    pub checksum_offset: u16,
    /// Buffers that a received packet fills.
    pub buffers: u16,
}

impl NetHeader {
    fn bytes(self) -> [u8; NET_HEADER] {
        let mut bytes = [0; NET_HEADER];
        (bytes[0], bytes[1]) = (self.flags, self.segment_kind);
        let words =
            [self.header_len, self.segment_size, self.checksum_start, self.checksum_offset, self.buffers];
        for (place, word) in bytes[2..].chunks_exact_mut(2).zip(words) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    fn parse(bytes: &[u8; NET_HEADER]) -> NetHeader {
        let word = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        NetHeader {
            flags: bytes[0],
            segment_kind: bytes[1],
            header_len: word(2),
            segment_size: word(4),
            checksum_start: word(6),
            checksum_offset: word(8),
            buffers: word(10),
        }
    }
}

/// A packet as the device wrote it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// The header in front of it.
    pub header: NetHeader,
    /// The packet, from its Ethernet header on.
    pub bytes: Vec<u8>,
}

/// A slot of memory for one buffer.
#[derive(Clone)]
struct Slot {
    area: Arc<Area>,
    address: u64,
}

/// A ring, its buffers and its doorbells.
pub(super) struct Queue {
    pub(super) ring: Ring,
    pub(super) kick: EventFd,
    pub(super) call: EventFd,
    slots: VecDeque<Slot>,
    /// Slots of each chain that is offered, by its id.
    held: Vec<Vec<Slot>>,
    /// Bytes of a slot.
    room: usize,
    layout: Layout,
    /// Kicks given.
    pub(super) kicks: u64,
}

impl Queue {
    pub(super) fn new(
        area: &Arc<Area>,
        options: RingOptions,
        room: usize,
        layout: Layout,
    ) -> io::Result<Queue> {
        let ring = Ring::new(Arc::clone(area), options);
        let event = || EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC);
        let held = vec![Vec::new(); usize::from(options.size)];
        let (kick, call) = (event()?, event()?);
        Ok(Queue { ring, kick, call, slots: VecDeque::new(), held, room, layout, kicks: 0 })
    }

    /// Takes `count` slots of `area` for buffers.
    pub(super) fn add_slots(&mut self, area: &Arc<Area>, count: usize) {
        self.slots
            .extend((0..count).map(|_| Slot { area: Arc::clone(area), address: area.take(self.room, 64) }));
    }

    /// Keeps buffers of `area` out of use from here on; whether none is with the device any more.
    pub(super) fn retire(&mut self, area: &Arc<Area>) -> bool {
        self.slots.retain(|slot| !Arc::ptr_eq(&slot.area, area));
        !self.held.iter().flatten().any(|slot| Arc::ptr_eq(&slot.area, area))
    }

    /// Offers one packet to be sent; whether there was room.
    pub(super) fn send(&mut self, header: NetHeader, packet: &[u8]) -> bool {
        let whole = [&header.bytes()[..], packet].concat();
        let (apart, indirect) = (self.layout == Layout::Apart, self.layout == Layout::Indirect);
        let (head, rest) = whole.split_at(if apart { NET_HEADER } else { 0 });
        let pieces: Vec<&[u8]> =
            (!head.is_empty()).then_some(head).into_iter().chain(rest.chunks(self.room)).collect();
        if self.slots.len() < pieces.len() {
            return false;
        }
        let slots: Vec<Slot> = self.slots.drain(..pieces.len()).collect();
        let mut chain = Vec::with_capacity(slots.len());
        for (slot, piece) in slots.iter().zip(pieces) {
            slot.area.write(slot.address, piece);
            chain.push(Buffer { address: slot.address, len: piece.len() as u32, writable: false });
        }
        self.offer(slots, &chain, indirect)
    }

    /// Offers chains of `slots_each` empty buffers as long as there are any.
    pub(super) fn post(&mut self, slots_each: usize) {
        while self.slots.len() >= slots_each {
            let slots: Vec<Slot> = self.slots.drain(..slots_each).collect();
            let whole = |slot: &Slot| Buffer { address: slot.address, len: self.room as u32, writable: true };
            let chain: Vec<Buffer> = slots.iter().map(whole).collect();
            if !self.offer(slots, &chain, false) {
                break;
            }
        }
    }

    fn offer(&mut self, slots: Vec<Slot>, chain: &[Buffer], indirect: bool) -> bool {
        match self.ring.offer(chain, indirect) {
            Some(id) => {
                self.held[usize::from(id)] = slots;
                true
            }
            None => {
                // To the front again: nothing has happened.
                for slot in slots.into_iter().rev() {
                    self.slots.push_front(slot);
                }
                false
            }
        }
    }

    /// Takes back what was sent; how many packets.
    pub(super) fn reclaim(&mut self) -> usize {
        let mut count = 0;
        while let Some(used) = self.ring.collect() {
            self.slots.extend(self.held[usize::from(used.id)].drain(..));
            count += 1;
        }
        count
    }

    /// The next packet that was received, from as many chains as its header says.
    ///
    /// # Panics
    /// When the device says things that make no sense: no header, more bytes than the buffers have, chains that do not follow.
    pub(super) fn receive(&mut self) -> Option<Packet> {
        let mut whole = self.received_chain()?;
        let (&head, _) = whole.split_first_chunk::<NET_HEADER>().expect("a header in front of each packet");
        let header = NetHeader::parse(&head);
        for _ in 1..header.buffers.max(1) {
            whole.extend(self.received_chain().expect("all chains of a packet are shown at once"));
        }
        Some(Packet { header, bytes: whole.split_off(NET_HEADER) })
    }

    /// What the device wrote into the next used chain.
    fn received_chain(&mut self) -> Option<Vec<u8>> {
        let used = self.ring.collect()?;
        let slots = std::mem::take(&mut self.held[usize::from(used.id)]);
        let len = used.len as usize;
        assert!(len <= slots.len() * self.room, "the device wrote {len} bytes into {} buffers", slots.len());
        let mut bytes = vec![0; len];
        for (piece, slot) in bytes.chunks_mut(self.room).zip(&slots) {
            slot.area.read(slot.address, piece);
        }
        self.slots.extend(slots);
        Some(bytes)
    }

    /// Shows the device what was offered, and kicks it if it asks for that.
    pub(super) fn publish(&mut self) {
        if self.ring.publish() {
            self.ring_bell();
        }
    }

    /// Kicks the device, asked or not.
    pub(super) fn ring_bell(&mut self) {
        // The counter of an eventfd that nobody reads is full after 2^64 - 2 kicks.
        let _ = self.kick.write(1);
        self.kicks += 1;
    }
}
