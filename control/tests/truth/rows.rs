//! The tables of what policies mean, as files of manifests with rows in their comments.
//!
//! Comments that begin with `#:` are rows: from, to, protocol, port (or type and code as one number for ICMP, or `-`), what
//! becomes of it, and why.

use std::fs;
use std::path::{Path, PathBuf};

/// A table.
pub struct Table {
    /// The manifests that it is about, beside those of the cluster.
    pub file: PathBuf,
    /// What is in the file.
    pub text: String,
    pub rows: Vec<Row>,
}

/// What becomes of one packet.
#[derive(Clone)]
pub struct Row {
    /// As it is written.
    pub line: String,
    /// A pod, as `NAMESPACE/NAME`, or an address.
    pub from: String,
    pub to: String,
    /// IANA's number.
    pub protocol: u8,
    /// The port, or ICMP's type and code.
    pub key: Option<u16>,
    pub allowed: bool,
}

impl Row {
    fn parse(line: &str) -> Row {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [from, to, protocol, key, verdict, ..] = words[..] else { panic!("no row: {line}") };
        Row {
            line: line.trim().to_owned(),
            from: from.to_owned(),
            to: to.to_owned(),
            protocol: match protocol {
                "tcp" => 6,
                "udp" => 17,
                "sctp" => 132,
                "icmp" => 1,
                number => number.parse().expect("a protocol's number"),
            },
            key: if key == "-" { None } else { Some(key.parse().expect("a port")) },
            allowed: match verdict {
                "allow" => true,
                "deny" => false,
                other => panic!("{other} is no verdict: {line}"),
            },
        }
    }
}

/// The manifests that every table has.
pub fn cluster(folder: &Path) -> (PathBuf, String) {
    let file = folder.join("cluster.yaml");
    let text = read(&file);
    (file, text)
}

/// All tables in a folder, by name; a folder without them is not the right one.
pub fn tables(folder: &Path) -> Vec<Table> {
    let entries = fs::read_dir(folder.join("tables")).expect("the folder of tables");
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.expect("the folder of tables").path()).collect();
    files.sort();
    let tables: Vec<Table> = files
        .into_iter()
        .map(|file| {
            let text = read(&file);
            let rows = text.lines().filter_map(|line| line.strip_prefix("#:")).map(Row::parse).collect();
            Table { file, text, rows }
        })
        .collect();
    let rows: usize = tables.iter().map(|table| table.rows.len()).sum();
    assert!(tables.len() >= 20 && rows >= 150, "{rows} rows in {} tables", tables.len());
    tables
}

fn read(file: &Path) -> String {
    fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
}
