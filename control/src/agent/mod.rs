//! The agent of a node: what the cluster wants of it goes to its dataplane, how that went goes back.
//!
//! ```text
//!  API server, manifests --News--> Core: Cluster -> translate --> Wanted --> Pusher --> penstockd
//!        ^                           |                                         |
//!        +---- status, events -------+<------------- Progress -----------------+
//!                                    ^
//!  CNI plugin --> attaching ---------+
//! ```

mod attaching;
mod balancer;
mod core;
mod health;
mod http;
mod orphans;
mod pools;
mod residents;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use penstock_api::model::Name;
use prometheus_client::registry::Registry;
use thiserror::Error;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

pub use self::attaching::Attaching;
use self::attaching::ORDERS;
use self::balancer::Balancer;
use self::core::{Core, CoreMetrics};
use self::health::Health;
use self::http::Answers;
pub use self::http::ListenError;
use self::orphans::Orphans;
use self::pools::Pools;
use self::residents::Residents;
use crate::attach::{LedgerError, ServeError, Server};
use crate::deviceplugin::{self, Offer};
use crate::ipam::ServerBlocks;
use crate::push::{Dataplane, EVENTS, Wanted};
use crate::status::{Lease, Reporter, Sources};
use crate::watch::{DirectoryError, NEWS, WatchMetrics, Watches, follow_directory};

/// Where the agent learns what the cluster wants.
#[derive(Debug, Clone)]
pub enum Source {
    /// The API server that a kubeconfig names, or the one that this pod belongs to.
    Kubernetes {
        /// The kubeconfig; `KUBECONFIG`, `~/.kube/config` and the pod's own account are tried when absent.
        kubeconfig: Option<PathBuf>,
    },
    /// A directory of manifests.
    Manifests(PathBuf),
}

/// What an agent is told at its start.
#[derive(Debug, Clone)]
pub struct Options {
    /// The node that it works for.
    pub node: Name,
    /// Where it learns what the cluster wants.
    pub source: Source,
    /// The dataplane that it drives.
    pub dataplane: Dataplane,
    /// The namespace of the lease that one agent of the cluster holds.
    pub namespace: String,
    /// Where `/metrics`, `/healthz` and `/readyz` are served; nowhere when absent.
    pub listen: Option<SocketAddr>,
    /// Where pods are attached; nowhere when absent.
    pub attaching: Option<Attaching>,
    /// What the kubelet is offered for pods to ask for; nothing when absent.
    pub devices: Option<Offer>,
}

/// Why an agent ended.
#[derive(Debug, Error)]
pub enum AgentError {
    /// The directory of manifests cannot be followed.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// Nobody can ask how it is.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The records of what is attached cannot be kept.
    #[error(transparent)]
    Records(#[from] LedgerError),
    /// The CNI plugin cannot ask.
    #[error(transparent)]
    Serve(#[from] ServeError),
    /// There is no kubeconfig that says where the API server is.
    #[error(
        "no API server is known: {source}; name a kubeconfig with --kubeconfig, or a directory with --manifests"
    )]
    NoServer {
        /// What was tried.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// What the kubeconfig says cannot be used.
    #[error(
        "the API server cannot be asked: {0}; see whether the kubeconfig's certificates and keys are sound"
    )]
    Client(#[source] Box<kube::Error>),
    /// The system refuses signals.
    #[error("signals cannot be heeded: {0}")]
    Signals(#[source] std::io::Error),
    /// The source ended, which it never should.
    #[error("nothing more is told of the cluster: the source of news ended")]
    Ended,
}

/// Drives the dataplane of a node until SIGTERM or SIGINT. The dataplane then goes on with what it has.
///
/// # Errors
/// [`AgentError`].
pub async fn run(options: Options) -> Result<(), AgentError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(AgentError::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(AgentError::Signals)?;
    let wanted = Wanted::default();
    let health = Health::new(wanted.progress());
    let (core_metrics, watch_metrics) = (CoreMetrics::default(), WatchMetrics::default());
    let progress = wanted.progress();
    let (events, told_events) = mpsc::channel(EVENTS);
    let mut core = Core::new(&options, wanted.clone(), health.clone(), core_metrics.clone(), events);
    let mut tasks = tokio::task::JoinSet::new();
    let client = match &options.source {
        Source::Kubernetes { kubeconfig } => Some(client(kubeconfig.as_deref()).await?),
        Source::Manifests(_) => None,
    };
    let blocks = client.clone().map(|client| ServerBlocks::new(client, core.blocks()));
    let (orders, ordered) = mpsc::channel(ORDERS);
    if let Some(attaching) = &options.attaching {
        let pools = blocks.clone().map(|blocks| Pools::new(options.node.as_str(), blocks));
        let residents = Residents::of(core.residents(), pools, client.clone());
        let socket = options.dataplane.socket.clone();
        let attacher = attaching::open(attaching, socket, wanted, residents, orders)?;
        core.attach(attacher.objects().into_iter().map(|object| (object.key(), Some(object))));
        let server = Server::listen(&attaching.socket)?;
        tracing::info!("the CNI plugin is answered at {}", attaching.socket.display());
        tasks.spawn(attaching::serve(server, attacher));
    }
    if let Some(address) = options.listen {
        let mut registry = Registry::with_prefix("penstock_agent");
        core_metrics.register(&mut registry);
        watch_metrics.register(&mut registry);
        core.push_metrics().register(&mut registry);
        let listener = http::listen(address).await?;
        tracing::info!("/metrics, /healthz and /readyz are served on http://{address}");
        tasks.spawn(http::serve(listener, Arc::new(Answers { registry, health })));
    }
    if let Some(offer) = &options.devices {
        tasks.spawn(deviceplugin::run(offer.clone()));
    }
    let (news, told) = mpsc::channel(NEWS);
    // Kept until the end, for with it the watches end.
    let mut watches = None;
    let mut directory = tokio::task::JoinSet::new();
    if let Source::Manifests(path) = &options.source {
        let (path, news) = (path.clone(), news.clone());
        directory.spawn(async move { follow_directory(&path, news).await });
    }
    if let (Some(client), Some(blocks)) = (client, blocks) {
        let lease = Lease::new(client.clone(), &options.namespace, "penstock-agent", options.node.as_str());
        let (outlook, leading) = (core.outlook(), lease.leading());
        let sources = Sources { outlook, progress, leading, events: told_events };
        let balancer = Balancer {
            client: client.clone(),
            node: options.node.to_string(),
            plan: core.plan(),
            leading: lease.leading(),
            socket: options.dataplane.socket.clone(),
        };
        tasks.spawn(balancer.run());
        tasks.spawn(Orphans::new(client.clone(), blocks, core.residents(), lease.leading()).run());
        tasks.spawn(lease.run());
        tasks.spawn(Reporter::new(client.clone(), options.node.as_str(), sources).run());
        watches = Some(Watches::start(client, news, watch_metrics));
    } else {
        drop(news);
    }
    let outcome = tokio::select! {
        () = core.run(told, ordered) => match directory.join_next().await {
            Some(Ok(Err(error))) => Err(error.into()),
            _ => Err(AgentError::Ended),
        },
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    };
    drop(watches);
    if outcome.is_ok() {
        tracing::info!("ended; the dataplane goes on with what it has");
    }
    outcome
}

/// A client of the API server that `kubeconfig` names, or the surroundings.
async fn client(kubeconfig: Option<&std::path::Path>) -> Result<kube::Client, AgentError> {
    let mut config = match kubeconfig {
        None => {
            kube::Config::infer().await.map_err(|source| AgentError::NoServer { source: source.into() })?
        }
        Some(path) => {
            let unusable =
                |source: kube::config::KubeconfigError| AgentError::NoServer { source: source.into() };
            let kubeconfig = kube::config::Kubeconfig::read_from(path).map_err(unusable)?;
            let options = kube::config::KubeConfigOptions::default();
            kube::Config::from_custom_kubeconfig(kubeconfig, &options).await.map_err(unusable)?
        }
    };
    // It would ask a server that is not ready yet again by itself, unseen and at pauses that double up to a thousand
    // seconds; who asks here waits and asks again on its own.
    config.default_retry = false;
    kube::Client::try_from(config).map_err(|error| AgentError::Client(Box::new(error)))
}
