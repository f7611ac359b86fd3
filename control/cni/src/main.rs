//! The CNI plugin `penstock-cni`: environment and standard input in, one JSON object out.

#![forbid(unsafe_code)]

use std::io::{Read, Write};
use std::process::ExitCode;

use penstock_cni::config::version_of;
use penstock_cni::environment::Environment;
use penstock_cni::failure::{Code, Failure};
use penstock_cni::verbs;

/// The longest configuration in bytes.
const MAX_CONFIG: u64 = 1 << 20;

fn main() -> ExitCode {
    let environment = Environment::read(|name| std::env::var_os(name));
    let mut config = Vec::new();
    let read = std::io::stdin().lock().take(MAX_CONFIG).read_to_end(&mut config);
    let output = match read {
        Ok(_) => verbs::run(environment, &config),
        Err(error) => Err(Failure::new(Code::Io, "standard input cannot be read").with_details(error)),
    };
    let (said, code) = match output {
        Ok(said) => (said, ExitCode::SUCCESS),
        Err(failure) => (Some(failure.to_json(version_of(&config))), ExitCode::FAILURE),
    };
    // Whoever closed standard output hears it by the exit code.
    if let Some(said) = said
        && writeln!(std::io::stdout(), "{said}").is_err()
    {
        return ExitCode::FAILURE;
    }
    code
}
