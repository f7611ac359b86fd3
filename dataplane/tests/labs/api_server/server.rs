//! kube-apiserver with etcd between the nodes of a lab: the real ones, without anybody who runs pods.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::chart::{NAMESPACE, render_chart};
use crate::lab::{Lab, Place, Running, succeed, wait_until};

/// Where `scripts/setup --api-server` puts kube-apiserver.
const BUILT: &str = "/var/cache/penstock/kubernetes/kube-apiserver";
/// Where the server is, among the nodes.
const ADDRESS: &str = "192.168.51.200";
/// The token of the agents' account, which may do what the chart lets it.
const AGENT: &str = "agent-token";
/// The token of Multus's account.
const MULTUS: &str = "multus-token";
/// The collections of what the chart has in it, by kind.
const COLLECTIONS: [(&str, &str); 9] = [
    ("CustomResourceDefinition", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"),
    ("ServiceAccount", "/api/v1/namespaces/penstock-system/serviceaccounts"),
    ("ConfigMap", "/api/v1/namespaces/penstock-system/configmaps"),
    ("DaemonSet", "/apis/apps/v1/namespaces/penstock-system/daemonsets"),
    ("ClusterRole", "/apis/rbac.authorization.k8s.io/v1/clusterroles"),
    ("ClusterRoleBinding", "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings"),
    ("Role", "/apis/rbac.authorization.k8s.io/v1/namespaces/penstock-system/roles"),
    ("RoleBinding", "/apis/rbac.authorization.k8s.io/v1/namespaces/penstock-system/rolebindings"),
    ("Network", "/apis/penstock.dev/v1alpha1/networks"),
];

/// An API server. Its etcd lives as long as it does.
pub struct Server {
    place: Place,
    folder: PathBuf,
    process: Option<Running>,
    etcd: Option<Running>,
}

/// A program of the control plane: that of `KUBEBUILDER_ASSETS`, as envtest has it, or the machine's.
fn program(name: &str, otherwise: &str) -> PathBuf {
    let path = match std::env::var_os("KUBEBUILDER_ASSETS") {
        Some(folder) => Path::new(&folder).join(name),
        None => PathBuf::from(otherwise),
    };
    assert!(
        path.exists(),
        "no {}: run scripts/setup --api-server, which takes Go, or name a folder that has kube-apiserver and etcd in KUBEBUILDER_ASSETS",
        path.display()
    );
    path
}

impl Server {
    /// The token of somebody who may do everything.
    pub const ADMIN: &str = "admin-token";

    /// Starts one, and waits until it answers.
    pub fn start(lab: &Lab) -> Server {
        let place = lab.under();
        let folder = lab.file("kubernetes");
        std::fs::create_dir_all(&folder).expect("the lab's own folder");
        place.run(&format!("ip address add {ADDRESS}/24 dev br1"));
        // In memory: etcd waits for its disk otherwise.
        let data = format!("/dev/shm/{}-etcd", place.namespace());
        let etcd = place.serve(
            2379,
            &format!(
                "{} --data-dir {data} --log-level error --listen-client-urls http://127.0.0.1:2379 --advertise-client-urls http://127.0.0.1:2379 \
                 --listen-peer-urls http://127.0.0.1:2380",
                program("etcd", "/usr/bin/etcd").display(),
            ),
        );
        let key = folder.join("accounts.key");
        let mut openssl = Command::new("openssl");
        openssl.args(["genrsa", "-out"]).arg(&key).arg("2048");
        succeed(openssl);
        let tokens = format!(
            "{},admin,1,system:masters
\
             {AGENT},system:serviceaccount:{NAMESPACE}:penstock-agent,2,\"system:serviceaccounts,system:authenticated\"
\
             {MULTUS},system:serviceaccount:kube-system:multus,3,\"system:serviceaccounts,system:authenticated\"
",
            Server::ADMIN
        );
        std::fs::write(folder.join("tokens.csv"), tokens).expect("the lab's own folder");
        let mut server = Server { place, folder, process: None, etcd: Some(etcd) };
        server.restart(lab);
        server.write_kubeconfig(&server.kubeconfig(), AGENT);
        server.write_kubeconfig(&server.kubeconfig_of_multus(), MULTUS);
        server
    }

    /// Starts it again after [`Server::kill`], and waits until it answers.
    pub fn restart(&mut self, lab: &Lab) {
        let folder = self.folder.display();
        let line = format!(
            "{} --etcd-servers=http://127.0.0.1:2379 --bind-address={ADDRESS} --advertise-address={ADDRESS} --cert-dir={folder}/certificates \
             --service-cluster-ip-range=10.96.0.0/16,fd10:96::/108 --service-account-issuer=https://kubernetes.default.svc \
             --service-account-key-file={folder}/accounts.key --service-account-signing-key-file={folder}/accounts.key \
             --token-auth-file={folder}/tokens.csv --authorization-mode=RBAC --disable-admission-plugins=ServiceAccount \
             --endpoint-reconciler-type=none --enable-priority-and-fairness=false",
            program("kube-apiserver", BUILT).display(),
        );
        let process = self.place.spawn(&format!("sh -c 'exec {line} >>{folder}/server.log 2>&1'"));
        self.process = Some(process);
        wait_until("the API server is ready", || {
            if let Some(process) = &mut self.process {
                process.assert_runs();
            }
            lab.under().attempt(&self.curl("GET", "/readyz", "", None)).status.success()
        });
    }

    /// Ends it at once.
    pub fn kill(&mut self) {
        self.process.take().expect("it runs").end("KILL");
    }

    /// Where it is.
    pub fn address(&self) -> &'static str {
        ADDRESS
    }

    /// What agents learn of it by.
    pub fn kubeconfig(&self) -> PathBuf {
        self.folder.join("kubeconfig")
    }

    /// What Multus learns of it by.
    pub fn kubeconfig_of_multus(&self) -> PathBuf {
        self.folder.join("multus.kubeconfig")
    }

    /// What its certificate is checked by.
    pub fn certificate(&self) -> PathBuf {
        self.folder.join("certificates/apiserver.crt")
    }

    fn write_kubeconfig(&self, file: &Path, token: &str) {
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: lab\nclusters:\n- name: lab\n  cluster: {{server: \"https://{ADDRESS}:6443\", \
             certificate-authority: {}}}\nusers:\n- name: agent\n  user: {{token: {token}}}\ncontexts:\n- name: lab\n  context: {{cluster: lab, user: agent}}\n",
            self.certificate().display()
        );
        std::fs::write(file, text).expect("the lab's own folder");
    }

    fn curl(&self, method: &str, path: &str, kind: &str, body: Option<&Path>) -> String {
        let body = body.map(|file| format!("--data-binary @{}", file.display())).unwrap_or_default();
        format!(
            "curl -sS --fail-with-body -m 10 --cacert {} -X {method} -H \"Authorization: Bearer {}\" -H \"Content-Type: {kind}\" {body} \
             \"https://{ADDRESS}:6443{path}\"",
            self.certificate().display(),
            Server::ADMIN,
        )
    }

    /// Installs the chart as `helm install penstock` does, with values in the place of its own.
    pub fn install_chart(&self, values: &[&str]) {
        let objects = render_chart(values);
        self.apply(
            "/api/v1/namespaces",
            &json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}),
        );
        // Definitions come first; they are served a moment later.
        for object in &objects {
            let kind = object["kind"].as_str().expect("a kind");
            let found = COLLECTIONS.iter().find(|(of, _)| *of == kind);
            let (_, collection) = found.unwrap_or_else(|| panic!("the chart has a {kind} in it"));
            self.apply(collection, object);
            if kind == "CustomResourceDefinition" {
                self.await_definition(object["metadata"]["name"].as_str().expect("a name"));
            }
        }
    }

    /// Waits until objects of a definition are served.
    pub fn await_definition(&self, name: &str) {
        wait_until(&format!("{name} is served"), || {
            let definition =
                self.get(&format!("/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{name}"));
            let conditions = definition["status"]["conditions"].as_array().cloned().unwrap_or_default();
            conditions.iter().any(|it| it["type"] == "Established" && it["status"] == "True")
        });
    }

    /// `kubectl apply --server-side` of an object among those of a path.
    pub fn apply(&self, collection: &str, object: &Value) {
        self.put(collection, object, "");
    }

    /// The same for its status.
    pub fn apply_status(&self, collection: &str, object: &Value) {
        self.put(collection, object, "/status");
    }

    fn put(&self, collection: &str, object: &Value, part: &str) {
        let name = object["metadata"]["name"].as_str().expect("a name");
        let file = self.folder.join("applied.json");
        std::fs::write(&file, object.to_string()).expect("the lab's own folder");
        let path = format!("{collection}/{name}{part}?fieldManager=lab&force=true&fieldValidation=Strict");
        self.place.run(&self.curl("PATCH", &path, "application/apply-patch+yaml", Some(&file)));
    }

    /// `kubectl delete`.
    pub fn delete(&self, collection: &str, name: &str) {
        self.place.run(&self.curl("DELETE", &format!("{collection}/{name}"), "", None));
    }

    /// An object, or all of a collection.
    pub fn get(&self, path: &str) -> Value {
        let text = self.place.run(&self.curl("GET", path, "", None));
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{path}: no JSON ({e}): {text}"))
    }

    /// The node whose agent speaks for all of them, once there is one.
    pub fn leader(&self) -> Option<String> {
        let leases = self.get(&format!("/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases"));
        let mut holders = leases["items"].as_array()?.iter().map(|it| &it["spec"]["holderIdentity"]);
        holders.find_map(|it| it.as_str().map(str::to_owned))
    }

    /// Makes etcd forget what was before now.
    pub fn compact(&self, lab: &Lab) {
        // etcd's own gateway speaks JSON: a range tells the revision.
        let ask = |path: &str, body: &str| {
            let answer = lab
                .under()
                .run(&format!("curl -sS --fail -m 5 http://127.0.0.1:2379/v3/kv/{path} -d \"{body}\""));
            serde_json::from_str::<Value>(&answer)
                .unwrap_or_else(|e| panic!("{path}: no JSON ({e}): {answer}"))
        };
        let now = ask("range", "{\\\"key\\\": \\\"AA==\\\"}");
        let revision = now["header"]["revision"].as_str().expect("a revision").to_owned();
        ask("compaction", &format!("{{\\\"revision\\\": {revision}, \\\"physical\\\": true}}"));
    }

    /// Prints what it said last.
    pub fn testify(&self) {
        let log = std::fs::read_to_string(self.folder.join("server.log")).unwrap_or_default();
        let tail: Vec<&str> = log.lines().rev().take(20).collect();
        eprintln!("--- the API server: the end of its log");
        tail.iter().rev().for_each(|line| eprintln!("{line}"));
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Programs first, for they write.
        self.process = None;
        self.etcd = None;
        let data = format!("/dev/shm/{}-etcd", self.place.namespace());
        if let Err(error) = std::fs::remove_dir_all(&data) {
            eprintln!("{data} stays: {error}");
        }
    }
}
