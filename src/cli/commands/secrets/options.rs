//! What `secrets enable` and `secrets tune` both can set.

use serde_json::{Map, Value};

use crate::cli::flags::{Flag, Kind, Parsed};

pub const DESCRIPTION: Flag = Flag::new("description", Kind::Text, "A text for people.");
pub const DEFAULT_LEASE_TTL: Flag =
    Flag::new("default-lease-ttl", Kind::Duration, "Default life of its leases.");
pub const MAX_LEASE_TTL: Flag = Flag::new("max-lease-ttl", Kind::Duration, "Longest life of its leases.");
pub const VERSION: Flag = Flag::new("version", Kind::Int, "Version of the engine: 1 or 2, for kv.");
pub const OPTIONS: Flag =
    Flag::new("options", Kind::Map, "An option of the engine, key=value; may be given more than once.");
pub const AUDIT_REQUEST_KEYS: Flag = Flag::new(
    "audit-non-hmac-request-keys",
    Kind::CommaList,
    "Keys of requests whose values the audit log shows in the clear.",
);
pub const AUDIT_RESPONSE_KEYS: Flag = Flag::new(
    "audit-non-hmac-response-keys",
    Kind::CommaList,
    "Keys of responses whose values the audit log shows in the clear.",
);
pub const LISTING_VISIBILITY: Flag = Flag::new(
    "listing-visibility",
    Kind::Text,
    "unauth: everybody sees that it is mounted; hidden: nobody without the right to.",
);
pub const REQUEST_HEADERS: Flag = Flag::new(
    "passthrough-request-headers",
    Kind::CommaList,
    "Headers of requests that are handed to the engine.",
);
pub const RESPONSE_HEADERS: Flag =
    Flag::new("allowed-response-headers", Kind::CommaList, "Headers that the engine may set in responses.");
pub const MANAGED_KEYS: Flag =
    Flag::new("allowed-managed-keys", Kind::CommaList, "Managed keys that the engine may use.");
pub const DELEGATED_ACCESSORS: Flag = Flag::new(
    "delegated-auth-accessors",
    Kind::CommaList,
    "Accessors of the auth methods that the engine may hand requests to.",
);
pub const PLUGIN_VERSION: Flag = Flag::new("plugin-version", Kind::Text, "Version of the plugin.");
pub const IDENTITY_TOKEN_KEY: Flag =
    Flag::new("identity-token-key", Kind::Text, "Key that signs the plugin's identity tokens.");

/// Adds the optional fields of a mount's `config` that were given.
pub fn add_given(flags: &Parsed, config: &mut Map<String, Value>) {
    for (flag, field) in [
        (AUDIT_REQUEST_KEYS, "audit_non_hmac_request_keys"),
        (AUDIT_RESPONSE_KEYS, "audit_non_hmac_response_keys"),
        (REQUEST_HEADERS, "passthrough_request_headers"),
        (RESPONSE_HEADERS, "allowed_response_headers"),
        (MANAGED_KEYS, "allowed_managed_keys"),
        (DELEGATED_ACCESSORS, "delegated_auth_accessors"),
    ] {
        if flags.has(flag.name) {
            config.insert(field.to_owned(), flags.list(flag.name).into());
        }
    }
    for (flag, field) in [
        (LISTING_VISIBILITY, "listing_visibility"),
        (PLUGIN_VERSION, "plugin_version"),
        (IDENTITY_TOKEN_KEY, "identity_token_key"),
    ] {
        if let Some(text) = flags.text(flag.name) {
            config.insert(field.to_owned(), text.into());
        }
    }
}

/// The engine's options: `-options`, and `-version` as one of them. Null where there are none.
pub fn options(flags: &Parsed) -> Value {
    let mut options: Map<String, Value> =
        flags.pairs("options").into_iter().map(|(key, value)| (key.to_owned(), value.into())).collect();
    if let Some(version) = flags.int("version") {
        options.insert("version".to_owned(), version.to_string().into());
    }
    if options.is_empty() { Value::Null } else { Value::Object(options) }
}
