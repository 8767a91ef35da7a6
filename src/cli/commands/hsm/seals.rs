//! Which seals a command is about: those of a configuration, or one that flags and environment describe.

use std::path::PathBuf;

use crate::cli::Invocation;
use crate::config::{self, ConfigError, Pkcs11Config, SealStanzaKind, StorageConfig};
use crate::seal::{Pkcs11Seal, own_program};
use crate::secret::SecretString;

/// The flags that stand for parameters of a stanza, and the ends of their variables.
const PARAMETERS: [(&str, &str); 9] = [
    ("lib", "LIB"),
    ("token-label", "TOKEN_LABEL"),
    ("serial", "SERIAL"),
    ("slot", "SLOT"),
    ("pin-file", "PIN_FILE"),
    ("key-label", "KEY_LABEL"),
    ("key-id", "KEY_ID"),
    ("mechanism", "MECHANISM"),
    ("timeout", "TIMEOUT"),
];

const OWN_PREFIX: &str = "KEYSTEAD_HSM_";

/// A seal and what it was made from.
pub struct Opened {
    /// Its name.
    pub name: String,
    /// The module.
    pub lib: PathBuf,
    /// The seal itself.
    pub seal: Pkcs11Seal,
}

/// The only seal that is meant.
///
/// # Errors
/// The exit code; what is wrong is printed.
pub fn one(invocation: &mut Invocation<'_, '_>) -> Result<Opened, i32> {
    let mut all = all(invocation)?;
    match all.len() {
        1 => Ok(all.remove(0)),
        _ => {
            let names: Vec<_> = all.iter().map(|opened| opened.name.as_str()).collect();
            let text =
                format!("the configuration has several seals; name one with -seal: {}", names.join(", "));
            Err(invocation.fail(&text))
        }
    }
}

/// Every seal that is meant; at least one.
///
/// # Errors
/// The exit code; what is wrong is printed.
pub fn all(invocation: &mut Invocation<'_, '_>) -> Result<Vec<Opened>, i32> {
    invocation.expect_args(0)?;
    let paths: Vec<PathBuf> = invocation.flags.list("config").into_iter().map(PathBuf::from).collect();
    if paths.is_empty() {
        let config = of_flags(invocation)?;
        return Ok(vec![opened("pkcs11".to_owned(), config, None)]);
    }
    let config = config::load_with_env(&paths, |name| variable(invocation, name));
    let config = config.map_err(|error| invocation.fail(&in_terms_of_flags(invocation, error)))?;
    let data_dir = match &config.storage {
        StorageConfig::Raft(raft) => Some(raft.path.clone()),
        StorageConfig::File { path } => Some(path.clone()),
        StorageConfig::Inmem => None,
    };
    // A place that is not there yet is the server's to make.
    let data_dir = data_dir.filter(|path| path.is_dir());
    let wanted = invocation.flags.text("seal").map(str::to_owned);
    let mut found = Vec::new();
    for stanza in config.seals {
        if let SealStanzaKind::Pkcs11(pkcs11) = stanza.kind
            && wanted.as_ref().is_none_or(|wanted| *wanted == stanza.name)
        {
            found.push(opened(stanza.name, *pkcs11, data_dir.clone()));
        }
    }
    if found.is_empty() {
        let which = wanted.map(|name| format!(" of the name {name:?}")).unwrap_or_default();
        return Err(invocation.fail(&format!("the configuration has no seal \"pkcs11\"{which}")));
    }
    Ok(found)
}

fn opened(name: String, config: Pkcs11Config, data_dir: Option<PathBuf>) -> Opened {
    let lib = config.lib.clone();
    let seal = Pkcs11Seal::new(&name, config, data_dir.as_deref(), own_program());
    Opened { name, lib, seal }
}

/// A seal without a configuration; its PIN is asked for if nothing gives it.
fn of_flags(invocation: &mut Invocation<'_, '_>) -> Result<Pkcs11Config, i32> {
    let pins = ["KEYSTEAD_HSM_PIN", "VAULT_HSM_PIN", "BAO_HSM_PIN", "HSM_PIN", "KEYSTEAD_HSM_PIN_FILE"];
    let pins = pins.into_iter().chain(["VAULT_HSM_PIN_FILE", "BAO_HSM_PIN_FILE"]);
    let mut asked = None;
    if pins.map(|name| variable(invocation, name)).all(|pin| pin.is_none_or(|pin| pin.is_empty())) {
        let typed = invocation.ui.ask_hidden("PIN of the token's user (will be hidden): ", false);
        let typed =
            typed.map_err(|error| invocation.fail(&format!("no PIN: {error}; give one with -pin-file")))?;
        asked = Some(SecretString::new(typed.trim().to_owned()));
    }
    let read = config::pkcs11_from_env(|name| match &asked {
        Some(pin) if name == "KEYSTEAD_HSM_PIN" => Some(pin.expose().to_owned()),
        _ => variable(invocation, name),
    });
    read.map_err(|error| invocation.fail(&in_terms_of_flags(invocation, error)))
}

/// The variable as the flags change it: they are the most particular.
fn variable(invocation: &Invocation<'_, '_>, name: &str) -> Option<String> {
    let flag = name.strip_prefix(OWN_PREFIX).and_then(|end| {
        let (flag, _) = PARAMETERS.iter().find(|(_, suffix)| *suffix == end)?;
        invocation.flags.text(flag)
    });
    if let Some(value) = flag {
        return Some(value.to_owned());
    }
    // A file that is named on the command line is meant in place of a PIN in the environment.
    if name.ends_with("HSM_PIN") && invocation.flags.has("pin-file") {
        return None;
    }
    invocation.environment.variable(name).map(str::to_owned)
}

fn in_terms_of_flags(invocation: &Invocation<'_, '_>, error: ConfigError) -> String {
    if let ConfigError::Environment { name, message } = &error
        && let Some(end) = name.strip_prefix(OWN_PREFIX)
        && let Some((flag, _)) = PARAMETERS.iter().find(|(_, suffix)| *suffix == end)
        && invocation.flags.has(flag)
    {
        return format!("-{flag} {message}");
    }
    error.to_string()
}
