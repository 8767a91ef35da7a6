//! What segments hold, and what is noticed when they do not.

use super::*;

fn id(index: u64) -> LogId {
    LogId { term: 1, node: 1, index }
}

fn records(range: std::ops::RangeInclusive<u64>, size: usize) -> Vec<LogRecord> {
    range.map(|index| LogRecord { log_id: id(index), payload: vec![index as u8; size].into() }).collect()
}

fn open(dir: &Path) -> LogDisk {
    Found::read(dir).and_then(Found::begin).expect("good")
}

fn refused(dir: &Path) -> String {
    let error = Found::read(dir).map(drop).expect_err("damaged");
    assert!(matches!(error, StorageError::Damaged { .. }), "{error}");
    error.to_string()
}

/// Two segments: entries 1 to 60 in the first one, up to 90 in the second.
fn filled(dir: &Path) -> LogDisk {
    let disk = open(dir);
    for first in [1, 31, 61] {
        disk.append(&records(first..=first + 29, 65_000)).expect("append");
        disk.sync().expect("sync");
    }
    assert_eq!(segments(dir).expect("read"), [1, 2]);
    disk
}

fn change(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).expect("read");
    change(&mut bytes);
    fs::write(path, bytes).expect("write");
}

/// Where the payload of an entry lies in its file.
fn payload(disk: &LogDisk, index: u64) -> (PathBuf, usize) {
    let place = disk.index.read().place(index).expect("there");
    (segment_path(&disk.dir, place.segment), place.offset as usize + log_frame::ENTRY_BYTES)
}

#[test]
fn a_group_is_one_write_and_nothing_is_written_again() {
    let dir = tempfile::tempdir().expect("tempdir");
    let disk = open(dir.path());
    let path = segment_path(dir.path(), 1);
    let mut before = fs::read(&path).expect("read");
    for first in [1, 11, 21] {
        let end = disk.head.lock().end as usize;
        disk.append(&records(first..=first + 9, 100)).expect("append");
        disk.write_committed(id(first));
        disk.sync().expect("sync");
        let after = fs::read(&path).expect("read");
        assert_eq!(after[..end], before[..end]);
        assert!(after.len() as u64 >= SEGMENT_BYTES.min(before.len() as u64), "its space was reserved");
        before = after;
    }
    assert_eq!(disk.meter().stats().syncs, 3);
}

#[test]
fn a_changed_entry_of_an_older_segment_is_named() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (path, at) = payload(&filled(dir.path()), 20);
    change(&path, |bytes| bytes[at + 5] ^= 1);
    let error = refused(dir.path());
    assert!(error.contains("log entry 20") && error.contains("wrong checksum"), "{error}");
}

#[test]
fn a_segment_that_is_missing_cut_or_another_is_noticed() {
    type Damage = fn(&Path);
    let cases: [(&str, Damage); 4] = [
        ("the ones after 0 are missing", |dir| fs::remove_file(segment_path(dir, 1)).expect("remove")),
        ("segment 1 of the log is damaged", |dir| {
            change(&segment_path(dir, 1), |bytes| bytes.truncate(900_000))
        }),
        ("segment 2 of the log is damaged", |dir| {
            fs::copy(segment_path(dir, 1), segment_path(dir, 2)).map(drop).expect("copy");
        }),
        ("segment 1 of the log is damaged", |dir| change(&segment_path(dir, 1), Vec::clear)),
    ];
    for (expected, damage) in cases {
        let dir = tempfile::tempdir().expect("tempdir");
        drop(filled(dir.path()));
        damage(dir.path());
        let error = refused(dir.path());
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn what_a_crash_left_half_written_is_cut_off_and_does_not_come_back() {
    let dir = tempfile::tempdir().expect("tempdir");
    let disk = open(dir.path());
    disk.append(&records(1..=3, 100)).expect("append");
    disk.sync().expect("sync");
    let (path, at) = payload(&disk, 2);
    drop(disk);
    change(&path, |bytes| bytes[at] ^= 1);
    let found = Found::read(dir.path()).expect("an end");
    assert_eq!((found.known().last, found.replay.torn), (Some(id(1)), true));
    let disk = found.begin().expect("cut");
    disk.append(&records(2..=2, 100)).expect("append");
    disk.sync().expect("sync");
    drop(disk);
    let found = Found::read(dir.path()).expect("whole");
    assert_eq!((found.known().last, found.replay.torn), (Some(id(2)), false));
}

#[test]
fn a_lost_tail_with_committed_entries_is_noticed() {
    let dir = tempfile::tempdir().expect("tempdir");
    let disk = open(dir.path());
    disk.append(&records(1..=5, 100)).expect("append");
    disk.truncate_from(4, Some(id(3)));
    disk.write_committed(id(4));
    disk.sync().expect("sync");
    drop(disk);
    let error = refused(dir.path());
    assert!(error.contains("ends with entry 3") && error.contains("committed entry 4"), "{error}");
}

#[test]
fn purging_removes_whole_segments_and_keeps_what_they_said() {
    let dir = tempfile::tempdir().expect("tempdir");
    let disk = filled(dir.path());
    let vote = Vote { term: 7, node: 2, committed: true };
    disk.write_vote(vote);
    disk.write_floor(id(59));
    disk.sync().expect("sync");
    disk.drop_segments(59).expect("drop");
    assert_eq!(segments(dir.path()).expect("read"), [1, 2], "entry 60 is needed");
    disk.write_floor(id(60));
    disk.sync().expect("sync");
    disk.drop_segments(60).expect("drop");
    assert_eq!(segments(dir.path()).expect("read"), [2]);
    assert_eq!(disk.read(60, 99, 1 << 20).expect("read"), []);
    assert_eq!(disk.read(61, 64, 1 << 20).expect("read"), records(61..=63, 65_000));
    drop(disk);
    let found = Found::read(dir.path()).expect("whole");
    let known = Known { floor: Some(id(60)), last: Some(id(90)), vote: Some(vote), committed: None };
    assert_eq!((found.known(), found.index.places.len()), (known, 30));
}

#[test]
fn a_segment_whose_removal_a_crash_undid_is_removed_again() {
    let dir = tempfile::tempdir().expect("tempdir");
    let disk = filled(dir.path());
    disk.append(&records(91..=150, 65_000)).expect("append");
    disk.write_floor(id(120));
    disk.sync().expect("sync");
    let oldest = fs::read(segment_path(dir.path(), 1)).expect("read");
    disk.drop_segments(120).expect("drop");
    assert_eq!(segments(dir.path()).expect("read"), [3]);
    drop(disk);
    fs::write(segment_path(dir.path(), 1), oldest).expect("write");
    fs::write(segment_path(dir.path(), 4).with_extension("log.tmp"), "half").expect("write");
    let disk = open(dir.path());
    assert_eq!(fs::read_dir(dir.path()).expect("read").count(), 1, "only the third segment is left");
    assert_eq!(disk.read(121, 122, 0).expect("read"), records(121..=121, 65_000));
}

#[test]
fn entries_removed_from_purged_segments_leave_no_gap() {
    let dir = tempfile::tempdir().expect("tempdir");
    let disk = filled(dir.path());
    disk.truncate_from(41, Some(id(40)));
    disk.append(&records(41..=100, 65_000)).expect("append");
    disk.write_floor(id(40));
    disk.sync().expect("sync");
    disk.drop_segments(40).expect("drop");
    assert_eq!(segments(dir.path()).expect("read"), [3], "the group needs a segment of its own");
    drop(disk);
    let disk = open(dir.path());
    assert_eq!(disk.read(41, 101, 9 << 20).expect("read"), records(41..=100, 65_000));
}

#[test]
fn after_a_failed_sync_none_succeeds() {
    let dir = tempfile::tempdir().expect("tempdir");
    let disk = open(dir.path());
    // A pipe can be neither written at a place nor synced.
    let (_reader, writer) = std::io::pipe().expect("pipe");
    let pipe = Arc::new(File::from(std::os::fd::OwnedFd::from(writer)));
    let file = std::mem::replace(&mut disk.head.lock().file, pipe);
    disk.append(&records(1..=1, 10)).expect("taken");
    assert!(matches!(disk.sync(), Err(StorageError::Io { .. })));
    disk.head.lock().file = file;
    assert!(matches!(disk.sync(), Err(StorageError::Latched { .. })));
}
