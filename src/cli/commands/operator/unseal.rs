//! `operator unseal`.

use serde_json::json;
use zeroize::Zeroizing;

use super::super::status::SealStatus;
use super::wipe;
use crate::cli::ui::wrap;
use crate::cli::{Invocation, Outcome};

pub fn run(invocation: &mut Invocation<'_, '_>) -> Outcome {
    if invocation.args.len() > 1 {
        invocation.expect_args(1)?;
    }
    let session = invocation.session()?;
    let (body, doing) = if invocation.flags.bool("reset") {
        (json!({"reset": true}), "Error resetting unseal process")
    } else {
        let key = key(invocation, "Unseal Key")?;
        let migrate = invocation.flags.bool("migrate");
        (json!({"key": key.trim(), "reset": false, "migrate": migrate}), "Error unsealing")
    };
    let answer = session.raw_json("PUT", "sys/unseal", Some(&body));
    wipe(body);
    let status = answer.map_err(|error| invocation.refused(doing, &error))?;
    match SealStatus::with_leader(status, &session) {
        // Sealed still or not: the share was taken, and that is what was asked for.
        Ok(status) => Ok(status.print(invocation)),
        Err((doing, error)) => Err(invocation.refused(doing, &error)),
    }
}

/// The share among the arguments, else from the terminal. A `-` is no share and stands for none.
pub fn key(invocation: &mut Invocation<'_, '_>, name: &str) -> Result<Zeroizing<String>, i32> {
    if let Some(key) = invocation.args.first_mut() {
        return Ok(Zeroizing::new(std::mem::take(key)));
    }
    if invocation.flags.bool("non-interactive") {
        return Err(invocation.fail("Refusing to ask for the unseal key with -non-interactive set"));
    }
    invocation.ui.ask_hidden(&format!("{name} (will be hidden): "), true).map_err(|error| {
        let text = "An error occurred attempting to ask for the unseal key. The raw error message is shown below, but \
                    usually this is because you attempted to pipe a value into the unseal command or you are \
                    executing outside of a terminal (tty). You should run the unseal command from a terminal for \
                    maximum security. If this is not an option, the unseal key can be provided as the first argument \
                    to the unseal command. The raw error was:";
        invocation.fail(&format!("{}\n\n{error}", wrap(text, 0)))
    })
}
