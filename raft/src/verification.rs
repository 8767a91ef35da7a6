//! Whether all members have the same state, while they serve.
//!
//! The leader proposes a checkpoint, at which every node computes the digest of its state, and asks each for it. It is a digest of
//! sealed bytes, so that sealed members answer, too. A digest follows what was applied; whether the disk still holds that
//! is found by reading all of it, which a scrub does.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use keystead_storage::{CheckpointMark, Outcome, SealedState, StorageError};

use crate::{
    conn::Method, directory::DirectoryMember, entry::Body, hello::Channel, replica::Replica,
    replicated::ProposeError,
};

/// How long a member may take to reach the checkpoint.
const REACHED: Duration = Duration::from_secs(10);
/// How long it may take to read all of its state.
const SCRUBBED: Duration = Duration::from_secs(300);
const AGAIN: Duration = Duration::from_millis(20);

/// What every member has at one entry.
#[derive(Debug, Clone)]
pub struct Verification {
    /// The entry.
    pub index: u64,
    /// The members, in the order of joining.
    pub members: Vec<MemberDigest>,
}

/// What one member has.
#[derive(Debug, Clone)]
pub struct MemberDigest {
    /// The operator's name of its place.
    pub node_id: String,
    /// Its digest, or why it has given none.
    pub digest: Result<[u8; 32], String>,
}

impl Verification {
    /// The digest that most members have.
    #[must_use]
    pub fn agreed(&self) -> Option<[u8; 32]> {
        let given = || self.members.iter().filter_map(|member| member.digest.as_ref().ok());
        given().max_by_key(|digest| given().filter(|other| other == digest).count()).copied()
    }
}

/// Answers for this node: `index[8] scrub[1]` is asked, 32 bytes are the digest, none mean that it is not there yet.
pub(crate) async fn answer(state: Arc<dyn SealedState>, body: &[u8]) -> Result<Bytes, String> {
    let asked = body.split_first_chunk::<8>().filter(|(_, rest)| rest.len() == 1);
    let (index, scrub) =
        asked.map(|(index, rest)| (u64::from_be_bytes(*index), rest[0] != 0)).ok_or("malformed")?;
    let looked = tokio::task::spawn_blocking(move || {
        if scrub && state.applied().log_id.is_some_and(|id| id.index >= index) {
            match state.cut().and_then(|cut| cut.verify()) {
                // A snapshot is being made of it, which reads and compares the same.
                Ok(_) | Err(StorageError::Busy { .. }) => {}
                Err(error) => return Err(error.to_string()),
            }
        }
        let digest = state.digest_at(index);
        if digest.is_none() {
            state.flush(Box::new(|_| {}));
        }
        Ok(digest)
    });
    let digest = looked.await.map_err(|_| "internal error".to_owned())??;
    Ok(digest.map_or_else(Bytes::new, |digest| Bytes::copy_from_slice(&digest)))
}

impl Replica {
    /// Asks every member for the digest of its state at one entry, which this node proposes as the leader. With `scrub` each reads
    /// all of its state before.
    ///
    /// # Errors
    /// When the entry could not be committed.
    pub async fn verify(&self, scrub: bool) -> Result<Verification, ProposeError> {
        let shared = self.shared();
        let mark = CheckpointMark { of: shared.state.digest() };
        let index = match shared.proposer.submit(&Body::Checkpoint(mark)).await? {
            Outcome::Applied { version } => version.index,
            _ => return Err(ProposeError::Unknown),
        };
        let directory = self.directory();
        let asked = directory.members.iter().map(|member| async move {
            MemberDigest {
                node_id: member.node_id.clone(),
                digest: self.digest_of(member, index, scrub).await,
            }
        });
        Ok(Verification { index, members: futures_util::future::join_all(asked).await })
    }

    async fn digest_of(&self, member: &DirectoryMember, index: u64, scrub: bool) -> Result<[u8; 32], String> {
        let shared = self.shared();
        let deadline = Instant::now() + REACHED;
        let mut scrub = scrub;
        loop {
            let body = [&index.to_be_bytes()[..], &[u8::from(scrub)]].concat();
            let answer = match member.incarnation == self.incarnation() {
                true => answer(shared.state.clone(), &body).await?,
                false => {
                    let patience = if scrub { SCRUBBED } else { REACHED };
                    let call = shared.pool.call(
                        member.incarnation,
                        Channel::Snapshot,
                        Method::Digest,
                        &body,
                        patience,
                    );
                    call.await.map_err(|error| error.to_string())?
                }
            };
            if let Ok(digest) = <[u8; 32]>::try_from(&answer[..]) {
                return Ok(digest);
            }
            if Instant::now() >= deadline {
                return Err(format!("it has not reached entry {index} within {REACHED:?}"));
            }
            scrub = false;
            tokio::time::sleep(AGAIN).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_most_members_have_is_agreed() {
        let member = |digest: Result<u8, &str>| MemberDigest {
            node_id: String::new(),
            digest: digest.map(|byte| [byte; 32]).map_err(str::to_owned),
        };
        let of = |members| Verification { index: 1, members };
        assert_eq!(of(vec![member(Ok(2)), member(Ok(1)), member(Ok(1))]).agreed(), Some([1; 32]));
        assert_eq!(of(vec![member(Err("gone")), member(Ok(3))]).agreed(), Some([3; 32]));
        assert_eq!(of(vec![member(Err("gone"))]).agreed(), None);
    }
}
