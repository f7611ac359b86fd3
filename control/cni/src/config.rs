//! The plugin's configuration, as the runtime hands it over on standard input.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use ipnet::IpNet;
use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use crate::environment::{AttachmentId, is_name};
use crate::failure::{Code, Failure};
use crate::result::{AddResult, Dns, Route};
use crate::version::Version;

/// Where the agent listens when the configuration does not say.
pub const DEFAULT_SOCKET: &str = "/run/penstock/cni.sock";

/// The names under which our own IPAM is asked for.
pub const OWN_IPAM: [&str; 3] = ["penstock", "penstock-cni", "penstock-ipam"];

/// How a container is attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// A pair of virtual Ethernet interfaces.
    #[default]
    Veth,
    /// Shared memory, by a socket.
    VhostUser,
    /// A tap whose kernel end is the container's.
    Tap,
    /// A virtual function of a network card.
    Sriov,
}

impl Mode {
    /// The mode of this name, as an annotation has it.
    pub fn parse(text: &str) -> Option<Self> {
        serde_json::from_value(Value::String(text.to_owned())).ok()
    }
}

/// What a plugin is configured with. Keys that are not known here are somebody else's.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Config {
    /// The version of the specification that the runtime speaks.
    #[serde(default)]
    pub cni_version: Version,
    /// The network's name.
    #[serde(default)]
    pub name: String,
    /// The plugin that the configuration is for.
    #[serde(default, rename = "type")]
    pub kind: String,
    /// The agent's socket.
    #[serde(default = "default_socket")]
    pub socket: PathBuf,
    /// How long the agent may take, in seconds.
    #[serde(default = "default_timeout")]
    pub timeout_seconds: u16,
    /// How containers are attached; a pod's annotation comes before it.
    #[serde(default)]
    pub interface: Option<Mode>,
    /// The dataplane's network that containers are attached to; the agent's own when absent.
    #[serde(default)]
    pub network: Option<String>,
    /// The identity that the container's addresses belong to, where no cluster says it.
    #[serde(default)]
    pub identity: Option<String>,
    /// The largest IP packet in bytes; the network's when absent.
    #[serde(default)]
    pub mtu: Option<u16>,
    /// Queues of the interface; one for each of the dataplane's workers when absent.
    #[serde(default)]
    pub queues: Option<u32>,
    /// Where addresses come from.
    #[serde(default, deserialize_with = "ipam")]
    pub ipam: Ipam,
    /// For the mode `vhost-user`.
    #[serde(default)]
    pub vhost_user: VhostUser,
    /// For the mode `sriov`.
    #[serde(default)]
    pub sriov: Sriov,
    /// What the runtime adds for this container.
    #[serde(default, deserialize_with = "or_null")]
    pub runtime_config: RuntimeConfig,
    /// What the plugin before us gave, or what ADD gave.
    #[serde(default)]
    pub prev_result: Option<AddResult>,
    /// What the runtime knows of (GC).
    #[serde(default, rename = "cni.dev/valid-attachments")]
    pub valid_attachments: Option<Vec<AttachmentId>>,
    /// Older word for the same, which libcni writes beside it.
    #[serde(default, rename = "cni.dev/attachments", skip_serializing)]
    attachments: Option<Vec<AttachmentId>>,
    /// Name servers.
    #[serde(default)]
    pub dns: Dns,
    /// The device that a device plugin gave, where Multus writes it.
    #[serde(default, rename = "deviceID")]
    pub device_id: Option<String>,
}

fn default_socket() -> PathBuf {
    PathBuf::from(DEFAULT_SOCKET)
}

fn default_timeout() -> u16 {
    60
}

fn or_null<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

/// Of what another plugin is told in its own words, only its name.
fn ipam<'de, D: Deserializer<'de>>(words: D) -> Result<Ipam, D::Error> {
    let written = Value::deserialize(words)?;
    let kind = written.get("type").and_then(Value::as_str).map(str::to_owned);
    let named = Ipam { kind, ..Ipam::default() };
    if named.delegate().is_some() {
        return Ok(named);
    }
    serde_json::from_value(written).map_err(D::Error::custom)
}

/// Where addresses come from.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Ipam {
    /// Another plugin, or one of [`OWN_IPAM`]; the agent's own way when absent.
    #[serde(default, rename = "type")]
    pub kind: Option<String>,
    /// Ranges; each inner list gives one address, as with the plugin `host-local`.
    #[serde(default)]
    pub ranges: Vec<Vec<Range>>,
    /// The only range, in the older way of `host-local`.
    #[serde(default)]
    pub subnet: Option<IpNet>,
    /// The first address of `subnet` that is given.
    #[serde(default)]
    pub range_start: Option<IpAddr>,
    /// The last address of `subnet` that is given.
    #[serde(default)]
    pub range_end: Option<IpAddr>,
    /// The gateway in `subnet`.
    #[serde(default)]
    pub gateway: Option<IpAddr>,
    /// Pools by name, in place of ranges.
    #[serde(default)]
    pub pools: Vec<String>,
    /// Addresses that the container must get.
    #[serde(default)]
    pub addresses: Vec<IpAddr>,
    /// Routes for the container.
    #[serde(default)]
    pub routes: Vec<Route>,
    /// Whether a pod of a StatefulSet gets the addresses that it had.
    #[serde(default)]
    pub sticky: bool,
}

impl Ipam {
    /// The plugin that gives addresses, when it is not us.
    pub fn delegate(&self) -> Option<&str> {
        self.kind.as_deref().filter(|kind| !kind.is_empty() && !OWN_IPAM.contains(kind))
    }

    /// The ranges, whichever way they are written.
    pub fn all_ranges(&self) -> Vec<Vec<Range>> {
        let only = self.subnet.map(|subnet| {
            let (range_start, range_end, gateway) = (self.range_start, self.range_end, self.gateway);
            vec![Range { subnet, range_start, range_end, gateway }]
        });
        only.into_iter().chain(self.ranges.iter().cloned()).collect()
    }
}

/// Addresses that are given, as with the plugin `host-local`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Range {
    /// The prefix that they lie in.
    pub subnet: IpNet,
    /// The first that is given; the first of the prefix when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub range_start: Option<IpAddr>,
    /// The last that is given; the last of the prefix when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub range_end: Option<IpAddr>,
    /// The gateway, which is not given; the first of the prefix when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
}

/// Which end of a vhost-user socket is the dataplane's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// The application serves the socket; the dataplane connects, and connects again.
    #[default]
    Client,
    /// The dataplane serves the socket.
    Server,
}

/// How a vhost-user socket is made.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VhostUser {
    /// Which end is the dataplane's.
    #[serde(default)]
    pub role: Role,
    /// The folder of the socket; one of the attachment's own when absent.
    #[serde(default)]
    pub directory: Option<PathBuf>,
    /// The group that may use it, by name or number.
    #[serde(default)]
    pub group: Option<String>,
}

/// What a virtual function is set to before it is handed over.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Sriov {
    /// The VLAN, 1 to 4094; none when absent or 0.
    #[serde(default)]
    pub vlan: Option<u16>,
    /// The priority of the VLAN, 0 to 7.
    #[serde(default)]
    pub vlan_qos: Option<u8>,
    /// Whether it may change its address and receive what is not for it.
    #[serde(default, deserialize_with = "on_or_off")]
    pub trust: Option<bool>,
    /// Whether the card drops what it sends from another address.
    #[serde(default, deserialize_with = "on_or_off")]
    pub spoof_check: Option<bool>,
    /// The least rate in Mbit/s.
    #[serde(default)]
    pub min_tx_rate: Option<u32>,
    /// The highest rate in Mbit/s.
    #[serde(default)]
    pub max_tx_rate: Option<u32>,
}

/// `true`, `false`, and the words `"on"` and `"off"`, which the SR-IOV plugin takes.
fn on_or_off<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<bool>, D::Error> {
    match Option::<Value>::deserialize(deserializer)? {
        None => Ok(None),
        Some(Value::Bool(on)) => Ok(Some(on)),
        Some(Value::String(word)) if word == "on" => Ok(Some(true)),
        Some(Value::String(word)) if word == "off" => Ok(Some(false)),
        Some(other) => Err(serde::de::Error::custom(format!("{other} is neither \"on\" nor \"off\""))),
    }
}

/// What the runtime adds for one container (the conventions' "capabilities").
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RuntimeConfig {
    /// Ports of the node that lead to the container.
    #[serde(default, deserialize_with = "or_null")]
    pub port_mappings: Vec<PortMapping>,
    /// What may pass at most.
    #[serde(default)]
    pub bandwidth: Option<Bandwidth>,
    /// The Ethernet address.
    #[serde(default)]
    pub mac: Option<String>,
    /// Addresses that the container must get, with or without the length of their prefix.
    #[serde(default, deserialize_with = "or_null")]
    pub ips: Vec<String>,
    /// Ranges in place of the configured ones.
    #[serde(default, deserialize_with = "or_null")]
    pub ip_ranges: Vec<Vec<Range>>,
    /// The device that a device plugin gave.
    #[serde(default, rename = "deviceID")]
    pub device_id: Option<String>,
    /// Where the description of the device goes (device information specification 1.1.0).
    #[serde(default, rename = "CNIDeviceInfoFile")]
    pub device_info_file: Option<PathBuf>,
    /// Name servers.
    #[serde(default)]
    pub dns: Option<RuntimeDns>,
}

/// A port of the node that leads to the container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PortMapping {
    /// The port of the node.
    pub host_port: u16,
    /// The port of the container.
    pub container_port: u16,
    /// `tcp`, `udp` or `sctp`.
    #[serde(default)]
    pub protocol: String,
    /// The address of the node; all of them when absent or empty.
    #[serde(default, rename = "hostIP")]
    pub host_ip: Option<String>,
}

/// What may pass at most: bits a second and bits, as the CNI convention has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Bandwidth {
    /// Bits a second to the container; 0 for no limit.
    #[serde(default)]
    pub ingress_rate: u64,
    /// Bits that may pass at once to the container.
    #[serde(default)]
    pub ingress_burst: u64,
    /// Bits a second from the container; 0 for no limit.
    #[serde(default)]
    pub egress_rate: u64,
    /// Bits that may pass at once from the container.
    #[serde(default)]
    pub egress_burst: u64,
}

/// Name servers, as the runtime gives them.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RuntimeDns {
    /// Addresses.
    #[serde(default)]
    pub servers: Vec<String>,
    /// Domains that short names are looked up in.
    #[serde(default)]
    pub searches: Vec<String>,
    /// Options of the resolver.
    #[serde(default)]
    pub options: Vec<String>,
}

impl Config {
    /// Reads and checks a configuration.
    ///
    /// # Errors
    /// [`Code::Decode`] for what is no configuration, [`Code::IncompatibleVersion`], [`Code::Config`].
    pub fn read(text: &[u8]) -> Result<Self, Failure> {
        let value: Value = serde_json::from_slice(text).map_err(|error| {
            Failure::new(Code::Decode, "the configuration on standard input is not JSON").with_details(error)
        })?;
        if !value.is_object() {
            return Err(Failure::new(Code::Decode, "the configuration on standard input is no JSON object"));
        }
        said_version(&value)?;
        let mut config: Self = serde_json::from_value(value).map_err(|error| {
            Failure::new(Code::Decode, format!("the configuration has a key of the wrong kind: {error}"))
        })?;
        if config.valid_attachments.is_none() {
            config.valid_attachments = config.attachments.take();
        }
        if !is_name(&config.name) {
            let msg = format!(
                "the network's `name` is {:?}; it starts with a letter or digit and goes on with these, `_`, `.` and `-`",
                config.name
            );
            return Err(Failure::new(Code::Config, msg));
        }
        Ok(config)
    }

    /// The device that a device plugin gave for this attachment, by either of the keys under which it is handed over.
    pub fn device(&self) -> Option<&str> {
        let said = [self.runtime_config.device_id.as_deref(), self.device_id.as_deref()];
        said.into_iter().flatten().find(|id| !id.is_empty())
    }

    /// Reads what can be read of a configuration, however much of it there is: enough for DEL.
    pub fn read_leniently(text: &[u8]) -> Self {
        Self::read(text).unwrap_or_else(|_| {
            let value: Value = serde_json::from_slice(text).unwrap_or_default();
            let said = |key: &str| value.get(key).and_then(Value::as_str).map(str::to_owned);
            Self {
                cni_version: said("cniVersion").and_then(|it| Version::parse(&it).ok()).unwrap_or_default(),
                name: said("name").filter(|name| is_name(name)).unwrap_or_default(),
                kind: said("type").unwrap_or_default(),
                socket: said("socket").map_or_else(default_socket, PathBuf::from),
                timeout_seconds: default_timeout(),
                ..Self::default()
            }
        })
    }
}

/// The version that a configuration asks for.
fn said_version(value: &Value) -> Result<Version, Failure> {
    match value.get("cniVersion") {
        Some(Value::String(text)) => Version::parse(text),
        Some(other) => Err(Failure::new(Code::Config, format!("cniVersion is {other}, not a text"))),
        None => {
            Err(Failure::new(Code::Config, "cniVersion is missing; \"1.1.0\" is the newest that is known"))
        }
    }
}

/// The version that results and failures are said in, whatever else is wrong with the configuration.
pub fn version_of(text: &[u8]) -> Version {
    let value: Value = serde_json::from_slice(text).unwrap_or_default();
    said_version(&value).unwrap_or_default()
}

/// Keys of `CNI_ARGS` that Kubernetes' runtimes set.
pub struct PodName<'a> {
    /// The namespace.
    pub namespace: &'a str,
    /// The name.
    pub name: &'a str,
    /// The unique identifier.
    pub uid: Option<&'a str>,
}

impl<'a> PodName<'a> {
    /// The pod that `CNI_ARGS` are about, if they are about one.
    pub fn of(args: &'a BTreeMap<String, String>) -> Option<Self> {
        let get = |key: &str| args.get(key).map(String::as_str).filter(|value| !value.is_empty());
        let (namespace, name) = (get("K8S_POD_NAMESPACE")?, get("K8S_POD_NAME")?);
        Some(Self { namespace, name, uid: get("K8S_POD_UID") })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shortest_configuration_is_enough() {
        let config =
            Config::read(br#"{"cniVersion":"1.0.0","name":"n","type":"penstock-cni","other":1}"#).unwrap();
        assert_eq!(config.cni_version, Version::V100);
        assert_eq!(config.socket, PathBuf::from(DEFAULT_SOCKET));
        assert_eq!(config.ipam.delegate(), None);
        let nulls = br#"{"cniVersion":"1.0.0","name":"n","runtimeConfig":null}"#;
        assert_eq!(Config::read(nulls).unwrap().runtime_config, RuntimeConfig::default());
    }

    #[test]
    fn a_fault_is_of_the_right_kind() {
        let code = |text: &str| Config::read(text.as_bytes()).unwrap_err().code;
        assert_eq!(code("{"), Code::Decode);
        assert_eq!(code("[]"), Code::Decode);
        assert_eq!(code(r#"{"cniVersion":"0.2.0","name":"n"}"#), Code::IncompatibleVersion);
        assert_eq!(code(r#"{"cniVersion":"1.0.0","name":"../n"}"#), Code::Config);
        assert_eq!(code(r#"{"name":"n"}"#), Code::Config);
        assert_eq!(code(r#"{"cniVersion":"1.0.0","name":"n","mtu":"x"}"#), Code::Decode);
    }

    #[test]
    fn what_is_left_of_a_configuration_is_enough_to_detach() {
        let config = Config::read_leniently(br#"{"name":"n","mtu":"x","socket":"/s"}"#);
        assert_eq!((config.name.as_str(), config.socket), ("n", PathBuf::from("/s")));
        let nothing = Config::read_leniently(br#"{"cniVersion":"1.1.0","na"#);
        assert_eq!((nothing.name.as_str(), nothing.socket), ("", PathBuf::from(DEFAULT_SOCKET)));
    }

    #[test]
    fn both_ways_of_writing_ranges_are_read() {
        let ipam: Ipam = serde_json::from_str(
            r#"{"type":"penstock","subnet":"10.1.0.0/24","ranges":[[{"subnet":"fd00::/64"}]]}"#,
        )
        .unwrap();
        assert_eq!(ipam.all_ranges().len(), 2);
        assert_eq!(ipam.delegate(), None);
        let other: Ipam = serde_json::from_str(r#"{"type":"host-local"}"#).unwrap();
        assert_eq!(other.delegate(), Some("host-local"));
    }

    #[test]
    fn what_the_runtime_adds_is_read() {
        let config = Config::read(
            br#"{"cniVersion":"1.1.0","name":"n","runtimeConfig":{"portMappings":[{"hostPort":8080,
            "containerPort":80,"protocol":"tcp"}],"bandwidth":{"ingressRate":8000},"mac":"02:00:00:00:00:01",
            "ips":["10.0.0.5/24"],"deviceID":"vhost-1","CNIDeviceInfoFile":"/run/d.json"},
            "cni.dev/valid-attachments":[{"containerID":"a","ifname":"eth0"}]}"#,
        )
        .unwrap();
        assert_eq!(config.runtime_config.port_mappings[0].host_port, 8080);
        assert_eq!(config.runtime_config.device_id.as_deref(), Some("vhost-1"));
        assert_eq!(config.valid_attachments.unwrap()[0].to_string(), "a/eth0");
    }
}
