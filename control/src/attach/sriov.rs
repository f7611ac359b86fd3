//! SR-IOV: a function of a network card handed to a container, set as its network wants it, and as it was afterwards.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use penstock_api::model::UnicastMac;
use penstock_cni::config::Config;
use penstock_cni::failure::{Code, Failure};
use serde::{Deserialize, Serialize};

use super::cards::{Cards, FunctionState, KernelCards, Setting};
use super::netns::{LinkError, Links, Namespace, Seen};
use super::plan::derived_mac;
use super::record::RecordKey;
use crate::sysfs::{Function, PciAddress, Sysfs};

/// How often, and how far apart, it is seen whether the kernel has brought a function back from a namespace that ended.
const LOOKS: (u32, Duration) = (20, Duration::from_millis(100));

/// The drivers by which programs have a function, and the kernel has no interface for it.
const PROGRAMS_DRIVERS: [&str; 3] = ["vfio-pci", "igb_uio", "uio_pci_generic"];

/// An Ethernet address as records have it.
type MacBytes = [u8; 6];

/// What must be known of a function to take it back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Handed {
    /// Its PCI address.
    pub address: String,
    /// The interface of its card.
    pub card: String,
    /// Its number on the card.
    pub number: u32,
    /// Its interface on the node; absent when a driver for programs has it.
    pub interface: Option<String>,
    /// The Ethernet address that it has for the container.
    pub mac: MacBytes,
    /// The address that its interface had before.
    pub mac_before: MacBytes,
    /// The MTU that its interface had before, in bytes.
    pub mtu_before: u32,
    /// What the card did for it.
    pub before: FunctionState,
    /// What the card is to do for it.
    pub wanted: FunctionState,
}

/// The functions of a node's cards.
#[derive(Debug, Clone)]
pub struct Functions {
    /// Where the kernel shows them.
    pub sysfs: Sysfs,
    /// How cards are told.
    pub cards: Arc<dyn Cards>,
}

impl Default for Functions {
    fn default() -> Self {
        Self { sysfs: Sysfs::default(), cards: Arc::new(KernelCards) }
    }
}

fn wrong(msg: impl Into<String>) -> Failure {
    Failure::new(Code::Config, msg)
}

/// What a network's configuration changes of a function.
fn wanted(config: &Config, before: &FunctionState) -> Result<FunctionState, Failure> {
    let asked = &config.sriov;
    let mut wanted = before.clone();
    if let Some(vlan) = asked.vlan {
        if vlan > 4094 {
            return Err(wrong(format!("sriov.vlan is {vlan}; a VLAN is 1 to 4094, and 0 is none")));
        }
        (wanted.vlan, wanted.qos) = (vlan, 0);
    }
    if let Some(qos) = asked.vlan_qos {
        if qos > 7 || wanted.vlan == 0 && qos != 0 {
            return Err(wrong(format!("sriov.vlanQos is {qos}; it is 0 to 7, and needs a vlan")));
        }
        wanted.qos = qos;
    }
    if let Some(text) = config.runtime_config.mac.as_deref().filter(|text| !text.is_empty()) {
        let mac: UnicastMac =
            text.parse().map_err(|error| wrong(format!("runtimeConfig.mac cannot be had: {error}")))?;
        wanted.mac = mac.get().0;
    }
    wanted.trust = asked.trust.or(wanted.trust);
    wanted.spoof_check = asked.spoof_check.or(wanted.spoof_check);
    let egress = config.runtime_config.bandwidth.map(|it| it.egress_rate).filter(|rate| *rate > 0);
    // The card counts in Mbit/s: less than one would be none, which means no limit.
    let egress = egress.map(|rate| u32::try_from((rate / 1_000_000).max(1)).unwrap_or(u32::MAX));
    wanted.max_rate = egress.or(asked.max_tx_rate).unwrap_or(wanted.max_rate);
    wanted.min_rate = asked.min_tx_rate.unwrap_or(wanted.min_rate);
    if wanted.max_rate != 0 && wanted.min_rate > wanted.max_rate {
        let (least, most) = (wanted.min_rate, wanted.max_rate);
        return Err(wrong(format!("the least rate, {least} Mbit/s, is above the highest, {most} Mbit/s")));
    }
    Ok(wanted)
}

impl Functions {
    /// The function that a configuration names, as it is now; nothing is changed yet.
    ///
    /// # Errors
    /// [`Code::Config`], [`Code::Plumbing`].
    pub(super) async fn look(&self, config: &Config, key: &RecordKey) -> Result<Handed, Failure> {
        let Some(text) = config.device() else {
            return Err(wrong(
                "interface is \"sriov\" and no deviceID says which function; have the pod ask for a resource penstock.dev/sriov-…, and name that in the annotation k8s.v1.cni.cncf.io/resourceName of the network",
            ));
        };
        let address: PciAddress = text.parse().map_err(|error| wrong(format!("deviceID: {error}")))?;
        let function = self.sysfs.function(&address).ok_or_else(|| {
            wrong(format!("{address} is no virtual function of this node; does its card still have so many (sriov_numvfs)?"))
        })?;
        let Function { card, number, interface } = function;
        let driver = self.sysfs.driver_of(&address).unwrap_or_default();
        if interface.is_none() && !PROGRAMS_DRIVERS.contains(&driver.as_str()) {
            let msg = format!(
                "function {address} has no interface on the node, and its driver is {driver:?}: is it still in another container, or is the driver of its card not loaded?"
            );
            return Err(Failure::new(Code::Plumbing, msg));
        }
        let before = self.cards.state(&card, number).await?;
        let wanted = wanted(config, &before)?;
        let (mut mac_before, mut mtu_before) = ([0; 6], 1500);
        if let Some(interface) = &interface {
            let seen = Links::here()?.expect(interface).await?;
            mtu_before = seen.mtu;
            mac_before = seen.mac.try_into().map_err(|_| {
                wrong(format!(
                    "{interface} is no Ethernet interface; only functions of Ethernet cards can be had"
                ))
            })?;
        }
        // What was asked for or what the card says, else what it has, else one of our own.
        let known = [wanted.mac, mac_before].into_iter().find(|mac| *mac != [0; 6]);
        let mac = known.unwrap_or_else(|| derived_mac(key).0);
        let address = address.to_string();
        Ok(Handed { address, card, number, interface, mac, mac_before, mtu_before, before, wanted })
    }

    /// Sets a function as it is wanted, and moves its interface into the container.
    ///
    /// # Errors
    /// [`Code::Plumbing`]; [`Functions::take_back`] undoes what was done.
    pub(super) async fn hand_over(
        &self,
        handed: &Handed,
        namespace: &Namespace,
        ifname: &str,
        mtu: u32,
    ) -> Result<(), Failure> {
        let Some(interface) = &handed.interface else {
            return self.set(handed, &handed.before, &handed.wanted).await;
        };
        // The kernel moves first and renames then: what cannot have its name would stay there under another.
        let wanted = ifname.to_owned();
        if namespace.within(async move |links| links.find(&wanted).await).await?.is_some() {
            return Err(LinkError::Exists { interface: ifname.to_owned() }.into());
        }
        self.set(handed, &handed.before, &handed.wanted).await?;
        let links = Links::here()?;
        links.move_to(interface, namespace.descriptor(), ifname).await?;
        let (ifname, handed) = (ifname.to_owned(), handed.clone());
        let before = (handed.mac_before, handed.mtu_before);
        let act = async move |links: Links| links.configure(&ifname, before, (handed.mac, mtu)).await;
        Ok(namespace.within(act).await?)
    }

    async fn set(&self, handed: &Handed, from: &FunctionState, to: &FunctionState) -> Result<(), Failure> {
        let Handed { card, number, .. } = handed;
        for step in from.steps_to(to) {
            let set = self.cards.set(card, *number, step).await;
            match set {
                // Not every card can be told to forget an address, and the next container's comes in its place.
                Err(error) if step == Setting::Mac([0; 6]) => {
                    tracing::debug!("function {number} of {card} keeps its address: {error}");
                }
                Err(error) => {
                    let msg = format!(
                        "{error} ({step}, function {number}); does the card's driver know such a thing?"
                    );
                    return Err(Failure::new(Code::Plumbing, msg));
                }
                Ok(()) => {}
            }
        }
        Ok(())
    }

    /// Brings a function back from wherever it is, and sets it as it was.
    ///
    /// # Errors
    /// [`Code::Plumbing`]: the function must not be handed to anybody else as it is.
    pub(super) async fn take_back(&self, handed: &Handed, netns: &Path, ifname: &str) -> Result<(), Failure> {
        let address: PciAddress =
            handed.address.parse().map_err(|error| wrong(format!("deviceID: {error}")))?;
        if let Some(interface) = &handed.interface {
            if let Ok(namespace) = Namespace::open(netns) {
                bring_back(&namespace, handed, interface, ifname).await?;
            }
            self.await_return(&address, handed, interface).await?;
        }
        if self.sysfs.function(&address).is_none() {
            tracing::warn!("function {address} is there no more; nothing of it is left to be set");
            return Ok(());
        }
        let mut now = self.cards.state(&handed.card, handed.number).await?;
        // Cards that take these do not all report them: what was wanted may still be so.
        now.trust = handed.wanted.trust.or(now.trust);
        now.spoof_check = handed.wanted.spoof_check.or(now.spoof_check);
        self.set(handed, &now, &handed.before).await
    }

    /// Waits for the kernel, which takes its time to bring interfaces back from a namespace that has ended, under the names
    /// that they had there.
    async fn await_return(
        &self,
        address: &PciAddress,
        handed: &Handed,
        interface: &str,
    ) -> Result<(), Failure> {
        let links = Links::here()?;
        for _ in 0..LOOKS.0 {
            let Some(function) = self.sysfs.function(address) else { return Ok(()) };
            if let Some(found) = function.interface {
                if found != interface {
                    links.rename(&found, interface).await?;
                }
                let seen = links.expect(interface).await?;
                let is = (seen.mac.try_into().unwrap_or_default(), seen.mtu);
                return Ok(links.configure(interface, is, (handed.mac_before, handed.mtu_before)).await?);
            }
            tokio::time::sleep(LOOKS.1).await;
        }
        tracing::warn!(
            "function {address} is still in a namespace that somebody holds open; its card is set back"
        );
        Ok(())
    }

    /// Whether a card does for a function what it was told.
    ///
    /// # Errors
    /// [`Code::Differs`].
    pub(super) async fn check(&self, handed: &Handed) -> Result<(), Failure> {
        let now = self.cards.state(&handed.card, handed.number).await?;
        let missing: Vec<String> = now.steps_to(&handed.wanted).iter().map(ToString::to_string).collect();
        if missing.is_empty() {
            return Ok(());
        }
        let (card, number) = (&handed.card, handed.number);
        let msg = format!("{card} has not, for its function {number}: {}", missing.join(", "));
        Err(Failure::new(Code::Differs, msg))
    }
}

/// Moves a function's interface out of a container, if it is there.
async fn bring_back(
    namespace: &Namespace,
    handed: &Handed,
    interface: &str,
    ifname: &str,
) -> Result<(), LinkError> {
    let here = File::open("/proc/thread-self/ns/net").map_err(LinkError::Netlink)?;
    let (handed, interface, ifname) = (handed.clone(), interface.to_owned(), ifname.to_owned());
    let act = async move |links: Links| {
        for name in [&ifname, &interface] {
            // Another container may have the path by now, and an interface of the same name.
            if links.find(name).await?.is_some_and(|seen| is_it(&seen, &handed)) {
                return links.move_to(name, here.as_raw_fd(), &interface).await;
            }
        }
        Ok(())
    };
    match namespace.within(act).await {
        // Nothing is in what is no namespace any more.
        Err(LinkError::Namespace { .. }) => Ok(()),
        done => done,
    }
}

/// Whether an interface is the function's: the kernel says on which device it is, and where it does not, its address does.
fn is_it(seen: &Seen, handed: &Handed) -> bool {
    match &seen.parent {
        Some(parent) => *parent == handed.address,
        None => seen.mac == handed.mac || seen.mac == handed.mac_before,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn config(more: serde_json::Value) -> Config {
        let mut value = json!({ "cniVersion": "1.1.0", "name": "n" });
        value.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        Config::read(value.to_string().as_bytes()).unwrap()
    }

    #[test]
    fn what_a_network_does_not_say_stays_as_it_is() {
        let before =
            FunctionState { vlan: 7, qos: 3, trust: Some(true), max_rate: 50, ..FunctionState::default() };
        assert_eq!(wanted(&config(json!({})), &before).unwrap(), before);
        let said = json!({
            "sriov": { "vlan": 100, "trust": "off", "spoofCheck": "on", "minTxRate": 10, "maxTxRate": 90 },
            "runtimeConfig": { "mac": "02:00:00:00:00:09", "bandwidth": { "egressRate": 250_000_000 } },
        });
        let wanted = wanted(&config(said), &before).unwrap();
        let expected = FunctionState {
            mac: [2, 0, 0, 0, 0, 9],
            vlan: 100,
            qos: 0,
            trust: Some(false),
            spoof_check: Some(true),
            min_rate: 10,
            max_rate: 250,
        };
        assert_eq!(wanted, expected);
    }

    #[test]
    fn what_no_card_can_do_is_refused() {
        for said in [
            json!({ "sriov": { "vlan": 4095 } }),
            json!({ "sriov": { "vlan": 1, "vlanQos": 8 } }),
            json!({ "sriov": { "vlanQos": 1 } }),
            json!({ "sriov": { "minTxRate": 2, "maxTxRate": 1 } }),
            json!({ "runtimeConfig": { "mac": "01:00:5e:00:00:01" } }),
        ] {
            assert_eq!(
                wanted(&config(said.clone()), &FunctionState::default()).unwrap_err().code,
                Code::Config,
                "{said}"
            );
        }
    }
}
