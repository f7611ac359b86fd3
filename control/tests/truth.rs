//! What policies mean, row by row: the tables in `tests/truth`, judged by the classifier that dataplanes ask. A lab asks the
//! same of packets.

#![allow(clippy::unwrap_used, reason = "the leave for tests does not reach the functions beside them")]
#![allow(unreachable_pub, reason = "the module of rows is a lab's as well")]

#[path = "truth/rows.rs"]
mod rows;

use std::path::Path;

use penstock_control::judge::Judge;
use penstock_control::manifests::{Manifests, parse};

fn manifests(path: &Path, text: &str) -> Manifests {
    parse(text, path).unwrap_or_else(|faults| panic!("{faults:#?}"))
}

#[test]
fn every_row_of_every_table_holds() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/truth");
    let (cluster_file, cluster) = rows::cluster(&folder);
    let (mut count, mut wrong) = (0, Vec::new());
    for table in rows::tables(&folder) {
        let mut all = manifests(&cluster_file, &cluster);
        let own = manifests(&table.file, &table.text);
        all.objects.extend(own.objects);
        all.workloads.extend(own.workloads);
        let judge = Judge::of_manifests(&all).unwrap();
        for row in &table.rows {
            let (from, to) = (judge.party(&row.from).unwrap(), judge.party(&row.to).unwrap());
            count += 1;
            if judge.allows(&from, &to, row.protocol, row.key) != row.allowed {
                let why = judge.explain(&from, &to, row.protocol, row.key).unwrap();
                let name = table.file.file_name().unwrap().to_string_lossy();
                wrong.push(format!("{name}: {}\n{why}", row.line));
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {count} rows:\n{}", wrong.len(), wrong.join("\n"));
}
