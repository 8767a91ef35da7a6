//! Doubt about what the kernel holds in memory of our files, after a sync that failed.
//!
//! A page that the kernel could not write is reported once; from then on it counts as written, and everybody who reads
//! the file is given it from memory. So a node that was started again after a failed sync would read what is not on
//! the disk, build on it, acknowledge what follows, and lose all of it with the next power cut. Therefore a failed
//! sync leaves a mark, and the next start first makes the kernel read the files from the disk again. What is missing
//! then looks like a torn tail, and that is what it is.
//!
//! The mark is written into the lock file and not synced: it has to outlive the process, not the machine, whose end
//! is that of the kernel's memory, too.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

use rustix::fs::{Advice, fadvise};

use crate::error::StorageError;

const LOCK: &str = "LOCK";
const MARK: &[u8] = b"a sync failed\n";
/// What is synced while a node runs.
const FILES: [&str; 3] = ["log", "state", "promise"];

/// Leaves the mark in a data directory.
pub(crate) fn raise(data: &Path) {
    let marked =
        OpenOptions::new().write(true).open(data.join(LOCK)).and_then(|mut lock| lock.write_all(MARK));
    if let Err(error) = marked {
        // What can still be done is to say so.
        tracing::error!(%error, "a sync failed, and that cannot be noted: restart the machine before this node");
    }
}

/// Has the files of a marked directory read from the disk, then removes the mark. `lock` is its lock file.
///
/// # Errors
/// [`StorageError::Io`] if the disk still fails; the mark stays.
pub(crate) fn settle(data: &Path, lock: &File) -> Result<(), StorageError> {
    let about = |step: &str, path: &Path| format!("{step} {} after a failed sync", path.display());
    let path = data.join(LOCK);
    if lock.metadata().map_err(|e| StorageError::io(about("read", &path), e))?.len() == 0 {
        return Ok(());
    }
    tracing::warn!("a sync had failed: the data files are read from the disk again");
    for path in FILES.map(|name| data.join(name)) {
        forget(&path).map_err(|e| StorageError::io(about("read", &path), e))?;
    }
    lock.set_len(0).map_err(|e| StorageError::io(about("write", &path), e))
}

/// Makes the kernel forget what it holds of a file, or of all files below a directory. What it has yet to write is
/// written before.
fn forget(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
        Ok(about) if about.is_dir() => {
            return fs::read_dir(path)?.try_for_each(|entry| forget(&entry?.path()));
        }
        Ok(_) => {}
    }
    let file = File::open(path)?;
    file.sync_data()?;
    Ok(fadvise(&file, 0, None, Advice::DontNeed)?)
}

#[cfg(test)]
mod tests {
    use std::io::{IoSliceMut, Read};

    use rustix::io::{Errno, ReadWriteFlags, preadv2};

    use super::*;

    /// Whether the kernel has the beginning of a file in memory; `None` if the file system does not say.
    fn in_memory(path: &Path) -> Option<bool> {
        let file = File::open(path).expect("there");
        let mut byte = [0];
        match preadv2(&file, &mut [IoSliceMut::new(&mut byte)], 0, ReadWriteFlags::NOWAIT) {
            Ok(_) => Some(true),
            Err(Errno::AGAIN) => Some(false),
            Err(_) => None,
        }
    }

    #[test]
    fn after_a_mark_files_are_read_from_the_disk_once() {
        let data = tempfile::tempdir().expect("tempdir");
        let lock = File::create(data.path().join(LOCK)).expect("create");
        let promise = data.path().join("promise");
        std::fs::write(&promise, [7; 9000]).expect("write");
        File::open(&promise).and_then(|file| file.sync_all()).expect("sync");
        settle(data.path(), &lock).expect("no mark");
        if in_memory(&promise) != Some(true) {
            eprintln!(
                "skipped: the file system below {} does not say what is in memory",
                data.path().display()
            );
            return;
        }
        raise(data.path());
        settle(data.path(), &lock).expect("a good disk");
        let dropped = in_memory(&promise) == Some(false);
        // A file system in memory has nothing to read again.
        let in_ram = rustix::fs::statfs(data.path()).expect("statfs").f_type == 0x0102_1994;
        assert!(dropped || in_ram, "it is still in memory");
        let mut bytes = Vec::new();
        File::open(&promise).and_then(|mut file| file.read_to_end(&mut bytes)).expect("read");
        assert_eq!(bytes, [7; 9000]);
        settle(data.path(), &lock).expect("no mark any more");
        assert_eq!(in_memory(&promise), Some(true), "it was not asked for again");
    }

    #[test]
    fn a_failed_sync_leaves_a_mark_until_the_next_start() {
        let data = tempfile::tempdir().expect("tempdir");
        let dir = crate::DataDir::open(data.path()).expect("new");
        drop(crate::open(&dir).expect("new"));
        drop(dir);
        raise(data.path());
        assert_eq!(std::fs::read(data.path().join(LOCK)).expect("read"), MARK);
        let dir = crate::DataDir::open(data.path()).expect("opens");
        assert_eq!(std::fs::read(data.path().join(LOCK)).expect("read"), b"");
        drop(crate::open(&dir).expect("whole"));
    }
}
