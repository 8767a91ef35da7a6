//! JSON as Go's `json.MarshalIndent` writes it, HTML characters escaped.

use serde_json::Value;

use super::Document;

/// The document, two spaces deep.
pub fn render(document: &Document) -> String {
    let mut out = String::new();
    write_document(&mut out, document, 0);
    out
}

fn write_document(out: &mut String, document: &Document, depth: usize) {
    match document {
        Document::Value(value) => write_value(out, value, depth),
        Document::Object(fields) => {
            let fields = fields.iter().map(|(name, value)| (Some(name.as_str()), value));
            write_items(out, ('{', '}'), fields, depth, write_document);
        }
        Document::List(items) => {
            write_items(out, ('[', ']'), items.iter().map(|item| (None, item)), depth, write_document);
        }
    }
}

fn write_value(out: &mut String, value: &Value, depth: usize) {
    match value {
        Value::String(text) => write_text(out, text),
        Value::Array(items) => {
            write_items(out, ('[', ']'), items.iter().map(|item| (None, item)), depth, write_value);
        }
        Value::Object(fields) => {
            let fields = fields.iter().map(|(name, value)| (Some(name.as_str()), value));
            write_items(out, ('{', '}'), fields, depth, write_value);
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => out.push_str(&value.to_string()),
    }
}

fn write_items<'a, T: 'a>(
    out: &mut String,
    (open, close): (char, char),
    items: impl Iterator<Item = (Option<&'a str>, &'a T)>,
    depth: usize,
    write: fn(&mut String, &T, usize),
) {
    out.push(open);
    let mut any = false;
    for (name, item) in items {
        out.push_str(if any { ",\n" } else { "\n" });
        any = true;
        out.push_str(&"  ".repeat(depth + 1));
        if let Some(name) = name {
            write_text(out, name);
            out.push_str(": ");
        }
        write(out, item, depth + 1);
    }
    if any {
        out.push('\n');
        out.push_str(&"  ".repeat(depth));
    }
    out.push(close);
}

fn write_text(out: &mut String, text: &str) {
    out.push('"');
    for character in text.chars() {
        match character {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\x08' => out.push_str("\\b"),
            '\x0c' => out.push_str("\\f"),
            '\0'..='\x1f' | '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => {
                out.push_str(&format!("\\u{:04x}", u32::from(character)));
            }
            _ => out.push(character),
        }
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn documents_keep_their_order_and_values_are_sorted() {
        let document = Document::object([
            ("request_id", Document::from("r")),
            ("data", Document::from(json!({"b": [], "a": {"x": [1, "<é>"]}}))),
            ("warnings", Document::from(Value::Null)),
        ]);
        let expected = r#"{
  "request_id": "r",
  "data": {
    "a": {
      "x": [
        1,
        "\u003cé\u003e"
      ]
    },
    "b": []
  },
  "warnings": null
}"#;
        assert_eq!(render(&document), expected);
    }

    #[test]
    fn numbers_stay_as_they_were_sent() {
        let value: Value = serde_json::from_str("[2.50, 12345678901234567890123, 1e400]").unwrap();
        assert_eq!(
            render(&value.into()).split_whitespace().collect::<String>(),
            "[2.50,12345678901234567890123,1e+400]"
        );
    }

    #[test]
    fn control_characters_are_escaped() {
        assert_eq!(render(&"a\"\\\n\u{1}&".into()), r#""a\"\\\n\u0001\u0026""#);
    }
}
