//! Reads JSON that a stranger sent.
//!
//! `serde_json` is not used for this direction, for three reasons: with exact numbers on it turns an object
//! whose first key is its private number marker into a number, so that a client could store one thing and
//! read another; its depth limit is not ours; and it counts nothing, so that a small body can become a large
//! tree. What this parser yields are `serde_json` values all the same.
//!
//! Errors name an offset and never the text found there.

use std::{hint::black_box, str::FromStr};

use serde_json::{Map, Number, Value};

/// How deep arrays and objects may be nested.
pub const MAX_DEPTH: usize = 500;
/// How many keys and values one document may hold. A tree node costs about a hundred bytes, so this bounds the
/// memory that a body can grow into.
pub const MAX_VALUES: usize = 100_000;
/// How long the text of one number may be.
const MAX_NUMBER_LENGTH: usize = 1_024;

/// Why a document was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum JsonError {
    /// The document ends too early.
    #[error("unexpected EOF")]
    UnexpectedEnd,
    /// Something that JSON does not allow.
    #[error("invalid character at offset {0}")]
    InvalidCharacter(usize),
    /// A string is not UTF-8, or an escape is no character.
    #[error("invalid string at offset {0}")]
    InvalidString(usize),
    /// Something follows the document.
    #[error("trailing data at offset {0}")]
    TrailingData(usize),
    /// Nested deeper than [`MAX_DEPTH`].
    #[error("exceeded max depth")]
    TooDeep,
    /// More keys and values than [`MAX_VALUES`].
    #[error("exceeded max number of values")]
    TooManyValues,
    /// A number longer than any use of one.
    #[error("number too long at offset {0}")]
    NumberTooLong(usize),
}

/// Parses a document that this program wrote itself. It is not counted, for a large listing is a valid answer;
/// everything else is as in [`parse`].
pub fn parse_own(input: &[u8]) -> Result<Value, JsonError> {
    parse_counted(input, usize::MAX)
}

/// Parses one whole document. Of repeated keys the last wins; numbers keep every
/// digit they were sent with.
pub fn parse(input: &[u8]) -> Result<Value, JsonError> {
    parse_counted(input, MAX_VALUES)
}

fn parse_counted(input: &[u8], max_values: usize) -> Result<Value, JsonError> {
    let mut parser = Parser { input, at: 0, values_left: max_values };
    let value = parser.value(0)?;
    parser.skip_space();
    if parser.at < input.len() {
        return Err(JsonError::TrailingData(parser.at));
    }
    Ok(value)
}

/// Overwrites every text in some values with zeros and leaves an empty one. Numbers stay as they are.
pub fn wipe(values: &mut dyn Iterator<Item = &mut Value>) {
    for value in values {
        match value {
            Value::String(text) => {
                let mut bytes = std::mem::take(text).into_bytes();
                bytes.fill(0);
                // Zeros that are looked at have to be written. (`zeroize` writes byte by byte: a megabyte notices.)
                black_box(&bytes);
            }
            Value::Array(items) => wipe(&mut items.iter_mut()),
            Value::Object(map) => wipe(&mut map.values_mut()),
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
    }
}

struct Parser<'a> {
    input: &'a [u8],
    at: usize,
    values_left: usize,
}

impl Parser<'_> {
    fn skip_space(&mut self) {
        while matches!(self.input.get(self.at), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    /// The next byte that is not space, without taking it.
    fn peek(&mut self) -> Result<u8, JsonError> {
        self.skip_space();
        self.input.get(self.at).copied().ok_or(JsonError::UnexpectedEnd)
    }

    fn count(&mut self) -> Result<(), JsonError> {
        self.values_left = self.values_left.checked_sub(1).ok_or(JsonError::TooManyValues)?;
        Ok(())
    }

    fn value(&mut self, depth: usize) -> Result<Value, JsonError> {
        self.count()?;
        match self.peek()? {
            b'{' => self.object(depth + 1),
            b'[' => self.array(depth + 1),
            b'"' => Ok(Value::String(self.string()?)),
            b't' => self.literal("true", Value::Bool(true)),
            b'f' => self.literal("false", Value::Bool(false)),
            b'n' => self.literal("null", Value::Null),
            b'-' | b'0'..=b'9' => self.number(),
            _ => Err(JsonError::InvalidCharacter(self.at)),
        }
    }

    fn object(&mut self, depth: usize) -> Result<Value, JsonError> {
        if depth > MAX_DEPTH {
            return Err(JsonError::TooDeep);
        }
        self.at += 1;
        let mut map = Map::new();
        if self.peek()? == b'}' {
            self.at += 1;
            return Ok(Value::Object(map));
        }
        loop {
            if self.peek()? != b'"' {
                return Err(JsonError::InvalidCharacter(self.at));
            }
            self.count()?;
            let key = self.string()?;
            if self.peek()? != b':' {
                return Err(JsonError::InvalidCharacter(self.at));
            }
            self.at += 1;
            let value = self.value(depth)?;
            map.insert(key, value);
            match self.peek()? {
                b',' => self.at += 1,
                b'}' => {
                    self.at += 1;
                    return Ok(Value::Object(map));
                }
                _ => return Err(JsonError::InvalidCharacter(self.at)),
            }
        }
    }

    fn array(&mut self, depth: usize) -> Result<Value, JsonError> {
        if depth > MAX_DEPTH {
            return Err(JsonError::TooDeep);
        }
        self.at += 1;
        let mut items = Vec::new();
        if self.peek()? == b']' {
            self.at += 1;
            return Ok(Value::Array(items));
        }
        loop {
            items.push(self.value(depth)?);
            match self.peek()? {
                b',' => self.at += 1,
                b']' => {
                    self.at += 1;
                    return Ok(Value::Array(items));
                }
                _ => return Err(JsonError::InvalidCharacter(self.at)),
            }
        }
    }

    fn literal(&mut self, text: &str, value: Value) -> Result<Value, JsonError> {
        for expected in text.bytes() {
            match self.input.get(self.at) {
                Some(found) if *found == expected => self.at += 1,
                Some(_) => return Err(JsonError::InvalidCharacter(self.at)),
                None => return Err(JsonError::UnexpectedEnd),
            }
        }
        Ok(value)
    }

    fn number(&mut self) -> Result<Value, JsonError> {
        let start = self.at;
        while matches!(self.input.get(self.at), Some(b'-' | b'+' | b'.' | b'e' | b'E' | b'0'..=b'9')) {
            self.at += 1;
        }
        let text = &self.input[start..self.at];
        if text.len() > MAX_NUMBER_LENGTH {
            return Err(JsonError::NumberTooLong(start));
        }
        let text = std::str::from_utf8(text).map_err(|_| JsonError::InvalidCharacter(start))?;
        Number::from_str(text).map(Value::Number).map_err(|_| {
            if self.at == self.input.len() && text.ends_with(['-', '+', '.', 'e', 'E']) {
                JsonError::UnexpectedEnd
            } else {
                JsonError::InvalidCharacter(start)
            }
        })
    }

    fn string(&mut self) -> Result<String, JsonError> {
        self.at += 1;
        let mut out = Vec::new();
        let start = self.at;
        loop {
            let run = self.at;
            while !matches!(self.input.get(self.at), None | Some(b'"' | b'\\' | 0..=0x1f)) {
                self.at += 1;
            }
            if out.is_empty() {
                // Text without escapes, which is most of it, is allocated once: growing would leave copies behind.
                out.reserve_exact(self.at - run);
            }
            out.extend_from_slice(&self.input[run..self.at]);
            match self.input.get(self.at) {
                None => return Err(JsonError::UnexpectedEnd),
                Some(b'"') => {
                    self.at += 1;
                    return String::from_utf8(out).map_err(|_| JsonError::InvalidString(start));
                }
                Some(b'\\') => {
                    let character = self.escape()?;
                    out.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
                }
                Some(_) => return Err(JsonError::InvalidCharacter(self.at)),
            }
        }
    }

    fn escape(&mut self) -> Result<char, JsonError> {
        let code = *self.input.get(self.at + 1).ok_or(JsonError::UnexpectedEnd)?;
        self.at += 2;
        Ok(match code {
            b'"' => '"',
            b'\\' => '\\',
            b'/' => '/',
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            b'u' => return self.unicode_escape(),
            _ => return Err(JsonError::InvalidCharacter(self.at - 1)),
        })
    }

    /// A `\uXXXX`, or a pair of them. A half of a pair becomes U+FFFD, as it does in Go: clients that send one
    /// have been answered so for years.
    fn unicode_escape(&mut self) -> Result<char, JsonError> {
        let first = self.hex4()?;
        if !(0xd800..0xdc00).contains(&first) {
            return Ok(char::from_u32(first).unwrap_or(char::REPLACEMENT_CHARACTER));
        }
        if self.input[self.at..].starts_with(b"\\u") {
            let back = self.at;
            self.at += 2;
            let second = self.hex4()?;
            if (0xdc00..0xe000).contains(&second) {
                let code = 0x10000 + ((first - 0xd800) << 10) + (second - 0xdc00);
                return Ok(char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER));
            }
            self.at = back;
        }
        Ok(char::REPLACEMENT_CHARACTER)
    }

    fn hex4(&mut self) -> Result<u32, JsonError> {
        let digits = self.input.get(self.at..self.at + 4).ok_or(JsonError::UnexpectedEnd)?;
        let mut code = 0;
        for digit in digits {
            let digit = char::from(*digit).to_digit(16).ok_or(JsonError::InvalidString(self.at))?;
            code = code << 4 | digit;
        }
        self.at += 4;
        Ok(code)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_serde_json_on_ordinary_documents() {
        for text in [
            r#"{}"#,
            r#"[]"#,
            r#" { "a" : [ 1 , 2.5e-3 , true , false , null , "x\n\u00e9\ud83d\ude00" ] , "b" : { "c" : {} } } "#,
            r#""plain""#,
            "-0.0",
            "[[[]],{}]",
        ] {
            let expected: Value = serde_json::from_str(text).unwrap();
            assert_eq!(parse(text.as_bytes()), Ok(expected), "{text}");
        }
    }

    #[test]
    fn numbers_keep_every_digit() {
        for text in ["2.50", "12345678901234567890123", "1e+400", "0.1000"] {
            assert_eq!(parse(text.as_bytes()).unwrap().to_string(), text);
        }
    }

    #[test]
    fn an_object_with_the_private_number_marker_stays_an_object() {
        let text = br#"{"$serde_json::private::Number":"7"}"#;
        assert!(parse(text).unwrap().is_object());
    }

    #[test]
    fn the_last_of_repeated_keys_wins() {
        assert_eq!(parse(br#"{"a":1,"a":2}"#).unwrap()["a"].to_string(), "2");
    }

    #[test]
    fn malformed_documents_are_refused() {
        use JsonError::*;
        for (text, error) in [
            ("", UnexpectedEnd),
            ("{", UnexpectedEnd),
            (r#"{"a":"#, UnexpectedEnd),
            (r#""abc"#, UnexpectedEnd),
            (r#"{"a":1,}"#, InvalidCharacter(7)),
            ("{a:1}", InvalidCharacter(1)),
            ("[1,]", InvalidCharacter(3)),
            ("NaN", InvalidCharacter(0)),
            ("nul", UnexpectedEnd),
            ("01", InvalidCharacter(0)),
            ("1 2", TrailingData(2)),
            (r#"{"a":1}trailing"#, TrailingData(7)),
            ("\u{feff}{}", InvalidCharacter(0)),
            ("\"\n\"", InvalidCharacter(1)),
            (r#""\x""#, InvalidCharacter(2)),
        ] {
            assert_eq!(parse(text.as_bytes()), Err(error), "{text}");
        }
        assert_eq!(parse(b"\"\xff\""), Err(InvalidString(1)));
    }

    #[test]
    fn depth_is_bounded_and_400_is_fine() {
        let nested = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
        assert!(parse(nested(400).as_bytes()).is_ok());
        assert!(parse(nested(MAX_DEPTH).as_bytes()).is_ok());
        assert_eq!(parse(nested(MAX_DEPTH + 1).as_bytes()), Err(JsonError::TooDeep));
        assert_eq!(parse("[".repeat(20_000_000).as_bytes()), Err(JsonError::TooDeep));
    }

    #[test]
    fn the_number_of_values_is_bounded() {
        let many = format!("[{}1]", "1,".repeat(MAX_VALUES));
        assert_eq!(parse(many.as_bytes()), Err(JsonError::TooManyValues));
        let long = "9".repeat(MAX_NUMBER_LENGTH + 1);
        assert_eq!(parse(long.as_bytes()), Err(JsonError::NumberTooLong(0)));
    }

    #[test]
    fn errors_show_nothing_of_the_document() {
        let error = parse(br#"{"password":"hunter2" oops}"#).unwrap_err();
        let text = error.to_string();
        assert!(!text.contains("hunter2") && !text.contains("oops"), "{text}");
    }
}
