//! Watches of an API server, one a kind.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::time::Duration;

use futures::StreamExt;
use kube::runtime::watcher::{self, Config, Event, watcher};
use kube::{Api, Client, Resource};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::News;
use super::pace::Pace;
use crate::kubernetes::{
    AdminNetworkPolicy, BaselineAdminNetworkPolicy, ClusterNetworkPolicy, EgressIP, EndpointSlice, IPBlock,
    IPPool, Key, Kind, Namespace, Network, NetworkAttachmentDefinition, NetworkPolicy, Node, NodeConfig,
    Object, Pod, Service,
};

/// How long a streaming list may say nothing before it is taken for one that the server does not know: servers before
/// Kubernetes 1.27 take the question for a plain watch, whose beginning has no end.
const SILENCE: Duration = Duration::from_secs(30);
/// How often a kind that the server does not serve is asked for again: its definition may come.
const NOT_SERVED: Duration = Duration::from_secs(15);

/// What kube-proxy leaves out too: slices of services without an address, and services of another proxy.
const SERVED_BY_US: &str = "!service.kubernetes.io/headless,!service.kubernetes.io/service-proxy-name";

/// A label: the kind that is watched.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabel {
    kind: &'static str,
}

/// What watches count. Clones count together.
#[derive(Debug, Clone, Default)]
pub struct WatchMetrics {
    events: Family<KindLabel, Counter>,
    lists: Family<KindLabel, Counter>,
    failures: Family<KindLabel, Counter>,
    watching: Family<KindLabel, Gauge>,
}

impl WatchMetrics {
    /// Shows them in a registry.
    pub fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("watch");
        registry.register("events", "Objects that were told of", self.events.clone());
        registry.register("lists", "How often all objects of a kind were told of", self.lists.clone());
        registry.register("failures", "Failures of watches", self.failures.clone());
        registry.register("watching", "Whether the last answer was none of failure", self.watching.clone());
    }
}

/// The watches of an API server. They end when this is dropped.
#[derive(Debug)]
pub struct Watches {
    _tasks: JoinSet<()>,
}

impl Watches {
    /// Watches every kind there is; what is told goes to `news`.
    #[must_use]
    pub fn start(client: Client, news: mpsc::Sender<News>, metrics: WatchMetrics) -> Self {
        let mut watches = Beginning { tasks: JoinSet::new(), client, news, metrics };
        watches.add::<Node>(Kind::Node, "");
        watches.add::<Namespace>(Kind::Namespace, "");
        watches.add::<Pod>(Kind::Pod, "");
        watches.add::<NetworkPolicy>(Kind::NetworkPolicy, "");
        watches.add::<Service>(Kind::Service, SERVED_BY_US);
        watches.add::<EndpointSlice>(Kind::EndpointSlice, SERVED_BY_US);
        watches.add::<ClusterNetworkPolicy>(Kind::ClusterNetworkPolicy, "");
        watches.add::<AdminNetworkPolicy>(Kind::AdminNetworkPolicy, "");
        watches.add::<BaselineAdminNetworkPolicy>(Kind::BaselineAdminNetworkPolicy, "");
        watches.add::<NetworkAttachmentDefinition>(Kind::NetworkAttachmentDefinition, "");
        watches.add::<Network>(Kind::Network, "");
        watches.add::<IPPool>(Kind::IPPool, "");
        watches.add::<IPBlock>(Kind::IPBlock, "");
        watches.add::<EgressIP>(Kind::EgressIP, "");
        watches.add::<NodeConfig>(Kind::NodeConfig, "");
        Self { _tasks: watches.tasks }
    }
}

/// Watches that are being started.
struct Beginning {
    tasks: JoinSet<()>,
    client: Client,
    news: mpsc::Sender<News>,
    metrics: WatchMetrics,
}

impl Beginning {
    /// Watches the objects of a kind that `labels` select.
    fn add<K>(&mut self, kind: Kind, labels: &'static str)
    where
        K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
        Object: From<K>,
    {
        let watch = Watch {
            kind,
            labels,
            news: self.news.clone(),
            metrics: self.metrics.clone(),
            pace: Pace::default(),
            streams: true,
            told: String::new(),
        };
        self.tasks.spawn(watch.run(Api::<K>::all(self.client.clone())));
    }
}

/// What to do after a failure.
#[derive(Debug, PartialEq, Eq)]
enum Then {
    /// Ask on.
    GoOn,
    /// Begin again: what was known is too old.
    Relist,
    /// Begin again with a plain list: the server has no streaming ones.
    ListPlainly,
    /// Ask again later: nobody serves the kind.
    Wait,
    /// Nobody listens any more.
    End,
}

/// The watch of one kind.
struct Watch {
    kind: Kind,
    labels: &'static str,
    news: mpsc::Sender<News>,
    metrics: WatchMetrics,
    pace: Pace,
    /// Whether lists are asked for as streams.
    streams: bool,
    /// The last failure that was logged.
    told: String,
}

impl Watch {
    async fn run<K>(mut self, api: Api<K>)
    where
        K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
        Object: From<K>,
    {
        loop {
            match self.follow(&api).await {
                Then::End => return,
                Then::ListPlainly => self.streams = false,
                Then::Wait => tokio::time::sleep(NOT_SERVED).await,
                Then::Relist | Then::GoOn => tokio::time::sleep(self.pace.pause()).await,
            }
        }
    }

    /// Follows one watcher until it has to be made anew.
    async fn follow<K>(&mut self, api: &Api<K>) -> Then
    where
        K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
        Object: From<K>,
    {
        let mut config = Config::default();
        if !self.labels.is_empty() {
            config = config.labels(self.labels);
        }
        if self.streams {
            config = config.streaming_lists();
        }
        let mut events = std::pin::pin!(watcher(api.clone(), config));
        let mut listed = Some(BTreeSet::new());
        loop {
            let next = if self.streams && listed.is_some() {
                match tokio::time::timeout(SILENCE, events.next()).await {
                    Ok(next) => next,
                    Err(_) => return Then::ListPlainly,
                }
            } else {
                events.next().await
            };
            let then = match next {
                // A watcher has no end.
                None => Then::Relist,
                Some(Ok(event)) => self.tell(event, &mut listed).await,
                Some(Err(error)) => self.fail(&error, listed.is_some()).await,
            };
            if then != Then::GoOn {
                return then;
            }
        }
    }

    /// Hands on what came. `listed` are the objects of a list that is not at its end yet.
    async fn tell<K>(&mut self, event: Event<K>, listed: &mut Option<BTreeSet<Key>>) -> Then
    where
        Object: From<K>,
    {
        self.pace.reset();
        self.told.clear();
        let label = KindLabel { kind: self.kind.as_str() };
        self.metrics.watching.get_or_create(&label).set(1);
        let news = match event {
            Event::Init => {
                *listed = Some(BTreeSet::new());
                return Then::GoOn;
            }
            Event::InitDone => {
                self.metrics.lists.get_or_create(&label).inc();
                News::Listed(self.kind, listed.take().unwrap_or_default())
            }
            Event::InitApply(object) => {
                let object = Object::from(object);
                if let Some(listed) = listed {
                    listed.insert(object.key());
                }
                News::Applied(object)
            }
            Event::Apply(object) => News::Applied(Object::from(object)),
            Event::Delete(object) => News::Removed(Object::from(object).key()),
        };
        self.metrics.events.get_or_create(&label).inc();
        if self.news.send(news).await.is_ok() { Then::GoOn } else { Then::End }
    }

    /// Says what failed, waits, and decides how to go on.
    async fn fail(&mut self, error: &watcher::Error, is_listing: bool) -> Then {
        let label = KindLabel { kind: self.kind.as_str() };
        self.metrics.failures.get_or_create(&label).inc();
        self.metrics.watching.get_or_create(&label).set(0);
        let then = judge(error, is_listing && self.streams);
        match then {
            Then::Wait => {
                // There are none as long as nobody serves them.
                if self.told.is_empty() {
                    tracing::info!(kind = %self.kind, "the API server does not serve this kind: there are none");
                    if self.news.send(News::Listed(self.kind, BTreeSet::new())).await.is_err() {
                        return Then::End;
                    }
                }
            }
            Then::ListPlainly => {
                tracing::info!(kind = %self.kind, "the API server has no streaming lists: {error}");
            }
            _ => {
                let text = error.to_string();
                if self.told != text {
                    tracing::warn!(kind = %self.kind, "watching: {text}; trying again");
                }
            }
        }
        self.told = error.to_string();
        if then == Then::GoOn {
            tokio::time::sleep(self.pace.pause()).await;
        }
        then
    }
}

/// What a failure asks for; `is_streaming` says that a streaming list was under way.
fn judge(error: &watcher::Error, is_streaming: bool) -> Then {
    let code = match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::WatchFailed(kube::Error::Api(status)) => status.code,
        watcher::Error::WatchError(status) => status.code,
        _ => 0,
    };
    match (code, error) {
        (404, _) => Then::Wait,
        (400 | 422, _) if is_streaming => Then::ListPlainly,
        // So says a server whose etcd is too old to tell it how far a watch is.
        (_, watcher::Error::WatchError(_)) if is_streaming && code != 410 => Then::ListPlainly,
        // The watcher itself begins again when the stream says so, but not when the answer to its question does.
        (410, watcher::Error::WatchStartFailed(_) | watcher::Error::WatchFailed(_)) => Then::Relist,
        _ => Then::GoOn,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kube::core::Status;

    fn status(code: u16) -> Box<Status> {
        Box::new(Status { code, ..Status::default() })
    }

    #[test]
    fn what_was_known_is_forgotten_only_when_it_is_too_old() {
        let started = |code| watcher::Error::WatchStartFailed(kube::Error::Api(status(code)));
        assert_eq!(judge(&started(410), false), Then::Relist);
        assert_eq!(judge(&started(401), false), Then::GoOn);
        assert_eq!(judge(&started(503), false), Then::GoOn);
        assert_eq!(judge(&watcher::Error::WatchError(status(410)), false), Then::GoOn);
    }

    #[test]
    fn a_server_without_streaming_lists_is_asked_plainly() {
        let refused = |code| watcher::Error::WatchStartFailed(kube::Error::Api(status(code)));
        assert_eq!(judge(&refused(422), true), Then::ListPlainly);
        assert_eq!(judge(&refused(422), false), Then::GoOn);
        assert_eq!(judge(&refused(404), true), Then::Wait);
        let cannot = watcher::Error::WatchError(status(500));
        assert_eq!(judge(&cannot, true), Then::ListPlainly);
        assert_eq!(judge(&cannot, false), Then::GoOn);
        assert_eq!(judge(&watcher::Error::WatchError(status(410)), true), Then::GoOn);
    }
}
