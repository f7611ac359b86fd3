//! The flags of what is done on a node for its pods: attaching them, their addresses, installing the CNI plugin.

use std::net::IpAddr;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use ipnet::IpNet;
use penstock_cni::config::DEFAULT_SOCKET;
use penstock_control::attach::FaultPoint;

/// Where the agent is asked about addresses.
#[derive(Debug, Args)]
pub(crate) struct Ipam {
    /// The agent's socket for the CNI plugin
    #[arg(long, value_name = "PATH", default_value = DEFAULT_SOCKET)]
    pub(crate) cni_socket: PathBuf,
    #[command(subcommand)]
    pub(crate) command: IpamCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum IpamCommand {
    /// The addresses that are given, and to whom
    Show,
    /// Whether each address has a container that still is; exit status 1 when one has not
    Check,
    /// Detach what a container left behind, and take its addresses back
    Release {
        /// The container's whole ID, as `show` has it
        container: String,
        /// Its interface
        #[arg(default_value = "eth0")]
        interface: String,
        /// Also when its network namespace is still there
        #[arg(long)]
        force: bool,
    },
}

/// A node without a cluster.
#[derive(Debug, Args)]
pub(crate) struct AttacherArgs {
    /// Where the CNI plugin asks
    #[arg(long, value_name = "PATH", default_value = DEFAULT_SOCKET)]
    pub(crate) cni_socket: PathBuf,
    /// The folder of the records of what is attached
    #[arg(long, value_name = "DIR", default_value = "/var/lib/penstock/attachments")]
    pub(crate) records: PathBuf,
    /// The folder for vhost-user pods' sockets
    #[arg(long, value_name = "DIR", default_value = "/run/penstock/pods")]
    pub(crate) sockets: PathBuf,
    /// The folder in which a device plugin's devices have theirs
    #[arg(long, value_name = "DIR", default_value = "/run/penstock/devices")]
    pub(crate) devices: PathBuf,
    /// The kubelet's folder of pods: a volume called shared-dir gets the socket of its vhost-user pod
    #[arg(long, value_name = "DIR", default_value = "/var/lib/kubelet/pods")]
    pub(crate) kubelet_pods: PathBuf,
    /// The dataplane's network where the plugin's configuration names none
    #[arg(long, value_name = "NAME", default_value = "default")]
    pub(crate) network: String,
    /// A prefix that addresses are given from where the plugin's configuration names none; one of each family at most
    #[arg(long, value_name = "PREFIX")]
    pub(crate) range: Vec<IpNet>,
    /// An address that no container gets, e.g. the node's own in the network
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) reserve: Vec<IpAddr>,
    /// End as at a loss of power, for tests
    #[arg(long, value_name = "POINT", hide = true)]
    pub(crate) die_at: Option<FaultPoint>,
}

/// Where the CNI plugin is installed.
#[derive(Debug, Args)]
pub(crate) struct CniFolders {
    /// The folder of the runtime's plugins
    #[arg(long, value_name = "DIR", default_value = "/opt/cni/bin")]
    pub(crate) binaries: PathBuf,
    /// The folder of the runtime's network configurations
    #[arg(long, value_name = "DIR", default_value = "/etc/cni/net.d")]
    pub(crate) configurations: PathBuf,
    /// The configuration's file name; runtimes take the first in alphabetical order
    #[arg(long, value_name = "NAME", default_value = "05-penstock.conflist")]
    pub(crate) conf_name: String,
}

/// What is installed.
#[derive(Debug, Args)]
pub(crate) struct InstallCni {
    #[command(flatten)]
    pub(crate) folders: CniFolders,
    /// The plugin's binary; penstock-cni beside this program when absent
    #[arg(long, value_name = "FILE")]
    pub(crate) binary: Option<PathBuf>,
    /// A configuration to install in place of the usual one
    #[arg(long, value_name = "FILE")]
    pub(crate) conf: Option<PathBuf>,
    /// The agent's socket, in the usual configuration
    #[arg(long, value_name = "PATH", default_value = DEFAULT_SOCKET)]
    pub(crate) cni_socket: PathBuf,
}
