//! The verbs of the CNI, as the agent carries them out.

mod functions;
mod giving;

use std::collections::HashMap;
use std::future::Future;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use penstock_api::model::Object;
use penstock_cni::config::{Config, Mode, PodName};
use penstock_cni::environment::AttachmentId;
use penstock_cni::failure::{Code, Failure};
use penstock_cni::protocol::{Answer, Attach, Detach, Done, Request};
use penstock_cni::result::{AddResult, IpConfig};
use serde_json::Value;

use self::functions::Planned;
pub use self::giving::FromPools;
use super::actions::{FaultPoint, FaultPoints, Means, bring_back, make, undo};
use super::check::check;
use super::dataplane::{Dataplane, DataplaneError};
use super::keepsakes::Keepsakes;
use super::ledger::{Ledger, LedgerError};
use super::netns::Namespace;
use super::plan::{Folders, Plan, PodFacts, endpoint_name, mode};
use super::record::{Holding, Pod, Record, RecordKey};
use super::shared;
use super::sriov::Functions;
use crate::ipam::{Book, Granted, IpamFault, RangeFault, RangeSet};

/// What the agent attaches pods with.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The folder of the records.
    pub records: PathBuf,
    /// The folder below which sockets of vhost-user pods are.
    pub sockets: PathBuf,
    /// The folder below which the device plugin's devices have theirs.
    pub devices: PathBuf,
    /// The kubelet's folder of pods, in which their volumes are.
    pub kubelet_pods: PathBuf,
    /// The dataplane's network where a configuration names none.
    pub network: String,
    /// The ranges where a configuration names none: the node's pod CIDRs.
    pub ranges: Vec<RangeSet>,
    /// Addresses that no pod gets, e.g. the node's own in the network.
    pub reserved: Vec<IpAddr>,
    /// The functions of network cards that containers can be handed.
    pub functions: Functions,
    /// Where a test ends the process.
    pub faults: FaultPoints,
}

/// Where a node's pods get their addresses from.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ground {
    /// One address of each.
    pub ranges: Vec<RangeSet>,
    /// What no pod gets: the node's own addresses.
    pub reserved: Vec<IpAddr>,
}

/// What the cluster says of pods.
pub trait Pods: Send + Sync + 'static {
    /// Where the node's pods get their addresses from; where the settings say when the cluster does not.
    fn ground(&self) -> Option<Ground> {
        None
    }

    /// What is known of a pod. Whoever answers waits until the pod is known, or says why it never will be.
    fn facts(&self, pod: &Pod) -> impl Future<Output = Result<PodFacts, Failure>> + Send;

    /// Writes to a pod what its sockets in the volume `shared-dir` are: annotations of the userspace CNI plugin, which only an
    /// API server keeps.
    fn describe(&self, _pod: &Pod, _sockets: &[Value]) -> impl Future<Output = Result<(), Failure>> + Send {
        std::future::ready(Ok(()))
    }

    /// Gives addresses of pools: one of each family that pools have for the pod; none where none takes it.
    fn take(&self, wanted: &FromPools<'_>) -> impl Future<Output = Result<Vec<Granted>, Failure>> + Send {
        std::future::ready(wanted.refuse_names().map(|()| Vec::new()))
    }

    /// Takes back what a holder has of a pool. What cannot be now is made good later, by [`Pods::collect`].
    fn give_back(&self, _pool: &str, _holder: &str) -> impl Future<Output = ()> + Send {
        std::future::ready(())
    }

    /// Makes pools and records agree: these are all addresses of pools that the node's holders have.
    fn collect(
        &self,
        _valid: &[(String, IpAddr, String)],
    ) -> impl Future<Output = Result<(), Failure>> + Send {
        std::future::ready(Ok(()))
    }

    /// Whether pools may have addresses for pods in a network.
    fn has_pools(&self, _network: &str) -> bool {
        false
    }

    /// What pools and records do not agree about, a sentence each.
    fn astray(&self, _valid: &[(String, IpAddr, String)]) -> Vec<String> {
        Vec::new()
    }
}

/// No cluster: nothing is said of pods but what the plugin's configuration says.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoPods;

impl Pods for NoPods {
    async fn facts(&self, _pod: &Pod) -> Result<PodFacts, Failure> {
        Ok(PodFacts::default())
    }
}

/// Records and the addresses in them, which never differ, and what is remembered of addresses that pods had.
struct Store {
    ledger: Ledger,
    book: Book,
    kept: Keepsakes,
}

/// The room that attaches pods.
pub struct Attacher<D, P> {
    dataplane: D,
    pods: P,
    settings: Settings,
    store: Arc<Mutex<Store>>,
    /// One at a time for each attachment.
    turns: Mutex<HashMap<AttachmentId, Arc<tokio::sync::Mutex<()>>>>,
    /// Held for reading from when an address is taken of a pool until that is written down: who makes pools and records agree
    /// waits, and keeps others waiting.
    giving: tokio::sync::RwLock<()>,
}

impl From<LedgerError> for Failure {
    fn from(error: LedgerError) -> Self {
        Failure::new(Code::Io, error.to_string())
    }
}

impl From<IpamFault> for Failure {
    fn from(fault: IpamFault) -> Self {
        Failure::new(Code::Addresses, fault.to_string())
    }
}

impl From<RangeFault> for Failure {
    fn from(fault: RangeFault) -> Self {
        Failure::new(Code::Config, fault.to_string())
    }
}

impl<D: Dataplane, P: Pods> Attacher<D, P> {
    /// Takes the records up: what an earlier agent was in the middle of is undone, the rest is put to the dataplane as soon
    /// as that answers ([`Attacher::restore`]).
    ///
    /// # Errors
    /// [`LedgerError`].
    pub fn open(settings: Settings, dataplane: D, pods: P) -> Result<Self, LedgerError> {
        let ledger = Ledger::open(&settings.records)?;
        let kept = Keepsakes::open(&settings.records)?;
        let mut book = Book::default();
        for record in ledger.records() {
            for address in record.addresses() {
                if !book.note(&record.space, &record.key.holder(), address) {
                    tracing::error!("{address} has two records; {} has it too", record.key.holder());
                }
            }
        }
        Ok(Self {
            dataplane,
            pods,
            settings,
            store: Arc::new(Mutex::new(Store { ledger, book, kept })),
            turns: Mutex::default(),
            giving: tokio::sync::RwLock::default(),
        })
    }

    /// The dataplane.
    pub fn dataplane(&self) -> &D {
        &self.dataplane
    }

    /// What the cluster says of pods.
    pub fn pods(&self) -> &P {
        &self.pods
    }

    /// Where addresses come from that no configuration says anything about.
    fn ground(&self) -> Ground {
        let Settings { ranges, reserved, .. } = &self.settings;
        match self.pods.ground() {
            Some(ground) => {
                Ground { reserved: ground.reserved.iter().chain(reserved).copied().collect(), ..ground }
            }
            None => Ground { ranges: ranges.clone(), reserved: reserved.clone() },
        }
    }

    /// Everything that the dataplane is to hold of what is attached.
    pub fn objects(&self) -> Vec<Object> {
        let complete = |it: &Ledger| {
            let records = it.records().filter(|record| record.is_complete());
            records.flat_map(Record::objects).collect()
        };
        self.with_ledger(complete)
    }

    /// Carries out a request.
    pub async fn answer(&self, request: Request) -> Answer {
        match request {
            Request::Add(attach) => self.add(*attach).await,
            Request::Del(detach) => self.remove(Holding::Attachment, detach).await,
            Request::Check(attach) => self.check(*attach).await,
            Request::Gc { network, valid } => self.collect(Holding::Attachment, network, &valid).await,
            Request::Status(config) => self.status(&config).await,
            Request::Lease(attach) => self.lease(*attach).await,
            Request::Release(detach) => self.remove(Holding::Lease, detach).await,
            Request::CheckLease(detach) => self.check_lease(detach),
            Request::GcLeases { network, valid } => self.collect(Holding::Lease, network, &valid).await,
            Request::Show => Ok(Done {
                given: self.with_ledger(|it| it.records().map(Record::given).collect()),
                astray: self.pods.astray(&self.of_pools()),
                ..Done::default()
            }),
        }
    }

    /// Undoes what was begun and not ended, and puts everything else to the dataplane: at the start, and whenever the
    /// dataplane has started anew.
    ///
    /// # Errors
    /// The first failure; the rest is done nevertheless.
    pub async fn restore(&self) -> Result<(), Failure> {
        let keys: Vec<RecordKey> =
            self.with_ledger(|it| it.records().map(|record| record.key.clone()).collect());
        let mut outcome = Ok(());
        for key in keys {
            let turn = self.turn(&key.id);
            let _turn = turn.lock().await;
            let Some(record) = self.with_ledger(|it| it.get(&key).cloned()) else { continue };
            let done =
                if record.is_complete() { self.put_back(&record).await } else { self.undo(&record).await };
            outcome = outcome.and(done);
        }
        outcome
    }

    async fn put_back(&self, record: &Record) -> Result<(), Failure> {
        let objects = record.objects();
        if objects.is_empty() {
            return Ok(());
        }
        self.dataplane.put(objects).await?;
        bring_back(record).await
    }

    fn turn(&self, id: &AttachmentId) -> Arc<tokio::sync::Mutex<()>> {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        // Whoever waits holds a count of his own.
        turns.retain(|_, turn| Arc::strong_count(turn) > 1);
        Arc::clone(turns.entry(id.clone()).or_default())
    }

    fn with_ledger<T>(&self, see: impl FnOnce(&Ledger) -> T) -> T {
        see(&self.store.lock().unwrap_or_else(PoisonError::into_inner).ledger)
    }

    /// Changes the store on a thread that may wait for the disk.
    async fn change<T: Send + 'static>(
        &self,
        change: impl FnOnce(&mut Store) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Failure> {
        let store = Arc::clone(&self.store);
        let changed = tokio::task::spawn_blocking(move || {
            change(&mut store.lock().unwrap_or_else(PoisonError::into_inner))
        });
        changed.await.map_err(|error| {
            Failure::new(Code::Internal, "a change of the records did not come to its end")
                .with_details(error)
        })?
    }

    /// Undoes a record and forgets it. The addresses are free only when nothing of the rest is left.
    async fn undo(&self, record: &Record) -> Result<(), Failure> {
        undo(record, &self.dataplane, &self.settings.functions, self.settings.faults).await?;
        let (key, space) = (record.key.clone(), record.space.clone());
        let addresses: Vec<IpAddr> = record.addresses().collect();
        self.change(move |store| {
            store.ledger.remove(&key)?;
            addresses.iter().for_each(|it| store.book.give_back(&space, &key.holder(), *it));
            Ok(())
        })
        .await?;
        // Not before the record is gone: nobody else may have an address that is written down here.
        self.give_back_to_pools(&record.key, &record.granted).await;
        Ok(())
    }

    async fn add(&self, attach: Attach) -> Answer {
        let key = RecordKey {
            holding: Holding::Attachment,
            network: attach.config.name.clone(),
            id: attach.id.clone(),
        };
        let turn = self.turn(&key.id);
        let _turn = turn.lock().await;
        self.clear_the_way(&key, &attach).await?;
        self.dataplane.awaited().await?;
        let pod = pod_of(&attach);
        let facts = match &pod {
            Some(pod) => self.pods.facts(pod).await?.of_interface(&attach.id.ifname),
            None => PodFacts::default(),
        };
        let giving = self.giving.read().await;
        let planned = match mode(&attach.config, &facts)? {
            Mode::Sriov => self.plan_function(&attach, &key, &facts).await?,
            _ => self.plan_endpoint(&attach, &key, pod.as_ref(), &facts).await?,
        };
        self.carry_out(planned, &attach, key, pod, giving).await
    }

    /// Plans an endpoint of the dataplane; its addresses are reserved.
    async fn plan_endpoint(
        &self,
        attach: &Attach,
        key: &RecordKey,
        pod: Option<&Pod>,
        facts: &PodFacts,
    ) -> Result<Planned, Failure> {
        let settings = &self.settings;
        let space = attach.config.network.clone().unwrap_or_else(|| settings.network.clone());
        let network = self.dataplane.network(&space).await?;
        let granted = match &attach.delegated {
            Some(_) => Vec::new(),
            None => self.give(attach, key, &space, facts, &network.gateways).await?,
        };
        let folders =
            Folders { sockets: &settings.sockets, devices: &settings.devices, pods: &settings.kubelet_pods };
        match Plan::new(attach, key, pod, facts, &network, &granted, &folders) {
            Ok(plan) => Ok(Planned { plan, network, space, granted, turn: None }),
            Err(failure) => {
                self.give_back(&space, key, &granted).await;
                Err(failure)
            }
        }
    }

    /// Writes down what is planned, does it, and undoes it when it fails.
    async fn carry_out(
        &self,
        planned: Planned,
        attach: &Attach,
        key: RecordKey,
        pod: Option<Pod>,
        giving: tokio::sync::RwLockReadGuard<'_, ()>,
    ) -> Answer {
        let Planned { plan, network, space, granted, turn: _turn } = planned;
        let settings = &self.settings;
        let record = Record {
            key,
            space,
            granted,
            netns: attach.netns.clone(),
            pod,
            delegated: attach.raw.clone(),
            wiring: Some(plan.wiring.clone()),
            endpoint: plan.endpoint.clone(),
            services: plan.services.clone(),
            backends: plan.backends.clone(),
            result: None,
        };
        settings.faults.pass(FaultPoint::Taken);
        if let Err(failure) = self.keep(record.clone()).await {
            self.give_back_to_pools(&record.key, &record.granted).await;
            return Err(failure);
        }
        drop(giving);
        settings.faults.pass(FaultPoint::Begun);
        let with =
            Means { dataplane: &self.dataplane, functions: &settings.functions, faults: settings.faults };
        let made = make(&plan, attach, &network, &record, &with).await;
        let kept = match made {
            Ok(result) => self
                .complete(Record { result: Some(result.clone()), ..record.clone() })
                .await
                .map(|()| result),
            Err(failure) => Err(failure),
        };
        match kept {
            Ok(result) => {
                settings.faults.pass(FaultPoint::Complete);
                Ok(Done { result: Some(result), ..Done::default() })
            }
            Err(failure) => match self.undo(&record).await {
                Ok(()) => Err(failure),
                Err(also) => {
                    let details = format!("what was made of it stays until DEL: {also}");
                    Err(failure.with_details(details))
                }
            },
        }
    }

    /// Writes a record that is complete, and to the pod what its container's sockets in the shared volume are by now: for one
    /// interface of a container after the other, so that none is left out.
    async fn complete(&self, record: Record) -> Result<(), Failure> {
        let container_id = record.key.id.container_id.clone();
        let turn = self.turn(&AttachmentId { container_id: container_id.clone(), ifname: String::new() });
        let _turn = turn.lock().await;
        let is_shared = record.wiring.as_ref().is_some_and(|it| it.shared.is_some());
        let pod = record.pod.clone().filter(|_| is_shared);
        self.keep(record).await?;
        let Some(pod) = pod else { return Ok(()) };
        let sockets = self.with_ledger(|ledger| {
            let of_container = ledger.records().filter(|it| it.key.id.container_id == container_id);
            shared::descriptions(of_container.filter_map(|it| Some((it, it.result.as_ref()?))))
        });
        self.pods.describe(&pod, &sockets).await
    }

    /// Writes a record; when that fails, its addresses are free again unless an earlier record has them.
    async fn keep(&self, record: Record) -> Result<(), Failure> {
        self.change(move |store| {
            let (key, space) = (record.key.clone(), record.space.clone());
            let addresses: Vec<IpAddr> = record.addresses().collect();
            store.ledger.put(record).map_err(|error| {
                if store.ledger.get(&key).is_none() {
                    addresses.iter().for_each(|it| store.book.give_back(&space, &key.holder(), *it));
                }
                error.into()
            })
        })
        .await
    }

    /// What is left of an attempt before is undone; what is attached is not attached twice.
    async fn clear_the_way(&self, key: &RecordKey, attach: &Attach) -> Result<(), Failure> {
        let before = self.with_ledger(|it| it.get(key).cloned());
        if let Some(before) = before {
            if before.is_complete() && self.is_there(&before).await {
                let msg = format!("{} is attached to {} already; DEL comes first", key.id, key.network);
                return Err(Failure::new(Code::Exists, msg));
            }
            self.undo(&before).await?;
        }
        // A pod has one sandbox at a time: the one before has ended, and its DEL comes later.
        let Some(pod) = pod_of(attach) else { return Ok(()) };
        let name = endpoint_name(key, Some(&pod))?;
        let superseded: Vec<RecordKey> = self.with_ledger(|it| {
            let same =
                it.records().filter(|record| record.endpoint.as_ref().is_some_and(|it| it.name == name));
            same.map(|record| record.key.clone()).collect()
        });
        for other in superseded {
            let turn = self.turn(&other.id);
            let _turn = turn.lock().await;
            if let Some(record) = self.with_ledger(|it| it.get(&other).cloned()) {
                self.undo(&record).await?;
            }
        }
        Ok(())
    }

    async fn is_there(&self, record: &Record) -> bool {
        let Ok(namespace) = Namespace::open(&record.netns) else { return false };
        let ifname = record.key.id.ifname.clone();
        let found = namespace.within(async move |links| links.find(&ifname).await).await;
        found.is_ok_and(|it| it.is_some())
    }

    async fn remove(&self, holding: Holding, detach: Detach) -> Answer {
        let like = RecordKey { holding, network: detach.network, id: detach.id };
        let turn = self.turn(&like.id);
        let _turn = turn.lock().await;
        let mut delegated = Vec::new();
        for key in self.with_ledger(|it| it.keys_of(&like)) {
            let Some(record) = self.with_ledger(|it| it.get(&key).cloned()) else { continue };
            self.undo(&record).await?;
            delegated.extend(Some(record.delegated).filter(|it| !it.is_empty()));
        }
        Ok(Done { delegated, ..Done::default() })
    }

    async fn collect(&self, holding: Holding, network: String, valid: &[AttachmentId]) -> Answer {
        let id = AttachmentId { container_id: String::new(), ifname: String::new() };
        let like = RecordKey { holding, network, id };
        let mut failed = Vec::new();
        for key in self.with_ledger(|it| it.keys_beside(&like, valid)) {
            let turn = self.turn(&key.id);
            let _turn = turn.lock().await;
            let Some(record) = self.with_ledger(|it| it.get(&key).cloned()) else { continue };
            if let Err(failure) = self.undo(&record).await {
                failed.push(format!("{}: {failure}", key.id));
            }
        }
        if failed.is_empty() {
            return Ok(Done::default());
        }
        let msg = format!("{} attachments could not be removed; the next GC tries again", failed.len());
        Err(Failure::new(Code::Remains, msg).with_details(failed.join("; ")))
    }

    async fn check(&self, attach: Attach) -> Answer {
        let key = RecordKey {
            holding: Holding::Attachment,
            network: attach.config.name.clone(),
            id: attach.id.clone(),
        };
        let turn = self.turn(&key.id);
        let _turn = turn.lock().await;
        let record = self.with_ledger(|it| it.get(&key).cloned());
        let Some(record) = record.filter(Record::is_complete) else {
            let msg = format!("{} is not attached to {}", key.id, key.network);
            return Err(Failure::new(Code::UnknownContainer, msg));
        };
        check(&attach, &record, &self.dataplane, &self.settings.functions).await.map(|()| Done::default())
    }

    fn check_lease(&self, detach: Detach) -> Answer {
        let key = RecordKey { holding: Holding::Lease, network: detach.network, id: detach.id };
        if self.with_ledger(|it| it.get(&key).is_some()) {
            return Ok(Done::default());
        }
        let msg = format!("no addresses are given to {} in {}", key.id, key.network);
        Err(Failure::new(Code::UnknownContainer, msg))
    }

    async fn lease(&self, attach: Attach) -> Answer {
        let network = attach.config.name.clone();
        let space = format!("lease/{network}");
        let key = RecordKey { holding: Holding::Lease, network, id: attach.id.clone() };
        let turn = self.turn(&key.id);
        let _turn = turn.lock().await;
        if self.with_ledger(|it| it.get(&key).is_some()) {
            let msg = format!("{} has addresses of {} already; DEL comes first", key.id, key.network);
            return Err(Failure::new(Code::Exists, msg));
        }
        self.dataplane.awaited().await?;
        giving::refuse_pools(&attach.config)?;
        let granted = self.take(&attach, &key, &space, &PodFacts::default(), &[], &[]).await?;
        let ips = granted.iter();
        let ips = ips.map(|it| IpConfig { address: it.address, gateway: it.gateway, interface: None });
        let result = AddResult {
            interfaces: Vec::new(),
            ips: ips.collect(),
            routes: attach.config.ipam.routes.clone(),
            dns: attach.config.dns.clone(),
        };
        self.keep(Record {
            key,
            space,
            granted,
            netns: attach.netns.clone(),
            pod: pod_of(&attach),
            delegated: String::new(),
            wiring: None,
            endpoint: None,
            services: Vec::new(),
            backends: Vec::new(),
            result: Some(result.clone()),
        })
        .await?;
        Ok(Done { result: Some(result), ..Done::default() })
    }

    async fn status(&self, config: &Config) -> Answer {
        let settings = &self.settings;
        let network = config.network.clone().unwrap_or_else(|| settings.network.clone());
        let facts = self.dataplane.network(&network).await.map_err(|error| {
            let has_pods = self.with_ledger(|it| it.records().any(|record| record.endpoint.is_some()));
            let is_away = matches!(error, DataplaneError::Away(_) | DataplaneError::Late(_));
            let code = if is_away && has_pods { Code::Degraded } else { Code::Unavailable };
            Failure::new(code, error.to_string())
        })?;
        if config.ipam.delegate().is_some() {
            return Ok(Done::default());
        }
        let ground = self.ground();
        let ranges = ranges_of(config, &ground).map_err(|it| Failure { code: Code::Unavailable, ..it })?;
        let reserved: Vec<IpAddr> = ground.reserved.iter().chain(&facts.gateways).copied().collect();
        let store = self.store.lock().unwrap_or_else(PoisonError::into_inner);
        let has_room = !ranges.is_empty() && store.book.has_room(&network, &ranges, &reserved);
        if !has_room && !self.pods.has_pools(&network) {
            let msg =
                "no address is left to give; widen the ranges, or see with `penstock ipam show` who has them";
            return Err(Failure::new(Code::Unavailable, msg));
        }
        Ok(Done::default())
    }
}

/// Ranges that the runtime gives come before those of the configuration, these before the node's.
fn ranges_of(config: &Config, ground: &Ground) -> Result<Vec<RangeSet>, Failure> {
    let given = &config.runtime_config.ip_ranges;
    if !given.is_empty() {
        return Ok(RangeSet::all(given)?);
    }
    let configured = config.ipam.all_ranges();
    if configured.is_empty() { Ok(ground.ranges.clone()) } else { Ok(RangeSet::all(&configured)?) }
}

fn pod_of(attach: &Attach) -> Option<Pod> {
    let pod = PodName::of(&attach.args)?;
    Some(Pod {
        namespace: pod.namespace.to_owned(),
        name: pod.name.to_owned(),
        uid: pod.uid.map(str::to_owned),
    })
}
