//! The log never holds a node up, and each of its formats can be read by a program.
#![allow(clippy::unwrap_used)] // in a test, a panic is the report

mod common;

use std::{
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use common::one;
use keystead_chaos::wait;
use serde_json::{Value, json};

/// A process whose output goes into pipes that nobody reads.
struct Unread(Child);

impl Drop for Unread {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

#[tokio::test]
async fn a_node_whose_log_nobody_reads_goes_on_serving() {
    let cluster =
        Box::pin(one().configure(|_, config| config.log_level = "trace".into()).prepare()).await.unwrap();
    let node = cluster.at(0);
    let file = cluster.directory().join("unread.hcl");
    std::fs::write(&file, node.config().to_hcl()).unwrap();
    let mut command = Command::new(common::BINARY);
    command.arg("server").arg(format!("-config={}", file.display()));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let unread = Unread(command.spawn().unwrap());

    let client = node.client();
    wait::until("the API", Duration::from_secs(20), || client.call("GET", "sys/seal-status", None))
        .await
        .unwrap();
    let body = json!({ "secret_shares": 1, "secret_threshold": 1 });
    let made = client.call("PUT", "sys/init", Some(&body)).await.unwrap().ok().unwrap().json();
    let share = json!({ "key": made["keys_base64"][0] });
    client.call("PUT", "sys/unseal", Some(&share)).await.unwrap().ok().unwrap();
    let client = client.with_token(made["root_token"].as_str().unwrap());
    let mount = json!({ "type": "kv", "options": { "version": "2" } });
    client.call("POST", "sys/mounts/secret", Some(&mount)).await.unwrap().ok().unwrap();
    // Far more than a pipe holds.
    let start = Instant::now();
    for n in 0..1_000 {
        let body = json!({ "data": { "n": n } });
        client.call("POST", "secret/data/unread", Some(&body)).await.unwrap().ok().unwrap();
    }
    assert!(start.elapsed() < Duration::from_secs(60), "1,000 writes took {:?}", start.elapsed());
    drop(unread);
}

#[tokio::test]
async fn a_json_log_is_json_line_by_line() {
    let cluster =
        Box::pin(one().configure(|_, config| config.lines.push("log_format = \"json\"".into())).ready())
            .await
            .unwrap();
    let log = cluster.at(0).log();
    let events: Vec<Value> = log.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    assert!(events.len() >= 3, "{log}");
    assert!(events.iter().all(|event| event.is_object()));
    // What is no event is the block that is printed at start.
    let plain = log.lines().filter(|line| serde_json::from_str::<Value>(line).is_err());
    let strange: Vec<_> =
        plain.filter(|line| !line.is_empty() && !line.starts_with("==>") && !line.contains(": ")).collect();
    assert!(strange.is_empty(), "{strange:?}");
    assert!(!log.contains(&cluster.keys().root_token));
}
