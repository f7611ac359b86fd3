//! Open vSwitch's userspace datapath on DPDK: one PMD thread forwards frames replayed from memory to a port that discards.

use std::path::Path;
use std::time::Duration;

use super::lab::{Lab, run, signal, wait_for};
use super::{PeerError, tail};

/// What the switch does with each packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// One hop less, and out.
    Forward,
    /// A VXLAN header in front, and out.
    Vxlan,
    /// A Geneve header in front, and out.
    Geneve,
    /// The connection is tracked, then a VXLAN header in front, and out.
    TrackedVxlan,
    /// Another source address, by the connection; one hop less, and out.
    SourceNat,
    /// Another destination address, by the connection; one hop less, and out.
    DestinationNat,
}

impl Work {
    const fn is_tunnelled(self) -> bool {
        matches!(self, Work::Vxlan | Work::Geneve | Work::TrackedVxlan)
    }

    /// The flow rules, with what sends a packet out at the end.
    fn rules(self) -> Vec<String> {
        let send = if self.is_tunnelled() { "output:out" } else { "dec_ttl,output:out" };
        let commit = match self {
            Work::Forward | Work::Vxlan | Work::Geneve => {
                return vec![format!("priority=10,in_port=p0,ip,actions={send}")];
            }
            Work::TrackedVxlan => "commit",
            Work::SourceNat => "commit,nat(src=198.51.100.1:32768-65535)",
            Work::DestinationNat => "commit,nat(dst=10.1.1.2)",
        };
        // Known connections are translated by the first look-up already.
        let look_up = if self == Work::TrackedVxlan { "table=1" } else { "table=1,nat" };
        vec![
            format!("table=0,priority=10,in_port=p0,ip,actions=ct({look_up})"),
            format!("table=1,priority=10,ip,ct_state=+trk+new,actions=ct({commit}),{send}"),
            format!("table=1,priority=10,ip,ct_state=+trk+est,actions={send}"),
        ]
    }
}

const SCHEMA: &str = "/usr/share/openvswitch/vswitch.ovsschema";
/// Debian's DPDK build lies beside the ordinary one, which `ovs-vswitchd` names.
const SWITCH: &str = "/usr/lib/openvswitch-switch-dpdk/ovs-vswitchd-dpdk";
/// A switch and its database, in a namespace of their own. It is stopped while it is not its turn.
pub struct Switch {
    lab: Lab,
}

impl Switch {
    /// A switch one PMD thread of which, on CPU 1, does this to `pcap`'s frames (`net_pcap`, `infinite_rx`).
    ///
    /// # Errors
    /// When a tool is missing or says no.
    pub fn from_memory(pcap: &Path, work: Work) -> Result<Switch, PeerError> {
        let switch = Switch { lab: Lab::new(&["ovs"])? };
        switch.start()?;
        switch.configure(pcap, work)?;
        switch.pause()?;
        Ok(switch)
    }

    /// A switch that serves the two sockets of a guest ([`super::vhost::sockets`] of its lab) and sends each frame on to the
    /// other, as it is or by its connection.
    ///
    /// # Errors
    /// When a tool is missing or says no.
    pub fn for_guest(is_tracked: bool) -> Result<Switch, PeerError> {
        let switch = Switch { lab: Lab::new(&["ovs"])? };
        switch.start()?;
        switch.vsctl("add-br br-int -- set bridge br-int datapath_type=netdev")?;
        let ports = ["vhost0", "vhost1"];
        for port in ports {
            switch.vsctl(&format!("add-port br-int {port} -- set Interface {port} type=dpdkvhostuser"))?;
        }
        switch.opened(&ports)?;
        switch.tool("ovs-ofctl -O OpenFlow13 del-flows unix:@/br-int.mgmt")?;
        for rule in guest_rules(is_tracked) {
            switch.add_flow(&rule)?;
        }
        Ok(switch)
    }

    /// Where it runs: its guest's sockets are in the lab's folder.
    #[must_use]
    pub fn lab(&self) -> &Lab {
        &self.lab
    }

    /// Stops it.
    ///
    /// # Errors
    /// When it has ended.
    pub fn pause(&self) -> Result<(), PeerError> {
        self.signal("STOP")
    }

    /// Lets it go on.
    ///
    /// # Errors
    /// When it has ended.
    pub fn resume(&self) -> Result<(), PeerError> {
        self.signal("CONT")
    }

    /// Lets it go on for a while, after a moment to come to its pace; returns the packets a second that it received.
    ///
    /// # Errors
    /// When it forwards nothing.
    pub fn turn(&self, time: Duration) -> Result<f64, PeerError> {
        self.resume()?;
        // Its flows are in its caches after the first round of the frames.
        wait_for("Open vSwitch to forward", || {
            Ok(received_rate(&self.ask("dpif-netdev/pmd-perf-show -nh")?))
        })?;
        std::thread::sleep(time / 5);
        self.ask("dpif-netdev/pmd-stats-clear")?;
        std::thread::sleep(time);
        // Every recirculation counts as a packet in pmd-stats-show; pmd-perf-show counts received packets.
        let said = self.ask("dpif-netdev/pmd-perf-show -nh")?;
        self.pause()?;
        received_rate(&said).ok_or_else(|| PeerError::Idle { peer: "Open vSwitch", log: tail(&said) })
    }

    fn signal(&self, name: &str) -> Result<(), PeerError> {
        let path = self.lab.path("vs.pid");
        let pid = std::fs::read_to_string(&path).map_err(|source| PeerError::File { path, source })?;
        signal(name, pid.trim())
    }

    /// Runs one of its tools in the namespace, its files in the lab's folder.
    fn tool(&self, line: &str) -> Result<String, PeerError> {
        let folder = self.lab.path("");
        let folder = folder.display().to_string();
        let variables = ["OVS_RUNDIR", "OVS_LOGDIR", "OVS_DBDIR"].map(|name| format!("{name}={folder}"));
        let line = line.replace("@", &folder);
        let mut arguments = vec!["netns", "exec", self.lab.namespace(0), "env"];
        arguments.extend(variables.iter().map(String::as_str));
        arguments.extend(line.split_whitespace());
        run("ip", &arguments)
    }

    fn vsctl(&self, line: &str) -> Result<String, PeerError> {
        self.tool(&format!("ovs-vsctl --db=unix:@/db.sock --timeout=20 {line}"))
    }

    fn ask(&self, line: &str) -> Result<String, PeerError> {
        self.tool(&format!("ovs-appctl -t @/vs.ctl {line}"))
    }

    fn start(&self) -> Result<(), PeerError> {
        self.tool(&format!("ovsdb-tool create @/conf.db {SCHEMA}"))?;
        self.tool(
            "ovsdb-server @/conf.db --remote=punix:@/db.sock --pidfile=@/db.pid --detach --log-file=@/db.log \
             --unixctl=@/db.ctl -vconsole:off",
        )?;
        self.vsctl("--no-wait init")?;
        // The PMD on CPU 1, everything else on CPU 0.
        for option in ["dpdk-init=true", "dpdk-socket-mem=512", "pmd-cpu-mask=2", "dpdk-lcore-mask=1"] {
            self.vsctl(&format!("--no-wait set Open_vSwitch . other_config:{option}"))?;
        }
        // One argument with a space in it.
        let folder = self.lab.path("db.sock");
        let extra = "other_config:dpdk-extra=\"--no-pci --in-memory\"";
        let db = format!("--db=unix:{}", folder.display());
        run("ovs-vsctl", &[&db, "--timeout=20", "--no-wait", "set", "Open_vSwitch", ".", extra])?;
        self.tool(&format!(
            "{SWITCH} unix:@/db.sock --unixctl=@/vs.ctl --pidfile=@/vs.pid --detach --log-file=@/vs.log -vconsole:off"
        ))?;
        Ok(())
    }

    fn configure(&self, pcap: &Path, work: Work) -> Result<(), PeerError> {
        let source = format!("net_pcap0,rx_pcap={},infinite_rx=1", pcap.display());
        let sink = "type=dpdk options:dpdk-devargs=net_null0,no-rx=1";
        self.vsctl("add-br br-int -- set bridge br-int datapath_type=netdev")?;
        self.vsctl(&format!(
            "add-port br-int p0 -- set Interface p0 type=dpdk options:dpdk-devargs=\"{source}\""
        ))?;
        if work.is_tunnelled() {
            self.vsctl("add-br br-phy -- set bridge br-phy datapath_type=netdev")?;
            self.vsctl(&format!("add-port br-phy p1 -- set Interface p1 {sink}"))?;
            self.tool("ip addr add 192.168.77.1/24 dev br-phy")?;
            self.tool("ip link set br-phy up")?;
            let kind = if work == Work::Geneve { "geneve" } else { "vxlan" };
            self.vsctl(&format!(
                "add-port br-int out -- set Interface out type={kind} options:remote_ip=192.168.77.2 options:key=100"
            ))?;
            self.ask("tnl/arp/set br-phy 192.168.77.2 02:00:00:00:00:99")?;
        } else {
            self.vsctl(&format!("add-port br-int out -- set Interface out {sink}"))?;
        }
        self.opened(&["p0", "out"])?;
        work.rules().iter().try_for_each(|rule| self.add_flow(rule))
    }

    /// `ovs-vsctl` is content when the switch could not open a port; the database has the reason.
    fn opened(&self, ports: &[&str]) -> Result<(), PeerError> {
        for port in ports {
            let fault = self.vsctl(&format!("get Interface {port} error"))?;
            if fault.trim() != "[]" {
                return Err(PeerError::Refused { command: format!("add-port {port}"), said: fault });
            }
        }
        Ok(())
    }

    fn add_flow(&self, rule: &str) -> Result<(), PeerError> {
        self.tool(&format!("ovs-ofctl -O OpenFlow13 add-flow unix:@/br-int.mgmt {rule}")).map(|_| ())
    }
}

/// From each of a guest's ports to the other.
fn guest_rules(is_tracked: bool) -> Vec<String> {
    let mut rules = Vec::new();
    for (from, to) in [("vhost0", "vhost1"), ("vhost1", "vhost0")] {
        if is_tracked {
            rules.extend([
                format!("table=0,priority=10,in_port={from},ip,actions=ct(table=1)"),
                format!(
                    "table=1,priority=10,in_port={from},ip,ct_state=+trk+new,actions=ct(commit),output:{to}"
                ),
                format!("table=1,priority=10,in_port={from},ip,ct_state=+trk+est,actions=output:{to}"),
            ]);
        } else {
            rules.push(format!("priority=10,in_port={from},actions=output:{to}"));
        }
    }
    rules
}

/// The first thread's rate: `Rx packets: 61234567 (15308 Kpps, 130 cycles/pkt)`.
fn received_rate(said: &str) -> Option<f64> {
    let line = said.lines().find_map(|line| line.trim().strip_prefix("Rx packets:"))?;
    let rate: f64 = line.split('(').nth(1)?.split_whitespace().next()?.parse().ok()?;
    (rate > 0.0).then_some(rate * 1e3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_looked_up_before_they_are_committed() {
        assert_eq!(Work::Forward.rules().len(), 1);
        let rules = Work::SourceNat.rules();
        assert!(rules[0].ends_with("actions=ct(table=1,nat)"), "{rules:?}");
        assert!(
            rules[1].contains("+new,actions=ct(commit,nat(src=198.51.100.1:32768-65535)),dec_ttl"),
            "{rules:?}"
        );
    }

    #[test]
    fn the_rate_is_read_from_what_the_switch_prints() {
        let said = "pmd thread numa_id 0 core_id 1:\n\n  Iterations:  1  (0.1 us/it)\n  \
                    Rx packets:          61234567  (15308 Kpps, 130 cycles/pkt)\n";
        assert_eq!(received_rate(said), Some(15_308_000.0));
        assert_eq!(received_rate("  Rx packets:  0\n"), None);
    }
}
