//! Snapshots by a schedule: into a directory, into a store of the S3 kind, over a change of the leader, and when they fail.
#![allow(clippy::unwrap_used)] // in a test, a panic is the report

mod common;

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use common::three;
use keystead_chaos::{Cluster, Node, Process, client, ports, wait};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(40);
const CONFIG: &str = "sys/storage/raft/snapshot-auto/config";

async fn configured(node: &Node, name: &str, body: Value) {
    let answer = node.call("POST", &format!("{CONFIG}/{name}"), Some(&body)).await.unwrap();
    assert_eq!(answer.status, 204, "{}", answer.text());
}

async fn status(node: &Node, name: &str) -> Value {
    let path = format!("sys/storage/raft/snapshot-auto/status/{name}");
    node.call("GET", &path, None).await.unwrap().ok().unwrap().data()
}

/// Waits for a status that is as wanted.
async fn until(node: &Node, name: &str, what: &str, good: impl Fn(&Value) -> bool) -> Value {
    wait::until(what, SOON, || async {
        let status = status(node, name).await;
        if good(&status) { Ok(status) } else { Err(status.to_string()) }
    })
    .await
    .unwrap()
}

fn succeeded(status: &Value) -> bool {
    status["consecutive_errors"] == 0 && status["last_snapshot_tested"] == true
}

fn snapshots(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "snap"));
    paths.sort();
    paths
}

async fn opens(cluster: &Cluster, path: &Path) {
    let path = path.display().to_string();
    let mut args = vec!["operator", "raft", "snapshot", "verify", "-deep", &path];
    args.extend(cluster.shares().iter().map(String::as_str));
    let verified = cluster.cli(0).run(&args).await.unwrap();
    assert_eq!(verified.code, 0, "{}", verified.stderr);
}

#[tokio::test]
async fn a_directory_is_filled_by_whoever_leads_and_kept_tidy() {
    let backups = tempfile::tempdir().unwrap();
    let allowed = backups.path().to_path_buf();
    let line = format!("snapshot_directory = \"{}\"", allowed.display());
    let builder = three().configure(move |_, config| config.storage_lines.push(line.clone()));
    let cluster = Box::pin(builder.ready()).await.unwrap();
    let leader = cluster.leader().await.unwrap();
    let node = cluster.at(cluster.others(leader)[0]);
    node.put("kept", &json!({ "n": 1 })).await.unwrap();
    let dir = allowed.join("daily");
    let body = json!({
        "storage_type": "local", "path_prefix": dir, "interval": "1s", "retain": 2, "test_restore": true,
    });
    configured(node, "daily", body.clone()).await;
    let shown = node.call("GET", &format!("{CONFIG}/daily"), None).await.unwrap().ok().unwrap().data();
    assert_eq!((&shown["interval"], &shown["retain"]), (&json!(1), &json!(2)), "{shown}");
    let listed = node.call("LIST", CONFIG, None).await.unwrap().ok().unwrap().data();
    assert_eq!(listed["keys"], json!(["daily"]));
    let first = until(node, "daily", "a snapshot", succeeded).await;
    wait::until_now("three of them to have been taken", SOON, || {
        let taken = cluster.at(leader).log().matches("a scheduled snapshot was stored").count();
        if taken >= 3 { Ok(()) } else { Err(format!("{taken}")) }
    })
    .await
    .unwrap();
    let files = snapshots(&dir);
    assert!((1..=3).contains(&files.len()), "one may have come and none gone yet: {files:?}");
    opens(&cluster, files.last().unwrap()).await;

    // The next leader goes on.
    cluster.at(leader).kill();
    let index = first["last_snapshot_index"].as_u64().unwrap();
    until(node, "daily", "the next leader to take one", |status| {
        succeeded(status) && status["last_snapshot_index"].as_u64().unwrap() > index
    })
    .await;
    wait::until_now("its log to say so", SOON, || {
        let others = cluster.others(leader);
        match others.iter().any(|at| cluster.at(*at).log().contains("a scheduled snapshot was stored")) {
            true => Ok(()),
            false => Err("nobody has".to_owned()),
        }
    })
    .await
    .unwrap();
    let deleted = node.call("DELETE", &format!("{CONFIG}/daily"), None).await.unwrap();
    assert_eq!(deleted.status, 204);
    assert_eq!(node.call("GET", &format!("{CONFIG}/daily"), None).await.unwrap().status, 404);
}

#[tokio::test]
async fn a_failure_is_shown_and_tried_again_and_no_token_leaves_the_directory() {
    let backups = tempfile::tempdir().unwrap();
    let allowed = backups.path().to_path_buf();
    let line = format!("snapshot_directory = \"{}\"", allowed.display());
    let builder = three().configure(move |_, config| config.storage_lines.push(line.clone()));
    let cluster = Box::pin(builder.ready()).await.unwrap();
    let node = cluster.at(0);
    for path in ["/etc", "/", "relative", "/var/../etc"] {
        let body = json!({ "storage_type": "local", "path_prefix": path, "interval": "1s" });
        let refused = node.call("POST", &format!("{CONFIG}/x"), Some(&body)).await.unwrap();
        assert_eq!(refused.status, 400, "{path}: {}", refused.text());
    }
    let dir = allowed.join("in-the-way");
    std::fs::write(&dir, b"a file, not a directory").unwrap();
    let body = json!({ "storage_type": "local", "path_prefix": dir, "interval": "1s", "test_restore": true });
    configured(node, "x", body).await;
    let failed =
        until(node, "x", "a failure", |status| status["consecutive_errors"].as_u64() > Some(1)).await;
    assert!(!failed["last_snapshot_error"].as_str().unwrap().is_empty(), "{failed}");
    let leader = cluster.at(cluster.leader().await.unwrap());
    wait::until("the failure to be warned of", SOON, || async {
        let health = leader.call("GET", "sys/health", None).await.unwrap().json();
        match health["warnings"].to_string().contains("twice their interval") {
            true => Ok(()),
            false => Err(health.to_string()),
        }
    })
    .await
    .unwrap();
    std::fs::remove_file(&dir).unwrap();
    until(node, "x", "it to go on when the way is free", succeeded).await;
    assert!(!snapshots(&dir).is_empty());
}

#[tokio::test]
#[ignore = "needs tests/.venv, which tests/run makes"]
async fn a_store_of_the_s3_kind_is_filled_and_read_back() {
    let python = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/.venv/bin/python");
    assert!(python.exists(), "tests/run makes {}", python.display());
    let cluster = Box::pin(three().ready()).await.unwrap();
    let address = ports::free().unwrap();
    let mut command = Command::new(python);
    let port = address.port().to_string();
    command.args(["-m", "moto.server", "-H", &address.ip().to_string(), "-p", &port]).env_clear();
    let _store = Process::start("moto", command, &cluster.directory().join("moto.log")).unwrap();
    let store = client::Client::new(address, None).fresh();
    let send = async |method: &str, path: &str| {
        store.send(method, path, bytes::Bytes::new(), &[]).await.map_err(|error| error.to_string())
    };
    wait::until("the store to answer", SOON, || async {
        match send("PUT", "/backups").await?.status {
            200 => Ok(()),
            other => Err(other.to_string()),
        }
    })
    .await
    .unwrap();

    let leader = cluster.leader().await.unwrap();
    let node = cluster.at(leader);
    let local = json!({ "storage_type": "local", "path_prefix": "/tmp/x", "interval": "1s" });
    let refused = node.call("POST", &format!("{CONFIG}/local"), Some(&local)).await.unwrap();
    assert!(refused.status == 400 && refused.errors().contains("snapshot_directory"), "{}", refused.text());
    // More than one part of an upload.
    for n in 0..40 {
        node.put(&format!("large/{n}"), &json!({ "value": "x".repeat(300 << 10) })).await.unwrap();
    }
    let mut body = json!({
        "storage_type": "aws-s3", "interval": "1s", "retain": 2, "test_restore": true, "path_prefix": "keystead/daily",
        "aws_s3_bucket": "backups", "aws_s3_region": "us-east-1", "aws_s3_endpoint": address.to_string(),
        "aws_s3_disable_tls": true, "aws_s3_force_path_style": true,
        "aws_access_key_id": "AKIDEXAMPLE", "aws_secret_access_key": "a-key-that-nobody-may-see",
    });
    configured(node, "s3", body.clone()).await;
    let shown = node.call("GET", &format!("{CONFIG}/s3"), None).await.unwrap().ok().unwrap();
    assert!(!shown.text().contains("nobody-may-see"), "{}", shown.text());
    let done = until(node, "s3", "a snapshot", succeeded).await;
    assert!(
        done["last_snapshot_url"].as_str().unwrap().starts_with("s3://backups/keystead/daily/"),
        "{done}"
    );
    wait::until("older ones to be removed", SOON, || async {
        let taken = node.log().matches("a scheduled snapshot was stored").count();
        let listed = send("GET", "/backups?list-type=2").await?.text();
        let kept = listed.matches("<Key>keystead/daily/").count();
        if taken >= 4 && (1..=3).contains(&kept) {
            Ok(())
        } else {
            Err(format!("{taken} taken, {kept} kept"))
        }
    })
    .await
    .unwrap();
    // A bucket that is not there, then the right one again.
    body["aws_s3_bucket"] = "nosuch".into();
    configured(node, "s3", body).await;
    let failed =
        until(node, "s3", "a failure", |status| status["consecutive_errors"].as_u64() > Some(0)).await;
    assert!(!failed.to_string().contains("nobody-may-see"), "{failed}");
    let logs: String = cluster.nodes().iter().map(Node::log).collect();
    assert!(!logs.contains("nobody-may-see"));
}
