//! `operator raft rebuild`.

use std::path::{Path, PathBuf};

use crate::cli::flags::{Flag, Kind};
use crate::cli::output;
use crate::cli::{Invocation, Outcome};
use crate::server::Failure;
use crate::server::rebuild::{Peer, Rebuild, Standing};

pub const FLAGS: &[Flag] = &[
    Flag::new(
        "config",
        Kind::List,
        "Configuration file, or directory of .hcl and .json files, of the server; may be repeated.",
    ),
    Flag::new("data-dir", Kind::Text, "The data directory, where there is no configuration to name it."),
    Flag::new("yes", Kind::Bool, "Do not ask."),
    Flag::new(
        "force",
        Kind::Bool,
        "Go on although no leader of the cluster can be asked: what only this node has is lost for ever.",
    ),
];

pub fn run(invocation: &mut Invocation<'_, '_>) -> Outcome {
    invocation.expect_args(0)?;
    let rebuild = opened(invocation)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime =
        runtime.map_err(|error| invocation.fail(&format!("cannot start the event loop: {error}")))?;
    let peers = runtime.block_on(rebuild.peers());
    invocation.ui.output(&plan(&rebuild, &peers));
    if !peers.iter().any(|peer| peer.standing.is_served()) {
        if !invocation.flags.bool("force") {
            return Err(invocation.fail(NO_LEADER));
        }
        invocation
            .ui
            .warn("WARNING! No leader of this node's cluster can be asked. What only this node has is lost.");
    }
    if !invocation.flags.bool("yes") && !confirmed(invocation)? {
        return Err(invocation.fail("Nothing was changed."));
    }
    let next = what_next(&rebuild);
    rebuild.empty().map_err(|Failure(why)| {
        invocation
            .fail(&format!("Error emptying the node: {why}\nRun this again before the server is started."))
    })?;
    invocation.ui.output(&next);
    Ok(0)
}

const NO_LEADER: &str = "\
No leader of this node's cluster can be asked, so this node may hold the last copy of its data.
Nothing was changed. Bring enough other nodes up and unseal them, and name them in -config (retry_join);
or use -force if what this node holds may be lost.";

fn opened(invocation: &mut Invocation<'_, '_>) -> Result<Rebuild, i32> {
    let paths: Vec<PathBuf> = invocation.flags.list("config").into_iter().map(PathBuf::from).collect();
    let directory = invocation.flags.text("data-dir").map(str::to_owned);
    let environment = invocation.environment;
    let opened = match (paths.is_empty(), directory) {
        (false, None) => Rebuild::of_config(&paths, |name| environment.variable(name).map(str::to_owned)),
        (true, Some(directory)) => Rebuild::of_directory(Path::new(&directory)),
        _ => return Err(invocation.fail("Either -config or -data-dir must be given.")),
    };
    opened.map_err(|Failure(why)| invocation.fail(&why))
}

/// What is there, what will go, and what the peers say.
fn plan(rebuild: &Rebuild, peers: &[Peer]) -> String {
    let unknown = || "unknown".to_owned();
    let (node, cluster) = match rebuild.member() {
        Ok(Some(member)) => {
            let node = format!("{}, incarnation {:016x}", member.node_id, member.incarnation);
            (node, member.cluster_id.clone())
        }
        Ok(None) => (rebuild.next_node_id().unwrap_or_else(unknown), "none: it never joined one".to_owned()),
        Err(why) => (rebuild.next_node_id().unwrap_or_else(unknown), format!("unknown: {why}")),
    };
    let size = |bytes: u64| {
        if bytes < 1 << 20 {
            format!("{} KiB", bytes.div_ceil(1 << 10))
        } else {
            format!("{} MiB", bytes >> 20)
        }
    };
    let contents: Vec<String> =
        rebuild.contents().iter().map(|(name, bytes)| format!("{name} ({})", size(*bytes))).collect();
    let contents = if contents.is_empty() { "nothing".to_owned() } else { contents.join(", ") };
    let row = |key: &str, value: String| vec![key.to_owned(), value];
    let mut rows = vec![
        row("Data Directory", rebuild.data_dir().display().to_string()),
        row("Node", node),
        row("Cluster", cluster),
        row("To Be Removed", contents),
    ];
    rows.extend(peers.iter().map(|peer| row(&format!("Peer {}", peer.address), standing(&peer.standing))));
    if peers.is_empty() {
        rows.push(row("Peers", "none is configured (retry_join)".to_owned()));
    }
    output::table(&["Key", "Value"], &rows)
}

fn standing(standing: &Standing) -> String {
    match standing {
        Standing::Leads => "leads the cluster".to_owned(),
        Standing::Follows(leader) => format!("follows {leader}"),
        Standing::NoLeader => "is there, but sealed or without a leader".to_owned(),
        Standing::Succeeds(cluster) => {
            format!("is in cluster {cluster}, which a recovery made of this node's")
        }
        Standing::Foreign(cluster) => format!("belongs to another cluster, {cluster}"),
        Standing::Silent(why) => format!("cannot be asked: {why}"),
    }
}

fn confirmed(invocation: &mut Invocation<'_, '_>) -> Result<bool, i32> {
    let question = "\nAll this is removed from this node; its peers then send it everything again.\nType \"yes\" to go on: ";
    let answer = invocation.ui.ask(question);
    let answer = answer.map_err(|error| invocation.fail(&format!("The answer cannot be read: {error}")))?;
    Ok(answer.trim() == "yes")
}

fn what_next(rebuild: &Rebuild) -> String {
    let join = match rebuild.joins_by_itself() {
        true => "Start the server: it asks its retry_join addresses to be let in.",
        false => "Start the server, and let it join: operator raft join.",
    };
    let place = match rebuild.next_node_id() {
        Some(node_id) => {
            format!("takes the place of node {node_id:?} once that one has been silent for 10 s,")
        }
        None => "joins under a new name (remove the old one: operator raft remove-peer)".to_owned(),
    };
    let enrol = match rebuild.member() {
        Ok(Some(member)) if member.own_ca => format!(
            "   Before that, a CA of your own has to sign for it again: tls csr -cluster-id={}, tls install.\n",
            member.cluster_id
        ),
        _ => String::new(),
    };
    format!(
        "\nThis node is empty. What comes next:\n\
         1. {join}\n{enrol}\
         2. Enter the cluster's unseal shares on it (operator unseal): joining takes them.\n\
         3. It {place}\n   \
            and catches up by itself (operator raft list-peers)."
    )
}
