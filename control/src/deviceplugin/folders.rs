//! vhost-user devices: each is a folder for one socket, mounted in the pod that asks for it.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::dataplane::Outside;
use super::pool::{AllocationError, Device, Grant, Pool};

/// The resource's name, and how the devices' names begin.
const NAME: &str = "vhost-user";

/// The variable that holds the folders of a container's devices, parted by commas.
const VARIABLE: &str = "PENSTOCK_VHOST_USER";

/// Folders for the sockets of pods.
#[derive(Debug, Clone)]
pub struct SocketFolders {
    parent: PathBuf,
    count: u32,
}

impl SocketFolders {
    /// So many folders below `parent`.
    pub fn new(parent: PathBuf, count: u32) -> Self {
        Self { parent, count }
    }

    /// The folder of a device, if it is one.
    fn folder(&self, id: &str) -> Option<PathBuf> {
        let number: u32 = id.strip_prefix(NAME)?.strip_prefix('-')?.parse().ok()?;
        // Nothing but the one way to write the number: "+7" and "007" name no folder.
        (number < self.count && id == format!("{NAME}-{number}")).then(|| self.parent.join(id))
    }

    /// Makes a folder that is missing. A pod's programs run as whoever they like, so everybody may write in it; that it is
    /// seen by one pod only is the work of the mount there and of the parent here, which only root may enter.
    fn make(&self, folder: &Path) -> io::Result<()> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.parent)?;
        fs::set_permissions(&self.parent, fs::Permissions::from_mode(0o700))?;
        match fs::DirBuilder::new().create(folder) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        let seen = fs::symlink_metadata(folder)?;
        if !seen.is_dir() {
            return Err(io::ErrorKind::NotADirectory.into());
        }
        if seen.permissions().mode() & 0o777 == 0o777 {
            return Ok(());
        }
        fs::set_permissions(folder, fs::Permissions::from_mode(0o777))
    }
}

/// Removes what a pod before has left; what it made of it is never followed.
fn empty(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

impl Pool for SocketFolders {
    fn name(&self) -> &str {
        NAME
    }

    fn devices(&self, outside: &Outside) -> Vec<Device> {
        let device = |number| {
            let id = format!("{NAME}-{number}");
            // After a reboot the folders are gone and the kubelet asks for none anew.
            let made = self.make(&self.parent.join(&id));
            if let Err(error) = &made {
                tracing::warn!("{}: {error}", self.parent.join(&id).display());
            }
            Device {
                id,
                is_healthy: made.is_ok() && outside.is_there,
                nodes: outside.nodes.clone(),
                group: String::new(),
            }
        };
        (0..self.count).map(device).collect()
    }

    fn allocate(&self, ids: &[String]) -> Result<Grant, AllocationError> {
        let mut grant = Grant::default();
        for id in ids {
            let resource = format!("{}/{NAME}", super::DOMAIN);
            let folder =
                self.folder(id).ok_or_else(|| AllocationError::Unknown { resource, id: id.clone() })?;
            self.make(&folder)
                .and_then(|()| empty(&folder))
                .map_err(|source| AllocationError::Folder { path: folder.clone(), source })?;
            grant.folders.push(folder);
        }
        let listed: Vec<String> = grant.folders.iter().map(|it| it.display().to_string()).collect();
        grant.variables.insert(VARIABLE.to_owned(), listed.join(","));
        Ok(grant)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn ids(ids: &[&str]) -> Vec<String> {
        ids.iter().map(|&id| id.to_owned()).collect()
    }

    #[test]
    fn a_container_finds_its_folders_empty_and_may_write_in_them() {
        let root = tempfile::tempdir().unwrap();
        let parent = root.path().join("devices");
        let pool = SocketFolders::new(parent.clone(), 2);
        let kept = root.path().join("kept");
        fs::create_dir_all(&kept).unwrap();
        fs::write(kept.join("file"), "").unwrap();
        pool.devices(&Outside::default());
        fs::create_dir(parent.join("vhost-user-1/below")).unwrap();
        std::os::unix::fs::symlink(&kept, parent.join("vhost-user-1/elsewhere")).unwrap();
        let grant = pool.allocate(&ids(&["vhost-user-1", "vhost-user-0"])).unwrap();
        assert_eq!(grant.folders, [parent.join("vhost-user-1"), parent.join("vhost-user-0")]);
        let listed = &grant.variables["PENSTOCK_VHOST_USER"];
        assert_eq!(listed.split(',').map(PathBuf::from).collect::<Vec<_>>(), grant.folders);
        assert_eq!(fs::read_dir(parent.join("vhost-user-1")).unwrap().count(), 0);
        assert!(kept.join("file").exists());
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&parent), mode(&parent.join("vhost-user-0"))), (0o700, 0o777));
    }

    #[test]
    fn only_devices_that_are_listed_can_be_had() {
        let root = tempfile::tempdir().unwrap();
        let pool = SocketFolders::new(root.path().to_owned(), 3);
        let outside = Outside { is_there: true, nodes: BTreeSet::from([1]) };
        for device in pool.devices(&outside) {
            assert!(device.is_healthy && device.nodes == outside.nodes);
            pool.allocate(&[device.id]).unwrap();
        }
        for id in ["vhost-user-3", "vhost-user-+1", "vhost-user-01", "vhost-user-", "../vhost-user-1", ""] {
            let error = pool.allocate(&ids(&[id])).unwrap_err();
            assert!(matches!(error, AllocationError::Unknown { .. }), "{id}");
        }
    }

    #[test]
    fn a_device_without_a_folder_or_a_dataplane_is_not_healthy() {
        let root = tempfile::tempdir().unwrap();
        let pool = SocketFolders::new(root.path().to_owned(), 2);
        fs::write(root.path().join("vhost-user-0"), "in the way").unwrap();
        let healthy = |outside: &Outside| -> Vec<bool> {
            pool.devices(outside).iter().map(|device| device.is_healthy).collect()
        };
        assert_eq!(healthy(&Outside { is_there: true, ..Outside::default() }), [false, true]);
        assert_eq!(healthy(&Outside::default()), [false, false]);
    }
}
