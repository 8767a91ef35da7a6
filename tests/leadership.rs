//! Leadership moves when somebody asks for it: clients see no error.
#![allow(clippy::unwrap_used)] // in a test, a panic is the report

mod common;

use std::time::{Duration, Instant};

use common::{at_most, ready, three};
use keystead_chaos::{
    Cluster,
    load::{Ended, Load},
    wait,
};
use serde_json::json;

/// How often leadership is handed over under load.
const TRANSFERS: usize = 20;

/// Waits until another node than `former` leads and answers.
async fn led_by_another(cluster: &Cluster, former: usize) -> usize {
    wait::until("another leader", Duration::from_secs(10), || async {
        match cluster.leader().await {
            Ok(leader) if leader != former => Ok(leader),
            other => Err(format!("{other:?}")),
        }
    })
    .await
    .unwrap()
}

#[tokio::test]
async fn twenty_planned_transfers_under_load_fail_no_request() {
    let cluster = ready().await;
    let clients: Vec<_> = cluster.nodes().iter().map(|node| node.client()).collect();
    let load = Load::start(&clients, 4, Duration::from_millis(5));
    let mut times = Vec::with_capacity(TRANSFERS);
    for number in 0..TRANSFERS {
        let leader = cluster.leader().await.unwrap();
        let through = cluster.at((leader + 1 + number % 2) % 3);
        through.get("transfer/warm").await.unwrap();
        // Asked of the leader and of standbys in turn.
        let asked = cluster.at((leader + number) % 3);
        let answer = asked.call("PUT", "sys/step-down", None).await.unwrap();
        assert_eq!(answer.status, 204, "{}", answer.text());
        let start = Instant::now();
        through.put("transfer/next", &json!({ "number": number })).await.unwrap();
        times.push(start.elapsed());
        led_by_another(&cluster, leader).await;
    }
    let history = load.stop().await;
    assert_eq!(history.count(Ended::Refused) + history.count(Ended::Unknown), 0, "requests failed");
    assert!(history.count(Ended::Acknowledged) > TRANSFERS);
    Box::pin(history.check(&cluster, &[0, 1, 2])).await.unwrap();
    times.sort_unstable();
    let (median, worst) = (times[times.len() / 2], times[times.len() - 1]);
    assert!(median < at_most(Duration::from_millis(100)), "median {median:?} of {times:?}");
    assert!(worst < at_most(Duration::from_millis(500)), "worst {worst:?} of {times:?}");
}

#[tokio::test]
async fn case_06_a_leader_steps_down_for_who_may_ask_and_only_if_somebody_can_take_over() {
    let cluster = ready().await;
    let leader = cluster.leader().await.unwrap();
    let others = cluster.others(leader);
    for at in [leader, others[0]] {
        let stranger = cluster.at(at).client().without_token();
        assert_eq!(stranger.call("PUT", "sys/step-down", None).await.unwrap().status, 403);
    }
    assert_eq!(cluster.leader().await.unwrap(), leader);

    let safe = |at: usize| {
        let cluster = &cluster;
        async move { cluster.at(at).call("GET", "sys/ha/safe-to-stop", None).await.unwrap().data() }
    };
    let name = |at: usize| cluster.at(at).name();
    let data = safe(others[0]).await;
    assert_eq!((&data["safe"], &data["node_id"]), (&json!(true), &json!(name(others[0]))), "{data}");
    assert_eq!(safe(leader).await["leader"], json!(true));

    // Both others are sealed: nobody can take over, and the leader goes on.
    for other in &others {
        assert_eq!(cluster.at(*other).call("PUT", "sys/seal", None).await.unwrap().status, 204);
    }
    let refused = wait::until("a refusal that names the sealed ones", Duration::from_secs(20), || async {
        let answer = cluster.at(leader).call("PUT", "sys/step-down", None).await.unwrap();
        if answer.status == 400 { Ok(answer.errors()) } else { Err(answer.status) }
    })
    .await
    .unwrap();
    for other in &others {
        assert!(refused.contains(&format!("{} is sealed", name(*other))), "{refused}");
    }
    assert_eq!(cluster.leader().await.unwrap(), leader);
    cluster.at(leader).put("goes/on", &json!({ "n": 1 })).await.unwrap();
    let data = safe(leader).await;
    assert!(
        data["safe"] == json!(false) && data["reasons"][0].as_str().unwrap().contains("sealed"),
        "{data}"
    );

    // With one of them gone, the other two have the quorum, and nobody else may go.
    cluster.unseal_all().await.unwrap();
    cluster.at(others[1]).stop().await.unwrap();
    let reasons = wait::until("the quorum to be at stake", Duration::from_secs(20), || async {
        let data = safe(others[0]).await;
        if data["safe"] == json!(false) { Ok(data["reasons"].to_string()) } else { Err(data.to_string()) }
    })
    .await
    .unwrap();
    assert!(reasons.contains("the quorum would be lost: 1 of 3 voters"), "{reasons}");
    assert!(reasons.contains(&name(others[1])), "{reasons}");
    let query = format!("sys/ha/safe-to-stop?node={}", name(others[1]));
    let dead = cluster.at(leader).call("GET", &query, None).await.unwrap().data();
    assert_eq!(dead["safe"], json!(true), "who is down already may be stopped: {dead}");
}

#[tokio::test]
async fn leadership_goes_to_the_preferred_leader_and_stays_there() {
    let preferring = three().configure(|at, config| {
        if at == 2 {
            config.storage_lines.push("preferred_leader = true".into());
        }
    });
    let cluster = Box::pin(preferring.ready()).await.unwrap();
    wait::until("the preferred leader to lead", Duration::from_secs(90), || async {
        match cluster.leader().await {
            Ok(2) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await
    .unwrap();
    // Whoever has it step down is heard: it does not come back at once.
    assert_eq!(cluster.at(0).call("PUT", "sys/step-down", None).await.unwrap().status, 204);
    let next = led_by_another(&cluster, 2).await;
    let until = Instant::now() + Duration::from_secs(40);
    while Instant::now() < until {
        assert_eq!(cluster.leader().await.unwrap(), next);
        tokio::time::sleep(Duration::from_millis(500)).await; // the time in which it must not happen
    }
}
