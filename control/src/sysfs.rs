//! What the kernel says of processors and of SR-IOV functions, below `/sys`.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// The kernel's device model, mounted somewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sysfs {
    root: PathBuf,
}

impl Default for Sysfs {
    fn default() -> Self {
        Self::at(Path::new("/sys"))
    }
}

impl Sysfs {
    /// The one that is mounted at `root`.
    pub fn at(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    /// The NUMA nodes that processors belong to; none where the kernel does not say.
    pub fn nodes_of_cpus(&self, cpus: impl IntoIterator<Item = u32>) -> BTreeSet<u32> {
        let folder = |cpu: u32| self.root.join(format!("devices/system/cpu/cpu{cpu}"));
        cpus.into_iter()
            .flat_map(|cpu| names(&folder(cpu)))
            .filter_map(|name| name.strip_prefix("node")?.parse().ok())
            .collect()
    }
}

/// What is in a folder, in no order; nothing where there is none.
fn names(folder: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_belong_to_the_nodes_that_the_kernel_names() {
        let root = tempfile::tempdir().unwrap();
        for folder in ["cpu0/node0", "cpu0/topology", "cpu1/node1", "cpu2/nodes"] {
            fs::create_dir_all(root.path().join("devices/system/cpu").join(folder)).unwrap();
        }
        let sysfs = Sysfs::at(root.path());
        assert_eq!(sysfs.nodes_of_cpus([0, 1]), BTreeSet::from([0, 1]));
        assert_eq!(sysfs.nodes_of_cpus([1, 2, 9]), BTreeSet::from([1]));
    }
}
