//! Times as they stand on the wire: RFC 3339 out, Go durations in.

use std::time::Duration;

use serde_json::Value;

/// A time in the form that Go calls RFC3339Nano: UTC, the fraction without trailing zeros.
pub fn rfc3339(ms: u64) -> String {
    let (days, rest_ms) = (ms / 86_400_000, ms % 86_400_000);
    let (year, month, day) = civil_from_days(days);
    let seconds = rest_ms / 1_000;
    let (hour, minute, second) = (seconds / 3_600, seconds / 60 % 60, seconds % 60);
    let mut text = format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}");
    let fraction = rest_ms % 1_000;
    if fraction > 0 {
        let digits = format!("{fraction:03}");
        text.push('.');
        text.push_str(digits.trim_end_matches('0'));
    }
    text.push('Z');
    text
}

/// The zero time of Go, which Vault prints where there is none.
pub const ZERO_TIME: &str = "0001-01-01T00:00:00Z";

/// Days since 1970-01-01 as a date of the Gregorian calendar (Hinnant, "chrono-compatible low-level date
/// algorithms").
fn civil_from_days(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let era = shifted / 146_097;
    let day_of_era = shifted % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_index = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_index + 2) / 5 + 1;
    let month = if month_index < 10 { month_index + 3 } else { month_index - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

/// A duration as clients send it, in seconds: an integer of seconds, the same as text, or a Go duration
/// (`1h30m`, also with `d`). Negative ones are given back as they are; the caller says whether they mean
/// something. `None` when it is none of these.
pub fn parse_duration_s(value: &Value) -> Option<i64> {
    match value {
        Value::Number(number) => number.as_i64(),
        Value::String(text) => parse_duration_text_s(text.trim()),
        _ => None,
    }
}

fn parse_duration_text_s(text: &str) -> Option<i64> {
    if text.is_empty() {
        return Some(0);
    }
    if let Ok(seconds) = text.parse::<i64>() {
        return Some(seconds);
    }
    let (negative, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let mut total = 0f64;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').filter(|at| *at > 0)?;
        let amount: f64 = rest[..digits].parse().ok()?;
        let unit_end = rest[digits..]
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .map_or(rest.len(), |at| digits + at);
        let seconds = match &rest[digits..unit_end] {
            "ns" => 1e-9,
            "us" | "µs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3_600.0,
            "d" => 86_400.0,
            _ => return None,
        };
        total += amount * seconds;
        rest = &rest[unit_end..];
    }
    if !total.is_finite() || total > 9e15 {
        return None;
    }
    #[expect(clippy::cast_possible_truncation, reason = "bounded just above")]
    let whole = total as i64;
    Some(if negative { -whole } else { whole })
}

/// Seconds in the form of Go's `Duration.String`: `0s`, `90s` is `1m30s`, `3600` is `1h0m0s`.
pub fn go_duration(seconds: i64) -> String {
    let sign = if seconds < 0 { "-" } else { "" };
    let whole = seconds.unsigned_abs();
    let (hours, minutes, rest) = (whole / 3_600, whole / 60 % 60, whole % 60);
    if hours > 0 {
        format!("{sign}{hours}h{minutes}m{rest}s")
    } else if minutes > 0 {
        format!("{sign}{minutes}m{rest}s")
    } else {
        format!("{sign}{rest}s")
    }
}

/// The same of a duration with parts of a second: `1.999744654s`, `2.5ms`.
pub fn go_duration_exact(duration: Duration) -> String {
    let (whole, nanos) = (duration.as_secs(), duration.subsec_nanos());
    let trimmed = |number: u64, nanos: u32, digits: usize| {
        let fraction = format!("{nanos:0digits$}");
        let fraction = fraction.trim_end_matches('0');
        if fraction.is_empty() { number.to_string() } else { format!("{number}.{fraction}") }
    };
    if whole > 0 {
        let text = go_duration(i64::try_from(whole).unwrap_or(i64::MAX));
        let rest = (whole % 60).to_string();
        let front = text.strip_suffix('s').and_then(|text| text.strip_suffix(&rest)).unwrap_or_default();
        return format!("{front}{}s", trimmed(whole % 60, nanos, 9));
    }
    match nanos {
        0 => "0s".to_owned(),
        1..1_000 => format!("{nanos}ns"),
        1_000..1_000_000 => format!("{}µs", trimmed(u64::from(nanos / 1_000), nanos % 1_000, 3)),
        _ => format!("{}ms", trimmed(u64::from(nanos / 1_000_000), nanos % 1_000_000, 6)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_read_as_rfc3339() {
        for (ms, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400_000, "2000-02-29T00:00:00Z"),
            (1_716_992_982_120, "2024-05-29T14:29:42.12Z"),
            (1_716_992_982_007, "2024-05-29T14:29:42.007Z"),
            (4_102_444_799_999, "2099-12-31T23:59:59.999Z"),
        ] {
            assert_eq!(rfc3339(ms), text);
        }
    }

    #[test]
    fn durations_are_read_in_every_spelling() {
        for (sent, seconds) in [
            (Value::from(30), Some(30)),
            (Value::from("30"), Some(30)),
            (Value::from("30s"), Some(30)),
            (Value::from("1h30m"), Some(5_400)),
            (Value::from("7d"), Some(604_800)),
            (Value::from("0s"), Some(0)),
            (Value::from(""), Some(0)),
            (Value::from("-1s"), Some(-1)),
            (Value::from("1.5m"), Some(90)),
            (Value::from("xyz"), None),
            (Value::from("5x"), None),
            (Value::from("h"), None),
            (Value::from("9999999999999999999h"), None),
            (Value::from(vec![1]), None),
        ] {
            assert_eq!(parse_duration_s(&sent), seconds, "{sent}");
        }
    }

    #[test]
    fn durations_are_written_as_go_writes_them() {
        for (seconds, text) in [(0, "0s"), (59, "59s"), (90, "1m30s"), (3_600, "1h0m0s"), (-1, "-1s")] {
            assert_eq!(go_duration(seconds), text);
            if seconds >= 0 {
                assert_eq!(go_duration_exact(Duration::from_secs(seconds as u64)), text);
            }
        }
        for (nanos, text) in [
            (1, "1ns"),
            (1_500, "1.5µs"),
            (999_000_000, "999ms"),
            (2_000_010, "2.00001ms"),
            (1_999_744_654, "1.999744654s"),
            (70_250_000_000, "1m10.25s"),
        ] {
            assert_eq!(go_duration_exact(Duration::from_nanos(nanos)), text);
        }
    }
}
