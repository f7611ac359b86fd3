//! A dataplane that is a map of objects behind the control interface.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::Stream;
use penstock_api::Fault;
use penstock_api::convert::{keys_from_proto, objects_from_proto};
use penstock_api::model::{Key, Object};
use penstock_api::proto::dataplane_server::Dataplane;
use penstock_api::proto::{self, *};
use tokio::net::UnixListener;
use tokio::sync::broadcast;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status};

/// What the dataplane holds, and how it behaves.
#[derive(Debug, Default)]
pub struct Held {
    pub objects: BTreeMap<Key, Object>,
    pub generation: u64,
    /// Changes that were asked for.
    pub calls: usize,
    /// An object whose key has this word is refused.
    pub refuses: Option<String>,
    /// How long a change takes.
    pub takes: Duration,
}

/// A pretended dataplane.
pub struct Pretended {
    pub socket: PathBuf,
    pub held: Arc<Mutex<Held>>,
    task: JoinHandle<()>,
    alive: broadcast::Sender<()>,
}

/// A socket of one's own.
pub fn socket() -> PathBuf {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    std::env::temp_dir().join(format!("penstock-agent-{}-{number}.sock", std::process::id()))
}

impl Pretended {
    /// A dataplane with these objects to begin with, as from its file.
    pub fn start(socket: &Path, objects: Vec<Object>) -> Self {
        let objects = objects.into_iter().map(|it| (it.key(), it)).collect();
        let held = Arc::new(Mutex::new(Held { objects, generation: 1, ..Held::default() }));
        let listener = UnixListener::bind(socket).unwrap();
        let (alive, _) = broadcast::channel(1);
        let service = penstock_api::server(Service { held: Arc::clone(&held), alive: alive.clone() });
        let server = tonic::transport::Server::builder().add_service(service);
        let mut end = alive.subscribe();
        let task = tokio::spawn(async move {
            let ended = async move { drop(end.recv().await) };
            let incoming = UnixListenerStream::new(listener);
            server.serve_with_incoming_shutdown(incoming, ended).await.unwrap();
        });
        Self { socket: socket.to_owned(), held, task, alive }
    }

    /// The keys that it holds, as text.
    pub fn keys(&self) -> Vec<String> {
        self.held.lock().unwrap().objects.keys().map(ToString::to_string).collect()
    }

    /// The object of a key.
    pub fn get(&self, key: &Key) -> Option<Object> {
        self.held.lock().unwrap().objects.get(key).cloned()
    }

    /// Changes that were asked for.
    pub fn calls(&self) -> usize {
        self.held.lock().unwrap().calls
    }

    /// Ends it.
    pub async fn end(self) {
        let Self { socket, task, alive, .. } = self;
        let _ = alive.send(());
        task.await.unwrap();
        std::fs::remove_file(socket).unwrap();
    }
}

struct Service {
    held: Arc<Mutex<Held>>,
    alive: broadcast::Sender<()>,
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl Service {
    async fn change(&self, change: impl FnOnce(&mut BTreeMap<Key, Object>)) -> Response<Applied> {
        let takes = self.held.lock().unwrap().takes;
        tokio::time::sleep(takes).await;
        let mut held = self.held.lock().unwrap();
        held.calls += 1;
        let mut new = held.objects.clone();
        change(&mut new);
        let changed = new.iter().filter(|(key, it)| held.objects.get(key) != Some(it));
        let refused = |key: &str| held.refuses.as_ref().is_some_and(|word| key.contains(word));
        let keys = changed.map(|(key, _)| key.to_string()).filter(|key| refused(key));
        let faults: Vec<Fault> = keys.map(|key| Fault::new(key, "", "is not liked", "")).collect();
        if !faults.is_empty() {
            return Response::new(Applied::refused(held.generation, faults));
        }
        held.objects = new;
        held.generation += 1;
        Response::new(Applied::live(held.generation, takes))
    }
}

fn unasked<T>() -> Result<Response<T>, Status> {
    Err(Status::unimplemented("nobody asks a pretended dataplane for this"))
}

#[tonic::async_trait]
impl Dataplane for Service {
    type ListFlowsStream = Answers<Flow>;
    type CaptureStream = Answers<CapturedFrame>;
    type ListConnectionsStream = Answers<Connection>;
    type WatchEventsStream = Answers<Event>;

    async fn upsert(&self, request: Request<UpsertRequest>) -> Result<Response<Applied>, Status> {
        let objects = objects_from_proto(request.into_inner().objects).unwrap();
        Ok(self.change(|held| held.extend(objects.into_iter().map(|it| (it.key(), it)))).await)
    }

    async fn delete(&self, request: Request<DeleteRequest>) -> Result<Response<Applied>, Status> {
        let keys = keys_from_proto(request.into_inner().keys).unwrap();
        Ok(self.change(|held| keys.iter().for_each(|key| assert!(held.remove(key).is_some(), "{key}"))).await)
    }

    async fn resync(&self, _: Request<ResyncRequest>) -> Result<Response<Applied>, Status> {
        unasked()
    }

    async fn get_status(&self, _: Request<StatusRequest>) -> Result<Response<NodeStatus>, Status> {
        let generation = self.held.lock().unwrap().generation;
        Ok(Response::new(NodeStatus { generation, live_generation: generation, ..NodeStatus::default() }))
    }

    async fn list_objects(&self, _: Request<ObjectsRequest>) -> Result<Response<ObjectList>, Status> {
        let objects = self.held.lock().unwrap().objects.values().map(proto::Object::from).collect();
        Ok(Response::new(ObjectList { objects }))
    }

    async fn watch_events(
        &self,
        _: Request<EventsRequest>,
    ) -> Result<Response<Self::WatchEventsStream>, Status> {
        let mut end = self.alive.subscribe();
        let (send, receive) = tokio::sync::mpsc::channel(1);
        tokio::spawn(async move {
            let _ = end.recv().await;
            drop(send);
        });
        Ok(Response::new(Box::pin(tokio_stream::wrappers::ReceiverStream::new(receive))))
    }

    async fn list_ports(&self, _: Request<PortsRequest>) -> Result<Response<PortList>, Status> {
        unasked()
    }

    async fn list_workers(&self, _: Request<WorkersRequest>) -> Result<Response<WorkerList>, Status> {
        let worker = Worker { cpu: Some(0), ..Worker::default() };
        Ok(Response::new(WorkerList { workers: vec![worker] }))
    }

    async fn list_flows(&self, _: Request<FlowsRequest>) -> Result<Response<Self::ListFlowsStream>, Status> {
        unasked()
    }

    async fn list_drops(&self, _: Request<DropsRequest>) -> Result<Response<DropList>, Status> {
        unasked()
    }

    async fn list_routes(&self, _: Request<RoutesRequest>) -> Result<Response<RouteList>, Status> {
        unasked()
    }

    async fn list_peers(&self, _: Request<PeersRequest>) -> Result<Response<PeerList>, Status> {
        unasked()
    }

    async fn list_connections(
        &self,
        _: Request<ConnectionsRequest>,
    ) -> Result<Response<Self::ListConnectionsStream>, Status> {
        unasked()
    }

    async fn list_policies(&self, _: Request<PoliciesRequest>) -> Result<Response<PolicyList>, Status> {
        unasked()
    }

    async fn list_services(&self, _: Request<ServicesRequest>) -> Result<Response<ServiceList>, Status> {
        unasked()
    }

    async fn explain(&self, _: Request<ExplainRequest>) -> Result<Response<Explanation>, Status> {
        unasked()
    }

    async fn capture(&self, _: Request<CaptureRequest>) -> Result<Response<Self::CaptureStream>, Status> {
        unasked()
    }
}
