//! The data arguments of `write`, `kv put` and `login`: `key=value` pairs, files, and the standard input.

use serde_json::{Map, Value};
use zeroize::Zeroizing;

use super::ui::Ui;

/// Parses data arguments into one object.
///
/// `k=v` is text, split at the first `=`; `k=@file` a file's contents; `k=\@x` the text `@x`; `k=-` the
/// standard input; `@file` and `-` are whole JSON objects. A key given again becomes a list.
///
/// # Errors
/// The text behind `Failed to parse K=V data: `.
pub fn parse(args: &[String], ui: &mut Ui<'_>) -> Result<Map<String, Value>, String> {
    let mut data = Map::new();
    for arg in args {
        add(&mut data, arg, ui).map_err(|why| format!("invalid key/value pair {arg:?}: {why}"))?;
    }
    Ok(data)
}

/// Parses the like of `-options k=v` and `login` arguments, all of whose values are single texts.
///
/// # Errors
/// As [`parse`]; also for a key that is given twice or has a value that is no text.
pub fn parse_texts(args: &[String], ui: &mut Ui<'_>) -> Result<Vec<(String, Zeroizing<String>)>, String> {
    parse(args, ui)?
        .into_iter()
        .map(|(key, value)| match value {
            Value::String(text) => Ok((key, Zeroizing::new(text))),
            _ => Err(format!("{key:?} must be given once, as a text")),
        })
        .collect()
}

fn add(data: &mut Map<String, Value>, arg: &str, ui: &mut Ui<'_>) -> Result<(), String> {
    if arg == "-" {
        let bytes = input(ui)?;
        return merge(data, &bytes);
    }
    if let Some(path) = arg.strip_prefix('@') {
        return merge(data, &file(path)?);
    }
    let (key, value) = arg.split_once('=').ok_or("format must be key=value")?;
    let text = match value {
        "-" => text_of(input(ui)?)?,
        _ if value.starts_with('@') => text_of(file(&value[1..])?)?,
        _ if value.starts_with("\\@") => value[1..].to_owned(),
        _ => value.to_owned(),
    };
    insert(data, key, Value::String(text));
    Ok(())
}

fn insert(data: &mut Map<String, Value>, key: &str, new: Value) {
    match data.get_mut(key) {
        None => {
            data.insert(key.to_owned(), new);
        }
        Some(Value::Array(values)) => values.push(new),
        Some(first) => {
            let values = vec![first.take(), new];
            *first = Value::Array(values);
        }
    }
}

fn merge(data: &mut Map<String, Value>, json: &[u8]) -> Result<(), String> {
    let fields: Map<String, Value> = serde_json::from_slice(json).map_err(|error| error.to_string())?;
    for (key, value) in fields {
        insert(data, &key, value);
    }
    Ok(())
}

fn input(ui: &mut Ui<'_>) -> Result<Zeroizing<Vec<u8>>, String> {
    let bytes = ui.read_input().map_err(|error| format!("error reading from stdin: {error}"))?;
    if bytes.is_empty() { Err("EOF".to_owned()) } else { Ok(bytes) }
}

/// A file's contents, its error worded as Go's.
///
/// # Errors
/// `error reading file: open F: no such file or directory` and the like.
pub fn file(path: &str) -> Result<Zeroizing<Vec<u8>>, String> {
    std::fs::read(path).map(Zeroizing::new).map_err(|error| {
        let text = error.to_string();
        let cause = text.split(" (os error").next().unwrap_or_default().to_lowercase();
        format!("error reading file: open {path}: {cause}")
    })
}

fn text_of(bytes: Zeroizing<Vec<u8>>) -> Result<String, String> {
    String::from_utf8(bytes.to_vec())
        .map_err(|_| "the value is not UTF-8; encode it, for example as base64".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn parsed(args: &[&str], stdin: &str) -> Result<Value, String> {
        let args: Vec<_> = args.iter().map(|arg| arg.to_string()).collect();
        let mut ui = Ui::new(stdin.as_bytes(), std::io::sink(), std::io::sink());
        parse(&args, &mut ui).map(Value::Object)
    }

    #[test]
    fn pairs_are_texts_split_at_the_first_sign() {
        assert_eq!(
            parsed(&["a=1", "b=x=y", "c=", "d=\\@x"], ""),
            Ok(json!({"a": "1", "b": "x=y", "c": "", "d": "@x"}))
        );
    }

    #[test]
    fn a_repeated_key_is_a_list() {
        assert_eq!(parsed(&["a=1", "a=2", "a=3"], ""), Ok(json!({"a": ["1", "2", "3"]})));
    }

    #[test]
    fn files_keep_their_newline_and_objects_are_merged() {
        let directory = tempfile::tempdir().unwrap();
        let text = directory.path().join("text");
        let object = directory.path().join("object");
        std::fs::write(&text, "line\n").unwrap();
        std::fs::write(&object, r#"{"n": 2.50, "l": [1]}"#).unwrap();
        let args = [format!("a=@{}", text.display()), format!("@{}", object.display())];
        let result = parsed(&[&args[0], &args[1]], "").unwrap();
        assert_eq!(result.to_string(), r#"{"a":"line\n","l":[1],"n":2.50}"#);
    }

    #[test]
    fn the_standard_input_is_a_value_or_an_object() {
        assert_eq!(parsed(&["a=-"], "v\n"), Ok(json!({"a": "v\n"})));
        assert_eq!(parsed(&["-", "b=2"], r#"{"a": true}"#), Ok(json!({"a": true, "b": "2"})));
    }

    #[test]
    fn errors_name_the_argument() {
        assert_eq!(
            parsed(&["x"], ""),
            Err("invalid key/value pair \"x\": format must be key=value".to_owned())
        );
        assert_eq!(parsed(&["-"], ""), Err("invalid key/value pair \"-\": EOF".to_owned()));
        assert_eq!(
            parsed(&["a=@/nonexistent/x"], ""),
            Err("invalid key/value pair \"a=@/nonexistent/x\": error reading file: open /nonexistent/x: \
                 no such file or directory"
                .to_owned())
        );
    }
}
