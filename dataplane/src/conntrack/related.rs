//! ICMP errors: which connection the packet that one quotes belongs to, and what the error must become.
//!
//! ```text
//!  router -> [ IP  router -> external | ICMP error | quoted: external port 4711 -> server port 80 ]
//!  pod    <- [ IP  router -> pod      | ICMP error | quoted: pod port 40000     -> service port 80 ]
//! ```
//!
//! A quoted packet went the other way, and is quoted as it left; its sender must find it as it was sent.

use std::net::IpAddr;

use penstock_wire::parse::{Fragment, Net, Parsed, parse_l3, parse_quoted};
use penstock_wire::rewrite::{Change, rewrite_error};
use penstock_wire::{checksum, ethernet, icmp, icmpv6, proto};

use super::entry::ConnectionRef;
use super::life::Seconds;
use super::table::Table;
use super::tuple::{Direction, NetworkId, Tuple};

/// An error that belongs to a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Related {
    /// The connection.
    pub connection: ConnectionRef,
    /// Which way the error goes.
    pub direction: Direction,
    /// The quoted packet, as it is quoted.
    pub quoted: Tuple,
    /// The quoted packet, as its sender sent it.
    pub sent: Tuple,
    /// The error's source, as it goes on: the packet's receiver if it speaks for itself, else the router as it is.
    pub source: IpAddr,
    /// The error's destination, as it goes on: the quoted packet's sender.
    pub destination: IpAddr,
}

impl Related {
    /// Whether the error goes on as it came.
    #[must_use]
    pub fn is_untouched(&self) -> bool {
        self.quoted == self.sent.in_network(self.quoted.network())
    }
}

/// Why an error is translated by nobody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unrelated {
    /// It is no ICMP error, or quotes nothing that can be read.
    NotAnError,
    /// It is sent to somebody else than the quoted packet's sender: forged, or lost.
    WrongReceiver,
    /// There is no connection of the quoted packet.
    NoConnection,
    /// Its own check sum is wrong.
    BadChecksum,
}

/// Finds the connection that the ICMP error in `packet` (from its IP header on) belongs to.
///
/// # Errors
/// Why it belongs to none.
pub fn relate(table: &Table, network: NetworkId, packet: &[u8], now: Seconds) -> Result<Related, Unrelated> {
    let outer = Outer::of(packet).ok_or(Unrelated::NotAnError)?;
    let quoted = outer.quoted(packet, network).ok_or(Unrelated::NotAnError)?;
    if quoted.src() != outer.dst {
        return Err(Unrelated::WrongReceiver);
    }
    let found = table.find(&quoted.inverse(), now).ok_or(Unrelated::NoConnection)?;
    let connection = table.view(found.connection).ok_or(Unrelated::NoConnection)?;
    let sent = connection.arrives_as(found.direction.other());
    let source = if outer.src == quoted.dst() { sent.dst() } else { outer.src };
    Ok(Related {
        connection: found.connection,
        direction: found.direction,
        quoted,
        sent,
        source,
        destination: sent.src(),
    })
}

/// Makes of an error what it must become, in place: addresses outside, addresses and ports inside, all check sums.
///
/// # Errors
/// [`Unrelated::BadChecksum`], and then nothing was changed: a wrong check sum must not be made right.
/// [`Unrelated::NotAnError`] if this is not the packet that `related` was found for, or quotes a fragment of SCTP, whose
/// check sum nobody can bring along.
pub fn translate(related: &Related, packet: &mut [u8]) -> Result<(), Unrelated> {
    let outer = Outer::of(packet).ok_or(Unrelated::NotAnError)?;
    if outer.quoted(packet, related.quoted.network()) != Some(related.quoted) {
        return Err(Unrelated::NotAnError);
    }
    let message = packet.get(outer.l4()..outer.end()).ok_or(Unrelated::NotAnError)?;
    if !message_sum(outer.src, outer.dst, message).is_valid() {
        return Err(Unrelated::BadChecksum);
    }
    let ends = Change { src: Some(related.source), dst: Some(related.destination), ..Change::default() };
    let quoted = related.quoted.change_to(&related.sent);
    rewrite_error(packet, &outer.parsed, &ends, &quoted).map_err(|_| Unrelated::NotAnError)
}

/// The outer packet's facts.
struct Outer {
    src: IpAddr,
    dst: IpAddr,
    parsed: Parsed,
    ethertype: u16,
}

impl Outer {
    fn of(packet: &[u8]) -> Option<Outer> {
        let ethertype = if packet.first()? >> 4 == 4 { ethernet::IPV4 } else { ethernet::IPV6 };
        let parsed = parse_l3(ethertype, packet).ok()?;
        let (src, dst, protocol, fragment): (IpAddr, IpAddr, _, _) = match parsed.net {
            Net::V4(flow) => (flow.src.into(), flow.dst.into(), flow.proto, flow.fragment),
            Net::V6(flow) => (flow.src.into(), flow.dst.into(), flow.proto, flow.fragment),
            Net::Arp | Net::Other(_) => return None,
        };
        let (l4, end) = (usize::from(parsed.l4), usize::from(parsed.end));
        let kind = *packet.get(l4..end)?.first()?;
        let is_error = match protocol {
            proto::ICMP => src.is_ipv4() && icmp::is_error(kind) && kind != icmp::REDIRECT,
            proto::ICMPV6 => src.is_ipv6() && icmpv6::is_error(kind),
            _ => false,
        };
        (is_error && fragment == Fragment::Whole).then_some(Outer { src, dst, parsed, ethertype })
    }

    fn l4(&self) -> usize {
        self.parsed.l4.into()
    }

    fn end(&self) -> usize {
        self.parsed.end.into()
    }

    /// The quoted packet's tuple. A later fragment has no ports, so nobody knows whose it is.
    fn quoted(&self, packet: &[u8], network: NetworkId) -> Option<Tuple> {
        let quoted = packet.get(self.l4() + icmp::HEADER_LEN..self.end())?;
        match parse_quoted(self.ethertype, quoted).ok()?.net {
            Net::V4(flow) if flow.fragment != Fragment::Later => {
                Tuple::new(network, flow.src.into(), flow.dst.into(), flow.proto, flow.sport, flow.dport)
            }
            Net::V6(flow) if flow.fragment != Fragment::Later => {
                Tuple::new(network, flow.src.into(), flow.dst.into(), flow.proto, flow.sport, flow.dport)
            }
            _ => None,
        }
    }
}

fn message_sum(src: IpAddr, dst: IpAddr, message: &[u8]) -> checksum::Sum {
    match (src, dst) {
        (IpAddr::V6(src), IpAddr::V6(dst)) => icmpv6::sum(src, dst, message),
        _ => checksum::sum(message),
    }
}

#[cfg(test)]
#[cfg(not(penstock_loom))]
mod tests {
    use super::*;
    use crate::conntrack::{
        Decision, HashSeed, Limits, Memory, Opening, Parties, Plan, Settings, State, Status, WorkerId,
    };
    use penstock_wire::parse::parse;
    use penstock_wire::reply::{Problem, Unreachable, error};
    use penstock_wire::{crc32c, ipv4};
    use std::net::{Ipv4Addr, Ipv6Addr};

    const NETWORK: NetworkId = NetworkId::new(5).unwrap();
    const NOW: Seconds = Seconds(100);

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    /// The frame of a tuple's packet, with all check sums right.
    fn frame(tuple: &Tuple) -> Vec<u8> {
        let (src, dst) = (tuple.src(), tuple.dst());
        let ports = [tuple.sport().to_be_bytes(), tuple.dport().to_be_bytes()].concat();
        let (mut segment, checksum_at) = match tuple.protocol() {
            proto::TCP => ([&ports[..], &[0; 8], &[0x50, 0x10, 1, 0, 0, 0, 0, 0], b"hi"].concat(), 16),
            proto::UDP => ([&ports[..], &[0, 10, 0, 0], b"hi"].concat(), 6),
            proto::SCTP => {
                let mut packet = [&ports[..], &[9; 4], &[0; 4], &[0, 0, 0, 4]].concat();
                let crc = crc32c::crc32c(&packet).to_le_bytes();
                packet[8..12].copy_from_slice(&crc);
                (packet, 0)
            }
            _ => ([&ports[2..], &[0, 0], &ports[..2], &[0, 1], b"hi"].concat(), 2),
        };
        let length = segment.len() as u16;
        let pseudo = match (src, dst) {
            (IpAddr::V4(_), _) if tuple.protocol() == proto::ICMP => checksum::Sum::ZERO,
            (IpAddr::V4(src), IpAddr::V4(dst)) => checksum::pseudo_v4(src, dst, tuple.protocol(), length),
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                checksum::pseudo_v6(src, dst, tuple.protocol(), length.into())
            }
            _ => panic!("mixed families"),
        };
        if checksum_at > 0 {
            let sum = pseudo.add_bytes(&segment).finish();
            segment[checksum_at..checksum_at + 2].copy_from_slice(&sum.to_be_bytes());
        }
        let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
        match (src, dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                frame.extend([8, 0]);
                let protocol = tuple.protocol();
                let repr = ipv4::Repr {
                    src,
                    dst,
                    protocol,
                    tos: 0,
                    ttl: 9,
                    dont_fragment: true,
                    payload_len: length,
                };
                frame.extend(repr.emit());
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, length as u8, tuple.protocol(), 9]);
                frame.extend(src.octets());
                frame.extend(dst.octets());
            }
            _ => panic!("mixed families"),
        }
        [frame, segment].concat()
    }

    /// The error that `from` answers a tuple's packet with, from its IP header on.
    fn refusal(tuple: &Tuple, from: IpAddr) -> Vec<u8> {
        let (frame, mut out) = (frame(tuple), vec![0; 2048]);
        let problem = Problem::Unreachable(Unreachable::Host);
        let length = error(&frame, &parse(&frame).unwrap(), problem, from, &mut out).unwrap();
        out[14..length].to_vec()
    }

    fn table_with(original: Tuple, forwarded: Tuple) -> (Table, ConnectionRef) {
        let plan = Plan { capacity: 16, owners: 1, workers: 1 };
        let seed = HashSeed::new([11, 13]);
        let (table, _) = Table::over(Memory::private(16).unwrap(), seed, plan, NOW, |_| None).unwrap();
        let opening = Opening {
            original,
            forwarded,
            status: Status::of(State::Established),
            parties: Parties::default(),
            decision: Decision::default(),
        };
        let created = table.create(WorkerId(0), &opening, Limits::NONE, &Settings::default(), NOW);
        (table, created.unwrap())
    }

    /// A pod behind a source address, to a service with a backend.
    fn translated(v6: bool, protocol: u8) -> (Tuple, Tuple) {
        let [pod, service, outside, backend] = if v6 {
            ["fd00::1", "fd00:5::1", "2001:db8::1", "2001:db8::99"].map(ip)
        } else {
            ["10.0.0.1", "10.96.0.1", "192.0.2.1", "198.51.100.99"].map(ip)
        };
        let echo = if v6 { 0x8000 } else { 0x0800 };
        let is_echo = matches!(protocol, proto::ICMP | proto::ICMPV6);
        let original =
            Tuple::new(NETWORK, pod, service, protocol, 40_000, if is_echo { echo } else { 80 }).unwrap();
        let forwarded = original.with_source(outside, 1111).unwrap().with_destination(backend, 8080).unwrap();
        (original, forwarded)
    }

    #[test]
    fn an_error_about_a_translated_packet_becomes_the_error_about_the_packet_as_it_was_sent() {
        for (v6, protocols) in [
            (false, [proto::TCP, proto::UDP, proto::SCTP, proto::ICMP]),
            (true, [proto::TCP, proto::UDP, proto::SCTP, proto::ICMPV6]),
        ] {
            for protocol in protocols {
                let (original, forwarded) = translated(v6, protocol);
                let (table, connection) = table_with(original, forwarded);
                let router = if v6 {
                    IpAddr::V6(Ipv6Addr::LOCALHOST)
                } else {
                    IpAddr::V4(Ipv4Addr::new(203, 0, 113, 7))
                };
                let mut packet = refusal(&forwarded, router);
                let related = relate(&table, NETWORK, &packet, NOW).unwrap();
                assert_eq!((related.connection, related.direction), (connection, Direction::Reply));
                assert!(!related.is_untouched());
                translate(&related, &mut packet).unwrap();
                assert_eq!(packet, refusal(&original, router), "{original} from a router");
                // The backend refuses for itself: the pod knows it as the service.
                let mut packet = refusal(&forwarded, forwarded.dst());
                let related = relate(&table, NETWORK, &packet, NOW).unwrap();
                translate(&related, &mut packet).unwrap();
                assert_eq!(packet, refusal(&original, original.dst()), "{original} from the backend");
            }
        }
    }

    #[test]
    fn an_error_about_an_answer_goes_to_the_answers_sender() {
        let (original, forwarded) = translated(false, proto::TCP);
        let (table, connection) = table_with(original, forwarded);
        // The answer as it left towards the pod: from the service.
        let mut packet = refusal(&original.inverse(), original.src());
        let related = relate(&table, NETWORK, &packet, NOW).unwrap();
        assert_eq!((related.connection, related.direction), (connection, Direction::Original));
        translate(&related, &mut packet).unwrap();
        assert_eq!(packet, refusal(&forwarded.inverse(), forwarded.src()));
    }

    #[test]
    fn what_belongs_to_no_connection_is_translated_by_nobody() {
        let (original, forwarded) = translated(false, proto::UDP);
        let (table, _) = table_with(original, forwarded);
        let stranger = forwarded.with_source(ip("192.0.2.1"), 2222).unwrap();
        let relate = |packet: &[u8]| relate(&table, NETWORK, packet, NOW);
        assert_eq!(relate(&refusal(&stranger, ip("203.0.113.7"))), Err(Unrelated::NoConnection));
        let mut forged = refusal(&forwarded, ip("203.0.113.7"));
        let repr = ipv4::Repr {
            src: Ipv4Addr::new(203, 0, 113, 7),
            dst: Ipv4Addr::new(192, 0, 2, 77),
            protocol: proto::ICMP,
            tos: 0,
            ttl: 9,
            dont_fragment: true,
            payload_len: forged.len() as u16 - 20,
        };
        forged[..20].copy_from_slice(&repr.emit());
        assert_eq!(relate(&forged), Err(Unrelated::WrongReceiver));
        assert_eq!(relate(&frame(&original)[14..]), Err(Unrelated::NotAnError));
        assert_eq!(relate(&[]), Err(Unrelated::NotAnError));
    }

    #[test]
    fn a_wrong_check_sum_is_not_made_right() {
        let (original, forwarded) = translated(false, proto::UDP);
        let (table, _) = table_with(original, forwarded);
        let mut packet = refusal(&forwarded, ip("203.0.113.7"));
        let related = relate(&table, NETWORK, &packet, NOW).unwrap();
        let last = packet.len() - 1;
        packet[last] ^= 1;
        let before = packet.clone();
        assert_eq!(translate(&related, &mut packet), Err(Unrelated::BadChecksum));
        assert_eq!(packet, before);
    }

    #[test]
    fn every_cut_of_an_error_is_translated_or_left_alone() {
        let (original, forwarded) = translated(false, proto::TCP);
        let (table, _) = table_with(original, forwarded);
        let whole = refusal(&forwarded, ip("203.0.113.7"));
        for length in 0..whole.len() {
            let mut packet = whole[..length].to_vec();
            if let Ok(related) = relate(&table, NETWORK, &packet, NOW) {
                let _ = translate(&related, &mut packet);
            }
        }
    }
}
