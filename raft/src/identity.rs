//! Who this node is: the file `identity` of the data directory.
//!
//! `format[1]`, then a bincode record; mode 0600, for it holds the private key of the cluster port. The key
//! gives a replication channel, nothing more: it opens no vault and sees no request.

use std::path::{Path, PathBuf};

use keystead_storage::{StorageError, datadir::write_file_durably};
use keystead_tls::NodeKey;
use zeroize::{Zeroize, Zeroizing};

use crate::codec::{self, DecodeError};

const FORMAT: u8 = 1;

/// Least `max_entry_size`, in bytes: init's own entry must fit.
pub const MIN_ENTRY_SIZE: u64 = 64 << 10;
/// Greatest `max_entry_size`, in bytes: an entry and its envelope must fit into a replication frame.
pub const MAX_ENTRY_SIZE: u64 = 2 << 20;
const _: () = assert!(MAX_ENTRY_SIZE as usize * 2 <= crate::frame::REPLICATION_LIMIT);

/// Timing and limits that all nodes of a cluster share. Set at init from the first node's file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct ClusterParams {
    /// Interval of heartbeats, in milliseconds.
    pub heartbeat_ms: u64,
    /// Least election timeout, in milliseconds.
    pub election_min_ms: u64,
    /// Greatest election timeout, which is the leader's lease too, in milliseconds.
    pub election_max_ms: u64,
    /// Largest log entry, in bytes.
    pub max_entry_size: u64,
}

impl ClusterParams {
    /// The defaults, with election timeouts multiplied by Vault's `performance_multiplier` (0 is 1).
    pub fn scaled(performance_multiplier: u64, max_entry_size: u64) -> Self {
        let factor = performance_multiplier.clamp(1, 10);
        let max_entry_size = max_entry_size.clamp(MIN_ENTRY_SIZE, MAX_ENTRY_SIZE);
        Self {
            heartbeat_ms: 75 * factor,
            election_min_ms: 250 * factor,
            election_max_ms: 400 * factor,
            max_entry_size,
        }
    }
}

/// The identity of one incarnation of a node, once it belongs to a cluster.
#[derive(bincode::Encode, bincode::Decode)]
pub struct Identity {
    /// The set of nodes it belongs to.
    pub cluster_id: [u8; 16],
    /// The epoch it last knew.
    pub epoch: u64,
    /// The operator's name of the place.
    pub node_id: String,
    /// The Raft id: fresh and random for each incarnation of the data.
    pub incarnation: u64,
    /// Private key of the cluster port, PKCS#8 PEM.
    key_pem: String,
    /// Certificate of the cluster port, DER.
    pub cert_der: Vec<u8>,
    /// Certificate of the cluster's CA, DER.
    pub ca_cert_der: Vec<u8>,
    /// The cluster's parameters.
    pub params: ClusterParams,
}

impl Drop for Identity {
    fn drop(&mut self) {
        self.key_pem.zeroize();
    }
}

/// Why an identity cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The file cannot be read or written.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The file cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is damaged.
    #[error(
        "{path} is damaged ({source}): rebuild this node from its peers: stop it, move its data directory away and start it again so that it joins anew"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: DecodeError,
    },
}

impl Identity {
    /// A node's identity from its parts.
    #[allow(clippy::too_many_arguments)]
    pub fn new(
        cluster_id: [u8; 16],
        epoch: u64,
        node_id: String,
        incarnation: u64,
        key: &NodeKey,
        cert_der: Vec<u8>,
        ca_cert_der: Vec<u8>,
        params: ClusterParams,
    ) -> Self {
        let key_pem = key.to_pkcs8_pem().to_string();
        Self { cluster_id, epoch, node_id, incarnation, key_pem, cert_der, ca_cert_der, params }
    }

    /// The private key.
    pub fn key(&self) -> Result<NodeKey, keystead_tls::Error> {
        NodeKey::from_pkcs8_pem(&self.key_pem)
    }

    fn path(data_dir: &Path) -> PathBuf {
        data_dir.join("identity")
    }

    /// Reads the identity; `None` when this node belongs to no cluster yet.
    ///
    /// # Errors
    /// [`IdentityError::Damaged`] when the file is there and cannot be understood.
    pub fn load(data_dir: &Path) -> Result<Option<Self>, IdentityError> {
        let path = Self::path(data_dir);
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => Zeroizing::new(bytes),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(IdentityError::Read { path, source }),
        };
        let damaged = |source| IdentityError::Damaged { path: path.clone(), source };
        match bytes.split_first() {
            None => Err(damaged(DecodeError::Short)),
            Some((&FORMAT, body)) => codec::decode(body).map(Some).map_err(damaged),
            Some((&other, _)) => Err(damaged(DecodeError::Unknown("identity format", u64::from(other)))),
        }
    }

    /// Writes the identity durably: it is wholly there or wholly absent.
    pub fn save(&self, data_dir: &Path) -> Result<(), IdentityError> {
        let mut bytes = Zeroizing::new(vec![FORMAT]);
        bytes.extend_from_slice(&codec::encode(self));
        Ok(write_file_durably(&Self::path(data_dir), &bytes, 0o600)?)
    }
}

/// A fresh incarnation. Zero is left out: it means nobody.
pub fn fresh_incarnation() -> u64 {
    loop {
        let mut bytes = [0; 8];
        getrandom::fill(&mut bytes).expect("the operating system's generator works");
        match u64::from_be_bytes(bytes) {
            0 => continue,
            id => return id,
        }
    }
}
