//! What a change of policy takes from the moment it is told until the worker goes by it, among 0 to 30,000 policies, and
//! what a compile takes and its memory at 10,000 and 100,000 rules: `cargo bench -p penstock-bench --bench changes`.

#![allow(missing_docs)]

use std::time::{Duration, Instant};

use penstock_api::file::parse_objects;
use penstock_api::model::{Key, Name, Object, Policy, RuleAction};
use penstock_dataplane::tables::compile::compile;
use penstock_dataplane::tables::desired::Change;
use penstock_dataplane::testbed::{self, NODE, Sizes, Testbed};
use penstock_io::Ticks;

/// Labels of pods; as many policies select each as there are policies for one.
const APPS: usize = 3_000;
/// Pods on this node.
const PODS: usize = 100;
/// Changes measured.
const ROUNDS: usize = 25;

fn main() {
    for policies in [0, 1_000, 10_000, 30_000] {
        let mut node = cluster(policies);
        let mut took: Vec<[Duration; 4]> = (0..ROUNDS).map(|round| one_changed(&mut node, round)).collect();
        took.sort_by_key(|parts| parts.iter().sum::<Duration>());
        let [told, revised, compiled, live] = took[ROUNDS / 2].map(|part| part.as_secs_f64() * 1e3);
        println!(
            "change one policy among {policies:>6}: live after {:>7.2} ms; told {told:.2}, policies {revised:.2}, tables \
             {compiled:.2}, published and live {live:.2}; slowest {:.2} ms",
            told + revised + compiled + live,
            took[ROUNDS - 1].iter().sum::<Duration>().as_secs_f64() * 1e3
        );
    }
    for rules in [10_000, 100_000] {
        whole(rules);
    }
}

fn cluster(policies: usize) -> Testbed {
    let network = "[[network]]\nname = \"default\"\nvni = 100\nprefixes = [\"10.0.0.0/8\"]\n\
                   [[tier]]\nname = \"application\"\norder = 1\ndefault = \"deny\"\n";
    let endpoint = |number: usize| {
        format!(
            "[[endpoint]]\nname = \"pod{number}\"\nnetwork = \"default\"\nmac = \"02:00:00:00:01:{number:02x}\"\n\
             addresses = [\"10.0.0.{}\"]\nidentity = \"app{number:05}\"\n\
             attachment = {{ tap = {{ interface = \"t{number}\" }} }}\n",
            number + 1
        )
    };
    let objects = network.to_owned() + &identities() + &(0..PODS).map(endpoint).collect::<String>();
    let sizes = Sizes { flows: 1024, chunks: 4096, connections: Some(1024) };
    let mut node = testbed::node_of(&objects, &[NODE.into()], sizes);
    let policies = (0..policies).map(|number| Object::Policy(policy(number, RuleAction::Allow)));
    node.desired.apply(Change::Upsert(policies.collect())).expect("sound policies");
    node.publish();
    node
}

/// A label of ten pods each, elsewhere.
fn identities() -> String {
    let identity = |number: usize| {
        let pods = (0..10).map(|replica| {
            let pod = std::net::Ipv4Addr::from(0x0a01_0000 + (number + replica * APPS) as u32);
            format!("\"{pod}/32\",")
        });
        let pods: String = pods.collect();
        format!("[[identity]]\nname = \"app{number:05}\"\nnetwork = \"default\"\nprefixes = [{pods}]\n")
    };
    (0..APPS).map(identity).collect()
}

/// Two ports for three labels.
fn policy(number: usize, action: RuleAction) -> Policy {
    let peer = |offset: usize| format!("{{ identity = \"app{:05}\" }}", (number * 7 + offset) % APPS);
    let rule = |port: u16| {
        format!(
            "[[policy.rules]]\nname = \"r{port}\"\ndirection = \"ingress\"\naction = \"{action}\"\n\
             peers = [{}, {}, {}]\nports = [{{ protocol = \"tcp\", port = {port} }}]\n",
            peer(1),
            peer(2),
            peer(3)
        )
    };
    let text = format!(
        "[[policy]]\nname = \"policy{number:05}\"\nnetwork = \"default\"\ntier = \"application\"\n\
         subjects = {{ identities = [\"app{:05}\"] }}\ndirections = [\"ingress\"]\n{}{}",
        number % APPS,
        rule(80),
        rule(443)
    );
    only_policy(&text)
}

fn only_policy(text: &str) -> Policy {
    match parse_objects(text, "bench").expect("a sound policy").pop() {
        Some(Object::Policy(policy)) => policy,
        other => panic!("{other:?} is no policy"),
    }
}

/// Changes a policy of a pod of this node: told, policies compiled, other tables compiled, live on the worker.
fn one_changed(node: &mut Testbed, round: usize) -> [Duration; 4] {
    let action = if round.is_multiple_of(2) { RuleAction::Deny } else { RuleAction::Allow };
    let change = Change::Upsert(vec![Object::Policy(policy(round / 2, action))]);
    let mut moments = vec![Instant::now()];
    node.desired.apply(change).expect("a sound policy");
    moments.push(Instant::now());
    node.author.revise(&node.desired).expect("policies that fit");
    moments.push(Instant::now());
    let next = compile(&node.desired, &node.underlay, node.author.book(), Some(&node.publisher.current()));
    moments.push(Instant::now());
    node.publisher.publish(next);
    node.worker.turn(Ticks::now());
    moments.push(Instant::now());
    std::array::from_fn(|part| moments[part + 1] - moments[part])
}

/// One policy of many rules, each for a prefix and a port of its own, taken up by a node that has none.
fn whole(rules: usize) {
    let mut node = testbed::node_of(
        &testbed::two_pods("tap"),
        &[NODE.into()],
        Sizes { flows: 1024, chunks: 4096, connections: Some(1024) },
    );
    let template = only_policy(
        "[[policy]]\nname = \"acl\"\nnetwork = \"default\"\ntier = \"application\"\nsubjects = \"all\"\n\
         directions = [\"ingress\"]\n[[policy.rules]]\nname = \"r\"\ndirection = \"ingress\"\naction = \"allow\"\n\
         peers = [{ prefix = \"192.0.2.0/24\" }]\nports = [{ protocol = \"tcp\", port = 80 }]\n",
    );
    let rule = |number: usize| {
        let prefix = std::net::Ipv4Addr::from(0x0a00_0000 + (number as u32) * 16);
        let mut rule = template.rules[0].clone();
        rule.name = name(&format!("r{number}"));
        rule.peers = vec![penstock_api::model::RulePeer::Prefix {
            prefix: format!("{prefix}/28").parse().expect("a prefix"),
            except: Vec::new(),
        }];
        rule.ports[0].port = penstock_api::model::PortRange::new(1 + (number % 60_000) as u16, 60_000).ok();
        rule
    };
    let policy = Policy { rules: (0..rules).map(rule).collect(), ..template };
    let tier = "[[tier]]\nname = \"application\"\norder = 1\ndefault = \"deny\"\n";
    let mut objects = parse_objects(tier, "bench").expect("a sound tier");
    objects.push(Object::Policy(policy));
    let before = resident();
    let start = Instant::now();
    node.desired.apply(Change::Upsert(objects)).expect("a sound policy");
    node.publish();
    node.worker.turn(Ticks::now());
    let took = start.elapsed();
    let grown = (resident() - before) / 1e6;
    let tables = node.publisher.current().policies.bytes() as f64 / 1e6;
    let again = Instant::now();
    node.desired.apply(Change::Delete(vec![Key::Policy(name("acl"))])).expect("it is there");
    node.publish();
    node.worker.turn(Ticks::now());
    println!(
        "a policy of {rules:>6} rules: live after {:.1} ms, gone after {:.1}; {tables:.1} MB of tables to look up, {grown:.1} \
         MB with the rules as they were told",
        took.as_secs_f64() * 1e3,
        again.elapsed().as_secs_f64() * 1e3
    );
}

fn name(text: &str) -> Name {
    text.parse().expect("a valid name")
}

/// Bytes of this process that are in memory.
fn resident() -> f64 {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("Linux has /proc");
    let pages: f64 = statm.split(' ').nth(1).and_then(|pages| pages.parse().ok()).expect("resident pages");
    pages * 4096.0
}
