//! Traffic, trials and benches.
