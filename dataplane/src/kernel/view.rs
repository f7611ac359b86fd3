//! What the kernel knows about its links, addresses and neighbours, as plain data that events keep current.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use penstock_wire::MacAddr;

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its name.
    pub name: String,
    /// Its Ethernet address, if it has one.
    pub mac: Option<MacAddr>,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// Whether it is set up.
    pub up: bool,
    /// Whether its lower side works (a cable, a reader, a peer that is up).
    pub carrier: bool,
}

/// How sure the kernel is of a neighbour (`NUD_*`, `linux/neighbour.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NeighbourState {
    /// Being asked for the first time.
    Incomplete,
    /// Confirmed lately.
    Reachable,
    /// Known, not confirmed lately; being checked or not.
    Stale,
    /// Known, and about to be asked or being asked again.
    Probing,
    /// Did not answer.
    Failed,
    /// Set by somebody for good, or of a link without address resolution.
    Permanent,
}

/// A neighbour on a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// Its Ethernet address; kept by the kernel for a while after it failed.
    pub mac: Option<MacAddr>,
    /// How sure the kernel is.
    pub state: NeighbourState,
}

impl Neighbour {
    /// The address to send to, if the kernel would send to it now.
    #[must_use]
    pub fn usable(&self) -> Option<MacAddr> {
        match self.state {
            NeighbourState::Incomplete | NeighbourState::Failed => None,
            _ => self.mac,
        }
    }
}

/// Links, addresses and neighbours of one network namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KernelView {
    /// Interfaces by index.
    pub links: BTreeMap<u32, Link>,
    /// The usable addresses of each interface with their prefix lengths, sorted; interfaces without any are not listed.
    pub addresses: BTreeMap<u32, Vec<IpNet>>,
    /// Neighbours by interface index and address; no multicast ones.
    pub neighbours: BTreeMap<(u32, IpAddr), Neighbour>,
}

/// What differs from what was known before, with its new value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// An interface is new, different or (`None`) gone.
    Link {
        /// Its index.
        ifindex: u32,
        /// What it is now.
        link: Option<Link>,
    },
    /// The addresses of an interface.
    Addresses {
        /// Its index.
        ifindex: u32,
        /// All of them, sorted.
        addresses: Vec<IpNet>,
    },
    /// A neighbour is new, different or (`None`) gone.
    Neighbour {
        /// The interface's index.
        ifindex: u32,
        /// The neighbour's address.
        address: IpAddr,
        /// What it is now.
        neighbour: Option<Neighbour>,
    },
    /// Routes may lead elsewhere: paths are to be asked for again.
    Routes,
}

/// What one message of the kernel says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Event {
    Link(u32, Link),
    LinkGone(u32),
    Address(u32, IpNet),
    AddressGone(u32, IpNet),
    Neighbour(u32, IpAddr, Neighbour),
    NeighbourGone(u32, IpAddr),
    Route,
}

/// The part of the view that an event touched. A storm of events about one thing is one key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Key {
    Link(u32),
    Addresses(u32),
    Neighbour(u32, IpAddr),
    Routes,
}

impl KernelView {
    /// The index of the interface of this name.
    #[must_use]
    pub fn ifindex(&self, name: &str) -> Option<u32> {
        self.links.iter().find(|(_, link)| link.name == name).map(|(index, _)| *index)
    }

    /// A neighbour, if the kernel has heard of it.
    #[must_use]
    pub fn neighbour(&self, ifindex: u32, address: IpAddr) -> Option<&Neighbour> {
        self.neighbours.get(&(ifindex, address))
    }

    /// Whether `address` is one of the node's own, on whatever interface.
    #[must_use]
    pub fn is_local(&self, address: IpAddr) -> bool {
        self.addresses.values().flatten().any(|net| net.addr() == address)
    }

    /// Makes a change that a [`super::Watcher`] reported.
    pub fn apply(&mut self, change: &Change) {
        match change {
            Change::Link { ifindex, link } => set(&mut self.links, *ifindex, link.clone()),
            Change::Addresses { ifindex, addresses } => {
                let some = (!addresses.is_empty()).then(|| addresses.clone());
                set(&mut self.addresses, *ifindex, some);
            }
            Change::Neighbour { ifindex, address, neighbour } => {
                set(&mut self.neighbours, (*ifindex, *address), *neighbour);
            }
            Change::Routes => {}
        }
    }

    /// Takes an event in and adds what it touched to `touched`; one that says nothing new touches nothing.
    pub(super) fn take(&mut self, event: Event, touched: &mut BTreeSet<Key>) {
        match event {
            Event::Link(index, link) => {
                if self.links.get(&index) != Some(&link) {
                    self.links.insert(index, link);
                    // The kernel drops a downed interface's IPv4 routes without a message.
                    touched.extend([Key::Link(index), Key::Routes]);
                }
            }
            Event::LinkGone(index) => self.forget(index, touched),
            Event::Address(index, address) => {
                let addresses = self.addresses.entry(index).or_default();
                if let Err(at) = addresses.binary_search(&address) {
                    addresses.insert(at, address);
                    touched.extend([Key::Addresses(index), Key::Routes]);
                }
            }
            Event::AddressGone(index, address) => {
                let Some(addresses) = self.addresses.get_mut(&index) else { return };
                if let Ok(at) = addresses.binary_search(&address) {
                    addresses.remove(at);
                    touched.extend([Key::Addresses(index), Key::Routes]);
                }
                if addresses.is_empty() {
                    self.addresses.remove(&index);
                }
            }
            Event::Neighbour(index, address, neighbour) => {
                if self.neighbours.insert((index, address), neighbour) != Some(neighbour) {
                    touched.insert(Key::Neighbour(index, address));
                }
            }
            Event::NeighbourGone(index, address) => {
                if self.neighbours.remove(&(index, address)).is_some() {
                    touched.insert(Key::Neighbour(index, address));
                }
            }
            Event::Route => {
                touched.insert(Key::Routes);
            }
        }
    }

    /// Forgets an interface and all that hung on it: its index may be given to another.
    fn forget(&mut self, index: u32, touched: &mut BTreeSet<Key>) {
        if self.links.remove(&index).is_some() {
            touched.extend([Key::Link(index), Key::Routes]);
        }
        if self.addresses.remove(&index).is_some() {
            touched.insert(Key::Addresses(index));
        }
        self.neighbours.retain(|(of, address), _| {
            let stays = *of != index;
            if !stays {
                touched.insert(Key::Neighbour(*of, *address));
            }
            stays
        });
    }

    /// What is to be said about `key` now.
    pub(super) fn change(&self, key: Key) -> Change {
        match key {
            Key::Link(ifindex) => Change::Link { ifindex, link: self.links.get(&ifindex).cloned() },
            Key::Addresses(ifindex) => Change::Addresses {
                ifindex,
                addresses: self.addresses.get(&ifindex).cloned().unwrap_or_default(),
            },
            Key::Neighbour(ifindex, address) => {
                Change::Neighbour { ifindex, address, neighbour: self.neighbour(ifindex, address).copied() }
            }
            Key::Routes => Change::Routes,
        }
    }

    /// Adds to `touched` all in which the two views differ.
    pub(super) fn differences(&self, other: &KernelView, touched: &mut BTreeSet<Key>) {
        touched.extend(unequal(&self.links, &other.links).map(Key::Link));
        touched.extend(unequal(&self.addresses, &other.addresses).map(Key::Addresses));
        touched.extend(
            unequal(&self.neighbours, &other.neighbours)
                .map(|(index, address)| Key::Neighbour(index, address)),
        );
    }
}

fn set<K: Ord, V>(map: &mut BTreeMap<K, V>, key: K, value: Option<V>) {
    match value {
        Some(value) => drop(map.insert(key, value)),
        None => drop(map.remove(&key)),
    }
}

/// Keys that one map has and the other has not, or has otherwise.
fn unequal<'a, K: Ord + Copy, V: PartialEq>(
    one: &'a BTreeMap<K, V>,
    other: &'a BTreeMap<K, V>,
) -> impl Iterator<Item = K> + 'a {
    let gone_or_other = one.iter().filter(|(key, value)| other.get(key) != Some(value));
    let new = other.iter().filter(|(key, _)| !one.contains_key(key));
    gone_or_other.chain(new).map(|(key, _)| *key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn link(name: &str, up: bool) -> Link {
        Link { name: name.into(), mac: Some(MacAddr([2, 0, 0, 0, 0, 1])), mtu: 1500, up, carrier: up }
    }

    fn neighbour(state: NeighbourState) -> Neighbour {
        Neighbour { mac: Some(MacAddr([2, 0, 0, 0, 0, 2])), state }
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn view(events: impl IntoIterator<Item = Event>) -> KernelView {
        let mut view = KernelView::default();
        events.into_iter().for_each(|event| view.take(event, &mut BTreeSet::new()));
        view
    }

    fn touches(view: &mut KernelView, event: Event) -> Vec<Key> {
        let mut touched = BTreeSet::new();
        view.take(event, &mut touched);
        touched.into_iter().collect()
    }

    #[test]
    fn an_event_that_says_nothing_new_touches_nothing() {
        let events = [
            Event::Link(3, link("eth0", true)),
            Event::Address(3, net("10.0.0.1/24")),
            Event::Neighbour(3, ip("10.0.0.2"), neighbour(NeighbourState::Reachable)),
        ];
        let mut view = view(events.clone());
        for event in events {
            assert_eq!(touches(&mut view, event), []);
        }
        assert_eq!(touches(&mut view, Event::NeighbourGone(3, ip("10.0.0.9"))), []);
        assert_eq!(touches(&mut view, Event::AddressGone(3, net("10.0.0.1/25"))), []);
        assert_eq!(touches(&mut view, Event::LinkGone(4)), []);
    }

    #[test]
    fn a_link_or_an_address_may_turn_routes() {
        let mut view = view([]);
        assert_eq!(touches(&mut view, Event::Link(3, link("eth0", true))), [Key::Link(3), Key::Routes]);
        assert_eq!(
            touches(&mut view, Event::Address(3, net("10.0.0.1/24"))),
            [Key::Addresses(3), Key::Routes]
        );
        assert_eq!(touches(&mut view, Event::Link(3, link("eth0", false))), [Key::Link(3), Key::Routes]);
    }

    #[test]
    fn a_link_that_goes_takes_its_addresses_and_neighbours_along() {
        let mut view = view([
            Event::Link(3, link("eth0", true)),
            Event::Link(4, link("eth1", true)),
            Event::Address(3, net("10.0.0.1/24")),
            Event::Address(4, net("10.0.1.1/24")),
            Event::Neighbour(3, ip("10.0.0.2"), neighbour(NeighbourState::Stale)),
            Event::Neighbour(4, ip("10.0.1.2"), neighbour(NeighbourState::Stale)),
        ]);
        let touched = touches(&mut view, Event::LinkGone(3));
        assert_eq!(
            touched,
            [Key::Link(3), Key::Addresses(3), Key::Neighbour(3, ip("10.0.0.2")), Key::Routes]
        );
        assert_eq!(view.links.len() + view.addresses.len() + view.neighbours.len(), 3);
        assert_eq!(view.change(Key::Link(3)), Change::Link { ifindex: 3, link: None });
    }

    #[test]
    fn a_neighbour_is_usable_while_the_kernel_would_use_it() {
        for state in [NeighbourState::Reachable, NeighbourState::Stale, NeighbourState::Probing] {
            assert!(neighbour(state).usable().is_some());
        }
        assert!(neighbour(NeighbourState::Permanent).usable().is_some());
        assert!(neighbour(NeighbourState::Failed).usable().is_none());
        assert!(Neighbour { mac: None, state: NeighbourState::Reachable }.usable().is_none());
    }

    #[test]
    fn local_addresses_are_those_of_every_interface() {
        let view = view([Event::Address(1, net("127.0.0.1/8")), Event::Address(3, net("fd00::1/64"))]);
        assert!(view.is_local(ip("fd00::1")) && view.is_local(ip("127.0.0.1")));
        assert!(!view.is_local(ip("fd00::2")) && !view.is_local(ip("127.0.0.2")));
    }

    fn events() -> impl Strategy<Value = Event> {
        let address = || (0..4u8).prop_map(|host| ip(&format!("10.0.0.{host}")));
        let net = || (0..4u8).prop_map(|host| net(&format!("10.0.0.{host}/24")));
        let state = prop_oneof![Just(NeighbourState::Reachable), Just(NeighbourState::Failed)];
        prop_oneof![
            (0..3u32, any::<bool>()).prop_map(|(index, up)| Event::Link(index, link("eth", up))),
            (0..3u32).prop_map(Event::LinkGone),
            (0..3u32, net()).prop_map(|(index, net)| Event::Address(index, net)),
            (0..3u32, net()).prop_map(|(index, net)| Event::AddressGone(index, net)),
            (0..3u32, address(), state).prop_map(|(i, address, state)| Event::Neighbour(
                i,
                address,
                neighbour(state)
            )),
            (0..3u32, address()).prop_map(|(index, address)| Event::NeighbourGone(index, address)),
            Just(Event::Route),
        ]
    }

    proptest! {
        #[test]
        fn applying_the_changes_gives_the_same_view(
            before in prop::collection::vec(events(), 0..20),
            after in prop::collection::vec(events(), 0..20),
        ) {
            let mut kernel = view(before);
            let (mut consumer, mut touched) = (kernel.clone(), BTreeSet::new());
            after.into_iter().for_each(|event| kernel.take(event, &mut touched));
            let mut resynced = consumer.clone();
            touched.iter().for_each(|key| consumer.apply(&kernel.change(*key)));
            prop_assert_eq!(&consumer, &kernel);

            let mut differing = BTreeSet::new();
            resynced.differences(&kernel, &mut differing);
            prop_assert!(differing.is_subset(&touched));
            differing.iter().for_each(|key| resynced.apply(&kernel.change(*key)));
            prop_assert_eq!(&resynced, &kernel);
        }
    }
}
