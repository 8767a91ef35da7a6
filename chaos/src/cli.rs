//! The command line, run as a user runs it.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use tokio::io::AsyncWriteExt as _;

use crate::{Error, Result};

/// How long a command may take.
const TIMEOUT: Duration = Duration::from_secs(60);

/// What a command printed and how it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// The exit code.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

/// A shell's worth of environment for the command line: an address, a CA, a token, a home of its own.
#[derive(Clone)]
pub struct Cli {
    binary: PathBuf,
    home: PathBuf,
    variables: Vec<(String, String)>,
}

impl Cli {
    /// A command line whose home directory is `home`, and which inherits nothing that could mislead it.
    pub fn new(binary: &Path, home: &Path) -> Self {
        Self { binary: binary.into(), home: home.into(), variables: Vec::new() }
    }

    /// The same with a variable.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        self.variables.push((name.into(), value.into()));
        self
    }

    /// Runs a command to its end.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be started, [`Error::Timeout`] when it takes over a minute.
    pub async fn run(&self, args: &[&str]) -> Result<Output> {
        self.run_with(args, b"").await
    }

    /// Runs a command with something on its standard input.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub async fn run_with(&self, args: &[&str], input: &[u8]) -> Result<Output> {
        let mut command = self.command(args);
        let name = format!("keystead {}", args.join(" "));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // One that does not end is killed: nobody waits for it any more.
        let mut command = tokio::process::Command::from(command);
        let work = async {
            let mut child = command.kill_on_drop(true).spawn()?;
            if let Some(mut stdin) = child.stdin.take() {
                // A command that reads nothing may be gone already.
                drop(stdin.write_all(input).await);
            }
            child.wait_with_output().await
        };
        let output = tokio::time::timeout(TIMEOUT, work).await.map_err(|_| Error::Timeout(TIMEOUT))?;
        let output = output.map_err(Error::io(name))?;
        Ok(Output {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// The command itself, for what is not run to its end.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.binary);
        command.args(args).env_clear().env("HOME", &self.home);
        if let Some(path) = std::env::var_os("PATH") {
            command.env("PATH", path);
        }
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
        command
    }
}
