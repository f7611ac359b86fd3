use super::*;
use crate::config::RawConfig;
use penstock_io::netdev::XdpFeatures;

const TEXT: &str = r#"
    [node]
    name = "node1"
    [workers]
    cpus = [0, 2]
    [[uplink]]
    name = "north"
    interface = "eth0"
    [[network]]
    name = "default"
    vni = 100
    mtu = 1450
    [[endpoint]]
    name = "web"
    network = "default"
    mac = "02:00:00:00:00:01"
    addresses = ["10.1.0.2"]
    attachment = { veth = { interface = "p1" } }
    [[peer]]
    name = "node2"
    address = "192.0.2.2"
"#;

fn netdev(name: &str) -> Netdev {
    Netdev {
        name: name.into(),
        index: 3,
        mac: [2, 0, 0, 0, 0, 1],
        mtu: 1500,
        up: true,
        running: true,
        driver: Some("veth".into()),
        rx_queues: 2,
        tx_queues: 2,
        features: Some(XdpFeatures { native: true, zero_copy: false }),
        program: None,
    }
}

fn facts() -> Facts {
    let interfaces = ["eth0", "p1"].map(|name| (name.to_owned(), Ok(netdev(name))));
    Facts {
        allowed: vec![0, 1, 2],
        online: vec![0, 1, 2, 3],
        free_hugepages: Some(100),
        interfaces: interfaces.into(),
        occupied: BTreeMap::new(),
    }
}

fn judged(change: impl Fn(&str) -> String, change_facts: impl Fn(&mut Facts)) -> (Vec<String>, Vec<String>) {
    let config = RawConfig::read(&change(TEXT), "n.toml").unwrap();
    let mut facts = facts();
    change_facts(&mut facts);
    let found = judge(&config.demands(), &facts);
    let lines = |faults: Vec<Fault>| faults.iter().map(Fault::to_string).collect();
    (lines(found.faults), lines(found.notes))
}

fn uplink(key: &str) -> impl Fn(&str) -> String {
    move |text| text.replace("interface = \"eth0\"", &format!("interface = \"eth0\"\n{key}"))
}

#[test]
fn a_machine_that_has_everything_is_found_fit() {
    assert_eq!(judged(str::to_owned, |_| {}), (vec![], vec![]));
}

#[test]
fn cpus_that_are_not_there_and_cpus_outside_the_cpuset_are_told_apart() {
    let (faults, _) = judged(|text| text.replace("[0, 2]", "[3, 9]"), |_| {});
    assert!(
        faults[0].contains("CPU 3 is outside the cpuset of this process; choose of CPUs 0-2"),
        "{faults:?}"
    );
    assert!(faults[1].contains("there is no CPU 9; this machine has CPUs 0-3"), "{faults:?}");
}

#[test]
fn missing_huge_pages_are_a_fault_only_where_they_are_required() {
    let with = |kind: &str| format!("{TEXT}\n[memory]\nhugepages = \"{kind}\"\n");
    let few = |facts: &mut Facts| facts.free_hugepages = Some(3);
    let (faults, _) = judged(|_| with("require"), few);
    assert!(faults[0].contains("3 huge pages of 2 MiB are free and 32 are needed"), "{faults:?}");
    let (faults, notes) = judged(|_| with("auto"), few);
    assert_eq!((faults.len(), notes.len()), (0, 1));
    assert_eq!(judged(|_| with("off"), few), (vec![], vec![]));
}

#[test]
fn what_an_uplink_cannot_do_is_said_before_a_packet_flows() {
    let (faults, _) = judged(uplink("queues = 4"), |_| {});
    assert!(faults[0].contains("`queues`: 4 queues are asked for and eth0 has 2"), "{faults:?}");
    let (faults, _) = judged(uplink("copy = \"zero-copy\""), |_| {});
    assert!(faults[0].contains("`copy`: the driver of eth0 (veth) has no zero-copy"), "{faults:?}");
    let jumbo = |facts: &mut Facts| facts.interfaces.get_mut("eth0").unwrap().as_mut().unwrap().mtu = 9000;
    let (faults, notes) = judged(uplink("xdp = \"native\""), jumbo);
    assert!(faults.is_empty(), "{faults:?}");
    assert!(notes.is_empty(), "nine thousand bytes lie in several chunks: {notes:?}");
    let giant = |facts: &mut Facts| facts.interfaces.get_mut("eth0").unwrap().as_mut().unwrap().mtu = 65535;
    let (_, notes) = judged(uplink("xdp = \"generic\""), giant);
    assert!(notes[0].contains("above 30446 bytes"), "{notes:?}");
    let (faults, _) = judged(uplink("addresses = [\"192.0.2.2\"]"), |_| {});
    assert!(faults[0].contains("192.0.2.2 is the address of a peer too"), "{faults:?}");
}

#[test]
fn a_missing_uplink_is_a_fault_and_a_missing_pod_is_waited_for() {
    let gone = |facts: &mut Facts| {
        facts.interfaces.iter_mut().for_each(|(_, facts)| *facts = Err("there is no such interface".into()));
    };
    let (faults, notes) = judged(str::to_owned, gone);
    assert_eq!((faults.len(), notes.len()), (1, 1));
    assert!(faults[0].contains("uplink \"north\", `interface`"), "{faults:?}");
    assert!(notes[0].contains("endpoint \"web\", `attachment`"), "{notes:?}");
}

#[test]
fn a_foreign_xdp_program_keeps_an_uplink_from_starting_and_a_pod_waiting() {
    let occupied = |interface: &'static str, it: Occupied| {
        move |facts: &mut Facts| drop(facts.occupied.insert(interface.to_owned(), it.clone()))
    };
    let foreign = || Occupied::Foreign { id: 7, name: "guard".into(), native: false };
    let (faults, notes) = judged(str::to_owned, occupied("eth0", foreign()));
    assert_eq!((faults.len(), notes.len()), (1, 0));
    for part in [
        "uplink \"north\", `interface`: eth0 runs XDP program 7 (guard)",
        "ip link set dev eth0 xdpgeneric off",
    ] {
        assert!(faults[0].contains(part), "{faults:?}");
    }
    let (faults, notes) = judged(str::to_owned, occupied("p1", foreign()));
    assert_eq!((faults.len(), notes.len()), (0, 1));
    assert!(notes[0].contains("endpoint \"web\", `attachment`: p1 runs XDP program 7 (guard)"), "{notes:?}");
    let (faults, notes) = judged(str::to_owned, occupied("eth0", Occupied::Unknown("EPERM".into())));
    assert_eq!((faults.len(), notes.len()), (0, 1));
}

#[test]
fn a_network_whose_tunnels_do_not_fit_the_uplink_is_a_fault_with_the_mtu_that_does() {
    let (faults, _) = judged(|text| text.replace("mtu = 1450", "mtu = 1500"), |_| {});
    assert!(faults[0].contains("1550 in a tunnel, and eth0 carries 1500; set mtu = 1450"), "{faults:?}");
    let (faults, _) = judged(|text| text.replace("192.0.2.2", "2001:db8::2"), |_| {});
    assert!(faults[0].contains("set mtu = 1430"), "{faults:?}");
}

#[test]
fn too_little_packet_memory_for_the_ports_is_a_fault() {
    let (faults, _) = judged(|text| format!("{text}\n[memory]\nchunks = 4096\n"), |_| {});
    assert!(faults[0].contains("`chunks`: 4096 chunks are too few"), "{faults:?}");
}

#[test]
fn lists_of_cpus_are_read_and_written_as_the_kernel_does() {
    assert_eq!(cpu_list("\t0-2,5,7-8\n"), [0, 1, 2, 5, 7, 8]);
    assert_eq!(cpu_list(""), Vec::<usize>::new());
    assert_eq!(ranges(&[0, 1, 2, 5, 7, 8]), "CPUs 0-2,5,7-8");
}
