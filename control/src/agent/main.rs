//! `penstock-agent`: drives a node's dataplane as its cluster wants.

#![forbid(unsafe_code)]

use std::io::IsTerminal;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, ValueEnum};
use penstock_api::DEFAULT_SOCKET;
use penstock_api::model::Name;
use penstock_control::agent::{Attaching, Options, Source, run};
use penstock_control::attach::{FaultPoint, FaultPoints, Footprint, Functions};
use penstock_control::deviceplugin::{FunctionPool, GRACE, Offer, disjoint};
use penstock_control::push::Dataplane;
use penstock_control::sysfs::Sysfs;
use tracing_subscriber::EnvFilter;

const EXAMPLES: &str = "\
Examples:
  penstock-agent --node $(hostname)                              in a pod of the cluster, by its service account
  penstock-agent --node node1 --kubeconfig /etc/penstock/agent.kubeconfig
  penstock-agent --node edge1 --manifests /etc/penstock/manifests    without an API server
  PENSTOCK_LOG=debug penstock-agent …                            levels: error, warn, info, debug, trace

Signals: TERM and INT end it; the dataplane goes on with what it has.";

/// The Penstock agent: drives a node's dataplane as Kubernetes, or a directory of manifests, wants.
#[derive(Debug, Parser)]
#[command(name = "penstock-agent", version, after_help = EXAMPLES)]
struct Arguments {
    /// The node that it works for, as Kubernetes calls it.
    #[arg(long, env = "NODE_NAME", value_name = "NAME")]
    node: Name,
    /// A kubeconfig; the pod's own account, KUBECONFIG and ~/.kube/config are tried when there is none.
    #[arg(long, value_name = "FILE", conflicts_with = "manifests")]
    kubeconfig: Option<PathBuf>,
    /// A directory of manifests in the place of an API server; it is read whenever it changes.
    #[arg(long, value_name = "DIR")]
    manifests: Option<PathBuf>,
    /// The dataplane's socket.
    #[arg(long, env = "PENSTOCK_SOCKET", default_value = DEFAULT_SOCKET, value_name = "PATH")]
    socket: PathBuf,
    /// Where /metrics, /healthz and /readyz are served, as in 127.0.0.1:9470; nowhere when absent.
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<SocketAddr>,
    /// Where the CNI plugin asks for pods to be attached, as in /run/penstock/cni.sock; none is attached when absent.
    #[arg(long, env = "PENSTOCK_CNI_SOCKET", value_name = "PATH")]
    cni_socket: Option<PathBuf>,
    /// The folder of the records of what is attached.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/penstock/attachments")]
    records: PathBuf,
    /// The folder for vhost-user pods' sockets.
    #[arg(long, value_name = "DIR", default_value = "/run/penstock/pods")]
    sockets: PathBuf,
    /// The folder in which a device plugin's devices have theirs.
    #[arg(long, value_name = "DIR", default_value = "/run/penstock/devices")]
    devices: PathBuf,
    /// The kubelet's folder of pods: a volume called shared-dir gets the socket of its vhost-user pod.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/kubelet/pods")]
    kubelet_pods: PathBuf,
    /// An address that no pod gets, besides those of the node: the host port's, say.
    #[arg(long, value_name = "ADDRESS")]
    reserve: Vec<IpAddr>,
    /// End as at a loss of power, for tests.
    #[arg(long, value_name = "POINT", hide = true)]
    die_at: Option<FaultPoint>,
    /// The kubelet's folder of device plugins, as in /var/lib/kubelet/device-plugins: pods can ask for vhost-user sockets
    /// by the resource penstock.dev/vhost-user; nothing is offered when absent.
    #[arg(long, env = "PENSTOCK_DEVICE_PLUGINS", value_name = "DIR")]
    device_plugins: Option<PathBuf>,
    /// How many vhost-user sockets pods can ask for; 0 for no such resource.
    #[arg(long, value_name = "COUNT", default_value_t = 64)]
    vhost_user_devices: u32,
    /// Functions of network cards that pods can ask for by the resource penstock.dev/sriov-NAME, as in
    /// fast=ens1f0:0-7,ens1f1; may be given several times.
    #[arg(long, value_name = "NAME=CARD[:FIRST-LAST][,…]", requires = "device_plugins")]
    sriov: Vec<FunctionPool>,
    /// The namespace of the lease that one agent of the cluster holds.
    #[arg(long, env = "POD_NAMESPACE", default_value = "kube-system", value_name = "NAME")]
    namespace: String,
    /// How the log is written.
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
}

/// How the log is written.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum LogFormat {
    /// Lines for people.
    Text,
    /// An object of JSON a line.
    Json,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    start_log(arguments.log_format);
    if let Err(fault) = disjoint(&arguments.sriov) {
        tracing::error!("--sriov: {fault}");
        return ExitCode::FAILURE;
    }
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!("no runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    let source = match arguments.manifests {
        Some(path) => Source::Manifests(path),
        None => Source::Kubernetes { kubeconfig: arguments.kubeconfig },
    };
    let attaching = arguments.cni_socket.map(|socket| Attaching {
        socket,
        records: arguments.records,
        sockets: arguments.sockets.clone(),
        devices: arguments.devices.clone(),
        kubelet_pods: arguments.kubelet_pods,
        reserved: arguments.reserve,
        functions: Functions::default(),
        faults: FaultPoints(arguments.die_at),
    });
    let footprint = Footprint { sockets: arguments.sockets, devices: arguments.devices.clone() };
    let devices = arguments.device_plugins.map(|kubelet| Offer {
        kubelet,
        dataplane: arguments.socket.clone(),
        devices: arguments.devices,
        vhost_user: arguments.vhost_user_devices,
        functions: arguments.sriov,
        sysfs: Sysfs::default(),
        grace: GRACE,
    });
    let options = Options {
        node: arguments.node,
        source,
        dataplane: Dataplane { socket: arguments.socket, attached: attaching.is_some().then_some(footprint) },
        namespace: arguments.namespace,
        listen: arguments.listen,
        attaching,
        devices,
    };
    match runtime.block_on(run(options)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn start_log(format: LogFormat) {
    let filter = EnvFilter::try_from_env("PENSTOCK_LOG");
    let told = filter.is_ok() || std::env::var_os("PENSTOCK_LOG").is_none();
    let filter = filter.unwrap_or_else(|_| EnvFilter::new("info"));
    let log =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
    match format {
        LogFormat::Text => log.with_ansi(std::io::stderr().is_terminal()).init(),
        LogFormat::Json => log.json().init(),
    }
    if !told {
        tracing::warn!(
            "PENSTOCK_LOG is no filter, so it is not heeded; write, for example, PENSTOCK_LOG=debug"
        );
    }
}
