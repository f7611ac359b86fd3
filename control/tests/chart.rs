//! The Helm chart, rendered by helm's own engine (`tests/chart`, which `scripts/setup --tests` builds).

#![allow(clippy::unwrap_used, reason = "the leave for tests does not reach the functions beside them")]

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{ConfigMap, ServiceAccount};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, PolicyRule, Role, RoleBinding};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::Resource;
use penstock_control::kubernetes::{
    AdminNetworkPolicy, BaselineAdminNetworkPolicy, ClusterNetworkPolicy, EgressIP, EndpointSlice, IPBlock,
    IPPool, Kind, Namespace, Network, NetworkAttachmentDefinition, NetworkPolicy, Node, NodeConfig, Pod,
    Service,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

const ENGINE: &str = "/var/cache/penstock/go/chart";

/// The chart's objects, with values in the place of its own.
fn render(values: &[&str]) -> Vec<Value> {
    assert!(Path::new(ENGINE).exists(), "no {ENGINE}, which takes Go: scripts/setup --tests builds it");
    let chart = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/kubernetes/chart");
    let output =
        Command::new(ENGINE).arg(chart).args(["edge", "penstock-system"]).args(values).output().unwrap();
    assert!(output.status.success(), "{values:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// What of `written` a type did not take: a field that it does not know, or a value that it reads as another.
fn lost(at: &str, written: &Value, understood: Option<&Value>, found: &mut Vec<String>) {
    match (written, understood) {
        (Value::Object(fields), Some(Value::Object(known))) => {
            for (name, value) in fields {
                lost(&format!("{at}.{name}"), value, known.get(name), found);
            }
        }
        (Value::Array(items), Some(Value::Array(known))) if items.len() == known.len() => {
            for (i, (item, known)) in items.iter().zip(known).enumerate() {
                lost(&format!("{at}[{i}]"), item, Some(known), found);
            }
        }
        // A bound of a schema is read as a number with a fraction.
        (Value::Number(number), Some(Value::Number(known))) if number.as_f64() == known.as_f64() => {}
        // What is nothing may be left out.
        (Value::Null, None) => {}
        (Value::Object(fields), None) if fields.is_empty() => {}
        (Value::Array(items), None) if items.is_empty() => {}
        _ if Some(written) == understood => {}
        _ => found.push(format!("{at}: {written}")),
    }
}

/// The object as its type has it, which must know all that is written.
fn typed<T: DeserializeOwned + Serialize>(object: &Value) -> T {
    let title = format!("{} {}", object["kind"], object["metadata"]["name"]);
    let typed: T = serde_json::from_value(object.clone()).unwrap_or_else(|error| panic!("{title}: {error}"));
    let mut found = Vec::new();
    lost(&title, object, Some(&serde_json::to_value(&typed).unwrap()), &mut found);
    assert!(found.is_empty(), "no such fields: {found:#?}");
    typed
}

fn of_kind<T: DeserializeOwned + Serialize>(objects: &[Value], kind: &str) -> Vec<T> {
    objects.iter().filter(|object| object["kind"] == kind).map(typed).collect()
}

/// Every object there is, taken by its type; one of no known kind fails.
fn check(objects: &[Value]) {
    for object in objects {
        match object["kind"].as_str().unwrap() {
            "DaemonSet" => drop(typed::<DaemonSet>(object)),
            "ConfigMap" => drop(typed::<ConfigMap>(object)),
            "ServiceAccount" => drop(typed::<ServiceAccount>(object)),
            "ClusterRole" => drop(typed::<ClusterRole>(object)),
            "ClusterRoleBinding" => drop(typed::<ClusterRoleBinding>(object)),
            "Role" => drop(typed::<Role>(object)),
            "RoleBinding" => drop(typed::<RoleBinding>(object)),
            "CustomResourceDefinition" => drop(typed::<CustomResourceDefinition>(object)),
            "Network" => drop(typed::<Network>(object)),
            other => panic!("nobody knows a {other}"),
        }
    }
}

#[test]
fn every_object_is_one_of_its_type_whatever_the_values() {
    for values in [
        &[][..],
        &["cni.install=false"],
        &["dataplane.metrics=", "agent.logFormat=text"],
        &["imagePullSecrets[0].name=registry", "nodeSelector.penstock=yes", "image.tag=v9"],
        &["network.prefixes={10.244.0.0/16,fd10:244::/32}", "network.crossSubnet=true"],
        &["dataplane.cpus={2,3}", "dataplane.extra=[flows]\nipv4 = 1024"],
    ] {
        let objects = render(values);
        check(&objects);
        let sets = of_kind::<DaemonSet>(&objects, "DaemonSet");
        assert_eq!(sets.len(), 2, "an agent that is upgraded does not touch what forwards");
        let initial = sets
            .iter()
            .flat_map(|set| set.spec.template.spec.as_ref().unwrap().init_containers.iter().flatten());
        assert_eq!(initial.count(), usize::from(!values.contains(&"cni.install=false")));
    }
}

#[test]
fn every_definition_comes_with_it() {
    let definitions = of_kind::<CustomResourceDefinition>(&render(&[]), "CustomResourceDefinition");
    let names: BTreeSet<String> = definitions.into_iter().filter_map(|it| it.metadata.name).collect();
    for plural in ["networks", "ippools", "ipblocks", "egressips", "nodeconfigs"] {
        assert!(names.contains(&format!("{plural}.penstock.dev")), "{names:?}");
    }
}

/// The API group and the resources of a kind that is watched.
fn watched(kind: Kind) -> (String, String) {
    fn of<K: Resource<DynamicType = ()>>() -> (String, String) {
        (K::group(&()).into_owned(), K::plural(&()).into_owned())
    }
    match kind {
        Kind::Node => of::<Node>(),
        Kind::Namespace => of::<Namespace>(),
        Kind::Pod => of::<Pod>(),
        Kind::NetworkPolicy => of::<NetworkPolicy>(),
        Kind::ClusterNetworkPolicy => of::<ClusterNetworkPolicy>(),
        Kind::AdminNetworkPolicy => of::<AdminNetworkPolicy>(),
        Kind::BaselineAdminNetworkPolicy => of::<BaselineAdminNetworkPolicy>(),
        Kind::Service => of::<Service>(),
        Kind::EndpointSlice => of::<EndpointSlice>(),
        Kind::NetworkAttachmentDefinition => of::<NetworkAttachmentDefinition>(),
        Kind::Network => of::<Network>(),
        Kind::IPPool => of::<IPPool>(),
        Kind::IPBlock => of::<IPBlock>(),
        Kind::EgressIP => of::<EgressIP>(),
        Kind::NodeConfig => of::<NodeConfig>(),
    }
}

#[test]
fn the_agent_may_watch_what_it_watches_and_nothing_may_be_anything() {
    let objects = render(&[]);
    let role = of_kind::<ClusterRole>(&objects, "ClusterRole").remove(0);
    let rules: Vec<PolicyRule> = role.rules.unwrap();
    let allows = |group: &str, resource: &str, verb: &str| {
        rules.iter().any(|rule| {
            let has = |list: &Option<Vec<String>>, word: &str| list.iter().flatten().any(|it| it == word);
            has(&rule.api_groups, group)
                && has(&rule.resources, resource)
                && rule.verbs.iter().any(|it| it == verb)
        })
    };
    for kind in Kind::ALL {
        let (group, resource) = watched(*kind);
        for verb in ["get", "list", "watch"] {
            assert!(allows(&group, &resource, verb), "{verb} {resource} of {group:?}");
        }
    }
    // Blocks of pools are the agents' own to write.
    for verb in ["create", "patch", "delete"] {
        assert!(allows("penstock.dev", "ipblocks", verb), "{verb}");
        assert!(
            !allows("penstock.dev", "ippools", verb) && !allows("penstock.dev", "networks", verb),
            "{verb}"
        );
    }
    for rule in &rules {
        let words =
            rule.api_groups.iter().flatten().chain(rule.resources.iter().flatten()).chain(&rule.verbs);
        assert!(words.into_iter().all(|word| word != "*"), "{rule:?}");
    }
    assert!(!allows("", "secrets", "get") && !allows("", "pods", "delete"));
    // What a pod is told of its sockets goes by its status; what it runs is nobody's to change.
    assert!(allows("", "pods/status", "patch") && !allows("", "pods", "patch"));
    // Its account is the one that the roles are bound to.
    let account = of_kind::<ServiceAccount>(&objects, "ServiceAccount").remove(0).metadata.name;
    let bindings = of_kind::<ClusterRoleBinding>(&objects, "ClusterRoleBinding");
    assert_eq!(bindings[0].subjects.as_ref().unwrap()[0].name, account.clone().unwrap());
    let sets = of_kind::<DaemonSet>(&objects, "DaemonSet");
    let accounts = sets.into_iter().map(|set| set.spec.template.spec.unwrap().service_account_name);
    assert_eq!(accounts.collect::<BTreeSet<_>>(), BTreeSet::from([None, account]));
}

#[test]
fn containers_are_started_with_words_that_their_programs_know() {
    let agents = of_kind::<DaemonSet>(&render(&[]), "DaemonSet");
    let mut tried = 0;
    for set in agents {
        let pod = set.spec.template.spec.unwrap();
        for container in pod.init_containers.into_iter().flatten().chain(pod.containers) {
            let mut words = container.command.unwrap().into_iter().chain(container.args.unwrap());
            let program = match words.next().unwrap().as_str() {
                "penstock" => env!("CARGO_BIN_EXE_penstock"),
                "penstock-agent" => env!("CARGO_BIN_EXE_penstock-agent"),
                // The daemon's, which a lab tries.
                _ => continue,
            };
            // Words are read one by one: help is told only if all before it are known.
            let output = Command::new(program).args(words).arg("--help").output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            tried += 1;
        }
    }
    assert_eq!(tried, 2);
}
