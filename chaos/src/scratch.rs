//! Directories for files whose safety on a disk is of no interest.

use std::{io, path::Path};

/// Where files are kept in memory, on Linux, unless [`MEMORY_VARIABLE`] names a place.
const MEMORY: &str = "/dev/shm";
/// Set by whoever takes away what killed tests leave there.
const MEMORY_VARIABLE: &str = "KEYSTEAD_TESTS_MEMORY";
/// So much must be free there. Containers often have 64 MiB, too little for a few databases.
const ROOM_BYTES: u64 = 1 << 30;

/// A directory in memory where there is room, else among the temporary files; it is removed when it is dropped.
/// Opening a database syncs a good deal, which is quick there.
///
/// # Errors
/// As making a directory among the temporary files.
pub fn in_memory(prefix: &str) -> io::Result<tempfile::TempDir> {
    let builder = || {
        let mut builder = tempfile::Builder::new();
        builder.prefix(prefix);
        builder
    };
    let memory = std::env::var_os(MEMORY_VARIABLE).unwrap_or_else(|| MEMORY.into());
    let memory = Path::new(&memory);
    match free_bytes(memory) {
        // It may not be writable.
        Some(free) if free >= ROOM_BYTES => builder().tempdir_in(memory).or_else(|_| builder().tempdir()),
        _ => builder().tempdir(),
    }
}

fn free_bytes(path: &Path) -> Option<u64> {
    let stat = rustix::fs::statvfs(path).ok()?;
    Some(stat.f_bavail.saturating_mul(stat.f_frsize))
}
