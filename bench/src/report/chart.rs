//! Drawings in SVG, in the colours of the page: bars with their spread, and latencies by how rare they are.

use std::fmt::Write;

use super::mpps;
use crate::document::{Compared, Latency};
use crate::statistics::Interval;

const WIDTH: f64 = 440.0;
const BAR: f64 = 16.0;

/// A row of two bars, ours above the peer's, on a scale of its own, each with a line from its least to its greatest figure.
pub(super) fn bars(compared: &Compared) -> String {
    let spreads = compared.spreads();
    let most = spreads.iter().map(|spread| spread.high).fold(f64::MIN_POSITIVE, f64::max);
    // Room for the figure behind the longest bar.
    let scale = (WIDTH - 90.0) / most;
    let mut svg =
        format!("<svg viewBox='0 0 {WIDTH} 44' role='img' aria-label='{}'>", escaped(&compared.title));
    let figures = [("ours", compared.ours_rate(), spreads[0]), ("peer", compared.peer_rate(), spreads[1])];
    for (number, (class, rate, spread)) in figures.into_iter().enumerate() {
        let y = 3.0 + number as f64 * (BAR + 5.0);
        bar(&mut svg, class, y, rate * scale, spread, scale);
        let x = (spread.high * scale).max(rate * scale) + 8.0;
        let _ = write!(svg, "<text x='{x:.1}' y='{:.1}' class='figure'>{} Mpps</text>", y + 12.5, mpps(rate));
    }
    svg + "</svg>"
}

fn bar(svg: &mut String, class: &str, y: f64, width: f64, spread: Interval, scale: f64) {
    let (low, high, middle) = (spread.low * scale, spread.high * scale, y + BAR / 2.0);
    // A string takes all that is written to it.
    let _ = write!(
        svg,
        "<rect x='0' y='{y:.1}' width='{width:.1}' height='{BAR}' rx='2' class='{class}'/>\
         <path d='M{low:.1} {middle:.1}H{high:.1}M{low:.1} {:.1}v6M{high:.1} {:.1}v6' class='spread'/>",
        middle - 3.0,
        middle - 3.0
    );
}

const PLOT: (f64, f64) = (640.0, 300.0);
const LEFT: f64 = 56.0;
const BOTTOM: f64 = 34.0;
const TOP: f64 = 12.0;
const RIGHT: f64 = 20.0;

/// Latencies over quantiles: each step to the right is ten times as rare, upwards is longer, both by powers of ten.
pub(super) fn latencies(group: &[&Latency]) -> String {
    let values = || {
        group
            .iter()
            .flat_map(|latency| latency.quantiles.iter().map(|(_, value)| *value).chain([latency.max]))
    };
    let low = (values().min().unwrap_or(1).max(1) as f64).log10().floor();
    let high = (values().max().unwrap_or(10).max(10) as f64).log10().ceil().max(low + 1.0);
    let nines = group.iter().flat_map(|latency| &latency.quantiles).map(|(quantile, _)| rarity(*quantile));
    let rarest = nines.fold(1.0, f64::max) + 0.9;
    let x = |rarity: f64| LEFT + (PLOT.0 - LEFT - RIGHT) * rarity / rarest;
    let y = |value: f64| TOP + (PLOT.1 - TOP - BOTTOM) * (high - value.max(1.0).log10()) / (high - low);
    let mut svg =
        format!("<svg viewBox='0 0 {} {}' role='img' aria-label='latency by quantile'>", PLOT.0, PLOT.1);
    let mut decade = low;
    while decade <= high {
        let (at, value) = (y(10f64.powf(decade)), 10f64.powf(decade));
        let _ = write!(
            svg,
            "<path d='M{LEFT} {at:.1}H{}' class='grid'/><text x='{}' y='{:.1}' class='axis end'>{}</text>",
            PLOT.0 - RIGHT,
            LEFT - 6.0,
            at + 4.0,
            duration(value)
        );
        decade += 1.0;
    }
    for (quantile, name) in [
        (0.5, "p50"),
        (0.9, "p90"),
        (0.99, "p99"),
        (0.999, "p99.9"),
        (0.9999, "p99.99"),
        (0.99999, "p99.999"),
    ] {
        if rarity(quantile) <= rarest {
            let at = x(rarity(quantile));
            let _ = write!(
                svg,
                "<path d='M{at:.1} {TOP}V{}' class='grid'/><text x='{at:.1}' y='{}' class='axis mid'>{name}</text>",
                PLOT.1 - BOTTOM,
                PLOT.1 - BOTTOM + 18.0
            );
        }
    }
    for (number, latency) in group.iter().enumerate() {
        let points: Vec<String> = latency
            .quantiles
            .iter()
            .map(|&(quantile, value)| format!("{:.1},{:.1}", x(rarity(quantile)), y(value as f64)))
            .chain([format!("{:.1},{:.1}", x(rarest), y(latency.max as f64))])
            .collect();
        let _ = write!(svg, "<polyline points='{}' class='line l{}'/>", points.join(" "), number % 5);
        for point in points {
            let (x, y) = point.split_once(',').unwrap_or_default();
            let _ = write!(svg, "<circle cx='{x}' cy='{y}' r='3' class='dot l{}'/>", number % 5);
        }
    }
    let _ = write!(
        svg,
        "<text x='{}' y='{}' class='axis end'>max</text></svg>",
        PLOT.0 - RIGHT,
        PLOT.1 - BOTTOM + 18.0
    );
    svg
}

/// How many powers of ten of packets there are to one that is above a quantile.
fn rarity(quantile: f64) -> f64 {
    -(1.0 - quantile).max(1e-9).log10()
}

/// Nanoseconds in the unit that suits them.
fn duration(nanoseconds: f64) -> String {
    let units = [(1e9, "s"), (1e6, "ms"), (1e3, "us"), (1.0, "ns")];
    let (size, unit) = units.into_iter().find(|(size, _)| nanoseconds >= *size).unwrap_or((1.0, "ns"));
    format!("{} {unit}", (nanoseconds / size).round())
}

/// A text as HTML has it.
pub(super) fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('\'', "&#39;")
        .replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rare_quantiles_are_one_step_apart() {
        assert!((rarity(0.99) - rarity(0.9) - 1.0).abs() < 1e-6 && (rarity(0.9999) - 4.0).abs() < 1e-6);
    }

    #[test]
    fn durations_have_the_unit_that_suits_them() {
        assert_eq!([100.0, 1e3, 1e7, 1e9].map(duration), ["100 ns", "1 us", "10 ms", "1 s"]);
    }

    #[test]
    fn markup_in_a_text_stays_text() {
        assert_eq!(escaped("<a href='x'> & \"b\""), "&lt;a href=&#39;x&#39;&gt; &amp; &quot;b&quot;");
    }
}
