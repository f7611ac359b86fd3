//! Policies, services and limits: compiled apart from the other tables, since they can be refused and since backends keep
//! their numbers, and endpoints what they may still send, from one compile to the next.

use std::net::IpAddr;
use std::sync::Arc;

use penstock_api::Fault;
use penstock_api::model::{Key, Name, Prefix};
use penstock_io::TicksPerSecond;

use super::desired::{Desired, Mark};
use super::meters::{Meters, meters_of};
use super::policies::Policies;
use super::rule_counts::{LiveCounts, RuleBooks};
use super::service::{Directory, Marks, Node, Services, wanted};
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
    /// The moment of the configuration, and the node's name then, that the services follow from.
    served: Option<(Mark, Name)>,
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
        if self.touches_services(desired) {
            self.serve(desired)?;
        }
        self.book.counts = self.counted.revise(&policies, desired, self.workers);
        self.book.policies = Arc::new(policies);
        self.book.services = self.directory.tables();
        self.book.meters = meters_of(desired, &self.book.meters, self.rate);
        Ok(())
    }

    /// Whether anything changed that services or their backends follow from.
    fn touches_services(&self, desired: &Desired) -> bool {
        let Some((mark, node)) = &self.served else { return true };
        let Some(mut changed) = desired.changed_since(*mark) else { return true };
        let matters = |key: &Key| {
            matches!(key, Key::Network(_) | Key::Endpoint(_) | Key::Service(_) | Key::Backends { .. })
        };
        *node != desired.node.name || changed.any(matters)
    }

    fn serve(&mut self, desired: &Desired) -> Result<(), Vec<Fault>> {
        self.served = None;
        let faults = self.directory.resync(wanted(desired, self.zone.as_ref()));
        if !faults.is_empty() {
            let fault = |fault: super::service::ServiceFault| {
                let text = fault.to_string();
                let (problem, mend) = text.split_once("; ").unwrap_or((&text, "put the service right"));
                Fault::new("services", "", problem.to_owned(), mend)
            };
            return Err(faults.into_iter().map(fault).collect());
        }
        self.served = Some((desired.mark(), desired.node.name.clone()));
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
    pub fn set_addresses(&mut self, addresses: &[IpAddr]) {
        let zone = self.zone.as_ref().map(ToString::to_string);
        let chosen = &self.node_port_prefixes;
        let answers =
            |address: &&IpAddr| chosen.is_empty() || chosen.iter().any(|it| it.net().contains(*address));
        let addresses = addresses.iter().filter(answers).copied().collect();
        self.directory.set_node(Node { addresses, zone });
        self.book.services = self.directory.tables();
    }
}
