//! Compiles the steering program with clang and generates its skeleton.

use std::env;
use std::path::PathBuf;

use libbpf_cargo::SkeletonBuilder;

const SOURCE: &str = "bpf/steer.bpf.c";

fn main() {
    println!("cargo:rerun-if-changed={SOURCE}");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let arch = env::var("CARGO_CFG_TARGET_ARCH").expect("cargo sets CARGO_CFG_TARGET_ARCH");
    // Debian keeps asm/types.h, which linux/bpf.h includes, in a folder of the architecture.
    let include = format!("-I/usr/include/{arch}-linux-gnu");
    if let Err(error) = SkeletonBuilder::new()
        .source(SOURCE)
        .clang_args(["-O2", "-Wall", "-Werror", include.as_str()])
        .build_and_generate(out.join("steer.skel.rs"))
    {
        panic!("{SOURCE} did not compile; it wants clang and linux-libc-dev (scripts/setup): {error:#}");
    }
}
