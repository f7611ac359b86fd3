//! The underlay: what the kernel says of uplinks, ways and neighbours, put together for the tables.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use penstock_api::check::{MIN_MTU_IPV4, MIN_MTU_IPV6};
use penstock_api::model::{self, RouteTarget};

use super::device::{Device, Owner};
use crate::flow::DeviceId;
use crate::kernel::{Kernel, KernelView, Path, Unreachable, Way};
use crate::tables::compile::{HostFacts, PathFacts, Underlay, UplinkFacts};
use crate::tables::desired::Desired;

/// How long a path MTU learnt from ICMP is believed (RFC 1191, section 6.3, suggests about ten minutes).
const LEARNT_FOR: Duration = Duration::from_secs(600);
/// How long a neighbour that a packet asked for is sought before it is forgotten.
const SOUGHT_FOR: Duration = Duration::from_secs(60);

/// What is known beside the kernel's own tables.
#[derive(Default)]
pub(super) struct Knowledge {
    /// The kernel's way to each peer; `None` where there is none.
    paths: HashMap<IpAddr, Option<Path>>,
    /// The kernel's routes, where some route of ours leaves it to the kernel who the next hop is.
    ways: Option<Vec<Way>>,
    /// Path MTUs from ICMP, and until when they hold.
    learnt: HashMap<IpAddr, (u16, Instant)>,
    /// Neighbours that packets asked for, by interface, and since when.
    wanted: BTreeMap<(u32, IpAddr), Instant>,
}

impl Knowledge {
    /// Asks for the way to every peer: to all when routes changed, else to those that are new.
    pub(super) async fn find_paths(&mut self, kernel: &Kernel, desired: &Desired, anew: bool) {
        let peers: BTreeSet<IpAddr> = desired.peers().map(|peer| peer.address).collect();
        self.paths.retain(|address, _| peers.contains(address));
        self.learnt.retain(|address, _| peers.contains(address));
        for address in peers {
            if !anew && self.paths.contains_key(&address) {
                continue;
            }
            let path = match kernel.path_to(address).await {
                Ok(path) => Some(path),
                Err(why) => {
                    if self.paths.get(&address).is_none_or(Option::is_some) {
                        say(&why);
                    }
                    None
                }
            };
            self.paths.insert(address, path);
        }
        self.find_ways(kernel, desired, anew).await;
    }

    /// Asks for the kernel's routes, if they matter.
    async fn find_ways(&mut self, kernel: &Kernel, desired: &Desired, anew: bool) {
        let matter = desired.routes().any(|it| matches!(it.via, RouteTarget::Uplink { gateway: None, .. }));
        if !matter {
            self.ways = None;
        } else if anew || self.ways.is_none() {
            match kernel.ways().await {
                Ok(ways) => self.ways = Some(ways),
                Err(error) => tracing::warn!("{error}; the routers of uplinks stay those known before"),
            }
        }
    }

    /// Notes a path MTU; tells whether it says anything new.
    pub(super) fn learn(&mut self, peer: IpAddr, mtu: u16, now: Instant) -> bool {
        let Some(Some(path)) = self.paths.get(&peer) else { return false };
        let least = if peer.is_ipv6() { MIN_MTU_IPV6 } else { MIN_MTU_IPV4 };
        // A message that claims less than the least is a mistake or an attack; one that claims more than the link carries
        // says nothing.
        let mtu = mtu.max(least);
        if path.mtu.is_some_and(|link| u32::from(mtu) >= link) {
            return false;
        }
        let known = self.learnt.insert(peer, (mtu, now + LEARNT_FOR));
        known.is_none_or(|(before, _)| before != mtu)
    }

    /// Forgets what has had its time; tells whether a path MTU was among it.
    pub(super) fn expire(&mut self, view: &KernelView, now: Instant) -> bool {
        let before = self.learnt.len();
        self.learnt.retain(|_, (_, until)| *until > now);
        let answers = |key: &(u32, IpAddr)| view.neighbours.get(key).is_some_and(|it| it.usable().is_some());
        self.wanted.retain(|key, since| answers(key) || now.saturating_duration_since(*since) < SOUGHT_FOR);
        self.learnt.len() < before
    }

    /// Notes that a packet waits for a neighbour.
    pub(super) fn want(&mut self, ifindex: u32, address: IpAddr, now: Instant) {
        self.wanted.insert((ifindex, address), now);
    }

    /// The neighbours that are sent to.
    pub(super) fn used(
        &self,
        desired: &Desired,
        devices: &BTreeMap<Owner, Device>,
    ) -> BTreeSet<(u32, IpAddr)> {
        let uplinks: BTreeMap<&str, u32> = devices
            .iter()
            .filter_map(|(owner, device)| match owner {
                Owner::Uplink(name) => Some((name.as_str(), device.facts.ifindex)),
                Owner::Endpoint(_) | Owner::Host => None,
            })
            .collect();
        let ours = |ifindex: &u32| uplinks.values().any(|uplink| uplink == ifindex);
        let hops = self.paths.values().flatten().map(|path| (path.ifindex, path.next_hop));
        let gateways = desired.routes().filter_map(|route| match &route.via {
            RouteTarget::Uplink { uplink, gateway: Some(gateway) } => {
                Some((*uplinks.get(uplink.as_str())?, *gateway))
            }
            _ => None,
        });
        let wanted = self.wanted.keys().copied();
        let routers = self.ways.iter().flatten().filter_map(|way| Some((way.ifindex, way.gateway?)));
        hops.chain(gateways).chain(routers).chain(wanted).filter(|(ifindex, _)| ours(ifindex)).collect()
    }

    /// Everything put together.
    pub(super) fn underlay(
        &self,
        desired: &Desired,
        devices: &BTreeMap<Owner, Device>,
        view: &KernelView,
    ) -> Underlay {
        let mut underlay = Underlay::default();
        let mut names: HashMap<u32, (&str, DeviceId)> = HashMap::new();
        for uplink in desired.uplinks() {
            if let Some(device) = devices.get(&Owner::Uplink(uplink.name.to_string())) {
                names.insert(device.facts.ifindex, (uplink.name.as_str(), device.id));
                underlay.uplinks.insert(uplink.name.to_string(), uplink_facts(uplink, device, view));
            }
        }
        for (owner, device) in devices {
            match owner {
                Owner::Endpoint(name) => drop(underlay.endpoints.insert(name.clone(), device.id)),
                Owner::Host => {
                    let (mac, mtu) = (device.facts.mac, device.facts.mtu);
                    underlay.host = Some(HostFacts { device: device.id, mac, mtu });
                }
                Owner::Uplink(_) => {}
            }
        }
        for (address, path) in &self.paths {
            let Some(path) = path else { continue };
            let Some((name, _)) = names.get(&path.ifindex) else { continue };
            let Some(uplink) = underlay.uplinks.get(*name) else { continue };
            // Tunnels start at an address that the uplink is told to have, if it is told any.
            let told = uplink.addresses.contains(&path.preferred_source);
            let of_family = uplink.addresses.iter().find(|it| it.is_ipv4() == address.is_ipv4());
            let source = if told {
                path.preferred_source
            } else {
                of_family.copied().unwrap_or(path.preferred_source)
            };
            let mtu = path.mtu.map(|mtu| u16::try_from(mtu).unwrap_or(u16::MAX));
            let facts = PathFacts { uplink: (*name).to_owned(), next_hop: path.next_hop, source, mtu };
            underlay.paths.insert(*address, facts);
        }
        // Sorted, so that of several ways to one prefix the one comes first that the kernel prefers.
        for way in self.ways.iter().flatten() {
            let Some((name, _)) = names.get(&way.ifindex) else { continue };
            let ways = underlay.ways.entry((*name).to_owned()).or_default();
            ways.entry(way.prefix).or_insert(way.gateway);
        }
        for key in self.used(desired, devices) {
            let (ifindex, address) = key;
            if let Some((_, device)) = names.get(&ifindex)
                && let Some(mac) = view.neighbours.get(&key).and_then(|neighbour| neighbour.usable())
            {
                underlay.neighbours.insert((*device, address), mac);
            }
        }
        underlay.learnt_mtus = self.learnt.iter().map(|(peer, (mtu, _))| (*peer, *mtu)).collect();
        underlay
    }
}

fn uplink_facts(uplink: &model::Uplink, device: &Device, view: &KernelView) -> UplinkFacts {
    let facts = &device.facts;
    let link = view.links.get(&facts.ifindex);
    let told = !uplink.addresses.is_empty();
    let addresses = if told { uplink.addresses.clone() } else { addresses_of(facts.ifindex, view) };
    UplinkFacts {
        device: device.id,
        interface: facts.interface.clone(),
        mac: link.and_then(|link| link.mac).unwrap_or(facts.mac),
        mtu: link.map_or(facts.mtu, |link| u16::try_from(link.mtu).unwrap_or(u16::MAX)),
        addresses,
        partial_checksums: facts.veth,
    }
}

/// The addresses of an interface that other nodes can know it by.
fn addresses_of(ifindex: u32, view: &KernelView) -> Vec<IpAddr> {
    let link_local = |address: &IpAddr| match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    let all = view.addresses.get(&ifindex).into_iter().flatten().map(|net| net.addr());
    all.filter(|address| !link_local(address)).collect()
}

fn say(why: &Unreachable) {
    tracing::warn!("{why}");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::{Link, Neighbour, NeighbourState};
    use crate::supervisor::device::{Facts, Spec};
    use penstock_api::file::parse_objects;
    use penstock_api::model::Node;
    use penstock_wire::MacAddr;

    const MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 2]);

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn desired(uplink: &str) -> Desired {
        let text = format!(
            "[[uplink]]\nname = \"u\"\ninterface = \"eth0\"\n{uplink}\n[[peer]]\nname = \"n2\"\naddress = \"10.0.0.2\"\n\
             [[network]]\nname = \"n\"\nvni = 1\n[[route]]\nnetwork = \"n\"\nprefix = \"0.0.0.0/0\"\n\
             via = {{ uplink = {{ uplink = \"u\", gateway = \"10.0.0.9\" }} }}\n"
        );
        let mut desired = Desired::new(Node { name: "n1".parse().unwrap(), mac: None }, None);
        let objects = parse_objects(&text, "t").unwrap();
        desired.apply(crate::tables::desired::Change::Upsert(objects)).unwrap();
        desired
    }

    fn devices(desired: &Desired) -> BTreeMap<Owner, Device> {
        let spec = Spec::Uplink(desired.uplinks().next().unwrap().clone());
        let facts = Facts {
            kind: "xsk",
            interface: "eth0".into(),
            ifindex: 3,
            mac: MAC,
            mtu: 1500,
            xdp: "generic",
            copy: "copy",
            veth: false,
        };
        let device = Device {
            id: DeviceId(7),
            facts,
            queues: vec![],
            spec,
            steer: None,
            session: None,
            rules: Default::default(),
            broken: None,
        };
        [(Owner::Uplink("u".into()), device)].into()
    }

    fn view() -> KernelView {
        let link = Link { name: "eth0".into(), mac: Some(MAC), mtu: 1400, up: true, carrier: true };
        let near = Neighbour { mac: Some(MAC), state: NeighbourState::Reachable };
        KernelView {
            links: [(3, link)].into(),
            addresses: [(3, vec!["10.0.0.1/24".parse().unwrap(), "fe80::1/64".parse().unwrap()])].into(),
            neighbours: [
                ((3, ip("10.0.0.2")), near),
                ((3, ip("10.0.0.9")), near),
                ((3, ip("10.0.0.77")), near),
            ]
            .into(),
        }
    }

    fn knowledge(ifindex: u32) -> Knowledge {
        let path = Path { ifindex, next_hop: ip("10.0.0.2"), preferred_source: ip("10.0.0.1"), mtu: None };
        Knowledge { paths: [(ip("10.0.0.2"), Some(path))].into(), ..Knowledge::default() }
    }

    #[test]
    fn uplinks_are_as_the_kernel_says_now_and_only_neighbours_in_use_count() {
        let desired = desired("");
        let underlay = knowledge(3).underlay(&desired, &devices(&desired), &view());
        let uplink = &underlay.uplinks["u"];
        assert_eq!((uplink.mtu, uplink.addresses.as_slice()), (1400, [ip("10.0.0.1")].as_slice()));
        assert_eq!(underlay.paths[&ip("10.0.0.2")].source, ip("10.0.0.1"));
        let mut near: Vec<IpAddr> = underlay.neighbours.keys().map(|(_, address)| *address).collect();
        near.sort();
        assert_eq!(near, [ip("10.0.0.2"), ip("10.0.0.9")]);
    }

    #[test]
    fn routers_of_an_uplink_are_those_that_the_kernel_prefers() {
        let desired = desired("");
        let way = |ifindex, metric, gateway| Way {
            ifindex,
            prefix: "0.0.0.0/0".parse().unwrap(),
            metric,
            gateway: Some(ip(gateway)),
        };
        let ways = vec![way(3, 100, "10.0.0.77"), way(3, 200, "10.0.0.78"), way(4, 0, "10.0.0.79")];
        let knowledge = Knowledge { ways: Some(ways), ..knowledge(3) };
        let underlay = knowledge.underlay(&desired, &devices(&desired), &view());
        let everywhere: ipnet::IpNet = "0.0.0.0/0".parse().unwrap();
        assert_eq!(underlay.ways, [("u".to_owned(), [(everywhere, Some(ip("10.0.0.77")))].into())].into());
        assert!(underlay.neighbours.contains_key(&(DeviceId(7), ip("10.0.0.77"))));
    }

    #[test]
    fn a_way_by_another_interface_is_no_way() {
        let desired = desired("");
        let underlay = knowledge(4).underlay(&desired, &devices(&desired), &view());
        assert!(underlay.paths.is_empty());
    }

    #[test]
    fn tunnels_start_at_an_address_that_the_uplink_was_told() {
        let desired = desired("addresses = [\"10.9.9.9\"]");
        let underlay = knowledge(3).underlay(&desired, &devices(&desired), &view());
        assert_eq!(underlay.uplinks["u"].addresses, [ip("10.9.9.9")]);
        assert_eq!(underlay.paths[&ip("10.0.0.2")].source, ip("10.9.9.9"));
    }

    #[test]
    fn a_learnt_mtu_is_bounded_below_told_once_and_forgotten_in_time() {
        let (mut knowledge, start) = (knowledge(3), Instant::now());
        assert!(!knowledge.learn(ip("10.0.0.3"), 1400, start), "no peer");
        assert!(knowledge.learn(ip("10.0.0.2"), 1400, start));
        assert!(!knowledge.learn(ip("10.0.0.2"), 1400, start));
        assert!(knowledge.learn(ip("10.0.0.2"), 68, start));
        assert_eq!(knowledge.learnt[&ip("10.0.0.2")].0, 576);
        assert!(!knowledge.expire(&view(), start + LEARNT_FOR / 2));
        assert!(knowledge.expire(&view(), start + LEARNT_FOR));
    }

    #[test]
    fn a_neighbour_that_does_not_answer_is_sought_for_a_while() {
        let (mut knowledge, start) = (knowledge(3), Instant::now());
        knowledge.want(3, ip("10.0.0.77"), start);
        knowledge.want(3, ip("10.0.0.78"), start);
        knowledge.expire(&view(), start + SOUGHT_FOR);
        assert_eq!(knowledge.wanted.len(), 1, "the one that answers stays");
    }
}
