//! `kv patch`.

use serde_json::{Map, Value, json};

use super::super::logical::{no_value, print_or_field};
use super::mount::Place;
use super::put::print_sections;
use crate::cli::api_error::ApiError;
use crate::cli::output::Format;
use crate::cli::secret::Secret;
use crate::cli::session::Session;
use crate::cli::{Invocation, Outcome, data};

/// How the change is made.
enum Method {
    /// By the server, at once.
    Patch,
    /// By the server; where the policy forbids that, by reading and writing.
    PatchElseReadWrite,
    /// By reading and writing, the version in between checked.
    ReadWrite,
}

pub fn run(invocation: &mut Invocation<'_, '_>) -> Outcome {
    let removed: Vec<String> = invocation.flags.list("remove-data").into_iter().map(str::to_owned).collect();
    match invocation.args.len() {
        0 => return Err(invocation.fail("Not enough arguments (expected >1, got 0)")),
        1 if removed.is_empty() => return Err(invocation.fail("Must supply data")),
        _ => {}
    }
    let mut change = data::parse(&invocation.args[1..], invocation.ui)
        .map_err(|why| invocation.fail(&format!("Failed to parse K=V data: {why}")))?;
    // In a merge patch, null removes.
    change.extend(removed.into_iter().map(|key| (key, Value::Null)));
    let session = invocation.session()?;
    let place = Place::find(invocation, &session)?;
    if !place.versioned {
        invocation.ui.error("K/V engine mount must be version 2 for patch support");
        return Err(2);
    }
    let path = place.path("data");
    let method = method(invocation)?;
    let answer = match method {
        Method::ReadWrite => read_and_write(invocation, &session, &path, change)?,
        Method::Patch | Method::PatchElseReadWrite => patch(invocation, &session, &path, change, &method)?,
    };
    let Some(secret) = answer else {
        return Ok(invocation.success(&format!("Success! Data written to: {path}")));
    };
    let as_table =
        invocation.format == Format::Table && !secret.is_wrapped() && !invocation.flags.has("field");
    if !as_table {
        return Ok(print_or_field(invocation, secret));
    }
    Ok(print_sections(invocation, secret, &path, "Secret Path"))
}

fn method(invocation: &mut Invocation<'_, '_>) -> Result<Method, i32> {
    match invocation.flags.text("method").unwrap_or_default() {
        "" => Ok(Method::PatchElseReadWrite),
        "patch" => Ok(Method::Patch),
        "rw" => Ok(Method::ReadWrite),
        other => {
            let text = format!("Unsupported method provided to -method flag: {other}");
            invocation.ui.error(&text);
            Err(2)
        }
    }
}

fn patch(
    invocation: &mut Invocation<'_, '_>,
    session: &Session,
    path: &str,
    change: Map<String, Value>,
    method: &Method,
) -> Result<Option<Secret>, i32> {
    let options = match invocation.flags.int("cas") {
        Some(version) if version > 0 => json!({"cas": version}),
        _ => json!({}),
    };
    let body = json!({"data": change, "options": options});
    let error = match session.merge_patch(path, &body) {
        Ok(answer) => return Ok(answer),
        Err(error) => error,
    };
    let may_write_instead =
        matches!(method, Method::PatchElseReadWrite) && matches!(error.status(), Some(403 | 405));
    if may_write_instead {
        let answer = read_and_write(invocation, session, path, change)?;
        let text = format!(
            "Data was written to {path} but we recommend that you add the \"patch\" capability to your ACL policy \
             in order to use HTTP PATCH in the future."
        );
        invocation.ui.warn(&text);
        return Ok(answer);
    }
    Err(refused(invocation, path, &error))
}

fn refused(invocation: &mut Invocation<'_, '_>, path: &str, error: &ApiError) -> i32 {
    match error.status() {
        Some(404) => no_value(invocation, path),
        _ => invocation.refused(&format!("Error writing data to {path}"), error),
    }
}

/// The change made on this side. A version that appears in between makes the write fail, and so nothing of
/// somebody else's is lost.
fn read_and_write(
    invocation: &mut Invocation<'_, '_>,
    session: &Session,
    path: &str,
    change: Map<String, Value>,
) -> Result<Option<Secret>, i32> {
    let current = Current::read(invocation, session, path, "patch")?;
    let mut data = current.data;
    for (key, value) in change {
        match value {
            Value::Null => drop(data.remove(&key)),
            value => drop(data.insert(key, value)),
        }
    }
    let body = json!({"data": data, "options": {"cas": current.version}});
    session.send("PUT", path, Some(&body)).map_err(|error| refused(invocation, path, &error))
}

/// The newest version of a secret: its number, and its data if it has not been deleted.
pub struct Current {
    /// The version's number, as it was sent.
    pub version: Value,
    /// The data.
    pub data: Map<String, Value>,
}

impl Current {
    /// Reads it, whatever was asked for in place of the command's own requests.
    ///
    /// # Errors
    /// The exit code; the message is printed, and says what needs existing data.
    pub fn read(
        invocation: &mut Invocation<'_, '_>,
        session: &Session,
        path: &str,
        what: &str,
    ) -> Result<Current, i32> {
        let (version, data) = Current::version_and_data(invocation, session, path, what)?;
        let Some(data) = data else {
            let text = format!("No data found at {path}; {what} only works on existing data");
            invocation.ui.error(&text);
            return Err(2);
        };
        Ok(Current { version, data })
    }

    /// As [`Current::read`], for a newest version that may be a deleted one.
    ///
    /// # Errors
    /// As [`Current::read`].
    pub fn version_and_data(
        invocation: &mut Invocation<'_, '_>,
        session: &Session,
        path: &str,
        what: &str,
    ) -> Result<(Value, Option<Map<String, Value>>), i32> {
        let answer = session.preread(path, &[]);
        let answer =
            answer.map_err(|error| invocation.refused(&format!("Error doing pre-read at {path}"), &error))?;
        let Some(mut fields) = answer.and_then(|secret| secret.data) else {
            return Err(no_value(invocation, path));
        };
        let version = fields.get("metadata").and_then(|metadata| metadata.get("version")).cloned();
        let Some(version) = version else {
            let text = format!("No metadata found at {path}; {what} only works on existing data");
            invocation.ui.error(&text);
            return Err(2);
        };
        let data = match fields.remove("data") {
            Some(Value::Object(data)) => Some(data),
            _ => None,
        };
        Ok((version, data))
    }
}
