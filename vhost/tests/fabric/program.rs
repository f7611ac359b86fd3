//! Other programs: the switch, DPDK's testpmd, a pod. Each is killed with the value that stands for it.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use super::until;

/// A program and what it says.
pub(crate) struct Program {
    child: Child,
    said: Arc<Mutex<Vec<String>>>,
    readers: Vec<JoinHandle<()>>,
}

impl Program {
    pub(crate) fn start(command: &mut Command) -> Program {
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let mut child = child
            .unwrap_or_else(|error| panic!("{command:?}: {error}; scripts/setup installs what tests need"));
        let said = Arc::new(Mutex::new(Vec::new()));
        let mut readers = vec![listen(child.stdout.take().unwrap(), Arc::clone(&said))];
        readers.push(listen(child.stderr.take().unwrap(), Arc::clone(&said)));
        Program { child, said, readers }
    }

    /// The switch of the examples, connected to these sockets or serving them.
    pub(crate) fn switch(options: &[&str], sockets: &[PathBuf]) -> Program {
        let here = std::env::current_exe().unwrap();
        let switch = here.parent().unwrap().parent().unwrap().join("examples/switch");
        assert!(switch.exists(), "{} is missing: cargo build --example switch", switch.display());
        let program = Program::start(Command::new(switch).args(options).args(sockets));
        until("the switch is ready", || program.has_said("ready"));
        program
    }

    /// testpmd with a virtio-user port at each socket, made with `device` options and `forward` ones.
    pub(crate) fn testpmd(sockets: &[PathBuf], device: &str, forward: &str) -> Program {
        // Its name keeps its files apart from another's; with --in-memory there are none.
        let prefix = format!("penstock{}", std::process::id());
        let mut command = Command::new("dpdk-testpmd");
        command.args(["--in-memory", "--no-pci", "--single-file-segments", "--no-telemetry", "-m", "128"]);
        command.args(["-l", "0,1", "--main-lcore", "0", "--file-prefix", &prefix]);
        for (number, socket) in sockets.iter().enumerate() {
            command.arg(format!("--vdev=net_virtio_user{number},path={},{device}", socket.display()));
        }
        command.args(["--", "--auto-start", "--total-num-mbufs=16384"]);
        Program::start(command.args(forward.split_whitespace()))
    }

    pub(crate) fn has_said(&self, words: &str) -> bool {
        self.said.lock().unwrap().iter().any(|line| line.contains(words))
    }

    /// Everything it said.
    pub(crate) fn said(&self) -> String {
        self.said.lock().unwrap().join("\n")
    }

    /// Whether it still runs.
    pub(crate) fn runs(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Presses enter, which ends testpmd, and waits for it to end; what it said.
    pub(crate) fn finish(mut self) -> String {
        self.child.stdin.take().unwrap().write_all(b"\n").unwrap();
        until("the program ends", || !self.runs());
        self.readers.drain(..).for_each(|reader| reader.join().unwrap());
        self.said()
    }

    /// As `kill -9` does.
    pub(crate) fn kill(self) {}
}

impl Drop for Program {
    fn drop(&mut self) {
        // One that has ended is not killed, and that is fine.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn listen(from: impl std::io::Read + Send + 'static, said: Arc<Mutex<Vec<String>>>) -> JoinHandle<()> {
    std::thread::spawn(move || {
        for line in BufReader::new(from).lines().map_while(Result::ok) {
            said.lock().unwrap().push(line);
        }
    })
}

/// Runs one test of this test program as a program of its own, with a path in its environment.
pub(crate) fn part(test: &str, path: &Path) -> Program {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture", "--test-threads", "1"]).env(PART, path);
    Program::start(&mut command)
}

/// The path, in such a program.
pub(crate) fn is_part() -> Option<PathBuf> {
    std::env::var_os(PART).map(PathBuf::from)
}

const PART: &str = "PENSTOCK_TEST_PART";
