//! The commands that look at the stateful tier: connections, policies, services and events.

use penstock_api::client::Client;
use penstock_api::proto;
use penstock_api::query::{ConnectionQuery, EventOrder, PolicyQuery, ServiceQuery};

use crate::failure::Failure;
use crate::follow::follow;
use crate::output::Output;
use crate::rows::end;
use crate::table::{Left, Right, Table, printable};
use crate::units;

/// JSON goes out connection by connection; the text table needs all of them for its widths.
pub(crate) async fn connections(
    client: &mut Client,
    query: &ConnectionQuery,
    out: &mut Output,
) -> Result<(), Failure> {
    let mut stream = client.connections(query).await?;
    let mut connections = Vec::new();
    let mut count: u64 = 0;
    while let Some(connection) = stream.next().await? {
        count += 1;
        if out.is_json() {
            out.line(&connection, |_| String::new())?;
        } else {
            connections.push(connection);
        }
    }
    if !out.is_json() {
        out.show(connections.as_slice(), connection_table)?;
    }
    if query.limit.is_some_and(|limit| u64::from(limit) == count) {
        eprintln!("penstock: these are the first {count} connections; --limit N shows more, --limit 0 all");
    }
    Ok(())
}

pub(crate) async fn policies(
    client: &mut Client,
    query: &PolicyQuery,
    out: &mut Output,
) -> Result<(), Failure> {
    Ok(out.show(client.policies(query).await?.as_slice(), policy_table)?)
}

pub(crate) async fn services(
    client: &mut Client,
    query: &ServiceQuery,
    with_backends: bool,
    out: &mut Output,
) -> Result<(), Failure> {
    let text = if with_backends { backend_table } else { service_table };
    Ok(out.show(client.services(query).await?.as_slice(), text)?)
}

pub(crate) async fn events(client: &mut Client, order: &EventOrder, out: &mut Output) -> Result<(), Failure> {
    let mut stream = client.events(order).await?;
    follow(&mut stream, true, |event| out.line(&event, event_line)).await
}

/// An end of packets that go one way, with its port if the protocol has ports.
fn ends(tuple: &proto::Tuple, protocol: u32) -> (String, String) {
    let source = end(&tuple.source, protocol, tuple.source_port);
    (source, end(&tuple.destination, protocol, tuple.destination_port))
}

fn connection_table(connections: &[proto::Connection]) -> String {
    let mut table = Table::new(
        [
            ("NETWORK", Left),
            ("PROTO", Left),
            ("STATE", Left),
            ("SOURCE", Left),
            ("DESTINATION", Left),
            ("ANSWERED BY", Left),
            ("SEEN AS", Left),
            ("SERVICE", Left),
            ("NAT", Left),
            ("IDLE", Right),
            ("EXPIRES", Right),
        ],
        "no connections",
    );
    for it in connections {
        let (source, destination) = ends(&it.original.clone().unwrap_or_default(), it.protocol);
        let (backend, seen_as) = ends(&it.reply.clone().unwrap_or_default(), it.protocol);
        let unless = |same: bool, text: String| if same { String::new() } else { text };
        table.row([
            it.network.clone(),
            units::protocol(it.protocol),
            it.state.clone(),
            source.clone(),
            destination.clone(),
            // Without translation the other end answers itself, to whom it was asked by.
            unless(backend == destination, backend),
            unless(seen_as == source, seen_as),
            it.service.clone(),
            it.nat.clone(),
            units::span(it.idle_ms),
            units::span(it.expires_ms),
        ]);
    }
    table.to_string()
}

/// A line for each rule, and one for the end of each tier.
fn policy_table(tiers: &[proto::TierRow]) -> String {
    let mut table = Table::new(
        [
            ("TIER", Left),
            ("POLICY", Left),
            ("SUBJECTS", Left),
            ("RULE", Left),
            ("DIRECTION", Left),
            ("ACTION", Left),
            ("PEERS", Left),
            ("PORTS", Left),
            ("HITS", Right),
        ],
        "no policies; what no policy decides is allowed",
    );
    for tier in tiers {
        for policy in &tier.policies {
            let name = if policy.staged { format!("{} (staged)", policy.name) } else { policy.name.clone() };
            let subjects = if policy.selects_all {
                format!("all of {}", policy.network)
            } else {
                some(&policy.subjects, "nobody")
            };
            let left = [tier.name.clone(), name, subjects];
            if policy.rules.is_empty() {
                let [tier, policy_name, subjects] = left.clone();
                let (direction, none) = (policy.directions.join(", "), String::new);
                table.row([tier, policy_name, subjects, none(), direction, none(), none(), none(), none()]);
            }
            for rule in &policy.rules {
                let [tier, policy, subjects] = left.clone();
                table.row([
                    tier,
                    policy,
                    subjects,
                    rule.name.clone(),
                    rule.direction.clone(),
                    rule.action.clone(),
                    some(&rule.peers, "any"),
                    some(&rule.ports, "any"),
                    rule.hits.map(units::count).unwrap_or_default(),
                ]);
            }
        }
        let none = String::new;
        let mut end = |what: &str, hits| {
            let (tier, action) = (tier.name.clone(), tier.default.clone());
            table.row([
                tier,
                what.to_owned(),
                none(),
                none(),
                none(),
                action,
                none(),
                none(),
                units::count(hits),
            ]);
        };
        end("(end of the tier)", tier.default_hits);
        if tier.policies.iter().any(|policy| policy.staged) {
            end("(end of the tier, staged)", tier.staged_default_hits);
        }
    }
    table.to_string()
}

/// The texts in a row, or what their absence means.
fn some(texts: &[String], if_none: &str) -> String {
    if texts.is_empty() { if_none.to_owned() } else { texts.join(", ") }
}

/// A line for each port of a service.
fn service_table(services: &[proto::ServiceRow]) -> String {
    let mut table = Table::new(
        [
            ("SERVICE", Left),
            ("NETWORK", Left),
            ("PORT", Left),
            ("ADDRESSES", Left),
            ("NODE PORT", Right),
            ("BACKENDS", Right),
            ("READY", Right),
            ("CONNECTIONS", Right),
            ("OPTIONS", Left),
        ],
        "no services",
    );
    for service in services {
        let addresses = [&service.cluster_ips, &service.external_ips, &service.load_balancer_ips];
        let addresses = addresses.into_iter().flatten().cloned().collect::<Vec<_>>().join(", ");
        for port in &service.ports {
            let ready = port.backends.iter().filter(|backend| backend.state == "ready").count();
            let connections = port.backends.iter().fold(0, |sum: u64, it| sum.saturating_add(it.connections));
            table.row([
                service.name.clone(),
                service.network.clone(),
                format!("{} {} {}", port.name, units::protocol(port.protocol), port.port),
                addresses.clone(),
                port.node_port.map(|port| port.to_string()).unwrap_or_default(),
                port.backends.len().to_string(),
                ready.to_string(),
                units::count(connections),
                options(service),
            ]);
        }
    }
    table.to_string()
}

/// What of a service is not as usual.
fn options(service: &proto::ServiceRow) -> String {
    let options = [
        service.affinity_s.map(|seconds| format!("affinity {}", units::span(u64::from(seconds) * 1000))),
        (service.internal_policy != "cluster").then(|| format!("internal {}", service.internal_policy)),
        (service.external_policy != "cluster").then(|| format!("external {}", service.external_policy)),
        (service.topology != "none").then(|| format!("prefers its {}", service.topology)),
        service.dsr.then(|| "dsr".to_owned()),
    ];
    options.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

/// A line for each backend of each port of a service.
fn backend_table(services: &[proto::ServiceRow]) -> String {
    let mut table = Table::new(
        [
            ("SERVICE", Left),
            ("PORT", Left),
            ("BACKEND", Left),
            ("STATE", Left),
            ("NODE", Left),
            ("ZONE", Left),
            ("WEIGHT", Right),
            ("CONNECTIONS", Right),
            ("SLICE", Left),
        ],
        "no backends",
    );
    for (service, port) in
        services.iter().flat_map(|service| service.ports.iter().map(move |it| (service, it)))
    {
        for backend in &port.backends {
            table.row([
                service.name.clone(),
                port.name.clone(),
                end(&backend.address, port.protocol, backend.port),
                backend.state.clone(),
                backend.node.clone(),
                backend.zone.clone(),
                backend.weight.to_string(),
                units::count(backend.connections),
                backend.slice.clone(),
            ]);
        }
    }
    table.to_string()
}

/// `09:15:00.123456789 blue web: rule "others" of policy "db" matched … (3 lost before)`, in UTC.
fn event_line(event: &proto::Event) -> String {
    let whose = [&event.network, &event.endpoint].into_iter().filter(|it| !it.is_empty());
    let whose = whose.map(|it| printable(it)).collect::<Vec<_>>().join(" ");
    let whose = if whose.is_empty() { whose } else { format!(" {whose}:") };
    let lost = if event.lost > 0 { format!(" ({} lost before)", event.lost) } else { String::new() };
    format!("{}{whose} {}{lost}", units::time_of_day(event.timestamp_ns), printable(&event.sentence))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_translated_is_shown_translated() {
        let tuple = |source: &str, destination: &str| proto::Tuple {
            source: source.into(),
            source_port: 1000,
            destination: destination.into(),
            destination_port: 80,
        };
        let back = |source: &str, destination: &str| proto::Tuple {
            source_port: 80,
            destination_port: 1000,
            ..tuple(source, destination)
        };
        let row = |original, reply| {
            let connection = proto::Connection {
                protocol: 6,
                original: Some(original),
                reply: Some(reply),
                ..Default::default()
            };
            let table = connection_table(&[connection]);
            let cells: Vec<String> =
                table.lines().nth(1).unwrap().split_whitespace().map(str::to_owned).collect();
            cells[3..7].join(" ")
        };
        assert_eq!(
            row(tuple("10.0.0.1", "10.0.0.2"), back("10.0.0.2", "10.0.0.1")),
            "10.0.0.1:1000 10.0.0.2:80 - -"
        );
        assert_eq!(
            row(tuple("10.0.0.1", "10.96.0.1"), back("10.0.0.3", "10.0.0.1")),
            "10.0.0.1:1000 10.96.0.1:80 10.0.0.3:80 -"
        );
    }

    #[test]
    fn an_event_says_whose_it_is_and_what_was_lost() {
        let event = proto::Event {
            timestamp_ns: 1_700_000_000_000_000_042,
            network: "blue".into(),
            endpoint: "web".into(),
            sentence: "a\u{1b}b".into(),
            lost: 3,
            ..Default::default()
        };
        assert_eq!(event_line(&event), "22:13:20.000000042 blue web: a\\u{1b}b (3 lost before)");
        let nodes = proto::Event { sentence: "full".into(), ..Default::default() };
        assert_eq!(event_line(&nodes), "00:00:00.000000000 full");
    }

    #[test]
    fn a_policy_without_rules_is_seen_all_the_same() {
        let policy = proto::PolicyRow {
            name: "closed".into(),
            directions: vec!["ingress".into(), "egress".into()],
            ..Default::default()
        };
        let tier = proto::TierRow {
            name: "t".into(),
            default: "deny".into(),
            policies: vec![policy],
            ..Default::default()
        };
        let table = policy_table(&[tier]);
        assert!(table.contains("t     closed             nobody    -     ingress, egress"), "{table}");
        assert!(table.contains("t     (end of the tier)"), "{table}");
    }
}
