//! Our own daemon in a lab, as its users run it.

use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;

use super::lab::{Lab, Program, wait_for};
use super::{PeerError, beside};
use crate::forwarder::Counted;

/// A running `penstockd`, which is stopped while it is not its turn.
pub struct Daemon {
    program: Program,
    socket: PathBuf,
}

/// Flows of each family that a daemon knows at most, where its peer has no such bound.
pub const CACHED: u32 = 65_536;

/// A node that is told its MAC address, since it has no underlay to derive one from.
pub const GATEWAY: &str = "mac = \"02:00:00:00:00:fe\"\n";

/// What a node's file says besides its objects: one worker on a CPU that is `poll` or `adaptive` and knows so many `flows`
/// of each family; `node` is what else the node is told of itself.
#[must_use]
pub fn settings(lab: &Lab, name: &str, cpu: usize, idle: &str, node: &str, flows: u32) -> String {
    format!(
        "[node]\nname = \"{name}\"\n{node}[workers]\ncpus = [{cpu}]\nidle = \"{idle}\"\n\
         [memory]\nchunks = 32768\n[flows]\nipv4 = {flows}\nipv6 = {flows}\n[control]\nsocket = \"{}\"\n",
        lab.path(&format!("{name}.sock")).display()
    )
}

impl Daemon {
    /// Starts a daemon with a file of [`settings`] and objects in a place of a lab, and waits until it answers.
    ///
    /// # Errors
    /// When it is not built, or does not come up.
    pub fn start(lab: &Lab, place: usize, name: &str, cpus: &str, file: &str) -> Result<Daemon, PeerError> {
        let path = lab.path(&format!("{name}.toml"));
        std::fs::write(&path, file).map_err(|source| PeerError::File { path: path.clone(), source })?;
        let program = beside("penstockd")?.display().to_string();
        let config = path.display().to_string();
        let mut daemon = Daemon {
            program: lab.start(place, cpus, &program, &["run", "--config", &config])?,
            socket: lab.path(&format!("{name}.sock")),
        };
        let answered = wait_for("penstockd to answer", || Ok(daemon.ask(&["status"]).ok().map(|_| ())));
        if answered.is_err() {
            // What it has said of itself says more than that it does not answer.
            daemon.program.wait_for(0, "\u{0}", 1)?;
        }
        Ok(daemon)
    }

    /// Asks it by the command line.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn ask(&self, question: &[&str]) -> Result<Value, PeerError> {
        let program = beside("penstock")?;
        let refused =
            |said: String| PeerError::Refused { command: format!("penstock {}", question.join(" ")), said };
        let output = Command::new(&program)
            .arg("--socket")
            .arg(&self.socket)
            .arg("--json")
            .args(question)
            .output()
            .map_err(|source| PeerError::File { path: program, source })?;
        if !output.status.success() {
            return Err(refused(String::from_utf8_lossy(&output.stderr).into_owned()));
        }
        serde_json::from_slice(&output.stdout).map_err(|fault| refused(fault.to_string()))
    }

    /// Dropped frames by reason, those that never happened left out.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn drops(&self) -> Result<Vec<(String, u64)>, PeerError> {
        let rows = self.ask(&["drops"])?;
        let one = |row: &Value| Some((row["reason"].as_str()?.to_owned(), number(&row["packets"])));
        Ok(rows.as_array().into_iter().flatten().filter_map(one).filter(|(_, count)| *count > 0).collect())
    }

    /// What its workers have counted.
    ///
    /// # Errors
    /// When it does not answer.
    pub(crate) fn counted(&self) -> Result<Counted, PeerError> {
        let rows = self.ask(&["workers"])?;
        let sum = |name: &str| rows.as_array().into_iter().flatten().map(|row| number(&row[name])).sum();
        Ok(Counted {
            received: sum("rx_packets"),
            sent: sum("tx_packets"),
            lost: self.drops()?.into_iter().collect(),
            turns: sum("busy_turns"),
            ticks: sum("busy_cycles"),
        })
    }

    /// Waits until both sides of a port's session are up, for all ports of these names.
    ///
    /// # Errors
    /// When one does not come up in time.
    pub fn await_ports(&self, names: &[&str]) -> Result<(), PeerError> {
        wait_for("the ports to come up", || {
            let rows = self.ask(&["ports"])?;
            let up = |name: &&str| {
                rows.as_array()
                    .into_iter()
                    .flatten()
                    .any(|row| row["name"].as_str() == Some(name) && row["state"].as_str() == Some("up"))
            };
            Ok(names.iter().all(up).then_some(()))
        })
    }

    /// Stops it.
    ///
    /// # Errors
    /// When it has ended.
    pub fn pause(&self) -> Result<(), PeerError> {
        self.program.pause()
    }

    /// Lets it go on.
    ///
    /// # Errors
    /// When it has ended.
    pub fn resume(&self) -> Result<(), PeerError> {
        self.program.resume()
    }
}

/// Counters are numbers, or text where they may be larger than JSON's readers hold.
fn number(value: &Value) -> u64 {
    value.as_u64().or_else(|| value.as_str()?.parse().ok()).unwrap_or(0)
}
