//! Stages 3 to 7 of a packet that connections are kept of: its connection, or the service, route, policies and source
//! address of a new one.

use std::net::IpAddr;

use penstock_policy::{Direction as Side, Packet as Judged, Verdict as Ruling};
use penstock_wire::parse::Fragment;
use penstock_wire::reply::{Problem, Unreachable};
use penstock_wire::rewrite::Change;

use super::link::link;
use super::words::{describe_target, describe_tuple, matching_row};
use super::{Facts, Scene, Verdict, Watch, Way, key_of};
use crate::conntrack::{
    Connection, Decision, Direction, Limits, Match, NetworkId, Opening, Owner, Parties, Progress, Refused,
    State, Status, Tuple, life, nat,
};
use crate::drop::{Cause, Reason};
use crate::flow::Tracked;
use crate::tables::service::{Answer, Chosen, DropCause, Origin, Protocol, Query, SourceNat};
use crate::tables::{Endpoint, Network, Snapshot, Target, Zone};
use crate::tracker::Tracker;

/// What a connection's word of decision says.
mod ruling {
    /// Both ends let it through.
    pub(super) const ALLOWED: u16 = 0;
    /// The sender's egress rules refuse it.
    pub(super) const EGRESS: u16 = 1;
    /// The receiver's ingress rules refuse it.
    pub(super) const INGRESS: u16 = 2;
}

/// A packet on its way through the stages.
pub(super) struct Stages<'a, W> {
    pub(super) scene: Scene<'a>,
    pub(super) tracker: &'a Tracker,
    pub(super) zone: Zone,
    pub(super) network: &'a Network,
    pub(super) packet: &'a Facts,
    pub(super) watch: &'a mut W,
}

/// Where a packet goes once its destination is known.
struct Routed<'a> {
    network: &'a Network,
    target: &'a Target,
}

/// The local ends of a connection.
struct Ends<'a> {
    /// The network whose policies count.
    home: &'a Network,
    from: Option<&'a Endpoint>,
    to: Option<&'a Endpoint>,
}

impl<'a, W: Watch> Stages<'a, W> {
    /// The verdict about a packet that is from `tuple`'s source to its destination as it came.
    pub(super) fn run(&mut self, tuple: Tuple) -> Verdict {
        // Twice: another worker may have opened or ended the connection in between.
        for _ in 0..2 {
            let now = self.tracker.seconds(self.scene.now);
            let known = self.tracker.table.find(&tuple, now);
            let verdict = match known.and_then(|it| Some((it, self.tracker.table.view(it.connection)?))) {
                Some((found, connection)) => self.follow(found, &connection),
                None => self.open(tuple),
            };
            if let Some(verdict) = verdict {
                return verdict;
            }
        }
        Verdict::Drop(Cause::ConnectionContended.into())
    }

    fn snapshot(&self) -> &'a Snapshot {
        self.scene.snapshot
    }

    /// Stage 3: a packet of a known connection. `None` if the connection is over, so that the packet opens a new one.
    fn follow(&mut self, found: Match, connection: &Connection) -> Option<Verdict> {
        let Match { direction, .. } = found;
        self.watch.stage("connection", || {
            let way = if direction == Direction::Original { "known" } else { "answer" };
            (way.into(), format!("{} ({:?})", describe_tuple(&connection.original), connection.status.state))
        });
        if let Some(cause) = self.still_refused(connection) {
            return Some(Verdict::Drop(cause.into()));
        }
        let status = match self.advance(found) {
            Ok(Some(status)) => status,
            Ok(None) => return None,
            Err(verdict) => return Some(verdict),
        };
        let (arrives, leaves) = (connection.arrives_as(direction), connection.leaves_as(direction));
        let routed = match self.route(&leaves) {
            Ok(routed) => routed,
            Err(verdict) => return Some(verdict),
        };
        let tracked = Tracked { connection: connection.reference, direction };
        Some(self.link(routed, &arrives, &leaves, tracked, status.is_cacheable()))
    }

    /// Takes the connection on by this packet. `Ok(None)` if the packet opens a new one in its place.
    fn advance(&mut self, found: Match) -> Result<Option<Status>, Verdict> {
        let Tracker { table, settings, worker, .. } = self.tracker;
        if self.scene.is_trial {
            return Ok(Some(found.status));
        }
        let now = self.tracker.seconds(self.scene.now);
        let packet = self.packet.life;
        match table.advance(*worker, found.connection, found.direction, packet, settings, now) {
            Progress::Going(status) | Progress::Ignored(status) => Ok(Some(status)),
            // The packet that ends it still goes its way.
            Progress::Ended => Ok(Some(Status::of(State::Close))),
            Progress::Reopened | Progress::Gone => Ok(None),
            Progress::Invalid(why) => Err(Verdict::Drop(invalid(why).into())),
        }
    }

    /// Whether policies refuse a connection, asking them again if they changed.
    fn still_refused(&mut self, connection: &Connection) -> Option<Cause> {
        let policies = &self.snapshot().policies;
        let (epoch, decided) = (policies.epoch(), connection.decision);
        if decided.epoch == epoch && !self.scene.is_trial {
            return cause_of(decided.verdict);
        }
        let sent = connection.leaves_as(Direction::Original);
        // As it was before its source was translated: rules speak of the sender itself.
        let (src, network) = (connection.original.src(), connection.original.network());
        let ends = self.ends(src, network, &sent);
        let changes = [ends.from, ends.to].into_iter().flatten().map(|endpoint| endpoint.judged_since);
        if !self.scene.is_trial && policies.still_holds(decided.epoch, changes) {
            return cause_of(decided.verdict);
        }
        let verdict = self.judge(&ends, src, &sent);
        if !self.scene.is_trial {
            self.tracker.table.decide(connection.reference, Decision { epoch, verdict });
        }
        cause_of(verdict)
    }

    /// Stages 4 to 7 for the first packet of a connection. `None` if another worker was quicker.
    fn open(&mut self, tuple: Tuple) -> Option<Verdict> {
        let status = match life::open(self.packet.life, &self.tracker.settings) {
            Ok(status) if tuple.may_open() => status,
            Ok(_) => return Some(Verdict::Drop(invalid(life::Invalid::Unsolicited).into())),
            Err(why) => {
                self.watch.stage("connection", || ("drop".into(), format!("{why:?}")));
                return Some(Verdict::Drop(invalid(why).into()));
            }
        };
        self.watch.stage("connection", || ("new".into(), describe_tuple(&tuple)));
        let (mut sent, chosen) = match self.serve(tuple) {
            Ok(served) => served,
            Err(verdict) => return Some(verdict),
        };
        let routed = match self.route(&sent) {
            Ok(routed) => routed,
            Err(verdict) => return Some(verdict),
        };
        let ends = self.ends(tuple.src(), tuple.network(), &sent);
        let verdict = self.judge(&ends, tuple.src(), &sent);
        if let Some(cause) = cause_of(verdict) {
            // Refused connections are not kept: a flood of them would fill the table.
            return Some(Verdict::Drop(cause.into()));
        }
        let pool = match self.source_pool(&tuple, &sent, chosen.as_ref(), &routed) {
            Ok(pool) => pool,
            Err(cause) => return Some(Verdict::Drop(cause.into())),
        };
        if pool.is_some() && !matches!(routed.target, Target::Endpoint(_) | Target::Tunnel { .. }) {
            sent = sent.in_network(NetworkId::default());
        }
        let opening = Opening {
            original: tuple,
            forwarded: sent,
            status,
            parties: Parties {
                owner: self.owner(),
                backend: chosen.map_or(0, |chosen| chosen.backend.number() + 1),
            },
            decision: Decision { epoch: self.snapshot().policies.epoch(), verdict },
        };
        if self.scene.is_trial {
            let leaves = opening.forwarded;
            return Some(self.link(routed, &tuple, &leaves, Tracked::NONE, false));
        }
        match self.create(&opening, pool) {
            Ok(connection) => {
                let leaves = self.tracker.table.view(connection)?.leaves_as(Direction::Original);
                let tracked = Tracked { connection, direction: Direction::Original };
                Some(self.link(routed, &tuple, &leaves, tracked, status.is_cacheable()))
            }
            // Another worker has just opened it.
            Err(Refused::Taken { ours: Direction::Original, .. }) => None,
            Err(refused) => Some(Verdict::Drop(refusal(refused))),
        }
    }

    fn create(
        &self,
        opening: &Opening,
        pool: Option<&nat::Pool>,
    ) -> Result<crate::conntrack::ConnectionRef, Refused> {
        let Tracker { table, settings, worker, .. } = self.tracker;
        let limits = self.limits();
        let now = self.tracker.seconds(self.scene.now);
        match pool {
            Some(pool) => nat::open(table, *worker, opening, pool, limits, settings, now),
            None => table.create(*worker, opening, limits, settings, now),
        }
    }

    /// What whoever opens the connection may have.
    fn limits(&self) -> Limits {
        let Zone::Endpoint { endpoint, .. } = self.zone else { return Limits::NONE };
        let told = self.snapshot().endpoints[endpoint as usize].max_connections;
        let share = self.tracker.share;
        Limits { connections: told.unwrap_or(share.connections), ..share }
    }

    /// Whose share the connection counts against: that of the endpoint which opens it.
    fn owner(&self) -> Owner {
        match self.zone {
            Zone::Endpoint { endpoint, .. } => {
                Owner::endpoint(self.snapshot().endpoints[endpoint as usize].device.0.into())
            }
            _ => Owner::NOBODY,
        }
    }

    /// Stage 4: the backend, if a service is asked.
    fn serve(&mut self, tuple: Tuple) -> Result<(Tuple, Option<Chosen>), Verdict> {
        let Some(protocol) = Protocol::of(self.packet.proto) else { return Ok((tuple, None)) };
        let query = Query {
            network: self.network.vni,
            origin: match self.zone {
                Zone::Endpoint { .. } => Origin::Endpoint,
                Zone::Host { .. } => Origin::Node,
                Zone::Tunnel { .. } => Origin::Cluster,
                Zone::Native { .. } => Origin::Outside,
            },
            src: tuple.src(),
            sport: tuple.sport(),
            dst: tuple.dst(),
            dport: tuple.dport(),
            protocol,
        };
        let services = &self.snapshot().services;
        match services.decide(&query, &self.tracker.affinity, self.scene.now) {
            Answer::NotAService => Ok((tuple, None)),
            Answer::Backend(chosen) => {
                self.watch.stage("service", || {
                    let name = services.find(&query).map_or("?", |(port, _)| port.service());
                    (
                        format!("to {}", std::net::SocketAddr::new(chosen.address, chosen.port)),
                        name.to_owned(),
                    )
                });
                let network = NetworkId::new(chosen.network.get()).unwrap_or_default();
                let sent = tuple.with_destination(chosen.address, chosen.port);
                let sent = sent.ok_or(Verdict::Drop(Cause::NoBackend.into()))?;
                Ok((sent.in_network(network), Some(chosen)))
            }
            Answer::Reject(_) => {
                self.watch.stage("service", || ("refuse".into(), "no backend is ready".into()));
                Err(Verdict::Refuse(Cause::NoBackend.into(), Problem::Unreachable(Unreachable::Port)))
            }
            Answer::Drop(DropCause::NoLocalBackend) => {
                self.watch.stage("service", || ("drop".into(), "no backend is on this node".into()));
                Err(Verdict::Drop(Cause::NoLocalBackend.into()))
            }
            Answer::Drop(DropCause::SourceNotAllowed) => {
                self.watch.stage("service", || ("drop".into(), "the client is in no source range".into()));
                Err(Verdict::Drop(Cause::SourceNotServed.into()))
            }
        }
    }

    /// Stage 5: where the packet goes, as it leaves.
    fn route(&mut self, sent: &Tuple) -> Result<Routed<'a>, Verdict> {
        let snapshot = self.snapshot();
        // What leaves the cluster goes by the routes of the network that it was in.
        let network = snapshot.network(sent.network()).unwrap_or(self.network);
        let Some(target) = network.route(sent.dst()) else {
            self.watch.stage("route", || {
                ("refuse".into(), format!("no route to {} in network {}", sent.dst(), network.name))
            });
            let problem = Problem::Unreachable(Unreachable::Network);
            return Err(Verdict::Refuse(Cause::NoRoute.into(), problem));
        };
        self.watch.stage("route", || (describe_target(snapshot, target), matching_row(network, sent.dst())));
        Ok(Routed { network, target })
    }

    /// Who speaks with whom in a connection from `src` in `network` that goes on as `sent`.
    fn ends(&self, src: IpAddr, network: NetworkId, sent: &Tuple) -> Ends<'a> {
        let snapshot = self.snapshot();
        // A packet from outside meets the policies of the network that it goes to.
        let home =
            snapshot.network(network).or_else(|| snapshot.network(sent.network())).unwrap_or(self.network);
        let endpoint_at = |address: IpAddr| match home.route(address)? {
            Target::Endpoint(endpoint) => Some(&*snapshot.endpoints[*endpoint as usize]),
            _ => None,
        };
        Ends { home, from: endpoint_at(src), to: endpoint_at(sent.dst()) }
    }

    /// Stage 6: what the policies of both ends say of a connection from `src` that goes on as `sent`.
    fn judge(&mut self, ends: &Ends<'a>, src: IpAddr, sent: &Tuple) -> u16 {
        let snapshot = self.snapshot();
        let Ends { home, from, to } = *ends;
        let Some(peers) = snapshot.policies.peers(&home.name) else { return ruling::ALLOWED };
        let is_to_itself = from.zip(to).is_some_and(|(from, to)| from.device == to.device);
        if is_to_itself {
            return ruling::ALLOWED;
        }
        let key = key_of(sent);
        let ask = |peer: IpAddr| Judged { peer: peers.look_up(peer), protocol: sent.protocol(), key };
        if let Some(subject) = from.and_then(|from| from.subject.as_ref()) {
            let ruling = subject.classify(Side::Egress, &ask(sent.dst()));
            self.tell(Side::Egress, subject, ruling);
            if !ruling.allow {
                return ruling::EGRESS;
            }
        }
        // The node's own probes always reach its pods.
        let is_node = snapshot.host.as_ref().is_some_and(|host| host.addresses.contains(&src));
        if let Some(subject) = to.and_then(|to| to.subject.as_ref()).filter(|_| !is_node) {
            let ruling = subject.classify(Side::Ingress, &ask(src));
            self.tell(Side::Ingress, subject, ruling);
            if !ruling.allow {
                return ruling::INGRESS;
            }
        }
        ruling::ALLOWED
    }

    fn tell(&mut self, side: Side, subject: &penstock_policy::Subject, ruling: Ruling) {
        self.watch.stage("policy", || {
            let answer = subject.answer(side, ruling);
            (format!("{side}: {}", if answer.allow { "allow" } else { "deny" }), answer.decider.to_string())
        });
    }

    /// Stage 7: the addresses that the connection leaves from, if not its sender's own.
    fn source_pool(
        &mut self,
        tuple: &Tuple,
        sent: &Tuple,
        chosen: Option<&Chosen>,
        routed: &Routed<'a>,
    ) -> Result<Option<&'a nat::Pool>, Cause> {
        let snapshot = self.snapshot();
        let stands_in = chosen.map_or(SourceNat::Keep, |chosen| chosen.source);
        if stands_in != SourceNat::Keep {
            let why = if stands_in == SourceNat::Hairpin {
                "the client is the backend"
            } else {
                "the backend is remote"
            };
            self.watch.stage("nat", || ("an address of the node".into(), why.into()));
            return snapshot.node_pool.as_deref().map(Some).ok_or(Cause::NoNatAddress);
        }
        let Target::Native { device, peer: None, .. } = routed.target else { return Ok(None) };
        let (src, dst) = (tuple.src(), sent.dst());
        let mut ways = routed.network.masquerades.iter();
        let found = ways.find_map(|way| Some((way, way.pool(src, dst, *device)?)));
        if let Some((way, _)) = found {
            self.watch.stage("nat", || ("an address outside".into(), way.name.clone()));
        }
        Ok(found.map(|(_, pool)| &**pool))
    }

    /// Stage 8, and all that was decided put together.
    fn link(
        &mut self,
        routed: Routed<'a>,
        arrives: &Tuple,
        leaves: &Tuple,
        tracked: Tracked,
        lasts: bool,
    ) -> Verdict {
        if super::loops(self.zone, routed.target) && arrives.dst() == leaves.dst() {
            return Verdict::Drop(Cause::RouteLoop.into());
        }
        let facts = Facts { dst: leaves.dst(), ..*self.packet };
        let verdict = link(self.snapshot(), routed.target, &facts, self.watch);
        super::seen_from(self.snapshot(), self.zone, verdict, |way| Way {
            change: change(arrives, leaves),
            tracked,
            lasts: lasts && self.packet.fragment == Fragment::Whole,
            ..way
        })
    }
}

/// What a packet that came as one tuple gets to leave as another.
fn change(arrives: &Tuple, leaves: &Tuple) -> Option<Change> {
    let unlike = |a: IpAddr, b: IpAddr| (a != b).then_some(b);
    let change = Change {
        src: unlike(arrives.src(), leaves.src()),
        dst: unlike(arrives.dst(), leaves.dst()),
        sport: (arrives.sport() != leaves.sport()).then(|| leaves.sport()),
        dport: (arrives.dport() != leaves.dport()).then(|| leaves.dport()),
    };
    (change != Change::default()).then_some(change)
}

fn cause_of(verdict: u16) -> Option<Cause> {
    match verdict {
        ruling::ALLOWED => None,
        ruling::EGRESS => Some(Cause::EgressPolicy),
        _ => Some(Cause::IngressPolicy),
    }
}

fn invalid(why: life::Invalid) -> Cause {
    match why {
        life::Invalid::Nonsense => Cause::ConnectionNonsense,
        life::Invalid::NotOpened => Cause::ConnectionNotOpened,
        life::Invalid::OutOfTurn => Cause::ConnectionOutOfTurn,
        life::Invalid::Unsolicited => Cause::Unsolicited,
    }
}

fn refusal(refused: Refused) -> Reason {
    match refused {
        Refused::Full => Cause::ConnectionsFull,
        Refused::OwnerLimit | Refused::UnknownOwner => Cause::EndpointConnections,
        Refused::HalfOpenLimit => Cause::EndpointHalfOpen,
        Refused::Contended | Refused::Taken { .. } => Cause::ConnectionContended,
        Refused::Exhausted => Cause::NatExhausted,
    }
    .into()
}
