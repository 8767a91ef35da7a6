//! The process that writes: it carries a script out and notes in a file what it began and what was acknowledged.

use std::{
    fs::{File, OpenOptions},
    io::Write,
    path::{Path, PathBuf},
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use keystead_chaos::Faults;
use keystead_storage::{
    DataDir, LogId, Manifest, RaftLog, SealedState, SegmentLog, SnapshotFile, StorageError, TreeState,
    datadir::write_file_durably,
};

use crate::{
    faulted::Plan,
    script::{Script, Step, log_id, vote},
};

/// Notes: `begin n`, `done n`, `failed n why`, one write each, so that a trace has them in order.
struct Notes {
    file: File,
    outstanding: Mutex<usize>,
    failures: AtomicUsize,
    settled: Condvar,
}

impl Notes {
    fn line(&self, text: &str) {
        (&self.file).write_all(format!("{text}\n").as_bytes()).expect("the notes can be written");
    }

    fn end(&self, number: usize, result: &Result<(), StorageError>) {
        match result {
            Ok(()) => self.line(&format!("done {number}")),
            Err(error) => {
                self.failures.fetch_add(1, Ordering::SeqCst);
                self.line(&format!("failed {number} {error}"));
            }
        }
    }
}

/// Log and state of a data directory.
struct Open {
    log: SegmentLog,
    state: TreeState,
}

impl Open {
    fn new(data: &Path) -> Result<Self, StorageError> {
        let (log, state) = keystead_storage::open(&DataDir::open(data)?)?;
        Ok(Self { log, state })
    }
}

pub struct Writer {
    base: PathBuf,
    script: Script,
    notes: Arc<Notes>,
    open: Option<Open>,
}

impl Writer {
    pub fn new(base: &Path, script: Script) -> Self {
        let file = OpenOptions::new().create(true).append(true).open(notes(base)).expect("notes");
        let notes = Notes {
            file,
            outstanding: Mutex::new(0),
            failures: AtomicUsize::new(0),
            settled: Condvar::new(),
        };
        let open = Open::new(&data(base)).expect("a new directory opens");
        Self { base: base.to_owned(), script, notes: notes.into(), open: Some(open) }
    }

    /// All steps, as fast as they are taken.
    pub fn run(&mut self) {
        for number in 0..self.script.steps.len() {
            self.step(number);
        }
        self.settle();
        self.notes.line("end");
    }

    /// Steps up to the one that the fault is for; then the fault, that step, and what must not work any more.
    pub fn run_into(&mut self, faults: &Faults, plan: &Plan, before: usize) {
        for number in 0..before {
            self.step(number);
        }
        self.settle();
        faults.set(&plan.rules()).expect("rules");
        for number in before..self.script.steps.len() {
            // Nobody purges for the sake of a snapshot that could not be installed.
            if self.notes.failures.load(Ordering::SeqCst) > 0 {
                break;
            }
            self.step(number);
            self.settle();
        }
        let struck = faults.struck(0).expect("counted");
        self.notes.line(&format!("struck {struck}"));
        if plan.healed || struck == 0 {
            faults.clear().expect("rules");
        }
        // A storage that failed acknowledges nothing any more; one that did not goes on.
        let position = self.script.steps.len();
        let index = |id: Option<LogId>| id.map_or(0, |id| id.index);
        let open = self.open.as_ref();
        let last = open.map_or(0, |open| index(open.log.bounds().last));
        let applied = open.map_or(0, |open| index(open.state.applied().log_id));
        self.notes.line(&format!("then {last} {applied}"));
        self.script.steps.extend(Script::afterwards(last, applied));
        for number in position..self.script.steps.len() {
            self.step(number);
            self.settle();
        }
        let latch = |latch: Option<String>| latch.unwrap_or_default().replace('\n', " ");
        if let Some(open) = &self.open {
            self.notes.line(&format!("log-latch {}", latch(open.log.latch())));
            self.notes.line(&format!("state-latch {}", latch(open.state.latch())));
        }
        self.notes.line("end");
    }

    fn step(&mut self, number: usize) {
        let step = self.script.steps[number];
        // It would wait for a log that gives nothing any more.
        if step == Step::Flush && self.open.as_ref().is_some_and(|open| open.log.latch().is_some()) {
            return;
        }
        if matches!(step, Step::Purge { .. } | Step::Install { .. } | Step::Reopen | Step::Spool { .. }) {
            self.settle();
        }
        self.notes.line(&format!("begin {number}"));
        if step == Step::Reopen {
            self.open = None;
            let opened = Open::new(&data(&self.base));
            self.notes.end(number, &opened.as_ref().map(|_| ()).map_err(StorageError::clone));
            self.open = opened.ok();
            return;
        }
        let Some(Open { log, state }) = &self.open else {
            return self.notes.line(&format!("failed {number} it is not open"));
        };
        match step {
            Step::Append { from, until, stray } => {
                let records = (from..=until).map(|index| self.script.record(index, stray)).collect();
                log.append(records, self.done(number));
            }
            Step::Vote { term } => log.save_vote(vote(term), self.done(number)),
            Step::Truncate { after } => log.truncate_after(Some(after), self.done(number)),
            Step::Purge { up_to } => log.purge(log_id(up_to), self.done(number)),
            Step::Flush => state.flush(self.done(number)),
            Step::Apply { from, until } => {
                let entries = (from..=until).map(|index| self.script.entry(index)).collect();
                self.notes.end(number, &state.apply(entries).map(|_| ()));
                log.save_committed(log_id(until));
            }
            Step::Install { to } => self.notes.end(number, &self.install(state, to)),
            Step::Spool { number: name } => {
                let spooled = state.cut().and_then(|cut| cut.spool(&snapshot(&self.base, name)));
                self.notes.end(number, &spooled.map(|_| ()));
            }
            Step::File { number: content } => {
                let written = write_file_durably(&file(&self.base), content.to_string().as_bytes(), 0o600);
                self.notes.end(number, &written);
            }
            Step::Reopen => unreachable!("returned above"),
        }
    }

    /// What notes the end of a queued step.
    fn done(&self, number: usize) -> keystead_storage::Done {
        let notes = Arc::clone(&self.notes);
        *notes.outstanding.lock().expect("not poisoned") += 1;
        Box::new(move |result| {
            notes.end(number, &result);
            *notes.outstanding.lock().expect("not poisoned") -= 1;
            notes.settled.notify_all();
        })
    }

    fn settle(&self) {
        let outstanding = self.notes.outstanding.lock().expect("not poisoned");
        drop(self.notes.settled.wait_while(outstanding, |count| *count > 0).expect("not poisoned"));
    }

    /// Makes a snapshot in another place and installs it here.
    fn install(&self, state: &TreeState, to: u64) -> Result<(), StorageError> {
        let elsewhere = tempfile::tempdir_in(&self.base).expect("tempdir");
        let donor = TreeState::open(&DataDir::open(elsewhere.path())?)?;
        donor.apply((1..=to).map(|index| self.script.entry(index)).collect())?;
        let file: SnapshotFile = donor.cut()?.spool(&elsewhere.path().join("snapshot"))?;
        let mut installer = state.begin_install(Manifest::from_bytes(&file.manifest().to_bytes())?)?;
        for n in 0..file.manifest().chunks {
            installer.chunk(n, &file.read_chunk(n)?)?;
        }
        installer.finish()
    }
}

/// The data directory below a base.
pub fn data(base: &Path) -> PathBuf {
    base.join("watched/data")
}

/// The notes below a base.
pub fn notes(base: &Path) -> PathBuf {
    base.join("watched/notes")
}

/// The file that is replaced.
pub fn file(base: &Path) -> PathBuf {
    data(base).join("identity")
}

/// A snapshot by its number.
pub fn snapshot(base: &Path, number: u64) -> PathBuf {
    data(base).join(format!("snapshots/{number}"))
}
