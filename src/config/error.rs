//! What can be wrong with a configuration, and what is merely worth saying about it.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A reason why a configuration cannot be used.
///
/// The messages name the key and the remedy. They never contain the value of a key that can hold a secret.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Something on a line of a file is wrong: its syntax, a key, a type, a value.
    #[error("{}:{line}: {message}", path.display())]
    File {
        /// The file as it was named on the command line, or found in a directory named there.
        path: PathBuf,
        /// The line, counted from 1.
        line: u32,
        /// What is wrong, and what to write instead.
        message: String,
    },
    /// A file or directory cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// What could not be read.
        path: PathBuf,
        /// The operating system's reason.
        source: io::Error,
    },
    /// The files together lack something, so that no single line is to blame.
    #[error("{message}")]
    Incomplete {
        /// What is missing, and how to write it.
        message: String,
    },
    /// An environment variable holds a value that cannot be used.
    #[error("environment variable {name}: {message}")]
    Environment {
        /// The variable's name.
        name: String,
        /// What is wrong, and what to write instead.
        message: String,
    },
}

/// Something that does not keep the server from starting, but that the operator should know.
///
/// Most warnings are about keys that Vault acts upon and this server does not act upon yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigWarning {
    /// The key it is about, without its section.
    pub key: String,
    /// A sentence that begins with file and line. It contains no values.
    pub text: String,
}

/// Where a key stands: its file and line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct At {
    pub(super) file: Arc<Path>,
    pub(super) line: u32,
}

impl At {
    /// The error that blames this place.
    pub(super) fn error(&self, message: impl Into<String>) -> ConfigError {
        ConfigError::File { path: self.file.to_path_buf(), line: self.line, message: message.into() }
    }

    /// The warning about `key` at this place.
    pub(super) fn warning(&self, key: &str, message: &str) -> ConfigWarning {
        let text = format!("{}:{}: {message}", self.file.display(), self.line);
        ConfigWarning { key: key.to_owned(), text }
    }
}
