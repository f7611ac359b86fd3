//! An interface's settings under `/proc/sys/net`.

use std::io;
use std::path::PathBuf;

use super::KernelError;

/// One setting of one interface (`Documentation/networking/ip-sysctl.rst`).
#[derive(Clone, Copy, Debug)]
pub(super) struct Setting {
    /// `ipv4` or `ipv6`.
    pub(super) family: &'static str,
    pub(super) name: &'static str,
    pub(super) value: &'static str,
}

/// Sets what differs, in the network namespace of the calling thread; returns how many settings that were.
///
/// A family that the kernel does not have is passed over: where it is needed, adding its addresses or routes says so.
pub(super) fn set(interface: &str, settings: &[Setting]) -> Result<usize, KernelError> {
    let mut changed = 0;
    for setting in settings {
        let path = PathBuf::from_iter(["/proc/sys/net", setting.family, "conf", interface, setting.name]);
        let failed = |source| KernelError::Sysctl {
            interface: interface.to_owned(),
            path: path.clone(),
            value: setting.value,
            source,
        };
        let now = match std::fs::read_to_string(&path) {
            Ok(now) => now,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(failed(error)),
        };
        if now.trim_end() != setting.value {
            std::fs::write(&path, setting.value).map_err(failed)?;
            changed += 1;
        }
    }
    Ok(changed)
}
