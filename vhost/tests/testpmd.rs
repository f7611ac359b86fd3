//! DPDK's testpmd as the guest: its virtio-user driver with every kind of ring against our ports.

#![allow(clippy::unwrap_used, reason = "the leave for tests does not reach the functions beside them")]

mod fabric;

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use fabric::program::Program;
use fabric::{Fabric, path, until};
use penstock_vhost::features;
use penstock_vhost::session::State;

/// One testpmd at a time: each keeps two processors busy.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Packets that each port received, from what testpmd says at its end.
fn received(said: &str) -> Vec<u64> {
    let number =
        |line: &str| line.trim().strip_prefix("RX-packets:")?.split_whitespace().next()?.parse().ok();
    said.lines().filter_map(number).collect()
}

/// Lets one testpmd send all the while from each of its two ports to the other through the switch.
fn circulate(device: &str, pairs: u16, wanted: u64, unwanted: u64) {
    println!("{device}, {pairs} pairs");
    let _alone = alone();
    let fabric = Fabric::pair(pairs);
    fabric.stay_awake();
    let queues = format!("--forward-mode=flowgen --rxq={pairs} --txq={pairs} --rxd=256 --txd=256");
    let testpmd =
        Program::testpmd(&fabric.paths, &format!("queue_size=256,queues={pairs},{device}"), &queues);
    until("both ports run", || (0..2).all(|port| fabric.status(port).served == usize::from(pairs)));
    for port in 0..2 {
        let agreed = fabric.status(port).features;
        assert_eq!(agreed & (wanted | unwanted), wanted, "agreed: {:?}", features::names(agreed));
    }
    until("packets go round", || fabric.carried() > 100_000);
    let said = testpmd.finish();
    let received = received(&said);
    // Two ports, and all ports together.
    assert!(received.len() >= 2 && received.iter().all(|&packets| packets > 1000), "{received:?}\n{said}");
    until("both sessions are over", || (0..2).all(|port| fabric.status(port).state == State::Waiting));
    for port in 0..2 {
        let status = fabric.status(port);
        assert_eq!((status.connections, status.faults), (1, 0), "{:?}", status.reason);
    }
}

#[test]
fn split_rings_carry_testpmds_packets_with_one_pair_and_two() {
    for pairs in [1, 2] {
        circulate("mrg_rxbuf=0,in_order=0", pairs, 0, features::RING_PACKED | features::MRG_RXBUF);
        circulate("mrg_rxbuf=1,in_order=0", pairs, features::MRG_RXBUF, features::RING_PACKED);
    }
    circulate("mrg_rxbuf=1,in_order=1", 1, features::MRG_RXBUF | features::IN_ORDER, features::RING_PACKED);
}

#[test]
fn packed_rings_carry_testpmds_packets_with_one_pair_and_two() {
    for pairs in [1, 2] {
        circulate("packed_vq=1,mrg_rxbuf=0,in_order=0", pairs, features::RING_PACKED, features::MRG_RXBUF);
        circulate(
            "packed_vq=1,mrg_rxbuf=1,in_order=0",
            pairs,
            features::RING_PACKED | features::MRG_RXBUF,
            0,
        );
    }
    circulate("packed_vq=1,mrg_rxbuf=1,in_order=1", 1, features::RING_PACKED | features::IN_ORDER, 0);
}

/// testpmd ends by `kill -9` in mid-burst, again and again; the switch serves the next.
#[test]
fn a_testpmd_that_is_killed_leaves_the_switch_as_it_was() {
    let _alone = alone();
    let fabric = Fabric::pair(1);
    for round in 1..=8 {
        let packed = round % 2;
        let device = format!("queue_size=256,packed_vq={packed}");
        let testpmd = Program::testpmd(&fabric.paths, &device, "--forward-mode=flowgen --rxd=256 --txd=256");
        until("both ports run", || (0..2).all(|port| fabric.status(port).served == 1));
        std::thread::sleep(Duration::from_millis(30 * round));
        testpmd.kill();
        until("both sessions are over", || (0..2).all(|port| fabric.status(port).state == State::Waiting));
    }
    let status = fabric.status(0);
    assert_eq!((status.connections, status.faults), (8, 0), "{:?}", status.reason);
}

/// testpmd serves the sockets; the switch is killed and comes back, and testpmd goes on with it.
#[test]
fn a_switch_that_is_killed_is_taken_up_again_by_testpmd() {
    for packed in [0, 1] {
        let _alone = alone();
        let sockets = [path(), path()];
        let device = format!("queue_size=256,server=1,packed_vq={packed}");
        let mut testpmd = None;
        for round in 1..=6 {
            let switch = Program::switch(&["--stats", "1"], &sockets);
            println!("packed {packed}, round {round}");
            let testpmd = testpmd.get_or_insert_with(|| {
                Program::testpmd(&sockets, &device, "--forward-mode=flowgen --rxd=256 --txd=256")
            });
            let began = Instant::now();
            let flows = |line: &str| {
                let rx =
                    line.split(" rx ").nth(1).and_then(|rest| rest.split(' ').next()?.parse::<u64>().ok());
                line.contains("Running") && rx.is_some_and(|rx| rx > 1000)
            };
            until("packets flow at both ports", || {
                assert!(testpmd.runs(), "testpmd ended: {}", testpmd.said());
                let said = switch.said();
                if began.elapsed() > fabric::PATIENCE / 2 {
                    panic!("no packets flow: {said}\n{}", testpmd.said());
                }
                ["port0", "port1"]
                    .iter()
                    .all(|port| said.lines().any(|line| line.starts_with(port) && flows(line)))
            });
            assert!(
                switch.said().lines().all(|line| !line.starts_with("port") || line.contains(" faults 0 ")),
                "round {round}: {}",
                switch.said()
            );
            // Its own start and its own farewell are not to be disturbed: DPDK 22.11 stumbles over a back-end that is back
            // before it has noticed that it was gone.
            std::thread::sleep(Duration::from_millis(300));
            let farewells = || testpmd.said().matches("link state change event").count();
            let before = farewells();
            switch.kill();
            until("testpmd has noticed", || farewells() >= before + 2);
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}
