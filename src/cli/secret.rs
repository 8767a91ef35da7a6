//! The envelope of an API answer: how it is parsed, and how each format shows it.

use serde_json::{Map, Value};

use super::output::{self, Document, Format};
use super::time::Timestamp;
use super::ui::Ui;

/// A parsed answer.
///
/// It may hold secrets; the JSON library's copies of them cannot be wiped, and the process ends with them.
#[derive(Default)]
pub struct Secret {
    request_id: String,
    lease_id: String,
    lease_duration: i64,
    renewable: bool,
    /// The answer's `data`; `None` for null or for anything but an object.
    pub data: Option<Map<String, Value>>,
    warnings: Option<Vec<String>>,
    auth: Option<Map<String, Value>>,
    wrap_info: Option<Map<String, Value>>,
}

impl Secret {
    /// Parses an envelope; unknown keys are ignored, missing ones are empty.
    ///
    /// # Errors
    /// What the JSON parser says.
    pub fn parse(body: &[u8]) -> Result<Secret, serde_json::Error> {
        let mut fields: Map<String, Value> = serde_json::from_slice(body)?;
        let mut object = |name: &str| match fields.remove(name) {
            Some(Value::Object(fields)) => Some(fields),
            _ => None,
        };
        let (data, auth, wrap_info) = (object("data"), object("auth"), object("wrap_info"));
        let text = |name: &str| fields.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
        let warnings = fields.get("warnings").and_then(Value::as_array);
        let warnings = warnings.map(|list| list.iter().map(output::go).collect());
        Ok(Secret {
            request_id: text("request_id"),
            lease_id: text("lease_id"),
            lease_duration: fields.get("lease_duration").and_then(Value::as_i64).unwrap_or(0),
            renewable: fields.get("renewable").and_then(Value::as_bool).unwrap_or(false),
            data,
            warnings,
            auth,
            wrap_info,
        })
    }

    /// An answer that consists of an `auth` block only.
    pub fn of_auth(auth: Map<String, Value>) -> Secret {
        Secret { auth: Some(auth), ..Secret::default() }
    }

    /// Whether the answer is a wrapping token in place of the real one.
    pub fn is_wrapped(&self) -> bool {
        self.wrap_info
            .as_ref()
            .and_then(|wrap| wrap.get("ttl"))
            .and_then(Value::as_i64)
            .is_some_and(|ttl| ttl != 0)
    }

    /// Whether there are warnings in it.
    pub fn has_warnings(&self) -> bool {
        self.warnings.as_ref().is_some_and(|warnings| !warnings.is_empty())
    }

    /// The `auth` block.
    pub fn auth(&self) -> Option<&Map<String, Value>> {
        self.auth.as_ref()
    }

    /// The names in a list's answer.
    pub fn keys(&self) -> Option<&Vec<Value>> {
        self.data.as_ref()?.get("keys")?.as_array()
    }

    /// The value that `-field` names: the special names of lease, token and wrapping first, then the data.
    pub fn field(&self, name: &str) -> Option<Value> {
        let auth = |key: &str| self.auth.as_ref().and_then(|auth| auth.get(key)).cloned();
        let wrap = |key: &str| self.wrap_info.as_ref().and_then(|wrap| wrap.get(key)).cloned();
        let special = match name {
            "token" => auth("client_token"),
            "token_accessor" => auth("accessor"),
            "token_duration" => auth("lease_duration"),
            "token_renewable" => auth("renewable"),
            "token_policies" => auth("token_policies"),
            "identity_policies" => auth("identity_policies"),
            "policies" => auth("policies"),
            "wrapping_token" => wrap("token"),
            "wrapping_accessor" => wrap("accessor"),
            "wrapping_token_ttl" => wrap("ttl"),
            "wrapping_token_creation_time" => {
                wrap("creation_time").as_ref().map(creation_time).map(Value::from)
            }
            "wrapping_token_creation_path" => wrap("creation_path"),
            "wrapped_accessor" => wrap("wrapped_accessor"),
            "lease_duration" | "refresh_interval" => Some(self.lease_duration.into()),
            "lease_id" => Some(self.lease_id.clone().into()),
            "lease_renewable" => Some(self.renewable.into()),
            _ => None,
        };
        special.or_else(|| self.data.as_ref().and_then(|data| data.get(name)).cloned())
    }

    /// Prints the warnings to the stream of errors.
    pub fn print_warnings(&self, ui: &mut Ui<'_>) {
        ui.server_warnings(self.warnings.as_deref().unwrap_or_default());
    }

    /// Prints the answer and its warnings, and gives the exit code.
    pub fn print(self, ui: &mut Ui<'_>, format: Format) -> i32 {
        self.print_warnings(ui);
        match format {
            Format::Table => {
                let rows = self.rows();
                if !rows.is_empty() {
                    ui.output(&output::table(&["Key", "Value"], &rows));
                }
                0
            }
            _ => output::print(ui, format, self.into_document()),
        }
    }

    fn rows(&self) -> Vec<Vec<String>> {
        let mut rows: Vec<(String, String)> = Vec::new();
        if self.lease_duration > 0 {
            let duration = output::short_duration(&self.lease_duration.into());
            if self.lease_id.is_empty() {
                // A secret without a lease: the number only says how often to look again.
                rows.push(("refresh_interval".into(), duration));
            } else {
                rows.push(("lease_id".into(), self.lease_id.clone()));
                rows.push(("lease_duration".into(), duration));
                rows.push(("lease_renewable".into(), self.renewable.to_string()));
            }
        }
        rows.extend(self.auth.iter().flat_map(auth_rows));
        rows.extend(self.wrap_info.iter().flat_map(wrap_rows));
        for (name, value) in self.data.iter().flatten() {
            let duration = output::looks_like_duration(name);
            let shown = if duration { output::short_duration(value) } else { output::go(value) };
            rows.push((name.clone(), shown));
        }
        rows.into_iter().map(|(name, value)| vec![name, value]).collect()
    }

    /// The answer in the key order of Vault's own JSON output.
    fn into_document(self) -> Document {
        let mut fields: Vec<(&str, Document)> = vec![
            ("request_id", self.request_id.into()),
            ("lease_id", self.lease_id.into()),
            ("lease_duration", self.lease_duration.into()),
            ("renewable", self.renewable.into()),
            ("data", self.data.map_or(Value::Null, Value::Object).into()),
            ("warnings", self.warnings.map_or(Value::Null, Value::from).into()),
        ];
        if let Some(auth) = &self.auth {
            fields.push(("auth", ordered(auth, &AUTH_KEYS)));
        }
        if let Some(wrap) = &self.wrap_info {
            fields.push(("wrap_info", ordered(wrap, &WRAP_KEYS)));
        }
        Document::object(fields)
    }
}

/// What stands for a key that the server left out.
type Absent = fn() -> Value;

const NOTHING: Absent = || Value::Null;
const NO_TEXT: Absent = || Value::from("");
const ZERO: Absent = || Value::from(0);
const NO: Absent = || Value::from(false);

const AUTH_KEYS: [(&str, Absent); 11] = [
    ("client_token", NO_TEXT),
    ("accessor", NO_TEXT),
    ("policies", NOTHING),
    ("token_policies", NOTHING),
    ("identity_policies", NOTHING),
    ("metadata", NOTHING),
    ("orphan", NO),
    ("entity_id", NO_TEXT),
    ("lease_duration", ZERO),
    ("renewable", NO),
    ("mfa_requirement", NOTHING),
];

const WRAP_KEYS: [(&str, Absent); 6] = [
    ("token", NO_TEXT),
    ("accessor", NO_TEXT),
    ("ttl", ZERO),
    ("creation_time", NO_TEXT),
    ("creation_path", NO_TEXT),
    ("wrapped_accessor", NO_TEXT),
];

fn ordered(fields: &Map<String, Value>, keys: &[(&str, Absent)]) -> Document {
    let field = |(name, absent): &(&str, Absent)| {
        ((*name).to_owned(), Document::Value(fields.get(*name).cloned().unwrap_or_else(absent)))
    };
    Document::Object(keys.iter().map(field).collect())
}

fn auth_rows(auth: &Map<String, Value>) -> Vec<(String, String)> {
    let text = |key: &str| auth.get(key).map(output::go).unwrap_or_default();
    let duration = match auth.get("lease_duration").and_then(Value::as_i64) {
        // A root token does not run out.
        None | Some(0) => "∞".to_owned(),
        Some(seconds) => output::short_duration(&seconds.into()),
    };
    let renewable = auth.get("renewable").and_then(Value::as_bool).unwrap_or(false);
    let mut rows = vec![
        ("token".to_owned(), text("client_token")),
        ("token_accessor".to_owned(), text("accessor")),
        ("token_duration".to_owned(), duration),
        ("token_renewable".to_owned(), renewable.to_string()),
    ];
    for list in ["token_policies", "identity_policies", "policies"] {
        rows.push((list.to_owned(), output::go_quoted_list(auth.get(list))));
    }
    for (name, value) in auth.get("metadata").and_then(Value::as_object).into_iter().flatten() {
        rows.push((format!("token_meta_{name}"), output::go(value)));
    }
    rows
}

fn wrap_rows(wrap: &Map<String, Value>) -> Vec<(String, String)> {
    let text = |key: &str| wrap.get(key).map(output::go).unwrap_or_default();
    let mut rows = vec![
        ("wrapping_token:", text("token")),
        ("wrapping_accessor:", text("accessor")),
        ("wrapping_token_ttl:", wrap.get("ttl").map(output::short_duration).unwrap_or_default()),
        ("wrapping_token_creation_time:", wrap.get("creation_time").map(creation_time).unwrap_or_default()),
        ("wrapping_token_creation_path:", text("creation_path")),
    ];
    if !text("wrapped_accessor").is_empty() {
        rows.push(("wrapped_accessor:", text("wrapped_accessor")));
    }
    rows.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

fn creation_time(value: &Value) -> String {
    let text = output::go(value);
    Timestamp::parse(&text).map_or(text, |time| time.go())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn printed(body: &str, format: Format) -> (String, String) {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let secret = Secret::parse(body.as_bytes()).unwrap();
        assert_eq!(secret.print(&mut Ui::new(std::io::empty(), &mut out, &mut err), format), 0);
        (String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap())
    }

    const READ: &str = r#"{"request_id":"r-1","lease_id":"","renewable":false,"lease_duration":2764800,
        "data":{"z":"1","a":{"n":2.50}},"wrap_info":null,"warnings":["look out"],"auth":null}"#;

    #[test]
    fn a_secret_is_a_table_with_its_interval_first() {
        let (out, err) = printed(READ, Format::Table);
        let expected = "\
Key                 Value
---                 -----
refresh_interval    768h
a                   map[n:2.50]
z                   1
";
        assert_eq!(out, expected);
        assert_eq!(err, "WARNING! The following warnings were returned from Vault:\n\n  * look out\n\n");
    }

    #[test]
    fn json_has_the_order_of_vault() {
        let (out, err) = printed(READ, Format::Json);
        let expected = r#"{
  "request_id": "r-1",
  "lease_id": "",
  "lease_duration": 2764800,
  "renewable": false,
  "data": {
    "a": {
      "n": 2.50
    },
    "z": "1"
  },
  "warnings": [
    "look out"
  ]
}
"#;
        assert_eq!(out, expected);
        assert!(err.contains("look out"));
    }

    const LOGIN: &str = r#"{"request_id":"r","auth":{"client_token":"s.x","accessor":"acc","policies":["root"],
        "token_policies":["root"],"metadata":{"user":"u"},"lease_duration":0,"renewable":false}}"#;

    #[test]
    fn an_auth_block_has_its_own_rows_and_order() {
        let (out, _) = printed(LOGIN, Format::Table);
        let expected = "\
Key                  Value
---                  -----
token                s.x
token_accessor       acc
token_duration       ∞
token_renewable      false
token_policies       [\"root\"]
identity_policies    []
policies             [\"root\"]
token_meta_user      u
";
        assert_eq!(out, expected);
        let (out, _) = printed(LOGIN, Format::Json);
        let keys: Vec<_> = out.lines().filter_map(|line| line.strip_prefix("    \"")).collect();
        let keys: Vec<_> = keys.iter().filter_map(|line| line.split('"').next()).collect();
        assert_eq!(
            keys.join(" "),
            "client_token accessor policies token_policies identity_policies metadata orphan entity_id \
             lease_duration renewable mfa_requirement"
        );
    }

    #[test]
    fn wrapping_labels_keep_their_colon() {
        let (out, _) = printed(
            r#"{"wrap_info":{"token":"s.w","accessor":"a","ttl":60,"creation_time":"2026-11-22T10:55:56.6Z",
                "creation_path":"secret/data/a"}}"#,
            Format::Table,
        );
        assert!(out.contains("wrapping_token_ttl:              1m\n"), "{out}");
        assert!(out.contains("wrapping_token_creation_time:    2026-11-22 10:55:56.6 +0000 UTC\n"), "{out}");
        assert!(!out.contains("wrapped_accessor"));
    }

    #[test]
    fn fields_are_looked_up_by_their_special_names_first() {
        let secret = Secret::parse(LOGIN.as_bytes()).unwrap();
        assert_eq!(secret.field("token"), Some("s.x".into()));
        assert_eq!(secret.field("token_duration"), Some(0.into()));
        assert_eq!(secret.field("wrapping_token"), None);
        assert_eq!(Secret::parse(READ.as_bytes()).unwrap().field("z"), Some("1".into()));
    }
}
