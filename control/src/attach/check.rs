//! Whether an attachment is still what ADD made: in the container, in the dataplane, on disk.

use std::net::IpAddr;

use penstock_cni::failure::{Code, Failure};
use penstock_cni::protocol::Attach;
use penstock_cni::result::AddResult;

use super::dataplane::Dataplane;
use super::netns::{Known, Links, Namespace, Seen};
use super::record::Record;
use super::sriov::Functions;

fn differs(msg: impl Into<String>) -> Failure {
    Failure::new(Code::Differs, msg)
}

/// Other plugins of the chain may have added to all of it, and removed nothing.
pub(super) async fn check<D: Dataplane>(
    attach: &Attach,
    record: &Record,
    dataplane: &D,
    functions: &Functions,
) -> Result<(), Failure> {
    let (Some(result), Some(wiring), Some(mac)) = (&record.result, &record.wiring, record.mac()) else {
        return Err(differs(format!("{} was never attached whole", record.key.id)));
    };
    if let Some(said) = &attach.config.prev_result {
        compare(said, result, &attach.id.ifname)?;
    }
    let namespace = Namespace::open(&attach.netns)?;
    let ifname = attach.id.ifname.clone();
    let inside = namespace.within(async move |links| Inside::see(&links, &ifname).await).await?;
    let is_placeholder = wiring.is_placeheld();
    inside.holds(result, &attach.id.ifname, &mac, !is_placeholder)?;
    if let Some(function) = &wiring.function {
        functions.check(function).await?;
    }
    let Some(endpoint) = &record.endpoint else { return Ok(()) };
    let (ports, is_as_put) = dataplane.inspect(&endpoint.name, &record.objects()).await?;
    if !is_as_put {
        let msg = format!("the dataplane does not have endpoint \"{}\" as it was attached", endpoint.name);
        return Err(differs(msg));
    }
    if ports.is_empty() {
        return Err(differs(format!("the dataplane has no port of endpoint \"{}\"", endpoint.name)));
    }
    // An application behind a socket comes and goes as it likes.
    if !is_placeholder && let Some(port) = ports.iter().find(|port| port.state != "up") {
        let msg =
            format!("the port of endpoint \"{}\" on {} is {}", endpoint.name, port.interface, port.state);
        return Err(differs(msg));
    }
    Ok(())
}

/// Whether what the runtime says of us is what we gave.
fn compare(said: &AddResult, gave: &AddResult, ifname: &str) -> Result<(), Failure> {
    let missing = gave.ips.iter().find(|ip| !said.ips.iter().any(|it| it.address == ip.address));
    if let Some(ip) = missing {
        return Err(differs(format!("prevResult has not the address {}, which ADD gave", ip.address)));
    }
    let is_ours = |name: &str| said.interfaces.iter().any(|it| it.name == name && it.sandbox.is_some());
    if is_ours(ifname) {
        return Ok(());
    }
    Err(differs(format!("prevResult has no interface {ifname} in the container, which ADD made")))
}

/// What is in the container's namespace.
struct Inside {
    link: Option<Seen>,
    addresses: Vec<IpAddr>,
    routes: Vec<Known>,
}

impl Inside {
    async fn see(links: &Links, ifname: &str) -> Result<Self, super::netns::LinkError> {
        let Some(link) = links.find(ifname).await? else {
            return Ok(Self { link: None, addresses: Vec::new(), routes: Vec::new() });
        };
        let addresses = links.addresses(ifname, link.index).await?;
        let mut routes = links.routes(true).await?;
        routes.extend(links.routes(false).await?);
        Ok(Self { link: Some(link), addresses, routes })
    }

    fn holds(&self, result: &AddResult, ifname: &str, mac: &[u8], with_routes: bool) -> Result<(), Failure> {
        let Some(link) = &self.link else {
            return Err(differs(format!("there is no interface {ifname} in the container")));
        };
        if link.mac != mac {
            return Err(differs(format!("{ifname} has another Ethernet address than it was given")));
        }
        if !link.up {
            return Err(differs(format!("{ifname} is set down")));
        }
        let ours = result.ips.iter().filter(|ip| {
            let interface = ip.interface.and_then(|place| result.interfaces.get(place));
            interface.is_some_and(|it| it.name == ifname && it.sandbox.is_some())
        });
        for ip in ours {
            let address = ip.address.addr();
            if !self.addresses.contains(&address) {
                return Err(differs(format!("{ifname} has lost its address {address}")));
            }
        }
        // Plugins behind us move routes to tables of their own; that one leads away is what must hold.
        let leads_away = self.routes.iter().any(|route| route.interface == link.index);
        if with_routes && !result.routes.is_empty() && !leads_away {
            return Err(differs(format!("no route leads through {ifname} any more")));
        }
        Ok(())
    }
}
