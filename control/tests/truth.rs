//! What policies mean, row by row: the tables in `tests/truth`, judged by the classifier that dataplanes ask.
//!
//! A table is a file of manifests. Its comments that begin with `#:` are its rows: from, to, protocol, port (or type and
//! code as one number for ICMP, or `-`), what becomes of it, and why.

#![allow(clippy::unwrap_used, reason = "the leave for tests does not reach the functions beside them")]

use std::fs;
use std::path::{Path, PathBuf};

use penstock_control::judge::Judge;
use penstock_control::manifests::{Manifests, parse};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/truth")
}

fn manifests(path: &Path, text: &str) -> Manifests {
    parse(text, path).unwrap_or_else(|faults| panic!("{faults:#?}"))
}

struct Row {
    from: String,
    to: String,
    protocol: u8,
    key: Option<u16>,
    allowed: bool,
}

fn row(line: &str) -> Row {
    let words: Vec<&str> = line.split_whitespace().collect();
    let [from, to, protocol, key, verdict, ..] = words[..] else { panic!("no row: {line}") };
    Row {
        from: from.to_owned(),
        to: to.to_owned(),
        protocol: match protocol {
            "tcp" => 6,
            "udp" => 17,
            "sctp" => 132,
            "icmp" => 1,
            number => number.parse().unwrap(),
        },
        key: if key == "-" { None } else { Some(key.parse().unwrap()) },
        allowed: match verdict {
            "allow" => true,
            "deny" => false,
            other => panic!("{other} is no verdict: {line}"),
        },
    }
}

#[test]
fn every_row_of_every_table_holds() {
    let cluster_file = folder().join("cluster.yaml");
    let cluster = fs::read_to_string(&cluster_file).unwrap();
    let mut tables: Vec<PathBuf> =
        fs::read_dir(folder().join("tables")).unwrap().map(|entry| entry.unwrap().path()).collect();
    tables.sort();
    let (mut rows, mut wrong) = (0, Vec::new());
    for file in &tables {
        let text = fs::read_to_string(file).unwrap();
        let mut all = manifests(&cluster_file, &cluster);
        let own = manifests(file, &text);
        all.objects.extend(own.objects);
        all.workloads.extend(own.workloads);
        let judge = Judge::of_manifests(&all).unwrap();
        for line in text.lines().filter_map(|line| line.strip_prefix("#:")) {
            let row = row(line);
            let (from, to) = (judge.party(&row.from).unwrap(), judge.party(&row.to).unwrap());
            rows += 1;
            if judge.allows(&from, &to, row.protocol, row.key) != row.allowed {
                let why = judge.explain(&from, &to, row.protocol, row.key).unwrap();
                let name = file.file_name().unwrap().to_string_lossy();
                wrong.push(format!("{name}: {}\n{why}", line.trim()));
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {rows} rows:\n{}", wrong.len(), wrong.join("\n"));
    assert!(tables.len() >= 20 && rows >= 150, "{rows} rows in {} tables", tables.len());
}
