//! What the log promises, through its public interface.

use std::path::Path;
use std::sync::mpsc;

use super::*;

fn id(term: u64, index: u64) -> LogId {
    LogId { term, node: 1, index }
}

fn record(term: u64, index: u64, size: usize) -> LogRecord {
    LogRecord { log_id: id(term, index), payload: vec![(term * 31 + index) as u8; size].into() }
}

fn records(term: u64, range: std::ops::RangeInclusive<u64>, size: usize) -> Vec<LogRecord> {
    range.map(|index| record(term, index, size)).collect()
}

fn open(path: &Path) -> SegmentLog {
    SegmentLog::open(&DataDir::open(path).expect("free")).expect("good")
}

/// Runs one queued operation and waits for its end.
fn wait(operation: impl FnOnce(Done)) -> Result<(), StorageError> {
    let (sender, receiver) = mpsc::channel();
    operation(Box::new(move |result| sender.send(result).expect("the test waits")));
    receiver.recv().expect("done is called")
}

fn append(log: &SegmentLog, records: Vec<LogRecord>) {
    wait(|done| log.append(records, done)).expect("append");
}

fn all(log: &SegmentLog) -> Vec<LogRecord> {
    let bounds = log.bounds();
    let from = bounds.purged.map_or(0, |p| p.index + 1);
    let until = bounds.last.map_or(0, |l| l.index + 1);
    let mut out: Vec<LogRecord> = Vec::new();
    let mut next = from.max(u64::from(bounds.purged.is_none()));
    while next < until {
        let more = log.read(next, until, 1 << 20).expect("read");
        assert!(!more.is_empty(), "nothing at {next}");
        next += more.len() as u64;
        out.extend(more);
    }
    out
}

#[test]
fn what_was_acknowledged_is_there_after_reopening() {
    let dir = tempfile::tempdir().expect("tempdir");
    let log = open(dir.path());
    append(&log, records(1, 1..=5, 100));
    append(&log, records(1, 6..=6, 0));
    append(&log, records(2, 7..=400, 1000));
    drop(log);
    let log = open(dir.path());
    let mut expected = records(1, 1..=5, 100);
    expected.extend(records(1, 6..=6, 0));
    expected.extend(records(2, 7..=400, 1000));
    assert_eq!(all(&log), expected);
    assert_eq!(log.bounds(), LogBounds { purged: None, last: Some(id(2, 400)) });
}

#[test]
fn queued_records_are_readable_at_once() {
    let dir = tempfile::tempdir().expect("tempdir");
    let log = open(dir.path());
    log.append(records(1, 1..=3, 10), Box::new(|_| {}));
    assert_eq!(log.read(2, 9, 1000).expect("read"), records(1, 2..=3, 10));
    assert_eq!(log.bounds().last, Some(id(1, 3)));
}

#[test]
fn a_read_is_bounded_but_never_empty() {
    let dir = tempfile::tempdir().expect("tempdir");
    let log = open(dir.path());
    append(&log, records(1, 1..=10, 100));
    assert_eq!(log.read(1, 11, 0).expect("read").len(), 1);
    assert_eq!(log.read(1, 11, 350).expect("read").len(), 3);
    assert_eq!(log.read(11, 20, 350).expect("read").len(), 0);
    drop(log);
    let log = open(dir.path());
    assert_eq!(log.read(1, 11, 0).expect("from the disk").len(), 1);
    assert_eq!(log.read(1, 11, 350).expect("from the disk").len(), 3);
}

#[test]
fn appends_that_wait_together_share_a_sync() {
    let dir = tempfile::tempdir().expect("tempdir");
    let log = open(dir.path());
    let before = log.sync_stats();
    append(&log, records(1, 1..=1, 10));
    assert_eq!(log.sync_stats().syncs, before.syncs + 1, "a lone append costs one sync");
    // The writer is held in a callback while a hundred appends queue up.
    let (held, hold) = mpsc::channel::<()>();
    log.append(records(1, 2..=2, 10), Box::new(move |_| hold.recv().unwrap_or(())));
    let (sender, receiver) = mpsc::channel();
    for index in 3..=102 {
        let sender = sender.clone();
        log.append(records(1, index..=index, 10), Box::new(move |r| sender.send(r).expect("waits")));
    }
    held.send(()).expect("the callback waits");
    for _ in 3..=102 {
        receiver.recv().expect("done is called").expect("append");
    }
    let after = log.sync_stats();
    // The hundred form one group, or two if the first of them was taken with entry 2.
    assert!(after.syncs <= before.syncs + 4, "{before:?} {after:?}");
    assert_eq!(after.entries, before.entries + 102);
}

#[test]
fn a_truncated_tail_never_comes_back() {
    for after in [0u64, 1, 49, 50, 99] {
        let dir = tempfile::tempdir().expect("tempdir");
        let log = open(dir.path());
        append(&log, records(1, 1..=50, 100));
        append(&log, records(1, 51..=100, 2000));
        let kept = (after > 0).then_some(after);
        wait(|done| log.truncate_after(kept, done)).expect("truncate");
        let mut expected = records(1, 1..=50, 100);
        expected.extend(records(1, 51..=100, 2000));
        expected.truncate(after as usize);
        assert_eq!(all(&log), expected, "after {after}");
        assert_eq!(log.bounds().last, kept.map(|k| id(1, k)));
        drop(log);
        let log = open(dir.path());
        assert_eq!(all(&log), expected, "reopened after {after}");
        append(&log, records(3, after + 1..=after + 2, 10));
        expected.extend(records(3, after + 1..=after + 2, 10));
        drop(log);
        assert_eq!(all(&open(dir.path())), expected, "appended after {after}");
    }
}

#[test]
fn truncation_reaches_over_segments() {
    let dir = tempfile::tempdir().expect("tempdir");
    let log = open(dir.path());
    for first in (1..=30_001).step_by(5000) {
        append(&log, records(1, first..=first + 4999, 8));
    }
    wait(|done| log.truncate_after(Some(7000), done)).expect("truncate");
    append(&log, records(2, 7001..=7003, 8));
    drop(log);
    let log = open(dir.path());
    assert_eq!(log.bounds().last, Some(id(2, 7003)));
    assert_eq!(log.read(6999, 8000, 1 << 20).expect("read").len(), 5);
}

#[test]
fn a_purged_beginning_stays_purged() {
    let dir = tempfile::tempdir().expect("tempdir");
    let log = open(dir.path());
    for first in (1..=20_001).step_by(5000) {
        append(&log, records(1, first..=first + 4999, 20));
    }
    let full = log.size_bytes();
    wait(|done| log.purge(id(1, 12_345), done)).expect("purge");
    assert_eq!(log.read(12_345, 12_346, 100).expect("read"), []);
    let left = log.size_bytes();
    assert!(left < full / 2 + full / 100, "{left} of {full}");
    drop(log);
    let log = open(dir.path());
    assert_eq!(log.bounds(), LogBounds { purged: Some(id(1, 12_345)), last: Some(id(1, 25_000)) });
    assert_eq!(log.size_bytes(), left);
    assert_eq!(all(&log), records(1, 12_346..=25_000, 20));
}

#[test]
fn a_purge_beyond_the_log_moves_it_forward() {
    let dir = tempfile::tempdir().expect("tempdir");
    let log = open(dir.path());
    append(&log, records(1, 1..=10, 20));
    wait(|done| log.purge(id(4, 500), done)).expect("purge");
    assert_eq!(log.bounds(), LogBounds { purged: Some(id(4, 500)), last: Some(id(4, 500)) });
    append(&log, records(5, 501..=502, 20));
    drop(log);
    let log = open(dir.path());
    assert_eq!(all(&log), records(5, 501..=502, 20));
    assert_eq!(log.bounds().purged, Some(id(4, 500)));
}

#[test]
fn a_vote_is_durable_with_its_own_sync() {
    let dir = tempfile::tempdir().expect("tempdir");
    let log = open(dir.path());
    let vote = Vote { term: 7, node: 3, committed: true };
    let before = log.sync_stats().syncs;
    wait(|done| log.save_vote(vote, done)).expect("vote");
    assert_eq!(log.sync_stats().syncs, before + 1);
    drop(log);
    assert_eq!(open(dir.path()).vote(), Some(vote));
}

#[test]
fn the_commit_point_rides_with_the_next_group() {
    let dir = tempfile::tempdir().expect("tempdir");
    let log = open(dir.path());
    append(&log, records(1, 1..=3, 10));
    let before = log.sync_stats().syncs;
    log.save_committed(id(1, 2));
    assert_eq!((log.committed(), log.sync_stats().syncs), (Some(id(1, 2)), before));
    append(&log, records(1, 4..=4, 10));
    log.save_committed(id(1, 4));
    drop(log);
    assert_eq!(open(dir.path()).committed(), Some(id(1, 2)));
}

#[test]
fn large_records_are_kept_whole() {
    let dir = tempfile::tempdir().expect("tempdir");
    let log = open(dir.path());
    let mut expected = Vec::new();
    for (index, size) in (1..).zip([10, 65_504, 65_503, 65_000, 1_150_000, 10, 200_000]) {
        expected.push(record(1, index, size));
    }
    append(&log, expected.clone());
    drop(log);
    let log = open(dir.path());
    assert_eq!(all(&log), expected);
    wait(|done| log.truncate_after(Some(4), done)).expect("truncate");
    append(&log, records(2, 5..=5, 10));
    drop(log);
    expected.truncate(4);
    expected.push(record(2, 5, 10));
    assert_eq!(all(&open(dir.path())), expected);
}

#[test]
fn misplaced_and_oversized_appends_change_nothing() {
    let dir = tempfile::tempdir().expect("tempdir");
    let log = open(dir.path());
    append(&log, records(1, 1..=3, 10));
    assert!(wait(|done| log.append(records(1, 5..=5, 10), done)).is_err());
    let large = wait(|done| log.append(records(1, 4..=4, MAX_PAYLOAD_BYTES + 1), done));
    assert!(matches!(large, Err(StorageError::TooLarge { .. })));
    append(&log, records(1, 4..=4, 10));
    assert_eq!(log.latch(), None);
}

#[test]
fn after_a_failure_every_operation_is_refused() {
    let dir = tempfile::tempdir().expect("tempdir");
    let log = open(dir.path());
    append(&log, records(1, 1..=1, 10));
    log.shared.fail(&StorageError::io("sync", std::io::Error::other("the disk is gone")));
    let refused = wait(|done| log.append(records(1, 2..=2, 10), done)).expect_err("latched");
    assert!(matches!(&refused, StorageError::Latched { first } if first.contains("the disk is gone")));
    assert!(wait(|done| log.save_vote(Vote::default(), done)).is_err());
    assert!(wait(|done| log.purge(id(1, 1), done)).is_err());
    assert!(wait(|done| log.truncate_after(None, done)).is_err());
}

#[test]
fn the_durable_index_follows_syncs_truncation_and_purge() {
    let dir = tempfile::tempdir().expect("tempdir");
    let log = open(dir.path());
    let durable = log.durable();
    assert_eq!(durable(), 0);
    append(&log, records(1, 1..=10, 10));
    assert_eq!(durable(), 10);
    wait(|done| log.truncate_after(Some(4), done)).expect("truncate");
    assert_eq!(durable(), 4);
    wait(|done| log.purge(id(1, 20), done)).expect("purge");
    assert_eq!(durable(), 20);
}
