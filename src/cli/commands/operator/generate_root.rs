//! `operator generate-root`.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::{entered, init::pgp_key, wipe};
use crate::cli::flags::{Flag, Kind};
use crate::cli::output::{self, Document, Format};
use crate::cli::session::Session;
use crate::cli::ui::wrap;
use crate::cli::{Invocation, Outcome};
use crate::core::token::random_otp;

pub const FLAGS: &[Flag] = &[
    Flag::new("init", Kind::Bool, "Begin; the shares are entered afterwards."),
    Flag::new("cancel", Kind::Bool, "Forget what was begun, and the shares that were entered."),
    Flag::new("status", Kind::Bool, "Show how far it has come."),
    Flag::new("decode", Kind::Text, "The encoded token; -otp takes it out."),
    Flag::new("generate-otp", Kind::Bool, "Print a one-time password."),
    Flag::new("otp", Kind::Text, "The one-time password, for -init or -decode."),
    Flag::new("pgp-key", Kind::Text, "File with a PGP public key to encrypt the token with, for -init."),
    Flag::new("nonce", Kind::Text, "The nonce that it began with."),
];

const ATTEMPT: &str = "sys/generate-root/attempt";

pub fn run(invocation: &mut Invocation<'_, '_>) -> Outcome {
    if invocation.args.len() > 1 {
        invocation.expect_args(1)?;
    }
    if invocation.flags.bool("generate-otp") {
        return Ok(print_one(invocation, "otp", random_otp().expose()));
    }
    if invocation.flags.text("decode").is_some() {
        return decode(invocation);
    }
    let session = invocation.session()?;
    let flags = &invocation.flags;
    if flags.bool("cancel") {
        let query: Vec<_> = flags.text("nonce").map(|nonce| ("nonce", nonce)).into_iter().collect();
        let answer = session.delete(ATTEMPT, &query);
        answer.map_err(|error| invocation.refused("Error canceling root token generation", &error))?;
        invocation.ui.output("Success! Root token generation canceled (if it was started)");
        return Ok(0);
    }
    if flags.bool("init") {
        return begin(invocation, &session);
    }
    let status = session.raw_json("GET", ATTEMPT, None);
    let status =
        status.map_err(|error| invocation.refused("Error getting root generation status", &error))?;
    if invocation.flags.bool("status") {
        return Ok(print(invocation, &status));
    }
    if status["started"] != true {
        let program = invocation.program.command();
        let text = format!(
            "No root generation is in progress. Start a root generation by running \"{program} operator generate-root -init\"."
        );
        return Err(invocation.fail(&text));
    }
    let running = status["nonce"].as_str().unwrap_or_default();
    let (key, nonce) = entered(invocation, "Operation", "Unseal Key or Recovery Key", running)?;
    let body = json!({ "key": key.trim(), "nonce": nonce });
    let answer = session.raw_json("PUT", "sys/generate-root/update", Some(&body));
    wipe(body);
    let answer = answer.map_err(|error| invocation.refused("Error posting unseal key", &error))?;
    Ok(print(invocation, &answer))
}

fn begin(invocation: &mut Invocation<'_, '_>, session: &Session) -> Outcome {
    let otp = Zeroizing::new(invocation.flags.text("otp").unwrap_or_default().to_owned());
    let key = invocation.flags.text("pgp-key").map(pgp_key).transpose();
    let key = key.map_err(|why| invocation.fail(&why))?.unwrap_or_default();
    if otp.is_empty() && key.is_empty() && invocation.format == Format::Table {
        let text = "A One-Time-Password has been generated for you and is shown in the OTP field. You will need this \
                    value to decode the resulting root token, so keep it safe.";
        invocation.ui.warn(&wrap(text, 0));
    }
    let body = json!({ "otp": *otp, "pgp_key": key });
    let status = session.raw_json("PUT", ATTEMPT, Some(&body));
    wipe(body);
    let status = status.map_err(|error| invocation.refused("Error initializing root generation", &error))?;
    Ok(print(invocation, &status))
}

fn decode(invocation: &mut Invocation<'_, '_>) -> Outcome {
    let encoded = invocation.flags.text("decode").unwrap_or_default().trim().trim_end_matches('=').to_owned();
    let otp = Zeroizing::new(invocation.flags.text("otp").unwrap_or_default().trim().to_owned());
    if otp.is_empty() {
        return Err(invocation.fail("Missing otp: use -otp to supply it"));
    }
    match unmixed(&encoded, &otp) {
        Ok(token) => Ok(print_one(invocation, "token", &token)),
        Err(why) => Err(invocation.fail(&format!("Error decoding root token: {why}"))),
    }
}

/// The token that was encoded with a password.
fn unmixed(encoded: &str, otp: &str) -> Result<Zeroizing<String>, String> {
    let mixed = STANDARD_NO_PAD.decode(encoded).map_err(|error| error.to_string())?;
    if mixed.len() != otp.len() {
        return Err(format!("it has {} characters, and the password has {}", mixed.len(), otp.len()));
    }
    let token: Option<String> = mixed
        .iter()
        .zip(otp.bytes())
        .map(|(a, b)| Some(char::from(a ^ b)).filter(char::is_ascii_graphic))
        .collect();
    token.map(Zeroizing::new).ok_or_else(|| "the password is not the one it was encoded with".to_owned())
}

fn print_one(invocation: &mut Invocation<'_, '_>, name: &'static str, value: &str) -> i32 {
    let (ui, format) = invocation.printer();
    if format == Format::Table {
        let value = Value::from(value);
        return output::print_field(ui, format, name, Some(&value));
    }
    output::print(ui, format, Document::object([(name, Value::from(value))]))
}

fn print(invocation: &mut Invocation<'_, '_>, status: &Value) -> i32 {
    let (ui, format) = invocation.printer();
    if format == Format::Table {
        ui.output(&rows(status));
        return 0;
    }
    let fields = [
        "nonce",
        "started",
        "progress",
        "required",
        "complete",
        "encoded_token",
        "encoded_root_token",
        "pgp_fingerprint",
        "otp",
        "otp_length",
    ];
    let fields = fields.map(|key| (key, status.get(key).cloned().unwrap_or_default()));
    output::print(ui, format, Document::object(fields))
}

fn rows(status: &Value) -> String {
    let text = |key: &str| status.get(key).map(output::go).unwrap_or_default();
    let mut rows = vec![
        ("Nonce", text("nonce")),
        ("Started", text("started")),
        ("Progress", format!("{}/{}", text("progress"), text("required"))),
        ("Complete", text("complete")),
    ];
    let optional = [
        ("PGP Fingerprint", "pgp_fingerprint"),
        ("OTP", "otp"),
        ("OTP Length", "otp_length"),
        ("Encoded Token", "encoded_token"),
    ];
    let given = optional.map(|(name, key)| (name, text(key))).into_iter();
    rows.extend(given.filter(|(_, value)| !value.is_empty()));
    output::key_value_rows(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_password_takes_the_token_out_and_another_does_not() {
        let mixed: Vec<u8> = "hvs.abc".bytes().zip("0123456".bytes()).map(|(a, b)| a ^ b).collect();
        let encoded = STANDARD_NO_PAD.encode(mixed);
        assert_eq!(*unmixed(&encoded, "0123456").unwrap(), "hvs.abc");
        assert!(unmixed(&encoded, "012345").unwrap_err().contains("7 characters"));
        assert!(unmixed("***", "0123456").is_err());
    }

    #[test]
    fn what_is_empty_is_left_out_of_the_table() {
        let status = json!({
            "nonce": "x", "started": true, "progress": 0, "required": 2, "complete": false, "otp": "o",
            "otp_length": 28, "encoded_token": "", "pgp_fingerprint": "",
        });
        let expected = "\
Nonce         x
Started       true
Progress      0/2
Complete      false
OTP           o
OTP Length    28";
        assert_eq!(rows(&status), expected);
    }
}
