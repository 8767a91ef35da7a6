//! YAML as Go's `ghodss/yaml` writes it: keys sorted, lists not indented, texts quoted where they would be
//! read as something else.

use serde_json::Value;

/// The value as a YAML document, without a newline at its end.
pub fn render(value: &Value) -> String {
    let mut out = String::new();
    match value {
        Value::Object(fields) if !fields.is_empty() => write_block(&mut out, value, 0),
        Value::Array(items) if !items.is_empty() => write_block(&mut out, value, 0),
        _ => write_scalar(&mut out, value, 0),
    }
    out.trim_end_matches('\n').to_owned()
}

fn write_block(out: &mut String, value: &Value, indent: usize) {
    let margin = " ".repeat(indent);
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                out.push_str(&format!("{margin}{}:", key(name)));
                write_after_key(out, value, indent);
            }
        }
        Value::Array(items) => {
            for item in items {
                if is_block(item) {
                    // The first line of a nested block shares the line of its dash.
                    let mut nested = String::new();
                    write_block(&mut nested, item, indent + 2);
                    out.push_str(&format!("{margin}- {}", &nested[indent + 2..]));
                } else {
                    out.push_str(&format!("{margin}- "));
                    write_scalar(out, item, indent);
                    out.push('\n');
                }
            }
        }
        scalar => write_scalar(out, scalar, indent),
    }
}

fn write_after_key(out: &mut String, value: &Value, indent: usize) {
    match value {
        Value::Array(_) if is_block(value) => {
            out.push('\n');
            write_block(out, value, indent);
        }
        _ if is_block(value) => {
            out.push('\n');
            write_block(out, value, indent + 2);
        }
        _ => {
            out.push(' ');
            write_scalar(out, value, indent);
            out.push('\n');
        }
    }
}

fn is_block(value: &Value) -> bool {
    match value {
        Value::Object(fields) => !fields.is_empty(),
        Value::Array(items) => !items.is_empty(),
        _ => false,
    }
}

fn write_scalar(out: &mut String, value: &Value, indent: usize) {
    match value {
        Value::String(text) if text.contains('\n') && can_be_literal(text) => {
            let chomp = match text.len() - text.trim_end_matches('\n').len() {
                0 => "-",
                1 => "",
                _ => "+",
            };
            out.push_str(&format!("|{chomp}"));
            for line in text.strip_suffix('\n').unwrap_or(text).split('\n') {
                out.push('\n');
                if !line.is_empty() {
                    out.push_str(&" ".repeat(indent + 2));
                    out.push_str(line);
                }
            }
        }
        Value::String(text) => out.push_str(&scalar_text(text)),
        Value::Array(_) => out.push_str("[]"),
        Value::Object(_) => out.push_str("{}"),
        Value::Null | Value::Bool(_) | Value::Number(_) => out.push_str(&value.to_string()),
    }
}

fn can_be_literal(text: &str) -> bool {
    !text.starts_with([' ', '\n', '\t']) && !text.chars().any(|c| c.is_control() && c != '\n')
}

fn key(name: &str) -> String {
    scalar_text(name)
}

/// A text on one line: plain where that reads back as the same text, else quoted.
fn scalar_text(text: &str) -> String {
    if text.chars().any(|c| c.is_control() || matches!(c, '\u{2028}' | '\u{2029}' | '\u{feff}')) {
        return double_quoted(text);
    }
    if reads_as_something_else(text) {
        return format!("\"{text}\"");
    }
    if needs_quotes(text) { format!("'{}'", text.replace('\'', "''")) } else { text.to_owned() }
}

fn double_quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            _ if u32::from(c) < 0x100 && c.is_control() => out.push_str(&format!("\\x{:02X}", u32::from(c))),
            '\u{2028}' | '\u{2029}' | '\u{feff}' => out.push_str(&format!("\\u{:04X}", u32::from(c))),
            _ => out.push(c),
        }
    }
    out.push('"');
    out
}

/// Whether YAML 1.1 would take a plain text for a null, boolean, number or time.
fn reads_as_something_else(text: &str) -> bool {
    let lower = text.to_ascii_lowercase();
    let word = matches!(
        lower.as_str(),
        "" | "~"
            | "null"
            | "true"
            | "false"
            | "y"
            | "n"
            | "yes"
            | "no"
            | "on"
            | "off"
            | ".nan"
            | ".inf"
            | "+.inf"
            | "-.inf"
            | "<<"
    );
    let digits = lower.trim_start_matches(['+', '-']).trim_start_matches('.');
    let number = digits.starts_with(|c: char| c.is_ascii_digit())
        && (lower.replace('_', "").parse::<f64>().is_ok()
            || ["0x", "0o", "0b"].iter().any(|prefix| {
                digits
                    .strip_prefix(prefix)
                    .is_some_and(|rest| rest.chars().all(|c| c.is_ascii_hexdigit() || c == '_'))
            })
            || digits.chars().all(|c| c.is_ascii_digit() || matches!(c, ':' | '_' | '.')));
    let bytes = text.as_bytes();
    let time = bytes.len() >= 8 && bytes[..4].iter().all(u8::is_ascii_digit) && bytes[4] == b'-';
    word || number || time
}

fn needs_quotes(text: &str) -> bool {
    let indicator = text.starts_with(|c| "!&*[]{},#|>@`\"'%".contains(c))
        || text.starts_with(['-', '?', ':']) && text[1..].chars().next().is_none_or(char::is_whitespace)
        || text.starts_with("---")
        || text.starts_with("...");
    indicator
        || text.starts_with(' ')
        || text.ends_with([' ', ':'])
        || text.contains(": ")
        || text.contains(" #")
        || text == "="
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn maps_are_sorted_and_lists_not_indented() {
        let value = json!({
            "request_id": "r", "lease_duration": 0, "warnings": null, "empty": {}, "none": [],
            "data": {"keys": ["a", "b/"], "servers": [{"node_id": "n1", "voter": true}]},
        });
        let expected = "data:\n  keys:\n  - a\n  - b/\n  servers:\n  - node_id: n1\n    voter: true\nempty: {}\n\
                        lease_duration: 0\nnone: []\nrequest_id: r\nwarnings: null";
        assert_eq!(render(&value), expected);
    }

    #[test]
    fn texts_that_read_as_something_else_are_quoted() {
        for (text, yaml) in [
            ("n", "\"n\""),
            ("true", "\"true\""),
            ("12", "\"12\""),
            ("", "\"\""),
            ("2026-11-22T10:00:00Z", "\"2026-11-22T10:00:00Z\""),
            ("a: b", "'a: b'"),
            ("it's", "it's"),
            ("@x", "'@x'"),
            ("*'", "'*'''"),
            ("-x", "-x"),
            ("a\tb", "\"a\\tb\""),
            ("plain text", "plain text"),
            ("s.abc/1", "s.abc/1"),
        ] {
            assert_eq!(render(&json!(text)), yaml, "{text:?}");
        }
    }

    #[test]
    fn lines_are_kept_in_literal_blocks() {
        assert_eq!(render(&json!({"a": "x\ny\n"})), "a: |\n  x\n  y");
        assert_eq!(render(&json!({"a": "x\n\ny"})), "a: |-\n  x\n\n  y");
    }
}
