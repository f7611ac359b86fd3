//! What ADD gives back, and how it is said in older versions of the specification.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::version::Version;

/// The result of ADD, in the words of version 1.1.0.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AddResult {
    /// The interfaces that were made, the container's and the node's.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "or_null")]
    pub interfaces: Vec<Interface>,
    /// The addresses.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "or_null")]
    pub ips: Vec<IpConfig>,
    /// The routes.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "or_null")]
    pub routes: Vec<Route>,
    /// Name servers.
    #[serde(default, skip_serializing_if = "Dns::is_empty")]
    pub dns: Dns,
}

/// `null` stands for an empty list: Go writes lists so.
fn or_null<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

/// An interface.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its Ethernet address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// Its MTU in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// The container's network namespace; absent for an interface of the node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<String>,
    /// The socket of a vhost-user interface, as the node sees it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket_path: Option<String>,
    /// The PCI address of a function that was handed in.
    #[serde(default, rename = "pciID", skip_serializing_if = "Option::is_none")]
    pub pci_id: Option<String>,
}

/// An address of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpConfig {
    /// The address with the length of its prefix.
    pub address: IpNet,
    /// The gateway.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
    /// The place of its interface in the list of interfaces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<usize>,
}

/// A route of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// The destination.
    pub dst: IpNet,
    /// The gateway.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gw: Option<IpAddr>,
    /// The MTU in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// The maximum segment size that is advertised, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advmss: Option<u32>,
    /// The priority; lower comes first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<u32>,
    /// The routing table.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<u32>,
    /// The scope, as `rtnetlink(7)` numbers it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<u8>,
}

/// Name servers.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Dns {
    /// Addresses, the first preferred.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "or_null")]
    pub nameservers: Vec<String>,
    /// The local domain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    /// Domains that short names are looked up in.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "or_null")]
    pub search: Vec<String>,
    /// Options of the resolver.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "or_null")]
    pub options: Vec<String>,
}

impl Dns {
    /// Whether it says nothing.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl AddResult {
    /// What plugins before us in the chain gave, with `ours` behind it.
    #[must_use]
    pub fn chained(mut self, ours: AddResult) -> AddResult {
        let before = self.interfaces.len();
        self.interfaces.extend(ours.interfaces);
        let moved = ours.ips.into_iter().map(|ip| {
            let interface = ip.interface.map(|place| place + before);
            IpConfig { interface, ..ip }
        });
        self.ips.extend(moved);
        self.routes.extend(ours.routes);
        if self.dns.is_empty() {
            self.dns = ours.dns;
        }
        self
    }

    /// The result as `version` says it: what came later is left out.
    pub fn to_json(&self, version: Version) -> Value {
        let mut result = Map::new();
        result.insert("cniVersion".to_owned(), json!(version.as_str()));
        let interfaces: Vec<Value> = self.interfaces.iter().map(|it| interface(it, version)).collect();
        let routes: Vec<Value> = self.routes.iter().map(|it| route(it, version)).collect();
        let ips: Vec<Value> = self.ips.iter().map(|it| ip(it, version)).collect();
        for (key, list) in [("interfaces", interfaces), ("ips", ips), ("routes", routes)] {
            if !list.is_empty() {
                result.insert(key.to_owned(), Value::Array(list));
            }
        }
        result.insert("dns".to_owned(), json!(self.dns));
        Value::Object(result)
    }
}

fn interface(interface: &Interface, version: Version) -> Value {
    if version >= Version::V110 {
        return json!(interface);
    }
    json!(Interface { mtu: None, socket_path: None, pci_id: None, ..interface.clone() })
}

fn route(route: &Route, version: Version) -> Value {
    if version >= Version::V110 {
        return json!(route);
    }
    json!(Route { mtu: None, advmss: None, priority: None, table: None, scope: None, ..route.clone() })
}

fn ip(ip: &IpConfig, version: Version) -> Value {
    let mut value = json!(ip);
    if version < Version::V100
        && let Some(object) = value.as_object_mut()
    {
        let family = if ip.address.addr().is_ipv4() { "4" } else { "6" };
        object.insert("version".to_owned(), json!(family));
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    fn result() -> AddResult {
        AddResult {
            interfaces: vec![Interface {
                name: "eth0".into(),
                mac: Some("02:00:00:00:00:01".into()),
                mtu: Some(1450),
                sandbox: Some("/run/netns/a".into()),
                socket_path: Some("/run/s".into()),
                pci_id: None,
            }],
            ips: vec![IpConfig {
                address: "10.0.0.2/32".parse().unwrap(),
                gateway: None,
                interface: Some(0),
            }],
            routes: vec![Route {
                dst: "0.0.0.0/0".parse().unwrap(),
                gw: Some("169.254.1.1".parse().unwrap()),
                mtu: Some(1400),
                advmss: None,
                priority: None,
                table: None,
                scope: None,
            }],
            dns: Dns::default(),
        }
    }

    #[test]
    fn an_older_version_hears_nothing_that_it_does_not_know() {
        for version in Version::ALL {
            let said = result().to_json(version);
            assert_eq!(said["cniVersion"], version.as_str());
            assert_eq!(said["ips"][0].get("version").is_some(), version < Version::V100, "{version}");
            for key in ["mtu", "socketPath"] {
                let has = said["interfaces"][0].get(key).is_some();
                assert_eq!(has, version == Version::V110, "{version} {key}");
            }
            assert_eq!(said["routes"][0].get("mtu").is_some(), version == Version::V110, "{version}");
            assert_eq!(said["interfaces"][0]["sandbox"], "/run/netns/a");
        }
        assert_eq!(result().to_json(Version::V031)["ips"][0]["version"], "4");
    }

    #[test]
    fn a_result_of_any_version_is_read_again() {
        for version in Version::ALL {
            let said = result().to_json(version);
            let read: AddResult = serde_json::from_value(said).unwrap();
            assert_eq!(read.ips, result().ips, "{version}");
            assert_eq!(read.interfaces[0].name, "eth0", "{version}");
        }
        let read: AddResult = serde_json::from_str(r#"{"interfaces":null,"ips":null,"dns":{}}"#).unwrap();
        assert_eq!(read, AddResult::default());
    }

    #[test]
    fn addresses_find_their_interface_behind_those_of_a_chain() {
        let chained = result().chained(result());
        assert_eq!(chained.interfaces.len(), 2);
        assert_eq!(chained.ips.iter().map(|ip| ip.interface).collect::<Vec<_>>(), [Some(0), Some(1)]);
    }
}
