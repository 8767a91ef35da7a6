//! Snapshots that become the state again: in place, on a new cluster, and not by halves.
#![allow(clippy::unwrap_used)] // in a test, a panic is the report

mod common;
#[path = "common/digests.rs"]
mod digests;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use common::ready;
use keystead_chaos::{Cluster, cli::Output, wait};
use serde_json::json;

const SOON: Duration = Duration::from_secs(30);

async fn snapshot(cluster: &Cluster, at: usize, args: &[&str]) -> Output {
    let args = ["operator", "raft", "snapshot"].iter().chain(args);
    cluster.cli(at).run(&args.copied().collect::<Vec<_>>()).await.unwrap()
}

async fn save(cluster: &Cluster, at: usize, name: &str) -> PathBuf {
    let path = cluster.directory().join(name);
    let saved = snapshot(cluster, at, &["save", &path.display().to_string()]).await;
    assert_eq!((saved.code, saved.stderr.as_str()), (0, ""));
    path
}

async fn restore(cluster: &Cluster, at: usize, path: &Path, more: &[&str]) -> Output {
    let path = path.display().to_string();
    let args: Vec<&str> = ["restore"].iter().chain(more).copied().chain([path.as_str()]).collect();
    snapshot(cluster, at, &args).await
}

fn assert_silent(output: &Output) {
    assert_eq!((output.code, output.stdout.as_str(), output.stderr.as_str()), (0, "", ""));
}

/// Which of two values a secret has on a node.
async fn value(cluster: &Cluster, at: usize, path: &str) -> Option<u64> {
    let found = cluster.at(at).get(path).await.unwrap();
    found.map(|data| data["n"].as_u64().unwrap())
}

#[tokio::test]
async fn a_snapshot_is_the_state_again_on_every_node() {
    let cluster = ready().await;
    let leader = cluster.leader().await.unwrap();
    let follower = cluster.others(leader)[0];
    for n in 0..60 {
        cluster.at(n % 3).put(&format!("folder/{n}"), &json!({ "n": n })).await.unwrap();
    }
    let large = json!({ "n": 7, "text": "x".repeat(700_000) });
    cluster.at(0).put("large", &large).await.unwrap();
    let path = save(&cluster, follower, "one.snap").await;
    for n in 0..30 {
        cluster.at(n % 3).put(&format!("folder/{n}"), &json!({ "n": n + 1000 })).await.unwrap();
    }
    cluster.at(0).call("DELETE", "secret/metadata/folder/59", None).await.unwrap().ok().unwrap();
    cluster.at(0).put("later", &json!({ "n": 1 })).await.unwrap();

    // What cannot be used changes nothing.
    let bytes = std::fs::read(&path).unwrap();
    let bad = cluster.directory().join("bad.snap");
    let mut flipped = bytes.clone();
    flipped[bytes.len() / 2] ^= 1;
    for (bad_bytes, why) in [
        (&flipped[..], "damaged"),
        (&bytes[..bytes.len() - 700], "damaged"),
        (&b"garbage"[..], "no snapshot"),
    ] {
        std::fs::write(&bad, bad_bytes).unwrap();
        let refused = restore(&cluster, leader, &bad, &[]).await;
        assert!(refused.code == 2 && refused.stderr.contains("Code: 400"), "{refused:?}");
        assert!(refused.stderr.contains(why), "{refused:?}");
    }
    let stranger = cluster.cli(leader).with("VAULT_TOKEN", "hvs.nobody");
    let file = path.display().to_string();
    let refused = stranger.run(&["operator", "raft", "snapshot", "restore", &file]).await.unwrap();
    assert!(refused.code == 2 && refused.stderr.contains("Code: 403"), "{refused:?}");
    assert_eq!(value(&cluster, 0, "later").await, Some(1));

    // A follower names the leader, and the command goes there.
    assert_silent(&restore(&cluster, follower, &path, &[]).await);
    for at in 0..3 {
        for n in 0..60 {
            assert_eq!(value(&cluster, at, &format!("folder/{n}")).await, Some(n), "{n} on {at}");
        }
        assert_eq!(cluster.at(at).get("large").await.unwrap(), Some(large.clone()));
        assert_eq!(value(&cluster, at, "later").await, None);
        assert_eq!(cluster.at(at).list("folder").await.unwrap().len(), 60);
    }
    // It is a state like any other: written to, restored again, alike on every node.
    cluster.at(1).put("folder/0", &json!({ "n": 5 })).await.unwrap();
    assert_silent(&restore(&cluster, leader, &path, &[]).await);
    assert_eq!(value(&cluster, follower, "folder/0").await, Some(0));
    digests::equal(&cluster).await;
    assert!(cluster.at(leader).log().contains("a backup was restored"));
}

#[tokio::test]
async fn another_clusters_snapshot_is_refused_and_revoking_leaves_no_token() {
    let (cluster, other) = (ready().await, ready().await);
    cluster.at(0).put("kept", &json!({ "n": 1 })).await.unwrap();
    let foreign = save(&other, 0, "other.snap").await;
    let leader = cluster.leader().await.unwrap();
    let refused = restore(&cluster, leader, &foreign, &[]).await;
    let text = "could not verify hash file, possibly the snapshot is using a different set of unseal keys; use the snapshot-force API to bypass this check";
    assert!(refused.code == 2 && refused.stderr.contains(text), "{refused:?}");
    let forced = restore(&cluster, leader, &foreign, &["-force"]).await;
    assert!(forced.code == 2 && forced.stderr.contains("another vault"), "{forced:?}");
    assert_eq!(value(&cluster, 0, "kept").await, Some(1));

    let own = save(&cluster, 0, "own.snap").await;
    assert_silent(&restore(&cluster, leader, &own, &["-revoke-tokens"]).await);
    for at in 0..3 {
        let denied = cluster.at(at).call("GET", "secret/data/kept", None).await.unwrap();
        assert_eq!(denied.status, 403, "on {at}");
    }
}

#[tokio::test]
async fn a_lost_cluster_comes_back_on_new_nodes_with_its_shares() {
    let cluster = ready().await;
    for n in 0..40 {
        cluster.at(n % 3).put(&format!("folder/{n}"), &json!({ "n": n })).await.unwrap();
    }
    let other = ready().await;
    let path = save(&cluster, 1, "last.snap").await;
    cluster.kill_together(&[0, 1, 2]).unwrap();
    for node in cluster.nodes() {
        node.wipe().unwrap();
        node.start().await.unwrap();
    }
    let bad = cluster.directory().join("bad.snap");
    std::fs::write(&bad, &std::fs::read(&path).unwrap()[..900]).unwrap();
    let refused = restore(&cluster, 0, &bad, &[]).await;
    assert!(refused.code == 2 && refused.stderr.contains("damaged"), "{refused:?}");
    assert_eq!(cluster.at(0).seal_status().await.unwrap()["initialized"], false);

    assert_silent(&restore(&cluster, 0, &path, &[]).await);
    cluster.at(0).kill();
    cluster.at(0).start().await.unwrap();
    let status = cluster.at(0).seal_status().await.unwrap();
    assert_eq!((&status["initialized"], &status["t"], &status["n"]), (&json!(true), &json!(3), &json!(5)));
    let foreign = cluster.at(0).unseal(other.shares()).await;
    assert!(foreign.is_err(), "shares of another vault open nothing");
    cluster.at(0).unseal(cluster.shares()).await.unwrap();
    cluster.serves(0, SOON).await.unwrap();
    for at in [1, 2] {
        let node = cluster.at(at);
        wait::until("a node to join", SOON, || async {
            cluster.unseal(node).await.map_err(|error| error.to_string())
        })
        .await
        .unwrap();
    }
    cluster.voters(3, SOON).await.unwrap();
    for at in 0..3 {
        for n in 0..40 {
            assert_eq!(value(&cluster, at, &format!("folder/{n}")).await, Some(n), "{n} on {at}");
        }
    }
    digests::equal(&cluster).await;
    assert!(!cluster.at(0).data().join("snapshots/awaiting-shares").exists());
}

#[tokio::test]
async fn whoever_dies_in_the_middle_leaves_the_old_state_or_the_new_one() {
    let cluster = ready().await;
    let text = "x".repeat(100_000);
    let write = async |n: u64| {
        for path in 0..80 {
            let data = json!({ "n": n, "text": text });
            cluster.at(0).put(&format!("many/{path}"), &data).await.unwrap();
        }
    };
    write(1).await;
    let path = save(&cluster, 0, "many.snap").await;
    write(2).await;
    for (delay_ms, follower) in [(60, false), (250, true), (700, false)] {
        let leader = cluster.leader().await.unwrap();
        let victim = if follower { cluster.others(leader)[0] } else { leader };
        let file = path.display().to_string();
        let cli = cluster.cli(leader);
        let args = ["operator", "raft", "snapshot", "restore", file.as_str()];
        let (restored, ()) = tokio::join!(cli.run(&args), async {
            tokio::time::sleep(Duration::from_millis(delay_ms)).await;
            cluster.at(victim).kill();
        });
        let restored = restored.unwrap();
        cluster.bring_back(victim).await.unwrap();
        cluster.serves(victim, SOON).await.unwrap();
        let first = value(&cluster, victim, "many/0").await;
        eprintln!("killed after {delay_ms} ms: {} {}, now {first:?}", restored.code, restored.stderr.trim());
        for at in 0..3 {
            for path in 0..80 {
                assert_eq!(value(&cluster, at, &format!("many/{path}")).await, first, "{path} on {at}");
            }
        }
        if restored.code == 0 {
            assert_eq!(first, Some(1), "what was said to be restored is");
        }
        if first == Some(1) {
            write(2).await;
        }
    }
    let leader = cluster.leader().await.unwrap();
    assert_silent(&restore(&cluster, leader, &path, &[]).await);
    assert_eq!(value(&cluster, leader, "many/79").await, Some(1));
    digests::equal(&cluster).await;
}

/// Runs a restore with shares of the snapshot's time.
async fn with_shares(cluster: &Cluster, at: usize, path: &Path, more: &[&str], shares: &[String]) -> Output {
    let path = path.display().to_string();
    let mut args: Vec<&str> =
        ["restore", "-shares"].iter().chain(more).copied().chain([path.as_str()]).collect();
    args.extend(shares.iter().map(String::as_str));
    snapshot(cluster, at, &args).await
}

#[tokio::test]
async fn shares_of_its_time_bring_back_a_snapshot_from_before_a_rekey() {
    let mut cluster = ready().await;
    let leader = cluster.leader().await.unwrap();
    cluster.at(0).put("kept", &json!({ "n": 1 })).await.unwrap();
    let path = save(&cluster, leader, "old.snap").await;
    cluster.at(0).put("kept", &json!({ "n": 2 })).await.unwrap();
    let old = cluster.shares().to_vec();
    let node = cluster.at(leader);
    let numbers = json!({ "secret_shares": 5, "secret_threshold": 3 });
    let begun = node.call("PUT", "sys/rekey/init", Some(&numbers)).await.unwrap().ok().unwrap().json();
    let mut made = begun.clone();
    for share in &old {
        let body = json!({ "key": share, "nonce": begun["nonce"] });
        made = node.call("PUT", "sys/rekey/update", Some(&body)).await.unwrap().ok().unwrap().json();
    }
    let new: Vec<String> = serde_json::from_value(made["keys_base64"].clone()).unwrap();

    let refused = restore(&cluster, leader, &path, &[]).await;
    assert!(refused.code == 2 && refused.stderr.contains("-shares"), "the remedy is named: {refused:?}");
    let wrong = with_shares(&cluster, leader, &path, &[], &new[..3]).await;
    assert!(wrong.code == 2 && wrong.stderr.contains("refused"), "{wrong:?}");
    assert_eq!(value(&cluster, 0, "kept").await, Some(2));
    let follower = cluster.others(leader)[0];
    assert_silent(&with_shares(&cluster, follower, &path, &[], &old).await);
    for at in 0..3 {
        assert_eq!(value(&cluster, at, "kept").await, Some(1), "on {at}");
    }
    // The present shares stay the ones that open.
    cluster.at(follower).stop().await.unwrap();
    cluster.at(follower).start().await.unwrap();
    assert!(cluster.at(follower).unseal(&old).await.is_err());
    cluster.replace_shares(new);
    cluster.unseal(cluster.at(follower)).await.unwrap();
    wait::until("the node to serve it", SOON, || async {
        let found = cluster.at(follower).get("kept").await.map_err(|error| error.to_string())?;
        if found.as_ref().is_some_and(|found| found["n"] == 1) { Ok(()) } else { Err(format!("{found:?}")) }
    })
    .await
    .unwrap();
    digests::equal(&cluster).await;
}

#[tokio::test]
async fn another_clusters_snapshot_is_taken_over_with_its_own_shares() {
    let (cluster, other) = (ready().await, ready().await);
    for n in 0..30 {
        other.at(n % 3).put(&format!("theirs/{n}"), &json!({ "n": n })).await.unwrap();
    }
    let foreign = save(&other, 0, "other.snap").await;
    cluster.at(0).put("ours", &json!({ "n": 1 })).await.unwrap();
    let leader = cluster.leader().await.unwrap();
    let unforced = with_shares(&cluster, leader, &foreign, &[], other.shares()).await;
    assert!(unforced.code == 2 && unforced.stderr.contains("snapshot-force"), "{unforced:?}");
    let ours = with_shares(&cluster, leader, &foreign, &["-force"], cluster.shares()).await;
    assert!(ours.code == 2 && ours.stderr.contains("another vault"), "{ours:?}");
    let stranger = other.keys().root_token.clone();

    // No token is in both vaults: key holders make one afterwards, with the shares of the cluster that it is.
    assert_silent(&with_shares(&cluster, leader, &foreign, &["-force"], other.shares()).await);
    let node = cluster.at(leader);
    for token in [&stranger, &cluster.keys().root_token] {
        let client = node.client().with_token(token);
        assert_eq!(client.call("GET", "auth/token/lookup-self", None).await.unwrap().status, 403);
    }
    let begun = node.call("PUT", "sys/generate-root/attempt", Some(&json!({}))).await.unwrap();
    assert_eq!(begun.status, 403, "a token that is none is not looked over: {}", begun.text());
    let client = node.client().without_token();
    let begun =
        client.call("PUT", "sys/generate-root/attempt", Some(&json!({}))).await.unwrap().ok().unwrap().json();
    let mut made = begun.clone();
    for share in cluster.shares() {
        let body = json!({ "key": share, "nonce": begun["nonce"] });
        made =
            client.call("PUT", "sys/generate-root/update", Some(&body)).await.unwrap().ok().unwrap().json();
    }
    let decode = format!("-decode={}", made["encoded_token"].as_str().unwrap());
    let otp = format!("-otp={}", begun["otp"].as_str().unwrap());
    let token = cluster.cli(leader).run(&["operator", "generate-root", &decode, &otp]).await.unwrap();
    for at in 0..3 {
        cluster.at(at).set_token(token.stdout.trim());
        for n in 0..30 {
            assert_eq!(value(&cluster, at, &format!("theirs/{n}")).await, Some(n), "{n} on {at}");
        }
        assert_eq!(value(&cluster, at, "ours").await, None);
    }
    cluster.at(0).put("theirs/0", &json!({ "n": 100 })).await.unwrap();
    digests::equal(&cluster).await;
}
