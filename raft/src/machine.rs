//! The consensus library's state machine over [`keystead_storage::SealedState`].
//!
//! Apply runs on a thread of its own: a slow state never stalls the library's tasks. That thread decodes each
//! entry, judges its place and its tag, and hands it to the state.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc as std_mpsc,
    },
};

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use keystead_storage::{
    ApplyEntry, ApplyOp, DiskWatch, Installer, LogId, Outcome, RaftLog, SealedState, SnapshotFile,
    SpaceLevel, StorageError, error::REBUILD,
};
use openraft::{
    OptionalSend,
    storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine, Snapshot},
};
use tokio::sync::{oneshot, watch};

use crate::{
    directory::DirectoryCache,
    entry::{self, Header, Payload},
    log_store::payload_of,
    spool::{Spool, Spools},
    types::{
        EntryResult, RaftLogId, RaftMembership, SnapshotMeta, StoredMembership, TypeConfig, from_storage,
        io_error, to_storage,
    },
    vault_side::{VaultSide, Verdict},
};

/// Entries applied in one go at most.
const BATCH: usize = 512;

/// Snapshot data as it moves through the library.
pub enum SnapshotData {
    /// Only the fact that the state is flushed up to the snapshot's index; enough to purge the log.
    Flushed,
    /// A cut that is being, or has been, spooled to a local file, to be sent.
    Spooled(Arc<Spool>),
    /// All chunks of a peer's snapshot, staged beside the current state, to be installed.
    Staged(Box<Installer>),
}

/// What every node checks of a command before it counts.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    /// The set of nodes this node belongs to.
    pub cluster_id: [u8; 16],
    /// The epoch it belongs to.
    pub epoch: u64,
}

impl Place {
    /// Whether a command was written here, by the leader of the term in which it stands in the log.
    pub(crate) fn is_of(&self, header: &Header, log_id: &LogId) -> bool {
        header.cluster_id == self.cluster_id && header.epoch == self.epoch && header.term == log_id.term
    }
}

/// The state machine.
pub struct Machine {
    state: Arc<dyn SealedState>,
    log: Arc<dyn RaftLog>,
    jobs: std_mpsc::Sender<Job>,
    spools: Arc<Spools>,
    disk: Arc<DiskWatch>,
    applied: watch::Sender<u64>,
    running: Arc<AtomicBool>,
}

/// What a machine is started with.
pub struct MachineParts {
    /// The state that is applied to.
    pub state: Arc<dyn SealedState>,
    /// The log, for its floor.
    pub log: Arc<dyn RaftLog>,
    /// Cluster and epoch.
    pub place: Place,
    /// The vault.
    pub vault: Arc<dyn VaultSide>,
    /// Who may be in a membership.
    pub directory: Arc<DirectoryCache>,
    /// Stops apply.
    pub latch: Arc<Latch>,
    /// Where snapshots are spooled.
    pub spools: Arc<Spools>,
    /// Whether there is room for a spool.
    pub disk: Arc<DiskWatch>,
    /// The applied index is published here.
    pub applied: watch::Sender<u64>,
    /// Set once the library runs: before, it asks for a snapshot only to learn its index.
    pub running: Arc<AtomicBool>,
}

struct Job {
    entries: Vec<(LogId, Bytes)>,
    done: oneshot::Sender<Result<Vec<Outcome>, StorageError>>,
}

impl Machine {
    /// Starts the apply thread.
    pub fn start(parts: MachineParts) -> io::Result<Self> {
        let MachineParts { state, log, place, vault, directory, latch, spools, disk, applied, running } =
            parts;
        let (jobs, queue) = std_mpsc::channel::<Job>();
        let applier =
            Applier { latch, state: state.clone(), place, vault, directory, applied: applied.clone() };
        std::thread::Builder::new().name("apply".into()).spawn(move || applier.run(queue))?;
        Ok(Self { state, log, jobs, spools, disk, applied, running })
    }

    /// The metadata of the state as it is applied now.
    fn present(&self) -> keystead_storage::SnapshotMeta {
        let applied = self.state.applied();
        keystead_storage::SnapshotMeta {
            log_id: applied.log_id,
            membership: applied.membership,
            cluster_time_ms: applied.cluster_time_ms,
            generation: applied.generation,
            last_sequence: applied.last_sequence,
        }
    }

    async fn apply_batch(&self, entries: Vec<(LogId, Bytes)>) -> io::Result<Vec<Outcome>> {
        let (done, outcome) = oneshot::channel();
        let gone = || io::Error::other("the apply thread is gone");
        self.jobs.send(Job { entries, done }).map_err(|_| gone())?;
        outcome.await.map_err(|_| gone())?.map_err(io_error)
    }

    /// A snapshot is another copy of the state: none is made on a disk that is almost full.
    fn room_to_spool(&self) -> Result<(), StorageError> {
        let space = self.disk.status().space;
        if space.level == SpaceLevel::Ample {
            return Ok(());
        }
        Err(StorageError::Full { path: self.spools.dir().to_owned(), free_bytes: space.free_bytes })
    }

    fn stored_membership(&self) -> io::Result<StoredMembership> {
        match self.state.applied().membership {
            None => Ok(StoredMembership::default()),
            Some((id, payload)) => stored_membership(&id, &payload),
        }
    }
}

fn stored_membership(id: &LogId, payload: &Bytes) -> io::Result<StoredMembership> {
    match entry::decode(payload) {
        Ok(Payload::Membership(membership)) => Ok(StoredMembership::new(Some(from_storage(id)), membership)),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "the stored membership cannot be read")),
    }
}

/// The library's snapshot metadata of a storage snapshot.
pub fn snapshot_meta(meta: &keystead_storage::SnapshotMeta) -> io::Result<SnapshotMeta> {
    Ok(SnapshotMeta {
        last_log_id: meta.log_id.as_ref().map(from_storage),
        last_membership: match &meta.membership {
            None => StoredMembership::default(),
            Some((id, payload)) => stored_membership(id, payload)?,
        },
    })
}

/// Set once this node must not go on: whoever sets it says why.
#[derive(Default)]
pub struct Latch(parking_lot::Mutex<Option<String>>);

impl Latch {
    /// Latches. The first reason stays.
    pub fn set(&self, reason: &str) {
        self.0.lock().get_or_insert_with(|| reason.to_owned());
    }

    /// Why, once it is latched.
    pub fn reason(&self) -> Option<String> {
        self.0.lock().clone()
    }
}

/// What is said of a database that has failed for good.
pub fn storage_failure(what: &str, why: &str) -> String {
    format!(
        "the {what} on this node's disk has failed: {why}; mend the disk and start this node again, or rebuild it from its peers"
    )
}

struct Applier {
    latch: Arc<Latch>,
    state: Arc<dyn SealedState>,
    place: Place,
    vault: Arc<dyn VaultSide>,
    directory: Arc<DirectoryCache>,
    applied: watch::Sender<u64>,
}

/// Whether an entry may change what later ones are judged by: keyring, directory, seal configuration.
fn changes_rules(entry: &ApplyEntry) -> bool {
    let ApplyOp::Command(command) = &entry.op else { return false };
    let txn = &command.txn;
    txn.activate.is_some() || txn.writes.iter().any(|write| write.key().as_bytes().first() == Some(&b'c'))
}

impl Applier {
    fn run(self, queue: std_mpsc::Receiver<Job>) {
        while let Ok(job) = queue.recv() {
            let result = self.apply(job.entries);
            if let Err(error) = &result {
                tracing::error!(%error, "apply failed: this node stops replicating");
                let failed = self.state.latch().map(|why| storage_failure("state", &why));
                self.vault.latched(&failed.unwrap_or_else(|| error.to_string()));
            }
            let failed = result.is_err();
            // The library may have shut down meanwhile.
            drop(job.done.send(result));
            if failed {
                return;
            }
        }
    }

    fn apply(&self, entries: Vec<(LogId, Bytes)>) -> Result<Vec<Outcome>, StorageError> {
        if let Some(first) = self.latch.reason() {
            return Err(StorageError::Latched { first });
        }
        let mut outcomes = Vec::with_capacity(entries.len());
        let mut ready = Vec::with_capacity(entries.len());
        for (id, payload) in entries {
            let entry = self.judge(id, payload)?;
            // What comes after is judged by what this entry makes of the rules.
            let ends = changes_rules(&entry);
            ready.push(entry);
            if ends {
                self.apply_ready(&mut ready, &mut outcomes)?;
            }
        }
        self.apply_ready(&mut ready, &mut outcomes)?;
        Ok(outcomes)
    }

    fn apply_ready(
        &self,
        ready: &mut Vec<ApplyEntry>,
        outcomes: &mut Vec<Outcome>,
    ) -> Result<(), StorageError> {
        let Some(last) = ready.last().map(|entry| entry.log_id.index) else { return Ok(()) };
        outcomes.extend(self.state.apply(std::mem::take(ready))?);
        self.applied.send_replace(last);
        Ok(())
    }

    /// Whether every node of a membership is, or was, in the MACed directory. A sealed node cannot tell.
    fn is_known(&self, membership: &RaftMembership) -> bool {
        let directory = self.directory.current();
        !self.vault.is_open()
            || membership
                .nodes()
                .all(|(id, _)| directory.member(*id).is_some() || directory.is_tombstoned(*id))
    }

    /// Decodes an entry and decides whether it counts. What no node can understand or what was forged stops
    /// this node; what belongs to another cluster, epoch or term is a no-op on every node.
    fn judge(&self, log_id: LogId, payload: Bytes) -> Result<ApplyEntry, StorageError> {
        let damaged = |what: String| StorageError::Damaged {
            what: format!("log entry {log_id}: {what}"),
            remedy: REBUILD.into(),
        };
        let op = match entry::decode(&payload).map_err(|e| damaged(e.to_string()))? {
            Payload::Blank => ApplyOp::Blank,
            Payload::Membership(membership) if !self.is_known(&membership) => {
                return Err(damaged("it is a membership that the directory does not agree with".into()));
            }
            Payload::Membership(_) => ApplyOp::Membership(payload),
            Payload::Command { header, body, signed, tag } => {
                if !self.place.is_of(&header, &log_id) {
                    tracing::warn!(
                        index = log_id.index,
                        "log entry of another cluster, epoch or term ignored"
                    );
                    ApplyOp::NoOp
                } else if self.vault.verify_entry(header.key_term, &signed, &tag) == Verdict::Bad {
                    return Err(damaged("its tag is wrong: it was forged or damaged".into()));
                } else {
                    ApplyOp::Command(entry::to_command(&header, body))
                }
            }
        };
        Ok(ApplyEntry { log_id, op })
    }
}

impl RaftStateMachine<TypeConfig> for Machine {
    type SnapshotData = SnapshotData;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> io::Result<(Option<RaftLogId>, StoredMembership)> {
        let applied = self.state.applied();
        Ok((applied.log_id.as_ref().map(from_storage), self.stored_membership()?))
    }

    async fn apply<Strm>(&mut self, entries: Strm) -> io::Result<()>
    where
        Strm: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + OptionalSend,
    {
        let mut batches = entries.ready_chunks(BATCH);
        while let Some(batch) = batches.next().await {
            let mut jobs = Vec::with_capacity(batch.len());
            let mut responders = Vec::with_capacity(batch.len());
            for item in batch {
                let (entry, responder) = item?;
                jobs.push((to_storage(&entry.log_id), payload_of(&entry)));
                responders.push(responder);
            }
            let outcomes = self.apply_batch(jobs).await?;
            for (responder, outcome) in responders.into_iter().zip(outcomes) {
                if let Some(responder) = responder {
                    responder.send(EntryResult(outcome));
                }
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        Builder { state: self.state.clone() }
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: SnapshotData) -> io::Result<()> {
        let SnapshotData::Staged(installer) = snapshot else {
            return Err(io::Error::other("only a staged snapshot can be installed"));
        };
        tokio::task::spawn_blocking(move || installer.finish())
            .await
            .map_err(io::Error::other)?
            .map_err(io_error)?;
        let index = self.state.applied().log_id.map_or(0, |id| id.index);
        self.applied.send_if_modified(|applied| {
            let newer = index > *applied;
            *applied = index.max(*applied);
            newer
        });
        tracing::info!(index = meta.last_log_id.map(|id| id.index), "snapshot installed");
        Ok(())
    }

    async fn get_current_snapshot(
        &mut self,
    ) -> io::Result<Option<openraft::type_config::alias::SnapshotOf<TypeConfig, SnapshotData>>> {
        if !self.running.load(Ordering::Acquire) {
            let meta = snapshot_meta(&self.present())?;
            return Ok(Some(Snapshot { meta, snapshot: SnapshotData::Flushed }));
        }
        let floor = self.log.bounds().purged.map_or(0, |id| id.index);
        let spool = match self.spools.latest(floor) {
            Some(spool) => spool,
            // The library stops for good when this fails; a spool that cannot be sent is tried again.
            None => match self.room_to_spool().and_then(|()| self.state.cut()) {
                Ok(cut) => self.spools.start(cut),
                Err(error) => self.spools.failed(self.present(), error),
            },
        };
        let meta = snapshot_meta(&spool.meta)?;
        Ok(Some(Snapshot { meta, snapshot: SnapshotData::Spooled(spool) }))
    }
}

/// Builds what the library calls a snapshot so that it may purge the log: nothing is copied, for the state is
/// on the disk already; it is only flushed.
pub struct Builder {
    state: Arc<dyn SealedState>,
}

impl RaftSnapshotBuilder<TypeConfig> for Builder {
    type SnapshotData = SnapshotData;

    async fn build_snapshot(
        &mut self,
    ) -> io::Result<openraft::type_config::alias::SnapshotOf<TypeConfig, SnapshotData>> {
        let applied = self.state.applied();
        let (tx, rx) = oneshot::channel();
        self.state.flush(Box::new(move |result| drop(tx.send(result))));
        rx.await.map_err(|_| io::Error::other("the flusher is gone"))?.map_err(io_error)?;
        let last_membership = match &applied.membership {
            None => StoredMembership::default(),
            Some((id, payload)) => stored_membership(id, payload)?,
        };
        let meta = SnapshotMeta { last_log_id: applied.log_id.as_ref().map(from_storage), last_membership };
        Ok(Snapshot { meta, snapshot: SnapshotData::Flushed })
    }
}

/// Reads a spooled file's chunk off the async threads.
pub async fn read_chunk(file: Arc<SnapshotFile>, n: u64) -> io::Result<Bytes> {
    tokio::task::spawn_blocking(move || file.read_chunk(n)).await.map_err(io::Error::other)?.map_err(io_error)
}
