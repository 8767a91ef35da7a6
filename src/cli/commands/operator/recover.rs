//! `operator raft recover`.

use std::path::{Path, PathBuf};

use crate::cli::flags::{Flag, Kind};
use crate::cli::output;
use crate::cli::{Invocation, Outcome};
use crate::server::Failure;
use crate::server::recover::{Facts, Ranking, Survivor, rank};

pub const FLAGS: &[Flag] = &[
    Flag::new(
        "config",
        Kind::List,
        "Configuration file, or directory of .hcl and .json files, of the server; may be repeated.",
    ),
    Flag::new("data-dir", Kind::Text, "The data directory, where there is no configuration to name it."),
    Flag::new("inspect", Kind::Bool, "Only show what this node has; nothing is changed."),
    Flag::new(
        "out",
        Kind::Text,
        "With -inspect: write what this node has to a file, for the other survivors.",
    ),
    Flag::new("from", Kind::List, "A file that another survivor wrote with -inspect -out; may be repeated."),
    Flag::new("yes", Kind::Bool, "Do not ask."),
    Flag::new(
        "force",
        Kind::Bool,
        "Recover this node although another survivor has more: what only that one has is lost for ever.",
    ),
];

pub fn run(invocation: &mut Invocation<'_, '_>) -> Outcome {
    invocation.expect_args(0)?;
    let out = invocation.flags.text("out").map(PathBuf::from);
    let inspect = invocation.flags.bool("inspect");
    if out.is_some() && !inspect {
        return Err(invocation.fail("-out goes with -inspect."));
    }
    let mut others = Vec::new();
    let files: Vec<PathBuf> = invocation.flags.list("from").into_iter().map(PathBuf::from).collect();
    for path in files {
        let facts = Facts::read(&path);
        others.push(facts.map_err(|Failure(why)| invocation.fail(&why))?);
    }
    let survivor = opened(invocation)?;
    let ranking = rank(&survivor.facts, &others).map_err(|Failure(why)| invocation.fail(&why))?;
    invocation.ui.output(&plan(&survivor, &ranking));
    if inspect {
        if let Some(out) = out {
            survivor.facts.write(&out).map_err(|Failure(why)| invocation.fail(&why))?;
            invocation.ui.output(&format!("\nWritten to {}.", out.display()));
        }
        return Ok(0);
    }
    let best = ranking.survivors[0];
    if best.incarnation != survivor.facts.incarnation && !survivor.pending {
        let text = format!(
            "Node {:?} has more than this one: recover that one, and empty this one (operator raft rebuild).",
            best.node_id
        );
        if !invocation.flags.bool("force") {
            return Err(invocation.fail(&format!(
                "{text}\nNothing was changed. -force recovers this one; what only the other has is then lost."
            )));
        }
        invocation.ui.warn(&format!("WARNING! {text}"));
    }
    if !invocation.flags.bool("yes") && !confirmed(invocation)? {
        return Err(invocation.fail("Nothing was changed."));
    }
    let (node_id, own_ca) = (survivor.facts.node_id.clone(), survivor.facts.own_ca);
    let (cluster_id, epoch) = survivor.recover().map_err(|Failure(why)| {
        invocation
            .fail(&format!("Error recovering the node: {why}\nRun this again: it goes on where it was."))
    })?;
    invocation.ui.output(&what_next(&node_id, &cluster_id, epoch, own_ca));
    Ok(0)
}

fn opened(invocation: &mut Invocation<'_, '_>) -> Result<Survivor, i32> {
    let paths: Vec<PathBuf> = invocation.flags.list("config").into_iter().map(PathBuf::from).collect();
    let directory = invocation.flags.text("data-dir").map(str::to_owned);
    let environment = invocation.environment;
    let opened = match (paths.is_empty(), directory) {
        (false, None) => Survivor::of_config(&paths, |name| environment.variable(name).map(str::to_owned)),
        (true, Some(directory)) => Survivor::of_directory(Path::new(&directory)),
        _ => return Err(invocation.fail("Either -config or -data-dir must be given.")),
    };
    opened.map_err(|Failure(why)| invocation.fail(&why))
}

/// What there is, who has the most, and what may be lost.
fn plan(survivor: &Survivor, ranking: &Ranking<'_>) -> String {
    let facts = &survivor.facts;
    let row = |key: &str, value: String| vec![key.to_owned(), value];
    let last = |facts: &Facts| format!("index {}, term {}", facts.last_index, facts.last_term);
    let mut rows = vec![
        row("Data Directory", survivor.data_dir().display().to_string()),
        row("Node", format!("{}, incarnation {}", facts.node_id, facts.incarnation)),
        row("Vault", facts.vault_id.clone()),
        row("Cluster", format!("{}, epoch {}", facts.cluster_id, facts.epoch)),
        row("Last Log Entry", last(facts)),
        row("Applied", format!("index {}", facts.applied_index)),
    ];
    for member in &facts.members {
        let kind = if member.voter { "voter" } else { "non-voter" };
        let address = if member.address.is_empty() { "unknown address" } else { &member.address };
        rows.push(row(&format!("Member {}", member.node_id), format!("{kind}, {address}")));
    }
    if ranking.survivors.len() > 1 {
        for (at, survivor) in ranking.survivors.iter().enumerate() {
            let name = format!("Survivor {} ({})", at + 1, survivor.node_id);
            rows.push(row(&name, last(survivor)));
        }
    }
    let mut text = output::table(&["Key", "Value"], &rows);
    text.push_str("\n\n");
    text.push_str(&losses(survivor, ranking));
    text
}

fn losses(survivor: &Survivor, ranking: &Ranking<'_>) -> String {
    let facts = &survivor.facts;
    if survivor.pending {
        return "A recovery was begun here and not finished; it will be finished.".to_owned();
    }
    let unproven = facts.last_index.saturating_sub(facts.applied_index);
    let tail = match unproven {
        0 => String::new(),
        n => format!(
            "\nThe last {n} log entries are not applied yet. They count as committed, acknowledged or not."
        ),
    };
    let lost = match (ranking.complete, ranking.unknown.is_empty()) {
        (_, true) => {
            "All voters were looked at: nothing that was acknowledged is missing on the first survivor."
                .to_owned()
        }
        (true, false) => format!(
            "Nothing is known of {}, and they are no majority: nothing that was acknowledged is missing on the first\nsurvivor.",
            ranking.unknown.join(", ")
        ),
        (false, _) => format!(
            "Nothing is known of {}. They are a majority, so they may have acknowledged writes that nobody else has:\n\
             whatever came after this node's last log entry is lost, and nothing here can tell whether or how much.",
            ranking.unknown.join(", ")
        ),
    };
    lost + &tail
}

fn confirmed(invocation: &mut Invocation<'_, '_>) -> Result<bool, i32> {
    let question = "\nThis node becomes the only voter of a new cluster with all its data; the others are out of it for good.\n\
                    See to it that none of them runs.\nType \"yes\" to go on: ";
    let answer = invocation.ui.ask(question);
    let answer = answer.map_err(|error| invocation.fail(&format!("The answer cannot be read: {error}")))?;
    Ok(answer.trim() == "yes")
}

fn what_next(node_id: &str, cluster_id: &str, epoch: u64, own_ca: bool) -> String {
    let ca = if own_ca {
        "   It uses the built-in CA from now on: the certificates of your own CA were for the former cluster.\n"
    } else {
        ""
    };
    format!(
        "\nNode {node_id} is the only voter of cluster {cluster_id}, epoch {epoch}. What comes next:\n\
         1. Start it and enter the unseal shares (operator unseal): they are the same. It serves then.\n{ca}\
         2. Empty every other node before it runs again (operator raft rebuild). Start it and enter the shares:\n   \
            it joins as a new member.\n\
         3. A node of the former cluster that comes back as it was stops serving as soon as it is unsealed and\n   \
            reaches this one (retry_join)."
    )
}
