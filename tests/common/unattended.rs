//! Clusters that open by themselves, with keys in files.

#![allow(dead_code)] // no test uses all of it

use std::{path::PathBuf, time::Duration};

use keystead_chaos::{Builder, Cluster, Node, Result, wait};
use serde_json::{Value, json};

/// How long anything may take that ought to happen by itself.
pub const SOON: Duration = Duration::from_secs(30);

/// A directory with the key files, and the stanzas that name them.
pub struct Keys(pub tempfile::TempDir);

impl Keys {
    /// An empty one.
    pub fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    /// Where the key of a seal is.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name.replace('.', "/"))
    }

    /// The stanzas of the seals of these names, in the order of their priority.
    pub fn stanzas(&self, names: &[&str]) -> Vec<String> {
        let stanza = |(at, name): (usize, &&str)| {
            let path = self.path(name).display().to_string();
            format!(
                "seal \"file\" {{\n  name     = \"{name}\"\n  priority = {}\n  path     = \"{path}\"\n}}",
                at + 1
            )
        };
        names.iter().enumerate().map(stanza).collect()
    }
}

/// A cluster with these stanzas on every node.
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

/// Waits until a node says of its seals what is asked for, and gives that.
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

/// Waits until a node is open.
pub async fn open(node: &Node) -> Value {
    status(node, "to be open", |status| status["sealed"] == false).await
}

/// Whether a node warns of something.
pub fn warns(status: &Value, of: &str) -> bool {
    status["warnings"].as_array().into_iter().flatten().any(|line| line.as_str().unwrap().contains(of))
}

/// Starts every node.
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

/// Enters shares at a node, and gives the answer to the last one.
pub async fn type_in(node: &Node, shares: &[String], migrate: bool) -> keystead_chaos::Response {
    let mut last = None;
    for share in shares {
        let body = json!({ "key": share, "migrate": migrate });
        last = Some(node.call("PUT", "sys/unseal", Some(&body)).await.unwrap());
    }
    last.expect("there are shares")
}
