//! What manifests mean, said without a daemon or a cluster.

use std::io;
use std::path::Path;

use penstock_control::judge::Judge;
use penstock_control::{kubernetes, manifests};

use crate::args::Explain;
use crate::failure::Failure;
use crate::output::Output;

/// Reads manifests; what of them is not usable or not honoured is said on standard error.
fn judge(folder: &Path) -> Result<Judge, Failure> {
    let judge = Judge::of_manifests(&manifests::read(folder)?)?;
    for problem in judge.problems() {
        eprintln!("penstock: note: {problem}");
    }
    Ok(judge)
}

/// Prints every pair of ends that can speak.
pub(crate) fn connectivity(folder: &Path, out: &mut Output) -> Result<(), Failure> {
    let connections = judge(folder)?.connections();
    let lines = |all: &[_]| all.iter().map(|connection| format!("{connection}\n")).collect();
    Ok(out.show(&connections[..], lines)?)
}

/// Prints what decides about one packet.
pub(crate) fn explain(asked: &Explain, out: &mut Output) -> Result<(), Failure> {
    let (from, to, protocol, port) = asked.offline_question()?;
    let judge = judge(asked.manifests.as_deref().unwrap_or(Path::new(".")))?;
    Ok(out.show(&judge.answer(from, to, protocol, port)?, ToString::to_string)?)
}

/// Prints the definitions of our own resources: YAML with a document each, or a list in JSON.
pub(crate) fn definitions(out: &mut Output) -> Result<(), Failure> {
    let yaml = kubernetes::definitions_yaml().map_err(io::Error::other)?;
    Ok(out.show(&kubernetes::definitions()[..], |_| {
        yaml.into_iter().map(|(_, text)| format!("---\n{text}")).collect()
    })?)
}
