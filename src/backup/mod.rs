//! Backups: a Raft snapshot in an archive, with what an open node says of it.
//!
//! The archive is what Vault's clients know: gzip around a tar of `meta.json`, `state.bin`, `SHA256SUMS` and
//! `SHA256SUMS.sealed`, in that order. `state.bin` is a snapshot as it goes between nodes, sealed bytes only. Checksums find
//! damage; who changes an archive on purpose computes them anew. So the last member is a MAC under a key that comes from the root
//! key: an open node of the same root key, or whoever holds shares of it, knows a forgery.
#![cfg_attr(test, allow(clippy::unwrap_used))] // in a test, a panic is the report

mod deep;
mod read;
mod seal;
mod write;

use serde::{Deserialize, Serialize};

pub use deep::{Contents, KeyRecords, check};
pub use read::{Backup, BackupError, read};
pub use seal::BackupSeal;
pub use write::write;

const META: &str = "meta.json";
const STATE: &str = "state.bin";
const SUMS: &str = "SHA256SUMS";
const SEALED_SUMS: &str = "SHA256SUMS.sealed";

/// The format of archives.
pub const FORMAT: u32 = 1;

/// `meta.json`: what Vault's says, and what is ours.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Meta {
    /// The format of Vault's document.
    pub version: u32,
    /// A name for it.
    #[serde(rename = "ID")]
    pub id: String,
    /// The newest entry that it holds.
    pub index: u64,
    /// That entry's term.
    pub term: u64,
    /// Always `null`.
    pub peers: Option<()>,
    /// Who was a member.
    pub configuration: Configuration,
    /// The entry that made them members.
    pub configuration_index: u64,
    /// Bytes of `state.bin`.
    pub size: u64,
    /// What is ours.
    pub keystead: About,
}

/// Members.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Configuration {
    /// One by one.
    pub servers: Vec<Server>,
}

/// A member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Server {
    /// 0 for a voter, 1 for another.
    pub suffrage: u32,
    /// Its node id.
    #[serde(rename = "ID")]
    pub id: String,
    /// `host:port` of its cluster port.
    pub address: String,
}

/// What Vault does not say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    /// The format of the archive.
    pub format: u32,
    /// Whose data they are, in hexadecimal digits.
    pub vault_id: String,
    /// The generation of the root key that opens it.
    pub root_generation: u32,
    /// The cluster that it was made by, as a UUID.
    pub cluster_id: String,
    /// The operator's name of that cluster.
    pub cluster_name: String,
    /// The node that made it.
    pub node_id: String,
    /// When, in milliseconds since the Unix epoch.
    pub created_ms: u64,
    /// The digest of the state, in hexadecimal digits.
    pub digest: String,
    /// Records, folders and remembered requests.
    pub rows: u64,
}

#[cfg(test)]
mod tests;
