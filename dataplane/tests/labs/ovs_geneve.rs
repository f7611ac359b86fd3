//! Open vSwitch's userspace datapath as a Geneve peer.

use std::path::Path;
use std::process::Command;

use crate::lab::{HOST, Lab, Running, succeed, v4, v6, wait_until};
use crate::traffic::{assert_checksums_good, datagrams, fetch, ping, stream};

/// An Open vSwitch of its own in node 3: database, switch, sockets and logs lie in the lab's folder.
struct Switch {
    folder: String,
    // Ended in this order.
    _switch: Running,
    _database: Running,
}

impl Switch {
    /// Node 3's uplink becomes a port of `br-phy`, which takes its address; `pod` hangs on `br-int` with the tunnel.
    fn start(lab: &Lab) -> Self {
        let node = lab.node(3);
        let folder = lab.file("ovs").display().to_string();
        std::fs::create_dir_all(&folder).expect("the lab's own folder");
        succeed({
            let mut create = Command::new("ovsdb-tool");
            create.args(["create", &format!("{folder}/conf.db"), "/usr/share/openvswitch/vswitch.ovsschema"]);
            create
        });
        let homes = format!("env OVS_RUNDIR={folder} OVS_LOGDIR={folder} OVS_DBDIR={folder}");
        let database = node.spawn(&format!(
            "{homes} ovsdb-server {folder}/conf.db --remote=punix:{folder}/db.sock --log-file={folder}/db.log"
        ));
        wait_until("the database listens", || Path::new(&format!("{folder}/db.sock")).exists());
        let switch = node.spawn(&format!(
            "{homes} ovs-vswitchd unix:{folder}/db.sock --unixctl={folder}/vs.ctl --log-file={folder}/vs.log"
        ));
        let this = Self { folder, _switch: switch, _database: database };
        this.vsctl("--no-wait init");
        this.vsctl(
            "add-br br-phy -- set bridge br-phy datapath_type=netdev \
             -- add-port br-phy uplink \
             -- add-br br-int -- set bridge br-int datapath_type=netdev \
             -- add-port br-int pod -- set interface pod type=internal",
        );
        node.run(&format!(
            "ip address flush dev uplink && ip address add 192.168.51.3/24 dev br-phy && ip link set br-phy up \
             && ip link set pod address 02:70:00:00:00:03 mtu 1400 up \
             && ip address add {}/32 dev pod && ip address add {}/128 dev pod nodad",
            v4(3, 1),
            v6(3, 1)
        ));
        // Node 1 is the way to its pods.
        let (gate4, gate6) = (v4(1, HOST), v6(1, HOST));
        node.run(&format!(
            "ip neighbour add {gate4} lladdr 02:70:00:00:00:01 dev pod && ip neighbour add {gate6} lladdr 02:70:00:00:00:01 dev pod \
             && ip route add 10.244.1.0/24 via {gate4} dev pod onlink && ip route add fd10:244:1::/64 via {gate6} dev pod onlink"
        ));
        this
    }

    fn vsctl(&self, what: &str) {
        succeed({
            let mut vsctl = Command::new("ovs-vsctl");
            vsctl
                .arg(format!("--db=unix:{}/db.sock", self.folder))
                .arg("--timeout=20")
                .args(what.split_whitespace());
            vsctl
        });
    }

    fn ofctl(&self, command: &str, arguments: &[&str]) -> String {
        let mut ofctl = Command::new("ovs-ofctl");
        ofctl
            .args(["-O", "OpenFlow13", command, &format!("unix:{}/br-int.mgmt", self.folder)])
            .args(arguments);
        succeed(ofctl)
    }

    fn tunnel(&self, option: bool) {
        self.vsctl(
            "add-port br-int tunnel -- set interface tunnel type=geneve options:remote_ip=192.168.51.1 options:key=100",
        );
        self.ofctl("del-flows", &[]);
        let mut send = "output:tunnel".to_owned();
        if option {
            self.ofctl("add-tlv-map", &["{class=0xff01,type=1,len=4}->tun_metadata0"]);
            send = format!("set_field:0x2a->tun_metadata0,{send}");
        }
        self.ofctl("add-flow", &[&format!("in_port=pod,actions={send}")]);
        self.ofctl("add-flow", &["in_port=tunnel,actions=output:pod"]);
    }
}

fn both_directions(lab: &Lab) {
    let (pod, ovs) = (lab.pod(1, 1), lab.node(3));
    for (pod_address, ovs_address) in [(v4(1, 1), v4(3, 1)), (v6(1, 1), v6(3, 1))] {
        ping(&pod, &ovs_address);
        ping(&ovs, &pod_address);
        stream(&pod, &ovs, &ovs_address);
        stream(&ovs, &pod, &pod_address);
        datagrams(&pod, &ovs, &ovs_address, 1200);
        datagrams(&ovs, &pod, &pod_address, 1200);
        fetch(lab, &pod, &ovs, &ovs_address, 2_000_000);
    }
    assert_checksums_good(&pod);
    assert_checksums_good(&ovs);
}

#[test]
fn open_vswitch_is_a_geneve_peer() {
    let lab = Lab::up("--nodes 1 --pods 1 --foreign 2 --encap geneve");
    let switch = Switch::start(&lab);
    switch.tunnel(false);
    both_directions(&lab);
}

#[test]
fn open_vswitch_may_add_an_option() {
    let lab = Lab::up("--nodes 1 --pods 1 --foreign 2 --encap geneve");
    let switch = Switch::start(&lab);
    switch.tunnel(true);
    both_directions(&lab);
}

#[test]
fn open_vswitch_reads_our_option() {
    let lab = Lab::up("--nodes 1 --pods 1 --foreign 2 --encap geneve --no-daemons");
    let file = lab.file("node1.toml");
    let plain = std::fs::read_to_string(&file).expect("the lab wrote it");
    let network = "encapsulation = \"geneve\"\n";
    let option = format!("{network}geneve-options = [{{ class = 0xFF01, kind = 1, data = \"0000002a\" }}]\n");
    assert!(plain.contains(network));
    std::fs::write(&file, plain.replace(network, &option)).expect("the lab's own folder");
    lab.start(1);
    let switch = Switch::start(&lab);
    switch.tunnel(true);
    // Only what carries the option gets through.
    switch.ofctl("del-flows", &["in_port=tunnel"]);
    switch.ofctl("add-flow", &["in_port=tunnel,tun_metadata0=0x2a,actions=output:pod"]);
    ping(&lab.pod(1, 1), &v4(3, 1));
    ping(&lab.pod(1, 1), &v6(3, 1));
}
