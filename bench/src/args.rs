//! The flags of every command.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::profile::{self, Path, Popularity, Ports, Profile, Segment, Size};

/// Measures the dataplane, alone and beside its peers.
///
/// Figures are of this machine at this moment: each trial looks at the clock first and is repeated if too much was stolen
/// from it. Peers come with `scripts/setup --bench`; they and everything that is not in memory need root.
#[derive(Debug, Parser)]
#[command(name = "penstock-bench", version, disable_help_subcommand = true)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// A trial of a path: what came, what arrived, what was lost and why, and what a packet costs
    #[command(
        after_help = "Examples:\n  penstock-bench run l3\n  penstock-bench run stateful-vxlan --size 64,512,imix --flows 1k,100k,1M --rules 1k\n  penstock-bench run vxlan-encap --rate 5000000 --duration 10 --json -\n  penstock-bench run stateful-vxlan --ports vhost           from a DPDK guest (root)\n  penstock-bench run l3 --threshold 20        exit status 3 below 20 Mpps"
    )]
    Run(Run),
    /// The rates at which nothing, and one frame in two hundred, is lost (RFC 2544, RFC 9971), and the rate at full load
    #[command(
        after_help = "Examples:\n  penstock-bench search l3\n  penstock-bench search stateful-vxlan --flows 100k --trial 10 --width 0.005\n  penstock-bench search l3 --goal ndr:0 --goal pdr:0.005 --json ndr.json"
    )]
    Search(Search),
    /// How long packets take at shares of the rate that may be partly dropped, by schedule
    #[command(
        after_help = "Examples:\n  penstock-bench latency stateful-vxlan --flows 1k\n  penstock-bench latency l3 --at 10,50,90 --duration 10\n  penstock-bench latency l3 --rate 1000000"
    )]
    Latency(Latency),
    /// Ours beside peers on the same frames: in turns, with the ratio's interval, and no claim within the noise
    #[command(
        after_help = "Examples:\n  penstock-bench compare --peer all --quick\n  penstock-bench compare --peer testpmd --only vhost --rounds 7 --seconds 4 --json vhost.json\n  penstock-bench compare --list\n  penstock-bench compare --only memory-l3 --threshold 1.2     exit status 3 below 1.2 times the peer's rate"
    )]
    Compare(Compare),
    /// One HTML page and Markdown tables from files of results
    #[command(
        after_help = "Examples:\n  penstock-bench report --html report.html --markdown report.md compare.json latency.json"
    )]
    Report(Report),
    /// How long packets take from a pod of one node to a pod of another and back, by schedule (root)
    #[command(
        after_help = "Examples:\n  penstock-bench round-trip\n  penstock-bench round-trip --rate 1k,10k --duration 10 --json -"
    )]
    RoundTrip(RoundTrip),
    /// Look-ups beside DPDK's own and the kernel's: known flows, longest prefixes, rules
    #[command(
        after_help = "Examples:\n  penstock-bench micro\n  penstock-bench micro --prefixes 10k --rules 1k --json micro.json"
    )]
    Micro(Micro),
    /// How long a change takes until every worker goes by it, while packets are forwarded; compile time, memory
    #[command(
        after_help = "Examples:\n  penstock-bench control\n  penstock-bench control --policies 30k --endpoints 30k --changes 500 --json control.json"
    )]
    Control(Control),
    /// Instructions a packet of every path, counted by valgrind, beside those that a file records
    #[command(
        after_help = "Examples:\n  penstock-bench instructions --file bench/instructions.toml\n  penstock-bench instructions --file bench/instructions.toml --record 'checksums in one pass'"
    )]
    Instructions(Instructions),
    /// Takes a thousand bursts through: what valgrind counts
    #[command(hide = true)]
    Turns { path: Path },
    /// Sends back what comes: the far end of a round trip
    #[command(hide = true)]
    Echo { port: u16 },
    /// Asks by schedule: the near end of a round trip
    #[command(hide = true)]
    Probe { to: SocketAddr, rate: f64, seconds: f64 },
    /// Forwards between two veths: our part of a comparison
    #[command(hide = true)]
    ForwardVeths { left: String, right: String },
    /// Forwards between two vhost-user sockets: our part of a comparison
    #[command(hide = true)]
    ForwardSockets { left: PathBuf, right: PathBuf },
    /// Forwards between two taps: our part of a trial
    #[command(hide = true)]
    ForwardTaps { left: String, right: String },
    /// Sends the frames of a capture over and over: the generator of a comparison
    #[command(hide = true)]
    Generate {
        interface: String,
        frames: PathBuf,
        #[arg(long)]
        rate: Option<f64>,
    },
}

#[derive(Debug, Args)]
pub(crate) struct ProfileArguments {
    /// What the packets meet
    #[arg(value_enum)]
    path: Path,
    /// Frame sizes with their check sequence, and imix (7 x 64, 4 x 594, 1 x 1518)
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "64")]
    size: Vec<Size>,
    /// Flows; for policy-first the connections that the table holds
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "1k", value_parser = profile::count)]
    flows: Vec<u32>,
    /// Rules of the sender's policy that its packets do not match
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "100", value_parser = profile::count)]
    rules: Vec<u32>,
    /// Workers, each on a CPU and with a node of its own
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    workers: u16,
    /// Packets are IPv6
    #[arg(long)]
    ipv6: bool,
    /// What they carry
    #[arg(long, value_enum, default_value_t = Segment::Udp)]
    segment: Segment,
    /// Which flows come how often
    #[arg(long, value_enum, default_value_t = Popularity::Uniform)]
    popularity: Popularity,
    /// What the order of flows and sizes is drawn by
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
}

impl ProfileArguments {
    /// One for each combination.
    pub(crate) fn profiles(&self) -> Vec<Profile> {
        let rules = if self.path.is_stateful() { &self.rules[..] } else { &[0] };
        let mut profiles = Vec::new();
        for &size in &self.size {
            for &flows in &self.flows {
                profiles.extend(rules.iter().map(|&rules| Profile {
                    path: self.path,
                    ports: Ports::Memory,
                    size,
                    flows: flows.max(1),
                    rules,
                    workers: self.workers,
                    ipv6: self.ipv6,
                    segment: self.segment,
                    popularity: self.popularity,
                    seed: self.seed,
                }));
            }
        }
        profiles
    }
}

/// What becomes of the figures.
#[derive(Debug, Args)]
pub(crate) struct Output {
    /// Write all figures as JSON; - is standard output, in place of the text
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct Run {
    #[command(flatten)]
    pub(crate) profile: ProfileArguments,
    /// Which ports they come and go by; at the node's wire to others that is a veth for all but memory
    #[arg(long, value_enum, default_value_t = Ports::Memory)]
    pub(crate) ports: Ports,
    /// Seconds that frames come
    #[arg(long, value_name = "SECONDS", default_value_t = 2.0)]
    pub(crate) duration: f64,
    /// Frames a second that come, on a schedule; without it as many as are taken
    #[arg(long, value_name = "PPS")]
    pub(crate) rate: Option<f64>,
    /// Exit with status 3 if fewer million packets a second arrive
    #[arg(long, value_name = "MPPS")]
    pub(crate) threshold: Option<f64>,
    #[command(flatten)]
    pub(crate) output: Output,
}

#[derive(Debug, Args)]
pub(crate) struct Search {
    #[command(flatten)]
    pub(crate) profile: ProfileArguments,
    /// A rate to find: NAME:SHARE, the share of frames that may be lost; again for each, least first
    #[arg(long = "goal", value_name = "NAME:SHARE", value_parser = goal, default_values = ["NDR:0", "PDR:0.005"])]
    pub(crate) goals: Vec<(String, f64)>,
    /// Seconds of a full-length trial
    #[arg(long, value_name = "SECONDS", default_value_t = 1.0)]
    pub(crate) trial: f64,
    /// How close the bounds come, as a share
    #[arg(long, value_name = "SHARE", default_value_t = 0.01)]
    pub(crate) width: f64,
    /// Exit with status 3 if the first goal's rate is less, in million packets a second
    #[arg(long, value_name = "MPPS")]
    pub(crate) threshold: Option<f64>,
    #[command(flatten)]
    pub(crate) output: Output,
}

#[derive(Debug, Args)]
pub(crate) struct Latency {
    #[command(flatten)]
    pub(crate) profile: ProfileArguments,
    /// Percents of the rate at which one frame in two hundred is lost
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "10,50,90")]
    pub(crate) at: Vec<f64>,
    /// Frames a second, in the place of a search
    #[arg(long, value_name = "PPS")]
    pub(crate) rate: Option<f64>,
    /// Seconds at each rate
    #[arg(long, value_name = "SECONDS", default_value_t = 3.0)]
    pub(crate) duration: f64,
    #[command(flatten)]
    pub(crate) output: Output,
}

#[derive(Debug, Args)]
pub(crate) struct Compare {
    /// Beside whom
    #[arg(long, value_enum, default_value_t = PeerChoice::All)]
    pub(crate) peer: PeerChoice,
    /// Only rows with one of these words in their names (--list has them)
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub(crate) only: Vec<String>,
    /// Rounds of each row: ours, the peer, ours again
    #[arg(long, value_name = "N", default_value = "7", value_parser = rounds)]
    pub(crate) rounds: usize,
    /// Seconds of each turn
    #[arg(long, value_name = "SECONDS", default_value_t = 3.0)]
    pub(crate) seconds: f64,
    /// Few and short rounds, in the place of --rounds and --seconds: all rows in less than ten minutes
    #[arg(long)]
    pub(crate) quick: bool,
    /// Print the rows, measure nothing
    #[arg(long)]
    pub(crate) list: bool,
    /// Exit with status 3 if a row's ratio is less
    #[arg(long, value_name = "RATIO")]
    pub(crate) threshold: Option<f64>,
    #[command(flatten)]
    pub(crate) output: Output,
}

#[derive(Debug, Args)]
pub(crate) struct RoundTrip {
    /// Packets a second
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "100,1k,10k", value_parser = profile::count)]
    pub(crate) rate: Vec<u32>,
    /// Seconds at each rate
    #[arg(long, value_name = "SECONDS", default_value_t = 5.0)]
    pub(crate) duration: f64,
    #[command(flatten)]
    pub(crate) output: Output,
}

#[derive(Debug, Args)]
pub(crate) struct Micro {
    /// Prefixes of the tables
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "1k,10k,100k", value_parser = prefixes)]
    pub(crate) prefixes: Vec<u32>,
    /// Rules of the policies
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "100,1k,10k", value_parser = rules)]
    pub(crate) rules: Vec<u32>,
    #[command(flatten)]
    pub(crate) output: Output,
}

#[derive(Debug, Args)]
pub(crate) struct Control {
    /// Policies of the cluster
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "0,1k,30k", value_parser = profile::count)]
    pub(crate) policies: Vec<u32>,
    /// Pods of the cluster
    #[arg(long, value_name = "N", default_value = "30k", value_parser = profile::count)]
    pub(crate) endpoints: u32,
    /// Changes measured
    #[arg(long, value_name = "N", default_value_t = 200)]
    pub(crate) changes: usize,
    #[command(flatten)]
    pub(crate) output: Output,
}

#[derive(Debug, Args)]
pub(crate) struct Instructions {
    /// The file of records; more than 3 % more than its last one is refused
    #[arg(long, value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// Record the figures as they are now, with the reason
    #[arg(long, value_name = "WHY")]
    pub(crate) record: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Which peers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum PeerChoice {
    /// DPDK's testpmd
    Testpmd,
    /// Open vSwitch's userspace datapath on DPDK
    OvsDpdk,
    /// Linux: routes, bridges, VXLAN, nftables
    Kernel,
    /// All of them
    All,
}

#[derive(Debug, Args)]
pub(crate) struct Report {
    /// Results, written with --json
    #[arg(required = true, value_name = "FILE")]
    pub(crate) results: Vec<PathBuf>,
    /// Write one HTML page, which needs nothing else
    #[arg(long, value_name = "FILE")]
    pub(crate) html: Option<PathBuf>,
    /// Write Markdown tables; without --html and this they are printed
    #[arg(long, value_name = "FILE")]
    pub(crate) markdown: Option<PathBuf>,
    /// Put the table of comparisons between the lines `<!-- bench -->` and `<!-- /bench -->` of a Markdown file
    #[arg(long, value_name = "FILE")]
    pub(crate) embed: Option<PathBuf>,
}

/// A count from one to `most`.
fn count_up_to(word: &str, most: u32) -> Result<u32, String> {
    match profile::count(word) {
        Ok(count) if (1..=most).contains(&count) => Ok(count),
        Ok(_) => Err(format!("`{word}` is out of range: write 1 to {}", profile::counted(most))),
        Err(fault) => Err(fault.to_string()),
    }
}

fn prefixes(word: &str) -> Result<u32, String> {
    count_up_to(word, 1_000_000)
}

fn rules(word: &str) -> Result<u32, String> {
    count_up_to(word, 100_000)
}

fn rounds(word: &str) -> Result<usize, String> {
    count_up_to(word, 1_000).map(|count| count as usize)
}

fn goal(word: &str) -> Result<(String, f64), String> {
    let parsed = word.split_once(':').and_then(|(name, share)| Some((name, share.parse::<f64>().ok()?)));
    match parsed {
        Some((name, share)) if (0.0..1.0).contains(&share) && !name.is_empty() => {
            Ok((name.to_owned(), share))
        }
        _ => Err(format!("`{word}` is no goal: write a name and a share below 1, as PDR:0.005")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_flags_are_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn lists_make_a_profile_for_each_combination() {
        let line = "penstock-bench run stateful --size 64,imix --flows 1k,1M --rules 0,10k,100k";
        let Ok(Arguments { command: Command::Run(run) }) = Arguments::try_parse_from(line.split(' ')) else {
            panic!("a sound command");
        };
        assert_eq!(run.profile.profiles().len(), 12);
    }

    #[test]
    fn goals_are_a_name_and_a_share() {
        assert_eq!(goal("PDR:0.005"), Ok(("PDR".into(), 0.005)));
        assert!(["PDR", ":0.1", "a:1", "a:x"].iter().all(|word| goal(word).is_err()));
    }
}
