//! The split ring beside rust-vmm's `virtio-queue`: the same guest, two devices, the same memory afterwards.

#![allow(clippy::unwrap_used, reason = "the leave for tests does not reach the functions beside them")]

mod common;

use common::{Device, HEADER, LONGEST, MERGEABLE, PLAIN, bell, packet};
use penstock_vhost::features::EVENT_IDX;
use penstock_vhost::naive::{Arena, Driver, GUEST, Layout, Offer, SplitDriver, Told};
use proptest::prelude::*;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// Bytes of the guest's memory, and where its buffers begin.
const BYTES: u64 = 1 << 19;
const BUFFERS: u64 = 1 << 16;
/// Entries of the rings.
const SIZE: u16 = 32;

/// The other device: `virtio-queue` on a copy of the memory.
struct Oracle {
    queue: Queue,
    memory: GuestMemoryMmap,
}

impl Oracle {
    fn new(layout: &Layout, start: u16, event_idx: bool) -> Oracle {
        let mut queue = Queue::new(SIZE).unwrap();
        queue.try_set_desc_table_address(GuestAddress(GUEST + layout.desc)).unwrap();
        queue.try_set_avail_ring_address(GuestAddress(GUEST + layout.avail)).unwrap();
        queue.try_set_used_ring_address(GuestAddress(GUEST + layout.used)).unwrap();
        queue.set_next_avail(start);
        queue.set_next_used(start);
        queue.set_event_idx(event_idx);
        queue.set_ready(true);
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(GUEST), BYTES as usize)]).unwrap();
        assert!(queue.is_valid(&memory));
        Oracle { queue, memory }
    }

    /// Sees the guest's memory as it is now.
    fn look(&self, arena: &Arena) {
        self.memory.write_slice(&arena.read(0, BYTES as usize), GuestAddress(GUEST)).unwrap();
    }

    fn assert_same(&self, arena: &Arena) {
        let mut mine = vec![0; BYTES as usize];
        self.memory.read_slice(&mut mine, GuestAddress(GUEST)).unwrap();
        let theirs = arena.read(0, BYTES as usize);
        let first = mine.iter().zip(&theirs).position(|(a, b)| a != b);
        assert_eq!(first, None, "the first byte that differs");
    }

    /// What the guest sends, header and all.
    fn receive(&mut self) -> Vec<Vec<u8>> {
        let mut packets = Vec::new();
        while packets.len() < penstock_io::BURST
            && let Some(chain) = self.queue.pop_descriptor_chain(&self.memory)
        {
            let head = chain.head_index();
            let mut bytes = Vec::new();
            for descriptor in chain.readable() {
                let start = bytes.len();
                bytes.resize(start + descriptor.len() as usize, 0);
                self.memory.read_slice(&mut bytes[start..], descriptor.addr()).unwrap();
            }
            packets.push(bytes);
            self.queue.add_used(&self.memory, head, 0).unwrap();
        }
        packets
    }

    /// Sends what fits; returns how many packets left. Merges buffers when it may.
    fn send(&mut self, packets: &[Vec<u8>], mergeable: bool) -> usize {
        for (sent, packet) in packets.iter().enumerate() {
            let mut chains = Vec::new();
            let mut room = 0;
            while room < HEADER + packet.len() {
                let Some(chain) = self.queue.pop_descriptor_chain(&self.memory) else {
                    chains.iter().for_each(|_| self.queue.go_to_previous_position());
                    return sent;
                };
                room += chain.clone().writable().map(|descriptor| descriptor.len() as usize).sum::<usize>();
                chains.push(chain.clone());
                if !mergeable && room < HEADER + packet.len() {
                    // Dropped: too long for what the guest has.
                    self.queue.go_to_previous_position();
                    chains.clear();
                    break;
                }
            }
            let mut header = [0; HEADER];
            header[10] = chains.len() as u8;
            let whole = [&header[..], packet].concat();
            let mut left = &whole[..];
            for chain in chains {
                let (head, before) = (chain.head_index(), left.len());
                for descriptor in chain.writable() {
                    let (now, later) = left.split_at(left.len().min(descriptor.len() as usize));
                    self.memory.write_slice(now, descriptor.addr()).unwrap();
                    left = later;
                }
                self.queue.add_used(&self.memory, head, (before - left.len()) as u32).unwrap();
            }
        }
        packets.len()
    }
}

/// Chains that a guest offers: the lengths of their buffers, and whether by an indirect table.
fn offers() -> impl Strategy<Value = Vec<(Vec<u32>, bool)>> {
    let lengths = prop::collection::vec(prop_oneof![0u32..40, 40u32..900], 1..6);
    prop::collection::vec((lengths, any::<bool>()), 0..12)
}

/// Offers chains as far as there is room, each in its own part of the memory.
struct Guest {
    driver: SplitDriver,
    next: u64,
}

impl Guest {
    fn offer(&mut self, arena: &Arena, lengths: &[u32], indirect: bool, write: bool) -> Option<u16> {
        if self.next + 8192 > BYTES {
            self.next = BUFFERS;
        }
        let table = self.next;
        let mut at = table + 16 * lengths.len() as u64;
        let buffers: Vec<Offer> = lengths
            .iter()
            .map(|&len| {
                let offset = at;
                at += u64::from(len);
                (offset, len, write)
            })
            .collect();
        self.next = at.next_multiple_of(16);
        let told = if indirect { Told::Indirect(table) } else { Told::Direct };
        self.driver.offer(arena, &buffers, told)
    }
}

/// Wraps within a few rounds, or begins anywhere.
fn starts() -> impl Strategy<Value = u16> {
    prop_oneof![Just(0), Just(u16::MAX), Just(u16::MAX - 5), any::<u16>()]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn both_devices_receive_the_same_and_leave_the_same_memory(
        start in starts(),
        event_idx in any::<bool>(),
        rounds in prop::collection::vec((offers(), 0u16..20), 1..12),
    ) {
        let arena = Arena::new(BYTES).unwrap();
        let layout = Layout::at(0, SIZE);
        (BUFFERS..BYTES).step_by(97).for_each(|at| arena.write(at, &[at as u8]));
        let mut guest = Guest { driver: SplitDriver::new(&arena, layout, start), next: BUFFERS };
        let mut oracle = Oracle::new(&layout, start, event_idx);
        let (call, rung) = bell();
        let features = if event_idx { PLAIN | EVENT_IDX } else { PLAIN };
        let setup = penstock_vhost::RingSetup { call: Some(call), ..layout.setup(guest.driver.base()) };
        let mut device = Device::serving(&arena, features, Some(setup), None);
        rung.read().unwrap();
        let mut first = true;
        for (chains, ask) in rounds {
            guest.driver.ask(&arena, ask);
            for (lengths, indirect) in &chains {
                // The header asks for nothing: buffers may hold old packets.
                let before = guest.next;
                if guest.offer(&arena, lengths, *indirect, false).is_some() {
                    let from = if before + 8192 > BYTES { BUFFERS } else { before };
                    arena.write(from + 16 * lengths.len() as u64, &[0; HEADER]);
                }
            }
            oracle.look(&arena);
            // Those of a chain's lengths that are no packet are counted instead.
            let expected: Vec<Vec<u8>> = oracle.receive().into_iter()
                .filter(|bytes| (HEADER + 14..=HEADER + LONGEST).contains(&bytes.len()))
                .map(|bytes| bytes[HEADER..].to_vec())
                .collect();
            prop_assert_eq!(device.receive(), expected);
            if !event_idx {
                // We say that we poll, which `virtio-queue` does when it is told to.
                oracle.queue.disable_notification(&oracle.memory).unwrap();
            }
            oracle.assert_same(&arena);
            device.settle();
            let returned = std::iter::from_fn(|| guest.driver.collect(&arena)).count();
            let told = oracle.queue.needs_notification(&oracle.memory).unwrap();
            // The first time the guest is told in any case: nobody knows what it was told before.
            prop_assert_eq!(rung.read().is_ok(), returned > 0 && (told || first));
            first &= returned == 0;
            prop_assert_eq!(device.switch.fault(), None);
        }
        device.close();
    }

    #[test]
    fn both_devices_send_the_same_and_leave_the_same_memory(
        start in starts(),
        mergeable in any::<bool>(),
        rounds in prop::collection::vec((offers(), prop::collection::vec(prop_oneof![14usize..1700, 14usize..6000], 0..10)), 1..12),
    ) {
        let arena = Arena::new(BYTES).unwrap();
        let layout = Layout::at(0, SIZE);
        let mut guest = Guest { driver: SplitDriver::new(&arena, layout, start), next: BUFFERS };
        let mut oracle = Oracle::new(&layout, start, false);
        let features = if mergeable { MERGEABLE } else { PLAIN };
        let mut device = Device::serving(&arena, features, None, Some(layout.setup(guest.driver.base())));
        for (number, (chains, lengths)) in rounds.into_iter().enumerate() {
            for (lengths, indirect) in &chains {
                guest.offer(&arena, lengths, *indirect, true);
            }
            oracle.look(&arena);
            let packets: Vec<Vec<u8>> =
                lengths.iter().enumerate().map(|(i, &len)| packet((number * 16 + i) as u64, len)).collect();
            let taken = oracle.send(&packets, mergeable);
            prop_assert_eq!(device.send(&packets), taken);
            oracle.queue.disable_notification(&oracle.memory).unwrap();
            oracle.assert_same(&arena);
            while guest.driver.collect(&arena).is_some() {}
            prop_assert_eq!(device.switch.fault(), None);
        }
        device.close();
    }
}
