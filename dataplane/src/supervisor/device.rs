//! A device of the node: how it is opened, what it is then, and how it is closed.

use std::fmt;

use penstock_api::model::{self, Attachment};
use penstock_io::pcap::{self, PcapPort, Replay};
use penstock_io::steer::{Role, Steer, SteerError, SteerRules, XdpMode};
use penstock_io::tap::{self, Tap};
use penstock_io::xsk::{BusyPoll, CopyMode, Transfer};
use penstock_io::{FramePool, Netdev, NetdevError, Port, XskConfig, XskError, XskPort};
use penstock_vhost::Session;
use penstock_wire::MacAddr;
use thiserror::Error;

use super::vhost::{CannotOpen, Socket};
use super::{POD_FILL, QUIET_POD_FILL, UPLINK_FILL};
use crate::flow::DeviceId;
use crate::port::{AnyPort, PortId};
use crate::tables::desired::Desired;

/// Whose a device is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Owner {
    /// An uplink's, by its name.
    Uplink(String),
    /// An endpoint's, by its name.
    Endpoint(String),
    /// The node's own.
    Host,
}

impl Owner {
    /// The name that ports are called by.
    #[must_use]
    pub fn port_name(&self) -> &str {
        match self {
            Owner::Uplink(name) | Owner::Endpoint(name) => name,
            Owner::Host => "host",
        }
    }
}

/// As faults name objects: `endpoint "web"`.
impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Owner::Uplink(name) => write!(f, "uplink \"{name}\""),
            Owner::Endpoint(name) => write!(f, "endpoint \"{name}\""),
            Owner::Host => f.write_str("host"),
        }
    }
}

/// What a device is opened by. When it changes, the device is closed and opened anew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Spec {
    /// An interface of the underlay; its addresses are left out, which need no other socket.
    Uplink(model::Uplink),
    /// A veth whose other end is a pod's.
    Veth { interface: String, queues: Option<u32>, xdp: model::XdpMode },
    /// A tap whose kernel side is the endpoint's, or the node's.
    Tap { interface: String, queues: Option<u32>, mac: Option<MacAddr>, mtu: Option<u16> },
    /// Capture files.
    Pcap { receive: String, transmit: String },
    /// A vhost-user device.
    Vhost(Socket),
}

impl Spec {
    /// The interface, when there is one, or the socket.
    pub(super) fn interface(&self) -> &str {
        match self {
            Spec::Uplink(uplink) => uplink.interface.as_str(),
            Spec::Veth { interface, .. } | Spec::Tap { interface, .. } => interface,
            Spec::Vhost(socket) => &socket.path,
            Spec::Pcap { .. } => "",
        }
    }

    fn of_endpoint(endpoint: &model::Endpoint) -> Spec {
        let queues = endpoint.queues;
        match &endpoint.attachment {
            Attachment::Veth { interface } => {
                Spec::Veth { interface: interface.to_string(), queues, xdp: endpoint.xdp }
            }
            Attachment::Tap { interface } => {
                let mac = Some(endpoint.mac.get());
                Spec::Tap { interface: interface.to_string(), queues, mac, mtu: endpoint.mtu }
            }
            Attachment::Pcap { receive, transmit } => {
                Spec::Pcap { receive: receive.to_string(), transmit: transmit.to_string() }
            }
            Attachment::VhostUser { socket, role, group, permissions } => Spec::Vhost(Socket {
                name: endpoint.name.to_string(),
                path: socket.to_string(),
                role: *role,
                group: group.clone(),
                permissions: *permissions,
                pairs: queues,
            }),
        }
    }
}

/// The devices that a configuration asks for, uplinks first.
pub(super) fn wanted(desired: &Desired) -> Vec<(Owner, Spec)> {
    let uplinks = desired.uplinks().map(|uplink| {
        let spec = model::Uplink { addresses: Vec::new(), ..uplink.clone() };
        (Owner::Uplink(uplink.name.to_string()), Spec::Uplink(spec))
    });
    let endpoints = desired
        .endpoints()
        .map(|endpoint| (Owner::Endpoint(endpoint.name.to_string()), Spec::of_endpoint(endpoint)));
    let host = desired.host.as_ref().map(|host| {
        (Owner::Host, Spec::Tap { interface: host.interface.to_string(), queues: None, mac: None, mtu: None })
    });
    uplinks.chain(endpoints).chain(host).collect()
}

/// Why a device could not be opened.
#[derive(Debug, Error)]
pub(super) enum OpenError {
    #[error(transparent)]
    Netdev(#[from] NetdevError),
    #[error("interface {interface} is down; ip link set {interface} up")]
    Down { interface: String },
    #[error(transparent)]
    Steer(#[from] SteerError),
    #[error(transparent)]
    Xsk(#[from] XskError),
    #[error(transparent)]
    Tap(#[from] tap::OpenError),
    #[error(transparent)]
    Pcap(#[from] pcap::OpenError),
    #[error(transparent)]
    Vhost(#[from] CannotOpen),
}

/// What a device is told of the network that it is to be part of.
#[derive(Clone, Copy, Debug)]
pub(super) struct Surroundings {
    /// The longest IP packet of its network.
    pub(super) mtu: u16,
    /// The address of a tap that is told none.
    pub(super) mac: MacAddr,
    /// Queues of a tap that is told none.
    pub(super) queues: u32,
}

/// A device whose queues nobody owns yet.
pub(super) struct Opened {
    pub(super) ports: Vec<AnyPort>,
    pub(super) facts: Facts,
    pub(super) steer: Option<Steer>,
    pub(super) session: Option<Session>,
}

/// What an open device is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// The adapter's name.
    pub kind: &'static str,
    /// The interface, or the socket of a vhost-user device; empty for neither.
    pub interface: String,
    /// The interface's number; 0 for none.
    pub ifindex: u32,
    /// The interface's address.
    pub mac: MacAddr,
    /// The longest IP packet in bytes.
    pub mtu: u16,
    /// `native`, `generic` or nothing.
    pub xdp: &'static str,
    /// `zero-copy`, `copy` or nothing; our end of a vhost-user socket, `client` or `server`.
    pub copy: &'static str,
    /// Whether it is a veth: a link without a card that would finish checksums.
    pub veth: bool,
}

/// An open device.
pub struct Device {
    /// Its number.
    pub id: DeviceId,
    /// What it is.
    pub facts: Facts,
    /// Its queues.
    pub queues: Vec<Queue>,
    pub(super) spec: Spec,
    pub(super) steer: Option<Steer>,
    pub(super) session: Option<Session>,
    pub(super) rules: SteerRules,
    /// Its interface went away, or a queue of it broke.
    pub(crate) broken: Option<String>,
}

impl Device {
    /// Whether its interface may be moved to another network namespace and stay what it is.
    pub(super) fn may_move(&self) -> bool {
        matches!(self.spec, Spec::Tap { mac: Some(_), .. })
    }
}

/// A queue of an open device, with a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Queue {
    /// The port's number.
    pub id: PortId,
    /// The worker that owns it.
    pub worker: usize,
}

/// Opens a device.
pub(super) fn open(spec: &Spec, around: &Surroundings, pool: &mut FramePool) -> Result<Opened, OpenError> {
    match spec {
        Spec::Uplink(uplink) => {
            let config = XskConfig {
                fill_level: UPLINK_FILL,
                fill_at_first: UPLINK_FILL,
                copy: copy_mode(uplink.copy),
                busy_poll: uplink.busy_poll.map(|b| BusyPoll { budget: b.budget, timeout_us: b.timeout_us }),
                tx_budget: uplink.tx_budget,
                ..XskConfig::default()
            };
            let netdev = Netdev::named(uplink.interface.as_str())?;
            open_xsk(&netdev, Role::Uplink, uplink.xdp, uplink.queues, &config, pool)
        }
        Spec::Veth { interface, queues, xdp } => {
            let (fill_level, fill_at_first) = (POD_FILL, QUIET_POD_FILL);
            let config = XskConfig { fill_level, fill_at_first, ..XskConfig::default() };
            open_xsk(&Netdev::named(interface)?, Role::Pod, *xdp, *queues, &config, pool)
        }
        Spec::Tap { interface, queues, mac, mtu } => {
            let mtu = mtu.unwrap_or(around.mtu).min(tap::MAX_MTU);
            let mac = mac.unwrap_or(around.mac);
            let queues = queues.unwrap_or(around.queues);
            let ports = Tap { name: interface.clone(), queues, mac: mac.0, mtu }.open()?;
            let netdev = Netdev::named(interface)?;
            let facts = Facts {
                kind: "tap",
                interface: interface.clone(),
                ifindex: netdev.index,
                mac,
                mtu,
                xdp: "",
                copy: "",
                veth: false,
            };
            let ports = ports.into_iter().map(|port| AnyPort::Tap(Box::new(port))).collect();
            Ok(Opened { ports, facts, steer: None, session: None })
        }
        Spec::Vhost(socket) => {
            let (session, ports) = socket.open(around.queues)?;
            let facts = Facts {
                kind: "vhost-user",
                interface: socket.path.clone(),
                ifindex: 0,
                mac: around.mac,
                mtu: around.mtu,
                xdp: "",
                copy: match socket.role {
                    model::SocketRole::Client => "client",
                    model::SocketRole::Server => "server",
                },
                veth: false,
            };
            Ok(Opened { ports, facts, steer: None, session: Some(session) })
        }
        Spec::Pcap { receive, transmit } => {
            let port = PcapPort::open(Some(receive.as_ref()), Some(transmit.as_ref()), Replay::Once)?;
            let (kind, mac, mtu) = ("pcap", around.mac, around.mtu);
            let facts = Facts {
                kind,
                interface: String::new(),
                ifindex: 0,
                mac,
                mtu,
                xdp: "",
                copy: "",
                veth: false,
            };
            Ok(Opened { ports: vec![AnyPort::Pcap(Box::new(port))], facts, steer: None, session: None })
        }
    }
}

fn open_xsk(
    netdev: &Netdev,
    role: Role,
    xdp: model::XdpMode,
    queues: Option<u32>,
    config: &XskConfig,
    pool: &mut FramePool,
) -> Result<Opened, OpenError> {
    if !netdev.up {
        return Err(OpenError::Down { interface: netdev.name.clone() });
    }
    let steer = Steer::attach(netdev, role, xdp_mode(xdp))?;
    let mut ports = Vec::new();
    match bind_queues(netdev, queues.unwrap_or(netdev.rx_queues), config, &steer, pool, &mut ports) {
        Ok(()) => {}
        Err(error) => {
            ports.into_iter().for_each(|port| port.close(pool));
            // Back to what was found: an interface that was closed stays closed.
            let keep_closed = netdev.program.is_some();
            if let Err(detaching) = steer.detach(keep_closed) {
                tracing::warn!("after a failed opening: {detaching}");
            }
            return Err(error);
        }
    }
    let facts = Facts {
        kind: "xsk",
        interface: netdev.name.clone(),
        ifindex: netdev.index,
        mac: MacAddr(netdev.mac),
        mtu: u16::try_from(netdev.mtu).unwrap_or(u16::MAX),
        xdp: if steer.mode().native { "native" } else { "generic" },
        copy: match ports.first().map(XskPort::transfer) {
            Some(Transfer::ZeroCopy) => "zero-copy",
            _ => "copy",
        },
        veth: netdev.is_veth(),
    };
    let ports = ports.into_iter().map(|port| AnyPort::Xsk(Box::new(port))).collect();
    Ok(Opened { ports, facts, steer: Some(steer), session: None })
}

fn bind_queues(
    netdev: &Netdev,
    queues: u32,
    config: &XskConfig,
    steer: &Steer,
    pool: &mut FramePool,
    ports: &mut Vec<XskPort>,
) -> Result<(), OpenError> {
    for queue in 0..queues {
        let port = XskPort::open(netdev, queue, config, pool)?;
        let bound = steer.bind(queue, &port);
        ports.push(port);
        bound?;
    }
    Ok(())
}

fn xdp_mode(mode: model::XdpMode) -> XdpMode {
    match mode {
        model::XdpMode::Auto => XdpMode::Auto,
        model::XdpMode::Native => XdpMode::Native,
        model::XdpMode::Generic => XdpMode::Generic,
    }
}

fn copy_mode(mode: model::CopyMode) -> CopyMode {
    match mode {
        model::CopyMode::Auto => CopyMode::Auto,
        model::CopyMode::ZeroCopy => CopyMode::ZeroCopy,
        model::CopyMode::Copy => CopyMode::Copy,
    }
}
