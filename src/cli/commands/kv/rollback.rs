//! `kv rollback`.

use serde_json::{Value, json};

use super::super::logical::no_value;
use super::mount::Place;
use super::patch::Current;
use crate::cli::{Invocation, Outcome};

pub fn run(invocation: &mut Invocation<'_, '_>) -> Outcome {
    invocation.expect_args(1)?;
    let version = match invocation.flags.int("version") {
        None => return Err(invocation.fail("Version flag must be specified")),
        Some(version) if version < 1 => {
            return Err(invocation.fail(&format!("Invalid value {version:?} for the version flag")));
        }
        Some(version) => version.to_string(),
    };
    let session = invocation.session()?;
    let place = Place::find(invocation, &session)?;
    if !place.versioned {
        invocation.ui.error("K/V engine mount must be version 2 for rollback support");
        return Err(2);
    }
    let path = place.path("data");
    // The newest version may be a deleted one: rolling back is a way to undo that.
    let (newest, _) = Current::version_and_data(invocation, &session, &path, "rollback")?;
    let answer = session.preread(&path, &[("version", &version)]);
    let answer =
        answer.map_err(|error| invocation.refused(&format!("Error doing pre-read at {path}"), &error))?;
    let Some(mut fields) = answer.and_then(|secret| secret.data) else {
        return Err(no_value(invocation, &path));
    };
    let data = match fields.remove("data") {
        Some(Value::Object(data)) => data,
        _ => {
            let text = format!("No data found at {path}; rollback only works on existing data");
            invocation.ui.error(&text);
            return Err(2);
        }
    };
    let body = json!({"data": data, "options": {"cas": newest}});
    let answer = session.send("PUT", &path, Some(&body));
    let answer =
        answer.map_err(|error| invocation.refused(&format!("Error writing data to {path}"), &error))?;
    match answer {
        None => Ok(invocation.success(&format!("Success! Data written to: {path}"))),
        Some(secret) => {
            let (ui, format) = invocation.printer();
            Ok(secret.print(ui, format))
        }
    }
}
