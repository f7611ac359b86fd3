//! Namespaces, programs and files of a trial, which go when their owner goes, also on failure.

use std::ffi::OsStr;
use std::fs::{DirBuilder, File};
use std::io::Write;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::{PeerError, read, tail};

/// The beginning of the name of every namespace and folder made here; the maker's process number follows.
const PREFIX: &str = "penstock-bench-";
/// What anything may take that is waited for.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// How often it is looked whether it is there.
const LOOK: Duration = Duration::from_millis(2);

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

/// Everything that must go when the program is interrupted: folders of labs, with the names of their namespaces.
static STANDING: Mutex<Vec<(PathBuf, Vec<String>)>> = Mutex::new(Vec::new());

fn standing() -> std::sync::MutexGuard<'static, Vec<(PathBuf, Vec<String>)>> {
    STANDING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes down what stands: programs, namespaces, folders. For a program that is about to end in the middle of something.
pub fn take_down_all() {
    for (folder, namespaces) in standing().drain(..) {
        take_down(&folder, &namespaces);
    }
}

fn take_down(folder: &Path, namespaces: &[String]) {
    for name in namespaces {
        end_all(name);
        if let Err(error) = sh(&format!("ip netns del {name}")) {
            eprintln!("{error}");
        }
    }
    let _ = std::fs::remove_dir_all(folder);
}

/// Kills what runs in a namespace of ours, and waits until it has ended: its huge pages are wanted again.
fn end_all(namespace: &str) {
    let until = Instant::now() + PATIENCE;
    while let Ok(pids) = sh(&format!("ip netns pids {namespace}"))
        && !pids.trim().is_empty()
        && Instant::now() < until
    {
        for pid in pids.split_whitespace() {
            // It may have ended by itself.
            let _ = run("kill", &["-KILL", pid]);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn missing(program: &str, source: std::io::Error) -> PeerError {
    let package = match program {
        "dpdk-testpmd" | "dpdk-test" | "dpdk-test-fib" | "dpdk-test-acl" => "dpdk",
        "clang" => "clang",
        "nft" => "nftables",
        "ip" | "taskset" | "timeout" | "stdbuf" | "kill" => "iproute2, util-linux, coreutils, procps",
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
        DirBuilder::new()
            .mode(0o700)
            .create(&folder)
            .map_err(|source| PeerError::File { path: folder.clone(), source })?;
        let own = std::process::id();
        let namespaces = names.iter().map(|name| format!("{PREFIX}{own}-{number}-{name}")).collect();
        let lab = Lab { folder, namespaces };
        // An interrupt may come at any time.
        standing().push((lab.folder.clone(), lab.namespaces.clone()));
        for name in &lab.namespaces {
            sh(&format!("ip netns add {name}"))?;
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
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let log = self.path(&format!("{place}-{}.log", COUNT.fetch_add(1, Ordering::Relaxed)));
        let failed = |source| PeerError::File { path: log.clone(), source };
        let out = File::create(&log).map_err(failed)?;
        let err = out.try_clone().map_err(failed)?;
        // `ip netns exec`, `taskset` and `stdbuf` become the program, so its process number is the child's.
        let child = Command::new("ip")
            .args(["netns", "exec", self.namespace(place), "taskset", "-c", cpus, "stdbuf", "-oL", program])
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(out)
            .stderr(err)
            .spawn()
            .map_err(|source| missing(program, source))?;
        Ok(Program { child, log, name: program.to_owned() })
    }

    /// Starts a part of this program itself as [`Lab::start`] does, and waits until it says that it is at work.
    ///
    /// # Errors
    /// When it does not start, or ends before it says so.
    pub fn start_part(
        &self,
        place: usize,
        cpus: &str,
        arguments: &[&str],
        at_work: &'static str,
    ) -> Result<Program, PeerError> {
        let own = std::env::current_exe().unwrap_or_default();
        let mut program = self.start(place, cpus, &own.to_string_lossy(), arguments)?;
        program.wait_for(0, at_work, 1)?;
        Ok(program)
    }

    /// Runs a command in a namespace to its end.
    ///
    /// # Errors
    /// As [`run`].
    pub fn inside(&self, place: usize, line: &str) -> Result<String, PeerError> {
        sh(&format!("ip netns exec {} {line}", self.namespace(place)))
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        standing().retain(|(folder, _)| *folder != self.folder);
        take_down(&self.folder, &self.namespaces);
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
            end_all(name);
            sh(&format!("ip netns del {name}"))?;
        }
    }
    Ok(())
}

/// Waits until something is there.
///
/// # Errors
/// What `look` says, or that it took too long; `what` is waited for.
pub fn wait_for<T>(
    what: &'static str,
    mut look: impl FnMut() -> Result<Option<T>, PeerError>,
) -> Result<T, PeerError> {
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look()? {
            return Ok(found);
        }
        if Instant::now() > until {
            return Err(PeerError::Waited { what });
        }
        std::thread::sleep(LOOK);
    }
}

/// A running program.
pub struct Program {
    child: Child,
    log: PathBuf,
    name: String,
}

impl Program {
    /// What it has said.
    ///
    /// # Errors
    /// When its log is gone.
    pub fn log(&self) -> Result<String, PeerError> {
        read(&self.log)
    }

    /// Types a line at it.
    ///
    /// # Errors
    /// When it has ended.
    pub fn tell(&mut self, line: &str) -> Result<(), PeerError> {
        let told = match &mut self.child.stdin {
            Some(stdin) => writeln!(stdin, "{line}").and_then(|()| stdin.flush()),
            None => Ok(()),
        };
        if told.is_err() {
            return Err(self.ended());
        }
        Ok(())
    }

    /// Waits until it has said something since it had said `from` bytes; returns everything since then.
    ///
    /// # Errors
    /// When it ends, or takes too long.
    pub fn wait_for(&mut self, from: usize, what: &'static str, times: usize) -> Result<String, PeerError> {
        wait_for(what, || {
            let log = self.log()?;
            let said = log.get(from..).unwrap_or_default();
            if said.matches(what).count() >= times {
                return Ok(Some(said.to_owned()));
            }
            if matches!(self.child.try_wait(), Ok(Some(_))) {
                return Err(self.ended());
            }
            Ok(None)
        })
    }

    fn ended(&self) -> PeerError {
        PeerError::Ended { program: self.name.clone(), log: tail(&self.log().unwrap_or_default()) }
    }

    /// Stops it where it is, so that it takes no time; what comes meanwhile waits or is lost.
    ///
    /// # Errors
    /// When it has ended.
    pub fn pause(&self) -> Result<(), PeerError> {
        signal("STOP", &self.child.id().to_string())
    }

    /// Lets it go on.
    ///
    /// # Errors
    /// When it has ended.
    pub fn resume(&self) -> Result<(), PeerError> {
        signal("CONT", &self.child.id().to_string())
    }
}

/// Sends a signal to a process.
///
/// # Errors
/// When it has ended.
pub fn signal(name: &str, pid: &str) -> Result<(), PeerError> {
    run("kill", &[&format!("-{name}"), pid]).map(|_| ())
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
