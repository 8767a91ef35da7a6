//! `unwrap`.

use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::logical::{print_list, print_or_field};
use crate::cli::{Command, FIELD, Invocation, Outcome};
use crate::client::Token;

/// The table's entry.
pub const COMMANDS: &[Command] = &[Command {
    name: "unwrap",
    synopsis: "Unwraps a wrapped answer",
    arguments: "[options] [TOKEN]",
    about: "Exchanges a wrapping token for the answer behind it, and shows that as the command would have that\n\
            asked for it. It can be done once. Without TOKEN, the token in use is the wrapping token.",
    flags: &[FIELD],
    run: Some(run),
    ..Command::DEFAULT
}];

fn run(invocation: &mut Invocation<'_, '_>) -> Outcome {
    if invocation.args.len() > 1 {
        let got = invocation.args.len();
        return Err(invocation.fail(&format!("Too many arguments (expected 0-1, got {got})")));
    }
    let wrapping = invocation.args.first_mut().map(std::mem::take).map(Zeroizing::new);
    let wrapping =
        wrapping.map(|token| Zeroizing::new(token.trim().to_owned())).filter(|token| !token.is_empty());
    let mut session = invocation.session()?;
    // What was wrapped is asked for, not wrapped once more.
    session.without_wrapping();
    let mut body = None;
    if let Some(wrapping) = wrapping {
        match session.token() {
            Some(own) if own.expose() != wrapping.as_str() => {
                body = Some(json!({"token": wrapping.as_str()}))
            }
            Some(_) => {}
            // Without a token of his own, the caller is who holds the wrapping token.
            None => session.replace_token(Token::new(wrapping.as_str())),
        }
    }
    let answer = session.send("PUT", "sys/wrapping/unwrap", body.as_ref());
    if let Some(Value::String(token)) = body.as_mut().and_then(|body| body.get_mut("token")).map(Value::take)
    {
        drop(Zeroizing::new(token));
    }
    let answer = answer.map_err(|error| invocation.refused("Error unwrapping", &error))?;
    let Some(secret) = answer else {
        invocation.ui.error("Could not find wrapped response");
        return Err(2);
    };
    if secret.keys().is_some() && !invocation.flags.has("field") {
        return Ok(print_list(invocation, Some(secret), ""));
    }
    Ok(print_or_field(invocation, secret))
}
