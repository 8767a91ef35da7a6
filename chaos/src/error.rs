//! What can go wrong between a test and the cluster it drives.

use std::{path::PathBuf, time::Duration};

/// Why a step of a test did not happen.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or a process could not be worked with.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// The system's answer.
        #[source]
        source: std::io::Error,
    },
    /// The binary to test is not there.
    #[error("no binary at {0}: build it first, or set KEYSTEAD_BIN")]
    NoBinary(PathBuf),
    /// Certificates could not be made or read.
    #[error("certificates: {0}")]
    Tls(#[from] keystead_tls::Error),
    /// The request certainly did not reach a server.
    #[error("not sent: {0}")]
    NotSent(String),
    /// The request may have been executed; its answer is lost.
    #[error("answer lost: {0}")]
    Lost(String),
    /// No answer in time; the request may have been executed.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// The server answered with another status than the step needs.
    #[error("{request}: {status} {body}")]
    Status {
        /// Method and path.
        request: String,
        /// What came back.
        status: u16,
        /// The body, shortened.
        body: String,
    },
    /// A condition did not come true in time.
    #[error("waited {waited:?} for {what}; last seen: {last}")]
    Deadline {
        /// The condition.
        what: String,
        /// How long it was waited for.
        waited: Duration,
        /// What was seen instead.
        last: String,
    },
    /// A process ended that should have gone on.
    #[error("{name} ended with {status}; the end of its log:\n{log}")]
    Ended {
        /// Which one.
        name: String,
        /// Its exit status.
        status: String,
        /// The last lines of its log.
        log: String,
    },
    /// What was promised does not hold.
    #[error("{0}")]
    Broken(String),
}

/// The result of a step.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// Wraps a system error with what was tried.
    pub fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }

    /// Whether the request may have been executed although its answer is not known.
    pub fn outcome_unknown(&self) -> bool {
        match self {
            Self::Lost(_) | Self::Timeout(_) => true,
            // 409 is the server's own "outcome unknown"; a 5xx leaves it open too.
            Self::Status { status, .. } => *status == 409 || *status >= 500,
            _ => false,
        }
    }
}
