//! The flags of every command.

pub(crate) mod node;
mod state;

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use penstock_api::DEFAULT_SOCKET;
use penstock_api::filter::Filter;
use penstock_api::model::Name;
use penstock_api::query::{
    CaptureOrder, DEFAULT_LENGTH, DEFAULT_TTL, FlowQuery, Question, Source, address_or_net,
};

use crate::failure::Failure;

/// Asks the node's dataplane what it does, and tells it what to do.
///
/// Exit status: 0 if all is well, 1 if penstockd refused or could not be reached, 2 if the command or the file
/// given to it is at fault.
#[derive(Debug, Parser)]
#[command(name = "penstock", version, disable_help_subcommand = true)]
pub(crate) struct Arguments {
    /// The unix socket that penstockd listens on
    #[arg(long, global = true, help_heading = "Everywhere", value_name = "PATH", env = "PENSTOCK_SOCKET", default_value = DEFAULT_SOCKET)]
    pub(crate) socket: PathBuf,
    /// Print JSON; errors too, on standard error
    #[arg(long, global = true, help_heading = "Everywhere")]
    pub(crate) json: bool,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// What the daemon is and how it fares
    #[command(
        after_help = "Examples:\n  penstock status\n  penstock status --watch 1\n  penstock status --json | jq .generation"
    )]
    Status(Every),
    /// Every port queue with its counters
    #[command(
        after_help = "Examples:\n  penstock ports\n  penstock ports --watch 2\n  penstock ports --json | jq '.[] | select(.state != \"up\")'"
    )]
    Ports(Every),
    /// Every worker with its counters
    #[command(after_help = "Examples:\n  penstock workers\n  penstock workers --watch 1")]
    Workers(Every),
    /// The flows in the workers' caches; JSON comes one flow a line
    #[command(
        after_help = "Examples:\n  penstock flows\n  penstock flows --network blue --address 10.1.0.7\n  penstock flows --address 10.1.0.0/16 --port 443 --limit 20"
    )]
    Flows(Flows),
    /// Dropped packets by reason
    #[command(after_help = "Examples:\n  penstock drops\n  penstock drops --all\n  penstock drops --watch 1")]
    Drops {
        /// Also the reasons that never happened
        #[arg(long)]
        all: bool,
        #[command(flatten)]
        every: Every,
    },
    /// The routes of the networks, with those that local endpoints imply
    #[command(after_help = "Examples:\n  penstock routes\n  penstock routes --network blue")]
    Routes {
        /// Only this network
        #[arg(long, value_name = "NAME")]
        network: Option<Name>,
    },
    /// The other nodes and how they are reached
    #[command(
        after_help = "Examples:\n  penstock peers\n  penstock peers --json | jq '.[] | select(.reachable | not)'"
    )]
    Peers,
    /// The connections that are tracked; JSON comes one connection a line
    #[command(
        after_help = "ANSWERED BY and SEEN AS are empty where nothing is translated.\n\nExamples:\n  penstock connections\n  penstock connections --endpoint shop/web-0 --protocol tcp\n  penstock connections --address 10.96.0.0/16 --port 443 --limit 20\n  penstock connections --service shop/web --json | jq .reply.source"
    )]
    Connections(state::Connections),
    /// The policies in the order in which they are asked, with how often each rule decided
    #[command(
        after_help = "Examples:\n  penstock policy\n  penstock policy shop/database\n  penstock policy --tier admin --network blue\n  penstock policy --staged\n  penstock policy --json | jq '.[].policies[].rules[] | select(.hits == 0) | .name'"
    )]
    Policy(state::Policies),
    /// The services with their backends, and what goes through them
    #[command(
        after_help = "Examples:\n  penstock services\n  penstock services shop/web --backends\n  penstock services --json | jq '.[] | select(any(.ports[]; .backends == [])) | .name'"
    )]
    Services(state::Services),
    /// What rules log and what runs out, as it happens; JSON comes one event a line
    #[command(
        after_help = "Examples:\n  penstock events\n  penstock events --kind rule --endpoint shop/database-0\n  penstock events --duration 60 --json | jq -r .sentence"
    )]
    Events(state::Events),
    /// The objects as they are configured, in the form that `apply` takes
    #[command(
        after_help = "Examples:\n  penstock objects > saved.toml\n  penstock objects --json | jq '.endpoint[].name'"
    )]
    Objects,
    /// Add the objects of a file, or replace those with the same keys; all of them or none
    #[command(after_help = "Examples:\n  penstock apply -f pods.toml\n  generate-pods | penstock apply -f -")]
    Apply {
        /// A TOML file of tables of objects, as the example configurations have them; - is standard input
        #[arg(short, long, value_name = "FILE")]
        file: PathBuf,
    },
    /// Remove objects by their names; all of them or none
    #[command(
        after_help = "Examples:\n  penstock delete endpoint web-0 web-1\n  penstock delete route blue:10.1.2.0/24 blue:fd00:1::/64\n  penstock delete backends shop/web:main"
    )]
    Delete {
        /// What kind of objects
        kind: Kind,
        /// Their names; a route's is NETWORK:PREFIX, that of backends SERVICE:SLICE
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
    },
    /// Make the objects of a file the whole configuration: what it does not list goes
    #[command(
        after_help = "Uplinks and the host's port come from the daemon's own file and stay.\n\nExamples:\n  penstock resync -f node.toml"
    )]
    Resync {
        /// As for `apply`
        #[arg(short, long, value_name = "FILE")]
        file: PathBuf,
    },
    /// Where a packet would go, and why; nothing is sent
    #[command(
        after_help = "Examples:\n  penstock explain --from web --to 10.1.2.9 --protocol tcp --port 443\n  penstock explain --from host --to 10.1.0.7 --protocol icmp\n  penstock explain --from peer:node-b/blue --source 10.1.2.9 --to 10.1.0.7 --protocol udp --port 53\n  penstock explain --from uplink --source 192.0.2.9 --to 10.1.0.7 --protocol tcp --port 80 --length 1500\n  penstock explain --manifests deploy/ --from shop/web --to shop/db --protocol TCP --port 5432\n  penstock explain --manifests deploy/ --from shop/web --to 'shop/db[Service]' --protocol TCP --port 80"
    )]
    Explain(Explain),
    /// Every pair of workloads that can speak, and addresses outside, as manifests say; asks no daemon
    #[command(
        after_help = "Examples:\n  penstock connectivity --manifests deploy/\n  penstock connectivity --manifests deploy/ --json | jq '.[] | select(.src | contains(\"External\"))'"
    )]
    Connectivity(Connectivity),
    /// The definitions of Penstock's own Kubernetes resources, as YAML for kubectl apply
    #[command(after_help = "Examples:\n  penstock crds | kubectl apply -f -")]
    Crds,
    /// The frames that pass a port: one line each, or a capture file
    #[command(
        after_help = "Filters: host A, net P, port N, each after src or dst if wanted; tcp udp sctp icmp icmp6 ip ip6 arp;\nproto N, vni N, inner (EXPR); and, or, not, ( ).\n\nExamples:\n  penstock capture --port web\n  penstock capture --port uplink0 --filter 'vni 100 and inner (tcp port 443)' --count 20\n  penstock capture --port web --duration 10 -w web.pcap\n  penstock capture --port uplink0 -w - | wireshark -k -i -"
    )]
    Capture(Capture),
    /// The addresses of the node's pods
    #[command(
        after_help = "Examples:\n  penstock ipam show\n  penstock ipam check\n  penstock ipam show --json | jq -r '.[].addresses[]'"
    )]
    Ipam(node::Ipam),
    /// Put the CNI plugin and its network configuration onto this node
    #[command(
        after_help = "Examples:\n  penstock install-cni\n  penstock install-cni --binaries /host/opt/cni/bin --configurations /host/etc/cni/net.d"
    )]
    InstallCni(node::InstallCni),
    /// Take the CNI plugin and its network configuration away again
    #[command(after_help = "Examples:\n  penstock uninstall-cni")]
    UninstallCni(node::CniFolders),
    /// Attach containers to the dataplane without a cluster: serves the CNI plugin
    #[command(
        after_help = "Examples:\n  penstock attacher --range 10.244.1.0/24 --range fd10:244:1::/64 --reserve 10.244.1.254"
    )]
    Attacher(node::AttacherArgs),
}

/// Counters once, or rates again and again.
#[derive(Debug, Args)]
pub(crate) struct Every {
    /// Print rates every so many seconds, until interrupted
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub(crate) watch: Option<Duration>,
}

#[derive(Debug, Args)]
pub(crate) struct Flows {
    /// Only this network
    #[arg(long, value_name = "NAME")]
    network: Option<Name>,
    /// Only flows from or to this address or prefix
    #[arg(long, value_name = "ADDRESS", value_parser = address)]
    address: Option<String>,
    /// Only flows from or to this port
    #[arg(long, value_name = "N")]
    port: Option<u16>,
    /// At most so many flows; 0 for all
    #[arg(long, value_name = "N", default_value_t = 1000)]
    limit: u32,
}

impl Flows {
    pub(crate) fn query(&self) -> FlowQuery {
        FlowQuery {
            network: self.network.clone(),
            address: self.address.as_deref().and_then(address_or_net),
            port: self.port,
            limit: Some(self.limit).filter(|limit| *limit != 0),
        }
    }
}

/// The kinds of objects.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Kind {
    Uplink,
    Network,
    Endpoint,
    Peer,
    Route,
    Identity,
    Tier,
    Policy,
    Service,
    Backends,
    NatPool,
    EgressIp,
}

#[derive(Debug, Args)]
pub(crate) struct Connectivity {
    /// A folder of manifests, or one file
    #[arg(long, value_name = "DIR")]
    pub(crate) manifests: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct Explain {
    /// Where it enters: an endpoint's name, `host`, `uplink`, or `peer:NAME/NETWORK` for out of a tunnel.
    /// `endpoint:NAME` is an endpoint with one of those names; `peer:NAME,NETWORK` is for names with a slash.
    /// With --manifests: a pod or a workload, NAMESPACE/NAME, or an address outside.
    #[arg(long, value_name = "WHERE")]
    from: String,
    /// The destination address; with --manifests also a pod or a workload, NAMESPACE/NAME, or `NAMESPACE/NAME[Service]`
    #[arg(long, value_name = "WHERE")]
    to: String,
    /// Ask no daemon but the policies in this folder of manifests, or in this one file
    #[arg(long, value_name = "DIR")]
    pub(crate) manifests: Option<PathBuf>,
    /// The source address; the endpoint's or the host's own if not given
    #[arg(long, value_name = "ADDRESS")]
    source: Option<IpAddr>,
    /// tcp, udp, icmp, sctp or a number
    #[arg(long, value_name = "PROTOCOL", value_parser = protocol)]
    protocol: Protocol,
    /// The destination port; type and code for icmp, an echo request if not given
    #[arg(long, value_name = "N")]
    port: Option<u16>,
    /// The source port; the identifier for icmp
    #[arg(long, value_name = "N", default_value_t = 49152)]
    source_port: u16,
    /// The length of the IP packet in bytes
    #[arg(long, value_name = "N", default_value_t = DEFAULT_LENGTH)]
    length: u16,
    /// The TTL or hop limit
    #[arg(long, value_name = "N", default_value_t = DEFAULT_TTL)]
    ttl: u8,
}

/// A protocol as it was asked for: ICMP is another number in IPv6.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Protocol {
    Icmp,
    Number(u8),
}

const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;
const SCTP: u8 = 132;
/// Type 8, code 0 (RFC 792).
const ECHO_REQUEST: u16 = 8 << 8;
/// Type 128, code 0 (RFC 4443).
const ECHO_REQUEST_V6: u16 = 128 << 8;

impl Explain {
    /// The protocol's number and the destination port, or for ICMP its type and code.
    fn protocol_and_port(&self, is_ipv6: bool) -> Result<(u8, u16), Failure> {
        let protocol = match self.protocol {
            Protocol::Icmp if is_ipv6 => ICMPV6,
            Protocol::Icmp => ICMP,
            Protocol::Number(number) => number,
        };
        let destination_port = match (self.port, protocol) {
            (Some(port), _) => port,
            (None, ICMP) => ECHO_REQUEST,
            (None, ICMPV6) => ECHO_REQUEST_V6,
            (None, TCP | UDP | SCTP) => {
                return Err(Failure::Usage("tcp, udp and sctp have ports: say --port N".to_owned()));
            }
            (None, _) => 0,
        };
        Ok((protocol, destination_port))
    }

    /// What is asked of manifests: from, to, protocol and port.
    pub(crate) fn offline_question(&self) -> Result<(&str, &str, u8, Option<u16>), Failure> {
        let is_ipv6 = self.to.parse::<IpAddr>().is_ok_and(|to| to.is_ipv6());
        let (protocol, port) = self.protocol_and_port(is_ipv6)?;
        Ok((&self.from, &self.to, protocol, Some(port)))
    }

    pub(crate) fn question(self) -> Result<Question, Failure> {
        let from = source(&self.from).map_err(|error| Failure::Usage(format!("--from: {error}")))?;
        let Ok(to) = self.to.parse::<IpAddr>() else {
            return Err(Failure::Usage(format!(
                "--to: {:?} is no address; write one as in 10.1.0.7",
                self.to
            )));
        };
        let (protocol, destination_port) = self.protocol_and_port(to.is_ipv6())?;
        if self.source.is_some_and(|source| source.is_ipv4() != to.is_ipv4()) {
            return Err(Failure::Usage("--source and --to must be of one address family".to_owned()));
        }
        let has_no_own = matches!(from, Source::Tunnel { .. } | Source::Uplink);
        if has_no_own && self.source.is_none() {
            return Err(Failure::Usage(
                "what comes from a peer or an uplink has no address of its own: say --source ADDRESS"
                    .to_owned(),
            ));
        }
        Ok(Question {
            from,
            source: self.source,
            destination: to,
            protocol,
            source_port: self.source_port,
            destination_port,
            length: self.length,
            ttl: self.ttl,
        })
    }
}

#[derive(Debug, Args)]
pub(crate) struct Capture {
    /// The port's name or number, as `penstock ports` shows it
    #[arg(long, value_name = "P")]
    port: String,
    /// Only these frames, for example: 'tcp port 80 and not host 10.1.0.7'
    #[arg(long, value_name = "EXPR", default_value = "")]
    filter: Filter,
    /// Stop after so many frames
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// Keep so many bytes of each frame
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(1..))]
    snaplen: Option<u32>,
    /// Stop after so many seconds
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    duration: Option<Duration>,
    /// Write a capture file; - is standard output
    #[arg(short = 'w', long = "write", value_name = "FILE", conflicts_with = "json")]
    file: Option<PathBuf>,
}

impl Capture {
    pub(crate) fn order(self) -> (CaptureOrder, Option<PathBuf>) {
        let Self { port, filter, count, snaplen, duration, file } = self;
        (CaptureOrder { port, filter, count, snaplen, duration }, file)
    }
}

/// The shortest span that makes sense between two looks at the counters.
const SHORTEST: Duration = Duration::from_millis(100);

fn seconds(text: &str) -> Result<Duration, String> {
    let span = text.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    span.filter(|span| (SHORTEST..=Duration::from_secs(86_400 * 365)).contains(span))
        .ok_or_else(|| "seconds are a number from 0.1 on".to_owned())
}

fn address(text: &str) -> Result<String, String> {
    address_or_net(text).map(|_| text.to_owned()).ok_or_else(|| "neither an address nor a prefix".to_owned())
}

fn protocol(text: &str) -> Result<Protocol, String> {
    match text.to_ascii_lowercase().as_str() {
        "icmp" => Ok(Protocol::Icmp),
        "icmp6" => Ok(Protocol::Number(ICMPV6)),
        "tcp" => Ok(Protocol::Number(TCP)),
        "udp" => Ok(Protocol::Number(UDP)),
        "sctp" => Ok(Protocol::Number(SCTP)),
        number => number
            .parse()
            .map(Protocol::Number)
            .map_err(|_| "choose tcp, udp, icmp, sctp or a number from 0 to 255".to_owned()),
    }
}

fn source(text: &str) -> Result<Source, String> {
    let name = |text: &str| text.parse::<Name>().map_err(|why| why.to_string());
    if let Some(endpoint) = text.strip_prefix("endpoint:") {
        return name(endpoint).map(Source::Endpoint);
    }
    match (text, text.strip_prefix("peer:")) {
        ("host", _) => Ok(Source::Host),
        ("uplink", _) => Ok(Source::Uplink),
        (_, None) => name(text).map(Source::Endpoint),
        (_, Some(both)) => {
            let (peer, network) = match (both.split_once(','), both.split_once('/')) {
                (Some(halves), _) => halves,
                (None, Some((peer, network))) if !network.contains('/') => (peer, network),
                (None, Some(_)) => return Err("names with a slash: write peer:NAME,NETWORK".to_owned()),
                (None, None) => return Err("write peer:NAME/NETWORK".to_owned()),
            };
            Ok(Source::Tunnel { peer: name(peer)?, network: name(network)? })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn asked(words: &str) -> Result<Question, String> {
        let words = ["penstock", "explain"].into_iter().chain(words.split(' '));
        match Arguments::try_parse_from(words).map_err(|why| why.to_string())?.command {
            Command::Explain(explain) => explain.question().map_err(|why| why.to_string()),
            other => panic!("explain, not {other:?}"),
        }
    }

    #[test]
    fn the_flags_fit_together() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn every_command_shows_examples() {
        for command in Arguments::command().get_subcommands() {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.contains(&format!("penstock {}", command.get_name())), "{}", command.get_name());
        }
    }

    #[test]
    fn a_packet_enters_where_it_is_said_to() {
        let name = |text: &str| text.parse::<Name>().unwrap();
        assert_eq!(source("web"), Ok(Source::Endpoint(name("web"))));
        assert_eq!(source("host"), Ok(Source::Host));
        assert_eq!(source("endpoint:host"), Ok(Source::Endpoint(name("host"))));
        assert_eq!(source("uplink"), Ok(Source::Uplink));
        let tunnel =
            |peer: &str, network: &str| Ok(Source::Tunnel { peer: name(peer), network: name(network) });
        assert_eq!(source("peer:b/blue"), tunnel("b", "blue"));
        assert_eq!(source("peer:rack/b,team/blue"), tunnel("rack/b", "team/blue"));
        assert!(source("peer:rack/b/blue").unwrap_err().contains("peer:NAME,NETWORK"));
        assert!(source("peer:b").is_err());
        assert!(source("two words").is_err());
    }

    #[test]
    fn icmp_is_asked_in_the_family_of_the_destination() {
        let four = asked("--from host --to 10.0.0.1 --protocol icmp").unwrap();
        assert_eq!((four.protocol, four.destination_port), (1, 0x0800));
        let six = asked("--from host --to fd00::1 --protocol icmp").unwrap();
        assert_eq!((six.protocol, six.destination_port), (58, 0x8000));
    }

    #[test]
    fn questions_without_an_answer_are_not_asked() {
        for bad in [
            "--from web --to 10.0.0.1 --protocol tcp",
            "--from web --to 10.0.0.1 --source fd00::1 --protocol icmp",
            "--from uplink --to 10.0.0.1 --protocol icmp",
            "--from web --to 10.0.0.1 --protocol 256",
            "--from web --to nowhere --protocol icmp",
        ] {
            assert!(asked(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn seconds_may_have_fractions_but_not_be_nothing() {
        assert_eq!(seconds("0.5"), Ok(Duration::from_millis(500)));
        for bad in ["0", "-1", "nan", "inf", "1e30", "soon"] {
            assert!(seconds(bad).is_err(), "{bad}");
        }
    }
}
