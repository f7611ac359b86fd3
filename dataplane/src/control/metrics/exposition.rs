//! Prometheus' text format, version 0.0.4.

use std::fmt::{Display, Write};

/// What a scraper is told that the format is.
pub(super) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// A text that grows family by family.
#[derive(Debug, Default)]
pub(super) struct Exposition {
    text: String,
}

/// The samples of one metric, which stand together.
pub(super) struct Family<'a> {
    text: &'a mut String,
    name: &'static str,
}

impl Exposition {
    /// A metric that only grows while the daemon runs. Its name ends in `_total`.
    pub(super) fn counter(&mut self, name: &'static str, help: &str) -> Family<'_> {
        debug_assert!(name.ends_with("_total"), "{name} is a counter");
        self.family(name, "counter", help)
    }

    /// A metric that goes up and down.
    pub(super) fn gauge(&mut self, name: &'static str, help: &str) -> Family<'_> {
        self.family(name, "gauge", help)
    }

    fn family(&mut self, name: &'static str, kind: &str, help: &str) -> Family<'_> {
        let help = help.replace('\\', "\\\\").replace('\n', "\\n");
        push(&mut self.text, format_args!("# HELP {name} {help}\n# TYPE {name} {kind}\n"));
        Family { text: &mut self.text, name }
    }

    pub(super) fn into_text(self) -> String {
        self.text
    }
}

impl Family<'_> {
    /// One sample: an integer or a finite number.
    pub(super) fn sample(&mut self, labels: &[(&str, &str)], value: impl Display) {
        self.text.push_str(self.name);
        for (i, (label, of)) in labels.iter().enumerate() {
            let of = of.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let before = if i == 0 { '{' } else { ',' };
            push(self.text, format_args!("{before}{label}=\"{of}\""));
        }
        if !labels.is_empty() {
            self.text.push('}');
        }
        push(self.text, format_args!(" {value}\n"));
    }
}

fn push(text: &mut String, piece: std::fmt::Arguments) {
    // Writing to a string does not fail.
    let _ = text.write_fmt(piece);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_is_that_of_the_format() {
        let mut out = Exposition::default();
        let mut family = out.counter("a_total", "What a \\ counts\nin two lines.");
        family.sample(&[], 3_u64);
        family.sample(&[("port", "a\"b\\c\nd"), ("queue", "0")], u64::MAX);
        out.gauge("b_seconds", "How long.").sample(&[], 0.25);
        let expected = "# HELP a_total What a \\\\ counts\\nin two lines.\n# TYPE a_total counter\na_total 3\n\
                        a_total{port=\"a\\\"b\\\\c\\nd\",queue=\"0\"} 18446744073709551615\n\
                        # HELP b_seconds How long.\n# TYPE b_seconds gauge\nb_seconds 0.25\n";
        assert_eq!(out.into_text(), expected);
    }
}
