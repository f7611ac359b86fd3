//! Packets between pods through real ports, while everything is changed that a front-end may change.

#![allow(clippy::unwrap_used, reason = "the leave for tests does not reach the functions beside them")]

mod fabric;

use std::os::fd::AsRawFd;
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use fabric::tcp::Hosts;
use fabric::{Fabric, exchange, greet, number, numbered, path, until};
use penstock_vhost::driver::request::protocol;
use penstock_vhost::driver::{Layout, Pod, PodConfig, answer, bits, dial};
use penstock_vhost::session::State;

const MEGABYTE: usize = 1 << 20;

/// What a plain pod agrees to.
const PLAIN: u64 = bits::VERSION_1 | bits::PROTOCOL_FEATURES | bits::MQ;

fn config(features: u64, layout: Layout) -> PodConfig {
    PodConfig { features: PLAIN | features, layout, ..PodConfig::default() }
}

/// Every kind of ring that a driver may choose.
fn kinds() -> Vec<(&'static str, PodConfig)> {
    let (packed, event, order) = (bits::RING_PACKED, bits::EVENT_IDX, bits::IN_ORDER);
    let (merged, table) = (bits::MRG_RXBUF, bits::INDIRECT_DESC);
    vec![
        ("split", config(0, Layout::Joined)),
        ("split, wrapping at once", PodConfig { first_index: u16::MAX - 3, ..config(0, Layout::Joined) }),
        ("split, header apart", config(0, Layout::Apart)),
        ("split, mergeable", config(merged, Layout::Joined)),
        ("split, small mergeable buffers", PodConfig { buffer: 512, ..config(merged, Layout::Joined) }),
        ("split, indirect, by index", config(merged | table | event, Layout::Indirect)),
        ("split, in order", config(merged | order | event, Layout::Apart)),
        ("packed", config(packed, Layout::Joined)),
        ("packed, of an odd size", PodConfig { size: 93, ..config(packed, Layout::Apart) }),
        ("packed, mergeable", config(packed | merged, Layout::Apart)),
        (
            "packed, small mergeable buffers",
            PodConfig { buffer: 512, ..config(packed | merged, Layout::Joined) },
        ),
        ("packed, indirect, by index", config(packed | merged | table | event, Layout::Indirect)),
        ("packed, in order", config(packed | order | event, Layout::Joined)),
    ]
}

#[test]
fn frames_pass_in_order_and_whole_over_every_kind_of_ring() {
    for (kind, config) in kinds() {
        println!("{kind}");
        let fabric = Fabric::pair(1);
        let (mut left, mut right) = fabric.pods(config.clone(), config);
        exchange(&mut left, &mut right, 0, 2000);
        exchange(&mut right, &mut left, 0, 2000);
    }
}

#[test]
fn tcp_of_megabytes_flows_between_pods_of_different_kinds() {
    let kinds = kinds();
    for ((kind, left), (other, right)) in kinds.iter().zip(kinds.iter().rev()).take(7) {
        println!("{kind} to {other}");
        let fabric = Fabric::pair(1);
        let mut hosts = Hosts::new(fabric.pod(0, left.clone()), fabric.pod(1, right.clone()));
        hosts.transfer(4 * MEGABYTE, |_, _| {});
    }
}

/// Packets longer than a chunk of ours and than a buffer of the guest's.
#[test]
fn tcp_of_jumbo_packets_flows_between_pods() {
    for packed in [0, bits::RING_PACKED] {
        let jumbo = PodConfig { mtu: 9000, ..config(packed | bits::MRG_RXBUF, Layout::Joined) };
        let whole = PodConfig { mtu: 9000, buffer: 10_240, ..config(packed, Layout::Apart) };
        let fabric = Fabric::pair(1);
        let mut hosts = Hosts::new(fabric.pod(0, jumbo), fabric.pod(1, whole));
        hosts.transfer(4 * MEGABYTE, |_, _| {});
    }
}

#[test]
fn two_queue_pairs_carry_packets_each_on_its_own_and_together() {
    for features in [0, bits::RING_PACKED] {
        let fabric = Fabric::pair(2);
        let two = PodConfig { pairs: 2, ..config(features | bits::MRG_RXBUF, Layout::Joined) };
        let (mut left, mut right) = fabric.pods(two.clone(), two);
        exchange(&mut left, &mut right, 0, 500);
        exchange(&mut left, &mut right, 1, 500);
        exchange(&mut right, &mut left, 1, 500);
        Hosts::new(left, right).transfer(2 * MEGABYTE, |_, _| {});
    }
}

#[test]
fn a_pod_with_one_pair_speaks_with_one_of_two() {
    let fabric = Fabric::serving(&[path(), path()], 2);
    let two = PodConfig { pairs: 2, ..config(0, Layout::Joined) };
    let (mut left, mut right) = fabric.pods(config(0, Layout::Joined), two);
    exchange(&mut left, &mut right, 0, 500);
    exchange(&mut right, &mut left, 0, 500);
}

#[test]
fn the_memory_table_is_replaced_under_traffic() {
    for protocol in [PodConfig::default().protocol, protocol::MQ | protocol::REPLY_ACK] {
        for features in [bits::MRG_RXBUF, bits::MRG_RXBUF | bits::RING_PACKED] {
            let fabric = Fabric::pair(1);
            let config = PodConfig { protocol, ..config(features, Layout::Joined) };
            let mut hosts = Hosts::new(fabric.pod(0, config.clone()), fabric.pod(1, config));
            let (mut changes, mut next) = (0, MEGABYTE / 4);
            let mut shrinking = false;
            hosts.transfer(4 * MEGABYTE, |hosts, got| {
                for pod in [&mut hosts.left.pod, &mut hosts.right.pod] {
                    if shrinking {
                        // Two areas must go: each pod's old one.
                        if pod.areas().len() > 2 {
                            pod.shrink_memory().unwrap();
                        }
                    } else if got > next {
                        pod.extend_memory().unwrap();
                        changes += 1;
                    }
                }
                if got > next {
                    (shrinking, next) = (!shrinking, next + MEGABYTE / 4);
                }
            });
            assert!(changes >= 6, "{changes}");
            assert_eq!((fabric.status(0).faults, fabric.status(1).connections), (0, 1));
        }
    }
}

#[test]
fn rings_that_are_stopped_and_started_again_lose_and_double_nothing() {
    for features in [0, bits::RING_PACKED | bits::MRG_RXBUF] {
        let fabric = Fabric::pair(1);
        let config = config(features, Layout::Joined);
        let (mut left, mut right) = fabric.pods(config.clone(), config);
        for round in 0..20 {
            exchange(&mut left, &mut right, 0, 50 + round);
            left.stop().unwrap();
            right.stop().unwrap();
            // What is offered meanwhile waits.
            assert!(left.send(0, &numbered(7)));
            right.restart().unwrap();
            // Its worker has it in hand before anything comes.
            until("it is served", || fabric.status(1).served == 1);
            left.restart().unwrap();
            let mut got = None;
            until("what waited arrives", || {
                got = right.receive(0);
                got.is_some()
            });
            assert_eq!(number(&got.unwrap().bytes), 7);
        }
    }
}

#[test]
fn a_disabled_pair_carries_nothing_until_it_is_enabled_again() {
    let fabric = Fabric::pair(1);
    let plain = config(0, Layout::Joined);
    let (mut left, mut right) = fabric.pods(plain.clone(), plain);
    exchange(&mut left, &mut right, 0, 10);
    right.enable(0, false).unwrap();
    left.send(0, &numbered(1));
    right.wait(Duration::from_millis(50));
    assert!(right.receive(0).is_none());
    right.enable(0, true).unwrap();
    greet(&mut left, &mut right);
    exchange(&mut left, &mut right, 0, 10);
}

/// The pods serve, as applications do; the switch goes away under traffic and comes back.
#[test]
fn tcp_goes_on_through_restarts_of_the_switch() {
    for features in [bits::MRG_RXBUF, bits::MRG_RXBUF | bits::RING_PACKED] {
        let paths = [path(), path()];
        let listeners: Vec<_> = paths.iter().map(|path| UnixListener::bind(path).unwrap()).collect();
        let mut fabric = Some(Fabric::calling(&paths, 1));
        let protocol = PodConfig::default().protocol | protocol::INFLIGHT_SHMFD;
        let config = PodConfig { protocol, ..config(features, Layout::Joined) };
        let pods = listeners.iter().map(|at| Pod::accept(at, fabric::PATIENCE, config.clone()).unwrap());
        let [left, right] = pods.collect::<Vec<_>>().try_into().unwrap();
        let (mut restarts, mut next) = (0, MEGABYTE / 4);
        Hosts::new(left, right).transfer(2 * MEGABYTE, |hosts, got| {
            if got < next {
                return;
            }
            (next, restarts) = (next + MEGABYTE / 4, restarts + 1);
            drop(fabric.take());
            fabric = Some(Fabric::calling(&paths, 1));
            for (listener, pod) in listeners.iter().zip([&mut hosts.left.pod, &mut hosts.right.pod]) {
                until("the switch has hung up", || !pod.is_connected());
                pod.attach(answer(listener, fabric::PATIENCE).unwrap()).unwrap();
            }
        });
        assert!(restarts >= 6, "{restarts}");
        paths.iter().for_each(|path| std::fs::remove_file(path).unwrap());
    }
}

/// The switch serves; a pod hangs up and comes back with its rings as they were.
#[test]
fn a_pod_that_reconnects_goes_on_where_it_was() {
    for features in [0, bits::RING_PACKED] {
        let fabric = Fabric::pair(1);
        let config = config(features, Layout::Joined);
        let (mut left, mut right) = fabric.pods(config.clone(), config);
        for round in 0..10 {
            exchange(&mut left, &mut right, 0, 100 + round);
            left.detach();
            until("its end is seen", || fabric.status(0).state == State::Waiting);
            left.attach(dial(&fabric.paths[0], fabric::PATIENCE).unwrap()).unwrap();
            greet(&mut left, &mut right);
            exchange(&mut right, &mut left, 0, 100 + round);
        }
        assert_eq!((fabric.status(0).connections, fabric.status(0).faults), (11, 0));
    }
}

/// Two good pods, and a third whose memory goes away behind its rings or is overwritten with nonsense.
#[test]
fn a_pod_that_lies_in_its_memory_ends_its_own_session_and_no_other() {
    let paths: Vec<_> = (0..3).map(|_| path()).collect();
    let fabric = Fabric::serving(&paths, 1);
    let plain = config(0, Layout::Joined);
    let (mut left, mut right) = fabric.pods(plain.clone(), plain);
    for (features, truncate) in [(0, true), (0, false), (bits::RING_PACKED, true)] {
        println!("features {features:#x}, truncate {truncate}");
        let mut liar = fabric.pod(2, config(features, Layout::Joined));
        exchange(&mut left, &mut right, 0, 100);
        let rings = &liar.areas()[0];
        if truncate {
            // SAFETY: sets the length of a file; this process does not touch the pod's mapping after.
            assert_eq!(unsafe { libc::ftruncate(rings.file().as_raw_fd(), 0) }, 0);
        } else {
            // Nonsense everywhere: available indices far ahead of what was offered.
            rings.write(rings.guest(), &vec![0xee; rings.len()]);
        }
        // The device looks when it is told to.
        let from = Instant::now();
        while liar.is_connected() {
            exchange(&mut left, &mut right, 0, 50);
            liar.ring_bells();
            assert!(from.elapsed() < fabric::PATIENCE, "the lie is seen: {:?}", fabric.status(2));
        }
        until("its end is told", || fabric.status(2).state == State::Waiting);
        let reason = fabric.status(2).reason.unwrap();
        assert!(reason.contains("queue pair 0"), "{reason}");
        exchange(&mut right, &mut left, 0, 100);
    }
    assert_eq!((fabric.status(0).connections, fabric.status(1).connections), (1, 1));
    assert_eq!(fabric.status(2).faults, 3);
}

#[test]
fn a_sleeping_switch_is_woken_and_a_polling_one_is_not_kicked() {
    for features in [0, bits::EVENT_IDX, bits::RING_PACKED, bits::RING_PACKED | bits::EVENT_IDX] {
        let fabric = Fabric::pair(1);
        let config = config(features, Layout::Joined);
        let (mut left, mut right) = fabric.pods(config.clone(), config);
        let before = left.kicks();
        for _ in 0..20 {
            // Long enough for it to fall asleep.
            std::thread::sleep(Duration::from_millis(3));
            exchange(&mut left, &mut right, 0, 1);
        }
        assert!(left.kicks() - before >= 10, "it slept and was woken");
        fabric.stay_awake();
        exchange(&mut left, &mut right, 0, 100);
        let before = left.kicks();
        exchange(&mut left, &mut right, 0, 2000);
        assert_eq!(left.kicks() - before, 0, "who polls wants no kicks");
    }
}
