//! `kv`: secrets with or without versions, addressed without the API's inner path segments.

mod delete;
mod get;
mod list;
mod metadata;
mod mount;
mod put;
mod versions;

use crate::cli::flags::{Flag, Kind};
use crate::cli::{Command, FIELD};

const MOUNT: Flag = Flag::new(
    "mount",
    Kind::Text,
    "Path of the engine; the argument is then the name of the secret inside it, nothing of it the mount's.",
);

const VERSIONS: Flag = Flag::new("versions", Kind::CommaList, "The versions' numbers, separated by commas.");

/// The table's entries.
pub const COMMANDS: &[Command] = &[
    Command {
        name: "kv",
        synopsis: "Works with secrets in a key/value engine",
        about: "Works with secrets in a key/value engine, of either version:\n\n    \
                $ {program} kv put -mount=secret app/db password=s3cr3t\n    \
                $ {program} kv get -mount=secret app/db",
        ..Command::DEFAULT
    },
    Command {
        name: "kv put",
        synopsis: "Writes a secret, as a new version",
        arguments: "[options] KEY [DATA K=V...]",
        about: "Writes a secret. With versions, this makes a new one and leaves the others.",
        flags: &[
            FIELD,
            MOUNT,
            Flag::new(
                "cas",
                Kind::Int,
                "Write only if this is the current version; 0: only if there is none.",
            ),
        ],
        takes_data: true,
        run: Some(put::run),
        ..Command::DEFAULT
    },
    Command {
        name: "kv get",
        synopsis: "Reads a secret",
        arguments: "[options] KEY",
        about: "Reads a secret, its newest version unless told otherwise.",
        flags: &[FIELD, MOUNT, Flag::new("version", Kind::Int, "The version's number.")],
        run: Some(get::run),
        ..Command::DEFAULT
    },
    Command {
        name: "kv list",
        synopsis: "Lists names",
        arguments: "[options] [PREFIX]",
        about: "Lists the names under a prefix; those that end in a slash have more names under them.",
        flags: &[MOUNT],
        run: Some(list::run),
        ..Command::DEFAULT
    },
    Command {
        name: "kv delete",
        synopsis: "Deletes versions; undelete brings them back",
        arguments: "[options] KEY",
        about: "Deletes the newest version of a secret, or those given. With versions, the data stay and can be\n\
                brought back with undelete; without, they are gone.",
        flags: &[MOUNT, VERSIONS],
        run: Some(delete::run),
        ..Command::DEFAULT
    },
    Command {
        name: "kv undelete",
        synopsis: "Brings deleted versions back",
        arguments: "[options] KEY",
        about: "Brings deleted versions of a secret back.",
        flags: &[MOUNT, VERSIONS],
        run: Some(versions::undelete),
        ..Command::DEFAULT
    },
    Command {
        name: "kv destroy",
        synopsis: "Removes versions for good",
        arguments: "[options] KEY",
        about: "Removes the data of versions of a secret for good.",
        flags: &[MOUNT, VERSIONS],
        run: Some(versions::destroy),
        ..Command::DEFAULT
    },
    Command {
        name: "kv metadata",
        synopsis: "Works with what is known about a secret",
        about: "Works with what is known about a secret: its versions and their limits.",
        ..Command::DEFAULT
    },
    Command {
        name: "kv metadata get",
        synopsis: "Shows what is known about a secret",
        arguments: "[options] KEY",
        about: "Shows the versions of a secret and their limits.",
        flags: &[FIELD, MOUNT],
        run: Some(metadata::get),
        ..Command::DEFAULT
    },
    Command {
        name: "kv metadata delete",
        synopsis: "Removes a secret with all its versions",
        arguments: "[options] KEY",
        about: "Removes a secret, all its versions, and all that is known about it, for good.",
        flags: &[MOUNT],
        run: Some(metadata::delete),
        ..Command::DEFAULT
    },
];
