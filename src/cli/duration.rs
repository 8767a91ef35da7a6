//! Durations as Go reads and writes them.

use std::fmt;

/// Nanoseconds, as in Go's `time.Duration`; [`Display`](fmt::Display) is its `String()`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GoDuration(pub i64);

const SECOND: i64 = 1_000_000_000;
const UNITS: [(&str, i64); 9] = [
    ("ns", 1),
    ("us", 1_000),
    ("µs", 1_000),
    ("μs", 1_000),
    ("ms", 1_000_000),
    ("s", SECOND),
    ("m", 60 * SECOND),
    ("h", 3600 * SECOND),
    ("d", 24 * 3600 * SECOND),
];

impl GoDuration {
    /// So many seconds; saturates at 292 years.
    pub fn from_secs(seconds: i64) -> GoDuration {
        GoDuration(seconds.saturating_mul(SECOND))
    }

    /// Parses a flag or variable: bare digits are seconds, all else is `1h30m`, `1.5s`, `7d` and the like.
    ///
    /// # Errors
    /// Go's text.
    pub fn parse_flag(text: &str) -> Result<GoDuration, String> {
        if let Ok(seconds) = text.parse::<i64>() {
            return Ok(GoDuration::from_secs(seconds));
        }
        GoDuration::parse(text).ok_or_else(|| format!("time: invalid duration {text:?}"))
    }

    fn parse(text: &str) -> Option<GoDuration> {
        let (negative, mut rest) = match text.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, text.strip_prefix('+').unwrap_or(text)),
        };
        if rest.is_empty() {
            return None;
        }
        let mut total: i64 = 0;
        while !rest.is_empty() {
            let number_end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
            let (number, after) = rest.split_at(number_end);
            let unit_end = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
            let (unit, after) = after.split_at(unit_end);
            let scale = UNITS.iter().find(|(name, _)| *name == unit)?.1;
            total = total.checked_add(scaled(number, scale)?)?;
            rest = after;
        }
        Some(GoDuration(if negative { -total } else { total }))
    }

    /// The short form of tables: `1h`, `30m`, `59m59s`, `1h5s`, without zero parts.
    pub fn short(self) -> String {
        let mut text = self.to_string();
        if text.ends_with("m0s") {
            text.truncate(text.len() - 2);
        }
        match text.find("h0m") {
            Some(at) => format!("{}{}", &text[..=at], &text[at + 3..]),
            None => text,
        }
    }
}

/// `number * scale` for a decimal number, without going through a float.
fn scaled(number: &str, scale: i64) -> Option<i64> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() || fraction.contains('.') {
        return None;
    }
    let whole: i128 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    // Eighteen digits are more than nanoseconds can tell apart.
    let digits = &fraction[..fraction.len().min(18)];
    let fraction: i128 = if digits.is_empty() { 0 } else { digits.parse().ok()? };
    let scale = i128::from(scale);
    let nanos = whole.checked_mul(scale)? + fraction * scale / 10_i128.pow(digits.len() as u32);
    i64::try_from(nanos).ok()
}

impl fmt::Display for GoDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nanos = self.0.unsigned_abs();
        if self.0 < 0 {
            f.write_str("-")?;
        }
        let second = SECOND.unsigned_abs();
        if nanos == 0 {
            return f.write_str("0s");
        }
        if nanos < second {
            let (unit, scale) = match nanos {
                0..1_000 => ("ns", 1),
                1_000..1_000_000 => ("µs", 1_000),
                _ => ("ms", 1_000_000),
            };
            return write!(f, "{}{unit}", decimal(nanos, scale));
        }
        let (minutes, nanos) = (nanos / (60 * second), nanos % (60 * second));
        if minutes >= 60 {
            write!(f, "{}h", minutes / 60)?;
        }
        if minutes > 0 {
            write!(f, "{}m", minutes % 60)?;
        }
        write!(f, "{}s", decimal(nanos, second))
    }
}

/// `value / scale` with as many decimals as it needs; `scale` is a power of ten.
fn decimal(value: u64, scale: u64) -> String {
    let (whole, fraction) = (value / scale, value % scale);
    if fraction == 0 {
        return whole.to_string();
    }
    let width = scale.ilog10() as usize;
    let fraction = format!("{fraction:0width$}");
    format!("{whole}.{}", fraction.trim_end_matches('0'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_print_as_in_go() {
        for (nanos, text) in [
            (0, "0s"),
            (1, "1ns"),
            (1_500, "1.5µs"),
            (250_000_000, "250ms"),
            (1_999_744_654, "1.999744654s"),
            (90 * SECOND, "1m30s"),
            (3600 * SECOND, "1h0m0s"),
            (-5 * 60 * SECOND, "-5m0s"),
        ] {
            assert_eq!(GoDuration(nanos).to_string(), text);
        }
    }

    #[test]
    fn the_short_form_leaves_zero_parts_out() {
        for (seconds, text) in [
            (0, "0s"),
            (30, "30s"),
            (600, "10m"),
            (1800, "30m"),
            (3600, "1h"),
            (3605, "1h5s"),
            (36_000, "10h"),
            (3599, "59m59s"),
            (2_764_800, "768h"),
            (2_764_798, "767h59m58s"),
        ] {
            assert_eq!(GoDuration::from_secs(seconds).short(), text);
        }
    }

    #[test]
    fn flags_take_go_durations_and_bare_seconds() {
        for (text, nanos) in [
            ("90", 90 * SECOND),
            ("0", 0),
            ("1h30m", 5400 * SECOND),
            ("1.5s", 1_500_000_000),
            (".5m", 30 * SECOND),
            ("-5m", -300 * SECOND),
            ("7d", 7 * 86_400 * SECOND),
            ("100ms", 100_000_000),
        ] {
            assert_eq!(GoDuration::parse_flag(text), Ok(GoDuration(nanos)), "{text}");
        }
        for text in ["", "abc", "1x", "1h2", ".", "1..5s", "s", "-", "99999999999h"] {
            assert!(GoDuration::parse_flag(text).is_err(), "{text}");
        }
    }
}
