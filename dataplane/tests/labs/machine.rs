//! A virtual machine: Debian's kernel under QEMU's emulator, with one program of a few lines in its memory and a virtio
//! network device that the daemon serves.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::lab::Lab;

/// Where `scripts/setup` keeps the kernel and its modules.
const KERNEL: &str = "/var/cache/penstock/machine";
/// The modules, each behind those that it needs.
const MODULES: [&str; 8] = [
    "virtio_ring",
    "virtio",
    "virtio_pci_modern_dev",
    "virtio_pci_legacy_dev",
    "virtio_pci",
    "failover",
    "net_failover",
    "virtio_net",
];
/// An emulated machine takes its time.
const PATIENCE: Duration = Duration::from_secs(120);

/// A running machine; dropped, it is ended.
pub struct Machine {
    qemu: Child,
    console: Arc<Mutex<String>>,
    reader: Option<JoinHandle<()>>,
}

impl Machine {
    /// Starts vhost endpoint `j` of node `i` as a machine that serves the endpoint's socket, and runs the shell script
    /// `work` once its network is up, in which `/bin` is busybox. It starts again when the script has ended.
    pub fn start(lab: &Lab, i: u8, j: u8, work: &str) -> Machine {
        let kernel = Path::new(KERNEL).join("vmlinuz");
        assert!(kernel.exists(), "{} is missing: scripts/setup", kernel.display());
        let memory = lab.file(&format!("machine{i}-{j}.initrd"));
        std::fs::write(&memory, initramfs(i, j, work)).expect("the lab's own folder");
        let socket = lab.file(&format!("node{i}-vhost{j}.sock"));
        let mut command = Command::new("qemu-system-x86_64");
        command.args([
            "-machine",
            "q35,accel=tcg",
            "-m",
            "256M",
            "-nographic",
            "-nodefaults",
            "-serial",
            "stdio",
        ]);
        // The daemon sees the machine's memory.
        command.args([
            "-object",
            "memory-backend-memfd,id=ram,size=256M,share=on",
            "-numa",
            "node,memdev=ram",
        ]);
        command.arg("-kernel").arg(kernel).arg("-initrd").arg(&memory);
        command.args(["-append", "console=ttyS0 quiet panic=-1"]);
        command.arg("-chardev").arg(format!("socket,id=port,path={},server=on", socket.display()));
        command.args(["-netdev", "vhost-user,id=net,chardev=port,queues=1"]);
        // Without vectors: this QEMU falls over its own interrupts of a vhost device where it emulates the processor.
        command.args([
            "-device",
            &format!("virtio-net-pci,netdev=net,mac=02:03:00:00:0{i}:0{j},vectors=0,romfile="),
        ]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut qemu = command.spawn().expect("qemu-system-x86_64, which scripts/setup installs");
        let console = Arc::new(Mutex::new(String::new()));
        let (mut stdout, heard) = (qemu.stdout.take().expect("piped"), Arc::clone(&console));
        let reader = std::thread::spawn(move || {
            let mut piece = [0; 4096];
            while let Ok(count @ 1..) = stdout.read(&mut piece) {
                heard.lock().expect("no panic").push_str(&String::from_utf8_lossy(&piece[..count]));
            }
        });
        Machine { qemu, console, reader: Some(reader) }
    }

    /// What it has said on its console.
    pub fn said(&self) -> String {
        self.console.lock().expect("no panic").clone()
    }

    /// Waits until it has said something so many times.
    pub fn await_word(&self, word: &str, times: usize) {
        self.await_word_while(word, times, || ());
    }

    /// The same, and `look` is called again and again meanwhile.
    pub fn await_word_while(&self, word: &str, times: usize, mut look: impl FnMut()) {
        let from = Instant::now();
        while self.said().matches(word).count() < times {
            assert!(
                from.elapsed() < PATIENCE,
                "the machine did not say {word:?} {times} times:\n{}",
                self.said()
            );
            look();
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // One that has ended is not killed, and that is fine.
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

/// The machine's file system: busybox, the modules, and a first program that sets the network up as a pod's is.
fn initramfs(i: u8, j: u8, work: &str) -> Vec<u8> {
    let modules = MODULES.join(" ");
    let address = format!("10.244.{i}.{}", 100 + j);
    let init = format!(
        "#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
for module in {modules}; do insmod /modules/$module.ko || echo \"machine: no $module\"; done
ip link set eth0 mtu 1450 up
ip address add {address}/32 dev eth0
ip route add 169.254.1.1 dev eth0
ip route add default via 169.254.1.1 dev eth0
echo machine: up
{work}
reboot -f
"
    );
    let mut archive = Archive::default();
    for folder in ["bin", "proc", "sys", "dev", "modules"] {
        archive.add(folder, 0o40_755, &[]);
    }
    archive.add("init", 0o100_755, init.as_bytes());
    archive.add("bin/busybox", 0o100_755, &file("/bin/busybox".into()));
    for module in MODULES {
        let path = Path::new(KERNEL).join(format!("modules/{module}.ko"));
        archive.add(&format!("modules/{module}.ko"), 0o100_644, &file(path));
    }
    archive.add("TRAILER!!!", 0, &[]);
    archive.0
}

fn file(path: PathBuf) -> Vec<u8> {
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}: scripts/setup", path.display()))
}

/// An archive as the kernel unpacks it: cpio's "newc" (`Documentation/driver-api/early-userspace/buffer-format.rst`).
#[derive(Default)]
struct Archive(Vec<u8>);

impl Archive {
    fn add(&mut self, name: &str, mode: u32, content: &[u8]) {
        // Inode, mode, owner, group, links, time, size, two device numbers twice, the name's length, a check sum.
        let fields = [0, mode, 0, 0, 1, 0, content.len() as u32, 0, 0, 0, 0, name.len() as u32 + 1, 0];
        self.0.extend_from_slice(b"070701");
        for field in fields {
            self.0.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.0.extend_from_slice(name.as_bytes());
        self.0.push(0);
        self.pad();
        self.0.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }
}
