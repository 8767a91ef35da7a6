//! What the state promises, through its public interface.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::AtomicU64;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::*;
use crate::pieces::Pieces;
use crate::txn::{Activation, Command, Txn, Write};
use crate::window::Remembered;

fn open(path: &Path) -> TreeState {
    TreeState::open(&DataDir::open(path).expect("free")).expect("good")
}

fn root() -> FolderKey {
    FolderKey::root([9; 16])
}

/// The record at a path like `a/b/c`.
fn key(path: &str) -> RecordKey {
    let (folders, name) = path.rsplit_once('/').unwrap_or(("", path));
    let folder = folders
        .split('/')
        .filter(|s| !s.is_empty())
        .fold(root(), |folder, segment| folder.folder(segment.as_bytes()).expect("valid"));
    folder.child(name.as_bytes()).expect("valid")
}

fn put(path: &str, value: impl Into<Bytes>) -> Write {
    Write::Put { key: key(path), value: value.into() }
}

fn delete(path: &str) -> Write {
    Write::Delete { key: key(path) }
}

fn id(index: u64) -> LogId {
    LogId { term: 1, node: 1, index }
}

fn entry(index: u64, txn: Txn) -> ApplyEntry {
    let command = Command { term: 1, sequence: index, cluster_time_ms: index, txn, checkpoint: None };
    ApplyEntry { log_id: id(index), op: ApplyOp::Command(command) }
}

fn write(index: u64, writes: Vec<Write>) -> ApplyEntry {
    let mut request_id = [0; 16];
    request_id[..8].copy_from_slice(&index.to_be_bytes());
    let response = Bytes::copy_from_slice(&index.to_be_bytes());
    entry(index, Txn { request_id: RequestId(request_id), writes, response, ..Txn::default() })
}

fn checkpoint(index: u64, of: Option<(u64, [u8; 32])>) -> ApplyEntry {
    let mark = Some(CheckpointMark { of });
    let txn = Txn::default();
    let command = Command { term: 1, sequence: index, cluster_time_ms: index, txn, checkpoint: mark };
    ApplyEntry { log_id: id(index), op: ApplyOp::Command(command) }
}

/// Writes and deletes over a few names, the same for the same index.
fn busy(index: u64) -> ApplyEntry {
    let n = index.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
    let path = format!("f{}/g{}/{}", n % 5, n % 3, n % 17);
    match n % 7 {
        0 => write(index, vec![delete(&path), put(&format!("x{}", n % 4), vec![n as u8; 40])]),
        1 => ApplyEntry { log_id: id(index), op: ApplyOp::Membership(vec![n as u8; 9].into()) },
        2 => write(index, vec![put(&path, vec![n as u8; 100_000])]),
        _ => write(index, vec![put(&path, vec![n as u8; 50])]),
    }
}

fn flush(state: &TreeState) {
    let (sender, receiver) = mpsc::channel();
    state.flush(Box::new(move |result| sender.send(result).expect("the test waits")));
    receiver.recv().expect("done is called").expect("flush");
}

fn names(children: &[Child]) -> Vec<String> {
    let name = |c: &Child| String::from_utf8_lossy(&c.segment).into_owned() + if c.folder { "/" } else { "" };
    children.iter().map(name).collect()
}

/// Every record below the root, with its version.
fn contents(state: &TreeState) -> BTreeMap<RecordKey, Record> {
    fn walk(state: &TreeState, folder: &FolderKey, out: &mut BTreeMap<RecordKey, Record>) {
        for child in state.children(folder, None, usize::MAX).expect("list") {
            if child.folder {
                walk(state, &folder.folder(&child.segment).expect("valid"), out);
            } else {
                let key = folder.child(&child.segment).expect("valid");
                let record = state.get(&key).expect("read").expect("listed");
                out.insert(key, record);
            }
        }
    }
    let mut out = BTreeMap::new();
    walk(state, &root(), &mut out);
    out
}

/// The digest at the applied index, checked against a scan.
fn scrubbed(state: &TreeState) -> [u8; 32] {
    state.cut().expect("cut").verify().expect("the digest that followed the changes")
}

#[test]
fn what_was_applied_is_readable_before_and_after_the_disk() {
    let dir = tempfile::tempdir().expect("tempdir");
    let state = open(dir.path());
    let large = vec![5; 300_000];
    let writes = vec![put("app/db", "one"), put("app/large", large.clone()), put("app/x/y", "two")];
    state.apply(vec![write(1, writes)]).expect("apply");
    let clear = RecordKey::clear("seal").expect("valid");
    let value = Bytes::from_static(b"config");
    let put_clear = Write::Put { key: clear.clone(), value: value.clone() };
    state.apply(vec![write(2, vec![put_clear])]).expect("apply");
    let check = |state: &TreeState| {
        let version = Version { generation: 1, index: 1 };
        let record = state.get(&key("app/db")).expect("read").expect("there");
        assert_eq!(record, Record { version, value: Bytes::from_static(b"one") });
        assert_eq!(state.get(&key("app/large")).expect("read").expect("there").value, large);
        assert_eq!(state.get(&clear).expect("read").expect("there").value, value);
        assert_eq!(state.get(&key("app/none")).expect("read"), None);
        let app = root().folder(b"app").expect("valid");
        assert_eq!(names(&state.children(&app, None, 10).expect("list")), ["db", "large", "x/"]);
        assert_eq!(state.children_version(&app).expect("read"), Some(version));
        assert_eq!(state.applied().log_id, Some(id(2)));
        assert_eq!(state.applied().cluster_time_ms, 2);
    };
    check(&state);
    flush(&state);
    assert_eq!(state.flushed(), Some(id(2)));
    check(&state);
    drop(state);
    check(&open(dir.path()));
}

#[test]
fn entries_out_of_order_are_refused() {
    let dir = tempfile::tempdir().expect("tempdir");
    let state = open(dir.path());
    state.apply(vec![busy(1), busy(2)]).expect("apply");
    assert!(state.apply(vec![busy(2)]).is_err());
    assert!(state.apply(vec![busy(4)]).is_err());
    state.apply(vec![busy(3)]).expect("a refusal changes nothing");
}

#[test]
fn the_digest_does_not_depend_on_batching() {
    let digests: Vec<[u8; 32]> = [1usize, 7, 400]
        .into_iter()
        .map(|size| {
            let dir = tempfile::tempdir().expect("tempdir");
            let state = open(dir.path());
            let entries: Vec<_> = (1..=400).map(busy).collect();
            for (n, some) in entries.chunks(size).enumerate() {
                state.apply(some.to_vec()).expect("apply");
                if size == 7 && n % 10 == 0 {
                    flush(&state);
                }
            }
            scrubbed(&state)
        })
        .collect();
    assert_eq!(digests[0], digests[1]);
    assert_eq!(digests[0], digests[2]);
}

#[test]
fn after_a_crash_applying_again_gives_the_same_state() {
    let whole = tempfile::tempdir().expect("tempdir");
    let expected = open(whole.path());
    expected.apply((1..=300).map(busy).collect()).expect("apply");
    let dir = tempfile::tempdir().expect("tempdir");
    let mut applied = 0;
    for durable in [40u64, 41, 170, 300] {
        let state = open(dir.path());
        assert_eq!(state.applied().log_id.map_or(0, |id| id.index), state.flushed().map_or(0, |id| id.index));
        assert!(state.applied().log_id.is_none_or(|id| id.index <= applied));
        let from = state.applied().log_id.map_or(1, |id| id.index + 1);
        state.set_durable_log(Arc::new(move || durable));
        for index in from..=300 {
            state.apply(vec![busy(index)]).expect("apply");
            if index == durable {
                flush(&state);
                applied = index;
            }
        }
        // Dropped with the rest in memory: the log is not on the disk, so neither may the state be.
    }
    let state = open(dir.path());
    assert_eq!(state.applied(), expected.applied());
    assert_eq!(contents(&state), contents(&expected));
    assert_eq!(scrubbed(&state), scrubbed(&expected));
}

#[test]
fn nothing_is_written_that_the_log_does_not_hold() {
    let dir = tempfile::tempdir().expect("tempdir");
    let state = open(dir.path());
    let durable = Arc::new(AtomicU64::new(0));
    let cell = Arc::clone(&durable);
    state.set_durable_log(Arc::new(move || cell.load(Ordering::Acquire)));
    let (sender, receiver) = mpsc::channel();
    state.apply(vec![busy(1)]).expect("apply");
    state.flush(Box::new(move |result| sender.send(result).expect("the test waits")));
    assert!(receiver.recv_timeout(Duration::from_millis(50)).is_err());
    assert_eq!(state.flushed(), None);
    durable.store(1, Ordering::Release);
    receiver.recv().expect("done is called").expect("flush");
    assert_eq!(state.flushed(), Some(id(1)));
}

#[test]
#[cfg(not(feature = "test-no-request-window"))]
fn requests_are_remembered_over_a_restart_and_forgotten_in_order() {
    let dir = tempfile::tempdir().expect("tempdir");
    let request = |n: u64| RequestId(u128::from(n).to_be_bytes());
    let recorded = |n: u64| {
        entry(n, Txn { request_id: request(n), response: vec![n as u8; 1 << 20].into(), ..Txn::default() })
    };
    let state = open(dir.path());
    state.apply((1..=20).map(recorded).collect()).expect("apply");
    let digest = scrubbed(&state);
    let check = |state: &TreeState| {
        assert_eq!(state.window_floor(), 5);
        assert_eq!(state.request(request(4)), None);
        let version = Version { generation: 1, index: 5 };
        assert_eq!(state.request(request(5)), Some((version, vec![5; 1 << 20].into())));
    };
    check(&state);
    drop(state);
    let state = open(dir.path());
    check(&state);
    assert_eq!(scrubbed(&state), digest);
    let again = entry(21, Txn { request_id: request(20), ..Txn::default() });
    let outcomes = state.apply(vec![again]).expect("apply");
    assert!(matches!(&outcomes[..], [Outcome::Duplicate { version, .. }] if version.index == 20));
}

struct Watcher {
    state: std::sync::Weak<TreeState>,
    seen: Mutex<Vec<(u64, usize)>>,
    replaced: AtomicBool,
    mismatch: AtomicU64,
}

impl Observer for Watcher {
    fn applied(&self, log_id: LogId, changed: &[RecordKey]) {
        let state = self.state.upgrade().expect("alive");
        assert!(state.applied().log_id < Some(log_id), "published before it was observed");
        for key in changed {
            let record = state.get(key).expect("read").expect("visible when observed");
            assert_eq!(record.version.index, log_id.index);
        }
        self.seen.lock().push((log_id.index, changed.len()));
    }

    fn replaced(&self) {
        self.replaced.store(true, Ordering::Release);
    }

    fn digest_mismatch(&self, index: u64) {
        self.mismatch.store(index, Ordering::Release);
    }
}

#[test]
fn what_is_remembered_of_an_entry_does_not_keep_the_entry_in_memory() {
    let dir = tempfile::tempdir().expect("tempdir");
    let state = open(dir.path());
    let frame = Bytes::from(vec![7; 4096]);
    let txn = Txn {
        request_id: RequestId([1; 16]),
        writes: vec![put("a/b", frame.slice(..1000))],
        response: frame.slice(1000..1200),
        ..Txn::default()
    };
    state.apply(vec![entry(1, txn)]).expect("apply");
    assert!(!frame.is_unique(), "the overlay has the value until it is on the disk");
    flush(&state);
    // The flusher lets go of what it wrote a moment after it has told so.
    let deadline = Instant::now() + Duration::from_secs(10);
    while !frame.is_unique() {
        assert!(Instant::now() < deadline, "something small still keeps all of an entry in memory");
        std::thread::yield_now();
    }
}

fn watched(path: &Path) -> (Arc<TreeState>, Arc<Watcher>) {
    let state = Arc::new(open(path));
    let watcher = Arc::new(Watcher {
        state: Arc::downgrade(&state),
        seen: Mutex::default(),
        replaced: AtomicBool::new(false),
        mismatch: AtomicU64::new(0),
    });
    state.set_observer(watcher.clone());
    (state, watcher)
}

#[test]
fn a_change_is_visible_then_observed_then_published() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (state, watcher) = watched(dir.path());
    let blank = ApplyEntry { log_id: id(2), op: ApplyOp::Blank };
    state.apply(vec![write(1, vec![put("a", "1"), put("b", "2")]), blank]).expect("apply");
    assert_eq!(*watcher.seen.lock(), [(1, 2), (2, 0)]);
}

#[test]
fn a_checkpoint_with_another_digest_is_reported() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (state, watcher) = watched(dir.path());
    state.apply(vec![busy(1), checkpoint(2, None), busy(3)]).expect("apply");
    flush(&state);
    let (index, digest) = state.digest().expect("a checkpoint was passed");
    assert_eq!(index, 2);
    state.apply(vec![checkpoint(4, Some((2, digest)))]).expect("apply");
    flush(&state);
    assert_eq!(watcher.mismatch.load(Ordering::Acquire), 0);
    drop((state, watcher));
    let (state, watcher) = watched(dir.path());
    assert_eq!(state.digest().map(|(index, _)| index), Some(4), "kept over a restart");
    state.apply(vec![checkpoint(5, Some((2, [1; 32])))]).expect("apply");
    flush(&state);
    let deadline = Instant::now() + Duration::from_secs(10);
    while watcher.mismatch.load(Ordering::Acquire) != 2 {
        assert!(Instant::now() < deadline, "not reported");
        thread::yield_now();
    }
}

#[test]
fn after_a_failure_nothing_is_applied_or_flushed() {
    let dir = tempfile::tempdir().expect("tempdir");
    let state = open(dir.path());
    state.shared.fail(&StorageError::io("sync", std::io::Error::other("the disk is gone")));
    assert!(state.latch().expect("latched").contains("the disk is gone"));
    assert!(matches!(state.apply(vec![busy(1)]), Err(StorageError::Latched { .. })));
    let (sender, receiver) = mpsc::channel();
    state.flush(Box::new(move |result| sender.send(result).expect("the test waits")));
    assert!(receiver.recv().expect("done is called").is_err());
}

/// Copies a spooled snapshot into another state.
fn install(file: &crate::SnapshotFile, to: &TreeState) -> Result<(), StorageError> {
    let manifest = Manifest::from_bytes(&file.manifest().to_bytes())?;
    let mut installer = to.begin_install(manifest)?;
    for n in 0..file.manifest().chunks {
        assert_eq!(installer.next_chunk(), n);
        installer.chunk(n, &file.read_chunk(n)?)?;
    }
    installer.finish()
}

#[test]
fn a_snapshot_taken_while_writes_go_on_is_the_state_at_its_index() {
    let dir = tempfile::tempdir().expect("tempdir");
    let state = open(dir.path());
    // Enough keys for several chunks of the scan, on the disk and in the overlay.
    let many = |index: u64, value: u64| {
        let writes = (0..100).map(|n| put(&format!("m{}/{n}", index % 30), value.to_be_bytes().to_vec()));
        write(index, writes.collect())
    };
    state.apply((1..=60).map(|i| many(i, i)).collect()).expect("apply");
    flush(&state);
    state.apply((61..=80).map(|i| many(i, i)).chain((81..=200).map(busy)).collect()).expect("apply");
    let expected = contents(&state);
    let cut = state.cut().expect("cut");
    assert_eq!(cut.meta().log_id, Some(id(200)));
    assert!(matches!(state.cut(), Err(StorageError::Busy { .. })));

    let stop = AtomicBool::new(false);
    let path = dir.path().join("snapshots").join("one");
    let file = thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut index = 200;
            while !stop.load(Ordering::Acquire) || index < 300 {
                index += 1;
                let gone = (0..100).map(|n| delete(&format!("m{}/{n}", index % 30))).collect();
                let new = match index % 3 {
                    0 => write(index, gone),
                    1 => many(index, index),
                    _ => busy(index),
                };
                state.apply(vec![new]).expect("apply");
            }
        });
        let file = cut.spool(&path);
        stop.store(true, Ordering::Release);
        writer.join().expect("writes go on");
        file.expect("spool")
    });
    assert_ne!(contents(&state), expected);

    let other_dir = tempfile::tempdir().expect("tempdir");
    let (other, watcher) = watched(other_dir.path());
    other.apply(vec![write(1, vec![put("only/here", "x")])]).expect("apply");
    install(&file, &other).expect("install");
    assert!(watcher.replaced.load(Ordering::Acquire));
    let check = |other: &TreeState| {
        assert_eq!(contents(other), expected);
        assert_eq!(other.applied().log_id, Some(id(200)));
        assert_eq!(other.flushed(), Some(id(200)));
        assert_eq!(scrubbed(other), file.manifest().digest);
    };
    check(&other);
    drop((other, watcher));
    let other = open(other_dir.path());
    check(&other);
    other.apply(vec![busy(201)]).expect("it goes on from there");
    scrubbed(&other);
}

#[test]
fn a_snapshot_with_more_requests_than_a_window_is_refused_while_it_comes() {
    let mut stream = Vec::new();
    for number in 0..=crate::window::WINDOW_REQUESTS as u128 {
        let id = RequestId((number + 1).to_be_bytes());
        let response = Bytes::new();
        crate::snapshot::fuzz::write_request(
            &mut stream,
            &Remembered { id, version: Version::default(), response },
        );
    }
    let chunks: Vec<&[u8]> = stream.chunks(crate::CHUNK_BYTES).collect();
    let dir = tempfile::tempdir().expect("tempdir");
    let state = open(dir.path());
    let manifest = Manifest {
        chunks: chunks.len() as u64,
        bytes: stream.len() as u64,
        rows: crate::window::WINDOW_REQUESTS as u64 + 1,
        ..Manifest::default()
    };
    let mut installer = state.begin_install(manifest).expect("begins");
    let result = (0..).zip(&chunks).try_for_each(|(n, chunk)| installer.chunk(n, chunk));
    let error = result.expect_err("it was staged to the end").to_string();
    assert!(error.contains("more requests"), "{error}");
}

#[test]
fn a_manifest_whose_numbers_leave_no_room_is_refused() {
    let mut manifest = Manifest::default();
    assert!(Manifest::from_bytes(&manifest.to_bytes()).is_ok());
    manifest.window.first = u64::MAX;
    assert!(Manifest::from_bytes(&manifest.to_bytes()).is_err());
    manifest.window = Default::default();
    manifest.window.forgotten_index = u64::MAX;
    assert!(Manifest::from_bytes(&manifest.to_bytes()).is_err());
}

#[test]
fn a_bad_snapshot_changes_nothing() {
    let dir = tempfile::tempdir().expect("tempdir");
    let state = open(dir.path());
    state.apply((1..=100).map(busy).collect()).expect("apply");
    let file = state.cut().expect("cut").spool(&dir.path().join("snapshots/one")).expect("spool");
    let chunks: Vec<Bytes> = (0..file.manifest().chunks).map(|n| file.read_chunk(n).expect("read")).collect();
    assert!(chunks.len() > 2, "the test needs some chunks");

    let other_dir = tempfile::tempdir().expect("tempdir");
    let other = open(other_dir.path());
    other.apply((1..=9).map(busy).collect()).expect("apply");
    let (before, digest) = (contents(&other), scrubbed(&other));
    let attempt = |manifest: Manifest, chunks: &[Bytes]| {
        let mut installer = other.begin_install(manifest)?;
        assert!(other.begin_install(Manifest::default()).is_err(), "one at a time");
        for (n, chunk) in (0..).zip(chunks) {
            installer.chunk(n, chunk)?;
        }
        installer.finish()
    };
    let good = file.manifest().clone();
    let mut changed = chunks.clone();
    let mut bytes = changed[1].to_vec();
    bytes[30_000] ^= 1;
    changed[1] = bytes.into();
    let mut swapped = chunks.clone();
    swapped.swap(0, 1);
    let wrong_time = {
        let mut manifest = good.clone();
        manifest.meta.cluster_time_ms += 1;
        manifest
    };
    for (what, manifest, chunks) in [
        ("cut off", &good, &chunks[..chunks.len() - 1]),
        ("changed", &good, &changed[..]),
        ("swapped", &good, &swapped[..]),
        ("another manifest", &wrong_time, &chunks[..]),
    ] {
        let error = attempt(manifest.clone(), chunks).expect_err(what);
        assert!(matches!(error, StorageError::Damaged { .. }), "{what}: {error}");
        assert_eq!((contents(&other), scrubbed(&other)), (before.clone(), digest), "{what}");
    }
    attempt(good.clone(), &chunks).expect("the good one");
    assert_eq!(contents(&other), contents(&state));
    other.apply(vec![busy(101)]).expect("apply");
    attempt(good, &chunks).expect("one that is not newer");
    assert_eq!(other.applied().log_id, Some(id(101)), "changes nothing");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn listings_agree_with_a_model(
        steps in prop::collection::vec(
            (prop::collection::vec(prop_oneof![Just("a"), Just("b"), Just("a\0"), Just("a\0\u{1}"), Just("c")], 1..4),
             any::<bool>(), 0u8..8),
            1..60,
        ),
        page in 1usize..5,
    ) {
        let dir = tempfile::tempdir().expect("tempdir");
        let state = open(dir.path());
        let mut model: std::collections::BTreeSet<Vec<&str>> = Default::default();
        for (index, (path, keep, flushes)) in (1..).zip(&steps) {
            let joined = path.join("/");
            let step = if *keep { put(&joined, "v") } else { delete(&joined) };
            if *keep { model.insert(path.clone()); } else { model.remove(path); }
            state.apply(vec![write(index, vec![step])]).expect("apply");
            if *flushes == 0 { flush(&state); }
        }
        for folder in [&[][..], &["a"], &["a\0"], &["a", "b"]] {
            let mut expected: Vec<Child> = model
                .iter()
                .filter(|path| path.len() > folder.len() && path.starts_with(folder))
                .map(|path| Child {
                    segment: path[folder.len()].as_bytes().to_vec(),
                    folder: path.len() > folder.len() + 1,
                })
                .collect();
            expected.sort();
            expected.dedup();
            let at = folder.iter().fold(root(), |f, s| f.folder(s.as_bytes()).expect("valid"));
            prop_assert_eq!(&state.children(&at, None, usize::MAX).expect("list"), &expected);
            prop_assert_eq!(state.children_version(&at).expect("read").is_some(), !expected.is_empty());
            let mut paged: Vec<Child> = Vec::new();
            loop {
                let more = state.children(&at, paged.last().cloned(), page).expect("list");
                if more.is_empty() { break; }
                prop_assert!(more.len() <= page);
                paged.extend(more);
            }
            prop_assert_eq!(paged, expected);
        }
        scrubbed(&state);
    }
}

#[test]
fn a_state_without_its_pointer_is_damaged_and_what_a_crash_left_of_a_new_one_is_not() {
    let dir = tempfile::tempdir().expect("tempdir");
    drop(open(dir.path()));
    let pointer = dir.path().join("state/current");
    std::fs::remove_file(&pointer).expect("remove");
    let state = open(dir.path());
    state.apply((1..=10).map(busy).collect()).expect("apply");
    let before = contents(&state);
    drop(state);
    let kept = std::fs::read(&pointer).expect("read");
    std::fs::remove_file(&pointer).expect("remove");
    let opened = DataDir::open(dir.path()).and_then(|dir| TreeState::open(&dir));
    let error = opened.map(drop).expect_err("no pointer").to_string();
    assert!(error.contains("state/current is missing") && error.contains("raft rebuild"), "{error}");
    std::fs::write(&pointer, kept).expect("write");
    assert!(contents(&open(dir.path())) == before, "nothing was touched");
}

/// Stages records in pieces, one entry each from `index` on; the entries, and what activates them.
fn staged(index: u64, restore: u8, records: &[(&str, Vec<u8>)]) -> (Vec<ApplyEntry>, Activation) {
    let mut pieces = Pieces::new([restore; 16], 70_000);
    let mut writes = Vec::new();
    for (path, value) in records {
        pieces.add(&key(path), Bytes::from(value.clone()));
        writes.extend(std::iter::from_fn(|| pieces.next_piece()));
    }
    let (last, activation) = pieces.finish();
    writes.extend(last);
    (writes.into_iter().zip(index..).map(|(piece, index)| write(index, vec![piece])).collect(), activation)
}

fn activate(index: u64, activation: &Activation) -> ApplyEntry {
    let mut request_id = [0xaa; 16];
    request_id[..8].copy_from_slice(&index.to_be_bytes());
    let activate = Some(Box::new(activation.clone()));
    entry(index, Txn { request_id: RequestId(request_id), activate, ..Txn::default() })
}

#[test]
fn what_was_staged_becomes_the_state_with_what_is_kept() {
    let dir = tempfile::tempdir().expect("tempdir");
    let state = open(dir.path());
    let clear = RecordKey::clear("directory").expect("valid");
    let put_clear = Write::Put { key: clear.clone(), value: "now".into() };
    let gone = RecordKey::clear("gone").expect("valid");
    let tokens = [put("token/both", "present"), put("token/new", "present"), put("old/x", "old")];
    state.apply(vec![write(1, tokens.into_iter().chain([put_clear]).collect())]).expect("apply");
    let records = [
        ("app/b/large", vec![7; 200_000]),
        ("app/a", b"a".to_vec()),
        ("token/both", b"then".to_vec()),
        ("token/spent", b"then".to_vec()),
        ("app/b/\0", b"b".to_vec()),
        ("x", b"x".to_vec()),
    ];
    let (entries, activation) = staged(2, 5, &records);
    let at = 2 + entries.len() as u64;
    assert!(entries.len() > 2, "a value larger than a piece runs over its end");
    // Staging again changes nothing but versions, and nothing of it shows.
    state.apply(entries.clone()).expect("apply");
    assert_eq!(contents(&state).len(), 3);
    assert_eq!(state.staged(9).expect("list").len(), entries.len());
    let meet = vec![root().folder(b"token").expect("valid")];
    let activation = Activation { keep: vec![clear.clone(), gone.clone()], meet, ..activation };
    let stale = Check::Record { key: key("x"), version: None };
    let cut = state.cut().expect("cut");
    let outcomes = state.apply(vec![activate(at, &activation)]).expect("apply");
    let version = Version { generation: 2, index: at };
    assert_eq!(outcomes, [Outcome::Applied { version }]);
    assert!(matches!(cut.verify(), Err(StorageError::Busy { .. })), "a cut of the old state is given up");
    let check = |state: &TreeState| {
        let found = contents(state);
        let first = Version { generation: 1, index: 1 };
        let due = |path, version, value: &[u8]| {
            (key(path), Record { version, value: Bytes::copy_from_slice(value) })
        };
        let due = [
            due("app/a", version, b"a"),
            due("app/b/\0", version, b"b"),
            due("app/b/large", version, &[7; 200_000]),
            due("token/both", first, b"present"),
            due("x", version, b"x"),
        ];
        assert_eq!(found, due.into_iter().collect());
        assert_eq!(state.get(&clear).expect("read").expect("kept").value, "now");
        assert_eq!(state.get(&gone).expect("read"), None);
        assert_eq!(state.staged(9).expect("list"), []);
        assert_eq!(state.children_version(&root()).expect("read"), Some(version));
        assert_eq!(state.applied().generation, 2);
        assert!(!state.validate(std::slice::from_ref(&stale)).expect("read"));
        scrubbed(state);
    };
    check(&state);
    let digest = scrubbed(&state);
    // The window came along, and the folders count what they hold.
    let again = state.apply(vec![activate(at + 1, &activation)]).expect("apply");
    assert!(matches!(again[..], [Outcome::Conflict { check: 0 }]), "{again:?}");
    let remembered = entry(
        at + 2,
        match &activate(at, &activation).op {
            ApplyOp::Command(command) => command.txn.clone(),
            _ => panic!("not a command"),
        },
    );
    let again = state.apply(vec![remembered]).expect("apply");
    assert!(matches!(again[..], [Outcome::Duplicate { version: found, .. }] if found == version));
    drop(state);
    let state = open(dir.path());
    check(&state);
    let deletes = contents(&state).into_keys().map(|key| Write::Delete { key }).collect();
    state.apply(vec![write(at + 3, deletes)]).expect("apply");
    assert_eq!(state.children_version(&root()).expect("read"), None, "every folder went with its last child");
    assert_ne!(scrubbed(&state), digest);
}

#[test]
fn an_activation_of_other_bytes_changes_nothing() {
    let dir = tempfile::tempdir().expect("tempdir");
    let state = open(dir.path());
    let (entries, good) = staged(1, 5, &[("app/large", vec![7; 200_000]), ("x", b"x".to_vec())]);
    let at = 1 + entries.len() as u64;
    state.apply(entries).expect("apply");
    let (twice, repeated) = staged(at, 6, &[("x", b"x".to_vec()), ("x", b"x".to_vec())]);
    state.apply(twice).expect("apply");
    let before = (contents(&state), scrubbed(&state));
    let bad = [
        Activation { rows: good.rows + 1, ..good.clone() },
        Activation { pieces: good.pieces - 1, ..good.clone() },
        Activation { pieces: good.pieces + 1, ..good.clone() },
        Activation { digest: [1; 32], ..good.clone() },
        Activation { restore: [4; 16], ..good.clone() },
        repeated,
    ];
    let mut index = at + 1;
    for bad in &bad {
        let outcomes = state.apply(vec![activate(index, bad)]).expect("apply");
        assert_eq!(outcomes, [Outcome::Conflict { check: 0 }], "{bad:?}");
        index += 1;
    }
    assert_eq!((contents(&state), state.applied().generation), (before.0, 1));
    let outcomes = state.apply(vec![activate(index, &good)]).expect("apply");
    assert!(matches!(outcomes[..], [Outcome::Applied { .. }]));
    assert_eq!(contents(&state).len(), 2);
}
