//! Numbers as people read them.

/// A count with a decimal prefix: `999`, `1.50 k`, `12.3 M`.
pub(crate) fn count(n: u64) -> String {
    if n < 1000 { n.to_string() } else { scaled(n as f64, 1000.0, &["", " k", " M", " G", " T", " P", " E"]) }
}

/// Bytes with a binary prefix: `999 B`, `1.50 KiB`.
pub(crate) fn bytes(n: u64) -> String {
    if n < 1024 {
        format!("{n} B")
    } else {
        scaled(n as f64, 1024.0, &[" B", " KiB", " MiB", " GiB", " TiB", " PiB", " EiB"])
    }
}

/// Events a second with a decimal prefix and `unit` behind it: `1.20 Mpps`, `0 bit/s`.
pub(crate) fn rate(per_second: f64, unit: &str) -> String {
    if per_second < 1000.0 {
        let digits = if per_second > 0.0 && per_second < 10.0 { 1 } else { 0 };
        return format!("{per_second:.digits$} {unit}");
    }
    format!("{}{unit}", scaled(per_second, 1000.0, &[" ", " k", " M", " G", " T", " P", " E"]))
}

/// A span of time in its two largest units: `340 ms`, `12.0 s`, `3 h 12 min`, `4 d 2 h`.
pub(crate) fn span(ms: u64) -> String {
    let seconds = ms / 1000;
    match seconds {
        0 => format!("{ms} ms"),
        1..60 => format!("{}.{} s", seconds, ms % 1000 / 100),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        3600..86400 => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{} d {} h", seconds / 86400, seconds % 86400 / 3600),
    }
}

/// The time of day in UTC of a moment in nanoseconds since 1970: `09:15:00.123456789`.
pub(crate) fn time_of_day(timestamp_ns: u64) -> String {
    let (seconds, nanoseconds) = (timestamp_ns / 1_000_000_000, timestamp_ns % 1_000_000_000);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{hour:02}:{minute:02}:{second:02}.{nanoseconds:09}")
}

/// The number of an IP protocol by its name where one is usual.
pub(crate) fn protocol(number: u32) -> String {
    match number {
        1 => "icmp".to_owned(),
        6 => "tcp".to_owned(),
        17 => "udp".to_owned(),
        58 => "icmp6".to_owned(),
        132 => "sctp".to_owned(),
        other => other.to_string(),
    }
}

/// Three digits of `n` in steps of `base`.
fn scaled(mut n: f64, base: f64, prefixes: &[&str]) -> String {
    let mut step = 0;
    // What would be rounded up to the base is shown in the next step.
    while n >= base - 0.5 && step + 1 < prefixes.len() {
        n /= base;
        step += 1;
    }
    let digits = if n < 9.995 { 2 } else { usize::from(n < 99.95) };
    format!("{n:.digits$}{}", prefixes[step])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_keep_three_digits() {
        let said: Vec<String> = [0, 999, 1000, 1234, 12_345, 123_456, 999_999, 12_345_678].map(count).into();
        assert_eq!(said, ["0", "999", "1.00 k", "1.23 k", "12.3 k", "123 k", "1.00 M", "12.3 M"]);
        assert_eq!(count(u64::MAX), "18.4 E");
    }

    #[test]
    fn bytes_are_binary() {
        assert_eq!(
            [0, 1023, 1024, 1536, 1 << 30].map(bytes),
            ["0 B", "1023 B", "1.00 KiB", "1.50 KiB", "1.00 GiB"]
        );
        assert_eq!(bytes(u64::MAX), "16.0 EiB");
    }

    #[test]
    fn rates_carry_their_unit() {
        assert_eq!(rate(0.0, "pps"), "0 pps");
        assert_eq!(rate(0.5, "pps"), "0.5 pps");
        assert_eq!(rate(1_259_000.0, "pps"), "1.26 Mpps");
        assert_eq!(rate(24.6e9, "bit/s"), "24.6 Gbit/s");
    }

    #[test]
    fn spans_have_two_units_at_most() {
        let said = [340, 1000, 59_999, 61_000, 11_520_000, 352_800_000].map(span);
        assert_eq!(said, ["340 ms", "1.0 s", "59.9 s", "1 min 1 s", "3 h 12 min", "4 d 2 h"]);
    }
}
