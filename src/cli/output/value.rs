//! Single values as Go's `fmt` prints them.

use serde_json::Value;

use crate::cli::duration::GoDuration;

/// A value in Go's `%v` form: `map[a:b]`, `[x y]`, `<nil>`, numbers as they were sent.
pub fn go(value: &Value) -> String {
    match value {
        Value::Null => "<nil>".to_owned(),
        Value::Bool(value) => value.to_string(),
        Value::Number(number) => number.to_string(),
        Value::String(text) => text.clone(),
        Value::Array(items) => format!("[{}]", items.iter().map(go).collect::<Vec<_>>().join(" ")),
        Value::Object(fields) => {
            let fields: Vec<_> = fields.iter().map(|(name, value)| format!("{name}:{}", go(value))).collect();
            format!("map[{}]", fields.join(" "))
        }
    }
}

/// A list of texts in Go's `%q` form: `["a" "b"]`; anything else is the empty list.
pub fn go_quoted_list(value: Option<&Value>) -> String {
    let texts = value.and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let texts: Vec<_> = texts.iter().map(|text| format!("{:?}", text.as_str().unwrap_or_default())).collect();
    format!("[{}]", texts.join(" "))
}

/// Whether a field's name says that its number counts seconds.
pub fn looks_like_duration(name: &str) -> bool {
    ["period", "duration", "ttl"].iter().any(|unit| {
        let front = name.strip_suffix(unit);
        front.is_some_and(|front| front.is_empty() || front.ends_with('_'))
    }) || matches!(name, "lease_max" | "ttl_max")
}

/// A whole number of seconds in the short form; anything else in Go's form.
pub fn short_duration(value: &Value) -> String {
    match value.as_i64() {
        Some(seconds) => GoDuration::from_secs(seconds).short(),
        None => go(value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn values_print_in_go_syntax() {
        let value: Value =
            serde_json::from_str(r#"{"b":[1,"x",null],"a":{"n":2.50},"c":12345678901234567890123}"#).unwrap();
        assert_eq!(go(&value), "map[a:map[n:2.50] b:[1 x <nil>] c:12345678901234567890123]");
        assert_eq!(go(&json!({})), "map[]");
        assert_eq!(go_quoted_list(Some(&json!(["default", "p\"a"]))), r#"["default" "p\"a"]"#);
        assert_eq!(go_quoted_list(None), "[]");
    }

    #[test]
    fn only_names_of_durations_are_durations() {
        for name in ["ttl", "explicit_max_ttl", "period", "lease_duration"] {
            assert!(looks_like_duration(name), "{name}");
        }
        for name in ["creation_time", "throttl", "subttl", "expire_time"] {
            assert!(!looks_like_duration(name), "{name}");
        }
        assert_eq!(short_duration(&json!(3600)), "1h");
        assert_eq!(short_duration(&json!("3600")), "3600");
    }
}
