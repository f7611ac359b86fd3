//! Services without backends, through another node and back to who asked, packet by packet.

use penstock_dataplane::drop::Cause;
use penstock_dataplane::tables::desired::Change;
use penstock_dataplane::testbed::Testbed;
use penstock_wire::parse::{Net, parse};
use penstock_wire::tcp::{self, Tcp};

use super::stateful::{SERVICE, flow, node, refused, tcp as tcp_frame};
use super::{MAC_A, POD_A};

const A: [u8; 4] = [10, 1, 1, 1];

fn without_backends() -> Testbed {
    let mut node = node();
    let mut backends = node.desired.backends(&"database".parse().unwrap()).next().unwrap().clone();
    backends.members.clear();
    node.desired.apply(Change::Upsert(vec![penstock_api::model::Object::Backends(backends)])).unwrap();
    node.publish();
    node
}

#[test]
fn tcp_to_a_service_without_a_backend_is_reset_by_the_service() {
    let mut node = without_backends();
    let question = tcp_frame(POD_A, (A, 40000), (SERVICE, 80), "S");
    let answers = node.through(POD_A, &question, POD_A);
    assert_eq!(answers.len(), 1);
    let answered = flow(&answers[0]);
    assert_eq!((answered.src.octets(), answered.dst.octets()), (SERVICE, A));
    let parsed = parse(&answers[0]).unwrap();
    let segment = Tcp::new_checked(&answers[0][parsed.l4.into()..parsed.end.into()]).unwrap();
    // The SYN is one number, its payload "hello" five.
    assert_eq!((segment.src_port(), segment.dst_port(), segment.flags()), (80, 40000, tcp::RST | tcp::ACK));
    assert_eq!(segment.acknowledgement(), 1 + 6);
    assert_eq!(node.worker.drops(Cause::NoBackend), 1);
    // A port that the service does not have is refused in the same way.
    assert_eq!(node.through(POD_A, &tcp_frame(POD_A, (A, 40000), (SERVICE, 81), "S"), POD_A).len(), 1);
}

#[test]
fn udp_to_a_service_without_a_backend_is_answered_by_icmp() {
    let mut node = without_backends();
    let question = super::udp4(MAC_A, A, SERVICE, 64, 10);
    let answers = node.through(POD_A, &question, POD_A);
    assert_eq!(super::icmp_of(&answers[0]), (3, 3), "port unreachable");
    let Net::V4(answered) = parse(&answers[0]).unwrap().net else { panic!("no IPv4 packet") };
    assert_eq!(answered.dst.octets(), A);
}

#[test]
fn a_reset_for_a_service_without_a_backend_is_not_answered() {
    let mut node = without_backends();
    refused(&mut node, POD_A, &tcp_frame(POD_A, (A, 40000), (SERVICE, 80), "R"), Cause::ConnectionNotOpened);
    assert!(node.sent(POD_A).is_empty());
}
