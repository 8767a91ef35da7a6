//! `sys/verify-share`: a custodian finds out whether the share in his safe is still good, without opening anything.
//!
//! A sealed node says as much of a share that is entered to unseal it. The answer comes from the verifiers of the seal
//! configuration, so no other share is needed, the series that others are entering stays as it is, and the share is
//! forgotten at once.

use super::{Node, shares};
use crate::{
    core::{error::ApiError, node_ops::ShareFacts},
    seal::{BREAK_GLASS_SEAL, SealConfig, Share, ShareRejection, ShareSet},
    secret::SecretString,
};

impl Node {
    /// What a share is.
    ///
    /// # Errors
    /// 400: it is no share of this vault, or of a set that was replaced.
    pub(super) fn share_facts(&self, key: &SecretString) -> Result<ShareFacts, ApiError> {
        let configs = self.seal_configs()?;
        let share = Share::parse(key.expose()).map_err(|e| ApiError::invalid(shares::text_error(&e)))?;
        let mut rejected = None;
        for config in &configs {
            match judged(config, &share) {
                Ok((kind, set)) => {
                    metrics::counter!("keystead_seal_shares_verified").increment(1);
                    let (shares, threshold, generation) = (set.shares, set.threshold, set.generation);
                    return Ok(ShareFacts { kind, number: share.point.x, shares, threshold, generation });
                }
                Err(rejection) => {
                    rejected.get_or_insert(rejection);
                }
            }
        }
        metrics::counter!("keystead_seal_shares_refused").increment(1);
        let text = rejected.map_or_else(|| "Vault is not initialized".to_owned(), |why| why.to_string());
        Err(ApiError::invalid(text))
    }
}

fn judged<'c>(config: &'c SealConfig, share: &Share) -> Result<(&'static str, &'c ShareSet), ShareRejection> {
    if let Some(set) = config.recovery.as_ref().filter(|_| config.check_recovery_share(share).is_ok()) {
        return Ok(("recovery", set));
    }
    config.check_share(share)?;
    let (entry, set) = config.shamir().ok_or(ShareRejection::NoShamirSeal)?;
    Ok((if entry.name == BREAK_GLASS_SEAL { "break-glass" } else { "unseal" }, set))
}
