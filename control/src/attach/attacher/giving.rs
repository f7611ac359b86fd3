//! Addresses for what is attached: of pools where these take the pod, else of ranges.

use std::collections::BTreeSet;
use std::net::IpAddr;

use penstock_cni::config::Config;
use penstock_cni::failure::{Code, Failure};
use penstock_cni::protocol::Attach;

use super::super::dataplane::Dataplane;
use super::super::keepsakes::comes_again;
use super::super::plan::{PodFacts, named_pools, requested};
use super::super::record::{Pod, RecordKey};
use super::{Attacher, Pods, pod_of, ranges_of};
use crate::ipam::{Granted, IpamFault, RangeSet, Wanted};

/// What is wanted of pools.
#[derive(Debug, Clone, Copy)]
pub struct FromPools<'a> {
    /// The pod; none for a container that is of no pod.
    pub pod: Option<&'a Pod>,
    /// The network that it is attached to.
    pub network: &'a str,
    /// What the addresses are held under.
    pub holder: &'a str,
    /// The pools that they must be of; whichever take the pod when empty.
    pub named: &'a [String],
    /// What must be among them, if pools have it.
    pub requested: &'a [IpAddr],
    /// What is taken when it is free.
    pub preferred: &'a [IpAddr],
    /// What is nobody's to have.
    pub reserved: &'a [IpAddr],
    /// What is only taken when nothing else is free.
    pub spared: &'a [IpAddr],
}

impl FromPools<'_> {
    /// Refuses pools that were named where there are none.
    ///
    /// # Errors
    /// [`Code::Config`].
    pub fn refuse_names(&self) -> Result<(), Failure> {
        match self.named.first() {
            None => Ok(()),
            Some(name) => {
                let msg = format!(
                    "addresses of the pool {name:?} were asked for, and pools are an API server's: run penstock-agent with --kubeconfig, or name ranges"
                );
                Err(Failure::new(Code::Config, msg))
            }
        }
    }
}

impl<D: Dataplane, P: Pods> Attacher<D, P> {
    /// Makes pools and records agree: at the start, and when something could not be given back.
    ///
    /// # Errors
    /// [`Code::TryAgainLater`] when the API server does not answer.
    pub async fn reconcile(&self) -> Result<(), Failure> {
        let _nobody_takes = self.giving.write().await;
        self.pods.collect(&self.of_pools()).await
    }

    /// The addresses of pools that are written down, with pool and holder.
    pub(super) fn of_pools(&self) -> Vec<(String, IpAddr, String)> {
        self.with_ledger(|ledger| {
            let of_record = ledger.records().flat_map(|record| {
                record.granted.iter().filter_map(|granted| {
                    Some((granted.pool.clone()?, granted.address.addr(), record.key.holder()))
                })
            });
            of_record.collect()
        })
    }

    pub(super) async fn give_back_to_pools(&self, key: &RecordKey, granted: &[Granted]) {
        let pools: BTreeSet<&String> = granted.iter().filter_map(|it| it.pool.as_ref()).collect();
        for pool in pools {
            self.pods.give_back(pool, &key.holder()).await;
        }
    }

    /// The addresses of an endpoint, reserved.
    pub(super) async fn give(
        &self,
        attach: &Attach,
        key: &RecordKey,
        space: &str,
        facts: &PodFacts,
        gateways: &[IpAddr],
    ) -> Result<Vec<Granted>, Failure> {
        let (config, named) = (&attach.config, named_pools(&attach.config, facts));
        let has_ranges = !config.ipam.all_ranges().is_empty() || !config.runtime_config.ip_ranges.is_empty();
        if named.is_empty() && has_ranges {
            return self.take(attach, key, space, facts, gateways, &[]).await;
        }
        let requested = requested(config, facts)?;
        let (pod, holder, ground) = (pod_of(attach), key.holder(), self.ground());
        let reserved: Vec<IpAddr> = ground.reserved.iter().chain(gateways).copied().collect();
        let (preferred, spared) = self.remembered(attach, space).await?;
        let wanted = FromPools {
            pod: pod.as_ref(),
            network: space,
            holder: &holder,
            named: &named,
            requested: &requested,
            preferred: &preferred,
            reserved: &reserved,
            spared: &spared,
        };
        let of_pools = self.pods.take(&wanted).await?;
        if of_pools.is_empty() {
            return self.take(attach, key, space, facts, gateways, &[]).await;
        }
        match self.take(attach, key, space, facts, gateways, &of_pools).await {
            Ok(of_ranges) => Ok(of_pools.into_iter().chain(of_ranges).collect()),
            Err(failure) => {
                self.give_back_to_pools(key, &of_pools).await;
                Err(failure)
            }
        }
    }

    /// The addresses that the pod had, if it is to have them again, and those that others may come back for.
    async fn remembered(&self, attach: &Attach, space: &str) -> Result<(Vec<IpAddr>, Vec<IpAddr>), Failure> {
        let (space, pod) = (space.to_owned(), sticky(attach));
        self.change(move |store| {
            let preferred = pod.as_ref().map(|pod| store.kept.of(&space, pod)).unwrap_or_default();
            Ok((preferred, store.kept.of_others(&space, pod.as_ref())))
        })
        .await
    }

    /// The addresses of a configuration's ranges, or of the node's, reserved in memory: of families that pools gave none of.
    pub(super) async fn take(
        &self,
        attach: &Attach,
        key: &RecordKey,
        space: &str,
        facts: &PodFacts,
        gateways: &[IpAddr],
        of_pools: &[Granted],
    ) -> Result<Vec<Granted>, Failure> {
        let ground = self.ground();
        let of_pools: Vec<IpAddr> = of_pools.iter().map(|it| it.address.addr()).collect();
        let is_left = |ipv4: bool| of_pools.iter().all(|it| it.is_ipv4() != ipv4);
        let mut ranges = ranges_of(&attach.config, &ground)?;
        ranges.retain(|set| set.spans().any(|span| is_left(span.subnet().addr().is_ipv4())));
        let mut requested = requested(&attach.config, facts)?;
        requested.retain(|it| !of_pools.contains(it));
        let reserved: Vec<IpAddr> = ground.reserved.iter().chain(gateways).copied().collect();
        let (space, holder, pod) = (space.to_owned(), key.holder(), sticky(attach));
        self.change(move |store| {
            let mut held = of_pools.clone();
            for address in &of_pools {
                if !store.book.note(&space, &holder, *address) {
                    of_pools.iter().for_each(|it| store.book.give_back(&space, &holder, *it));
                    let holder = store.book.holder(&space, *address).unwrap_or_default().to_owned();
                    return Err(IpamFault::Taken { address: *address, holder }.into());
                }
            }
            let taken = if ranges.is_empty() && requested.is_empty() && !of_pools.is_empty() {
                Ok(Vec::new())
            } else {
                take_of_ranges(store, &space, &holder, pod.as_ref(), &ranges, &requested, &reserved)
            };
            let kept = taken.and_then(|granted| {
                held.extend(granted.iter().map(|it| it.address.addr()));
                if let Some(pod) = &pod {
                    store.kept.put(&space, pod, held.clone())?;
                }
                Ok(granted)
            });
            kept.inspect_err(|_| held.iter().for_each(|it| store.book.give_back(&space, &holder, *it)))
        })
        .await
    }

    /// Frees addresses that no record has yet.
    pub(super) async fn give_back(&self, space: &str, key: &RecordKey, granted: &[Granted]) {
        let (space, holder, addresses) = (space.to_owned(), key.holder(), granted.to_vec());
        let given_back = self.change(move |store| {
            addresses.iter().for_each(|it| store.book.give_back(&space, &holder, it.address.addr()));
            Ok(())
        });
        // Only a panic of the closure could be said here, and it has none.
        let _ = given_back.await;
        self.give_back_to_pools(key, granted).await;
    }
}

/// Pools that a configuration names are for endpoints of the dataplane's networks: who else gets its addresses here has
/// ranges.
pub(super) fn refuse_pools(config: &Config) -> Result<(), Failure> {
    if config.ipam.pools.is_empty() {
        return Ok(());
    }
    let msg = "ipam.pools: pools give addresses to pods of the dataplane's networks only; name ranges";
    Err(Failure::new(Code::UnsupportedField, msg))
}

/// The pod, if it is to get again what it had.
fn sticky(attach: &Attach) -> Option<Pod> {
    pod_of(attach).filter(|pod| attach.config.ipam.sticky && comes_again(pod))
}

fn take_of_ranges(
    store: &mut super::Store,
    space: &str,
    holder: &str,
    pod: Option<&Pod>,
    ranges: &[RangeSet],
    requested: &[IpAddr],
    reserved: &[IpAddr],
) -> Result<Vec<Granted>, Failure> {
    let preferred = pod.map(|pod| store.kept.of(space, pod)).unwrap_or_default();
    let others = store.kept.of_others(space, pod).into_iter();
    let others = others.filter(|address| !requested.contains(address));
    let spared: Vec<IpAddr> = others.chain(reserved.iter().copied()).collect();
    let wanted = Wanted { ranges, requested, preferred: &preferred, reserved: &spared };
    match store.book.take(space, holder, &wanted) {
        // Rather one that another pod may come back for than none.
        Err(IpamFault::Exhausted { .. }) => {
            Ok(store.book.take(space, holder, &Wanted { reserved, ..wanted })?)
        }
        taken => Ok(taken?),
    }
}
