//! Restarts, in every combination, gentle and not; what sealed nodes do meanwhile.
#![allow(clippy::unwrap_used)] // in a test, a panic is the report

mod common;

use std::time::Duration;

use common::ready;
use keystead_chaos::Cluster;
use serde_json::json;

const SOON: Duration = Duration::from_secs(20);

#[derive(Debug, Clone, Copy)]
enum Way {
    Term,
    Kill,
}

async fn down(cluster: &Cluster, nodes: &[usize], way: Way) {
    for at in nodes {
        match way {
            Way::Term => {
                let status = cluster.at(*at).stop().await.unwrap();
                assert!(status.success(), "SIGTERM ends a node in good order, not with {status}");
            }
            Way::Kill => cluster.at(*at).kill(),
        }
    }
}

async fn all_is_there(cluster: &Cluster, count: usize) {
    for node in cluster.nodes() {
        for n in 0..count {
            let value = node.get(&format!("kept/{n}")).await.unwrap();
            assert_eq!(value.unwrap()["n"], n, "on {}", node.name());
        }
    }
}

#[tokio::test]
async fn restarts_of_one_two_and_all_nodes_lose_nothing() {
    let cluster = ready().await;
    let mut written = 0;
    for way in [Way::Term, Way::Kill] {
        for nodes in [&[0][..], &[1, 2], &[0, 1, 2]] {
            for _ in 0..5 {
                cluster
                    .at(written % 3)
                    .put(&format!("kept/{written}"), &json!({ "n": written }))
                    .await
                    .unwrap();
                written += 1;
            }
            down(&cluster, nodes, way).await;
            for at in nodes {
                cluster.at(*at).start().await.unwrap();
                assert_eq!(cluster.at(*at).seal_status().await.unwrap()["sealed"], true, "{way:?}");
            }
            cluster.unseal_all().await.unwrap();
            cluster.voters(3, SOON).await.unwrap();
            for at in 0..3 {
                cluster.serves(at, SOON).await.unwrap();
            }
            all_is_there(&cluster, written).await;
        }
    }
}

#[tokio::test]
async fn one_unsealed_and_one_sealed_node_are_enough_to_serve() {
    let cluster = ready().await;
    let leader = cluster.leader().await.unwrap();
    let [sealed, gone] = cluster.others(leader)[..] else { panic!("three nodes") };
    cluster.at(gone).kill();
    cluster.at(sealed).kill();
    cluster.at(sealed).start().await.unwrap();
    // A quorum now needs the sealed node's disk: a write that succeeds is on it before it was unsealed.
    cluster.serves(leader, SOON).await.unwrap();
    cluster.at(leader).put("with/sealed", &json!({ "n": 1 })).await.unwrap();
    assert_eq!(cluster.at(sealed).seal_status().await.unwrap()["sealed"], true);
    let refused = cluster.at(sealed).call("GET", "secret/data/with/sealed", None).await.unwrap();
    assert_eq!((refused.status, refused.errors().as_str()), (503, "Vault is sealed"));
}

#[tokio::test]
async fn when_the_only_unsealed_node_dies_unsealing_any_other_one_brings_the_cluster_back() {
    let cluster = ready().await;
    let leader = cluster.leader().await.unwrap();
    let [first, second] = cluster.others(leader)[..] else { panic!("three nodes") };
    for at in [first, second] {
        cluster.at(at).kill();
        cluster.at(at).start().await.unwrap();
    }
    cluster.serves(leader, SOON).await.unwrap();
    cluster.at(leader).put("last/word", &json!({ "n": 7 })).await.unwrap();
    cluster.at(leader).kill();
    for at in [first, second] {
        assert_eq!(cluster.at(at).call("GET", "secret/data/last/word", None).await.unwrap().status, 503);
    }
    cluster.unseal(cluster.at(second)).await.unwrap();
    cluster.serves(second, SOON).await.unwrap();
    assert_eq!(cluster.at(second).get("last/word").await.unwrap().unwrap()["n"], 7);
    assert_eq!(cluster.at(first).seal_status().await.unwrap()["sealed"], true, "it was not needed");
}

#[tokio::test]
async fn entries_that_only_a_sealed_node_has_survive_it_leads_to_hand_them_over() {
    let cluster = ready().await;
    let leader = cluster.leader().await.unwrap();
    let [newest, behind] = cluster.others(leader)[..] else { panic!("three nodes") };
    cluster.at(behind).kill();
    cluster.at(newest).kill();
    cluster.at(newest).start().await.unwrap();
    cluster.serves(leader, SOON).await.unwrap();
    for n in 0..20 {
        cluster.at(leader).put(&format!("newest/{n}"), &json!({ "n": n })).await.unwrap();
    }
    // Of the two that are left one is sealed and up to date, the other is open and lacks all of it: the open one
    // cannot win an election, the sealed one may not serve.
    cluster.at(leader).kill();
    cluster.at(behind).start().await.unwrap();
    cluster.unseal(cluster.at(behind)).await.unwrap();
    cluster.serves(behind, Duration::from_secs(30)).await.unwrap();
    for n in 0..20 {
        assert_eq!(cluster.at(behind).get(&format!("newest/{n}")).await.unwrap().unwrap()["n"], n);
    }
    assert_eq!(cluster.at(newest).seal_status().await.unwrap()["sealed"], true);
}

#[tokio::test]
async fn a_sealing_leader_hands_over_and_the_sealed_node_serves_nothing() {
    let cluster = ready().await;
    cluster.at(0).put("kept/0", &json!({ "n": 0 })).await.unwrap();
    let leader = cluster.leader().await.unwrap();
    let refused = cluster.at(leader).client().without_token().call("PUT", "sys/seal", None).await.unwrap();
    assert_eq!(refused.status, 403, "sealing takes a token");
    assert_eq!(cluster.at(leader).call("PUT", "sys/seal", None).await.unwrap().status, 204);
    let others = cluster.others(leader);
    let next = cluster.leader_among(&others, SOON).await.unwrap();
    cluster.serves(next, SOON).await.unwrap();
    assert_eq!(cluster.at(leader).call("GET", "secret/data/kept/0", None).await.unwrap().status, 503);
    let again = cluster.at(leader).client().without_token().call("PUT", "sys/seal", None).await.unwrap();
    assert_eq!(again.status, 204, "a sealed node is sealed, whoever asks");
    cluster.unseal(cluster.at(leader)).await.unwrap();
    cluster.serves(leader, SOON).await.unwrap();
    all_is_there(&cluster, 1).await;
}

#[tokio::test]
async fn a_node_that_stood_still_through_an_election_catches_up() {
    let cluster = ready().await;
    let leader = cluster.leader().await.unwrap();
    let others = cluster.others(leader);
    cluster.at(leader).pause().unwrap();
    let next = cluster.leader_among(&others, SOON).await.unwrap();
    cluster.at(next).put("meanwhile", &json!({ "n": 1 })).await.unwrap();
    cluster.at(leader).resume().unwrap();
    // Whatever it believes when it wakes up, it shows nothing that is out of date.
    let seen = cluster.at(leader).get("meanwhile").await.unwrap();
    assert_eq!(seen.unwrap()["n"], 1);
}
