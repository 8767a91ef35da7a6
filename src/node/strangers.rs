//! Notices that `retry_join` leads to a cluster that is not this node's.
//!
//! Two kinds of clusters are not ours. One has nothing to do with this one: a node was initialised on its own, by
//! mistake, and would sit beside the others for ever, each side serving its own vault. Nothing is changed then: which of
//! the two has the data that matters is for the operator to say.
//!
//! The other came from the same cluster by a recovery from lost quorum. Members of the old one that come back must not
//! serve beside it, so they stop serving on first contact. Who claims to be the later one proves that it holds the
//! vault's keys. The claim names the clusters it came from, so that a copy restored elsewhere is never taken for one.

use std::{collections::HashSet, sync::Arc, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use bytes::Bytes;
use futures_util::future::join_all;
use keystead_raft::Directory;
use serde_json::{Map, Value};

use super::{JoinTarget, Node, OpenKeys, shares::uuid_text};
use crate::core::error::ApiError;

/// Pause between two rounds.
const ROUND: Duration = Duration::from_secs(5);
/// How long one answer may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a node that is being opened waits for what others say before it serves.
const BEFORE_SERVING: Duration = Duration::from_secs(1);
const EPOCH_TAG: &str = "keystead/v1/epoch-claim";
const EPOCH_PATH: &str = "/v1/sys/storage/raft/bootstrap/epoch";
/// Recoveries that a claim may name.
const MAX_ANCESTORS: usize = 1024;

/// Which cluster a node belongs to, and which ones that came from.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Lineage {
    cluster_id: [u8; 16],
    epoch: u64,
    ancestors: Vec<[u8; 16]>,
}

/// How another cluster stands to this one.
#[derive(Debug, PartialEq, Eq)]
enum Relation {
    /// It is the same, or an older one, which has to notice by itself.
    Harmless,
    /// It came from this one: this one is over.
    Later,
    /// Both came from the same one.
    Sibling,
    /// It has nothing to do with this one.
    Stranger,
}

impl Lineage {
    fn of(directory: &Directory) -> Self {
        let Directory { cluster_id, epoch, ancestors, .. } = directory;
        Self { cluster_id: *cluster_id, epoch: *epoch, ancestors: ancestors.clone() }
    }

    fn relation(&self, theirs: &Self) -> Relation {
        let from = |ancestors: &[[u8; 16]], of: &[u8; 16]| ancestors.contains(of);
        if theirs.cluster_id == self.cluster_id || from(&self.ancestors, &theirs.cluster_id) {
            Relation::Harmless
        } else if from(&theirs.ancestors, &self.cluster_id) {
            Relation::Later
        } else if theirs.ancestors.iter().any(|id| from(&self.ancestors, id)) {
            Relation::Sibling
        } else {
            Relation::Stranger
        }
    }

    fn mac(&self, keys: &OpenKeys) -> crate::barrier::Mac {
        keys.claim_mac(EPOCH_TAG, &[&self.cluster_id, &self.epoch.to_be_bytes(), &self.ancestors.concat()])
    }

    fn document(&self) -> Map<String, Value> {
        let ancestors: Vec<_> = self.ancestors.iter().map(uuid_text).collect();
        Map::from_iter([
            ("cluster_id".to_owned(), Value::from(uuid_text(&self.cluster_id))),
            ("epoch".to_owned(), Value::from(self.epoch)),
            ("ancestors".to_owned(), Value::from(ancestors)),
        ])
    }

    fn claim(&self, keys: &OpenKeys) -> Map<String, Value> {
        let mut claim = self.document();
        claim.insert("mac".to_owned(), Value::from(BASE64.encode(self.mac(keys).finish())));
        claim
    }

    /// Reads a claim; `None` if it cannot be understood or was not made with the keys of this vault.
    fn verified(claim: &Map<String, Value>, keys: &OpenKeys) -> Option<Self> {
        let id =
            |value: &Value| <[u8; 16]>::try_from(hex::decode(value.as_str()?.replace('-', "")).ok()?).ok();
        let ancestors = claim.get("ancestors")?.as_array().filter(|all| all.len() <= MAX_ANCESTORS)?;
        let lineage = Self {
            cluster_id: id(claim.get("cluster_id")?)?,
            epoch: claim.get("epoch")?.as_u64()?,
            ancestors: ancestors.iter().map(id).collect::<Option<_>>()?,
        };
        let mac = BASE64.decode(claim.get("mac")?.as_str()?).ok()?;
        lineage.mac(keys).verify(&mac).then_some(lineage)
    }
}

impl Node {
    /// Asks the `retry_join` addresses, as long as this member runs, which cluster they belong to.
    pub(super) fn watch_for_strangers(self: Arc<Self>, cluster_id: [u8; 16]) {
        let targets = self.settings.retry_join.clone();
        if targets.is_empty() {
            return;
        }
        let own = uuid_text(&cluster_id);
        let mut stopping = self.stopping.subscribe();
        let node = Arc::downgrade(&self);
        drop(self);
        tokio::spawn(async move {
            let mut told = HashSet::new();
            loop {
                let Some(this) = node.upgrade() else { return };
                let keys = this.keys.read().clone();
                if let Some(keys) = keys {
                    this.compare_epochs(&keys).await;
                }
                drop(this);
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

    /// Asks before this node serves, for a moment, whether its cluster is over.
    pub(super) async fn compare_epochs_before_serving(&self, keys: &OpenKeys) {
        // Who does not answer in time is asked again, and again.
        drop(tokio::time::timeout(BEFORE_SERVING, self.compare_epochs(keys)).await);
    }

    /// Tells every `retry_join` address which cluster this node belongs to, and hears which one theirs is.
    async fn compare_epochs(&self, keys: &OpenKeys) {
        let Some(own) = self.lineage() else { return };
        let claim = Bytes::from(Value::Object(own.claim(keys)).to_string());
        let exchanges = self.settings.retry_join.iter().map(|target| async {
            let answer = epoch_of(target, claim.clone()).await;
            if let Some(theirs) = answer.and_then(|answer| Lineage::verified(&answer, keys)) {
                self.judge_lineage(&own, &theirs, &target.address);
            }
        });
        join_all(exchanges).await;
    }

    fn lineage(&self) -> Option<Lineage> {
        let lineage = Lineage::of(&self.replica()?.directory());
        (lineage.cluster_id != [0; 16]).then_some(lineage)
    }

    fn judge_lineage(&self, own: &Lineage, theirs: &Lineage, address: &str) {
        let (own_id, theirs_id) = (uuid_text(&own.cluster_id), uuid_text(&theirs.cluster_id));
        let reason = match own.relation(theirs) {
            Relation::Harmless | Relation::Stranger => return,
            Relation::Later => format!(
                "this node belongs to cluster {own_id} at epoch {}, which was given up: it lost its quorum, and a survivor was recovered as cluster {theirs_id} at epoch {} (said {address}); what only this side has is not in it. To let this node join that cluster, stop it, run `keystead operator raft rebuild` and start it again",
                own.epoch, theirs.epoch
            ),
            Relation::Sibling => format!(
                "a recovery was run on two sides: this node belongs to cluster {own_id} at epoch {}, and {address} to {theirs_id} at epoch {}, which came from the same cluster; both have stopped serving. Decide which one goes on, stop all nodes of the other one, run `keystead operator raft rebuild` on them, and start the nodes of the one that goes on again, then the others",
                own.epoch, theirs.epoch
            ),
        };
        metrics::counter!("keystead_epoch_conflicts").increment(1);
        keystead_raft::VaultSide::latched(self, &reason);
    }

    /// `sys/storage/raft/bootstrap/epoch`: another node says which cluster it belongs to, and is told the same of this
    /// one. Who says nothing is told what `status` shows, without a proof.
    pub(super) fn judge_epoch(&self, body: &Map<String, Value>) -> Result<Map<String, Value>, ApiError> {
        let keys = self.keys.read().clone().ok_or(ApiError::Sealed)?;
        let own = self.lineage().ok_or(ApiError::Sealed)?;
        if body.is_empty() {
            return Ok(own.document());
        }
        let Some(theirs) = Lineage::verified(body, &keys) else {
            metrics::counter!("keystead_epoch_false_claims").increment(1);
            return Err(ApiError::invalid("invalid claim given"));
        };
        // Before this node has stopped serving, or the other one would not hear why it should.
        let answer = own.claim(&keys);
        self.judge_lineage(&own, &theirs, "another node");
        Ok(answer)
    }
}

/// The id of the cluster that an unsealed node belongs to.
async fn cluster_of(target: &JoinTarget) -> Option<String> {
    let response = target.client.request("GET", "/v1/sys/seal-status", None, &[]);
    let response = tokio::time::timeout(PATIENCE, response).await.ok()?.ok()?;
    let body: Value = serde_json::from_slice(&response.body).ok()?;
    Some(body.get("cluster_id")?.as_str()?.to_owned())
}

/// The claim of an unsealed node, in answer to ours.
async fn epoch_of(target: &JoinTarget, claim: Bytes) -> Option<Map<String, Value>> {
    let response = target.client.request("PUT", EPOCH_PATH, Some(claim), &[]);
    let response = tokio::time::timeout(PATIENCE, response).await.ok()?.ok()?;
    let body = response.status.is_success().then_some(response.body)?;
    serde_json::from_slice(&body).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_cluster_that_came_from_this_one_ends_it() {
        let lineage = |id: u8, epoch, ancestors: &[u8]| Lineage {
            cluster_id: [id; 16],
            epoch,
            ancestors: ancestors.iter().map(|id| [*id; 16]).collect(),
        };
        let old = lineage(1, 1, &[]);
        let recovered = lineage(2, 2, &[1]);
        let again = lineage(3, 3, &[1, 2]);
        let other_side = lineage(4, 2, &[1]);
        let restored_elsewhere = lineage(5, 9, &[]);
        for (ours, theirs, relation) in [
            (&old, &old, Relation::Harmless),
            (&old, &recovered, Relation::Later),
            (&old, &again, Relation::Later),
            (&recovered, &old, Relation::Harmless),
            (&again, &recovered, Relation::Harmless),
            (&recovered, &other_side, Relation::Sibling),
            (&other_side, &again, Relation::Sibling),
            (&old, &restored_elsewhere, Relation::Stranger),
            (&recovered, &restored_elsewhere, Relation::Stranger),
        ] {
            assert_eq!(ours.relation(theirs), relation, "{ours:?} {theirs:?}");
        }
    }
}
