//! Ports that the kernel is kept away from: it must not give its own connections those that translated ones leave by.
//!
//! The kernel has one list, which others may write as well. What is on it because of us is written down in a file, so that
//! a later daemon can give it back.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use penstock_io::steer::SnatRange;

/// The kernel's list (Documentation/networking/ip-sysctl.rst, `ip_local_reserved_ports`); it serves IPv6 as well.
const LIST: &str = "/proc/sys/net/ipv4/ip_local_reserved_ports";

/// A set of ports: the fewest ranges that hold just these, in order. Written as the kernel writes it: `8080,49152-65535`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortSet(Vec<(u16, u16)>);

impl PortSet {
    /// The first and the last port of each range.
    pub fn ranges(&self) -> impl Iterator<Item = (u16, u16)> {
        self.0.iter().copied()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// These ports and `others`.
    #[must_use]
    pub fn and(&self, others: &PortSet) -> PortSet {
        self.ranges().chain(others.ranges()).collect()
    }

    /// These ports without `others`.
    #[must_use]
    pub fn without(&self, others: &PortSet) -> PortSet {
        let mut rest = Vec::new();
        for (first, last) in self.ranges() {
            // One more than a port may be, when the last of all was among the others.
            let mut next = u32::from(first);
            for (out, in_again) in others.ranges().filter(|other| other.0 <= last && other.1 >= first) {
                if next < u32::from(out) {
                    rest.push((next as u16, out - 1));
                }
                next = u32::from(in_again) + 1;
            }
            if next <= u32::from(last) {
                rest.push((next as u16, last));
            }
        }
        PortSet(rest)
    }
}

impl FromIterator<(u16, u16)> for PortSet {
    fn from_iter<T: IntoIterator<Item = (u16, u16)>>(ranges: T) -> PortSet {
        let mut ranges: Vec<(u16, u16)> = ranges.into_iter().collect();
        ranges.sort_unstable();
        ranges.dedup_by(|next, before| {
            let joins = next.0 <= before.1.saturating_add(1);
            if joins {
                before.1 = before.1.max(next.1);
            }
            joins
        });
        PortSet(ranges)
    }
}

impl fmt::Display for PortSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (first, last)) in self.ranges().enumerate() {
            let comma = if i == 0 { "" } else { "," };
            if first == last { write!(f, "{comma}{first}")? } else { write!(f, "{comma}{first}-{last}")? }
        }
        Ok(())
    }
}

impl FromStr for PortSet {
    type Err = io::Error;

    fn from_str(text: &str) -> io::Result<PortSet> {
        let range = |part: &str| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            Some((first.parse().ok()?, last.parse().ok()?))
        };
        let parts = text.trim().split(',').filter(|part| !part.is_empty());
        let ranges: Option<PortSet> = parts.map(range).collect();
        ranges.ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidData, format!("{text:?} is no list of ports"))
        })
    }
}

/// The ports that the kernel's list has because of us. They stay there when the daemon ends: connections outlive it.
#[derive(Debug)]
pub struct PortsKept {
    /// The kernel's list.
    list: PathBuf,
    /// Where what we added to it is written down.
    record: PathBuf,
    /// What must be on the list.
    wanted: PortSet,
    /// Whether what a daemon before added, or what was wanted before, may still be there.
    has_more: bool,
}

impl PortsKept {
    /// The ports of this network namespace; the file `record` says which of them former daemons added.
    #[must_use]
    pub fn recorded_in(record: PathBuf) -> PortsKept {
        PortsKept { list: LIST.into(), record, wanted: PortSet::default(), has_more: true }
    }

    /// Keeps the kernel away from these ranges, whatever else its list has; a failure is said in the log.
    pub fn keep(&mut self, ranges: &[SnatRange]) {
        let wanted: PortSet = ranges.iter().map(|range| (range.first, range.last)).collect();
        if wanted == self.wanted {
            return;
        }
        (self.wanted, self.has_more) = (wanted, true);
        if let Err(error) = self.revise(false) {
            tracing::error!(
                "the kernel cannot be kept away from the ports of translated connections ({error}); its own \
                 connections may be broken by them: write {} to {LIST}",
                self.wanted
            );
        }
    }

    /// Gives the kernel back what was added to its list and is not ours any more; a failure is said in the log.
    pub fn give_back(&mut self) {
        if !std::mem::take(&mut self.has_more) {
            return;
        }
        if let Err(error) = self.revise(true) {
            tracing::error!(
                "ports that no connection is translated to any more stay reserved ({error}); {} has them, and {LIST}",
                self.record.display()
            );
        }
    }

    fn revise(&self, gives_back: bool) -> io::Result<()> {
        let there: PortSet = fs::read_to_string(&self.list)?.parse()?;
        let recorded = read_record(&self.record)?;
        // What somebody else took off the list is not ours to give back later.
        let ours = there.without(&there.without(&recorded));
        let new = self.wanted.without(&there);
        let gone = if gives_back { ours.without(&self.wanted) } else { PortSet::default() };
        // Whoever is killed between two steps leaves more on record than on the list, never less.
        if !new.is_empty() {
            fs::write(&self.record, ours.and(&new).to_string())?;
        }
        if !new.is_empty() || !gone.is_empty() {
            fs::write(&self.list, there.and(&new).without(&gone).to_string() + "\n")?;
        }
        let ours = ours.and(&new).without(&gone);
        if ours != recorded && ours.is_empty() {
            fs::remove_file(&self.record)?;
        } else if !gone.is_empty() {
            fs::write(&self.record, ours.to_string())?;
        }
        Ok(())
    }
}

/// The ports on record; none when there is no record.
fn read_record(record: &Path) -> io::Result<PortSet> {
    match fs::read_to_string(record) {
        Ok(text) => text.parse(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(PortSet::default()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ports(text: &str) -> PortSet {
        text.parse().unwrap()
    }

    /// A list of the kernel's and a record, in files of the test `name`.
    struct Files {
        folder: PathBuf,
    }

    impl Files {
        fn new(name: &str, list: &str) -> Files {
            let folder = std::env::temp_dir().join(format!("penstock-ports-{}-{name}", std::process::id()));
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join("list"), list).unwrap();
            Files { folder }
        }

        /// What a daemon that starts has.
        fn kept(&self) -> PortsKept {
            PortsKept { list: self.folder.join("list"), ..PortsKept::recorded_in(self.folder.join("record")) }
        }

        fn list(&self) -> String {
            fs::read_to_string(self.folder.join("list")).unwrap().trim().to_owned()
        }
    }

    impl Drop for Files {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.folder).unwrap();
        }
    }

    fn keep(kept: &mut PortsKept, ranges: &[(u16, u16)]) {
        let address = std::net::Ipv4Addr::LOCALHOST.into();
        let range = |&(first, last)| SnatRange { address, first, last };
        kept.keep(&ranges.iter().map(range).collect::<Vec<_>>());
    }

    #[test]
    fn sets_of_ports_are_the_fewest_ranges() {
        assert_eq!(ports("7,5-6,9,20-30,25-40").to_string(), "5-7,9,20-40");
        assert_eq!(ports("\n").to_string(), "");
        assert_eq!(ports("65535,1-65535").to_string(), "1-65535");
        assert!("5-,7".parse::<PortSet>().is_err() && "70000".parse::<PortSet>().is_err());
    }

    #[test]
    fn a_set_without_another_has_the_ports_between() {
        for (set, others, rest) in [
            ("1-10", "3-4,8", "1-2,5-7,9-10"),
            ("1-10", "1-10", ""),
            ("5-10,20", "1-6,10-20", "7-9"),
            ("65000-65535", "65535", "65000-65534"),
            ("65000-65535", "60000-65535", ""),
            ("5", "", "5"),
        ] {
            assert_eq!(ports(set).without(&ports(others)).to_string(), rest, "{set} without {others}");
        }
    }

    #[test]
    fn ranges_are_added_to_what_the_list_has_and_given_back_from_it() {
        let files = Files::new("given-back", "8080,50000-50010\n");
        let mut kept = files.kept();
        keep(&mut kept, &[(50000, 50999), (60000, 60000)]);
        assert_eq!(files.list(), "8080,50000-50999,60000");
        kept.give_back();
        assert_eq!(files.list(), "8080,50000-50999,60000", "all are wanted");
        keep(&mut kept, &[(60000, 60001)]);
        assert_eq!(files.list(), "8080,50000-50999,60000-60001", "who had the others may still need them");
        kept.give_back();
        assert_eq!(files.list(), "8080,50000-50010,60000-60001", "what was there before stays");
    }

    #[test]
    fn a_later_daemon_gives_back_what_an_earlier_one_added() {
        let files = Files::new("later", "\n");
        keep(&mut files.kept(), &[(50000, 50999)]);
        let mut later = files.kept();
        keep(&mut later, &[(50500, 51000)]);
        later.give_back();
        assert_eq!(files.list(), "50500-51000");
        let mut last = files.kept();
        keep(&mut last, &[]);
        last.give_back();
        assert_eq!((files.list(), files.folder.join("record").exists()), (String::new(), false));
    }

    #[test]
    fn what_others_took_off_the_list_and_put_back_is_theirs() {
        let files = Files::new("others", "\n");
        let mut kept = files.kept();
        keep(&mut kept, &[(50000, 50999)]);
        fs::write(files.folder.join("list"), "\n").unwrap();
        keep(&mut kept, &[]);
        kept.give_back();
        fs::write(files.folder.join("list"), "50000-50999\n").unwrap();
        files.kept().give_back();
        assert_eq!(files.list(), "50000-50999");
    }
}
