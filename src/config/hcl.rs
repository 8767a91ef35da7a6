//! A parser for the language of Vault's files: HCL as of its first version, and its JSON form.
//!
//! Vault never moved to HCL 2, and a parser for HCL 2 refuses what Vault's own documentation prints: quoted keys
//! (`"default" = {`), commas between the entries of a block, several entries on one line, `${` as plain text.
//! The language is small, so it is parsed here. Both forms end in the same tree, in which `listener "tcp" { .. }`
//! and `{"listener": {"tcp": {..}}}` cannot be told apart, and every key knows its line.
//!
//! The grammar is that of `github.com/hashicorp/hcl` 1.0. Strings are kept as they are: `${..}` is not expanded.

use zeroize::Zeroizing;

/// How deeply blocks and lists may be nested. Vault's files need five levels.
const MAX_DEPTH: u32 = 32;

/// One `key = value` or `key "label" { .. }`.
pub struct Item {
    /// The key, unquoted.
    pub key: String,
    /// The key's line, counted from 1.
    pub line: u32,
    /// What it is set to. A label makes an object with the label as its only key.
    pub value: Value,
}

/// The right-hand side of a key.
pub enum Value {
    /// A string, a heredoc, a number or a boolean, as text: Vault takes one for another.
    Scalar(Zeroizing<String>),
    /// `[a, b]`
    List(Vec<Value>),
    /// `{ .. }`; keys may repeat.
    Object(Vec<Item>),
}

/// A text that is not HCL, or not JSON.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SyntaxError {
    /// The line, counted from 1.
    pub line: u32,
    /// What is wrong there. It quotes nothing of the text but punctuation.
    pub message: String,
}

/// Parses a whole file. A text that begins with `{` is JSON, anything else HCL, whatever the file is called.
///
/// A `null` in JSON counts as if the key were absent.
///
/// # Errors
/// [`SyntaxError`] for the first place that does not fit the grammar.
pub fn parse(text: &str) -> Result<Vec<Item>, SyntaxError> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let json = text.trim_start().starts_with('{');
    if json {
        // The parser below is lenient about commas, comments and escapes; JSON is not.
        serde_json::from_str::<serde::de::IgnoredAny>(text).map_err(|error| SyntaxError {
            line: u32::try_from(error.line()).unwrap_or(u32::MAX),
            message: format!("not valid JSON: {error}"),
        })?;
    }
    let mut parser = Parser { text, position: 0, line: 1, json, depth: 0 };
    if !json {
        return parser.body(None);
    }
    parser.skip_blanks()?;
    let opened_at = parser.line;
    parser.advance();
    parser.body(Some(opened_at))
}

struct Parser<'t> {
    text: &'t str,
    position: usize,
    line: u32,
    json: bool,
    depth: u32,
}

impl<'t> Parser<'t> {
    /// The entries of a block up to its brace, or of the file up to its end.
    fn body(&mut self, opened_at: Option<u32>) -> Result<Vec<Item>, SyntaxError> {
        let mut items = Vec::new();
        loop {
            self.skip_blanks()?;
            match (self.peek(), opened_at) {
                (None, None) => return Ok(items),
                (None, Some(line)) => {
                    return Err(
                        self.error(format!("the file ends inside the block that opens on line {line}"))
                    );
                }
                (Some('}'), Some(_)) => {
                    self.advance();
                    return Ok(items);
                }
                (Some('}'), None) => return Err(self.error("a \"}\" that closes nothing")),
                (Some(','), _) => self.advance(),
                _ => items.extend(self.item()?),
            }
        }
    }

    /// One entry. `None` for a JSON `null`.
    fn item(&mut self) -> Result<Option<Item>, SyntaxError> {
        let line = self.line;
        let key = self.key()?;
        let mut labels = Vec::new();
        loop {
            self.skip_blanks()?;
            match self.peek() {
                Some('=') if labels.is_empty() && !self.json => break,
                Some(':') if self.json => break,
                Some('=') => {
                    return Err(self.error("a key with a label takes a block: write \"{\", not \"=\""));
                }
                Some('{') => {
                    let mut value = self.object()?;
                    self.depth -= u32::try_from(labels.len()).expect("as many as descended");
                    for (line, key) in labels.into_iter().rev() {
                        value = Value::Object(vec![Item { key, line, value }]);
                    }
                    return Ok(Some(Item { key, line, value }));
                }
                Some(c) if c == '"' || is_word_start(c) => {
                    // A label becomes a level of the tree, like a brace.
                    self.descend()?;
                    labels.push((self.line, self.key()?));
                }
                Some(_) => return Err(self.error("expected \"=\" or \"{\" after a key")),
                None => return Err(self.error("the file ends after a key; expected \"=\" or \"{\"")),
            }
        }
        self.advance();
        Ok(self.value()?.map(|value| Item { key, line, value }))
    }

    fn key(&mut self) -> Result<String, SyntaxError> {
        match self.peek() {
            Some('"') => Ok(self.string()?.to_string()),
            Some(c) if is_word_start(c) => Ok(self.word().to_owned()),
            _ => Err(self.error("expected a key")),
        }
    }

    /// `None` for a JSON `null`.
    fn value(&mut self) -> Result<Option<Value>, SyntaxError> {
        self.skip_blanks()?;
        let scalar = |text: &str| Value::Scalar(Zeroizing::new(text.to_owned()));
        match self.peek() {
            Some('"') => Ok(Some(Value::Scalar(self.string()?))),
            Some('{') => self.object().map(Some),
            Some('[') => self.list().map(Some),
            Some('<') if !self.json => Ok(Some(Value::Scalar(self.heredoc()?))),
            Some(c) if c.is_ascii_digit() || c == '-' || c == '+' => Ok(Some(scalar(self.number()?))),
            Some(c) if is_word_start(c) => match self.word() {
                word @ ("true" | "false") => Ok(Some(scalar(word))),
                "null" if self.json => Ok(None),
                _ => Err(self.error("a bare word is not a value; put it between quotation marks")),
            },
            Some(_) => Err(self.error("expected a value")),
            None => Err(self.error("the file ends where a value is expected")),
        }
    }

    fn object(&mut self) -> Result<Value, SyntaxError> {
        let opened_at = self.line;
        self.descend()?;
        self.advance();
        let items = self.body(Some(opened_at))?;
        self.depth -= 1;
        Ok(Value::Object(items))
    }

    fn list(&mut self) -> Result<Value, SyntaxError> {
        let opened_at = self.line;
        self.descend()?;
        self.advance();
        let mut values = Vec::new();
        loop {
            self.skip_blanks()?;
            match self.peek() {
                Some(']') => break,
                None => {
                    return Err(
                        self.error(format!("the file ends inside the list that opens on line {opened_at}"))
                    );
                }
                _ => values.extend(self.value()?),
            }
            self.skip_blanks()?;
            match self.peek() {
                Some(',') => self.advance(),
                Some(']') => break,
                _ => return Err(self.error("expected \",\" or \"]\" in a list")),
            }
        }
        self.advance();
        self.depth -= 1;
        Ok(Value::List(values))
    }

    fn descend(&mut self) -> Result<(), SyntaxError> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(self.error(format!("nested more than {MAX_DEPTH} levels deep")));
        }
        Ok(())
    }

    fn word(&mut self) -> &'t str {
        self.take_while(|c| c.is_alphanumeric() || matches!(c, '_' | '-' | '.'))
    }

    /// A number as text. What it must be (whole, positive, in range) is for the key to say.
    fn number(&mut self) -> Result<&'t str, SyntaxError> {
        let text = self.take_while(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '+' | '-'));
        if text.trim_start_matches(['+', '-']).starts_with(|c: char| c.is_ascii_digit()) {
            return Ok(text);
        }
        Err(self.error("expected digits after a sign"))
    }

    /// A quoted string. Inside `${ }` quotation marks do not end it, as in Vault.
    fn string(&mut self) -> Result<Zeroizing<String>, SyntaxError> {
        let opened_at = self.line;
        self.advance();
        // Unescaping never makes a text longer, so the buffer is not moved and leaves no copy behind (but for a
        // string with quotation marks inside `${ }`, whose length is not known yet).
        let mut out = Zeroizing::new(String::with_capacity(quoted_length(&self.text[self.position..])));
        let mut braces = 0_u32;
        loop {
            let Some(c) = self.peek() else {
                return Err(SyntaxError {
                    line: opened_at,
                    message: "a string that is never closed".to_owned(),
                });
            };
            match c {
                '"' if braces == 0 => break,
                '\n' => {
                    return Err(SyntaxError {
                        line: opened_at,
                        message: "a string may not go over the end of its line; use a heredoc (<<EOF)"
                            .to_owned(),
                    });
                }
                '\\' if braces == 0 => {
                    let escaped = self.escape()?;
                    out.push(escaped);
                    continue;
                }
                '$' if !self.json && self.text[self.position..].starts_with("${") => {
                    braces += 1;
                    out.push_str("${");
                    self.advance();
                    self.advance();
                    continue;
                }
                '{' if braces > 0 => braces += 1,
                '}' if braces > 0 => braces -= 1,
                _ => {}
            }
            out.push(c);
            self.advance();
        }
        self.advance();
        Ok(out)
    }

    /// What a backslash and the characters after it stand for.
    fn escape(&mut self) -> Result<char, SyntaxError> {
        self.advance();
        let kind = self.peek().ok_or_else(|| self.error("a string that is never closed"))?;
        self.advance();
        let plain = match kind {
            '"' | '\\' | '/' => kind,
            'n' => '\n',
            'r' => '\r',
            't' => '\t',
            'b' => '\u{8}',
            'f' => '\u{c}',
            'a' if !self.json => '\u{7}',
            'v' if !self.json => '\u{b}',
            'u' => return self.unicode(4),
            'U' if !self.json => return self.unicode(8),
            'x' if !self.json => return self.unicode(2),
            _ => return Err(self.error("an unknown escape in a string; write \\\\ for a backslash")),
        };
        Ok(plain)
    }

    fn unicode(&mut self, digits: usize) -> Result<char, SyntaxError> {
        let high = self.hex(digits)?;
        let is_high_surrogate = (0xd800..0xdc00).contains(&high);
        if !is_high_surrogate {
            return char::from_u32(high).ok_or_else(|| self.error("an escape that is no character"));
        }
        if !self.text[self.position..].starts_with("\\u") {
            return Err(self.error("an escape that is half a character"));
        }
        self.position += 2;
        let low = self.hex(4)?;
        if !(0xdc00..0xe000).contains(&low) {
            return Err(self.error("an escape that is half a character"));
        }
        let code = 0x10000 + ((high - 0xd800) << 10) + (low - 0xdc00);
        char::from_u32(code).ok_or_else(|| self.error("an escape that is no character"))
    }

    fn hex(&mut self, digits: usize) -> Result<u32, SyntaxError> {
        let end = self.position + digits;
        let text = self.text.get(self.position..end).filter(|t| t.bytes().all(|b| b.is_ascii_hexdigit()));
        let code = text.and_then(|t| u32::from_str_radix(t, 16).ok());
        let code =
            code.ok_or_else(|| self.error(format!("expected {digits} hexadecimal digits in an escape")))?;
        self.position = end;
        Ok(code)
    }

    /// `<<EOF` up to a line that is `EOF`; `<<-EOF` takes the common indentation away.
    fn heredoc(&mut self) -> Result<Zeroizing<String>, SyntaxError> {
        let opened_at = self.line;
        let rest = &self.text[self.position..];
        let (opening, body) = rest.split_once('\n').unwrap_or((rest, ""));
        let marker = opening.trim_end_matches('\r').strip_prefix("<<").unwrap_or_default();
        let (indented, marker) = match marker.strip_prefix('-') {
            Some(marker) => (true, marker),
            None => (false, marker),
        };
        if marker.is_empty() || !marker.chars().all(|c| c.is_alphanumeric() || c == '_' || c == '-') {
            return Err(self.error("a heredoc begins with << and a word, and nothing else on its line"));
        }
        let mut length = 0;
        let mut lines = Vec::new();
        for line in body.split_inclusive('\n') {
            self.line += 1;
            let text = line.trim_end_matches(['\n', '\r']);
            let candidate = if indented { text.trim_start() } else { text };
            if candidate == marker {
                // The marker's own line end stays: it separates this entry from the next.
                self.position += opening.len() + 1 + length + text.len();
                return Ok(join_heredoc(&lines, indented, length));
            }
            length += line.len();
            lines.push(line);
        }
        Err(SyntaxError { line: opened_at, message: "a heredoc that is never closed".to_owned() })
    }

    fn skip_blanks(&mut self) -> Result<(), SyntaxError> {
        loop {
            self.take_while(char::is_whitespace);
            let rest = &self.text[self.position..];
            if self.json {
                return Ok(());
            } else if rest.starts_with('#') || rest.starts_with("//") {
                self.take_while(|c| c != '\n');
            } else if rest.starts_with("/*") {
                let length = rest.find("*/").ok_or_else(|| self.error("a comment that is never closed"))?;
                let end = self.position + length + 2;
                while self.position < end {
                    self.advance();
                }
            } else {
                return Ok(());
            }
        }
    }

    fn take_while(&mut self, matches: impl Fn(char) -> bool) -> &'t str {
        let start = self.position;
        while self.peek().is_some_and(&matches) {
            self.advance();
        }
        &self.text[start..self.position]
    }

    fn peek(&self) -> Option<char> {
        self.text[self.position..].chars().next()
    }

    fn advance(&mut self) {
        if let Some(c) = self.peek() {
            self.position += c.len_utf8();
            self.line += u32::from(c == '\n');
        }
    }

    fn error(&self, message: impl Into<String>) -> SyntaxError {
        SyntaxError { line: self.line, message: message.into() }
    }
}

fn is_word_start(c: char) -> bool {
    c.is_alphabetic() || c == '_'
}

/// The length of a string's text up to the first quotation mark that no backslash precedes.
fn quoted_length(text: &str) -> usize {
    let mut escaped = false;
    let end = text.bytes().position(|byte| {
        let ends = byte == b'\n' || (byte == b'"' && !escaped);
        escaped = byte == b'\\' && !escaped;
        ends
    });
    end.unwrap_or(text.len())
}

fn join_heredoc(lines: &[&str], indented: bool, capacity: usize) -> Zeroizing<String> {
    let indentation = |line: &&str| line.len() - line.trim_start_matches([' ', '\t']).len();
    let shared = lines.iter().filter(|line| !line.trim().is_empty()).map(indentation).min().unwrap_or(0);
    let mut out = Zeroizing::new(String::with_capacity(capacity));
    for line in lines {
        let cut = if indented { shared.min(indentation(line)) } else { 0 };
        out.push_str(&line[cut..]);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The tree on one line, so that a test can compare it as a whole.
    fn show(items: &[Item]) -> String {
        let entry = |item: &Item| format!("{}@{}={}", item.key, item.line, show_value(&item.value));
        items.iter().map(entry).collect::<Vec<_>>().join(" ")
    }

    fn show_value(value: &Value) -> String {
        match value {
            Value::Scalar(text) => format!("{:?}", text.as_str()),
            Value::List(values) => {
                format!("[{}]", values.iter().map(show_value).collect::<Vec<_>>().join(","))
            }
            Value::Object(items) => format!("{{{}}}", show(items)),
        }
    }

    fn tree(text: &str) -> String {
        show(&parse(text).expect("parses"))
    }

    fn error(text: &str) -> (u32, String) {
        let Err(error) = parse(text) else { panic!("parsed: {text:?}") };
        (error.line, error.message)
    }

    #[test]
    fn hcl_blocks_and_json_objects_give_the_same_tree() {
        let hcl = tree("listener \"tcp\" { address = \"a:1\" tls_disable = true }");
        let json = tree(r#"{"listener": {"tcp": {"address": "a:1", "tls_disable": true}}}"#);
        assert_eq!(hcl, json);
        assert_eq!(hcl, r#"listener@1={tcp@1={address@1="a:1" tls_disable@1="true"}}"#);
    }

    #[test]
    fn every_comment_form_is_skipped_and_lines_are_still_counted() {
        assert_eq!(
            tree("# one\n// two\n/* three\nfour */ a = 1 # five\nb = 2 // six"),
            "a@4=\"1\" b@5=\"2\""
        );
    }

    #[test]
    fn quoted_keys_commas_and_trailing_commas_are_taken() {
        let text = "custom_response_headers {\n \"default\" = {\n  \"X-A\" = [\"1\", \"2\",],\n },\n \"2xx\" = {},\n}\n";
        let expected = "custom_response_headers@1={default@2={X-A@3=[\"1\",\"2\"]} 2xx@5={}}";
        assert_eq!(tree(text), expected);
    }

    #[test]
    fn heredocs_keep_their_lines_and_lose_indentation_only_when_asked() {
        assert_eq!(tree("a = <<EOF\n  x\n   y\nEOF\nb = 1"), "a@1=\"  x\\n   y\\n\" b@5=\"1\"");
        assert_eq!(tree("a = <<-EOF\n  x\n   y\n  EOF\nb = 1"), "a@1=\"x\\n y\\n\" b@5=\"1\"");
    }

    #[test]
    fn interpolation_is_plain_text_even_with_quotation_marks_in_it() {
        assert_eq!(tree(r#"a = "x${f("y")}z""#), r#"a@1="x${f(\"y\")}z""#);
        assert_eq!(tree(r#"a = "${{}"y"}z""#), r#"a@1="${{}\"y\"}z""#);
    }

    #[test]
    fn escapes_mean_the_same_in_both_forms() {
        assert_eq!(tree(r#"a = "q\"\\\n\u00e9""#), "a@1=\"q\\\"\\\\\\né\"");
        assert_eq!(tree(r#"{"a": "\/\u00e9\ud83d\ude00"}"#), "a@1=\"/é😀\"");
    }

    #[test]
    fn null_counts_as_absent_in_json() {
        assert_eq!(tree(r#"{"a": null, "b": [1, null]}"#), "b@1=[\"1\"]");
    }

    #[test]
    fn byte_order_mark_and_windows_line_ends_do_no_harm() {
        assert_eq!(
            tree("\u{feff}a = 1\r\nb = <<E\r\nx\r\nE\r\nc = 3\r\n"),
            "a@1=\"1\" b@2=\"x\\r\\n\" c@5=\"3\""
        );
    }

    #[test]
    fn errors_name_the_line_and_quote_nothing() {
        assert_eq!(error("a = 1\nb = secret").0, 2);
        assert_eq!(error("a {\n b = 1\n").1, "the file ends inside the block that opens on line 1");
        assert_eq!(error("a = 1\n}\n"), (2, "a \"}\" that closes nothing".to_owned()));
        assert_eq!(error("a = \"x\nb = 1").0, 1);
        assert_eq!(error("a = [1, 2\nb = 3").0, 2);
        assert_eq!(error("storage \"raft\" = {}").0, 1);
        assert_eq!(error("a = <<EOF\nx\n").0, 1);
        assert_eq!(error("/* x").1, "a comment that is never closed");
        assert_eq!(error("a = \"\\q\"").0, 1);
        assert_eq!(error("{\"a\": 1,\n}").0, 2);
        assert!(!error("key = hunter2").1.contains("hunter2"));
    }

    #[test]
    fn nesting_is_bounded() {
        let deep = |n: usize| format!("a = {}{}", "[".repeat(n), "]".repeat(n));
        assert!(parse(&deep(MAX_DEPTH as usize)).is_ok());
        assert!(error(&deep(100_000)).1.contains("nested"));
        let labels = |n: usize| format!("a {}{{}} b {{}}", "\"x\" ".repeat(n));
        assert!(parse(&labels(MAX_DEPTH as usize - 1)).is_ok());
        assert!(error(&labels(100_000)).1.contains("nested"));
        assert!(parse(&format!("{{\"a\":{}{}}}", "[".repeat(100_000), "]".repeat(100_000))).is_err());
    }

    #[test]
    fn no_prefix_of_a_good_file_makes_the_parser_panic_or_hang() {
        let text = "a \"b\" {\n c = <<-E\n  x\n  E\n d = [\"\\u00e9\", -1.5, {}]\n} /* z */ e = \"${f}\"\n";
        for end in (0..text.len()).filter(|&end| text.is_char_boundary(end)) {
            let _ = parse(&text[..end]);
        }
        assert!(parse(text).is_ok());
    }
}
