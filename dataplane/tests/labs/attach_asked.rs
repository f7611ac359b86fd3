//! What a runtime asks of the plugin for one container, as real programs see it.

use serde_json::json;

use crate::containers::{Container, Runtime, address};
use crate::lab::{Lab, under4, v4, v6, wait_until};
use crate::services::{WAY_OUT, backend_script, serve};
use crate::stateful::apply;
use crate::traffic::{iperf, reach};

#[test]
fn a_container_has_what_its_runtime_asks_for() {
    let lab = Lab::up("--pods 1 --outside");
    let runtime = Runtime::start(&lab, 1);
    apply(&lab, 1, WAY_OUT);
    let container = Container::new(&lab, "c1");
    let (four, six) = (v4(1, 77), v6(1, 77));
    let config = runtime.config(json!({ "runtimeConfig": {
        "mac": "02:00:00:00:00:78",
        "ips": [format!("{four}/24"), six],
        "bandwidth": { "ingressRate": 60_000_000, "egressRate": 30_000_000 },
        "portMappings": [
            { "hostPort": 30099, "containerPort": 8080, "protocol": "tcp" },
            { "hostPort": 30098, "containerPort": 8080, "protocol": "udp" },
        ],
        "dns": { "servers": ["10.96.0.10"], "searches": ["shop.svc.cluster.local"], "options": ["ndots:5"] },
    } }));
    let result = runtime.call("ADD", &container, &config).unwrap();
    assert_eq!((address(&result, false), address(&result, true)), (four.clone(), six.clone()));
    let dns = json!({
        "nameservers": ["10.96.0.10"], "search": ["shop.svc.cluster.local"], "options": ["ndots:5"],
    });
    assert_eq!(result["dns"], dns);
    let shown = container.place.run("ip address show eth0");
    for word in ["02:00:00:00:00:78", &four, &six] {
        assert!(shown.contains(word), "{word}: {shown}");
    }
    let other = lab.pod(2, 1);
    reach(&container.place, &v4(2, 1));
    for (most, flag) in [(30.0, ""), (60.0, "-R")] {
        let answer = iperf(&container.place, &other, &v4(2, 1), &format!("-t 4 -O 1 {flag}"));
        let bits = answer["end"]["sum_received"]["bits_per_second"].as_f64().expect("a rate");
        let share = bits / 1e6 / most;
        assert!((0.75..=1.2).contains(&share), "{:.1} of {most} Mbit/s {flag}", bits / 1e6);
    }
    let _server = serve(&container.place, "inside");
    for (ask, port) in [("ask", 30099), ("ask-udp", 30098)] {
        let line = format!("python3 {} {ask} {} {port} 1", backend_script(), under4(1));
        wait_until("the host port leads to the container", || {
            String::from_utf8_lossy(&lab.outside().attempt(&line).stdout).starts_with("inside ")
        });
    }
    runtime.call("DEL", &container, &config).unwrap();
    let gone = format!("curl -sm 1 http://{}:30099/", under4(1));
    wait_until("nobody answers at the host port", || !lab.outside().attempt(&gone).status.success());
}

#[test]
fn an_accelerated_container_has_its_socket_where_its_device_is() {
    let lab = Lab::up("--pods 0");
    let runtime = Runtime::start(&lab, 1);
    let devices = runtime.folder("devices");
    let config = |device: &str| {
        runtime.config(json!({ "interface": "vhost-user", "runtimeConfig": { "deviceID": device } }))
    };
    let container = Container::new(&lab, "c1");
    // As the device plugin has made it when the pod was let in, and mounted there.
    let folder = devices.join("vhost-user-3");
    std::fs::create_dir_all(&folder).expect("a folder");
    let result = runtime.call("ADD", &container, &config("vhost-user-3")).unwrap();
    let socket = folder.join("c1-eth0");
    assert_eq!(result["interfaces"][0]["socketPath"], socket.display().to_string());
    assert_eq!(std::fs::read_link(folder.join("eth0")).unwrap(), std::path::Path::new("c1-eth0"));
    // The pod has ended, its device is another's, and its DEL comes late.
    let next = Container::new(&lab, "c2");
    runtime.call("ADD", &next, &config("vhost-user-3")).unwrap();
    runtime.call("DEL", &container, &config("vhost-user-3")).unwrap();
    assert_eq!(std::fs::read_link(folder.join("eth0")).unwrap(), std::path::Path::new("c2-eth0"));
    runtime.call("DEL", &next, &config("vhost-user-3")).unwrap();
    assert_eq!(std::fs::read_dir(&folder).expect("the device's folder stays").count(), 0);
    // What nobody mounted anywhere is of no use to a pod.
    let failure = runtime.call("ADD", &container, &config("vhost-user-4")).unwrap_err();
    assert!(failure["msg"].as_str().unwrap().contains("vhost-user-4"), "{failure}");
    runtime.assert_clean();
}

#[test]
fn an_accelerated_container_has_its_socket_in_its_shared_volume() {
    let lab = Lab::up("--pods 0");
    let runtime = Runtime::start(&lab, 1);
    let container = Container::new(&lab, "c1-long-enough");
    let uid = "0f0f0f0f-1111-2222-3333-444444444444";
    let volume = runtime.folder("pods").join(uid).join("volumes/kubernetes.io~empty-dir/shared-dir");
    std::fs::create_dir_all(&volume).expect("a volume");
    let config = runtime.config(json!({ "interface": "vhost-user", "vhostUser": { "role": "server" } }));
    let arguments = format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=fast;K8S_POD_UID={uid}");
    let call = |verb| runtime.call_with(verb, &container, &config, &[("CNI_ARGS", &arguments)]);
    let result = call("ADD").unwrap();
    // Under the kubelet's path no socket can be: it is too long.
    let path = std::path::Path::new(result["interfaces"][0]["socketPath"].as_str().unwrap());
    assert!(path.as_os_str().len() < 108 && !path.starts_with(&volume), "{}", path.display());
    wait_until("the socket is served in the volume", || {
        std::os::unix::net::UnixStream::connect(path).is_ok() && volume.join("c1-long-enou-eth0").exists()
    });
    let text = std::fs::read(volume.join("configData-c1-long-enou-eth0.json")).expect("a description");
    let described: serde_json::Value = serde_json::from_slice(&text).expect("JSON");
    assert_eq!(described["containerId"], "c1-long-enough");
    assert_eq!(described["config"]["iftype"], "vhostuser");
    assert_eq!(described["config"]["vhost"], json!({ "mode": "client", "socketfile": "c1-long-enou-eth0" }));
    assert_eq!(described["ipResult"]["ips"][0]["address"], result["ips"][0]["address"]);
    call("DEL").unwrap();
    assert_eq!(std::fs::read_dir(&volume).expect("the pod's own").count(), 0);
    assert!(std::fs::symlink_metadata(path.parent().expect("a folder")).is_err());
    runtime.assert_clean();
}
