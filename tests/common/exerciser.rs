//! A writer for the storage alone, and the check of what it left: everything acknowledged is there, and whatever is
//! there is what was written.
//!
//! What an entry holds follows from its term and index, so the check needs to know only which entries were
//! acknowledged. Acknowledgements go line by line into a file elsewhere, each after it was given:
//! `A index term` (the log up to there), `V term` (the vote), `T index` (what is above will be removed),
//! `E text` (the storage failed). The writer and the check run in processes of their own: the test's binary,
//! started again for the test `child`.

#![allow(dead_code)] // no test uses all of it

use std::{
    collections::BTreeMap,
    fs::OpenOptions,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Child, Command as Process, Stdio},
    sync::mpsc,
};

use keystead_storage::{
    ApplyEntry, ApplyOp, Command, DataDir, Done, FolderKey, LogId, LogRecord, RaftLog, RecordKey, RequestId,
    SealedState, SegmentLog, StorageError, TreeState, Txn, Vote, Write,
};

/// What a child does: `write` or `check`.
const TASK: &str = "KEYSTEAD_EXERCISE";
const DATA: &str = "KEYSTEAD_EXERCISE_DATA";
const ACKNOWLEDGED: &str = "KEYSTEAD_EXERCISE_ACKNOWLEDGED";
const SEED: &str = "KEYSTEAD_EXERCISE_SEED";
/// How long an operation of the storage may take.
const OPERATION: std::time::Duration = std::time::Duration::from_secs(120);

/// The exit codes of a check.
pub const WHOLE: i32 = 20;
/// Opening was refused, with a typed error.
pub const REFUSED: i32 = 21;
/// Something acknowledged is missing, or something is there that was not written.
pub const WRONG: i32 = 22;

const KEYS: u64 = 500;
/// The writer's Raft id.
const NODE: u64 = 5;

/// Marsaglia's xorshift: reproducible, and good enough to choose by.
pub struct Random(u64);

impl Random {
    /// A generator; equal seeds give equal numbers.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// The next number.
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// A number below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end.max(1)
    }

    /// True once in `n`.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

fn bytes(term: u64, index: u64) -> Vec<u8> {
    let mut random = Random::new(term << 40 ^ index);
    let length = if index.is_multiple_of(997) { 70_000 } else { 40 + random.below(400) as usize };
    let mut out = Vec::with_capacity(length + 8);
    while out.len() < length {
        out.extend_from_slice(&random.next().to_be_bytes());
    }
    out
}

fn key(index: u64) -> RecordKey {
    let n = index % KEYS;
    let folder = FolderKey::root([3; 16]).folder(format!("folder {}", n % 7).as_bytes()).unwrap();
    folder.child(format!("key {n}").as_bytes()).unwrap()
}

fn record(term: u64, index: u64) -> LogRecord {
    LogRecord { log_id: LogId { term, node: NODE, index }, payload: bytes(term, index).into() }
}

fn entry(log_id: LogId) -> ApplyEntry {
    let LogId { term, index, .. } = log_id;
    let mut request_id = [9; 16];
    request_id[..8].copy_from_slice(&index.to_be_bytes());
    let txn = Txn {
        request_id: RequestId(request_id),
        checks: Vec::new(),
        writes: vec![Write::Put { key: key(index), value: bytes(term, index).into() }],
        response: vec![7; 20].into(),
        activate: None,
    };
    ApplyEntry {
        log_id,
        op: ApplyOp::Command(Command {
            term,
            sequence: index,
            cluster_time_ms: index,
            txn,
            checkpoint: None,
        }),
    }
}

fn wait(start: impl FnOnce(Done)) -> Result<(), StorageError> {
    let (sent, done) = mpsc::channel();
    start(Box::new(move |result| drop(sent.send(result))));
    done.recv_timeout(OPERATION).expect("every operation ends")
}

/// What a file of acknowledgements says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Acknowledged {
    /// The newest entry.
    pub last: u64,
    /// The newest vote's term.
    pub vote: u64,
    /// Terms by the first index that has them.
    pub terms: BTreeMap<u64, u64>,
    /// Why the writer stopped.
    pub failure: Option<String>,
    /// Lines read.
    pub lines: usize,
}

impl Acknowledged {
    /// Reads the file; a last line without its end was not finished and does not count.
    pub fn read(path: &Path) -> Self {
        let mut found = Self::default();
        let text = std::fs::read_to_string(path).unwrap_or_default();
        for line in text.split_inclusive('\n').filter(|line| line.ends_with('\n')) {
            let mut words = line.split_whitespace();
            let kind = words.next().unwrap_or_default();
            let mut number = || words.next().and_then(|word| word.parse::<u64>().ok()).expect("a number");
            match kind {
                "A" => {
                    let (index, term) = (number(), number());
                    if found.terms.last_key_value().is_none_or(|(_, last)| *last != term) {
                        found.terms.insert(found.last + 1, term);
                    }
                    found.last = index;
                }
                "V" => found.vote = number(),
                "T" => {
                    let kept = number();
                    // An entry above may have been acknowledged under the old term after all; it counts no more.
                    found.terms.split_off(&(kept + 1));
                    found.last = found.last.min(kept);
                }
                _ => found.failure = Some(line.trim().to_owned()),
            }
            found.lines += 1;
        }
        found
    }

    fn term(&self, index: u64) -> u64 {
        self.terms.range(..=index).next_back().map_or(0, |(_, term)| *term)
    }
}

/// Writes until it is told to stop, fails, or dies.
struct Writer {
    log: SegmentLog,
    state: TreeState,
    acknowledged: std::fs::File,
    random: Random,
    term: u64,
    last: u64,
    committed: u64,
}

impl Writer {
    fn open(dir: &DataDir, acknowledged: &Path, seed: u64) -> Result<Self, StorageError> {
        let (log, state) = keystead_storage::open(dir)?;
        let acknowledged = OpenOptions::new().create(true).append(true).open(acknowledged).unwrap();
        let last = log.bounds().last.map_or(0, |last| last.index);
        let committed = state.applied().log_id.map_or(0, |id| id.index);
        let term = log.vote().map_or(0, |vote| vote.term);
        Ok(Self { log, state, acknowledged, random: Random::new(seed), term, last, committed })
    }

    fn say(&mut self, line: String) {
        // One write: a reader sees the line or not.
        self.acknowledged.write_all(format!("{line}\n").as_bytes()).unwrap();
    }

    fn vote(&mut self) -> Result<(), StorageError> {
        self.term += 1;
        let vote = Vote { term: self.term, node: NODE, committed: true };
        wait(|done| self.log.save_vote(vote, done))?;
        self.say(format!("V {}", self.term));
        Ok(())
    }

    fn append(&mut self) -> Result<(), StorageError> {
        let (sent, done) = mpsc::channel();
        let calls = 1 + self.random.below(6);
        for _ in 0..calls {
            let count = 1 + self.random.below(12);
            let records: Vec<_> =
                (self.last + 1..=self.last + count).map(|index| record(self.term, index)).collect();
            self.last += count;
            let (sent, last) = (sent.clone(), self.last);
            self.log.append(records, Box::new(move |result| drop(sent.send((last, result)))));
        }
        drop(sent);
        for (last, result) in done {
            result?;
            self.say(format!("A {last} {}", self.term));
        }
        Ok(())
    }

    fn commit(&mut self) -> Result<(), StorageError> {
        let committed = self.committed.max(self.last.saturating_sub(self.random.below(20)));
        self.apply(committed)
    }

    fn apply(&mut self, committed: u64) -> Result<(), StorageError> {
        let records = self.log.read(self.committed + 1, committed + 1, usize::MAX)?;
        if let Some(last) = records.last() {
            self.log.save_committed(last.log_id);
            self.committed = last.log_id.index;
        }
        self.state.apply(records.iter().map(|record| entry(record.log_id)).collect())?;
        Ok(())
    }

    fn step(&mut self) -> Result<(), StorageError> {
        match self.random.below(100) {
            0 => self.vote(),
            1 => {
                self.say(format!("T {}", self.committed));
                wait(|done| self.log.truncate_after(Some(self.committed), done))?;
                self.last = self.committed;
                self.vote()
            }
            2 => match self.state.flushed() {
                Some(flushed) => {
                    let up_to = flushed.index.saturating_sub(self.random.below(500));
                    let records = self.log.read(up_to, up_to + 1, 0)?;
                    records.first().map_or(Ok(()), |record| wait(|done| self.log.purge(record.log_id, done)))
                }
                None => Ok(()),
            },
            3..5 => wait(|done| self.state.flush(done)),
            _ => {
                self.append()?;
                self.commit()
            }
        }
    }
}

/// Writes about `entries` entries, with a purge and a snapshot file in the end, and closes the storage in good order.
pub fn fill(dir: &DataDir, acknowledged: &Path, seed: u64, entries: u64) {
    let mut writer = Writer::open(dir, acknowledged, seed).unwrap();
    writer.vote().unwrap();
    while writer.last < entries {
        writer.step().unwrap();
    }
    wait(|done| writer.state.flush(done)).unwrap();
    writer.state.cut().unwrap().spool(&dir.snapshots().join("spool.1")).unwrap();
}

/// Starts the writer in a process of its own.
pub fn start_writer(data: &Path, acknowledged: &Path, seed: u64) -> Child {
    child("write", data, acknowledged, seed)
}

/// Starts the check in a process of its own; its exit code is [`WHOLE`], [`REFUSED`] or [`WRONG`], and what it
/// prints says why.
pub fn start_check(data: &Path, acknowledged: &Path) -> Child {
    child("check", data, acknowledged, 0)
}

fn child(task: &str, data: &Path, acknowledged: &Path, seed: u64) -> Child {
    Process::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--nocapture", "--test-threads=1"])
        .env(TASK, task)
        .env(DATA, data)
        .env(ACKNOWLEDGED, acknowledged)
        .env(SEED, seed.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// The body of the test `child`: nothing, unless this process was started for it.
pub fn run_child() {
    let Ok(task) = std::env::var(TASK) else { return };
    let path = |name: &str| PathBuf::from(std::env::var_os(name).unwrap());
    let (data, acknowledged) = (path(DATA), path(ACKNOWLEDGED));
    // As the server does it: damage is told as an error, any other panic is one too many.
    std::panic::set_hook(Box::new(|panic| {
        if !keystead_storage::expects_panic() {
            eprintln!("PANIC: {panic}");
        }
    }));
    if task == "write" {
        let seed = std::env::var(SEED).unwrap().parse().unwrap();
        let error = write(&data, &acknowledged, seed);
        eprintln!("{error}");
        std::process::exit(0);
    }
    let (code, text) = match check(&data, &Acknowledged::read(&acknowledged)) {
        Ok(()) => (WHOLE, String::new()),
        Err(Finding::Refused(text)) => (REFUSED, text),
        Err(Finding::Wrong(text)) => (WRONG, text),
    };
    eprintln!("{text}");
    std::process::exit(code);
}

fn write(data: &Path, acknowledged: &Path, seed: u64) -> StorageError {
    let dir = DataDir::open(data).unwrap();
    let mut writer = Writer::open(&dir, acknowledged, seed).unwrap();
    let mut go = || -> Result<(), StorageError> {
        // What the log holds beyond its last acknowledgement was on the disk all the same.
        let last = writer.last;
        if let Some(LogId { term, index, .. }) = writer.log.bounds().last {
            writer.say(format!("A {index} {term}"));
        }
        writer.apply(last)?;
        writer.vote()?;
        loop {
            writer.step()?;
        }
    };
    let error = go().expect_err("it goes on for ever");
    writer.say(format!("E {error}"));
    error
}

/// What a check came to, if not everything is there.
pub enum Finding {
    /// Opening was refused.
    Refused(String),
    /// Something is wrong that nobody noticed.
    Wrong(String),
}

impl From<StorageError> for Finding {
    fn from(error: StorageError) -> Self {
        Finding::Refused(error.to_string())
    }
}

/// Opens the storage as the server does, and compares everything.
fn check(data: &Path, acknowledged: &Acknowledged) -> Result<(), Finding> {
    if data.join("identity").exists() || acknowledged.failure.as_deref() == Some("I") {
        match keystead_raft::Identity::load(data) {
            Ok(Some(identity)) if identity.node_id == "n1" && identity.incarnation == NODE => {}
            Ok(_) => return Err(Finding::Wrong("another identity".into())),
            Err(error) => return Err(Finding::Refused(error.to_string())),
        }
    }
    let dir = DataDir::open(data)?;
    let (log, state) = keystead_storage::open(&dir)?;
    // From here on nothing may be missing.
    let wrong = |error: StorageError| Finding::Wrong(format!("noticed too late: {error}"));
    let bounds = log.bounds();
    let last = bounds.last.map_or(0, |last| last.index);
    if last < acknowledged.last {
        return Err(Finding::Wrong(format!("the log ends with {last} before {}", acknowledged.last)));
    }
    if log.vote().map_or(0, |vote| vote.term) < acknowledged.vote {
        return Err(Finding::Wrong(format!("vote {:?} before term {}", log.vote(), acknowledged.vote)));
    }
    let purged = bounds.purged.map_or(0, |purged| purged.index);
    let mut applied = state.applied().log_id.map_or(0, |id| id.index);
    if applied < purged {
        return Err(Finding::Wrong(format!("the state is at {applied}, the log begins after {purged}")));
    }
    let mut terms = BTreeMap::new();
    let mut next = purged + 1;
    while next <= last {
        let records = log.read(next, last + 1, 1 << 20).map_err(wrong)?;
        for found in &records {
            let LogId { term, index, .. } = found.log_id;
            let known = index <= acknowledged.last;
            if index != next || *found != record(term, index) || (known && term != acknowledged.term(index)) {
                return Err(Finding::Wrong(format!("entry {} where {next} should be, term {term}", index)));
            }
            terms.insert(index, term);
            next += 1;
        }
        let due: Vec<_> =
            records.iter().filter(|r| r.log_id.index > applied).map(|r| entry(r.log_id)).collect();
        applied = applied.max(next - 1);
        state.apply(due).map_err(wrong)?;
    }
    let newest: BTreeMap<u64, u64> = (1..=applied).map(|index| (index % KEYS, index)).collect();
    for index in newest.values() {
        let found = state.get(&key(*index)).map_err(wrong)?;
        let term = terms.get(index).copied().unwrap_or_else(|| acknowledged.term(*index));
        if found.as_ref().is_none_or(|found| found.value != bytes(term, *index)) {
            return Err(Finding::Wrong(format!("the value of entry {index} is not there")));
        }
    }
    state.cut().and_then(|cut| cut.verify()).map_err(wrong)?;
    Ok(())
}
