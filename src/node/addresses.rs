//! Members whose addresses all changed at once find each other again.
//!
//! A member that is not heard of is looked for where `retry_join` leads: whoever answers there says which incarnation
//! it is and where its cluster port is. That is a hint and no more, for the certificate decides who is met there.

use std::{sync::Arc, time::Duration};

use futures_util::future::join_all;
use serde_json::{Map, Value, json};

use super::{JoinTarget, Node};

/// Pause between two looks.
const ROUND: Duration = Duration::from_secs(2);
/// How long one answer may take.
const PATIENCE: Duration = Duration::from_secs(2);
const PATH: &str = "/v1/sys/storage/raft/bootstrap/address";

impl Node {
    /// Asks the `retry_join` addresses where their nodes' cluster ports are, as long as a member is not heard of.
    pub(super) fn look_for_members(self: Arc<Self>) {
        let node = Arc::downgrade(&self);
        let mut stopping = self.stopping.subscribe();
        drop(self);
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    _ = stopping.wait_for(|stop| *stop) => return,
                    () = tokio::time::sleep(ROUND) => {}
                }
                let Some(node) = node.upgrade() else { return };
                let Some(replica) = node.replica().filter(|replica| replica.misses_members()) else {
                    continue;
                };
                let targets = node.targets.read().clone();
                drop(node);
                let answers = join_all(targets.iter().map(|target| address_of(target))).await;
                for (incarnation, address) in answers.into_iter().flatten() {
                    replica.hint_address(incarnation, address);
                }
            }
        });
    }

    /// Where this node's cluster port is; nothing before it belongs to a cluster.
    pub(super) fn own_address(&self) -> Map<String, Value> {
        let Some(replica) = self.replica() else { return Map::new() };
        let answer = json!({
            "cluster_addr": self.settings.cluster_addr,
            "incarnation": format!("{:016x}", replica.incarnation()),
        });
        answer.as_object().cloned().unwrap_or_default()
    }
}

async fn address_of(target: &JoinTarget) -> Option<(u64, String)> {
    let response = target.client.request("GET", PATH, None, &[]);
    let response = tokio::time::timeout(PATIENCE, response).await.ok()?.ok()?;
    let body: Value = serde_json::from_slice(&response.body).ok()?;
    let incarnation = u64::from_str_radix(body.get("incarnation")?.as_str()?, 16).ok()?;
    Some((incarnation, body.get("cluster_addr")?.as_str()?.to_owned()))
}
