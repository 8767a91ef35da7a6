//! The Raft log on sled.

use crate::datadir::DataDir;
use crate::error::StorageError;

/// The Raft log on sled.
pub struct SledLog;

impl SledLog {
    /// Opens the log.
    ///
    /// # Errors
    /// Not built yet.
    pub fn open(_dir: &DataDir) -> Result<Self, StorageError> {
        Err(StorageError::Busy { what: "construction".into() })
    }
}
