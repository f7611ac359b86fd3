//! The definitions of our resources in `configs/kubernetes/chart/crds` are those of the types.
//!
//! `PENSTOCK_UPDATE=1 cargo test --test crds` writes them anew.

#![allow(clippy::unwrap_used, reason = "the leave for tests does not reach the functions beside them")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use penstock_control::kubernetes::{definitions, definitions_yaml};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/kubernetes/chart/crds")
}

#[test]
fn the_files_hold_what_the_types_say() {
    let wanted: BTreeMap<String, String> = definitions_yaml().unwrap().into_iter().collect();
    if std::env::var_os("PENSTOCK_UPDATE").is_some() {
        fs::create_dir_all(folder()).unwrap();
        for (name, text) in &wanted {
            fs::write(folder().join(name), text).unwrap();
        }
    }
    let there: BTreeMap<String, String> = fs::read_dir(folder())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| {
            (path.file_name().unwrap().to_string_lossy().into_owned(), fs::read_to_string(path).unwrap())
        })
        .collect();
    assert_eq!(there, wanted, "PENSTOCK_UPDATE=1 cargo test --test crds writes the files anew");
}

#[test]
fn every_resource_is_validated_and_shown_in_columns() {
    for definition in definitions() {
        let plural = &definition.spec.names.plural;
        for version in &definition.spec.versions {
            let columns = version.additional_printer_columns.as_ref().unwrap();
            assert!(columns.len() >= 2, "{plural}");
            let schema = version.schema.as_ref().and_then(|it| it.open_api_v3_schema.as_ref()).unwrap();
            let text = serde_json::to_string(schema).unwrap();
            let checks = ["x-kubernetes-validations", "minimum", "maxLength", "enum"];
            assert!(checks.iter().any(|check| text.contains(check)), "{plural} takes anything");
            // What an API server would refuse in a structural schema.
            assert!(!text.contains("\"$ref\"") && !text.contains("\"type\":["), "{plural}: {text}");
        }
    }
}
