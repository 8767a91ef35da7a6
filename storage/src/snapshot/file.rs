//! Files.
use super::Manifest;
use crate::error::StorageError;
use bytes::Bytes;
use std::path::Path;
/// Bytes of every chunk but the last.
pub const CHUNK_BYTES: usize = 64 * 1024;
/// A spooled snapshot.
pub struct SnapshotFile {
    manifest: Manifest,
}
impl SnapshotFile {
    /// Opens and verifies.
    /// # Errors
    /// Not built yet.
    pub fn open(_path: &Path) -> Result<Self, StorageError> {
        Err(StorageError::Busy { what: "construction".into() })
    }
    /// What a receiver must know.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }
    /// Reads one chunk.
    /// # Errors
    /// Not built yet.
    pub fn read_chunk(&self, _n: u64) -> Result<Bytes, StorageError> {
        Err(StorageError::Busy { what: "construction".into() })
    }
}
