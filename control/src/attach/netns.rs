//! Interfaces, in the node's namespace and in containers': everything that netlink is asked for.

use std::fs::File;
use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, RawFd};
use std::path::{Path, PathBuf};

use futures::TryStreamExt;
use ipnet::IpNet;
use nix::sched::{CloneFlags, setns};
use penstock_cni::result::Route;
use rtnetlink::packet_route::address::{AddressAttribute, AddressHeaderFlags};
use rtnetlink::packet_route::link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkMessage};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteHeader, RouteScope};
use rtnetlink::{
    Handle, LinkBridge, LinkDummy, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder,
};
use thiserror::Error;

/// Why an interface could not be made or found.
#[derive(Debug, Error)]
pub enum LinkError {
    /// There is no such namespace.
    #[error("the network namespace {} cannot be entered: {source}; has the container ended?", .path.display())]
    Namespace {
        /// Its path.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Netlink cannot be spoken.
    #[error("netlink cannot be spoken: {0}; the agent needs CAP_NET_ADMIN")]
    Netlink(#[source] io::Error),
    /// The kernel refused a request.
    #[error("cannot {what} {interface}: {source}")]
    Refused {
        /// What was asked for.
        what: &'static str,
        /// Of which interface.
        interface: String,
        /// What the kernel said.
        #[source]
        source: rtnetlink::Error,
    },
    /// The interface is there already.
    #[error(
        "there is an interface {interface} already; each of a container's interfaces needs a name of its own"
    )]
    Exists {
        /// Its name.
        interface: String,
    },
    /// A card has no such function.
    #[error("{card} has no function {number}; see how many it has with `ip link show {card}`")]
    NoFunction {
        /// The card's interface.
        card: String,
        /// The function's number.
        number: u32,
    },
    /// The interface is not there.
    #[error("there is no interface {interface}")]
    Missing {
        /// Its name.
        interface: String,
    },
    /// A setting of the kernel could not be written.
    #[error("cannot write {}: {source}", .path.display())]
    Setting {
        /// The file below `/proc/sys`.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The thread that was to do it is gone.
    #[error("the thread for the container's namespace ended early")]
    Thread,
}

impl LinkError {
    pub(super) fn of(what: &'static str, interface: &str) -> impl FnOnce(rtnetlink::Error) -> Self {
        move |source| {
            let interface = interface.to_owned();
            match errno(&source) {
                Some(libc::EEXIST) if what == "make" => Self::Exists { interface },
                Some(libc::ENODEV) => Self::Missing { interface },
                _ => Self::Refused { what, interface, source },
            }
        }
    }
}

fn errno(error: &rtnetlink::Error) -> Option<i32> {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.raw_code().checked_neg(),
        _ => None,
    }
}

/// A container's network namespace, held open.
#[derive(Debug)]
pub struct Namespace {
    path: PathBuf,
    file: File,
}

impl Namespace {
    /// Opens the namespace at a path.
    ///
    /// # Errors
    /// [`LinkError::Namespace`].
    pub fn open(path: &Path) -> Result<Self, LinkError> {
        let file =
            File::open(path).map_err(|source| LinkError::Namespace { path: path.to_owned(), source })?;
        Ok(Self { path: path.to_owned(), file })
    }

    /// Its descriptor, for netlink.
    pub fn descriptor(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// Does something with netlink inside, on a thread of its own: a thread that has changed namespaces does nothing else
    /// ever after.
    ///
    /// # Errors
    /// [`LinkError`].
    pub async fn within<T, F, D>(&self, act: D) -> Result<T, LinkError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, LinkError>>,
        D: FnOnce(Links) -> F + Send + 'static,
    {
        let refused = |source| LinkError::Namespace { path: self.path.clone(), source };
        let file = self.file.try_clone().map_err(refused)?;
        let path = self.path.clone();
        let (tell, told) = tokio::sync::oneshot::channel();
        let spawned = std::thread::Builder::new().name("netns".to_owned()).spawn(move || {
            // Nobody waits any more when the receiver is gone.
            let _ = tell.send(inside(&file, path, act));
        });
        spawned.map_err(LinkError::Netlink)?;
        told.await.map_err(|_| LinkError::Thread)?
    }
}

fn inside<T, F, D>(file: &File, path: PathBuf, act: D) -> Result<T, LinkError>
where
    F: Future<Output = Result<T, LinkError>>,
    D: FnOnce(Links) -> F,
{
    setns(file, CloneFlags::CLONE_NEWNET)
        .map_err(|errno| LinkError::Namespace { path, source: errno.into() })?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(LinkError::Netlink)?;
    runtime.block_on(async { act(Links::here()?).await })
}

/// Netlink in one namespace.
#[derive(Debug, Clone)]
pub struct Links {
    pub(super) handle: Handle,
}

/// What is seen of an interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Its number.
    pub index: u32,
    /// Its Ethernet address.
    pub mac: Vec<u8>,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// Whether it is up.
    pub up: bool,
    /// The device that it belongs to, a PCI address for instance, where the kernel says it.
    pub parent: Option<String>,
}

/// A pair of virtual Ethernet interfaces to make.
#[derive(Debug, Clone)]
pub struct Veth<'a> {
    /// The node's end.
    pub node: &'a str,
    /// The container's end.
    pub pod: &'a str,
    /// The Ethernet address of the container's end.
    pub mac: [u8; 6],
    /// The MTU of both in bytes.
    pub mtu: u32,
    /// Queues of both, each way.
    pub queues: u32,
    /// The container's namespace.
    pub namespace: RawFd,
}

/// The table of the namespace's own addresses, which the kernel keeps (`RT_TABLE_LOCAL`, linux/rtnetlink.h).
const LOCAL_TABLE: u8 = 255;

/// A route that there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Known {
    /// Where it leads.
    pub to: IpNet,
    /// The number of the interface that it leads by; 0 when it names none.
    pub interface: u32,
    /// Whether it is in the main table; plugins behind us make tables of their own.
    pub is_main: bool,
}

impl Links {
    /// Netlink in the namespace of this thread, within a tokio runtime.
    ///
    /// # Errors
    /// [`LinkError::Netlink`].
    pub fn here() -> Result<Self, LinkError> {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(LinkError::Netlink)?;
        tokio::spawn(connection);
        Ok(Self { handle })
    }

    /// Makes a pair whose other end is in the container's namespace from the start.
    ///
    /// # Errors
    /// [`LinkError`]; nothing is made.
    pub async fn make_veth(&self, veth: &Veth<'_>) -> Result<(), LinkError> {
        let queues = [LinkAttribute::NumTxQueues(veth.queues), LinkAttribute::NumRxQueues(veth.queues)];
        let mut peer = LinkMessageBuilder::<LinkUnspec>::new()
            .name(veth.pod)
            .mtu(veth.mtu)
            .address(veth.mac.to_vec())
            .setns_by_fd(veth.namespace)
            .build();
        peer.attributes.extend(queues.clone());
        let mut message = LinkMessageBuilder::<LinkVeth>::new_with_info_kind(InfoKind::Veth)
            .name(veth.node)
            .mtu(veth.mtu)
            .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
            .build();
        message.attributes.extend(queues);
        self.handle.link().add(message).execute().await.map_err(LinkError::of("make", veth.pod))
    }

    /// Makes an interface that leads nowhere, which stands for one that the kernel has no part in: a dummy, or a bridge
    /// without ports where the kernel has no dummies.
    ///
    /// # Errors
    /// [`LinkError`].
    pub async fn make_placeholder(&self, name: &str, mac: [u8; 6], mtu: u32) -> Result<(), LinkError> {
        let message = LinkMessageBuilder::<LinkDummy>::new(name).mtu(mtu).address(mac.to_vec()).build();
        match self.handle.link().add(message).execute().await {
            Err(error) if errno(&error) == Some(libc::EOPNOTSUPP) => {
                tracing::debug!("this kernel has no dummy interfaces: {name} is a bridge without ports");
                let message =
                    LinkMessageBuilder::<LinkBridge>::new(name).mtu(mtu).address(mac.to_vec()).build();
                self.handle.link().add(message).execute().await.map_err(LinkError::of("make", name))
            }
            made => made.map_err(LinkError::of("make", name)),
        }
    }

    /// Removes an interface; false when there was none.
    ///
    /// # Errors
    /// [`LinkError`].
    pub async fn remove(&self, name: &str) -> Result<bool, LinkError> {
        let Some(seen) = self.find(name).await? else { return Ok(false) };
        match self.handle.link().del(seen.index).execute().await {
            Ok(()) => Ok(true),
            Err(error) if errno(&error) == Some(libc::ENODEV) => Ok(false),
            Err(error) => Err(LinkError::of("remove", name)(error)),
        }
    }

    /// Moves an interface into another namespace under another name.
    ///
    /// # Errors
    /// [`LinkError`].
    pub async fn move_to(&self, name: &str, namespace: RawFd, as_name: &str) -> Result<(), LinkError> {
        let seen = self.expect(name).await?;
        let message = LinkUnspec::new_with_index(seen.index).name(as_name).setns_by_fd(namespace);
        self.handle.link().set(message.build()).execute().await.map_err(LinkError::of("move", name))
    }

    /// Gives an interface another name; it is set down for that.
    ///
    /// # Errors
    /// [`LinkError`].
    pub async fn rename(&self, name: &str, to: &str) -> Result<(), LinkError> {
        let index = self.expect(name).await?.index;
        let down = LinkUnspec::new_with_index(index).down().build();
        self.handle.link().set(down).execute().await.map_err(LinkError::of("set down", name))?;
        let message = LinkUnspec::new_with_index(index).name(to).build();
        self.handle.link().set(message).execute().await.map_err(LinkError::of("rename", name))
    }

    /// Gives an interface another Ethernet address and MTU where those that it has are others.
    ///
    /// # Errors
    /// [`LinkError`].
    pub async fn configure(
        &self,
        name: &str,
        (mac_now, mtu_now): ([u8; 6], u32),
        (mac, mtu): ([u8; 6], u32),
    ) -> Result<(), LinkError> {
        let index = self.expect(name).await?.index;
        if mac_now != mac {
            let message = LinkUnspec::new_with_index(index).address(mac.to_vec()).build();
            let set = self.handle.link().set(message).execute().await;
            set.map_err(LinkError::of("give an Ethernet address to", name))?;
        }
        if mtu_now != mtu {
            let message = LinkUnspec::new_with_index(index).mtu(mtu).build();
            self.handle.link().set(message).execute().await.map_err(LinkError::of("set the MTU of", name))?;
        }
        Ok(())
    }

    /// Looks for an interface.
    ///
    /// # Errors
    /// [`LinkError`].
    pub async fn find(&self, name: &str) -> Result<Option<Seen>, LinkError> {
        let mut found = self.handle.link().get().match_name(name.to_owned()).execute();
        match found.try_next().await {
            Ok(message) => Ok(message.as_ref().map(seen)),
            Err(error) if errno(&error) == Some(libc::ENODEV) => Ok(None),
            Err(error) => Err(LinkError::of("look for", name)(error)),
        }
    }

    /// Looks for an interface that must be there.
    ///
    /// # Errors
    /// [`LinkError::Missing`] and others.
    pub async fn expect(&self, name: &str) -> Result<Seen, LinkError> {
        self.find(name).await?.ok_or_else(|| LinkError::Missing { interface: name.to_owned() })
    }

    /// Sets an interface up.
    ///
    /// # Errors
    /// [`LinkError`].
    pub async fn bring_up(&self, name: &str) -> Result<(), LinkError> {
        let seen = self.expect(name).await?;
        let message = LinkUnspec::new_with_index(seen.index).up().build();
        self.handle.link().set(message).execute().await.map_err(LinkError::of("set up", name))
    }

    /// Gives an interface an address, at once and without asking whether somebody else has it.
    ///
    /// # Errors
    /// [`LinkError`].
    pub async fn add_address(&self, name: &str, index: u32, address: IpNet) -> Result<(), LinkError> {
        let mut request = self.handle.address().add(index, address.addr(), address.prefix_len());
        if address.addr().is_ipv6() {
            request.message_mut().header.flags |= AddressHeaderFlags::Nodad;
        }
        request.execute().await.map_err(LinkError::of("give an address to", name))
    }

    /// The addresses of an interface.
    ///
    /// # Errors
    /// [`LinkError`].
    pub async fn addresses(&self, name: &str, index: u32) -> Result<Vec<IpAddr>, LinkError> {
        let mut found = self.handle.address().get().set_link_index_filter(index).execute();
        let mut addresses = Vec::new();
        while let Some(message) =
            found.try_next().await.map_err(LinkError::of("list the addresses of", name))?
        {
            addresses.extend(message.attributes.iter().filter_map(|attribute| match attribute {
                AddressAttribute::Address(address) => Some(*address),
                _ => None,
            }));
        }
        Ok(addresses)
    }

    /// Whether there is a default route of a family.
    ///
    /// # Errors
    /// [`LinkError`].
    pub async fn has_default(&self, ipv4: bool) -> Result<bool, LinkError> {
        Ok(self.routes(ipv4).await?.iter().any(|route| route.is_main && route.to.prefix_len() == 0))
    }

    /// The routes of a family, in all tables but the kernel's own of its addresses.
    ///
    /// # Errors
    /// [`LinkError`].
    pub async fn routes(&self, ipv4: bool) -> Result<Vec<Known>, LinkError> {
        let question = if ipv4 {
            RouteMessageBuilder::<Ipv4Addr>::new().build()
        } else {
            RouteMessageBuilder::<Ipv6Addr>::new().build()
        };
        let mut found = self.handle.route().get(question).execute();
        let mut routes = Vec::new();
        while let Some(route) =
            found.try_next().await.map_err(LinkError::of("list the routes of", "the namespace"))?
        {
            if route.header.table == LOCAL_TABLE {
                continue;
            }
            let unspecified: IpAddr =
                if ipv4 { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
            let (mut to, mut index) = (unspecified, 0);
            for attribute in &route.attributes {
                match attribute {
                    RouteAttribute::Destination(RouteAddress::Inet(address)) => to = (*address).into(),
                    RouteAttribute::Destination(RouteAddress::Inet6(address)) => to = (*address).into(),
                    RouteAttribute::Oif(oif) => index = *oif,
                    _ => {}
                }
            }
            let is_main = route.header.table == RouteHeader::RT_TABLE_MAIN;
            let to = IpNet::new(to, route.header.destination_prefix_length);
            routes.extend(to.map(|to| Known { to, interface: index, is_main }));
        }
        Ok(routes)
    }

    /// Adds a route by an interface; a gateway need not be in any of its prefixes.
    ///
    /// # Errors
    /// [`LinkError`].
    pub async fn add_route(&self, name: &str, index: u32, route: &Route) -> Result<(), LinkError> {
        let length = route.dst.prefix_len();
        let mut message = match (route.dst.addr(), route.gw) {
            // The link itself leads there: what goes by a gateway finds the gateway so.
            (IpAddr::V4(to), None) => RouteMessageBuilder::<Ipv4Addr>::new()
                .destination_prefix(to, length)
                .scope(RouteScope::Link)
                .build(),
            (IpAddr::V4(to), Some(IpAddr::V4(gateway))) => RouteMessageBuilder::<Ipv4Addr>::new()
                .destination_prefix(to, length)
                .gateway(gateway)
                .onlink()
                .build(),
            (IpAddr::V6(to), Some(IpAddr::V6(gateway))) => RouteMessageBuilder::<Ipv6Addr>::new()
                .destination_prefix(to, length)
                .gateway(gateway)
                .onlink()
                .build(),
            (IpAddr::V6(to), _) => {
                RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(to, length).build()
            }
            (IpAddr::V4(to), Some(IpAddr::V6(gateway))) => RouteMessageBuilder::<Ipv4Addr>::new()
                .destination_prefix(to, length)
                .via(gateway)
                .onlink()
                .build(),
        };
        message.attributes.push(RouteAttribute::Oif(index));
        if let Some(priority) = route.priority {
            message.attributes.push(RouteAttribute::Priority(priority));
        }
        if let Some(table) = route.table {
            message.attributes.push(RouteAttribute::Table(table));
        }
        let metrics = [
            route.mtu.map(rtnetlink::packet_route::route::RouteMetric::Mtu),
            route.advmss.map(rtnetlink::packet_route::route::RouteMetric::Advmss),
        ];
        let metrics: Vec<_> = metrics.into_iter().flatten().collect();
        if !metrics.is_empty() {
            message.attributes.push(RouteAttribute::Metrics(metrics));
        }
        self.handle.route().add(message).execute().await.map_err(LinkError::of("add a route by", name))
    }
}

fn seen(message: &LinkMessage) -> Seen {
    let mut seen = Seen {
        index: message.header.index,
        mac: Vec::new(),
        mtu: 0,
        up: message.header.flags.contains(LinkFlags::Up),
        parent: None,
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::Address(address) => seen.mac.clone_from(address),
            LinkAttribute::Mtu(mtu) => seen.mtu = *mtu,
            LinkAttribute::ParentDevName(name) => seen.parent = Some(name.clone()),
            _ => {}
        }
    }
    seen
}

/// Writes a setting of one interface, in the namespace of this thread. A kernel without IPv6 has none for it.
///
/// # Errors
/// [`LinkError::Setting`].
pub(super) fn set_ipv6(interface: &str, setting: &str, value: &str) -> Result<(), LinkError> {
    let path = PathBuf::from(format!("/proc/sys/net/ipv6/conf/{interface}/{setting}"));
    if !Path::new("/proc/sys/net/ipv6").exists() {
        return Ok(());
    }
    std::fs::write(&path, value).map_err(|source| LinkError::Setting { path, source })
}
