//! Replacing the root key of a vault that is open, in one entry.
//!
//! The entry holds the keyring sealed under the new root key and the seal configuration that leads to it, and nothing
//! that the old root key opens. So a node that is open cannot learn the new root key from the log: the leader hands it to
//! every member that is open and within reach before it proposes the entry. It is kept in locked memory, and becomes the
//! node's root key when the entry is applied. A node that was not reached is opened by its seals again, or by people.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use keystead_raft::{Peer, ProposeOutcome, Replicated as _, VaultSide as _};
use keystead_storage::{Check, Txn, Version, Write};
use parking_lot::Mutex;
use zeroize::Zeroizing;

use super::{Node, OpenKeys, records};
use crate::{
    barrier::Keyring,
    core::{error::ApiError, request::fresh_id},
    seal::NewRoot,
    secret::RootKey,
};

/// How long a root key that was handed over is kept without the entry that makes it the vault's. An election does not end
/// it: the next leader may commit the entry of the one before.
const KEPT: Duration = Duration::from_secs(60);
/// Root keys that are kept at most: those of two leaders after each other, and two to spare.
const MOST: usize = 4;
/// How long a member may take to say that it has the new root key.
const HAND_OVER: Duration = Duration::from_secs(1);
/// How often the keyring is rotated again because something else changed it meanwhile.
const ATTEMPTS: usize = 8;
const FORMAT: u8 = 1;
/// `format[1] commitment[32] root key[32]`.
const LEN: usize = 1 + 32 + 32;

/// A change of the keyring under the same root key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Keys of the next term.
    Rotate,
    /// How much was encrypted.
    Counts,
}

/// Root keys that may become the vault's, by their commitments.
#[derive(Default)]
pub struct PendingRoots(Mutex<Vec<Pending>>);

struct Pending {
    commitment: [u8; 32],
    root: RootKey,
    since: Instant,
}

impl PendingRoots {
    fn keep(&self, commitment: [u8; 32], root: RootKey, now: Instant) {
        let mut all = self.0.lock();
        all.retain(|pending| pending.commitment != commitment);
        if all.len() == MOST {
            all.remove(0);
        }
        all.push(Pending { commitment, root, since: now });
    }

    fn take(&self, commitment: &[u8; 32]) -> Option<RootKey> {
        let mut all = self.0.lock();
        let at = all.iter().position(|pending| pending.commitment == *commitment)?;
        Some(all.swap_remove(at).root)
    }

    fn expire(&self, now: Instant) {
        self.0.lock().retain(|pending| now.duration_since(pending.since) < KEPT);
    }

    /// Forgets all of them.
    pub fn clear(&self) {
        self.0.lock().clear();
    }
}

/// What a leader hands over. Its copies in the buffers of TLS are not wiped.
pub(super) fn encode(commitment: &[u8; 32], root: &RootKey) -> Zeroizing<Vec<u8>> {
    // The full length at once: growing would leave the key behind in freed memory.
    let mut body = Zeroizing::new(Vec::with_capacity(LEN));
    body.push(FORMAT);
    body.extend_from_slice(commitment);
    body.extend_from_slice(root.expose());
    body
}

pub(super) fn decode(body: &[u8]) -> Option<([u8; 32], RootKey)> {
    let (&FORMAT, rest) = body.split_first()? else { return None };
    let (commitment, root) = rest.split_first_chunk::<32>()?;
    Some((*commitment, RootKey::from_bytes(root.try_into().ok()?)))
}

impl Node {
    /// Makes `new` the root key of the vault whose seal configuration has that version. False if the configuration or the
    /// keyring is another one by now.
    ///
    /// # Errors
    /// A text. After the loss of leadership it may have happened all the same, wholly.
    pub(super) async fn replace_root(&self, new: NewRoot, version: Version) -> Result<bool, String> {
        let replica = self.replica().ok_or("replication has stopped")?;
        let keys = self.keys.read().clone().ok_or("this node is sealed")?;
        let (keyring_version, sealed) = records::keyring(&*replica.state())
            .map_err(|e| e.to_string())?
            .ok_or("the keyring is missing")?;
        let NewRoot { config, root, missing } = new;
        for (seal, fault) in &missing {
            tracing::warn!(seal, %fault, "a seal does not open the new root key until it works again");
        }
        let keyring = next_keyring(&keys, &sealed, replica.cluster_time_ms())?;
        let generation = config.root_generation;
        let keyring = keyring.seal(&root, config.vault_id, generation);
        let body = encode(&config.root_commitment, &root);
        let took = replica.hand_over(&body, HAND_OVER).await;
        self.keep_root(config.root_commitment, root);
        let (config_key, keyring_key) = (records::seal_config_key(), records::keyring_key());
        let txn = Txn {
            request_id: fresh_id(),
            checks: vec![
                Check::Record { key: config_key.clone(), version: Some(version) },
                Check::Record { key: keyring_key.clone(), version: Some(keyring_version) },
            ],
            writes: vec![
                Write::Put { key: config_key, value: config.encode().into() },
                Write::Put { key: keyring_key, value: keyring.into() },
            ],
            ..Txn::default()
        };
        match replica.propose(txn).await {
            Ok(ProposeOutcome::Applied(_) | ProposeOutcome::Duplicate { .. }) => {
                metrics::counter!("keystead_root_rotations_total").increment(1);
                tracing::info!(generation, handed_to = ?took, "the root key was replaced");
                Ok(true)
            }
            Ok(ProposeOutcome::Conflict { .. }) => Ok(false),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Gives the barrier and the log keys of the next term, or notes only how much was encrypted, under the root key that
    /// there is.
    ///
    /// # Errors
    /// 503 when it kept changing; 500 when it failed, or is not known to have happened.
    pub(super) async fn change_keyring(&self, change: Change) -> Result<(), ApiError> {
        let failed = |e: &dyn std::fmt::Display| ApiError::internal("rotating the keyring", e);
        for _ in 0..ATTEMPTS {
            let replica = self.replica().ok_or(ApiError::Sealed)?;
            let keys = self.keys.read().clone().ok_or(ApiError::Sealed)?;
            let (config, _) = self.present_config(keys.root())?;
            let found = records::keyring(&*replica.state()).map_err(|e| failed(&e))?;
            let (version, sealed) = found.ok_or_else(|| failed(&"the keyring is missing"))?;
            let keyring = match change {
                Change::Rotate => next_keyring(&keys, &sealed, replica.cluster_time_ms()),
                Change::Counts => counted_keyring(&keys, &sealed),
            };
            let keyring = keyring.map_err(|e| failed(&e))?;
            let term = keyring.barrier_terms().last().map_or(0, |term| term.term);
            let key = records::keyring_key();
            let value = keyring.seal(keys.root(), config.vault_id, config.root_generation);
            let txn = Txn {
                request_id: fresh_id(),
                checks: vec![Check::Record { key: key.clone(), version: Some(version) }],
                writes: vec![Write::Put { key, value: value.into() }],
                ..Txn::default()
            };
            match replica.propose(txn).await {
                Ok(ProposeOutcome::Applied(_) | ProposeOutcome::Duplicate { .. }) => {
                    if change == Change::Rotate {
                        metrics::counter!("keystead_barrier_rotations_total").increment(1);
                        tracing::info!(term, "the barrier key was rotated");
                    }
                    return Ok(());
                }
                Ok(ProposeOutcome::Conflict { .. }) => {}
                Err(error) => return Err(failed(&error)),
            }
        }
        Err(ApiError::Busy("the keyring kept changing; try again".to_owned()))
    }

    fn keep_root(&self, commitment: [u8; 32], root: RootKey) {
        self.pending_roots.keep(commitment, root, Instant::now());
        let node = self.me.clone();
        self.runtime.spawn(async move {
            tokio::time::sleep(KEPT).await;
            if let Some(node) = node.upgrade() {
                node.pending_roots.expire(Instant::now());
            }
        });
    }

    /// Keeps what a leader handed over. It comes to nothing without an entry that was signed as all are.
    pub(super) fn take_root(&self, peer: &Peer, body: &[u8]) -> Result<(), String> {
        let (commitment, root) = decode(body).ok_or("what was handed over cannot be read")?;
        self.keep_root(commitment, root);
        tracing::debug!(from = peer.node_id, "a new root key was handed over");
        Ok(())
    }

    /// Takes keyring and root key as they stand after an entry or a snapshot that changed them.
    pub(super) fn reload_keys(&self) {
        // The last to come in reads the newest.
        let _one = self.reloading.lock();
        let Some(replica) = self.replica() else { return };
        let (config, sealed) = match records::sealed_keys(&*replica.state()) {
            Ok(Some(found)) => (found.config, found.keyring),
            Ok(None) if self.keys.read().is_none() => return,
            Ok(None) => {
                return self.latched("the seal configuration or the keyring is missing after a change");
            }
            Err(error) => return self.latched(&format!("the keys cannot be read after a change: {error}")),
        };
        let Some(keys) = self.keys.read().clone() else {
            // An opening that is under way goes by the root key that was replaced.
            let mut provisional = self.provisional.write();
            if provisional.as_ref().is_some_and(|keys| keys.root_generation() != config.root_generation) {
                provisional.take();
            }
            return;
        };
        let reloaded = if config.root_generation == keys.root_generation() {
            keys.with_keyring(&sealed).map_err(|e| e.to_string())
        } else {
            match self.pending_roots.take(&config.root_commitment) {
                Some(root) => config
                    .verify(&root)
                    .map_err(|e| e.to_string())
                    .and_then(|()| keys.with_root(&config, root, &sealed).map_err(|e| e.to_string())),
                None => return self.seal_for_new_root(config.root_generation),
            }
        };
        match reloaded {
            Ok(reloaded) => {
                let replaced = reloaded.root_generation() != keys.root_generation();
                let mut current = self.keys.write();
                // Sealing that came in between stays.
                if current.as_ref().is_some_and(|current| Arc::ptr_eq(current, &keys)) {
                    *current = Some(Arc::new(reloaded));
                }
                drop(current);
                if replaced {
                    replica.root_replaced();
                    tracing::info!(generation = config.root_generation, "this node has the new root key");
                }
            }
            Err(error) => self.latched(&format!("the keys cannot be opened after a change: {error}")),
        }
    }

    /// Forgets the keys, which are not the vault's any more, and has the seals open this node again.
    fn seal_for_new_root(&self, generation: u32) {
        let why = format!(
            "the root key was replaced by generation {generation} while this node was out of the leader's reach: it is sealed until its seals open it, or shares of that generation"
        );
        tracing::warn!("{why}");
        metrics::counter!("keystead_root_missed_total").increment(1);
        metrics::gauge!("vault_core_unsealed").set(0.0);
        *self.missed_root.lock() = Some(why);
        self.drop_keys();
        if let Some(replica) = self.replica() {
            replica.root_replaced();
        }
        // This is called on the thread that applies entries.
        let _runtime = self.runtime.enter();
        self.arc().spawn_unattended();
    }
}

/// The keyring with keys of the next term, and what is known of the use of the others.
fn next_keyring(keys: &OpenKeys, sealed: &[u8], now_ms: u64) -> Result<Keyring, String> {
    let mut keyring = counted_keyring(keys, sealed)?;
    keyring.rotate(now_ms);
    Ok(keyring)
}

/// The keyring with what is known of the use of its keys.
fn counted_keyring(keys: &OpenKeys, sealed: &[u8]) -> Result<Keyring, String> {
    let mut keyring = keys.open_keyring(sealed).map_err(|e| e.to_string())?;
    for (term, encryptions) in keys.barrier().encryptions() {
        keyring.set_encryptions(term, encryptions);
    }
    Ok(keyring)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_handed_over_is_read_back_and_nothing_else_is() {
        let root = RootKey::random();
        let body = encode(&[7; 32], &root);
        let (commitment, read) = decode(&body).unwrap();
        assert!(commitment == [7; 32] && read.ct_eq(&root));
        for len in 0..body.len() {
            assert!(decode(&body[..len]).is_none(), "{len} bytes");
        }
        assert!(decode(&[&body[..], &[0]].concat()).is_none());
        assert!(decode(&[&[FORMAT + 1], &body[1..]].concat()).is_none());
    }

    #[test]
    fn a_pending_root_is_found_once_by_its_commitment_and_not_after_its_time() {
        let (pending, start) = (PendingRoots::default(), Instant::now());
        let root = RootKey::random();
        pending.keep([1; 32], root.duplicate(), start);
        pending.keep([2; 32], RootKey::random(), start + KEPT / 2);
        assert!(pending.take(&[3; 32]).is_none());
        assert!(pending.take(&[1; 32]).unwrap().ct_eq(&root));
        assert!(pending.take(&[1; 32]).is_none());
        pending.keep([1; 32], root, start);
        pending.expire(start + KEPT);
        assert!(pending.take(&[1; 32]).is_none() && pending.take(&[2; 32]).is_some());
    }

    #[test]
    fn the_oldest_gives_way_when_there_are_too_many() {
        let pending = PendingRoots::default();
        for n in 0..=MOST as u8 {
            pending.keep([n; 32], RootKey::random(), Instant::now());
        }
        assert!(pending.take(&[0; 32]).is_none() && pending.take(&[1; 32]).is_some());
    }
}
