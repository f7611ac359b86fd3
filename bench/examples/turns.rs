//! Runs one path for a while, for a profiler to look at: `turns l3-forward|vxlan-encap|vxlan-decap [FLOWS] [TURNS]`.

use std::error::Error;

use penstock_bench::scenario::{Path, Running};
use penstock_bench::windows::costs;
use penstock_io::BURST;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let path = arguments.first().and_then(|name| Path::ALL.into_iter().find(|path| path.name() == name));
    let path = path.ok_or("usage: turns l3-forward|vxlan-encap|vxlan-decap [FLOWS] [TURNS]")?;
    let flows = arguments.get(1).map_or(Ok(1000), |text| text.parse())?;
    let turns: u64 = arguments.get(2).map_or(Ok(100_000), |text| text.parse())?;
    let mut running = Running::new(path, flows);
    let costs = costs(turns, |now| running.turn(now));
    running.check();
    let [median, least] = [costs.median, costs.least].map(|cost| cost as f64 / (turns * BURST as u64) as f64);
    println!("{} {flows} flows: {median:.1} cycles a packet, {least:.1} in the best window", path.name());
    Ok(())
}
