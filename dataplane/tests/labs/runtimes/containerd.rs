//! containerd with runc on a node of a lab, and an image for pods that only wait.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use super::cri::{Cri, Pod};
use crate::lab::{Lab, PATIENCE, programs, succeed, wait_until};

/// The name that the image goes by; nobody is asked for it.
const IMAGE: &str = "penstock.test/pause:1";

/// What pods run: it waits until it is told to end.
const PAUSE: &str = "#include <signal.h>\n#include <unistd.h>\n\
    static void end(int signal) { (void)signal; _exit(0); }\n\
    int main(void) { signal(SIGTERM, end); for (;;) pause(); }\n";

/// A runtime that serves one node.
pub struct Containerd {
    folder: PathBuf,
    child: Child,
    cri: Cri,
    tokio: tokio::runtime::Runtime,
    pods: Vec<String>,
    cgroup: String,
}

impl Containerd {
    /// Starts one whose pods get their interfaces by a configuration of ours. It keeps this process' mounts: the control
    /// groups are among them, which a namespace made by `ip netns exec` does not have.
    pub fn start(lab: &Lab, node: u8, plugin: &Value) -> Self {
        let folder = lab.file(&format!("node{node}-containerd"));
        for part in ["net.d", "bin"] {
            std::fs::create_dir_all(folder.join(part)).expect("the lab's own folder");
        }
        let list = json!({ "cniVersion": "1.0.0", "name": "penstock", "plugins": [plugin] });
        std::fs::write(folder.join("net.d/05-penstock.conflist"), list.to_string()).expect("a configuration");
        for program in [Path::new("/usr/lib/cni/loopback"), &programs().join("penstock-cni")] {
            let name = program.file_name().expect("a name");
            std::os::unix::fs::symlink(program, folder.join("bin").join(name)).expect("the lab's own folder");
        }
        let socket = folder.join("containerd.sock");
        let config = folder.join("config.toml");
        std::fs::write(&config, configuration(&folder)).expect("the lab's own folder");
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", lab.node(node).namespace()));
        let log = std::fs::File::create(folder.join("log")).expect("the lab's own folder");
        command.args(["containerd", "--config"]).arg(config).stdout(Stdio::null()).stderr(log);
        let child = command.spawn().expect("containerd");
        let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("tokio");
        let cri = tokio.block_on(async { Cri::at(&socket) });
        let (pods, cgroup) = (Vec::new(), format!("/penstock-{}", lab.node(node).namespace()));
        let started = Self { folder, child, cri, tokio, pods, cgroup };
        wait_until("containerd answers", || started.tokio.block_on(started.cri.answers()));
        started.import();
        started
    }

    /// Starts pods, all at the same time.
    pub fn run(&mut self, names: &[String]) -> Vec<Pod> {
        let started = self.tokio.block_on(async {
            let mut tasks = Vec::new();
            for name in names {
                let (cri, name, cgroup) = (self.cri.clone(), name.clone(), self.cgroup.clone());
                tasks.push(tokio::spawn(async move { (name.clone(), cri.run(&name, &cgroup).await) }));
            }
            let mut started = Vec::new();
            for task in tasks {
                started.push(task.await.expect("no panic"));
            }
            started
        });
        self.pods.extend(started.iter().filter_map(|(_, it)| it.as_ref().ok()).map(|pod| pod.id.clone()));
        let pods = started.into_iter();
        pods.map(|(name, pod)| pod.unwrap_or_else(|status| panic!("{name}: {status}\n{}", self.log())))
            .collect()
    }

    /// Ends all pods at the same time.
    pub fn remove_all(&mut self) {
        let pods = std::mem::take(&mut self.pods);
        let removed = self.tokio.block_on(async {
            let mut tasks = Vec::new();
            for id in pods {
                let cri = self.cri.clone();
                tasks.push(tokio::spawn(async move { cri.remove(&id).await }));
            }
            let mut removed = Vec::new();
            for task in tasks {
                removed.push(task.await.expect("no panic"));
            }
            removed
        });
        removed.into_iter().for_each(|it| it.unwrap_or_else(|status| panic!("{status}\n{}", self.log())));
    }

    fn log(&self) -> String {
        let text = std::fs::read_to_string(self.folder.join("log")).unwrap_or_default();
        let tail: Vec<&str> = text.lines().rev().take(20).collect();
        tail.into_iter().rev().collect::<Vec<_>>().join("\n")
    }

    fn ctr(&self) -> Command {
        let mut ctr = Command::new("ctr");
        ctr.arg("--address").arg(self.folder.join("containerd.sock")).args(["--namespace", "k8s.io"]);
        ctr
    }

    /// Makes the image out of nothing but the program.
    fn import(&self) {
        let source = self.folder.join("pause.c");
        std::fs::write(&source, PAUSE).expect("the lab's own folder");
        let mut compile = Command::new("cc");
        compile.args(["-static", "-Os", "-s", "-o"]).arg(self.folder.join("pause")).arg(&source);
        succeed(compile);
        let tar = |archive: &str, files: &[&str]| {
            let mut tar = Command::new("tar");
            tar.arg("-C").arg(&self.folder).arg("-cf").arg(self.folder.join(archive)).args(files);
            succeed(tar);
        };
        tar("layer.tar", &["pause"]);
        let mut sum = Command::new("sha256sum");
        sum.arg(self.folder.join("layer.tar"));
        let sum = succeed(sum);
        let digest = format!("sha256:{}", sum.split(' ').next().expect("a sum"));
        let image = json!({
            "architecture": "amd64", "os": "linux", "config": { "Entrypoint": ["/pause"] },
            "rootfs": { "type": "layers", "diff_ids": [digest] },
        });
        let manifest = json!([{ "Config": "image.json", "RepoTags": [IMAGE], "Layers": ["layer.tar"] }]);
        for (name, value) in [("image.json", image), ("manifest.json", manifest)] {
            std::fs::write(self.folder.join(name), value.to_string()).expect("the lab's own folder");
        }
        tar("image.tar", &["manifest.json", "image.json", "layer.tar"]);
        let mut import = self.ctr();
        import.args(["images", "import"]).arg(self.folder.join("image.tar"));
        succeed(import);
    }
}

impl Drop for Containerd {
    /// What runs in a pod that a failed test left is ended with its shim, which outlives containerd.
    fn drop(&mut self) {
        for id in &self.pods {
            let mut kill = self.ctr();
            kill.args(["tasks", "kill", "--signal", "SIGKILL", id]);
            let mut delete = self.ctr();
            delete.args(["tasks", "delete", "--force", id]);
            for mut command in [kill, delete] {
                let _ = command.output();
            }
        }
        let _ = Command::new("kill").arg(self.child.id().to_string()).output();
        let ended = std::time::Instant::now();
        while matches!(self.child.try_wait(), Ok(None)) && ended.elapsed() < PATIENCE {
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        for controller in std::fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
            let _ = std::fs::remove_dir(controller.path().join(self.cgroup.trim_start_matches('/')));
        }
    }
}

fn configuration(folder: &Path) -> String {
    let at = |name: &str| folder.join(name).display().to_string();
    format!(
        "version = 2\nroot = {:?}\nstate = {:?}\n\
         disabled_plugins = [\"io.containerd.snapshotter.v1.aufs\", \"io.containerd.snapshotter.v1.btrfs\", \
         \"io.containerd.snapshotter.v1.zfs\", \"io.containerd.snapshotter.v1.devmapper\", \"io.containerd.internal.v1.opt\"]\n\
         [grpc]\naddress = {:?}\n\
         [plugins.\"io.containerd.grpc.v1.cri\"]\nsandbox_image = \"{IMAGE}\"\ndisable_tcp_service = true\nrestrict_oom_score_adj = true\n\
         [plugins.\"io.containerd.grpc.v1.cri\".cni]\nbin_dir = {:?}\nconf_dir = {:?}\n\
         [plugins.\"io.containerd.grpc.v1.cri\".containerd]\nsnapshotter = \"native\"\n",
        at("root"),
        at("state"),
        at("containerd.sock"),
        at("bin"),
        at("net.d"),
    )
}
