//! Nodes whose seals open them.
#![allow(dead_code)] // each test uses some of it

use std::time::Duration;

use keystead_chaos::{Builder, Cluster, Node, Result, wait};
use serde_json::{Value, json};

/// How long a cluster may take to do what is waited for.
pub const SOON: Duration = Duration::from_secs(30);

pub fn with(builder: Builder, stanzas: Vec<String>) -> Builder {
    builder.configure(move |_, config| config.lines.extend(stanzas.iter().cloned()))
}

/// Initialises with recovery shares, and gives them.
pub async fn init(cluster: &Cluster) -> Vec<String> {
    let body = json!({ "recovery_shares": 5, "recovery_threshold": 3 });
    let made = cluster.at(0).call("PUT", "sys/init", Some(&body)).await.unwrap().ok().unwrap().json();
    assert_eq!(made["keys"], json!([]), "nobody needs a share to open it");
    for node in cluster.nodes() {
        node.set_token(made["root_token"].as_str().unwrap());
    }
    let shares = made["recovery_keys_base64"].as_array().unwrap().iter();
    shares.map(|share| share.as_str().unwrap().to_owned()).collect()
}

pub async fn status(node: &Node, what: &str, good: impl Fn(&Value) -> bool) -> Value {
    let look = || async {
        node.alive()?;
        let status = node.seal_status().await?;
        if good(&status) {
            Result::Ok(status)
        } else {
            Err(keystead_chaos::Error::Broken(status.to_string()))
        }
    };
    wait::until(&format!("{} {what}", node.name()), SOON, look).await.unwrap()
}

pub async fn open(node: &Node) -> Value {
    status(node, "to be open", |status| status["sealed"] == false).await
}

pub fn warns(status: &Value, of: &str) -> bool {
    status["warnings"].as_array().into_iter().flatten().any(|line| line.as_str().unwrap().contains(of))
}

pub async fn start_all(cluster: &Cluster) {
    for node in cluster.nodes() {
        node.start().await.unwrap();
    }
}

/// Sets the seals of every node, and starts all of them anew.
pub async fn restart_with(cluster: &Cluster, stanzas: &[String]) {
    cluster.kill_together(&(0..cluster.nodes().len()).collect::<Vec<_>>()).unwrap();
    for node in cluster.nodes() {
        node.configure(|config| {
            config.lines.retain(|line| !line.starts_with("seal "));
            config.lines.extend(stanzas.iter().cloned());
        });
    }
    start_all(cluster).await;
}

pub async fn type_in(node: &Node, shares: &[String], migrate: bool) -> keystead_chaos::Response {
    let mut last = None;
    for share in shares {
        let body = json!({ "key": share, "migrate": migrate });
        last = Some(node.call("PUT", "sys/unseal", Some(&body)).await.unwrap());
    }
    last.expect("there are shares")
}
