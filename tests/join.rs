//! Who becomes a member, who does not, and how one leaves.
#![allow(clippy::unwrap_used)] // in a test, a panic is the report

mod common;

use std::time::Duration;

use common::{at_most, long, one, ready, three};
use keystead_chaos::wait;
use serde_json::json;

const SOON: Duration = Duration::from_secs(30);

#[tokio::test]
async fn init_happens_once_on_one_node() {
    let mut cluster = Box::pin(three().start()).await.unwrap();
    cluster.init(0).await.unwrap();
    let body = json!({ "secret_shares": 5, "secret_threshold": 3 });
    let twice = cluster.at(0).call("PUT", "sys/init", Some(&body)).await.unwrap();
    assert_eq!(twice.status, 400);
    assert!(twice.errors().contains("Vault is already initialized"), "{}", twice.text());
    // Nor on another one, which has never heard a share: its own configuration leads to the first.
    let elsewhere = cluster.at(1).call("PUT", "sys/init", Some(&body)).await.unwrap();
    assert_eq!(elsewhere.status, 400);
    assert!(elsewhere.errors().contains("Vault is already initialized"), "{}", elsewhere.text());
}

#[tokio::test]
async fn init_on_two_nodes_at_once_makes_one_vault() {
    let body = json!({ "secret_shares": 1, "secret_threshold": 1 });
    for round in 0..if long() { 20 } else { 6 } {
        let cluster = Box::pin(three().start()).await.unwrap();
        let asked = [round % 3, (round + 1) % 3];
        let (first, second) = tokio::join!(
            cluster.at(asked[0]).call("PUT", "sys/init", Some(&body)),
            cluster.at(asked[1]).call("PUT", "sys/init", Some(&body))
        );
        let answers = asked.into_iter().zip([first.unwrap(), second.unwrap()]);
        let (made, refused): (Vec<_>, Vec<_>) = answers.partition(|(_, answer)| answer.status == 200);
        let why: Vec<_> = refused.iter().map(|(_, answer)| answer.text()).collect();
        assert_eq!(made.len(), 1, "round {round}: {why:?}");
        assert_eq!(refused[0].1.status, 400);
        assert!(refused[0].1.errors().contains("Vault is already initialized"), "{why:?}");
        // The one that was refused joins like the third.
        let share = made[0].1.json()["keys_base64"][0].as_str().unwrap().to_owned();
        let first = made[0].0;
        for at in [first, (first + 1) % 3, (first + 2) % 3] {
            let node = cluster.at(at);
            wait::until("a node to know of the one vault", SOON, || async {
                let status = node.seal_status().await.map_err(|error| error.to_string())?;
                if status["initialized"] == true { Ok(()) } else { Err(status.to_string()) }
            })
            .await
            .unwrap();
            node.set_token(made[0].1.json()["root_token"].as_str().unwrap());
            node.unseal(std::slice::from_ref(&share)).await.unwrap();
        }
        cluster.voters(3, SOON).await.unwrap();
    }
}

#[tokio::test]
async fn a_node_that_is_down_or_silent_does_not_keep_a_vault_from_being_made() {
    let mut cluster = Box::pin(three().start()).await.unwrap();
    cluster.at(1).kill();
    cluster.at(2).pause().unwrap();
    let began = std::time::Instant::now();
    cluster.init(0).await.unwrap();
    assert!(began.elapsed() < at_most(Duration::from_secs(5)), "{:?}", began.elapsed());
    cluster.at(2).resume().unwrap();
    cluster.at(1).start().await.unwrap();
    cluster.unseal_all().await.unwrap();
    cluster.voters(3, SOON).await.unwrap();
}

#[tokio::test]
async fn an_init_that_failed_leaves_the_others_free_to_be_initialised() {
    let seal = "seal \"file\" {\n  path = \"/nonexistent/key\"\n}";
    let cluster =
        three().configure(move |at, config| config.lines.extend((at == 0).then(|| seal.to_owned())));
    let mut cluster = Box::pin(cluster.start()).await.unwrap();
    let body = json!({ "recovery_shares": 1, "recovery_threshold": 1 });
    let failed = cluster.at(0).call("PUT", "sys/init", Some(&body)).await.unwrap();
    assert_eq!(failed.status, 500, "{}", failed.text());
    assert!(failed.errors().contains("/nonexistent/key"), "{}", failed.text());
    // Its claim is withdrawn in the background; until then the other is told who holds it.
    wait::until("the claim to be withdrawn", at_most(Duration::from_secs(5)), || async {
        let body = json!({ "step": "commit", "claim": "ffffffffffffffff", "server_id": "probe" });
        let answer = cluster.at(1).call("PUT", "sys/storage/raft/bootstrap/claim", Some(&body)).await;
        let answer = answer.map_err(|error| error.to_string())?.json();
        if answer["granted"] == true { Ok(()) } else { Err(answer.to_string()) }
    })
    .await
    .unwrap();
    // A claim that goes after all others gives way to none that committed before it.
    let shares = json!({ "secret_shares": 1, "secret_threshold": 1 });
    let held = cluster.at(1).call("PUT", "sys/init", Some(&shares)).await.unwrap();
    assert_eq!(held.status, 400);
    assert!(held.errors().contains("the node probe initialises it at this moment"), "{}", held.text());
    let body = json!({ "step": "withdraw", "claim": "ffffffffffffffff", "server_id": "probe" });
    cluster.at(1).call("PUT", "sys/storage/raft/bootstrap/claim", Some(&body)).await.unwrap().ok().unwrap();
    cluster.init(1).await.unwrap();
}

#[tokio::test]
async fn a_share_of_another_vault_is_refused_by_name_and_joins_nothing() {
    let cluster = ready().await;
    let mut foreign = Box::pin(one().named("f").start()).await.unwrap();
    foreign.init(0).await.unwrap();
    let newcomer = cluster.node(cluster.newcomer("n4").unwrap());
    newcomer.start().await.unwrap();
    wait::until("the newcomer to know of the cluster", SOON, || async {
        let status = newcomer.seal_status().await.map_err(|error| error.to_string())?;
        if status["initialized"] == true { Ok(()) } else { Err(status.to_string()) }
    })
    .await
    .unwrap();
    let body = json!({ "key": foreign.keys().shares[0] });
    let refused = newcomer.call("PUT", "sys/unseal", Some(&body)).await.unwrap();
    assert_eq!(refused.status, 400);
    assert!(refused.errors().contains("another vault"), "{}", refused.text());
    assert_eq!(cluster.servers().await.unwrap().len(), 3);
}

#[tokio::test]
async fn a_node_initialised_on_its_own_does_not_join_and_says_what_to_do() {
    let cluster = ready().await;
    let mut config = cluster.newcomer("n4").unwrap();
    let retry_join = std::mem::take(&mut config.retry_join);
    let loner = cluster.node(config);
    loner.start().await.unwrap();
    let body = json!({ "secret_shares": 1, "secret_threshold": 1 });
    let made = loner.call("PUT", "sys/init", Some(&body)).await.unwrap().ok().unwrap().json();
    loner.stop().await.unwrap();
    // Then the operator adds the cluster to its file.
    loner.configure(|config| config.retry_join = retry_join);
    loner.start().await.unwrap();
    loner.unseal(&[made["keys_base64"][0].as_str().unwrap().to_owned()]).await.unwrap();
    wait::until_now("the reason in its log", SOON, || {
        let log = loner.log();
        let told = log.contains("another cluster") && log.contains("data directory");
        if told { Ok(()) } else { Err(log[log.len().saturating_sub(1_500)..].to_owned()) }
    })
    .await
    .unwrap();
    assert_eq!(cluster.servers().await.unwrap().len(), 3);
    cluster.serves(0, SOON).await.unwrap();
}

#[tokio::test]
async fn a_newcomer_becomes_a_voter_and_has_everything() {
    let cluster = ready().await;
    cluster.at(0).put("old", &json!({ "n": 1 })).await.unwrap();
    let newcomer = cluster.node(cluster.newcomer("n4").unwrap());
    newcomer.start().await.unwrap();
    cluster.unseal(&newcomer).await.unwrap();
    cluster.voters(4, SOON).await.unwrap();
    newcomer.health(&[429], SOON).await.unwrap();
    assert_eq!(newcomer.get("old").await.unwrap().unwrap()["n"], 1);
    newcomer.put("new", &json!({ "n": 2 })).await.unwrap();
    assert_eq!(cluster.at(0).get("new").await.unwrap().unwrap()["n"], 2);
}

#[tokio::test]
async fn a_wiped_node_comes_back_as_a_new_incarnation_in_its_old_place() {
    let cluster = ready().await;
    cluster.at(0).put("kept", &json!({ "n": 1 })).await.unwrap();
    let leader = cluster.leader().await.unwrap();
    let wiped = cluster.others(leader)[0];
    let node = cluster.at(wiped);
    let before = std::fs::read(node.data().join("identity")).unwrap();
    node.kill();
    node.wipe().unwrap();
    node.start().await.unwrap();
    // Its old incarnation has to have been silent for ten seconds; until then the shares are refused, with that
    // advice.
    let too_soon = cluster.unseal(node).await.unwrap_err().to_string();
    assert!(too_soon.contains(&node.name()) && too_soon.contains("silent for 10 s"), "{too_soon}");
    wait::until("the place to be free", SOON, || cluster.unseal(node)).await.unwrap();
    cluster.voters(3, SOON).await.unwrap();
    assert_eq!(cluster.servers().await.unwrap().len(), 3, "the old incarnation is gone");
    assert_ne!(std::fs::read(node.data().join("identity")).unwrap(), before);
    node.health(&[200, 429], SOON).await.unwrap();
    assert_eq!(node.get("kept").await.unwrap().unwrap()["n"], 1);
    // It counts: with another one gone, the two hold a quorum.
    let other = cluster.others(leader).into_iter().find(|at| *at != wiped).unwrap();
    cluster.at(other).kill();
    cluster.serves(leader, SOON).await.unwrap();
}

#[tokio::test]
async fn a_second_node_under_the_name_of_a_living_one_is_refused() {
    let cluster = ready().await;
    let leader = cluster.leader().await.unwrap();
    let taken = cluster.at(cluster.others(leader)[0]).name();
    let mut config = cluster.newcomer("impostor").unwrap();
    config.node_id = taken.clone();
    let impostor = cluster.node(config);
    // Its files lie in a directory of their own; only the name is the same.
    impostor.configure(|config| config.data = cluster.directory().join("impostor/data"));
    impostor.start().await.unwrap();
    let refused = cluster.unseal(&impostor).await;
    assert!(refused.is_err(), "it is not let in");
    let text = format!("{} {}", refused.unwrap_err(), impostor.log());
    assert!(
        text.contains(&taken) && text.contains("node_id"),
        "the message names the place and the setting: {text}"
    );
    cluster.voters(3, SOON).await.unwrap();
    for at in 0..3 {
        cluster.serves(at, SOON).await.unwrap();
    }
}

#[tokio::test]
async fn a_removed_member_is_out_and_stays_out() {
    let cluster = ready().await;
    let leader = cluster.leader().await.unwrap();
    let [removed, through] = cluster.others(leader)[..] else { panic!("three nodes") };
    let name = cluster.at(removed).name();
    let output = cluster.cli(through).run(&["operator", "raft", "remove-peer", &name]).await.unwrap();
    assert_eq!(
        (output.code, output.stdout.as_str()),
        (0, "Peer removed successfully!\n"),
        "{}",
        output.stderr
    );
    wait::until("two members", SOON, || async {
        let answer = cluster.at(leader).call("GET", "sys/storage/raft/configuration", None).await;
        let servers = answer.map_err(|error| error.to_string())?.data()["config"]["servers"].clone();
        if servers.as_array().is_some_and(|servers| servers.len() == 2) {
            Ok(())
        } else {
            Err(servers.to_string())
        }
    })
    .await
    .unwrap();
    let again = cluster.cli(through).run(&["operator", "raft", "remove-peer", &name]).await.unwrap();
    assert_eq!(again.code, 0, "removing who is not there succeeds");
    cluster.serves(leader, SOON).await.unwrap();
    // A restart under the old identity changes nothing: its certificate is good, its incarnation is not.
    cluster.at(removed).kill();
    cluster.at(removed).start().await.unwrap();
    wait::until_now("the refusal in its log, or its peers'", SOON, || {
        let logs = [cluster.at(removed).log(), cluster.at(leader).log(), cluster.at(through).log()].concat();
        if logs.contains("was removed from the cluster") { Ok(()) } else { Err("nothing said".into()) }
    })
    .await
    .unwrap();
    assert_eq!(cluster.servers().await.unwrap().len(), 2);
    cluster.serves(leader, SOON).await.unwrap();
}
