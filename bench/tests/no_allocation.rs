//! A turn allocates nothing, whatever its packets meet: known flows, first packets, connections, answers, drops.

#![allow(missing_docs, clippy::unwrap_used)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use penstock_bench::stateful::Work;
use penstock_dataplane::stats::Counts;
use penstock_dataplane::testbed::{self, Datagram, FIRST_ENDPOINT, Sizes, Testbed};
use penstock_io::Ticks;
use penstock_io::mem::MemPort;

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

fn frame(dst: [u8; 4], ttl: u8, sport: u16) -> Vec<u8> {
    Datagram { ttl, ..Datagram::from_pod_a(dst, sport, 53) }.frame()
}

#[test]
fn a_turn_allocates_nothing() {
    let mut frames: Vec<Vec<u8>> = (0..2000).map(|port| frame([10, 1, 2, 1], 64, port)).collect();
    frames.push(frame([10, 1, 2, 1], 1, 9)); // Out of hops: answered.
    frames.push(frame([10, 200, 0, 1], 64, 9)); // No route: answered.
    frames.push(frame([10, 1, 2, 1], 64, 9)[..20].to_vec()); // Broken: dropped.
    for connections in [None, Some(1 << 16)] {
        let sizes = Sizes { flows: 8192, chunks: 4096, connections };
        let node = testbed::node_of(&testbed::two_pods("veth"), &[testbed::NODE.into()], sizes);
        let counts = turn_without_allocation(node, &frames);
        assert!(
            counts.hits > 1000 && counts.misses >= 2000 && counts.dropped > 0 && counts.made > 0,
            "{connections:?}: {counts:?}"
        );
    }
}

#[test]
fn translated_connections_allocate_nothing() {
    for work in Work::ALL {
        let node = work.node(2000);
        let counts = turn_without_allocation(node, &work.frames(2000));
        assert!(counts.hits > 1000 && counts.misses >= 2000 && counts.dropped == 0, "{work:?}: {counts:?}");
    }
}

/// Lets a node's first pod send the frames again and again.
fn turn_without_allocation(mut node: Testbed, frames: &[Vec<u8>]) -> Counts {
    node.open(testbed::UPLINK, MemPort::discard());
    node.open(FIRST_ENDPOINT + 1, MemPort::discard());
    let order = (0..frames.len() as u32).collect();
    node.open(FIRST_ENDPOINT, MemPort::replay(frames, order));
    node.worker.turn(Ticks::now()); // The ports are opened.
    let before = ALLOCATIONS.with(Cell::get);
    for _ in 0..500 {
        node.worker.turn(Ticks::now());
    }
    assert_eq!(ALLOCATIONS.with(Cell::get) - before, 0);
    node.worker.counts()
}
