//! What applications look for that were written for the userspace CNI plugin: their socket, and a description of it, in a
//! volume of their pod that is called `shared-dir`; and the description in an annotation of the pod, which the libraries of
//! such applications read (app-netutil).

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use penstock_api::model::{Attachment, SocketRole};
use penstock_cni::environment::AttachmentId;
use penstock_cni::failure::{Code, Failure};
use penstock_cni::result::AddResult;
use penstock_cni::version::Version;
use serde_json::{Value, json};

use super::plan::short;
use super::record::{Pod, Record};

/// The volume's name.
pub(crate) const VOLUME: &str = "shared-dir";

/// The pod's volume, if it has one of the kind `emptyDir`: the kubelet makes it before the pod's sandbox.
pub(super) fn volume(kubelet_pods: &Path, pod: Option<&Pod>) -> Option<PathBuf> {
    let uid = pod?.uid.as_deref()?;
    // It becomes a part of a path.
    let is_sound = !uid.is_empty() && uid.bytes().all(|it| it.is_ascii_alphanumeric() || it == b'-');
    let folder = kubelet_pods.join(uid).join("volumes/kubernetes.io~empty-dir").join(VOLUME);
    (is_sound && fs::symlink_metadata(&folder).is_ok_and(|it| it.is_dir())).then_some(folder)
}

fn file_name(id: &AttachmentId) -> String {
    format!("configData-{}-{}.json", short(&id.container_id), id.ifname)
}

/// Describes the socket where the application looks for it.
///
/// # Errors
/// [`Code::Io`].
pub(super) fn describe(record: &Record, result: &AddResult) -> Result<(), Failure> {
    let Some(folder) = record.wiring.as_ref().and_then(|it| it.shared.as_ref()) else { return Ok(()) };
    let Some(description) = description(record, result) else { return Ok(()) };
    let path = folder.join(file_name(&record.key.id));
    let write = || {
        remove_file(&path)?;
        // The pod's programs may write here: nothing that they have put in the way is followed.
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o644).open(&path)?;
        file.write_all(description.to_string().as_bytes())
    };
    write().map_err(|error| Failure::new(Code::Io, format!("cannot write {}: {error}", path.display())))
}

/// The sockets of a container in its volume, as the plugin has them in an annotation: a list by the interfaces' names.
pub(super) fn descriptions<'a>(records: impl IntoIterator<Item = (&'a Record, &'a AddResult)>) -> Vec<Value> {
    let is_shared = |record: &Record| record.wiring.as_ref().is_some_and(|it| it.shared.is_some());
    let mut shared: Vec<_> = records.into_iter().filter(|(record, _)| is_shared(record)).collect();
    shared.sort_by(|(a, _), (b, _)| a.key.id.ifname.cmp(&b.key.id.ifname));
    shared.into_iter().filter_map(|(record, result)| description(record, result)).collect()
}

/// The socket in the words of the userspace CNI plugin; what is said of it is said from the container's side.
fn description(record: &Record, result: &AddResult) -> Option<Value> {
    let Attachment::VhostUser { socket, role, .. } = &record.endpoint.as_ref()?.attachment else {
        return None;
    };
    let mode = match role {
        SocketRole::Client => "server",
        SocketRole::Server => "client",
    };
    let file = Path::new(socket.as_str()).file_name()?.to_string_lossy();
    let id = &record.key.id;
    Some(json!({
        "containerId": id.container_id,
        "ifName": id.ifname,
        "name": record.key.network,
        "config": {
            "engine": "penstock", "iftype": "vhostuser", "netType": "interface",
            "memif": {}, "vhost": { "mode": mode, "socketfile": file }, "bridge": {},
        },
        "ipResult": result.to_json(Version::V040),
    }))
}

/// Removes what of an attachment is in the volume, as far as that is still there.
///
/// # Errors
/// [`Code::Io`].
pub(super) fn remove(folder: &Path, id: &AttachmentId) -> Result<(), Failure> {
    let socket = format!("{}-{}", short(&id.container_id), id.ifname);
    let link = folder.join(&id.ifname);
    // The next sandbox of the pod may have its own by now.
    let is_ours = fs::read_link(&link).is_ok_and(|target| target == Path::new(&socket));
    let paths = [folder.join(&socket), folder.join(file_name(id))];
    for path in paths.into_iter().chain(is_ours.then_some(link)) {
        remove_file(&path)
            .map_err(|error| Failure::new(Code::Io, format!("cannot remove {}: {error}", path.display())))?;
    }
    Ok(())
}

fn remove_file(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            Err(error)
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_is_found_by_the_pods_identifier_alone() {
        let root = tempfile::tempdir().unwrap();
        let pod = |uid: &str| Pod { namespace: "n".into(), name: "p".into(), uid: Some(uid.to_owned()) };
        let folder = root.path().join("0a-1/volumes/kubernetes.io~empty-dir/shared-dir");
        assert_eq!(volume(root.path(), Some(&pod("0a-1"))), None);
        fs::create_dir_all(&folder).unwrap();
        assert_eq!(volume(root.path(), Some(&pod("0a-1"))), Some(folder));
        for uid in ["0a-2", "", "..", "0a-1/../0a-1"] {
            assert_eq!(volume(root.path(), Some(&pod(uid))), None, "{uid}");
        }
        assert_eq!(volume(root.path(), None), None);
    }
}
