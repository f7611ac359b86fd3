//! Forwards every frame from one interface to another and back, on one thread: what the ports themselves cost.
//!
//! `forward LEFT RIGHT [SECONDS] [auto|native|generic] [PACE_NS] [FILL_LEVEL] [TX_BUDGET]`, in the namespace that has both.

use std::error::Error;
use std::time::{Duration, Instant};

use penstock_io::steer::{Role, Steer, XdpMode};
use penstock_io::{Burst, FramePool, Hugepages, Netdev, Port, Region, XskConfig, XskPort};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let argument = |at: usize| arguments.get(at).map(String::as_str);
    let (Some(left), Some(right)) = (argument(0), argument(1)) else {
        return Err(
            "usage: forward LEFT RIGHT [SECONDS] [auto|native|generic] [PACE_NS] [FILL_LEVEL] [TX_BUDGET]"
                .into(),
        );
    };
    let seconds = argument(2).map_or(Ok(10), str::parse)?;
    let mode = match argument(3) {
        Some("native") => XdpMode::Native,
        Some("generic") => XdpMode::Generic,
        _ => XdpMode::Auto,
    };
    let mut config = XskConfig::default();
    if let Some(nanoseconds) = argument(4) {
        config.pace = Duration::from_nanos(nanoseconds.parse()?);
    }
    if let Some(level) = argument(5) {
        config.fill_level = level.parse()?;
    }
    config.tx_budget = argument(6).map(str::parse).transpose()?;

    let region = Region::map(32768, Hugepages::Auto)?;
    let mut pool = FramePool::new(region);
    let (left_steer, mut left) = open(left, mode, &config, &mut pool)?;
    let (right_steer, mut right) = open(right, mode, &config, &mut pool)?;
    println!(
        "left {}, {}; right {}, {}",
        left_steer.mode(),
        left.transfer(),
        right_steer.mode(),
        right.transfer()
    );
    let refused = forward(&mut left, &mut right, &mut pool, Duration::from_secs(seconds))?;
    for (port, steer) in [(left, left_steer), (right, right_steer)] {
        println!("{}: {:?}, {:?}", port.name(), port.counters(), port.statistics()?);
        steer.detach(false)?;
        port.close(&mut pool);
    }
    println!("refused for lack of room: {refused}");
    Ok(())
}

fn open(
    name: &str,
    mode: XdpMode,
    config: &XskConfig,
    pool: &mut FramePool,
) -> Result<(Steer, XskPort), Box<dyn Error>> {
    let netdev = Netdev::named(name)?;
    let steer = Steer::attach(&netdev, Role::Pod, mode)?;
    let port = XskPort::open(&netdev, 0, config, pool)?;
    steer.bind(0, &port)?;
    Ok((steer, port))
}

/// Runs for `time`; returns the frames that found no room.
fn forward(
    left: &mut XskPort,
    right: &mut XskPort,
    pool: &mut FramePool,
    time: Duration,
) -> Result<usize, Box<dyn Error>> {
    let (start, mut burst, mut refused) = (Instant::now(), Burst::new(), 0);
    while start.elapsed() < time {
        for _ in 0..1000 {
            left.rx_burst(pool, &mut burst);
            right.tx_burst(pool, &mut burst);
            refused += burst.len();
            pool.free_burst(&mut burst);
            right.rx_burst(pool, &mut burst);
            left.tx_burst(pool, &mut burst);
            refused += burst.len();
            pool.free_burst(&mut burst);
            left.settle(pool)?;
            right.settle(pool)?;
        }
    }
    Ok(refused)
}
