//! Cycles of the time-stamp counter for a verdict, and what a compile takes, at 10 to 100 000 rules for one endpoint.
//!
//! `cargo bench -p penstock-bench --bench policy`. The rules are of the kind that classifiers find hard: each has a prefix and a port
//! range of its own, prefixes nest, some rules are for any peer. Packets come with their peer id: the longest-prefix match
//! that finds it is the caller's, and has its own bench. Three of four packets are made to fit some rule.

#![allow(missing_docs)]

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{BenchmarkGroup, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use ipnet::{IpNet, Ipv4Net};
use penstock_bench::cycles::Cycles;
use penstock_policy::{
    Action, Direction, Directions, Endpoint, Identity, Packet, Peer, Policy, PortMatch, Program, Protocol,
    Rule, Rules, Subjects, Tier, TierDefault, compile,
};

/// Packets that a worker looks up together.
const BURST: usize = 32;
/// Packets to choose from: more than the branch predictor learns by heart.
const PACKETS: usize = 1 << 16;
const COUNTS: [usize; 5] = [10, 100, 1_000, 10_000, 100_000];

/// Numbers without pattern, always the same (xorshift, Marsaglia 2003).
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: u64) -> u64 {
        (self.roll() >> 16) % end
    }
}

const POD: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);

/// Half single addresses, the rest /20 to /31 in 10.0.0.0/8: broader ones would hide most others.
fn prefix(dice: &mut Dice) -> Ipv4Net {
    let len = if dice.below(2) == 0 { 32 } else { 20 + dice.below(12) as u8 };
    Ipv4Net::new((10 << 24 | dice.below(1 << 24) as u32).into(), len).expect("at most 32 bits").trunc()
}

/// A rule for any peer has one port: more, and the many of them would hide all others.
fn ports(dice: &mut Dice, any_peer: bool) -> PortMatch {
    let protocol = if dice.below(2) == 0 { Protocol::Tcp } else { Protocol::Udp };
    let first = dice.below(65_000) as u16;
    let ports = match dice.below(4) {
        _ if any_peer => Some(first..=first),
        0 => None,
        1 => Some(first..=first),
        _ => Some(first..=first.saturating_add(dice.below(2_000) as u16)),
    };
    PortMatch { ports, ..PortMatch::all(protocol) }
}

fn rule(dice: &mut Dice, number: usize) -> Rule {
    let prefix = IpNet::V4(prefix(dice));
    let any_peer = number % 500 == 499;
    Rule {
        name: format!("rule{number}"),
        direction: Direction::Ingress,
        action: if dice.below(3) == 0 { Action::Deny } else { Action::Allow },
        peers: if any_peer { Vec::new() } else { vec![Peer::Prefix { prefix, except: Vec::new() }] },
        ports: vec![ports(dice, any_peer)],
    }
}

fn rules(count: usize) -> Arc<Rules> {
    let mut dice = Dice(0x2545_f491_4f6c_dd1d);
    let policy = Policy {
        name: "acl".into(),
        network: "default".into(),
        tier: "network".into(),
        order: 0,
        subjects: Subjects::All,
        directions: Directions { ingress: true, egress: false },
        rules: (0..count).map(|number| rule(&mut dice, number)).collect(),
        staged: false,
    };
    Arc::new(Rules {
        identities: Vec::new().into(),
        tiers: vec![Tier { name: "network".into(), order: 0, default: TierDefault::Deny }],
        policies: vec![Arc::new(policy)].into(),
        endpoints: vec![Endpoint {
            name: "pod".into(),
            network: "default".into(),
            addresses: vec![POD.into()],
        }],
    })
}

/// Packets of which three in four fit some rule.
fn packets(rules: &Rules, program: &Program) -> Vec<Packet> {
    let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
    let peers = program.peers("default").expect("the network has an endpoint");
    let written = &rules.policies[0].rules;
    let packet = |_| {
        let rule = &written[dice.below(written.len() as u64) as usize];
        let near = dice.below(4) > 0;
        let address = match rule.peers.first() {
            Some(Peer::Prefix { prefix: IpNet::V4(prefix), .. }) if near => {
                let host = dice.roll() as u32 & !u32::from(prefix.netmask());
                Ipv4Addr::from(u32::from(prefix.network()) | host)
            }
            _ => Ipv4Addr::from(10 << 24 | dice.below(1 << 24) as u32),
        };
        let key = match &rule.ports[0].ports {
            Some(range) if near => {
                range.start() + dice.below(u64::from(range.end() - range.start()) + 1) as u16
            }
            _ => dice.roll() as u16,
        };
        let protocol = rule.ports[0].protocol.number();
        Packet { peer: peers.look_up(IpAddr::V4(address)), protocol, key: Some(key) }
    };
    (0..PACKETS).map(packet).collect()
}

fn verdicts(criterion: &mut Criterion<Cycles>) {
    let mut group = criterion.benchmark_group("policy");
    group.throughput(Throughput::Elements(BURST as u64));
    for count in COUNTS {
        let rules = rules(count);
        let program = compile(&rules, None).expect("rules without faults");
        let packets = packets(&rules, &program);
        classify(&mut group, count, &program, &packets);
    }
    group.finish();
}

/// One by one and in bursts, an iteration is a burst.
fn classify(group: &mut BenchmarkGroup<'_, Cycles>, count: usize, program: &Program, packets: &[Packet]) {
    let subject = program.endpoint("pod").expect("it was compiled");
    let bursts: Vec<[Packet; BURST]> =
        packets.chunks_exact(BURST).map(|burst| burst.try_into().expect("exact chunks")).collect();
    let mut next = bursts.iter().cycle();
    group.bench_function(BenchmarkId::new("one by one", count), |bench| {
        bench.iter(|| {
            let burst = next.next().expect("an endless cycle");
            burst.each_ref().map(|packet| subject.classify(Direction::Ingress, black_box(packet)))
        });
    });
    group.bench_function(BenchmarkId::new("in bursts", count), |bench| {
        bench.iter(|| {
            subject.classify_many(Direction::Ingress, black_box(next.next().expect("an endless cycle")))
        });
    });
}

fn best_of<T>(times: usize, mut work: impl FnMut() -> T) -> Duration {
    let once = |_| {
        let start = Instant::now();
        black_box(work());
        start.elapsed()
    };
    (0..times).map(once).min().unwrap_or_default()
}

/// What a compile takes and how large its tables are; printed, since these are milliseconds and not cycles.
fn compiles(_: &mut Criterion<Cycles>) {
    for count in COUNTS {
        let rules = rules(count);
        let program = compile(&rules, None).expect("rules without faults");
        let took = best_of(3, || compile(&rules, None));
        let subject = program.endpoint("pod").expect("it was compiled");
        let peers = program.peers("default").expect("the network has an endpoint").count();
        println!(
            "compile {count:>6} rules: {:>8.2} ms, {:>9.3} MB, {peers} peers, {} table(s), {} rules met",
            took.as_secs_f64() * 1e3,
            program.bytes() as f64 / 1e6,
            subject.tables(Direction::Ingress),
            met(&rules, &program),
        );
    }
    cluster();
}

/// How many different rules decide the packets: few, and the figures would be those of a small set.
fn met(rules: &Rules, program: &Program) -> usize {
    let subject = program.endpoint("pod").expect("it was compiled");
    let decisions =
        packets(rules, program).into_iter().map(|packet| subject.classify(Direction::Ingress, &packet));
    decisions.map(|verdict| verdict.decision).collect::<std::collections::HashSet<_>>().len()
}

/// A cluster of 30 000 pods and policies, 100 of the pods here: what one change costs.
fn cluster() {
    const APPS: usize = 3_000;
    let app = |number: usize| format!("app{number:05}");
    let pod = |number: usize| Ipv4Addr::from(10 << 24 | number as u32);
    let host = |number: usize| IpNet::V4(Ipv4Net::new(pod(number), 32).expect("32 bits"));
    let identity = |number: usize| {
        let prefixes = (0..10).map(|replica| host(number + replica * APPS)).collect();
        Arc::new(Identity { name: app(number), network: "default".into(), prefixes })
    };
    let policy = |number: usize| {
        let peer = |offset: usize| Peer::Identity(app((number * 7 + offset) % APPS));
        let rule = |port: u16| Rule {
            name: String::new(),
            direction: Direction::Ingress,
            action: Action::Allow,
            peers: vec![peer(1), peer(2), peer(3)],
            ports: vec![PortMatch { ports: Some(port..=port), ..PortMatch::all(Protocol::Tcp) }],
        };
        Arc::new(Policy {
            name: format!("policy{number:05}"),
            network: "default".into(),
            tier: "network".into(),
            order: 0,
            subjects: Subjects::Identities(vec![app(number % APPS)]),
            directions: Directions { ingress: true, egress: false },
            rules: vec![rule(80), rule(443)],
            staged: false,
        })
    };
    let endpoint = |number: usize| Endpoint {
        name: format!("pod{number}"),
        network: "default".into(),
        addresses: vec![pod(number).into()],
    };
    let rules = Arc::new(Rules {
        identities: (0..APPS).map(identity).collect(),
        tiers: vec![Tier { name: "network".into(), order: 0, default: TierDefault::Deny }],
        policies: (0..30_000).map(policy).collect(),
        endpoints: (0..100).map(endpoint).collect(),
    });
    let program = compile(&rules, None).expect("rules without faults");
    let show = |what: &str, took: Duration| println!("cluster, {what}: {:.2} ms", took.as_secs_f64() * 1e3);
    show("from nothing", best_of(3, || compile(&rules, None)));
    show("nothing changed", best_of(5, || compile(&rules, Some(&program))));
    let mut pod_came = rules.clone();
    Arc::make_mut(&mut Arc::make_mut(&mut pod_came).identities[8]).prefixes.push(host(40_000));
    show("a pod came elsewhere", best_of(5, || compile(&pod_came, Some(&program))));
    let mut policy_changed = rules.clone();
    Arc::make_mut(&mut Arc::make_mut(&mut policy_changed).policies[17]).rules[0].action = Action::Deny;
    show("a policy changed", best_of(5, || compile(&policy_changed, Some(&program))));
    let mut pod_here = rules.clone();
    Arc::make_mut(&mut pod_here).endpoints.push(endpoint(100));
    show("a pod came here", best_of(5, || compile(&pod_here, Some(&program))));
    println!("cluster: {:.3} MB", program.bytes() as f64 / 1e6);
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .with_measurement(Cycles)
        .sample_size(20)
        .measurement_time(Duration::from_secs(1))
        .warm_up_time(Duration::from_millis(500))
        .without_plots();
    targets = compiles, verdicts
}
criterion_main!(benches);
