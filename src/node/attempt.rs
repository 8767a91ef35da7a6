//! What the holders of shares are asked to agree to: its nonce, and who has agreed so far.
//!
//! It is in memory only, on the node that leads, and gone with the leadership.

use keystead_storage::Version;

use super::{Node, shares};
use crate::{
    core::error::ApiError,
    seal::{SealConfig, Share, SharePoint, ShareSet},
    secret::{RootKey, SecretString},
};

/// Whose agreement is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Authority {
    /// The holders of the shares that open the vault.
    Unseal,
    /// The holders of the recovery shares of a vault that its seals open.
    Recovery,
}

impl Authority {
    /// Who has the say in a vault.
    pub fn of(config: &SealConfig) -> Self {
        match config.unattended().next() {
            None => Self::Unseal,
            Some(_) => Self::Recovery,
        }
    }

    /// The shares that count; none of a vault that has none of that kind.
    pub fn set(self, config: &SealConfig) -> Option<&ShareSet> {
        match self {
            Self::Unseal => config.shamir().map(|(_, set)| set),
            Self::Recovery => config.recovery.as_ref(),
        }
    }
}

/// One request for agreement.
pub struct Attempt {
    /// As errors call it.
    what: &'static str,
    nonce: String,
    /// The Raft term in which this node led when it began.
    term: u64,
    authority: Authority,
    /// Tells the shares that count from those that were replaced.
    verifier_salt: [u8; 32],
    /// Numbers of the shares that were given.
    given: Vec<u8>,
    /// Unseal shares that were given, which have to open the root key. Recovery shares are counted and not kept, for they
    /// are shares of nothing that anything here needs.
    points: Vec<SharePoint>,
}

impl Attempt {
    /// Begins to ask the holders of `set`, which is the authority's in the present configuration.
    pub fn begin(what: &'static str, authority: Authority, set: &ShareSet, term: u64) -> Self {
        Self {
            what,
            nonce: shares::uuid(),
            term,
            authority,
            verifier_salt: set.verifier_salt,
            given: Vec::new(),
            points: Vec::new(),
        }
    }

    /// Names the attempt.
    pub fn nonce(&self) -> &str {
        &self.nonce
    }

    /// The nonce for those who may know it, and nothing for the others.
    pub fn nonce_for(&self, trusted: bool) -> &str {
        if trusted { &self.nonce } else { "" }
    }

    /// The Raft term in which it began.
    pub fn term(&self) -> u64 {
        self.term
    }

    /// Shares given so far.
    pub fn progress(&self) -> usize {
        self.given.len()
    }

    /// Forgets the shares that were given.
    pub fn restart(&mut self) {
        self.given.clear();
        self.points.clear();
    }

    /// Forgets the shares that were given, and who knew the nonce.
    pub fn rename(&mut self) {
        self.restart();
        self.nonce = shares::uuid();
    }

    /// Whether somebody may cancel it: who has a token, or the nonce. An outsider must not undo what key holders have
    /// agreed to so far.
    ///
    /// # Errors
    /// 400 for the outsider.
    pub fn may_cancel(&self, nonce: &str, trusted: bool) -> Result<(), ApiError> {
        match trusted || nonce == self.nonce {
            true => Ok(()),
            false => Err(ApiError::invalid(format!(
                "this {} operation is cancelled by who has its nonce, or a token: send one of them",
                self.what
            ))),
        }
    }

    /// Takes a share. Whether there are enough.
    ///
    /// # Errors
    /// 400 with what is wrong with nonce or share; it counts for nothing then.
    pub fn take(
        &mut self,
        config: &SealConfig,
        key: &SecretString,
        nonce: &str,
        trusted: bool,
    ) -> Result<bool, ApiError> {
        if nonce != self.nonce {
            let what = self.what;
            return Err(ApiError::invalid(match trusted {
                true => {
                    format!("incorrect nonce supplied; nonce for this {what} operation is {:?}", self.nonce)
                }
                false => format!("incorrect nonce supplied; whoever began this {what} operation was told it"),
            }));
        }
        let set = self.authority.set(config).filter(|set| set.verifier_salt == self.verifier_salt);
        let set = set.ok_or_else(|| {
            ApiError::invalid("the shares were replaced since this began; cancel it and begin anew")
        })?;
        let share = Share::parse(key.expose()).map_err(|e| ApiError::invalid(shares::text_error(&e)))?;
        self.check(config, &share).inspect_err(|_| {
            metrics::counter!("keystead_seal_shares_refused").increment(1);
        })?;
        if self.given.contains(&share.point.x) {
            let text = "given key has already been provided during this generation operation";
            return Err(ApiError::invalid(text));
        }
        self.given.push(share.point.x);
        if self.authority == Authority::Unseal {
            self.points.push(share.point);
        }
        Ok(self.given.len() >= usize::from(set.threshold))
    }

    fn check(&self, config: &SealConfig, share: &Share) -> Result<(), ApiError> {
        match self.authority {
            Authority::Unseal => {
                config.check_share(share).map_err(|rejection| ApiError::invalid(rejection.to_string()))
            }
            Authority::Recovery => config.check_recovery_share(share).map_err(|rejection| {
                ApiError::invalid(match config.check_share(share) {
                    Ok(()) => {
                        "this is a break-glass share, and it is for the holders of recovery shares to agree"
                            .to_owned()
                    }
                    Err(_) => format!("this takes recovery shares: {rejection}"),
                })
            }),
        }
    }

    /// Makes sure that the shares are what they were taken for: unseal shares have to open the root key.
    ///
    /// # Errors
    /// 400 when they do not; they are forgotten then.
    pub fn prove(&mut self, config: &SealConfig) -> Result<(), ApiError> {
        if self.authority == Authority::Recovery {
            return Ok(());
        }
        let opened = config.unwrap_root(&self.points).map(drop);
        opened.map_err(|error| {
            self.restart();
            ApiError::invalid(format!("{} aborted: {error}; enter the shares again", self.what))
        })
    }
}

impl Node {
    /// The seal configuration and its version, checked with the root key.
    pub(super) fn present_config(&self, root: &RootKey) -> Result<(SealConfig, Version), ApiError> {
        let found = self.signed_config(root);
        found.map_err(|e| ApiError::internal("reading the seal configuration", &e))?.ok_or(ApiError::Sealed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seal::{InitOutput, InitParams, init};

    fn made() -> InitOutput {
        init(&InitParams { shares: 3, threshold: 2, now_ms: 1 }).unwrap()
    }

    fn attempt(config: &SealConfig) -> Attempt {
        let authority = Authority::of(config);
        Attempt::begin("rekey", authority, authority.set(config).unwrap(), 7)
    }

    #[test]
    fn a_threshold_of_different_shares_is_enough_and_is_proven() {
        let made = made();
        let mut attempt = attempt(&made.seal_config);
        let nonce = attempt.nonce().to_owned();
        let mut take = |share: &Share| attempt.take(&made.seal_config, &share.to_hex(), &nonce, true);
        assert_eq!(take(&made.shares[2]), Ok(false));
        assert!(take(&made.shares[2]).unwrap_err().to_string().contains("already been provided"));
        assert_eq!(take(&made.shares[0]), Ok(true));
        assert_eq!((attempt.progress(), attempt.prove(&made.seal_config)), (2, Ok(())));
        attempt.restart();
        assert!(attempt.prove(&made.seal_config).is_err(), "nothing was given");
    }

    #[test]
    fn a_wrong_nonce_or_share_counts_for_nothing_and_the_nonce_is_told_to_who_may_cancel() {
        let (made, other) = (made(), made());
        let mut attempt = attempt(&made.seal_config);
        let nonce = attempt.nonce().to_owned();
        let key = made.shares[0].to_hex();
        let refused = |result: Result<bool, ApiError>| result.unwrap_err().to_string();
        assert!(refused(attempt.take(&made.seal_config, &key, "x", true)).contains(&nonce));
        assert!(!refused(attempt.take(&made.seal_config, &key, "x", false)).contains(&nonce));
        let foreign = other.shares[0].to_hex();
        assert!(refused(attempt.take(&made.seal_config, &foreign, &nonce, true)).contains("another vault"));
        assert!(refused(attempt.take(&other.seal_config, &key, &nonce, true)).contains("were replaced"));
        assert_eq!((attempt.progress(), attempt.nonce_for(false)), (0, ""));
        assert!(attempt.may_cancel("x", false).is_err());
        assert!(attempt.may_cancel(&nonce, false).is_ok() && attempt.may_cancel("", true).is_ok());
        attempt.rename();
        assert_ne!(attempt.nonce(), nonce);
    }
}
