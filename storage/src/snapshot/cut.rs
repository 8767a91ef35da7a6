//! Cutting.
use super::{SnapshotFile, SnapshotMeta};
use crate::error::StorageError;
use std::path::Path;
/// The state at one index, while writes go on.
pub struct SnapshotCut {
    meta: SnapshotMeta,
}
impl SnapshotCut {
    /// What the cut is of.
    pub fn meta(&self) -> &SnapshotMeta {
        &self.meta
    }
    /// Writes the cut to a file.
    /// # Errors
    /// Not built yet.
    pub fn spool(self, _path: &Path) -> Result<SnapshotFile, StorageError> {
        Err(StorageError::Busy { what: "construction".into() })
    }
}
