//! The daemon's configuration: a TOML file becomes a [`RawConfig`], and that a [`Config`] that holds only what can be done.
//!
//! ```text
//!  text --read--> RawConfig --validate--------------------------> Config, or faults
//!                     +------- judge (what this machine has) ---> faults and notes
//! ```
//!
//! No step stands in the way of another, so that all faults come at once, each with the file, the key and the mend.

pub mod machine;
pub mod stateful;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use penstock_api::check::check;
use penstock_api::file::{Rows, kinds, parse_table, read_row, take_objects};
use penstock_api::model::{Host, Key, Node, Object};
use penstock_api::{DEFAULT_SOCKET, Fault};
use penstock_io::Hugepages;
use serde::Deserialize;
use toml::{Table, Value};

use crate::idle::Idle;
use crate::tables::compile::check_capacity;
use crate::tables::desired::{Change, Desired};
use machine::{Demands, Facts, Findings, judge};
use stateful::{Connections, Services};

/// Chunks of packet memory when the file names none: 64 MiB.
const DEFAULT_CHUNKS: u32 = 32768;
/// The fewest chunks that a daemon can do anything with: one port's rings and a worker's pool.
const MIN_CHUNKS: u32 = 4096;
/// The most chunks: 64 GiB, so that a slip of the finger does not ask for all memory.
const MAX_CHUNKS: u32 = 1 << 25;
/// Flows that a worker's caches hold when the file names none.
const DEFAULT_FLOWS: u32 = 65536;
/// The most flows of a family a worker's cache may hold: 64 bytes each make 4 GiB.
const MAX_FLOWS: u32 = 1 << 26;
/// The longest path of a unix socket in bytes (`sun_path` of `linux/un.h` less its closing zero).
const MAX_SOCKET_PATH: usize = 107;

/// The settings beside the objects.
const SECTIONS: [&str; 8] =
    ["node", "host", "workers", "memory", "flows", "connections", "services", "control"];

/// What a file says, word by word, as far as it could be read.
#[derive(Debug)]
pub struct RawConfig {
    file: String,
    node: Option<Node>,
    host: Option<Host>,
    workers: Option<RawWorkers>,
    memory: RawMemory,
    flows: RawFlows,
    connections: Connections,
    services: Services,
    control: RawControl,
    objects: Vec<Object>,
    /// Objects that are there and could not be read.
    unread: Vec<Key>,
    /// What could not be read.
    faults: Vec<Fault>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct RawWorkers {
    cpus: Vec<usize>,
    #[serde(default)]
    idle: RawIdle,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum RawIdle {
    Poll,
    #[default]
    Adaptive,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
struct RawMemory {
    chunks: u32,
    hugepages: RawHugepages,
}

impl Default for RawMemory {
    fn default() -> RawMemory {
        RawMemory { chunks: DEFAULT_CHUNKS, hugepages: RawHugepages::default() }
    }
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum RawHugepages {
    #[default]
    Auto,
    Require,
    Off,
}

impl From<RawHugepages> for Hugepages {
    fn from(raw: RawHugepages) -> Hugepages {
        match raw {
            RawHugepages::Auto => Hugepages::Auto,
            RawHugepages::Require => Hugepages::Require,
            RawHugepages::Off => Hugepages::Off,
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
struct RawFlows {
    ipv4: u32,
    ipv6: u32,
}

impl Default for RawFlows {
    fn default() -> RawFlows {
        RawFlows { ipv4: DEFAULT_FLOWS, ipv6: DEFAULT_FLOWS / 4 }
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
struct RawControl {
    socket: PathBuf,
    metrics: Option<SocketAddr>,
}

impl Default for RawControl {
    fn default() -> RawControl {
        RawControl { socket: DEFAULT_SOCKET.into(), metrics: None }
    }
}

/// A configuration without a contradiction in it. Whether the machine can do it is for [`machine::judge`] to say.
#[derive(Clone, Debug)]
pub struct Config {
    /// The file that it was read from, as faults call it.
    pub file: String,
    /// Who this node is.
    pub node: Node,
    /// The node as a neighbour of its pods.
    pub host: Option<Host>,
    /// The CPUs of the workers, one each.
    pub cpus: Vec<usize>,
    /// How workers wait for packets.
    pub idle: Idle,
    /// Chunks of packet memory, of 2 KiB. Beside them the kernel takes 128 bytes a chunk for each queue of an AF_XDP socket,
    /// one of a veth pod say (`xp_create_and_assign_umem` in Linux's net/xdp/xsk_buff_pool.c): with many such pods, no more
    /// than they use.
    pub chunks: u32,
    /// What packet memory is backed with.
    pub hugepages: Hugepages,
    /// IPv4 flows that a worker's cache holds.
    pub flows4: usize,
    /// IPv6 flows that a worker's cache holds.
    pub flows6: usize,
    /// What is remembered of connections.
    pub connections: Connections,
    /// Where this node stands as services see it.
    pub services: Services,
    /// Where the control interface listens.
    pub socket: PathBuf,
    /// Where `/metrics` is served over HTTP, if anywhere.
    pub metrics: Option<SocketAddr>,
    /// The objects.
    pub objects: Vec<Object>,
}

impl Config {
    /// Reads and validates a file.
    ///
    /// # Errors
    /// Everything that is wrong with it, a file that cannot be read included.
    pub fn load(path: &Path) -> Result<Config, Vec<Fault>> {
        RawConfig::load(path)?.validate()
    }

    /// As [`Config::load`], and finds out whether this machine can do what the file asks. There is a configuration if, and
    /// only if, no fault was found.
    #[must_use]
    pub fn load_here(path: &Path) -> (Option<Config>, Findings) {
        let raw = match RawConfig::load(path) {
            Ok(raw) => raw,
            Err(faults) => return (None, Findings { faults, notes: Vec::new() }),
        };
        let found = judge(&raw.demands(), &Facts::gather(&raw.demands()));
        match raw.validate() {
            Ok(config) => (found.faults.is_empty().then_some(config), found),
            Err(faults) => {
                let faults = each_once(faults.into_iter().chain(found.faults));
                (None, Findings { faults, ..found })
            }
        }
    }

    /// Reads and validates a text; `file` is what faults call it.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn parse(text: &str, file: &str) -> Result<Config, Vec<Fault>> {
        RawConfig::read(text, file)?.validate()
    }

    /// The change that makes a running daemon's configuration this one.
    #[must_use]
    pub fn reload(&self) -> Change {
        Change::Reload(self.node.clone(), self.host.clone(), self.objects.clone())
    }

    /// The settings in which `other` differs and that a running daemon cannot change, by their keys.
    #[must_use]
    pub fn fixed_differences(&self, other: &Config) -> Vec<&'static str> {
        let pairs = [
            ("workers.cpus", self.cpus != other.cpus),
            ("workers.idle", self.idle != other.idle),
            ("memory.chunks", self.chunks != other.chunks),
            ("memory.hugepages", self.hugepages != other.hugepages),
            ("flows", (self.flows4, self.flows6) != (other.flows4, other.flows6)),
            ("connections", self.connections != other.connections),
            ("services", self.services != other.services),
            ("control.socket", self.socket != other.socket),
            ("control.metrics", self.metrics != other.metrics),
        ];
        pairs.into_iter().filter_map(|(key, differs)| differs.then_some(key)).collect()
    }
}

impl RawConfig {
    /// Reads a file.
    ///
    /// # Errors
    /// One fault, when there is no such file or it is not TOML at all.
    fn load(path: &Path) -> Result<RawConfig, Vec<Fault>> {
        let file = path.display().to_string();
        match std::fs::read_to_string(path) {
            Ok(text) => RawConfig::read(&text, &file),
            Err(error) => {
                let problem = format!("cannot be read: {error}");
                Err(vec![Fault::new(file, "", problem, "name a file that is there with --config")])
            }
        }
    }

    /// Reads a text. Values that cannot be read are noted and told by [`RawConfig::validate`] with the other faults.
    ///
    /// # Errors
    /// One fault, when the text is not TOML at all.
    pub fn read(text: &str, file: &str) -> Result<RawConfig, Vec<Fault>> {
        let mut table = parse_table(text, file).map_err(|error| vec![error.into()])?;
        let Rows { objects, unread, mut faults } = take_objects(&mut table, file);
        let mut reader = Sections { file, table: &mut table, faults: &mut faults };
        let raw = RawConfig {
            file: file.to_owned(),
            node: reader.needed("node", &["name"]),
            host: reader.optional("host", &["network"]),
            workers: reader.needed("workers", &["cpus"]),
            memory: reader.optional("memory", &[]).unwrap_or_default(),
            flows: reader.optional("flows", &[]).unwrap_or_default(),
            connections: reader.optional("connections", &[]).unwrap_or_default(),
            services: reader.optional("services", &[]).unwrap_or_default(),
            control: reader.optional("control", &[]).unwrap_or_default(),
            objects,
            unread,
            faults: Vec::new(),
        };
        reader.the_rest_is_unknown();
        Ok(RawConfig { faults, ..raw })
    }

    /// Checks each value and how they go together.
    ///
    /// # Errors
    /// Everything that is wrong, what could not be read included.
    pub fn validate(self) -> Result<Config, Vec<Fault>> {
        let mut faults = Vec::new();
        self.check_settings(&mut faults);
        self.check_objects(&mut faults);
        // What an object says of itself is found twice, alone and among the others.
        let faults = each_once(self.faults.into_iter().chain(faults));
        match (self.node, self.workers) {
            (Some(node), Some(workers)) if faults.is_empty() => Ok(Config {
                file: self.file,
                node,
                host: self.host,
                cpus: workers.cpus,
                idle: match workers.idle {
                    RawIdle::Poll => Idle::Poll,
                    RawIdle::Adaptive => Idle::Adaptive,
                },
                chunks: self.memory.chunks,
                hugepages: self.memory.hugepages.into(),
                flows4: self.flows.ipv4 as usize,
                flows6: self.flows.ipv6 as usize,
                connections: self.connections,
                services: self.services,
                socket: self.control.socket,
                metrics: self.control.metrics,
                objects: self.objects,
            }),
            _ => Err(faults),
        }
    }

    fn check_settings(&self, faults: &mut Vec<Fault>) {
        let mut add = |section: &str, key: &str, problem: String, mend: &str| {
            faults.push(Fault::new(format!("{}: [{section}]", self.file), key, problem, mend));
        };
        if let Some(workers) = &self.workers {
            if workers.cpus.is_empty() {
                add(
                    "workers",
                    "cpus",
                    "is empty, so that nobody would forward".into(),
                    "name at least one CPU",
                );
            }
            let mut seen = BTreeSet::new();
            for cpu in workers.cpus.iter().filter(|cpu| !seen.insert(**cpu)) {
                add(
                    "workers",
                    "cpus",
                    format!("CPU {cpu} is there twice"),
                    "give each worker a CPU of its own",
                );
            }
            if workers.cpus.len() > usize::from(u16::MAX) {
                add(
                    "workers",
                    "cpus",
                    format!("{} workers are too many", workers.cpus.len()),
                    "name fewer CPUs",
                );
            }
        }
        let chunks = self.memory.chunks;
        if !(MIN_CHUNKS..=MAX_CHUNKS).contains(&chunks) {
            let mend = format!("choose {MIN_CHUNKS} to {MAX_CHUNKS} chunks of 2 KiB");
            add("memory", "chunks", format!("{chunks} chunks cannot be"), &mend);
        }
        for (key, flows) in [("ipv4", self.flows.ipv4), ("ipv6", self.flows.ipv6)] {
            if !(1..=MAX_FLOWS).contains(&flows) {
                let mend = format!("choose 1 to {MAX_FLOWS} flows a worker");
                add("flows", key, format!("a cache of {flows} flows cannot be"), &mend);
            }
        }
        self.connections.check(&mut |key, problem, mend| add("connections", key, problem, mend));
        self.services.check(&mut |key, problem, mend| add("services", key, problem, mend));
        let socket = &self.control.socket;
        let length = socket.as_os_str().len();
        if length > MAX_SOCKET_PATH {
            let problem = format!(
                "{} has {length} bytes, and a socket's path at most {MAX_SOCKET_PATH}",
                socket.display()
            );
            add("control", "socket", problem, "choose a shorter path, say /run/penstock/penstock.sock");
        }
        if self.control.metrics.is_some_and(|address| address.port() == 0) {
            add(
                "control",
                "metrics",
                "port 0 is none".into(),
                "name the port to scrape, as in 127.0.0.1:9469",
            );
        }
        if !socket.is_absolute() {
            let problem = format!("{:?} is no absolute path", socket.display().to_string());
            add("control", "socket", problem, "begin it with a slash: the daemon may start in any folder");
        }
    }

    /// The objects, each alone and all together, as the daemon would take them.
    fn check_objects(&self, faults: &mut Vec<Fault>) {
        let in_file = |fault: Fault| Fault { object: format!("{}: {}", self.file, fault.object), ..fault };
        faults.extend(check(&self.objects).into_iter().map(in_file));
        // What objects say of each other does not hang on the node's name, which may be what is missing.
        let nobody = || Node { name: "nobody".parse().expect("a valid name"), mac: None };
        let node = self.node.clone().unwrap_or_else(nobody);
        let desired = Desired::new(node, self.host.clone())
            .with_node_ports(self.services.node_ports.clone())
            .with_source_ports(self.services.source_ports);
        let (desired, together) = desired.holding(self.objects.clone(), &self.unread);
        let together = together.into_iter().chain(check_capacity(&desired));
        faults.extend(together.map(in_file));
    }

    /// What the file asks of the machine.
    fn demands(&self) -> Demands<'_> {
        let chunks = self.memory.chunks;
        Demands {
            file: &self.file,
            cpus: self.workers.as_ref().map_or(&[], |workers| &workers.cpus),
            chunks: (MIN_CHUNKS..=MAX_CHUNKS).contains(&chunks).then_some(chunks),
            hugepages: self.memory.hugepages.into(),
            objects: &self.objects,
        }
    }
}

/// The faults in their order, none of them twice.
fn each_once(faults: impl Iterator<Item = Fault>) -> Vec<Fault> {
    let mut seen = BTreeSet::new();
    faults.filter(|fault| seen.insert(fault.clone())).collect()
}

/// The tables of a file that are not objects.
struct Sections<'a> {
    file: &'a str,
    table: &'a mut Table,
    faults: &'a mut Vec<Fault>,
}

impl Sections<'_> {
    fn optional<T: for<'de> Deserialize<'de>>(&mut self, section: &str, required: &[&str]) -> Option<T> {
        let called = format!("{}: [{section}]", self.file);
        match self.table.remove(section)? {
            Value::Table(table) => read_row(table, &called, required, self.faults),
            _ => {
                self.faults.push(Fault::new(self.file, section, "is no table", format!("write [{section}]")));
                None
            }
        }
    }

    fn needed<T: for<'de> Deserialize<'de>>(&mut self, section: &str, required: &[&str]) -> Option<T> {
        if !self.table.contains_key(section) {
            let mend = format!("write [{section}] with {}", required.join(" and "));
            self.faults.push(Fault::new(self.file, section, "is missing", mend));
        }
        self.optional(section, required)
    }

    fn the_rest_is_unknown(&mut self) {
        for key in self.table.keys() {
            let mend = format!(
                "take it out or correct it: there are {}, and the lists {}",
                SECTIONS.map(|section| format!("[{section}]")).join(", "),
                kinds()
            );
            self.faults.push(Fault::new(self.file, key, "is nothing that a node has", mend));
        }
    }
}

#[cfg(test)]
mod tests;
