//! Policies and services: compiled apart from the other tables, since they can be refused and since backends keep their
//! numbers from one compile to the next.

use std::net::IpAddr;
use std::sync::Arc;

use penstock_api::Fault;
use penstock_api::model::{Key, Name};
use penstock_io::TicksPerSecond;

use super::desired::{Desired, Mark};
use super::policies::Policies;
use super::service::{Directory, Node, Services, wanted};

/// What packets are decided by beside routes.
#[derive(Clone, Debug, Default)]
pub struct Rulebook {
    /// What endpoints may send and receive.
    pub policies: Arc<Policies>,
    /// Which backends answer for services.
    pub services: Arc<Services>,
}

/// Makes rulebooks, one after the other.
pub struct Author {
    directory: Directory,
    zone: Option<Name>,
    book: Rulebook,
    /// The moment of the configuration, and the node's name then, that the services follow from.
    served: Option<(Mark, Name)>,
}

impl Author {
    /// An author without policies and services; `zone` is the node's, `rate` that of the ticks that packets are timed by.
    #[must_use]
    pub fn new(zone: Option<Name>, rate: TicksPerSecond) -> Author {
        let node = Node { addresses: Vec::new(), zone: zone.as_ref().map(ToString::to_string) };
        Author { directory: Directory::new(node, rate), zone, book: Rulebook::default(), served: None }
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
        self.book.policies = Arc::new(policies);
        self.book.services = self.directory.tables();
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

    /// The node's addresses are these: node ports answer there.
    pub fn set_addresses(&mut self, addresses: &[IpAddr]) {
        let zone = self.zone.as_ref().map(ToString::to_string);
        self.directory.set_node(Node { addresses: addresses.to_vec(), zone });
        self.book.services = self.directory.tables();
    }
}
