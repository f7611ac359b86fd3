//! Any sound object of the stateful tier.

use std::net::IpAddr;

use penstock_api::check::{MAX_AFFINITY, MAX_LIMIT};
use penstock_api::model::*;
use proptest::collection::{btree_map, btree_set, vec};
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

use super::{names, prefixes, station_lists, stations};

fn prefix_lists(least: usize) -> impl Strategy<Value = Vec<Prefix>> {
    btree_set(prefixes(), least..4).prop_map(|set| set.into_iter().collect())
}

fn name_lists() -> impl Strategy<Value = Vec<Name>> {
    btree_set(names(), 0..4).prop_map(|set| set.into_iter().collect())
}

fn port_ranges() -> impl Strategy<Value = PortRange> {
    (1_u16.., 1_u16..).prop_map(|(a, b)| PortRange::new(a.min(b), a.max(b)).unwrap())
}

pub(super) fn limits() -> impl Strategy<Value = Limits> {
    let rate = || option::of(1..=MAX_LIMIT);
    let few = || option::of(1_u32..);
    (rate(), rate(), option::of(65536..=MAX_LIMIT), few(), few(), few()).prop_map(
        |(ingress, egress, burst, packets, connections, most)| Limits {
            ingress_bits_per_second: ingress,
            egress_bits_per_second: egress,
            burst_bytes: burst.filter(|_| ingress.is_some() || egress.is_some()),
            packets_per_second: packets,
            connections_per_second: connections,
            max_connections: most,
        },
    )
}

pub(super) fn identities() -> impl Strategy<Value = Identity> {
    (names(), names(), prefix_lists(0)).prop_map(|(name, network, prefixes)| Identity {
        name,
        network,
        prefixes,
    })
}

pub(super) fn tiers() -> impl Strategy<Value = Tier> {
    (names(), any::<u32>(), select(vec![TierDefault::Pass, TierDefault::Deny]))
        .prop_map(|(name, order, default)| Tier { name, order, default })
}

/// A prefix with one of its halves left out, if it has halves.
fn prefix_peers() -> impl Strategy<Value = RulePeer> {
    (prefixes(), any::<bool>()).prop_map(|(prefix, with_hole)| {
        let net = prefix.net();
        let halves = net.subnets((net.prefix_len() + 1).min(net.max_prefix_len())).unwrap();
        let except = halves.take(usize::from(with_hole && net.prefix_len() < net.max_prefix_len()));
        RulePeer::Prefix { prefix, except: except.map(|half| Prefix::new(half).unwrap()).collect() }
    })
}

fn rule_ports() -> impl Strategy<Value = RulePort> {
    let any_port = (any::<u8>(), option::of(port_ranges()), option::of(any::<(u8, Option<u8>)>()));
    any_port.prop_map(|(number, port, icmp)| {
        let protocol = Protocol::new(number);
        let icmp = icmp.filter(|_| protocol.is_icmp());
        RulePort {
            protocol,
            port: port.filter(|_| protocol.has_ports()),
            icmp_type: icmp.map(|(icmp_type, _)| icmp_type),
            icmp_code: icmp.and_then(|(_, icmp_code)| icmp_code),
        }
    })
}

fn rules(name: Name, directions: Vec<PolicyDirection>) -> impl Strategy<Value = Rule> {
    let action = select(vec![RuleAction::Allow, RuleAction::Deny, RuleAction::Pass, RuleAction::Log]);
    let peer = prop_oneof![names().prop_map(RulePeer::Identity), prefix_peers()];
    // The protocols with ports and with types would hardly come up among 256.
    let port = prop_oneof![
        rule_ports(),
        port_ranges().prop_map(|port| RulePort {
            protocol: Protocol::TCP,
            port: Some(port),
            icmp_type: None,
            icmp_code: None
        }),
        any::<(u8, Option<u8>)>().prop_map(|(icmp_type, icmp_code)| RulePort {
            protocol: Protocol::ICMPV6,
            port: None,
            icmp_type: Some(icmp_type),
            icmp_code
        }),
    ];
    (select(directions), action, vec(peer, 0..4), vec(port, 0..4)).prop_map(
        move |(direction, action, peers, ports)| Rule { name: name.clone(), direction, action, peers, ports },
    )
}

pub(super) fn policies() -> impl Strategy<Value = Policy> {
    use PolicyDirection::{Egress, Ingress};
    let subjects = prop_oneof![Just(Subjects::All), name_lists().prop_map(Subjects::Identities)];
    let directions = select(vec![vec![Ingress], vec![Egress], vec![Egress, Ingress]]);
    let with_rules = (directions, btree_set(names(), 0..4)).prop_flat_map(|(directions, names)| {
        let rules: Vec<_> = names.into_iter().map(|name| rules(name, directions.clone())).collect();
        (Just(directions), rules)
    });
    let place = (names(), names(), names(), any::<u32>());
    (place, subjects, with_rules, any::<bool>()).prop_map(
        |((name, network, tier, order), subjects, (directions, rules), staged)| Policy {
            name,
            network,
            tier,
            order,
            subjects,
            directions,
            staged,
            rules,
        },
    )
}

fn service_ports() -> impl Strategy<Value = Vec<ServicePort>> {
    let protocols = vec![ServiceProtocol::Tcp, ServiceProtocol::Udp, ServiceProtocol::Sctp];
    // Names and numbers are distinct, so that only the health check's port can be in the way of a node port.
    let numbers = btree_map(1_u16.., (select(protocols), any::<bool>()), 1..4);
    (numbers, btree_set(names(), 4)).prop_map(|(numbers, names)| {
        numbers
            .into_iter()
            .zip(names)
            .map(|((port, (protocol, with_node_port)), name)| ServicePort {
                name,
                protocol,
                port,
                node_port: with_node_port.then_some(port),
            })
            .collect()
    })
}

/// Distinct addresses, dealt to the three kinds.
fn service_addresses() -> impl Strategy<Value = [Vec<IpAddr>; 3]> {
    btree_map(stations(), 0_usize..3, 1..6).prop_map(|dealt| {
        [0, 1, 2].map(|kind| dealt.iter().filter(|(_, it)| **it == kind).map(|(ip, _)| *ip).collect())
    })
}

pub(super) fn services() -> impl Strategy<Value = Service> {
    let policy = || select(vec![TrafficPolicy::Cluster, TrafficPolicy::Local]);
    let topology = select(vec![TopologyPreference::None, TopologyPreference::Zone, TopologyPreference::Node]);
    let affinity = option::of((1..=MAX_AFFINITY).prop_map(|timeout_s| Affinity::ClientIp { timeout_s }));
    let policies = (policy(), policy(), topology, affinity, any::<bool>(), option::of(1_u16..));
    (names(), names(), service_addresses(), service_ports(), policies, prefix_lists(0)).prop_map(
        |(name, network, addresses, ports, policies, source_ranges)| {
            let [cluster_ips, external_ips, load_balancer_ips] = addresses;
            let (internal_policy, external_policy, topology, affinity, dsr, health) = policies;
            let free = |health: &u16| ports.iter().all(|port| port.node_port != Some(*health));
            let health = health.filter(|health| external_policy == TrafficPolicy::Local && free(health));
            Service {
                name,
                network,
                cluster_ips,
                external_ips,
                load_balancer_ips,
                ports,
                affinity,
                internal_policy,
                external_policy,
                topology,
                dsr,
                health_check_node_port: health,
                source_ranges,
            }
        },
    )
}

fn members() -> impl Strategy<Value = Vec<Backend>> {
    let states = vec![BackendState::Ready, BackendState::Terminating, BackendState::NotReady];
    let rest = (select(states), option::of(names()), option::of(names()), name_lists(), 1_u16..);
    btree_map(stations(), rest, 0..4).prop_map(|members| {
        members
            .into_iter()
            .map(|(address, (state, node, zone, for_zones, weight))| Backend {
                address,
                state,
                node,
                zone,
                for_zones,
                weight,
            })
            .collect()
    })
}

pub(super) fn backends() -> impl Strategy<Value = Backends> {
    (names(), names(), btree_map(names(), 1_u16.., 1..4), members()).prop_map(
        |(service, slice, ports, members)| Backends {
            service,
            slice,
            ports: ports.into_iter().map(|(name, port)| BackendPort { name, port }).collect(),
            members,
        },
    )
}

pub(super) fn nat_pools() -> impl Strategy<Value = NatPool> {
    let prefixes = (prefix_lists(1), prefix_lists(0));
    (names(), names(), prefixes, station_lists(0), port_ranges(), any::<bool>()).prop_map(
        |(name, network, (sources, exclusions), mut addresses, ports, endpoint_independent)| {
            let covers = |source: &Prefix| addresses.iter().any(|it| it.is_ipv4() == source.is_ipv4());
            if !sources.iter().all(covers) {
                addresses.clear();
            }
            NatPool { name, network, sources, exclusions, addresses, ports, endpoint_independent }
        },
    )
}

pub(super) fn egress_ips() -> impl Strategy<Value = EgressIp> {
    let who = (names(), names(), name_lists(), name_lists());
    (who, prefix_lists(0), stations(), port_ranges()).prop_map(
        |((name, network, identities, endpoints), exclusions, address, ports)| EgressIp {
            name,
            network,
            identities,
            endpoints,
            exclusions,
            address,
            ports,
        },
    )
}
