//! The data directory: who may use it, which format it has, files written whole or not at all.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::disk_watch::DiskWatch;
use crate::error::StorageError;
use crate::space::{Watermarks, statvfs};

/// The format that this release writes.
const FORMAT: u32 = 1;

/// The data directory of one node, locked against every other process.
///
/// The lock lasts until the last clone, log and state that were opened in it are gone.
#[derive(Clone, Debug)]
pub struct DataDir {
    path: PathBuf,
    disk: Arc<DiskWatch>,
    _lock: Arc<File>,
}

impl DataDir {
    /// Opens the directory, creates it (mode 0700) if it is missing, and locks it.
    ///
    /// # Errors
    /// [`StorageError::InUse`] if another process has it, [`StorageError::NewerFormat`] if a newer
    /// release wrote it, [`StorageError::Damaged`] if its format cannot be read.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, StorageError> {
        let path = path.into();
        create_dir(&path)?;
        let lock_path = path.join("LOCK");
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&lock_path)
            .map_err(|e| StorageError::io(format!("open {}", lock_path.display()), e))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(StorageError::InUse { path }),
            Err(TryLockError::Error(e)) => {
                return Err(StorageError::io(format!("lock {}", lock_path.display()), e));
            }
        }
        check_format(&path)?;
        let disk = Arc::new(DiskWatch::new(&path)?);
        let dir = Self { path, disk, _lock: Arc::new(lock) };
        for sub in [dir.log(), dir.state(), dir.snapshots()] {
            create_dir(&sub)?;
        }
        sync_dir(&dir.path)?;
        Ok(dir)
    }

    /// The directory itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the Raft log is.
    pub fn log(&self) -> PathBuf {
        self.path.join("log")
    }

    /// Where the sealed state is.
    pub fn state(&self) -> PathBuf {
        self.path.join("state")
    }

    /// Where snapshots are spooled; what lies there may be deleted when nobody serves it.
    pub fn snapshots(&self) -> PathBuf {
        self.path.join("snapshots")
    }

    /// How its disk does.
    pub fn disk(&self) -> &Arc<DiskWatch> {
        &self.disk
    }
}

/// Bytes that an unprivileged process may still write at `path`.
pub(crate) fn free_bytes(path: &Path) -> Result<u64, StorageError> {
    Ok(statvfs(path)?.0)
}

/// Refuses where there is too little space to open a database: sled fails half-way on a full disk and may leave
/// files that the next open takes for damage.
pub(crate) fn check_room_to_open(path: &Path) -> Result<(), StorageError> {
    let (free_bytes, total_bytes) = statvfs(path)?;
    if free_bytes < Watermarks::of(total_bytes).full_bytes {
        return Err(StorageError::Full { path: path.to_owned(), free_bytes });
    }
    Ok(())
}

/// Writes a file so that after a crash it has the old content or the new, never a mixture.
///
/// Writes beside it, syncs, renames, syncs the directory. `mode` is that of a new file, such as `0o600`.
///
/// # Errors
/// [`StorageError::Io`]; the old content is then untouched, unless the last step failed.
pub fn write_file_durably(path: &Path, bytes: &[u8], mode: u32) -> Result<(), StorageError> {
    let context = |step: &str| format!("{step} {}", path.display());
    let mut name = path
        .file_name()
        .ok_or_else(|| StorageError::io(context("write"), io::ErrorKind::InvalidInput.into()))?
        .to_owned();
    name.push(".tmp");
    let temporary = path.with_file_name(name);
    // A leftover of a crash may have another mode.
    match fs::remove_file(&temporary) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            return Err(StorageError::io(context("write"), e));
        }
        _ => {}
    }
    let mut file = OpenOptions::new()
        .create_new(true)
        .write(true)
        .mode(mode)
        .open(&temporary)
        .map_err(|e| StorageError::io(context("write"), e))?;
    file.write_all(bytes).map_err(|e| StorageError::io(context("write"), e))?;
    file.sync_all().map_err(|e| StorageError::io(context("sync"), e))?;
    fs::rename(&temporary, path).map_err(|e| StorageError::io(context("rename"), e))?;
    sync_dir(path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new(".")))
}

/// Reads a whole file; `None` if it does not exist.
///
/// # Errors
/// [`StorageError::Io`] if it cannot be read, [`StorageError::TooLarge`] past `limit` bytes.
pub fn read_file(path: &Path, limit: u64) -> Result<Option<Vec<u8>>, StorageError> {
    let context = || format!("read {}", path.display());
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(StorageError::io(context(), e)),
    };
    let mut bytes = Vec::new();
    let read = file.take(limit + 1).read_to_end(&mut bytes).map_err(|e| StorageError::io(context(), e))?;
    if read as u64 > limit {
        let what = format!("{} in bytes", path.display());
        return Err(StorageError::TooLarge { what, size: read as u64, limit });
    }
    Ok(Some(bytes))
}

/// Makes renames and new files in a directory durable.
pub(crate) fn sync_dir(path: &Path) -> Result<(), StorageError> {
    File::open(path)
        .and_then(|dir| dir.sync_all())
        .map_err(|e| StorageError::io(format!("sync directory {}", path.display()), e))
}

fn create_dir(path: &Path) -> Result<(), StorageError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|e| StorageError::io(format!("create directory {}", path.display()), e))
}

fn check_format(dir: &Path) -> Result<(), StorageError> {
    let path = dir.join("FORMAT");
    let Some(bytes) = read_file(&path, 256)? else {
        return write_file_durably(&path, format!("keystead-data {FORMAT}\n").as_bytes(), 0o600);
    };
    let found = std::str::from_utf8(&bytes)
        .ok()
        .and_then(|text| text.strip_prefix("keystead-data "))
        .and_then(|rest| rest.trim_end().parse::<u32>().ok())
        .ok_or_else(|| StorageError::damaged(format!("{} is not a format number", path.display())))?;
    if found > FORMAT {
        return Err(StorageError::NewerFormat { path, found, known: FORMAT });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_second_user_is_told_that_the_directory_is_in_use() {
        let base = tempfile::tempdir().expect("tempdir");
        let path = base.path().join("data");
        let first = DataDir::open(&path).expect("free");
        assert!(matches!(DataDir::open(&path), Err(StorageError::InUse { .. })));
        let clone = first.clone();
        drop(first);
        assert!(DataDir::open(&path).is_err(), "a clone keeps the lock");
        drop(clone);
        DataDir::open(&path).expect("free again");
    }

    #[test]
    fn a_new_directory_is_private() {
        let base = tempfile::tempdir().expect("tempdir");
        let path = base.path().join("a").join("data");
        let _dir = DataDir::open(&path).expect("free");
        assert_eq!(fs::metadata(&path).expect("exists").permissions().mode() & 0o777, 0o700);
        assert_eq!(fs::read(path.join("FORMAT")).expect("exists"), b"keystead-data 1\n");
    }

    #[test]
    fn a_newer_or_unreadable_format_is_refused() {
        let base = tempfile::tempdir().expect("tempdir");
        fs::write(base.path().join("FORMAT"), "keystead-data 2\n").expect("write");
        let error = DataDir::open(base.path()).expect_err("newer");
        assert!(matches!(error, StorageError::NewerFormat { found: 2, known: 1, .. }), "{error}");
        fs::write(base.path().join("FORMAT"), "something else").expect("write");
        assert!(matches!(DataDir::open(base.path()), Err(StorageError::Damaged { .. })));
    }

    #[test]
    fn a_file_is_replaced_whole_and_with_its_mode() {
        let base = tempfile::tempdir().expect("tempdir");
        let path = base.path().join("identity");
        fs::write(base.path().join("identity.tmp"), "left over").expect("write");
        write_file_durably(&path, b"one", 0o600).expect("write");
        write_file_durably(&path, b"two", 0o600).expect("write");
        assert_eq!(read_file(&path, 3).expect("read"), Some(b"two".to_vec()));
        assert!(matches!(read_file(&path, 2), Err(StorageError::TooLarge { .. })));
        assert_eq!(read_file(&base.path().join("none"), 1).expect("read"), None);
        assert_eq!(fs::metadata(&path).expect("exists").permissions().mode() & 0o777, 0o600);
    }
}
