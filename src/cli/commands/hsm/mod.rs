//! `hsm`: prepares tokens for `seal "pkcs11"`, shows them and rotates their keys. It talks to the token, and to a server
//! only where wraps are compared or made anew; it needs the PIN of the token's user; initialising the token itself is the security officer's, with the maker's tool.

mod seals;
mod status;
mod sync;
mod wraps;

use std::future::Future;

use serde_json::Value;

use crate::cli::flags::{Flag, Kind};
use crate::cli::output::{self, Document, Format};
use crate::cli::{Command, Invocation, Outcome};
use crate::seal::{KeyFacts, SealFault, TokenFacts};
use seals::Opened;

/// The exit code of what the token refused, or did not answer.
const TOKEN_REFUSED: i32 = 2;

const FLAGS: &[Flag] = &[
    Flag::new("config", Kind::List, "Configuration file or directory with the seal; may be repeated."),
    Flag::new("seal", Kind::Text, "Name of the seal, where the configuration has several."),
    Flag::new("lib", Kind::Text, "The PKCS#11 module; as the flags below, over the configuration."),
    Flag::new("token-label", Kind::Text, "Label of the token."),
    Flag::new("serial", Kind::Text, "Serial number of the token."),
    Flag::new("slot", Kind::Text, "Number of the token's slot."),
    Flag::new(
        "pin-file",
        Kind::Text,
        "File with the PIN of the token's user; asked for if nothing gives it.",
    ),
    Flag::new("key-label", Kind::Text, "Label of the wrapping key, if it is not the default one."),
    Flag::new("key-id", Kind::Text, "Id of the wrapping key, in hexadecimal digits."),
    Flag::new("mechanism", Kind::Text, "How it wraps; the best that the token offers by default."),
    Flag::new("timeout", Kind::Text, "How long one call may take; 10s by default."),
];

/// The flags of `hsm status`: one more.
const STATUS_FLAGS: &[Flag] = &{
    const RETRY: Flag = Flag::new(
        "retry-pin",
        Kind::Bool,
        "Try a PIN again that the token refused before; it may lock the token.",
    );
    let mut flags = [RETRY; FLAGS.len() + 1];
    let mut at = 0;
    while at < FLAGS.len() {
        flags[at] = FLAGS[at];
        at += 1;
    }
    flags
};

/// The table's entries.
pub const COMMANDS: &[Command] = &[
    Command {
        name: "hsm",
        synopsis: "Prepares and shows the tokens of seals",
        about: "Prepares a token behind a PKCS#11 module for seal \"pkcs11\", shows it, and rotates its wrapping key. The\n\
                token itself is initialised with its maker's tool; here, only the PIN of its user is needed.",
        calls_api: false,
        ..Command::DEFAULT
    },
    Command {
        name: "hsm init",
        synopsis: "Makes the wrapping key on a token",
        about: "Makes the wrapping key on a token, and for RSA the key that authenticates, where there is none:\n\n    \
                $ {program} hsm init -config=/etc/keystead/keystead.hcl\n\nThe keys can never leave the token.",
        flags: FLAGS,
        calls_api: false,
        prints_formats: true,
        run: Some(init),
        ..Command::DEFAULT
    },
    Command {
        name: "hsm status",
        synopsis: "Shows tokens and their wrapping keys",
        about: "Shows the tokens of a configuration's seals: module, token, key, mechanism, and the time that a wrap and\n\
                an unwrap take. With an address (-address, VAULT_ADDR) the wraps of the root key that the vault there\n\
                has are compared with the tokens' newest keys; that takes a token with sudo on sys/seal-backend-sync.\n\
                The exit code is 1 if a wrapping key is missing or a wrap does not agree, and 2 if a token does not work.",
        flags: STATUS_FLAGS,
        run: Some(status::run),
        ..Command::DEFAULT
    },
    Command {
        name: "hsm sync",
        synopsis: "Wraps the root key anew where that is needed",
        about: "Has the leader of the vault at the address wrap the root key by every configured seal whose wrap is\n\
                missing, was made by an older key, or does not open; and waits until all agree. The exit code is 2 if\n\
                they do not in time. It takes a token with sudo on sys/seal-backend-sync.",
        flags: sync::FLAGS,
        run: Some(sync::run),
        ..Command::DEFAULT
    },
    Command {
        name: "hsm rotate-key",
        synopsis: "Makes a new wrapping key on a token",
        about: "Makes a new wrapping key of the same label. The next wrap is by the new key; the old one stays on the\n\
                token for what it wrapped.",
        flags: FLAGS,
        calls_api: false,
        prints_formats: true,
        run: Some(rotate_key),
        ..Command::DEFAULT
    },
];

fn init(invocation: &mut Invocation<'_, '_>) -> Outcome {
    let opened = seals::one(invocation)?;
    let seal = &opened.seal;
    let (token, key, made) = finished(invocation, async {
        let (token, before) = seal.facts().await?;
        if before.missing.is_empty() {
            return Ok((token, before, false));
        }
        seal.generate(false).await?;
        let (token, key) = seal.facts().await?;
        Ok((token, key, true))
    })?;
    let text = if made { "Success! Made the key" } else { "Nothing to do: there is the key" };
    shown(invocation, &opened, &token, &key, Some(made), text)
}

fn rotate_key(invocation: &mut Invocation<'_, '_>) -> Outcome {
    let opened = seals::one(invocation)?;
    let seal = &opened.seal;
    let (token, key) = finished(invocation, async {
        seal.generate(true).await?;
        seal.facts().await
    })?;
    shown(invocation, &opened, &token, &key, None, "Success! From now on wraps are by the key")
}

fn shown(
    invocation: &mut Invocation<'_, '_>,
    opened: &Opened,
    token: &TokenFacts,
    key: &KeyFacts,
    made: Option<bool>,
    text: &str,
) -> Outcome {
    let (ui, format) = invocation.printer();
    if format == Format::Table {
        ui.output(&format!("{text} {} ({}) on token \"{}\"", key.key_id, key.mechanism, token.label));
        return Ok(0);
    }
    let mut fields: Vec<(&str, Document)> = vec![
        ("seal", Value::from(opened.name.as_str()).into()),
        ("token_label", token.label.as_str().into()),
        ("serial_number", token.serial.as_str().into()),
        ("key", key.key_id.as_str().into()),
        ("mechanism", key.mechanism.as_str().into()),
        ("check_value", key.kcv.as_str().into()),
    ];
    fields.extend(made.map(|made| ("made", made.into())));
    Ok(output::print(ui, format, Document::object(fields)))
}

/// Runs what waits for a token, and prints its fault.
fn finished<T>(
    invocation: &mut Invocation<'_, '_>,
    work: impl Future<Output = Result<T, SealFault>>,
) -> Result<T, i32> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime =
        runtime.map_err(|error| invocation.fail(&format!("cannot start the event loop: {error}")))?;
    runtime.block_on(work).map_err(|fault| {
        invocation.ui.error(&fault.to_string());
        TOKEN_REFUSED
    })
}
