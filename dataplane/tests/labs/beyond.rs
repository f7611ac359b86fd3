//! What lies beyond a router outside: its errors about translated connections, and SCTP to servers there.

use crate::lab::{Lab, Place, number, text, under4, under6};
use crate::mtu::is_told;
use crate::services::WAY_OUT;
use crate::stateful::apply;
use crate::traffic::{iperf, reach, say_by_sctp, serve_sctp};

/// Who is outside, a router here.
const ROUTER: u8 = 250;
/// What the link behind the router carries.
const NARROW: u16 = 1300;
/// A host behind the router.
const FAR: [&str; 2] = ["198.51.100.9", "2001:db8:51::9"];

/// A pod behind translation, and a host behind a router with a narrow link; the host is a place in node 2's namespace.
fn lab() -> Lab {
    let lab = Lab::up("--pods 1 --outside");
    let (router, far) = (lab.outside(), lab.node(2));
    router.run("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1");
    router.run(&format!(
        "ip link add beyond mtu {NARROW} type veth peer name beyond netns {} mtu {NARROW}",
        far.namespace()
    ));
    for (place, last) in [(&router, 1), (&far, 9)] {
        place.run(&format!(
            "ip address add 198.51.100.{last}/24 dev beyond && ip address add 2001:db8:51::{last}/64 dev beyond nodad && \
             ip link set beyond up"
        ));
    }
    let route = |prefix: &str, gateway: &str| {
        format!(
            "[[route]]\nnetwork = \"default\"\nprefix = \"{prefix}\"\n\
             via = {{ uplink = {{ uplink = \"uplink\", gateway = \"{gateway}\" }} }}\n"
        )
    };
    let routes = route("198.51.100.0/24", &under4(ROUTER)) + &route("2001:db8:51::/64", &under6(ROUTER));
    let pool = "[[nat-pool]]\nname = \"outside\"\nnetwork = \"default\"\nports = \"50000-50999\"\n\
                sources = [\"10.244.0.0/16\", \"fd10:244::/32\"]\nexclusions = [\"10.0.0.0/8\", \"fd10::/16\"]\n";
    apply(&lab, 1, &(routes + pool));
    FAR.iter().for_each(|far| reach(&lab.pod(1, 1), far));
    lab
}

/// The error that a datagram which crosses one router too many earns its sender: the socket's own, so it must be about the
/// packet as the pod sent it.
fn expire(from: &Place, to: &str) -> String {
    let ask = "import socket, sys\n\
        is6 = \":\" in sys.argv[1]\n\
        s = socket.socket(socket.AF_INET6 if is6 else socket.AF_INET, socket.SOCK_DGRAM)\n\
        level = socket.IPPROTO_IPV6 if is6 else socket.IPPROTO_IP\n\
        # IPV6_RECVERR and IP_RECVERR of linux/in6.h and linux/in.h\n\
        s.setsockopt(level, 25 if is6 else 11, 1)\n\
        s.setsockopt(level, socket.IPV6_UNICAST_HOPS if is6 else socket.IP_TTL, 2)\n\
        s.settimeout(5)\n\
        s.connect((sys.argv[1], 9))\n\
        s.send(b\"?\")\n\
        try: s.recv(1)\n\
        except OSError as error: print(type(error).__name__, error.errno)\n";
    from.run(&format!("python3 -c '{ask}' {to}"))
}

#[test]
fn a_routers_errors_reach_who_was_translated() {
    let lab = lab();
    let pod = lab.pod(1, 1);
    for (far, router) in FAR.into_iter().zip([under4(ROUTER), under6(ROUTER)]) {
        // The node is one hop, the router the next, which is one too many.
        let echo = pod.attempt(&format!("ping -c 1 -W 2 -t 2 {far}"));
        let said = String::from_utf8_lossy(&echo.stdout).into_owned();
        let exceeded = if far.contains(':') { "Time exceeded: Hop limit" } else { "Time to live exceeded" };
        assert!(said.contains(exceeded) && said.contains(&format!("From {router}")), "{far}: {said}");
        // EHOSTUNREACH, as for any packet that expired.
        assert_eq!(expire(&pod, far).trim(), "OSError 113", "{far}");
        // Its kernel would cut what it sends, had it been told already.
        is_told(&pod, far, 1400, NARROW);
        pod.run("ip route flush cache && ip -6 route flush cache");
        // By time: a few megabytes fit the sender's buffer, and what is not read at its end is not counted.
        let answer = iperf(&pod, &lab.node(2), far, "-t 1");
        assert!(number(&answer["end"]["sum_received"]["bytes"]) > 1_000_000, "{far}: {}", answer["end"]);
        let learnt = pod.run(&format!("ip route get {far}"));
        assert!(learnt.contains(&format!(" mtu {NARROW} ")), "TCP was told as well: {learnt}");
    }
    let seen = lab.node(1).run("nstat -asz IcmpInErrors Icmp6InErrors IcmpInTimeExcds Icmp6InTimeExcds IcmpInDestUnreachs Icmp6InPktTooBigs");
    let counts: Vec<&str> = seen
        .lines()
        .filter(|line| line.starts_with("Icmp"))
        .filter_map(|line| line.split_whitespace().nth(1))
        .collect();
    assert_eq!(counts, ["0"; 6], "the node's own kernel was told nothing: {seen}");
}

#[test]
fn sctp_leaves_under_the_nodes_address_with_its_checksum_right() {
    let lab = Lab::up("--pods 2 --outside");
    let pool = "[[nat-pool]]\nname = \"outside\"\nnetwork = \"default\"\nports = \"50000-50999\"\n\
                sources = [\"10.244.0.0/16\", \"fd10:244::/32\"]\nexclusions = [\"10.0.0.0/8\", \"fd10::/16\"]\n";
    apply(&lab, 1, &(WAY_OUT.to_owned() + pool));
    let _server = serve_sctp(&lab.outside(), 5000);
    for (to, node) in [(under4(ROUTER), under4(1)), (under6(ROUTER), under6(1))] {
        for pod in [lab.pod(1, 1), lab.pod(1, 2)] {
            reach(&pod, &to);
            // Client and server check the checksum and the verification tag of all that they get.
            say_by_sctp(&pod, &to, 5000);
        }
        let listed = lab.node(1).run(&format!("{} --json connections --protocol sctp", lab.penstock(1)));
        let rows: Vec<serde_json::Value> =
            listed.lines().map(|line| serde_json::from_str(line).expect("a row of JSON")).collect();
        let leaves = |row: &&serde_json::Value| {
            let port = number(&row["reply"]["destination_port"]);
            text(&row["reply"]["destination"]) == node && (50000..=50999).contains(&port)
        };
        assert_eq!(rows.iter().filter(leaves).count(), 2, "one a pod: {listed}");
    }
}
