//! The node's end of a helper process: starting it, one exchange with a deadline, ending it.

use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use tokio::time::timeout;
use zeroize::Zeroizing;

use super::helper::HELPER_ROLE;
use super::protocol::{self, Reply, Request};
use crate::secret::SecretString;

/// How long a killed process may take to be gone; one that waits for a broken device may stay for longer.
const REAP_TIMEOUT: Duration = Duration::from_secs(1);

/// Bytes of the shortest PIN that tokens take.
const SHORTEST_PIN: usize = 4;

/// Variables that may hold a secret, and that a module has no use for.
const WITHHELD: [&str; 9] = [
    "KEYSTEAD_HSM_PIN",
    "VAULT_HSM_PIN",
    "BAO_HSM_PIN",
    "HSM_PIN",
    "KEYSTEAD_TOKEN",
    "VAULT_TOKEN",
    "BAO_TOKEN",
    "KEYSTEAD_DEV_ROOT_TOKEN_ID",
    "VAULT_DEV_ROOT_TOKEN_ID",
];

/// A helper process. Dropped, it is killed.
pub(super) struct Process {
    child: Child,
    stream: UnixStream,
}

/// Why there is no answer; the process is of no use after it.
#[derive(Debug)]
pub(super) enum Lost {
    /// It did not answer in time.
    Hung,
    /// It ended, or said what makes no sense.
    Ended(io::Error),
}

impl Process {
    /// Starts `program` as a helper; no variable that holds `pin` goes along.
    pub(super) fn start(program: &Path, pin: &SecretString) -> io::Result<Self> {
        let (ours, theirs) = StdUnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let mut command = Command::new(program);
        command
            .arg(HELPER_ROLE)
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            // What a module prints is not the output of a command.
            .stdout(Stdio::null())
            // A terminal's Ctrl-C is for the node, which ends its helpers.
            .process_group(0)
            .kill_on_drop(true);
        for name in WITHHELD {
            command.env_remove(name);
        }
        // The one that a stanza names by `env://` may have any name. Short values are everywhere, and no PINs.
        let holds_pin =
            |value: &OsStr| pin.len() >= SHORTEST_PIN && value.as_bytes() == pin.expose().as_bytes();
        for (name, _) in std::env::vars_os().filter(|(_, value)| holds_pin(value)) {
            command.env_remove(name);
        }
        let child = command.spawn()?;
        Ok(Self { child, stream: UnixStream::from_std(ours)? })
    }

    /// Asks, and waits for the answer.
    ///
    /// # Cancel safety
    /// None: dropped half-way, the process must be dropped, too.
    pub(super) async fn exchange(&mut self, request: &Request, within: Duration) -> Result<Reply, Lost> {
        match timeout(within, self.exchange_forever(request)).await {
            Ok(answered) => answered.map_err(Lost::Ended),
            Err(_) => Err(Lost::Hung),
        }
    }

    async fn exchange_forever(&mut self, request: &Request) -> io::Result<Reply> {
        self.stream.write_all(&protocol::frame(request)?).await?;
        let mut prefix = [0; 4];
        self.stream.read_exact(&mut prefix).await?;
        let mut body = Zeroizing::new(vec![0; protocol::body_len(prefix)?]);
        self.stream.read_exact(&mut body).await?;
        protocol::message(&body)
    }

    /// Kills it, and says how it had ended if it had.
    pub(super) async fn end(mut self) -> Option<String> {
        drop(self.stream);
        let early = self.child.try_wait().ok().flatten();
        // It may have ended a moment ago.
        let _ = self.child.start_kill();
        let status = match timeout(REAP_TIMEOUT, self.child.wait()).await {
            Ok(Ok(status)) => early.unwrap_or(status),
            _ => return None,
        };
        match (status.signal(), status.code()) {
            (Some(9), _) => None,
            (Some(signal), _) => Some(format!("it crashed with signal {signal}")),
            (None, Some(code)) => Some(format!("it ended with exit code {code}")),
            (None, None) => None,
        }
    }
}
