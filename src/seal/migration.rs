//! From shares to seals that open by themselves, and back: what was the one kind of shares becomes the other.
//!
//! Nobody is handed anything new. Unseal shares become recovery shares, and recovery shares, which are of a key of their
//! own, become unseal shares: the root key is wrapped under that key. The root key is a new one, for the shares opened
//! the old one, and there may be copies of its wraps.

use std::sync::Arc;

use super::auto::{AutoSeal, SealFault};
use super::config::SealConfig;
use super::rotation::NewRoot;
use super::shamir::{CombineError, SharePoint, combine};
use crate::secret::{Kek, on_wiped_stack};

/// The key that recovery shares are shares of.
///
/// # Errors
/// [`CombineError`] when they do not go together. Whether they are the right ones was checked one by one.
pub fn recovery_kek(points: &[SharePoint]) -> Result<Kek, CombineError> {
    on_wiped_stack(|| combine(points).map(|kek| Kek::from_bytes(&kek)))
}

impl SealConfig {
    /// The same vault under a new root key, opened by `seals`; what were its unseal shares are recovery shares.
    ///
    /// # Errors
    /// The fault of the last seal, when none works. One that does is enough.
    pub async fn moved_to_seals(
        &self,
        seals: &[Arc<dyn AutoSeal>],
        now_ms: u64,
    ) -> Result<NewRoot, SealFault> {
        let recovery = self.shamir().map(|(_, set)| set.clone());
        self.under_new_root(seals, recovery, now_ms).await
    }

    /// The same vault under a new root key, opened by what were its recovery shares, of which `kek` is the key; `None`
    /// if it has none.
    #[must_use]
    pub fn moved_to_shares(&self, kek: &Kek, now_ms: u64) -> Option<NewRoot> {
        Some(self.under_new_root_of(kek, self.recovery.clone()?, now_ms))
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
        let there = made.seal_config.moved_to_seals(std::slice::from_ref(&seal), 2).await.unwrap();
        assert!(!there.root.ct_eq(root) && there.config.verify(root).is_err());
        let (config, root) = (there.config, there.root);
        assert!(config.unwrap_root(&points(&made.shares[..3])).is_err());
        assert!(made.shares.iter().all(|share| config.check_recovery_share(share).is_ok()));
        let entry = config.unattended().next().unwrap();
        assert!(config.open_with(&*seal, entry).await.unwrap().ct_eq(&root));
        let kek = recovery_kek(&points(&made.shares[1..4])).unwrap();
        let back = config.moved_to_shares(&kek, 3).unwrap();
        assert!(!back.root.ct_eq(&root));
        let config = SealConfig::decode(&back.config.encode()).unwrap();
        assert!(config.unattended().next().is_none() && config.recovery.is_none());
        assert!(made.shares.iter().all(|share| config.check_share(share).is_ok()));
        assert!(config.unwrap_root(&points(&made.shares[2..])).unwrap().ct_eq(&back.root));
    }

    #[tokio::test]
    async fn without_a_seal_that_works_nothing_moves() {
        let made = init(&InitParams { shares: 1, threshold: 1, now_ms: 1 }).unwrap();
        assert!(made.seal_config.moved_to_seals(&[], 2).await.is_err());
        let gone: Arc<dyn AutoSeal> = Arc::new(FileSeal::new("gone", std::path::Path::new("/no/such/key")));
        assert!(made.seal_config.moved_to_seals(&[gone], 2).await.is_err());
        assert!(made.seal_config.moved_to_shares(&Kek::random(), 2).is_none());
    }
}
