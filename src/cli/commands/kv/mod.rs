//! `kv`: secrets with or without versions, addressed without the API's inner path segments.

mod delete;
mod enable_versioning;
mod get;
mod list;
mod metadata;
mod mount;
mod patch;
mod put;
mod rollback;
mod versions;

use crate::cli::flags::{Flag, Kind};
use crate::cli::{Command, FIELD};

const MOUNT: Flag = Flag::new(
    "mount",
    Kind::Text,
    "Path of the engine; the argument is then the name of the secret inside it, nothing of it the mount's.",
);

const VERSIONS: Flag = Flag::new("versions", Kind::CommaList, "The versions' numbers, separated by commas.");

const CAS_REQUIRED: Flag =
    Flag::new("cas-required", Kind::Bool, "Refuse writes that do not name the current version.");

const MAX_VERSIONS: Flag =
    Flag::new("max-versions", Kind::Int, "How many versions are kept; 0: as the engine says.");

const DELETE_VERSION_AFTER: Flag =
    Flag::new("delete-version-after", Kind::Duration, "How long a version lives; 0s: as the engine says.");

const CUSTOM_METADATA: Flag =
    Flag::new("custom-metadata", Kind::Map, "A note, key=value; may be given more than once.");

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
        name: "kv patch",
        synopsis: "Changes some fields of a secret",
        arguments: "[options] KEY [DATA K=V...]",
        about: "Changes the given fields of a secret and leaves its others, as a new version.",
        flags: &[
            FIELD,
            MOUNT,
            Flag::new("cas", Kind::Int, "Write only if this is the current version."),
            Flag::new(
                "method",
                Kind::Text,
                "patch: the server makes the change; rw: it is read and written. By default patch, and rw where \
                 the policy has no patch capability.",
            ),
            Flag::new("remove-data", Kind::List, "A field to remove; may be given more than once."),
        ],
        takes_data: true,
        run: Some(patch::run),
        ..Command::DEFAULT
    },
    Command {
        name: "kv rollback",
        synopsis: "Makes an earlier version the newest again",
        arguments: "[options] KEY",
        about: "Writes the data of an earlier version as a new one. Nothing is removed.",
        flags: &[MOUNT, Flag::new("version", Kind::Int, "The earlier version's number.")],
        run: Some(rollback::run),
        ..Command::DEFAULT
    },
    Command {
        name: "kv enable-versioning",
        synopsis: "Turns versions on for an engine without them",
        arguments: "[options] PATH",
        about: "Turns a key/value engine of version 1 into one of version 2. What it holds becomes version 1 of\n\
                each secret. There is no way back.",
        run: Some(enable_versioning::run),
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
        name: "kv metadata put",
        synopsis: "Sets limits and notes of a secret",
        arguments: "[options] KEY",
        about: "Sets how many versions of a secret are kept and for how long, and its custom metadata, which are\n\
                replaced as a whole. The secret need not exist yet.",
        flags: &[MOUNT, CAS_REQUIRED, MAX_VERSIONS, DELETE_VERSION_AFTER, CUSTOM_METADATA],
        run: Some(metadata::put),
        ..Command::DEFAULT
    },
    Command {
        name: "kv metadata patch",
        synopsis: "Changes limits and notes of a secret",
        arguments: "[options] KEY",
        about: "Changes what is given of a secret's limits and custom metadata and leaves the rest.",
        flags: &[
            MOUNT,
            CAS_REQUIRED,
            MAX_VERSIONS,
            DELETE_VERSION_AFTER,
            CUSTOM_METADATA,
            Flag::new(
                "remove-custom-metadata",
                Kind::List,
                "A key of the custom metadata to remove; may be given more than once.",
            ),
        ],
        run: Some(metadata::patch),
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
