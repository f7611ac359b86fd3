//! Devices offered to a pretended kubelet, which does what the real one does: it clears its folder when it starts, and
//! asks a plugin back while that registers.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use penstock_control::deviceplugin::proto::device_plugin_client::DevicePluginClient;
use penstock_control::deviceplugin::proto::registration_server::{Registration, RegistrationServer};
use penstock_control::deviceplugin::proto::*;
use penstock_control::deviceplugin::{Offer, run};
use penstock_control::sysfs::Sysfs;
use tokio::net::UnixListener;
use tokio::task::JoinSet;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Code, Request, Response, Status};

use crate::dataplane::{Pretended, socket};
use crate::wait_until;

/// What the kubelet knows of one resource.
#[derive(Debug, Default, Clone)]
struct Known {
    registered: usize,
    options: DevicePluginOptions,
    /// How often devices were listed.
    lists: usize,
    devices: Vec<Device>,
}

type Resources = Arc<Mutex<std::collections::BTreeMap<String, Known>>>;

/// A pretended kubelet.
struct Kubelet {
    folder: PathBuf,
    known: Resources,
    tasks: JoinSet<()>,
    watches: Arc<Mutex<JoinSet<()>>>,
}

impl Kubelet {
    fn start(folder: &Path) -> Self {
        fs::create_dir_all(folder).unwrap();
        for entry in fs::read_dir(folder).unwrap() {
            fs::remove_file(entry.unwrap().path()).unwrap();
        }
        let listener = UnixListener::bind(folder.join("kubelet.sock")).unwrap();
        let (known, watches) = (Resources::default(), Arc::default());
        let desk =
            Desk { folder: folder.to_owned(), known: Arc::clone(&known), watches: Arc::clone(&watches) };
        let server = Server::builder().add_service(RegistrationServer::new(desk));
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            server.serve_with_incoming(UnixListenerStream::new(listener)).await.unwrap();
        });
        Self { folder: folder.to_owned(), known, tasks, watches }
    }

    async fn end(mut self) {
        self.tasks.shutdown().await;
        self.watches.lock().unwrap().abort_all();
    }

    fn known(&self, resource: &str) -> Known {
        self.known.lock().unwrap().get(resource).cloned().unwrap_or_default()
    }

    fn healthy(&self, resource: &str) -> usize {
        self.known(resource).devices.iter().filter(|device| device.health == "Healthy").count()
    }

    async fn plugin(&self, socket: &str) -> DevicePluginClient<Channel> {
        plugin(&self.folder.join(socket)).await
    }
}

async fn plugin(socket: &Path) -> DevicePluginClient<Channel> {
    let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display())).unwrap();
    DevicePluginClient::new(endpoint.connect().await.unwrap())
}

struct Desk {
    folder: PathBuf,
    known: Resources,
    watches: Arc<Mutex<JoinSet<()>>>,
}

#[tonic::async_trait]
impl Registration for Desk {
    async fn register(&self, request: Request<RegisterRequest>) -> Result<Response<Empty>, Status> {
        let request = request.into_inner();
        assert_eq!(request.version, "v1beta1");
        let mut plugin = plugin(&self.folder.join(&request.endpoint)).await;
        let options = plugin.get_device_plugin_options(Empty {}).await.unwrap().into_inner();
        assert_eq!(Some(&options), request.options.as_ref());
        let resource = request.resource_name.clone();
        {
            let mut known = self.known.lock().unwrap();
            let entry = known.entry(resource.clone()).or_default();
            entry.registered += 1;
            entry.options = options;
        }
        let known = Arc::clone(&self.known);
        self.watches.lock().unwrap().spawn(async move {
            let mut lists = plugin.list_and_watch(Empty {}).await.unwrap().into_inner();
            while let Ok(Some(list)) = lists.message().await {
                let mut known = known.lock().unwrap();
                let entry = known.entry(resource.clone()).or_default();
                entry.lists += 1;
                entry.devices = list.devices;
            }
        });
        Ok(Response::new(Empty {}))
    }
}

const SOCKETS: &str = "penstock.dev/vhost-user";

/// What an offer needs, in a folder that goes with it.
struct Ground {
    folder: tempfile::TempDir,
    dataplane: PathBuf,
}

impl Ground {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap(), dataplane: socket() }
    }

    fn kubelet(&self) -> PathBuf {
        self.folder.path().join("kubelet")
    }

    fn offer(&self) -> Offer {
        Offer {
            kubelet: self.kubelet(),
            dataplane: self.dataplane.clone(),
            devices: self.folder.path().join("devices"),
            vhost_user: 3,
            functions: Vec::new(),
            sysfs: Sysfs::default(),
            grace: Duration::from_millis(200),
        }
    }
}

/// The agent as a program, ended with the test.
struct Agent(Child);

impl Drop for Agent {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

#[tokio::test]
async fn a_pod_gets_the_folder_of_its_socket_before_it_is_attached() {
    let ground = Ground::new();
    let dataplane = Pretended::start(&ground.dataplane, Vec::new());
    let kubelet = Kubelet::start(&ground.kubelet());
    let manifests = ground.folder.path().join("manifests");
    fs::create_dir(&manifests).unwrap();
    let offer = ground.offer();
    let mut agent = Command::new(env!("CARGO_BIN_EXE_penstock-agent"));
    agent.args(["--node", "a", "--vhost-user-devices", "3", "--manifests"]).arg(&manifests);
    agent.arg("--socket").arg(&ground.dataplane).arg("--devices").arg(&offer.devices);
    agent.arg("--device-plugins").arg(&offer.kubelet).stderr(Stdio::null());
    let _agent = Agent(agent.spawn().unwrap());
    wait_until("three devices are healthy", || kubelet.healthy(SOCKETS) == 3).await;
    let known = kubelet.known(SOCKETS);
    assert!(known.options.get_preferred_allocation_available && !known.options.pre_start_required);
    // The pretended dataplane's worker has processor 0, and that has its node wherever this runs.
    let nodes = &known.devices[0].topology.as_ref().unwrap().nodes;
    assert_eq!(nodes[..], [NumaNode { id: 0 }]);

    let mut plugin = kubelet.plugin("penstock-vhost-user.sock").await;
    let ids: Vec<String> = known.devices.into_iter().map(|device| device.id).collect();
    let asked = ContainerPreferredAllocationRequest {
        available_device_i_ds: ids.clone(),
        must_include_device_i_ds: vec![ids[2].clone()],
        allocation_size: 2,
    };
    let request = PreferredAllocationRequest { container_requests: vec![asked] };
    let preferred = plugin.get_preferred_allocation(request).await.unwrap().into_inner();
    let devices_ids = preferred.container_responses[0].device_i_ds.clone();
    assert_eq!(devices_ids, [ids[2].clone(), ids[0].clone()]);

    let allocate = |devices_ids: Vec<String>| AllocateRequest {
        container_requests: vec![ContainerAllocateRequest { devices_ids }],
    };
    let granted = plugin.allocate(allocate(devices_ids.clone())).await.unwrap().into_inner();
    let granted = &granted.container_responses[0];
    assert_eq!(granted.mounts.len(), 2);
    for (mount, id) in granted.mounts.iter().zip(&devices_ids) {
        assert_eq!((&mount.host_path, mount.read_only), (&mount.container_path, false));
        assert_eq!(Path::new(&mount.host_path), offer.devices.join(id));
        assert!(Path::new(&mount.host_path).is_dir());
        assert!(granted.envs["PENSTOCK_VHOST_USER"].split(',').any(|folder| folder == mount.host_path));
    }
    plugin.pre_start_container(PreStartContainerRequest { devices_ids }).await.unwrap();
    let refused = plugin.allocate(allocate(vec!["vhost-user-3".to_owned()])).await.unwrap_err();
    assert_eq!(refused.code(), Code::NotFound);
    assert!(refused.message().contains("penstock.dev/vhost-user"), "{refused}");
    kubelet.end().await;
    drop(_agent);
    dataplane.end().await;
}

#[tokio::test]
async fn a_kubelet_that_begins_anew_is_told_again() {
    let ground = Ground::new();
    let dataplane = Pretended::start(&ground.dataplane, Vec::new());
    // The kubelet comes later than the agent, too.
    let offered = tokio::spawn(run(ground.offer()));
    for _ in 0..3 {
        let kubelet = Kubelet::start(&ground.kubelet());
        wait_until("the kubelet knows of three devices", || kubelet.healthy(SOCKETS) == 3).await;
        assert_eq!(kubelet.known(SOCKETS).registered, 1);
        kubelet.end().await;
    }
    let kubelet = Kubelet::start(&ground.kubelet());
    wait_until("the kubelet knows of three devices", || kubelet.healthy(SOCKETS) == 3).await;
    // One that lets go of its watch has forgotten us, though it is the same.
    kubelet.watches.lock().unwrap().abort_all();
    wait_until("the kubelet is told again", || kubelet.known(SOCKETS).registered == 2).await;
    offered.abort();
    dataplane.end().await;
}

#[tokio::test]
async fn devices_are_as_healthy_as_the_dataplane() {
    let ground = Ground::new();
    let kubelet = Kubelet::start(&ground.kubelet());
    let offered = tokio::spawn(run(ground.offer()));
    wait_until("devices are listed", || kubelet.known(SOCKETS).devices.len() == 3).await;
    assert_eq!(kubelet.healthy(SOCKETS), 0);
    for _ in 0..2 {
        let dataplane = Pretended::start(&ground.dataplane, Vec::new());
        wait_until("devices are healthy with the dataplane", || kubelet.healthy(SOCKETS) == 3).await;
        dataplane.end().await;
        wait_until("devices are not healthy without it", || kubelet.healthy(SOCKETS) == 0).await;
    }
    // All of it was told to one and the same watch.
    assert_eq!(kubelet.known(SOCKETS).registered, 1);
    assert_eq!(kubelet.known(SOCKETS).lists, 5);
    offered.abort();
}

#[tokio::test]
async fn functions_of_cards_are_a_resource_for_each_pool() {
    let ground = Ground::new();
    let sys = ground.folder.path().join("sys");
    let functions = ["0000:3b:02.0", "0000:3b:02.1", "0000:3b:02.2"];
    let card = sys.join("class/net/ens1/device");
    fs::create_dir_all(&card).unwrap();
    for (number, address) in functions.iter().enumerate() {
        let function = sys.join("bus/pci/devices").join(address);
        fs::create_dir_all(&function).unwrap();
        std::os::unix::fs::symlink(function, card.join(format!("virtfn{number}"))).unwrap();
    }
    let pools = ["slow=ens1:0", "fast=ens1:1-7"].map(|pool| pool.parse().unwrap());
    let sysfs = Sysfs::at(&sys);
    let offer = Offer { vhost_user: 0, functions: pools.to_vec(), sysfs, ..ground.offer() };
    let kubelet = Kubelet::start(&ground.kubelet());
    let offered = tokio::spawn(run(offer));
    wait_until("two of them are fast", || kubelet.healthy("penstock.dev/sriov-fast") == 2).await;
    wait_until("one is slow", || kubelet.healthy("penstock.dev/sriov-slow") == 1).await;
    assert_eq!(kubelet.known(SOCKETS).registered, 0);
    let devices_ids = vec![functions[2].to_owned()];
    let request = AllocateRequest { container_requests: vec![ContainerAllocateRequest { devices_ids }] };
    let mut fast = kubelet.plugin("penstock-sriov-fast.sock").await;
    let granted = fast.allocate(request.clone()).await.unwrap().into_inner();
    assert_eq!(granted.container_responses[0].envs["PCIDEVICE_PENSTOCK_DEV_SRIOV_FAST"], functions[2]);
    let mut slow = kubelet.plugin("penstock-sriov-slow.sock").await;
    assert_eq!(slow.allocate(request).await.unwrap_err().code(), Code::NotFound);
    offered.abort();
}
