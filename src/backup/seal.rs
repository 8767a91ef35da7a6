//! `SHA256SUMS.sealed`: what an open node says of the checksums.
//!
//! `format[1] vault id[16] root generation[4] mac[32]`, integers big-endian. The MAC is over a type tag, format, vault id,
//! generation and the text of `SHA256SUMS`.

use subtle::ConstantTimeEq as _;

use crate::{
    barrier::{Backup, Mac, VaultId},
    secret::DerivedKey,
};

const FORMAT: u8 = 1;
const LEN: usize = 1 + 16 + 4 + 32;

/// The last member of an archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BackupSeal {
    /// Whose data they are.
    pub vault_id: VaultId,
    /// The generation of the root key whose holders can judge it.
    pub root_generation: u32,
    mac: [u8; 32],
}

impl BackupSeal {
    /// Seals checksums.
    #[must_use]
    pub fn new(key: &DerivedKey<Backup>, vault_id: VaultId, root_generation: u32, sums: &[u8]) -> Self {
        let mac = mac(key, vault_id, root_generation, sums);
        Self { vault_id, root_generation, mac }
    }

    /// Whether it was made with that key over these checksums. Constant time.
    #[must_use]
    pub fn is_of(&self, key: &DerivedKey<Backup>, sums: &[u8]) -> bool {
        mac(key, self.vault_id, self.root_generation, sums).ct_eq(&self.mac).into()
    }

    /// Its bytes.
    #[must_use]
    pub fn to_bytes(self) -> Vec<u8> {
        let mut out = Vec::with_capacity(LEN);
        out.push(FORMAT);
        out.extend_from_slice(&self.vault_id.0);
        out.extend_from_slice(&self.root_generation.to_be_bytes());
        out.extend_from_slice(&self.mac);
        out
    }

    /// Reads them; `None` for any others.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (&FORMAT, rest) = bytes.split_first()? else { return None };
        let (vault_id, rest) = rest.split_first_chunk::<16>()?;
        let (generation, mac) = rest.split_first_chunk::<4>()?;
        let root_generation = u32::from_be_bytes(*generation);
        Some(Self { vault_id: VaultId(*vault_id), root_generation, mac: mac.try_into().ok()? })
    }
}

fn mac(key: &DerivedKey<Backup>, vault_id: VaultId, root_generation: u32, sums: &[u8]) -> [u8; 32] {
    Mac::new(key.expose(), "keystead/v1/backup")
        .u8(FORMAT)
        .field(&vault_id.0)
        .u32(root_generation)
        .field(sums)
        .finish()
}
