//! The server's configuration: Vault's files and environment, read into types that cannot be invalid.
//!
//! [`load`] is the way in. Files and directories are merged in the order given, the environment goes over them.
//! What Vault does not know is an error that names the nearest key; what Vault knows and this server does not act
//! upon yet is kept, and listed in [`ServerConfig::warnings`].
//!
//! Reading order: [`hcl`] makes a tree of a text, `section` checks a block against the table of its keys, `storage`,
//! `listener` and `server` hold the tables and the types, `environment` overlays, `source` finds and merges files.

mod address;
mod environment;
mod error;
#[cfg(test)]
mod fuzz_tests;
pub mod hcl;
mod listener;
mod seal;
#[cfg(test)]
mod seal_tests;
mod section;
#[cfg(test)]
mod seed_tests;
mod server;
mod source;
mod storage;
mod telemetry;
#[cfg(test)]
mod tests;
mod value;

use std::path::PathBuf;

pub use address::{IpRange, ListenAddress, api_url, cluster_url};
pub use environment::apply_env;
pub use error::{ConfigError, ConfigWarning};
pub use listener::{
    DEFAULT_MAX_REQUEST_SIZE_BYTES, HttpTimeouts, ListenerConfig, ListenerKeyHolders, ListenerMetrics,
    ListenerTls, StatusHeaders, TcpListenerConfig, TlsVersion, UnixListenerConfig, XForwardedFor,
};
pub use seal::{
    DEFAULT_KEY_LABEL, DEFAULT_SEAL_TIMEOUT, FileSealConfig, OaepHash, PinSource, Pkcs11Config, SealStanza,
    SealStanzaKind, WrapMechanism, pkcs11_from_env,
};
pub use server::{
    DEFAULT_LEASE_TTL_S, DEFAULT_MAX_REQUEST_DURATION, LinearizableReads, LogFormat, LogLevel, LogRotation,
    PluginConfig, ServerConfig,
};
pub use storage::{ClientKeyPem, RaftStorageConfig, RetryJoin, StorageConfig};
pub use telemetry::TelemetryConfig;

/// Reads files, and the `*.hcl` and `*.json` of directories in the order of their names, as one configuration.
///
/// Listeners add up; of any other key the last file's value counts. Relative paths in the files are relative to
/// the working directory, as in Vault. The environment is left alone; see [`load_with_env`].
///
/// # Errors
/// The first thing that is wrong, with its file and line; a file that cannot be read; files that together lack a
/// storage or a listener.
pub fn load(paths: &[PathBuf]) -> Result<ServerConfig, ConfigError> {
    load_with_env(paths, |_| None)
}

/// As [`load`], with the environment over the files as [`apply_env`] does it, and `VAULT_RAFT_PATH` in place of a
/// raft storage's missing `path`; and over a `seal "pkcs11"`, each after `KEYSTEAD_HSM_`, `VAULT_HSM_` or `BAO_HSM_`, the
/// names of its parameters in upper case. `SEAL_TYPE=pkcs11` makes one of the environment alone. `HSM_LIBRARY` (or
/// `PKCS11_LIBRARY`), `HSM_SLOT` and `HSM_PIN` stand in for what nothing else gives.
///
/// `env` looks up a variable: `|name| std::env::var(name).ok()`.
///
/// # Errors
/// Those of [`load`] and [`apply_env`].
pub fn load_with_env(
    paths: &[PathBuf],
    env: impl Fn(&str) -> Option<String>,
) -> Result<ServerConfig, ConfigError> {
    let files = source::read(paths)?;
    let mut warnings = Vec::new();
    let entries = source::merge(&files, &mut warnings);
    let raft_path = environment::lookup(&env, "RAFT_PATH").map(|(_, path)| PathBuf::from(path));
    let mut config = server::read(entries, raft_path, &env, warnings)?;
    apply_env(&mut config, env)?;
    Ok(config)
}

/// The sections in which `key` may stand, for a key that was found in another one.
fn sections_with(key: &str) -> Vec<&'static str> {
    let tables = [
        ("the top level", server::KEYS),
        ("storage \"raft\"", storage::RAFT_KEYS),
        ("retry_join", storage::RETRY_JOIN_KEYS),
        ("listener \"tcp\"", listener::TCP_KEYS),
        ("listener \"unix\"", listener::UNIX_KEYS),
        ("telemetry of listener \"tcp\"", listener::TELEMETRY_KEYS),
        ("telemetry", telemetry::KEYS),
        ("seal \"pkcs11\"", seal::PKCS11_KEYS),
    ];
    let holds = |keys: section::Keys| keys.iter().any(|(name, _)| *name == key);
    tables.into_iter().filter(|(_, keys)| holds(keys)).map(|(name, _)| name).collect()
}
