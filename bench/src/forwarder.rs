//! The parts of a comparison that run as programs of their own, in namespaces: a generator, and forwarders of ports alone.

use std::error::Error;
use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use penstock_io::mem::MemPort;
use penstock_io::steer::{Role, Steer, XdpMode};
use penstock_io::{Burst, FramePool, Hugepages, Netdev, Port, Region, XskConfig, XskPort};
use penstock_vhost::VhostPort;
use penstock_vhost::session::{Access, Role as Side, Session, SessionConfig};
use penstock_wire::MacAddr;

use crate::profile::{Popularity, Segment, Size};
use crate::traffic::{Ends, Stream};

/// They end by themselves after this long, should nobody be left to end them.
const LIFE: Duration = Duration::from_secs(3600);

type Outcome = Result<(), Box<dyn Error>>;

/// Takes every frame from one veth to the other and back.
pub(crate) fn veths(left: &str, right: &str) -> Outcome {
    let mut pool = FramePool::new(Region::map(32_768, Hugepages::Auto)?);
    let (_left_steer, left) = xsk(left, &mut pool)?;
    let (_right_steer, right) = xsk(right, &mut pool)?;
    shuttle(left, right, &mut pool)
}

fn xsk(name: &str, pool: &mut FramePool) -> Result<(Steer, XskPort), Box<dyn Error>> {
    let netdev = Netdev::named(name)?;
    let steer = Steer::attach(&netdev, Role::Pod, XdpMode::Auto)?;
    let port = XskPort::open(&netdev, 0, &XskConfig::default(), pool)?;
    steer.bind(0, &port)?;
    Ok((steer, port))
}

/// Takes every frame from one vhost-user socket, which it serves, to the other and back.
pub(crate) fn sockets(left: &Path, right: &Path) -> Outcome {
    let mut pool = FramePool::new(Region::map(16_384, Hugepages::Auto)?);
    let open = |name: &str, path: &Path| -> Result<(Session, VhostPort), Box<dyn Error>> {
        let config =
            SessionConfig { role: Side::Server(Access::default()), ..SessionConfig::new(name, path) };
        let (session, intakes) = Session::open(config)?;
        let intake = intakes.into_iter().next().ok_or("a session of one pair has one")?;
        Ok((session, VhostPort::new(intake)?))
    };
    let (_one, left) = open("left", left)?;
    let (_other, right) = open("right", right)?;
    shuttle(left, right, &mut pool)
}

fn shuttle<P: Port>(mut left: P, mut right: P, pool: &mut FramePool) -> Outcome {
    println!("forwarding");
    let (start, mut burst) = (Instant::now(), Burst::new());
    while start.elapsed() < LIFE {
        for _ in 0..1000 {
            for _ in 0..2 {
                left.rx_burst(pool, &mut burst);
                right.tx_burst(pool, &mut burst);
                pool.free_burst(&mut burst);
                std::mem::swap(&mut left, &mut right);
            }
            left.settle(pool)?;
            right.settle(pool)?;
        }
    }
    Ok(())
}

/// Sends 64-byte frames of many flows from an interface to a station, as fast as it takes them.
pub(crate) fn generate(interface: &str, station: MacAddr, src: IpAddr, dst: IpAddr, flows: u32) -> Outcome {
    let mut pool = FramePool::new(Region::map(16_384, Hugepages::Auto)?);
    let netdev = Netdev::named(interface)?;
    let mut port = XskPort::open(&netdev, 0, &XskConfig::default(), &mut pool)?;
    let stream = Stream {
        flows,
        size: Size::Bytes(64),
        popularity: Popularity::Uniform,
        segment: Segment::Udp,
        // What leaves a pod has a checksum.
        has_checksum: true,
        seed: 1,
    };
    let traffic = stream.traffic(&Ends { dst_mac: station, src_mac: MacAddr(netdev.mac), src, dst })?;
    let mut source = MemPort::replay(&traffic.frames, traffic.order);
    println!("sending");
    let (start, mut burst) = (Instant::now(), Burst::new());
    while start.elapsed() < LIFE {
        for _ in 0..1000 {
            source.rx_burst(&mut pool, &mut burst);
            port.tx_burst(&mut pool, &mut burst);
            pool.free_burst(&mut burst);
            port.settle(&mut pool)?;
        }
    }
    Ok(())
}
