//! The data directory: who may use it, which format it has, files written whole or not at all.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::disk_watch::DiskWatch;
use crate::doubt;
use crate::error::StorageError;
use crate::promise::Promise;
use crate::space::{Watermarks, statvfs};

/// The format that this release writes.
const FORMAT: u32 = 2;
/// The oldest that it reads: 1 had the log in a database.
const FIRST_FORMAT: u32 = 2;
/// What the log has acknowledged, outside of the log.
const PROMISE: &str = "promise";
/// What belongs to one incarnation of a node, in the order in which it is removed: without an identity nothing
/// of the rest is used, and without a format number nothing of the rest may be there.
const REMOVED: [&str; 11] = [
    "identity",
    "identity.tmp",
    "enrolment",
    "enrolment.tmp",
    "log",
    "state",
    "snapshots",
    "promise",
    "promise.tmp",
    "FORMAT",
    "initialising",
];

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
        let lock = lock(&path)?;
        doubt::settle(&path, &lock)?;
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

    /// What the log has acknowledged, outside of the log.
    pub(crate) fn promise(&self) -> PathBuf {
        self.path.join(PROMISE)
    }

    /// How its disk does.
    pub fn disk(&self) -> &Arc<DiskWatch> {
        &self.disk
    }
}

/// Locks a data directory that exists against every other process, whatever state it is in.
fn lock(dir: &Path) -> Result<File, StorageError> {
    let path = dir.join("LOCK");
    let lock = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&path)
        .map_err(|e| StorageError::io(format!("open {}", path.display()), e))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => Err(StorageError::InUse { path: dir.to_owned() }),
        Err(TryLockError::Error(e)) => Err(StorageError::io(format!("lock {}", path.display()), e)),
    }
}

/// A data directory that is to be emptied, locked, and not opened: what is in it may be damaged.
#[derive(Debug)]
pub struct Emptying {
    path: PathBuf,
    _lock: File,
}

impl Emptying {
    /// Locks a directory that exists.
    ///
    /// # Errors
    /// [`StorageError::InUse`] if a server has it, [`StorageError::Io`] if it cannot be looked into.
    pub fn begin(path: &Path) -> Result<Self, StorageError> {
        fs::read_dir(path).map_err(|e| StorageError::io(format!("read {}", path.display()), e))?;
        Ok(Self { path: path.to_owned(), _lock: lock(path)? })
    }

    /// What of it would be removed, with its size in bytes.
    pub fn contents(&self) -> Vec<(&'static str, u64)> {
        let found = REMOVED.iter().map(|name| (*name, self.path.join(name)));
        found.filter(|(_, path)| path.exists()).map(|(name, path)| (name, size_of(&path))).collect()
    }

    /// Removes everything that one incarnation of a node has: identity, log, state, snapshots. `node-id` and
    /// whatever is not ours stay.
    ///
    /// The identity goes first, durably: whatever interrupts this, the incarnation never comes back with less
    /// than it had, and a start says that this has to be run again.
    ///
    /// # Errors
    /// [`StorageError::Io`]; it may be run again.
    pub fn empty(&self) -> Result<(), StorageError> {
        for name in REMOVED {
            let path = self.path.join(name);
            let removed = match fs::symlink_metadata(&path) {
                Ok(about) if about.is_dir() => fs::remove_dir_all(&path),
                Ok(_) => fs::remove_file(&path),
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(e) => Err(e),
            };
            removed.map_err(|e| StorageError::io(format!("remove {}", path.display()), e))?;
            sync_dir(&self.path)?;
        }
        Ok(())
    }
}

fn size_of(path: &Path) -> u64 {
    match fs::read_dir(path) {
        Ok(entries) => entries.flatten().map(|entry| size_of(&entry.path())).sum(),
        Err(_) => fs::metadata(path).map_or(0, |about| about.len()),
    }
}

/// Bytes that an unprivileged process may still write at `path`.
pub(crate) fn free_bytes(path: &Path) -> Result<u64, StorageError> {
    Ok(statvfs(path)?.0)
}

/// Refuses where there is too little space to open log and state: on a full disk that fails half-way and may leave
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

/// [`read_file`] for a file of ours whose size is bounded: a longer one is damaged.
pub(crate) fn read_bounded(path: &Path, limit: u64) -> Result<Option<Vec<u8>>, StorageError> {
    read_file(path, limit).map_err(|error| match error {
        StorageError::TooLarge { .. } => {
            StorageError::damaged(format!("{} is longer than it can be", path.display()))
        }
        other => other,
    })
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

/// Makes a new directory usable again after its data were removed: nothing is promised any more.
///
/// # Errors
/// [`StorageError::Io`].
pub fn forget_promise(dir: &DataDir) -> Result<(), StorageError> {
    Promise::create(&dir.promise())
}

/// Log or state of a data directory, if it has one that anything was written to.
pub fn written(dir: &Path) -> Option<PathBuf> {
    let filled = |path: &PathBuf| fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_some());
    ["log", "state"].map(|name| dir.join(name)).into_iter().find(filled)
}

fn check_format(dir: &Path) -> Result<(), StorageError> {
    let path = dir.join("FORMAT");
    let Some(bytes) = read_bounded(&path, 256)? else {
        if let Some(used) = written(dir).or(Some(dir.join("identity")).filter(|path| path.exists())) {
            let what = format!("{} is missing, but {} is there", path.display(), used.display());
            return Err(StorageError::damaged(what));
        }
        // First, so that a directory with a format number has one: a missing promise is then noticed.
        Promise::create(&dir.join(PROMISE))?;
        return write_file_durably(&path, format!("keystead-data {FORMAT}\n").as_bytes(), 0o600);
    };
    let found = std::str::from_utf8(&bytes)
        .ok()
        .and_then(|text| text.strip_prefix("keystead-data "))
        .and_then(|rest| rest.trim_end().parse::<u32>().ok())
        .filter(|found| *found >= FIRST_FORMAT)
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
        assert_eq!(fs::read(path.join("FORMAT")).expect("exists"), b"keystead-data 2\n");
    }

    #[test]
    fn a_newer_or_unreadable_format_is_refused() {
        let base = tempfile::tempdir().expect("tempdir");
        fs::write(base.path().join("FORMAT"), "keystead-data 3\n").expect("write");
        let error = DataDir::open(base.path()).expect_err("newer");
        assert!(matches!(error, StorageError::NewerFormat { found: 3, known: 2, .. }), "{error}");
        fs::write(base.path().join("FORMAT"), "something else").expect("write");
        assert!(matches!(DataDir::open(base.path()), Err(StorageError::Damaged { .. })));
    }

    #[test]
    fn data_without_a_format_are_not_taken_for_a_new_directory() {
        let base = tempfile::tempdir().expect("tempdir");
        fs::write(base.path().join("FORMAT"), "keystead-data 0\n").expect("write");
        assert!(matches!(DataDir::open(base.path()), Err(StorageError::Damaged { .. })));
        fs::write(base.path().join("FORMAT"), [b'1'; 300]).expect("write");
        assert!(matches!(DataDir::open(base.path()), Err(StorageError::Damaged { .. })));
        fs::remove_file(base.path().join("FORMAT")).expect("remove");
        fs::write(base.path().join("identity"), "x").expect("write");
        let error = DataDir::open(base.path()).expect_err("no format").to_string();
        assert!(error.contains("FORMAT is missing") && error.contains("raft rebuild"), "{error}");
    }

    #[test]
    fn emptying_leaves_what_names_the_place_and_what_is_not_ours() {
        let base = tempfile::tempdir().expect("tempdir");
        let dir = DataDir::open(base.path()).expect("new");
        assert!(matches!(Emptying::begin(base.path()), Err(StorageError::InUse { .. })));
        drop(dir);
        for name in ["identity", "node-id", "lost", "log/1.log", "state/current"] {
            fs::write(base.path().join(name), "12345").expect("write");
        }
        let emptying = Emptying::begin(base.path()).expect("free");
        assert!(emptying.contents().contains(&("log", 5)), "{:?}", emptying.contents());
        emptying.empty().expect("emptied");
        drop(emptying);
        let mut left: Vec<_> =
            fs::read_dir(base.path()).expect("read").map(|e| e.expect("entry").file_name()).collect();
        left.sort();
        assert_eq!(left, ["LOCK", "lost", "node-id"]);
        DataDir::open(base.path()).expect("as new");
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
