//! Results as people read them: one HTML page that needs no network, and Markdown tables.

mod budgets;
mod chart;
mod html;
mod markdown;

pub use html::page;
pub use markdown::{comparisons, embed, full};

use crate::document::Compared;
use crate::statistics::{Claim, Ratio};

/// A ratio with its interval, as `1.42 (1.38 to 1.47)`.
fn ratio(ratio: Option<&Ratio>) -> String {
    match ratio {
        Some(Ratio { median, interval, .. }) => {
            format!("{median:.2} ({:.2} to {:.2})", interval.low, interval.high)
        }
        None => "not measured".to_owned(),
    }
}

/// What may be said, in words.
fn claim(compared: &Compared) -> &'static str {
    compared.ratio.map_or("not measured", |ratio| ratio.claim.words())
}

/// Whether ours is not the slower one.
fn is_miss(compared: &Compared) -> bool {
    compared.ratio.is_some_and(|ratio| ratio.claim == Claim::Slower)
}

/// The name of a peer without its settings.
fn short(peer: &str) -> &str {
    peer.split([',', ':']).next().unwrap_or(peer)
}

/// A rate: millions of packets a second.
fn mpps(rate: f64) -> String {
    if rate < 1e6 { format!("{:.3}", rate / 1e6) } else { format!("{:.2}", rate / 1e6) }
}
