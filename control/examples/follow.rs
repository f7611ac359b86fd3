//! How long it takes from a change of a large cluster to live on every worker of a dataplane, and what the agent's half of it
//! keeps in memory.
//!
//! `follow SOCKET [PODS] [POLICIES]`, beside a penstockd that nobody else drives: in a lab, say.

use std::error::Error;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use penstock_control::cluster::{Change, Cluster};
use penstock_control::kubernetes::Object;
use penstock_control::manifests::parse;
use penstock_control::push::{Dataplane, EVENTS, PushMetrics, Pusher, Wanted};
use penstock_control::translate::{Settings, Translation};
use tokio::sync::mpsc;

/// Pods on a node, which is what kubelet allows.
const ON_A_NODE: usize = 110;
/// Pods that have the same labels, and policies.
const ALIKE: usize = 20;
/// Changes that are measured, of each kind.
const ROUNDS: usize = 500;

fn objects(text: &str) -> Result<Vec<Object>, String> {
    let manifests = parse(text, "generated".as_ref());
    let manifests = manifests.map_err(|faults| faults.iter().map(ToString::to_string).collect::<String>())?;
    Ok(manifests.objects)
}

fn pod(i: usize, round: usize) -> String {
    let (node, app) = (i / ON_A_NODE + 1, (i + round) / ALIKE);
    let address = format!("10.{}.{}.{}", 100 + (i >> 16), (i >> 8) & 255, i & 255);
    format!(
        "{{\"apiVersion\": \"v1\", \"kind\": \"Pod\", \"metadata\": {{\"name\": \"p{i}\", \"namespace\": \"n{}\", \"labels\": {{\"app\": \"a{app}\"}}}}, \
         \"spec\": {{\"nodeName\": \"node{node}\", \"containers\": []}}, \
         \"status\": {{\"phase\": \"Running\", \"podIP\": \"{address}\", \"podIPs\": [{{\"ip\": \"{address}\"}}]}}}}",
        i % 100
    )
}

fn policy(i: usize, pods: usize, port: usize) -> String {
    let apps = pods / ALIKE;
    format!(
        "{{\"apiVersion\": \"networking.k8s.io/v1\", \"kind\": \"NetworkPolicy\", \"metadata\": {{\"name\": \"q{i}\", \"namespace\": \"n{}\"}}, \
         \"spec\": {{\"podSelector\": {{\"matchLabels\": {{\"app\": \"a{}\"}}}}, \"ingress\": [{{\"from\": [{{\"podSelector\": {{\"matchLabels\": \
         {{\"app\": \"a{}\"}}}}}}], \"ports\": [{{\"port\": {port}}}]}}]}}}}",
        i % 100,
        i % apps,
        (i * 7) % apps
    )
}

/// Resident memory in MB (`proc(5)`, `statm` in pages).
fn resident() -> f64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = text.split(' ').nth(1).and_then(|pages| pages.parse::<f64>().ok());
    pages.unwrap_or(0.0) * 4096.0 / 1e6
}

struct Agent {
    cluster: Cluster,
    translation: Translation,
    wanted: Wanted,
}

impl Agent {
    /// Follows a change until it is live. The whole time, and that of the translation.
    async fn follow(&mut self, objects: Vec<Object>) -> (Duration, Duration) {
        let since = Instant::now();
        let mut change = Change::default();
        objects.iter().for_each(|object| change.merge(self.cluster.apply(object)));
        let delta = self.translation.follow(&self.cluster, &change);
        let gone = delta.deletes.into_iter().map(|key| (key, None));
        let upserts = delta.upserts.into_iter().map(|object| (object.key(), Some(object)));
        let translated = since.elapsed();
        let ticket = self.wanted.change(since, gone.chain(upserts));
        let progress = self.wanted.settled(ticket).await;
        for (key, faults) in progress.refused.iter().take(3) {
            eprintln!("refused: {key}: {faults:?}");
        }
        (since.elapsed(), translated)
    }
}

fn say(what: &str, mut times: Vec<(Duration, Duration)>) {
    times.sort_unstable();
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize].0;
    let mut translated: Vec<Duration> = times.iter().map(|(_, translated)| *translated).collect();
    translated.sort_unstable();
    println!(
        "{what}: live after p50 {:?}, p99 {:?}, at most {:?}; translated after p50 {:?}, p99 {:?}",
        at(0.5),
        at(0.99),
        at(1.0),
        translated[translated.len() / 2],
        translated[translated.len() * 99 / 100]
    );
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut words = std::env::args().skip(1);
    let socket = PathBuf::from(words.next().ok_or("usage: follow SOCKET [PODS] [POLICIES]")?);
    let pods: usize = words.next().map_or(Ok(30_000), |word| word.parse())?;
    let policies: usize = words.next().map_or(Ok(30_000), |word| word.parse())?;
    let wanted = Wanted::default();
    let translation = Translation::new(Settings::of_node("node1"));
    let mut agent = Agent { cluster: Cluster::new("default".parse()?), translation, wanted: wanted.clone() };
    let (events, _told) = mpsc::channel(EVENTS);
    let dataplane = Dataplane { socket, attached: None };
    let pusher = tokio::spawn(Pusher::new(dataplane, wanted.clone(), PushMetrics::default(), events).run());
    let mut all = Vec::new();
    for i in 0..100 {
        all.extend(objects(&format!(
            "{{\"apiVersion\": \"v1\", \"kind\": \"Namespace\", \"metadata\": {{\"name\": \"n{i}\"}}}}"
        ))?);
    }
    for i in 0..pods {
        all.extend(objects(&pod(i, 0))?);
    }
    for i in 0..policies {
        all.extend(objects(&policy(i, pods, 80))?);
    }
    let (live, translated) = agent.follow(all).await;
    println!("{pods} pods, {policies} policies: translated after {translated:?}, live after {live:?}");
    println!("{} objects for the dataplane, {:.0} MB resident", wanted.len(), resident());
    let mut times = Vec::new();
    for round in 0..ROUNDS {
        times.push(agent.follow(objects(&pod(round % ON_A_NODE, round + ALIKE))?).await);
    }
    say("a pod of the node changes its labels", times);
    let mut times = Vec::new();
    for round in 0..ROUNDS {
        times.push(agent.follow(objects(&pod(pods / 2 + round, round + ALIKE))?).await);
    }
    say("a pod elsewhere changes its labels", times);
    let mut times = Vec::new();
    for round in 0..ROUNDS {
        times.push(agent.follow(objects(&policy(round % 600, pods, 1000 + round))?).await);
    }
    say("a policy changes a port", times);
    println!("{:.0} MB resident", resident());
    pusher.abort();
    Ok(())
}
