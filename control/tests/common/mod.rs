//! A daemon that only pretends: it answers every call with the same sound rows, on a socket of its own.

#![allow(clippy::unwrap_used, reason = "the whole file is a test's")]

mod stateful;

use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use penstock_api::convert::{keys_from_proto, objects_from_proto};
use penstock_api::model::{Key, Object};
use penstock_api::proto::dataplane_server::Dataplane;
use penstock_api::proto::{self, *};
use penstock_api::query::{
    CaptureOrder, ConnectionQuery, EventOrder, FlowQuery, PolicyQuery, Question, ServiceQuery, refusal,
};
use tokio::net::UnixListener;
use tokio::sync::oneshot;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status};

/// What the pretended daemon was told.
#[derive(Debug, Default)]
pub(crate) struct Told {
    pub(crate) objects: Mutex<Vec<Object>>,
    pub(crate) deleted: Mutex<Vec<Key>>,
    pub(crate) questions: Mutex<Vec<Question>>,
    pub(crate) flow_queries: Mutex<Vec<FlowQuery>>,
    pub(crate) connection_queries: Mutex<Vec<ConnectionQuery>>,
    pub(crate) policy_queries: Mutex<Vec<PolicyQuery>>,
    pub(crate) service_queries: Mutex<Vec<ServiceQuery>>,
    pub(crate) event_orders: Mutex<Vec<EventOrder>>,
    /// Grows with every look, so that there is something to see in rates.
    looks: AtomicU64,
}

/// A pretended daemon, stopped and cleaned up when dropped.
pub(crate) struct Daemon {
    pub(crate) socket: PathBuf,
    pub(crate) told: Arc<Told>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Daemon {
    pub(crate) fn start() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let socket = std::env::temp_dir().join(format!("penstock-cli-{}-{number}.sock", std::process::id()));
        let told = Arc::new(Told::default());
        let (stop, stopped) = oneshot::channel::<()>();
        // Bound before this returns, so that no command comes too early.
        let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        listener.set_nonblocking(true).unwrap();
        let service = penstock_api::server(Pretence { told: told.clone() });
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let listener = UnixListenerStream::new(UnixListener::from_std(listener).unwrap());
                let serving =
                    tonic::transport::Server::builder().add_service(service).serve_with_incoming(listener);
                tokio::select! {
                    served = serving => served.unwrap(),
                    _ = stopped => {}
                }
            });
        });
        Self { socket, told, stop: Some(stop), thread: Some(thread) }
    }

    /// The command `penstock` with these words, asking this daemon.
    pub(crate) fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_penstock"));
        command.env("PENSTOCK_SOCKET", &self.socket).args(words);
        command
    }

    pub(crate) fn run(&self, words: &[&str]) -> Output {
        self.command(words).output().unwrap()
    }

    /// What the command printed, which must have gone well.
    pub(crate) fn text(&self, words: &[&str]) -> String {
        let output = self.run(words);
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }
}

impl std::ops::Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.stop.take().unwrap().send(());
        let joined = self.thread.take().unwrap().join();
        let _ = std::fs::remove_file(&self.socket);
        if !std::thread::panicking() {
            joined.unwrap();
        }
    }
}

/// An Ethernet frame with an IPv4 datagram from 10.1.0.7:5353 to 10.2.0.9:53.
pub(crate) fn datagram() -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0];
    frame.extend([0x45, 0, 0, 32, 0, 0, 0x40, 0, 64, 17, 0x26, 0xbb, 10, 1, 0, 7, 10, 2, 0, 9]);
    frame.extend([0x14, 0xe9, 0, 53, 0, 12, 0, 0, 1, 2, 3, 4]);
    frame
}

struct Pretence {
    told: Arc<Told>,
}

impl Pretence {
    fn change(&self, objects: Vec<proto::Object>) -> Response<Applied> {
        Response::new(match objects_from_proto(objects) {
            Ok(objects) if objects.iter().any(|object| object.key().to_string().contains("forbidden")) => {
                let fault =
                    penstock_api::Fault::new("peer \"forbidden\"", "address", "is taken", "choose another");
                Applied::refused(7, vec![fault])
            }
            Ok(objects) => {
                *self.told.objects.lock().unwrap() = objects;
                Applied::live(8, Duration::from_micros(420))
            }
            Err(faults) => Applied::refused(7, faults),
        })
    }

    fn looks(&self) -> u64 {
        self.told.looks.fetch_add(1, Ordering::Relaxed)
    }
}

#[tonic::async_trait]
impl Dataplane for Pretence {
    async fn upsert(&self, request: Request<UpsertRequest>) -> Result<Response<Applied>, Status> {
        Ok(self.change(request.into_inner().objects))
    }

    async fn delete(&self, request: Request<DeleteRequest>) -> Result<Response<Applied>, Status> {
        *self.told.deleted.lock().unwrap() = keys_from_proto(request.into_inner().keys).unwrap();
        Ok(Response::new(Applied::live(9, Duration::from_millis(3))))
    }

    async fn resync(&self, request: Request<ResyncRequest>) -> Result<Response<Applied>, Status> {
        Ok(self.change(request.into_inner().objects))
    }

    async fn get_status(&self, _: Request<StatusRequest>) -> Result<Response<NodeStatus>, Status> {
        let looks = self.looks();
        Ok(Response::new(NodeStatus {
            name: "node-a".into(),
            version: "0.1.0".into(),
            uptime_ms: 11_520_000,
            generation: 12,
            live_generation: 12,
            workers: 2,
            hugepages: "64 MiB in 2 MiB pages".into(),
            ports: 3,
            flows: 1234,
            rx_packets: 1_000_000 + looks * 1000,
            rx_bytes: 64_000_000 + looks * 64_000,
            underlay_addresses: vec!["192.0.2.1".into()],
            frames: Some(FrameCensus { free: 14_000, user: 0, fill: 2_048, tx: 336 }),
            warnings: vec!["uplink \"u0\" copies: its driver has no zero-copy".into()],
            ..Default::default()
        }))
    }

    async fn list_ports(&self, _: Request<PortsRequest>) -> Result<Response<PortList>, Status> {
        let looks = self.looks();
        let port = |id: u32, name: &str| Port {
            id,
            name: name.into(),
            kind: "xsk".into(),
            interface: format!("veth-{name}"),
            xdp: "native".into(),
            copy: "copy".into(),
            mtu: 1450,
            state: "up".into(),
            rx_packets: 1500 + looks * 100,
            rx_bytes: 96_000,
            kernel: Some(XdpStatistics { rx_ring_full: 5, ..Default::default() }),
            ..Default::default()
        };
        Ok(Response::new(PortList { ports: vec![port(1, "web"), port(2, "db")] }))
    }

    async fn list_workers(&self, _: Request<WorkersRequest>) -> Result<Response<WorkerList>, Status> {
        let looks = self.looks();
        let worker = Worker {
            id: 0,
            cpu: Some(3),
            state: "running".into(),
            busy_percent: 42.4,
            rx_packets: 10_000 + looks * 10,
            lookups: Some(CacheLookups {
                hit: 9000 + looks * 9,
                stale: 10,
                miss: 900 + looks,
                slow_only: 90,
            }),
            cache_entries: 512,
            cache_capacity: 65_536,
            frames: Some(FrameCensus { free: 100, user: 1, fill: 2000, tx: 3 }),
            restarts: 1,
            last_panic: "index out of bounds".into(),
            cycles_per_packet: 58.0,
            ..Default::default()
        };
        Ok(Response::new(WorkerList { workers: vec![worker] }))
    }

    type ListFlowsStream = tokio_stream::Iter<std::vec::IntoIter<Result<Flow, Status>>>;

    async fn list_flows(
        &self,
        request: Request<FlowsRequest>,
    ) -> Result<Response<Self::ListFlowsStream>, Status> {
        let query = FlowQuery::try_from(request.into_inner()).map_err(|faults| refusal(&faults))?;
        let flow = Flow {
            network: "blue".into(),
            zone: "endpoint web".into(),
            source: "fd00::7".into(),
            destination: "fd00::9".into(),
            protocol: 17,
            source_port: 5353,
            destination_port: 53,
            action: "vxlan to node-b".into(),
            out_port: "u0".into(),
            packets: 12_345,
            bytes: 1_000_000,
            idle_ms: 40,
            ..Default::default()
        };
        let most = query.limit.unwrap_or(u32::MAX).min(3) as usize;
        self.told.flow_queries.lock().unwrap().push(query);
        let flows: Vec<_> = (0..3).map(|worker| Ok(Flow { worker, ..flow.clone() })).take(most).collect();
        Ok(Response::new(tokio_stream::iter(flows)))
    }

    async fn list_drops(&self, request: Request<DropsRequest>) -> Result<Response<DropList>, Status> {
        let row = |reason: &str, packets| proto::Drop {
            reason: reason.into(),
            sentence: format!("what {reason} means"),
            packets,
        };
        let mut drops = vec![row("unknown-vni", 17 + self.looks() * 5)];
        if request.into_inner().all {
            drops.push(row("spoofed-source", 0));
        }
        Ok(Response::new(DropList { drops }))
    }

    async fn list_routes(&self, request: Request<RoutesRequest>) -> Result<Response<RouteList>, Status> {
        let network = request.into_inner().network;
        let row = |network: &str, prefix: &str, target: &str, origin: &str| RouteRow {
            network: network.into(),
            prefix: prefix.into(),
            target: target.into(),
            origin: origin.into(),
        };
        let mut routes = vec![
            row("blue", "10.1.0.7/32", "endpoint web", "implied"),
            row("red", "10.1.2.0/24", "peer node-b", "config"),
        ];
        routes.retain(|route| network.is_empty() || route.network == network);
        Ok(Response::new(RouteList { routes }))
    }

    async fn list_peers(&self, _: Request<PeersRequest>) -> Result<Response<PeerList>, Status> {
        let peer = PeerRow {
            name: "node-b".into(),
            address: "192.0.2.2".into(),
            reachable: true,
            mac: "02:00:00:00:00:02".into(),
            interface: "eth0".into(),
            mtu: 1500,
            learnt_mtu: Some(1400),
            templates: 2,
            ..Default::default()
        };
        Ok(Response::new(PeerList { peers: vec![peer] }))
    }

    async fn list_objects(&self, _: Request<ObjectsRequest>) -> Result<Response<ObjectList>, Status> {
        let objects = self.told.objects.lock().unwrap().iter().map(proto::Object::from).collect();
        Ok(Response::new(ObjectList { objects }))
    }

    type ListConnectionsStream = tokio_stream::Iter<std::vec::IntoIter<Result<Connection, Status>>>;

    async fn list_connections(
        &self,
        request: Request<ConnectionsRequest>,
    ) -> Result<Response<Self::ListConnectionsStream>, Status> {
        let query = ConnectionQuery::try_from(request.into_inner()).map_err(|faults| refusal(&faults))?;
        let most = query.limit.unwrap_or(u32::MAX) as usize;
        self.told.connection_queries.lock().unwrap().push(query);
        let connections: Vec<_> = stateful::connections().into_iter().take(most).map(Ok).collect();
        Ok(Response::new(tokio_stream::iter(connections)))
    }

    /// The tier "unserved" stands for a daemon that cannot say yet.
    async fn list_policies(&self, request: Request<PoliciesRequest>) -> Result<Response<PolicyList>, Status> {
        let query = PolicyQuery::try_from(request.into_inner()).map_err(|faults| refusal(&faults))?;
        if query.tier.as_ref().is_some_and(|tier| tier.as_str() == "unserved") {
            return Err(Status::unimplemented("this daemon does not count what policies decide yet"));
        }
        let tiers = stateful::policies(query.staged);
        self.told.policy_queries.lock().unwrap().push(query);
        Ok(Response::new(PolicyList { tiers }))
    }

    async fn list_services(
        &self,
        request: Request<ServicesRequest>,
    ) -> Result<Response<ServiceList>, Status> {
        let query = ServiceQuery::try_from(request.into_inner()).map_err(|faults| refusal(&faults))?;
        self.told.service_queries.lock().unwrap().push(query);
        Ok(Response::new(ServiceList { services: stateful::services() }))
    }

    type WatchEventsStream = tokio_stream::wrappers::ReceiverStream<Result<Event, Status>>;

    /// Two events and the end; the endpoint "silent" has none, and no end either.
    async fn watch_events(
        &self,
        request: Request<EventsRequest>,
    ) -> Result<Response<Self::WatchEventsStream>, Status> {
        let order = EventOrder::try_from(request.into_inner()).map_err(|faults| refusal(&faults))?;
        let (send, receive) = tokio::sync::mpsc::channel(16);
        let is_silent = order.endpoint.as_ref().is_some_and(|endpoint| endpoint.as_str() == "silent");
        self.told.event_orders.lock().unwrap().push(order.clone());
        tokio::spawn(async move {
            if is_silent {
                send.closed().await;
                return;
            }
            for event in stateful::events().into_iter().filter(|event| order.wants(event)) {
                if send.send(Ok(event)).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(tokio_stream::wrappers::ReceiverStream::new(receive)))
    }

    async fn explain(&self, request: Request<ExplainRequest>) -> Result<Response<Explanation>, Status> {
        let question = Question::try_from(request.into_inner()).map_err(|faults| refusal(&faults))?;
        self.told.questions.lock().unwrap().push(question);
        let step = |stage: &str, decision: &str| ExplainStep {
            stage: stage.into(),
            decision: decision.into(),
            detail: format!("why {decision}"),
            fact: (stage == "route").then(|| {
                explain_step::Fact::Route(RouteFact { network: "blue".into(), prefix: "10.1.2.0/24".into() })
            }),
        };
        Ok(Response::new(Explanation {
            steps: vec![step("zone", "endpoint web"), step("route", "peer node-b")],
            verdict: "leaves by u0 in VXLAN".into(),
            delivered: true,
        }))
    }

    type CaptureStream = tokio_stream::wrappers::ReceiverStream<Result<CapturedFrame, Status>>;

    /// The port "silent" never sees a frame; any other sees `count` datagrams, or two and then the end.
    async fn capture(
        &self,
        request: Request<CaptureRequest>,
    ) -> Result<Response<Self::CaptureStream>, Status> {
        let order = CaptureOrder::try_from(request.into_inner()).map_err(|faults| refusal(&faults))?;
        let (send, receive) = tokio::sync::mpsc::channel(16);
        if order.port == "nowhere" {
            return Err(Status::not_found("there is no port \"nowhere\"; see `penstock ports`"));
        }
        tokio::spawn(async move {
            if order.port == "silent" {
                send.closed().await;
                return;
            }
            for i in (0..order.count.unwrap_or(2)).filter(|_| order.filter.matches(&datagram())) {
                let mut data = datagram();
                let length = data.len() as u32;
                data.truncate(order.snaplen.unwrap_or(u32::MAX) as usize);
                let frame = CapturedFrame {
                    timestamp_ns: 1_700_000_000_000_000_000 + i,
                    port: order.port.clone(),
                    length,
                    data,
                    ..Default::default()
                };
                if send.send(Ok(frame)).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(tokio_stream::wrappers::ReceiverStream::new(receive)))
    }
}
