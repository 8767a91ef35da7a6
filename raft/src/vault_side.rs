//! What replication asks of the vault above it: signatures, verdicts, answers. It never sees a key.

use bytes::Bytes;
use keystead_storage::RecordKey;

use crate::replicated::BoxFuture;

/// What an open node says of an entry's tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The tag is right.
    Good,
    /// The tag is wrong: somebody forged the entry or damaged it.
    Bad,
    /// This node is sealed and cannot judge.
    Sealed,
}

/// Who sent a forwarded request, as its certificate and hello say.
#[derive(Debug, Clone)]
pub struct Peer {
    /// The Raft id: one incarnation of one node's data.
    pub incarnation: u64,
    /// The operator's name of the place.
    pub node_id: String,
}

/// The vault, as replication sees it.
///
/// All methods but [`serve`](Self::serve) and [`unseal`](Self::unseal) are called on hot paths and must not block.
pub trait VaultSide: Send + Sync + 'static {
    /// Whether this node is unsealed.
    fn is_open(&self) -> bool;
    /// The newest term of `K_log`; `None` while sealed.
    fn log_key_term(&self) -> Option<u32>;
    /// The tag of a log entry under `K_log` of `key_term`; `None` while sealed.
    fn sign_entry(&self, key_term: u32, signed: &[u8]) -> Option<[u8; 32]>;
    /// Judges a log entry's tag.
    fn verify_entry(&self, key_term: u32, signed: &[u8], tag: &[u8; 32]) -> Verdict;
    /// HMAC under `K_peer` over length-prefixed parts: the proof that opens a channel; `None` while sealed.
    fn peer_mac(&self, parts: &[&[u8]]) -> Option<[u8; 32]>;
    /// HMAC under `K_directory`; `None` while sealed.
    fn directory_mac(&self, bytes: &[u8]) -> Option<[u8; 32]>;
    /// These records have changed. Called before the applied index is published.
    fn applied(&self, changed: &[RecordKey]);
    /// All records may have changed: a snapshot was installed. Called before the applied index is published.
    fn replaced(&self);
    /// Answers a request that a peer forwarded over an open channel.
    fn serve(&self, peer: Peer, request: Bytes) -> BoxFuture<'_, Bytes>;
    /// Takes what the vault of a peer hands over, on a channel on which it proved that it holds the root key.
    ///
    /// # Errors
    /// A text for the peer.
    fn take_over(&self, peer: Peer, body: &[u8]) -> Result<(), String>;
    /// Takes what opens this node from the vault of a member, whose certificate is all that is known of it.
    ///
    /// # Errors
    /// A text for the peer.
    fn unseal(&self, peer: Peer, body: Bytes) -> BoxFuture<'_, Result<(), String>>;
    /// Replication has stopped for good on this node and says why.
    fn latched(&self, reason: &str);
}
