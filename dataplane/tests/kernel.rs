//! The kernel's side against a real kernel, each test in network namespaces of its own. Needs root.

#![expect(clippy::unwrap_used, reason = "a lab that cannot be built ends its test")]

use std::net::{IpAddr, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use nix::sched::{CloneFlags, unshare};
use penstock_dataplane::kernel::{
    Change, GATEWAY_V4, HostPort, Kernel, KernelError, KernelView, NeighbourState, Unreachable, Upkeep,
    Watcher,
};
use penstock_io::tap::Tap;
use penstock_io::{Burst, FramePool, Hugepages, Port, Region};
use penstock_wire::MacAddr;

const GATEWAY_MAC: MacAddr = MacAddr([2, 0x70, 10, 0, 0, 1]);

/// Runs `test` on a runtime on a thread in a new network namespace, which goes when the thread ends.
fn in_namespace<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send + 'static) {
    let ended = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).expect("labs need root");
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test());
    })
    .join();
    if let Err(panic) = ended {
        std::panic::resume_unwind(panic);
    }
}

/// A second namespace, held by a process in it.
struct Elsewhere(Child);

impl Elsewhere {
    fn new() -> Elsewhere {
        let holder = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            Command::new("sleep").arg("120").spawn().unwrap()
        });
        Elsewhere(holder.join().unwrap())
    }

    /// Runs `ip` there.
    fn ip(&self, arguments: &str) {
        let target = self.0.id().to_string();
        let done =
            Command::new("nsenter").args(["-n", "-t", &target, "ip"]).args(arguments.split(' ')).status();
        assert!(done.unwrap().success(), "ip {arguments} elsewhere");
    }
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

fn ip(arguments: &str) {
    let done = Command::new("ip").args(arguments.split(' ')).output().unwrap();
    assert!(done.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&done.stderr));
}

fn ip_shows(arguments: &str) -> String {
    String::from_utf8(Command::new("ip").args(arguments.split(' ')).output().unwrap().stdout).unwrap()
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn nets(texts: &[&str]) -> Vec<IpNet> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

/// Applies changes until `is` holds; returns them in the order they came.
async fn until(
    watcher: &mut Watcher,
    view: &mut KernelView,
    is: impl Fn(&KernelView) -> bool,
) -> Vec<Change> {
    let mut seen = Vec::new();
    let wait = async {
        while !is(view) {
            let batch = watcher.changes().await.expect("the watcher follows on");
            batch.iter().for_each(|change| view.apply(change));
            seen.extend(batch);
        }
    };
    let in_time = tokio::time::timeout(Duration::from_secs(10), wait).await;
    assert!(in_time.is_ok(), "did not come; the view is {view:#?}");
    seen
}

/// Two interfaces of a cable, `here0` with 10.1.0.1/24 and fd01::1/64 up on this side.
fn cable() {
    ip("link add here0 type veth peer name there0");
    ip("link set here0 addrgenmode none");
    ip("address add 10.1.0.1/24 dev here0");
    ip("address add fd01::1/64 dev here0 nodad");
    ip("link set here0 up");
    ip("link set there0 up");
}

/// As `cable`, with 10.1.0.2/24 and fd01::2/64 at the other end in another namespace.
fn cable_to_elsewhere() -> Elsewhere {
    let elsewhere = Elsewhere::new();
    cable();
    ip(&format!("link set there0 netns {}", elsewhere.0.id()));
    elsewhere.ip("address add 10.1.0.2/24 dev there0");
    elsewhere.ip("address add fd01::2/64 dev there0 nodad");
    elsewhere.ip("link set there0 up");
    elsewhere
}

#[test]
fn what_is_there_is_listed_and_what_changes_is_told() {
    in_namespace(|| async {
        cable();
        let (mut view, mut watcher) = Watcher::start().await.unwrap();
        let here = view.ifindex("here0").unwrap();
        assert_eq!(view.links[&here].mtu, 1500);
        assert!(view.links[&here].up && view.links[&here].carrier);
        assert_eq!(view.addresses[&here], nets(&["10.1.0.1/24", "fd01::1/64"]));

        ip("link set here0 mtu 1400");
        ip("link set here0 address 02:00:00:00:00:77");
        let mac = Some(MacAddr([2, 0, 0, 0, 0, 0x77]));
        until(&mut watcher, &mut view, |view| view.links[&here].mtu == 1400 && view.links[&here].mac == mac)
            .await;

        ip("address add 10.1.9.1/32 dev here0");
        ip("address del fd01::1/64 dev here0");
        let wanted = nets(&["10.1.0.1/24", "10.1.9.1/32"]);
        until(&mut watcher, &mut view, |view| view.addresses[&here] == wanted).await;

        ip("neighbor add 10.1.0.7 lladdr 02:00:00:00:00:07 dev here0");
        until(&mut watcher, &mut view, |view| view.neighbour(here, address("10.1.0.7")).is_some()).await;
        assert_eq!(
            view.neighbour(here, address("10.1.0.7")).unwrap().usable(),
            Some(MacAddr([2, 0, 0, 0, 0, 7]))
        );

        ip("route add 10.9.0.0/16 via 10.1.0.7");
        let batch = watcher.changes().await.unwrap();
        assert_eq!(batch, [Change::Routes]);

        ip("link set there0 down");
        until(&mut watcher, &mut view, |view| !view.links[&here].carrier).await;
        ip("link del here0");
        until(&mut watcher, &mut view, |view| view.ifindex("here0").is_none()).await;
        assert!(
            !view.addresses.contains_key(&here) && view.neighbours.keys().all(|(index, _)| *index != here)
        );
    });
}

#[test]
fn a_storm_about_one_thing_is_told_once_with_its_last_state() {
    in_namespace(|| async {
        cable();
        let (mut view, mut watcher) = Watcher::start().await.unwrap();
        let here = view.ifindex("here0").unwrap();
        // The runtime stands still meanwhile, so that all messages wait in the socket.
        for mtu in 1300..1340 {
            ip(&format!("link set here0 mtu {mtu}"));
        }
        let seen = until(&mut watcher, &mut view, |view| view.links[&here].mtu == 1339).await;
        let links =
            seen.iter().filter(|change| matches!(change, Change::Link { ifindex, .. } if *ifindex == here));
        assert_eq!(links.count(), 1);
    });
}

#[test]
fn after_an_overrun_the_view_is_the_kernels_again() {
    in_namespace(|| async {
        cable();
        ip("neighbor add 10.1.0.2 lladdr 02:00:00:00:00:02 dev here0");
        let (mut view, mut watcher) = Watcher::start().await.unwrap();
        let here = view.ifindex("here0").unwrap();
        assert!(view.neighbour(here, address("10.1.0.2")).is_some());
        // More messages than the socket holds, the last of which are lost: the entry that goes, and one that comes.
        let many: String = (0..4000).map(neighbour_line).collect();
        batch(&many);
        ip("neighbor del 10.1.0.2 dev here0");
        ip("neighbor add 10.1.0.3 lladdr 02:00:00:00:00:03 dev here0");
        let come = |view: &KernelView| view.neighbour(here, address("10.1.0.3")).is_some();
        let seen = until(&mut watcher, &mut view, come).await;
        assert!(seen.contains(&Change::Routes), "no message was lost: the test tests nothing");
        assert!(view.neighbour(here, address("10.1.0.2")).is_none());
        assert_eq!(view.neighbours.len(), 4001);
        // And it goes on from there.
        ip("neighbor del 10.1.0.3 dev here0");
        until(&mut watcher, &mut view, |view| view.neighbour(here, address("10.1.0.3")).is_none()).await;
    });
}

fn neighbour_line(i: u32) -> String {
    format!("neighbor add 10.8.{}.{} lladdr 02:00:00:00:00:08 dev here0\n", i / 250, i % 250)
}

fn batch(lines: &str) {
    let mut ip = Command::new("ip").args(["-batch", "-"]).stdin(Stdio::piped()).spawn().unwrap();
    std::io::Write::write_all(&mut ip.stdin.take().unwrap(), lines.as_bytes()).unwrap();
    assert!(ip.wait().unwrap().success());
}

#[test]
fn a_path_is_what_the_kernel_would_take() {
    in_namespace(|| async {
        cable();
        ip("link set lo up");
        ip("route add 10.9.0.0/16 via 10.1.0.2 mtu 1400");
        ip("route add 10.10.0.0/16 dev here0 src 10.1.0.1");
        ip("route add blackhole 10.11.0.0/16");
        ip("route add prohibit 10.12.0.0/16");
        ip("route add fd09::/64 via fd01::2");
        ip("route add blackhole fd11::/64");
        let kernel = Kernel::open().unwrap();
        let (here, _) = kernel.link("here0").await.unwrap();

        let path = kernel.path_to(address("10.9.1.1")).await.unwrap();
        assert_eq!((path.ifindex, path.next_hop, path.mtu), (here, address("10.1.0.2"), Some(1400)));
        assert_eq!(path.preferred_source, address("10.1.0.1"));
        let path = kernel.path_to(address("10.1.0.55")).await.unwrap();
        assert_eq!((path.next_hop, path.mtu), (address("10.1.0.55"), None));
        assert_eq!(kernel.path_to(address("10.10.1.1")).await.unwrap().next_hop, address("10.10.1.1"));
        let path = kernel.path_to(address("fd09::7")).await.unwrap();
        assert_eq!((path.ifindex, path.next_hop), (here, address("fd01::2")));
        assert_eq!(path.preferred_source, address("fd01::1"));

        for nowhere in ["10.99.0.1", "fd99::1"] {
            let why = kernel.path_to(address(nowhere)).await.unwrap_err();
            assert!(matches!(why, Unreachable::NoRoute { .. }), "{why}");
            assert!(why.to_string().contains(nowhere), "{why}");
        }
        for forbidden in ["10.11.0.1", "10.12.0.1", "fd11::1"] {
            let why = kernel.path_to(address(forbidden)).await.unwrap_err();
            assert!(matches!(why, Unreachable::Forbidden { .. }), "{forbidden}: {why}");
        }
        for own in ["10.1.0.1", "fd01::1"] {
            let why = kernel.path_to(address(own)).await.unwrap_err();
            assert!(matches!(why, Unreachable::Local { .. }), "{own}: {why}");
        }
    });
}

#[test]
fn a_probe_finds_a_neighbour_and_keeps_it() {
    in_namespace(|| async {
        let elsewhere = cable_to_elsewhere();
        elsewhere.ip("link set there0 address 02:00:00:00:00:42");
        // The kernel solicits IPv6 neighbours from a link-local address.
        ip("address add fe80::1:1/64 dev here0 nodad");
        let (mut view, mut watcher) = Watcher::start().await.unwrap();
        let kernel = Kernel::open().unwrap();
        let here = view.ifindex("here0").unwrap();
        let found = Some(MacAddr([2, 0, 0, 0, 0, 0x42]));
        for peer in ["10.1.0.2", "fd01::2"].map(address) {
            assert!(view.neighbour(here, peer).is_none());
            kernel.probe(here, peer).await.unwrap();
            until(&mut watcher, &mut view, |view| {
                view.neighbour(here, peer).is_some_and(|neighbour| neighbour.usable() == found)
            })
            .await;
        }

        // A stale entry is asked about by the kernel once it is told that the entry is in use.
        let peer = address("10.1.0.2");
        ip("neighbor change 10.1.0.2 lladdr 02:00:00:00:00:42 dev here0 nud stale");
        let state = |view: &KernelView| view.neighbour(here, peer).map(|neighbour| neighbour.state);
        until(&mut watcher, &mut view, |view| state(view) == Some(NeighbourState::Stale)).await;
        let mut upkeep = Upkeep::default();
        upkeep.set_used([(here, peer)]);
        for (ifindex, address) in upkeep.due(&view, Instant::now()) {
            kernel.probe(ifindex, address).await.unwrap();
        }
        until(&mut watcher, &mut view, |view| state(view) == Some(NeighbourState::Reachable)).await;

        // One that is not there fails, and that is told too.
        kernel.probe(here, address("10.1.0.99")).await.unwrap();
        until(&mut watcher, &mut view, |view| {
            view.neighbour(here, address("10.1.0.99")).is_some_and(|neighbour| {
                neighbour.state == NeighbourState::Failed && neighbour.usable().is_none()
            })
        })
        .await;
        let gone = kernel.probe(4096, peer).await.unwrap_err().to_string();
        assert!(gone.contains("RTM_NEWNEIGH") && gone.contains("4096") && gone.contains("ip link"), "{gone}");
    });
}

fn host_port() -> HostPort {
    HostPort {
        interface: "penstock0".into(),
        mac: MacAddr([2, 0, 0, 0, 0, 1]),
        mtu: 1450,
        gateway_mac: GATEWAY_MAC,
        addresses: vec![address("10.244.1.254"), address("fd10:244:1::fe")],
        prefixes: nets(&["10.244.0.0/16", "10.20.0.7/32", "fd10:244::/32"]).into(),
    }
}

fn tap() -> Tap {
    Tap { name: "penstock0".into(), queues: 1, mac: [2, 0, 0, 0, 0, 9], mtu: 1500 }
}

#[test]
fn a_prepared_host_port_leads_to_the_pods_and_preparing_it_again_changes_nothing() {
    in_namespace(|| async {
        let mut port = tap().open().unwrap().remove(0);
        let kernel = Kernel::open().unwrap();
        assert!(kernel.prepare_host(&host_port()).await.unwrap() > 0);
        assert_eq!(kernel.prepare_host(&host_port()).await.unwrap(), 0);
        let (_, link) = kernel.link("penstock0").await.unwrap();
        assert!(link.up && link.mtu == 1450 && link.mac == Some(host_port().mac));
        assert_eq!(kernel.path_to(address("10.244.3.3")).await.unwrap().next_hop, IpAddr::V4(GATEWAY_V4));

        // What the host sends comes out of the tap at once, addressed to the dataplane, from the host's address.
        let mut pool = FramePool::new(Region::map(1024, Hugepages::Off).unwrap());
        for (to, source) in [("10.244.3.3:9", "10.244.1.254"), ("[fd10:244::3]:9", "fd10:244:1::fe")] {
            let bind = if to.starts_with('[') { "[::]:0" } else { "0.0.0.0:0" };
            UdpSocket::bind(bind).unwrap().send_to(b"hey", to).unwrap();
            let frame = received(&mut port, &mut pool, |frame| frame.ends_with(b"hey"));
            assert_eq!(frame[..6], GATEWAY_MAC.0);
            let sent_from: IpAddr = match address(source) {
                IpAddr::V4(_) => <[u8; 4]>::try_from(&frame[26..30]).unwrap().into(),
                IpAddr::V6(_) => <[u8; 16]>::try_from(&frame[22..38]).unwrap().into(),
            };
            assert_eq!(sent_from, address(source));
        }
    });
}

/// The first frame that `is`, within a second; there must be nothing before it but IGMP and MLD reports.
fn received(
    port: &mut penstock_io::tap::TapPort,
    pool: &mut FramePool,
    is: impl Fn(&[u8]) -> bool,
) -> Vec<u8> {
    let (start, mut burst) = (Instant::now(), Burst::new());
    while start.elapsed() < Duration::from_secs(1) {
        port.rx_burst(pool, &mut burst);
        while let Some(frame) = burst.pop() {
            let bytes = frame.bytes().to_vec();
            pool.free(frame);
            if is(&bytes) {
                pool.free_burst(&mut burst);
                return bytes;
            }
            assert!(bytes[0] & 1 != 0, "an unexpected frame {bytes:02x?}");
            assert_ne!(bytes[12..14], [8, 6], "the kernel asks for the gateway by ARP");
        }
    }
    panic!("the frame did not come");
}

#[test]
fn only_what_differs_is_changed_on_the_host_port() {
    in_namespace(|| async {
        let _port = tap().open().unwrap();
        let kernel = Kernel::open().unwrap();
        kernel.prepare_host(&host_port()).await.unwrap();
        ip("route add 10.30.0.0/16 dev penstock0");

        // One prefix comes, one goes.
        let prefixes = nets(&["10.244.0.0/16", "10.21.0.0/16", "fd10:244::/32"]).into();
        let changed = HostPort { prefixes, ..host_port() };
        assert_eq!(kernel.prepare_host(&changed).await.unwrap(), 2);
        let routes = ip_shows("route show dev penstock0");
        assert!(routes.contains("10.21.0.0/16 via 169.254.1.1") && !routes.contains("10.20.0.7"), "{routes}");
        assert!(routes.contains("10.30.0.0/16"), "an operator's own route stays: {routes}");

        // Another address, and with it another source of the two IPv4 routes.
        let changed =
            HostPort { addresses: vec![address("10.244.1.253"), address("fd10:244:1::fe")], ..changed };
        assert!(kernel.prepare_host(&changed).await.unwrap() > 0);
        assert_eq!(kernel.prepare_host(&changed).await.unwrap(), 0);
        let path = kernel.path_to(address("10.21.0.1")).await.unwrap();
        assert_eq!(path.preferred_source, address("10.244.1.253"));
        assert!(!ip_shows("address show penstock0").contains("10.244.1.254"));

        // Somebody meddled.
        ip("link set penstock0 down");
        ip("link set penstock0 mtu 1300");
        ip("neighbor replace 169.254.1.1 lladdr 02:00:00:00:00:66 dev penstock0");
        kernel.prepare_host(&changed).await.unwrap();
        assert_eq!(kernel.prepare_host(&changed).await.unwrap(), 0);
        assert_eq!(kernel.path_to(address("10.21.0.1")).await.unwrap().next_hop, IpAddr::V4(GATEWAY_V4));
        let gateway = ip_shows("neighbor show dev penstock0");
        assert!(gateway.contains(&GATEWAY_MAC.to_string()) && !gateway.contains("00:66"), "{gateway}");

        // Nothing wanted, nothing left.
        let none = HostPort { addresses: Vec::new(), prefixes: [].into(), ..changed };
        kernel.prepare_host(&none).await.unwrap();
        assert_eq!(ip_shows("route show proto 112") + &ip_shows("-6 route show proto 112"), "");
    });
}

#[test]
fn a_host_port_that_cannot_be_says_why() {
    in_namespace(|| async {
        let _port = tap().open().unwrap();
        let kernel = Kernel::open().unwrap();
        let missing = HostPort { interface: "nothere0".into(), ..host_port() };
        let why = kernel.prepare_host(&missing).await.unwrap_err();
        assert!(matches!(why, KernelError::NoInterface { .. }), "{why}");
        assert!(why.to_string().contains("nothere0"), "{why}");

        let small = HostPort { mtu: 1279, ..host_port() };
        let why = kernel.prepare_host(&small).await.unwrap_err();
        assert!(matches!(why, KernelError::MtuBelowIpv6 { .. }), "{why}");

        // Somebody else's route for the same prefix is not taken over.
        cable();
        ip("route add 10.244.0.0/16 via 10.1.0.2");
        let why = kernel.prepare_host(&host_port()).await.unwrap_err().to_string();
        assert!(why.contains("10.244.0.0/16 on penstock0") && why.contains("ip route"), "{why}");
        assert!(ip_shows("route show 10.244.0.0/16").contains("10.1.0.2"));
    });
}

#[test]
fn an_interface_is_brought_up_by_name() {
    in_namespace(|| async {
        ip("link add here0 type veth peer name there0");
        let kernel = Kernel::open().unwrap();
        kernel.bring_up("here0").await.unwrap();
        kernel.bring_up("here0").await.unwrap();
        assert!(kernel.link("here0").await.unwrap().1.up);
        assert!(matches!(kernel.bring_up("nothere0").await, Err(KernelError::NoInterface { .. })));
    });
}
