//! How results are shown: tables for people, JSON and YAML for programs.

mod json;
mod table;
mod value;
mod yaml;

use serde_json::{Map, Value};

pub use table::{key_value_rows, map_table, narrow_table, section, table, title};
pub use value::{go, go_quoted_list, looks_like_duration, short_duration};

use super::ui::Ui;

/// The formats of `-format`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Columns for people.
    Table,
    /// JSON, two spaces deep.
    Json,
    /// YAML, keys sorted.
    Yaml,
    /// The HTTP body as it came; few commands have it.
    Raw,
    /// Text made for people, of the few results that have one.
    Pretty,
}

impl Format {
    /// The format of that name, in any case.
    pub fn parse(name: &str) -> Option<Format> {
        Some(match name.to_ascii_lowercase().as_str() {
            "table" => Format::Table,
            "json" => Format::Json,
            "yaml" | "yml" => Format::Yaml,
            "raw" => Format::Raw,
            "pretty" => Format::Pretty,
            _ => return None,
        })
    }
}

/// A JSON document whose objects keep the order they were built in.
///
/// Scripts read keys by name, but people compare transcripts: where Vault's order is fixed, so is ours.
#[derive(Debug, Clone)]
pub enum Document {
    /// Anything as it was parsed; the keys of objects come out sorted.
    Value(Value),
    /// An object with its keys in this order.
    Object(Vec<(String, Document)>),
    /// A list of such.
    List(Vec<Document>),
}

impl Document {
    /// An object from name and value pairs.
    pub fn object<N: Into<String>, D: Into<Document>>(fields: impl IntoIterator<Item = (N, D)>) -> Document {
        Document::Object(fields.into_iter().map(|(name, value)| (name.into(), value.into())).collect())
    }

    /// The same with all keys sorted, for the formats that sort anyway.
    fn into_value(self) -> Value {
        match self {
            Document::Value(value) => value,
            Document::List(items) => items.into_iter().map(Document::into_value).collect(),
            Document::Object(fields) => {
                let fields = fields.into_iter().map(|(name, value)| (name, value.into_value()));
                Value::Object(fields.collect::<Map<_, _>>())
            }
        }
    }

    /// The document as text, without a newline at its end.
    ///
    /// # Errors
    /// The text for people, where the format has no form for documents.
    pub fn render(self, format: Format) -> Result<String, String> {
        match format {
            Format::Json => Ok(json::render(&self)),
            Format::Yaml => Ok(yaml::render(&self.into_value())),
            Format::Table => Ok(table::of_value(&self.into_value())),
            Format::Raw => Err("This command does not support the -format=raw option.".to_owned()),
            Format::Pretty => {
                Err("Could not parse output: cannot use the pretty formatter for this type".to_owned())
            }
        }
    }
}

impl<T: Into<Value>> From<T> for Document {
    fn from(value: T) -> Document {
        Document::Value(value.into())
    }
}

/// Prints a document and gives the exit code.
pub fn print(ui: &mut Ui<'_>, format: Format, document: Document) -> i32 {
    match document.render(format) {
        Ok(text) => {
            if !text.is_empty() {
                ui.output(&text);
            }
            0
        }
        Err(why) => {
            ui.error(&why);
            1
        }
    }
}

/// Prints one field's bare value, for `-field`, and gives the exit code.
pub fn print_field(ui: &mut Ui<'_>, format: Format, field: &str, value: Option<&Value>) -> i32 {
    let Some(value) = value.filter(|value| !value.is_null()) else {
        ui.error(&format!("Field {field:?} not present in secret"));
        return 1;
    };
    match format {
        Format::Table | Format::Raw | Format::Pretty => ui.output_raw(&go(value)),
        Format::Json => ui.output_raw(&json::render(&Document::Value(value.clone()))),
        Format::Yaml => ui.output_raw(&format!("{}\n", yaml::render(value))),
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn field(format: Format, value: &Value) -> (i32, String) {
        let mut out = Vec::new();
        let code =
            print_field(&mut Ui::new(std::io::empty(), &mut out, std::io::sink()), format, "x", Some(value));
        (code, String::from_utf8(out).unwrap())
    }

    #[test]
    fn a_field_is_printed_bare() {
        assert_eq!(field(Format::Table, &json!("a\n")), (0, "a\n".to_owned()));
        assert_eq!(field(Format::Table, &json!({"b": [1, "x"]})), (0, "map[b:[1 x]]".to_owned()));
        assert_eq!(field(Format::Json, &json!("a<b")), (0, "\"a\\u003cb\"".to_owned()));
        assert_eq!(field(Format::Yaml, &json!("n")), (0, "\"n\"\n".to_owned()));
        assert_eq!(field(Format::Table, &Value::Null), (1, String::new()));
    }

    #[test]
    fn formats_are_named_in_any_case() {
        assert_eq!(Format::parse("JSON"), Some(Format::Json));
        assert_eq!(Format::parse("bogus"), None);
    }
}
