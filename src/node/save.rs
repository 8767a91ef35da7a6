//! `sys/storage/raft/snapshot`: a backup of the whole vault, made by the node that is asked.
//!
//! The state is cut between two entries and spooled to a file of sealed bytes while writes go on, as for a follower; from that file the
//! archive is streamed at the pace of the client. The file goes when the client is through, or gone.

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use keystead_raft::{Replicated as _, clock::wall_ms, fresh_incarnation};
use keystead_storage::{Manifest, SealedState, SnapshotFile, SpaceLevel, StorageError};
use tokio::sync::mpsc;

use super::{Node, OpenKeys};
use crate::{
    backup::{self, About, Configuration, Meta, Server},
    core::{error::ApiError, response::Download},
};

/// How long is waited for a cut that something else has taken: a snapshot for a follower, a look at the digest.
const CUT_WAIT: Duration = Duration::from_secs(30);
const AGAIN: Duration = Duration::from_millis(50);
/// Pieces of the archive that wait for the client, and how large they are.
const PIECES: usize = 8;
const PIECE_BYTES: usize = 256 << 10;

/// A spooled snapshot; the file goes with it.
struct Spooled {
    file: SnapshotFile,
    path: PathBuf,
}

impl Drop for Spooled {
    fn drop(&mut self) {
        remove(&self.path);
    }
}

fn remove(path: &Path) {
    if let Err(error) = std::fs::remove_file(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(%error, path = %path.display(), "a spooled snapshot cannot be removed; the next start does it");
    }
}

/// Whether a backup is being made by this node: one at a time.
#[derive(Default)]
pub struct Saving(AtomicBool);

/// Ends with the backup.
struct Turn(Arc<Node>);

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.saving.0.store(false, Ordering::Release);
    }
}

impl Node {
    /// Makes a backup of everything that was acknowledged before the call, and gives it piece by piece.
    ///
    /// # Errors
    /// 503 while sealed, while another is being made, or without a leader; 507 without room for it.
    ///
    /// # Cancel safety
    /// Dropping the future, or what it gives, ends the backup and removes what was spooled.
    pub(super) async fn save_snapshot(&self) -> Result<Download, ApiError> {
        let (_, pieces) = self.take_snapshot().await?.send();
        Ok(Download::new(pieces, "application/gzip"))
    }

    /// Cuts and spools everything that was acknowledged before the call.
    ///
    /// # Errors
    /// As [`save_snapshot`](Self::save_snapshot).
    pub(super) async fn take_snapshot(&self) -> Result<Taken, ApiError> {
        let replica = self.replica().ok_or(ApiError::Sealed)?;
        let keys = self.keys.read().clone().ok_or(ApiError::Sealed)?;
        if self.saving.0.swap(true, Ordering::AcqRel) {
            return Err(ApiError::Busy(
                "a snapshot is being taken from this node already; try again".to_owned(),
            ));
        }
        let turn = Turn(self.arc());
        replica.read_barrier().await.map_err(|_| ApiError::NoLeader)?;
        let failed = |error: &dyn std::fmt::Display| ApiError::internal("taking a snapshot", error);
        let space = self.settings.dir.disk().space().look().map_err(|e| failed(&e))?;
        if space.level != SpaceLevel::Ample {
            return Err(no_room(space.free_bytes));
        }
        let started = Instant::now();
        let path = self.settings.dir.snapshots().join(format!("spool-backup-{:016x}", fresh_incarnation()));
        let (state, spool_to) = (replica.state(), path.clone());
        let spooling = tokio::task::spawn_blocking(move || spool(&*state, &spool_to));
        let file = spooling.await.map_err(|e| failed(&e))?.map_err(|error| {
            remove(&path);
            match error {
                StorageError::Full { free_bytes, .. } => no_room(free_bytes),
                StorageError::Busy { what } => ApiError::Busy(format!("{what} is under way; try again")),
                error => failed(&error),
            }
        })?;
        let spooled = Spooled { file, path };
        // What is sealed by one root key must not be said to be of another.
        if self.keys.read().as_ref().is_none_or(|now| now.root_generation() != keys.root_generation()) {
            return Err(ApiError::Busy(
                "the root key was replaced meanwhile; take the snapshot again".to_owned(),
            ));
        }
        let size = std::fs::metadata(&spooled.path).map_err(|e| failed(&e))?.len();
        let meta = self.describe(spooled.file.manifest(), &keys, size);
        tracing::info!(
            index = meta.index,
            bytes = size,
            milliseconds = started.elapsed().as_millis(),
            "a snapshot was taken, and is sent"
        );
        Ok(Taken { spooled, meta, keys, turn, started })
    }

    fn describe(&self, manifest: &Manifest, keys: &OpenKeys, size: u64) -> Meta {
        let at = manifest.meta.log_id;
        let (index, term) = (at.map_or(0, |id| id.index), at.map_or(0, |id| id.term));
        let members = self.replica().map(|replica| replica.members()).unwrap_or_default();
        let servers = members.into_iter().map(|member| Server {
            suffrage: u32::from(!member.voter),
            id: member.node_id,
            address: member.cluster_addr,
        });
        let created_ms = wall_ms();
        let unsealed = keys.unsealed();
        Meta {
            version: 1,
            id: format!("{term}-{index}-{created_ms}"),
            index,
            term,
            peers: None,
            configuration: Configuration { servers: servers.collect() },
            configuration_index: manifest.meta.membership.as_ref().map_or(0, |(id, _)| id.index),
            size,
            keystead: About {
                format: backup::FORMAT,
                vault_id: unsealed.vault_id.to_string(),
                root_generation: keys.root_generation(),
                cluster_id: unsealed.cluster_id.clone(),
                cluster_name: unsealed.cluster_name.clone(),
                node_id: self.settings.node_id.clone(),
                created_ms,
                digest: hex::encode(manifest.digest),
                rows: manifest.rows,
            },
        }
    }
}

/// A snapshot that lies on this node's disk, and is to be sent.
pub(super) struct Taken {
    spooled: Spooled,
    /// What it is of.
    pub meta: Meta,
    keys: Arc<OpenKeys>,
    turn: Turn,
    started: Instant,
}

/// The pieces of an archive, to its end or to an error.
pub(super) type Archive = mpsc::Receiver<io::Result<Bytes>>;

impl Taken {
    /// Sends the archive at the pace of who takes it, from a thread that ends when nobody does.
    pub fn send(self) -> (Meta, Archive) {
        let (pieces, archive) = mpsc::channel(PIECES);
        let described = self.meta.clone();
        let working = tokio::task::spawn_blocking(move || {
            let Self { spooled, meta, keys, turn, started } = self;
            let sent = send(&spooled, &meta, &keys, pieces);
            drop((spooled, turn));
            match sent {
                Ok(()) => {
                    metrics::counter!("keystead_snapshots_saved_total").increment(1);
                    metrics::histogram!("keystead_snapshot_save_seconds").record(started.elapsed());
                    tracing::info!(milliseconds = started.elapsed().as_millis(), "the snapshot was sent");
                }
                Err(error) => tracing::warn!(%error, "a snapshot was not sent to its end"),
            }
        });
        drop(working);
        (described, archive)
    }
}

fn no_room(free_bytes: u64) -> ApiError {
    ApiError::DiskFull(format!(
        "there is no room to spool a snapshot on this node ({free_bytes} bytes free): free space, or take it from another node"
    ))
}

/// Cuts the state and writes it to a file. Something else may hold the one cut that there can be.
fn spool(state: &dyn SealedState, path: &Path) -> Result<SnapshotFile, StorageError> {
    let deadline = Instant::now() + CUT_WAIT;
    let cut = loop {
        match state.cut() {
            Err(StorageError::Busy { .. }) if Instant::now() < deadline => std::thread::sleep(AGAIN),
            other => break other?,
        }
    };
    cut.spool(path)
}

/// Writes the archive into the channel. A root key that was replaced since the cut does not matter: what is in the snapshot is of
/// the keys that were there before.
fn send(
    spooled: &Spooled,
    meta: &Meta,
    keys: &OpenKeys,
    pieces: mpsc::Sender<io::Result<Bytes>>,
) -> io::Result<()> {
    let state = std::fs::File::open(&spooled.path)?;
    let mut out = Pieces { pieces, pending: Vec::with_capacity(PIECE_BYTES) };
    let written = backup::write(&mut out, state, meta, |sums| keys.backup_seal(sums));
    if let Err(error) = &written {
        // The client must not take what it has for the whole.
        let told = io::Error::new(error.kind(), "the snapshot was broken off");
        drop(out.pieces.blocking_send(Err(told)));
    }
    written
}

/// Bytes on their way to a client.
struct Pieces {
    pieces: mpsc::Sender<io::Result<Bytes>>,
    pending: Vec<u8>,
}

impl Pieces {
    fn send(&mut self) -> io::Result<()> {
        let piece = std::mem::replace(&mut self.pending, Vec::with_capacity(PIECE_BYTES));
        let gone = |_| io::Error::new(io::ErrorKind::BrokenPipe, "the client is gone");
        self.pieces.blocking_send(Ok(piece.into())).map_err(gone)
    }
}

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.pending.extend_from_slice(bytes);
        if self.pending.len() >= PIECE_BYTES {
            self.send()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.pending.is_empty() { Ok(()) } else { self.send() }
    }
}
