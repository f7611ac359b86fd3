//! What a figure was measured on: processor, clock, kernel, huge pages, mitigations, versions.

use std::path::Path;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::validity::Calibration;

/// The machine, as it says of itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Machine {
    /// The processor's name.
    pub processor: String,
    /// CPUs that this process may use.
    pub cpus: usize,
    /// Its clock and noise when the first figure was measured.
    pub calibration: Calibration,
    /// The kernel's release.
    pub kernel: String,
    /// The hypervisor, if it shows itself.
    pub hypervisor: bool,
    /// Huge pages of 2 MiB: (reserved, free).
    pub hugepages: (u64, u64),
    /// What the kernel does about faults of the processor: those that it is subject to.
    pub mitigations: Vec<(String, String)>,
    /// Programs and their versions.
    pub versions: Vec<(String, String)>,
    /// When: seconds since 1970, UTC.
    pub time: u64,
}

impl Machine {
    /// This one, now.
    #[must_use]
    pub fn here() -> Machine {
        let cpuinfo = text("/proc/cpuinfo");
        let fact = |name: &str| {
            let line = cpuinfo.lines().find(|line| line.starts_with(name))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        };
        let pages = Path::new("/sys/kernel/mm/hugepages/hugepages-2048kB");
        let count = |name: &str| text(&pages.join(name).to_string_lossy()).trim().parse().unwrap_or(0);
        Machine {
            processor: fact("model name").unwrap_or_else(|| "unknown".into()),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            calibration: Calibration::take(),
            kernel: text("/proc/sys/kernel/osrelease").trim().to_owned(),
            hypervisor: fact("flags").is_some_and(|flags| flags.split(' ').any(|flag| flag == "hypervisor")),
            hugepages: (count("nr_hugepages"), count("free_hugepages")),
            mitigations: mitigations(),
            versions: vec![("penstock-bench".into(), env!("CARGO_PKG_VERSION").into())],
            time: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
        }
    }

    /// Adds what a program says of its version, in its first line with a digit.
    pub fn note_version(&mut self, name: &str, program: &str, arguments: &[&str]) {
        let Ok(output) = Command::new(program).args(arguments).output() else { return };
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said).into_owned();
        if let Some(line) = said.lines().find(|line| line.contains(|letter: char| letter.is_ascii_digit())) {
            self.versions.push((name.to_owned(), line.trim().to_owned()));
        }
    }

    /// The day, as people write it: 2026-05-17 12:30 UTC.
    #[must_use]
    pub fn date(&self) -> String {
        date(self.time)
    }

    /// In a line.
    #[must_use]
    pub fn line(&self) -> String {
        format!(
            "{}, {} CPUs{}, TSC {:.2} GHz, Linux {}",
            self.processor,
            self.cpus,
            if self.hypervisor { " of a virtual machine" } else { "" },
            self.calibration.ticks_per_second / 1e9,
            self.kernel
        )
    }
}

fn text(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

fn mitigations() -> Vec<(String, String)> {
    let Ok(entries) = std::fs::read_dir("/sys/devices/system/cpu/vulnerabilities") else { return Vec::new() };
    let mut all: Vec<(String, String)> = entries
        .flatten()
        .map(|entry| {
            let said = text(&entry.path().to_string_lossy());
            (entry.file_name().to_string_lossy().into_owned(), said.trim().to_owned())
        })
        .filter(|(_, said)| !said.starts_with("Not affected"))
        .collect();
    all.sort();
    all
}

/// A moment since 1970 in the Gregorian calendar (H. Hinnant's `civil_from_days`).
#[must_use]
pub fn date(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400 + 719_468, seconds % 86_400);
    let era = days / 146_097;
    let day_of_era = days % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02} UTC", rest / 3600, rest / 60 % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (seconds, expected) in [
            (0, "1970-01-01 00:00 UTC"),
            (951_782_400, "2000-02-29 00:00 UTC"),
            (1_234_567_890, "2009-02-13 23:31 UTC"),
            (1_767_225_599, "2025-12-31 23:59 UTC"),
        ] {
            assert_eq!(date(seconds), expected);
        }
    }

    #[test]
    fn this_machine_has_a_processor_and_a_kernel() {
        let machine = Machine::here();
        assert!(
            machine.cpus > 0 && !machine.kernel.is_empty() && machine.time > 1_700_000_000,
            "{machine:?}"
        );
    }
}
