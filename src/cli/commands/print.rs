//! `print token`.

use crate::cli::{Command, Invocation, Outcome, session};

/// The table's entries.
pub const COMMANDS: &[Command] = &[
    Command {
        name: "print",
        synopsis: "Prints what the command line would use",
        about: "Prints what other commands would use.",
        ..Command::DEFAULT
    },
    Command {
        name: "print token",
        synopsis: "Prints the token in use",
        about: "Prints the token that other commands send: that of VAULT_TOKEN, else the one that login stored.\n\
                An empty line means that there is none.",
        run: Some(token),
        ..Command::DEFAULT
    },
];

fn token(invocation: &mut Invocation<'_, '_>) -> Outcome {
    invocation.expect_args(0)?;
    match session::effective_token(invocation.environment) {
        Ok(token) => {
            invocation.ui.output(token.as_ref().map_or("", |token| token.expose()));
            Ok(0)
        }
        Err(why) => Err(invocation.fail(&why)),
    }
}
