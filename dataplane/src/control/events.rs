//! What workers and the supervisor wrote into their journals, in words, told to whoever watches.

use std::sync::Arc;
use std::time::Duration;

use penstock_api::Fault;
use penstock_api::proto::{self, event::Detail};
use penstock_io::TicksPerSecond;
use tokio::sync::broadcast;

use super::clock::WallClock;
use crate::drop::{Cause, Reason};
use crate::journal::{Entry, RuleMet, Shortage, What};
use crate::mailbox::Events;
use crate::slowpath::{describe_tuple, facts};
use crate::supervisor::Engine;

/// Events that somebody who watches may be behind.
const BEHIND: usize = 4096;
/// Faults of a refused change that are told; whoever made it gets all.
const FAULTS_TOLD: usize = 16;
/// How long entries gather before they are told: it spares the workers most of the wake-ups.
const GATHER: Duration = Duration::from_millis(10);

/// Tells what an engine's workers write, for as long as the runtime lasts.
pub(super) fn start(engine: &Engine) -> broadcast::Sender<proto::Event> {
    let (watchers, _) = broadcast::channel(BEHIND);
    tokio::spawn(tell(Arc::clone(engine.events()), engine.rate(), watchers.clone()));
    watchers
}

async fn tell(events: Arc<Events>, rate: TicksPerSecond, watchers: broadcast::Sender<proto::Event>) {
    loop {
        events.written.notified().await;
        tokio::time::sleep(GATHER).await;
        let mut entries = events.entries();
        if watchers.receiver_count() == 0 {
            continue;
        }
        entries.sort_by_key(|entry| entry.at);
        let clock = WallClock::now(rate);
        for entry in &entries {
            // Whoever has just gone away need not be told.
            let _ = watchers.send(event(clock.nanoseconds(entry.at), entry));
        }
    }
}

fn event(timestamp_ns: u64, entry: &Entry) -> proto::Event {
    let event = match &entry.what {
        What::Rule(met) => rule_event(met),
        What::Shortage(shortage) => shortage_event(shortage),
        What::TooLarge(faults) => refusal_event(faults),
    };
    proto::Event { timestamp_ns, lost: entry.lost, ..event }
}

fn rule_event(met: &RuleMet) -> proto::Event {
    let RuleMet { endpoint, network, direction, rule, verdict, packet, len } = met;
    let subject = endpoint.subject.as_deref();
    let fact = |decision| subject.map(|subject| facts::rule(subject, *direction, decision));
    let (rule, decided_by) = (fact(*rule), fact(verdict.decision));
    let decider = subject.map(|subject| subject.answer(*direction, *verdict).decider.to_string());
    let name = rule.as_ref().map(|it| format!("rule \"{}\" of policy \"{}\"", it.rule, it.policy));
    let sentence = format!(
        "{} matched {}, {len} bytes: {} by {}",
        name.unwrap_or_default(),
        describe_tuple(packet),
        if verdict.allow { "allowed" } else { "denied" },
        decider.unwrap_or_default()
    );
    let detail = proto::RuleEvent {
        rule,
        protocol: packet.protocol().into(),
        packet: Some(proto::Tuple {
            source: packet.src().to_string(),
            source_port: packet.sport().into(),
            destination: packet.dst().to_string(),
            destination_port: packet.dport().into(),
        }),
        length: (*len).into(),
        verdict: if verdict.allow { "allow" } else { "deny" }.to_owned(),
        decided_by,
    };
    proto::Event {
        network: network.name.clone(),
        endpoint: endpoint.name.clone(),
        sentence,
        detail: Some(Detail::Rule(detail)),
        ..proto::Event::default()
    }
}

fn shortage_event(shortage: &Shortage) -> proto::Event {
    let Shortage { cause, endpoint, network, pool, capacity, refused } = shortage;
    let name = endpoint.as_ref().map(|endpoint| endpoint.name.clone()).unwrap_or_default();
    let pool_key = || {
        let ways = network.iter().flat_map(|network| &network.masquerades);
        let way = pool.as_ref().and_then(|pool| ways.into_iter().find(|way| way.has(pool)));
        way.map_or_else(|| facts::NODE.to_owned(), |way| way.key())
    };
    let (what, object) = match cause {
        Cause::NatExhausted => ("ports", pool_key()),
        Cause::ConnectionsFull => ("connections", facts::NODE.to_owned()),
        Cause::OutsideConnections => ("connections", facts::OUTSIDE.to_owned()),
        Cause::OutsideHalfOpen => ("half-open connections", facts::OUTSIDE.to_owned()),
        Cause::EndpointHalfOpen => ("half-open connections", format!("endpoint \"{name}\"")),
        _ => ("connections", format!("endpoint \"{name}\"")),
    };
    let packets = if *refused == 1 { "a packet was" } else { "packets were" };
    let count = if *refused == 1 { String::new() } else { format!("{refused} ") };
    let why = Reason::from(*cause).sentence();
    proto::Event {
        network: network.as_ref().map(|network| network.name.clone()).unwrap_or_default(),
        endpoint: name,
        sentence: format!("{object} has {capacity} {what}, all in use; {count}{packets} refused: {why}"),
        detail: Some(Detail::Exhaustion(proto::ExhaustionEvent {
            what: what.to_owned(),
            object,
            capacity: *capacity,
            refused: *refused,
        })),
        ..proto::Event::default()
    }
}

fn refusal_event(faults: &[Fault]) -> proto::Event {
    let told: Vec<String> = faults.iter().take(FAULTS_TOLD).map(Fault::to_string).collect();
    let more = match faults.len().saturating_sub(1) {
        0 => String::new(),
        others => format!(" (and {others} more)"),
    };
    let first = told.first().map_or("", String::as_str);
    proto::Event {
        sentence: format!(
            "a change does not fit and was refused; what was configured before goes on: {first}{more}"
        ),
        detail: Some(Detail::Refusal(proto::RefusalEvent { count: faults.len() as u64, faults: told })),
        ..proto::Event::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_change_is_told_with_its_first_faults_and_their_count() {
        let faults: Vec<Fault> = (0..20)
            .map(|i| Fault::new(format!("network \"n{i}\""), "", "does not fit", "take less"))
            .collect();
        let event = refusal_event(&faults);
        assert!(
            event.sentence.ends_with("network \"n0\": does not fit; take less (and 19 more)"),
            "{event:?}"
        );
        let Some(Detail::Refusal(detail)) = event.detail else { panic!("no refusal") };
        assert_eq!((detail.count, detail.faults.len()), (20, FAULTS_TOLD));
        assert!(!refusal_event(&faults[..1]).sentence.contains("more"));
    }
}
