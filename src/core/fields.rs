//! Reads the fields of a request with Vault's weak conversions: numbers and bools may come as text, a scalar
//! may stand for a list, a number for text. Errors name the field and the kind, never the value.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::{error::ApiError, time::parse_duration_s};

/// Most names in a warning.
const MAX_SHOWN: usize = 20;
/// Longest name in a warning.
const MAX_SHOWN_BYTES: usize = 128;

/// The fields of one request.
pub struct Fields<'a>(pub &'a Map<String, Value>);

impl<'a> Fields<'a> {
    /// The value as it was sent; `null` counts as absent.
    pub fn value(&self, name: &str) -> Option<&'a Value> {
        self.0.get(name).filter(|value| !value.is_null())
    }

    /// Text.
    pub fn text(&self, name: &str) -> Result<Option<String>, ApiError> {
        self.value(name).map(|value| scalar_text(value).ok_or_else(|| wrong(name, "string"))).transpose()
    }

    /// Text, empty when absent.
    pub fn text_or_empty(&self, name: &str) -> Result<String, ApiError> {
        Ok(self.text(name)?.unwrap_or_default())
    }

    /// An integer.
    pub fn integer(&self, name: &str) -> Result<Option<i64>, ApiError> {
        self.value(name).map(|value| integer(value).ok_or_else(|| wrong(name, "integer"))).transpose()
    }

    /// An integer that is not negative, 0 when absent.
    pub fn count(&self, name: &str) -> Result<u64, ApiError> {
        let number = self.integer(name)?.unwrap_or(0);
        u64::try_from(number).map_err(|_| wrong(name, "non-negative integer"))
    }

    /// A bool.
    pub fn flag(&self, name: &str) -> Result<Option<bool>, ApiError> {
        self.value(name).map(|value| flag(value).ok_or_else(|| wrong(name, "bool"))).transpose()
    }

    /// A duration in seconds.
    pub fn duration_s(&self, name: &str) -> Result<Option<i64>, ApiError> {
        self.value(name)
            .map(|value| parse_duration_s(value).ok_or_else(|| wrong(name, "duration")))
            .transpose()
    }

    /// A list of texts; one text may be a list separated by commas.
    pub fn texts(&self, name: &str) -> Result<Option<Vec<String>>, ApiError> {
        let Some(value) = self.value(name) else {
            return Ok(None);
        };
        let texts = match value {
            Value::Array(items) => items.iter().map(scalar_text).collect::<Option<Vec<_>>>(),
            other => scalar_text(other).map(|text| {
                text.split(',').map(|part| part.trim().to_owned()).filter(|part| !part.is_empty()).collect()
            }),
        };
        texts.map(Some).ok_or_else(|| wrong(name, "list"))
    }

    /// A map of text to text.
    pub fn text_map(&self, name: &str) -> Result<Option<BTreeMap<String, String>>, ApiError> {
        let Some(value) = self.value(name) else {
            return Ok(None);
        };
        let Value::Object(map) = value else {
            return Err(wrong(name, "map"));
        };
        let pairs = map.iter().map(|(key, value)| Some((key.clone(), scalar_text(value)?)));
        pairs.collect::<Option<_>>().map(Some).ok_or_else(|| wrong(name, "map of strings"))
    }

    /// An object.
    pub fn object(&self, name: &str) -> Result<Option<&'a Map<String, Value>>, ApiError> {
        match self.value(name) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(map)),
            Some(_) => Err(wrong(name, "map")),
        }
    }

    /// The warning for fields that an endpoint does not know, if there are any.
    pub fn unknown_warning(&self, known: &[&str]) -> Vec<String> {
        // The names are the client's own and go back to it alone; they are in order because the map is. The
        // warning is part of what is replicated, so it does not grow with what was sent.
        let unknown: Vec<&str> = self
            .0
            .keys()
            .map(String::as_str)
            .filter(|name| !known.contains(name) && name.len() <= MAX_SHOWN_BYTES)
            .take(MAX_SHOWN)
            .collect();
        if unknown.is_empty() {
            return Vec::new();
        }
        vec![format!("Endpoint ignored these unrecognized parameters: [{}]", unknown.join(" "))]
    }
}

fn wrong(name: &str, kind: &str) -> ApiError {
    ApiError::invalid(format!("error converting input for field \"{name}\": expected {kind}"))
}

fn scalar_text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(true) => Some("1".to_owned()),
        Value::Bool(false) => Some("0".to_owned()),
        Value::Null => Some(String::new()),
        Value::Array(_) | Value::Object(_) => None,
    }
}

/// An integer, also as text; text that is empty is 0.
pub fn integer(value: &Value) -> Option<i64> {
    match value {
        Value::Number(number) => number.as_i64(),
        Value::String(text) if text.is_empty() => Some(0),
        Value::String(text) => text.trim().parse().ok(),
        Value::Bool(flag) => Some(i64::from(*flag)),
        _ => None,
    }
}

fn flag(value: &Value) -> Option<bool> {
    match value {
        Value::Bool(flag) => Some(*flag),
        Value::Number(number) => number.as_i64().map(|number| number != 0),
        Value::String(text) => parse_bool(text),
        _ => None,
    }
}

/// A bool in any of Go's spellings; empty is false.
pub fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" | "" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::response::text_to_map;

    #[test]
    fn values_are_converted_weakly() {
        let map = text_to_map(
            r#"{"n":"7","b":"true","l":"1","ls":"a, b","m":{"a":1},"t":5,"d":"1m","z":null,"x":[2,"3"]}"#,
        )
        .unwrap();
        let fields = Fields(&map);
        assert_eq!(fields.integer("n"), Ok(Some(7)));
        assert_eq!(fields.flag("b"), Ok(Some(true)));
        assert_eq!(fields.texts("l").unwrap().unwrap(), ["1"]);
        assert_eq!(fields.texts("ls").unwrap().unwrap(), ["a", "b"]);
        assert_eq!(fields.texts("x").unwrap().unwrap(), ["2", "3"]);
        assert_eq!(fields.text_map("m").unwrap().unwrap()["a"], "1");
        assert_eq!(fields.text("t").unwrap().unwrap(), "5");
        assert_eq!(fields.duration_s("d"), Ok(Some(60)));
        assert_eq!(fields.text("z"), Ok(None));
        assert_eq!(fields.count("absent"), Ok(0));
    }

    #[test]
    fn a_wrong_value_is_named_by_its_field_only() {
        let map = text_to_map(r#"{"max_versions":"hunter2"}"#).unwrap();
        let error = Fields(&map).integer("max_versions").unwrap_err().to_string();
        assert!(error.contains("max_versions") && !error.contains("hunter2"), "{error}");
    }
}
