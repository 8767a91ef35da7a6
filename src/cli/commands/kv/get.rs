//! `kv get`.

use serde_json::{Map, Value};

use super::super::logical::no_value;
use super::mount::Place;
use super::put::print_path;
use crate::cli::output::{self, Format};
use crate::cli::secret::Secret;
use crate::cli::{Invocation, Outcome};

pub fn run(invocation: &mut Invocation<'_, '_>) -> Outcome {
    invocation.expect_args(1)?;
    let session = invocation.session()?;
    let place = Place::find(invocation, &session)?;
    let path = place.path("data");
    let version = invocation.flags.int("version").filter(|version| *version > 0 && place.versioned);
    let version = version.map(|version| version.to_string());
    let query: Vec<_> = version.iter().map(|version| ("version", version.as_str())).collect();
    let answer = session.read(&path, &query);
    let answer = answer.map_err(|error| invocation.refused(&format!("Error reading {path}"), &error))?;
    let Some(secret) = answer else { return Err(no_value(invocation, &path)) };
    if let Some(field) = invocation.flags.text("field").map(str::to_owned) {
        return print_field(invocation, &secret, &field, place.versioned, &path);
    }
    if invocation.format != Format::Table || secret.is_wrapped() {
        let (ui, format) = invocation.printer();
        return Ok(secret.print(ui, format));
    }
    secret.print_warnings(invocation.ui);
    print_table(invocation, secret.data.unwrap_or_default(), place.versioned, &path);
    Ok(0)
}

fn print_field(
    invocation: &mut Invocation<'_, '_>,
    secret: &Secret,
    field: &str,
    versioned: bool,
    path: &str,
) -> Outcome {
    let (ui, format) = invocation.printer();
    if !versioned {
        return Ok(output::print_field(ui, format, field, secret.field(field).as_ref()));
    }
    let Some(Value::Object(data)) = secret.data.as_ref().and_then(|data| data.get("data")) else {
        ui.error(&format!("No data found at {path}"));
        return Err(2);
    };
    // The word "data" means the whole of it, unless the secret has a key of that name.
    let whole = Value::Object(data.clone());
    let value = data.get(field).or_else(|| (field == "data").then_some(&whole));
    Ok(output::print_field(ui, format, field, value))
}

fn print_table(
    invocation: &mut Invocation<'_, '_>,
    mut data: Map<String, Value>,
    versioned: bool,
    path: &str,
) {
    if versioned {
        print_path(invocation, path, "Secret Path");
    }
    let mut shown = Some(data.clone());
    if versioned {
        if let Some(Value::Object(metadata)) = data.remove("metadata") {
            invocation.ui.output(&output::section("Metadata", &metadata));
            invocation.ui.output(&output::map_table(&metadata));
            invocation.ui.output("");
        }
        shown = match data.remove("data") {
            Some(Value::Object(data)) => Some(data),
            // Deleted or destroyed: what is known about the version is all there is.
            _ => None,
        };
    }
    if let Some(data) = shown {
        invocation.ui.output(&output::section("Data", &data));
        let table = output::map_table(&data);
        if !table.is_empty() {
            invocation.ui.output(&table);
        }
    }
}
