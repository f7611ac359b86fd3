//! A turn allocates nothing, whatever its packets meet: known flows, first packets, answers, drops.

#![allow(missing_docs, clippy::unwrap_used)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use penstock_dataplane::testbed::{self, FIRST_ENDPOINT};
use penstock_io::Ticks;
use penstock_io::mem::MemPort;
use penstock_wire::{MacAddr, checksum};

thread_local! {
    /// Allocations of this thread: other tests' threads do not count.
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: everything is the system allocator's, which keeps the contract; counting touches no memory of it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's word about `layout` is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's word about `pointer` and `layout` is passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const OBJECTS: &str = r#"
    [[network]]
    name = "default"
    vni = 100
    prefixes = ["10.1.0.0/16"]
    [[endpoint]]
    name = "a"
    network = "default"
    mac = "02:00:00:00:00:01"
    addresses = ["10.1.1.1"]
    attachment = { veth = { interface = "pa" } }
    [[peer]]
    name = "node2"
    address = "192.168.1.2"
    [[route]]
    network = "default"
    prefix = "10.1.2.0/24"
    via = { peer = "node2" }
"#;

fn frame(dst: [u8; 4], ttl: u8, sport: u16) -> Vec<u8> {
    let mac = MacAddr::from_underlay("192.168.1.1".parse().unwrap());
    let mut header = vec![0x45, 0, 0, 46, 0, 0, 0x40, 0, ttl, 17, 0, 0, 10, 1, 1, 1];
    header.extend_from_slice(&dst);
    let sum = checksum::sum(&header).finish();
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    let mut frame = [&mac.0[..], &[2, 0, 0, 0, 0, 1], &[8, 0], &header].concat();
    for word in [sport, 53, 26, 0] {
        frame.extend_from_slice(&word.to_be_bytes());
    }
    frame.resize(60, 0);
    frame
}

#[test]
fn a_turn_allocates_nothing() {
    let mut frames: Vec<Vec<u8>> = (0..2000).map(|port| frame([10, 1, 2, 1], 64, port)).collect();
    frames.push(frame([10, 1, 2, 1], 1, 9)); // Out of hops: answered.
    frames.push(frame([10, 200, 0, 1], 64, 9)); // No route: answered.
    frames.push(frame([10, 1, 2, 1], 64, 9)[..20].to_vec()); // Broken: dropped.
    let mut node = testbed::node_with(OBJECTS, &["192.168.1.1".parse().unwrap()], 8192, 4096);
    node.open(testbed::UPLINK, MemPort::discard());
    let order = (0..frames.len() as u32).collect();
    node.open(FIRST_ENDPOINT, MemPort::replay(&frames, order));
    node.worker.turn(Ticks::now()); // The ports are opened.
    let before = ALLOCATIONS.with(Cell::get);
    for _ in 0..500 {
        node.worker.turn(Ticks::now());
    }
    assert_eq!(ALLOCATIONS.with(Cell::get) - before, 0);
    let counts = node.worker.counts();
    assert!(
        counts.hits > 1000 && counts.misses >= 2000 && counts.dropped > 0 && counts.made > 0,
        "{counts:?}"
    );
}
