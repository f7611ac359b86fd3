//! Namespaces, programs and files of a trial, which go when their owner goes, also on failure.

use std::ffi::OsStr;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::{PeerError, read, tail};

/// The beginning of the name of every namespace and folder made here; the maker's process number follows.
const PREFIX: &str = "penstock-bench-";

/// Runs a command to its end.
///
/// # Errors
/// When it cannot be run or says no.
pub fn run<A: AsRef<OsStr>>(program: &str, arguments: &[A]) -> Result<String, PeerError> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null());
    let output = command.output().map_err(|source| missing(program, source))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = [&output.stdout[..], &output.stderr[..]].concat();
    Err(PeerError::Refused { command: format!("{command:?}"), said: tail(&String::from_utf8_lossy(&said)) })
}

/// The same, with the arguments in one string, parted by spaces.
///
/// # Errors
/// As [`run`].
pub fn sh(line: &str) -> Result<String, PeerError> {
    let mut words = line.split_whitespace();
    let program = words.next().unwrap_or_default();
    run(program, &words.collect::<Vec<_>>())
}

fn missing(program: &str, source: std::io::Error) -> PeerError {
    let package = match program {
        "dpdk-testpmd" => "dpdk",
        "ip" | "taskset" | "timeout" => "iproute2, util-linux, coreutils",
        _ => "openvswitch-switch-dpdk",
    };
    PeerError::Missing { program: program.to_owned(), package, source }
}

/// Namespaces, and a folder for logs and sockets.
pub struct Lab {
    folder: PathBuf,
    namespaces: Vec<String>,
}

impl Lab {
    /// A lab with these namespaces, their loopbacks up. What a killed run left behind goes first.
    ///
    /// # Errors
    /// When a namespace cannot be made.
    pub fn new(names: &[&str]) -> Result<Lab, PeerError> {
        sweep()?;
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("{PREFIX}{}-{number}", std::process::id()));
        std::fs::create_dir_all(&folder)
            .map_err(|source| PeerError::File { path: folder.clone(), source })?;
        let mut lab = Lab { folder, namespaces: Vec::new() };
        for name in names {
            let name = format!("{PREFIX}{}-{name}", std::process::id());
            sh(&format!("ip netns add {name}"))?;
            lab.namespaces.push(name);
        }
        for name in &lab.namespaces {
            sh(&format!("ip -n {name} link set lo up"))?;
        }
        Ok(lab)
    }

    /// The name of a namespace, by its place in [`Lab::new`]'s list.
    #[must_use]
    pub fn namespace(&self, place: usize) -> &str {
        &self.namespaces[place]
    }

    /// A path in the lab's folder.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Joins two namespaces by a veth: (place, name) and (place, name).
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn join(&self, left: (usize, &str), right: (usize, &str)) -> Result<(), PeerError> {
        let (a, b) = (self.namespace(left.0), self.namespace(right.0));
        sh(&format!("ip link add {} netns {a} type veth peer name {} netns {b}", left.1, right.1))?;
        for (namespace, name) in [(a, left.1), (b, right.1)] {
            sh(&format!("ip netns exec {namespace} sysctl -qw net.ipv6.conf.{name}.disable_ipv6=1"))?;
            sh(&format!("ip -n {namespace} link set {name} up promisc on"))?;
        }
        Ok(())
    }

    /// A number that the kernel counts or says of an interface, below `/sys/class/net/NAME`.
    ///
    /// # Errors
    /// When there is no such file.
    pub fn sysfs(&self, place: usize, interface: &str, file: &str) -> Result<String, PeerError> {
        let path = format!("/sys/class/net/{interface}/{file}");
        Ok(run("ip", &["netns", "exec", self.namespace(place), "cat", &path])?.trim().to_owned())
    }

    /// Starts a program in a namespace on one CPU or more (`taskset`'s list); it is killed when its handle goes.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start<A: AsRef<OsStr>>(
        &self,
        place: usize,
        cpus: &str,
        program: &str,
        arguments: &[A],
    ) -> Result<Program, PeerError> {
        let log = self.path(&format!("{place}.log"));
        let failed = |source| PeerError::File { path: log.clone(), source };
        let out = File::create(&log).map_err(failed)?;
        let err = out.try_clone().map_err(failed)?;
        // `ip netns exec` and `taskset` become the program, so its process number is the child's.
        let child = Command::new("ip")
            .args(["netns", "exec", self.namespace(place), "taskset", "-c", cpus, program])
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err)
            .spawn()
            .map_err(|source| missing(program, source))?;
        Ok(Program { child, log })
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for name in &self.namespaces {
            if let Err(error) = sh(&format!("ip netns del {name}")) {
                eprintln!("{error}");
            }
        }
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// Removes the namespaces of runs that were killed.
fn sweep() -> Result<(), PeerError> {
    for line in sh("ip netns list")?.lines() {
        let name = line.split_whitespace().next().unwrap_or_default();
        let maker = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
        if let Some(maker) = maker
            && !Path::new("/proc").join(maker).exists()
        {
            sh(&format!("ip netns del {name}"))?;
        }
    }
    Ok(())
}

/// A running program.
pub struct Program {
    child: Child,
    log: PathBuf,
}

impl Program {
    /// What it has said.
    ///
    /// # Errors
    /// When its log is gone.
    pub fn log(&self) -> Result<String, PeerError> {
        read(&self.log)
    }

    /// Waits for its end, for at most `patience`, and gives back what it said.
    ///
    /// # Errors
    /// When its log is gone.
    pub fn finish(mut self, patience: Duration) -> Result<String, PeerError> {
        let until = std::time::Instant::now() + patience;
        while matches!(self.child.try_wait(), Ok(None)) && std::time::Instant::now() < until {
            std::thread::sleep(Duration::from_millis(50));
        }
        self.log()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
