//! Points in time as the API sends them (RFC 3339), in the other spellings that tables use.

/// A parsed RFC 3339 time. It is only respelled, never computed with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timestamp {
    year: u32,
    month: u32,
    day: u32,
    hour: u32,
    minute: u32,
    second: u32,
    /// The digits after the point, without zeros at the end.
    fraction: String,
    /// `None` for UTC, else as sent: `+02:00`.
    offset: Option<String>,
}

const MONTHS: [&str; 12] =
    ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

impl Timestamp {
    /// Parses `2006-01-02T15:04:05[.999999999](Z|±hh:mm)`.
    pub fn parse(text: &str) -> Option<Timestamp> {
        let number = |range: std::ops::Range<usize>| {
            let digits = text.get(range)?;
            digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse::<u32>().ok())?
        };
        let separated = [(4, b'-'), (7, b'-'), (10, b'T'), (13, b':'), (16, b':')];
        if !separated.iter().all(|(at, separator)| text.as_bytes().get(*at) == Some(separator)) {
            return None;
        }
        let rest = text.get(19..)?;
        let zone_at = rest.find(['Z', '+', '-'])?;
        let (fraction, zone) = rest.split_at(zone_at);
        let offset = match zone {
            "Z" | "+00:00" => None,
            _ if zone.len() == 6 => Some(zone.to_owned()),
            _ => return None,
        };
        let month = number(5..7).filter(|month| (1..=12).contains(month))?;
        Some(Timestamp {
            year: number(0..4)?,
            month,
            day: number(8..10)?,
            hour: number(11..13)?,
            minute: number(14..16)?,
            second: number(17..19)?,
            fraction: fraction.trim_start_matches('.').trim_end_matches('0').to_owned(),
            offset,
        })
    }

    /// Go's `time.RFC822`: `22 Nov 26 10:55 UTC`.
    pub fn rfc822(&self) -> String {
        let zone = self.compact_offset().unwrap_or_else(|| "UTC".to_owned());
        format!(
            "{:02} {} {:02} {:02}:{:02} {zone}",
            self.day,
            MONTHS[self.month as usize - 1],
            self.year % 100,
            self.hour,
            self.minute
        )
    }

    /// Go's `Time.String()`: `2026-11-22 10:55:56.6 +0000 UTC`.
    pub fn go(&self) -> String {
        let point = if self.fraction.is_empty() { "" } else { "." };
        let zone = match self.compact_offset() {
            Some(offset) => format!("{offset} {offset}"),
            None => "+0000 UTC".to_owned(),
        };
        format!(
            "{:04}-{:02}-{:02} {:02}:{:02}:{:02}{point}{} {zone}",
            self.year, self.month, self.day, self.hour, self.minute, self.second, self.fraction
        )
    }

    fn compact_offset(&self) -> Option<String> {
        self.offset.as_ref().map(|offset| offset.replace(':', ""))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_respelled() {
        let time = Timestamp::parse("2026-11-02T10:55:56.600000Z").unwrap();
        assert_eq!(time.rfc822(), "02 Nov 26 10:55 UTC");
        assert_eq!(time.go(), "2026-11-02 10:55:56.6 +0000 UTC");
        let time = Timestamp::parse("2026-01-02T10:55:56+02:00").unwrap();
        assert_eq!(
            (time.rfc822(), time.go()),
            ("02 Jan 26 10:55 +0200".into(), "2026-01-02 10:55:56 +0200 +0200".into())
        );
    }

    #[test]
    fn what_is_no_time_is_none() {
        for text in [
            "",
            "2026-11-02",
            "2026-13-02T10:55:56Z",
            "2026-11-02T10:55:56",
            "x026-11-02T10:55:56Z",
            "ü026-11-02T10:55:56Z",
        ] {
            assert_eq!(Timestamp::parse(text), None, "{text}");
        }
    }
}
