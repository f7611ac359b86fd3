//! The port over rings in plain memory, with the test in the kernel's place.

use std::sync::Arc;

use super::*;
use crate::offload::Partial;
use crate::pages::Mapping;
use crate::xsk::ring::{Consumer, Producer};
use crate::{BURST, Frame, Hugepages};

const SLOTS: u32 = 256;
const OFFSETS: libc::xdp_ring_offset =
    libc::xdp_ring_offset { producer: 0, consumer: 64, desc: 256, flags: 128 };

/// The kernel's sides of the rings.
struct Kernel {
    fill: Consumer<u64>,
    completion: Producer<u64>,
    rx: Producer<Desc>,
    tx: Consumer<Desc>,
}

fn ring<T: zerocopy::FromBytes + Copy>() -> (Producer<T>, Consumer<T>) {
    let memory = Arc::new(Mapping::ordinary(8192).unwrap());
    (
        Producer::over(memory.clone(), &OFFSETS, SLOTS).unwrap(),
        Consumer::over(memory, &OFFSETS, SLOTS).unwrap(),
    )
}

fn port() -> (XskPort, Kernel, FramePool) {
    let pool = FramePool::new(Region::map(1024, Hugepages::Off).unwrap());
    let ((fill, kernel_fill), (kernel_completion, completion)) = (ring(), ring());
    let ((kernel_rx, rx), (tx, kernel_tx)) = (ring(), ring());
    let region = pool.region();
    let port = XskPort {
        rings: Rings { fill, completion, rx, tx },
        region,
        fill: Held::none(region),
        tx: Held::none(region),
        pace: 0,
        ask_after: Ticks(0),
        fill_now: 128,
        fill_at_first: 128,
        fill_most: 128,
        tx_slots: SLOTS,
        counters: PortCounters::default(),
        copies: true,
        polls: false,
        foreign: None,
        chains: true,
        begun: None,
        socket: None,
        name: "test:0".to_owned(),
        queue: 0,
        netdev: Netdev::named("lo").unwrap(),
        because: None,
    };
    let kernel = Kernel { fill: kernel_fill, completion: kernel_completion, rx: kernel_rx, tx: kernel_tx };
    (port, kernel, pool)
}

impl Kernel {
    /// Takes a chunk from the fill ring.
    fn chunk(&mut self) -> u64 {
        assert!(self.fill.available(1) > 0, "the fill ring is empty");
        let address = self.fill.pop().unwrap();
        self.fill.release();
        address
    }

    fn deliver(&mut self, address: u64, len: u32, options: u32) {
        assert!(self.rx.push(Desc { address, len, options }));
        self.rx.publish();
    }
}

fn frame(pool: &mut FramePool, len: usize) -> Frame {
    let mut frame = pool.alloc().unwrap();
    frame.grow_tail(len).unwrap();
    frame
}

#[test]
fn a_received_packet_is_the_frame_that_the_descriptor_names() {
    let (mut port, mut kernel, mut pool) = port();
    let mut burst = Burst::new();
    port.settle(&mut pool).unwrap();
    assert_eq!(port.with_kernel(), (128, 0));
    let address = kernel.chunk();
    kernel.deliver(address + 256, 60, 0);
    assert_eq!(port.rx_burst(&mut pool, &mut burst), 1);
    let frame = burst.pop().unwrap();
    assert_eq!((frame.offset(), frame.len()), (256, 60));
    assert_eq!(port.region.chunk_of(frame.head()), Some((address / CHUNK as u64) as u32));
    assert_eq!(port.with_kernel(), (127, 0));
    pool.free(frame);
    port.close(&mut pool);
    assert_eq!(pool.region().census().free, pool.region().chunks());
}

#[test]
fn a_chunk_that_the_kernel_did_not_hold_is_a_fault_and_every_chunk_comes_back() {
    for bad in [u64::MAX, 5 * CHUNK as u64, 1 << 40] {
        let (mut port, mut kernel, mut pool) = port();
        let mut burst = Burst::new();
        port.settle(&mut pool).unwrap();
        let good = kernel.chunk();
        // Chunk 5 may be in the fill ring: take one that certainly is with nobody.
        let bad = if bad == 5 * CHUNK as u64 { 1000 * CHUNK as u64 } else { bad };
        kernel.deliver(good + 256, 60, 0);
        kernel.deliver(bad, 60, 0);
        kernel.deliver(good + 256, 60, 0);
        assert_eq!(port.rx_burst(&mut pool, &mut burst), 1, "what came before it is good");
        let fault = port.settle(&mut pool).unwrap_err();
        assert!(matches!(fault, PortFault::ForeignChunk { address, .. } if address == bad), "{fault}");
        assert_eq!(port.rx_burst(&mut pool, &mut burst), 0, "a faulty port receives no more");
        pool.free_burst(&mut burst);
        port.close(&mut pool);
        assert_eq!(pool.region().census().free, pool.region().chunks());
    }
}

#[test]
fn a_packet_that_leaves_its_chunk_is_a_fault() {
    let (mut port, mut kernel, mut pool) = port();
    let mut burst = Burst::new();
    port.settle(&mut pool).unwrap();
    let address = kernel.chunk();
    kernel.deliver(address + 2000, 49, 0);
    assert_eq!(port.rx_burst(&mut pool, &mut burst), 0);
    assert!(matches!(port.settle(&mut pool), Err(PortFault::ForeignChunk { .. })));
    port.close(&mut pool);
    assert_eq!(pool.region().census().free, pool.region().chunks());
}

#[test]
fn a_packet_of_several_chunks_is_one_frame_be_it_in_two_bursts() {
    let (mut port, mut kernel, mut pool) = port();
    let mut burst = Burst::new();
    port.settle(&mut pool).unwrap();
    let parts = [kernel.chunk(), kernel.chunk(), kernel.chunk()];
    kernel.deliver(parts[0] + 256, 1500, libc::XDP_PKT_CONTD);
    kernel.deliver(parts[1] + 256, 1500, libc::XDP_PKT_CONTD);
    assert_eq!(port.rx_burst(&mut pool, &mut burst), 0);
    kernel.deliver(parts[2] + 256, 100, 0);
    let whole = kernel.chunk();
    kernel.deliver(whole + 256, 60, 0);
    assert_eq!(port.rx_burst(&mut pool, &mut burst), 2);
    let lengths: Vec<_> = burst.frames().iter().map(|it| (it.total_len(), it.is_chain())).collect();
    assert_eq!(lengths, [(3100, true), (60, false)]);
    assert_eq!((port.counters().rx_packets, port.counters().rx_bytes), (2, 3160));
    assert_eq!(port.with_kernel().0, 124);
    // It leaves as it came: every chunk but the last says that there is more.
    assert_eq!(port.tx_burst(&mut pool, &mut burst), 2);
    assert_eq!(kernel.tx.available(4), 4);
    let sent: Vec<_> = std::iter::from_fn(|| kernel.tx.pop()).map(|it| (it.len, it.options)).collect();
    assert_eq!(sent, [(1500, 1), (1500, 1), (100, 0), (60, 0)]);
    // A packet that was begun goes home with its port.
    let begun = kernel.chunk();
    kernel.deliver(begun + 256, 1500, libc::XDP_PKT_CONTD);
    assert_eq!(port.rx_burst(&mut pool, &mut burst), 0);
    port.close(&mut pool);
    assert_eq!(pool.region().census().free, pool.region().chunks());
}

#[test]
fn what_the_kernel_could_not_send_is_discarded_and_counted() {
    let (mut port, mut kernel, mut pool) = port();
    let mut burst = Burst::new();
    let mut too_many = frame(&mut pool, 100);
    for _ in 0..17 {
        too_many.append(frame(&mut pool, 100));
    }
    let mut unfinished = frame(&mut pool, 100);
    unfinished.set_offload(Offload { checksum: Some(Partial { start: 34, offset: 16 }), segments: None });
    burst.extend([too_many, unfinished, frame(&mut pool, 100)]);
    assert_eq!(port.tx_burst(&mut pool, &mut burst), 3);
    assert_eq!((port.counters().tx_packets, port.counters().tx_invalid), (1, 2));
    assert_eq!(kernel.tx.available(3), 1);
    port.close(&mut pool);
    assert_eq!(pool.region().census().free, pool.region().chunks());
}

#[test]
fn a_sent_frame_may_start_anywhere_in_its_chunk() {
    let (mut port, mut kernel, mut pool) = port();
    let mut burst = Burst::new();
    let mut grown = frame(&mut pool, 60);
    grown.grow_front(50).unwrap();
    burst.push(grown).unwrap();
    assert_eq!(port.tx_burst(&mut pool, &mut burst), 1);
    assert_eq!(kernel.tx.available(1), 1);
    let desc = kernel.tx.pop().unwrap();
    assert_eq!((desc.address % CHUNK as u64, desc.len, desc.options), (206, 110, 0));
    assert_eq!(port.with_kernel(), (0, 1));
    port.close(&mut pool);
    assert_eq!(pool.region().census().free, pool.region().chunks());
}

#[test]
fn a_full_transmit_ring_leaves_the_rest_with_the_caller() {
    let (mut port, mut kernel, mut pool) = port();
    let mut burst = Burst::new();
    let mut taken = 0;
    loop {
        while burst.room() > 0 {
            burst.push(frame(&mut pool, 60)).unwrap();
        }
        let now = port.tx_burst(&mut pool, &mut burst);
        taken += now;
        if now < BURST {
            break;
        }
    }
    assert_eq!((taken, port.with_kernel().1), (SLOTS as usize, SLOTS));
    assert!(!burst.is_empty());
    // Sent, but not completed: there is room in the ring, yet not for more completions.
    for _ in 0..kernel.tx.available(SLOTS) {
        assert!(kernel.completion.push(kernel.tx.pop().unwrap().address));
    }
    kernel.tx.release();
    assert_eq!(port.tx_burst(&mut pool, &mut burst), 0);
    kernel.completion.publish();
    port.settle(&mut pool).unwrap();
    assert_eq!(port.with_kernel().1, 0);
    assert!(port.tx_burst(&mut pool, &mut burst) > 0);
    pool.free_burst(&mut burst);
    port.close(&mut pool);
    assert_eq!(pool.region().census().free, pool.region().chunks());
}

#[test]
fn a_completion_of_a_chunk_that_was_not_sent_is_a_fault() {
    let (mut port, mut kernel, mut pool) = port();
    let mut burst = Burst::new();
    for _ in 0..BURST {
        burst.push(frame(&mut pool, 60)).unwrap();
    }
    port.tx_burst(&mut pool, &mut burst);
    kernel.completion.push(u64::MAX / 2);
    kernel.completion.publish();
    assert!(matches!(port.settle(&mut pool), Err(PortFault::ForeignChunk { .. })));
    port.close(&mut pool);
    assert_eq!(pool.region().census().free, pool.region().chunks());
}

#[test]
fn a_frame_shorter_than_an_ethernet_header_is_not_sent() {
    let (mut port, mut kernel, mut pool) = port();
    let mut burst = Burst::new();
    burst.push(frame(&mut pool, 13)).unwrap();
    burst.push(pool.alloc().unwrap()).unwrap();
    burst.push(frame(&mut pool, 14)).unwrap();
    assert_eq!(port.tx_burst(&mut pool, &mut burst), 3);
    assert_eq!(kernel.tx.available(1), 1);
    assert_eq!((port.counters().tx_invalid, port.counters().tx_packets), (2, 1));
    port.close(&mut pool);
}

#[test]
fn a_nearly_empty_ring_is_left_alone_for_a_while() {
    let (mut port, mut kernel, mut pool) = port();
    let mut burst = Burst::new();
    port.settle(&mut pool).unwrap();
    port.pace = u64::MAX / 2;
    let first = kernel.chunk();
    kernel.deliver(first + 256, 60, 0);
    assert_eq!(port.rx_burst(&mut pool, &mut burst), 1);
    let second = kernel.chunk();
    kernel.deliver(second + 256, 60, 0);
    assert_eq!(port.rx_burst(&mut pool, &mut burst), 0);
    port.ask_after = Ticks(0);
    assert_eq!(port.rx_burst(&mut pool, &mut burst), 1);
    pool.free_burst(&mut burst);
    port.close(&mut pool);
}

#[test]
fn a_port_dropped_by_a_panic_gives_its_chunks_to_the_region() {
    let (mut port, _kernel, mut pool) = port();
    port.settle(&mut pool).unwrap();
    drop(port);
    assert_eq!(pool.region().census().free, pool.region().chunks());
}

#[test]
fn a_quiet_port_has_few_chunks_a_busy_one_has_more_while_memory_is_plenty() {
    let (mut port, mut kernel, mut pool) = port();
    let mut burst = Burst::new();
    // As it is opened: with what it begins with.
    (port.fill_now, port.fill_at_first, port.fill_most) = (64, 64, 64);
    port.settle(&mut pool).unwrap();
    port.fill_most = 256;
    let mut receive = |port: &mut XskPort, kernel: &mut Kernel, pool: &mut FramePool, count: usize| {
        for _ in 0..count {
            let address = kernel.chunk();
            kernel.deliver(address + 256, 60, 0);
        }
        while port.rx_burst(pool, &mut burst) > 0 {
            pool.free_burst(&mut burst);
        }
        port.settle(pool).unwrap();
    };
    assert_eq!(port.with_kernel(), (64, 0));
    // Bursts of all that it has double it each time, up to the most.
    for (burst, then) in [(64, 128), (128, 256), (256, 256)] {
        receive(&mut port, &mut kernel, &mut pool, burst);
        assert_eq!(port.with_kernel(), (then, 0));
    }
    // Memory is short: what is used is not replaced beyond the least.
    let held: Vec<Frame> = std::iter::from_fn(|| pool.alloc()).take(600).collect();
    pool.empty();
    receive(&mut port, &mut kernel, &mut pool, 256);
    assert_eq!(port.with_kernel(), (64, 0));
    held.into_iter().for_each(|frame| pool.free(frame));
    port.close(&mut pool);
    assert_eq!(pool.region().census().free, pool.region().chunks());
}
