//! Texts with all that differs from run to run replaced by names.

/// Replaces times by `<time>`, UUIDs by `<uuid>`, the ends of accessors by `<id>`, and the given texts by their
/// names.
pub fn settled(text: &str, names: &[(String, &str)]) -> String {
    let mut text = text.to_owned();
    for (what, name) in names {
        text = text.replace(what, name);
    }
    let mut out = String::with_capacity(text.len());
    let mut rest = text.as_str();
    while let Some(first) = rest.chars().next() {
        let begins = out.chars().next_back().is_none_or(|before| !before.is_ascii_alphanumeric());
        let found = [
            ("<uuid>", matched(rest, "xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx").filter(|_| begins)),
            ("<time>", time(rest).filter(|_| begins)),
            ("_<id>", matched(rest, "_xxxxxxxx").filter(|length| ends(rest, *length))),
            ("-<id>", matched(rest, "-xxxxxxxx").filter(|length| ends(rest, *length))),
        ];
        match found.into_iter().find_map(|(name, length)| Some((name, length?))) {
            Some((name, length)) => {
                out.push_str(name);
                rest = &rest[length..];
            }
            None => {
                out.push(first);
                rest = &rest[first.len_utf8()..];
            }
        }
    }
    out
}

fn ends(text: &str, length: usize) -> bool {
    text[length..].chars().next().is_none_or(|after| !after.is_ascii_alphanumeric() && after != '-')
}

/// The length of what fits the pattern at the beginning: `x` is a hexadecimal digit, `9` a decimal one.
fn matched(text: &str, pattern: &str) -> Option<usize> {
    let fits = |(actual, wanted): (u8, u8)| match wanted {
        b'x' => actual.is_ascii_hexdigit() && !actual.is_ascii_uppercase(),
        b'9' => actual.is_ascii_digit(),
        other => actual == other,
    };
    (text.len() >= pattern.len() && text.bytes().zip(pattern.bytes()).all(fits)).then_some(pattern.len())
}

fn time(text: &str) -> Option<usize> {
    let whole = matched(text, "9999-99-99T99:99:99").or_else(|| matched(text, "9999-99-99 99:99:99"))?;
    let fraction = text[whole..].bytes().take_while(|byte| *byte == b'.' || byte.is_ascii_digit()).count();
    let end = whole + fraction;
    let zone = ["Z", " +0000 UTC"].iter().find(|zone| text[end..].starts_with(**zone))?;
    Some(end + zone.len())
}

#[test]
fn what_differs_is_replaced_and_nothing_else() {
    let names = [("/tmp/x".to_owned(), "<dir>")];
    for (text, expected) in [
        ("id 4df73802-5024-4677-afaf-a5969021b27f.", "id <uuid>."),
        ("at 2026-11-22T14:53:43.332Z, 2026-11-22T14:53:43Z", "at <time>, <time>"),
        ("kv_0a1b2c3d  kv_short", "kv_<id>  kv_short"),
        ("/tmp/x/f 2026-11-22", "<dir>/f 2026-11-22"),
        ("request_id deadbeef", "request_id deadbeef"),
    ] {
        assert_eq!(settled(text, &names), expected);
    }
}
