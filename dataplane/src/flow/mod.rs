//! The flow tier: the key of a flow, the per-worker cache, and the compiled action of a known flow.

pub mod action;
pub mod cache;
pub mod key;

pub use action::{Action, DeviceId, LinkId, Remembered, TemplateId, Tracked, Verb};
pub use cache::{Cache, Candidate, Coarse, Found};
pub use key::{Described, Key, Key4, Key6, Seed, ZoneId};
