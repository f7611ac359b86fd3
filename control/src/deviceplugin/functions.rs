//! SR-IOV devices: the virtual functions of some cards.

use std::collections::BTreeSet;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use thiserror::Error;

use super::dataplane::Outside;
use super::pool::{AllocationError, Device, Grant, Pool};
use crate::sysfs::{PciAddress, Sysfs};

/// The driver that hands functions to programs.
const PROGRAMS_DRIVER: &str = "vfio-pci";

/// Functions of one card.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CardFunctions {
    /// The card's interface.
    pub card: String,
    /// The first and the last function; all of them when absent.
    pub numbers: Option<(u32, u32)>,
}

impl CardFunctions {
    fn has(&self, number: u32) -> bool {
        self.numbers.is_none_or(|(first, last)| (first..=last).contains(&number))
    }

    fn overlaps(&self, other: &Self) -> bool {
        let ((a, b), (c, d)) =
            (self.numbers.unwrap_or((0, u32::MAX)), other.numbers.unwrap_or((0, u32::MAX)));
        self.card == other.card && a <= d && c <= b
    }
}

/// Which functions are in a pool: `NAME=CARD[:FIRST-LAST][,…]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FunctionPool {
    /// The pool's name: the resource is `penstock.dev/sriov-NAME`.
    pub name: String,
    /// Its functions.
    pub functions: Vec<CardFunctions>,
}

/// What is wrong with a pool.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum PoolFault {
    /// It is not written as pools are.
    #[error(
        "{0:?} is no pool: pools are as in fast=ens1f0:0-7,ens1f1, a name with cards and the functions of these"
    )]
    Form(String),
    /// No resource can have the name.
    #[error(
        "a pool cannot be called {0:?}: names are 1 to 50 lowercase letters, digits and `-`, and end with a letter or digit"
    )]
    Name(String),
    /// A function would be in two places.
    #[error(
        "functions of {card} are in pool {one} and in pool {other}; a function belongs to one pool, once"
    )]
    Overlap {
        /// The card's interface.
        card: String,
        /// A pool.
        one: String,
        /// Another, or the same.
        other: String,
    },
}

impl FromStr for FunctionPool {
    type Err = PoolFault;

    fn from_str(text: &str) -> Result<Self, PoolFault> {
        let form = || PoolFault::Form(text.to_owned());
        let (name, cards) = text.split_once('=').ok_or_else(form)?;
        let is_sound = (1..=50).contains(&name.len())
            && name.bytes().all(|it| it.is_ascii_lowercase() || it.is_ascii_digit() || it == b'-')
            && !name.ends_with('-');
        if !is_sound {
            return Err(PoolFault::Name(name.to_owned()));
        }
        let functions = cards.split(',').map(|card| {
            let (card, numbers) = match card.split_once(':') {
                None => (card, None),
                Some((card, numbers)) => (card, Some(range(numbers).ok_or_else(form)?)),
            };
            let is_interface = (1..=15).contains(&card.len()) && !card.contains(['/', ' ']) && card != "..";
            is_interface.then(|| CardFunctions { card: card.to_owned(), numbers }).ok_or_else(form)
        });
        let pool = Self { name: name.to_owned(), functions: functions.collect::<Result<_, _>>()? };
        disjoint(std::slice::from_ref(&pool))?;
        Ok(pool)
    }
}

/// `FIRST-LAST`, or one number.
fn range(text: &str) -> Option<(u32, u32)> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (first.parse().ok()?, last.parse().ok()?);
    (first <= last).then_some((first, last))
}

impl fmt::Display for FunctionPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cards = self.functions.iter().map(|part| match part.numbers {
            None => part.card.clone(),
            Some((first, last)) => format!("{}:{first}-{last}", part.card),
        });
        write!(f, "{}={}", self.name, cards.collect::<Vec<_>>().join(","))
    }
}

/// Sees that no function is in two places.
///
/// # Errors
/// [`PoolFault::Overlap`].
pub fn disjoint(pools: &[FunctionPool]) -> Result<(), PoolFault> {
    let parts = || pools.iter().flat_map(|pool| pool.functions.iter().map(move |part| (&pool.name, part)));
    for (at, (one, part)) in parts().enumerate() {
        if let Some((other, _)) = parts().take(at).find(|(_, other)| other.overlaps(part)) {
            let (card, one, other) = (part.card.clone(), other.clone(), one.clone());
            return Err(PoolFault::Overlap { card, one, other });
        }
    }
    Ok(())
}

/// The functions of a pool as devices.
#[derive(Debug, Clone)]
pub(super) struct FunctionDevices {
    name: String,
    pool: FunctionPool,
    sysfs: Sysfs,
}

impl FunctionDevices {
    pub(super) fn new(pool: FunctionPool, sysfs: Sysfs) -> Self {
        Self { name: format!("sriov-{}", pool.name), pool, sysfs }
    }

    fn functions(&self) -> impl Iterator<Item = (&CardFunctions, PciAddress)> {
        self.pool.functions.iter().flat_map(|part| {
            let functions = self.sysfs.functions_of(&part.card).into_iter();
            functions.filter(|(number, _)| part.has(*number)).map(move |(_, address)| (part, address))
        })
    }

    /// The device nodes by which a program has a function, when its driver is for that.
    fn nodes(&self, address: &PciAddress) -> Vec<PathBuf> {
        if self.sysfs.driver_of(address).as_deref() != Some(PROGRAMS_DRIVER) {
            return Vec::new();
        }
        let group = self.sysfs.iommu_group_of(address);
        let folder = PathBuf::from("/dev/vfio");
        [Some("vfio".to_owned()), group].into_iter().flatten().map(|name| folder.join(name)).collect()
    }
}

impl Pool for FunctionDevices {
    fn name(&self) -> &str {
        &self.name
    }

    fn devices(&self, _outside: &Outside) -> Vec<Device> {
        let device = |(part, address): (&CardFunctions, PciAddress)| Device {
            id: address.to_string(),
            // The card takes packets to it whether the dataplane is there or not.
            is_healthy: true,
            nodes: self.sysfs.node_of(&address).into_iter().collect(),
            group: part.card.clone(),
        };
        self.functions().map(device).collect()
    }

    fn allocate(&self, ids: &[String]) -> Result<Grant, AllocationError> {
        let there: BTreeSet<String> = self.functions().map(|(_, address)| address.to_string()).collect();
        let mut grant = Grant::default();
        for id in ids {
            let address = id.parse::<PciAddress>().ok().filter(|_| there.contains(id));
            let resource = format!("{}/{}", super::DOMAIN, self.name);
            let address = address.ok_or_else(|| AllocationError::Unknown { resource, id: id.clone() })?;
            let new = self.nodes(&address).into_iter().filter(|it| !grant.nodes.contains(it));
            let new: Vec<PathBuf> = new.collect();
            grant.nodes.extend(new);
        }
        // As the SR-IOV device plugin says it: what looks for functions in a container reads variables of this kind.
        let resource = format!("{}_{}", super::DOMAIN, self.name).to_uppercase();
        let variable = format!("PCIDEVICE_{}", resource.replace(|it: char| !it.is_ascii_alphanumeric(), "_"));
        grant.variables.insert(variable, ids.join(","));
        Ok(grant)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::path::Path;

    /// Cards with two functions each.
    fn cards(root: &Path, names: &[&str]) {
        for (card, name) in names.iter().enumerate() {
            let device = root.join(format!("class/net/{name}/device"));
            fs::create_dir_all(&device).unwrap();
            for number in 0..2 {
                let address = format!("0000:0{card}:02.{number}");
                let function = root.join("bus/pci/devices").join(&address);
                fs::create_dir_all(&function).unwrap();
                fs::write(function.join("numa_node"), format!("{card}\n")).unwrap();
                symlink(&function, device.join(format!("virtfn{number}"))).unwrap();
            }
        }
    }

    #[test]
    fn a_pool_is_read_as_it_is_written() {
        for text in ["fast=ens1f0:0-7,ens1f1", "a-1=eth0:3-3"] {
            assert_eq!(text.parse::<FunctionPool>().unwrap().to_string(), text);
        }
        assert_eq!("a=eth0:3".parse::<FunctionPool>().unwrap().to_string(), "a=eth0:3-3");
        for text in
            ["", "a", "a=", "=eth0", "A=eth0", "a-=eth0", "a=eth0:", "a=eth0:2-1", "a=../x", "a=eth0,eth0:1"]
        {
            assert!(text.parse::<FunctionPool>().is_err(), "{text}");
        }
    }

    #[test]
    fn no_function_is_in_two_pools() {
        let pools = |texts: [&str; 2]| texts.map(|text| text.parse::<FunctionPool>().unwrap());
        disjoint(&pools(["a=eth0:0-3", "b=eth0:4-7,eth1"])).unwrap();
        let fault = disjoint(&pools(["a=eth0:0-3", "b=eth1,eth0:3-7"])).unwrap_err();
        assert!(fault.to_string().contains("functions of eth0 are in pool a and in pool b"), "{fault}");
        disjoint(&pools(["a=eth0", "b=eth0:9-9"])).unwrap_err();
    }

    #[test]
    fn a_pool_offers_the_functions_that_there_are() {
        let root = tempfile::tempdir().unwrap();
        cards(root.path(), &["ens1", "ens2"]);
        let function = root.path().join("bus/pci/devices/0000:01:02.0");
        symlink("/sys/bus/pci/drivers/vfio-pci", function.join("driver")).unwrap();
        symlink("/sys/kernel/iommu_groups/42", function.join("iommu_group")).unwrap();
        let pool = FunctionDevices::new("fast=ens1:1-9,ens2".parse().unwrap(), Sysfs::at(root.path()));
        let devices = pool.devices(&Outside::default());
        let ids: Vec<&str> = devices.iter().map(|device| device.id.as_str()).collect();
        assert_eq!(ids, ["0000:00:02.1", "0000:01:02.0", "0000:01:02.1"]);
        assert_eq!(devices[1].nodes, BTreeSet::from([1]));
        assert!(devices.iter().all(|device| device.is_healthy));

        let grant = pool.allocate(&["0000:01:02.0".to_owned(), "0000:01:02.1".to_owned()]).unwrap();
        assert_eq!(grant.nodes, [Path::new("/dev/vfio/vfio"), Path::new("/dev/vfio/42")]);
        assert_eq!(grant.variables["PCIDEVICE_PENSTOCK_DEV_SRIOV_FAST"], "0000:01:02.0,0000:01:02.1");
        // It is there, and not in the pool.
        let refused = pool.allocate(&["0000:00:02.0".to_owned()]).unwrap_err();
        assert!(refused.to_string().contains("penstock.dev/sriov-fast"), "{refused}");
        // A card that is told to have none has none.
        fs::remove_file(root.path().join("class/net/ens2/device/virtfn1")).unwrap();
        assert_eq!(pool.devices(&Outside::default()).len(), 2);
    }
}
