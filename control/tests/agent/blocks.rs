//! Blocks of pools at a pretended API server, which refuses what is written over another version than it has.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use penstock_control::ipam::blocks::{
    Ask, Blocks, BlocksError, Owner, Pool, PoolError, bury, collect, release,
};
use penstock_control::ipam::{ServerBlocks, Sight};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

const PATH: &str = "/apis/penstock.dev/v1alpha1/ipblocks";

/// What the server has.
#[derive(Debug, Default)]
struct Kept {
    blocks: BTreeMap<String, Value>,
    version: u64,
    /// It answers that it cannot.
    is_ill: bool,
    /// How often everything was listed, and how often something was refused for its version.
    lists: usize,
    conflicts: usize,
}

type Answer = Result<Value, u16>;

impl Kept {
    fn keep(&mut self, name: &str, mut block: Value) -> Value {
        self.version += 1;
        block["metadata"]["resourceVersion"] = json!(self.version.to_string());
        self.blocks.insert(name.to_owned(), block.clone());
        block
    }

    /// The block of a name, if it is of this version still.
    fn of_version(&mut self, name: &str, version: &Value) -> Answer {
        let found = self.blocks.get(name).ok_or(404_u16)?;
        assert!(version.is_string(), "a change without a version");
        if found["metadata"]["resourceVersion"] == *version {
            return Ok(found.clone());
        }
        self.conflicts += 1;
        Err(409)
    }

    fn answer(&mut self, method: &Method, name: &str, body: &Value) -> Answer {
        if self.is_ill {
            return Err(503);
        }
        match *method {
            Method::GET => {
                self.lists += 1;
                let items: Vec<&Value> = self.blocks.values().collect();
                Ok(json!({
                    "kind": "IPBlockList", "apiVersion": "penstock.dev/v1alpha1",
                    "metadata": {"resourceVersion": self.version.to_string()}, "items": items,
                }))
            }
            Method::POST => {
                let name = body["metadata"]["name"].as_str().unwrap().to_owned();
                if self.blocks.contains_key(&name) {
                    self.conflicts += 1;
                    return Err(409);
                }
                Ok(self.keep(&name, body.clone()))
            }
            Method::PATCH => {
                let mut block = self.of_version(name, &body["metadata"]["resourceVersion"])?;
                for (field, value) in body["spec"].as_object().unwrap() {
                    block["spec"][field] = value.clone();
                }
                Ok(self.keep(name, block))
            }
            Method::DELETE => {
                let block = self.of_version(name, &body["preconditions"]["resourceVersion"])?;
                self.blocks.remove(name);
                Ok(block)
            }
            _ => Err(405),
        }
    }
}

/// The server.
struct BlockServer {
    address: SocketAddr,
    kept: Arc<Mutex<Kept>>,
    _tasks: JoinSet<()>,
}

async fn respond(
    request: Request<Incoming>,
    kept: Arc<Mutex<Kept>>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let body = request.into_body().collect().await.unwrap().to_bytes();
    let body = serde_json::from_slice(&body).unwrap_or_default();
    let name = path.strip_prefix(PATH).unwrap().trim_start_matches('/');
    let (code, text) = match kept.lock().unwrap().answer(&method, name, &body) {
        Ok(answer) => (200, answer),
        Err(code) => (
            code,
            json!({"kind": "Status", "status": "Failure", "code": code, "reason": "Test", "message": "told to"}),
        ),
    };
    let mut response = Response::new(Full::new(Bytes::from(text.to_string())));
    *response.status_mut() = StatusCode::from_u16(code).unwrap();
    Ok(response)
}

impl BlockServer {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, kept) = (listener.local_addr().unwrap(), Arc::<Mutex<Kept>>::default());
        let mut tasks = JoinSet::new();
        let answers = Arc::clone(&kept);
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let kept = Arc::clone(&answers);
                connections.spawn(async move {
                    let service = service_fn(move |request| respond(request, Arc::clone(&kept)));
                    let http = hyper::server::conn::http1::Builder::new();
                    let _ = http.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        Self { address, kept, _tasks: tasks }
    }

    /// A node's view of its blocks, whom no watch tells anything.
    fn blocks(&self) -> ServerBlocks {
        let mut config = kube::Config::new(format!("http://{}", self.address).parse().unwrap());
        config.default_retry = false;
        ServerBlocks::new(kube::Client::try_from(config).unwrap(), Sight::default())
    }

    fn with<T>(&self, see: impl FnOnce(&mut Kept) -> T) -> T {
        see(&mut self.kept.lock().unwrap())
    }

    /// Who has which address.
    fn given(&self) -> BTreeMap<IpAddr, Owner> {
        let of_block = |block: &Value| -> Vec<(IpAddr, Owner)> {
            let text = |value: &Value| value.as_str().unwrap().to_owned();
            let given = block["spec"]["given"].as_array().cloned().unwrap_or_default();
            let owner = |it: &Value| Owner { node: text(&it["node"]), holder: text(&it["holder"]) };
            given.iter().map(|it| (text(&it["address"]).parse().unwrap(), owner(it))).collect()
        };
        self.with(|kept| kept.blocks.values().flat_map(of_block).collect())
    }
}

fn pool() -> Pool {
    let prefixes = vec!["10.0.0.0/27".parse().unwrap(), "10.1.0.0/29".parse().unwrap()];
    Pool { name: "p".into(), network: "default".into(), prefixes, block: 29 }
}

fn owner(node: usize, pod: usize) -> Owner {
    Owner { node: format!("node{node}"), holder: format!("pod{pod}") }
}

#[tokio::test]
async fn nodes_that_are_told_nothing_take_each_address_once_and_give_all_back() {
    let server = BlockServer::start().await;
    let mut nodes = JoinSet::new();
    for node in 0..3 {
        let blocks = server.blocks();
        nodes.spawn(async move {
            let mut had = Vec::new();
            // All of them together: thirty-two and eight, less the four that are nobody's.
            for pod in 0..12 {
                had.push(pool().take(&blocks, &owner(node, pod), &Ask::default()).await.unwrap());
            }
            (node, blocks, had)
        });
    }
    let mut expected = BTreeMap::new();
    let mut views = Vec::new();
    while let Some(node) = nodes.join_next().await {
        let (node, blocks, had) = node.unwrap();
        for (pod, address) in had.into_iter().enumerate() {
            assert_eq!(expected.insert(address, owner(node, pod)), None, "{address} is given twice");
        }
        views.push((node, blocks));
    }
    assert_eq!((server.given(), expected.len()), (expected, 36));
    assert!(server.with(|kept| kept.conflicts) > 0, "nobody was in anybody's way");
    let (_, blocks) = &views[0];
    let full = pool().take(blocks, &owner(9, 0), &Ask::default()).await.unwrap_err();
    assert!(matches!(full, PoolError::Exhausted { .. }), "{full}");
    for (node, blocks) in &views {
        for pod in 0..6 {
            release(blocks, "p", &owner(*node, pod)).await.unwrap();
        }
    }
    assert!(server.given().values().all(|it| !["pod0", "pod5"].contains(&it.holder.as_str())));
    let (node, blocks) = &views[1];
    blocks.refresh().await.unwrap();
    assert_eq!(collect(blocks, "p", &format!("node{node}"), |_, _| false).await.unwrap(), 6);
    assert_eq!(bury(blocks, "p", |_| true).await.unwrap(), 12);
    assert_eq!(server.with(|kept| kept.blocks.len()), 0);
}

#[tokio::test]
async fn one_node_alone_asks_for_nothing_but_what_it_changes() {
    let server = BlockServer::start().await;
    let blocks = server.blocks();
    for pod in 0..5 {
        pool().take(&blocks, &owner(0, pod), &Ask::default()).await.unwrap();
    }
    for pod in 0..5 {
        release(&blocks, "p", &owner(0, pod)).await.unwrap();
    }
    assert_eq!(server.with(|kept| (kept.lists, kept.conflicts, kept.blocks.len())), (0, 0, 0));
}

#[tokio::test]
async fn an_api_server_that_cannot_is_no_reason_to_give_an_address() {
    let server = BlockServer::start().await;
    let blocks = server.blocks();
    server.with(|kept| kept.is_ill = true);
    let failed = pool().take(&blocks, &owner(0, 0), &Ask::default()).await.unwrap_err();
    assert!(matches!(failed, PoolError::Blocks(BlocksError::Away(_))), "{failed}");
    server.with(|kept| kept.is_ill = false);
    pool().take(&blocks, &owner(0, 0), &Ask::default()).await.unwrap();
    server.with(|kept| kept.is_ill = true);
    assert!(release(&blocks, "p", &owner(0, 0)).await.is_err());
    assert_eq!(server.given().len(), 1);
}
