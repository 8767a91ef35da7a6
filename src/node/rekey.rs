//! New shares for a vault that is there: a threshold of the present ones agrees, and a new root key comes with them.
//!
//! Shares that nobody was shown must never be the only ones: while it is not known whether an entry was committed, the
//! answer says so and has the shares in it. What a leader takes with it that dies between the entry and its answer, only
//! `require_verification` guards against: then the entry is not proposed before the new shares have been entered.

use std::time::Duration;

use keystead_raft::{ProposeOutcome, Replicated as _};
use keystead_storage::{Txn, Version};
use serde_json::{Map, Value, json};

use super::{
    Node, OpenKeys,
    attempt::{Attempt, Authority},
    init::{hand_out, numbers},
    records,
};
use crate::{
    core::{
        error::ApiError,
        node_ops::{RekeyRequest, RekeyTarget},
        request::fresh_id,
        share_backup::ShareBackup,
    },
    seal::{HandedOut, InitParams, NewRoot, PgpKey, SealConfig, Share, holders},
    secret::SecretString,
};

/// How long is waited for word of an entry whose proposer lost the leadership.
const WORD: Duration = Duration::from_secs(20);
const AGAIN: Duration = Duration::from_millis(50);
const UNKNOWN: &str = "it is not known whether the new shares took effect: keep these and the former ones, until one of \
                       them has unsealed a node that was restarted";

/// New shares that are asked for.
pub struct Rekey {
    target: RekeyTarget,
    attempt: Attempt,
    params: InitParams,
    holders: Vec<PgpKey>,
    /// The messages with the new shares are kept, for who has a token.
    backup: bool,
    verify: bool,
    made: Option<Made>,
}

/// Shares that were handed out and have to be entered before they count.
struct Made {
    change: Change,
    /// Of the seal configuration that it takes the place of.
    version: Version,
    attempt: Attempt,
}

enum Change {
    Root(NewRoot),
    Recovery(SealConfig),
}

impl Change {
    fn config(&self) -> &SealConfig {
        match self {
            Self::Root(new) => &new.config,
            Self::Recovery(config) => config,
        }
    }
}

fn authority(target: RekeyTarget) -> Authority {
    match target {
        RekeyTarget::Barrier => Authority::Unseal,
        RekeyTarget::Recovery => Authority::Recovery,
    }
}

/// Whether the vault has shares of that kind.
fn check(target: RekeyTarget, config: &SealConfig) -> Result<(), ApiError> {
    match (target, Authority::of(config)) {
        (RekeyTarget::Barrier, Authority::Recovery) => Err(ApiError::invalid(
            "this vault is opened by its seals: its recovery shares are replaced by a rekey of the target recovery (sys/rekey-recovery-key), break-glass shares by sys/break-glass",
        )),
        (RekeyTarget::Recovery, Authority::Unseal) => {
            Err(ApiError::invalid("recovery rekeying not supported"))
        }
        _ => Ok(()),
    }
}

impl Node {
    /// Begins, cancels or goes on with making new shares. To be asked of the node that leads. Who is `trusted` has shown
    /// a token.
    pub(super) async fn change_shares(
        &self,
        target: RekeyTarget,
        request: RekeyRequest,
        trusted: bool,
    ) -> Result<Map<String, Value>, ApiError> {
        let replica = self.replica().ok_or(ApiError::Sealed)?;
        let keys = self.keys.read().clone().ok_or(ApiError::Sealed)?;
        let mut current = self.rekey.lock().await;
        let term = replica.leadership().borrow().term;
        let (config, version) = self.present_config(keys.root())?;
        // What is asked for under the other name must not end what is in progress under this one.
        if target == RekeyTarget::Recovery {
            check(target, &config)?;
        }
        // After a migration the vault has shares of the other kind.
        current.take_if(|rekey| rekey.attempt.term() != term || check(rekey.target, &config).is_err());
        if current.as_ref().is_some_and(|rekey| rekey.target != target) {
            return match request {
                RekeyRequest::Status => Ok(status(None, &config, target, trusted)),
                RekeyRequest::Cancel { .. } => Ok(Map::new()),
                _ => check(target, &config).map(|()| Map::new()),
            };
        }
        match request {
            RekeyRequest::Status => Ok(status(current.as_ref(), &config, target, trusted)),
            RekeyRequest::Begin { shares, threshold, pgp_keys, backup, verify } => {
                check(target, &config)?;
                if current.is_some() {
                    return Err(ApiError::invalid("rekey already in progress"));
                }
                let begun = begin(target, &config, term, (shares, threshold), &pgp_keys, (backup, verify))?;
                tracing::info!(target = target.name(), nonce = begun.attempt.nonce(), "a rekey begins");
                // Whoever begins it is told its name.
                Ok(status(Some(&*current.insert(begun)), &config, target, true))
            }
            RekeyRequest::Cancel { nonce } => {
                if let Some(rekey) = &*current {
                    let attempt = rekey.made.as_ref().map_or(&rekey.attempt, |made| &made.attempt);
                    rekey
                        .attempt
                        .may_cancel(&nonce, trusted)
                        .or_else(|_| attempt.may_cancel(&nonce, trusted))?;
                    tracing::info!(target = target.name(), "a rekey was cancelled");
                }
                *current = None;
                Ok(Map::new())
            }
            RekeyRequest::Update { key, nonce } => {
                let Some(mut rekey) = current.take() else {
                    return Err(ApiError::invalid(format!("no {} rekey in progress", target.name())));
                };
                let given = Given { key, nonce, trusted };
                let (result, done) = self.agree_to_rekey(&mut rekey, (&config, version), &given, &keys).await;
                *current = (!done).then_some(rekey);
                result
            }
            RekeyRequest::Verification => Ok(verification(made(&mut current)?, trusted)),
            RekeyRequest::RestartVerification { nonce } => {
                let rekey = made(&mut current)?;
                let Some(made) = &mut rekey.made else { return Err(not_verifying()) };
                made.attempt.may_cancel(&nonce, trusted)?;
                made.attempt.rename();
                Ok(verification(rekey, true))
            }
            RekeyRequest::Verify { key, nonce } => {
                made(&mut current)?;
                let Some(mut rekey) = current.take() else { return Err(not_verifying()) };
                let given = Given { key, nonce, trusted };
                let (result, done) = self.verify_shares(&mut rekey, &given).await;
                *current = (!done).then_some(rekey);
                result
            }
        }
    }

    /// Takes a present share, and makes the new ones when there are enough. Whether it is over, too.
    async fn agree_to_rekey(
        &self,
        rekey: &mut Rekey,
        (config, version): (&SealConfig, Version),
        given: &Given,
        keys: &OpenKeys,
    ) -> (Result<Map<String, Value>, ApiError>, bool) {
        if let Some(made) = &rekey.made {
            let nonce = made.attempt.nonce_for(given.trusted);
            return (
                Err(ApiError::invalid(format!(
                    "rekey operation already finished; verification must be performed; nonce for the verification operation is {nonce:?}"
                ))),
                false,
            );
        }
        match rekey.attempt.take(config, &given.key, &given.nonce, given.trusted) {
            Ok(false) => return (Ok(status(Some(rekey), config, rekey.target, true)), false),
            Ok(true) => {}
            Err(refused) => return (Err(refused), false),
        }
        let made = rekey.attempt.prove(config).and_then(|()| make(rekey, config, keys));
        rekey.attempt.restart();
        let (change, shares) = match made {
            Ok(made) => made,
            Err(error) => return (Err(error), false),
        };
        let (out, answer) = match completed(rekey, &shares) {
            Ok(done) => done,
            Err(error) => return (Err(error), false),
        };
        // Before they count: a backup that cannot be kept must not be found missing afterwards.
        if rekey.backup
            && let Err(error) = self.keep_backup(rekey, &out, keys).await
        {
            return (Err(error), false);
        }
        if !rekey.verify {
            let done = self.carry_out_rekey(rekey.target, change, version, rekey.attempt.term()).await;
            let over = done.is_ok();
            return (done.map(|warning| with_warning(answer, warning)), over);
        }
        let authority = authority(rekey.target);
        let Some(set) = authority.set(change.config()) else {
            return (Err(ApiError::internal("making shares", &"there are none")), false);
        };
        let attempt = Attempt::begin("rekey verification", authority, set, rekey.attempt.term());
        let mut answer = answer;
        answer.insert("verification_nonce".to_owned(), attempt.nonce().into());
        tracing::info!(target = rekey.target.name(), "new shares were handed out, which count when verified");
        rekey.made = Some(Made { change, version, attempt });
        (Ok(answer), false)
    }

    /// Keeps the messages with the new shares.
    async fn keep_backup(&self, rekey: &Rekey, out: &HandedOut, keys: &OpenKeys) -> Result<(), ApiError> {
        let replica = self.replica().ok_or(ApiError::Sealed)?;
        let texts = |all: &[SecretString], at: usize| {
            all.get(at).map(|text| text.expose().to_owned()).unwrap_or_default()
        };
        let shares = rekey.holders.iter().enumerate();
        let shares = shares
            .map(|(at, holder)| (holder.fingerprint(), texts(&out.hex, at), texts(&out.base64, at)))
            .collect();
        let backup = ShareBackup { nonce: rekey.attempt.nonce().to_owned(), shares };
        let txn = Txn {
            request_id: fresh_id(),
            writes: vec![backup.write(rekey.target, keys.barrier())?],
            ..Txn::default()
        };
        match replica.propose(txn).await {
            Ok(ProposeOutcome::Applied(_) | ProposeOutcome::Duplicate { .. }) => Ok(()),
            Ok(ProposeOutcome::Conflict { .. }) => {
                Err(ApiError::internal("keeping a backup of the new shares", &"it conflicted"))
            }
            Err(error) => Err(ApiError::internal("keeping a backup of the new shares", &error)),
        }
    }

    /// Takes a new share, and lets the new ones count when there are enough.
    async fn verify_shares(
        &self,
        rekey: &mut Rekey,
        given: &Given,
    ) -> (Result<Map<String, Value>, ApiError>, bool) {
        let Some(made) = &mut rekey.made else { return (Err(not_verifying()), false) };
        let (config, attempt) = (made.change.config(), &mut made.attempt);
        match attempt.take(config, &given.key, &given.nonce, given.trusted) {
            Ok(false) => return (Ok(verification(rekey, true)), false),
            Ok(true) => {}
            Err(refused) => return (Err(refused), false),
        }
        if let Err(error) = attempt.prove(config) {
            return (Err(error), false);
        }
        let Some(Made { change, version, attempt }) = rekey.made.take() else {
            return (Err(not_verifying()), false);
        };
        let answer = json!({ "nonce": attempt.nonce(), "complete": true });
        let answer = answer.as_object().cloned().unwrap_or_default();
        let done = self.carry_out_rekey(rekey.target, change, version, attempt.term()).await;
        (done.map(|warning| with_warning(answer, warning)), true)
    }

    /// Lets the new shares count. A warning when it is not known whether they do.
    async fn carry_out_rekey(
        &self,
        target: RekeyTarget,
        change: Change,
        version: Version,
        term: u64,
    ) -> Result<Option<&'static str>, ApiError> {
        let wanted = change.config().encode();
        let proposed = match change {
            Change::Root(new) => self.replace_root(new, version).await,
            Change::Recovery(config) => self.replace_config(&config, version).await,
        };
        let took_effect = match proposed {
            Ok(true) => Some(true),
            Ok(false) => {
                return Err(ApiError::Busy(
                    "the seal configuration or the keyring changed meanwhile, and the shares are the former ones; begin anew"
                        .to_owned(),
                ));
            }
            Err(error) => {
                tracing::warn!(error, "a rekey was interrupted; the cluster is asked what came of it");
                self.word_of(&wanted, term).await
            }
        };
        if took_effect == Some(false) {
            let text = "this node lost the leadership before the new shares took effect, and the former ones go on; begin anew";
            return Err(ApiError::Internal(text.to_owned()));
        }
        metrics::counter!("keystead_rekeys_total", "target" => target.name()).increment(1);
        tracing::info!(target = target.name(), known = took_effect.is_some(), "the shares were replaced");
        Ok(took_effect.is_none().then_some(UNKNOWN))
    }

    /// Whether the seal configuration that was proposed in a term is in effect. Once a leader of a later term has
    /// committed anything, what it does not know of will never be; until then nobody can say.
    async fn word_of(&self, wanted: &[u8], term: u64) -> Option<bool> {
        let deadline = tokio::time::Instant::now() + WORD;
        loop {
            let replica = self.replica()?;
            let barrier = replica.read_barrier().await;
            let found = records::seal_config(&*replica.state()).ok().flatten();
            if found.is_some_and(|config| config.encode() == wanted) {
                return Some(true);
            }
            if barrier.is_ok() && replica.leadership().borrow().term > term {
                return Some(false);
            }
            if tokio::time::Instant::now() >= deadline {
                return None;
            }
            tokio::time::sleep(AGAIN).await;
        }
    }
}

/// A share that came in, and from whom.
struct Given {
    key: SecretString,
    nonce: String,
    trusted: bool,
}

fn begin(
    target: RekeyTarget,
    config: &SealConfig,
    term: u64,
    (shares, threshold): (u64, u64),
    pgp_keys: &[String],
    (backup, verify): (bool, bool),
) -> Result<Rekey, ApiError> {
    if backup && pgp_keys.is_empty() {
        let text = "cannot request a backup of the new keys without providing PGP keys for encryption";
        return Err(ApiError::invalid(text));
    }
    let params = numbers(shares, threshold)?;
    if !pgp_keys.is_empty() && pgp_keys.len() as u64 != shares {
        return Err(ApiError::invalid("incorrect number of PGP keys for rekey"));
    }
    let holders = holders(pgp_keys, shares).map_err(ApiError::invalid)?;
    let authority = authority(target);
    let set = authority.set(config).ok_or_else(|| ApiError::invalid("this vault has no such shares"))?;
    let attempt = Attempt::begin("rekey", authority, set, term);
    Ok(Rekey { target, attempt, params, holders, backup, verify, made: None })
}

fn make(rekey: &Rekey, config: &SealConfig, keys: &OpenKeys) -> Result<(Change, Vec<Share>), ApiError> {
    let refused = |e: crate::seal::InitError| ApiError::invalid(e.to_string());
    Ok(match rekey.target {
        RekeyTarget::Barrier => {
            let (new, shares) = config.rekeyed(&rekey.params).map_err(refused)?;
            (Change::Root(new), shares)
        }
        RekeyTarget::Recovery => {
            let (config, shares) = config.with_recovery(&rekey.params, keys.root()).map_err(refused)?;
            (Change::Recovery(config), shares)
        }
    })
}

fn not_verifying() -> ApiError {
    ApiError::invalid("no rekey verification in progress")
}

/// The rekey whose new shares are to be verified.
fn made(current: &mut Option<Rekey>) -> Result<&mut Rekey, ApiError> {
    let rekey = current.as_mut().ok_or_else(|| ApiError::invalid("no rekey configuration found"))?;
    if rekey.made.is_some() { Ok(rekey) } else { Err(not_verifying()) }
}

fn fingerprints(rekey: &Rekey) -> Value {
    match rekey.holders.is_empty() {
        true => Value::Null,
        false => rekey.holders.iter().map(PgpKey::fingerprint).collect(),
    }
}

fn status(
    rekey: Option<&Rekey>,
    config: &SealConfig,
    target: RekeyTarget,
    trusted: bool,
) -> Map<String, Value> {
    let status = json!({
        "nonce": rekey.map(|rekey| rekey.attempt.nonce_for(trusted)).unwrap_or_default(),
        "started": rekey.is_some(),
        "t": rekey.map_or(0, |rekey| rekey.params.threshold),
        "n": rekey.map_or(0, |rekey| rekey.params.shares),
        "progress": rekey.map_or(0, |rekey| rekey.attempt.progress()),
        "required": authority(target).set(config).map_or(0, |set| set.threshold),
        "pgp_fingerprints": rekey.map_or(Value::Null, fingerprints),
        "backup": rekey.is_some_and(|rekey| rekey.backup),
        "verification_required": rekey.is_some_and(|rekey| rekey.verify),
    });
    let mut status = status.as_object().cloned().unwrap_or_default();
    if let Some(made) = rekey.and_then(|rekey| rekey.made.as_ref()) {
        status.insert("verification_nonce".to_owned(), made.attempt.nonce_for(trusted).into());
    }
    status
}

fn verification(rekey: &Rekey, trusted: bool) -> Map<String, Value> {
    let attempt = rekey.made.as_ref().map(|made| &made.attempt);
    let status = json!({
        "nonce": attempt.map(|attempt| attempt.nonce_for(trusted)).unwrap_or_default(),
        "started": attempt.is_some(),
        "t": rekey.params.threshold,
        "n": rekey.params.shares,
        "progress": attempt.map_or(0, Attempt::progress),
    });
    status.as_object().cloned().unwrap_or_default()
}

fn completed(rekey: &Rekey, shares: &[Share]) -> Result<(HandedOut, Map<String, Value>), ApiError> {
    let out = hand_out(shares, &rekey.holders)?;
    let texts = |all: &[SecretString]| all.iter().map(SecretString::expose).collect::<Value>();
    let answer = json!({
        "nonce": rekey.attempt.nonce(),
        "complete": true,
        "keys": texts(&out.hex),
        "keys_base64": texts(&out.base64),
        "pgp_fingerprints": fingerprints(rekey),
        "backup": rekey.backup,
        "verification_required": rekey.verify,
    });
    Ok((out, answer.as_object().cloned().unwrap_or_default()))
}

fn with_warning(mut answer: Map<String, Value>, warning: Option<&str>) -> Map<String, Value> {
    if let Some(warning) = warning {
        answer.insert("warnings".to_owned(), json!([warning]));
    }
    answer
}
