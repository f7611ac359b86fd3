//! What runtimes and annotations ask for, as attachments are planned.

use super::*;
use serde_json::{Value, json};

fn config(runtime: Value) -> Config {
    let text = json!({ "cniVersion": "1.1.0", "name": "n", "runtimeConfig": runtime }).to_string();
    Config::read(text.as_bytes()).unwrap()
}

fn annotated(annotations: &[(&str, &str)]) -> PodFacts {
    let annotations = annotations.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
    PodFacts { annotations: annotations.collect(), identity: None }
}

#[test]
fn bandwidth_is_in_bits_whoever_says_it() {
    let none = PodFacts::default();
    assert_eq!(limits(&config(json!({})), &none).unwrap(), None);
    let unlimited = json!({ "bandwidth": { "ingressRate": 0, "egressRate": 0 } });
    assert_eq!(limits(&config(unlimited), &none).unwrap(), None);
    let said = json!({ "bandwidth": { "ingressRate": 8_000_000, "ingressBurst": 8_000_000 } });
    let of_runtime = limits(&config(said.clone()), &none).unwrap().unwrap();
    assert_eq!(of_runtime.ingress_bits_per_second, Some(8_000_000));
    assert_eq!((of_runtime.egress_bits_per_second, of_runtime.burst_bytes), (None, Some(1_000_000)));
    // The runtime is nearer than the annotation, and says nothing of the other way.
    let facts = annotated(&[(INGRESS_ANNOTATION, "1M"), (EGRESS_ANNOTATION, "10Mi")]);
    let both = limits(&config(said), &facts).unwrap().unwrap();
    assert_eq!(both.ingress_bits_per_second, Some(8_000_000));
    assert_eq!(both.egress_bits_per_second, Some(10 << 20));
    for (text, bits) in [("500k", 500_000), ("1Gi", 1 << 30), ("2G", 2_000_000_000), ("7", 7)] {
        let facts = annotated(&[(INGRESS_ANNOTATION, text)]);
        let limits = limits(&config(json!({})), &facts).unwrap().unwrap();
        assert_eq!(limits.ingress_bits_per_second, Some(bits), "{text}");
    }
    for text in ["", "fast", "10m", "0", "-1", "1.5M", "99999999999999999999", "20000000Ti"] {
        let refused = limits(&config(json!({})), &annotated(&[(EGRESS_ANNOTATION, text)])).unwrap_err();
        assert!(refused.msg.contains(EGRESS_ANNOTATION), "{text}: {refused}");
    }
}

#[test]
fn addresses_are_asked_for_by_runtime_and_annotation() {
    let facts = annotated(&[(ADDRESSES_ANNOTATION, "10.0.0.7, fd00::7")]);
    let asked = requested(&config(json!({ "ips": ["10.0.0.5/24", "10.0.0.7"] })), &facts).unwrap();
    let expected: Vec<IpAddr> = ["10.0.0.5", "10.0.0.7", "fd00::7"].map(|it| it.parse().unwrap()).into();
    assert_eq!(asked, expected);
    let refused = requested(&config(json!({ "ips": ["ten"] })), &PodFacts::default()).unwrap_err();
    assert!(refused.msg.contains("\"ten\""), "{refused}");
}

#[test]
fn name_servers_of_the_runtime_come_before_those_of_the_network() {
    let text = json!({
        "cniVersion": "1.1.0", "name": "n", "dns": { "nameservers": ["192.0.2.1"], "domain": "network" },
        "runtimeConfig": {},
    });
    let network = Config::read(text.to_string().as_bytes()).unwrap();
    assert_eq!(dns(&network), network.dns);
    assert_eq!(network.dns.domain.as_deref(), Some("network"));
    let mut text = text;
    text["runtimeConfig"]["dns"] =
        json!({ "servers": ["192.0.2.2"], "searches": ["a.b"], "options": ["ndots:5"] });
    let said = dns(&Config::read(text.to_string().as_bytes()).unwrap());
    assert_eq!(
        (said.nameservers, said.search, said.options),
        (vec!["192.0.2.2".into()], vec!["a.b".into()], vec!["ndots:5".into()])
    );
}

#[test]
fn a_socket_is_where_its_device_is() {
    let key = RecordKey {
        holding: super::super::record::Holding::Attachment,
        network: "n".to_owned(),
        id: penstock_cni::environment::AttachmentId::new("0123456789abcdef".into(), "net1".into()).unwrap(),
    };
    let folders =
        Folders { sockets: Path::new("/s"), devices: Path::new("/d"), pods: Path::new("/nonexistent") };
    let of = |config: &Config| socket_folder(config, &key, &folders);
    assert_eq!(of(&config(json!({}))).unwrap(), (PathBuf::from("/s/0123456789ab-net1"), true, false));
    let device = config(json!({ "deviceID": "vhost-user-3" }));
    assert_eq!(of(&device).unwrap(), (PathBuf::from("/d/vhost-user-3"), false, true));
    assert_eq!(
        socket_path(Path::new("/d/vhost-user-3"), &key).unwrap().as_str(),
        "/d/vhost-user-3/0123456789ab-net1"
    );
    for wrong in ["0000:3b:02.1", "..", "a/b"] {
        assert!(of(&config(json!({ "deviceID": wrong }))).unwrap_err().msg.contains(wrong));
    }
    // Multus writes it beside, when the network has not asked for it as a capability.
    let beside = r#"{"cniVersion":"1.1.0","name":"n","deviceID":"vhost-user-4"}"#;
    assert_eq!(of(&Config::read(beside.as_bytes()).unwrap()).unwrap().0, Path::new("/d/vhost-user-4"));
}

#[test]
fn a_further_interface_has_annotations_of_its_own() {
    let all = [
        (MODE_ANNOTATION, "tap"),
        ("penstock.dev/interface.net1", "vhost-user"),
        (ADDRESSES_ANNOTATION, "10.1.0.7"),
        ("kubernetes.io/egress-bandwidth.net2", "1M"),
        (INGRESS_ANNOTATION, "2M"),
        ("example.org/other", "x"),
    ];
    let of = |ifname: &str| annotated(&all).of_interface(ifname);
    assert_eq!(of("eth0"), annotated(&all));
    let nothing = config(json!({}));
    assert_eq!(mode(&nothing, &of("net1")).unwrap(), Mode::VhostUser);
    assert_eq!(mode(&nothing, &of("net2")).unwrap(), Mode::Veth);
    assert_eq!(requested(&nothing, &of("net1")).unwrap(), [] as [IpAddr; 0]);
    assert_eq!(limits(&nothing, &of("net1")).unwrap(), None);
    assert_eq!(limits(&nothing, &of("net2")).unwrap().unwrap().egress_bits_per_second, Some(1_000_000));
    assert_eq!(of("net2").annotations.get("example.org/other").map(String::as_str), Some("x"));
}
