use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::core::Selector;
use proptest::prelude::*;

use super::super::pool::Span;
use super::*;

fn pool(name: &str, prefixes: &[&str]) -> Pool {
    Pool {
        name: name.to_owned(),
        spans: prefixes.iter().map(|text| Span::of(text.parse().unwrap())).collect(),
        services: Selector::default(),
        nodes: Selector::default(),
        disabled: false,
    }
}

fn claim(name: &str) -> Claim {
    Claim {
        service: ("shop".to_owned(), name.to_owned()),
        created: 0,
        labels: BTreeMap::new(),
        families: vec![Family::V4],
        stacks: Stacks::Single,
        wanted: vec![],
        pool: None,
        sharing: None,
        ports: BTreeSet::from([("TCP".to_owned(), 80)]),
        local_to: None,
        holds: vec![],
    }
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn given(pools: &[Pool], claims: &[Claim], name: &str) -> Vec<String> {
    let assignment = assign(pools, claims);
    let given = assignment.given.get(&("shop".to_owned(), name.to_owned()));
    given.into_iter().flatten().map(ToString::to_string).collect()
}

fn refusal(pools: &[Pool], claims: &[Claim], name: &str) -> Option<Refusal> {
    assign(pools, claims).refused.remove(&("shop".to_owned(), name.to_owned()))
}

#[test]
fn services_get_the_lowest_addresses_in_the_order_in_which_they_came() {
    let pools = [pool("b", &["198.51.100.0/31"]), pool("a", &["192.0.2.8/31"])];
    let claims = [
        Claim { created: 2, ..claim("late") },
        Claim { created: 1, ..claim("early") },
        Claim { created: 3, ..claim("last") },
    ];
    assert_eq!(given(&pools, &claims, "early"), ["192.0.2.8"]);
    assert_eq!(given(&pools, &claims, "late"), ["192.0.2.9"]);
    assert_eq!(given(&pools, &claims, "last"), ["198.51.100.0"]);
}

#[test]
fn what_a_service_holds_it_keeps_even_out_of_a_disabled_pool() {
    let pools = [Pool { disabled: true, ..pool("a", &["192.0.2.0/28"]) }];
    let claims = [Claim { holds: vec![address("192.0.2.5")], ..claim("old") }, claim("new")];
    assert_eq!(given(&pools, &claims, "old"), ["192.0.2.5"]);
    assert_eq!(refusal(&pools, &claims, "new"), Some(Refusal::NoPoolFor(Family::V4)));
}

#[test]
fn of_two_that_hold_one_address_the_older_keeps_it() {
    let pools = [pool("a", &["192.0.2.0/28"])];
    let holds = vec![address("192.0.2.5")];
    let claims = [
        Claim { created: 9, holds: holds.clone(), ..claim("a-younger") },
        Claim { created: 1, holds, ..claim("z-older") },
    ];
    assert_eq!(given(&pools, &claims, "z-older"), ["192.0.2.5"]);
    assert_eq!(given(&pools, &claims, "a-younger"), ["192.0.2.0"]);
}

#[test]
fn an_address_that_is_asked_for_is_given_or_refused_by_name() {
    let pools = [pool("a", &["192.0.2.0/30"])];
    let wants = |name, text| Claim { wanted: vec![address(text)], ..claim(name) };
    assert_eq!(given(&pools, &[wants("web", "192.0.2.2")], "web"), ["192.0.2.2"]);
    assert_eq!(
        refusal(&pools, &[wants("web", "192.0.2.9")], "web"),
        Some(Refusal::NotInAPool(address("192.0.2.9")))
    );
    let claims = [claim("first"), Claim { created: 1, ..wants("second", "192.0.2.0") }];
    let by = ("shop".to_owned(), "first".to_owned());
    assert_eq!(
        refusal(&pools, &claims, "second"),
        Some(Refusal::Taken { address: address("192.0.2.0"), by })
    );
    // A service that asks for another address than it holds is moved.
    let moved = Claim { holds: vec![address("192.0.2.1")], ..wants("web", "192.0.2.3") };
    assert_eq!(given(&pools, &[moved], "web"), ["192.0.2.3"]);
}

#[test]
fn services_that_say_the_same_share_an_address_unless_their_ports_meet() {
    let pools = [pool("a", &["192.0.2.0/30"])];
    let shares = |name, port| Claim {
        sharing: Some("dns".to_owned()),
        ports: BTreeSet::from([("UDP".to_owned(), port)]),
        ..claim(name)
    };
    let claims = [shares("one", 53), shares("three", 53), shares("two", 853), claim("zero")];
    assert_eq!(given(&pools, &claims, "one"), ["192.0.2.0"]);
    assert_eq!(given(&pools, &claims, "two"), ["192.0.2.0"]);
    assert_eq!(given(&pools, &claims, "three"), ["192.0.2.1"]);
    assert_eq!(given(&pools, &claims, "zero"), ["192.0.2.2"]);
    // One node announces it for both, so both must be served there.
    let local = Claim { local_to: Some(BTreeMap::new()), ..shares("two", 853) };
    assert_eq!(given(&pools, &[shares("one", 53), local], "two"), ["192.0.2.1"]);
}

#[test]
fn both_families_come_in_the_services_order_and_are_all_or_nothing_if_required() {
    let both = vec![Family::V6, Family::V4];
    let dual = |stacks| Claim { families: both.clone(), stacks, ..claim("web") };
    let pools = [pool("a", &["192.0.2.0/30", "2001:db8::/126"])];
    for stacks in [Stacks::PreferDual, Stacks::RequireDual] {
        assert_eq!(given(&pools, &[dual(stacks)], "web"), ["2001:db8::", "192.0.2.0"]);
    }
    assert_eq!(given(&pools, &[dual(Stacks::Single)], "web"), ["2001:db8::"]);
    let only_v6 = [pool("a", &["2001:db8::/126"])];
    assert_eq!(given(&only_v6, &[dual(Stacks::PreferDual)], "web"), ["2001:db8::"]);
    assert_eq!(refusal(&only_v6, &[dual(Stacks::PreferDual)], "web"), None);
    assert_eq!(given(&only_v6, &[dual(Stacks::RequireDual)], "web"), Vec::<String>::new());
    assert_eq!(refusal(&only_v6, &[dual(Stacks::RequireDual)], "web"), Some(Refusal::NoPoolFor(Family::V4)));
}

#[test]
fn pools_choose_services_by_label_and_services_pools_by_name() {
    let selector = |app: &str| {
        let labels = BTreeMap::from([("app".to_owned(), app.to_owned())]);
        Selector::try_from(LabelSelector { match_labels: Some(labels), match_expressions: None }).unwrap()
    };
    let pools =
        [Pool { services: selector("web"), ..pool("a", &["192.0.2.0/30"]) }, pool("b", &["198.51.100.0/30"])];
    assert_eq!(given(&pools, &[claim("plain")], "plain"), ["198.51.100.0"]);
    let web = Claim { labels: BTreeMap::from([("app".to_owned(), "web".to_owned())]), ..claim("web") };
    assert_eq!(given(&pools, std::slice::from_ref(&web), "web"), ["192.0.2.0"]);
    assert_eq!(
        given(&pools, &[Claim { pool: Some("b".to_owned()), ..web.clone() }], "web"),
        ["198.51.100.0"]
    );
    let lost = Claim { pool: Some("c".to_owned()), ..web };
    assert_eq!(refusal(&pools, &[lost], "web"), Some(Refusal::UnknownPool("c".to_owned())));
    assert_eq!(refusal(&[], &[claim("web")], "web"), Some(Refusal::NoPool));
}

prop_compose! {
    fn any_claim()(
        number in 0u8..12,
        created in 0i64..4,
        dual in 0u8..4,
        wanted in proptest::option::weighted(0.2, 0u8..12),
        sharing in proptest::option::weighted(0.4, 0u8..2),
        port in 1u16..4,
        is_local in any::<bool>(),
        holds in proptest::option::of(0u8..12),
    ) -> Claim {
        let v4 = |last: u8| address(&format!("192.0.2.{last}"));
        let (families, stacks) = match dual {
            0 => (vec![Family::V4], Stacks::Single),
            1 => (vec![Family::V6], Stacks::Single),
            2 => (vec![Family::V4, Family::V6], Stacks::PreferDual),
            _ => (vec![Family::V6, Family::V4], Stacks::RequireDual),
        };
        Claim {
            created,
            families,
            stacks,
            wanted: wanted.into_iter().map(v4).collect(),
            sharing: sharing.map(|key| key.to_string()),
            ports: BTreeSet::from([("TCP".to_owned(), port)]),
            local_to: is_local.then(BTreeMap::new),
            holds: holds.into_iter().map(v4).collect(),
            ..claim(&format!("s{number}"))
        }
    }
}

fn claims() -> impl Strategy<Value = Vec<Claim>> {
    proptest::collection::vec(any_claim(), 0..12).prop_map(|claims| {
        let by_name: BTreeMap<_, _> =
            claims.into_iter().map(|claim| (claim.service.clone(), claim)).collect();
        by_name.into_values().collect()
    })
}

proptest! {
    #[test]
    fn nobody_has_what_he_may_not_and_nobody_lacks_what_is_there(claims in claims()) {
        let pools = [pool("a", &["192.0.2.0/30", "2001:db8::/127"]), pool("b", &["192.0.2.8/31"])];
        let assignment = assign(&pools, &claims);
        let owners = |of: IpAddr| {
            let has = |claim: &&Claim| assignment.given.get(&claim.service).is_some_and(|given| given.contains(&of));
            claims.iter().filter(has).collect::<Vec<_>>()
        };
        for claim in &claims {
            let given = assignment.given.get(&claim.service).cloned().unwrap_or_default();
            for &address in &given {
                prop_assert!(pools.iter().any(|pool| pool.contains(address)));
                prop_assert!(claim.wanted.is_empty() || claim.wanted.contains(&address));
                let shares = |other: &&Claim| other.service == claim.service || other.shares_with(claim);
                prop_assert!(owners(address).iter().all(shares), "{address} twice");
            }
            let families: Vec<Family> = given.iter().map(|&address| Family::of(address)).collect();
            let count = if claim.stacks == Stacks::Single { 1 } else { claim.families.len() };
            prop_assert!(families.iter().all(|family| claim.families[..count].contains(family)));
            if claim.stacks == Stacks::RequireDual {
                prop_assert!(given.is_empty() || given.len() == 2);
            }
            // Full means that every address of the family is somebody's.
            if let Some(Refusal::Full(Family::V4)) = assignment.refused.get(&claim.service)
                && claim.stacks != Stacks::RequireDual
            {
                for last in [0, 1, 2, 3, 8, 9] {
                    prop_assert!(!owners(IpAddr::from([192, 0, 2, last])).is_empty());
                }
            }
        }
    }

    #[test]
    fn what_was_given_is_given_again_in_any_order(claims in claims(), seed in any::<u64>()) {
        let pools = [pool("a", &["192.0.2.0/30", "2001:db8::/127"]), pool("b", &["192.0.2.8/31"])];
        let first = assign(&pools, &claims);
        let mut settled: Vec<Claim> = claims.iter().map(|claim| Claim {
            holds: first.given.get(&claim.service).cloned().unwrap_or_default(),
            ..claim.clone()
        }).collect();
        let turn = seed as usize % settled.len().max(1);
        settled.rotate_left(turn);
        let second = assign(&pools, &settled);
        for (service, given) in &first.given {
            prop_assert_eq!(second.given.get(service), Some(given));
        }
    }
}
