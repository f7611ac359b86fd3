//! Policies, services and limits: compiled apart from the other tables, since they can be refused and since backends keep
//! their numbers, and endpoints what they may still send, from one compile to the next.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use penstock_api::Fault;
use penstock_api::model::{Key, Name, Prefix};
use penstock_io::TicksPerSecond;

use super::desired::{Desired, Mark};
use super::meters::{Meters, meters_of};
use super::policies::Policies;
use super::rule_counts::{LiveCounts, RuleBooks};
use super::service::{Directory, Marks, Node, ServiceFault, Services, Wanted};
use crate::snapshot::Epoch;

/// What packets are decided by beside routes.
#[derive(Clone, Debug, Default)]
pub struct Rulebook {
    /// What endpoints may send and receive.
    pub policies: Arc<Policies>,
    /// Which backends answer for services.
    pub services: Arc<Services>,
    /// What endpoints with limits are measured by.
    pub(super) meters: Meters,
    /// What the programs of endpoints are counted by.
    pub(super) counts: Arc<LiveCounts>,
}

/// Makes rulebooks, one after the other.
pub struct Author {
    directory: Directory,
    zone: Option<Name>,
    rate: TicksPerSecond,
    workers: u16,
    counted: RuleBooks,
    /// Where node ports answer, of the node's addresses; everywhere when empty.
    node_port_prefixes: Vec<Prefix>,
    book: Rulebook,
    /// What the services follow from.
    served: Option<Served>,
}

/// The configuration that services were made of.
struct Served {
    mark: Mark,
    /// The node's name.
    node: Name,
    /// Whether backends do not say on which node they are, so that its endpoints do.
    follow_endpoints: bool,
}

impl Served {
    /// The services that may be others by now; `None` if all may.
    fn touched<'a>(&self, desired: &'a Desired) -> Option<BTreeSet<&'a Name>> {
        let mut touched = BTreeSet::new();
        for key in desired.changed_since(self.mark)? {
            match key {
                Key::Service(name) | Key::Backends { service: name, .. } => drop(touched.insert(name)),
                Key::Network(_) => return None,
                Key::Endpoint(_) if self.follow_endpoints => return None,
                _ => {}
            }
        }
        (self.node == desired.node.name).then_some(touched)
    }
}

impl Author {
    /// An author without policies and services; `zone` is the node's, `rate` that of the ticks that packets are timed by.
    #[must_use]
    pub fn new(zone: Option<Name>, rate: TicksPerSecond) -> Author {
        let node = Node { addresses: Vec::new(), zone: zone.as_ref().map(ToString::to_string) };
        Author {
            directory: Directory::new(node, rate),
            zone,
            rate,
            workers: 1,
            counted: RuleBooks::default(),
            node_port_prefixes: Vec::new(),
            book: Rulebook::default(),
            served: None,
        }
    }

    /// The same, with node ports only at those of the node's addresses that lie in these prefixes; at all when there is none.
    #[must_use]
    pub fn with_node_ports_at(self, prefixes: Vec<Prefix>) -> Author {
        Author { node_port_prefixes: prefixes, ..self }
    }

    /// The same, for so many workers to decide by what it writes.
    #[must_use]
    pub fn for_workers(self, workers: u16) -> Author {
        Author { workers, ..self }
    }

    /// What the rules decide, as it is counted.
    #[must_use]
    pub fn counted(&self) -> &RuleBooks {
        &self.counted
    }

    /// The latest rulebook.
    #[must_use]
    pub fn book(&self) -> &Rulebook {
        &self.book
    }

    /// The services in the making.
    #[must_use]
    pub fn directory(&self) -> &Directory {
        &self.directory
    }

    /// Makes the rulebook of a configuration.
    ///
    /// # Errors
    /// What is wrong with policies or services; the rulebook before goes on.
    pub fn revise(&mut self, desired: &Desired) -> Result<(), Vec<Fault>> {
        let policies = Policies::compile(desired, &self.book.policies)?;
        self.serve(desired)?;
        self.book.counts = self.counted.revise(&policies, desired, self.workers);
        self.book.policies = Arc::new(policies);
        self.book.meters = meters_of(desired, &self.book.meters, self.rate);
        Ok(())
    }

    /// Brings the services to what is desired: those that changed, where it is known which.
    fn serve(&mut self, desired: &Desired) -> Result<(), Vec<Fault>> {
        // Until all of it is done, nobody knows which.
        let served = self.served.take();
        let wanted = Wanted::of(desired, self.zone.as_ref());
        let touched = served.as_ref().and_then(|served| served.touched(desired));
        let faults = match &touched {
            Some(names) => {
                names.iter().filter_map(|name| self.directory.set(name.as_str(), wanted.get(name))).collect()
            }
            None => self.directory.resync(wanted.all()),
        };
        if !faults.is_empty() {
            let fault = |fault: ServiceFault| {
                let text = fault.to_string();
                let (problem, mend) = text.split_once("; ").unwrap_or((&text, "put the service right"));
                Fault::new("services", "", problem.to_owned(), mend)
            };
            return Err(faults.into_iter().map(fault).collect());
        }
        if touched.is_none_or(|names| !names.is_empty()) {
            self.book.services = self.directory.tables();
        }
        self.served = Some(Served {
            mark: desired.mark(),
            node: desired.node.name.clone(),
            follow_endpoints: wanted.follows_endpoints() || served.is_some_and(|it| it.follow_endpoints),
        });
        Ok(())
    }

    /// The latest rulebook was published as `epoch`.
    pub fn published(&mut self, epoch: Epoch) {
        self.directory.published(epoch);
    }

    /// Takes back the numbers of former backends: see [`Directory::reclaim`].
    pub fn reclaim(&mut self, slowest: Epoch, marks: &Marks) -> usize {
        self.directory.reclaim(slowest, marks)
    }

    /// The node's addresses are these: node ports answer there, or at those of them that were chosen.
    pub fn set_addresses<'a>(&mut self, addresses: impl IntoIterator<Item = &'a IpAddr>) {
        let zone = self.zone.as_ref().map(ToString::to_string);
        let chosen = &self.node_port_prefixes;
        let answers =
            |address: &&IpAddr| chosen.is_empty() || chosen.iter().any(|it| it.net().contains(*address));
        let addresses = addresses.into_iter().filter(answers).copied().collect();
        if self.directory.set_node(Node { addresses, zone }) {
            self.book.services = self.directory.tables();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use penstock_api::file::parse_objects;
    use penstock_api::model;
    use proptest::prelude::*;

    use super::*;
    use crate::tables::desired::Change;

    fn author() -> Author {
        Author::new(None, TicksPerSecond(1_000_000_000))
    }

    /// Who answers where, and whether on this node; the numbers of backends aside.
    fn answers(author: &Author) -> BTreeMap<String, BTreeSet<String>> {
        let services = &author.book().services;
        let all = services.frontends().map(|(key, port, kind)| {
            let backends =
                port.backends().iter().map(|it| format!("{} {} {}", it.address, it.port, it.is_local));
            (format!("{key:?} {} {kind:?}", port.service()), backends.collect())
        });
        all.collect()
    }

    /// An object of a few that name each other; `is_other` is another form of it.
    fn object(kind: u8, number: u8, is_other: bool) -> String {
        let node = if is_other { ", node = \"n1\"" } else { "" };
        let port = if is_other { 8080 } else { 80 };
        match kind {
            0 => format!(
                "[[service]]\nname = \"s{number}\"\nnetwork = \"n\"\ncluster-ips = [\"10.96.0.{}\"]\n\
                 ports = [{{ name = \"a\", port = {port} }}]\n",
                1 + number / 2
            ),
            1 => format!(
                "[[backends]]\nservice = \"s{number}\"\nslice = \"a\"\nports = [{{ name = \"a\", port = {port} }}]\n\
                 members = [{{ address = \"10.0.0.{number}\"{node} }}]\n"
            ),
            _ => format!(
                "[[endpoint]]\nname = \"e{number}\"\nnetwork = \"n\"\nmac = \"02:00:00:00:00:0{number}\"\n\
                 addresses = [\"10.0.0.{number}\"]\nattachment = {{ tap = {{ interface = \"t{number}\" }} }}\n"
            ),
        }
    }

    proptest! {
        /// Services that follow change by change are those that are made anew.
        #[test]
        fn services_follow_what_changes(
            steps in prop::collection::vec((0..3u8, 1..5u8, any::<bool>(), any::<bool>()), 1..40)
        ) {
            let node = model::Node { name: "n1".parse().unwrap(), mac: None };
            let mut desired = Desired::new(node, None);
            let network = "[[network]]\nname = \"n\"\nvni = 1\n";
            desired.apply(Change::Upsert(parse_objects(network, "test").unwrap())).unwrap();
            let mut following = author();
            for (kind, number, is_other, comes) in steps {
                let objects = parse_objects(&object(kind, number, is_other), "test").unwrap();
                let change = if comes {
                    Change::Upsert(objects)
                } else {
                    Change::Delete(objects.iter().map(model::Object::key).collect())
                };
                // Some are refused: an address that is taken, a slice of a service that is not there.
                if desired.apply(change).is_ok() {
                    following.revise(&desired).unwrap();
                    let mut anew = author();
                    anew.revise(&desired).unwrap();
                    prop_assert_eq!(answers(&following), answers(&anew));
                }
            }
        }
    }
}
