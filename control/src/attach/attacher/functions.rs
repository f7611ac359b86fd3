//! Attachments by a function of a network card: they are the card's, and the dataplane has no part in them.

use ipnet::IpNet;
use penstock_api::model::Name;
use penstock_cni::environment::AttachmentId;
use penstock_cni::failure::{Code, Failure};
use penstock_cni::protocol::Attach;
use penstock_wire::MacAddr;
use tokio::sync::OwnedMutexGuard;

use super::super::dataplane::{Dataplane, NetworkFacts};
use super::super::plan::{Plan, PodFacts, requested};
use super::super::record::{Record, RecordKey, Wiring};
use super::super::sriov::Handed;
use super::giving::refuse_pools;
use super::{Attacher, Pods};
use crate::ipam::Granted;
use penstock_cni::config::Mode;

/// What is to be done for an attachment, and what was reserved for it.
pub(super) struct Planned {
    pub(super) plan: Plan,
    pub(super) network: NetworkFacts,
    pub(super) space: String,
    pub(super) granted: Vec<Granted>,
    /// Whoever wants the same function waits.
    pub(super) turn: Option<OwnedMutexGuard<()>>,
}

impl<D: Dataplane, P: Pods> Attacher<D, P> {
    /// Plans to hand over the function that a configuration names. Its addresses are of the network that the card leads to:
    /// none unless ranges, or another plugin, are named.
    pub(super) async fn plan_function(
        &self,
        attach: &Attach,
        key: &RecordKey,
        facts: &PodFacts,
    ) -> Result<Planned, Failure> {
        let config = &attach.config;
        refuse_unfit(attach)?;
        refuse_pools(config)?;
        let device = config.device().unwrap_or_default().to_owned();
        let turn = self.turn(&AttachmentId { container_id: device.clone(), ifname: String::new() });
        let turn = turn.lock_owned().await;
        self.must_be_free(key, &device)?;
        let handed = self.settings.functions.look(config, key).await?;
        let space = format!("sriov/{}", config.name);
        let has_ranges = !config.ipam.all_ranges().is_empty() || !config.runtime_config.ip_ranges.is_empty();
        let granted = if attach.delegated.is_none() && has_ranges {
            self.take(attach, key, &space, facts, &[], &[]).await?
        } else if attach.delegated.is_none() && !requested(config, facts)?.is_empty() {
            let msg = "an address was asked for, and the network of the function has no ranges; name some under `ipam`";
            return Err(Failure::new(Code::Config, msg));
        } else {
            Vec::new()
        };
        match plan(attach, handed, &granted) {
            Ok((plan, network)) => Ok(Planned { plan, network, space, granted, turn: Some(turn) }),
            Err(failure) => {
                self.give_back(&space, key, &granted).await;
                Err(failure)
            }
        }
    }

    /// A function is one container's at a time. That of a container that has ended is taken from it.
    fn must_be_free(&self, key: &RecordKey, address: &str) -> Result<(), Failure> {
        let has = |record: &&Record| {
            let function = record.wiring.as_ref().and_then(|wiring| wiring.function.as_ref());
            record.key != *key && function.is_some_and(|function| function.address == address)
        };
        let holder = self.with_ledger(|it| it.records().find(has).map(|record| record.key.id.clone()));
        match holder {
            None => Ok(()),
            Some(holder) => {
                let msg = format!("function {address} is still handed to {holder}, whose DEL comes first");
                Err(Failure::new(Code::TryAgainLater, msg))
            }
        }
    }
}

/// What no card does for a container is refused rather than left out.
fn refuse_unfit(attach: &Attach) -> Result<(), Failure> {
    let asked = &attach.config.runtime_config;
    let unfit = if asked.port_mappings.iter().any(|it| it.host_port != 0) {
        "runtimeConfig.portMappings: no host port leads to a function of a card"
    } else if asked.bandwidth.is_some_and(|it| it.ingress_rate > 0) {
        "runtimeConfig.bandwidth.ingressRate: a card limits only what a function sends"
    } else {
        return Ok(());
    };
    Err(Failure::new(
        Code::UnsupportedField,
        format!("{unfit}; leave it out of a network of the kind \"sriov\""),
    ))
}

fn plan(attach: &Attach, handed: Handed, granted: &[Granted]) -> Result<(Plan, NetworkFacts), Failure> {
    let config = &attach.config;
    let (addresses, routes, gateways) = match &attach.delegated {
        Some(result) => (
            result.ips.iter().map(|ip| ip.address).collect(),
            result.routes.clone(),
            result.ips.iter().filter_map(|ip| ip.gateway).collect(),
        ),
        None => (
            granted.iter().map(|it| it.address).collect::<Vec<IpNet>>(),
            config.ipam.routes.clone(),
            granted.iter().filter_map(|it| it.gateway).collect(),
        ),
    };
    let mac = MacAddr(handed.mac);
    let known = u16::try_from(handed.mtu_before).unwrap_or(u16::MAX);
    let mtu = config.mtu.unwrap_or(known);
    let name: Name = config.name.parse().map_err(|error| {
        Failure::new(Code::Config, format!("the network's name {:?} cannot be: {error}", config.name))
    })?;
    let wiring = Wiring {
        mode: Mode::Sriov,
        interface: String::new(),
        folder: None,
        owns_folder: false,
        shared: None,
        files: config.runtime_config.device_info_file.iter().cloned().collect(),
        function: Some(handed),
    };
    let plan = Plan {
        wiring,
        mac,
        mtu,
        queues: 0,
        addresses,
        routes,
        endpoint: None,
        services: Vec::new(),
        backends: Vec::new(),
        socket: None,
        is_device: false,
    };
    let network = NetworkFacts { name, mtu, prefixes: Vec::new(), gateways, workers: 0 };
    Ok((plan, network))
}
