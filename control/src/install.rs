//! Putting the CNI plugin and its network configuration onto a node, and taking them away again.

use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use thiserror::Error;

/// The plugin's name: that of its binary and of its configuration's `type`.
pub const PLUGIN: &str = "penstock-cni";

/// Why the plugin could not be installed or removed.
#[derive(Debug, Error)]
pub enum InstallError {
    /// A file could not be read, written or removed.
    #[error("cannot {what} {}: {source}", .path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A configuration that does not name the plugin.
    #[error("{}: not a list of plugins with one of type {PLUGIN:?}; see the usual one that is installed without --conf", .0.display())]
    NotOurs(PathBuf),
}

/// Where things go.
#[derive(Debug, Clone)]
pub struct Places {
    /// The folder of plugins.
    pub bin: PathBuf,
    /// The folder of network configurations.
    pub conf: PathBuf,
    /// The name of ours in there.
    pub conf_name: String,
}

/// The usual configuration.
pub fn usual_configuration(socket: &Path) -> String {
    let plugin = json!({
        "type": PLUGIN,
        "socket": socket,
        "capabilities": {
            "CNIDeviceInfoFile": true,
            "bandwidth": true,
            "deviceID": true,
            "dns": true,
            "ips": true,
            "mac": true,
            "portMappings": true,
        },
    });
    let list = json!({
        "cniVersion": "1.1.0",
        "cniVersions": ["0.3.1", "0.4.0", "1.0.0", "1.1.0"],
        "name": "penstock",
        "plugins": [plugin],
    });
    format!("{list:#}\n")
}

/// Installs the plugin, then its configuration: a runtime that sees the one finds the other. Each is there whole or not at
/// all; what was there of an older version is replaced while it may be running.
///
/// # Errors
/// [`InstallError`].
pub fn install(binary: &Path, configuration: &str, places: &Places) -> Result<(), InstallError> {
    if !names_us(configuration) {
        return Err(InstallError::NotOurs(places.conf.join(&places.conf_name)));
    }
    let program = fs::read(binary).map_err(|source| InstallError::Io {
        what: "read",
        path: binary.to_owned(),
        source,
    })?;
    write_whole(&places.bin.join(PLUGIN), &program, 0o755)?;
    write_whole(&places.conf.join(&places.conf_name), configuration.as_bytes(), 0o600)
}

/// Removes the configuration, then the plugin: a runtime that sees the one finds the other. Everything of others stays,
/// and so do containers that are attached, until their DEL.
///
/// # Errors
/// [`InstallError`]; what is not there is removed already.
pub fn uninstall(places: &Places) -> Result<(), InstallError> {
    let conf = places.conf.join(&places.conf_name);
    match fs::read_to_string(&conf) {
        Ok(text) if !names_us(&text) => return Err(InstallError::NotOurs(conf)),
        _ => {}
    }
    remove(&conf)?;
    remove(&places.bin.join(PLUGIN))
}

fn names_us(text: &str) -> bool {
    let list: Value = serde_json::from_str(text).unwrap_or_default();
    let plugins = list["plugins"].as_array();
    plugins.is_some_and(|plugins| plugins.iter().any(|plugin| plugin["type"] == PLUGIN))
}

fn remove(path: &Path) -> Result<(), InstallError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(InstallError::Io { what: "remove", path: path.to_owned(), source: error })
        }
        _ => Ok(()),
    }
}

fn write_whole(path: &Path, content: &[u8], mode: u32) -> Result<(), InstallError> {
    // Runtimes pass over files that begin with a dot.
    let mut name = OsStr::new(".").to_owned();
    name.push(path.file_name().unwrap_or_default());
    let new = path.with_file_name(name);
    let write = || {
        let folder = path.parent().unwrap_or(Path::new("/"));
        fs::create_dir_all(folder)?;
        let mut file = File::create(&new)?;
        file.write_all(content)?;
        file.set_permissions(Permissions::from_mode(mode))?;
        file.sync_all()?;
        drop(file);
        fs::rename(&new, path)?;
        File::open(folder)?.sync_all()
    };
    write().map_err(|source| InstallError::Io { what: "write", path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(folder: &Path) -> Places {
        Places {
            bin: folder.join("bin"),
            conf: folder.join("net.d"),
            conf_name: "05-penstock.conflist".into(),
        }
    }

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        entries.map(|it| it.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn what_is_installed_is_removed_again_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let places = places(folder.path());
        fs::create_dir_all(&places.conf).unwrap();
        fs::write(places.conf.join("10-other.conflist"), "{}").unwrap();
        let binary = folder.path().join("built");
        fs::write(&binary, b"program").unwrap();
        for _ in 0..2 {
            install(&binary, &usual_configuration(Path::new("/run/s")), &places).unwrap();
        }
        assert_eq!(names(&places.bin), ["penstock-cni"]);
        assert_eq!(names(&places.conf).len(), 2);
        let mode = fs::metadata(places.bin.join(PLUGIN)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o755);
        for _ in 0..2 {
            uninstall(&places).unwrap();
        }
        assert_eq!(names(&places.bin), [""; 0]);
        assert_eq!(names(&places.conf), ["10-other.conflist"]);
    }

    #[test]
    fn the_configuration_of_another_is_neither_installed_nor_removed() {
        let folder = tempfile::tempdir().unwrap();
        let places = places(folder.path());
        let other = r#"{"plugins":[{"type":"bridge"}]}"#;
        assert!(matches!(install(Path::new("/bin/true"), other, &places), Err(InstallError::NotOurs(_))));
        fs::create_dir_all(&places.conf).unwrap();
        fs::write(places.conf.join(&places.conf_name), other).unwrap();
        assert!(matches!(uninstall(&places), Err(InstallError::NotOurs(_))));
        assert_eq!(names(&places.conf).len(), 1);
    }
}
