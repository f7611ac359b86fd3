//! The whole agent with a directory of manifests in the place of an API server.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use penstock_control::agent::{Options, Source, run};
use penstock_control::push::Dataplane;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use crate::dataplane::{Pretended, socket};
use crate::wait_until;

/// A directory that is removed at the end.
struct Directory(PathBuf);

impl Directory {
    fn new() -> Self {
        let path = socket().with_extension("manifests");
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    /// Writes a file as careful programs do: whole or not at all.
    fn write(&self, name: &str, text: &str) {
        let draft = self.0.join(".draft");
        std::fs::write(&draft, text).unwrap();
        std::fs::rename(&draft, self.0.join(name)).unwrap();
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).unwrap();
    }
}

async fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

fn start(directory: &Path, socket: &Path, listen: SocketAddr) -> JoinHandle<()> {
    let options = Options {
        node: "a".parse().unwrap(),
        source: Source::Manifests(directory.to_owned()),
        dataplane: Dataplane { socket: socket.to_owned(), attached: None },
        namespace: "kube-system".to_owned(),
        listen: Some(listen),
        attaching: None,
        devices: None,
    };
    tokio::spawn(async move { run(options).await.unwrap() })
}

/// The status and the body of an answer.
async fn ask(address: SocketAddr, path: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect(address).await.ok()?;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes()).await.ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await.ok()?;
    let (head, body) = text.split_once("\r\n\r\n")?;
    Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
}

const NODES: &str = "
apiVersion: v1
kind: Node
metadata: {name: a}
spec: {podCIDRs: [10.244.1.0/24]}
status: {addresses: [{type: InternalIP, address: 192.0.2.1}]}
---
apiVersion: v1
kind: Node
metadata: {name: b}
spec: {podCIDRs: [10.244.2.0/24]}
status: {addresses: [{type: InternalIP, address: 192.0.2.2}]}
";

fn pod(name: &str, labels: &str, address: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop, labels: {{{labels}}}}}\nspec: {{nodeName: a, containers: []}}\n\
         status: {{phase: Running, podIP: {address}, podIPs: [{{ip: {address}}}]}}\n"
    )
}

const POLICY: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: closed, namespace: shop}
spec: {podSelector: {matchLabels: {app: db}}, policyTypes: [Ingress]}
";

fn policies(dataplane: &Pretended) -> usize {
    dataplane.keys().iter().filter(|key| key.starts_with("policy")).count()
}

#[tokio::test]
async fn a_dataplane_follows_a_directory_and_a_broken_file_changes_nothing() {
    let (directory, socket) = (Directory::new(), socket());
    let dataplane = Pretended::start(&socket, Vec::new());
    directory.write("nodes.yaml", NODES);
    directory.write("pods.yaml", &pod("db", "app: db", "10.244.1.1"));
    let listen = free_address().await;
    let agent = start(&directory.0, &socket, listen);
    wait_until("the other node is a peer", || dataplane.keys().contains(&"peer \"b\"".to_owned())).await;
    assert_eq!(policies(&dataplane), 0);

    directory.write("policy.yaml", POLICY);
    wait_until("the policy is there", || policies(&dataplane) == 1).await;
    let held = dataplane.keys();
    // Broken files, and one that says what another says already.
    directory.write("policy.yaml", "apiVersion: [");
    directory.write("again.yaml", NODES);
    directory.write("mark.yaml", &POLICY.replace("closed", "mark"));
    wait_until("the last file was read", || policies(&dataplane) == 2).await;
    assert!(held.iter().all(|key| dataplane.keys().contains(key)), "{:?}", dataplane.keys());

    std::fs::remove_file(directory.0.join("policy.yaml")).unwrap();
    std::fs::remove_file(directory.0.join("mark.yaml")).unwrap();
    wait_until("the policies are gone", || policies(&dataplane) == 0).await;

    assert_eq!(ask(listen, "/readyz").await.unwrap(), (200, "ok\n".to_owned()));
    assert_eq!(ask(listen, "/healthz").await.unwrap().0, 200);
    let (status, metrics) = ask(listen, "/metrics").await.unwrap();
    assert_eq!(status, 200);
    for name in ["penstock_agent_news_total", "penstock_agent_dataplane_live_after_seconds_bucket"] {
        assert!(metrics.contains(name), "{metrics}");
    }
    assert_eq!(ask(listen, "/").await.unwrap().0, 404);
    agent.abort();
    dataplane.end().await;
}

#[tokio::test]
async fn an_agent_without_a_dataplane_lives_and_is_not_ready() {
    let (directory, socket) = (Directory::new(), socket());
    directory.write("nodes.yaml", NODES);
    let listen = free_address().await;
    let agent = start(&directory.0, &socket, listen);
    let mut answer = None;
    for _ in 0..400 {
        answer = ask(listen, "/readyz").await;
        if answer.as_ref().is_some_and(|(_, body)| !body.contains("known yet")) {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    let (status, body) = answer.unwrap();
    assert_eq!((status, body.contains("the dataplane is not there")), (503, true), "{body}");
    assert_eq!(ask(listen, "/healthz").await.unwrap().0, 200);
    let dataplane = Pretended::start(&socket, Vec::new());
    wait_until("the other node is a peer", || dataplane.keys().contains(&"peer \"b\"".to_owned())).await;
    agent.abort();
    dataplane.end().await;
}
