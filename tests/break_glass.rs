//! Break-glass shares that are made later and done away with, and the root key that is replaced with them.
#![allow(clippy::unwrap_used)] // in a test, a panic is the report

mod common;
#[path = "common/digests.rs"]
mod digests;
#[path = "common/state_rows.rs"]
mod state_rows;
#[path = "common/unattended.rs"]
mod unattended;

use std::{fs, path::PathBuf, time::Duration};

use common::three;
use keystead_chaos::{Client, Cluster, Node, Response, Result, load, wait};
use serde_json::{Value, json};
use unattended::{Keys, SOON, init, open, start_all, status, warns, with};

/// Three open nodes with a key in a file, kv, and a secret at `a`; the key files and the recovery shares.
async fn cluster() -> (Keys, Cluster, Vec<String>) {
    let keys = Keys::new();
    let cluster = Box::pin(with(three(), keys.stanzas(&["file"])).start()).await.unwrap();
    let recovery = init(&cluster).await;
    cluster.voters(3, SOON).await.unwrap();
    for node in cluster.nodes() {
        open(node).await;
    }
    cluster.mount_kv().await.unwrap();
    cluster.at(0).put("a", &json!({ "v": "before" })).await.unwrap();
    (keys, cluster, recovery)
}

async fn ask(node: &Node, method: &str, path: &str, body: Option<Value>) -> Response {
    node.call(method, &format!("sys/break-glass{path}"), body.as_ref()).await.unwrap()
}

async fn begin(node: &Node, change: &str) -> String {
    let body = json!({ "secret_shares": 3, "secret_threshold": 2 });
    let begun = ask(node, "PUT", &format!("/{change}/init"), Some(body)).await.ok().unwrap().data();
    assert_eq!((&begun["started"], &begun["required"]), (&json!(true), &json!(3)), "{begun}");
    begun["nonce"].as_str().unwrap().to_owned()
}

async fn agree(node: &Node, change: &str, nonce: &str, share: &str) -> Response {
    ask(node, "PUT", &format!("/{change}/update"), Some(json!({ "key": share, "nonce": nonce }))).await
}

/// Carries a change out through a node, and gives the answer to the last share.
async fn carry_out(node: &Node, change: &str, recovery: &[String]) -> Value {
    let nonce = begin(node, change).await;
    let mut last = Value::Null;
    for share in &recovery[..3] {
        last = agree(node, change, &nonce, share).await.ok().unwrap().data();
    }
    assert_eq!(last["complete"], true, "{last}");
    last
}

fn shares(made: &Value) -> Vec<String> {
    serde_json::from_value(made["keys_base64"].clone()).unwrap()
}

/// What a node says of break glass. One that was started again may be sealed for a moment: it opens by what its disk has,
/// and once more when it has applied a root key that came after.
async fn facts(node: &Node) -> Value {
    let look = || async { ask(node, "GET", "", None).await.ok() };
    wait::until(&format!("{} to answer", node.name()), SOON, look).await.unwrap().data()
}

/// Waits until a node goes by the root key of that generation, and is open.
async fn generation(node: &Node, generation: u64) {
    wait::until(&format!("{} to have the new root key", node.name()), SOON, || async {
        let status = node.seal_status().await?;
        let facts = ask(node, "GET", "", None).await;
        match facts.status == 200 && facts.data()["root_generation"] == generation {
            true => Result::Ok(()),
            false => Err(keystead_chaos::Error::Broken(format!("{status} {}", facts.text()))),
        }
    })
    .await
    .unwrap();
}

async fn reads(cluster: &Cluster, path: &str, value: &str) {
    for node in cluster.nodes() {
        assert_eq!(node.get(path).await.unwrap().unwrap()["v"], value, "{}", node.name());
    }
}

/// Enters a share at a node that is sealed.
async fn enter(node: &Node, share: &str) -> Response {
    node.call("PUT", "sys/unseal", Some(&json!({ "key": share }))).await.unwrap()
}

/// Enters shares at a node that is sealed, once it knows of them: what it has in its log alone counts when a leader says so.
async fn enter_all(node: &Node, shares: &[String]) {
    for share in shares {
        wait::until("a share to be taken", SOON, || async {
            let answer = enter(node, share).await;
            match answer.status {
                200 => Ok(()),
                _ => Err(answer.text()),
            }
        })
        .await
        .unwrap();
    }
}

#[tokio::test]
async fn shares_made_later_open_a_vault_whose_keys_are_gone_and_those_done_away_with_do_not() {
    let (keys, cluster, recovery) = cluster().await;
    let follower = cluster.others(cluster.leader().await.unwrap())[0];
    let before = facts(cluster.at(follower)).await;
    assert_eq!((&before["enabled"], &before["root_generation"]), (&json!(false), &json!(1)), "{before}");
    assert!(before["warning"].as_str().unwrap().contains("break-glass"), "{before}");
    // A standby forwards.
    let first = shares(&carry_out(cluster.at(follower), "enable", &recovery).await);
    assert_eq!(first.len(), 3);
    let after = facts(cluster.at(follower)).await;
    let expected = json!([true, 3, 2, 1, ""]);
    assert_eq!(
        json!([after["enabled"], after["n"], after["t"], after["generation"], after["warning"]]),
        expected
    );

    // Done away with: the vault has another root key, on every node, and goes on.
    let gone = carry_out(cluster.at(follower), "disable", &recovery).await;
    assert_eq!(shares(&gone), Vec::<String>::new());
    for node in cluster.nodes() {
        generation(node, 2).await;
    }
    cluster.at(follower).put("b", &json!({ "v": "after" })).await.unwrap();
    reads(&cluster, "a", "before").await;
    reads(&cluster, "b", "after").await;
    let status_now = open(cluster.at(0)).await;
    assert!(warns(&status_now, "nothing but the seal"), "{status_now}");
    let second = shares(&carry_out(cluster.at(follower), "enable", &recovery).await);
    digests::equal(&cluster).await;

    // Every key is destroyed.
    fs::remove_file(keys.path("file")).unwrap();
    cluster.kill_together(&[0, 1, 2]).unwrap();
    start_all(&cluster).await;
    for node in cluster.nodes() {
        status(node, "to miss its key", |status| warns(status, "does not work")).await;
        let refused = enter(node, &first[0]).await;
        assert_eq!(refused.status, 400);
        assert!(refused.errors().contains("stale: it is of root key generation 1"), "{}", refused.text());
        let refused = enter(node, &recovery[0]).await;
        assert!(refused.errors().contains("is a recovery share, which opens nothing"), "{}", refused.text());
        enter_all(node, &second[1..]).await;
        open(node).await;
    }
    reads(&cluster, "a", "before").await;
    reads(&cluster, "b", "after").await;
    // Opened so, the key that was made anew is wrapped by, and the next start needs nobody.
    for node in cluster.nodes() {
        status(node, "to have a wrap by the new key", |status| !warns(status, "is not wrapped")).await;
    }
}

#[tokio::test]
async fn what_is_wrong_with_a_change_is_said_and_changes_nothing() {
    let (_keys, cluster, recovery) = cluster().await;
    let node = cluster.at(0);
    let refused = |response: Response, text: &str| {
        assert_eq!(response.status, 400, "{}", response.text());
        assert!(response.errors().contains(text), "{}", response.text());
    };
    refused(ask(node, "PUT", "/disable/init", Some(json!({}))).await, "there are no break-glass shares");
    let numbers = json!({ "secret_shares": 2, "secret_threshold": 3 });
    refused(ask(node, "PUT", "/enable/init", Some(numbers)).await, "threshold cannot be larger than shares");
    refused(agree(node, "enable", "x", &recovery[0]).await, "no such change");
    let nobody =
        node.client().without_token().call("PUT", "sys/break-glass/enable/init", None).await.unwrap();
    assert_eq!(nobody.status, 403);

    let nonce = begin(node, "enable").await;
    let again = json!({ "secret_shares": 3, "secret_threshold": 2 });
    refused(ask(node, "PUT", "/enable/init", Some(again.clone())).await, "in progress already");
    refused(agree(node, "enable", "x", &recovery[0]).await, "incorrect nonce supplied");
    refused(agree(node, "enable", &nonce, &"07".repeat(33)).await, "this takes recovery shares");
    let one = agree(node, "enable", &nonce, &recovery[0]).await.ok().unwrap().data();
    assert_eq!((&one["progress"], &one["complete"]), (&json!(1), &json!(false)), "{one}");
    refused(agree(node, "enable", &nonce, &recovery[0]).await, "already been provided");
    // Cancelled, what was given counts no more.
    assert_eq!(ask(node, "DELETE", "/enable/init", None).await.status, 204);
    refused(agree(node, "enable", &nonce, &recovery[1]).await, "no such change");
    let idle = ask(node, "GET", "/enable/init", None).await.ok().unwrap().data();
    assert_eq!((&idle["started"], &idle["progress"]), (&json!(false), &json!(0)), "{idle}");
    assert_eq!(facts(node).await["enabled"], false);

    carry_out(node, "enable", &recovery).await;
    refused(ask(node, "PUT", "/enable/init", Some(again)).await, "already; disable them first");
}

#[tokio::test]
async fn the_root_key_is_replaced_under_load_with_a_standby_away_and_the_old_wraps_open_nothing() {
    let (_keys, cluster, recovery) = cluster().await;
    carry_out(cluster.at(0), "enable", &recovery).await;
    let leader = cluster.leader().await.unwrap();
    let [near, away] = cluster.others(leader)[..] else { panic!("three nodes") };
    cluster.at(near).stop().await.unwrap();
    let old = seal_config(&cluster, near);
    cluster.bring_back(near).await.unwrap();
    let clients: Vec<Client> = [leader, near].iter().map(|at| cluster.at(*at).client()).collect();
    let load = load::Load::start(&clients, 4, Duration::from_millis(2));
    // Long enough for the leader to count on it no more.
    cluster.at(away).pause().unwrap();
    wait::until("some writes without it", SOON, || async {
        match load.acknowledged() > 200 {
            true => Ok(()),
            false => Err(load.acknowledged().to_string()),
        }
    })
    .await
    .unwrap();
    tokio::time::sleep(Duration::from_secs(3)).await; // so long a silence is what is tried
    carry_out(cluster.at(near), "disable", &recovery).await;
    generation(cluster.at(near), 2).await;
    let so_far = load.acknowledged();
    wait::until("writes under the new root key", SOON, || async {
        match load.acknowledged() > so_far + 200 {
            true => Ok(()),
            false => Err(load.acknowledged().to_string()),
        }
    })
    .await
    .unwrap();
    cluster.at(away).resume().unwrap();
    generation(cluster.at(away), 2).await;
    open(cluster.at(away)).await;
    let missed = "while this node was out of the leader's reach";
    assert!(cluster.at(away).log().contains(missed), "{}", cluster.at(away).log());
    let history = load.stop().await;
    assert_eq!(history.count(load::Ended::Refused), 0, "{:?}", history.refusals);
    history.check(&cluster, &[0, 1, 2]).await.unwrap();
    digests::equal(&cluster).await;
    for node in cluster.nodes() {
        generation(node, 2).await;
    }

    // The configuration of before, with its wraps, put back on a disk: the root key it leads to opens nothing there.
    cluster.at(near).kill();
    state_rows::write([(&old.0, Some(old.1.as_slice()))]);
    cluster.at(near).start().await.unwrap();
    let opens_nothing = "the seal gave the root key, and the node could not be opened";
    wait::until("the old root key to be tried", SOON, || async {
        match cluster.at(near).log().contains(opens_nothing) {
            true => Ok(()),
            false => Err(cluster.at(near).log()),
        }
    })
    .await
    .unwrap();
    assert_eq!(cluster.at(near).seal_status().await.unwrap()["sealed"], true);
}

/// The seal configuration as it stands on a node's disk, and where.
fn seal_config(cluster: &Cluster, at: usize) -> ((PathBuf, Vec<u8>), Vec<u8>) {
    let rows = state_rows::rows(&cluster.at(at).data(), b"");
    let is_config = |key: &[u8]| key.windows(11).any(|part| part == b"seal-config");
    rows.into_iter().find(|((_, key), _)| is_config(key)).unwrap()
}

#[tokio::test]
async fn a_node_without_a_seal_has_the_new_root_key_from_the_leader_or_seals_itself_and_says_why() {
    let (keys, cluster, recovery) = cluster().await;
    let leader = cluster.leader().await.unwrap();
    let [poor, other] = cluster.others(leader)[..] else { panic!("three nodes") };
    let shares_now = shares(&carry_out(cluster.at(leader), "enable", &recovery).await);
    let node = cluster.at(poor);
    node.kill();
    node.configure(|config| config.lines.retain(|line| !line.starts_with("seal ")));
    node.start().await.unwrap();
    enter_all(node, &shares_now[..2]).await;
    open(node).await;
    // In reach, it stays open: nothing but the leader can have given it the root key.
    carry_out(cluster.at(leader), "disable", &recovery).await;
    generation(node, 2).await;
    assert_eq!(node.seal_status().await.unwrap()["sealed"], false);
    node.put("b", &json!({ "v": "through it" })).await.unwrap();
    reads(&cluster, "b", "through it").await;
    // Out of reach, it has to be opened with shares that were made since.
    node.pause().unwrap();
    tokio::time::sleep(Duration::from_secs(3)).await; // so long a silence is what is tried
    let shares_now = shares(&carry_out(cluster.at(leader), "enable", &recovery).await);
    carry_out(cluster.at(leader), "disable", &recovery).await;
    node.resume().unwrap();
    status(node, "to say why it is sealed", |status| {
        status["sealed"] == true && warns(status, "replaced by generation 3")
    })
    .await;
    assert!(enter(node, &shares_now[0]).await.errors().contains("stale: it is of root key generation 2"));
    let shares_now = shares(&carry_out(cluster.at(other), "enable", &recovery).await);
    enter_all(node, &shares_now[..2]).await;
    let opened = open(node).await;
    assert!(!warns(&opened, "replaced by generation"), "{opened}");
    reads(&cluster, "b", "through it").await;
    drop(keys);
}

#[tokio::test]
async fn a_leader_that_dies_around_it_leaves_the_old_root_key_or_the_new_one() {
    let (_keys, cluster, recovery) = cluster().await;
    for round in 0..3 {
        let leader = cluster.leader().await.unwrap();
        if facts(cluster.at(leader)).await["enabled"] == false {
            carry_out(cluster.at(leader), "enable", &recovery).await;
        }
        let before = facts(cluster.at(leader)).await["root_generation"].as_u64().unwrap();
        let nonce = begin(cluster.at(leader), "disable").await;
        for share in &recovery[..2] {
            agree(cluster.at(leader), "disable", &nonce, share).await.ok().unwrap();
        }
        // Before the answer, while it is on its way, and right after it.
        let body = json!({ "key": recovery[2], "nonce": nonce });
        let client = cluster.at(leader).client();
        let last =
            tokio::spawn(
                async move { client.call("PUT", "sys/break-glass/disable/update", Some(&body)).await },
            );
        match round {
            0 => tokio::task::yield_now().await,
            1 => tokio::time::sleep(Duration::from_millis(15)).await, // somewhere in the middle of it
            _ => drop(last.await.unwrap().unwrap().ok().unwrap()),
        }
        cluster.at(leader).kill();
        let survivors = cluster.others(leader);
        cluster.leader_among(&survivors, SOON).await.unwrap();
        cluster.serves(survivors[0], SOON).await.unwrap();
        cluster.at(leader).start().await.unwrap();
        let after = facts(cluster.at(survivors[0])).await["root_generation"].as_u64().unwrap();
        assert!(after == before || after == before + 1, "{before} {after}");
        assert!(round < 2 || after == before + 1, "it was acknowledged");
        for node in cluster.nodes() {
            generation(node, after).await;
            assert_eq!(facts(node).await["enabled"], after == before);
            open(node).await;
        }
        reads(&cluster, "a", "before").await;
    }
    digests::equal(&cluster).await;
    // A node that joins anew goes through every root key that there was.
    cluster.at(2).kill();
    cluster.at(2).wipe().unwrap();
    cluster.at(2).start().await.unwrap();
    open(cluster.at(2)).await;
    wait::until("the newcomer to have everything", SOON, || async {
        match cluster.at(2).get("a").await? {
            Some(data) if data["v"] == "before" => Result::Ok(()),
            other => Err(keystead_chaos::Error::Broken(format!("{other:?}"))),
        }
    })
    .await
    .unwrap();
    let now = facts(cluster.at(0)).await["root_generation"].as_u64().unwrap();
    generation(cluster.at(2), now).await;
}
