//! `operator`: what the people who run a cluster do.

mod break_glass;
mod diagnose;
mod init;
mod key_status;
mod members;
mod raft;
mod rebuild;
mod seal;
mod unseal;
mod verify_share;

use serde_json::Value;
use zeroize::Zeroizing;

use crate::cli::Command;
use crate::cli::flags::{Flag, Kind};

/// The table's entries.
pub const COMMANDS: &[Command] = &[
    Command {
        name: "operator",
        synopsis: "Runs a cluster: init, unseal, seal, members",
        about: "What the people who run a cluster do.",
        ..Command::DEFAULT
    },
    Command {
        name: "operator init",
        synopsis: "Initialises a cluster",
        about: "Initialises a cluster: makes its keys, prints the unseal shares and the first root token. They are\n\
                shown this once. One node is initialised; the others join it.",
        flags: init::FLAGS,
        run: Some(init::run),
        ..Command::DEFAULT
    },
    Command {
        name: "operator unseal",
        synopsis: "Enters an unseal share",
        arguments: "[options] [KEY]",
        about: "Enters one unseal share into the node at the address; without KEY it is asked for and typed unseen,\n\
                which keeps it out of the shell's history. The exit code is 0 whether or not more shares are needed.",
        flags: &[
            Flag::new("reset", Kind::Bool, "Forget the shares entered so far."),
            Flag::new("migrate", Kind::Bool, "The share is entered for the migration to another seal."),
        ],
        run: Some(unseal::run),
        ..Command::DEFAULT
    },
    Command {
        name: "operator verify-share",
        synopsis: "Checks a share alone",
        arguments: "[options] [KEY]",
        about: "Checks one unseal, recovery or break-glass share without unsealing anything and without any other share;\n\
                without KEY it is asked for and typed unseen. The exit code is 0 if it is good, else 2.",
        run: Some(verify_share::run),
        ..Command::DEFAULT
    },
    Command {
        name: "operator seal",
        synopsis: "Seals a node",
        about: "Seals the node at the address: it forgets its keys and serves nothing until it is unsealed again.",
        run: Some(seal::run),
        ..Command::DEFAULT
    },
    Command {
        name: "operator break-glass",
        synopsis: "Works with the shares for the day on which no seal works",
        about: "Break-glass shares open a cluster whose seals are all gone. They are made, and done away with, by who has\n\
                a token and a threshold of the recovery keys.",
        ..Command::DEFAULT
    },
    Command {
        name: "operator break-glass status",
        synopsis: "Shows whether there are break-glass shares",
        about: "Shows whether there are break-glass shares, how many, and of which generation of the root key.",
        run: Some(break_glass::status),
        ..Command::DEFAULT
    },
    Command {
        name: "operator break-glass enable",
        synopsis: "Makes break-glass shares",
        arguments: "[options] [KEY]",
        about: "Makes shares that open the cluster when none of its seals does. It is begun with -init, which prints a\n\
                nonce; then each holder of a recovery key enters it, as KEY with -nonce, or typed unseen without KEY.\n\
                The last one is shown the new shares, once.\n\n    \
                $ {program} operator break-glass enable -init -break-glass-shares=5 -break-glass-threshold=3\n    \
                $ {program} operator break-glass enable",
        flags: break_glass::ENABLE_FLAGS,
        run: Some(break_glass::enable),
        ..Command::DEFAULT
    },
    Command {
        name: "operator break-glass disable",
        synopsis: "Does away with the break-glass shares",
        arguments: "[options] [KEY]",
        about: "Destroys the break-glass shares and replaces the root key that they opened, so that old copies of what\n\
                led to it open nothing new. It is begun with -init and agreed to with recovery keys, as enable is.",
        flags: break_glass::DISABLE_FLAGS,
        run: Some(break_glass::disable),
        ..Command::DEFAULT
    },
    Command {
        name: "operator key-status",
        synopsis: "Shows the encryption key's term",
        about: "Shows the term and age of the key that new data are sealed with.",
        run: Some(key_status::run),
        ..Command::DEFAULT
    },
    Command {
        name: "operator members",
        synopsis: "Lists the nodes that serve",
        about: "Lists the active node and those that stand by, and when each was last heard of.",
        run: Some(members::run),
        ..Command::DEFAULT
    },
    Command {
        name: "operator diagnose",
        synopsis: "Checks a node before it is started",
        about: "Checks what a server with this configuration would meet: files, data directory, ports, certificates,\n\
                disk, clock, limits. Nothing is changed. The exit code is 0 if all is well, 1 after a failure, 2\n\
                after a warning, 3 if the command line is wrong.",
        flags: diagnose::FLAGS,
        calls_api: false,
        prints_formats: true,
        usage_code: diagnose::USAGE,
        run: Some(diagnose::run),
        ..Command::DEFAULT
    },
    Command {
        name: "operator raft",
        synopsis: "Works with the members of the cluster",
        about: "Works with the members of the cluster.",
        ..Command::DEFAULT
    },
    Command {
        name: "operator raft list-peers",
        synopsis: "Lists the members",
        about: "Lists the members of the cluster and who leads.",
        run: Some(raft::list_peers),
        ..Command::DEFAULT
    },
    Command {
        name: "operator raft remove-peer",
        synopsis: "Removes a member",
        arguments: "[options] ID",
        about: "Removes a member from the cluster by its node id.",
        run: Some(raft::remove_peer),
        ..Command::DEFAULT
    },
    Command {
        name: "operator raft join",
        synopsis: "Joins a node to a cluster",
        arguments: "[options] [LEADER-API-ADDRESS]",
        about: "Joins the node at the address to the cluster of which another node is a member.",
        flags: raft::JOIN_FLAGS,
        run: Some(raft::join),
        ..Command::DEFAULT
    },
    Command {
        name: "operator raft rebuild",
        synopsis: "Empties a damaged node",
        about: "Empties a node whose data are damaged, so that its peers send it everything again. It works offline, on\n\
                the data directory of a server that is not running. The node keeps its name and gets a new identity:\n\
                it joins its cluster again, which takes the unseal shares.\n\n    \
                $ {program} operator raft rebuild -config=/etc/keystead/config.hcl\n\n\
                First the peers that the configuration names are asked whether the cluster has a leader without this\n\
                node. If none can say so, this node may hold the last copy of the data, and -force is needed.",
        flags: rebuild::FLAGS,
        calls_api: false,
        run: Some(rebuild::run),
        ..Command::DEFAULT
    },
];

/// Wipes the copy of the share in a request's body.
fn wipe(body: Value) {
    if let Value::Object(fields) = body {
        for (_, value) in fields {
            if let Value::String(text) = value {
                drop(Zeroizing::new(text));
            }
        }
    }
}
