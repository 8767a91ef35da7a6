//! A copy of a sealed node's disk: as a second process, and in the hands of somebody with a program of his own.

use std::{path::PathBuf, time::Duration};

use bytes::{Bytes, BytesMut};
use keystead_chaos::{Cluster, node::copy_directory, ports, wait};
use keystead_raft::{conn::Method, frame, hello::Channel};
use keystead_storage::{DataDir, RaftLog as _, SegmentLog};
use serde_json::json;

use crate::{
    attacker::{Attacker, Ballot, Position},
    common::{ready, three},
    rekey,
};

const SOON: Duration = Duration::from_secs(20);

/// Stops a standby and copies its disk; gives its number and the copy.
async fn steal(cluster: &Cluster) -> (usize, PathBuf) {
    let leader = cluster.leader().await.unwrap();
    let stolen = cluster.others(leader)[0];
    cluster.at(stolen).stop().await.unwrap();
    let copy = cluster.directory().join("stolen");
    copy_directory(&cluster.at(stolen).data(), &copy).unwrap();
    (stolen, copy)
}

#[tokio::test]
async fn case_26_a_clone_beside_its_original_is_noticed_and_serves_nothing() {
    let cluster = ready().await;
    cluster.at(0).put("kept", &json!({ "n": 1 })).await.unwrap();
    let (stolen, copy) = steal(&cluster).await;
    Box::pin(cluster.bring_back(stolen)).await.unwrap();
    cluster.voters(3, SOON).await.unwrap();

    let mut config = cluster.at(stolen).config();
    config.data = copy;
    (config.api, config.cluster) = (ports::free().unwrap(), ports::free().unwrap());
    config.cluster_advertised = config.cluster;
    let directory = cluster.directory().join("clone");
    let clone =
        keystead_chaos::Node::new(config, directory, crate::common::BINARY.into(), Some(cluster.tls()));
    clone.start().await.unwrap();

    wait::until_now("somebody to notice", SOON, || {
        let logs: String = cluster.nodes().iter().map(|node| node.log()).collect();
        if logs.contains("copy of the other's data directory") {
            Ok(())
        } else {
            Err("nobody said so".into())
        }
    })
    .await
    .unwrap();
    let client = clone.client().with_token(&cluster.keys().root_token);
    for path in ["secret/data/kept", "sys/mounts", "auth/token/lookup-self"] {
        assert_eq!(client.call("GET", path, None).await.unwrap().status, 503, "{path}");
    }
    for at in 0..3 {
        cluster.serves(at, SOON).await.unwrap();
        assert_eq!(cluster.at(at).get("kept").await.unwrap().unwrap()["n"], 1);
    }
    assert_eq!(clone.seal_status().await.unwrap()["sealed"], true);
}

#[tokio::test]
async fn case_26_a_stolen_sealed_disk_forwards_nothing_reads_nothing_and_is_not_elected() {
    let cluster = ready().await;
    let (stolen, copy) = steal(&cluster).await;
    let attacker = Attacker::with_stolen(&copy, &cluster.at(stolen).config());
    let request = b"whatever a request looks like";
    for at in cluster.others(stolen) {
        let to = cluster.at(at).config().cluster;
        for channel in [Channel::Open, Channel::Bulk, Channel::Control, Channel::Snapshot] {
            let mut line = attacker.open(to, channel).await.unwrap();
            for method in [Method::Forward, Method::ReadIndex] {
                let refused = line.call(method, request).await.unwrap_err();
                assert!(refused.contains("this channel is not open"), "{channel:?} {method:?}: {refused}");
            }
            for proof in [&[][..], &[0; 32], &[0xff; 32]] {
                assert!(line.call(Method::OpenProof, proof).await.is_err(), "{channel:?}");
            }
            assert!(line.call(Method::Forward, request).await.is_err(), "a false proof opens nothing");
        }
        let mut line = attacker.open(to, Channel::Control).await.unwrap();
        let beyond = Position { term: 1_000, index: 1_000_000 };
        for method in [Method::PreVote, Method::Vote] {
            let ballot = line.ask_for_vote(method, 1_001, attacker.incarnation(), beyond).await;
            assert!(!ballot.granted, "{method:?} while a leader lives: {ballot:?}");
        }
        cluster.serves(at, SOON).await.unwrap();
    }
    // Its owner comes back to a cluster that is as it was.
    Box::pin(cluster.bring_back(stolen)).await.unwrap();
    cluster.voters(3, SOON).await.unwrap();
}

#[tokio::test]
async fn case_26_a_sealed_disk_is_not_given_the_new_root_key() {
    let mut cluster = ready().await;
    let (stolen, copy) = steal(&cluster).await;
    let node = cluster.at(stolen);
    // The copy runs in the original's place, at its address, and follows the log.
    node.configure(|config| config.data = copy);
    node.start().await.unwrap();
    cluster.voters(3, SOON).await.unwrap();
    let through = cluster.at(cluster.others(stolen)[0]);
    let old = cluster.shares()[..3].to_vec();
    let new = rekey(through, &old).await;
    through.put("kept", &json!({ "n": 1 })).await.unwrap();
    let config_is_there = || async {
        let judged = node.call("PUT", "sys/verify-share", Some(&json!({ "key": old[0] }))).await?;
        match judged.errors().contains("stale") {
            true => Ok(()),
            false => Err(keystead_chaos::Error::Broken(judged.text())),
        }
    };
    wait::until("the copy to know of the new generation", SOON, config_is_there).await.unwrap();
    let status = node.seal_status().await.unwrap();
    assert_eq!((&status["sealed"], &status["progress"]), (&json!(true), &json!(0)), "{status}");
    assert!(node.unseal(&old).await.unwrap_err().to_string().contains("stale"));
    node.unseal(&new[..2]).await.unwrap();
    cluster.replace_shares(new);
    cluster.serves(stolen, SOON).await.unwrap();
}

#[tokio::test]
async fn case_26_a_stolen_disk_opens_no_sealed_node_and_learns_nothing_by_trying() {
    let cluster = ready().await;
    let (stolen, copy) = steal(&cluster).await;
    let attacker = Attacker::with_stolen(&copy, &cluster.at(stolen).config());
    let victim = cluster.others(stolen)[0];
    cluster.at(victim).kill();
    cluster.at(victim).start().await.unwrap();
    let mut line = attacker.open(cluster.at(victim).config().cluster, Channel::Control).await.unwrap();
    let commitment = [&[1][..], &[7; 64]].concat();
    for body in [&[][..], &[1; 65], &[0xff; 4096], &commitment] {
        let refused = line.call(Method::Unseal, body).await.unwrap_err();
        assert!(refused.contains("cannot be read") || refused.contains("another"), "{refused}");
    }
    assert_eq!(cluster.at(victim).seal_status().await.unwrap()["sealed"], true);
}

#[tokio::test]
async fn case_29_a_removed_members_live_connections_end_and_new_ones_are_refused() {
    let cluster = ready().await;
    let (stolen, copy) = steal(&cluster).await;
    let name = json!({ "server_id": cluster.at(stolen).name() });
    let through = cluster.others(stolen)[0];
    let attacker = Attacker::with_stolen(&copy, &cluster.at(stolen).config());
    // Connections of every kind, which live before the removal.
    let mut live = Vec::new();
    for at in cluster.others(stolen) {
        for channel in [Channel::Control, Channel::Bulk, Channel::Snapshot, Channel::Open, Channel::Reads] {
            let mut line = attacker.open(cluster.at(at).config().cluster, channel).await.unwrap();
            line.call(Method::Ping, b"").await.unwrap();
            live.push((at, channel, line));
        }
    }
    cluster.at(through).call("PUT", "sys/storage/raft/remove-peer", Some(&name)).await.unwrap().ok().unwrap();
    for (at, channel, mut line) in live {
        let read = frame::read(&mut line.stream, frame::OPEN_LIMIT);
        let ended = tokio::time::timeout(SOON, read).await;
        assert!(matches!(ended, Ok(Ok(None) | Err(_))), "{channel:?} to {at} goes on: {ended:?}");
    }
    for at in cluster.others(stolen) {
        let to = cluster.at(at).config().cluster;
        wait::until("the removal to be known", SOON, || async {
            // The handshake itself may refuse, or the answer to the hello.
            let Ok(mut stream) = attacker.connect(to).await else { return Ok(()) };
            let hello = keystead_raft::codec::encode(&attacker.hello(Channel::Control));
            drop(crate::attacker::send(&mut stream, frame::Kind::Hello, 0, &hello).await);
            match crate::attacker::receive(&mut stream).await {
                Ok(Some(frame)) if frame.kind == frame::Kind::Hello => Err("it is talked to"),
                _ => Ok(()),
            }
        })
        .await
        .unwrap();
    }
}

/// The command entries of a stolen log, oldest first, as they lie there.
async fn stolen_commands(copy: PathBuf) -> Vec<Bytes> {
    let read = move || {
        let log = SegmentLog::open(&DataDir::open(&copy).unwrap()).unwrap();
        let bounds = log.bounds();
        let first = bounds.purged.map_or(0, |id| id.index + 1);
        let records = log.read(first, bounds.last.unwrap().index + 1, usize::MAX).unwrap();
        records
            .into_iter()
            .map(|record| record.payload)
            .filter(|p| keystead_raft::entry::is_command(p))
            .collect()
    };
    tokio::task::spawn_blocking(read).await.unwrap()
}

/// The position that all the given nodes' logs end at, and the highest term among them.
async fn ends(cluster: &Cluster, attacker: &Attacker, nodes: &[usize]) -> (Position, u64) {
    wait::until("the logs to end alike", SOON, || async {
        let mut ballots: Vec<Ballot> = Vec::new();
        for at in nodes {
            let mut line = attacker.open(cluster.at(*at).config().cluster, Channel::Control).await.unwrap();
            let nowhere = Position { term: 0, index: 0 };
            ballots.push(line.ask_for_vote(Method::PreVote, 0, attacker.incarnation(), nowhere).await);
        }
        let alike = ballots.iter().all(|ballot| ballot.last == ballots[0].last);
        let term = ballots.iter().map(|ballot| ballot.term).max().unwrap();
        if alike { Ok((ballots[0].last, term)) } else { Err(format!("{ballots:?}")) }
    })
    .await
    .unwrap()
}

#[tokio::test]
async fn case_27_old_log_entries_sent_again_by_a_stolen_voter_change_nothing() {
    let cluster = Box::pin(three().ready()).await.unwrap();
    for value in ["old", "newer", "newest"] {
        cluster.at(0).put("replayed", &json!({ "value": value })).await.unwrap();
    }
    cluster.at(0).call("DELETE", "secret/metadata/gone", None).await.unwrap();
    cluster.at(0).put("gone", &json!({ "value": "deleted soon" })).await.unwrap();
    cluster.at(0).call("DELETE", "secret/metadata/gone", None).await.unwrap().ok().unwrap();
    let (stolen, copy) = steal(&cluster).await;
    let commands = stolen_commands(copy.clone()).await;
    assert!(commands.len() >= 6, "{} commands were stolen", commands.len());

    let attacker = Attacker::with_stolen(&copy, &cluster.at(stolen).config());
    let victims = cluster.others(stolen);
    let (last, term) = ends(&cluster, &attacker, &victims).await;
    for at in &victims {
        let mut line = attacker.open(cluster.at(*at).config().cluster, Channel::Bulk).await.unwrap();
        // Raft is not Byzantine: they are taken into the log. The state must not care.
        assert!(
            line.append(term + 5, attacker.incarnation(), last, &commands).await,
            "the attack has to reach it"
        );
    }
    for at in &victims {
        cluster.serves(*at, SOON).await.unwrap();
    }
    Box::pin(cluster.bring_back(stolen)).await.unwrap();
    for node in cluster.nodes() {
        assert_eq!(node.get("replayed").await.unwrap().unwrap()["value"], "newest", "on {}", node.name());
        let metadata = node.call("GET", "secret/metadata/replayed", None).await.unwrap().data();
        assert_eq!(metadata["current_version"], 3);
        assert_eq!(node.get("gone").await.unwrap(), None, "on {}", node.name());
    }
}

#[tokio::test]
async fn case_27_an_entry_under_a_forged_tag_stops_the_node_that_meets_it_and_no_other() {
    let cluster = ready().await;
    cluster.at(0).put("kept", &json!({ "n": 1 })).await.unwrap();
    let (stolen, copy) = steal(&cluster).await;
    let command = stolen_commands(copy.clone()).await.pop().unwrap();
    let attacker = Attacker::with_stolen(&copy, &cluster.at(stolen).config());
    let leader = cluster.leader_among(&cluster.others(stolen), SOON).await.unwrap();
    let victim = cluster.others(stolen).into_iter().find(|at| *at != leader).unwrap();
    let (last, term) = ends(&cluster, &attacker, &[victim]).await;

    // kind[1] format[1] cluster_id[16] epoch[8] term[8] sequence[8]: everything that needs no key is right.
    let mut forged = BytesMut::from(&command[..]);
    forged[26..34].copy_from_slice(&(term + 5).to_be_bytes());
    forged[34..42].copy_from_slice(&u64::MAX.to_be_bytes());
    let mut line = attacker.open(cluster.at(victim).config().cluster, Channel::Bulk).await.unwrap();
    line.append(term + 5, attacker.incarnation(), last, &[forged.freeze()]).await;
    wait::until_now("the victim to say why it stops", SOON, || {
        let log = cluster.at(victim).log();
        let tail = log[log.len().saturating_sub(800)..].to_owned();
        if log.contains("tag") && (log.contains("forged") || log.contains("wrong")) {
            Ok(())
        } else {
            Err(tail)
        }
    })
    .await
    .unwrap();
    drop(line);
    Box::pin(cluster.bring_back(stolen)).await.unwrap();
    for at in [leader, stolen] {
        cluster.serves(at, SOON).await.unwrap();
        assert_eq!(cluster.at(at).get("kept").await.unwrap().unwrap()["n"], 1);
    }
}

#[tokio::test]
async fn an_append_that_contradicts_what_is_committed_is_refused_and_changes_nothing() {
    let cluster = ready().await;
    for n in 0..5 {
        cluster.at(0).put("kept", &json!({ "n": n })).await.unwrap();
    }
    let (stolen, copy) = steal(&cluster).await;
    let command = stolen_commands(copy.clone()).await.pop().unwrap();
    let attacker = Attacker::with_stolen(&copy, &cluster.at(stolen).config());
    let leader = cluster.leader_among(&cluster.others(stolen), SOON).await.unwrap();
    let victim = cluster.others(stolen).into_iter().find(|at| *at != leader).unwrap();
    let (last, term) = ends(&cluster, &attacker, &[victim]).await;
    let before_it = Position { term: last.term, index: last.index - 1 };
    let mut line = attacker.open(cluster.at(victim).config().cluster, Channel::Bulk).await.unwrap();
    assert!(!line.append(term + 5, attacker.incarnation(), before_it, &[command]).await, "it was taken");
    drop(line);

    Box::pin(cluster.bring_back(stolen)).await.unwrap();
    for at in [leader, stolen] {
        cluster.serves(at, SOON).await.unwrap();
        assert_eq!(cluster.at(at).get("kept").await.unwrap().unwrap()["n"], 4);
    }
    cluster.serves(victim, SOON).await.unwrap();
}
