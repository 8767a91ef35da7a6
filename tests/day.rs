//! A long day of a cluster of three processes, with the commands that its operators type.
//!
//! Open it in one ceremony, save it, lose everything, restore it; replace a node, grow to five and back, restart every node under
//! load, make new shares, lose two of three for good and go on. What was written is there at the end of each of these.
#![allow(clippy::unwrap_used)] // in a test, a panic is the report

mod common;
#[path = "common/digests.rs"]
mod digests;

use std::{collections::BTreeMap, time::Duration};

use common::ready;
use keystead_chaos::{Client, Cluster, Node, cluster::JOIN, load, wait};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(40);

/// Runs a command that must succeed; gives what it printed.
async fn run(cluster: &Cluster, at: usize, args: &[&str]) -> String {
    let output = cluster.cli(at).run(args).await.unwrap();
    assert_eq!(output.code, 0, "{args:?}: {}{}", output.stdout, output.stderr);
    output.stdout
}

/// Runs an `operator` command that must succeed, with shares that must not be shown in a failure.
async fn give(cluster: &Cluster, at: usize, args: &[&str], shares: &[String]) -> String {
    let mut last = String::new();
    for share in shares {
        let mut args: Vec<&str> = args.to_vec();
        args.push(share);
        let output = cluster.cli(at).run(&args).await.unwrap();
        assert_eq!(output.code, 0, "{:?}: {}{}", &args[..args.len() - 1], output.stdout, output.stderr);
        last = output.stdout;
    }
    last
}

/// What the cluster is to hold.
#[derive(Default)]
struct Written(BTreeMap<String, Value>);

impl Written {
    async fn write(&mut self, cluster: &Cluster, through: usize, chapter: &str) {
        for n in 0..20 {
            let (path, value) = (format!("day/{chapter}/{n}"), json!({ "chapter": chapter, "n": n }));
            cluster.at(through).put(&path, &value).await.unwrap();
            self.0.insert(path, value);
        }
    }

    async fn is_there(&self, cluster: &Cluster, at: usize) {
        for (path, value) in &self.0 {
            assert_eq!(cluster.at(at).get(path).await.unwrap().as_ref(), Some(value), "{path} on {at}");
        }
    }
}

async fn members(cluster: &Cluster, voters: usize) {
    cluster.voters(voters, SOON).await.unwrap();
}

async fn open_all_in_one_ceremony(cluster: &Cluster) {
    cluster.kill_together(&[0, 1, 2]).unwrap();
    for node in cluster.nodes() {
        node.start().await.unwrap();
    }
    let (last, first) = cluster.shares().split_last().unwrap();
    give(cluster, 0, &["operator", "unseal", "-cluster"], first).await;
    wait::until("all nodes to be open", SOON, || async {
        give(cluster, 0, &["operator", "unseal", "-cluster"], first).await;
        let opened = cluster.cli(0).run(&["operator", "unseal", "-cluster", "-yes", last]).await;
        let opened = opened.map_err(|error| error.to_string())?;
        // A member that has not been met yet is sealed still; the shares are good again.
        if opened.code == 0 { Ok(()) } else { Err(format!("{}{}", opened.stdout, opened.stderr)) }
    })
    .await
    .unwrap();
    members(cluster, 3).await;
}

async fn lose_everything_and_restore(cluster: &Cluster, written: &mut Written) {
    let file = cluster.directory().join("day.snap").display().to_string();
    run(cluster, 1, &["operator", "raft", "snapshot", "save", &file]).await;
    let mut deep = vec!["operator", "raft", "snapshot", "verify", "-deep", &file];
    deep.extend(cluster.shares().iter().map(String::as_str));
    assert!(run(cluster, 1, &deep).await.contains("Secret Versions"));
    // It is not in the snapshot, and gone with the disks.
    cluster.at(0).put("day/after-the-snapshot", &json!({ "n": 1 })).await.unwrap();
    cluster.kill_together(&[0, 1, 2]).unwrap();
    for node in cluster.nodes() {
        node.wipe().unwrap();
        node.start().await.unwrap();
    }
    run(cluster, 0, &["operator", "raft", "snapshot", "restore", &file]).await;
    for node in cluster.nodes() {
        cluster.unseal(node).await.unwrap();
    }
    members(cluster, 3).await;
    for at in 0..3 {
        written.is_there(cluster, at).await;
        assert_eq!(cluster.at(at).get("day/after-the-snapshot").await.unwrap(), None);
    }
    written.write(cluster, 2, "restored").await;
    digests::equal(cluster).await;
}

async fn replace_a_node(cluster: &Cluster) {
    let leader = cluster.leader().await.unwrap();
    let node = cluster.at(cluster.others(leader)[0]);
    node.kill();
    node.wipe().unwrap();
    node.start().await.unwrap();
    wait::until("the new disk to be let in", JOIN * 2, || async {
        cluster.unseal(node).await.map_err(|error| error.to_string())?;
        let status = node.seal_status().await.map_err(|error| error.to_string())?;
        if status["sealed"] == false { Ok(()) } else { Err(status.to_string()) }
    })
    .await
    .unwrap();
    members(cluster, 3).await;
}

async fn grow_to_five_and_back(cluster: &Cluster) {
    let config = ["operator", "raft", "autopilot", "set-config", "-server-stabilization-time=1s"];
    run(cluster, 0, &config).await;
    let mut newcomers = Vec::new();
    for name in ["n4", "n5"] {
        let node = cluster.node(cluster.newcomer(name).unwrap());
        node.start().await.unwrap();
        cluster.unseal(&node).await.unwrap();
        newcomers.push(node);
    }
    members(cluster, 5).await;
    for (name, node) in ["n4", "n5"].into_iter().zip(newcomers) {
        let removed = run(cluster, 1, &["operator", "raft", "remove-peer", name]).await;
        assert_eq!(removed.trim(), "Peer removed successfully!");
        wait::until("the member to be gone", SOON, || async {
            let listed = run(cluster, 1, &["operator", "raft", "list-peers"]).await;
            if listed.contains(name) { Err(listed) } else { Ok(()) }
        })
        .await
        .unwrap();
        node.stop().await.unwrap();
    }
    members(cluster, 3).await;
}

async fn restart_every_node(cluster: &Cluster) {
    for at in 0..3 {
        wait::until("it to be safe to stop", SOON, || async {
            let asked = cluster.cli(at).run(&["operator", "safe-to-stop"]).await;
            let asked = asked.map_err(|error| error.to_string())?;
            if asked.code == 0 { Ok(()) } else { Err(format!("{}{}", asked.stdout, asked.stderr)) }
        })
        .await
        .unwrap();
        cluster.at(at).stop().await.unwrap();
        cluster.bring_back(at).await.unwrap();
        members(cluster, 3).await;
    }
}

/// The value behind a name in a table.
fn field<'t>(table: &'t str, name: &str) -> &'t str {
    let line =
        table.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_else(|| panic!("{name} in {table}"));
    line.trim()
}

async fn make_new_shares(cluster: &mut Cluster) {
    let old = cluster.shares().to_vec();
    let begin = ["operator", "rekey", "-init", "-verify", "-key-shares=5", "-key-threshold=3"];
    let begun = run(cluster, 0, &begin).await;
    let nonce = format!("-nonce={}", field(&begun, "Nonce"));
    let made = give(cluster, 0, &["operator", "rekey", &nonce], &old).await;
    let new: Vec<String> = (1..=5).map(|n| field(&made, &format!("Key {n}:")).to_owned()).collect();
    let nonce = format!("-nonce={}", field(&made, "Verification Nonce"));
    let done = give(cluster, 0, &["operator", "rekey", "-verify", &nonce], &new[2..]).await;
    assert!(done.contains("Rekey verification successful"), "{done}");
    let stale = cluster.cli(0).run(&["operator", "verify-share", &old[0]]).await.unwrap();
    assert_eq!(stale.code, 2, "a former share counts no more: {}", stale.stdout);
    cluster.replace_shares(new);
}

async fn lose_two_and_go_on(cluster: &Cluster, written: &Written) {
    cluster.kill_together(&[0, 1, 2]).unwrap();
    for at in [1, 2] {
        cluster.at(at).wipe().unwrap();
    }
    let config = format!("-config={}", cluster.at(0).config_file().display());
    let recovered = run(cluster, 0, &["operator", "raft", "recover", &config, "-yes"]).await;
    assert!(recovered.contains("epoch 2"), "{recovered}");
    cluster.at(0).start().await.unwrap();
    cluster.unseal(cluster.at(0)).await.unwrap();
    cluster.serves(0, SOON).await.unwrap();
    written.is_there(cluster, 0).await;
    for at in [1, 2] {
        cluster.at(at).start().await.unwrap();
        cluster.unseal(cluster.at(at)).await.unwrap();
    }
    members(cluster, 3).await;
}

#[tokio::test]
async fn a_long_day() {
    let mut cluster = ready().await;
    let mut written = Written::default();
    written.write(&cluster, 0, "morning").await;

    open_all_in_one_ceremony(&cluster).await;
    written.is_there(&cluster, 2).await;
    lose_everything_and_restore(&cluster, &mut written).await;
    replace_a_node(&cluster).await;
    written.write(&cluster, 1, "replaced").await;

    let clients: Vec<Client> = cluster.nodes().iter().map(Node::client).collect();
    let load = load::Load::start(&clients[..1], 2, Duration::from_millis(5));
    grow_to_five_and_back(&cluster).await;
    let history = load.stop().await;
    assert_eq!(history.count(load::Ended::Refused), 0, "{:?}", history.refusals);
    history.check(&cluster, &[0, 1, 2]).await.unwrap();

    restart_every_node(&cluster).await;
    written.write(&cluster, 0, "restarted").await;
    make_new_shares(&mut cluster).await;
    written.write(&cluster, 1, "rekeyed").await;
    // What the survivor is to hold must have come to it.
    digests::equal(&cluster).await;
    lose_two_and_go_on(&cluster, &written).await;
    for at in 0..3 {
        written.is_there(&cluster, at).await;
    }
    digests::equal(&cluster).await;
}
