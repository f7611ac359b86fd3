//! The engine and its daemon penstockd.
