//! An API server that says what a test tells it to.

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

type Body = BoxBody<Bytes, Infallible>;

/// What the server does with one question about pods.
pub enum Reply {
    /// An error with a status.
    Refuse(u16),
    /// A list at a version.
    List(Vec<Value>, &'static str),
    /// A watch that says these events; it stays open while the sender is kept, where a test may say more.
    Watch(mpsc::UnboundedReceiver<Value>),
}

/// What was asked about pods: the query of each question.
type Asked = Arc<Mutex<Vec<BTreeMap<String, String>>>>;

/// A pretended API server. About pods it is told what to answer; there is nothing of any other kind.
pub struct ApiServer {
    pub address: SocketAddr,
    pub asked: Asked,
    replies: Arc<Mutex<VecDeque<Reply>>>,
    _tasks: JoinSet<()>,
}

impl ApiServer {
    pub async fn start(replies: impl IntoIterator<Item = Reply>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let replies = Arc::new(Mutex::new(replies.into_iter().collect::<VecDeque<_>>()));
        let asked = Asked::default();
        let mut tasks = JoinSet::new();
        let (answers, noted) = (Arc::clone(&replies), Arc::clone(&asked));
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (answers, noted) = (Arc::clone(&answers), Arc::clone(&noted));
                connections.spawn(async move {
                    let service = service_fn(move |request| {
                        let reply = answer(&request, &answers, &noted);
                        async move { Ok::<_, Infallible>(reply) }
                    });
                    let http = hyper::server::conn::http1::Builder::new();
                    let _ = http.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        Self { address, asked, replies, _tasks: tasks }
    }

    /// Adds answers.
    pub fn then(&self, reply: Reply) {
        self.replies.lock().unwrap().push_back(reply);
    }

    /// A client of it.
    pub fn client(&self) -> kube::Client {
        let config = kube::Config::new(format!("http://{}", self.address).parse().unwrap());
        kube::Client::try_from(config).unwrap()
    }
}

fn answer(request: &Request<Incoming>, replies: &Mutex<VecDeque<Reply>>, asked: &Asked) -> Response<Body> {
    if request.uri().path() != "/api/v1/pods" {
        return refuse(404);
    }
    let query = request.uri().query().unwrap_or_default();
    let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    asked.lock().unwrap().push(pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect());
    match replies.lock().unwrap().pop_front() {
        // Nothing more is planned: whoever asks is to wait.
        None => refuse(429),
        Some(Reply::Refuse(code)) => refuse(code),
        Some(Reply::List(items, version)) => whole(
            StatusCode::OK,
            &json!({"kind": "PodList", "apiVersion": "v1", "metadata": {"resourceVersion": version}, "items": items}),
        ),
        Some(Reply::Watch(events)) => {
            let lines = futures::stream::unfold(events, |mut events| async {
                let event = events.recv().await?;
                Some((Ok(Frame::data(Bytes::from(format!("{event}\n")))), events))
            });
            Response::new(BodyExt::boxed(StreamBody::new(lines)))
        }
    }
}

fn refuse(code: u16) -> Response<Body> {
    let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": "Test", "message": "told to"});
    whole(StatusCode::from_u16(code).unwrap(), &status)
}

fn whole(code: StatusCode, body: &Value) -> Response<Body> {
    let mut response = Response::new(Full::new(Bytes::from(body.to_string())).boxed());
    *response.status_mut() = code;
    response
}

/// A pod.
pub fn pod(name: &str, version: &str) -> Value {
    json!({"kind": "Pod", "apiVersion": "v1", "metadata": {"namespace": "shop", "name": name, "resourceVersion": version}})
}

/// An event of a watch.
pub fn event(kind: &str, object: &Value) -> Value {
    json!({"type": kind, "object": object})
}

/// The bookmark that ends a streaming list.
pub fn end_of_list(version: &str) -> Value {
    let metadata = json!({"resourceVersion": version, "annotations": {"k8s.io/initial-events-end": "true"}});
    event("BOOKMARK", &json!({"kind": "Pod", "apiVersion": "v1", "metadata": metadata}))
}

/// A watch that says these events first, and where more can be said.
pub fn watch(events: impl IntoIterator<Item = Value>) -> (mpsc::UnboundedSender<Value>, Reply) {
    let (send, receive) = mpsc::unbounded_channel();
    events.into_iter().for_each(|event| send.send(event).unwrap());
    (send, Reply::Watch(receive))
}
