//! `kv delete`.

use serde_json::json;

use super::mount::Place;
use crate::cli::{Invocation, Outcome};

pub fn run(invocation: &mut Invocation<'_, '_>) -> Outcome {
    invocation.expect_args(1)?;
    let session = invocation.session()?;
    let place = Place::find(invocation, &session)?;
    let path = place.path("data");
    let versions = json!({"versions": invocation.flags.list("versions")});
    let answer = if place.versioned && invocation.flags.has("versions") {
        session.send("PUT", &place.path("delete"), Some(&versions))
    } else {
        session.delete(&path, &[])
    };
    let answer = answer.map_err(|error| invocation.refused(&format!("Error deleting {path}"), &error))?;
    match answer {
        None => Ok(invocation.success(&format!("Success! Data deleted (if it existed) at: {path}"))),
        Some(secret) => {
            let (ui, format) = invocation.printer();
            Ok(secret.print(ui, format))
        }
    }
}
