//! A data centre of network namespaces that lives as long as a test: `scripts/lab` builds it and takes it down.

use std::collections::BTreeMap;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;

/// Labs measure time on few cores, so one stands at a time.
static TURN: Mutex<()> = Mutex::new(());

/// How long anything in a lab may take before the test calls it broken.
pub const PATIENCE: Duration = Duration::from_secs(15);

/// A lab that is up; dropped, it is taken down, also when the test fails.
pub struct Lab {
    name: String,
    _turn: MutexGuard<'static, ()>,
}

impl Lab {
    /// Builds a lab with the flags of `scripts/lab up` in `flags`, which are parted by spaces.
    pub fn up(flags: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let root = Command::new("id").arg("-u").output().expect("id");
        assert_eq!(root.stdout.trim_ascii(), b"0", "labs build network namespaces, which takes root");
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let name = format!("t{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        // Made before it is built: a failed `up` has nothing left to take down, and `down` is then quiet about it.
        let lab = Self { name, _turn: turn };
        let mut up = lab.script("up");
        up.args(["--bin"]).arg(programs()).args(flags.split_whitespace());
        succeed(up);
        lab
    }

    fn script(&self, command: &str) -> Command {
        let mut script = Command::new(repository().join("scripts/lab"));
        script.args([command, "--name", &self.name]);
        script
    }

    /// The node `i`, counted from 1.
    pub fn node(&self, i: u8) -> Place {
        self.place(&format!("node{i}"))
    }

    /// Pod `j` of node `i` in the network `default`.
    pub fn pod(&self, i: u8, j: u8) -> Place {
        self.place(&format!("node{i}-pod{j}"))
    }

    /// Pod `j` of node `i` in the network `blue`.
    pub fn blue(&self, i: u8, j: u8) -> Place {
        self.place(&format!("node{i}-blue{j}"))
    }

    /// The bridge between the nodes; `n1` is its port to node 1.
    pub fn under(&self) -> Place {
        self.place("under")
    }

    /// Somebody outside, on the nodes' subnet (`--outside`).
    pub fn outside(&self) -> Place {
        self.place("outside")
    }

    /// A namespace of its own with nothing in it, that goes with the lab.
    pub fn empty_place(&self, name: &str) -> Place {
        let place = self.place(name);
        let mut file = std::fs::File::options()
            .append(true)
            .open(self.file("namespaces"))
            .expect("a lab that is up lists its namespaces");
        std::io::Write::write_all(&mut file, format!("{}\n", place.namespace).as_bytes()).expect("the list");
        let mut add = Command::new("ip");
        add.args(["netns", "add", &place.namespace]);
        succeed(add);
        place
    }

    fn place(&self, name: &str) -> Place {
        Place { namespace: format!("{}-{name}", self.name) }
    }

    /// A file of the lab: configurations, logs.
    pub fn file(&self, name: &str) -> PathBuf {
        Path::new("/run/penstock-lab").join(&self.name).join(name)
    }

    /// Starts the daemon of node `i` and waits until it answers.
    pub fn start(&self, i: u8) {
        let mut start = self.script("start");
        start.arg(format!("node{i}"));
        succeed(start);
    }

    /// Ends the daemon of node `i` by SIGTERM.
    pub fn stop(&self, i: u8) {
        let mut stop = self.script("stop");
        stop.arg(format!("node{i}"));
        succeed(stop);
    }

    /// Ends the daemon of node `i` by SIGKILL.
    pub fn kill(&self, i: u8) {
        let mut stop = self.script("stop");
        stop.arg("--kill").arg(format!("node{i}"));
        succeed(stop);
    }

    /// The process of the daemon of node `i`.
    pub fn daemon(&self, i: u8) -> u32 {
        let pid =
            std::fs::read_to_string(self.file(&format!("node{i}.pid"))).expect("the daemon was started");
        pid.trim().parse().expect("a process number")
    }

    /// The command line of `penstock` for node `i`, as a shell takes it.
    pub fn penstock(&self, i: u8) -> String {
        let socket = self.file(&format!("node{i}.sock"));
        format!("{} --socket {}", programs().join("penstock").display(), socket.display())
    }

    /// What `penstock --json …` says about node `i`.
    pub fn ask(&self, i: u8, question: &str) -> Value {
        let mut penstock = Command::new(programs().join("penstock"));
        penstock.arg("--socket").arg(self.file(&format!("node{i}.sock"))).arg("--json");
        penstock.args(question.split_whitespace());
        let answer = succeed(penstock);
        serde_json::from_str(&answer).unwrap_or_else(|e| panic!("{question}: no JSON ({e}): {answer}"))
    }

    /// Dropped packets of node `i` by reason.
    pub fn drops(&self, i: u8) -> BTreeMap<String, u64> {
        let answer = self.ask(i, "drops");
        let rows = answer.as_array().expect("a list of drops");
        rows.iter().map(|row| (text(&row["reason"]), number(&row["packets"]))).collect()
    }

    /// The rows that `penstock ports` has for the port `name` of node `i`, one a queue.
    pub fn port(&self, i: u8, name: &str) -> Vec<Value> {
        let ports = self.ask(i, "ports");
        let rows = ports.as_array().expect("a list of ports");
        rows.iter().filter(|row| row["name"] == name).cloned().collect()
    }

    /// Waits until node `i` has ports of so many endpoints.
    pub fn await_endpoints(&self, i: u8, so_many: usize) {
        wait_until(&format!("{so_many} endpoints have ports"), || {
            let ports = self.ask(i, "ports");
            let rows = ports.as_array().expect("a list of ports");
            rows.iter().filter(|row| row["endpoint"] != "").count() == so_many
        });
    }

    /// Waits until no frame of node `i` is in the program's hands: all are free or with the kernel, none leaked.
    pub fn await_all_frames(&self, i: u8) {
        wait_until("every frame is free or with the kernel", || {
            let frames = &self.ask(i, "status")["frames"];
            // A worker that has just begun has not counted yet; one that has receives into some.
            number(&frames["fill"]) > 0 && number(&frames["user"]) == 0
        });
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.testify();
        }
        if !self.file("namespaces").exists() {
            return;
        }
        let down = self.script("down").output().expect("scripts/lab down");
        if !down.status.success() {
            eprintln!("{} stays: {}", self.name, String::from_utf8_lossy(&down.stderr));
        }
    }
}

impl Lab {
    /// Prints what the daemons know, for the person who reads the failure.
    fn testify(&self) {
        for node in (1..).map(|i| format!("node{i}")) {
            let Ok(log) = std::fs::read_to_string(self.file(&format!("{node}.log"))) else { return };
            let tail: Vec<_> = log.lines().rev().take(20).collect();
            eprintln!("--- {node}: the end of its log");
            tail.iter().rev().for_each(|line| eprintln!("{line}"));
            for question in ["drops", "ports"] {
                let mut ask = Command::new(programs().join("penstock"));
                ask.arg("--socket").arg(self.file(&format!("{node}.sock"))).arg(question);
                if let Ok(answer) = ask.output() {
                    eprintln!("--- {node}: {question}\n{}", String::from_utf8_lossy(&answer.stdout));
                }
            }
        }
    }
}

/// A namespace of the lab.
#[derive(Clone)]
pub struct Place {
    namespace: String,
}

impl Place {
    /// The name that `ip` knows it by.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    fn shell(&self, line: &str) -> Command {
        let mut ip = Command::new("ip");
        ip.args(["netns", "exec", &self.namespace, "sh", "-c", line]);
        ip
    }

    /// Runs a line of shell here; it must succeed. Its standard output.
    pub fn run(&self, line: &str) -> String {
        succeed(self.shell(&bounded(line)))
    }

    /// Runs a line of shell here, which may fail.
    pub fn attempt(&self, line: &str) -> Output {
        self.shell(&bounded(line)).output().expect("ip netns exec")
    }

    /// Starts one program here that ends with the value that is returned.
    pub fn spawn(&self, line: &str) -> Running {
        let mut command = self.shell(&format!("exec {line}"));
        // A group of its own, so that what the program starts (trafgen's sender, say) ends with it.
        command.process_group(0);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Running { line: line.to_owned(), child: Some(command.spawn().expect("ip netns exec")) }
    }

    /// Starts a server here and waits until something listens on the TCP port.
    pub fn serve(&self, port: u16, line: &str) -> Running {
        let mut server = self.spawn(line);
        wait_until(&format!("{line} listens"), || {
            server.assert_runs();
            !self.run(&format!("ss -Hltn 'sport = {port}'")).is_empty()
        });
        server
    }
}

/// A program that runs in a lab; dropped, it is ended.
pub struct Running {
    line: String,
    child: Option<Child>,
}

impl Running {
    /// Its process id.
    pub fn process(&self) -> u32 {
        self.child.as_ref().expect("not waited for yet").id()
    }

    /// Fails if the program has ended.
    pub fn assert_runs(&mut self) {
        let child = self.child.as_mut().expect("not waited for yet");
        if let Some(status) = child.try_wait().expect("wait") {
            let output = self.child.take().expect("just seen").wait_with_output().expect("wait");
            panic!("{} ended ({status}): {}", self.line, String::from_utf8_lossy(&output.stderr));
        }
    }

    /// Waits for the end, which must be a success. The standard output.
    pub fn finish(mut self) -> String {
        let output = self.child.take().expect("not waited for yet").wait_with_output().expect("wait");
        check(&self.line, output)
    }

    /// Sends a signal, say `INT`, and waits for the end, whatever it is. The standard output.
    pub fn end(mut self, signal: &str) -> String {
        let child = self.child.take().expect("not waited for yet");
        succeed({
            let mut kill = Command::new("kill");
            kill.arg(format!("-{signal}")).arg(child.id().to_string());
            kill
        });
        String::from_utf8_lossy(&child.wait_with_output().expect("wait").stdout).into_owned()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let group = format!("-{}", child.id());
            Command::new("kill").args(["-KILL", "--", &group]).output().expect("kill");
            child.wait().expect("a killed child ends");
        }
    }
}

/// Asks again and again until `condition` holds, but not for ever.
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let from = Instant::now();
    while !condition() {
        assert!(from.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The address of pod `j` on node `i`, the same in every network; 254 is the node itself.
pub fn v4(i: u8, j: u8) -> String {
    format!("10.244.{i}.{j}")
}

/// The IPv6 address of pod `j` on node `i`.
pub fn v6(i: u8, j: u8) -> String {
    format!("fd10:244:{i:x}::{j:x}")
}

/// The underlay's IPv4 address of node `i`, where all nodes are in one subnet; 250 is whoever is outside.
pub fn under4(i: u8) -> String {
    format!("192.168.51.{i}")
}

/// The underlay's IPv6 address of node `i`, where all nodes are in one subnet.
pub fn under6(i: u8) -> String {
    format!("fd50:1::{i:x}")
}

/// The `j` of the node itself.
pub const HOST: u8 = 254;

/// The text in a JSON value.
pub fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("no text: {value}")).to_owned()
}

/// The whole number in a JSON value.
pub fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("no whole number: {value}"))
}

/// Where the repository is.
pub fn repository() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// The folder that `penstockd` and `penstock` were built into, or the one that `PENSTOCK_PROGRAMS` names: those of a release,
/// say, for labs that measure.
pub fn programs() -> &'static Path {
    static TOLD: LazyLock<Option<PathBuf>> =
        LazyLock::new(|| std::env::var_os("PENSTOCK_PROGRAMS").map(PathBuf::from));
    let built = || Path::new(env!("CARGO_BIN_EXE_penstockd")).parent().expect("a program lies in a folder");
    let folder = TOLD.as_deref().unwrap_or_else(built);
    let penstock = folder.join("penstock");
    assert!(penstock.exists(), "no {}: cargo build --workspace --bins", penstock.display());
    folder
}

/// Runs `command`, which must succeed. Its standard output.
pub fn succeed(mut command: Command) -> String {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    check(&format!("{command:?}"), output)
}

fn check(what: &str, output: Output) -> String {
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{what}: {}\n{stdout}{stderr}", output.status);
    stdout
}

/// The same line, ended after two minutes: a program that hangs fails its test instead of the whole run.
fn bounded(line: &str) -> String {
    format!("timeout -k 5 120 sh -c '{}'", line.replace('\'', "'\\''"))
}
