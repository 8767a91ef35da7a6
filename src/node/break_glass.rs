//! Break-glass shares for a vault that is there: made later, or done away with.
//!
//! Both take a threshold of recovery shares, on the node that leads: a token alone must neither make another way into the
//! vault nor take the last one away. The shares are counted and not put together, for they are shares of nothing that
//! this needs. What was given so far is in memory only, and gone with the leadership.

use keystead_raft::Replicated as _;
use serde_json::{Map, Value, json};

use super::{
    Node, Seals,
    attempt::{Attempt, Authority},
    init::numbers,
};
use crate::{
    core::{
        error::ApiError,
        node_ops::{BreakGlassChange, BreakGlassRequest},
    },
    seal::{BREAK_GLASS_SEAL, InitParams, SealConfig, Share, ShareSet},
    secret::{RootKey, SecretString},
};

/// How often a change is tried again because another one came between.
const ATTEMPTS: usize = 8;

/// A change that key holders are asked to agree to.
pub struct Operation {
    change: BreakGlassChange,
    attempt: Attempt,
    /// The shares that are to be made.
    params: Option<InitParams>,
}

/// The break-glass shares of a vault that its seals open.
fn break_glass(config: &SealConfig) -> Option<&ShareSet> {
    let by_itself = config.unattended().next().is_some();
    config.shamir().filter(|(entry, _)| by_itself && entry.name == BREAK_GLASS_SEAL).map(|(_, set)| set)
}

/// Shows whether there are break-glass shares as a metric.
pub fn gauge(config: &SealConfig) {
    metrics::gauge!("keystead_break_glass_enabled").set(f64::from(break_glass(config).is_some()));
}

/// Whether the vault is one to which the change can be made.
fn check(change: BreakGlassChange, config: &SealConfig) -> Result<(), ApiError> {
    let refused = |text: &str| Err(ApiError::invalid(text));
    match (change, break_glass(config).is_some()) {
        _ if config.unattended().next().is_none() => refused(
            "this vault is opened by shares as it is: break-glass shares are for one that its seals open",
        ),
        (BreakGlassChange::Enable, true) => refused(
            "there are break-glass shares already; disable them first, which makes a new root key, and then enable new ones",
        ),
        (BreakGlassChange::Disable, false) => refused("there are no break-glass shares"),
        _ => Ok(()),
    }
}

impl Node {
    /// What `sys/break-glass` says.
    pub(super) fn break_glass_facts(&self) -> Result<Map<String, Value>, ApiError> {
        let config = self.seal_configs()?.pop().ok_or(ApiError::Sealed)?;
        let set = break_glass(&config);
        let seals: Vec<_> = config.unattended().map(|(entry, _)| entry.name.as_str()).collect();
        let facts = json!({
            "enabled": set.is_some(),
            "n": set.map_or(0, |set| set.shares),
            "t": set.map_or(0, |set| set.threshold),
            "generation": set.map_or(0, |set| set.generation),
            "root_generation": config.root_generation,
            "seals": seals,
            "warning": Seals::only_way(&config).unwrap_or_default(),
        });
        Ok(facts.as_object().cloned().unwrap_or_default())
    }

    /// Begins, cancels or goes on with a change. To be asked of the node that leads.
    pub(super) async fn change_break_glass(
        &self,
        request: BreakGlassRequest,
    ) -> Result<Map<String, Value>, ApiError> {
        let replica = self.replica().ok_or(ApiError::Sealed)?;
        let keys = self.keys.read().clone().ok_or(ApiError::Sealed)?;
        let mut operation = self.break_glass.lock().await;
        let term = replica.leadership().borrow().term;
        operation.take_if(|operation| operation.attempt.term() != term);
        let (config, _) = self.present_config(keys.root())?;
        let recovery = config.recovery.as_ref();
        match request {
            BreakGlassRequest::Progress(change) => {
                let own = operation.as_ref().filter(|operation| operation.change == change);
                Ok(progress(own, recovery))
            }
            BreakGlassRequest::Cancel(change) => {
                if operation.take_if(|operation| operation.change == change).is_some() {
                    tracing::info!(
                        change = change.name(),
                        "a change of the break-glass shares was cancelled"
                    );
                }
                Ok(progress(None, recovery))
            }
            BreakGlassRequest::Begin { change, shares, threshold } => {
                if let Some(operation) = &*operation {
                    return Err(ApiError::invalid(format!(
                        "a change of the break-glass shares is in progress already: go on with its nonce, or cancel it (DELETE sys/break-glass/{}/init)",
                        operation.change.name()
                    )));
                }
                check(change, &config)?;
                let recovery = recovery.ok_or_else(|| {
                    ApiError::invalid("this vault has no recovery shares, whose holders would have to agree")
                })?;
                let params = match change {
                    BreakGlassChange::Enable => Some(numbers(shares, threshold)?),
                    BreakGlassChange::Disable => None,
                };
                let attempt = Attempt::begin("break-glass", Authority::Recovery, recovery, term);
                let begun = Operation { change, attempt, params };
                tracing::info!(
                    change = change.name(),
                    nonce = begun.attempt.nonce(),
                    "a change of the break-glass shares begins"
                );
                Ok(progress(Some(&*operation.insert(begun)), Some(recovery)))
            }
            BreakGlassRequest::Update { change, key, nonce } => {
                let mut begun =
                    operation.take_if(|operation| operation.change == change).ok_or_else(|| {
                        ApiError::invalid("no such change of the break-glass shares is in progress")
                    })?;
                let result = match begun.attempt.take(&config, &key, &nonce, true) {
                    Ok(false) => Ok(progress(Some(&begun), recovery)),
                    Ok(true) => {
                        let done = self.carry_out_break_glass(&begun, keys.root()).await;
                        if done.is_ok() {
                            return done;
                        }
                        // It can be tried again with the same nonce, once the reason has gone.
                        begun.attempt.restart();
                        done
                    }
                    Err(refused) => Err(refused),
                };
                *operation = Some(begun);
                result
            }
        }
    }

    async fn carry_out_break_glass(
        &self,
        operation: &Operation,
        root: &RootKey,
    ) -> Result<Map<String, Value>, ApiError> {
        let failed = |why: String| {
            ApiError::Internal(format!(
                "the break-glass shares were not changed, or it is not known whether they were: {why}; look at sys/break-glass before trying again"
            ))
        };
        for _ in 0..ATTEMPTS {
            let (config, version) = self.present_config(root)?;
            check(operation.change, &config)?;
            let (done, made) = match &operation.params {
                Some(params) => {
                    let (changed, made) = config
                        .with_break_glass(params, root)
                        .map_err(|e| ApiError::invalid(e.to_string()))?;
                    (self.replace_config(&changed, version).await.map_err(failed)?, made)
                }
                None => {
                    let now_ms = keystead_raft::clock::wall_ms();
                    let new = config.rotated(&self.settings.seals.enabled(), now_ms).await;
                    let new =
                        new.map_err(|fault| failed(format!("no seal wraps a new root key: {fault}")))?;
                    (self.replace_root(new, version).await.map_err(failed)?, Vec::new())
                }
            };
            if done {
                let change = operation.change.name();
                metrics::counter!("keystead_break_glass_changes_total", "change" => change).increment(1);
                tracing::info!(change, shares = made.len(), "the break-glass shares were changed");
                return Ok(completed(operation, &made));
            }
        }
        Err(ApiError::Busy("the seal configuration kept changing; try again".to_owned()))
    }
}

fn progress(operation: Option<&Operation>, recovery: Option<&ShareSet>) -> Map<String, Value> {
    let params = operation.and_then(|operation| operation.params);
    let progress = json!({
        "nonce": operation.map(|operation| operation.attempt.nonce()).unwrap_or_default(),
        "started": operation.is_some(),
        "n": params.map_or(0, |params| params.shares),
        "t": params.map_or(0, |params| params.threshold),
        "progress": operation.map_or(0, |operation| operation.attempt.progress()),
        "required": recovery.map_or(0, |set| set.threshold),
        "complete": false,
    });
    progress.as_object().cloned().unwrap_or_default()
}

fn completed(operation: &Operation, made: &[Share]) -> Map<String, Value> {
    let texts = |text: fn(&Share) -> SecretString| -> Vec<String> {
        made.iter().map(|share| text(share).expose().to_owned()).collect()
    };
    let done = json!({
        "nonce": operation.attempt.nonce(),
        "complete": true,
        "n": made.len(),
        "t": operation.params.map_or(0, |params| params.threshold),
        "keys": texts(Share::to_hex),
        "keys_base64": texts(Share::to_base64),
    });
    done.as_object().cloned().unwrap_or_default()
}
