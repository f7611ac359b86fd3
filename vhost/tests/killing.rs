//! `kill -9` of either side in mid-burst, fifty times: the other goes on, and no descriptor is lost or used twice.

#![allow(clippy::unwrap_used, reason = "the leave for tests does not reach the functions beside them")]

mod fabric;

use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use fabric::program::{self, Program};
use fabric::{Fabric, connect, exchange, greet, number, numbered, path, until};
use penstock_vhost::driver::request::protocol;
use penstock_vhost::driver::{Pod, PodConfig, answer, bits};
use penstock_vhost::session::State;

const ROUNDS: u32 = 50;

fn config(packed: bool) -> PodConfig {
    let packed = if packed { bits::RING_PACKED } else { 0 };
    let features = bits::VERSION_1 | bits::PROTOCOL_FEATURES | bits::MRG_RXBUF | packed;
    let protocol = protocol::MQ | protocol::REPLY_ACK | protocol::INFLIGHT_SHMFD | protocol::STATUS;
    // Indices wrap while the test runs.
    PodConfig { features, protocol, size: 128, first_index: 0xff00, ..PodConfig::default() }
}

/// Sends for ever what has no end.
fn blast(pod: &mut Pod) {
    let mut next = 0;
    while pod.is_connected() {
        while pod.send(0, &numbered(next)) {
            next += 1;
        }
        while pod.receive(0).is_some() {}
    }
}

/// The pod that is killed: this test as a program of its own.
#[test]
fn part_a_pod_that_blasts() {
    if let Some(path) = program::is_part() {
        let mut pod = connect(&path, config(path.to_string_lossy().ends_with('1')));
        println!("connected");
        blast(&mut pod);
    }
}

#[test]
fn pods_that_are_killed_leave_the_switch_and_its_other_pods_as_they_were() {
    // Ports 0 and 1 are two good pods; the killed one is at port 2, which answers to itself.
    let paths = [path(), path(), path().with_extension("x0"), path().with_extension("x1")];
    let fabric = Fabric::serving(&paths, 1);
    let (mut left, mut right) = fabric.pods(config(false), config(true));
    for round in 0..ROUNDS {
        let port = 2 + round as usize % 2;
        let pod = program::part("part_a_pod_that_blasts", &paths[port]);
        until("the pod is served", || fabric.status(port).served == 1);
        exchange(&mut left, &mut right, 0, 20 + round);
        pod.kill();
        until("its end is seen", || fabric.status(port).state == State::Waiting);
    }
    exchange(&mut right, &mut left, 0, 500);
    for (port, connections) in [(0, 1), (1, 1), (2, 25), (3, 25)] {
        let status = fabric.status(port);
        assert_eq!((status.connections, status.faults), (connections, 0), "port {port}: {:?}", status.reason);
    }
}

#[test]
fn a_switch_that_is_killed_loses_no_descriptor_and_uses_none_twice() {
    for packed in [false, true] {
        let sockets = [path(), path()];
        let listeners = sockets.each_ref().map(|path| UnixListener::bind(path).unwrap());
        let mut pods = [Pod::new(config(packed)), Pod::new(config(packed))];
        let (mut sent, mut last, mut got) = (0u32, None, 0u64);
        for round in 0..ROUNDS {
            let switch = Program::switch(&["--poll"], &sockets);
            for (listener, pod) in listeners.iter().zip(&mut pods) {
                pod.attach(answer(listener, fabric::PATIENCE).unwrap()).unwrap();
            }
            let [left, right] = &mut pods;
            let (from, before) = (Instant::now(), got);
            let mut first = None;
            // Into the middle of the traffic, each time elsewhere.
            while first
                .is_none_or(|first: Instant| first.elapsed() < Duration::from_micros(u64::from(round) * 300))
            {
                while left.send(0, &numbered(sent)) {
                    sent += 1;
                }
                while let Some(packet) = right.receive(0) {
                    let number = number(&packet.bytes);
                    assert!(last.is_none_or(|last| number > last), "frame {number} came after {last:?}");
                    (last, got) = (Some(number), got + 1);
                    first.get_or_insert_with(Instant::now);
                }
                assert!(
                    from.elapsed() < fabric::PATIENCE,
                    "round {round}: {got} frames arrived, none since {before}"
                );
            }
            switch.kill();
            until("the pods see it", || pods.iter().all(|pod| !pod.is_connected()));
        }
        // A last one finishes what was begun.
        let _switch = Program::switch(&["--poll"], &sockets);
        for (listener, pod) in listeners.iter().zip(&mut pods) {
            pod.attach(answer(listener, fabric::PATIENCE).unwrap()).unwrap();
        }
        let [left, right] = &mut pods;
        until("every frame that was sent is taken", || {
            while right.receive(0).is_some() {}
            left.unsent() == 0
        });
        greet(left, right);
        exchange(left, right, 0, 300);
        exchange(right, left, 0, 300);
        until("every buffer to receive into is with the switch or free", || {
            right.posted() == 128 && left.posted() == 128
        });
        println!("packed {packed}: {got} of {sent} frames arrived, {} kills", ROUNDS);
        sockets.iter().for_each(|path| std::fs::remove_file(path).unwrap());
    }
}
