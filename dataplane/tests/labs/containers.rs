//! Containers as a runtime has them: namespaces of the lab, and the CNI plugin called for them as a runtime calls it.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::lab::{Lab, PATIENCE, Place, Running, programs, succeed, v4, v6, wait_until};

/// Where what a runtime wants of a plugin is for one node.
pub struct Runtime<'a> {
    pub lab: &'a Lab,
    node: u8,
    attacher: Option<Running>,
    /// Where an agent learns of its cluster; nodes without one have an attacher.
    cluster: Option<String>,
}

impl<'a> Runtime<'a> {
    /// Starts what attaches containers on a node.
    pub fn start(lab: &'a Lab, node: u8) -> Self {
        let mut runtime = Self { lab, node, attacher: None, cluster: None };
        runtime.restart("");
        runtime
    }

    /// Starts an agent that attaches containers as a folder of manifests says.
    pub fn start_agent(lab: &'a Lab, node: u8, manifests: PathBuf) -> Self {
        Self::start_agent_of(lab, node, format!("--manifests {}", manifests.display()))
    }

    /// Starts an agent that attaches containers as the API server says that a kubeconfig names.
    pub fn start_agent_with(lab: &'a Lab, node: u8, kubeconfig: &Path) -> Self {
        Self::start_agent_of(lab, node, format!("--kubeconfig {}", kubeconfig.display()))
    }

    fn start_agent_of(lab: &'a Lab, node: u8, cluster: String) -> Self {
        let mut runtime = Self { lab, node, attacher: None, cluster: Some(cluster) };
        runtime.restart("");
        runtime
    }

    /// Ends what attaches containers as a loss of power would.
    pub fn kill(&mut self) {
        self.attacher = None;
    }

    fn server(&self) -> String {
        let (node, programs) = (self.node, programs().display());
        match &self.cluster {
            None => format!(
                "{} attacher --range 10.244.{node}.0/24 --range {}",
                self.lab.penstock(node),
                v6(node, 0) + "/64"
            ),
            Some(cluster) => format!(
                "{programs}/penstock-agent --node node{node} {cluster} --namespace penstock-system --listen 127.0.0.1:9470 --socket {}",
                self.lab.file(&format!("node{node}.sock")).display()
            ),
        }
    }

    /// Starts it, again if it has run before, with flags of its own.
    pub fn restart(&mut self, flags: &str) {
        self.attacher = None;
        let (node, socket) = (self.node, self.socket());
        let line = format!(
            "{} --cni-socket {} --records {} --sockets {} --devices {} --kubelet-pods {} --reserve {} --reserve {} {flags}",
            self.server(),
            socket.display(),
            self.folder("records").display(),
            self.folder("sockets").display(),
            self.folder("devices").display(),
            self.folder("pods").display(),
            v4(node, 254),
            v6(node, 254),
        );
        let mut attacher = self.lab.node(node).spawn(&line);
        wait_until("the plugin is answered", || {
            attacher.assert_runs();
            std::os::unix::net::UnixStream::connect(&socket).is_ok()
        });
        self.attacher = Some(attacher);
    }

    /// The socket that the plugin asks at.
    pub fn socket(&self) -> PathBuf {
        self.lab.file(&format!("node{}-cni.sock", self.node))
    }

    /// A folder of this node's.
    pub fn folder(&self, name: &str) -> PathBuf {
        self.lab.file(&format!("node{}-{name}", self.node))
    }

    /// A configuration of the plugin with some keys more.
    pub fn config(&self, more: Value) -> Value {
        let mut config = json!({
            "cniVersion": "1.1.0", "name": "penstock", "type": "penstock-cni", "socket": self.socket(),
        });
        let more = more.as_object().cloned().unwrap_or_default();
        config.as_object_mut().expect("an object").extend(more);
        config
    }

    /// Calls the plugin for the interface `eth0` of a container.
    pub fn call(&self, verb: &str, container: &Container, config: &Value) -> Result<Value, Value> {
        self.call_with(verb, container, config, &[])
    }

    /// Calls the plugin with variables that come after the usual ones.
    pub fn call_with(
        &self,
        verb: &str,
        container: &Container,
        config: &Value,
        variables: &[(&str, &str)],
    ) -> Result<Value, Value> {
        let mut plugin = Command::new("ip");
        plugin.args(["netns", "exec", self.lab.node(self.node).namespace()]);
        plugin.arg("timeout").arg(PATIENCE.as_secs().to_string()).arg(programs().join("penstock-cni"));
        plugin.env("CNI_COMMAND", verb).env("CNI_CONTAINERID", &container.id).env("CNI_IFNAME", "eth0");
        plugin.env("CNI_NETNS", container.path()).env("CNI_PATH", plugins());
        plugin.envs(variables.iter().copied());
        let mut child = plugin.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("penstock-cni");
        let text = config.to_string();
        child.stdin.take().expect("a pipe").write_all(text.as_bytes()).expect("the plugin reads");
        let output = child.wait_with_output().expect("wait");
        let said = String::from_utf8_lossy(&output.stdout);
        let value = if said.is_empty() {
            Value::Null
        } else {
            serde_json::from_str(&said).unwrap_or_else(|e| panic!("{verb}: no JSON ({e}): {said}"))
        };
        if output.status.success() { Ok(value) } else { Err(value) }
    }

    /// What `penstock --json ipam show` says.
    pub fn given(&self) -> Vec<Value> {
        self.ipam("show")
    }

    /// What `penstock --json ipam` says, with no complaint.
    pub fn ipam(&self, what: &str) -> Vec<Value> {
        let mut ipam = Command::new(programs().join("penstock"));
        ipam.args(["--json", "ipam", "--cni-socket"]).arg(self.socket()).arg(what);
        let answer: Value = serde_json::from_str(&succeed(ipam)).expect("JSON");
        answer.as_array().expect("a list").clone()
    }

    /// Nothing is left of any container: no address, no port, no interface, no frame.
    pub fn assert_clean(&self) {
        assert_eq!(self.given(), [Value::Null; 0]);
        let ports = self.lab.ask(self.node, "ports");
        let names: Vec<&Value> = ports.as_array().expect("a list").iter().map(|it| &it["endpoint"]).collect();
        assert!(names.iter().all(|it| it.as_str() == Some("")), "{names:?}");
        let links = self.lab.node(self.node).run("ip -o link");
        assert!(!links.contains(": ps"), "{links}");
        self.lab.await_all_frames(self.node);
    }
}

/// Where other plugins are: Debian's, and ours.
pub fn plugins() -> String {
    format!("/usr/lib/cni:{}", programs().display())
}

/// A container that runs nothing: a network namespace.
pub struct Container {
    pub id: String,
    pub place: Place,
}

impl Container {
    /// Makes the namespace.
    pub fn new(lab: &Lab, id: &str) -> Self {
        let place = lab.empty_place(id);
        place.run("ip link set lo up");
        Self { id: id.to_owned(), place }
    }

    /// The namespace's path.
    pub fn path(&self) -> String {
        format!("/run/netns/{}", self.place.namespace())
    }
}

/// The address of a family that ADD gave, without its prefix' length.
pub fn address(result: &Value, six: bool) -> String {
    let ips = result["ips"].as_array().expect("addresses");
    let texts = ips.iter().map(|ip| ip["address"].as_str().expect("an address"));
    let mut found = texts.filter(|it| it.contains(':') == six);
    found.next().expect("an address of the family").split('/').next().expect("a part").to_owned()
}
