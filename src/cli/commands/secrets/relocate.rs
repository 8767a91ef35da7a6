//! `secrets move`.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::super::logical::trimmed;
use crate::cli::{Invocation, Outcome};

/// Between two questions whether the move has ended.
const PAUSE: Duration = Duration::from_millis(250);
/// How long a move is watched. It goes on by itself.
const PATIENCE: Duration = Duration::from_secs(600);

pub fn run(invocation: &mut Invocation<'_, '_>) -> Outcome {
    invocation.expect_args(2)?;
    let [from, to] = [0, 1].map(|at: usize| format!("{}/", trimmed(&invocation.args[at])));
    let session = invocation.session()?;
    let answer = session.send("POST", "sys/remount", Some(&json!({"from": from, "to": to})));
    let answer = answer.map_err(|error| {
        invocation.refused(&format!("Error moving secrets engine {from} to {to}"), &error)
    })?;
    let id = answer.and_then(|secret| secret.data).unwrap_or_default().remove("migration_id");
    let Some(Value::String(id)) = id else {
        // A server that moves at once has nothing to be asked about.
        invocation.ui.output(&format!("Success! Moved secrets engine {from} to {to}"));
        return Ok(0);
    };
    let with_id = format!("secrets engine {from} to {to}, with migration ID {id}");
    invocation.ui.output(&format!("Started moving {with_id}"));
    let deadline = Instant::now() + PATIENCE;
    loop {
        let answer = session.read(&format!("sys/remount/status/{id}"), &[]);
        let doing = format!("Error checking migration status of secrets engine {from} to {to}");
        let answer = answer.map_err(|error| invocation.refused(&doing, &error))?;
        match status(answer.and_then(|secret| secret.data).unwrap_or_default().get("migration_info")) {
            Status::Success => {
                invocation.ui.output(&format!("Success! Finished moving {with_id}"));
                return Ok(0);
            }
            Status::Failure => {
                invocation.ui.error(&format!("Failure! Error encountered moving {with_id}"));
                return Err(2);
            }
            Status::InProgress if Instant::now() > deadline => {
                invocation.ui.error(&format!("No end in sight of moving {with_id}; it goes on by itself"));
                return Err(2);
            }
            Status::InProgress => std::thread::sleep(PAUSE),
        }
    }
}

enum Status {
    Success,
    Failure,
    InProgress,
}

fn status(info: Option<&Value>) -> Status {
    match info.and_then(|info| info.get("status")).and_then(Value::as_str) {
        Some("success") => Status::Success,
        Some("failure") => Status::Failure,
        _ => Status::InProgress,
    }
}
