//! `kv undelete` and `kv destroy`.

use serde_json::json;

use super::mount::Place;
use crate::cli::{Invocation, Outcome};

pub fn undelete(invocation: &mut Invocation<'_, '_>) -> Outcome {
    change(invocation, "undelete", "Undelete")
}

pub fn destroy(invocation: &mut Invocation<'_, '_>) -> Outcome {
    change(invocation, "destroy", "Destroy")
}

fn change(invocation: &mut Invocation<'_, '_>, what: &str, title: &str) -> Outcome {
    invocation.expect_args(1)?;
    if invocation.flags.list("versions").is_empty() {
        let text =
            format!("No versions provided, use the \"-versions\" flag to specify the version to {what}.");
        return Err(invocation.fail(&text));
    }
    let session = invocation.session()?;
    let place = Place::find(invocation, &session)?;
    if !place.versioned {
        return Err(invocation.fail(&format!("{title} not supported on KV Version 1")));
    }
    let path = place.path(what);
    let body = json!({"versions": invocation.flags.list("versions")});
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
