//! `kv enable-versioning`.

use serde_json::json;

use super::super::logical::trimmed;
use crate::cli::{Invocation, Outcome};

pub fn run(invocation: &mut Invocation<'_, '_>) -> Outcome {
    invocation.expect_args(1)?;
    let path = trimmed(&invocation.args[0]).to_owned();
    let body = json!({"default_lease_ttl": "", "max_lease_ttl": "", "options": {"version": "2"}});
    let session = invocation.session()?;
    let answer = session.send("POST", &format!("sys/mounts/{path}/tune"), Some(&body));
    let answer = answer
        .map_err(|error| invocation.refused(&format!("Error tuning secrets engine {path}/"), &error))?;
    if let Some(secret) = answer {
        secret.print_warnings(invocation.ui);
    }
    invocation.ui.output(&format!("Success! Tuned the secrets engine at: {path}/"));
    Ok(0)
}
