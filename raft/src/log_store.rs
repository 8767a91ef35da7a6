//! The consensus library's log storage over [`keystead_storage::RaftLog`].
//!
//! The library's core task awaits every method body here, so all of them only queue work for the log's own
//! writer thread; the vote and a truncation wait for the disk, as they must.

use std::{fmt::Debug, io, ops::RangeBounds, sync::Arc};

use bytes::Bytes;
use keystead_storage::{Done, LogRecord, RaftLog, StorageError};
use openraft::{
    OptionalSend,
    entry::RaftEntry as _,
    storage::{IOFlushed, LogState, RaftLogReader, RaftLogStorage},
};
use tokio::sync::oneshot;

use crate::{
    entry::{self, Payload},
    types::{
        Proposal, RaftEntry, RaftLogId, RaftVote, TypeConfig, from_storage, io_error, to_storage,
        vote_from_storage, vote_to_storage,
    },
};

type EntryPayload = openraft::EntryPayload<Proposal, u64, crate::types::Member>;

/// The most bytes one append request carries. The library counts entries only.
const REQUEST_BYTES: usize = 1 << 20;

/// The log, as the library wants it.
#[derive(Clone)]
pub struct LogStore {
    log: Arc<dyn RaftLog>,
}

impl LogStore {
    /// Wraps a log.
    pub fn new(log: Arc<dyn RaftLog>) -> Self {
        Self { log }
    }

    fn read(&self, from: u64, until: u64, max_bytes: usize) -> io::Result<Vec<RaftEntry>> {
        let records = self.log.read(from, until, max_bytes).map_err(io_error)?;
        records.into_iter().map(|record| to_entry(&record)).collect()
    }

    async fn waited(&self, start: impl FnOnce(&dyn RaftLog, Done)) -> io::Result<()> {
        let (tx, rx) = oneshot::channel();
        start(&*self.log, callback(move |result| drop(tx.send(result))));
        rx.await.map_err(|_| io::Error::other("the log's writer thread is gone"))?.map_err(io_error)
    }
}

fn callback(f: impl FnOnce(Result<(), StorageError>) + Send + 'static) -> Done {
    Box::new(f)
}

/// The payload bytes of an entry, as they stand in the log and on the wire.
pub fn payload_of(entry: &RaftEntry) -> Bytes {
    match &entry.payload {
        EntryPayload::Blank => entry::encode_blank(),
        EntryPayload::Normal(proposal) => proposal.0.clone(),
        EntryPayload::Membership(membership) => entry::encode_membership(membership),
    }
}

/// The entry of a log id and payload bytes. A command is carried as it is and decoded only when it is applied.
///
/// # Errors
/// `InvalidData` if the bytes are neither a command, a blank nor a membership of a known format.
pub fn entry_of(log_id: RaftLogId, payload: &Bytes) -> io::Result<RaftEntry> {
    let payload = if entry::is_command(payload) {
        EntryPayload::Normal(Proposal(payload.clone()))
    } else {
        match entry::decode(payload).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))? {
            Payload::Blank => EntryPayload::Blank,
            Payload::Membership(membership) => EntryPayload::Membership(membership),
            Payload::Command { .. } => unreachable!("is_command was false"),
        }
    };
    Ok(RaftEntry::new(log_id, payload))
}

fn to_entry(record: &LogRecord) -> io::Result<RaftEntry> {
    entry_of(from_storage(&record.log_id), &record.payload)
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> io::Result<Vec<RaftEntry>> {
        use std::ops::Bound;
        let from = match range.start_bound() {
            Bound::Included(&i) => i,
            Bound::Excluded(&i) => i + 1,
            Bound::Unbounded => 0,
        };
        let until = match range.end_bound() {
            Bound::Included(&i) => i + 1,
            Bound::Excluded(&i) => i,
            Bound::Unbounded => u64::MAX,
        };
        self.read(from, until, usize::MAX)
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<RaftEntry>> {
        self.read(start, end, REQUEST_BYTES)
    }

    async fn entries_stream<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> impl futures_util::Stream<Item = io::Result<RaftEntry>> + OptionalSend {
        use std::ops::Bound;
        let from = match range.start_bound() {
            Bound::Included(&i) => i,
            Bound::Excluded(&i) => i + 1,
            Bound::Unbounded => 0,
        };
        let until = match range.end_bound() {
            Bound::Included(&i) => i + 1,
            Bound::Excluded(&i) => i,
            Bound::Unbounded => u64::MAX,
        };
        pieces(self.clone(), from, until)
    }

    async fn read_vote(&mut self) -> io::Result<Option<RaftVote>> {
        Ok(self.log.vote().as_ref().map(vote_from_storage))
    }
}

/// The entries of `[from, until)` as a stream that holds at most one piece of them in memory.
fn pieces(
    store: LogStore,
    from: u64,
    until: u64,
) -> impl futures_util::Stream<Item = io::Result<RaftEntry>> + Send {
    struct State {
        store: LogStore,
        next: u64,
        until: u64,
        ready: std::vec::IntoIter<RaftEntry>,
    }
    let state = Some(State { store, next: from, until, ready: Vec::new().into_iter() });
    futures_util::stream::unfold(state, |state| async move {
        let mut state = state?;
        if state.ready.len() == 0 && state.next < state.until {
            match state.store.read(state.next, state.until, REQUEST_BYTES) {
                Ok(entries) => state.ready = entries.into_iter(),
                Err(error) => return Some((Err(error), None)),
            }
        }
        let entry = state.ready.next()?;
        state.next = entry.index() + 1;
        Some((Ok(entry), Some(state)))
    })
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> io::Result<LogState<TypeConfig>> {
        let bounds = self.log.bounds();
        let purged = bounds.purged.as_ref().map(from_storage);
        let last = bounds.last.as_ref().map(from_storage).or(purged);
        Ok(LogState { last_purged_log_id: purged, last_log_id: last })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &RaftVote) -> io::Result<()> {
        let vote = vote_to_storage(vote);
        self.waited(move |log, done| log.save_vote(vote, done)).await
    }

    async fn save_committed(&mut self, committed: Option<RaftLogId>) -> io::Result<()> {
        if let Some(committed) = committed {
            self.log.save_committed(to_storage(&committed));
        }
        Ok(())
    }

    async fn read_committed(&mut self) -> io::Result<Option<RaftLogId>> {
        Ok(self.log.committed().as_ref().map(from_storage))
    }

    async fn append<I>(&mut self, entries: I, callback_: IOFlushed<TypeConfig>) -> io::Result<()>
    where
        I: IntoIterator<Item = RaftEntry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let records = entries
            .into_iter()
            .map(|entry| LogRecord { log_id: to_storage(&entry.log_id), payload: payload_of(&entry) })
            .collect();
        self.log.append(records, callback(move |result| callback_.io_completed(result.map_err(io_error))));
        Ok(())
    }

    async fn truncate_after(&mut self, last: Option<RaftLogId>) -> io::Result<()> {
        self.waited(move |log, done| log.truncate_after(last.map(|id| id.index), done)).await
    }

    async fn purge(&mut self, up_to: RaftLogId) -> io::Result<()> {
        self.log.purge(
            to_storage(&up_to),
            callback(|result| {
                if let Err(error) = result {
                    tracing::error!(%error, "purging the log failed");
                }
            }),
        );
        Ok(())
    }
}
