//! One ceremony for all nodes: shares typed once open three.
#![allow(clippy::unwrap_used)] // in a test, a panic is the report

mod common;

use std::time::Duration;

use common::{BINARY, ready};
use keystead_chaos::{Cluster, Node, Response, node::copy_directory, ports, wait};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(20);

/// Gives shares to a node on behalf of the whole cluster; gives the answer to the last one.
async fn agree(cluster: &Cluster, at: usize) -> Value {
    let mut status = Value::Null;
    for share in cluster.shares() {
        let body = json!({ "key": share, "cluster": true });
        status = cluster.at(at).call("PUT", "sys/unseal", Some(&body)).await.unwrap().ok().unwrap().json();
        if !status["ceremony"].is_null() {
            break;
        }
    }
    status["ceremony"].clone()
}

async fn confirm(cluster: &Cluster, at: usize, body: &Value) -> Response {
    cluster.at(at).call("PUT", "sys/unseal-members", Some(body)).await.unwrap()
}

fn state<'v>(answer: &'v Value, node_id: &str) -> (&'v str, &'v str) {
    let members = answer["members"].as_array().unwrap();
    let member = members.iter().find(|member| member["node_id"] == node_id).unwrap();
    (member["state"].as_str().unwrap(), member["why"].as_str().unwrap())
}

async fn is_sealed(node: &Node) -> bool {
    node.seal_status().await.unwrap()["sealed"].as_bool().unwrap()
}

/// Kills all and starts them again: all are sealed.
async fn restart_all(cluster: &Cluster) {
    cluster.kill_together(&[0, 1, 2]).unwrap();
    for node in cluster.nodes() {
        node.start().await.unwrap();
    }
}

/// The offer, once it says of a member what is wanted: after a start nodes have to find each other.
async fn offered(cluster: &Cluster, at: usize, node_id: &str, wanted: &str) -> Value {
    let what = format!("{node_id} to be {wanted}");
    wait::until(&what, SOON, || async {
        let offer = agree(cluster, at).await;
        match state(&offer, node_id).0 == wanted {
            true => Ok(offer),
            false => Err(offer.to_string()),
        }
    })
    .await
    .unwrap()
}

#[tokio::test]
async fn three_shares_typed_once_open_three_nodes() {
    let cluster = ready().await;
    cluster.at(0).put("kept", &json!({ "n": 1 })).await.unwrap();
    restart_all(&cluster).await;
    let (cli, shares) = (cluster.cli(0), cluster.shares());
    let (last, first) = shares.split_last().unwrap();
    for share in first {
        let entered = cli.run(&["operator", "unseal", "-cluster", share]).await.unwrap();
        assert_eq!(entered.code, 0, "{}", entered.stderr);
        assert!(entered.stdout.contains("Unseal Progress"), "{}", entered.stdout);
    }
    // Without somebody to ask and without -yes the others stay as they are.
    let asked = cli.run(&["operator", "unseal", "-cluster", "-non-interactive", last]).await.unwrap();
    assert_eq!(asked.code, 1, "{}{}", asked.stdout, asked.stderr);
    assert!(
        !is_sealed(cluster.at(0)).await && is_sealed(cluster.at(1)).await && is_sealed(cluster.at(2)).await
    );
    offered(&cluster, 0, &cluster.at(1).name(), "sealed").await;
    offered(&cluster, 0, &cluster.at(2).name(), "sealed").await;

    // The shares of an open node's key holders open the rest.
    for share in first {
        cli.run(&["operator", "unseal", "-cluster", share]).await.unwrap();
    }
    let opened = cli.run_with(&["operator", "unseal", "-cluster", last], b"yes\n").await.unwrap();
    assert_eq!(opened.code, 0, "{}{}", opened.stdout, opened.stderr);
    assert_eq!(opened.stdout.matches("unsealed").count(), 2, "{}", opened.stdout);
    for at in [1, 2] {
        let fingerprint = opened.stdout.split_whitespace().filter(|word| word.len() == 64);
        let logged = fingerprint.filter(|word| cluster.at(at).log().contains(word)).count();
        assert!(logged >= 1, "the fingerprint that is shown is the one in the log");
        assert!(!is_sealed(cluster.at(at)).await);
        assert_eq!(cluster.at(at).get("kept").await.unwrap().unwrap()["n"], 1);
        cluster.serves(at, SOON).await.unwrap();
    }
}

#[tokio::test]
async fn what_was_shown_is_confirmed_once_and_only_that() {
    let cluster = ready().await;
    restart_all(&cluster).await;
    let n2 = cluster.at(1).name();
    let offer = offered(&cluster, 0, &n2, "sealed").await;
    let nonce = offer["nonce"].as_str().unwrap();

    let refused = confirm(&cluster, 0, &json!({ "nonce": "" })).await;
    assert_eq!(refused.status, 400, "{}", refused.text());
    let elsewhere = confirm(&cluster, 1, &json!({ "nonce": nonce })).await;
    assert_eq!(elsewhere.status, 503, "a sealed node opens nobody: {}", elsewhere.text());
    // A member that is started again is not the process that was shown.
    cluster.at(1).kill();
    cluster.at(1).start().await.unwrap();
    let answer = confirm(&cluster, 0, &json!({ "nonce": nonce, "members": [n2] })).await.ok().unwrap().json();
    assert_eq!(state(&answer, &n2).0, "sealed", "{answer}");
    assert!(is_sealed(cluster.at(1)).await && is_sealed(cluster.at(2)).await);
    let spent = confirm(&cluster, 0, &json!({ "nonce": nonce })).await;
    assert!(spent.status == 400 && spent.errors().contains("good once"), "{}", spent.text());

    // Named ones alone; an unknown name opens nothing.
    let offer = offered(&cluster, 0, &n2, "sealed").await;
    let unknown = confirm(&cluster, 0, &json!({ "nonce": offer["nonce"], "members": ["nobody"] })).await;
    assert_eq!(unknown.status, 400, "{}", unknown.text());
    let offer = offered(&cluster, 0, &n2, "sealed").await;
    let answer = confirm(&cluster, 0, &json!({ "nonce": offer["nonce"], "members": [n2] })).await;
    assert_eq!(state(&answer.ok().unwrap().json(), &n2).0, "unsealed");
    assert!(!is_sealed(cluster.at(1)).await && is_sealed(cluster.at(2)).await);
}

#[tokio::test]
async fn nothing_is_given_where_two_processes_claim_to_be_a_member() {
    let cluster = ready().await;
    cluster.at(1).stop().await.unwrap();
    let copy = cluster.directory().join("stolen");
    copy_directory(&cluster.at(1).data(), &copy).unwrap();
    cluster.at(1).start().await.unwrap();
    let n2 = cluster.at(1).name();
    offered(&cluster, 0, &n2, "sealed").await;

    let mut config = cluster.at(1).config();
    config.data = copy;
    (config.api, config.cluster) = (ports::free().unwrap(), ports::free().unwrap());
    config.cluster_advertised = config.cluster;
    let clone = Node::new(config, cluster.directory().join("clone"), BINARY.into(), Some(cluster.tls()));
    clone.start().await.unwrap();

    let offer = offered(&cluster, 0, &n2, "unfit").await;
    assert!(state(&offer, &n2).1.contains("stop the copy"), "{offer}");
    let answer = confirm(&cluster, 0, &json!({ "nonce": offer["nonce"] })).await.ok().unwrap().json();
    assert_eq!(state(&answer, &n2).0, "unfit", "{answer}");
    assert!(is_sealed(cluster.at(1)).await && is_sealed(&clone).await);
}
