//! `kv metadata get`, `put`, `patch` and `delete`.

use serde_json::{Map, Value};

use super::super::logical::{no_value, print_or_field};
use super::mount::Place;
use super::put::print_path;
use crate::cli::api_error::ApiError;
use crate::cli::output::{self, Format};
use crate::cli::secret::Secret;
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

pub fn put(invocation: &mut Invocation<'_, '_>) -> Outcome {
    let (session, path) = open(invocation)?;
    let mut body = limits(invocation);
    let notes: Map<String, Value> = notes(invocation).collect();
    if !notes.is_empty() {
        body.insert("custom_metadata".to_owned(), notes.into());
    }
    let answer = session.send("PUT", &path, Some(&Value::Object(body)));
    written(invocation, answer, &path)
}

pub fn patch(invocation: &mut Invocation<'_, '_>) -> Outcome {
    let (session, path) = open(invocation)?;
    let mut body = limits(invocation);
    let removed = invocation.flags.list("remove-custom-metadata");
    // In a merge patch, null removes.
    let removed = removed.into_iter().map(|key| (key.to_owned(), Value::Null));
    let notes: Map<String, Value> = notes(invocation).chain(removed).collect();
    body.insert("custom_metadata".to_owned(), notes.into());
    let answer = session.merge_patch(&path, &Value::Object(body));
    written(invocation, answer, &path)
}

/// The limits that were given.
fn limits(invocation: &Invocation<'_, '_>) -> Map<String, Value> {
    let flags = &invocation.flags;
    let mut body = Map::new();
    if let Some(versions) = flags.int("max-versions").filter(|versions| *versions >= 0) {
        body.insert("max_versions".to_owned(), versions.into());
    }
    if flags.has("cas-required") {
        body.insert("cas_required".to_owned(), flags.bool("cas-required").into());
    }
    if let Some(life) = flags.go_duration("delete-version-after").filter(|life| life.0 >= 0) {
        body.insert("delete_version_after".to_owned(), life.to_string().into());
    }
    body
}

fn notes(invocation: &Invocation<'_, '_>) -> impl Iterator<Item = (String, Value)> {
    let pairs = invocation.flags.pairs("custom-metadata").into_iter();
    pairs.map(|(key, value)| (key.to_owned(), value.into()))
}

fn written(
    invocation: &mut Invocation<'_, '_>,
    answer: Result<Option<Secret>, ApiError>,
    path: &str,
) -> Outcome {
    let answer =
        answer.map_err(|error| invocation.refused(&format!("Error writing data to {path}"), &error))?;
    match answer {
        None => Ok(invocation.success(&format!("Success! Data written to: {path}"))),
        Some(secret) if secret.data.is_none() && !secret.is_wrapped() => {
            secret.print_warnings(invocation.ui);
            Ok(invocation.success(&format!("Success! Data written to: {path}")))
        }
        Some(secret) => {
            let (ui, format) = invocation.printer();
            Ok(secret.print(ui, format))
        }
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
