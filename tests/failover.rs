//! The leader dies: nothing acknowledged is lost, nothing happens twice, and it is over soon.
#![allow(clippy::unwrap_used)] // in a test, a panic is the report

mod common;

use std::time::{Duration, Instant};

use common::{at_most, ready, three};
use keystead_chaos::{
    Cluster, Direction,
    load::{Ended, Load},
    wait,
};
use serde_json::json;

/// How often the leader is killed; `tests/run --long` does it a hundred times.
fn kills() -> usize {
    if common::long() { 100 } else { 20 }
}

/// Kills the leader under load, measures the next write through a survivor, brings the dead one back.
async fn kill_under_load(cluster: &Cluster, number: usize) -> Duration {
    let leader = cluster.leader().await.unwrap();
    let survivor = cluster.others(leader)[number % 2];
    let through = cluster.at(survivor);
    // The session is there before: what is measured is the election, not a handshake.
    through.get("failover/warm").await.unwrap();
    cluster.at(leader).kill();
    let start = Instant::now();
    through.put("failover/next", &json!({ "kill": number })).await.unwrap();
    let took = start.elapsed();
    Box::pin(cluster.bring_back(leader)).await.unwrap();
    took
}

#[tokio::test]
async fn twenty_kills_of_the_leader_under_load_lose_no_acknowledged_write() {
    let cluster = ready().await;
    let clients: Vec<_> = cluster.nodes().iter().map(|node| node.client()).collect();
    let load = Load::start(&clients, 4, Duration::from_millis(5));
    let mut times = Vec::with_capacity(kills());
    for number in 0..kills() {
        let before = load.acknowledged();
        wait::until_now("the load to go on", Duration::from_secs(20), || {
            let written = load.acknowledged() - before;
            if written >= 10 { Ok(()) } else { Err(format!("{written} writes")) }
        })
        .await
        .unwrap();
        times.push(Box::pin(kill_under_load(&cluster, number)).await);
    }
    let history = load.stop().await;
    assert!(history.count(Ended::Acknowledged) > kills() * 10);
    Box::pin(history.check(&cluster, &[0, 1, 2])).await.unwrap();
    times.sort_unstable();
    let (median, worst) = (times[times.len() / 2], times[times.len() - 1]);
    assert!(median < at_most(Duration::from_secs(1)), "median {median:?} of {times:?}");
    assert!(worst < at_most(Duration::from_secs(2)), "worst {worst:?} of {times:?}");
}

/// Raises the counter through a standby and kills the leader when the write is committed and the reply is not out.
async fn kill_between_commit_and_reply(cluster: &Cluster, value: u64) {
    let leader = cluster.leader().await.unwrap();
    let standby = cluster.others(leader)[(value % 2) as usize];
    // The channel is there before, so that the request is not held up by its setting up.
    cluster.serves(standby, Duration::from_secs(10)).await.unwrap();
    let net = cluster.net();
    net.stall(standby, leader, Direction::Replies);

    let through = cluster.at(standby).client();
    let body = json!({ "data": { "n": value + 1 }, "options": { "cas": value } });
    let raising = tokio::spawn(async move { through.call("POST", "secret/data/counter", Some(&body)).await });
    wait::until("the raise to be committed", Duration::from_secs(10), || async {
        let seen = cluster.at(leader).get("counter").await.map_err(|error| error.to_string())?;
        if seen.as_ref().is_some_and(|seen| seen["n"] == value + 1) {
            Ok(())
        } else {
            Err(format!("{seen:?}"))
        }
    })
    .await
    .unwrap();
    assert!(!raising.is_finished(), "the reply is held back");
    cluster.at(leader).kill();
    net.cut(standby, leader);
    net.heal();

    let answer = raising.await.unwrap().unwrap();
    assert_eq!(answer.status, 200, "the one answer says what happened: {}", answer.text());
    assert_eq!(answer.data()["version"], value + 1);
    Box::pin(cluster.bring_back(leader)).await.unwrap();
}

#[tokio::test]
async fn a_counter_is_raised_exactly_once_when_the_leader_dies_between_commit_and_reply() {
    let cluster = Box::pin(three().with_net().ready()).await.unwrap();
    for value in 0..kills() as u64 {
        Box::pin(kill_between_commit_and_reply(&cluster, value)).await;
    }
    for node in cluster.nodes() {
        assert_eq!(node.get("counter").await.unwrap().unwrap()["n"], kills() as u64);
        let metadata = node.call("GET", "secret/metadata/counter", None).await.unwrap().data();
        assert_eq!(metadata["current_version"], kills() as u64, "each raise made one version");
    }
}

#[tokio::test]
async fn a_write_that_never_reached_the_dead_leader_is_carried_out_once_by_the_next() {
    let cluster = Box::pin(three().with_net().ready()).await.unwrap();
    for round in 0..3u64 {
        let leader = cluster.leader().await.unwrap();
        let standby = cluster.others(leader)[0];
        cluster.serves(standby, Duration::from_secs(10)).await.unwrap();
        cluster.net().stall(standby, leader, Direction::Requests);
        let through = cluster.at(standby).client();
        let body = json!({ "data": { "round": round }, "options": { "cas": round } });
        let writing =
            tokio::spawn(async move { through.call("POST", "secret/data/inflight", Some(&body)).await });
        tokio::time::sleep(Duration::from_millis(100)).await; // lets it get on its way; nothing depends on it
        cluster.at(leader).kill();
        cluster.net().cut(standby, leader);
        cluster.net().heal();
        let answer = writing.await.unwrap().unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(answer.data()["version"], round + 1);
        Box::pin(cluster.bring_back(leader)).await.unwrap();
    }
}

#[tokio::test]
async fn without_a_quorum_a_write_is_refused_with_a_time_to_come_back_and_nothing_is_lost() {
    let cluster = ready().await;
    cluster.at(0).put("before", &json!({ "n": 1 })).await.unwrap();
    let leader = cluster.leader().await.unwrap();
    let others = cluster.others(leader);
    let survivor = cluster.at(others[0]);
    cluster.at(leader).kill();
    cluster.at(others[1]).kill();
    let start = Instant::now();
    let answer =
        survivor.client().call("POST", "secret/data/lonely", Some(&json!({ "data": {} }))).await.unwrap();
    assert_eq!(answer.status, 503, "{}", answer.text());
    assert!(answer.header("retry-after").is_some());
    assert!(answer.errors().contains("local node not active but active cluster node not found"));
    assert!(start.elapsed() < Duration::from_secs(12), "bounded: {:?}", start.elapsed());
    // What asks about the node itself is answered throughout.
    assert_eq!(survivor.call("GET", "sys/health", None).await.unwrap().status, 429);
    assert_eq!(survivor.call("GET", "sys/leader", None).await.unwrap().status, 200);

    Box::pin(cluster.bring_back(leader)).await.unwrap();
    cluster.serves(others[0], Duration::from_secs(20)).await.unwrap();
    assert_eq!(survivor.get("before").await.unwrap().unwrap()["n"], 1);
}
