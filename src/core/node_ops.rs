//! What the request path needs of the node below it: its seal state, its lifecycle, its replica.
//!
//! The node itself (init, unseal, join, the supervisor of replication) lives in `crate::node` and implements
//! [`NodeOps`]; the request path sees nothing else of it.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use keystead_raft::{BoxFuture, Replicated};
use serde_json::{Map, Value};

use super::{
    error::ApiError,
    member_ops::MemberOps,
    response::Download,
    token::{TokenCache, TokenKey},
};
use crate::{
    barrier::{Barrier, VaultId},
    secret::{RootKey, SecretString},
};

/// What exists only while this node is unsealed.
///
/// Requests hold it by `Arc`: sealing the node drops the node's own reference, and the keys go with the last
/// request that still runs.
pub struct Unsealed {
    /// Opens and seals values and paths.
    pub barrier: Arc<Barrier>,
    /// The id of the data, drawn at init.
    pub vault_id: VaultId,
    /// The id of this set of nodes, as a UUID in text.
    pub cluster_id: String,
    /// The operator's name of the cluster.
    pub cluster_name: String,
    /// The key under which tokens are hashed before they become a path.
    pub token_key: TokenKey,
    /// Tokens that were looked up lately; gone with the keys.
    pub tokens: TokenCache,
}

/// The answer of `sys/seal-status` and `sys/unseal`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealStatus {
    /// Kind of the seal: `shamir`, or what opens the vault by itself.
    pub seal_type: String,
    /// The shares are recovery shares: they open nothing.
    pub recovery_seal: bool,
    /// The configuration asks for a move to other seals, which key holders have to agree to.
    pub migration: bool,
    /// The vault has been initialised (or this node has joined one that is).
    pub initialized: bool,
    /// This node is sealed.
    pub sealed: bool,
    /// Shares needed, to open the vault or for recovery.
    pub threshold: u32,
    /// Shares made.
    pub shares: u32,
    /// Distinct shares given so far.
    pub progress: u32,
    /// Names this series of shares; empty before the first.
    pub nonce: String,
    /// Kind of the storage: `raft`.
    pub storage_type: String,
    /// Name of the cluster, while unsealed.
    pub cluster_name: Option<String>,
    /// Id of the cluster, while unsealed.
    pub cluster_id: Option<String>,
    /// The other members, in the answer to the share that completed a ceremony for the whole cluster.
    pub ceremony: Option<Ceremony>,
}

/// The other members of a cluster whose key holders have opened one node and asked for the rest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ceremony {
    /// Confirms it, once.
    pub nonce: String,
    /// The members, in the order of joining.
    pub members: Vec<CeremonyMember>,
}

/// One member, as a ceremony shows it to who confirms it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CeremonyMember {
    /// The operator's name of the place.
    pub node_id: String,
    /// `host:port` of its cluster port, where it was reached; as listed, where it cannot be asked.
    pub cluster_addr: String,
    /// The same as it was when the node joined.
    pub listed_addr: String,
    /// SHA-256 of its public key, in hexadecimal digits.
    pub fingerprint: String,
    /// How it does.
    pub state: MemberSeal,
    /// Why it was not or cannot be opened; empty if nothing stands in the way.
    pub why: String,
}

/// How a member does in a ceremony.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemberSeal {
    /// It is open.
    Unsealed,
    /// It is sealed.
    Sealed,
    /// It cannot be asked, or must not be opened.
    Unfit,
}

impl MemberSeal {
    /// As it stands in answers.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Unsealed => "unsealed",
            Self::Sealed => "sealed",
            Self::Unfit => "unfit",
        }
    }
}

/// One seal that opens the vault by itself, as `sys/seal-backend-status` shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealBackend {
    /// Its name.
    pub name: String,
    /// Since when it does not work, in milliseconds since the Unix epoch; `None` while it does.
    pub unhealthy_since_ms: Option<u64>,
    /// The root key is wrapped by it.
    pub wraps: bool,
}

/// How the wrap of the root key by a seal stands beside the seal's present key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WrapState {
    /// The seal's newest key made it, and it opens.
    Agrees,
    /// It opens, by an older key.
    Stale,
    /// There is none.
    Missing,
    /// The seal works, and does not open it: its key is another one, or was deleted.
    Unopened,
    /// The seal does not work.
    Unreachable,
    /// The seal is disabled.
    Disabled,
    /// No stanza names the seal.
    Unconfigured,
}

impl WrapState {
    /// As `sys/seal-backend-sync` calls it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Agrees => "agrees",
            Self::Stale => "stale",
            Self::Missing => "missing",
            Self::Unopened => "does-not-open",
            Self::Unreachable => "unreachable",
            Self::Disabled => "disabled",
            Self::Unconfigured => "no-stanza",
        }
    }
}

/// The wrap of the root key by one seal, as `sys/seal-backend-sync` shows it. What is not known is empty, or 0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealWrap {
    /// The seal's name.
    pub name: String,
    /// Its kind.
    pub kind: String,
    /// How the wrap stands.
    pub state: WrapState,
    /// The generation of the root key that is wrapped.
    pub root_generation: u32,
    /// Names the wrap, in hexadecimal digits.
    pub wrap_id: String,
    /// Names the seal's key that made it.
    pub wrapped_by: String,
    /// Names the seal's newest key.
    pub key: String,
    /// What keeps it from agreeing, where the seal says so.
    pub why: String,
}

impl SealWrap {
    /// A seal of which nothing but its state is known.
    #[must_use]
    pub fn without(name: &str, state: WrapState) -> Self {
        Self {
            name: name.to_owned(),
            kind: String::new(),
            state,
            root_generation: 0,
            wrap_id: String::new(),
            wrapped_by: String::new(),
            key: String::new(),
            why: String::new(),
        }
    }
}

/// What `sys/health` is answered from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthFacts {
    /// The vault has been initialised.
    pub initialized: bool,
    /// This node is sealed.
    pub sealed: bool,
    /// This node is unsealed and does not lead.
    pub standby: bool,
    /// A leader is known (this node or another).
    pub leader_known: bool,
    /// Why this node has stopped for good, if it has.
    pub failure: Option<String>,
    /// What an operator should look after, though this node serves.
    pub warnings: Vec<String>,
    /// Wall clock, in seconds since the Unix epoch.
    pub server_time_s: u64,
    /// Name of the cluster, while unsealed.
    pub cluster_name: Option<String>,
    /// Id of the cluster, while unsealed.
    pub cluster_id: Option<String>,
}

/// What `sys/leader` is answered from, on an unsealed node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LeaderStatus {
    /// Several nodes can share the storage.
    pub ha_enabled: bool,
    /// This node leads and may answer.
    pub is_self: bool,
    /// When it became the leader, in milliseconds since the Unix epoch; 0 when it is not.
    pub active_since_ms: u64,
    /// Base URL of the leader's API; empty when no leader is known.
    pub leader_address: String,
    /// URL of the leader's cluster port; empty when no leader is known.
    pub leader_cluster_address: String,
    /// Highest committed index known here.
    pub committed_index: u64,
    /// Applied index of this node.
    pub applied_index: u64,
}

/// `PUT sys/init`. What must not be negative or missing was checked where it was parsed; which combinations
/// make sense is for the node to say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct InitRequest {
    /// How many shares to make.
    pub secret_shares: u64,
    /// How many of them open the vault.
    pub secret_threshold: u64,
    /// OpenPGP keys to encrypt the shares for, one each, in base64; none for shares as they are.
    pub pgp_keys: Vec<String>,
    /// OpenPGP key to encrypt the root token for; empty for the token as it is.
    pub root_token_pgp_key: String,
    /// Recovery shares, for seals that open by themselves.
    pub recovery_shares: u64,
    /// Recovery threshold.
    pub recovery_threshold: u64,
    /// Shares that open a vault whose seals are all gone; 0 for none.
    pub break_glass_shares: u64,
    /// How many of them open it.
    pub break_glass_threshold: u64,
    /// OpenPGP keys to encrypt the recovery shares for.
    pub recovery_pgp_keys: Vec<String>,
    /// OpenPGP keys to encrypt the break-glass shares for.
    pub break_glass_pgp_keys: Vec<String>,
}

/// What init hands out, once.
pub struct InitResponse {
    /// The shares are recovery shares.
    pub recovery: bool,
    /// The shares in hexadecimal; of shares that are encrypted, the messages.
    pub keys_hex: Vec<SecretString>,
    /// The same shares in base64.
    pub keys_base64: Vec<SecretString>,
    /// The break-glass shares in hexadecimal.
    pub break_glass_hex: Vec<SecretString>,
    /// The same in base64.
    pub break_glass_base64: Vec<SecretString>,
    /// The first token; base64 of a message where it is encrypted.
    pub root_token: SecretString,
}

/// `PUT sys/unseal`.
pub struct UnsealRequest {
    /// A share, in hexadecimal or base64.
    pub key: Option<SecretString>,
    /// Forget the shares given so far. Wins over `key`.
    pub reset: Option<ResetRequest>,
    /// Asks for a seal migration.
    pub migrate: bool,
    /// Asks for the other members, too, once the shares are complete.
    pub cluster: bool,
}

/// A backup that is to become the state again.
pub struct RestoreRequest {
    /// The archive.
    pub archive: PathBuf,
    /// It may be of another vault.
    pub force: bool,
    /// No token stays valid.
    pub revoke_tokens: bool,
    /// The root key of its time, where that is not the present one.
    pub root: Option<RootKey>,
}

/// Who wants the shares given so far to be forgotten.
pub struct ResetRequest {
    /// Names the series, if the client knows it.
    pub nonce: String,
    /// Address of the client.
    pub client_address: String,
    /// Only who names the series may.
    pub named_only: bool,
}

/// What is to become of a vault's break-glass shares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BreakGlassChange {
    /// Some are made.
    Enable,
    /// They are done away with, and the root key that they opened.
    Disable,
}

impl BreakGlassChange {
    /// As it stands in paths.
    pub fn name(self) -> &'static str {
        match self {
            Self::Enable => "enable",
            Self::Disable => "disable",
        }
    }
}

/// `sys/break-glass/<change>/init` and `update`.
pub enum BreakGlassRequest {
    /// How far it has come.
    Progress(BreakGlassChange),
    /// Begin it.
    Begin {
        /// Which.
        change: BreakGlassChange,
        /// Shares to be made.
        shares: u64,
        /// How many of them open the vault.
        threshold: u64,
    },
    /// Forget it.
    Cancel(BreakGlassChange),
    /// A recovery share of somebody who agrees.
    Update {
        /// To what.
        change: BreakGlassChange,
        /// The share.
        key: SecretString,
        /// The nonce that it began with.
        nonce: String,
    },
}

/// What a share was found to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShareFacts {
    /// `unseal`, `recovery` or `break-glass`.
    pub kind: &'static str,
    /// Its number among the shares that were made with it.
    pub number: u8,
    /// How many were made.
    pub shares: u8,
    /// How many are needed.
    pub threshold: u8,
    /// The generation of the root key in which they were made.
    pub generation: u32,
}

/// Which shares are replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RekeyTarget {
    /// Those that open the vault.
    Barrier,
    /// The recovery shares of a vault that its seals open.
    Recovery,
}

impl RekeyTarget {
    /// As Vault's texts call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Barrier => "barrier",
            Self::Recovery => "recovery",
        }
    }
}

/// `sys/rekey/*` and `sys/rekey-recovery-key/*`.
pub enum RekeyRequest {
    /// How far it has come.
    Status,
    /// Begin it.
    Begin {
        /// Shares to be made.
        shares: u64,
        /// How many of them are needed.
        threshold: u64,
        /// OpenPGP keys to encrypt them for, one each, in base64; none for shares as they are.
        pgp_keys: Vec<String>,
        /// Keep the encrypted shares.
        backup: bool,
        /// The new shares count when they have been entered, and not before.
        verify: bool,
    },
    /// Forget it.
    Cancel {
        /// The nonce that it began with, for who has no token.
        nonce: String,
    },
    /// A present share of somebody who agrees.
    Update {
        /// The share.
        key: SecretString,
        /// The nonce that it began with.
        nonce: String,
    },
    /// How far the verification has come.
    Verification,
    /// A new share of somebody who has got it.
    Verify {
        /// The share.
        key: SecretString,
        /// The nonce of the verification.
        nonce: String,
    },
    /// Forget the new shares that were entered, not those that were made.
    RestartVerification {
        /// The nonce of the verification, for who has no token.
        nonce: String,
    },
}

/// `sys/generate-root/*`.
pub enum GenerateRootRequest {
    /// How far it has come.
    Status,
    /// Begin it.
    Begin {
        /// The one-time password to encrypt the token with; empty to have one drawn, or for an OpenPGP key.
        otp: SecretString,
        /// The OpenPGP key to encrypt the token for, in base64; empty for a password.
        pgp_key: String,
    },
    /// Forget it.
    Cancel {
        /// The nonce that it began with, for who has no token.
        nonce: String,
    },
    /// A share of somebody who agrees.
    Update {
        /// The share.
        key: SecretString,
        /// The nonce that it began with.
        nonce: String,
    },
}

/// `POST sys/storage/raft/join`.
pub struct JoinRequest {
    /// Base URL of a member's API.
    pub leader_api_addr: String,
    /// PEM of the authorities that vouch for it.
    pub leader_ca_cert: String,
    /// PEM of a client certificate.
    pub leader_client_cert: String,
    /// PEM of its key.
    pub leader_client_key: SecretString,
    /// Name to expect in the member's certificate.
    pub leader_tls_servername: String,
    /// Go on trying in the background and answer at once.
    pub retry: bool,
    /// Join without a vote.
    pub non_voter: bool,
}

/// One member, as `sys/storage/raft/configuration` shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RaftServer {
    /// The operator's name of the place.
    pub node_id: String,
    /// Host and port of its cluster port.
    pub address: String,
    /// It leads, as this node sees it.
    pub leader: bool,
    /// It has a vote.
    pub voter: bool,
}

/// One member, as `sys/ha-status` shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HaNode {
    /// The operator's name of the place.
    pub name: String,
    /// Base URL of its API.
    pub api_address: String,
    /// URL of its cluster port.
    pub cluster_address: String,
    /// It leads.
    pub active: bool,
    /// Its release; empty of a member that has not been heard of.
    pub version: String,
    /// When it was last heard of, in milliseconds since the Unix epoch; `None` for the leader, and for a member
    /// that has not been heard of.
    pub last_echo_ms: Option<u64>,
}

/// `sys/key-status`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyStatus {
    /// The newest barrier term.
    pub term: u32,
    /// When it was installed, in milliseconds since the Unix epoch.
    pub installed_ms: u64,
    /// How much has been encrypted under it.
    pub encryptions: u64,
    /// How much has been encrypted under any key and is not noted in the keyring.
    pub uncounted: u64,
    /// When the first barrier term was installed, in milliseconds since the Unix epoch: when the vault was made.
    pub first_installed_ms: u64,
}

/// The node, as the request path sees it.
///
/// The synchronous methods answer from memory and never wait: health must be answered while everything else
/// hangs.
pub trait NodeOps: MemberOps {
    /// The open vault, or `None` while sealed.
    fn unsealed(&self) -> Option<Arc<Unsealed>>;
    /// Replication, or `None` while the node is neither initialised nor joined.
    fn replica(&self) -> Option<Arc<dyn Replicated>>;
    /// What `sys/seal-status` says.
    fn seal_status(&self) -> SealStatus;
    /// The seals of this node that open the vault by themselves.
    fn seal_backends(&self) -> Vec<SealBackend>;
    /// What `sys/health` is answered from.
    fn health(&self) -> HealthFacts;
    /// What `sys/leader` is answered from.
    fn leader_status(&self) -> LeaderStatus;
    /// The newest barrier key, or `None` while sealed.
    fn key_status(&self) -> Option<KeyStatus>;
    /// The members, as this node's applied configuration has them.
    fn raft_configuration(&self) -> Result<Vec<RaftServer>, ApiError>;
    /// The members with what was last heard of them.
    fn ha_nodes(&self) -> Result<Vec<HaNode>, ApiError>;
    /// The parts of this process's log and their levels.
    fn log_levels(&self) -> Vec<(String, String)>;
    /// Changes the level of one part of the log, or of all; without a level back to the configured one.
    ///
    /// # Errors
    /// A text for the client: the level or the part is unknown.
    fn set_log_level(&self, name: Option<&str>, level: Option<&str>) -> Result<(), String>;
    /// Every metric of this process in Prometheus' text format.
    fn metrics_text(&self) -> String;

    /// Initialises the vault on this node.
    fn init(&self, request: InitRequest) -> BoxFuture<'_, Result<InitResponse, ApiError>>;
    /// Takes one share, or forgets those given.
    fn unseal(&self, request: UnsealRequest) -> BoxFuture<'_, Result<SealStatus, ApiError>>;
    /// Opens members that a ceremony showed, all that are sealed or those that are named; the nonce is good once. The answer
    /// is how all stand then.
    fn unseal_members(
        &self,
        nonce: String,
        node_ids: Option<Vec<String>>,
    ) -> BoxFuture<'_, Result<Vec<CeremonyMember>, ApiError>>;
    /// Says what a share is, in hexadecimal or base64, and keeps nothing of it.
    fn verify_share(&self, key: &SecretString) -> Result<ShareFacts, ApiError>;
    /// Seals this node, after handing leadership over if it leads. The caller has been authorised, or the node
    /// is sealed already.
    fn seal(&self) -> BoxFuture<'_, Result<(), ApiError>>;
    /// How the wraps of the root key stand beside the present keys of this node's seals.
    fn seal_wraps(&self) -> BoxFuture<'_, Result<Vec<SealWrap>, ApiError>>;
    /// Wraps the root key anew where that is needed, on the leader; with `prune`, takes out the wraps by seals that no
    /// stanza names. The answer is how all stand then.
    fn sync_seals(&self, prune: bool) -> BoxFuture<'_, Result<Vec<SealWrap>, ApiError>>;
    /// `sys/storage/raft/bootstrap/claim`: another node is about to initialise, and this one says whether it may.
    fn raft_claim(&self, body: &Map<String, Value>) -> Result<Map<String, Value>, ApiError>;
    /// `sys/storage/raft/bootstrap/epoch`: another node says which cluster it belongs to, and this one answers the same.
    fn raft_epoch(&self, body: &Map<String, Value>) -> Result<Map<String, Value>, ApiError>;
    /// `sys/storage/raft/bootstrap/challenge`, on the leader; the answer is the envelope's `data`.
    fn raft_challenge(&self, body: Map<String, Value>)
    -> BoxFuture<'_, Result<Map<String, Value>, ApiError>>;
    /// `sys/storage/raft/bootstrap/answer`, on the leader; the answer is the envelope's `data`.
    fn raft_answer(&self, body: Map<String, Value>) -> BoxFuture<'_, Result<Map<String, Value>, ApiError>>;
    /// Joins this node to a cluster. True when it has joined (or was a member already), false when it goes on
    /// trying.
    fn raft_join(&self, request: JoinRequest) -> BoxFuture<'_, Result<bool, ApiError>>;
    /// `sys/break-glass`: the answer's data.
    ///
    /// # Errors
    /// When the seal configuration cannot be read.
    fn break_glass(&self) -> Result<Map<String, Value>, ApiError>;
    /// `sys/break-glass/enable/*` and `disable/*`, on the leader: the answer's data.
    fn change_break_glass(
        &self,
        request: BreakGlassRequest,
    ) -> BoxFuture<'_, Result<Map<String, Value>, ApiError>>;
    /// `sys/rekey/*` and `sys/rekey-recovery-key/*`, on the leader: the answer's document. Who is `trusted` has shown a
    /// token.
    fn rekey(
        &self,
        target: RekeyTarget,
        request: RekeyRequest,
        trusted: bool,
    ) -> BoxFuture<'_, Result<Map<String, Value>, ApiError>>;
    /// `sys/generate-root/*`, on the leader: the answer's document. Who is `trusted` has shown a token.
    fn generate_root(
        &self,
        request: GenerateRootRequest,
        trusted: bool,
    ) -> BoxFuture<'_, Result<Map<String, Value>, ApiError>>;
    /// Whether this node belongs to no vault, and takes a backup from anybody.
    fn awaits_backup(&self) -> bool;
    /// Restores a backup: on the leader at once, on a node without a vault when its shares are entered.
    ///
    /// # Errors
    /// 400 for a backup that cannot be used; 503 and 507 when nothing was changed; after 409 it may have been restored.
    fn restore_snapshot(&self, request: RestoreRequest) -> BoxFuture<'_, Result<(), ApiError>>;
    /// Makes a backup of the whole vault.
    fn save_snapshot(&self) -> BoxFuture<'_, Result<Download, ApiError>>;
    /// Whether scheduled snapshots may be put into a directory of this node.
    ///
    /// # Errors
    /// 400 when its configuration does not allow that, with the key that would.
    fn may_store(&self, directory: &Path) -> Result<(), ApiError>;
    /// Where long request bodies are put, and how many bytes there is room for.
    ///
    /// # Errors
    /// When the disk cannot be looked at, or is almost full.
    fn spool(&self) -> Result<(PathBuf, u64), ApiError>;
    /// Notes in the keyring how much has been encrypted under each key, on the leader.
    fn keep_counts(&self) -> BoxFuture<'_, Result<(), ApiError>>;
    /// Gives the barrier a key of the next term, on the leader.
    fn rotate(&self) -> BoxFuture<'_, Result<(), ApiError>>;
}
