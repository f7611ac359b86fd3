//! Rules: ours, and DPDK's ACL library with the same rules and packets.

use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net};
use penstock_io::BURST;
use penstock_policy::{
    Action, Direction, Directions, Endpoint, Packet, Peer, Policy, PortMatch, Protocol, Rule, Rules,
    Subjects, Tier, TierDefault, compile,
};

use super::{ENVIRONMENT, cycles};
use crate::document::Lookup;
use crate::peers::lab::{Lab, run};
use crate::peers::{PeerError, tail};
use crate::profile::counted;
use crate::traffic::Dice;

/// Who the packets are for.
const POD: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
/// Packets, three of four of which fit some rule.
const PACKETS: usize = 1 << 14;

/// A rule: where from, and which ports of TCP.
struct Line {
    net: Ipv4Net,
    first: u16,
    last: u16,
}

/// A packet: where from, and to which port.
type Question = (Ipv4Addr, u16);

fn table(count: usize) -> (Vec<Line>, Vec<Question>) {
    let mut dice = Dice::new(1);
    let line = |dice: &mut Dice| {
        let len = if dice.below(2) == 0 { 32 } else { 20 + dice.below(12) as u8 };
        let address = Ipv4Addr::from(0x0a00_0000 | dice.below(1 << 24) as u32);
        let first = 1 + dice.below(60_000) as u16;
        let last = first + if dice.below(2) == 0 { 0 } else { dice.below(2_000) as u16 };
        Line { net: Ipv4Net::new(address, len).expect("at most 32 bits").trunc(), first, last }
    };
    let lines: Vec<Line> = (0..count).map(|_| line(&mut dice)).collect();
    let question = |dice: &mut Dice| {
        let line = &lines[dice.below(count as u64) as usize];
        let address = Ipv4Addr::from(
            u32::from(line.net.network()) | dice.roll() as u32 & u32::from(line.net.hostmask()),
        );
        let port = line.first + dice.below(u64::from(line.last - line.first) + 1) as u16;
        if dice.below(4) > 0 { (address, port) } else { (address, dice.roll() as u16) }
    };
    let questions = (0..PACKETS).map(|_| question(&mut dice)).collect();
    (lines, questions)
}

/// Verdicts among so many rules.
///
/// # Errors
/// When DPDK's program is missing.
pub fn rules(count: usize) -> Result<Vec<Lookup>, PeerError> {
    let (lines, questions) = table(count);
    let title = format!("verdict among {} rules", counted(count as u32));
    let row = |contender: &str, cycles, note: &str| Lookup {
        title: title.clone(),
        contender: contender.into(),
        cycles,
        note: note.into(),
    };
    Ok(vec![
        row(
            "Penstock's policy",
            ours(&lines, &questions),
            &format!("bursts of {BURST}, with the longest prefix of the sender"),
        ),
        row(
            "DPDK's rte_acl",
            acl(&lines, &questions)?,
            "dpdk-test-acl, 256 packets a call: the same rules and packets",
        ),
    ])
}

fn ours(lines: &[Line], questions: &[Question]) -> f64 {
    let rule = |(number, line): (usize, &Line)| Rule {
        name: format!("rule{number}"),
        direction: Direction::Ingress,
        action: Action::Allow,
        peers: vec![Peer::Prefix { prefix: IpNet::V4(line.net), except: Vec::new() }],
        ports: vec![PortMatch { ports: Some(line.first..=line.last), ..PortMatch::all(Protocol::Tcp) }],
    };
    let policy = Policy {
        name: "acl".into(),
        network: "default".into(),
        tier: "network".into(),
        order: 0,
        subjects: Subjects::All,
        directions: Directions { ingress: true, egress: false },
        rules: lines.iter().enumerate().map(rule).collect(),
        staged: false,
    };
    let rules = Arc::new(Rules {
        identities: Vec::new().into(),
        tiers: vec![Tier { name: "network".into(), order: 0, default: TierDefault::Deny }],
        policies: vec![Arc::new(policy)].into(),
        endpoints: vec![Endpoint {
            name: "pod".into(),
            network: "default".into(),
            addresses: vec![POD.into()],
        }],
    });
    let program = compile(&rules, None).expect("rules without faults");
    let peers = program.peers("default").expect("the network has an endpoint");
    let subject = program.endpoint("pod").expect("it was compiled");
    let mut bursts = questions.as_chunks::<BURST>().0.iter().cycle();
    cycles(|_| {
        if let Some(burst) = bursts.next() {
            let packets = burst.map(|(address, port)| Packet {
                peer: peers.look_up(IpAddr::V4(address)),
                protocol: 6,
                key: Some(port),
            });
            std::hint::black_box(subject.classify_many(Direction::Ingress, &packets));
        }
    })
}

fn acl(lines: &[Line], questions: &[Question]) -> Result<f64, PeerError> {
    let lab = Lab::new(&["acl"])?;
    let (mut rules, mut packets) = (String::new(), String::new());
    for line in lines {
        // A string takes all that is written to it.
        let _ = writeln!(rules, "@{} {POD}/32 0 : 65535 {} : {} 0x06/0xff", line.net, line.first, line.last);
    }
    for (address, port) in questions {
        let _ = writeln!(packets, "{} {} 1234 {port} 6", u32::from(*address), u32::from(POD));
    }
    let [rules_at, packets_at] = ["rules", "packets"].map(|name| lab.path(name));
    for (path, text) in [(&rules_at, rules), (&packets_at, packets)] {
        std::fs::write(path, text).map_err(|source| PeerError::File { path: path.clone(), source })?;
    }
    let own = [
        "--".to_owned(),
        format!("--rulesf={}", rules_at.display()),
        format!("--tracef={}", packets_at.display()),
        format!("--tracenum={}", questions.len()),
        format!("--rulenum={}", lines.len() + 1),
        "--bldcat=1".into(),
        "--runcat=1".into(),
        "--iter=50".into(),
    ];
    let arguments = [&ENVIRONMENT.map(String::from)[..], &own].concat();
    let said = run("dpdk-test-acl", &arguments)?;
    classified(&said).ok_or(PeerError::Idle { peer: "dpdk-test-acl", log: tail(&said) })
}

/// `..., 1 categories, 174972642 cycles (0.07 sec), 1749.73 cycles/pkt, ...`.
fn classified(said: &str) -> Option<f64> {
    let line = said.lines().rev().find(|line| line.contains("cycles/pkt"))?;
    line.split("cycles/pkt").next()?.split_whitespace().last()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cost_is_read_from_what_dpdk_prints() {
        let said = "search_ip5tuples  @lcore 1: 100 iterations, 100000 pkts, 1 categories, 174972642 cycles (0.07 sec), \
                    1749.73 cycles/pkt, 1485946.59 pkt/sec\n";
        assert_eq!(classified(said), Some(1749.73));
        assert_eq!(classified("nothing"), None);
    }

    #[test]
    fn verdicts_cost_cycles() {
        let (lines, questions) = table(100);
        assert!(ours(&lines, &questions) > 1.0);
    }
}
