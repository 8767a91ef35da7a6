//! Log and state of one directory, opened together: each is whole by its own lights, and now they have to fit.

use crate::datadir::DataDir;
use crate::error::StorageError;
use crate::log::RaftLog;
use crate::segment_log::SegmentLog;
use crate::state::SealedState;
use crate::tree_state::TreeState;

/// Opens the log and the state of a data directory, verifies both, and ties the state to the log: it writes
/// nothing that the log does not hold durably.
///
/// # Errors
/// Those of [`SegmentLog::open`] and [`TreeState::open`]; [`StorageError::Damaged`] if one of the two has lost what
/// the other one needs.
pub fn open(dir: &DataDir) -> Result<(SegmentLog, TreeState), StorageError> {
    let log = SegmentLog::open(dir)?;
    let state = TreeState::open(dir)?;
    let applied = state.applied().log_id;
    let purged = log.bounds().purged;
    if let Some(purged) = purged
        && applied.is_none_or(|applied| applied.index < purged.index)
    {
        let end = applied.map_or("nothing".to_owned(), |applied| format!("entry {}", applied.index));
        let what = format!(
            "the state in {} has lost its tail: it holds {end}, and the log begins after entry {}",
            dir.state().display(),
            purged.index
        );
        return Err(StorageError::damaged(what));
    }
    // Whoever applied anything had voted before.
    if applied.is_some() && log.vote().is_none() && log.bounds().last.is_none() {
        let what = format!("the log in {} is gone, the state is there", dir.log().display());
        return Err(StorageError::damaged(what));
    }
    state.set_durable_log(log.durable());
    Ok((log, state))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::LogId;
    use crate::log::LogRecord;
    use crate::state::{ApplyEntry, ApplyOp};

    fn id(index: u64) -> LogId {
        LogId { term: 1, node: 1, index }
    }

    /// A log of ten entries of which `purged` are gone, and a state that has applied `applied` of them.
    fn filled(dir: &DataDir, applied: u64, purged: u64) {
        let (log, state) = open(dir).expect("new");
        let records = (1..=10).map(|index| LogRecord { log_id: id(index), payload: vec![7; 9].into() });
        let wait = |start: &dyn Fn(crate::log::Done)| {
            let (sent, done) = std::sync::mpsc::channel();
            start(Box::new(move |result| sent.send(result).expect("somebody waits")));
            done.recv().expect("called").expect("written");
        };
        let records: Vec<_> = records.collect();
        wait(&|done| log.append(records.clone(), done));
        wait(&|done| log.purge(id(purged), done));
        let entries = (1..=applied).map(|index| ApplyEntry { log_id: id(index), op: ApplyOp::Blank });
        state.apply(entries.collect()).expect("applied");
        wait(&|done| state.flush(done));
    }

    #[test]
    fn a_state_from_before_the_logs_beginning_is_refused() {
        let base = tempfile::tempdir().expect("tempdir");
        let dir = DataDir::open(base.path()).expect("new");
        filled(&dir, 5, 5);
        drop(open(&dir).expect("they fit"));
        let base = tempfile::tempdir().expect("tempdir");
        let dir = DataDir::open(base.path()).expect("new");
        filled(&dir, 4, 5);
        let error = open(&dir).map(drop).expect_err("a gap between them").to_string();
        assert!(error.contains("holds entry 4") && error.contains("raft rebuild"), "{error}");
    }

    #[test]
    fn a_log_that_is_gone_is_noticed_even_without_its_promise() {
        let base = tempfile::tempdir().expect("tempdir");
        let dir = DataDir::open(base.path()).expect("new");
        filled(&dir, 5, 3);
        std::fs::remove_dir_all(dir.log()).expect("remove");
        std::fs::create_dir(dir.log()).expect("make");
        let error = open(&dir).map(drop).expect_err("lost").to_string();
        assert!(error.contains("had acknowledged entry 10"), "{error}");
        crate::datadir::forget_promise(&dir).expect("write");
        let error = open(&dir).map(drop).expect_err("lost").to_string();
        assert!(error.contains("is gone"), "{error}");
    }
}
