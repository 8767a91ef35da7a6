//! A new root key for a vault that is there: everything that leads to the old one is made anew or left out.
//!
//! The old root key is in no part of what is made here, and the new one only in its wraps: whoever opens an old copy of
//! the seal configuration learns nothing of what comes after.

use std::sync::Arc;

use super::auto::{AutoSeal, SealFault};
use super::config::{Access, SealConfig, SealEntry, ShareSet};
use super::init::{InitError, InitParams, SHAMIR_SEAL, reseal};
use super::share::Share;
use super::unattended::{draw_entropy, recovery, wrapped_by_all};
use super::wrap::Wrap;
use crate::secret::{Kek, RootKey};

/// A new root key, and the configuration by which it is found.
pub struct NewRoot {
    /// Of the next root generation.
    pub config: SealConfig,
    /// The root key, which is nowhere else yet.
    pub root: RootKey,
    /// Seals by which it is not wrapped yet, and why.
    pub missing: Vec<(String, SealFault)>,
}

impl SealConfig {
    /// The same vault and recovery shares under a new root key, which `seals` open and nothing else does.
    ///
    /// # Errors
    /// The fault of the last seal, when none works. One that does is enough.
    pub async fn rotated(&self, seals: &[Arc<dyn AutoSeal>], now_ms: u64) -> Result<NewRoot, SealFault> {
        self.under_new_root(seals, self.recovery.clone(), now_ms).await
    }

    pub(super) async fn under_new_root(
        &self,
        seals: &[Arc<dyn AutoSeal>],
        recovery: Option<ShareSet>,
        now_ms: u64,
    ) -> Result<NewRoot, SealFault> {
        let (vault_id, generation) = (self.vault_id, self.next_generation());
        let all: Vec<&dyn AutoSeal> = seals.iter().map(|seal| &**seal).collect();
        draw_entropy(&all).await;
        let root = RootKey::random();
        let (entries, missing) = wrapped_by_all(seals, vault_id, generation, &root).await;
        if entries.is_empty() {
            let none = || SealFault::NeedsOperator("no seal is configured".to_owned());
            return Err(missing.into_iter().next_back().map_or_else(none, |(_, fault)| fault));
        }
        let config = Self::signed(vault_id, generation, entries, recovery, now_ms, &root);
        Ok(NewRoot { config, root, missing })
    }

    /// The same vault under a new root key, which the shares of `kek` open, that is `set`.
    pub(super) fn under_new_root_of(&self, kek: &Kek, set: ShareSet, now_ms: u64) -> NewRoot {
        let (vault_id, generation, root) = (self.vault_id, self.next_generation(), RootKey::random());
        let entry = SealEntry {
            name: SHAMIR_SEAL.to_owned(),
            access: Access::Shares(set),
            wrap: Wrap::seal(vault_id, SHAMIR_SEAL, generation, kek, &root),
        };
        let config = Self::signed(vault_id, generation, vec![entry], None, now_ms, &root);
        NewRoot { config, root, missing: Vec::new() }
    }

    /// The same vault under a new root key, which new shares open and nothing else does.
    ///
    /// # Errors
    /// [`InitError`] when shares and threshold do not fit.
    pub fn rekeyed(&self, params: &InitParams) -> Result<(NewRoot, Vec<Share>), InitError> {
        let root = RootKey::random();
        let (config, shares) = reseal(self.vault_id, self.next_generation(), &root, params)?;
        Ok((NewRoot { config, root, missing: Vec::new() }, shares))
    }

    /// The same vault and root key with new recovery shares, of a key of their own.
    ///
    /// # Errors
    /// [`InitError`] when shares and threshold do not fit.
    pub fn with_recovery(
        &self,
        params: &InitParams,
        root: &RootKey,
    ) -> Result<(Self, Vec<Share>), InitError> {
        let (vault_id, generation) = (self.vault_id, self.root_generation);
        let (set, shares) = recovery(vault_id, generation, params)?;
        let seals = self.seals.clone();
        Ok((Self::signed(vault_id, generation, seals, Some(set), params.now_ms, root), shares))
    }

    fn next_generation(&self) -> u32 {
        self.root_generation.checked_add(1).expect("nobody rotates four billion times")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seal::{FileSeal, ShareRejection, init, init_unattended};

    const PARAMS: InitParams = InitParams { shares: 3, threshold: 2, now_ms: 1 };

    fn seals(dir: &tempfile::TempDir) -> Vec<Arc<dyn AutoSeal>> {
        let seal = |name: &str| Arc::new(FileSeal::new(name, &dir.path().join(name))) as Arc<dyn AutoSeal>;
        vec![seal("one"), seal("two")]
    }

    #[tokio::test]
    async fn nothing_of_the_old_root_opens_the_new_one() {
        let dir = tempfile::tempdir().unwrap();
        let seals = seals(&dir);
        let made = init_unattended(&PARAMS, Some(&PARAMS), &seals).await.unwrap();
        let (old, old_root) = (made.output.seal_config, made.output.root_key);
        let new = old.rotated(&seals, 2).await.unwrap();
        let config = SealConfig::decode(&new.config.encode()).unwrap();
        assert_eq!((config.root_generation, config.verify(&new.root)), (2, Ok(())));
        assert!(!new.root.ct_eq(&old_root) && config.verify(&old_root).is_err());
        for (seal, entry) in seals.iter().zip(config.unattended()) {
            assert!(config.open_with(&**seal, entry).await.unwrap().ct_eq(&new.root));
        }
        // An old wrap put into the new configuration gives a root key that does not bear it out.
        for (seal, entry) in seals.iter().zip(old.unattended()) {
            assert!(config.open_with(&**seal, entry).await.is_err());
        }
        for share in &made.break_glass {
            let stale = ShareRejection::Stale { share_generation: 1, current: 2 };
            assert_eq!(config.check_share(share), Err(stale));
        }
        // Recovery shares go on; nobody was handed any.
        assert!(made.output.shares.iter().all(|share| config.check_recovery_share(share).is_ok()));
        assert_eq!(config.check_share(&made.output.shares[0]), Err(ShareRejection::NoShamirSeal));
    }

    #[test]
    fn new_shares_open_a_new_root_key_and_the_old_ones_are_stale() {
        let old = init(&PARAMS).unwrap();
        let (new, shares) =
            old.seal_config.rekeyed(&InitParams { shares: 5, threshold: 3, now_ms: 2 }).unwrap();
        let config = SealConfig::decode(&new.config.encode()).unwrap();
        assert!(!new.root.ct_eq(&old.root_key) && config.verify(&old.root_key).is_err());
        let stale = ShareRejection::Stale { share_generation: 1, current: 2 };
        assert_eq!(config.check_share(&old.shares[0]), Err(stale));
        assert!(shares.iter().all(|share| config.check_share(share).is_ok()));
        let points: Vec<_> = shares.into_iter().skip(2).map(|share| share.point).collect();
        assert!(config.unwrap_root(&points).unwrap().ct_eq(&new.root));
        assert!(config.rekeyed(&InitParams { shares: 3, threshold: 1, now_ms: 2 }).is_err());
    }

    #[tokio::test]
    async fn new_recovery_shares_take_the_place_of_the_old_ones_and_of_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let seals = seals(&dir);
        let made = init_unattended(&PARAMS, Some(&PARAMS), &seals).await.unwrap();
        let (old, root) = (made.output.seal_config, made.output.root_key);
        let (config, shares) = old.with_recovery(&PARAMS, &root).unwrap();
        let config = SealConfig::decode(&config.encode()).unwrap();
        assert!(shares.iter().all(|share| config.check_recovery_share(share).is_ok()));
        assert!(made.output.shares.iter().all(|share| config.check_recovery_share(share).is_err()));
        assert!(made.break_glass.iter().all(|share| config.check_share(share).is_ok()));
        assert_eq!(config.verify(&root), Ok(()));
    }

    #[tokio::test]
    async fn break_glass_shares_are_of_the_generation_in_which_they_were_made() {
        let dir = tempfile::tempdir().unwrap();
        let seals = seals(&dir);
        let made = init_unattended(&PARAMS, Some(&PARAMS), &seals).await.unwrap();
        let new = made.output.seal_config.rotated(&seals, 2).await.unwrap();
        let (config, shares) = new.config.with_break_glass(&PARAMS, &new.root).unwrap();
        let config = SealConfig::decode(&config.encode()).unwrap();
        let stale = ShareRejection::Stale { share_generation: 1, current: 2 };
        assert_eq!(config.check_share(&made.break_glass[0]), Err(stale));
        let x = made.output.shares[0].point.x;
        assert_eq!(config.check_share(&made.output.shares[0]), Err(ShareRejection::Recovery { x }));
        let points: Vec<_> = shares.into_iter().skip(1).map(|share: Share| share.point).collect();
        assert!(config.unwrap_root(&points).unwrap().ct_eq(&new.root));
    }

    #[tokio::test]
    async fn a_seal_that_does_not_answer_is_missing_and_without_any_there_is_no_new_root() {
        let dir = tempfile::tempdir().unwrap();
        let mut seals = seals(&dir);
        let made = init_unattended(&PARAMS, None, &seals).await.unwrap().output;
        seals[1] = Arc::new(FileSeal::new("two", &dir.path().join("no/such/directory")));
        let new = made.seal_config.rotated(&seals, 2).await.unwrap();
        assert_eq!(new.missing[0].0, "two");
        assert_eq!(new.config.unattended().map(|(entry, _)| entry.name.clone()).collect::<Vec<_>>(), ["one"]);
        assert!(made.seal_config.rotated(&seals[1..], 2).await.is_err());
        assert!(made.seal_config.rotated(&[], 2).await.is_err());
    }
}
