//! Stages 3 to 7 of a packet that connections are kept of: its connection, or the service, route, policies and source
//! address of a new one.

mod message;
mod related;

use std::net::IpAddr;
use std::sync::Arc;

use penstock_policy::{Direction as Side, Packet as Judged};
use penstock_wire::dsr::ServedAs;
use penstock_wire::parse::Fragment;
use penstock_wire::proto;
use penstock_wire::reply::{Problem, Unreachable};
use penstock_wire::rewrite::Change;

use super::facts;
use super::link::link;
use super::words::{describe_target, describe_tuple, matching_row};
use super::{Facts, Scene, Verdict, Watch, Way, key_of};
use crate::conntrack::{
    Connection, Decision, Direction, Match, NetworkId, Opening, Progress, Refused, Seconds, State, Status,
    Tuple, life, nat,
};
use crate::drop::{Cause, Reason};
use crate::flow::{TemplateId, Tracked};
use crate::ledger::Ruled;
use crate::tables::nat::way_out;
use crate::tables::service::{Answer, BackendId, Chosen, DropCause, Origin, Protocol, Query, SourceNat};
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

/// When policies are asked.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Occasion {
    /// A connection is to be opened.
    Opening,
    /// They have changed since.
    Again,
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
    from: Option<&'a Arc<Endpoint>>,
    to: Option<&'a Arc<Endpoint>>,
}

impl<'a, W: Watch> Stages<'a, W> {
    /// The verdict about a packet that is from `tuple`'s source to its destination as it came.
    pub(super) fn run(&mut self, tuple: Tuple) -> Verdict {
        // Twice: another worker may have opened or ended the connection in between.
        for _ in 0..2 {
            let now = self.tracker.seconds(self.scene.now);
            let known = self.find(&tuple, now);
            let verdict = match known.and_then(|it| Some((it, self.tracker.table.view(it.connection)?))) {
                Some((found, connection)) => self.follow(found, &connection),
                // Its connection was there a moment ago, or it is a packet that opens none.
                None if matches!(self.zone, Zone::Served { .. }) => {
                    Some(Verdict::Drop(Cause::Unsolicited.into()))
                }
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

    fn find(&self, tuple: &Tuple, now: Seconds) -> Option<Match> {
        if !matches!(self.zone, Zone::Served { .. }) {
            return self.tracker.table.find(tuple, now);
        }
        // It comes as it goes on: the node that was asked has rewritten it. Its answers tell its connection.
        let found = self.tracker.table.find(&tuple.inverse(), now)?;
        Some(Match { direction: found.direction.other(), ..found })
    }

    /// Opens the connection of a packet that another node was `asked` for and has `sent` on.
    pub(super) fn admit(&mut self, asked: Tuple, sent: Tuple) -> Result<(), Reason> {
        let status = life::open(self.packet.life, &self.tracker.settings).map_err(invalid)?;
        let ends = self.ends(&asked, &sent);
        let verdict = self.judge(&ends, &asked, &sent, Occasion::Opening);
        if let Some(cause) = cause_of(verdict) {
            return Err(cause.into());
        }
        let decision = Decision { epoch: self.snapshot().policies.epoch(), verdict };
        // The node that was asked counts it among its backend's.
        let parties = self.parties(ends.to, 0);
        let opening = Opening { original: asked, forwarded: sent, status, parties, decision };
        self.meter(ends.to)?;
        match self.create(&opening, ends.to, None) {
            // Another worker may have just opened it.
            Ok(_) | Err(Refused::Taken { ours: Direction::Original, .. }) => Ok(()),
            Err(refused) => Err(self.ran_out(refused, &opening, ends.to, None).into()),
        }
    }

    /// Stage 3: a packet of a known connection. `None` if the connection is over, so that the packet opens a new one.
    fn follow(&mut self, found: Match, connection: &Connection) -> Option<Verdict> {
        let Match { direction, .. } = found;
        self.watch.stage("connection", || {
            let way = if direction == Direction::Original { "known" } else { "answer" };
            let state = facts::state_name(connection.status.state);
            (way.into(), format!("{} ({state})", describe_tuple(&connection.original)))
        });
        self.watch.fact(|| facts::known_connection(connection.status.state, direction));
        if self.is_orphaned(connection) {
            self.tracker.table.remove(self.tracker.worker, connection.reference);
            return None;
        }
        if let Some(cause) = self.still_refused(connection) {
            return Some(Verdict::Drop(cause.into()));
        }
        let status = match self.advance(found) {
            Ok(Some(status)) => status,
            Ok(None) => return None,
            Err(verdict) => return Some(verdict),
        };
        self.tell_translation(connection);
        let leaves = connection.leaves_as(direction);
        let is_rewritten = matches!(self.zone, Zone::Served { .. });
        let arrives = if is_rewritten { leaves } else { connection.arrives_as(direction) };
        let routed = match self.route(&leaves) {
            Ok(routed) => routed,
            Err(verdict) => return Some(verdict),
        };
        let tracked = Tracked { connection: connection.reference, direction };
        // Without an address of ours for the client's, answers from elsewhere do not pass here.
        let is_direct = direction == Direction::Original
            && matches!(self.zone, Zone::Native { .. })
            && matches!(routed.target, Target::Tunnel { .. })
            && connection.translates_destination()
            && !connection.translates_source();
        let verdict = self.link(routed, &arrives, &leaves, tracked, status.is_cacheable());
        Some(if is_direct { self.serve_directly(verdict, &arrives) } else { verdict })
    }

    /// Turns the way to a backend's node into one on which that node is told to answer in the name of what was `asked`.
    fn serve_directly(&mut self, verdict: Verdict, asked: &Tuple) -> Verdict {
        let Verdict::Go(way) = verdict else { return verdict };
        let served = self.served_template(way.action.template(), asked.dst());
        let Some((template, max_len)) = served else { return Verdict::Drop(Cause::PeerUnresolved.into()) };
        self.watch.stage("link", || ("answered directly".into(), "by the backend's node".into()));
        let asked = Some(ServedAs { address: asked.dst(), port: asked.dport() });
        Verdict::Go(Way { action: way.action.serving(template, max_len), asked, ..way })
    }

    /// The template beside `plain` that says what a client asked for, and the longest packet that it carries.
    fn served_template(&self, plain: TemplateId, asked: IpAddr) -> Option<(TemplateId, u16)> {
        let templates = &self.snapshot().templates;
        let id = templates.get(usize::from(plain.0))?.served[usize::from(asked.is_ipv6())]?;
        Some((id, templates.get(usize::from(id.0))?.max_len))
    }

    /// Whether the backend's node can answer the client itself. `Err` while nobody knows the way there.
    fn is_direct(
        &mut self,
        tuple: &Tuple,
        chosen: Option<&Chosen>,
        routed: &Routed<'a>,
    ) -> Result<bool, Verdict> {
        match (chosen, routed.target) {
            (Some(Chosen { is_direct: true, .. }), Target::Tunnel { template, .. }) => match template {
                Some(plain) => Ok(self.served_template(*plain, tuple.dst()).is_some()),
                None => Err(link(self.snapshot(), routed.target, self.packet, self.watch)),
            },
            _ => Ok(false),
        }
    }

    /// Takes the connection on by this packet. `Ok(None)` if the packet opens a new one in its place.
    fn advance(&mut self, found: Match) -> Result<Option<Status>, Verdict> {
        let Tracker { table, settings, worker, .. } = self.tracker;
        if self.scene.is_trial() {
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

    /// Whether a conversation's backend is gone for good: datagrams would go there for as long as their sender keeps its port,
    /// where a connection of TCP or SCTP breaks and is opened anew.
    fn is_orphaned(&self, connection: &Connection) -> bool {
        let backend = connection.parties.backend.checked_sub(1).and_then(BackendId::new);
        let is_gone = backend.is_some_and(|id| self.snapshot().services.backend(id).is_none());
        is_gone && self.packet.proto == proto::UDP && !self.scene.is_trial()
    }

    /// Whether policies refuse a connection, asking them again if they changed.
    fn still_refused(&mut self, connection: &Connection) -> Option<Cause> {
        let policies = &self.snapshot().policies;
        let (epoch, decided) = (policies.epoch(), connection.decision);
        if decided.epoch == epoch && !self.scene.is_trial() {
            return cause_of(decided.verdict);
        }
        let sent = connection.leaves_as(Direction::Original);
        let ends = self.ends(&connection.original, &sent);
        let changes = [ends.from, ends.to].into_iter().flatten().map(|endpoint| endpoint.judged_since);
        if policies.still_holds(decided.epoch, changes) && !self.scene.is_trial() {
            return cause_of(decided.verdict);
        }
        let verdict = self.judge(&ends, &connection.original, &sent, Occasion::Again);
        if !self.scene.is_trial() {
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
        self.watch.fact(facts::new_connection);
        let (mut sent, chosen) = match self.serve(tuple) {
            Ok(served) => served,
            Err(verdict) => return Some(verdict),
        };
        let routed = match self.route(&sent) {
            Ok(routed) => routed,
            Err(verdict) => return Some(verdict),
        };
        let ends = self.ends(&tuple, &sent);
        let verdict = self.judge(&ends, &tuple, &sent, Occasion::Opening);
        if let Some(cause) = cause_of(verdict) {
            // Refused connections are not kept: a flood of them would fill the table.
            return Some(Verdict::Drop(cause.into()));
        }
        let is_direct = match self.is_direct(&tuple, chosen.as_ref(), &routed) {
            Ok(is_direct) => is_direct,
            Err(verdict) => return Some(verdict),
        };
        let chosen = chosen.map(|chosen| match chosen.source {
            SourceNat::Keep if chosen.is_direct && !is_direct => Chosen { source: SourceNat::Node, ..chosen },
            _ => chosen,
        });
        let pool = match self.source_pool(&tuple, &sent, chosen.as_ref(), &routed) {
            Ok(pool) => pool,
            Err(cause) => return Some(Verdict::Drop(cause.into())),
        };
        if pool.is_some() && !matches!(routed.target, Target::Endpoint(_) | Target::Tunnel { .. }) {
            sent = sent.in_network(NetworkId::default());
        }
        // Its beginning was judged above; of what follows only one side is seen here.
        let one_way = || life::open_one_way(self.packet.life, &self.tracker.settings).ok();
        let status = if is_direct { one_way().unwrap_or(status) } else { status };
        let to = match routed.target {
            Target::Endpoint(endpoint) => self.snapshot().endpoints.get(*endpoint as usize),
            _ => None,
        };
        let backend = chosen.map_or(0, |chosen| chosen.backend.number() + 1);
        let opening = Opening {
            original: tuple,
            forwarded: sent,
            status,
            parties: self.parties(to, backend),
            decision: Decision { epoch: self.snapshot().policies.epoch(), verdict },
        };
        if self.scene.is_trial() {
            let leaves = opening.forwarded;
            let verdict = self.link(routed, &tuple, &leaves, Tracked::NONE, false);
            return Some(if is_direct { self.serve_directly(verdict, &tuple) } else { verdict });
        }
        if let Err(cause) = self.meter(to) {
            return Some(Verdict::Drop(cause.into()));
        }
        let created = match self.create(&opening, to, pool) {
            // The client asks another address of the service from the same port, or the backend itself.
            Err(taken @ Refused::Taken { ours: Direction::Reply, .. })
                if chosen.is_some() && pool.is_none() && !is_direct =>
            {
                self.create_from_another_port(&opening, to, taken)
            }
            decided => decided,
        };
        match created {
            Ok(connection) => {
                let leaves = self.tracker.table.view(connection)?.leaves_as(Direction::Original);
                let tracked = Tracked { connection, direction: Direction::Original };
                let verdict = self.link(routed, &tuple, &leaves, tracked, status.is_cacheable());
                Some(if is_direct { self.serve_directly(verdict, &tuple) } else { verdict })
            }
            // Another worker has just opened it.
            Err(Refused::Taken { ours: Direction::Original, .. }) => None,
            Err(refused) => Some(Verdict::Drop(self.ran_out(refused, &opening, to, pool).into())),
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
                Zone::Tunnel { .. } | Zone::Served { .. } => Origin::Cluster,
                Zone::Native { .. } => Origin::Outside,
            },
            src: tuple.src(),
            sport: tuple.sport(),
            dst: tuple.dst(),
            dport: tuple.dport(),
            protocol,
        };
        let services = &self.snapshot().services;
        let Tracker { affinity, .. } = self.tracker;
        let (answer, by_affinity) = if self.scene.is_trial() {
            services.foresee(&query, affinity, self.scene.now)
        } else {
            (services.decide(&query, affinity, self.scene.now), false)
        };
        let port = || services.find(&query).map(|(port, _)| port);
        match answer {
            Answer::NotAService => Ok((tuple, None)),
            Answer::Backend(chosen) => {
                self.watch.stage("service", || {
                    let to = std::net::SocketAddr::new(chosen.address, chosen.port);
                    (format!("to {to}"), port().map_or("?", |port| port.service()).to_owned())
                });
                self.tell_service(port(), Some(&chosen), by_affinity);
                let network = NetworkId::new(chosen.network.get()).unwrap_or_default();
                let sent = tuple.with_destination(chosen.address, chosen.port);
                let sent = sent.ok_or(Verdict::Drop(Cause::NoBackend.into()))?;
                Ok((sent.in_network(network), Some(chosen)))
            }
            Answer::Reject(_) => {
                self.watch.stage("service", || ("refuse".into(), "no backend is ready".into()));
                self.tell_service(port(), None, false);
                Err(Verdict::Refuse(Cause::NoBackend.into(), Problem::Unreachable(Unreachable::Port)))
            }
            Answer::Drop(DropCause::NoLocalBackend) => {
                self.watch.stage("service", || ("drop".into(), "no backend is on this node".into()));
                self.tell_service(port(), None, false);
                Err(Verdict::Drop(Cause::NoLocalBackend.into()))
            }
            Answer::Drop(DropCause::SourceNotAllowed) => {
                self.watch.stage("service", || ("drop".into(), "the client is in no source range".into()));
                self.tell_service(port(), None, false);
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
        self.watch.fact(|| facts::route(network, sent.dst()));
        Ok(Routed { network, target })
    }

    /// Who speaks with whom in a connection that came as one tuple and goes on as another.
    fn ends(&self, came: &Tuple, sent: &Tuple) -> Ends<'a> {
        let snapshot = self.snapshot();
        // A packet from outside meets the policies of the network that it goes to.
        let home = snapshot.network(came.network()).or_else(|| snapshot.network(sent.network()));
        let home = home.unwrap_or(self.network);
        let endpoint_at = |address: IpAddr| match home.route(address)? {
            Target::Endpoint(endpoint) => snapshot.endpoints.get(*endpoint as usize),
            _ => None,
        };
        Ends { home, from: endpoint_at(came.src()), to: endpoint_at(sent.dst()) }
    }

    /// Stage 6: what the policies of both ends say of a connection that came as one tuple and goes on as another.
    fn judge(&mut self, ends: &Ends<'a>, came: &Tuple, sent: &Tuple, occasion: Occasion) -> u16 {
        let snapshot = self.snapshot();
        let Ends { home, from, to } = *ends;
        // Rules speak of the sender itself, whatever it leaves as.
        let src = came.src();
        let packet = sent.with_source(src, came.sport()).unwrap_or(*sent);
        let Some(peers) = snapshot.policies.peers(&home.name) else { return ruling::ALLOWED };
        let is_to_itself = from.zip(to).is_some_and(|(from, to)| from.device == to.device);
        if is_to_itself {
            return ruling::ALLOWED;
        }
        let key = key_of(sent);
        let ask = |peer: IpAddr| Judged { peer: peers.look_up(peer), protocol: sent.protocol(), key };
        if let Some(from) = from
            && !self.ask(from, Side::Egress, ask(sent.dst()), &packet, occasion)
        {
            return ruling::EGRESS;
        }
        // The node's own probes always reach its pods.
        let is_node = snapshot.host.as_ref().is_some_and(|host| host.addresses.contains(&src));
        if let Some(to) = to
            && !is_node
            && !self.ask(to, Side::Ingress, ask(src), &packet, occasion)
        {
            return ruling::INGRESS;
        }
        ruling::ALLOWED
    }

    /// Whether an endpoint's rules of one direction let a packet pass.
    fn ask(
        &mut self,
        endpoint: &Arc<Endpoint>,
        direction: Side,
        asked: Judged,
        packet: &Tuple,
        occasion: Occasion,
    ) -> bool {
        let Some(subject) = &endpoint.subject else { return true };
        let verdict = subject.classify(direction, &asked);
        self.tell(direction, subject, &asked, verdict);
        // A connection that goes on under changed rules was counted when it was opened.
        if let Some(ledger) = self.scene.ledger
            && (occasion == Occasion::Opening || !verdict.allow)
        {
            let (packet, len) = (*packet, self.packet.len);
            let ruled = Ruled { endpoint, direction, asked, verdict, packet, len };
            ledger.ruled(self.snapshot(), &ruled, self.scene.now);
        }
        verdict.allow
    }

    /// Stage 7: the addresses that the connection leaves from, if not its sender's own.
    fn source_pool(
        &mut self,
        tuple: &Tuple,
        sent: &Tuple,
        chosen: Option<&Chosen>,
        routed: &Routed<'a>,
    ) -> Result<Option<&'a Arc<nat::Pool>>, Cause> {
        let snapshot = self.snapshot();
        let stands_in = chosen.map_or(SourceNat::Keep, |chosen| chosen.source);
        if stands_in != SourceNat::Keep {
            let why = if stands_in == SourceNat::Hairpin {
                "the client is the backend"
            } else {
                "the backend is remote"
            };
            self.watch.stage("nat", || ("an address of the node".into(), why.into()));
            let is_inside = matches!(routed.target, Target::Endpoint(_) | Target::Tunnel { .. });
            let pool = if is_inside { &snapshot.inner_pool } else { &snapshot.node_pool };
            let pool = pool.as_ref().ok_or(Cause::NoNatAddress)?;
            self.watch.fact(|| facts::nat_by(facts::NODE.into(), pool, tuple.src().is_ipv4()));
            return Ok(Some(pool));
        }
        let Target::Native { device, peer: None, .. } = routed.target else { return Ok(None) };
        let (src, dst) = (tuple.src(), sent.dst());
        let found = way_out(&routed.network.masquerades, src, dst, *device);
        if let Some((way, pool)) = found {
            self.watch.stage("nat", || ("an address outside".into(), way.name.clone()));
            self.watch.fact(|| facts::nat_by(way.key(), pool, src.is_ipv4()));
        }
        Ok(found.map(|(_, pool)| pool))
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
        let leaving = Facts { dst: leaves.dst(), ..*self.packet };
        let verdict = link(self.snapshot(), routed.target, &leaving, self.watch);
        super::tell_tunnel(self.snapshot(), routed.network, routed.target, self.watch);
        super::seen_from(self.snapshot(), self.zone, verdict, |way| Way {
            change: Some(arrives.change_to(leaves)).filter(|change| *change != Change::default()),
            tracked,
            lasts: lasts && self.packet.fragment == Fragment::Whole,
            ..way
        })
    }
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
