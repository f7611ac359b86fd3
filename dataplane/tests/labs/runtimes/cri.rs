//! The few calls of Kubernetes' container runtime interface (`runtime.v1`) that pods without containers need.

use std::collections::HashMap;
use std::path::Path;

use hyper_util::rt::TokioIo;
use prost::Message;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};

#[derive(Clone, PartialEq, Message)]
pub struct Metadata {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(string, tag = "2")]
    pub uid: String,
    #[prost(string, tag = "3")]
    pub namespace: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct LinuxConfig {
    #[prost(string, tag = "1")]
    pub cgroup_parent: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct PodConfig {
    #[prost(message, optional, tag = "1")]
    pub metadata: Option<Metadata>,
    #[prost(string, tag = "2")]
    pub hostname: String,
    #[prost(message, optional, tag = "8")]
    pub linux: Option<LinuxConfig>,
}

#[derive(Clone, PartialEq, Message)]
pub struct RunRequest {
    #[prost(message, optional, tag = "1")]
    pub config: Option<PodConfig>,
}

/// The number of a sandbox, which several calls ask with or answer by.
#[derive(Clone, PartialEq, Message)]
pub struct Sandbox {
    #[prost(string, tag = "1")]
    pub id: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct StatusRequest {
    #[prost(string, tag = "1")]
    pub id: String,
    #[prost(bool, tag = "2")]
    pub verbose: bool,
}

#[derive(Clone, PartialEq, Message)]
pub struct Ip {
    #[prost(string, tag = "1")]
    pub ip: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct Network {
    #[prost(string, tag = "1")]
    pub ip: String,
    #[prost(message, repeated, tag = "2")]
    pub further: Vec<Ip>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Status {
    #[prost(message, optional, tag = "5")]
    pub network: Option<Network>,
}

#[derive(Clone, PartialEq, Message)]
pub struct StatusResponse {
    #[prost(message, optional, tag = "1")]
    pub status: Option<Status>,
    #[prost(map = "string, string", tag = "2")]
    pub info: HashMap<String, String>,
}

#[derive(Clone, PartialEq, Message)]
struct Nothing {}

/// A pod that runs.
#[derive(Debug, Clone)]
pub struct Pod {
    pub id: String,
    pub addresses: Vec<String>,
    /// The path of its network namespace.
    pub namespace: String,
}

/// A runtime's socket.
#[derive(Clone)]
pub struct Cri {
    channel: Channel,
}

impl Cri {
    pub fn at(socket: &Path) -> Self {
        let socket = socket.to_owned();
        let connector = tower::service_fn(move |_: Uri| {
            let socket = socket.clone();
            async move { UnixStream::connect(&socket).await.map(TokioIo::new) }
        });
        Self { channel: Endpoint::from_static("http://cri").connect_with_connector_lazy(connector) }
    }

    async fn call<Q, A>(&self, call: &'static str, question: Q) -> Result<A, tonic::Status>
    where
        Q: Message + Send + Sync + 'static,
        A: Message + Default + Send + Sync + 'static,
    {
        let mut grpc = tonic::client::Grpc::new(self.channel.clone());
        grpc.ready().await.map_err(|error| tonic::Status::unavailable(error.to_string()))?;
        let path = tonic::codegen::http::uri::PathAndQuery::from_static(call);
        let codec = tonic_prost::ProstCodec::<Q, A>::default();
        Ok(grpc.unary(tonic::Request::new(question), path, codec).await?.into_inner())
    }

    /// Whether the runtime answers.
    pub async fn answers(&self) -> bool {
        self.call::<_, Nothing>("/runtime.v1.RuntimeService/Version", Nothing {}).await.is_ok()
    }

    /// Starts a pod without containers, as kubelet does before it starts these.
    pub async fn run(&self, name: &str, cgroup: &str) -> Result<Pod, tonic::Status> {
        let metadata =
            Metadata { name: name.into(), uid: format!("uid-of-{name}"), namespace: "default".into() };
        let linux = Some(LinuxConfig { cgroup_parent: cgroup.to_owned() });
        let config = PodConfig { metadata: Some(metadata), hostname: name.into(), linux };
        let run = RunRequest { config: Some(config) };
        let Sandbox { id } = self.call("/runtime.v1.RuntimeService/RunPodSandbox", run).await?;
        let ask = StatusRequest { id: id.clone(), verbose: true };
        let answer: StatusResponse = self.call("/runtime.v1.RuntimeService/PodSandboxStatus", ask).await?;
        let network = answer.status.unwrap_or_default().network.unwrap_or_default();
        let addresses =
            std::iter::once(network.ip).chain(network.further.into_iter().map(|it| it.ip)).collect();
        let info: serde_json::Value = serde_json::from_str(&answer.info["info"]).expect("JSON");
        let namespaces = info["runtimeSpec"]["linux"]["namespaces"].as_array().expect("namespaces");
        let network = namespaces.iter().find(|it| it["type"] == "network").expect("a network namespace");
        Ok(Pod { id, addresses, namespace: network["path"].as_str().expect("a path").to_owned() })
    }

    /// Stops a pod and removes what is left of it.
    pub async fn remove(&self, id: &str) -> Result<(), tonic::Status> {
        for call in
            ["/runtime.v1.RuntimeService/StopPodSandbox", "/runtime.v1.RuntimeService/RemovePodSandbox"]
        {
            self.call::<_, Nothing>(call, Sandbox { id: id.to_owned() }).await?;
        }
        Ok(())
    }
}
