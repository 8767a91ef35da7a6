//! An acknowledged write is on the disks of a majority: the kernel is asked what was synced, by strace.
#![allow(clippy::unwrap_used)] // in a test, a panic is the report

mod common;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use common::ready;
use keystead_chaos::{Process, wait};
use rustix::process::Signal;
use serde_json::json;

const WRITES: usize = 20;

/// Starts strace on a process and waits until it is attached.
async fn trace(pid: u32, directory: &Path) -> (Process, PathBuf) {
    let (out, log) = (directory.join(format!("strace-{pid}")), directory.join(format!("strace-{pid}.log")));
    let mut command = Command::new("strace");
    command.args(["-f", "-y", "-e", "trace=fdatasync,fsync", "-o"]).arg(&out).args(["-p", &pid.to_string()]);
    let process = Process::start("strace", command, &log).expect("strace is installed; tests/run sees to it");
    wait::until_now("strace to be attached", Duration::from_secs(10), || {
        process.alive().map_err(|error| error.to_string())?;
        let said = process.log();
        if said.contains("attached") { Ok(()) } else { Err(said) }
    })
    .await
    .unwrap();
    (process, out)
}

/// How often each file of a data directory was synced, by its path below the directory.
fn syncs(trace: &Path, data: &Path) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    // With several threads one call may be told in two lines; only the first names the file.
    for line in std::fs::read_to_string(trace).unwrap().lines() {
        let Some((_, rest)) = line.split_once("fdatasync(").or_else(|| line.split_once("fsync(")) else {
            continue;
        };
        let Some(path) = rest.split_once('<').and_then(|(_, rest)| rest.split_once('>')) else { continue };
        if let Ok(below) = Path::new(path.0).strip_prefix(data) {
            *counts.entry(below.display().to_string()).or_default() += 1;
        }
    }
    counts
}

#[tokio::test]
async fn a_lone_acknowledged_write_is_one_sync_of_the_log_on_each_node() {
    let cluster = ready().await;
    let leader = cluster.leader().await.unwrap();
    let client = cluster.at(leader).client();
    let mut traces = Vec::new();
    for node in cluster.nodes() {
        traces.push((node, trace(node.pid(), cluster.directory()).await));
    }
    cluster.at(leader).put("warm", &json!({ "up": 1 })).await.unwrap();
    let logs = || -> Vec<usize> {
        traces
            .iter()
            .map(|(node, (_, out))| {
                let counts = syncs(out, &node.data().canonicalize().unwrap());
                counts.iter().filter(|(path, _)| path.starts_with("log/")).map(|(_, count)| count).sum()
            })
            .collect()
    };
    wait::until_now("the warm write on every node's disk", Duration::from_secs(10), || {
        let counts = logs();
        if counts.iter().all(|count| *count > 0) { Ok(()) } else { Err(format!("{counts:?}")) }
    })
    .await
    .unwrap();
    let before = logs();
    let start = Instant::now();
    for n in 0..WRITES {
        let body = json!({ "data": { "n": n } });
        client.call("POST", "secret/data/lone", Some(&body)).await.unwrap().ok().unwrap();
        let replicated: Vec<usize> = logs();
        // Acknowledged: it is on the disk of the leader and of one other at least.
        let there = replicated.iter().zip(&before).filter(|(now, before)| *now - *before > n).count();
        assert!(there >= 2, "write {n} was acknowledged with {replicated:?} syncs after {before:?}");
        tokio::time::sleep(Duration::from_millis(50)).await; // lone: nothing to share a sync with
    }
    // Every ten seconds of writing a checkpoint of the state's digest goes through the log as well.
    let checkpoints = 1 + start.elapsed().as_secs() as usize / 10;
    wait::until_now("the last follower", Duration::from_secs(5), || {
        let after = logs();
        let slow = after.iter().zip(&before).any(|(after, before)| after - before < WRITES);
        if slow { Err(format!("{before:?} {after:?}")) } else { Ok(()) }
    })
    .await
    .unwrap();
    for ((node, _), (after, before)) in traces.iter().zip(logs().iter().zip(&before)) {
        let count = after - before;
        assert!(
            (WRITES..=WRITES + checkpoints).contains(&count),
            "{}: {count} syncs of the log for {WRITES} writes",
            node.name()
        );
    }
    for (_, (process, _)) in &traces {
        process.signal(Signal::INT).unwrap();
        process.wait(Duration::from_secs(10)).await.unwrap();
    }
}

#[tokio::test]
async fn writes_that_come_together_share_syncs() {
    let cluster = ready().await;
    let leader = cluster.leader().await.unwrap();
    let (process, out) = trace(cluster.at(leader).pid(), cluster.directory()).await;
    let data = cluster.at(leader).data().canonicalize().unwrap();
    let tasks: Vec<_> = (0..32)
        .map(|writer| {
            let client = cluster.at(leader).client();
            tokio::spawn(async move {
                for n in 0..10 {
                    let path = format!("secret/data/together/{writer}/{n}");
                    client
                        .call("POST", &path, Some(&json!({ "data": { "n": n } })))
                        .await
                        .unwrap()
                        .ok()
                        .unwrap();
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let counts = syncs(&out, &data);
    let log: usize = counts.iter().filter(|(path, _)| path.starts_with("log/")).map(|(_, count)| count).sum();
    assert!(log > 0 && log < 200, "{log} syncs of the log for 320 writes by 32 writers: {counts:?}");
    process.signal(Signal::INT).unwrap();
    process.wait(Duration::from_secs(10)).await.unwrap();
}
