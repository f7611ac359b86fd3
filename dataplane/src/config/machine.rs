//! Whether this machine can do what a configuration asks: the facts are gathered first, then judged without another look.

use std::collections::BTreeMap;
use std::fs;

use penstock_api::Fault;
use penstock_api::model::{Attachment, CopyMode, Endpoint, Object, Uplink, XdpMode};
use penstock_io::pages::HUGE;
use penstock_io::{CHUNK, HEADROOM, Hugepages, Netdev, NetdevError};

use super::Config;
use crate::supervisor::{POD_FILL, UPLINK_FILL};
use crate::tables::compile::overhead;
use crate::tables::desired::interface_of;

/// The longest frame with an Ethernet header and one VLAN tag that a chunk holds, as an MTU.
const CHUNK_MTU: u32 = (CHUNK - HEADROOM - 18) as u32;
/// The largest MTU at which a veth runs XDP in native mode: a page of 4 KiB less the headroom and what a socket buffer
/// keeps at its end (`veth_xdp_set` of `drivers/net/veth.c`, on x86-64).
const VETH_NATIVE_MTU: u32 = 3506;
/// Chunks that a worker's own pool keeps, with those that wait or are on their way.
const WORKER_CHUNKS: u32 = 1024;

/// What there is on this machine, of what a configuration asks for.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// CPUs that this process may run on.
    pub allowed: Vec<usize>,
    /// CPUs that are on line.
    pub online: Vec<usize>,
    /// Huge pages of 2 MiB that are free; `None` where the kernel has none.
    pub free_hugepages: Option<u64>,
    /// The interfaces that the configuration names, or why nothing is known of one.
    pub interfaces: BTreeMap<String, Result<Netdev, String>>,
}

/// The outcome of a judgement.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    /// What stands in the way of a start.
    pub faults: Vec<Fault>,
    /// What works, but not as well as it could, or not yet.
    pub notes: Vec<Fault>,
}

impl Facts {
    /// Looks around in the network namespace of the calling thread.
    #[must_use]
    pub fn gather(config: &Config) -> Facts {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let status = read("/proc/self/status");
        let allowed =
            status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap_or_default();
        let free = fs::read_to_string("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages");
        let interfaces = config.objects.iter().filter_map(|object| match object {
            Object::Uplink(uplink) => Some(uplink.interface.as_str()),
            // A tap is ours to make.
            Object::Endpoint(Endpoint { attachment: attachment @ Attachment::Veth { .. }, .. }) => {
                interface_of(attachment)
            }
            _ => None,
        });
        Facts {
            allowed: cpu_list(allowed),
            online: cpu_list(&read("/sys/devices/system/cpu/online")),
            free_hugepages: free.ok().and_then(|text| text.trim().parse().ok()),
            interfaces: interfaces.map(|name| (name.to_owned(), facts_of(name))).collect(),
        }
    }
}

fn facts_of(name: &str) -> Result<Netdev, String> {
    Netdev::named(name).map_err(|error| match error {
        NetdevError::Missing { .. } => format!("there is no interface {name} in this network namespace"),
        other => other.to_string(),
    })
}

/// The numbers of a list as the kernel writes it: `0-3,8`.
fn cpu_list(text: &str) -> Vec<usize> {
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.trim().parse::<usize>().ok()?..=last.trim().parse::<usize>().ok()?)
    };
    text.split(',').filter_map(range).flatten().collect()
}

/// What stands in the way of this configuration on a machine with these facts, and what is worth knowing.
#[must_use]
pub fn judge(config: &Config, facts: &Facts) -> Findings {
    let mut judge = Judge { config, facts, found: Findings::default() };
    judge.cpus();
    judge.memory();
    for object in &config.objects {
        match object {
            Object::Uplink(uplink) => judge.uplink(uplink),
            Object::Endpoint(endpoint) => judge.endpoint(endpoint),
            // No other kind has a device.
            _ => {}
        }
    }
    judge.networks();
    judge.found
}

struct Judge<'a> {
    config: &'a Config,
    facts: &'a Facts,
    found: Findings,
}

impl Judge<'_> {
    fn fault(&mut self, object: &str, key: &str, problem: String, mend: impl Into<String>) {
        self.found.faults.push(Fault::new(format!("{}: {object}", self.config.file), key, problem, mend));
    }

    fn note(&mut self, object: &str, key: &str, problem: String, mend: impl Into<String>) {
        self.found.notes.push(Fault::new(format!("{}: {object}", self.config.file), key, problem, mend));
    }

    fn cpus(&mut self) {
        for cpu in &self.config.cpus {
            if !self.facts.online.contains(cpu) {
                let mend = format!("this machine has {}", ranges(&self.facts.online));
                self.fault("[workers]", "cpus", format!("there is no CPU {cpu}"), mend);
            } else if !self.facts.allowed.contains(cpu) {
                let mend = format!(
                    "choose of {}, or widen the cpuset (AllowedCPUs= of the unit, the container's cpuset, taskset)",
                    ranges(&self.facts.allowed)
                );
                self.fault(
                    "[workers]",
                    "cpus",
                    format!("CPU {cpu} is outside the cpuset of this process"),
                    mend,
                );
            }
        }
    }

    fn memory(&mut self) {
        let config = self.config;
        let needed = (config.chunks as usize * CHUNK).div_ceil(HUGE) as u64;
        let free = self.facts.free_hugepages.unwrap_or(0);
        if free < needed && config.hugepages != Hugepages::Off {
            let problem = format!("{free} huge pages of 2 MiB are free and {needed} are needed");
            let mend = format!("echo {needed} > /sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages");
            if config.hugepages == Hugepages::Require {
                self.fault("[memory]", "hugepages", problem, mend + ", or set hugepages = \"auto\"");
            } else {
                self.note(
                    "[memory]",
                    "hugepages",
                    problem + ", so ordinary pages will do, more slowly",
                    mend,
                );
            }
        }
        let mut wanted = config.cpus.len() as u64 * u64::from(WORKER_CHUNKS);
        for object in &config.objects {
            let (interface, queues, fill) = match object {
                Object::Uplink(uplink) => (uplink.interface.as_str(), uplink.queues, UPLINK_FILL),
                Object::Endpoint(Endpoint { attachment: Attachment::Veth { interface }, queues, .. }) => {
                    (interface.as_str(), *queues, POD_FILL)
                }
                _ => continue,
            };
            let there = self.facts.interfaces.get(interface).and_then(|facts| facts.as_ref().ok());
            let queues = queues.unwrap_or(there.map_or(1, |netdev| netdev.rx_queues));
            wanted += u64::from(queues) * u64::from(fill);
        }
        if wanted > u64::from(config.chunks) {
            let problem = format!(
                "{} chunks are too few: the ports' rings and the workers take {wanted}",
                config.chunks
            );
            self.fault("[memory]", "chunks", problem, format!("set chunks = {}", wanted.next_power_of_two()));
        }
    }

    fn uplink(&mut self, uplink: &Uplink) {
        let object = format!("uplink \"{}\"", uplink.name);
        let facts = self.facts;
        let netdev = match facts.interfaces.get(uplink.interface.as_str()) {
            Some(Ok(netdev)) => netdev,
            Some(Err(why)) => {
                let mend = "name one that `ip link` shows, or start the daemon when it is there";
                return self.fault(&object, "interface", why.clone(), mend);
            }
            None => return,
        };
        if !netdev.up {
            let problem = format!("{} is down", netdev.name);
            self.note(&object, "interface", problem, format!("ip link set {} up", netdev.name));
        }
        if let Some(queues) = uplink.queues.filter(|queues| *queues > netdev.rx_queues) {
            let problem =
                format!("{queues} queues are asked for and {} has {}", netdev.name, netdev.rx_queues);
            let mend = format!("ethtool -L {} combined {queues}, or ask for fewer", netdev.name);
            self.fault(&object, "queues", problem, mend);
        }
        if let Some(queues) = uplink.queues.filter(|queues| *queues < netdev.rx_queues) {
            let problem = format!(
                "{queues} of the {} queues of {} are served; tunnels on the others end in the kernel",
                netdev.rx_queues, netdev.name
            );
            self.note(
                &object,
                "queues",
                problem,
                format!("ethtool -L {} combined {queues}, or leave the key out", netdev.name),
            );
        }
        let zero_copy = netdev.features.is_none_or(|features| features.zero_copy);
        if uplink.copy == CopyMode::ZeroCopy && !zero_copy {
            let problem = format!("the driver of {} ({}) has no zero-copy", netdev.name, driver(netdev));
            self.fault(&object, "copy", problem, "set copy = \"auto\" or \"copy\"");
        }
        self.xdp(&object, netdev, uplink.xdp);
        for address in &uplink.addresses {
            let overlap = self
                .config
                .objects
                .iter()
                .any(|object| matches!(object, Object::Peer(peer) if peer.address == *address));
            if overlap {
                let problem = format!("{address} is the address of a peer too");
                self.fault(&object, "addresses", problem, "an uplink's addresses are this node's own");
            }
        }
    }

    fn xdp(&mut self, object: &str, netdev: &Netdev, xdp: XdpMode) {
        let name = &netdev.name;
        if xdp == XdpMode::Native {
            if netdev.features.is_some_and(|features| !features.native) {
                let problem = format!("the driver of {name} ({}) has no native XDP", driver(netdev));
                self.fault(object, "xdp", problem, "set xdp = \"auto\" or \"generic\"");
            } else if netdev.is_veth() && netdev.mtu > VETH_NATIVE_MTU {
                let problem = format!(
                    "{name} has an MTU of {}, and a veth runs native XDP up to {VETH_NATIVE_MTU}",
                    netdev.mtu
                );
                self.fault(
                    object,
                    "xdp",
                    problem,
                    format!("ip link set {name} mtu {CHUNK_MTU}, or set xdp = \"generic\""),
                );
            }
        }
        if netdev.mtu > CHUNK_MTU {
            let problem = format!(
                "packets of {name} above {CHUNK_MTU} bytes do not fit a chunk and are dropped; its MTU is {}",
                netdev.mtu
            );
            self.note(object, "interface", problem, format!("ip link set {name} mtu {CHUNK_MTU}"));
        }
    }

    fn endpoint(&mut self, endpoint: &Endpoint) {
        let object = format!("endpoint \"{}\"", endpoint.name);
        let facts = self.facts;
        let Some(interface) = interface_of(&endpoint.attachment) else { return };
        match facts.interfaces.get(interface) {
            Some(Ok(netdev)) => {
                if let Some(queues) = endpoint.queues.filter(|queues| *queues > netdev.rx_queues) {
                    let problem =
                        format!("{queues} queues are asked for and {interface} has {}", netdev.rx_queues);
                    self.fault(
                        &object,
                        "queues",
                        problem,
                        "make the veth with more numrxqueues, or ask for fewer",
                    );
                }
                self.xdp(&object, netdev, endpoint.xdp);
            }
            Some(Err(why)) => {
                let mend = "it is taken up as soon as it appears";
                self.note(&object, "attachment", why.clone(), mend);
            }
            None => {}
        }
    }

    /// What a network's packets and their tunnel headers come to must fit every uplink.
    fn networks(&mut self) {
        let config = self.config;
        let uplinks = config.objects.iter().filter_map(|object| match object {
            Object::Uplink(uplink) => Some(uplink.interface.as_str()),
            _ => None,
        });
        let links: Vec<&Netdev> = uplinks
            .filter_map(|name| self.facts.interfaces.get(name))
            .filter_map(|facts| facts.as_ref().ok())
            .collect();
        let Some(narrowest) = links.into_iter().min_by_key(|netdev| netdev.mtu) else { return };
        let by_ipv6 = config
            .objects
            .iter()
            .any(|object| matches!(object, Object::Peer(peer) if peer.address.is_ipv6()));
        let networks = config.objects.iter().filter_map(|object| match object {
            Object::Network(network) => Some(network),
            _ => None,
        });
        for network in networks {
            let overhead = u32::from(overhead(network, by_ipv6));
            let Some(mtu) = network.mtu.map(u32::from) else { continue };
            if mtu + overhead > narrowest.mtu {
                let problem = format!(
                    "packets of {mtu} bytes are {} in a tunnel, and {} carries {}",
                    mtu + overhead,
                    narrowest.name,
                    narrowest.mtu
                );
                let mend = format!(
                    "set mtu = {}, or ip link set {} mtu {}",
                    narrowest.mtu.saturating_sub(overhead),
                    narrowest.name,
                    mtu + overhead
                );
                self.fault(&format!("network \"{}\"", network.name), "mtu", problem, mend);
            }
        }
    }
}

fn driver(netdev: &Netdev) -> &str {
    netdev.driver.as_deref().unwrap_or("unknown")
}

/// Numbers as the kernel writes them: `CPUs 0-3,8`.
fn ranges(cpus: &[usize]) -> String {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for &cpu in cpus {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == cpu => *last = cpu,
            _ => runs.push((cpu, cpu)),
        }
    }
    let texts: Vec<String> = runs
        .iter()
        .map(|(first, last)| if first == last { first.to_string() } else { format!("{first}-{last}") })
        .collect();
    format!("CPUs {}", texts.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;
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
        }
    }

    fn judged(
        change: impl Fn(&str) -> String,
        change_facts: impl Fn(&mut Facts),
    ) -> (Vec<String>, Vec<String>) {
        let config = Config::parse(&change(TEXT), "n.toml").unwrap();
        let mut facts = facts();
        change_facts(&mut facts);
        let found = judge(&config, &facts);
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
        let jumbo =
            |facts: &mut Facts| facts.interfaces.get_mut("eth0").unwrap().as_mut().unwrap().mtu = 9000;
        let (faults, notes) = judged(uplink("xdp = \"native\""), jumbo);
        assert!(faults[0].contains("native XDP up to 3506"), "{faults:?}");
        assert!(notes[0].contains("do not fit a chunk"), "{notes:?}");
        let (faults, _) = judged(uplink("addresses = [\"192.0.2.2\"]"), |_| {});
        assert!(faults[0].contains("192.0.2.2 is the address of a peer too"), "{faults:?}");
    }

    #[test]
    fn a_missing_uplink_is_a_fault_and_a_missing_pod_is_waited_for() {
        let gone = |facts: &mut Facts| {
            facts
                .interfaces
                .iter_mut()
                .for_each(|(_, facts)| *facts = Err("there is no such interface".into()));
        };
        let (faults, notes) = judged(str::to_owned, gone);
        assert_eq!((faults.len(), notes.len()), (1, 1));
        assert!(faults[0].contains("uplink \"north\", `interface`"), "{faults:?}");
        assert!(notes[0].contains("endpoint \"web\", `attachment`"), "{notes:?}");
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
        assert_eq!(cpu_list(""), []);
        assert_eq!(ranges(&[0, 1, 2, 5, 7, 8]), "CPUs 0-2,5,7-8");
    }
}
