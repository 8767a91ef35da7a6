//! The node as the request path sees it.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use keystead_raft::{BoxFuture, Replica, Replicated};
use serde_json::{Map, Value};

use super::{Node, rotation::Change};
use crate::core::{
    VERSION,
    error::ApiError,
    node_ops::{
        BreakGlassRequest, CeremonyMember, GenerateRootRequest, HaNode, HealthFacts, InitRequest,
        InitResponse, JoinRequest, KeyStatus, LeaderStatus, NodeOps, RaftServer, RekeyRequest, RekeyTarget,
        RestoreRequest, SealBackend, SealStatus, SealWrap, ShareFacts, UnsealRequest, Unsealed,
    },
    response::Download,
};
use crate::{
    seal::{SealConfig, SealKind},
    secret::SecretString,
};

impl Node {
    fn cluster_names(&self) -> (Option<String>, Option<String>) {
        match self.unsealed() {
            None => (None, None),
            Some(unsealed) => (Some(unsealed.cluster_name.clone()), Some(unsealed.cluster_id.clone())),
        }
    }

    /// What opens the vault by itself, if anything does: of a vault that is not initialised, what would.
    fn seal_that_opens(&self, config: Option<&SealConfig>) -> Option<SealKind> {
        match config {
            Some(config) => config.unattended().next().map(|(entry, _)| entry.kind()),
            None => self.settings.seals.enabled().first().map(|seal| seal.kind()),
        }
    }

    /// The seal configuration as this node knows it; none of a vault that is not initialised, or not yet joined.
    fn seal_config(&self) -> Option<SealConfig> {
        self.seal_configs().unwrap_or_default().pop()
    }
}

/// What this node's disk gives to worry about.
fn disk_warnings(replica: &Replica) -> Vec<String> {
    let own = replica.own_standing();
    let (standing, free) = (own.now(), own.free_bytes());
    let space = if standing.disk_full {
        Some(format!(
            "the disk of this node is full ({free} bytes free): it takes nothing new; free space on its file system or enlarge it"
        ))
    } else if standing.disk_low {
        Some(format!(
            "the disk of this node is almost full ({free} bytes free); free space on its file system or enlarge it"
        ))
    } else {
        None
    };
    let slow = standing.disk_slow.then(|| {
        "syncs of this node's disk hang: it does not lead until they are quick again; look after the disk"
            .to_owned()
    });
    let shortage = replica.shortage().map(|shortage| format!("writes are refused: {shortage}"));
    space.into_iter().chain(slow).chain(shortage).collect()
}

impl NodeOps for Node {
    fn unsealed(&self) -> Option<Arc<Unsealed>> {
        self.keys.read().as_ref().map(|keys| keys.unsealed().clone())
    }

    fn replica(&self) -> Option<Arc<dyn Replicated>> {
        Node::replica(self).map(|replica| replica as Arc<dyn Replicated>)
    }

    fn seal_status(&self) -> SealStatus {
        let config = self.seal_config();
        let by_itself = self.seal_that_opens(config.as_ref());
        let set = config.as_ref().and_then(|config| match by_itself {
            Some(_) => config.recovery.as_ref(),
            None => config.shamir().map(|(_, set)| set),
        });
        let (cluster_name, cluster_id) = self.cluster_names();
        let progress = self.progress.lock();
        SealStatus {
            seal_type: by_itself.unwrap_or(SealKind::Shamir).name().into(),
            recovery_seal: by_itself.is_some(),
            migration: config.as_ref().is_some_and(|config| self.migration(config).is_some()),
            initialized: config.is_some(),
            sealed: cluster_id.is_none(),
            threshold: set.map_or(0, |set| u32::from(set.threshold)),
            shares: set.map_or(0, |set| u32::from(set.shares)),
            progress: progress.count(),
            nonce: progress.nonce(),
            storage_type: "raft".into(),
            cluster_name,
            cluster_id,
            ceremony: None,
        }
    }

    fn seal_backends(&self) -> Vec<SealBackend> {
        self.settings.seals.backends(self.seal_config().as_ref())
    }

    fn health(&self) -> HealthFacts {
        let (cluster_name, cluster_id) = self.cluster_names();
        let sealed = cluster_id.is_none();
        let replica = Node::replica(self);
        let config = self.seal_config();
        let leadership = replica.as_ref().map(|replica| replica.leadership().borrow().clone());
        let leads = leadership.as_ref().is_some_and(|l| l.is_self);
        HealthFacts {
            initialized: config.is_some(),
            sealed,
            standby: sealed || !leads,
            leader_known: leadership.is_some_and(|l| l.leader.is_some()),
            failure: self.latch_reason(),
            warnings: [
                replica.as_ref().map(|replica| disk_warnings(replica)).unwrap_or_default(),
                replica.and_then(|replica| replica.refusal()).into_iter().collect(),
                self.missed_root.lock().iter().cloned().collect(),
                self.settings.seals.warnings(config.as_ref()),
                self.snapshot_warnings.lock().clone(),
            ]
            .concat(),
            server_time_s: keystead_raft::clock::wall_ms() / 1000,
            cluster_name,
            cluster_id,
        }
    }

    fn leader_status(&self) -> LeaderStatus {
        let Some(replica) = Node::replica(self) else {
            return LeaderStatus { ha_enabled: true, ..LeaderStatus::default() };
        };
        let leadership = replica.leadership().borrow().clone();
        let leader = leadership.leader;
        LeaderStatus {
            ha_enabled: true,
            is_self: leadership.is_self,
            active_since_ms: leadership.active_since_ms,
            leader_address: leader.as_ref().map(|l| l.api_addr.clone()).unwrap_or_default(),
            leader_cluster_address: leader.map(|l| l.cluster_addr).unwrap_or_default(),
            committed_index: replica.committed_index(),
            applied_index: replica.applied_index(),
        }
    }

    fn key_status(&self) -> Option<KeyStatus> {
        let keys = self.keys.read().clone()?;
        let term = keys.barrier().keyring().barrier_terms().last()?;
        let counted = keys.barrier().encryptions().into_iter().find(|(number, _)| *number == term.term);
        Some(KeyStatus {
            term: term.term,
            installed_ms: term.installed_ms,
            encryptions: counted.map_or(0, |(_, count)| count),
            uncounted: keys.barrier().uncounted(),
            first_installed_ms: keys
                .barrier()
                .keyring()
                .barrier_terms()
                .first()
                .map_or(0, |first| first.installed_ms),
        })
    }

    fn raft_configuration(&self) -> Result<Vec<RaftServer>, ApiError> {
        let replica = Node::replica(self).ok_or(ApiError::Sealed)?;
        Ok(replica
            .members()
            .into_iter()
            .map(|member| RaftServer {
                node_id: member.node_id,
                address: member.cluster_addr,
                leader: member.leader,
                voter: member.voter,
            })
            .collect())
    }

    fn ha_nodes(&self) -> Result<Vec<HaNode>, ApiError> {
        let replica = Node::replica(self).ok_or(ApiError::Sealed)?;
        let directory = replica.directory();
        let now_ms = keystead_raft::clock::wall_ms();
        let nodes = replica.members().into_iter().map(|member| {
            let own = member.incarnation == replica.incarnation();
            let peer = replica.peer_status(member.incarnation);
            let listed = directory.member(member.incarnation).map(|listed| listed.api_addr.clone());
            let silent_ms = peer.as_ref().map(|peer| peer.heard.elapsed().as_millis());
            let heard_ms = silent_ms.map(|ms| now_ms.saturating_sub(u64::try_from(ms).unwrap_or(u64::MAX)));
            let heard = peer.as_ref().map(|peer| peer.version.clone()).unwrap_or_default();
            HaNode {
                version: if own { VERSION.to_owned() } else { heard },
                name: member.node_id,
                // What a member says itself is newer than what it said when it joined.
                api_address: peer.map(|peer| peer.api_addr).or(listed).unwrap_or_default(),
                cluster_address: format!("https://{}", member.cluster_addr),
                active: member.leader,
                last_echo_ms: if own { Some(now_ms) } else { heard_ms }.filter(|_| !member.leader),
            }
        });
        Ok(nodes.collect())
    }

    fn log_levels(&self) -> Vec<(String, String)> {
        crate::server::log_levels()
    }

    fn set_log_level(&self, name: Option<&str>, level: Option<&str>) -> Result<(), String> {
        crate::server::set_log_level(name, level)
    }

    fn metrics_text(&self) -> String {
        crate::server::metrics_text()
    }

    fn init(&self, request: InitRequest) -> BoxFuture<'_, Result<InitResponse, ApiError>> {
        // An initialisation that has begun is carried through although the client may go.
        let node = self.arc();
        Box::pin(async move {
            let work = tokio::spawn(async move { node.initialise(request).await });
            work.await.unwrap_or_else(|e| Err(ApiError::internal("initialisation", &e)))
        })
    }

    fn unseal(&self, request: UnsealRequest) -> BoxFuture<'_, Result<SealStatus, ApiError>> {
        Box::pin(self.take_share(request))
    }

    fn unseal_members(
        &self,
        nonce: String,
        node_ids: Option<Vec<String>>,
    ) -> BoxFuture<'_, Result<Vec<CeremonyMember>, ApiError>> {
        Box::pin(async move { self.open_members(&nonce, node_ids).await })
    }

    fn verify_share(&self, key: &SecretString) -> Result<ShareFacts, ApiError> {
        self.share_facts(key)
    }

    fn seal(&self) -> BoxFuture<'_, Result<(), ApiError>> {
        Box::pin(self.seal_now())
    }

    fn seal_wraps(&self) -> BoxFuture<'_, Result<Vec<SealWrap>, ApiError>> {
        Box::pin(self.compare_wraps())
    }

    fn sync_seals(&self, prune: bool) -> BoxFuture<'_, Result<Vec<SealWrap>, ApiError>> {
        Box::pin(self.sync_wraps(prune))
    }

    fn raft_claim(&self, body: &Map<String, Value>) -> Result<Map<String, Value>, ApiError> {
        self.judge_claim(body)
    }

    fn raft_epoch(&self, body: &Map<String, Value>) -> Result<Map<String, Value>, ApiError> {
        self.judge_epoch(body)
    }

    fn raft_challenge(
        &self,
        _body: Map<String, Value>,
    ) -> BoxFuture<'_, Result<Map<String, Value>, ApiError>> {
        Box::pin(self.issue_challenge())
    }

    fn raft_answer(&self, body: Map<String, Value>) -> BoxFuture<'_, Result<Map<String, Value>, ApiError>> {
        Box::pin(self.judge_answer(body))
    }

    fn raft_join(&self, request: JoinRequest) -> BoxFuture<'_, Result<bool, ApiError>> {
        Box::pin(self.join_by_hand(request))
    }

    fn break_glass(&self) -> Result<Map<String, Value>, ApiError> {
        self.break_glass_facts()
    }

    fn change_break_glass(
        &self,
        request: BreakGlassRequest,
    ) -> BoxFuture<'_, Result<Map<String, Value>, ApiError>> {
        Box::pin(Node::change_break_glass(self, request))
    }

    fn rekey(
        &self,
        target: RekeyTarget,
        request: RekeyRequest,
        trusted: bool,
    ) -> BoxFuture<'_, Result<Map<String, Value>, ApiError>> {
        Box::pin(self.change_shares(target, request, trusted))
    }

    fn generate_root(
        &self,
        request: GenerateRootRequest,
        trusted: bool,
    ) -> BoxFuture<'_, Result<Map<String, Value>, ApiError>> {
        Box::pin(self.make_root_token(request, trusted))
    }

    fn awaits_backup(&self) -> bool {
        Node::replica(self).is_none()
    }

    fn restore_snapshot(&self, request: RestoreRequest) -> BoxFuture<'_, Result<(), ApiError>> {
        // One that has begun is carried through although the client may go.
        let node = self.arc();
        Box::pin(async move {
            match Node::replica(&node) {
                None => node.keep_until_opened(&request.archive).await,
                Some(_) => node.restore_in_place(request).await,
            }
        })
    }

    fn save_snapshot(&self) -> BoxFuture<'_, Result<Download, ApiError>> {
        Box::pin(Node::save_snapshot(self))
    }

    fn may_store(&self, directory: &Path) -> Result<(), ApiError> {
        self.check_directory(directory).map_err(ApiError::invalid)
    }

    fn spool(&self) -> Result<(PathBuf, u64), ApiError> {
        let dir = &self.settings.dir;
        let space = dir.disk().space().look().map_err(|e| ApiError::internal("looking at the disk", &e))?;
        let room = space.free_bytes.saturating_sub(space.watermarks().low_bytes);
        Ok((dir.snapshots(), room))
    }

    fn keep_counts(&self) -> BoxFuture<'_, Result<(), ApiError>> {
        Box::pin(self.change_keyring(Change::Counts))
    }

    fn rotate(&self) -> BoxFuture<'_, Result<(), ApiError>> {
        Box::pin(self.change_keyring(Change::Rotate))
    }
}
