//! Scalars as Vault reads them: `"5"` for `5`, `"true"` or `1` for `true`, `30` or `"30s"` for half a minute.
//!
//! Every function takes the text of a scalar and says in its error what would be right. The text itself is left
//! out of the errors: the caller knows whether the key may be quoted.

use std::time::Duration;

/// `true`, `false`, `1`, `0`, and the other spellings of Go's `strconv.ParseBool`.
pub(super) fn boolean(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" | "" => Ok(false),
        _ => Err("must be true or false".to_owned()),
    }
}

/// A whole number that is not negative.
///
/// A leading zero is refused: HCL reads `010` as eight, and hardly anybody who writes it means eight.
pub(super) fn whole(text: &str) -> Result<u64, String> {
    let error = || "must be a whole number, 0 or greater, in decimal digits".to_owned();
    let leading_zero = text.len() > 1 && text.starts_with('0');
    if leading_zero || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(error());
    }
    text.parse().map_err(|_| error())
}

/// A duration: bare seconds, or a Go duration such as `1h30m`, `1.5h`, `500ms`, with `d` for 24 hours as Vault adds.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let error = || "must be a duration such as \"30s\", \"1h30m\", or a number of seconds".to_owned();
    if text.is_empty() {
        return Ok(Duration::ZERO);
    }
    if text.bytes().all(|byte| byte.is_ascii_digit()) {
        return text.parse().map(Duration::from_secs).map_err(|_| error());
    }
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let unit_at = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(error)?;
        let (number, tail) = rest.split_at(unit_at);
        let unit_end = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit_end);
        let unit_ns: u64 = match unit {
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60 * 1_000_000_000,
            "h" => 3_600 * 1_000_000_000,
            "d" => 86_400 * 1_000_000_000,
            _ => return Err(error()),
        };
        let part = scaled(number, unit_ns).ok_or_else(error)?;
        total = total.checked_add(part).ok_or_else(error)?;
        rest = tail;
    }
    Ok(total)
}

/// `number` (digits with at most one point) times `unit_ns`, exact to the nanosecond.
fn scaled(number: &str, unit_ns: u64) -> Option<Duration> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = |text: &str| text.len() <= 18 && text.bytes().all(|byte| byte.is_ascii_digit());
    if (whole.is_empty() && fraction.is_empty()) || !digits(whole) || !digits(fraction) {
        return None;
    }
    let integer: u64 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    let decimals: u64 = if fraction.is_empty() { 0 } else { fraction.parse().ok()? };
    let divisor = 10_u128.pow(u32::try_from(fraction.len()).ok()?);
    let nanoseconds =
        u128::from(integer) * u128::from(unit_ns) + u128::from(decimals) * u128::from(unit_ns) / divisor;
    u64::try_from(nanoseconds).ok().map(Duration::from_nanos)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn booleans_are_weakly_typed_but_not_guessed() {
        for text in ["true", "1", "T", "TRUE"] {
            assert_eq!(boolean(text), Ok(true), "{text}");
        }
        for text in ["false", "0", "False", ""] {
            assert_eq!(boolean(text), Ok(false), "{text}");
        }
        for text in ["yes", "no", "2", "on", " true"] {
            assert!(boolean(text).is_err(), "{text}");
        }
    }

    #[test]
    fn whole_numbers_refuse_signs_fractions_and_octal() {
        assert_eq!(whole("0"), Ok(0));
        assert_eq!(whole("1048576"), Ok(1_048_576));
        for text in ["-1", "+1", "1.5", "010", "0x10", "1e3", "18446744073709551616", "five"] {
            assert!(whole(text).is_err(), "{text}");
        }
    }

    #[test]
    fn durations_are_go_durations_or_seconds() {
        let cases = [
            ("30", 30_000),
            ("30s", 30_000),
            ("1h30m", 5_400_000),
            ("1.5h", 5_400_000),
            ("500ms", 500),
            ("768h", 2_764_800_000),
            ("2d", 172_800_000),
            ("0", 0),
            ("0s", 0),
            (".5s", 500),
        ];
        for (text, milliseconds) in cases {
            assert_eq!(duration(text), Ok(Duration::from_millis(milliseconds)), "{text}");
        }
        for text in
            ["-5s", "5 s", "s", "1.2.3s", "10x", "5s3", ".s", "99999999999999999999s", "1y", "300000000h"]
        {
            assert!(duration(text).is_err(), "{text}");
        }
    }
}
