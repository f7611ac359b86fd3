//! What the daemon before left behind that goes on: its connections, and what its uplinks took from the kernel.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use penstock_wire::proto;

use crate::conntrack::{Connection, Direction, Fate, NetworkId, Owner, Parties, Resettled, Table};
use crate::tables::Snapshot;
use crate::tables::desired::Desired;
use crate::tables::service::{BackendId, Protocol};

/// How long objects that only the control interface tells of may be late after a restart.
const LATE: Duration = Duration::from_secs(60);
/// Stands for a backend of the daemon before, whose number means nothing any more: no backend has it.
const FORMER_BACKEND: u32 = Parties::MOST_BACKEND;

/// The daemon before, as long as not everything of its is the present one's.
#[derive(Debug)]
pub(super) struct Former {
    /// Until then its uplinks' rules count: the services and pools that they follow from may still be told.
    until: Option<Instant>,
    /// Whether somebody has told everything that there is: an endpoint that is not known by now is gone.
    is_told: bool,
    /// Whether it had connections whose parties are not known yet.
    has_orphans: bool,
}

/// Whose a connection is that the daemon before had opened: its numbers for endpoints and backends are not the present
/// one's, which will know them by their addresses.
pub(super) fn as_former(parties: Parties) -> Parties {
    let former = |owner: Owner| if owner.number().is_some() { Owner::FORMER } else { owner };
    Parties {
        owner: former(parties.owner),
        receiver: former(parties.receiver),
        backend: if parties.backend == 0 { 0 } else { FORMER_BACKEND },
    }
}

impl Former {
    /// A daemon that left `connections`.
    pub(super) fn that_left(connections: u32, now: Instant) -> Former {
        Former { until: Some(now + LATE), is_told: false, has_orphans: connections > 0 }
    }

    /// Whether what its uplinks took is still to be taken.
    pub(super) fn rules_count(&self) -> bool {
        self.until.is_some()
    }

    /// Nothing of it counts any more but its connections.
    pub(super) fn is_replaced(&mut self) {
        self.until = None;
    }

    /// Somebody has told everything that there is.
    pub(super) fn is_known_to_all(&mut self) {
        self.is_told = true;
    }

    /// Whether it has just been waited for long enough.
    pub(super) fn is_over(&mut self, now: Instant) -> bool {
        let over = self.until.is_some_and(|until| until <= now);
        if over {
            self.until = None;
        }
        over
    }

    /// Gives its connections to the endpoints and backends that `snapshot` knows, and ends those whose endpoints are gone.
    pub(super) fn hand_over(&mut self, table: &Table, snapshot: &Snapshot, desired: &Desired) -> Resettled {
        if !self.has_orphans {
            return Resettled::default();
        }
        let heirs = Heirs { snapshot, owners: owners(snapshot, desired), former: self };
        let resettled = table.resettle(0..table.capacity(), |connection| heirs.fate(connection));
        // What is told later may still claim some.
        self.has_orphans = self.rules_count() || table.share(Owner::FORMER).0 > 0;
        resettled
    }
}

/// Who may claim the connections of the daemon before.
struct Heirs<'a> {
    snapshot: &'a Snapshot,
    /// Endpoints by their addresses; `None` for one that is wanted and not open yet.
    owners: HashMap<(NetworkId, IpAddr), Option<Owner>>,
    former: &'a Former,
}

impl Heirs<'_> {
    fn fate(&self, connection: &Connection) -> Fate {
        let (came, sent) = (&connection.original, connection.leaves_as(Direction::Original));
        let parties = connection.parties;
        let claimed = [
            self.claim(parties.owner, came.network(), came.src()),
            self.claim(parties.receiver, sent.network(), sent.dst()),
        ];
        let ([Some(owner), Some(receiver)], Some(backend)) = (claimed, self.backend(connection)) else {
            return Fate::Ends;
        };
        let claimed = Parties { owner, receiver, backend };
        if claimed == parties { Fate::Stays } else { Fate::Passes(claimed) }
    }

    /// Whose an end of a connection is; `None` if its endpoint is gone.
    fn claim(&self, owner: Owner, network: NetworkId, address: IpAddr) -> Option<Owner> {
        if owner != Owner::FORMER {
            return Some(owner);
        }
        match self.owners.get(&(network, address)) {
            Some(endpoint) => Some(endpoint.unwrap_or(owner)),
            None => (!self.former.is_told).then_some(owner),
        }
    }

    /// Which backend a connection is for, as parties have it; `None` if it is to end, since its backend is gone: datagrams
    /// would go there for as long as their sender keeps its port, where a connection of TCP or SCTP breaks by itself.
    fn backend(&self, connection: &Connection) -> Option<u32> {
        let backend = connection.parties.backend;
        if backend != FORMER_BACKEND {
            return Some(backend);
        }
        if let Some(known) = backend_of(self.snapshot, connection) {
            return Some(known.number() + 1);
        }
        match connection.original.protocol() {
            _ if self.former.rules_count() => Some(backend),
            proto::UDP => None,
            _ => Some(0),
        }
    }
}

/// The backend of a connection by what its client asked and who answers.
fn backend_of(snapshot: &Snapshot, connection: &Connection) -> Option<BackendId> {
    let (asked, sent) = (&connection.original, connection.leaves_as(Direction::Original));
    let protocol = Protocol::of(asked.protocol())?;
    let (at, backend) = ((asked.dst(), asked.dport()), (sent.dst(), sent.dport()));
    let known = snapshot.network(asked.network()).or_else(|| snapshot.network(sent.network()));
    // What came from outside and goes on outside is of no network: the service's may be any.
    let any = snapshot.networks.iter().map(|network| &**network).filter(|_| known.is_none());
    let mut networks = known.into_iter().chain(any);
    networks.find_map(|network| snapshot.services.backend_of(network.vni, at, protocol, backend))
}

/// Who has which addresses.
fn owners(snapshot: &Snapshot, desired: &Desired) -> HashMap<(NetworkId, IpAddr), Option<Owner>> {
    let mut owners = HashMap::new();
    let vnis: HashMap<&str, _> = desired.networks().map(|it| (it.name.as_str(), it.vni)).collect();
    for endpoint in desired.endpoints() {
        let vni = vnis.get(endpoint.network.as_str()).and_then(|vni| NetworkId::new(vni.get()));
        owners.extend(
            vni.into_iter().flat_map(|id| endpoint.addresses.iter().map(move |&it| ((id, it), None))),
        );
    }
    for endpoint in &snapshot.endpoints {
        let Some(network) = snapshot.networks.get(endpoint.network as usize) else { continue };
        let Some(id) = NetworkId::new(network.vni.get()) else { continue };
        let owner = Owner::endpoint(endpoint.device.0);
        owners.extend(endpoint.addresses.iter().map(|&address| ((id, address), Some(owner))));
    }
    owners
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conntrack::{
        Decision, HashSeed, Limits, Memory, Opening, Plan, Seconds, Settings, State, Status, Tuple, WorkerId,
    };
    use crate::tables::desired::Change;
    use crate::testbed::{self, FIRST_ENDPOINT, Testbed};
    use penstock_api::model::Key;

    const NOW: Seconds = Seconds(1);
    const PLAN: Plan = Plan { capacity: 64, owners: 16, workers: 1 };
    const SEED: HashSeed = HashSeed::new([1, 2]);
    const SERVICE: &str = r#"
        [[service]]
        name = "dns"
        network = "default"
        cluster-ips = ["10.96.0.1"]
        ports = [{ name = "dns", port = 53, protocol = "udp" }]
        [[backends]]
        service = "dns"
        ports = [{ name = "dns", port = 5353 }]
        members = [{ address = "10.1.1.2" }]
    "#;

    fn node() -> Testbed {
        testbed::node(&(testbed::two_pods("veth") + SERVICE), &[testbed::NODE.into()])
    }

    fn tuple(protocol: u8, src: [u8; 4], sport: u16, dst: [u8; 4], dport: u16) -> Tuple {
        let snapshot = node().publisher.current();
        let network = NetworkId::new(snapshot.networks[0].vni.get()).unwrap();
        Tuple::new(network, src.into(), dst.into(), protocol, sport, dport).unwrap()
    }

    const POD_B: [u8; 4] = [10, 1, 1, 2];
    const ASKED: [u8; 4] = [10, 96, 0, 1];

    /// A table that another daemon has left: a question to the service, a connection between the two pods, one from outside,
    /// and one of a pod that this daemon does not know.
    fn left_behind() -> (Table, u32) {
        let memory = Memory::private(PLAN.capacity).unwrap();
        let (table, _) = Table::over(memory, SEED, PLAN, NOW, |_| None).unwrap();
        let create = |original: Tuple, forwarded: Tuple, state, parties| {
            let (status, decision) = (Status::of(state), Decision::default());
            let opening = Opening { original, forwarded, status, parties, decision };
            table.create(WorkerId(0), &opening, Limits::NONE, &Settings::default(), NOW).unwrap()
        };
        // Numbers that the daemon before gave: others than the present one's.
        let (one, two, three) = (Owner::endpoint(7), Owner::endpoint(8), Owner::endpoint(9));
        let question = tuple(17, testbed::POD_A, 1000, ASKED, 53);
        let asked = question.with_destination(POD_B.into(), 5353).unwrap();
        let of = |owner, receiver, backend| Parties { owner, receiver, backend };
        create(question, asked, State::UdpUnreplied, of(one, two, 78));
        let inside = tuple(6, testbed::POD_A, 1001, POD_B, 80);
        create(inside, inside, State::Established, of(one, two, 0));
        let outside = tuple(6, testbed::REMOTE_POD, 1002, POD_B, 80);
        create(outside, outside, State::Established, of(Owner::OUTSIDE, two, 0));
        let lost = tuple(6, [10, 1, 1, 99], 1003, testbed::REMOTE_POD, 80);
        create(lost, lost, State::Established, of(three, Owner::NOBODY, 0));
        let (table, adoption) =
            Table::over(memory, SEED, PLAN, NOW, |connection| Some(as_former(connection.parties))).unwrap();
        (table, adoption.kept)
    }

    fn parties(table: &Table, tuple: &Tuple) -> Option<Parties> {
        Some(table.view(table.find(tuple, NOW)?.connection)?.parties)
    }

    #[test]
    fn adopted_connections_know_their_endpoints_and_backends_again() {
        let (node, (table, kept)) = (node(), left_behind());
        let mut former = Former::that_left(kept, Instant::now());
        assert_eq!((kept, table.share(Owner::FORMER), table.share(Owner::OUTSIDE)), (4, (6, 0), (1, 0)));
        let snapshot = node.publisher.current();
        assert_eq!(former.hand_over(&table, &snapshot, &node.desired).passed, 3);
        let [a, b] = [0, 1].map(|number| Owner::endpoint(FIRST_ENDPOINT + number));
        let question = parties(&table, &tuple(17, testbed::POD_A, 1000, ASKED, 53)).unwrap();
        let backend = BackendId::new(question.backend - 1).and_then(|id| snapshot.services.backend(id));
        let (port, backend) = backend.expect("its backend is known");
        assert_eq!((port.service(), backend.address, backend.port), ("dns", POD_B.into(), 5353));
        assert_eq!((question.owner, question.receiver), (a, b));
        let shares = || [a, b, Owner::OUTSIDE, Owner::FORMER].map(|owner| table.share(owner).0);
        assert_eq!(shares(), [2, 3, 1, 1]);
        assert_eq!(former.hand_over(&table, &snapshot, &node.desired), Resettled::default());
        // Its endpoint may still be told of, until somebody has told everything.
        former.is_replaced();
        former.is_known_to_all();
        let ended = Resettled { passed: 0, ended: 1 };
        assert_eq!(former.hand_over(&table, &snapshot, &node.desired), ended);
        assert_eq!((shares(), table.counts().live), ([2, 3, 1, 0], 3));
    }

    #[test]
    fn datagrams_to_a_backend_that_went_meanwhile_are_not_sent_there_any_more() {
        let (mut node, (table, kept)) = (node(), left_behind());
        let key = Key::Backends { service: "dns".parse().unwrap(), slice: "main".parse().unwrap() };
        node.desired.apply(Change::Delete(vec![key])).unwrap();
        node.publish();
        let mut former = Former::that_left(kept, Instant::now());
        let snapshot = node.publisher.current();
        former.hand_over(&table, &snapshot, &node.desired);
        let question = tuple(17, testbed::POD_A, 1000, ASKED, 53);
        let waits = parties(&table, &question).expect("its service may be told of late");
        assert_eq!(waits.backend.checked_sub(1).and_then(BackendId::new), None);
        assert!(former.is_over(Instant::now() + LATE));
        assert_eq!(former.hand_over(&table, &snapshot, &node.desired).ended, 1);
        assert_eq!(parties(&table, &question), None);
    }

    #[test]
    fn connections_of_an_endpoint_that_is_not_open_yet_wait_for_it() {
        let (mut node, (table, kept)) = (node(), left_behind());
        let b = node.underlay.endpoints.remove("b").unwrap();
        node.publish();
        let mut former = Former::that_left(kept, Instant::now());
        former.is_replaced();
        former.is_known_to_all();
        former.hand_over(&table, &node.publisher.current(), &node.desired);
        let inside = tuple(6, testbed::POD_A, 1001, POD_B, 80);
        assert_eq!(parties(&table, &inside).unwrap().receiver, Owner::FORMER);
        node.underlay.endpoints.insert("b".into(), b);
        node.publish();
        former.hand_over(&table, &node.publisher.current(), &node.desired);
        assert_eq!(parties(&table, &inside).unwrap().receiver, Owner::endpoint(b.0));
    }
}
