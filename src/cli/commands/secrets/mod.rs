//! `secrets`: which engines are mounted where.

mod enable;
mod list;
mod options;
mod relocate;
mod tune;

use super::logical::trimmed;
use crate::cli::flags::{Flag, Kind};
use crate::cli::{Command, Invocation, Outcome};

/// The table's entries.
pub const COMMANDS: &[Command] = &[
    Command {
        name: "secrets",
        synopsis: "Works with secrets engines",
        about: "Works with secrets engines: what is mounted where.",
        ..Command::DEFAULT
    },
    Command {
        name: "secrets enable",
        synopsis: "Mounts a secrets engine",
        arguments: "[options] TYPE",
        about: "Mounts a secrets engine, at a path named after its type unless told otherwise:\n\n    \
                $ {program} secrets enable -path=secret kv-v2",
        flags: enable::FLAGS,
        run: Some(enable::run),
        ..Command::DEFAULT
    },
    Command {
        name: "secrets disable",
        synopsis: "Unmounts a secrets engine and removes its data",
        arguments: "[options] PATH",
        about: "Unmounts a secrets engine. Everything it stored is removed for good.",
        run: Some(disable),
        ..Command::DEFAULT
    },
    Command {
        name: "secrets list",
        synopsis: "Lists what is mounted",
        about: "Lists the secrets engines by their paths.",
        flags: &[Flag::new("detailed", Kind::Bool, "Show all that is known about each.")],
        run: Some(list::run),
        ..Command::DEFAULT
    },
    Command {
        name: "secrets tune",
        synopsis: "Changes how a secrets engine is mounted",
        arguments: "[options] PATH",
        about: "Changes what is given of a mounted secrets engine's configuration and leaves the rest:\n\n    \
                $ {program} secrets tune -default-lease-ttl=72h secret",
        flags: tune::FLAGS,
        run: Some(tune::run),
        ..Command::DEFAULT
    },
    Command {
        name: "secrets move",
        synopsis: "Moves a secrets engine to another path",
        arguments: "[options] SOURCE DESTINATION",
        about: "Moves a mounted secrets engine, with all that it holds, to another path. Leases that it gave out\n\
                are revoked.",
        run: Some(relocate::run),
        ..Command::DEFAULT
    },
];

fn disable(invocation: &mut Invocation<'_, '_>) -> Outcome {
    invocation.expect_args(1)?;
    let path = trimmed(&invocation.args[0]).to_owned();
    let session = invocation.session()?;
    let answer = session.delete(&format!("sys/mounts/{path}"), &[]);
    let doing = format!("Error disabling secrets engine at {path}/");
    answer.map_err(|error| invocation.refused(&doing, &error))?;
    invocation.ui.output(&format!("Success! Disabled the secrets engine (if it existed) at: {path}/"));
    Ok(0)
}
