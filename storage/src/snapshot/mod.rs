//! Snapshots: the whole state at one index, as a file without a key.

mod cut;
mod file;
#[cfg(test)]
pub(crate) mod fuzz;
mod install;
mod read;
mod stream;

use bincode::{Decode, Encode};
use bytes::Bytes;

use crate::codec;
use crate::error::StorageError;
use crate::ids::LogId;
use crate::state::Applied;

pub(crate) use stream::{Item, Items, write_row};

pub use cut::SnapshotCut;
pub use file::{CHUNK_BYTES, SnapshotFile};
pub use install::Installer;
pub use read::{SnapshotItem, SnapshotReader};

/// What a snapshot is of.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct SnapshotMeta {
    /// The newest entry that it holds; `None` for the empty state.
    pub log_id: Option<LogId>,
    /// The membership at that entry.
    pub membership: Option<(LogId, Bytes)>,
    /// Cluster time at that entry, in milliseconds since the Unix epoch.
    pub cluster_time_ms: u64,
    /// State generation.
    pub generation: u32,
    /// Term and sequence of the newest command.
    pub last_sequence: (u64, u64),
}

/// The state's own record as a snapshot has it.
fn applied_of(meta: &SnapshotMeta) -> Applied {
    let SnapshotMeta { log_id, membership, cluster_time_ms, generation, last_sequence } = meta.clone();
    Applied { log_id, membership, cluster_time_ms, generation, last_sequence }
}

/// What a receiver must know before the first chunk.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Manifest {
    /// What the snapshot is of.
    pub meta: SnapshotMeta,
    /// Number of chunks; all but the last are [`CHUNK_BYTES`] long.
    pub chunks: u64,
    /// Bytes of all chunks.
    pub bytes: u64,
    /// Rows in all chunks: records, folders, remembered requests.
    pub rows: u64,
    /// The digest of the state that the chunks must give.
    pub digest: [u8; 32],
    /// Where the request window begins.
    pub(crate) window: WindowMark,
}

/// The beginning of the request window: without it the running hash could not be verified.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Encode, Decode)]
pub(crate) struct WindowMark {
    /// Number of the oldest remembered request.
    pub first: u64,
    /// Running hash over all that was forgotten.
    pub floor_hash: [u8; 32],
    /// Log index of the newest request that was forgotten; 0 if none was.
    pub forgotten_index: u64,
}

impl WindowMark {
    /// Requests and entries are counted from 1 by ones: no number of either ever comes near this one, and below it
    /// no sum of theirs overflows.
    const LIMIT: u64 = 1 << 62;

    /// Refuses what no window can begin with, for a mark may come from a peer.
    ///
    /// # Errors
    /// [`StorageError::Damaged`].
    pub fn check(self) -> Result<Self, StorageError> {
        if self.first < Self::LIMIT && self.forgotten_index < Self::LIMIT {
            return Ok(self);
        }
        Err(StorageError::damaged("the request window begins where no window can"))
    }
}

impl Manifest {
    /// Encodes for a peer.
    pub fn to_bytes(&self) -> Vec<u8> {
        let meta = &self.meta;
        let membership = meta.membership.as_ref().map(|(id, bytes)| (*id, bytes.to_vec()));
        codec::encode(
            FORMAT,
            &(
                (meta.log_id, membership, meta.cluster_time_ms, meta.generation, meta.last_sequence),
                (self.chunks, self.bytes, self.rows, self.digest, self.window),
            ),
        )
    }

    /// Decodes what [`Manifest::to_bytes`] gave.
    ///
    /// # Errors
    /// [`StorageError::Damaged`] if these are other bytes.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, StorageError> {
        type Meta = (Option<LogId>, Option<(LogId, Vec<u8>)>, u64, u32, (u64, u64));
        type Totals = (u64, u64, u64, [u8; 32], WindowMark);
        let ((log_id, membership, cluster_time_ms, generation, last_sequence), totals): (Meta, Totals) =
            codec::decode("snapshot manifest", FORMAT, bytes)?;
        let membership = membership.map(|(id, bytes)| (id, Bytes::from(bytes)));
        let (chunks, bytes, rows, digest, window) = totals;
        let meta = SnapshotMeta { log_id, membership, cluster_time_ms, generation, last_sequence };
        let window = window.check()?;
        Ok(Manifest { meta, chunks, bytes, rows, digest, window })
    }
}

/// Format of manifests.
const FORMAT: u8 = 1;
