//! `operator rekey`.

use serde_json::{Value, json};

use super::{entered, init::pgp_keys, wipe};
use crate::cli::flags::{Flag, Kind};
use crate::cli::output::{self, Document, Format};
use crate::cli::session::Session;
use crate::cli::ui::wrap;
use crate::cli::{Invocation, Outcome};

pub const FLAGS: &[Flag] = &[
    Flag::new("init", Kind::Bool, "Begin; the present shares are entered afterwards."),
    Flag::new("cancel", Kind::Bool, "Forget what was begun, and the shares that were entered."),
    Flag::new("status", Kind::Bool, "Show how far it has come."),
    Flag::new("verify", Kind::Bool, "With -init: ask for verification. Else: about the verification."),
    Flag::new("key-shares", Kind::Int, "Number of shares to make; 5 by default."),
    Flag::new("key-threshold", Kind::Int, "Number of them that are needed; 3 by default."),
    Flag::new("nonce", Kind::Text, "The nonce of the operation, or of the verification."),
    Flag::new("backup", Kind::Bool, "With -init and -pgp-keys: keep the encrypted shares in the vault."),
    Flag::new("backup-retrieve", Kind::Bool, "Show the encrypted shares that were kept."),
    Flag::new("backup-delete", Kind::Bool, "Delete the encrypted shares that were kept."),
    Flag::new("target", Kind::Text, "Which shares: barrier, which is the default, or recovery."),
    Flag::new(
        "pgp-keys",
        Kind::CommaList,
        "Files with PGP public keys to encrypt the shares with, one for each.",
    ),
];

const STATUS: [&str; 10] = [
    "nonce",
    "started",
    "t",
    "n",
    "progress",
    "required",
    "pgp_fingerprints",
    "backup",
    "verification_required",
    "verification_nonce",
];

/// Which shares a command is about.
#[derive(Clone, Copy)]
struct Target {
    base: &'static str,
    /// Where encrypted shares are kept.
    backup: &'static str,
    /// What the present shares are called.
    share: &'static str,
    what: &'static str,
}

impl Target {
    fn of(invocation: &mut Invocation<'_, '_>) -> Result<Self, i32> {
        match invocation.flags.text("target").unwrap_or("barrier") {
            "barrier" => Ok(Self {
                base: "sys/rekey",
                backup: "sys/rekey/backup",
                share: "Unseal Key",
                what: "unseal",
            }),
            "recovery" => Ok(Self {
                base: "sys/rekey-recovery-key",
                backup: "sys/rekey/recovery-key-backup",
                share: "Recovery Key",
                what: "recovery",
            }),
            other => {
                let text = format!("Unknown target: {other}; it is barrier or recovery");
                Err(invocation.fail(&text))
            }
        }
    }

    fn path(self, step: &str) -> String {
        format!("{}/{step}", self.base)
    }
}

pub fn run(invocation: &mut Invocation<'_, '_>) -> Outcome {
    if invocation.args.len() > 1 {
        invocation.expect_args(1)?;
    }
    let target = Target::of(invocation)?;
    let session = invocation.session()?;
    if invocation.flags.bool("backup-delete") || invocation.flags.bool("backup-retrieve") {
        return backup(invocation, &session, target);
    }
    let flags = &invocation.flags;
    let (init, verify) = (flags.bool("init"), flags.bool("verify"));
    let (cancel, status) = (flags.bool("cancel"), flags.bool("status"));
    match (init, cancel, status, verify) {
        (true, ..) => begin(invocation, &session, target),
        (_, true, _, true) => restart_verification(invocation, &session, target),
        (_, true, ..) => cancelled(invocation, &session, target),
        (_, _, true, verify) => {
            let step = if verify { "verify" } else { "init" };
            let status = read(invocation, &session, &target.path(step))?;
            Ok(if verify { print_verification(invocation, &status) } else { print(invocation, &status) })
        }
        (_, _, _, true) => verification(invocation, &session, target),
        _ => update(invocation, &session, target),
    }
}

fn read(invocation: &mut Invocation<'_, '_>, session: &Session, path: &str) -> Result<Value, i32> {
    let status = session.raw_json("GET", path, None);
    status.map_err(|error| invocation.refused("Error reading rekey status", &error))
}

/// Shows or deletes the encrypted shares that a rekey has kept.
fn backup(invocation: &mut Invocation<'_, '_>, session: &Session, target: Target) -> Outcome {
    let path = target.backup;
    if invocation.flags.bool("backup-delete") {
        let answer = session.delete(path, &[]);
        answer.map_err(|error| invocation.refused("Error deleting backed up keys", &error))?;
        invocation.ui.output("Success! Deleted backed up keys (if they existed)");
        return Ok(0);
    }
    let answer = session.read(path, &[]);
    let answer = answer.map_err(|error| invocation.refused("Error retrieving backed up keys", &error))?;
    let Some(secret) = answer else {
        invocation.ui.error("No backed up keys found");
        return Err(2);
    };
    let (ui, format) = invocation.printer();
    Ok(secret.print(ui, format))
}

fn begin(invocation: &mut Invocation<'_, '_>, session: &Session, target: Target) -> Outcome {
    let flags = &invocation.flags;
    let count = |flag: &str, default: i64| flags.int(flag).filter(|count| *count != 0).unwrap_or(default);
    let keys = pgp_keys(&flags.list("pgp-keys"));
    let (shares, threshold) = (count("key-shares", 5), count("key-threshold", 3));
    let (verify, backup) = (flags.bool("verify"), flags.bool("backup"));
    let keys = keys.map_err(|why| invocation.fail(&why))?;
    let body = json!({
        "secret_shares": shares,
        "secret_threshold": threshold,
        "pgp_keys": keys,
        "require_verification": verify,
        "backup": backup,
    });
    let status = session.raw_json("PUT", &target.path("init"), Some(&body));
    let status = status.map_err(|error| invocation.refused("Error initializing rekey", &error))?;
    if keys.is_null() && invocation.format == Format::Table {
        let text = "WARNING! If you lose the keys after they are returned, there is no recovery. Consider canceling this \
                    operation and beginning again with the -pgp-keys flag, which protects the returned keys, and with \
                    -verify, which keeps the present keys valid until the new ones have been entered.";
        invocation.ui.warn(&format!("{}\n", wrap(text, 0)));
    }
    if invocation.format == Format::Table {
        invocation.ui.output("");
    }
    Ok(print(invocation, &status))
}

/// The nonce as a query, for who has no token.
fn nonce(invocation: &Invocation<'_, '_>) -> Vec<(&'static str, String)> {
    invocation.flags.text("nonce").map(|nonce| ("nonce", nonce.to_owned())).into_iter().collect()
}

fn cancelled(invocation: &mut Invocation<'_, '_>, session: &Session, target: Target) -> Outcome {
    let nonce = nonce(invocation);
    let query: Vec<_> = nonce.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let answer = session.delete(&target.path("init"), &query);
    answer.map_err(|error| invocation.refused("Error canceling rekey", &error))?;
    invocation.ui.output("Success! Canceled rekeying (if it was started)");
    Ok(0)
}

fn restart_verification(invocation: &mut Invocation<'_, '_>, session: &Session, target: Target) -> Outcome {
    let nonce = nonce(invocation);
    let query: Vec<_> = nonce.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let answer = session.call("DELETE", &target.path("verify"), &query, None);
    let answer = answer.map_err(|error| invocation.refused("Error canceling rekey verification", &error))?;
    let status = serde_json::from_slice(&answer.body);
    let status = status.map_err(|error| {
        invocation.fail(&format!("Error canceling rekey verification: the answer cannot be read: {error}"))
    })?;
    Ok(print_verification(invocation, &status))
}

fn update(invocation: &mut Invocation<'_, '_>, session: &Session, target: Target) -> Outcome {
    let status = read(invocation, session, &target.path("init"))?;
    if status["started"] != true {
        let program = invocation.program.command();
        let text =
            format!("No rekey is in progress. Start a rekey by running \"{program} operator rekey -init\".");
        return Err(invocation.fail(&text));
    }
    let running = status["nonce"].as_str().unwrap_or_default();
    let (key, nonce) = entered(invocation, "Rekey operation", target.share, running)?;
    let body = json!({ "key": key.trim(), "nonce": nonce });
    let answer = session.raw_json("PUT", &target.path("update"), Some(&body));
    wipe(body);
    let answer = answer.map_err(|error| invocation.refused("Error posting rekey key", &error))?;
    if answer["complete"] != true {
        return Ok(print(invocation, &answer));
    }
    warn(invocation, &answer);
    if invocation.format == Format::Table {
        invocation.ui.output(&completed(&answer, &status, target));
        return Ok(0);
    }
    let fields = [
        "nonce",
        "complete",
        "keys",
        "keys_base64",
        "pgp_fingerprints",
        "backup",
        "verification_required",
        "verification_nonce",
    ];
    Ok(print_fields(invocation, &answer, &fields))
}

fn verification(invocation: &mut Invocation<'_, '_>, session: &Session, target: Target) -> Outcome {
    let path = target.path("verify");
    let status = read(invocation, session, &path)?;
    let running = status["nonce"].as_str().unwrap_or_default();
    let (key, nonce) = entered(invocation, "Rekey verification", target.share, running)?;
    let body = json!({ "key": key.trim(), "nonce": nonce });
    let answer = session.raw_json("PUT", &path, Some(&body));
    wipe(body);
    let answer =
        answer.map_err(|error| invocation.refused("Error posting rekey verification key", &error))?;
    if answer["complete"] != true {
        return Ok(print_verification(invocation, &answer));
    }
    warn(invocation, &answer);
    if invocation.format != Format::Table {
        return Ok(print_fields(invocation, &answer, &["nonce", "complete"]));
    }
    let text =
        "Rekey verification successful. The rekey operation is complete and the new keys are now active.";
    invocation.ui.output(&wrap(text, 0));
    Ok(0)
}

fn warn(invocation: &mut Invocation<'_, '_>, answer: &Value) {
    let warnings = answer["warnings"].as_array().into_iter().flatten();
    let warnings: Vec<_> = warnings.map(output::go).collect();
    invocation.ui.server_warnings(&warnings);
}

fn print_fields(invocation: &mut Invocation<'_, '_>, answer: &Value, fields: &[&'static str]) -> i32 {
    let (ui, format) = invocation.printer();
    let fields = fields.iter().map(|key| (*key, answer.get(key).cloned().unwrap_or_default()));
    output::print(ui, format, Document::object(fields))
}

fn print(invocation: &mut Invocation<'_, '_>, status: &Value) -> i32 {
    if invocation.format != Format::Table {
        return print_fields(invocation, status, &STATUS);
    }
    invocation.ui.output(&rows(status));
    0
}

fn print_verification(invocation: &mut Invocation<'_, '_>, status: &Value) -> i32 {
    if invocation.format != Format::Table {
        return print_fields(invocation, status, &["nonce", "started", "t", "n", "progress"]);
    }
    invocation.ui.output(&verification_rows(status));
    0
}

fn rows(status: &Value) -> String {
    let text = |key: &str| status.get(key).map(output::go).unwrap_or_default();
    if status["started"] != true {
        return output::key_value_rows([("Nonce", "n/a".to_owned()), ("Started", "false".to_owned())]);
    }
    let mut rows = vec![
        ("Nonce", text("nonce")),
        ("Started", text("started")),
        ("Rekey Progress", format!("{}/{}", text("progress"), text("required"))),
        ("New Shares", text("n")),
        ("New Threshold", text("t")),
        ("Verification Required", text("verification_required")),
    ];
    if status["verification_nonce"].is_string() {
        rows.push(("Verification Nonce", text("verification_nonce")));
    }
    if status["pgp_fingerprints"].is_array() {
        rows.push(("PGP Fingerprints", text("pgp_fingerprints")));
        rows.push(("Backup", text("backup")));
    }
    output::key_value_rows(rows)
}

fn verification_rows(status: &Value) -> String {
    let text = |key: &str| status.get(key).map(output::go).unwrap_or_default();
    output::key_value_rows([
        ("Started", text("started")),
        ("New Shares", text("n")),
        ("New Threshold", text("t")),
        ("Verification Nonce", text("nonce")),
        ("Verification Progress", format!("{}/{}", text("progress"), text("t"))),
    ])
}

/// `status` is from before the last share, and has the numbers.
fn completed(answer: &Value, status: &Value, target: Target) -> String {
    let text = |key: &str| answer.get(key).map(output::go).unwrap_or_default();
    let fingerprints = answer["pgp_fingerprints"].as_array();
    let keys = answer["keys_base64"].as_array().into_iter().flatten().enumerate();
    let mut lines = vec![String::new()];
    lines.extend(keys.map(|(at, key)| {
        let key = output::go(key);
        match fingerprints.and_then(|all| all.get(at)).map(output::go) {
            Some(fingerprint) => format!("Key {} fingerprint: {fingerprint}; value: {key}", at + 1),
            None => format!("Key {}: {key}", at + 1),
        }
    }));
    lines.push(format!("\nOperation nonce: {}\n", text("nonce")));
    let (n, t, what) = (output::go(&status["n"]), output::go(&status["t"]), target.what);
    let use_them = match what {
        "unseal" => format!(
            " When a node is re-sealed, restarted, or stopped, you must supply at least {t} of these keys to unseal it \
             before it can start servicing requests."
        ),
        _ => String::new(),
    };
    if answer["verification_required"] != true {
        lines.push(wrap(
            &format!(
                "Vault {what} keys rekeyed to {n} key shares and a key threshold of {t}. Please securely distribute the \
                 key shares printed above.{use_them}"
            ),
            0,
        ));
        return lines.join("\n");
    }
    lines.push(wrap(
        &format!(
            "Vault has created a new {what} key, split into {n} key shares and a key threshold of {t}. These will not be \
             active until after verification is complete. Please securely distribute the key shares printed above.\
             {use_them}"
        ),
        0,
    ));
    lines.push(String::new());
    lines.push(wrap(
        "Again, these key shares are _not_ valid until verification is performed. Do not lose or discard your current \
         key shares until after verification is complete. If you cancel the rekey process or the node that leads is \
         sealed before verification is complete, the new shares will be discarded and the current shares will remain \
         valid.",
        0,
    ));
    lines.push("\nThe current verification status, including initial nonce, is shown below.\n".to_owned());
    lines.push(verification_rows(&json!({
        "started": true,
        "n": status["n"],
        "t": status["t"],
        "nonce": answer["verification_nonce"],
        "progress": 0,
    })));
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_but_nonce_and_state_is_shown_of_what_has_not_begun() {
        assert_eq!(rows(&json!({ "started": false, "nonce": "" })), "Nonce      n/a\nStarted    false");
        let running = json!({
            "nonce": "x", "started": true, "n": 5, "t": 3, "progress": 1, "required": 2,
            "verification_required": false, "pgp_fingerprints": null,
        });
        let expected = "\
Nonce                    x
Started                  true
Rekey Progress           1/2
New Shares               5
New Threshold            3
Verification Required    false";
        assert_eq!(rows(&running), expected);
    }

    #[test]
    fn new_shares_are_listed_and_it_is_said_from_when_they_count() {
        let target =
            Target { base: "sys/rekey", backup: "sys/rekey/backup", share: "Unseal Key", what: "unseal" };
        let status = json!({ "n": 2, "t": 2 });
        let mut answer =
            json!({ "nonce": "x", "keys_base64": ["AA==", "AQ=="], "verification_required": false });
        let text = completed(&answer, &status, target);
        let start =
            "\nKey 1: AA==\nKey 2: AQ==\n\nOperation nonce: x\n\nVault unseal keys rekeyed to 2 key shares";
        assert!(text.starts_with(start), "{text}");
        answer["verification_required"] = true.into();
        answer["verification_nonce"] = "y".into();
        answer["pgp_fingerprints"] = json!(["f1", "f2"]);
        let text = completed(&answer, &status, target);
        assert!(text.contains("Key 2 fingerprint: f2; value: AQ=="), "{text}");
        assert!(text.contains("_not_ valid until verification"), "{text}");
        assert!(text.ends_with("Verification Nonce       y\nVerification Progress    0/2"), "{text}");
    }
}
