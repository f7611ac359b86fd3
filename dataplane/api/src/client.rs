//! The caller's side of the daemon's unix socket.

use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use thiserror::Error;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Response, Status, Streaming};

use crate::MESSAGE_LIMIT;
use crate::convert::objects_from_proto;
use crate::fault::Fault;
use crate::model::{Key, Name, Object};
use crate::proto::{self, dataplane_client::DataplaneClient};
use crate::query::{
    CaptureOrder, ConnectionQuery, EventOrder, FlowQuery, PolicyQuery, Question, ServiceQuery,
};

/// How long a call may take. A change waits for every worker, and a worker takes one in microseconds.
const PATIENCE: Duration = Duration::from_secs(30);

/// Why the daemon could not be asked, or would not do it.
#[derive(Debug, Error)]
pub enum ClientError {
    /// There is no socket.
    #[error("{}: there is no such socket; is penstockd running? `penstockd run --config FILE` makes it, and `--socket` names another", .socket.display())]
    NoSocket {
        /// The path.
        socket: PathBuf,
    },
    /// There is a socket, left behind.
    #[error("{}: nobody listens there; penstockd was stopped, or is just starting: see its log", .socket.display())]
    NobodyListens {
        /// The path.
        socket: PathBuf,
    },
    /// The socket's permissions are against it.
    #[error("{}: permission denied; run as root, or as a member of the group that owns the socket", .socket.display())]
    Denied {
        /// The path.
        socket: PathBuf,
    },
    /// The connection failed for another reason.
    #[error("{}: cannot connect; check that the path is penstockd's socket", .socket.display())]
    Connect {
        /// The path.
        socket: PathBuf,
        /// What the system or the transport says.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The daemon took no decision in time.
    #[error("penstockd did not answer `{call}` within {} s; a worker may be stalled: see `penstock workers` and the daemon's log", PATIENCE.as_secs())]
    Slow {
        /// The call.
        call: &'static str,
    },
    /// The daemon looked at the change and applied nothing.
    #[error("nothing was applied:\n{}", lines(.0))]
    Refused(Vec<Fault>),
    /// The daemon does not have the call.
    #[error(
        "penstockd does not know `{call}`; it is of another version than this program: bring both to the same one"
    )]
    Unknown {
        /// The call.
        call: &'static str,
    },
    /// The connection was lost during the call.
    #[error("the connection was lost during `{call}`; penstockd stopped or was restarted: see its log")]
    Lost {
        /// The call.
        call: &'static str,
        /// What the transport says.
        #[source]
        source: Box<Status>,
    },
    /// The daemon answered with an error.
    #[error("{}", .0.message())]
    Call(Box<Status>),
    /// The daemon's answer cannot be read.
    #[error("penstockd's answer cannot be read; it is of another version than this program:\n{}", lines(.0))]
    Foreign(Vec<Fault>),
}

fn lines(faults: &[Fault]) -> String {
    faults.iter().map(|fault| format!("  {fault}")).collect::<Vec<_>>().join("\n")
}

/// A change that is live on every worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Live {
    /// The generation that holds it.
    pub generation: u64,
    /// From the request to live on every worker, as the daemon measured it.
    pub took: Duration,
}

/// A connection to one daemon.
#[derive(Debug, Clone)]
pub struct Client {
    inner: DataplaneClient<Channel>,
}

impl Client {
    /// Connects to the daemon that listens on the unix socket `path`.
    pub async fn connect(path: &Path) -> Result<Self, ClientError> {
        let socket = path.to_path_buf();
        let connector = tower::service_fn(move |_: Uri| {
            let socket = socket.clone();
            async move { UnixStream::connect(&socket).await.map(TokioIo::new) }
        });
        // The URI is not used for anything but HTTP/2's authority.
        let channel = Endpoint::from_static("http://penstockd")
            .connect_with_connector(connector)
            .await
            .map_err(|error| connect_error(path, error))?;
        let inner = DataplaneClient::new(channel)
            .max_decoding_message_size(MESSAGE_LIMIT)
            .max_encoding_message_size(MESSAGE_LIMIT);
        Ok(Self { inner })
    }

    /// Adds objects, or replaces those with the same keys; all of them or none.
    pub async fn upsert(&mut self, objects: impl IntoIterator<Item = &Object>) -> Result<Live, ClientError> {
        let objects = objects.into_iter().map(proto::Object::from).collect();
        let request = proto::UpsertRequest { objects };
        applied(call("upsert", self.inner.upsert(request)).await?)
    }

    /// Removes objects; all of them or none.
    pub async fn delete(&mut self, keys: &[Key]) -> Result<Live, ClientError> {
        let request = proto::DeleteRequest { keys: keys.iter().map(proto::Key::from).collect() };
        applied(call("delete", self.inner.delete(request)).await?)
    }

    /// Makes the configuration just these objects; what comes from the daemon's own file only stays.
    pub async fn resync(&mut self, objects: &[Object]) -> Result<Live, ClientError> {
        let request = proto::ResyncRequest { objects: objects.iter().map(proto::Object::from).collect() };
        applied(call("resync", self.inner.resync(request)).await?)
    }

    /// What the daemon is and how it fares.
    pub async fn status(&mut self) -> Result<proto::NodeStatus, ClientError> {
        call("status", self.inner.get_status(proto::StatusRequest {})).await
    }

    /// Every port queue.
    pub async fn ports(&mut self) -> Result<Vec<proto::Port>, ClientError> {
        Ok(call("ports", self.inner.list_ports(proto::PortsRequest {})).await?.ports)
    }

    /// Every worker.
    pub async fn workers(&mut self) -> Result<Vec<proto::Worker>, ClientError> {
        Ok(call("workers", self.inner.list_workers(proto::WorkersRequest {})).await?.workers)
    }

    /// The flows in the workers' caches that `query` asks for.
    pub async fn flows(&mut self, query: &FlowQuery) -> Result<Stream<proto::Flow>, ClientError> {
        let inner = call("flows", self.inner.list_flows(proto::FlowsRequest::from(query))).await?;
        Ok(Stream { call: "flows", inner })
    }

    /// Dropped packets by reason; with `all`, also the reasons that never happened.
    pub async fn drops(&mut self, all: bool) -> Result<Vec<proto::Drop>, ClientError> {
        Ok(call("drops", self.inner.list_drops(proto::DropsRequest { all })).await?.drops)
    }

    /// The routes of one network, or of all.
    pub async fn routes(&mut self, network: Option<&Name>) -> Result<Vec<proto::RouteRow>, ClientError> {
        let request = proto::RoutesRequest { network: network.map(Name::to_string).unwrap_or_default() };
        Ok(call("routes", self.inner.list_routes(request)).await?.routes)
    }

    /// The other nodes and how they are reached.
    pub async fn peers(&mut self) -> Result<Vec<proto::PeerRow>, ClientError> {
        Ok(call("peers", self.inner.list_peers(proto::PeersRequest {})).await?.peers)
    }

    /// The objects as they are configured.
    pub async fn objects(&mut self) -> Result<Vec<Object>, ClientError> {
        let list = call("objects", self.inner.list_objects(proto::ObjectsRequest {})).await?;
        objects_from_proto(list.objects).map_err(ClientError::Foreign)
    }

    /// The connections that `query` asks for.
    pub async fn connections(
        &mut self,
        query: &ConnectionQuery,
    ) -> Result<Stream<proto::Connection>, ClientError> {
        let request = proto::ConnectionsRequest::from(query);
        let inner = call("connections", self.inner.list_connections(request)).await?;
        Ok(Stream { call: "connections", inner })
    }

    /// The policies that `query` asks for, by tier, with how often each rule decided.
    pub async fn policies(&mut self, query: &PolicyQuery) -> Result<Vec<proto::TierRow>, ClientError> {
        let request = proto::PoliciesRequest::from(query);
        Ok(call("policy", self.inner.list_policies(request)).await?.tiers)
    }

    /// The services that `query` asks for, with their backends and what goes through them.
    pub async fn services(&mut self, query: &ServiceQuery) -> Result<Vec<proto::ServiceRow>, ClientError> {
        let request = proto::ServicesRequest::from(query);
        Ok(call("services", self.inner.list_services(request)).await?.services)
    }

    /// What rules log and what runs out, as it happens; the daemon stops when the answer is dropped.
    pub async fn events(&mut self, order: &EventOrder) -> Result<Stream<proto::Event>, ClientError> {
        let inner = call("events", self.inner.watch_events(proto::EventsRequest::from(order))).await?;
        Ok(Stream { call: "events", inner })
    }

    /// Where a packet would go, and why.
    pub async fn explain(&mut self, question: &Question) -> Result<proto::Explanation, ClientError> {
        call("explain", self.inner.explain(proto::ExplainRequest::from(question))).await
    }

    /// The frames that pass a port; the daemon stops when the answer is dropped.
    pub async fn capture(
        &mut self,
        order: &CaptureOrder,
    ) -> Result<Stream<proto::CapturedFrame>, ClientError> {
        let inner = call("capture", self.inner.capture(proto::CaptureRequest::from(order))).await?;
        Ok(Stream { call: "capture", inner })
    }
}

/// An answer that comes in pieces.
#[derive(Debug)]
pub struct Stream<T> {
    call: &'static str,
    inner: Streaming<T>,
}

impl<T> Stream<T> {
    /// The next piece, or `None` at the end.
    pub async fn next(&mut self) -> Result<Option<T>, ClientError> {
        self.inner.message().await.map_err(|status| call_error(self.call, status))
    }
}

/// Awaits an answer, but not for ever.
async fn call<T>(
    name: &'static str,
    answer: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T, ClientError> {
    match tokio::time::timeout(PATIENCE, answer).await {
        Err(_elapsed) => Err(ClientError::Slow { call: name }),
        Ok(answer) => answer.map(Response::into_inner).map_err(|status| call_error(name, status)),
    }
}

fn applied(applied: proto::Applied) -> Result<Live, ClientError> {
    if applied.faults.is_empty() {
        Ok(Live { generation: applied.generation, took: Duration::from_micros(applied.took_us) })
    } else {
        Err(ClientError::Refused(applied.faults.into_iter().map(Fault::from).collect()))
    }
}

fn call_error(call: &'static str, status: Status) -> ClientError {
    let from_transport = std::error::Error::source(&status).is_some();
    match status.code() {
        // A call that the daemon has but cannot serve says why; one that it does not have says nothing.
        Code::Unimplemented if status.message().is_empty() => ClientError::Unknown { call },
        // tonic's own failures have a source; what the daemon says has none.
        _ if from_transport => ClientError::Lost { call, source: Box::new(status) },
        _ => ClientError::Call(Box::new(status)),
    }
}

fn connect_error(path: &Path, error: tonic::transport::Error) -> ClientError {
    let socket = path.to_path_buf();
    match io_error_kind(&error) {
        Some(io::ErrorKind::NotFound) => ClientError::NoSocket { socket },
        Some(io::ErrorKind::ConnectionRefused) => ClientError::NobodyListens { socket },
        Some(io::ErrorKind::PermissionDenied) => ClientError::Denied { socket },
        _ => ClientError::Connect { socket, source: error.into() },
    }
}

/// What the system said at the bottom of what the transport says.
fn io_error_kind(error: &(dyn std::error::Error + 'static)) -> Option<io::ErrorKind> {
    let mut at = Some(error);
    while let Some(error) = at {
        if let Some(io) = error.downcast_ref::<io::Error>() {
            return Some(io.kind());
        }
        at = error.source();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    fn connect(path: &Path) -> ClientError {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(Client::connect(path)).unwrap_err()
    }

    #[test]
    fn a_missing_socket_is_said_to_be_missing() {
        let error = connect(Path::new("/nonexistent/penstock.sock"));
        assert!(matches!(error, ClientError::NoSocket { .. }), "{error:?}");
        assert!(error.to_string().contains("is penstockd running?"));
    }

    #[test]
    fn a_socket_left_behind_is_told_from_a_missing_one() {
        let path = std::env::temp_dir().join(format!("penstock-left-{}.sock", std::process::id()));
        drop(UnixListener::bind(&path).unwrap());
        let error = connect(&path);
        std::fs::remove_file(&path).unwrap();
        assert!(matches!(error, ClientError::NobodyListens { .. }), "{error:?}");
    }

    #[test]
    fn what_is_no_socket_path_is_said_with_its_cause() {
        let error = connect(Path::new(&"/tmp/x".repeat(40)));
        assert!(matches!(error, ClientError::Connect { .. }), "{error:?}");
    }
}
