//! Policies of the configuration, compiled: what an endpoint may send and receive.
//!
//! ```text
//!  Desired -> penstock_policy::Rules -> Program -> per endpoint: Subject          shared with the snapshot before
//!                                            \---> per network: Lpm of PeerIds    where nothing changed
//! ```
//!
//! Changes are counted, and each endpoint has the number of the last one that was about it ([`Policies::since`]): a
//! connection that was judged then or later need not be judged again.

mod follow;

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use penstock_api::Fault;
use penstock_policy as policy;
use penstock_policy::{CompileError, PeerId, Peers, Program, Subject};

use follow::Followed;

use super::desired::Desired;
use super::lpm::{LeftAligned, Lpm, key_of};

/// Every policy of the node, compiled.
#[derive(Debug, Default)]
pub struct Policies {
    followed: Followed,
    program: Program,
    epoch: u32,
    /// The last change by which an address lost its endpoint.
    vacated: u32,
    holds: HashMap<String, Hold>,
    peers: HashMap<String, Arc<PeerTable>>,
}

/// What holds for an endpoint, and since which change.
#[derive(Clone, Debug)]
struct Hold {
    network: String,
    addresses: Vec<IpAddr>,
    /// Its program's.
    revision: Option<u64>,
    since: u32,
}

/// Who an address of a network is, to its policies.
#[derive(Debug)]
pub struct PeerTable {
    peers: Arc<Peers>,
    v4: Lpm,
    v6: Lpm,
}

impl PeerTable {
    /// The table of a network's peers; of the one `before` stays what is about prefixes that did not change.
    fn new(peers: Arc<Peers>, before: Option<&PeerTable>) -> PeerTable {
        fn rows(peers: &Peers, ipv4: bool) -> impl Iterator<Item = (LeftAligned, u32)> + '_ {
            peers.rows(ipv4).map(|(bits, len, peer)| (LeftAligned { bits, len }, peer.get()))
        }
        let of_family = |ipv4: bool| match before {
            Some(before) => before.of_family(ipv4).follow(rows(&before.peers, ipv4), rows(&peers, ipv4)),
            None => Lpm::build(rows(&peers, ipv4)),
        };
        let (v4, v6) = (of_family(true), of_family(false));
        PeerTable { peers, v4, v6 }
    }

    #[inline(always)]
    fn of_family(&self, ipv4: bool) -> &Lpm {
        if ipv4 { &self.v4 } else { &self.v6 }
    }

    /// The peer that an address is.
    #[inline]
    #[must_use]
    pub fn look_up(&self, address: IpAddr) -> PeerId {
        match self.of_family(address.is_ipv4()).look_up(key_of(address)) {
            Lpm::NONE => PeerId::OUTSIDE,
            number => PeerId::new(number),
        }
    }

    /// The identities that an address is in.
    #[must_use]
    pub fn identities(&self, address: IpAddr) -> Vec<&str> {
        self.peers.identities(self.look_up(address))
    }
}

impl Policies {
    /// Compiles the policies; what did not change since `before` is taken over.
    ///
    /// # Errors
    /// What is wrong with them, e.g. that the tables of an endpoint would not fit; nothing is compiled then.
    pub fn compile(desired: &Desired, before: &Policies) -> Result<Policies, Vec<Fault>> {
        let followed = before.followed.next(desired);
        // The first compile makes a program of no rules, too.
        let old = (before.epoch != 0).then_some(&before.program);
        let program = match old {
            Some(program) if Arc::ptr_eq(&followed.rules, program.rules()) => program.clone(),
            _ => policy::compile(&followed.rules, old).map_err(faults)?,
        };
        let names = desired.networks().map(|network| network.name.as_str());
        let peers = names.filter_map(|name| {
            let peers = program.peers(name)?;
            let old = before.peers.get(name);
            let kept = old.filter(|old| Arc::ptr_eq(&old.peers, peers)).cloned();
            let new = || Arc::new(PeerTable::new(Arc::clone(peers), old.map(|old| &**old)));
            Some((name.to_owned(), kept.unwrap_or_else(new)))
        });
        let peers = peers.collect();
        let mut policies = Policies {
            followed,
            program,
            epoch: before.epoch,
            vacated: before.vacated,
            holds: HashMap::new(),
            peers,
        };
        policies.count_changes(before);
        Ok(policies)
    }

    /// Finds the endpoints that are decided about in another way than before.
    fn count_changes(&mut self, before: &Policies) {
        // Zero is never an epoch: it stands for decisions of another life of the daemon.
        let next = before.epoch.wrapping_add(1).max(1);
        let hold = |endpoint: &policy::Endpoint| {
            let revision = self.program.endpoint(&endpoint.name).map(|subject| subject.revision());
            let kept = before.holds.get(&endpoint.name).filter(|hold| {
                hold.revision == revision
                    && hold.network == endpoint.network
                    && hold.addresses == endpoint.addresses
            });
            let new = || Hold {
                network: endpoint.network.clone(),
                addresses: endpoint.addresses.clone(),
                revision,
                since: next,
            };
            (endpoint.name.clone(), kept.cloned().unwrap_or_else(new))
        };
        self.holds = self.program.rules().endpoints.iter().map(hold).collect();
        let stays = |(name, old): (&String, &Hold)| {
            self.holds
                .get(name)
                .is_some_and(|now| now.network == old.network && now.addresses == old.addresses)
        };
        if !before.holds.iter().all(stays) {
            self.vacated = next;
        }
        let is_changed = self.vacated == next || self.holds.values().any(|hold| hold.since == next);
        if is_changed || before.epoch == 0 {
            self.epoch = next;
        }
    }

    /// Counts the changes of what policies decide; never zero once compiled.
    #[must_use]
    pub fn epoch(&self) -> u32 {
        self.epoch
    }

    /// The last change that was about an endpoint; now, for one that is not known.
    #[must_use]
    pub fn since(&self, endpoint: &str) -> u32 {
        self.holds.get(endpoint).map_or(self.epoch, |hold| hold.since)
    }

    /// Whether what was decided at `epoch` about a connection still is, given when the last changes were about the
    /// endpoints at its ends ([`Policies::since`]).
    #[must_use]
    pub fn still_holds(&self, epoch: u32, ends: impl IntoIterator<Item = u32>) -> bool {
        // Counted back from now, since the numbers wrap.
        let age = |of: u32| self.epoch.wrapping_sub(of);
        let mut changes = ends.into_iter().chain([self.vacated]);
        epoch != 0 && changes.all(|change| age(epoch) <= age(change))
    }

    /// Bytes that the tables take, about.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.program.bytes()
    }

    /// The program of an endpoint.
    #[must_use]
    pub fn subject(&self, endpoint: &str) -> Option<&Arc<Subject>> {
        self.program.endpoint(endpoint)
    }

    /// The peers of a network.
    #[must_use]
    pub fn peers(&self, network: &str) -> Option<&Arc<PeerTable>> {
        self.peers.get(network)
    }
}

/// The engine's faults say the problem and, behind a semicolon, the mend.
fn faults(error: CompileError) -> Vec<Fault> {
    let fault = |fault: &policy::Fault| {
        let text = fault.to_string();
        let (problem, mend) = text.split_once("; ").unwrap_or((&text, "put the rule right"));
        Fault::new("policies", "", problem.to_owned(), mend)
    };
    error.faults.iter().map(fault).collect()
}
