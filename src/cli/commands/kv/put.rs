//! `kv put`.

use serde_json::{Map, Value, json};

use super::super::logical::print_or_field;
use super::mount::Place;
use crate::cli::output::{self, Format};
use crate::cli::secret::Secret;
use crate::cli::{Invocation, Outcome, data};

pub fn run(invocation: &mut Invocation<'_, '_>) -> Outcome {
    match invocation.args.len() {
        0 => return Err(invocation.fail("Not enough arguments (expected >1, got 0)")),
        1 => return Err(invocation.fail("Must supply data")),
        _ => {}
    }
    let data = data::parse(&invocation.args[1..], invocation.ui)
        .map_err(|why| invocation.fail(&format!("Failed to parse K=V data: {why}")))?;
    let session = invocation.session()?;
    let place = Place::find(invocation, &session)?;
    let path = place.path("data");
    let body = body(data, place.versioned, invocation.flags.int("cas"));
    let answer = session.send("PUT", &path, Some(&body));
    let answer =
        answer.map_err(|error| invocation.refused(&format!("Error writing data to {path}"), &error))?;
    let Some(secret) = answer else {
        return Ok(invocation.success(&format!("Success! Data written to: {path}")));
    };
    let as_table =
        invocation.format == Format::Table && !secret.is_wrapped() && !invocation.flags.has("field");
    if !as_table || !place.versioned {
        return Ok(print_or_field(invocation, secret));
    }
    Ok(print_sections(invocation, secret, &path, "Secret Path"))
}

fn body(data: Map<String, Value>, versioned: bool, cas: Option<i64>) -> Value {
    if !versioned {
        return Value::Object(data);
    }
    let options = match cas {
        Some(version) if version >= 0 => json!({"cas": version}),
        _ => json!({}),
    };
    json!({"data": data, "options": options})
}

/// A path section and a metadata section, the answer to everything that changes a version.
pub fn print_sections(invocation: &mut Invocation<'_, '_>, secret: Secret, path: &str, title: &str) -> i32 {
    secret.print_warnings(invocation.ui);
    let metadata = secret.data.unwrap_or_default();
    print_path(invocation, path, title);
    invocation.ui.output(&output::section("Metadata", &metadata));
    invocation.ui.output(&output::map_table(&metadata));
    0
}

/// The section that says which path was used.
pub fn print_path(invocation: &mut Invocation<'_, '_>, path: &str, title: &str) {
    invocation.ui.output(&output::title(title, path.chars().count()));
    invocation.ui.output(path);
    invocation.ui.output("");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn check_and_set_is_an_option_of_versioned_engines() {
        let data = || Map::from_iter([("a".to_owned(), Value::from("1"))]);
        assert_eq!(body(data(), false, Some(1)), json!({"a": "1"}));
        assert_eq!(body(data(), true, None), json!({"data": {"a": "1"}, "options": {}}));
        assert_eq!(body(data(), true, Some(0)), json!({"data": {"a": "1"}, "options": {"cas": 0}}));
    }
}
