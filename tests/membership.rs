//! Members come, go, vote and move while writes go on.
#![allow(clippy::unwrap_used)] // in a test, a panic is the report

mod common;

use std::time::Duration;

use common::{ready, three};
use keystead_chaos::{
    Clock, Cluster, Node, Response,
    load::{Ended, Load},
    ports, wait,
};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(40);
const AUTOPILOT: &str = "sys/storage/raft/autopilot/configuration";

async fn put(node: &Node, path: &str, body: &Value) -> Response {
    node.call("PUT", path, Some(body)).await.unwrap()
}

async fn change(node: &Node, what: &str, member: &str) -> Response {
    put(node, &format!("sys/storage/raft/{what}"), &json!({ "server_id": member })).await
}

fn is_done(answer: &Response) {
    assert_eq!(answer.status, 204, "{}", answer.text());
}

/// Waits until exactly these vote, these are members without a vote, and one leads, whom it names.
async fn members_are(cluster: &Cluster, voters: &[&str], others: &[&str]) -> String {
    wait::until("the members to be as wanted", SOON, || async {
        let servers = cluster.servers().await.map_err(|error| error.to_string())?;
        let named = |fits: &dyn Fn(&Value) -> bool| -> Vec<String> {
            let fitting = servers.iter().filter(|server| fits(server));
            fitting.map(|server| server["node_id"].as_str().unwrap().to_owned()).collect()
        };
        let leads = named(&|server| server["leader"] == true);
        let same = named(&|server| server["voter"] == true) == voters
            && named(&|server| server["voter"] == false) == others
            && leads.len() == 1;
        if same { Ok(leads[0].clone()) } else { Err(json!(servers).to_string()) }
    })
    .await
    .unwrap()
}

async fn newcomer(cluster: &Cluster, name: &str) -> Node {
    let node = cluster.node(cluster.newcomer(name).unwrap());
    node.start().await.unwrap();
    cluster.unseal(&node).await.unwrap();
    node
}

/// Waits until a node says of itself what begins with a text.
async fn warns(node: &Node, text: &str) {
    wait::until("a warning", SOON, || async {
        let status = node.seal_status().await.map_err(|error| error.to_string())?;
        if status["warnings"].to_string().contains(text) { Ok(()) } else { Err(status.to_string()) }
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn three_become_five_and_three_again_while_writes_go_on() {
    let cluster = ready().await;
    let clients: Vec<_> = cluster.nodes().iter().map(|node| node.client()).collect();
    let load = Load::start(&clients, 4, Duration::from_millis(5));
    let first = cluster.at(0);
    is_done(&put(first, AUTOPILOT, &json!({ "server_stabilization_time": "1s" })).await);
    let (n4, n5) = (newcomer(&cluster, "n4").await, newcomer(&cluster, "n5").await);
    members_are(&cluster, &["n1", "n2", "n3", "n4", "n5"], &[]).await;
    let state = wait::until("all to be healthy", SOON, || async {
        let state = first.call("GET", "sys/storage/raft/autopilot/state", None).await.unwrap().data();
        if state["healthy"] == true { Ok(state) } else { Err(state.to_string()) }
    })
    .await
    .unwrap();
    assert_eq!(
        (&state["failure_tolerance"], &state["servers"]["n5"]["status"]),
        (&json!(2), &json!("voter"))
    );

    // A vote is taken and given, the leader's too; whoever has none cannot lose it.
    is_done(&change(first, "demote", "n4").await);
    members_are(&cluster, &["n1", "n2", "n3", "n5"], &["n4"]).await;
    let twice = change(first, "demote", "n4").await;
    assert!(twice.status == 400 && twice.errors().contains("server is not a voter"), "{}", twice.text());
    is_done(&change(first, "promote", "n4").await);
    let leader = members_are(&cluster, &["n1", "n2", "n3", "n4", "n5"], &[]).await;
    let twice = change(first, "promote", "n4").await;
    assert!(twice.status == 400 && twice.errors().contains("server is not a non-voter"), "{}", twice.text());
    is_done(&change(first, "demote", &leader).await);
    let four: Vec<&str> = ["n1", "n2", "n3", "n4", "n5"].into_iter().filter(|name| *name != leader).collect();
    let next = members_are(&cluster, &four, &[&leader]).await;
    assert_ne!(next, leader);
    is_done(&change(first, "promote", &leader).await);
    members_are(&cluster, &["n1", "n2", "n3", "n4", "n5"], &[]).await;

    let (one, two) =
        tokio::join!(change(first, "remove-peer", "n4"), change(cluster.at(1), "remove-peer", "n5"));
    is_done(&one);
    is_done(&two);
    members_are(&cluster, &["n1", "n2", "n3"], &[]).await;
    let history = load.stop().await;
    let failed = history.count(Ended::Refused) + history.count(Ended::Unknown);
    assert_eq!(failed, 0, "{:?}", history.refusals);
    Box::pin(history.check(&cluster, &[0, 1, 2])).await.unwrap();

    // Who was removed is told so, says so itself with the remedy, and still does after a restart.
    warns(&n4, "this node was removed from the cluster").await;
    n5.stop().await.unwrap();
    n5.start().await.unwrap();
    cluster.unseal(&n5).await.unwrap();
    warns(&n5, "operator raft rebuild").await;
    members_are(&cluster, &["n1", "n2", "n3"], &[]).await;
}

#[tokio::test]
async fn members_leave_only_while_a_quorum_can_be_reached_and_the_last_stays() {
    let cluster = ready().await;
    let leader = cluster.leader().await.unwrap();
    let others = cluster.others(leader);
    let (alive, dead) = (cluster.at(others[0]).name(), cluster.at(others[1]).name());
    cluster.at(others[1]).kill();
    let asked = cluster.at(leader);
    wait::until("the dead one to be missed", SOON, || async {
        let data = asked.call("GET", "sys/ha/safe-to-stop", None).await.unwrap().data();
        if data["safe"] == false { Ok(()) } else { Err(data.to_string()) }
    })
    .await
    .unwrap();
    for what in ["demote", "remove-peer"] {
        let refused = change(asked, what, &alive).await;
        assert_eq!(refused.status, 400);
        let why = refused.errors();
        assert!(why.contains("would leave no quorum: 2 of 3 voters can be reached"), "{why}");
    }
    is_done(&change(asked, "remove-peer", &dead).await);
    // Of two voters one may go, though two ask for it at once.
    let (one, two) = tokio::join!(change(asked, "remove-peer", &alive), change(asked, "remove-peer", &alive));
    is_done(&one);
    is_done(&two);
    let left = asked;
    wait::until("the last voter to serve", SOON, || async {
        let answer = left.call("GET", "sys/leader", None).await.map_err(|error| error.to_string())?;
        if answer.json()["is_self"] == true { Ok(()) } else { Err(answer.text()) }
    })
    .await
    .unwrap();
    let last = change(left, "remove-peer", &left.name()).await;
    assert!(last.status == 400 && last.errors().contains("the last voter"), "{}", last.text());
    left.put("still/there", &json!({ "n": 1 })).await.unwrap();
}

#[tokio::test]
async fn addresses_of_all_nodes_may_change_at_once() {
    let cluster = ready().await;
    cluster.at(0).put("before", &json!({ "n": 1 })).await.unwrap();
    for node in cluster.nodes() {
        node.stop().await.unwrap();
    }
    let apis: Vec<_> = cluster.nodes().iter().map(|_| ports::free().unwrap()).collect();
    for (at, node) in cluster.nodes().iter().enumerate() {
        let port = ports::free().unwrap();
        let apis = apis.clone();
        node.configure(|config| {
            let ca = config.retry_join[0].1.clone();
            (config.api, config.cluster, config.cluster_advertised) = (apis[at], port, port);
            let others = apis.iter().enumerate().filter(|(other, _)| *other != at);
            config.retry_join = others.map(|(_, api)| (*api, ca.clone())).collect();
        });
    }
    for node in cluster.nodes() {
        node.start().await.unwrap();
    }
    cluster.unseal_all().await.unwrap();
    cluster.voters(3, SOON).await.unwrap();
    for (at, node) in cluster.nodes().iter().enumerate() {
        cluster.serves(at, SOON).await.unwrap();
        assert_eq!(node.get("before").await.unwrap().unwrap()["n"], 1);
    }
    // The directory has them, too: so has whoever asks.
    let wanted: Vec<String> = cluster.nodes().iter().map(|node| node.config().cluster.to_string()).collect();
    wait::until("the directory to have the new addresses", SOON, || async {
        let servers = cluster.servers().await.map_err(|error| error.to_string())?;
        let listed: Vec<_> =
            servers.iter().map(|server| server["address"].as_str().unwrap_or_default()).collect();
        if listed == wanted { Ok(()) } else { Err(format!("{listed:?}")) }
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn three_nodes_roll_to_a_newer_feature_level_under_load() {
    const LEVEL: &str = "KEYSTEAD_TEST_FEATURE_LEVEL";
    let old = three().configure(|_, config| config.environment.push((LEVEL.into(), "1".into())));
    let cluster = Box::pin(old.ready()).await.unwrap();
    let cleaning = json!({ "cleanup_dead_servers": true, "min_quorum": 3 });
    for at in 0..3 {
        // What the others could not read is not proposed.
        let early = put(cluster.at(at), AUTOPILOT, &cleaning).await;
        assert_eq!(early.status, 400, "{}", early.text());
        assert!(
            early.errors().contains("feature level 1") && early.errors().contains("upgrade n"),
            "{}",
            early.text()
        );
        let clients: Vec<_> = cluster.others(at).iter().map(|other| cluster.at(*other).client()).collect();
        let load = Load::start(&clients, 4, Duration::from_millis(5));
        // What `safe-to-stop` is for: the next is not stopped before the last one follows again.
        wait::until("the node to be safe to stop", SOON, || async {
            let data = cluster.at(at).call("GET", "sys/ha/safe-to-stop", None).await.unwrap().data();
            if data["safe"] == true { Ok(()) } else { Err(data.to_string()) }
        })
        .await
        .unwrap();
        cluster.at(at).stop().await.unwrap();
        cluster.at(at).configure(|config| config.environment.clear());
        Box::pin(cluster.bring_back(at)).await.unwrap();
        cluster.serves(at, SOON).await.unwrap();
        let history = load.stop().await;
        let failed = history.count(Ended::Refused) + history.count(Ended::Unknown);
        assert_eq!(failed, 0, "rolling n{}: {:?}", at + 1, history.refusals);
        assert!(history.count(Ended::Acknowledged) > 0);
    }
    wait::until("the level to rise", SOON, || async {
        let answer = put(cluster.at(0), AUTOPILOT, &cleaning).await;
        if answer.status == 204 { Ok(()) } else { Err(answer.text()) }
    })
    .await
    .unwrap();
    // A member that went back would not understand: it says so and does not start.
    cluster.at(2).stop().await.unwrap();
    cluster.at(2).configure(|config| config.environment.push((LEVEL.into(), "1".into())));
    cluster.at(2).spawn().unwrap();
    assert!(!cluster.at(2).ends(SOON).await.unwrap().success());
    let log = cluster.at(2).log();
    assert!(
        log.contains("this release is at feature level 1") && log.contains("at level 2 or newer"),
        "{log}"
    );
    // Nor is an old newcomer let in.
    let mut config = cluster.newcomer("n4").unwrap();
    config.environment.push((LEVEL.into(), "1".into()));
    let newcomer = cluster.node(config);
    newcomer.start().await.unwrap();
    let unsealing = cluster.unseal(&newcomer);
    let told = wait::until("the newcomer to be told", SOON, || async {
        let log = newcomer.log();
        if log.contains("this node is too old: its release is at feature level 1") {
            Ok(())
        } else {
            Err(log)
        }
    });
    let (_, told) = tokio::join!(unsealing, told);
    told.unwrap();
}

#[tokio::test]
async fn a_dead_member_is_taken_out_and_a_clock_that_is_set_takes_out_nobody() {
    let cluster = Box::pin(three().with_faults().ready()).await.unwrap();
    let config = json!({
        "cleanup_dead_servers": true, "min_quorum": 3, "dead_server_last_contact_threshold": "60s",
        "server_stabilization_time": "1s",
    });
    is_done(&put(cluster.at(0), AUTOPILOT, &config).await);
    let n4 = newcomer(&cluster, "n4").await;
    members_are(&cluster, &["n1", "n2", "n3", "n4"], &[]).await;
    for (node, hours) in cluster.nodes().iter().zip([1, -1, 2]) {
        node.faults().unwrap().step(Clock::Realtime, hours * 3_600_000).unwrap();
    }
    n4.kill();
    let killed = std::time::Instant::now();
    while killed.elapsed() < Duration::from_secs(50) {
        let servers = cluster.servers().await.unwrap();
        assert_eq!(servers.len(), 4, "taken out after {:?}: {servers:?}", killed.elapsed());
        tokio::time::sleep(Duration::from_secs(1)).await; // the time in which it must not happen
    }
    members_are(&cluster, &["n1", "n2", "n3"], &[]).await;
    // Three are the least: another one that is dead stays.
    let leader = cluster.leader().await.unwrap();
    cluster.at(cluster.others(leader)[0]).kill();
    tokio::time::sleep(Duration::from_secs(65)).await; // the time in which it must not happen
    assert_eq!(cluster.servers().await.unwrap().len(), 3);
}
