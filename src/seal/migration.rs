//! From shares to seals that open by themselves, and back: what was the one kind of shares becomes the other.
//!
//! Nobody is handed anything new. Unseal shares become recovery shares, and recovery shares, which are of a key of their
//! own, become unseal shares: the root key is wrapped under that key.

use std::sync::Arc;

use super::auto::{AutoSeal, SealFault};
use super::config::{Access, SealConfig, SealEntry};
use super::init::SHAMIR_SEAL;
use super::shamir::{CombineError, SharePoint, combine};
use super::wrap::Wrap;
use crate::secret::{Kek, RootKey, on_wiped_stack};

/// The key that recovery shares are shares of.
///
/// # Errors
/// [`CombineError`] when they do not go together. Whether they are the right ones was checked one by one.
pub fn recovery_kek(points: &[SharePoint]) -> Result<Kek, CombineError> {
    on_wiped_stack(|| combine(points).map(|kek| Kek::from_bytes(&kek)))
}

impl SealConfig {
    /// The same vault, opened by `seals`; what were its unseal shares are recovery shares.
    ///
    /// # Errors
    /// The fault of the last seal, when none works. One that does is enough.
    pub async fn moved_to_seals(
        &self,
        seals: &[Arc<dyn AutoSeal>],
        now_ms: u64,
        root: &RootKey,
    ) -> Result<Self, SealFault> {
        let (vault_id, generation) = (self.vault_id, self.root_generation);
        let mut entries = Vec::new();
        let mut failed = SealFault::NeedsOperator("no seal is configured".to_owned());
        for seal in seals {
            let wrapped = match seal.prepare().await {
                Ok(()) => SealEntry::wrapped_by(&**seal, vault_id, generation, root).await,
                Err(fault) => Err(fault),
            };
            match wrapped {
                Ok(entry) => entries.push(entry),
                Err(fault) => failed = fault,
            }
        }
        if entries.is_empty() {
            return Err(failed);
        }
        let recovery = self.shamir().map(|(_, set)| set.clone());
        Ok(Self::signed(vault_id, generation, entries, recovery, now_ms, root))
    }

    /// The same vault, opened by what were its recovery shares, of which `kek` is the key; `None` if it has none.
    #[must_use]
    pub fn moved_to_shares(&self, kek: &Kek, now_ms: u64, root: &RootKey) -> Option<Self> {
        let (vault_id, generation) = (self.vault_id, self.root_generation);
        let entry = SealEntry {
            name: SHAMIR_SEAL.to_owned(),
            access: Access::Shares(self.recovery.clone()?),
            wrap: Wrap::seal(vault_id, SHAMIR_SEAL, generation, kek, root),
        };
        Some(Self::signed(vault_id, generation, vec![entry], None, now_ms, root))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seal::{FileSeal, InitParams, Share, init};

    fn points(shares: &[Share]) -> Vec<SharePoint> {
        shares.iter().map(|share| SharePoint { x: share.point.x, y: share.point.y.duplicate() }).collect()
    }

    #[tokio::test]
    async fn there_and_back_the_same_shares_open_it() {
        let dir = tempfile::tempdir().unwrap();
        let seal: Arc<dyn AutoSeal> = Arc::new(FileSeal::new("file", &dir.path().join("key")));
        let made = init(&InitParams { shares: 5, threshold: 3, now_ms: 1 }).unwrap();
        let root = &made.root_key;
        let there = made.seal_config.moved_to_seals(std::slice::from_ref(&seal), 2, root).await.unwrap();
        assert!(there.unwrap_root(&points(&made.shares[..3])).is_err());
        assert!(made.shares.iter().all(|share| there.check_recovery_share(share).is_ok()));
        let entry = there.unattended().next().unwrap();
        assert!(there.open_with(&*seal, entry).await.unwrap().ct_eq(root));
        let kek = recovery_kek(&points(&made.shares[1..4])).unwrap();
        let back = SealConfig::decode(&there.moved_to_shares(&kek, 3, root).unwrap().encode()).unwrap();
        assert!(back.unattended().next().is_none() && back.recovery.is_none());
        assert!(back.unwrap_root(&points(&made.shares[2..])).unwrap().ct_eq(root));
    }

    #[tokio::test]
    async fn without_a_seal_that_works_nothing_moves() {
        let made = init(&InitParams { shares: 1, threshold: 1, now_ms: 1 }).unwrap();
        assert!(made.seal_config.moved_to_seals(&[], 2, &made.root_key).await.is_err());
        let gone: Arc<dyn AutoSeal> = Arc::new(FileSeal::new("gone", std::path::Path::new("/no/such/key")));
        assert!(made.seal_config.moved_to_seals(&[gone], 2, &made.root_key).await.is_err());
        assert!(made.seal_config.moved_to_shares(&Kek::random(), 2, &made.root_key).is_none());
    }
}
