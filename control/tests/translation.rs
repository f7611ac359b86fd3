//! Whatever happens to a cluster and in whatever order, a dataplane is told the same in the end.

#[test]
fn nothing() {}
