//! The vault's own records outside every mount: where they are and what they hold.

use keystead_raft::Directory;
use keystead_storage::{RecordKey, SealedState, StorageError, Version};

use crate::{
    barrier::{Barrier, MountId},
    core::{error::ApiError, txn::kind},
    seal::{SealConfig, SealConfigError},
};

const SEAL_CONFIG: &str = "seal-config";
const KEYRING: &str = "keyring";
const CLUSTER: &str = "cluster";
const CLUSTER_FORMAT: u8 = 1;

fn clear(name: &str) -> RecordKey {
    RecordKey::clear(name).expect("the names of our own records are valid")
}

/// Where the seal configuration is: in the clear, under a MAC, for sealed nodes need it.
pub fn seal_config_key() -> RecordKey {
    clear(SEAL_CONFIG)
}

/// Where the keyring is: sealed under the root key.
pub fn keyring_key() -> RecordKey {
    clear(KEYRING)
}

/// Where seal configuration and keyring are.
#[must_use]
pub fn key_records() -> [RecordKey; 2] {
    [seal_config_key(), keyring_key()]
}

/// Where the cluster's name is.
pub fn cluster_key() -> RecordKey {
    clear(CLUSTER)
}

/// Where the directory is.
pub fn directory_key() -> RecordKey {
    Directory::key()
}

/// Where the cluster CA is: a sealed record.
pub fn cluster_ca_key(barrier: &Barrier) -> Result<RecordKey, ApiError> {
    let path = barrier
        .seal_path(MountId::VAULT, &["core", "cluster-ca"])
        .map_err(|e| ApiError::internal("path of the cluster CA", &e))?;
    RecordKey::parse(path).map_err(|e| ApiError::internal("path of the cluster CA", &e))
}

/// Seals the cluster CA: the length of its certificate, the certificate, then its private key, which is empty for a
/// CA of the operator's.
pub fn seal_cluster_ca(barrier: &Barrier, key: &RecordKey, cert_der: &[u8], key_der: &[u8]) -> Vec<u8> {
    let mut plain = zeroize::Zeroizing::new(Vec::with_capacity(cert_der.len() + key_der.len() + 4));
    plain.extend_from_slice(&(cert_der.len() as u32).to_be_bytes());
    plain.extend_from_slice(cert_der);
    plain.extend_from_slice(key_der);
    barrier.seal_value(kind::CLUSTER_CA, key.as_bytes(), &plain)
}

/// Who signs the certificates of a cluster's nodes.
pub enum ClusterAuthority {
    /// The built-in CA: whoever leads signs.
    BuiltIn(keystead_tls::ClusterCa),
    /// A CA of the operator's, its certificate in DER. Its key is not here.
    Own(Vec<u8>),
}

impl ClusterAuthority {
    /// The CA's certificate in DER.
    pub fn cert_der(&self) -> &[u8] {
        match self {
            Self::BuiltIn(ca) => ca.cert_der(),
            Self::Own(cert_der) => cert_der,
        }
    }
}

/// Opens the cluster CA.
pub fn open_cluster_ca(
    barrier: &Barrier,
    key: &RecordKey,
    sealed: &[u8],
) -> Result<ClusterAuthority, ApiError> {
    let plain = barrier
        .open_value(kind::CLUSTER_CA, key.as_bytes(), sealed)
        .map_err(|e| ApiError::internal("opening the cluster CA", &e))?;
    let (len, rest) =
        plain.split_first_chunk::<4>().ok_or_else(|| ApiError::internal("cluster CA record", &"short"))?;
    let len = u32::from_be_bytes(*len) as usize;
    if len > rest.len() {
        return Err(ApiError::internal("cluster CA record", &"short"));
    }
    let (cert, key) = rest.split_at(len);
    if key.is_empty() {
        return Ok(ClusterAuthority::Own(cert.to_vec()));
    }
    keystead_tls::ClusterCa::from_parts(cert, key)
        .map(ClusterAuthority::BuiltIn)
        .map_err(|e| ApiError::internal("cluster CA", &e))
}

/// The bytes of the cluster record: `format[1] name`.
pub fn encode_cluster(name: &str) -> Vec<u8> {
    let mut out = vec![CLUSTER_FORMAT];
    out.extend_from_slice(name.as_bytes());
    out
}

/// The cluster's name; empty until the record is there.
pub fn cluster_name(state: &dyn SealedState) -> String {
    match state.get(&cluster_key()) {
        Ok(Some(record)) => match record.value.split_first() {
            Some((&CLUSTER_FORMAT, name)) => String::from_utf8_lossy(name).into_owned(),
            _ => String::new(),
        },
        _ => String::new(),
    }
}

/// Why the seal configuration cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The disk.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// Its bytes.
    #[error(transparent)]
    Config(#[from] SealConfigError),
}

/// The seal configuration as this node has it; `None` until it is there.
pub fn seal_config(state: &dyn SealedState) -> Result<Option<SealConfig>, ReadError> {
    match state.get(&seal_config_key())? {
        None => Ok(None),
        Some(record) => Ok(Some(SealConfig::decode(&record.value)?)),
    }
}

/// What the root key is found by, and what it opens, of one moment.
pub struct SealedKeys {
    /// The seal configuration.
    pub config: SealConfig,
    /// The keyring.
    pub keyring: bytes::Bytes,
    /// The version of the keyring's record.
    pub keyring_version: Version,
}

/// Seal configuration and keyring as they go together; `None` until both are there.
pub fn sealed_keys(state: &dyn SealedState) -> Result<Option<SealedKeys>, ReadError> {
    loop {
        let Some(record) = state.get(&seal_config_key())? else { return Ok(None) };
        let Some((keyring_version, keyring)) = keyring(state)? else { return Ok(None) };
        // Between the two reads an entry may have changed both; that is rare enough for another round.
        if state.get(&seal_config_key())?.is_some_and(|again| again.version == record.version) {
            let config = SealConfig::decode(&record.value)?;
            return Ok(Some(SealedKeys { config, keyring, keyring_version }));
        }
    }
}

/// The sealed keyring as this node has it, with its version.
pub fn keyring(state: &dyn SealedState) -> Result<Option<(Version, bytes::Bytes)>, StorageError> {
    Ok(state.get(&keyring_key())?.map(|record| (record.version, record.value)))
}

/// The vault that a state belongs to, as a UUID in text; `None` before there is one.
///
/// # Errors
/// [`ReadError`] when the seal configuration cannot be read.
pub fn vault_id_of(state: &dyn SealedState) -> Result<Option<String>, ReadError> {
    Ok(seal_config(state)?.map(|config| super::uuid_text(&config.vault_id.0)))
}
