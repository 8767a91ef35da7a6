//! `operator init`.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::cli::flags::{Flag, Kind};
use crate::cli::output::{self, Document, Format};
use crate::cli::session::Session;
use crate::cli::ui::wrap;
use crate::cli::{Invocation, Outcome, data};

pub const FLAGS: &[Flag] = &[
    Flag::new("key-shares", Kind::Int, "Number of unseal shares to make; 5 by default."),
    Flag::new("key-threshold", Kind::Int, "Number of them that unseal; 3 by default."),
    Flag::new(
        "pgp-keys",
        Kind::CommaList,
        "Files with PGP public keys to encrypt the shares with, one for each.",
    ),
    Flag::new("root-token-pgp-key", Kind::Text, "File with a PGP public key to encrypt the root token with."),
    Flag::new("recovery-shares", Kind::Int, "Number of recovery shares, for seals that open by themselves."),
    Flag::new("recovery-threshold", Kind::Int, "Number of them that are needed."),
    Flag::new(
        "break-glass-shares",
        Kind::Int,
        "Number of shares that open the cluster when all of its seals are gone; none by default.",
    ),
    Flag::new("break-glass-threshold", Kind::Int, "Number of them that open it; 3 by default."),
    Flag::new(
        "recovery-pgp-keys",
        Kind::CommaList,
        "Files with PGP public keys to encrypt the recovery shares with.",
    ),
    Flag::new(
        "break-glass-pgp-keys",
        Kind::CommaList,
        "Files with PGP public keys to encrypt the break-glass shares with.",
    ),
    Flag::new(
        "status",
        Kind::Bool,
        "Only say whether the cluster is initialised: exit code 0 if so, else 2.",
    ),
];

pub fn run(invocation: &mut Invocation<'_, '_>) -> Outcome {
    invocation.expect_args(0)?;
    let session = invocation.session()?;
    // -output-curl-string is about the init request: this one is sent in any case.
    let status = session.preflight("sys/seal-status");
    let status = status.map_err(|error| invocation.refused("", &error))?;
    let status: Value = serde_json::from_slice(&status.body).unwrap_or_default();
    if invocation.flags.bool("status") {
        return print_status(invocation, &session);
    }
    let recovery = status.get("recovery_seal").and_then(Value::as_bool).unwrap_or(false);
    let body = body(invocation, recovery)?;
    let answer = session.raw_json("PUT", "sys/init", Some(&body));
    let answer = answer.map_err(|error| invocation.refused("Error initializing", &error))?;
    let keys = NewKeys::of(invocation, &answer);
    if invocation.format == Format::Table {
        let text = keys.text(invocation.program.command());
        invocation.ui.output(&text);
        return Ok(0);
    }
    let (ui, format) = invocation.printer();
    Ok(output::print(ui, format, keys.document()))
}

fn print_status(invocation: &mut Invocation<'_, '_>, session: &Session) -> Outcome {
    let answer = session.raw_json("GET", "sys/init", None);
    let answer =
        answer.map_err(|error| invocation.refused("Error checking initialization status", &error))?;
    let initialized = answer.get("initialized").and_then(Value::as_bool).unwrap_or(false);
    let (ui, format) = invocation.printer();
    if format == Format::Table {
        ui.output(if initialized { "Vault is initialized" } else { "Vault is not initialized" });
    } else {
        output::print(ui, format, Document::object([("Initialized", initialized)]));
    }
    Ok(if initialized { 0 } else { 2 })
}

/// Counts that are zero or not given get the defaults of the kind of shares that the seal has.
fn body(invocation: &mut Invocation<'_, '_>, recovery: bool) -> Result<Value, i32> {
    let flags = &invocation.flags;
    let count = |flag: &str, default: i64| match flags.int(flag) {
        None | Some(0) => default,
        Some(count) => count,
    };
    let given = |flag: &str| flags.int(flag).unwrap_or(0);
    let (shares, threshold) = if recovery {
        (given("key-shares"), given("key-threshold"))
    } else {
        (count("key-shares", 5), count("key-threshold", 3))
    };
    let (recovery_shares, recovery_threshold) = if recovery {
        (count("recovery-shares", 5), count("recovery-threshold", 3))
    } else {
        (given("recovery-shares"), given("recovery-threshold"))
    };
    let break_glass = given("break-glass-shares");
    let body = (|| {
        let mut body = json!({
            "secret_shares": shares,
            "secret_threshold": threshold,
            "stored_shares": 0,
            "pgp_keys": pgp_keys(&flags.list("pgp-keys"))?,
            "recovery_shares": recovery_shares,
            "recovery_threshold": recovery_threshold,
            "recovery_pgp_keys": pgp_keys(&flags.list("recovery-pgp-keys"))?,
            "root_token_pgp_key": flags.text("root-token-pgp-key").map(pgp_key).transpose()?.unwrap_or_default(),
        });
        if break_glass > 0 {
            body["break_glass_shares"] = break_glass.into();
            body["break_glass_threshold"] = count("break-glass-threshold", break_glass.min(3)).into();
            body["break_glass_pgp_keys"] = pgp_keys(&flags.list("break-glass-pgp-keys"))?;
        }
        Ok(body)
    })();
    body.map_err(|why: String| invocation.fail(&why))
}

/// The keys in files, in base64; null for none.
pub(super) fn pgp_keys(files: &[&str]) -> Result<Value, String> {
    if files.is_empty() {
        return Ok(Value::Null);
    }
    files.iter().map(|file| pgp_key(file).map(Value::from)).collect::<Result<Vec<_>, _>>().map(Value::from)
}

/// A key's file as base64 of the binary key, whichever of its forms the file has.
pub(super) fn pgp_key(file: &str) -> Result<String, String> {
    let refused = |why: String| format!("invalid value {file:?} for flag -pgp-keys: {why}");
    if file.starts_with("keybase:") {
        return Err(refused("keys are not fetched from Keybase; save the key to a file".to_owned()));
    }
    let bytes = data::file(file.strip_prefix('@').unwrap_or(file)).map_err(refused)?;
    match std::str::from_utf8(&bytes) {
        Ok(text) if text.contains("-----BEGIN PGP") => {
            let body = text.lines().skip_while(|line| !line.trim().is_empty()).skip(1);
            let body =
                body.take_while(|line| !line.starts_with(['=', '-'])).map(str::trim).collect::<String>();
            STANDARD.decode(&body).map(|_| body).map_err(|error| refused(format!("bad armour: {error}")))
        }
        Ok(text) if STANDARD.decode(text.trim()).is_ok() => Ok(text.trim().to_owned()),
        _ => Ok(STANDARD.encode(&bytes)),
    }
}

/// The answer to an initialisation, in JSON's own memory, which nothing wipes before the process ends.
struct NewKeys<'a> {
    answer: &'a Value,
    shares: i64,
    threshold: i64,
    recovery_shares: i64,
    recovery_threshold: i64,
}

impl<'a> NewKeys<'a> {
    fn of(invocation: &Invocation<'_, '_>, answer: &'a Value) -> NewKeys<'a> {
        let count =
            |list: &str| answer.get(list).and_then(Value::as_array).map_or(0, |keys| keys.len() as i64);
        let threshold = |flag: &str, shares: i64| match invocation.flags.int(flag) {
            _ if shares == 0 => 0,
            None | Some(0) => 3,
            Some(threshold) => threshold,
        };
        let (shares, recovery_shares) = (count("keys"), count("recovery_keys"));
        NewKeys {
            answer,
            shares,
            threshold: threshold("key-threshold", shares),
            recovery_shares,
            recovery_threshold: threshold("recovery-threshold", recovery_shares),
        }
    }

    fn list(&self, key: &str) -> Value {
        self.answer.get(key).filter(|list| list.is_array()).cloned().unwrap_or_else(|| json!([]))
    }

    fn root_token(&self) -> &str {
        self.answer.get("root_token").and_then(Value::as_str).unwrap_or_default()
    }

    fn document(&self) -> Document {
        let mut fields = vec![
            ("unseal_keys_b64", self.list("keys_base64")),
            ("unseal_keys_hex", self.list("keys")),
            ("unseal_shares", self.shares.into()),
            ("unseal_threshold", self.threshold.into()),
            ("recovery_keys_b64", self.list("recovery_keys_base64")),
            ("recovery_keys_hex", self.list("recovery_keys")),
            ("recovery_keys_shares", self.recovery_shares.into()),
            ("recovery_keys_threshold", self.recovery_threshold.into()),
            ("root_token", self.root_token().into()),
        ];
        // Not Vault's: only where there are some.
        for (name, list) in [
            ("break_glass_keys_b64", "break_glass_keys_base64"),
            ("break_glass_keys_hex", "break_glass_keys"),
        ] {
            fields.extend(self.answer.get(list).map(|keys| (name, keys.clone())));
        }
        Document::object(fields)
    }

    fn text(&self, program: &str) -> String {
        let mut lines = Vec::new();
        for (title, key) in [
            ("Unseal", "keys_base64"),
            ("Recovery", "recovery_keys_base64"),
            ("Break-Glass", "break_glass_keys_base64"),
        ] {
            for (at, share) in self.list(key).as_array().into_iter().flatten().enumerate() {
                lines.push(format!("{title} Key {}: {}", at + 1, output::go(share)));
            }
        }
        lines.push(format!("\nInitial Root Token: {}\n", self.root_token()));
        let (shares, threshold) = (self.shares, self.threshold);
        if shares > 0 {
            lines.push(wrap(
                &format!(
                    "Vault initialized with {shares} key shares and a key threshold of {threshold}. Please securely \
                     distribute the key shares printed above. When a node is re-sealed, restarted, or stopped, you \
                     must supply at least {threshold} of these keys to unseal it before it can start servicing \
                     requests."
                ),
                0,
            ));
            lines.push(wrap(
                &format!(
                    "\nVault does not store the root key that the shares open. Without at least {threshold} keys to \
                     reconstruct it, everything stored stays sealed for ever!"
                ),
                0,
            ));
            lines.push(wrap(
                &format!(
                    "\nIt is possible to make new unseal keys, provided you have a quorum of existing unseal key \
                     shares. See \"{program} operator rekey\" for more information."
                ),
                0,
            ));
        } else {
            lines.push("Success! Vault is initialized".to_owned());
            let (shares, threshold) = (self.recovery_shares, self.recovery_threshold);
            lines.push(wrap(
                &format!(
                    "\nRecovery key initialized with {shares} key shares and a key threshold of {threshold}. Please \
                     securely distribute the key shares printed above."
                ),
                0,
            ));
        }
        lines.join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_keys_of_the_answer_come_in_vaults_order() {
        let answer = json!({"keys": ["00", "01"], "keys_base64": ["AA==", "AQ=="], "root_token": "s.r"});
        let keys =
            NewKeys { answer: &answer, shares: 2, threshold: 2, recovery_shares: 0, recovery_threshold: 0 };
        let json = keys.document().render(Format::Json).unwrap();
        let names: Vec<_> =
            json.lines().filter_map(|line| line.split_once("\":")).map(|(name, _)| name.trim()).collect();
        assert_eq!(
            names.join(" "),
            "\"unseal_keys_b64 \"unseal_keys_hex \"unseal_shares \"unseal_threshold \"recovery_keys_b64 \
             \"recovery_keys_hex \"recovery_keys_shares \"recovery_keys_threshold \"root_token"
        );
        assert!(json.contains("\"recovery_keys_b64\": []"));
        assert!(
            keys.text("keystead")
                .starts_with("Unseal Key 1: AA==\nUnseal Key 2: AQ==\n\nInitial Root Token: s.r\n\n")
        );
    }

    #[test]
    fn pgp_keys_are_sent_as_base64_whatever_their_file_holds() {
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str, contents: &[u8]| {
            let path = directory.path().join(name);
            std::fs::write(&path, contents).unwrap();
            path.display().to_string()
        };
        assert_eq!(pgp_key(&file("binary", &[0x99, 1])), Ok("mQE=".to_owned()));
        assert_eq!(pgp_key(&file("base64", b"mQE=\n")), Ok("mQE=".to_owned()));
        let armoured =
            b"-----BEGIN PGP PUBLIC KEY BLOCK-----\nVersion: x\n\nmQE=\n-----END PGP PUBLIC KEY BLOCK-----\n";
        assert_eq!(pgp_key(&file("armoured", armoured)), Ok("mQE=".to_owned()));
        assert!(pgp_key("/nonexistent").unwrap_err().starts_with("invalid value \"/nonexistent\""));
    }
}
