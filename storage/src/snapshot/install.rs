//! Installing.
use crate::error::StorageError;
/// Stages a snapshot.
pub struct Installer {
    next: u64,
}
impl Installer {
    /// Number of the chunk that is expected next.
    pub fn next_chunk(&self) -> u64 {
        self.next
    }
    /// Takes one chunk.
    /// # Errors
    /// Not built yet.
    pub fn chunk(&mut self, _n: u64, _bytes: &[u8]) -> Result<(), StorageError> {
        Err(StorageError::Busy { what: "construction".into() })
    }
    /// Flips.
    /// # Errors
    /// Not built yet.
    pub fn finish(self) -> Result<(), StorageError> {
        Err(StorageError::Busy { what: "construction".into() })
    }
}
