//! What the kernel says of processors and of SR-IOV functions, below `/sys`.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use thiserror::Error;

/// The address of a function on the PCI bus, as in `0000:3b:02.1`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PciAddress(String);

/// A text that is no address on the PCI bus.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{0:?} is no PCI address: domain, bus, device and function are as in 0000:3b:02.1")]
pub struct NotPciAddress(String);

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl FromStr for PciAddress {
    type Err = NotPciAddress;

    fn from_str(text: &str) -> Result<Self, NotPciAddress> {
        let is_hex = |part: &str, lengths: std::ops::RangeInclusive<usize>| {
            lengths.contains(&part.len()) && part.bytes().all(|it| matches!(it, b'0'..=b'9' | b'a'..=b'f'))
        };
        let parts: Vec<&str> = text.split([':', '.']).collect();
        let is_sound = match parts[..] {
            [domain, bus, device, function] => {
                // Domains of virtual buses have more digits than four.
                is_hex(domain, 4..=8)
                    && is_hex(bus, 2..=2)
                    && is_hex(device, 2..=2)
                    && is_hex(function, 1..=1)
            }
            _ => false,
        };
        if is_sound && text.matches(':').count() == 2 {
            Ok(Self(text.to_owned()))
        } else {
            Err(NotPciAddress(text.to_owned()))
        }
    }
}

/// A virtual function of a network card.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Function {
    /// The interface of its card.
    pub card: String,
    /// Its number on the card.
    pub number: u32,
    /// Its own interface, when it has one in this namespace.
    pub interface: Option<String>,
}

/// The kernel's device model, mounted somewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sysfs {
    root: PathBuf,
}

impl Default for Sysfs {
    fn default() -> Self {
        Self::at(Path::new("/sys"))
    }
}

impl Sysfs {
    /// The one that is mounted at `root`.
    pub fn at(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    /// The NUMA nodes that processors belong to; none where the kernel does not say.
    pub fn nodes_of_cpus(&self, cpus: impl IntoIterator<Item = u32>) -> BTreeSet<u32> {
        let folder = |cpu: u32| self.root.join(format!("devices/system/cpu/cpu{cpu}"));
        cpus.into_iter()
            .flat_map(|cpu| names(&folder(cpu)))
            .filter_map(|name| name.strip_prefix("node")?.parse().ok())
            .collect()
    }

    fn pci(&self, address: &PciAddress) -> PathBuf {
        self.root.join("bus/pci/devices").join(&address.0)
    }

    /// The functions of a card by its interface: number and address, in the order of the numbers.
    pub fn functions_of(&self, card: &str) -> Vec<(u32, PciAddress)> {
        functions_in(&self.root.join("class/net").join(card).join("device"))
    }

    /// The virtual function at an address, if there is one.
    pub fn function(&self, address: &PciAddress) -> Option<Function> {
        let folder = self.pci(address);
        let card = folder.join("physfn");
        let (number, _) = functions_in(&card).into_iter().find(|(_, it)| it == address)?;
        let interface = names(&folder.join("net")).into_iter().min();
        Some(Function { card: uplink(&card.join("net"))?, number, interface })
    }

    /// The NUMA node that a PCI device is near, where the kernel knows one.
    pub fn node_of(&self, address: &PciAddress) -> Option<u32> {
        let said = fs::read_to_string(self.pci(address).join("numa_node")).ok()?;
        // -1 stands for "unknown".
        said.trim().parse().ok()
    }

    /// The driver of a PCI device, such as `iavf` or `vfio-pci`.
    pub fn driver_of(&self, address: &PciAddress) -> Option<String> {
        target_name(&self.pci(address).join("driver"))
    }

    /// The group that a PCI device is protected by an IOMMU in.
    pub fn iommu_group_of(&self, address: &PciAddress) -> Option<String> {
        target_name(&self.pci(address).join("iommu_group"))
    }
}

/// The last part of what a link leads to.
fn target_name(link: &Path) -> Option<String> {
    Some(fs::read_link(link).ok()?.file_name()?.to_string_lossy().into_owned())
}

fn functions_in(device: &Path) -> Vec<(u32, PciAddress)> {
    let function = |name: String| {
        let number = name.strip_prefix("virtfn")?.parse().ok()?;
        Some((number, target_name(&device.join(&name))?.parse().ok()?))
    };
    let mut functions: Vec<(u32, PciAddress)> = names(device).into_iter().filter_map(function).collect();
    functions.sort_unstable();
    functions
}

/// The card's own interface among those of its device: a card that switches between its functions has one for each of
/// them beside it, whose port is named after the function.
fn uplink(folder: &Path) -> Option<String> {
    let is_own = |name: &String| {
        let port = fs::read_to_string(folder.join(name).join("phys_port_name")).unwrap_or_default();
        let port = port.trim();
        port.is_empty()
            || port.strip_prefix('p').is_some_and(|it| it.bytes().all(|byte| byte.is_ascii_digit()))
    };
    names(folder).into_iter().filter(is_own).min()
}

/// What is in a folder, in no order; nothing where there is none.
fn names(folder: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_function_is_found_by_its_address_and_its_card() {
        let root = tempfile::tempdir().unwrap();
        let devices = root.path().join("bus/pci/devices");
        let (card, function) = (devices.join("0000:3b:00.0"), devices.join("0000:3b:02.1"));
        for folder in [card.join("net/ens1f0"), card.join("net/ens1f0_0"), function.join("net/ens1f0v1")] {
            fs::create_dir_all(folder).unwrap();
        }
        fs::write(card.join("net/ens1f0/phys_port_name"), "p0\n").unwrap();
        fs::write(card.join("net/ens1f0_0/phys_port_name"), "pf0vf0\n").unwrap();
        fs::write(function.join("numa_node"), "1\n").unwrap();
        fs::write(card.join("numa_node"), "-1\n").unwrap();
        fs::create_dir_all(root.path().join("class/net")).unwrap();
        let link = |to: &str, at: PathBuf| std::os::unix::fs::symlink(to, at).unwrap();
        link("../0000:3b:02.1", card.join("virtfn1"));
        link("../0000:3b:02.0", card.join("virtfn0"));
        link("../0000:3b:00.0", function.join("physfn"));
        link("../../../bus/pci/drivers/iavf", function.join("driver"));
        fs::create_dir_all(root.path().join("class/net/ens1f0")).unwrap();
        link("../../../bus/pci/devices/0000:3b:00.0", root.path().join("class/net/ens1f0/device"));

        let sysfs = Sysfs::at(root.path());
        let address: PciAddress = "0000:3b:02.1".parse().unwrap();
        let found = sysfs.function(&address).unwrap();
        let interface = Some("ens1f0v1".to_owned());
        assert_eq!(found, Function { card: "ens1f0".to_owned(), number: 1, interface });
        let numbers: Vec<u32> = sysfs.functions_of("ens1f0").iter().map(|(number, _)| *number).collect();
        assert_eq!(numbers, [0, 1]);
        assert_eq!(sysfs.functions_of("ens1f0")[1].1, address);
        assert_eq!(sysfs.node_of(&address), Some(1));
        assert_eq!(sysfs.driver_of(&address).as_deref(), Some("iavf"));
        // The card itself is no virtual function, and nobody knows where it is.
        let card: PciAddress = "0000:3b:00.0".parse().unwrap();
        assert_eq!((sysfs.function(&card), sysfs.node_of(&card)), (None, None));
        assert_eq!(sysfs.functions_of("eth0"), []);
    }

    #[test]
    fn what_leads_out_of_the_folder_is_no_address() {
        for text in ["10000:e1:00.7", "0000:00:1f.0"] {
            assert_eq!(text.parse::<PciAddress>().unwrap().to_string(), text);
        }
        for text in [
            "",
            "0000:3b:02",
            "..",
            "0000:3b:02.1/..",
            "0000:3B:02.1",
            "0000.3b.02.1",
            "0000:3b:02:1",
            "3b:02.1",
        ] {
            assert!(text.parse::<PciAddress>().is_err(), "{text}");
        }
    }

    #[test]
    fn processors_belong_to_the_nodes_that_the_kernel_names() {
        let root = tempfile::tempdir().unwrap();
        for folder in ["cpu0/node0", "cpu0/topology", "cpu1/node1", "cpu2/nodes"] {
            fs::create_dir_all(root.path().join("devices/system/cpu").join(folder)).unwrap();
        }
        let sysfs = Sysfs::at(root.path());
        assert_eq!(sysfs.nodes_of_cpus([0, 1]), BTreeSet::from([0, 1]));
        assert_eq!(sysfs.nodes_of_cpus([1, 2, 9]), BTreeSet::from([1]));
    }
}
