//! Addresses of load balancers on a real link: a neighbour resolves them, learns that they moved, and is told nothing of
//! those that are gone. Takes root, for network namespaces.

use std::collections::BTreeSet;
use std::fs::File;
use std::net::IpAddr;
use std::process::{Command, Output};
use std::thread;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns};
use penstock_control::addresses::{AnnounceError, Announcer};

/// Two namespaces joined by a link, `node` with a second one behind it, to which the addresses are routed.
struct Link {
    names: [String; 2],
}

impl Link {
    fn new(word: &str) -> Link {
        let names = ["node", "peer"].map(|place| format!("pa-{word}-{place}-{}", std::process::id()));
        let link = Link { names };
        let [node, peer] = &link.names;
        for line in [
            format!("netns add {node}"),
            format!("netns add {peer}"),
            format!("-n {node} link add up0 type veth peer name eth0 netns {peer}"),
            // What stands for the dataplane: a link that the addresses are routed to.
            format!("-n {node} link add inside type veth peer name beyond"),
            format!("-n {node} addr add 192.0.2.1/24 dev up0"),
            format!("-n {node} -6 addr add 2001:db8::1/64 dev up0 nodad"),
            format!("-n {peer} addr add 192.0.2.2/24 dev eth0"),
            format!("-n {peer} -6 addr add 2001:db8::2/64 dev eth0 nodad"),
            format!("-n {node} link set up0 up"),
            format!("-n {node} link set inside up"),
            format!("-n {node} link set beyond up"),
            format!("-n {peer} link set eth0 up"),
            format!("-n {node} route add 192.0.2.7/32 dev inside"),
            format!("-n {node} -6 route add 2001:db8::7/128 dev inside"),
        ] {
            ip(&line);
        }
        link
    }

    fn forward(&self) {
        let place = ["net.ipv4.conf.up0.forwarding=1", "net.ipv6.conf.all.forwarding=1"];
        for setting in place {
            run(&["ip", "netns", "exec", &self.names[0], "sysctl", "-qw", setting]);
        }
    }

    /// The station that the peer knows for an address, once it has tried to reach it.
    fn station(&self, address: IpAddr) -> Option<String> {
        // Nobody answers the echo; what counts is whether somebody is found to send it to.
        let text = address.to_string();
        let ping = ["ip", "netns", "exec", &self.names[1], "ping", "-c1", "-W1", &text];
        Command::new(ping[0]).args(&ping[1..]).output().expect("ping runs");
        self.known(address)
    }

    /// The station that the peer knows for an address.
    fn known(&self, address: IpAddr) -> Option<String> {
        let shown = ip(&format!("-n {} neigh show {address} dev eth0", self.names[1]));
        let words: Vec<&str> = shown.split_whitespace().collect();
        let at = words.iter().position(|word| *word == "lladdr")?;
        words.get(at + 1).map(|word| (*word).to_owned())
    }

    fn own_station(&self) -> String {
        let shown = ip(&format!("-n {} -o link show up0", self.names[0]));
        let words: Vec<&str> = shown.split_whitespace().collect();
        let at = words.iter().position(|word| *word == "link/ether").expect("an Ethernet link");
        words[at + 1].to_owned()
    }

    /// Runs an agent's part in the node.
    fn in_node<T: Send + 'static>(
        &self,
        work: impl AsyncFnOnce(rtnetlink::Handle) -> T + Send + 'static,
    ) -> T {
        let namespace = File::open(format!("/run/netns/{}", self.names[0])).expect("the namespace");
        let agent = thread::spawn(move || {
            setns(namespace, CloneFlags::CLONE_NEWNET).expect("root enters the namespace");
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                let (connection, handle, _) = rtnetlink::new_connection().expect("netlink");
                tokio::spawn(connection);
                work(handle).await
            })
        });
        agent.join().expect("the agent's part ends")
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        for name in &self.names {
            let _ = Command::new("ip").args(["netns", "del", name]).output();
        }
    }
}

fn run(words: &[&str]) -> Output {
    let output = Command::new(words[0]).args(&words[1..]).output().expect("iproute2 and procps are there");
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

fn ip(line: &str) -> String {
    let words: Vec<&str> = std::iter::once("ip").chain(line.split(' ')).collect();
    String::from_utf8(run(&words).stdout).expect("text")
}

fn addresses() -> [IpAddr; 2] {
    ["192.0.2.7", "2001:db8::7"].map(|text| text.parse().expect("an address"))
}

async fn announce(
    handle: rtnetlink::Handle,
    wanted: BTreeSet<IpAddr>,
) -> Result<BTreeSet<IpAddr>, AnnounceError> {
    let mut announcer = Announcer::on(handle, "up0").await?;
    announcer.announce(&wanted).await?;
    Ok(announcer.announced().clone())
}

#[test]
fn a_neighbour_finds_what_is_announced_and_nothing_else() {
    let link = Link::new("find");
    link.forward();
    for address in addresses() {
        assert_eq!(link.station(address), None, "nobody has said that {address} is there");
    }
    let wanted = BTreeSet::from(addresses());
    let announced = link.in_node({
        let wanted = wanted.clone();
        async move |handle| announce(handle, wanted).await
    });
    assert_eq!(announced.expect("a link that forwards"), wanted);
    for address in addresses() {
        assert_eq!(link.station(address), Some(link.own_station()), "{address}");
    }
    // The next agent takes over what it finds, and ends what is not wanted any more.
    let left = link.in_node(async |handle| announce(handle, BTreeSet::new()).await);
    assert_eq!(left.expect("a link that forwards"), BTreeSet::new());
    assert_eq!(ip(&format!("-n {} neigh show proxy", link.names[0])), "");
}

#[test]
fn a_neighbour_that_knows_another_station_is_told_of_the_new_one() {
    let link = Link::new("move");
    link.forward();
    for address in addresses() {
        ip(&format!("-n {} neigh add {address} lladdr 02:00:00:00:00:99 dev eth0 nud stale", link.names[1]));
    }
    let announced = link.in_node(async |handle| announce(handle, BTreeSet::from(addresses())).await);
    announced.expect("a link that forwards");
    let deadline = Instant::now() + Duration::from_secs(10);
    for address in addresses() {
        while link.known(address) != Some(link.own_station()) {
            assert!(Instant::now() < deadline, "{address} is still {:?} for the peer", link.known(address));
            // A link that has just come up loses some of what it is told.
            let told = link.in_node(async |handle| Announcer::on(handle, "up0").await?.repeat());
            told.expect("what is announced is told again");
        }
    }
}

#[test]
fn a_link_that_does_not_forward_is_told_with_the_mend() {
    let link = Link::new("closed");
    let refused = link.in_node(async |handle| announce(handle, BTreeSet::from(addresses())).await);
    let text = refused.expect_err("the kernel would answer nobody").to_string();
    assert!(
        text.contains("does not forward IPv4 on up0")
            && text.contains("sysctl -w net.ipv4.conf.up0.forwarding=1"),
        "{text}"
    );
    let missing = link.in_node(async |handle| Announcer::on(handle, "nowhere").await.map(|_| ()));
    assert!(matches!(missing, Err(AnnounceError::NoInterface(name)) if name == "nowhere"));
}
