//! Addresses that pods get again when they come again, by what the plugin asks of the agent for another plugin's sake.

#![allow(clippy::unwrap_used, reason = "all of it is a test's")]

use std::collections::BTreeMap;
use std::path::Path;

use penstock_cni::config::Config;
use penstock_cni::environment::AttachmentId;
use penstock_cni::failure::Code;
use penstock_cni::protocol::{Attach, Detach, Request};
use penstock_control::attach::{Attacher, Direct, FaultPoints, Functions, NoPods, Settings};
use serde_json::json;

fn attacher(folder: &Path) -> Attacher<Direct, NoPods> {
    let settings = Settings {
        records: folder.join("records"),
        sockets: folder.join("sockets"),
        devices: folder.join("devices"),
        kubelet_pods: folder.join("pods"),
        network: "default".to_owned(),
        ranges: Vec::new(),
        reserved: Vec::new(),
        functions: Functions::default(),
        faults: FaultPoints::default(),
    };
    Attacher::open(settings, Direct::at(folder.join("nobody.sock")), NoPods).unwrap()
}

/// A pod's container in a network with three addresses.
fn id(container: &str) -> AttachmentId {
    AttachmentId::new(container.to_owned(), "eth0".to_owned()).unwrap()
}

async fn give(attacher: &Attacher<Direct, NoPods>, container: &str, pod: &str) -> Result<String, Code> {
    let config = json!({
        "cniVersion": "1.1.0", "name": "n",
        "ipam": { "subnet": "10.9.0.0/29", "rangeStart": "10.9.0.2", "rangeEnd": "10.9.0.4", "sticky": true },
    });
    let args = [("K8S_POD_NAMESPACE", "shop"), ("K8S_POD_NAME", pod)];
    let attach = Attach {
        id: id(container),
        netns: "/run/netns/none".into(),
        args: args.map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
        config: Config::read(config.to_string().as_bytes()).unwrap(),
        delegated: None,
        raw: String::new(),
    };
    let done = attacher.answer(Request::Lease(Box::new(attach))).await;
    done.map(|done| done.result.unwrap().ips[0].address.addr().to_string()).map_err(|failure| failure.code)
}

async fn take_back(attacher: &Attacher<Direct, NoPods>, container: &str) {
    let detach = Detach { id: id(container), network: "n".to_owned() };
    attacher.answer(Request::Release(detach)).await.unwrap();
}

#[tokio::test]
async fn a_pod_that_comes_again_has_its_address_again_and_others_have_others() {
    let folder = tempfile::tempdir().unwrap();
    let before = attacher(folder.path());
    let mut had = BTreeMap::new();
    for pod in ["db-0", "db-1"] {
        had.insert(pod, give(&before, pod, pod).await.unwrap());
        take_back(&before, pod).await;
    }
    assert_ne!(had["db-0"], had["db-1"]);
    // However many come between, and whichever agent gives.
    drop(before);
    let agent = attacher(folder.path());
    for round in 0..4 {
        let container = format!("web{round}");
        let other = give(&agent, &container, "web-7d9f-x2k4q").await.unwrap();
        assert!(!had.values().any(|it| *it == other), "{other}");
        take_back(&agent, &container).await;
    }
    for pod in ["db-1", "db-0"] {
        assert_eq!(give(&agent, &format!("again-{pod}"), pod).await.unwrap(), had[pod]);
    }
    // What is somebody's for later is given before nothing is.
    take_back(&agent, "again-db-0").await;
    give(&agent, "web8", "web-7d9f-x2k4q").await.unwrap();
    assert_eq!(give(&agent, "web9", "web-7d9f-aaaaa").await.unwrap(), had["db-0"]);
    assert_eq!(give(&agent, "late", "db-0").await, Err(Code::Addresses));
}
