//! JSON as Go writes it: what could be taken for markup is escaped, which clients compare byte by byte.

use std::io;

use serde::Serialize;
use serde_json::ser::{CompactFormatter, Formatter, Serializer};

/// Serialises with Go's escaping and without a newline at the end.
///
/// # Panics
/// If a map has keys that are not strings; none here has.
pub fn to_string<T: Serialize + ?Sized>(value: &T) -> String {
    let mut out = Vec::new();
    let mut serializer = Serializer::with_formatter(&mut out, GoFormatter(CompactFormatter));
    value.serialize(&mut serializer).expect("our documents have string keys and go to memory");
    String::from_utf8(out).expect("serde_json writes UTF-8")
}

/// Appends a JSON document with Go's escaping. What is escaped stands only inside strings, so that the document need not
/// be understood for it.
pub fn escape_markup(out: &mut String, document: &str) {
    if !may_need_escape(document) {
        return out.push_str(document);
    }
    let mut plain = 0;
    for (at, character) in document.char_indices() {
        if let Some(escaped) = escaped(character) {
            out.push_str(&document[plain..at]);
            out.push_str(escaped);
            plain = at + character.len_utf8();
        }
    }
    out.push_str(&document[plain..]);
}

/// Whether there may be something to escape: most texts need not be looked at character by character.
fn may_need_escape(text: &str) -> bool {
    const FIRST_OF_SEPARATORS: u8 = 0xe2;
    text.bytes().fold(false, |found, byte| found | matches!(byte, b'<' | b'>' | b'&' | FIRST_OF_SEPARATORS))
}

fn escaped(character: char) -> Option<&'static str> {
    Some(match character {
        '<' => "\\u003c",
        '>' => "\\u003e",
        '&' => "\\u0026",
        '\u{2028}' => "\\u2028",
        '\u{2029}' => "\\u2029",
        _ => return None,
    })
}

struct GoFormatter(CompactFormatter);

impl Formatter for GoFormatter {
    fn write_string_fragment<W: io::Write + ?Sized>(&mut self, out: &mut W, text: &str) -> io::Result<()> {
        if !may_need_escape(text) {
            return self.0.write_string_fragment(out, text);
        }
        let mut plain = 0;
        for (at, character) in text.char_indices() {
            let Some(escaped) = escaped(character) else { continue };
            self.0.write_string_fragment(out, &text[plain..at])?;
            out.write_all(escaped.as_bytes())?;
            plain = at + character.len_utf8();
        }
        self.0.write_string_fragment(out, &text[plain..])
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn markup_is_escaped_in_keys_and_values() {
        let value = json!({"<k>": "a&b\u{2028}\n\"é"});
        assert_eq!(to_string(&value), "{\"\\u003ck\\u003e\":\"a\\u0026b\\u2028\\n\\\"é\"}");
    }
}
