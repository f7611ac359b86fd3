use std::sync::Arc;
use std::time::{Duration, Instant};

use penstock_io::mem::MemPort;
use penstock_io::{Hugepages, Region};

use crate::flow::DeviceId;
use crate::mailbox::{Command, Events, Exit, Takes};
use crate::port::{AnyPort, OwnedPort, PortId};
use crate::tables::compile::compile;
use crate::testbed::{self, Datagram, FIRST_ENDPOINT, UPLINK};
use crate::worker::{Handle, Idle, Plan};

fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let from = Instant::now();
    while !condition() {
        assert!(from.elapsed() < Duration::from_secs(10), "not in time: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_worker_that_panics_is_counted_and_goes_on_with_sound_tables() {
    let mut node = testbed::node(&testbed::two_pods("veth"), &[testbed::NODE.into()]);
    // Tables that `compile` never makes: a zone that names an endpoint which is not there.
    let mut broken = compile(&node.desired, &node.underlay, node.author.book(), None);
    broken.endpoints.clear();
    node.publisher.publish(broken);
    let region = Region::map(4096, Hugepages::Off).unwrap();
    let plan =
        Plan { id: 3, cpu: None, idle: Idle::Adaptive, flows4: 1024, flows6: 64, region, tracker: None };
    let worker = Handle::spawn(plan, node.publisher.reader(), Arc::<Events>::default()).unwrap();
    let frame = Datagram::from_pod_a(testbed::REMOTE_POD, 99, 53).frame();
    let ports = [(UPLINK, MemPort::discard()), (FIRST_ENDPOINT, MemPort::replay(&[frame], vec![0]))];
    for (device, port) in ports {
        let (id, port) = (PortId(device.into()), AnyPort::Mem(Box::new(port)));
        let device = DeviceId(device);
        worker.tell(Command::AddPort(Box::new(OwnedPort { id, device, port })));
        worker.tell(Command::SetExit(device, Exit::Own(id, Takes::default())));
    }
    until("the worker has panicked more than once", || worker.health().restarts > 1);
    let health = worker.health();
    assert!(!health.stopped && health.last_panic.contains("index out of bounds"), "{health:?}");
    assert_eq!(worker.stats.counts().tx, 0);

    node.publish();
    worker.ring();
    until("it forwards", || worker.stats.counts().tx > 1000);
    let panics = worker.health().restarts;
    worker.tell(Command::Stop);
    until("it stops", || worker.health().stopped);
    assert_eq!(worker.health().restarts, panics, "it panicked with sound tables");
    worker.join();
}

#[test]
fn a_worker_sends_by_a_port_as_soon_as_it_has_it() {
    let mut node = testbed::node(&testbed::two_pods("veth"), &[testbed::NODE.into()]);
    let region = Region::map(4096, Hugepages::Off).unwrap();
    let plan =
        Plan { id: 0, cpu: None, idle: Idle::Adaptive, flows4: 1024, flows6: 64, region, tracker: None };
    let worker = Handle::spawn(plan, node.publisher.reader(), Arc::<Events>::default()).unwrap();
    let frame = Datagram::from_pod_a(testbed::REMOTE_POD, 99, 53).frame();
    // Nobody says how frames for these devices leave.
    let ports = [(UPLINK, MemPort::discard()), (FIRST_ENDPOINT, MemPort::replay(&[frame], vec![0]))];
    for (device, port) in ports {
        let (id, port) = (PortId(device.into()), AnyPort::Mem(Box::new(port)));
        worker.tell(Command::AddPort(Box::new(OwnedPort { id, device: DeviceId(device), port })));
    }
    until("it forwards", || worker.stats.counts().tx > 1000);
    assert_eq!(worker.stats.counts().dropped, 0);
    worker.tell(Command::Stop);
    until("it stops", || worker.health().stopped);
    worker.join();
}
