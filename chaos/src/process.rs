//! A child process with its log in a file, which dies with the value that holds it.

use std::{
    fs::{File, OpenOptions},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};

use crate::{Error, Result, wait};

/// How much of a log's end goes into a report.
const TAIL_BYTES: usize = 4_000;

/// A running, or ended, process.
pub struct Process {
    name: String,
    log: PathBuf,
    child: Mutex<Child>,
    pid: u32,
}

impl Process {
    /// Starts a command; what it prints is appended to `log`.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be started.
    pub fn start(name: &str, mut command: Command, log: &Path) -> Result<Self> {
        let open = || -> Result<File> {
            OpenOptions::new().create(true).append(true).open(log).map_err(Error::io("log file"))
        };
        command.stdin(Stdio::null()).stdout(open()?).stderr(open()?);
        let child = command.spawn().map_err(Error::io(format!("starting {name}")))?;
        let pid = child.id();
        Ok(Self { name: name.into(), log: log.into(), child: Mutex::new(child), pid })
    }

    /// Its process id. After it has been reaped the id may be somebody else's.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// The file with everything that it printed.
    pub fn log_file(&self) -> &Path {
        &self.log
    }

    /// Everything that it printed.
    pub fn log(&self) -> String {
        std::fs::read(&self.log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    /// The exit status, once it has ended.
    pub fn ended(&self) -> Option<ExitStatus> {
        self.child().try_wait().ok().flatten()
    }

    /// Fails with the end of the log if it has ended.
    ///
    /// # Errors
    /// [`Error::Ended`].
    pub fn alive(&self) -> Result<()> {
        let Some(status) = self.ended() else { return Ok(()) };
        let log = self.log();
        let from = log.char_indices().rev().map(|(at, _)| at).find(|at| log.len() - at >= TAIL_BYTES);
        let log = log[from.unwrap_or(0)..].to_owned();
        Err(Error::Ended { name: self.name.clone(), status: status.to_string(), log })
    }

    /// Sends a signal, unless it has ended.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn signal(&self, signal: Signal) -> Result<()> {
        if self.ended().is_some() {
            return Ok(());
        }
        // Not reaped, so the id is still its own.
        let pid = i32::try_from(self.pid).ok().and_then(Pid::from_raw).expect("a child's id is positive");
        kill_process(pid, signal).map_err(|error| Error::io(format!("signal to {}", self.name))(error.into()))
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// [`Error::Deadline`]; it is then still running.
    pub async fn wait(&self, at_most: Duration) -> Result<ExitStatus> {
        let what = format!("the end of {}", self.name);
        wait::until_now(&what, at_most, || self.ended().ok_or_else(|| "running".to_owned())).await
    }

    /// SIGKILL, and waits until it is gone.
    pub fn kill(&self) {
        let mut child = self.child();
        // Fails only for a process that has ended.
        drop(child.kill());
        drop(child.wait());
    }

    fn child(&self) -> MutexGuard<'_, Child> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Resident memory of a process, in KiB.
///
/// # Errors
/// [`Error::Broken`] when there is no such process.
pub fn resident_kib(pid: u32) -> Result<u64> {
    let gone = || Error::Broken(format!("no memory figure for process {pid}"));
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).map_err(|_| gone())?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or_else(gone)?;
    line.trim().trim_end_matches(" kB").parse().map_err(|_| gone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_process_is_killed_when_it_is_dropped() {
        let directory = tempfile::tempdir().unwrap();
        let mut command = Command::new("sleep");
        command.arg("1000");
        let process = Process::start("sleeper", command, &directory.path().join("log")).unwrap();
        process.alive().unwrap();
        let pid = process.pid();
        assert!(resident_kib(pid).unwrap() > 0);
        drop(process);
        assert!(!Path::new(&format!("/proc/{pid}/status")).exists());
    }

    #[tokio::test]
    async fn an_end_is_told_with_the_log() {
        let directory = tempfile::tempdir().unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "echo out of luck; exit 3"]);
        let process = Process::start("gambler", command, &directory.path().join("log")).unwrap();
        assert_eq!(process.wait(Duration::from_secs(10)).await.unwrap().code(), Some(3));
        let text = process.alive().unwrap_err().to_string();
        assert!(text.contains("gambler") && text.contains("out of luck"), "{text}");
    }
}
