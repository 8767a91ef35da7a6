//! `secrets enable`.

use serde_json::{Map, Value, json};

use super::super::logical::trimmed;
use super::options;
use crate::cli::duration::GoDuration;
use crate::cli::flags::{Flag, Kind};
use crate::cli::{Invocation, Outcome};

pub const FLAGS: &[Flag] = &[
    Flag::new("path", Kind::Text, "Where to mount it."),
    options::DESCRIPTION,
    options::DEFAULT_LEASE_TTL,
    options::MAX_LEASE_TTL,
    options::VERSION,
    options::OPTIONS,
    Flag::new("force-no-cache", Kind::Bool, "Do not cache what it stores."),
    Flag::new("local", Kind::Bool, "Do not replicate it to other clusters."),
    Flag::new("seal-wrap", Kind::Bool, "Seal what is critical in it once more."),
    Flag::new("external-entropy-access", Kind::Bool, "Let it use the seal's source of randomness."),
    Flag::new("plugin-name", Kind::Text, "Name of the plugin, where TYPE is \"plugin\"."),
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
    let flags = &invocation.flags;
    let mut kind = trimmed(&invocation.args[0]).to_owned();
    if let Some(name) = flags.text("plugin-name").filter(|_| kind == "plugin") {
        kind = name.to_owned();
    }
    let path = flags.text("path").map(trimmed).filter(|path| !path.is_empty()).unwrap_or(&kind).to_owned();
    let ttl = |flag| flags.go_duration(flag).unwrap_or(GoDuration(0)).to_string();
    let mut config = Map::from_iter([
        ("default_lease_ttl".to_owned(), ttl("default-lease-ttl").into()),
        ("max_lease_ttl".to_owned(), ttl("max-lease-ttl").into()),
        ("force_no_cache".to_owned(), flags.bool("force-no-cache").into()),
        ("options".to_owned(), Value::Null),
    ]);
    options::add_given(flags, &mut config);
    let body = json!({
        "type": kind,
        "description": flags.text("description").unwrap_or_default(),
        "config": config,
        "local": flags.bool("local"),
        "seal_wrap": flags.bool("seal-wrap"),
        "external_entropy_access": flags.bool("external-entropy-access"),
        "options": options::options(flags),
    });
    let session = invocation.session()?;
    let answer = session.send("POST", &format!("sys/mounts/{path}"), Some(&body));
    let answer = answer.map_err(|error| invocation.refused("Error enabling", &error))?;
    if let Some(secret) = answer {
        secret.print_warnings(invocation.ui);
    }
    invocation.ui.output(&format!("Success! Enabled the {kind} secrets engine at: {path}/"));
    Ok(0)
}
