//! The sealed state on sled.

use crate::datadir::DataDir;
use crate::error::StorageError;

/// The sealed state on sled.
pub struct SledState;

impl SledState {
    /// Opens the state.
    ///
    /// # Errors
    /// Not built yet.
    pub fn open(_dir: &DataDir) -> Result<Self, StorageError> {
        Err(StorageError::Busy { what: "construction".into() })
    }
}
