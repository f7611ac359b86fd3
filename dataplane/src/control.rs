//! The control interface: gRPC on a unix socket, answered by the supervisor one question at a time.
//!
//! ```text
//!  penstock, agents --gRPC--> Service --Request--> Engine::run        changes, and looks at what is there
//!  Prometheus -------HTTP------^ |--Command--> workers                flows and captures, which only they know
//! ```

mod capture;
mod clock;
mod connections;
mod events;
mod flows;
mod health;
mod http;
mod look;
mod metrics;
mod socket;
pub mod stateful;

use std::pin::Pin;

use futures::Stream;
use penstock_api::Fault;
use penstock_api::convert::{keys_from_proto, objects_from_proto};
use penstock_api::model::Name;
use penstock_api::proto::dataplane_server::Dataplane;
use penstock_api::proto::{self, Applied};
use penstock_api::query::{
    CaptureOrder, ConnectionQuery, EventOrder, FlowQuery, PolicyQuery, Question, ServiceQuery, refusal,
};
use tokio::sync::{mpsc, oneshot};
use tonic::{Request, Response, Status};

pub use connections::ConnectionTable;
pub use health::{HealthCheck, serve_health_checks};
pub use metrics::{MetricsError, MetricsListener};
pub use socket::{Listener, SocketError};

use crate::supervisor::{self, Engine, Refusal};
use crate::tables::desired::Change;

/// Requests that may wait for the supervisor.
pub const REQUESTS: usize = 64;

/// Answers what comes over the socket.
#[derive(Clone)]
pub struct Service {
    engine: mpsc::Sender<supervisor::Request>,
    sources: stateful::Sources,
}

/// A stream of answers.
type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl Service {
    /// A service that asks the supervisor at the other end.
    #[must_use]
    pub fn new(engine: mpsc::Sender<supervisor::Request>) -> Service {
        Service { engine, sources: stateful::Sources::default() }
    }

    /// The same, with what it can tell of the stateful tier.
    #[must_use]
    pub fn with_sources(self, sources: stateful::Sources) -> Service {
        Service { sources, ..self }
    }

    /// Serves everybody who connects, until the listener's task is dropped.
    ///
    /// # Errors
    /// When the socket breaks.
    pub async fn serve(self, listener: Listener) -> Result<(), tonic::transport::Error> {
        let server = tonic::transport::Server::builder().add_service(penstock_api::server(self));
        server.serve_with_incoming(listener.connections()).await
    }

    /// Asks the supervisor to look at something.
    async fn look<T: Send + 'static>(
        &self,
        look: impl FnOnce(&Engine) -> T + Send + 'static,
    ) -> Result<T, Status> {
        let (reply, answer) = oneshot::channel();
        let look = move |engine: &Engine| drop(reply.send(look(engine)));
        self.engine.send(supervisor::Request::Look(Box::new(look))).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())
    }

    /// Makes a change. Faults are an answer like any other.
    async fn change(&self, change: Result<Change, Vec<Fault>>) -> Result<Response<Applied>, Status> {
        let outcome = match change {
            Ok(change) => {
                let (reply, answer) = oneshot::channel();
                let request = supervisor::Request::Change(change, reply);
                self.engine.send(request).await.map_err(|_| gone())?;
                answer.await.map_err(|_| gone())?
            }
            Err(faults) => Err(Refusal::Faulty(faults)),
        };
        match outcome {
            Ok(live) => Ok(Response::new(Applied::live(live.generation, live.took))),
            Err(Refusal::Faulty(faults)) => {
                let generation = self.look(|engine| engine.desired().generation()).await?;
                Ok(Response::new(Applied::refused(generation, faults)))
            }
            Err(late @ Refusal::NotLive { .. }) => Err(Status::deadline_exceeded(late.to_string())),
            Err(draining @ Refusal::Draining) => Err(Status::unavailable(draining.to_string())),
        }
    }
}

fn gone() -> Status {
    Status::unavailable("the daemon is draining")
}

#[tonic::async_trait]
impl Dataplane for Service {
    type ListFlowsStream = Answers<proto::Flow>;
    type CaptureStream = Answers<proto::CapturedFrame>;
    type ListConnectionsStream = Answers<proto::Connection>;
    type WatchEventsStream = Answers<proto::Event>;

    async fn upsert(&self, request: Request<proto::UpsertRequest>) -> Result<Response<Applied>, Status> {
        self.change(objects_from_proto(request.into_inner().objects).map(Change::Upsert)).await
    }

    async fn delete(&self, request: Request<proto::DeleteRequest>) -> Result<Response<Applied>, Status> {
        self.change(keys_from_proto(request.into_inner().keys).map(Change::Delete)).await
    }

    async fn resync(&self, request: Request<proto::ResyncRequest>) -> Result<Response<Applied>, Status> {
        self.change(objects_from_proto(request.into_inner().objects).map(Change::Resync)).await
    }

    async fn get_status(
        &self,
        _: Request<proto::StatusRequest>,
    ) -> Result<Response<proto::NodeStatus>, Status> {
        Ok(Response::new(self.look(look::status).await?))
    }

    async fn list_ports(&self, _: Request<proto::PortsRequest>) -> Result<Response<proto::PortList>, Status> {
        Ok(Response::new(proto::PortList { ports: self.look(look::ports).await? }))
    }

    async fn list_workers(
        &self,
        _: Request<proto::WorkersRequest>,
    ) -> Result<Response<proto::WorkerList>, Status> {
        Ok(Response::new(proto::WorkerList { workers: self.look(look::workers).await? }))
    }

    async fn list_flows(
        &self,
        request: Request<proto::FlowsRequest>,
    ) -> Result<Response<Self::ListFlowsStream>, Status> {
        let query = FlowQuery::try_from(request.into_inner()).map_err(|faults| refusal(&faults))?;
        Ok(Response::new(flows::list(self.clone(), query)))
    }

    async fn list_drops(
        &self,
        request: Request<proto::DropsRequest>,
    ) -> Result<Response<proto::DropList>, Status> {
        let all = request.into_inner().all;
        Ok(Response::new(proto::DropList { drops: self.look(move |engine| look::drops(engine, all)).await? }))
    }

    async fn list_routes(
        &self,
        request: Request<proto::RoutesRequest>,
    ) -> Result<Response<proto::RouteList>, Status> {
        let network = request.into_inner().network;
        if network.is_empty() {
            let routes = self.look(|engine| look::routes(engine, None)).await?;
            return Ok(Response::new(proto::RouteList { routes }));
        }
        let name: Name =
            network.parse().map_err(|error| Status::invalid_argument(format!("network: {error}")))?;
        let known = self.look({
            let name = name.clone();
            move |engine| engine.desired().networks().any(|network| network.name == name)
        });
        if !known.await? {
            return Err(Status::not_found(format!(
                "there is no network {:?}; see `penstock objects`",
                name.as_str()
            )));
        }
        let routes = self.look(move |engine| look::routes(engine, Some(name.as_str()))).await?;
        Ok(Response::new(proto::RouteList { routes }))
    }

    async fn list_peers(&self, _: Request<proto::PeersRequest>) -> Result<Response<proto::PeerList>, Status> {
        Ok(Response::new(proto::PeerList { peers: self.look(look::peers).await? }))
    }

    async fn list_objects(
        &self,
        _: Request<proto::ObjectsRequest>,
    ) -> Result<Response<proto::ObjectList>, Status> {
        let objects = |engine: &Engine| engine.desired().objects().map(proto::Object::from).collect();
        Ok(Response::new(proto::ObjectList { objects: self.look(objects).await? }))
    }

    async fn list_connections(
        &self,
        request: Request<proto::ConnectionsRequest>,
    ) -> Result<Response<Self::ListConnectionsStream>, Status> {
        let query = ConnectionQuery::try_from(request.into_inner()).map_err(|faults| refusal(&faults))?;
        stateful::connections(self, query).map(Response::new)
    }

    async fn list_policies(
        &self,
        request: Request<proto::PoliciesRequest>,
    ) -> Result<Response<proto::PolicyList>, Status> {
        let query = PolicyQuery::try_from(request.into_inner()).map_err(|faults| refusal(&faults))?;
        stateful::policies(self, query).await.map(Response::new)
    }

    async fn list_services(
        &self,
        request: Request<proto::ServicesRequest>,
    ) -> Result<Response<proto::ServiceList>, Status> {
        let query = ServiceQuery::try_from(request.into_inner()).map_err(|faults| refusal(&faults))?;
        stateful::services(self, query).await.map(Response::new)
    }

    async fn watch_events(
        &self,
        request: Request<proto::EventsRequest>,
    ) -> Result<Response<Self::WatchEventsStream>, Status> {
        let order = EventOrder::try_from(request.into_inner()).map_err(|faults| refusal(&faults))?;
        stateful::events(self, order).map(Response::new)
    }

    async fn explain(
        &self,
        request: Request<proto::ExplainRequest>,
    ) -> Result<Response<proto::Explanation>, Status> {
        let question = Question::try_from(request.into_inner()).map_err(|faults| refusal(&faults))?;
        self.look(move |engine| look::explain(engine, &question)).await?.map(Response::new)
    }

    async fn capture(
        &self,
        request: Request<proto::CaptureRequest>,
    ) -> Result<Response<Self::CaptureStream>, Status> {
        let order = CaptureOrder::try_from(request.into_inner()).map_err(|faults| refusal(&faults))?;
        Ok(Response::new(capture::start(self, order).await?))
    }
}
