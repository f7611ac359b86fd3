//! Ports that the kernel is kept away from: it must not give its own connections those that translated ones leave by.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use penstock_io::steer::SnatRange;

/// The kernel's list (Documentation/networking/ip-sysctl.rst, `ip_local_reserved_ports`); it serves IPv6 as well.
const LIST: &str = "/proc/sys/net/ipv4/ip_local_reserved_ports";

/// The ranges that we have added to the kernel's list. They stay there: connections outlive the daemon.
#[derive(Debug, Default)]
pub struct PortsKept {
    kept: BTreeSet<(u16, u16)>,
}

impl PortsKept {
    /// Keeps the kernel away from these ranges, whatever else its list has; a failure is said in the log.
    pub fn keep(&mut self, ranges: &[SnatRange]) {
        let wanted: BTreeSet<(u16, u16)> = ranges.iter().map(|range| (range.first, range.last)).collect();
        if wanted.is_subset(&self.kept) {
            return;
        }
        if let Err(error) = add(Path::new(LIST), &wanted) {
            tracing::error!(
                "the kernel cannot be kept away from the ports of translated connections ({error}); its own \
                 connections may be broken by them: write the ranges to {LIST}"
            );
        }
        self.kept.extend(wanted);
    }
}

/// Adds ranges to a list of that form: `8080,49152-65535`.
fn add(list: &Path, ranges: &BTreeSet<(u16, u16)>) -> std::io::Result<()> {
    let there = fs::read_to_string(list)?;
    let new = ranges.iter().map(|(first, last)| format!("{first}-{last}"));
    let parts: Vec<String> =
        there.trim().split(',').filter(|part| !part.is_empty()).map(str::to_owned).collect();
    let all: Vec<String> = parts.into_iter().chain(new).collect();
    fs::write(list, all.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_added_to_what_the_list_has() {
        let list = std::env::temp_dir().join(format!("penstock-ports-{}", std::process::id()));
        for (before, after) in [("8080\n", "8080,49152-65535"), ("\n", "49152-65535")] {
            fs::write(&list, before).unwrap();
            add(&list, &[(49152, 65535)].into()).unwrap();
            assert_eq!(fs::read_to_string(&list).unwrap(), after);
        }
        fs::remove_file(&list).unwrap();
    }
}
