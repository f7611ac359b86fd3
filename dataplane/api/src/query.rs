//! What may be asked of a dataplane: which flows, where a packet would go, which frames.

mod state;

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;

use crate::convert::Reader;
use crate::fault::Fault;
use crate::filter::Filter;
use crate::model::Name;
use crate::proto;

pub use state::{ConnectionQuery, EventKind, EventOrder, PolicyQuery, ServiceQuery};

/// The TTL of a question that gives none: the default of Linux.
pub const DEFAULT_TTL: u8 = 64;
/// The length of a question that gives none, in bytes: the smallest MTU of IPv6 fits every path.
pub const DEFAULT_LENGTH: u16 = 1280;

/// Which flows to list; what is absent does not narrow the choice.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FlowQuery {
    /// Only this network.
    pub network: Option<Name>,
    /// Only flows from or to an address in here.
    pub address: Option<IpNet>,
    /// Only flows from or to this port.
    pub port: Option<u16>,
    /// At most so many flows.
    pub limit: Option<u32>,
}

/// Where a packet enters the dataplane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// From this endpoint.
    Endpoint(Name),
    /// From the node itself.
    Host,
    /// Out of a tunnel.
    Tunnel {
        /// The peer that sent it.
        peer: Name,
        /// The network of its VNI.
        network: Name,
    },
    /// On an uplink, without encapsulation.
    Uplink,
}

/// Where would this packet go?
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// Where the packet enters.
    pub from: Source,
    /// The source address; the first of the endpoint's or the host's in the destination's family when absent.
    pub source: Option<IpAddr>,
    /// The destination address.
    pub destination: IpAddr,
    /// The IP protocol number.
    pub protocol: u8,
    /// The source port.
    pub source_port: u16,
    /// The destination port.
    pub destination_port: u16,
    /// The length of the IP packet in bytes.
    pub length: u16,
    /// The TTL or hop limit.
    pub ttl: u8,
}

/// Which frames to capture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CaptureOrder {
    /// The port's name or number.
    pub port: String,
    /// Which of its frames.
    pub filter: Filter,
    /// Stop after so many frames.
    pub count: Option<u64>,
    /// Bytes of each frame to send; whole frames when absent.
    pub snaplen: Option<u32>,
    /// Stop after so long.
    pub duration: Option<Duration>,
}

/// Answers `read`'s value if it noted no fault.
fn read_all<T>(object: &str, read: impl FnOnce(&mut Reader<'_>) -> Option<T>) -> Result<T, Vec<Fault>> {
    let mut faults = Vec::new();
    match read(&mut Reader::new(object, &mut faults)) {
        Some(value) if faults.is_empty() => Ok(value),
        _ => Err(faults),
    }
}

impl TryFrom<proto::FlowsRequest> for FlowQuery {
    type Error = Vec<Fault>;

    fn try_from(m: proto::FlowsRequest) -> Result<Self, Vec<Fault>> {
        read_all("flows request", |reader| {
            let network = reader.unless_empty(&m.network, |reader, text| reader.text("network", text));
            let address = reader.unless_empty(&m.address, |reader, text| {
                let net = address_or_net(text);
                if net.is_none() {
                    reader.fault("address", format_args!("{text:?} is neither an address nor a prefix"));
                }
                net
            });
            let port = reader.optional(m.port, |reader, port| reader.number("port", port));
            Some(Self { network: network?, address: address?, port: port?, limit: m.limit })
        })
    }
}

impl From<&FlowQuery> for proto::FlowsRequest {
    fn from(query: &FlowQuery) -> Self {
        Self {
            network: query.network.as_ref().map(Name::to_string).unwrap_or_default(),
            address: query.address.map(|net| net.to_string()).unwrap_or_default(),
            port: query.port.map(u32::from),
            limit: query.limit,
        }
    }
}

/// `10.1.0.7` or `10.1.0.0/16`; host bits are taken as meant and cut off.
pub fn address_or_net(text: &str) -> Option<IpNet> {
    match text.parse::<IpAddr>() {
        Ok(address) => Some(address.into()),
        Err(_) => text.parse::<IpNet>().ok().map(|net| net.trunc()),
    }
}

impl TryFrom<proto::ExplainRequest> for Question {
    type Error = Vec<Fault>;

    fn try_from(m: proto::ExplainRequest) -> Result<Self, Vec<Fault>> {
        use proto::explain_request::From;
        read_all("explain request", |reader| {
            let from = match reader.present("from", m.from) {
                None => None,
                Some(From::Endpoint(name)) => reader.text("from", &name).map(Source::Endpoint),
                Some(From::Host(_)) => Some(Source::Host),
                Some(From::Uplink(_)) => Some(Source::Uplink),
                Some(From::Tunnel(m)) => {
                    let peer = reader.text("from.peer", &m.peer);
                    let network = reader.text("from.network", &m.network);
                    peer.zip(network).map(|(peer, network)| Source::Tunnel { peer, network })
                }
            };
            let source = reader.optional(m.source, |reader, text| reader.address("source", &text));
            let destination = reader.address("destination", &m.destination);
            let protocol = reader.number("protocol", m.protocol);
            let source_port = reader.number("source-port", m.source_port);
            let destination_port = reader.number("destination-port", m.destination_port);
            let length = reader.number("length", m.length);
            let ttl = reader.number("ttl", m.ttl);
            if let (Some(Some(source)), Some(destination)) = (source, destination)
                && source.is_ipv4() != destination.is_ipv4()
            {
                reader.fault("source", format_args!("{source} and {destination} are of different families"));
            }
            Some(Self {
                from: from?,
                source: source?,
                destination: destination?,
                protocol: protocol?,
                source_port: source_port?,
                destination_port: destination_port?,
                length: length?,
                ttl: ttl?,
            })
        })
    }
}

impl From<&Question> for proto::ExplainRequest {
    fn from(question: &Question) -> Self {
        use proto::explain_request::From;
        let from = match &question.from {
            Source::Endpoint(name) => From::Endpoint(name.to_string()),
            Source::Host => From::Host(proto::Empty {}),
            Source::Uplink => From::Uplink(proto::Empty {}),
            Source::Tunnel { peer, network } => {
                From::Tunnel(proto::TunnelSource { peer: peer.to_string(), network: network.to_string() })
            }
        };
        Self {
            from: Some(from),
            source: question.source.map(|address| address.to_string()),
            destination: question.destination.to_string(),
            protocol: question.protocol.into(),
            source_port: question.source_port.into(),
            destination_port: question.destination_port.into(),
            length: question.length.into(),
            ttl: question.ttl.into(),
        }
    }
}

impl TryFrom<proto::CaptureRequest> for CaptureOrder {
    type Error = Vec<Fault>;

    fn try_from(m: proto::CaptureRequest) -> Result<Self, Vec<Fault>> {
        read_all("capture request", |reader| {
            if m.port.is_empty() {
                reader.fault("port", "is missing");
            }
            let filter = reader.text("filter", &m.filter);
            if m.snaplen == Some(0) {
                reader.fault("snaplen", "is 0");
            }
            Some(Self {
                port: m.port,
                filter: filter?,
                count: m.count,
                snaplen: m.snaplen,
                duration: m.duration_ms.map(Duration::from_millis),
            })
        })
    }
}

impl From<&CaptureOrder> for proto::CaptureRequest {
    fn from(order: &CaptureOrder) -> Self {
        Self {
            port: order.port.clone(),
            filter: order.filter.to_string(),
            count: order.count,
            snaplen: order.snaplen,
            duration_ms: order.duration.map(|d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX)),
        }
    }
}

/// The answer to a request that asks for something impossible: every fault on a line of its own.
pub fn refusal(faults: &[Fault]) -> tonic::Status {
    let lines: Vec<String> = faults.iter().map(Fault::to_string).collect();
    tonic::Status::invalid_argument(lines.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_stands_for_its_host_prefix() {
        assert_eq!(address_or_net("10.1.0.7"), "10.1.0.7/32".parse().ok());
        assert_eq!(address_or_net("10.1.0.7/16"), "10.1.0.0/16".parse().ok());
        assert_eq!(address_or_net("fd00::7"), "fd00::7/128".parse().ok());
        assert_eq!(address_or_net("web"), None);
    }

    #[test]
    fn all_faults_of_a_question_are_found() {
        let asked = proto::ExplainRequest {
            from: None,
            source: Some("nowhere".to_owned()),
            destination: "10.0.0.300".to_owned(),
            protocol: 256,
            source_port: 65536,
            destination_port: 1,
            length: 70000,
            ttl: 300,
        };
        let faults = Question::try_from(asked).unwrap_err();
        let keys: Vec<&str> = faults.iter().map(|fault| fault.key.as_str()).collect();
        assert_eq!(keys, ["from", "source", "destination", "protocol", "source-port", "length", "ttl"]);
    }

    #[test]
    fn a_question_across_families_is_refused() {
        let question = Question {
            from: Source::Host,
            source: Some([10, 0, 0, 1].into()),
            destination: "fd00::1".parse().unwrap(),
            protocol: 6,
            source_port: 1,
            destination_port: 2,
            length: DEFAULT_LENGTH,
            ttl: DEFAULT_TTL,
        };
        let faults = Question::try_from(proto::ExplainRequest::from(&question)).unwrap_err();
        assert_eq!(faults.len(), 1);
        let sound = Question { source: None, ..question };
        assert_eq!(Question::try_from(proto::ExplainRequest::from(&sound)), Ok(sound));
    }

    #[test]
    fn flow_and_capture_requests_go_round() {
        let query = FlowQuery {
            network: Some("blue".parse().unwrap()),
            address: address_or_net("10.1.0.7"),
            port: Some(53),
            limit: Some(10),
        };
        for query in [query, FlowQuery::default()] {
            assert_eq!(FlowQuery::try_from(proto::FlowsRequest::from(&query)), Ok(query));
        }
        let order = CaptureOrder {
            port: "web".to_owned(),
            filter: "udp port 53".parse().unwrap(),
            count: Some(3),
            snaplen: Some(64),
            duration: Some(Duration::from_secs(2)),
        };
        assert_eq!(CaptureOrder::try_from(proto::CaptureRequest::from(&order)), Ok(order));
        let bad = proto::CaptureRequest { filter: "port".to_owned(), ..Default::default() };
        assert_eq!(CaptureOrder::try_from(bad).unwrap_err().len(), 2);
    }
}
