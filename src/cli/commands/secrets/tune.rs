//! `secrets tune`.

use serde_json::{Map, Value};

use super::super::logical::trimmed;
use super::options;
use crate::cli::flags::Flag;
use crate::cli::{Invocation, Outcome};

pub const FLAGS: &[Flag] = &[
    options::DESCRIPTION,
    options::DEFAULT_LEASE_TTL,
    options::MAX_LEASE_TTL,
    options::VERSION,
    options::OPTIONS,
    options::PLUGIN_VERSION,
    options::AUDIT_REQUEST_KEYS,
    options::AUDIT_RESPONSE_KEYS,
    options::LISTING_VISIBILITY,
    options::REQUEST_HEADERS,
    options::RESPONSE_HEADERS,
    options::MANAGED_KEYS,
    options::DELEGATED_ACCESSORS,
    options::IDENTITY_TOKEN_KEY,
];

pub fn run(invocation: &mut Invocation<'_, '_>) -> Outcome {
    invocation.expect_args(1)?;
    let path = trimmed(&invocation.args[0]).to_owned();
    let body = body(invocation);
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

/// What was given. An empty life and null options mean "leave", and are what Vault's command line sends.
fn body(invocation: &Invocation<'_, '_>) -> Value {
    let flags = &invocation.flags;
    let ttl = |flag: &str| match flags.go_duration(flag) {
        None => String::new(),
        // Vault's way of saying "the system's default again".
        Some(ttl) if ttl.0 == -1_000_000_000 => "system".to_owned(),
        Some(ttl) if ttl.0 == 0 => String::new(),
        Some(ttl) => ttl.to_string(),
    };
    let mut body = Map::from_iter([
        ("default_lease_ttl".to_owned(), ttl("default-lease-ttl").into()),
        ("max_lease_ttl".to_owned(), ttl("max-lease-ttl").into()),
        ("options".to_owned(), options::options(flags)),
    ]);
    if let Some(description) = flags.text("description") {
        body.insert("description".to_owned(), description.into());
    }
    options::add_given(flags, &mut body);
    Value::Object(body)
}
