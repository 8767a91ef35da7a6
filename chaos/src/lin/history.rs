//! What is recorded: one line of JSON for each operation and each fault.

use std::{
    collections::BTreeSet,
    io::{BufRead as _, Write as _},
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// What a client asked of a folder. A key is a number, for the name `k<number>`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Op {
    /// Writes a new version.
    Put {
        /// Of this key.
        key: u8,
        /// No two intents of clients have the same.
        value: u64,
    },
    /// Writes a new version if the current one has a number.
    Cas {
        /// Of this key.
        key: u8,
        /// The number; 0 if there is to be none.
        expected: u64,
        /// As in a put.
        value: u64,
    },
    /// Deletes the current version softly.
    Delete {
        /// Of this key.
        key: u8,
    },
    /// Deletes the key with all versions and its name.
    Remove {
        /// This key.
        key: u8,
    },
    /// Reads the current version.
    Get {
        /// Of this key.
        key: u8,
    },
    /// Lists the names.
    List,
}

impl Op {
    /// Whether it can change anything.
    pub fn writes(&self) -> bool {
        !matches!(self, Self::Get { .. } | Self::List)
    }
}

/// What a node answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ret {
    /// Written, as this version.
    Written(u64),
    /// Not written: the current version has another number.
    Conflict,
    /// Deleted.
    Done,
    /// There is no such key.
    Absent,
    /// The current version, which has this number, is deleted.
    Deleted(u64),
    /// There is something.
    Found {
        /// The version's number.
        version: u64,
        /// What was written.
        value: u64,
    },
    /// The names there are.
    Listed(BTreeSet<u8>),
    /// An answer that no vault should give. No history with it can be explained.
    Strange(String),
}

/// How an operation ended for its client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// With an answer.
    Returned(Ret),
    /// The node, or the connection, said that nothing was done.
    Refused(String),
    /// It took effect at some time after its beginning, or never will.
    Unknown(String),
}

/// One operation of one client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operation {
    /// Who asked.
    pub client: usize,
    /// Which node was asked.
    pub node: usize,
    /// The folder that it is about.
    pub folder: String,
    /// When it was sent, in microseconds of one monotonic clock for all clients.
    pub begun_us: u64,
    /// When its outcome was known.
    pub ended_us: u64,
    /// What was asked.
    pub op: Op,
    /// What came of it.
    pub outcome: Outcome,
}

/// One line of a history's file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Line {
    /// Something that a client did.
    Operation(Operation),
    /// Something that was done to the nodes, for whoever reads the file.
    Fault {
        /// When, on the clock of the operations.
        at_us: u64,
        /// What.
        what: String,
    },
}

/// A history while it is made.
pub struct Recording {
    start: Instant,
    lines: Mutex<Vec<Line>>,
}

impl Default for Recording {
    fn default() -> Self {
        Self { start: Instant::now(), lines: Mutex::default() }
    }
}

impl Recording {
    /// Microseconds since the recording began.
    pub fn now_us(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_micros()).expect("a trial ends within half a million years")
    }

    /// Adds an operation that has ended.
    pub fn operation(&self, operation: Operation) {
        self.lines().push(Line::Operation(operation));
    }

    /// Notes what is done to the nodes now.
    pub fn fault(&self, what: impl Into<String>) {
        let at_us = self.now_us();
        self.lines().push(Line::Fault { at_us, what: what.into() });
    }

    /// The operations so far, in the order in which they ended.
    pub fn operations(&self) -> Vec<Operation> {
        operations(&self.lines())
    }

    /// How many operations were answered so far.
    pub fn answers(&self) -> usize {
        let answered = |line: &&Line| match line {
            Line::Operation(operation) => matches!(operation.outcome, Outcome::Returned(_)),
            Line::Fault { .. } => false,
        };
        self.lines().iter().filter(answered).count()
    }

    /// Writes the history to a file, one line of JSON for each operation and fault.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn save(&self, path: &Path) -> Result<()> {
        let write = || -> std::io::Result<()> {
            let mut file = std::io::BufWriter::new(std::fs::File::create(path)?);
            for line in self.lines().iter() {
                serde_json::to_writer(&mut file, line)?;
                file.write_all(b"\n")?;
            }
            file.flush()
        };
        write().map_err(Error::io(path.display().to_string()))
    }

    fn lines(&self) -> MutexGuard<'_, Vec<Line>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads a history's file.
///
/// # Errors
/// [`Error::Io`]; [`Error::Broken`] with the number of the line that is none.
pub fn load(path: &Path) -> Result<Vec<Line>> {
    let file = std::fs::File::open(path).map_err(Error::io(path.display().to_string()))?;
    let mut lines = Vec::new();
    for (at, text) in std::io::BufReader::new(file).lines().enumerate() {
        let text = text.map_err(Error::io(path.display().to_string()))?;
        let line = serde_json::from_str(&text);
        lines.push(line.map_err(|error| Error::Broken(format!("line {}: {error}", at + 1)))?);
    }
    Ok(lines)
}

/// The operations among some lines.
pub fn operations(lines: &[Line]) -> Vec<Operation> {
    let operation = |line: &Line| match line {
        Line::Operation(operation) => Some(operation.clone()),
        Line::Fault { .. } => None,
    };
    lines.iter().filter_map(operation).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_saved_is_what_is_loaded() {
        let recording = Recording::default();
        let rets = [
            Outcome::Returned(Ret::Found { version: 3, value: u64::MAX }),
            Outcome::Returned(Ret::Listed([1, 2].into())),
            Outcome::Unknown("no answer within 1s".into()),
        ];
        for (at, outcome) in rets.into_iter().enumerate() {
            recording.operation(Operation {
                client: at,
                node: 2,
                folder: "secret f".into(),
                begun_us: 1,
                ended_us: 2,
                op: Op::Cas { key: 1, expected: 2, value: 3 },
                outcome,
            });
        }
        recording.fault("kill 1");
        let file = tempfile::NamedTempFile::new().unwrap();
        recording.save(file.path()).unwrap();
        let loaded = load(file.path()).unwrap();
        assert_eq!(loaded.len(), 4);
        assert_eq!(operations(&loaded), recording.operations());
    }

    #[test]
    fn a_line_that_is_none_is_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "{\"fault\":{\"at_us\":1,\"what\":\"x\"}}\n{\"op\":1}\n").unwrap();
        assert!(load(file.path()).unwrap_err().to_string().starts_with("line 2: "));
    }
}
