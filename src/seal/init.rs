//! Making the root key of a new vault, or of a new generation, and handing out its shares.

use super::config::{Access, SealConfig, SealEntry, ShareSet};
use super::shamir::{SplitError, split};
use super::share::Share;
use super::wrap::Wrap;
use crate::barrier::VaultId;
use crate::secret::{Kek, RootKey, random_array};

/// Name of the seal that shares open.
pub const SHAMIR_SEAL: &str = "shamir";

/// Name of the seal whose shares open a vault when every seal that opens by itself is gone.
pub const BREAK_GLASS_SEAL: &str = "break-glass";

/// What the operator decides at init.
#[derive(Clone, Copy, Debug)]
pub struct InitParams {
    /// Shares to be made.
    pub shares: u8,
    /// Shares that open the vault.
    pub threshold: u8,
    /// The time, in milliseconds since the Unix epoch.
    pub now_ms: u64,
}

/// A new vault. The shares and the root key exist nowhere else.
pub struct InitOutput {
    /// For every node, in the clear.
    pub seal_config: SealConfig,
    /// For the memory of unsealed nodes.
    pub root_key: RootKey,
    /// For the key holders, one each.
    pub shares: Vec<Share>,
}

/// Why a vault cannot be sealed so. The texts are Vault's, without its "invalid seal configuration: ".
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum InitError {
    /// The numbers do not fit each other.
    #[error(transparent)]
    Split(#[from] SplitError),
    /// Each of several shares would be the key itself.
    #[error("threshold must be greater than one for multiple shares")]
    ThresholdOne,
}

/// Draws vault id and root key of a new vault and seals it.
///
/// # Errors
/// [`InitError`] when shares and threshold do not fit.
pub fn init(params: &InitParams) -> Result<InitOutput, InitError> {
    let root_key = RootKey::random();
    let (seal_config, shares) = reseal(VaultId(random_array()), 1, &root_key, params)?;
    Ok(InitOutput { seal_config, root_key, shares })
}

/// Wraps `root` as that of `root_generation` under a fresh KEK and splits this into new shares.
///
/// # Errors
/// [`InitError`] when shares and threshold do not fit.
pub fn reseal(
    vault_id: VaultId,
    root_generation: u32,
    root: &RootKey,
    params: &InitParams,
) -> Result<(SealConfig, Vec<Share>), InitError> {
    let (seal, shares) = shared(SHAMIR_SEAL, vault_id, root_generation, root, params)?;
    let config = SealConfig::signed(vault_id, root_generation, vec![seal], None, params.now_ms, root);
    Ok((config, shares))
}

/// Wraps `root` under a fresh KEK that is split into shares, for the seal of that name.
pub(super) fn shared(
    name: &str,
    vault_id: VaultId,
    root_generation: u32,
    root: &RootKey,
    params: &InitParams,
) -> Result<(SealEntry, Vec<Share>), InitError> {
    if params.threshold == 1 && params.shares > 1 {
        return Err(InitError::ThresholdOne);
    }
    let kek = Kek::random();
    let points = split(kek.expose(), params.shares, params.threshold)?;
    let set = ShareSet::of(random_array(), vault_id, root_generation, &points, params.threshold);
    let wrap = Wrap::seal(vault_id, name, root_generation, &kek, root);
    let seal = SealEntry { name: name.to_owned(), access: Access::Shares(set), wrap };
    let shares = points.into_iter().map(|point| Share::new(vault_id, root_generation, point)).collect();
    Ok((seal, shares))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn params(shares: u8, threshold: u8) -> InitParams {
        InitParams { shares, threshold, now_ms: 1_700_000_000_000 }
    }

    #[test]
    fn the_shares_open_what_was_made() {
        for (shares, threshold) in [(1, 1), (2, 2), (5, 3), (255, 2)] {
            let made = init(&params(shares, threshold)).unwrap();
            assert_eq!(made.shares.len(), usize::from(shares));
            assert!(made.shares.iter().all(|share| made.seal_config.check_share(share).is_ok()));
            let points: Vec<_> =
                made.shares.into_iter().rev().take(threshold.into()).map(|share| share.point).collect();
            assert!(made.seal_config.unwrap_root(&points).unwrap().ct_eq(&made.root_key));
        }
    }

    #[test]
    fn no_two_vaults_have_anything_in_common() {
        let (one, two) = (init(&params(1, 1)).unwrap(), init(&params(1, 1)).unwrap());
        assert_ne!(one.seal_config.vault_id, two.seal_config.vault_id);
        assert!(!one.root_key.ct_eq(&two.root_key));
        assert!(!one.shares[0].point.y.ct_eq(&two.shares[0].point.y));
        let salt = |made: &InitOutput| made.seal_config.shamir().map(|(_, set)| set.verifier_salt);
        assert_ne!(salt(&one), salt(&two));
    }

    #[test]
    fn the_only_share_is_not_the_root_key() {
        let made = init(&params(1, 1)).unwrap();
        assert_ne!(made.shares[0].point.y.expose(), made.root_key.expose());
    }

    #[test]
    fn numbers_that_do_not_fit_are_refused_in_the_words_of_vault() {
        let refused = |shares, threshold| init(&params(shares, threshold)).err().unwrap().to_string();
        assert_eq!(refused(0, 0), "shares must be at least one");
        assert_eq!(refused(0, 1), "shares must be at least one");
        assert_eq!(refused(3, 0), "threshold must be at least one");
        assert_eq!(refused(3, 4), "threshold cannot be larger than shares");
        assert_eq!(refused(3, 1), "threshold must be greater than one for multiple shares");
    }
}
