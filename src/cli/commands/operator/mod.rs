//! `operator`: what the people who run a cluster do.

mod autopilot;
mod break_glass;
mod ceremony;
mod diagnose;
mod generate_root;
mod init;
mod key_status;
mod members;
mod raft;
mod rebuild;
mod recover;
mod rekey;
mod restore;
mod seal;
mod snapshot;
mod step_down;
mod unseal;
mod verify_share;

use serde_json::Value;
use zeroize::Zeroizing;

use crate::cli::ui::wrap;
use crate::cli::{Command, Invocation};

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
                which keeps it out of the shell's history. The exit code is 0 whether or not more shares are needed.\n\n\
                With -cluster shares are asked for until there are enough, the other members are shown with the\n\
                fingerprints of their keys, and those that are sealed are opened, too, when that is confirmed. The exit\n\
                code is 2 if a member is still sealed then.\n\n    \
                $ {program} operator unseal -cluster",
        flags: unseal::FLAGS,
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
        name: "operator step-down",
        synopsis: "Has the leader step down",
        about: "Has the active node hand leadership to another one, whichever node is at the address. Clients see no\n\
                error. It is refused if nobody can take over, with what is wrong with each of the others.",
        run: Some(step_down::run),
        ..Command::DEFAULT
    },
    Command {
        name: "operator safe-to-stop",
        synopsis: "Says whether a node may be stopped",
        about: "Says whether the node at the address, or the one named, may be stopped without the cluster losing its\n\
                quorum or the last node that serves, and if not, why. The exit code is 0 if it may, 2 if it must not,\n\
                1 if nobody can say.\n\n    \
                $ {program} operator safe-to-stop && systemctl restart keystead",
        flags: step_down::SAFE_FLAGS,
        run: Some(step_down::safe_to_stop),
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
        name: "operator rotate",
        synopsis: "Rotates the encryption key",
        about: "Makes a new key that new data are sealed with. What was sealed before stays readable; shares and tokens\n\
                stay what they are.",
        run: Some(key_status::rotate),
        ..Command::DEFAULT
    },
    Command {
        name: "operator rekey",
        synopsis: "Makes new unseal shares",
        arguments: "[options] [KEY]",
        about: "Makes new unseal shares and a new root key with them, when enough of the present shares have been\n\
                entered: one with each command, as an argument with -nonce, or typed unseen.\n\n    \
                $ {program} operator rekey -init -key-shares=5 -key-threshold=3 -verify\n    \
                $ {program} operator rekey -nonce=NONCE\n    \
                $ {program} operator rekey -verify -nonce=NONCE\n\n\
                With -verify the former shares count until the new ones have been entered as well, so that shares\n\
                which got lost on their way lock nobody out.",
        flags: rekey::FLAGS,
        run: Some(rekey::run),
        ..Command::DEFAULT
    },
    Command {
        name: "operator generate-root",
        synopsis: "Makes a root token with shares",
        arguments: "[options] [KEY]",
        about: "Makes a root token when enough shares have been entered: unseal shares, or recovery shares where seals\n\
                open the cluster. It is encrypted with a one-time password, or with a PGP key.\n\n    \
                $ {program} operator generate-root -init\n    \
                $ {program} operator generate-root -nonce=NONCE\n    \
                $ {program} operator generate-root -decode=TOKEN -otp=PASSWORD",
        flags: generate_root::FLAGS,
        run: Some(generate_root::run),
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
        name: "operator raft verify",
        synopsis: "Compares the states of all members",
        about: "Compares the states of all members at one entry, while they serve; sealed ones, too. The exit code is 0 if all\n\
                are alike, 2 if one differs or cannot be asked. With -scrub every member reads all of its state before.",
        flags: raft::VERIFY_FLAGS,
        run: Some(raft::verify),
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
        name: "operator raft promote",
        synopsis: "Gives a member a vote",
        arguments: "[options] ID",
        about: "Gives a member without a vote one, by its node id, as soon as it has caught up.",
        run: Some(raft::promote),
        ..Command::DEFAULT
    },
    Command {
        name: "operator raft demote",
        synopsis: "Takes a member's vote",
        arguments: "[options] ID",
        about: "Takes a member's vote, by its node id; it goes on following. A leader hands leadership over first.",
        run: Some(raft::demote),
        ..Command::DEFAULT
    },
    Command {
        name: "operator raft autopilot",
        synopsis: "Works with what looks after the members",
        about: "Works with what looks after the members: their health, and taking dead ones out.",
        ..Command::DEFAULT
    },
    Command {
        name: "operator raft autopilot state",
        synopsis: "Shows how the members do",
        about: "Shows how the members do, as the leader sees them.",
        run: Some(autopilot::state),
        ..Command::DEFAULT
    },
    Command {
        name: "operator raft autopilot get-config",
        synopsis: "Shows the configuration",
        about: "Shows the configuration of what looks after the members.",
        run: Some(autopilot::get_config),
        ..Command::DEFAULT
    },
    Command {
        name: "operator raft autopilot set-config",
        synopsis: "Changes the configuration",
        about: "Changes what is named in the configuration of what looks after the members.",
        flags: autopilot::SET_FLAGS,
        run: Some(autopilot::set_config),
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
        name: "operator raft snapshot",
        synopsis: "Saves, checks and restores snapshots of the cluster",
        about: "Saves, checks and restores snapshots of the cluster: everything that it holds, sealed, in one file.",
        ..Command::DEFAULT
    },
    Command {
        name: "operator raft snapshot save",
        synopsis: "Saves a snapshot to a file",
        arguments: "[options] FILE",
        about: "Saves everything that the cluster holds to a file, sealed as it is. Any node that is unsealed can be asked, and\n\
                goes on serving. The file has its name once it is whole.",
        run: Some(snapshot::save),
        ..Command::DEFAULT
    },
    Command {
        name: "operator raft snapshot restore",
        synopsis: "Restores a snapshot",
        arguments: "[options] FILE [SHARE...]",
        about: "Makes the cluster what it was when the snapshot was taken. It stays the cluster that it is, with its members and\n\
                unseal shares; a token is valid afterwards if it is in the snapshot and was valid before. All of it is\n\
                restored, or nothing.\n\n    \
                $ {program} operator raft snapshot restore backup.snap\n\n\
                One from before a rekey needs -shares, and one of another cluster -force and -shares: unseal shares of its time\n\
                open it, everything is sealed anew, and the present shares stay the ones that count.\n\n\
                A node that is not initialised keeps the snapshot until the unseal shares of its time are entered with\n\
                `operator unseal`; then it leads a new cluster that holds what was saved, and other nodes join it.",
        flags: restore::FLAGS,
        run: Some(restore::run),
        ..Command::DEFAULT
    },
    Command {
        name: "operator raft snapshot inspect",
        synopsis: "Shows what a snapshot is of",
        arguments: "[options] FILE",
        about: "Reads a snapshot to its end and shows what it is of. It works offline and needs no keys.",
        calls_api: false,
        prints_formats: true,
        run: Some(snapshot::inspect),
        ..Command::DEFAULT
    },
    Command {
        name: "operator raft snapshot verify",
        synopsis: "Checks a snapshot",
        arguments: "[options] FILE [SHARE...]",
        about: "Reads a snapshot to its end and checks that nothing is missing or damaged. With -deep it is opened with unseal\n\
                shares of its time: root key, seals, every path and every value; so it is proven that the cluster has made it,\n\
                and that these shares restore it. It works offline, and nothing that was opened is kept or shown.\n\n    \
                $ {program} operator raft snapshot verify -deep backup.snap",
        flags: snapshot::VERIFY_FLAGS,
        calls_api: false,
        prints_formats: true,
        run: Some(snapshot::verify),
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
    Command {
        name: "operator raft recover",
        synopsis: "Goes on after the quorum is lost for good",
        about: "Makes one survivor the only voter of a new cluster, when a majority of the voters is lost for good. It works\n\
                offline, on the data directory of a server that is not running. The vault, its shares and its tokens\n\
                stay; the others are emptied (operator raft rebuild) and join again.\n\n\
                Where several survived, let each say what it has, and take all that to any one of them: it says which\n\
                one has the most, and that is the one to recover.\n\n    \
                $ {program} operator raft recover -config=/etc/keystead/config.hcl -inspect -out=n2.json\n    \
                $ {program} operator raft recover -config=/etc/keystead/config.hcl -from=n2.json\n\n\
                Run it on one node only, and see to it that the lost ones do not come back before they are emptied.",
        flags: recover::FLAGS,
        calls_api: false,
        run: Some(recover::run),
        ..Command::DEFAULT
    },
];

/// The share among the arguments (`-`: on the standard input), which needs the nonce of the operation, else from the
/// terminal, with the nonce that is `running` unless another is given.
fn entered(
    invocation: &mut Invocation<'_, '_>,
    operation: &str,
    share: &str,
    running: &str,
) -> Result<(Zeroizing<String>, String), i32> {
    let given = invocation.flags.text("nonce").filter(|nonce| !nonce.is_empty()).map(str::to_owned);
    let missing = "Missing nonce value: specify it via the -nonce flag";
    let argument = invocation.args.first_mut().map(std::mem::take).map(Zeroizing::new);
    if let Some(argument) = argument {
        let nonce = given.ok_or_else(|| invocation.fail(missing))?;
        if *argument != "-" {
            return Ok((argument, nonce));
        }
        let input = invocation.ui.read_input();
        let input =
            input.map_err(|error| invocation.fail(&format!("Failed to read the key from stdin: {error}")))?;
        let text = std::str::from_utf8(&input).map(|text| Zeroizing::new(text.trim().to_owned()));
        return text.map(|text| (text, nonce)).map_err(|_| invocation.fail("The key on stdin is no text"));
    }
    let nonce = given.unwrap_or_else(|| running.to_owned());
    if nonce.is_empty() {
        return Err(invocation.fail(missing));
    }
    let name = share.to_lowercase();
    if invocation.flags.bool("non-interactive") {
        return Err(invocation.fail(&format!("Refusing to ask for the {name} with -non-interactive set")));
    }
    let question = format!("{operation} nonce: {nonce}\n{share} (will be hidden): ");
    let key = invocation.ui.ask_hidden(&question, true).map_err(|error| {
        let text = format!(
            "An error occurred attempting to ask for the {name}. You should run the command from a terminal. If this is \
             not an option, the key can be provided as the first argument, with -nonce. The raw error was:"
        );
        invocation.fail(&format!("{}\n\n{error}", wrap(&text, 0)))
    })?;
    Ok((key, nonce))
}

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
