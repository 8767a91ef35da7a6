//! The root key behind seals that open by themselves: wrapped by each of them, opened by any one.

use std::sync::Arc;

use super::auto::{AutoSeal, SealFault, SealedKek};
use super::config::{Access, SealConfig, SealConfigError, SealEntry, ShareSet};
use super::init::{BREAK_GLASS_SEAL, InitError, InitOutput, InitParams, shared};
use super::shamir::split;
use super::share::Share;
use super::wrap::{Wrap, WrapError};
use crate::barrier::{Aad, VaultId};
use crate::secret::{Kek, RootKey, random_array, stir};

const KEK_TAG: &str = "keystead/v1/sealed-kek";
const CANARY_TAG: &str = "keystead/v1/seal-canary";

/// Why a seal did not open the root key.
#[derive(Debug, thiserror::Error)]
pub enum UnattendedError {
    /// The seal itself.
    #[error(transparent)]
    Seal(#[from] SealFault),
    /// The KEK came out, and is not the one of this wrap.
    #[error("the seal's key does not fit the wrap of the root key: {0}")]
    Wrap(#[from] WrapError),
    /// The root key was found and does not bear out the configuration.
    #[error(transparent)]
    Config(#[from] SealConfigError),
}

impl SealEntry {
    /// Wraps `root` under a fresh KEK that `seal` encrypts.
    ///
    /// # Errors
    /// The seal's.
    pub async fn wrapped_by(
        seal: &dyn AutoSeal,
        vault_id: VaultId,
        root_generation: u32,
        root: &RootKey,
    ) -> Result<Self, SealFault> {
        draw_entropy(&[seal]).await;
        let kek = Kek::random();
        let wrap = Wrap::seal(vault_id, seal.name(), root_generation, &kek, root);
        let sealed = seal.encrypt(&kek, &fields(vault_id, &wrap)).await?;
        let access = Access::Sealed { kind: seal.kind(), kek: sealed };
        Ok(Self { name: seal.name().to_owned(), access, wrap })
    }
}

impl SealConfig {
    /// Opens the root key with the seal whose entry this is, and checks it and this configuration.
    ///
    /// # Errors
    /// [`UnattendedError`]; no part of the secrets is in it.
    pub async fn open_with(
        &self,
        seal: &dyn AutoSeal,
        (entry, sealed): (&SealEntry, &SealedKek),
    ) -> Result<RootKey, UnattendedError> {
        let kek = seal.decrypt(sealed, &fields(self.vault_id, &entry.wrap)).await?;
        let root = entry.wrap.open(self.vault_id, &kek)?;
        self.verify(&root)?;
        Ok(root)
    }

    /// The same vault, which break-glass shares open as well, and these. One that had any loses them.
    ///
    /// # Errors
    /// [`InitError`] when shares and threshold do not fit.
    pub fn with_break_glass(
        &self,
        params: &InitParams,
        root: &RootKey,
    ) -> Result<(Self, Vec<Share>), InitError> {
        let (vault_id, generation) = (self.vault_id, self.root_generation);
        let (entry, shares) = shared(BREAK_GLASS_SEAL, vault_id, generation, root, params)?;
        let mut seals = self.seals.clone();
        seals.retain(|other| other.name != entry.name);
        seals.push(entry);
        let config = Self::signed(vault_id, generation, seals, self.recovery.clone(), params.now_ms, root);
        Ok((config, shares))
    }
}

/// What an encrypted KEK belongs to: the fields of its wrap.
fn fields(vault_id: VaultId, wrap: &Wrap) -> Vec<u8> {
    Aad::new(KEK_TAG)
        .field(&vault_id.0)
        .field(wrap.seal_name.as_bytes())
        .u32(wrap.root_generation)
        .field(&wrap.wrap_id)
        .finish()
}

/// Mixes random bytes of every seal that has a generator into the keys that are drawn from now on. One that fails gives
/// none: the operating system's are enough alone.
pub(super) async fn draw_entropy(seals: &[&dyn AutoSeal]) {
    for seal in seals {
        match seal.random(32).await {
            Ok(Some(bytes)) => stir(&bytes),
            Ok(None) => {}
            Err(error) => tracing::warn!(seal = seal.name(), %error, "a seal gave no random bytes"),
        }
    }
}

/// Encrypts a KEK that is good for nothing with a seal's present key, and decrypts it. The keys drawn afterwards have
/// random bytes of the seal in them.
///
/// # Errors
/// The seal's.
pub async fn exercise(seal: &dyn AutoSeal) -> Result<SealedKek, SealFault> {
    let aad = Aad::new(CANARY_TAG).field(seal.name().as_bytes()).finish();
    let kek = Kek::random();
    let sealed = seal.encrypt(&kek, &aad).await?;
    let again = seal.decrypt(&sealed, &aad).await?;
    match again.ct_eq(&kek) {
        true => {
            draw_entropy(&[seal]).await;
            Ok(sealed)
        }
        false => Err(SealFault::Unavailable("what it encrypts comes out as something else".to_owned())),
    }
}

/// The entries of the seals that wrap `root`, after each was prepared, and those that do not, with the reason.
pub(super) async fn wrapped_by_all(
    seals: &[Arc<dyn AutoSeal>],
    vault_id: VaultId,
    root_generation: u32,
    root: &RootKey,
) -> (Vec<SealEntry>, Vec<(String, SealFault)>) {
    let (mut entries, mut missing) = (Vec::new(), Vec::new());
    for seal in seals {
        let wrapped = match seal.prepare().await {
            Ok(()) => SealEntry::wrapped_by(&**seal, vault_id, root_generation, root).await,
            Err(fault) => Err(fault),
        };
        match wrapped {
            Ok(entry) => entries.push(entry),
            Err(fault) => missing.push((seal.name().to_owned(), fault)),
        }
    }
    (entries, missing)
}

/// Recovery shares. They are of a key of their own, so that they can become those of a Shamir seal.
pub(super) fn recovery(
    vault_id: VaultId,
    generation: u32,
    params: &InitParams,
) -> Result<(ShareSet, Vec<Share>), InitError> {
    if params.threshold == 1 && params.shares > 1 {
        return Err(InitError::ThresholdOne);
    }
    let points = split(Kek::random().expose(), params.shares, params.threshold)?;
    let set = ShareSet::of(random_array(), vault_id, generation, &points, params.threshold);
    let shares = points.into_iter().map(|point| Share::new(vault_id, generation, point)).collect();
    Ok((set, shares))
}

/// A vault whose root key seals keep, and what became of those that could not.
pub struct UnattendedInit {
    /// The vault; its shares are the recovery shares.
    pub output: InitOutput,
    /// The break-glass shares; none if none were asked for.
    pub break_glass: Vec<Share>,
    /// Seals by which the root key is not wrapped yet, and why.
    pub missing: Vec<(String, SealFault)>,
}

/// Why no vault was made.
#[derive(Debug, thiserror::Error)]
pub enum UnattendedInitError {
    /// The numbers of the recovery shares do not fit.
    #[error(transparent)]
    Shares(#[from] InitError),
    /// No seal works.
    #[error("no seal can wrap the root key: {0}")]
    NoSeal(String),
}

/// Draws vault id and root key of a new vault, which `seals` wrap, recovery shares, and break-glass shares if asked for.
///
/// # Errors
/// [`UnattendedInitError`]. One seal that works is enough; the others can be added when they do.
pub async fn init_unattended(
    params: &InitParams,
    break_glass: Option<&InitParams>,
    seals: &[Arc<dyn AutoSeal>],
) -> Result<UnattendedInit, UnattendedInitError> {
    let (vault_id, generation) = (VaultId(random_array()), 1);
    let (recovery, shares) = recovery(vault_id, generation, params)?;
    let all: Vec<&dyn AutoSeal> = seals.iter().map(|seal| &**seal).collect();
    draw_entropy(&all).await;
    let root_key = RootKey::random();
    let (mut entries, missing) = wrapped_by_all(seals, vault_id, generation, &root_key).await;
    if entries.is_empty() {
        let faults = missing.iter().map(|(name, fault)| format!("{name}: {fault}"));
        return Err(UnattendedInitError::NoSeal(faults.collect::<Vec<_>>().join("; ")));
    }
    let mut for_the_worst = Vec::new();
    if let Some(params) = break_glass {
        let (entry, shares) = shared(BREAK_GLASS_SEAL, vault_id, generation, &root_key, params)?;
        entries.push(entry);
        for_the_worst = shares;
    }
    let seal_config =
        SealConfig::signed(vault_id, generation, entries, Some(recovery), params.now_ms, &root_key);
    let output = InitOutput { seal_config, root_key, shares };
    Ok(UnattendedInit { output, break_glass: for_the_worst, missing })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seal::{FileSeal, ShareRejection};

    const PARAMS: InitParams = InitParams { shares: 5, threshold: 3, now_ms: 1_700_000_000_000 };

    fn two() -> (tempfile::TempDir, Vec<Arc<dyn AutoSeal>>) {
        let dir = tempfile::tempdir().unwrap();
        let seal = |name: &str| Arc::new(FileSeal::new(name, &dir.path().join(name))) as Arc<dyn AutoSeal>;
        let seals = vec![seal("one"), seal("two")];
        (dir, seals)
    }

    #[tokio::test]
    async fn each_seal_opens_the_vault_and_its_entry_alone() {
        let (_dir, seals) = two();
        let made = init_unattended(&PARAMS, None, &seals).await.unwrap();
        assert!(made.missing.is_empty());
        let config = SealConfig::decode(&made.output.seal_config.encode()).unwrap();
        let entries: Vec<_> = config.unattended().collect();
        for (seal, entry) in seals.iter().zip(&entries) {
            assert!(config.open_with(&**seal, *entry).await.unwrap().ct_eq(&made.output.root_key));
        }
        let crossed = config.open_with(&*seals[0], entries[1]).await.err().unwrap();
        assert!(matches!(crossed, UnattendedError::Seal(SealFault::NotOurs(_))), "{crossed}");
    }

    #[tokio::test]
    async fn recovery_shares_open_nothing() {
        let (_dir, seals) = two();
        let made = init_unattended(&PARAMS, None, &seals).await.unwrap().output;
        assert_eq!(made.shares.len(), 5);
        for share in &made.shares {
            assert_eq!(made.seal_config.check_share(share), Err(ShareRejection::NoShamirSeal));
        }
        let points: Vec<_> = made.shares.into_iter().map(|share| share.point).collect();
        assert!(made.seal_config.unwrap_root(&points).is_err());
    }

    #[tokio::test]
    async fn break_glass_shares_open_what_the_seals_would_and_recovery_shares_are_told_from_them() {
        let (_dir, seals) = two();
        let three = InitParams { shares: 4, threshold: 2, now_ms: 0 };
        let made = init_unattended(&PARAMS, Some(&three), &seals).await.unwrap();
        let config = SealConfig::decode(&made.output.seal_config.encode()).unwrap();
        assert_eq!(made.break_glass.len(), 4);
        assert!(made.break_glass.iter().all(|share| config.check_share(share).is_ok()));
        for share in &made.output.shares {
            let x = share.point.x;
            assert_eq!(config.check_share(share), Err(ShareRejection::Recovery { x }));
        }
        let points = |shares: Vec<Share>| shares.into_iter().map(|share| share.point).collect::<Vec<_>>();
        assert!(config.unwrap_root(&points(made.output.shares)).is_err());
        let enough = &points(made.break_glass)[1..3];
        assert!(config.unwrap_root(enough).unwrap().ct_eq(&made.output.root_key));
    }

    #[tokio::test]
    async fn a_seal_that_does_not_work_is_left_out_and_named() {
        let (dir, mut seals) = two();
        seals.push(Arc::new(FileSeal::new("gone", &dir.path().join("no/such/directory"))));
        let made = init_unattended(&PARAMS, None, &seals).await.unwrap();
        assert_eq!(made.output.seal_config.unattended().count(), 2);
        assert_eq!(made.missing[0].0, "gone");
        let none = init_unattended(&PARAMS, None, &seals[2..]).await;
        assert!(matches!(none, Err(UnattendedInitError::NoSeal(text)) if text.contains("no/such/directory")));
    }

    #[tokio::test]
    async fn no_changed_byte_of_an_entry_is_borne_out() {
        let (_dir, seals) = two();
        let made = init_unattended(&PARAMS, None, &seals[..1]).await.unwrap().output;
        let bytes = made.seal_config.encode();
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            let Ok(config) = SealConfig::decode(&changed) else { continue };
            for entry in config.unattended() {
                assert!(config.open_with(&*seals[0], entry).await.is_err(), "byte {at}");
            }
        }
    }
}
