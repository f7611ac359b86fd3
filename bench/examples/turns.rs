//! Runs one path for a while, for a profiler to look at:
//! `turns l3-forward|vxlan-encap|vxlan-decap|ct-policy-vxlan|ct-snat|ct-service-dnat [FLOWS] [TURNS]`; with `first` as a
//! fourth argument the first packets of as many connections.

use std::error::Error;

use penstock_bench::scenario::{Path, Running};
use penstock_bench::stateful::Work;
use penstock_bench::windows::costs;
use penstock_io::BURST;

const USAGE: &str = "usage: turns l3-forward|vxlan-encap|vxlan-decap|ct-policy-vxlan|ct-snat|ct-service-dnat \
                     [FLOWS] [TURNS] [first]";

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let name = arguments.first().ok_or(USAGE)?;
    let flows = arguments.get(1).map_or(Ok(1000), |text| text.parse())?;
    let turns: u64 = arguments.get(2).map_or(Ok(100_000), |text| text.parse())?;
    let work = Work::ALL.into_iter().find(|work| work.name() == name);
    if let (Some(work), Some("first")) = (work, arguments.get(3).map(String::as_str)) {
        let cost = work.first_packets(flows).median as f64 / f64::from(flows);
        println!("{name} {flows} first packets: {cost:.1} cycles a packet");
        return Ok(());
    }
    let path = Path::ALL.into_iter().find(|path| path.name() == name).map(|path| Running::new(path, flows));
    let mut running = path.or_else(|| work.map(|work| work.running(flows))).ok_or(USAGE)?;
    let costs = costs(turns, |now| running.turn(now));
    running.check();
    let [median, least] = [costs.median, costs.least].map(|cost| cost as f64 / (turns * BURST as u64) as f64);
    println!("{name} {flows} flows: {median:.1} cycles a packet, {least:.1} in the best window");
    Ok(())
}
