//! Two of three nodes are lost for good: the third goes on alone, the others come back as new members, and what is left
//! of the old majority never serves beside it.
#![allow(clippy::unwrap_used)] // in a test, a panic is the report

mod common;
#[path = "common/digests.rs"]
mod digests;

use std::{fs, time::Duration};

use common::ready;
use keystead_chaos::{
    Cluster, Output,
    cluster::JOIN,
    load::{History, Load},
    wait,
};
use serde_json::{Value, json};

const AT_ONCE: Duration = Duration::from_secs(10);
const SOON: Duration = Duration::from_secs(20);

async fn raft(cluster: &Cluster, at: usize, command: &str, flags: &[&str], input: &str) -> Output {
    let config = format!("-config={}", cluster.at(at).config_file().display());
    let mut args = vec!["operator", "raft", command, &config];
    args.extend(flags);
    cluster.cli(at).run_with(&args, input.as_bytes()).await.unwrap()
}

async fn recover(cluster: &Cluster, at: usize, flags: &[&str], input: &str) -> Output {
    raft(cluster, at, "recover", flags, input).await
}

/// A load on all nodes that has been going on for a while, stopped.
async fn written(cluster: &Cluster) -> History {
    let clients: Vec<_> = cluster.nodes().iter().map(|node| node.client()).collect();
    let load = Load::start(&clients, 2, Duration::from_millis(10));
    wait::until_now("a load", SOON * 3, || {
        let written = load.acknowledged();
        if written >= 150 { Ok(()) } else { Err(format!("{written} writes")) }
    })
    .await
    .unwrap();
    load.stop().await
}

/// Starts a node that belongs to a cluster that was given up, gives it its shares, and waits until it has stopped serving.
async fn is_latched(cluster: &Cluster, at: usize, why: &str) {
    let node = cluster.at(at);
    if !node.is_running() {
        node.start().await.unwrap();
        // It is refused with the reason.
        drop(node.unseal(cluster.shares()).await);
    }
    wait::until("the node to stop serving", SOON, || async {
        let log = node.log();
        let sealed = node.seal_status().await.map_err(|error| error.to_string())?["sealed"] == true;
        if sealed && log.contains(why) { Ok(()) } else { Err(format!("sealed {sealed}: {log}")) }
    })
    .await
    .unwrap();
    assert!(node.log().contains("operator raft rebuild"));
    assert!(node.put("recover/beside", &json!({ "of": node.name() })).await.is_err());
}

async fn join_again(cluster: &Cluster, at: usize) {
    let node = cluster.at(at);
    if node.is_running() {
        node.stop().await.unwrap();
    }
    let emptied = raft(cluster, at, "rebuild", &["-yes"], "").await;
    assert_eq!(emptied.code, 0, "{} {}", emptied.stdout, emptied.stderr);
    assert!(emptied.stdout.contains("a recovery made of this node's"), "{}", emptied.stdout);
    node.start().await.unwrap();
    wait::until("the node to be in", SOON * 2, || async {
        cluster.unseal(node).await.map_err(|error| error.to_string())?;
        let status = node.seal_status().await.map_err(|error| error.to_string())?;
        if status["sealed"] == false { Ok(()) } else { Err(status.to_string()) }
    })
    .await
    .unwrap();
}

async fn cluster_id(cluster: &Cluster, at: usize) -> Value {
    cluster.at(at).seal_status().await.unwrap()["cluster_id"].clone()
}

#[tokio::test]
async fn a_survivor_goes_on_and_the_old_majority_never_serves_beside_it() {
    let cluster = ready().await;
    let history = written(&cluster).await;
    let survivor = cluster.leader().await.unwrap();
    let lost = cluster.others(survivor);
    let before = cluster_id(&cluster, survivor).await;

    let running = recover(&cluster, survivor, &["-yes"], "").await;
    assert!(running.code == 1 && running.stderr.contains("in use by another process"), "{}", running.stderr);
    cluster.kill_together(&[0, 1, 2]).unwrap();

    // What each has, and who has the most.
    let file = |at: usize| cluster.directory().join(format!("facts-{at}.json"));
    for at in 0..3 {
        let out = format!("-out={}", file(at).display());
        let inspected = recover(&cluster, at, &["-inspect", &out], "").await;
        assert_eq!(inspected.code, 0, "{}", inspected.stderr);
        assert!(inspected.stdout.contains("Last Log Entry"), "{}", inspected.stdout);
    }
    let mut better: Value = serde_json::from_slice(&fs::read(file(lost[0])).unwrap()).unwrap();
    better["last_index"] = json!(better["last_index"].as_u64().unwrap() + 1_000_000);
    let better_file = cluster.directory().join("better.json");
    fs::write(&better_file, better.to_string()).unwrap();
    let from = format!("-from={}", better_file.display());
    let refused = recover(&cluster, survivor, &[&from, "-yes"], "").await;
    assert_eq!(refused.code, 1, "{}", refused.stdout);
    let name = cluster.at(lost[0]).name();
    assert!(refused.stderr.contains(&name) && refused.stderr.contains("-force"), "{}", refused.stderr);
    let from = format!("-from={}", file(lost[0]).display());
    let known = recover(&cluster, survivor, &[&from, "-inspect"], "").await;
    assert!(known.stdout.contains("no majority"), "{}", known.stdout);

    let unasked = recover(&cluster, survivor, &[], "").await;
    assert_eq!((unasked.code, unasked.stderr.trim()), (1, "Nothing was changed."));
    assert!(unasked.stdout.contains("nothing here can tell"), "{}", unasked.stdout);
    let recovered = recover(&cluster, survivor, &[], "yes\n").await;
    assert_eq!(recovered.code, 0, "{} {}", recovered.stdout, recovered.stderr);
    assert!(recovered.stdout.contains("epoch 2"), "{}", recovered.stdout);

    cluster.at(survivor).start().await.unwrap();
    cluster.unseal(cluster.at(survivor)).await.unwrap();
    cluster.serves(survivor, SOON).await.unwrap();
    assert_ne!(cluster_id(&cluster, survivor).await, before);
    Box::pin(history.check(&cluster, &[survivor])).await.unwrap();
    cluster.at(survivor).put("recover/after", &json!({ "n": 1 })).await.unwrap();

    // The old majority comes back, with all it had.
    for at in &lost {
        is_latched(&cluster, *at, "which was given up").await;
    }
    cluster.serves(survivor, AT_ONCE).await.unwrap();
    let found = cluster.at(survivor).get("recover/beside").await.unwrap();
    assert_eq!(found, None, "nothing of it was merged");

    // A restart of the survivor changes nothing, and the others come in as new members.
    cluster.at(survivor).kill();
    cluster.bring_back(survivor).await.unwrap();
    cluster.serves(survivor, SOON).await.unwrap();
    for at in &lost {
        join_again(&cluster, *at).await;
    }
    cluster.voters(3, JOIN).await.unwrap();
    cluster.serves(lost[0], SOON).await.unwrap();
    Box::pin(history.check(&cluster, &[0, 1, 2])).await.unwrap();
    let again = recover(&cluster, survivor, &["-inspect", &from], "").await;
    assert_eq!(again.code, 1, "{}", again.stdout);
    digests::equal(&cluster).await;
}

#[tokio::test]
async fn a_recovery_on_two_sides_stops_both() {
    let cluster = ready().await;
    cluster.kill_together(&[0, 1, 2]).unwrap();
    let (file, text) = (cluster.at(0).data().join("raft/peers.json"), |id: &str| {
        json!([{ "id": id, "address": "127.0.0.1:1", "non_voter": false }]).to_string()
    });
    fs::create_dir(file.parent().unwrap()).unwrap();

    // A file that names others changes nothing, and the server says so.
    fs::write(&file, text("somebody")).unwrap();
    cluster.at(0).spawn().unwrap();
    assert_eq!(cluster.at(0).ends(AT_ONCE).await.unwrap().code(), Some(1));
    assert!(cluster.at(0).log().contains("it must name this node"), "{}", cluster.at(0).log());

    fs::write(&file, text(&cluster.at(0).name())).unwrap();
    cluster.bring_back(0).await.unwrap();
    cluster.serves(0, SOON).await.unwrap();
    assert!(!file.exists() && file.with_file_name("peers.json.done").exists());

    // Facts of the recovered one are refused on the other side; without them it knows of nothing.
    let other = recover(&cluster, 1, &["-yes"], "").await;
    assert_eq!(other.code, 0, "{}", other.stderr);
    is_latched(&cluster, 1, "a recovery was run on two sides").await;
    is_latched(&cluster, 0, "a recovery was run on two sides").await;
}

#[tokio::test]
async fn what_holds_nothing_or_is_damaged_is_not_recovered() {
    let cluster = ready().await;
    let leader = cluster.leader().await.unwrap();
    cluster.kill_together(&[0, 1, 2]).unwrap();
    let none = cluster.directory().join("none");
    let dir = format!("-data-dir={}", none.display());
    let missing = cluster.cli(0).run(&["operator", "raft", "recover", &dir, "-yes"]).await.unwrap();
    assert!(missing.code == 1 && missing.stderr.contains("no member"), "{}", missing.stderr);
    assert!(!none.exists(), "looking makes nothing");

    let facts = cluster.directory().join("facts.json");
    fs::write(&facts, "{\"format\": 1}").unwrap();
    let from = format!("-from={}", facts.display());
    let garbage = recover(&cluster, leader, &[&from, "-yes"], "").await;
    assert!(garbage.code == 1 && garbage.stderr.contains("-inspect"), "{}", garbage.stderr);

    let log = cluster.at(leader).data().join("log");
    let segment = fs::read_dir(log).unwrap().map(|entry| entry.unwrap().path()).max().unwrap();
    let mut bytes = fs::read(&segment).unwrap();
    let end = bytes.iter().rposition(|byte| *byte != 0).unwrap();
    bytes[end / 2] ^= 4;
    fs::write(&segment, bytes).unwrap();
    let damaged = recover(&cluster, leader, &["-yes"], "").await;
    assert!(damaged.code == 1 && damaged.stderr.contains("another survivor"), "{}", damaged.stderr);
    assert!(!cluster.at(leader).data().join("recovery").exists());
}
