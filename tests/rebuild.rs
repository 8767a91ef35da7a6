//! A damaged node refuses to start and says what to do; doing it brings the node back with everything.
#![allow(clippy::unwrap_used)] // in a test, a panic is the report

mod common;
#[path = "common/digests.rs"]
mod digests;

use std::{fs, fs::OpenOptions, time::Duration};

use common::ready;
use keystead_chaos::{
    Cluster, Output,
    cluster::JOIN,
    load::{Ended, Load},
    wait,
};

const AT_ONCE: Duration = Duration::from_secs(10);

/// Cuts the end off what the log's newest segment holds.
fn cut_tail(cluster: &Cluster, at: usize) {
    let segments = fs::read_dir(cluster.at(at).data().join("log")).unwrap();
    let path = segments.map(|entry| entry.unwrap().path()).max().unwrap();
    let bytes = fs::read(&path).unwrap();
    let end = bytes.iter().rposition(|byte| *byte != 0).unwrap();
    OpenOptions::new().write(true).open(&path).unwrap().set_len(end as u64 * 2 / 3).unwrap();
}

async fn rebuild(cluster: &Cluster, at: usize, flags: &[&str], answer: &str) -> Output {
    let config = format!("-config={}", cluster.at(at).config_file().display());
    let mut args = vec!["operator", "raft", "rebuild", &config];
    args.extend(flags);
    cluster.cli(at).run_with(&args, answer.as_bytes()).await.unwrap()
}

/// Starts a node that must refuse, and gives what it said.
async fn refusal(cluster: &Cluster, at: usize) -> String {
    let node = cluster.at(at);
    let before = node.log().len();
    node.spawn().unwrap();
    let status = node.ends(AT_ONCE).await.expect("it ends at once");
    let said = node.log()[before..].to_owned();
    assert_eq!(status.code(), Some(1), "{said}");
    said
}

async fn written(load: &Load, more: usize) {
    let due = load.acknowledged() + more;
    wait::until_now("the load to go on", Duration::from_secs(30), || {
        let written = load.acknowledged();
        if written >= due { Ok(()) } else { Err(format!("{written} of {due} writes")) }
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn a_damaged_node_is_rebuilt_from_its_peers_and_nothing_acknowledged_is_missing() {
    let cluster = ready().await;
    let damaged = cluster.others(cluster.leader().await.unwrap())[0];
    let name = cluster.at(damaged).name();
    let clients: Vec<_> = cluster.nodes().iter().map(|node| node.client()).collect();
    let load = Load::start(&clients, 2, Duration::from_millis(20));
    written(&load, 100).await;

    let running = rebuild(&cluster, damaged, &["-yes"], "").await;
    assert_eq!(running.code, 1, "{}", running.stdout);
    assert!(running.stderr.contains("in use by another process"), "{}", running.stderr);

    cluster.at(damaged).kill();
    cut_tail(&cluster, damaged);
    let said = refusal(&cluster, damaged).await;
    assert!(said.contains(&cluster.at(damaged).data().join("log").display().to_string()), "{said}");
    assert!(said.contains("keystead operator raft rebuild") && !said.contains("panicked"), "{said}");
    written(&load, 50).await;

    let refused = rebuild(&cluster, damaged, &[], "no\n").await;
    assert_eq!((refused.code, refused.stderr.trim()), (1, "Nothing was changed."));
    assert!(cluster.at(damaged).data().join("identity").exists());
    let emptied = rebuild(&cluster, damaged, &[], "yes\n").await;
    assert_eq!(emptied.code, 0, "{} {}", emptied.stdout, emptied.stderr);
    assert!(
        emptied.stdout.contains("leads the cluster") && emptied.stdout.contains(&name),
        "{}",
        emptied.stdout
    );
    assert!(emptied.stdout.contains("operator unseal"), "{}", emptied.stdout);
    assert!(!cluster.at(damaged).data().join("log").exists());

    let before = incarnations(&cluster).await;
    cluster.at(damaged).start().await.unwrap();
    wait::until("the node to be unsealed, once its place is free", Duration::from_secs(40), || async {
        cluster.unseal(cluster.at(damaged)).await.map_err(|error| error.to_string())?;
        let status = cluster.at(damaged).seal_status().await.map_err(|error| error.to_string())?;
        if status["sealed"] == false { Ok(()) } else { Err(status.to_string()) }
    })
    .await
    .unwrap();
    cluster.voters(3, JOIN).await.unwrap();
    assert_eq!(incarnations(&cluster).await, before, "the places are the same");
    written(&load, 50).await;
    let history = load.stop().await;
    eprintln!("{} writes acknowledged", history.count(Ended::Acknowledged));
    Box::pin(history.check(&cluster, &[0, 1, 2])).await.unwrap();
    digests::equal(&cluster).await;
}

/// The names of the members, as the cluster lists them.
async fn incarnations(cluster: &Cluster) -> Vec<String> {
    let servers = cluster.servers().await.unwrap();
    let mut names: Vec<_> =
        servers.iter().map(|server| server["node_id"].as_str().unwrap().to_owned()).collect();
    names.sort();
    names
}

#[tokio::test]
async fn what_may_be_the_last_copy_is_emptied_only_by_force() {
    let cluster = ready().await;
    let leader = cluster.leader().await.unwrap();
    let others = cluster.others(leader);
    cluster.kill_together(&[0, 1, 2]).unwrap();
    let nobody = rebuild(&cluster, leader, &["-yes"], "").await;
    assert_eq!(nobody.code, 1, "{}", nobody.stdout);
    assert!(
        nobody.stderr.contains("last copy") && nobody.stdout.contains("cannot be asked"),
        "{}",
        nobody.stdout
    );
    assert!(cluster.at(leader).data().join("identity").exists());

    // A peer that is there, but sealed and without a leader, proves nothing either.
    cluster.at(others[0]).start().await.unwrap();
    let sealed = rebuild(&cluster, leader, &["-yes"], "").await;
    assert_eq!(sealed.code, 1, "{}", sealed.stdout);
    assert!(sealed.stdout.contains("sealed or without a leader"), "{}", sealed.stdout);

    let forced = rebuild(&cluster, leader, &["-yes", "-force"], "").await;
    assert_eq!(forced.code, 0, "{}", forced.stderr);
    assert!(forced.stderr.contains("WARNING"), "{}", forced.stderr);
    assert!(!cluster.at(leader).data().join("identity").exists());
}

#[tokio::test]
async fn an_interrupted_rebuild_leaves_a_node_that_says_so() {
    let cluster = ready().await;
    let standby = cluster.others(cluster.leader().await.unwrap())[0];
    cluster.at(standby).kill();
    fs::remove_file(cluster.at(standby).data().join("identity")).unwrap();
    let said = refusal(&cluster, standby).await;
    assert!(said.contains("identity is missing") && said.contains("operator raft rebuild"), "{said}");
}
