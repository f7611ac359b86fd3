//! What a change takes from the moment at which it is told until the worker goes by it, in a cluster of a size, while packets
//! are forwarded.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use penstock_api::file::parse_objects;
use penstock_api::model::Object;
use penstock_dataplane::snapshot::Publisher;
use penstock_dataplane::tables::Snapshot;
use penstock_dataplane::tables::compile::{Layout, Underlay};
use penstock_dataplane::tables::desired::{Change, Desired, Kept};
use penstock_dataplane::tables::rulebook::Author;
use penstock_dataplane::testbed::{self, Datagram, FIRST_ENDPOINT, NODE, Sizes, Testbed};
use penstock_dataplane::worker::Worker;
use penstock_io::Ticks;
use penstock_io::mem::MemPort;

use crate::document::Changed;
use crate::statistics::quantile;
use crate::traffic::{shuffled, udp_flows};
use crate::trial::{TrialError, cpu_of, pin};

/// Pods on this node, besides the two that send and receive.
const PODS: u32 = 100;
/// Pods of a label.
const REPLICAS: u32 = 10;
/// Flows that are forwarded meanwhile.
const FLOWS: u32 = 1000;

/// How large a cluster is.
#[derive(Clone, Copy, Debug)]
pub struct Cluster {
    /// Policies, as many for each label.
    pub policies: u32,
    /// Pods of all nodes, ten a label.
    pub endpoints: u32,
}

/// What is changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A rule of a policy of a pod of this node.
    Policy,
    /// A pod of a label comes or goes on another node.
    Endpoint,
}

impl Kind {
    const fn title(self) -> &'static str {
        match self {
            Kind::Policy => "a policy of a pod here",
            Kind::Endpoint => "a pod comes or goes elsewhere",
        }
    }
}

impl Cluster {
    fn labels(self) -> u32 {
        (self.endpoints / REPLICAS).max(PODS)
    }

    /// The network, the pods here, the labels, and two pods without one that send and receive.
    fn objects(self) -> String {
        let mut text = String::from(
            "[[network]]\nname = \"default\"\nvni = 100\nprefixes = [\"10.0.0.0/8\"]\n\
             [[tier]]\nname = \"application\"\norder = 1\ndefault = \"deny\"\n",
        );
        for number in 0..PODS {
            text += &format!(
                "[[endpoint]]\nname = \"pod{number}\"\nnetwork = \"default\"\nmac = \"02:00:00:00:01:{number:02x}\"\n\
                 addresses = [\"10.0.0.{}\"]\nidentity = \"app{number:05}\"\n\
                 attachment = {{ tap = {{ interface = \"t{number}\" }} }}\n",
                number + 1
            );
        }
        for (number, name) in [(1, "x1"), (2, "x2")] {
            text += &format!(
                "[[endpoint]]\nname = \"{name}\"\nnetwork = \"default\"\nmac = \"02:00:00:00:00:0{number}\"\n\
                 addresses = [\"10.1.1.{number}\"]\nattachment = {{ tap = {{ interface = \"{name}\" }} }}\n"
            );
        }
        text + &(0..self.labels()).map(|number| self.identity(number, false)).collect::<String>()
    }

    /// A label with its pods elsewhere, and with one more.
    fn identity(self, number: u32, with_one_more: bool) -> String {
        let pods = (0..REPLICAS.min(self.endpoints)).map(|replica| number + replica * self.labels());
        let pods = pods.chain(with_one_more.then_some(0x40_0000 + number));
        let prefixes: Vec<String> =
            pods.map(|pod| format!("\"{}/32\"", Ipv4Addr::from(0x0a02_0000 + pod))).collect();
        format!(
            "[[identity]]\nname = \"app{number:05}\"\nnetwork = \"default\"\nprefixes = [{}]\n",
            prefixes.join(",")
        )
    }

    /// Two ports for three labels.
    fn policy(self, number: u32, action: &str) -> String {
        let labels = self.labels();
        let peer = |offset: u32| format!("{{ identity = \"app{:05}\" }}", (number * 7 + offset) % labels);
        let peers = [peer(1), peer(2), peer(3)].join(", ");
        let rule = |port: u16| {
            format!(
                "[[policy.rules]]\nname = \"r{port}\"\ndirection = \"ingress\"\naction = \"{action}\"\npeers = [{peers}]\n\
                 ports = [{{ protocol = \"tcp\", port = {port} }}]\n"
            )
        };
        format!(
            "[[policy]]\nname = \"policy{number:05}\"\nnetwork = \"default\"\ntier = \"application\"\n\
             subjects = {{ identities = [\"app{:05}\"] }}\ndirections = [\"ingress\"]\n{}{}",
            number % labels,
            rule(80),
            rule(443)
        )
    }

    fn change(self, kind: Kind, round: usize) -> Vec<Object> {
        let number = (round / 2) as u32 % PODS;
        let is_first = round.is_multiple_of(2);
        objects(&match kind {
            Kind::Policy => self.policy(number, if is_first { "deny" } else { "allow" }),
            Kind::Endpoint => self.identity(number, is_first),
        })
    }
}

fn objects(text: &str) -> Vec<Object> {
    parse_objects(text, "bench").expect("the objects of a bench are readable")
}

/// What changes are told to, and how they become live.
struct Control {
    desired: Desired,
    underlay: Underlay,
    layout: Kept<(), Layout>,
    author: Author,
    publisher: Publisher<Snapshot>,
}

impl Control {
    /// Tells a change and waits until the worker goes by it.
    fn tell(&mut self, change: Vec<Object>) -> Duration {
        let start = Instant::now();
        self.desired.apply(Change::Upsert(change)).expect("the changes of a bench are sound");
        self.author.revise(&self.desired).expect("the policies of a bench fit");
        let current = self.publisher.current();
        let layout = self.layout.follow(
            &self.desired,
            |key| Layout::follows_from(&self.desired, key),
            (),
            |()| Layout::of(&self.desired, &self.underlay, Some(&current)),
        );
        let next = layout.ruled(&self.desired, self.author.book());
        drop(current);
        let epoch = self.publisher.publish(next);
        while self.publisher.slowest() < epoch {
            std::thread::yield_now();
        }
        let took = start.elapsed();
        self.publisher.reclaim();
        took
    }
}

/// Measures so many changes of a kind.
///
/// # Errors
/// When the worker cannot be pinned.
///
/// # Panics
/// When a cluster is larger than the engine takes.
pub fn measure(cluster: Cluster, kind: Kind, changes: usize) -> Result<Changed, TrialError> {
    let before = resident();
    let sizes = Sizes { flows: 4096, chunks: 8192, connections: Some(4096) };
    let mut node = testbed::node_of(&cluster.objects(), &[NODE.into()], sizes);
    let policies: String = (0..cluster.policies).map(|number| cluster.policy(number, "allow")).collect();
    node.desired.apply(Change::Upsert(objects(&policies))).expect("the policies of a bench are sound");
    let start = Instant::now();
    node.publish();
    let compile_ms = start.elapsed().as_secs_f64() * 1e3;
    let table_bytes = node.publisher.current().policies.bytes() as u64;
    let resident_bytes = resident().saturating_sub(before);
    feed(&node);
    let Testbed { desired, underlay, author, publisher, mut worker, .. } = node;
    let mut control = Control { desired, underlay, layout: Kept::default(), author, publisher };
    let stop = AtomicBool::new(false);
    let (took, counted) = std::thread::scope(|scope| {
        let forwarding = scope.spawn(|| forward(&mut worker, &stop));
        let took: Vec<f64> =
            (0..changes).map(|round| control.tell(cluster.change(kind, round)).as_secs_f64() * 1e3).collect();
        stop.store(true, Ordering::Relaxed);
        let counted = match forwarding.join() {
            Ok(counted) => counted,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        (took, counted)
    });
    let (packets, lost, seconds) = counted?;
    Ok(Changed {
        title: kind.title().to_owned(),
        policies: cluster.policies,
        endpoints: cluster.endpoints,
        changes,
        p50_ms: quantile(&took, 0.5),
        p99_ms: quantile(&took, 0.99),
        max_ms: quantile(&took, 1.0),
        compile_ms,
        table_bytes,
        resident_bytes,
        mpps: packets as f64 / seconds / 1e6,
        lost,
    })
}

/// Frames from the one pod without a label to the other come to the node without end.
fn feed(node: &Testbed) {
    for device in 0..FIRST_ENDPOINT + PODS as u16 + 2 {
        node.open(device, MemPort::discard());
    }
    let frames = udp_flows(Datagram::from_pod_a([10, 1, 1, 2], 0, 0), FLOWS);
    // Endpoints are in the order of their names.
    node.open(FIRST_ENDPOINT + PODS as u16, MemPort::replay(&frames, shuffled(FLOWS)));
}

/// Forwards on a CPU of its own until told to stop; returns packets, those lost, and the time in seconds.
fn forward(worker: &mut Worker, stop: &AtomicBool) -> Result<(u64, u64, f64), TrialError> {
    pin(cpu_of(0))?;
    let (start, before) = (Instant::now(), worker.counts());
    while !stop.load(Ordering::Relaxed) {
        for _ in 0..16 {
            worker.turn(Ticks::now());
        }
    }
    let after = worker.counts();
    Ok((after.tx - before.tx, after.dropped - before.dropped, start.elapsed().as_secs_f64()))
}

/// Bytes of this process that are in memory.
fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    statm.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()).unwrap_or(0) * 4096
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_become_live_while_packets_are_forwarded() {
        let cluster = Cluster { policies: 20, endpoints: 1000 };
        for kind in [Kind::Policy, Kind::Endpoint] {
            let changed = measure(cluster, kind, 6).expect("a CPU to pin to");
            assert!(changed.p50_ms > 0.0 && changed.p99_ms >= changed.p50_ms, "{changed:?}");
            assert!(changed.mpps > 0.0 && changed.lost == 0 && changed.table_bytes > 0, "{changed:?}");
        }
    }
}
