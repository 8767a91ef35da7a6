//! Points in time as the API sends them (RFC 3339), in the other spellings that tables use.

/// A parsed RFC 3339 time.
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

    /// RFC 3339 without fractions of a second.
    pub fn whole_seconds(&self) -> String {
        format!(
            "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}{}",
            self.year,
            self.month,
            self.day,
            self.hour,
            self.minute,
            self.second,
            self.offset.as_deref().unwrap_or("Z")
        )
    }

    /// The point in time so many seconds after 1970 began, in UTC. Years outside of 0 to 9999 are the nearest
    /// of these.
    pub fn of_unix(seconds: i64) -> Timestamp {
        const DAY: i64 = 86_400;
        let seconds = seconds.clamp(-62_167_219_200, 253_402_300_799);
        let (days, of_day) = (seconds.div_euclid(DAY), seconds.rem_euclid(DAY));
        let (year, month, day) = date_of(days);
        let part = |value: i64| u32::try_from(value).unwrap_or(0);
        Timestamp {
            year,
            month,
            day,
            hour: part(of_day / 3600),
            minute: part(of_day / 60 % 60),
            second: part(of_day % 60),
            fraction: String::new(),
            offset: None,
        }
    }

    /// Seconds since 1970 began.
    pub fn unix(&self) -> i64 {
        let days = days_until(self.year, self.month, self.day);
        let offset = self.offset.as_deref().map_or(0, |offset| {
            let part = |range: std::ops::Range<usize>| {
                offset.get(range).and_then(|digits| digits.parse::<i64>().ok()).unwrap_or(0)
            };
            let minutes = part(1..3) * 60 + part(4..6);
            if offset.starts_with('-') { -minutes * 60 } else { minutes * 60 }
        });
        days * 86_400 + i64::from(self.hour * 3600 + self.minute * 60 + self.second) - offset
    }

    /// Parses the date of an HTTP header (RFC 9110, the preferred form): `Sun, 06 Nov 1994 08:49:37 GMT`.
    pub fn parse_http(text: &str) -> Option<Timestamp> {
        let rest = text.split_once(", ")?.1.strip_suffix(" GMT")?;
        let mut words = rest.split(' ');
        let (day, month, year, time) = (words.next()?, words.next()?, words.next()?, words.next()?);
        let month = MONTHS.iter().position(|name| *name == month)? + 1;
        Timestamp::parse(&format!("{year}-{month:02}-{day:0>2}T{time}Z"))
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

/// The date so many days after 1 January 1970. Years begin in March here, so that the leap day is the last
/// (Howard Hinnant, "chrono-compatible low-level date algorithms").
fn date_of(days: i64) -> (u32, u32, u32) {
    const ERA: i64 = 146_097; // days in 400 years
    let days = days + 719_468;
    let (era, day) = (days.div_euclid(ERA), days.rem_euclid(ERA));
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let of_year = day - (365 * year + year / 4 - year / 100);
    let shifted = (5 * of_year + 2) / 153;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year + era * 400 + i64::from(month <= 2);
    let part = |value: i64| u32::try_from(value).unwrap_or(0);
    (part(year), part(month), part(of_year - (153 * shifted + 2) / 5 + 1))
}

/// The inverse of [`date_of`].
fn days_until(year: u32, month: u32, day: u32) -> i64 {
    let year = i64::from(year) - i64::from(month <= 2);
    let (era, of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let shifted = i64::from(if month > 2 { month - 3 } else { month + 9 });
    let of_year = (153 * shifted + 2) / 5 + i64::from(day) - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
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

    #[test]
    fn seconds_and_dates_are_the_same_points_in_time() {
        for (text, seconds) in [
            ("1970-01-01T00:00:00Z", 0),
            ("1969-12-31T23:59:59Z", -1),
            ("2000-02-29T12:00:00Z", 951_825_600),
            ("2026-11-22T10:55:56Z", 1_795_344_956),
            ("2100-03-01T00:00:00Z", 4_107_542_400),
            ("9999-12-31T23:59:59Z", 253_402_300_799),
        ] {
            assert_eq!(Timestamp::of_unix(seconds).whole_seconds(), text);
            assert_eq!(Timestamp::parse(text).unwrap().unix(), seconds);
        }
        assert_eq!(Timestamp::parse("1970-01-01T02:00:00+02:00").unwrap().unix(), 0);
        assert_eq!(Timestamp::of_unix(i64::MAX).whole_seconds(), "9999-12-31T23:59:59Z");
    }

    #[test]
    fn dates_of_http_are_read() {
        let time = Timestamp::parse_http("Sun, 06 Nov 1994 08:49:37 GMT").unwrap();
        assert_eq!(time.unix(), 784_111_777);
        assert_eq!(Timestamp::parse_http("yesterday"), None);
    }
}
