//! Who this node is: the file `identity` of the data directory.
//!
//! `format[1]`, a bincode record, CRC32 of both; mode 0600, for it holds the private key of the cluster port. The key
//! gives a replication channel, nothing more: it opens no vault and sees no request.

use std::path::{Path, PathBuf};

use keystead_storage::{
    StorageError,
    datadir::{write_file_durably, written},
    error::REBUILD,
};
use keystead_tls::NodeKey;
use zeroize::{Zeroize, Zeroizing};

use crate::codec::{self, DecodeError};

const FORMAT: u8 = 3;
const CRC_BYTES: usize = 4;

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
    /// The CA is a stand-in whose key is gone: a recovery made it, and it lasts until an open leader has made the
    /// cluster's own.
    pub stand_in_ca: bool,
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
    #[error("{path} is damaged ({source}); {REBUILD}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: DecodeError,
    },
    /// The data of a member are there, the file is not.
    #[error("{path} is missing, but {data} is there; {REBUILD}")]
    Missing {
        /// The file.
        path: PathBuf,
        /// What shows that there was one.
        data: PathBuf,
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
        Self {
            cluster_id,
            epoch,
            node_id,
            incarnation,
            key_pem,
            cert_der,
            ca_cert_der,
            params,
            stand_in_ca: false,
        }
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
    /// [`IdentityError::Damaged`] when the file is there and cannot be understood, [`IdentityError::Missing`] when
    /// it is not there, but what only a member has is.
    pub fn load(data_dir: &Path) -> Result<Option<Self>, IdentityError> {
        let path = Self::path(data_dir);
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => Zeroizing::new(bytes),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return never_had(data_dir, path),
            Err(source) => return Err(IdentityError::Read { path, source }),
        };
        let identity = unframed(&bytes, FORMAT, "identity format");
        identity.map(Some).map_err(|source| IdentityError::Damaged { path, source })
    }

    /// Writes the identity durably: it is wholly there or wholly absent.
    pub fn save(&self, data_dir: &Path) -> Result<(), IdentityError> {
        Ok(write_file_durably(&Self::path(data_dir), &framed(self, FORMAT), 0o600)?)
    }
}

/// A file's bytes: `format[1]`, the record, CRC32 of both. Wiped when dropped.
pub(crate) fn framed(record: &impl bincode::Encode, format: u8) -> Zeroizing<Vec<u8>> {
    let body = codec::encode(record);
    let mut bytes = Zeroizing::new(Vec::with_capacity(1 + body.len() + CRC_BYTES));
    bytes.push(format);
    bytes.extend_from_slice(&body);
    let crc = crc32fast::hash(&bytes);
    bytes.extend_from_slice(&crc.to_be_bytes());
    bytes
}

/// Reads what [`framed`] wrote.
pub(crate) fn unframed<T: bincode::Decode<()>>(
    bytes: &[u8],
    format: u8,
    what: &'static str,
) -> Result<T, DecodeError> {
    let (body, crc) = bytes.split_last_chunk::<CRC_BYTES>().ok_or(DecodeError::Short)?;
    if crc32fast::hash(body) != u32::from_be_bytes(*crc) {
        return Err(DecodeError::Invalid("checksum"));
    }
    match body.split_first() {
        None => Err(DecodeError::Short),
        Some((&found, body)) if found == format => codec::decode(body),
        Some((&other, _)) => Err(DecodeError::Unknown(what, u64::from(other))),
    }
}

/// Without an identity a node joins anew, and it must not bring along what another incarnation had promised.
fn never_had(data_dir: &Path, path: PathBuf) -> Result<Option<Identity>, IdentityError> {
    match written(data_dir) {
        None => Ok(None),
        Some(data) => Err(IdentityError::Missing { path, data }),
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

#[cfg(test)]
mod tests {
    use super::*;

    fn identity() -> Identity {
        let key = NodeKey::generate().expect("the generator works");
        let params = ClusterParams::scaled(1, 1 << 20);
        Identity::new([7; 16], 1, "n1".into(), 9, &key, vec![1; 400], vec![2; 400], params)
    }

    #[test]
    fn flipped_bits_and_cuts_are_damage_with_a_remedy() {
        let dir = tempfile::tempdir().expect("tempdir");
        identity().save(dir.path()).expect("saved");
        let path = dir.path().join("identity");
        assert_eq!(Identity::load(dir.path()).expect("whole").expect("there").incarnation, 9);
        let good = std::fs::read(&path).expect("read");
        let flipped = (0..good.len() * 8).step_by(13).map(|bit| {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            bad
        });
        let cut = (0..good.len()).step_by(17).map(|length| good[..length].to_vec());
        for bad in flipped.chain(cut) {
            std::fs::write(&path, bad).expect("write");
            let error = Identity::load(dir.path()).err().expect("damaged").to_string();
            assert!(error.contains("identity is damaged") && error.contains("raft rebuild"), "{error}");
        }
    }

    #[test]
    fn a_lost_identity_is_not_taken_for_a_node_that_never_joined() {
        let dir = tempfile::tempdir().expect("tempdir");
        assert!(Identity::load(dir.path()).expect("new").is_none());
        std::fs::create_dir(dir.path().join("log")).expect("make");
        std::fs::write(dir.path().join("log/00000000000000000001.log"), "x").expect("write");
        let error = Identity::load(dir.path()).err().expect("lost").to_string();
        assert!(error.contains("identity is missing") && error.contains("raft rebuild"), "{error}");
    }
}
