//! What of a vhost-user attachment lies in the file system: the socket's folder, its stable name, the device's description.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, symlink};
use std::path::Path;

use penstock_api::model::{Attachment, SocketRole};
use penstock_cni::failure::{Code, Failure};
use serde_json::{Value, json};

use super::plan::Plan;
use super::record::Wiring;

/// The version of the device information specification (Network Plumbing Working Group) that is written.
const DEVICE_INFO: &str = "1.1.0";

fn failed(what: &str, path: &Path, error: io::Error) -> Failure {
    Failure::new(Code::Io, format!("cannot {what} {}: {error}", path.display()))
}

/// Makes the socket's folder and the link by which an application finds the socket whatever the container is called.
pub(super) fn prepare(plan: &Plan, ifname: &str) -> Result<(), Failure> {
    let (Some(folder), Some(socket)) = (&plan.wiring.folder, &plan.socket) else { return Ok(()) };
    if plan.is_device && !folder.is_dir() {
        let msg = format!(
            "there is no folder {}; has the pod asked for the resource penstock.dev/vhost-user, and has the agent that offers it (--device-plugins) the same --devices?",
            folder.display()
        );
        return Err(Failure::new(Code::Config, msg));
    }
    match &plan.wiring.shared {
        Some(volume) => stand_for(volume, folder)?,
        None => make_folder(folder)?,
    }
    let link = folder.join(ifname);
    let name = Path::new(socket.as_str()).file_name().unwrap_or_default();
    remove_file(&link)?;
    symlink(name, &link).map_err(|error| failed("make the link", &link, error))
}

fn make_folder(folder: &Path) -> Result<(), Failure> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o755).create(folder);
    made.map_err(|error| failed("make the folder", folder, error))
}

/// Makes a folder's name lead to a volume: the kubelet's paths are longer than those of sockets may be.
fn stand_for(volume: &Path, folder: &Path) -> Result<(), Failure> {
    folder.parent().map_or(Ok(()), make_folder)?;
    remove_file(folder)?;
    symlink(volume, folder).map_err(|error| failed("make the link", folder, error))
}

/// Describes the device to whoever asked for it (`CNIDeviceInfoFile`).
pub(super) fn describe(plan: &Plan) -> Result<(), Failure> {
    let Some(description) = device_info(plan) else { return Ok(()) };
    plan.wiring.files.iter().try_for_each(|path| write_whole(path, description.to_string().as_bytes()))
}

fn device_info(plan: &Plan) -> Option<Value> {
    if let Some(function) = &plan.wiring.function {
        let device = json!({ "pci-address": function.address });
        return Some(json!({ "type": "pci", "version": DEVICE_INFO, "pci": device }));
    }
    socket_info(&plan.endpoint.as_ref()?.attachment)
}

/// The description of a vhost-user device; the mode is the container's.
fn socket_info(attachment: &Attachment) -> Option<Value> {
    let Attachment::VhostUser { socket, role, .. } = attachment else { return None };
    let mode = match role {
        SocketRole::Client => "server",
        SocketRole::Server => "client",
    };
    let device = json!({ "mode": mode, "path": socket.as_str() });
    Some(json!({ "type": "vhost-user", "version": DEVICE_INFO, "vhost-user": device }))
}

/// Writes a file that is there whole or not at all; its folder is made.
pub(super) fn write_whole(path: &Path, text: &[u8]) -> Result<(), Failure> {
    let new = path.with_extension("new");
    let write = || {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        let mut file = fs::File::create(&new)?;
        file.write_all(text)?;
        file.sync_all()?;
        fs::rename(&new, path)
    };
    write().map_err(|error| failed("write", path, error))
}

/// Removes what [`prepare`] and [`describe`] made, and the socket that the application left.
pub(super) fn remove(wiring: &Wiring, container: &str, ifname: &str) -> Result<(), Failure> {
    for path in &wiring.files {
        remove_file(path)?;
    }
    let Some(folder) = &wiring.folder else { return Ok(()) };
    if wiring.owns_folder {
        // Of what only leads to a volume, the name goes.
        return match fs::remove_dir_all(folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", folder, error)),
            _ => Ok(()),
        };
    }
    let name = format!("{}-{ifname}", super::plan::short(container));
    // The device may be another container's by now, whose link this is then.
    let link = folder.join(ifname);
    if fs::read_link(&link).is_ok_and(|target| target == Path::new(&name)) {
        remove_file(&link)?;
    }
    remove_file(&folder.join(name))
}

fn remove_file(path: &Path) -> Result<(), Failure> {
    match fs::remove_file(path) {
        Err(error) if !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            Err(failed("remove", path, error))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use penstock_api::model::SocketPath;

    #[test]
    fn a_device_is_described_from_the_containers_side() {
        let described = |role| {
            let socket: SocketPath = "/run/penstock/pods/a/a-net1".parse().unwrap();
            socket_info(&Attachment::VhostUser { socket, role, group: None, permissions: None }).unwrap()
        };
        assert_eq!(described(SocketRole::Client)["vhost-user"]["mode"], "server");
        assert_eq!(described(SocketRole::Server)["vhost-user"]["mode"], "client");
        assert_eq!(described(SocketRole::Server)["vhost-user"]["path"], "/run/penstock/pods/a/a-net1");
        assert_eq!(described(SocketRole::Server)["version"], "1.1.0");
        let veth = Attachment::Veth { interface: "a".parse().unwrap() };
        assert_eq!(socket_info(&veth), None);
    }

    #[test]
    fn a_folder_that_is_not_ours_stays() {
        let folder = tempfile::tempdir().unwrap();
        let wiring = Wiring {
            mode: penstock_cni::config::Mode::VhostUser,
            interface: String::new(),
            folder: Some(folder.path().to_owned()),
            owns_folder: false,
            shared: None,
            files: vec![folder.path().join("info/device.json")],
            function: None,
        };
        write_whole(&wiring.files[0], b"{}").unwrap();
        symlink("c1-net1", folder.path().join("net1")).unwrap();
        symlink("c2-net2", folder.path().join("net2")).unwrap();
        remove(&wiring, "c1", "net2").unwrap();
        assert!(fs::symlink_metadata(folder.path().join("net2")).is_ok());
        fs::write(folder.path().join("c1-net1"), b"").unwrap();
        remove(&wiring, "c1", "net1").unwrap();
        remove(&wiring, "c1", "net1").unwrap();
        assert!(folder.path().exists() && !folder.path().join("c1-net1").exists());
        assert!(!wiring.files[0].exists() && fs::symlink_metadata(folder.path().join("net1")).is_err());
        remove(&Wiring { owns_folder: true, ..wiring }, "c1", "net1").unwrap();
        assert!(!folder.path().exists());
    }
}
