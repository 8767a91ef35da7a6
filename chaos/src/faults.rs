//! Faults of disk and clock for one process: failed, short, slow, hung and forgotten writes and syncs, stepped
//! clocks, and a trace of everything that was written.
//!
//! Libraries do their own input and output, so faults come from below: a small library, compiled here with `cc`, is
//! preloaded into the process and stands between it and the system calls. Rules are changed while it runs.
//!
//! ```no_run
//! # use keystead_chaos::{Errno, Faults, Op, Rule};
//! # fn main() -> keystead_chaos::Result<()> {
//! let faults = Faults::new("/tmp/faults-of-n1".as_ref())?;
//! let mut command = std::process::Command::new("keystead");
//! command.envs(faults.env());
//! // From now on every sync of the log hangs ...
//! faults.set(&[Rule::on(&[Op::Sync]).at("/log/").hangs()])?;
//! // ... and now the third write after this fails, once.
//! faults.set(&[Rule::on(&[Op::Write]).at("/log/").skip(2).times(1).fails(Errno::NOSPC)])?;
//! assert_eq!(faults.struck(0)?, 0);
//! faults.clear()?;
//! # Ok(())
//! # }
//! ```
//!
//! For the nodes of a cluster: [`Builder::with_faults`](crate::Builder::with_faults), then
//! [`Node::faults`](crate::Node::faults).
//!
//! What it sees is what the C library is asked for: everything of the standard library. `rustix` makes
//! its system calls itself, so `statvfs` and locks are not seen; its clocks are, for they are read through the vDSO,
//! which is diverted.

use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

pub use rustix::io::Errno;

use crate::{Error, Result};

const SOURCE: &str = include_str!("../faults/faults.c");
/// Most rules at a time, as in `faults.c`.
pub const RULES: usize = 32;
const SEEN_AT: u64 = 64;
const STRUCK_AT: u64 = SEEN_AT + 8 * RULES as u64;
const CELL_BYTES: u64 = 4096;

/// A kind of file operation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Op {
    /// Opening a file that may be made or emptied by it.
    Open,
    /// Writing, at a position or not.
    Write,
    /// Changing a file's length, or reserving space for it.
    Truncate,
    /// `fsync` and `fdatasync`, of directories too.
    Sync,
    /// `sync_file_range`, which says nothing of what survives.
    Range,
    /// Renaming; the path is the old one.
    Rename,
    /// Removing a file.
    Unlink,
    /// Making a directory.
    Mkdir,
}

impl Op {
    /// Its number in `faults.c`.
    pub(crate) fn bit(self) -> u32 {
        1 << match self {
            Op::Open => 0,
            Op::Write => 1,
            Op::Truncate => 2,
            Op::Sync => 3,
            Op::Range => 4,
            Op::Rename => 5,
            Op::Unlink => 6,
            Op::Mkdir => 7,
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Action {
    Fail(Errno, Duration),
    Short(usize),
    Delay(Duration),
    Hang,
    Lie,
    Kill,
}

/// One fault: which operations it strikes, and how. Of several rules for one operation the first that is due
/// strikes.
#[derive(Clone, Debug)]
pub struct Rule {
    ops: u32,
    path: String,
    skip: u64,
    times: u64,
    action: Action,
}

impl Rule {
    /// Strikes operations of these kinds, on every path, from the first one on, with `EIO`.
    pub fn on(ops: &[Op]) -> Self {
        let ops = ops.iter().fold(0, |bits, op| bits | op.bit());
        Self {
            ops,
            path: String::new(),
            skip: 0,
            times: u64::MAX,
            action: Action::Fail(Errno::IO, Duration::ZERO),
        }
    }

    /// Only on paths that contain this.
    #[must_use]
    pub fn at(mut self, path: &str) -> Self {
        self.path = path.into();
        self
    }

    /// Lets so many operations pass first.
    #[must_use]
    pub fn skip(mut self, operations: u64) -> Self {
        self.skip = operations;
        self
    }

    /// Strikes so many operations, then no more.
    #[must_use]
    pub fn times(mut self, operations: u64) -> Self {
        self.times = operations;
        self
    }

    /// They fail.
    #[must_use]
    pub fn fails(self, error: Errno) -> Self {
        self.does(Action::Fail(error, Duration::ZERO))
    }

    /// They fail, but only after so long: whoever is to learn of it is already waiting then.
    #[must_use]
    pub fn fails_after(self, time: Duration, error: Errno) -> Self {
        self.does(Action::Fail(error, time))
    }

    /// Writes stop after so many bytes and say so.
    #[must_use]
    pub fn short(self, bytes: usize) -> Self {
        self.does(Action::Short(bytes))
    }

    /// They take so much longer.
    #[must_use]
    pub fn delays(self, by: Duration) -> Self {
        self.does(Action::Delay(by))
    }

    /// They hang until the rules are changed, and are then carried out.
    #[must_use]
    pub fn hangs(self) -> Self {
        self.does(Action::Hang)
    }

    /// They are not carried out, and reported as done.
    #[must_use]
    pub fn lies(self) -> Self {
        self.does(Action::Lie)
    }

    /// The process dies by SIGKILL instead.
    #[must_use]
    pub fn kills(self) -> Self {
        self.does(Action::Kill)
    }

    fn does(mut self, action: Action) -> Self {
        self.action = action;
        self
    }

    fn line(&self) -> String {
        let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let (kind, argument, error) = match self.action {
            Action::Fail(error, after) => (1, ms(after), error.raw_os_error()),
            Action::Short(bytes) => (2, bytes as u64, 0),
            Action::Delay(by) => (3, ms(by), 0),
            Action::Hang => (4, 0, 0),
            Action::Lie => (5, 0, 0),
            Action::Kill => (6, 0, 0),
        };
        let Self { ops, path, skip, times, .. } = self;
        format!("rule {ops} {skip} {times} {kind} {argument} {error} {path}\n")
    }
}

/// A clock that can be stepped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Clock {
    /// The wall clock.
    Realtime,
    /// The clock of timers. The kernel's own is not moved: after a step forwards, waits of the C library and of
    /// locks with a deadline last longer by the step.
    Monotonic,
    /// The clock that goes on while the machine is suspended: a step of it alone looks like a suspend.
    Boottime,
}

#[derive(Default)]
struct State {
    rules: Vec<Rule>,
    traced: Option<String>,
    /// Nanoseconds by which each clock of [`Clock`] is ahead.
    ahead_ns: [i64; 3],
}

/// The faults of one process, which it shares with its restarts. Clones are the same faults.
#[derive(Clone)]
pub struct Faults {
    directory: PathBuf,
    library: PathBuf,
    cell: Arc<File>,
    state: Arc<Mutex<State>>,
}

impl Faults {
    /// Faults that are controlled through files in `directory`, which is made; no rules at first.
    ///
    /// # Errors
    /// [`Error::Broken`] when there is no C compiler, [`Error::Io`].
    pub fn new(directory: &Path) -> Result<Self> {
        let io = || Error::io(format!("faults in {}", directory.display()));
        fs::create_dir_all(directory).map_err(io())?;
        let directory = directory.canonicalize().map_err(io())?;
        let cell = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(directory.join("cell"))
            .map_err(io())?;
        cell.set_len(CELL_BYTES).map_err(io())?;
        let faults = Self { directory, library: library()?, cell: cell.into(), state: Arc::default() };
        faults.publish(&faults.state())?;
        Ok(faults)
    }

    /// What a process is to be started with.
    pub fn env(&self) -> [(&'static str, OsString); 3] {
        [
            ("LD_PRELOAD", self.library.clone().into()),
            ("CHAOS_FAULTS", self.directory.clone().into()),
            ("CHAOS_FAULTS_CLOCKS", "1".into()),
        ]
    }

    /// Puts these rules in the place of all others and lets go what hangs. The process follows with its next
    /// file operation.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn set(&self, rules: &[Rule]) -> Result<()> {
        assert!(rules.len() <= RULES, "at most {RULES} rules");
        let mut state = self.state();
        state.rules = rules.to_vec();
        let zeros = vec![0; 16 * RULES];
        self.cell.write_all_at(&zeros, SEEN_AT).map_err(Error::io("counters of faults"))?;
        self.publish(&state)
    }

    /// No faults any more; clocks and trace stay.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn clear(&self) -> Result<()> {
        self.set(&[])
    }

    /// How many operations a rule has struck since it was set, by its position.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn struck(&self, at: usize) -> Result<u64> {
        self.word(STRUCK_AT + 8 * at as u64)
    }

    /// How many operations a rule was looked at for since it was set: those that it names, struck or not.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn seen(&self, at: usize) -> Result<u64> {
        self.word(SEEN_AT + 8 * at as u64)
    }

    /// Records every change of files whose path contains this, see [`trace_file`](Self::trace_file).
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn trace(&self, path: &str) -> Result<()> {
        let mut state = self.state();
        state.traced = Some(path.into());
        self.publish(&state)
    }

    /// The trace: records in the order in which the operations were done.
    pub fn trace_file(&self) -> PathBuf {
        self.directory.join("trace")
    }

    /// Sets a clock of the process ahead of the system's, or behind it, by so many milliseconds in all.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn step(&self, clock: Clock, ahead_ms: i64) -> Result<()> {
        let mut state = self.state();
        state.ahead_ns[clock as usize] = ahead_ms * 1_000_000;
        self.publish(&state)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn word(&self, offset: u64) -> Result<u64> {
        let mut bytes = [0; 8];
        self.cell.read_exact_at(&mut bytes, offset).map_err(Error::io("counters of faults"))?;
        Ok(u64::from_ne_bytes(bytes))
    }

    /// Writes the rules, then moves the generation.
    fn publish(&self, state: &State) -> Result<()> {
        let [realtime, monotonic, boottime] = state.ahead_ns;
        let mut text = format!("realtime {realtime}\nmonotonic {monotonic}\nboottime {boottime}\n");
        if let Some(path) = &state.traced {
            text += &format!("trace {path}\n");
        }
        text.extend(state.rules.iter().map(Rule::line));
        let new = self.directory.join("rules.new");
        fs::write(&new, text).map_err(Error::io("rules of faults"))?;
        fs::rename(&new, self.directory.join("rules")).map_err(Error::io("rules of faults"))?;
        let next = self.word(0)? + 1;
        self.cell.write_all_at(&next.to_ne_bytes(), 0).map_err(Error::io("rules of faults"))
    }
}

/// The library, compiled unless it lies beside this program already.
fn library() -> Result<PathBuf> {
    let program = std::env::current_exe().map_err(Error::io("path of this program"))?;
    let beside = program.parent().unwrap_or(Path::new("/tmp"));
    let sum = SOURCE.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |sum, byte| {
        (sum ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3) // FNV-1a
    });
    let library = beside.join(format!("chaos-faults-{sum:016x}.so"));
    if library.is_file() {
        return Ok(library);
    }
    let scratch = tempfile::tempdir_in(beside).map_err(Error::io("directory to compile in"))?;
    let (source, made) = (scratch.path().join("faults.c"), scratch.path().join("faults.so"));
    fs::write(&source, SOURCE).map_err(Error::io("source of the faults"))?;
    let output = Command::new(std::env::var_os("CC").unwrap_or_else(|| "cc".into()))
        .args(["-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-pthread", "-o"])
        .args([&made, &source])
        .output()
        .map_err(Error::io("running cc, which the faults need: install a C compiler"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(Error::Broken(format!("the faults do not compile: {said}")));
    }
    fs::rename(&made, &library).map_err(Error::io("keeping the faults"))?;
    Ok(library)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a shell line under the faults; gives its status and what it printed.
    fn shell(faults: &Faults, line: &str) -> (bool, String) {
        let output = Command::new("python3").args(["-c", line]).envs(faults.env()).output().expect("python3");
        let said = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&said).into_owned())
    }

    fn faults() -> (tempfile::TempDir, Faults) {
        let directory = tempfile::tempdir().expect("tempdir");
        let faults = Faults::new(&directory.path().join("faults")).expect("compiles");
        (directory, faults)
    }

    #[test]
    fn only_the_write_that_is_due_fails() {
        let (directory, faults) = faults();
        let file = directory.path().join("some-file");
        faults
            .set(&[Rule::on(&[Op::Write]).at("some-file").skip(1).times(1).fails(Errno::NOSPC)])
            .expect("set");
        let line = format!(
            "import os\nfd = os.open('{}', os.O_CREAT | os.O_WRONLY)\nfor n in range(4):\n  try: os.write(fd, b'x%d' % n)\n  except OSError as e: print(e)",
            file.display()
        );
        let (good, said) = shell(&faults, &line);
        assert!(good && said.contains("No space left"), "{said}");
        assert_eq!(fs::read(&file).expect("written"), b"x0x2x3");
        assert_eq!((faults.struck(0).expect("read"), faults.seen(0).expect("read")), (1, 4));
    }

    #[test]
    fn clocks_go_ahead_and_behind() {
        let (_directory, faults) = faults();
        faults.step(Clock::Realtime, -3_600_000).expect("step");
        faults.step(Clock::Boottime, 60_000).expect("step");
        let (good, said) = shell(
            &faults,
            "import time\nprint(time.time(), time.clock_gettime(time.CLOCK_BOOTTIME) - time.monotonic())",
        );
        assert!(good, "{said}");
        let numbers: Vec<f64> = said.split_whitespace().filter_map(|n| n.parse().ok()).collect();
        let now = std::time::UNIX_EPOCH.elapsed().expect("after 1970").as_secs_f64();
        assert!((now - numbers[0] - 3600.0).abs() < 30.0, "{said}");
        assert!(numbers[1] > 59.0, "{said}");
    }
}
