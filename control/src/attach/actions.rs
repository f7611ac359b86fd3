//! Making an attachment as it is planned, and undoing it from its record.

use std::fmt;
use std::str::FromStr;

use ipnet::IpNet;
use penstock_cni::config::Mode;
use penstock_cni::failure::{Code, Failure};
use penstock_cni::protocol::Attach;
use penstock_cni::result::{AddResult, Route};
use thiserror::Error;

use super::dataplane::{Dataplane, DataplaneError, NetworkFacts};
use super::netns::{LinkError, Links, Namespace, Veth, set_ipv6};
use super::plan::Plan;
use super::record::Record;
use super::shared;
use super::sockets;
use super::sriov::Functions;

/// A place where a test ends the agent as a loss of power would.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FaultPoint {
    /// Addresses are taken, and nothing is written down yet.
    Taken,
    /// The attachment is written down, and nothing is made yet.
    Begun,
    /// The interface is there.
    Linked,
    /// The dataplane has it.
    Live,
    /// The container's side is set up.
    Configured,
    /// All is done and written down; the plugin has no answer yet.
    Complete,
    /// The dataplane has forgotten it.
    Unplugged,
    /// The interface is gone; the record is still there.
    Unlinked,
}

/// A word that names no fault point.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "{0:?} is no fault point: taken, begun, linked, live, configured, complete, unplugged and unlinked are"
)]
pub struct UnknownFaultPoint(String);

impl FaultPoint {
    /// All of them, in the order in which they are passed.
    pub const ALL: [Self; 8] = [
        Self::Taken,
        Self::Begun,
        Self::Linked,
        Self::Live,
        Self::Configured,
        Self::Complete,
        Self::Unplugged,
        Self::Unlinked,
    ];
}

impl fmt::Display for FaultPoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Taken => "taken",
            Self::Begun => "begun",
            Self::Linked => "linked",
            Self::Live => "live",
            Self::Configured => "configured",
            Self::Complete => "complete",
            Self::Unplugged => "unplugged",
            Self::Unlinked => "unlinked",
        })
    }
}

impl FromStr for FaultPoint {
    type Err = UnknownFaultPoint;

    fn from_str(text: &str) -> Result<Self, UnknownFaultPoint> {
        let found = Self::ALL.into_iter().find(|point| point.to_string() == text);
        found.ok_or_else(|| UnknownFaultPoint(text.to_owned()))
    }
}

/// Where the process is to end, for tests; nowhere by default.
#[derive(Debug, Clone, Copy, Default)]
pub struct FaultPoints(pub Option<FaultPoint>);

impl FaultPoints {
    pub(super) fn pass(self, point: FaultPoint) {
        if self.0 == Some(point) {
            eprintln!("ended at the fault point {point}, as it was told to be");
            std::process::abort();
        }
    }
}

impl From<LinkError> for Failure {
    fn from(error: LinkError) -> Self {
        let code = match error {
            LinkError::Exists { .. } => Code::Exists,
            _ => Code::Plumbing,
        };
        Failure::new(code, error.to_string())
    }
}

impl From<DataplaneError> for Failure {
    fn from(error: DataplaneError) -> Self {
        let code = match error {
            DataplaneError::Away(_) | DataplaneError::Late(_) => Code::TryAgainLater,
            DataplaneError::Refused(_) => Code::Dataplane,
            DataplaneError::NoNetwork(_) => Code::Config,
        };
        Failure::new(code, error.to_string())
    }
}

/// What attachments are made with.
pub(super) struct Means<'a, D> {
    pub(super) dataplane: &'a D,
    pub(super) functions: &'a Functions,
    pub(super) faults: FaultPoints,
}

/// Makes what is planned; what ADD gives back. When it fails, some of it may be there.
pub(super) async fn make<D: Dataplane>(
    plan: &Plan,
    attach: &Attach,
    network: &NetworkFacts,
    record: &Record,
    with: &Means<'_, D>,
) -> Result<AddResult, Failure> {
    let faults = with.faults;
    let namespace = Namespace::open(&attach.netns)?;
    let node = Links::here()?;
    let ifname = attach.id.ifname.as_str();
    match plan.wiring.mode {
        Mode::Veth => {
            let name = plan.wiring.interface.as_str();
            node.make_veth(&Veth {
                node: name,
                pod: ifname,
                mac: plan.mac.0,
                mtu: plan.mtu.into(),
                queues: plan.queues,
                namespace: namespace.descriptor(),
            })
            .await?;
            // The node is no neighbour of the container: its end speaks for itself nowhere.
            set_ipv6(name, "disable_ipv6", "1")?;
            node.bring_up(name).await?;
        }
        Mode::VhostUser => sockets::prepare(plan, ifname)?,
        Mode::Sriov => {
            if let Some(function) = &plan.wiring.function {
                with.functions.hand_over(function, &namespace, ifname, plan.mtu.into()).await?;
            }
        }
        // The dataplane makes it.
        Mode::Tap => {}
    }
    faults.pass(FaultPoint::Linked);
    let objects = record.objects();
    if !objects.is_empty() {
        with.dataplane.put(objects).await?;
    }
    faults.pass(FaultPoint::Live);
    if plan.wiring.mode == Mode::Tap {
        node.move_to(&plan.wiring.interface, namespace.descriptor(), ifname).await?;
    }
    let routes = set_up_inside(&namespace, plan, network, ifname.to_owned()).await?;
    sockets::describe(plan)?;
    let result = plan.result(attach, network, routes);
    shared::describe(record, &result)?;
    faults.pass(FaultPoint::Configured);
    Ok(result)
}

/// Gives the container's interface its addresses and routes; the routes.
async fn set_up_inside(
    namespace: &Namespace,
    plan: &Plan,
    network: &NetworkFacts,
    ifname: String,
) -> Result<Vec<Route>, LinkError> {
    let (plan, network) = (plan.clone(), network.clone());
    let act = async move |links: Links| {
        // A socket of shared memory has its own stack behind it; the kernel only shows that the interface is there.
        let is_placeholder = plan.wiring.is_placeheld();
        if is_placeholder {
            links.make_placeholder(&ifname, plan.mac.0, plan.mtu.into()).await?;
        }
        if plan.addresses.iter().any(|it| it.addr().is_ipv6()) {
            set_ipv6(&ifname, "disable_ipv6", "0")?;
        }
        links.bring_up(&ifname).await?;
        let index = links.expect(&ifname).await?.index;
        for address in &plan.addresses {
            links.add_address(&ifname, index, *address).await?;
        }
        if is_placeholder {
            return Ok(Vec::new());
        }
        // The gateways of the dataplane's networks are not beyond a card.
        let is_ours = plan.endpoint.is_some();
        let routes = if plan.routes.is_empty() && is_ours {
            let (four, six) = (links.has_default(true).await?, links.has_default(false).await?);
            plan.usual_routes(&network, |ipv4| if ipv4 { four } else { six })
        } else {
            plan.asked_routes(&network)
        };
        for route in &routes {
            links.add_route(&ifname, index, route).await?;
        }
        Ok(routes)
    };
    namespace.within(act).await
}

/// Gives a container the tap that the dataplane has made anew: the one before went with the daemon that made it.
pub(super) async fn bring_back(record: &Record) -> Result<(), Failure> {
    let (Some(wiring), Some(result)) = (&record.wiring, &record.result) else { return Ok(()) };
    let Some(endpoint) = record.endpoint.as_ref().filter(|_| wiring.mode == Mode::Tap) else { return Ok(()) };
    // Without its namespace the container has ended, and DEL will come.
    let Ok(namespace) = Namespace::open(&record.netns) else { return Ok(()) };
    let ifname = record.key.id.ifname.clone();
    let wanted = ifname.clone();
    if namespace.within(async move |links| links.find(&wanted).await).await?.is_some() {
        return Ok(());
    }
    Links::here()?.move_to(&wiring.interface, namespace.descriptor(), &ifname).await?;
    let addresses: Vec<IpNet> = endpoint.addresses.iter().map(|&address| address.into()).collect();
    let routes = result.routes.clone();
    let act = async move |links: Links| {
        links.bring_up(&ifname).await?;
        let index = links.expect(&ifname).await?.index;
        for address in addresses {
            links.add_address(&ifname, index, address).await?;
        }
        for route in &routes {
            links.add_route(&ifname, index, route).await?;
        }
        Ok(())
    };
    Ok(namespace.within(act).await?)
}

/// Undoes whatever there is of a record's attachment, however much of it was made. The record itself stays.
pub(super) async fn undo<D: Dataplane>(
    record: &Record,
    dataplane: &D,
    functions: &Functions,
    faults: FaultPoints,
) -> Result<(), Failure> {
    let keys = record.object_keys();
    if !keys.is_empty() {
        match dataplane.remove(keys).await {
            // What came over its socket went with it.
            Ok(()) | Err(DataplaneError::Away(_) | DataplaneError::Late(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    faults.pass(FaultPoint::Unplugged);
    let Some(wiring) = &record.wiring else { return Ok(()) };
    let id = &record.key.id;
    if wiring.mode == Mode::Veth {
        Links::here()?.remove(&wiring.interface).await?;
    }
    if wiring.is_placeheld() {
        remove_placeholder(record).await?;
    }
    if let Some(function) = &wiring.function {
        functions.take_back(function, &record.netns, &id.ifname).await?;
    }
    if let Some(volume) = &wiring.shared {
        shared::remove(volume, id)?;
    }
    sockets::remove(wiring, &id.container_id, &id.ifname)?;
    faults.pass(FaultPoint::Unlinked);
    Ok(())
}

/// Removes the interface that stood for a socket, if the container's namespace is still there.
async fn remove_placeholder(record: &Record) -> Result<(), Failure> {
    let Ok(namespace) = Namespace::open(&record.netns) else { return Ok(()) };
    let ifname = record.key.id.ifname.clone();
    let mac = record.mac().map(|mac| mac.to_vec());
    let act = async move |links: Links| {
        // Another container may have the path by now, and an interface of the same name.
        if links.find(&ifname).await?.map(|seen| seen.mac) == mac {
            links.remove(&ifname).await?;
        }
        Ok(())
    };
    match namespace.within(act).await {
        // Nothing is in what is no namespace any more.
        Ok(()) | Err(LinkError::Namespace { .. }) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
