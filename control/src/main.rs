//! The command line `penstock`.

fn main() {}
