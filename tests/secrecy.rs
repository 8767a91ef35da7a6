//! Nothing that was stored, typed or handed out can be read on a disk or in a log.
#![allow(clippy::unwrap_used)] // in a test, a panic is the report

mod common;

use std::{path::Path, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use common::three;
use keystead_chaos::{Cluster, scan::scan};
use serde_json::{Value, json};

/// Texts that occur nowhere but where a test put them.
const NAMES: [&str; 4] = ["canary-folder-77ab", "canary-key-19f3", "canary-field-c08d", "canary-mount-52e6"];
const VALUES: [&str; 3] = ["canary-value-aa91-text", "canary-nested-4b7d", "canary-meta-e21c"];
/// A number is as secret as a text.
const NUMBERS: [&str; 2] = ["918273645546372819", "27182818284590452.353602874713"];
const TYPED: [&str; 7] = [
    "canary-token-90d1",
    "canary-query-3e8f",
    "canary-broken-b6a0",
    "canary-header-f4c7",
    "canary-share-d15e",
    "canary-agent-83b7",
    "canary-raw-2c4e",
];

async fn use_it(cluster: &Cluster) {
    let [folder, key, field, mount] = NAMES;
    let [value, nested, meta] = VALUES;
    let node = cluster.at(0);
    let path = format!("{folder}/{key}");
    node.put(&path, &json!({ field: value, "more": { "list": [nested, number(0), { "deep": number(1) }] } }))
        .await
        .unwrap();
    let body = json!({ "type": "kv", "description": meta });
    node.call("POST", &format!("sys/mounts/{mount}"), Some(&body)).await.unwrap().ok().unwrap();
    node.call("POST", &format!("{mount}/{key}"), Some(&json!({ field: value }))).await.unwrap().ok().unwrap();
    for at in 0..3 {
        assert!(cluster.at(at).get(&path).await.unwrap().is_some());
        cluster.at(at).list(folder).await.unwrap();
    }
}

fn number(n: usize) -> Value {
    serde_json::from_str(NUMBERS[n]).unwrap()
}

/// Requests that fail in every way in which a careless server would log what it was sent.
async fn abuse_it(cluster: &Cluster) {
    let [token, query, broken, header, share, agent, raw] = TYPED;
    let [folder, key, ..] = NAMES;
    for at in 0..3 {
        let client = cluster.at(at).client();
        let path = format!("secret/data/{folder}/{key}");
        let stranger = client.clone().with_token(token);
        assert_eq!(stranger.call("GET", &path, None).await.unwrap().status, 403);
        drop(client.call("GET", &format!("{path}?{query}={query}&version={query}"), None).await);
        let bytes = Bytes::from(format!("{{\"data\": {{\"x\": \"{broken}\""));
        assert_eq!(client.send("POST", &format!("/v1/{path}"), bytes, &[]).await.unwrap().status, 400);
        drop(client.send("GET", &format!("/v1/{path}"), Bytes::new(), &[("X-Vault-Wrap-TTL", header)]).await);
        drop(client.send("GET", &format!("/v1/{path}/../{broken}"), Bytes::new(), &[]).await);
        drop(client.call("PUT", "sys/unseal", Some(&json!({ "key": share }))).await);
        let (json, form) = ("application/json", "application/x-www-form-urlencoded");
        for (kind, body) in [
            (json, format!("\"{raw}\"")),
            (json, format!("[{{\"{raw}\": [\"{raw}\"]}}]")),
            (json, NUMBERS[0].to_owned()),
            (json, format!("{{\"data\": {}}}", NUMBERS[1])),
            (json, format!("{{\"data\": {{\"{raw}\": {}}}, \"options\": \"{raw}\"}}", NUMBERS[0])),
            (form, format!("data={raw}&options={}&{raw}=%zz", NUMBERS[0])),
            ("text/plain", raw.to_owned()),
        ] {
            let headers = [("Content-Type", kind), ("User-Agent", agent), ("X-Canary", agent)];
            let answer =
                client.send("POST", &format!("/v1/{path}"), Bytes::from(body), &headers).await.unwrap();
            assert!(answer.status >= 400, "{}", answer.text());
            for canary in [raw, agent, NUMBERS[0], NUMBERS[1]] {
                assert!(!answer.text().contains(canary), "echoed: {}", answer.text());
            }
        }
        let cas = json!({ "data": { "x": broken }, "options": { "cas": broken } });
        drop(client.call("POST", &path, Some(&cas)).await);
        drop(client.call("POST", &format!("nosuch/{broken}"), Some(&json!({ "a": broken }))).await);
        drop(
            client
                .call("PUT", "sys/storage/raft/bootstrap/answer", Some(&json!({ "challenge": broken })))
                .await,
        );
    }
}

#[tokio::test]
async fn case_10_no_disk_and_no_log_shows_a_name_a_value_a_token_or_a_share() {
    let cluster =
        Box::pin(three().configure(|_, config| config.log_level = "trace".into()).ready()).await.unwrap();
    use_it(&cluster).await;
    abuse_it(&cluster).await;
    let own = cluster.at(0).call("GET", "auth/token/lookup-self", None).await.unwrap().ok().unwrap().data();
    let accessor = own["accessor"].as_str().unwrap().to_owned();
    let leader = cluster.leader().await.unwrap();
    cluster.at(leader).kill();
    cluster.serves(cluster.others(leader)[0], Duration::from_secs(20)).await.unwrap();
    Box::pin(cluster.bring_back(leader)).await.unwrap();
    // What is still in memory goes to the disk when a node stops.
    for node in cluster.nodes() {
        node.stop().await.unwrap();
    }

    let keys = cluster.keys();
    let mut texts: Vec<String> =
        [&NAMES[..], &VALUES, &TYPED, &NUMBERS].concat().iter().map(|text| text.to_string()).collect();
    texts.extend([keys.root_token.clone(), accessor]);
    for share in &keys.shares {
        texts.push(share.clone());
        let bytes = STANDARD.decode(share).unwrap();
        texts.push(hex::encode(&bytes));
        texts.push(hex::encode(&bytes[12..44]));
    }
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let places: Vec<_> = cluster.nodes().iter().flat_map(|node| [node.data(), node.log_file()]).collect();
    let places: Vec<&Path> = places.iter().map(|place| place.as_path()).collect();
    let findings = scan(&places, &texts).unwrap();
    assert!(findings.is_empty(), "{findings:#?}");

    // The scan would have found them: here is one of each form, where no node put it.
    let data = cluster.at(0).data();
    for (n, planted) in
        [VALUES[0].to_owned(), hex::encode(VALUES[0]), STANDARD.encode(format!("x{}", VALUES[0]))]
            .into_iter()
            .enumerate()
    {
        let file = data.join(format!("planted-{n}"));
        std::fs::write(&file, format!("some bytes {planted} and more")).unwrap();
        let findings = scan(&places, &texts).unwrap();
        assert_eq!(findings.len(), 1, "form {n}: {findings:?}");
        std::fs::remove_file(file).unwrap();
    }
}

#[tokio::test]
async fn the_log_is_quiet_under_load_at_info() {
    let cluster = Box::pin(three().ready()).await.unwrap();
    cluster.serves(1, Duration::from_secs(10)).await.unwrap();
    let lines =
        |cluster: &Cluster| -> usize { cluster.nodes().iter().map(|node| node.log().lines().count()).sum() };
    let before = lines(&cluster);
    for n in 0..300 {
        cluster.at(n % 3).put("quiet", &json!({ "n": n })).await.unwrap();
    }
    let more = lines(&cluster) - before;
    assert!(more < 10, "{more} lines for 300 writes");
}
