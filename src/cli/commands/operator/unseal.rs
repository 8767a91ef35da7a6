//! `operator unseal`.

use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::super::status::SealStatus;
use super::{ceremony, wipe};
use crate::cli::flags::{Flag, Kind};
use crate::cli::session::Session;
use crate::cli::ui::wrap;
use crate::cli::{Invocation, Outcome};

pub const FLAGS: &[Flag] = &[
    Flag::new("reset", Kind::Bool, "Forget the shares entered so far."),
    Flag::new("migrate", Kind::Bool, "The share is entered for the migration to another seal."),
    Flag::new("cluster", Kind::Bool, "Open the other members, too, once the shares are complete."),
    Flag::new("yes", Kind::Bool, "With -cluster: open the members that are sealed without asking."),
];

pub fn run(invocation: &mut Invocation<'_, '_>) -> Outcome {
    if invocation.args.len() > 1 {
        invocation.expect_args(1)?;
    }
    let session = invocation.session()?;
    if invocation.flags.bool("reset") {
        let status = put(invocation, &session, json!({"reset": true}), "Error resetting unseal process")?;
        return Ok(status.print(invocation));
    }
    if invocation.flags.bool("cluster") {
        return ceremony::run(invocation, &session);
    }
    // Sealed still or not: the share was taken, and that is what was asked for.
    Ok(enter(invocation, &session, "Unseal Key")?.print(invocation))
}

/// Enters one share, with what else the flags ask for.
pub fn enter(invocation: &mut Invocation<'_, '_>, session: &Session, name: &str) -> Result<SealStatus, i32> {
    let key = key(invocation, name)?;
    let flags = &invocation.flags;
    let mut body = json!({"key": key.trim(), "reset": false, "migrate": flags.bool("migrate")});
    if flags.bool("cluster") {
        body["cluster"] = true.into();
    }
    put(invocation, session, body, "Error unsealing")
}

fn put(
    invocation: &mut Invocation<'_, '_>,
    session: &Session,
    body: Value,
    doing: &str,
) -> Result<SealStatus, i32> {
    let answer = session.raw_json("PUT", "sys/unseal", Some(&body));
    wipe(body);
    let status = answer.map_err(|error| invocation.refused(doing, &error))?;
    SealStatus::with_leader(status, session).map_err(|(doing, error)| invocation.refused(doing, &error))
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
