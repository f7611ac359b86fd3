//! `penstock-bench`: measures the dataplane, alone and beside its peers.

#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    penstock_bench::command::main()
}
