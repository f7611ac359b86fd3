//! Attaching pods as a part of the agent: what is attached is among what the dataplane is to hold.
//!
//! ```text
//!  plugin --> Server --> Attacher --Order--> Core: Cluster -> translate --> Wanted --> Pusher --> penstockd
//!                           ^                                                 |
//!                           +------------ settled: live on every worker -----+
//! ```

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use penstock_api::client::ClientError;
use penstock_api::model::{Key, Name, Object};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::residents::Residents;
use crate::attach::{
    Attacher, Dataplane, DataplaneError, Direct, FaultPoints, Functions, LedgerError, NetworkFacts,
    PortState, Server, Settings,
};
use crate::push::{Ticket, Wanted};

/// How long the dataplane may take to follow before a runtime is told to come again.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between two attempts to bring back what is attached.
const AGAIN: Duration = Duration::from_secs(1);
/// Between two attempts to make pools and records agree.
const LATER: Duration = Duration::from_secs(2);
/// How often that is done when there is no reason to.
const NOW_AND_THEN: Duration = Duration::from_secs(600);
/// Changes that may wait for the core.
pub(super) const ORDERS: usize = 256;

/// Where pods are attached.
#[derive(Debug, Clone)]
pub struct Attaching {
    /// Where the CNI plugin asks.
    pub socket: PathBuf,
    /// The folder of the records of what is attached.
    pub records: PathBuf,
    /// The folder for vhost-user pods' sockets.
    pub sockets: PathBuf,
    /// The folder in which a device plugin's devices have theirs.
    pub devices: PathBuf,
    /// The kubelet's folder of pods, in which their volumes are.
    pub kubelet_pods: PathBuf,
    /// Addresses that no pod gets, besides the node's own.
    pub reserved: Vec<IpAddr>,
    /// Where a test ends the process.
    pub faults: FaultPoints,
}

/// What the core is asked to have the dataplane hold, or hold no more.
#[derive(Debug)]
pub(super) struct Order {
    pub(super) changes: Vec<(Key, Option<Object>)>,
    /// From when on it is wanted, together with all that the cluster says about it.
    pub(super) answer: oneshot::Sender<Ticket>,
}

/// The dataplane as the agent drives it.
#[derive(Debug)]
pub(super) struct Driven {
    orders: mpsc::Sender<Order>,
    wanted: Wanted,
    direct: Direct,
}

impl Driven {
    /// Waits until what was wanted at a moment is live.
    async fn settled(&self, ticket: Ticket) -> Result<(), DataplaneError> {
        let settled = timeout(PATIENCE, self.wanted.settled(ticket)).await;
        settled.map(drop).map_err(|_| DataplaneError::Late(PATIENCE))
    }

    fn is_connected(&self) -> bool {
        self.wanted.progress().borrow().connected
    }

    /// What the dataplane says against objects that are wanted.
    fn refusals<'a>(&self, keys: impl Iterator<Item = &'a Key>) -> Result<(), DataplaneError> {
        let refused = Arc::clone(&self.wanted.progress().borrow().refused);
        let faults: Vec<_> = keys.filter_map(|key| refused.get(key)).flatten().cloned().collect();
        if faults.is_empty() { Ok(()) } else { Err(DataplaneError::Refused(ClientError::Refused(faults))) }
    }

    /// Has the core change what is wanted; from when on it is.
    async fn order(
        &self,
        changes: Vec<(Key, Option<Object>)>,
    ) -> Result<oneshot::Receiver<Ticket>, DataplaneError> {
        let (answer, answered) = oneshot::channel();
        // It fails only when the core has ended, and so will this process.
        let sent = timeout(PATIENCE, self.orders.send(Order { changes, answer })).await;
        if matches!(sent, Ok(Ok(()))) { Ok(answered) } else { Err(DataplaneError::Late(PATIENCE)) }
    }
}

impl Dataplane for Driven {
    async fn awaited(&self) -> Result<(), DataplaneError> {
        self.settled(Ticket::default()).await
    }

    async fn network(&self, name: &str) -> Result<NetworkFacts, DataplaneError> {
        if !self.is_connected() {
            return Err(DataplaneError::Late(Duration::ZERO));
        }
        let none = || DataplaneError::NoNetwork(name.to_owned());
        let key = Key::Network(name.parse().map_err(|_| none())?);
        match self.wanted.get(&key).as_deref() {
            Some(Object::Network(network)) => self.direct.facts(network.clone()).await,
            _ => Err(none()),
        }
    }

    async fn put(&self, objects: Vec<Object>) -> Result<(), DataplaneError> {
        let keys: Vec<Key> = objects.iter().map(Object::key).collect();
        let changes = objects.into_iter().map(|object| (object.key(), Some(object))).collect();
        let answered = self.order(changes).await?;
        let ticket = timeout(PATIENCE, answered).await.ok().and_then(Result::ok);
        self.settled(ticket.ok_or(DataplaneError::Late(PATIENCE))?).await?;
        self.refusals(keys.iter())
    }

    async fn remove(&self, keys: Vec<Key>) -> Result<(), DataplaneError> {
        let answered = self.order(keys.into_iter().map(|key| (key, None)).collect()).await?;
        let mut progress = self.wanted.progress();
        let removed = async {
            let ticket = timeout(PATIENCE, answered).await.ok().and_then(Result::ok);
            self.settled(ticket.ok_or(DataplaneError::Late(PATIENCE))?).await
        };
        let lost = async { drop(progress.wait_for(|it| !it.connected).await) };
        tokio::select! {
            removed = removed => removed,
            // It goes with the first comparison when the dataplane is back.
            () = lost => Err(DataplaneError::Late(Duration::ZERO)),
        }
    }

    /// All that is wanted by now is live when this returns, policies included.
    async fn inspect(
        &self,
        endpoint: &Name,
        objects: &[Object],
    ) -> Result<(Vec<PortState>, bool), DataplaneError> {
        self.settled(self.wanted.change(Instant::now(), [])).await?;
        let keys: Vec<Key> = objects.iter().map(Object::key).collect();
        self.refusals(keys.iter())?;
        let is_wanted = |object: &Object| self.wanted.get(&object.key()).as_deref() == Some(object);
        Ok((self.direct.ports_of(endpoint).await?, objects.iter().all(is_wanted)))
    }
}

/// What attaches this node's pods.
pub(super) type PodAttacher = Attacher<Driven, Residents>;

/// Takes the records up.
///
/// # Errors
/// [`LedgerError`].
pub(super) fn open(
    attaching: &Attaching,
    dataplane: PathBuf,
    wanted: Wanted,
    residents: Residents,
    orders: mpsc::Sender<Order>,
) -> Result<PodAttacher, LedgerError> {
    let settings = Settings {
        records: attaching.records.clone(),
        sockets: attaching.sockets.clone(),
        devices: attaching.devices.clone(),
        kubelet_pods: attaching.kubelet_pods.clone(),
        network: crate::translate::Settings::network().to_string(),
        ranges: Vec::new(),
        reserved: attaching.reserved.clone(),
        functions: Functions::default(),
        faults: attaching.faults,
    };
    Attacher::open(settings, Driven { orders, wanted, direct: Direct::at(dataplane) }, residents)
}

/// Answers the plugin, and brings back what the kernel forgets with each end of the dataplane, until it is dropped.
pub(super) async fn serve(server: Server, attacher: PodAttacher) {
    let attacher = Arc::new(attacher);
    tokio::join!(server.serve(Arc::clone(&attacher)), follow(&attacher), tend(&attacher));
}

/// Makes pools and records agree: at the start, after what went wrong, and now and then.
async fn tend(attacher: &PodAttacher) {
    let mut told = String::new();
    loop {
        // Not before the cluster is known, and with it whose the addresses are.
        let known = match attacher.dataplane().awaited().await {
            Ok(()) => attacher.reconcile().await,
            Err(error) => Err(error.into()),
        };
        if let Err(failure) = known {
            let text = failure.to_string();
            if told != text {
                tracing::warn!(
                    "pools of addresses are not compared with what is attached: {text}; trying again"
                );
                told = text;
            }
            tokio::time::sleep(LATER).await;
            continue;
        }
        told.clear();
        // Whoever owes something already does not wait.
        let _ = timeout(NOW_AND_THEN, attacher.pods().owing()).await;
    }
}

async fn follow(attacher: &PodAttacher) {
    let mut progress = attacher.dataplane().wanted.progress();
    loop {
        let Ok(session) = progress.wait_for(|it| it.connected).await.map(|it| it.sessions) else { return };
        if let Err(failure) = attacher.restore().await {
            tracing::warn!("not everything that is attached is as it was: {failure}; trying again");
            tokio::time::sleep(AGAIN).await;
            continue;
        }
        // It may have ended and come again meanwhile.
        if progress.wait_for(|it| it.sessions != session).await.is_err() {
            return;
        }
    }
}
