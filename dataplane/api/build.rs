//! Compiles `proto/penstock.proto` with protox, so that no installed protoc is needed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    const PROTO: &str = "proto/penstock.proto";
    println!("cargo::rerun-if-changed=proto");
    let files = protox::compile([PROTO], ["proto"])?;
    tonic_prost_build::configure()
        // `penstock --json` prints the rows of the read calls as they are.
        .type_attribute(".penstock.v1", "#[derive(serde::Serialize)]")
        .compile_fds(files)?;
    Ok(())
}
