//! Whether this machine can do what a configuration asks: the facts are gathered first, then judged without another look.

use std::collections::BTreeMap;
use std::fs;

use penstock_api::Fault;
use penstock_api::model::{Attachment, CopyMode, Endpoint, Object, Uplink, XdpMode};
use penstock_io::pages::HUGE;
use penstock_io::steer::{self, SteerError};
use penstock_io::xsk::MOST_PIECES;
use penstock_io::{CHUNK, HEADROOM, Hugepages, Netdev, NetdevError};

use crate::supervisor::{QUIET_POD_FILL, UPLINK_FILL};
use crate::tables::compile::overhead;
use crate::tables::desired::interface_of;

/// The longest frame with an Ethernet header and one VLAN tag that as many chunks hold as a packet may lie in, as an MTU.
const CHAIN_MTU: u32 = (MOST_PIECES * (CHUNK - HEADROOM) - 18) as u32;
/// Chunks that a worker's own pool keeps, with those that wait or are on their way.
const WORKER_CHUNKS: u32 = 1024;

/// What a configuration asks of the machine, as far as it could be read.
#[derive(Clone, Copy, Debug)]
pub struct Demands<'a> {
    /// The file, as faults call it.
    pub file: &'a str,
    /// The CPUs of the workers.
    pub cpus: &'a [usize],
    /// Chunks of packet memory; `None` for a number that cannot be, of which the file's own faults tell.
    pub chunks: Option<u32>,
    /// What packet memory is backed with.
    pub hugepages: Hugepages,
    /// The objects.
    pub objects: &'a [Object],
}

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
    /// Interfaces of these with an XDP program that is not ours, and what is to be said of it.
    pub occupied: BTreeMap<String, Occupied>,
}

/// An interface that runs an XDP program which is not ours, as far as can be seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Occupied {
    /// It is somebody else's.
    Foreign {
        /// Its number, as in `bpftool prog`.
        id: u32,
        /// Its name.
        name: String,
        /// Whether the driver runs it.
        native: bool,
    },
    /// Whose it is could not be seen.
    Unknown(String),
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
    pub fn gather(demands: &Demands) -> Facts {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let status = read("/proc/self/status");
        let allowed =
            status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap_or_default();
        let free = fs::read_to_string("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages");
        let interfaces = demands.objects.iter().filter_map(|object| match object {
            Object::Uplink(uplink) => Some(uplink.interface.as_str()),
            // A tap is ours to make.
            Object::Endpoint(Endpoint { attachment: attachment @ Attachment::Veth { .. }, .. }) => {
                interface_of(attachment)
            }
            _ => None,
        });
        let interfaces: BTreeMap<String, Result<Netdev, String>> =
            interfaces.map(|name| (name.to_owned(), facts_of(name))).collect();
        let netdevs = interfaces.values().flatten();
        let occupied = netdevs.filter_map(|netdev| Some((netdev.name.clone(), occupied(netdev)?)));
        Facts {
            allowed: cpu_list(allowed),
            online: cpu_list(&read("/sys/devices/system/cpu/online")),
            free_hugepages: free.ok().and_then(|text| text.trim().parse().ok()),
            occupied: occupied.collect(),
            interfaces,
        }
    }
}

impl Occupied {
    /// The problem and the mend.
    fn words(&self, interface: &str) -> (String, String) {
        match self {
            Occupied::Foreign { id, name, native } => (
                format!("{interface} runs XDP program {id} ({name}), which is somebody else's and stays"),
                format!(
                    "see `bpftool prog show id {id}`, and `ip link set dev {interface} {} off` if nobody needs it",
                    steer::ip_name(*native)
                ),
            ),
            Occupied::Unknown(why) => (
                format!("whose XDP program {interface} runs could not be seen: {why}"),
                "check as the user that the daemon runs as".to_owned(),
            ),
        }
    }
}

fn occupied(netdev: &Netdev) -> Option<Occupied> {
    match steer::check_vacant(netdev) {
        Ok(()) => None,
        Err(SteerError::Foreign { id, name, native, .. }) => Some(Occupied::Foreign { id, name, native }),
        Err(other) => Some(Occupied::Unknown(other.to_string())),
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

/// What stands in the way of these demands on a machine with these facts, and what is worth knowing.
#[must_use]
pub fn judge(demands: &Demands, facts: &Facts) -> Findings {
    let mut judge = Judge { demands, facts, found: Findings::default() };
    judge.cpus();
    judge.hugepages();
    judge.chunks();
    for object in demands.objects {
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
    demands: &'a Demands<'a>,
    facts: &'a Facts,
    found: Findings,
}

impl Judge<'_> {
    fn fault(&mut self, object: &str, key: &str, problem: String, mend: impl Into<String>) {
        self.found.faults.push(Fault::new(format!("{}: {object}", self.demands.file), key, problem, mend));
    }

    fn note(&mut self, object: &str, key: &str, problem: String, mend: impl Into<String>) {
        self.found.notes.push(Fault::new(format!("{}: {object}", self.demands.file), key, problem, mend));
    }

    fn cpus(&mut self) {
        for cpu in self.demands.cpus {
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

    fn hugepages(&mut self) {
        let demands = self.demands;
        let Some(chunks) = demands.chunks else { return };
        let needed = (chunks as usize * CHUNK).div_ceil(HUGE) as u64;
        let free = self.facts.free_hugepages.unwrap_or(0);
        if free >= needed || demands.hugepages == Hugepages::Off {
            return;
        }
        let problem = format!("{free} huge pages of 2 MiB are free and {needed} are needed");
        let mend = format!("echo {needed} > /sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages");
        if demands.hugepages == Hugepages::Require {
            self.fault("[memory]", "hugepages", problem, mend + ", or set hugepages = \"auto\"");
        } else {
            let problem = problem + ", so ordinary pages will do, more slowly";
            self.note("[memory]", "hugepages", problem, mend);
        }
    }

    /// What every port's rings and every worker take must be there.
    fn chunks(&mut self) {
        let demands = self.demands;
        let Some(chunks) = demands.chunks else { return };
        let mut wanted = demands.cpus.len() as u64 * u64::from(WORKER_CHUNKS);
        for object in demands.objects {
            let (interface, queues, fill) = match object {
                Object::Uplink(uplink) => (uplink.interface.as_str(), uplink.queues, UPLINK_FILL),
                Object::Endpoint(Endpoint { attachment: Attachment::Veth { interface }, queues, .. }) => {
                    (interface.as_str(), *queues, QUIET_POD_FILL)
                }
                _ => continue,
            };
            let there = self.facts.interfaces.get(interface).and_then(|facts| facts.as_ref().ok());
            let queues = queues.unwrap_or(there.map_or(1, |netdev| netdev.rx_queues));
            wanted += u64::from(queues) * u64::from(fill);
        }
        if wanted > u64::from(chunks) {
            let problem =
                format!("{chunks} chunks are too few: the ports' rings and the workers take {wanted}");
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
        if let Some(occupied) = facts.occupied.get(&netdev.name) {
            let (problem, mend) = occupied.words(&netdev.name);
            match occupied {
                Occupied::Foreign { .. } => self.fault(&object, "interface", problem, mend),
                Occupied::Unknown(_) => self.note(&object, "interface", problem, mend),
            }
        }
        for address in &uplink.addresses {
            let overlap = self
                .demands
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
        if xdp == XdpMode::Native && netdev.features.is_some_and(|features| !features.native) {
            let problem = format!("the driver of {name} ({}) has no native XDP", driver(netdev));
            self.fault(object, "xdp", problem, "set xdp = \"auto\" or \"generic\"");
        }
        if netdev.mtu > CHAIN_MTU {
            let problem = format!(
                "packets of {name} above {CHAIN_MTU} bytes are too long to be sent and are dropped; its MTU is {}",
                netdev.mtu
            );
            self.note(object, "interface", problem, format!("ip link set {name} mtu {CHAIN_MTU}"));
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
                // One pod does not keep the node from starting: it waits.
                if let Some(occupied) = facts.occupied.get(interface) {
                    let (problem, mend) = occupied.words(interface);
                    self.note(&object, "attachment", problem, mend);
                }
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
        let demands = self.demands;
        let uplinks = demands.objects.iter().filter_map(|object| match object {
            Object::Uplink(uplink) => Some(uplink.interface.as_str()),
            _ => None,
        });
        let links: Vec<&Netdev> = uplinks
            .filter_map(|name| self.facts.interfaces.get(name))
            .filter_map(|facts| facts.as_ref().ok())
            .collect();
        let Some(narrowest) = links.into_iter().min_by_key(|netdev| netdev.mtu) else { return };
        let by_ipv6 = demands
            .objects
            .iter()
            .any(|object| matches!(object, Object::Peer(peer) if peer.address.is_ipv6()));
        let networks = demands.objects.iter().filter_map(|object| match object {
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
mod tests;
