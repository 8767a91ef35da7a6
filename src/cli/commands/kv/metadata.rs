//! `kv metadata get` and `kv metadata delete`.

use serde_json::{Map, Value};

use super::super::logical::{no_value, print_or_field};
use super::mount::Place;
use super::put::print_path;
use crate::cli::output::{self, Format};
use crate::cli::session::Session;
use crate::cli::{Invocation, Outcome};

fn open(invocation: &mut Invocation<'_, '_>) -> Result<(Session, String), i32> {
    invocation.expect_args(1)?;
    let session = invocation.session()?;
    let place = Place::find(invocation, &session)?;
    if !place.versioned {
        return Err(invocation.fail("Metadata not supported on KV Version 1"));
    }
    Ok((session, place.path("metadata")))
}

pub fn get(invocation: &mut Invocation<'_, '_>) -> Outcome {
    let (session, path) = open(invocation)?;
    let answer = session.read(&path, &[]);
    let answer = answer.map_err(|error| invocation.refused(&format!("Error reading {path}"), &error))?;
    let Some(secret) = answer else { return Err(no_value(invocation, &path)) };
    let as_table =
        invocation.format == Format::Table && !secret.is_wrapped() && !invocation.flags.has("field");
    if !as_table {
        return Ok(print_or_field(invocation, secret));
    }
    secret.print_warnings(invocation.ui);
    print_table(invocation, secret.data.unwrap_or_default(), &path);
    Ok(0)
}

fn print_table(invocation: &mut Invocation<'_, '_>, mut metadata: Map<String, Value>, path: &str) {
    let versions = match metadata.remove("versions") {
        Some(Value::Object(versions)) => versions,
        _ => Map::new(),
    };
    print_path(invocation, path, "Metadata Path");
    invocation.ui.output(&output::section("Metadata", &metadata));
    invocation.ui.output(&output::map_table(&metadata));
    let mut versions: Vec<_> =
        versions.iter().filter_map(|(number, about)| Some((number, about.as_object()?))).collect();
    versions.sort_by_key(|(number, _)| number.parse::<u64>().unwrap_or(u64::MAX));
    for (number, about) in versions {
        invocation.ui.output("");
        invocation.ui.output(&output::section(&format!("Version {number}"), about));
        invocation.ui.output(&output::map_table(about));
    }
}

pub fn delete(invocation: &mut Invocation<'_, '_>) -> Outcome {
    let (session, path) = open(invocation)?;
    let answer = session.delete(&path, &[]);
    let answer = answer.map_err(|error| invocation.refused(&format!("Error deleting {path}"), &error))?;
    match answer {
        None => Ok(invocation.success(&format!("Success! Data deleted (if it existed) at: {path}"))),
        Some(secret) => {
            let (ui, format) = invocation.printer();
            Ok(secret.print(ui, format))
        }
    }
}
