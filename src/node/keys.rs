//! What an open node holds in memory: the root key and everything derived from it.

use std::sync::Arc;

use crate::{
    backup::BackupSeal,
    barrier::{
        Backup, Barrier, Directory, Join, Keyring, KeyringError, LogTag, LogTagError, Mac, Peer, VaultId,
        derive, derive_lasting,
    },
    core::{
        node_ops::Unsealed,
        token::{TokenCache, TokenKey},
    },
    seal::SealConfig,
    secret::{DerivedKey, RootKey},
};

/// The keys of an open node. Dropping the last reference wipes them.
pub struct OpenKeys {
    vault_id: VaultId,
    root_generation: u32,
    root: RootKey,
    join: DerivedKey<Join>,
    peer: DerivedKey<Peer>,
    directory: DerivedKey<Directory>,
    unsealed: Arc<Unsealed>,
}

impl OpenKeys {
    /// Derives everything from the root key and the keyring it opens.
    pub fn new(config: &SealConfig, root: RootKey, keyring: Keyring, cluster: &ClusterName) -> Self {
        Self::of(config.vault_id, config.root_generation, root, keyring, cluster)
    }

    fn of(
        vault_id: VaultId,
        generation: u32,
        root: RootKey,
        keyring: Keyring,
        cluster: &ClusterName,
    ) -> Self {
        let lasting = keyring.lasting_key();
        let token_key = TokenKey::new(&derive_lasting(lasting, vault_id));
        let directory = derive_lasting(lasting, vault_id);
        let unsealed = Unsealed {
            barrier: Arc::new(Barrier::new(vault_id, keyring)),
            vault_id,
            cluster_id: cluster.id.clone(),
            cluster_name: cluster.name.clone(),
            token_key,
            tokens: TokenCache::default(),
        };
        Self {
            vault_id,
            root_generation: generation,
            join: derive(&root, vault_id, generation),
            peer: derive(&root, vault_id, generation),
            directory,
            root,
            unsealed: Arc::new(unsealed),
        }
    }

    /// What requests see.
    pub fn unsealed(&self) -> &Arc<Unsealed> {
        &self.unsealed
    }

    /// The barrier.
    pub fn barrier(&self) -> &Barrier {
        &self.unsealed.barrier
    }

    /// The root key itself, for wrapping it.
    pub fn root(&self) -> &RootKey {
        &self.root
    }

    /// The root key's generation.
    pub fn root_generation(&self) -> u32 {
        self.root_generation
    }

    /// The keyring that is in the record.
    ///
    /// # Errors
    /// [`KeyringError`] when the record is not one that this root key sealed.
    pub fn open_keyring(&self, sealed: &[u8]) -> Result<Keyring, KeyringError> {
        Keyring::open(sealed, &self.root, self.vault_id, self.root_generation)
    }

    /// The same node with the keyring as it stands now.
    ///
    /// # Errors
    /// [`KeyringError`] when the record is not one that this root key sealed.
    pub fn with_keyring(&self, sealed: &[u8]) -> Result<Self, KeyringError> {
        let keyring = self.open_keyring(sealed)?;
        let root = self.root.duplicate();
        Ok(Self::of(self.vault_id, self.root_generation, root, keyring, &self.cluster()))
    }

    /// The same node under the root key of another generation.
    ///
    /// # Errors
    /// [`KeyringError`] when the record is not one that this root key sealed.
    pub fn with_root(&self, config: &SealConfig, root: RootKey, sealed: &[u8]) -> Result<Self, KeyringError> {
        let keyring = Keyring::open(sealed, &root, self.vault_id, config.root_generation)?;
        Ok(Self::new(config, root, keyring, &self.cluster()))
    }

    fn cluster(&self) -> ClusterName {
        let old = &self.unsealed;
        ClusterName { id: old.cluster_id.clone(), name: old.cluster_name.clone() }
    }

    /// The tag of a log entry.
    pub fn log_tag(&self, signed: &[u8]) -> LogTag {
        self.barrier().log_tag(&[signed])
    }

    /// Judges a log entry's tag.
    pub fn verify_log_tag(&self, signed: &[u8], tag: &LogTag) -> Result<(), LogTagError> {
        self.barrier().verify_log_tag(&[signed], tag)
    }

    /// HMAC under `K_peer` over length-prefixed parts.
    pub fn peer_mac(&self, parts: &[&[u8]]) -> [u8; 32] {
        mac(self.peer.expose(), "keystead/v1/peer", parts)
    }

    /// HMAC under `K_directory`.
    pub fn directory_mac(&self, bytes: &[u8]) -> [u8; 32] {
        mac(self.directory.expose(), "keystead/v1/directory", &[bytes])
    }

    /// What an open node says of a backup that it made.
    pub fn backup_seal(&self, sums: &[u8]) -> BackupSeal {
        let key = derive::<Backup>(&self.root, self.vault_id, self.root_generation);
        BackupSeal::new(&key, self.vault_id, self.root_generation, sums)
    }

    /// The MAC of a claim about clusters of this vault, by a key that outlasts a rekey: who was away for one must still
    /// be able to judge it.
    pub fn claim_mac(&self, message: &str, parts: &[&[u8]]) -> Mac {
        parts.iter().fold(Mac::new(self.directory.expose(), message), |mac, part| mac.field(part))
    }

    /// The MAC of one message of the joining protocol, to be finished or verified by the caller.
    pub fn join_mac(&self, message: &str, parts: &[&[u8]]) -> Mac {
        parts.iter().fold(Mac::new(self.join.expose(), message), |mac, part| mac.field(part))
    }
}

fn mac(key: &[u8], tag: &str, parts: &[&[u8]]) -> [u8; 32] {
    parts.iter().fold(Mac::new(key, tag), |mac, part| mac.field(part)).finish()
}

/// What a cluster is called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterName {
    /// The cluster id as a UUID in text.
    pub id: String,
    /// The operator's name of it.
    pub name: String,
}
