//! Notices that `retry_join` leads to a cluster that is not this node's.
//!
//! A member never joins again, so a node that was initialised on its own, by mistake, and is then told where the
//! others are would sit beside them for ever, each side serving its own vault. Nothing is changed here: which of
//! the two has the data that matters is for the operator to say.

use std::{collections::HashSet, sync::Arc, time::Duration};

use futures_util::future::join_all;
use serde_json::Value;

use super::{JoinTarget, Node, shares::uuid_text};

/// Pause between two rounds; a mistake in a file stays until somebody edits it.
const ROUND: Duration = Duration::from_secs(30);
/// How long one answer may take.
const PATIENCE: Duration = Duration::from_secs(5);

impl Node {
    /// Asks the `retry_join` addresses, as long as this member runs, which cluster they belong to.
    pub(super) fn watch_for_strangers(self: Arc<Self>, cluster_id: [u8; 16]) {
        let targets = self.settings.retry_join.clone();
        if targets.is_empty() {
            return;
        }
        let own = uuid_text(&cluster_id);
        let mut stopping = self.stopping.subscribe();
        drop(self);
        tokio::spawn(async move {
            let mut told = HashSet::new();
            loop {
                let answers = join_all(targets.iter().map(|target| cluster_of(target))).await;
                for (target, theirs) in targets.iter().zip(answers) {
                    // A sealed node, one that is down and one that belongs to nobody say nothing.
                    let Some(theirs) = theirs.filter(|theirs| *theirs != own) else { continue };
                    if told.insert((target.address.clone(), theirs.clone())) {
                        metrics::counter!("keystead_join_other_clusters").increment(1);
                        tracing::error!(
                            address = target.address,
                            theirs,
                            own,
                            "the node at a retry_join address belongs to another cluster; to join that one, stop this node, move its data directory away and start it again; otherwise correct retry_join"
                        );
                    }
                }
                tokio::select! {
                    _ = stopping.wait_for(|stop| *stop) => return,
                    () = tokio::time::sleep(ROUND) => {}
                }
            }
        });
    }
}

/// The id of the cluster that an unsealed node belongs to.
async fn cluster_of(target: &JoinTarget) -> Option<String> {
    let response = target.client.request("GET", "/v1/sys/seal-status", None, &[]);
    let response = tokio::time::timeout(PATIENCE, response).await.ok()?.ok()?;
    let body: Value = serde_json::from_slice(&response.body).ok()?;
    Some(body.get("cluster_id")?.as_str()?.to_owned())
}
