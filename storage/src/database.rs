//! One sled database, opened and synced by the only rules under which it keeps what it promised.
//!
//! sled's own `flush` is not an fsync on Linux (it calls `sync_file_range` alone), a flusher thread of its
//! own would write without a real sync, and damage shows as a panic while it opens. So: no flusher
//! thread, an own `fdatasync` after every flush, large segments so that no value is put into an unsynced
//! blob file, and `catch_unwind` around opening.

use std::cell::Cell;
use std::fs::{self, File};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use crate::datadir;
use crate::doubt;
use crate::error::StorageError;
use crate::sync_meter::SyncMeter;
use crate::write_alarm::WriteAlarm;

/// Segments of 8 MiB: a leaf of 17 values of 64 KiB stays below a quarter of it, past which sled would
/// move it to a blob. It cannot be changed once a database exists.
const SEGMENT_BYTES: usize = 8 * 1024 * 1024;
/// The file with sled's parameters: segment size, version, compression.
const PARAMETERS: &str = "conf";
/// How long an earlier instance in this process may take to let go of the file.
const RELEASE_WAIT: Duration = Duration::from_secs(10);
const RELEASE_POLL: Duration = Duration::from_millis(2);
/// Most operations in one batch; sled leaks memory on batches of a thousand.
pub(crate) const BATCH_OPERATIONS: usize = 512;

/// An open database and a handle of our own to sync its file.
///
/// It is to be dropped after every tree of it: what closes last syncs, and may panic doing so.
pub(crate) struct Database {
    /// There until it is dropped.
    db: Option<sled::Db>,
    /// There as long as anybody may wait for a write.
    alarm: Option<WriteAlarm>,
    file: File,
    dir: PathBuf,
    meter: Arc<SyncMeter>,
    /// The first sync that failed.
    failed: OnceLock<String>,
}

impl Database {
    /// Opens or creates the database in `dir`.
    pub fn open(dir: &Path, cache_bytes: u64) -> Result<Self, StorageError> {
        remove_leftovers(dir)?;
        datadir::check_room_to_open(dir)?;
        let config = sled::Config::new()
            .path(dir)
            .segment_size(SEGMENT_BYTES)
            .cache_capacity(cache_bytes)
            .flush_every_ms(None);
        let db = guarded(dir, || open_when_released(&config, dir))?;
        let alarm = Some(WriteAlarm::start(&db, dir)?);
        let path = dir.join("db");
        let file = File::open(&path)
            .map_err(|e| StorageError::io(format!("open {} to sync it", path.display()), e))?;
        let (db, owned) = (Some(db), dir.to_owned());
        let database = Self { db, alarm, file, dir: owned, meter: Arc::default(), failed: OnceLock::new() };
        database.check_blobs()?;
        // Opening wrote files; what is written from now on must find them after a power cut. sled never syncs the
        // one with its parameters, without which it does not open.
        sync_file(&dir.join(PARAMETERS))?;
        database.sync()?;
        datadir::sync_dir(dir)?;
        Ok(database)
    }

    /// Opens a tree.
    pub fn tree(&self, name: &str) -> Result<sled::Tree, StorageError> {
        self.db().open_tree(name).map_err(|e| self.error("open tree", e))
    }

    /// Removes a tree with all that is in it.
    pub fn drop_tree(&self, name: &str) -> Result<(), StorageError> {
        self.db().drop_tree(name).map_err(|e| self.error("drop tree", e))?;
        Ok(())
    }

    /// Names of trees that begin with `prefix`, in order.
    pub fn tree_names(&self, prefix: &str) -> Vec<String> {
        let names = self.db().tree_names();
        let mut names: Vec<String> = names
            .iter()
            .filter_map(|name| std::str::from_utf8(name).ok())
            .filter(|name| name.starts_with(prefix))
            .map(str::to_owned)
            .collect();
        names.sort();
        names
    }

    /// Brings everything written so far to the disk: one flush of sled, one `fdatasync`.
    ///
    /// # Errors
    /// After the first failure every later call fails: the kernel reports a page that it could not write once, drops
    /// it, and calls the next sync a success.
    pub fn sync(&self) -> Result<(), StorageError> {
        if let Some(first) = self.failed.get() {
            return Err(StorageError::Latched { first: first.clone() });
        }
        let began = self.meter.begin();
        let result = self.db().flush().map_err(|e| self.error("flush", e)).and_then(|_| {
            let context = || format!("sync {}", self.dir.join("db").display());
            self.file.sync_data().map_err(|e| StorageError::io(context(), e))
        });
        self.meter.end(began);
        if let Err(error) = &result {
            let _ = self.failed.set(error.to_string());
            doubt::raise(self.dir.parent().unwrap_or(&self.dir));
        }
        result
    }

    fn db(&self) -> &sled::Db {
        self.db.as_ref().expect("it is there until this is dropped")
    }

    /// Runs what reads or writes pages: damage that sled meets there is an error that names this database.
    pub fn guarded<T>(&self, f: impl FnOnce() -> Result<T, StorageError>) -> Result<T, StorageError> {
        guarded(&self.dir, f)
    }

    /// How long syncs take.
    pub fn meter(&self) -> &Arc<SyncMeter> {
        &self.meter
    }

    /// Translates an error of sled.
    pub fn error(&self, context: &str, source: sled::Error) -> StorageError {
        StorageError::sled(context, &self.dir, source)
    }

    /// A value in a blob file is never synced; values are capped so that there is none.
    pub fn check_blobs(&self) -> Result<(), StorageError> {
        let path = self.dir.join("blobs");
        let mut entries = match fs::read_dir(&path) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(StorageError::io(format!("read {}", path.display()), e)),
        };
        match entries.next() {
            None => Ok(()),
            Some(_) => Err(StorageError::damaged(format!("{} is not empty", path.display()))),
        }
    }
}

impl Drop for Database {
    /// sled syncs when it is closed and panics if it cannot. Nothing that was acknowledged hangs on that sync.
    fn drop(&mut self) {
        let db = self.db.take();
        // What is left is written while the alarm is there: closing then waits for nothing.
        let written = caught(|| db.as_ref().map(|db| db.flush()));
        self.alarm = None;
        if !matches!(written, Ok(None | Some(Ok(_)))) | caught(|| drop(db)).is_err() {
            tracing::error!(database = %self.dir.display(), "the database could not be synced when it was closed");
        }
    }
}

/// Opens the database, waiting for an earlier instance in this process to let go of its file.
///
/// sled's own threads may hold the file for a moment after the last handle is dropped. That it is another
/// process is ruled out by the lock of the data directory.
fn open_when_released(config: &sled::Config, dir: &Path) -> Result<sled::Db, StorageError> {
    let deadline = Instant::now() + RELEASE_WAIT;
    loop {
        match config.open() {
            Err(sled::Error::Io(e)) if e.to_string().contains("could not acquire lock") => {
                if Instant::now() > deadline {
                    return Err(StorageError::InUse { path: dir.to_owned() });
                }
                std::thread::sleep(RELEASE_POLL);
            }
            result => return result.map_err(|e| StorageError::sled("open database", dir, e)),
        }
    }
}

thread_local! {
    static GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// Whether a panic on this thread would be sled's way to report damage, or a disk that fails while a database is
/// closed; it is caught and told as an error: a panic hook need not tell it.
pub fn expects_panic() -> bool {
    GUARDED.get()
}

/// Runs `f`, whose panic is expected and caught.
fn caught<T>(f: impl FnOnce() -> T) -> std::thread::Result<T> {
    let before = GUARDED.replace(true);
    let outcome = catch_unwind(AssertUnwindSafe(f));
    GUARDED.set(before);
    outcome
}

/// Runs `f` and turns a panic, which is how sled reports damage, into an error. Damage names `dir`.
pub(crate) fn guarded<T>(dir: &Path, f: impl FnOnce() -> Result<T, StorageError>) -> Result<T, StorageError> {
    match caught(f) {
        Ok(result) => result.map_err(|error| error.found_in(dir)),
        Err(_) => Err(StorageError::damaged(format!("the database {} is damaged", dir.join("db").display()))),
    }
}

/// Ends the process after a panic on a storage thread: replication would not notice that it is gone and
/// would go on acknowledging.
pub(crate) fn abort_on_panic(thread: &str, body: impl FnOnce()) {
    if catch_unwind(AssertUnwindSafe(body)).is_err() {
        tracing::error!(thread, "a storage thread panicked; the process ends");
        std::process::abort();
    }
}

/// Brings a file to the disk.
fn sync_file(path: &Path) -> Result<(), StorageError> {
    File::open(path)
        .and_then(|file| file.sync_all())
        .map_err(|e| StorageError::io(format!("sync {}", path.display()), e))
}

/// Whether sled's file of parameters is whole: their text and its CRC32.
fn parameters_are_whole(path: &Path) -> io::Result<bool> {
    let bytes = fs::read(path)?;
    let whole = |(text, crc): (&[u8], &[u8; 4])| crc32fast::hash(text).to_le_bytes() == *crc;
    Ok(bytes.split_last_chunk().is_some_and(whole))
}

/// Deletes what an interrupted run left and the next open would take for damage.
fn remove_leftovers(dir: &Path) -> Result<(), StorageError> {
    let context = || format!("look for leftovers in {}", dir.display());
    for entry in fs::read_dir(dir).map_err(|e| StorageError::io(context(), e))? {
        let entry = entry.map_err(|e| StorageError::io(context(), e))?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let generating = name.starts_with("snap.") && name.ends_with(".generating");
        let size = entry.metadata().map_err(|e| StorageError::io(context(), e))?.len();
        // sled writes its parameters again when they are missing, and they are always the same here.
        let torn = name == PARAMETERS
            && !parameters_are_whole(&entry.path()).map_err(|e| StorageError::io(context(), e))?;
        if generating || torn || (name.starts_with("snap.") && size == 0) {
            tracing::warn!(file = %entry.path().display(), "deleting the leftover of an interrupted run");
            fs::remove_file(entry.path()).map_err(|e| StorageError::io(context(), e))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leftovers_of_a_full_disk_do_not_stop_the_next_open() {
        let dir = tempfile::tempdir().expect("tempdir");
        let database = Database::open(dir.path(), 1 << 20).expect("new");
        database.tree("t").expect("tree").insert(b"k", b"v").expect("insert");
        database.sync().expect("sync");
        drop(database);
        fs::write(dir.path().join("snap.0000000000000001.generating"), "").expect("write");
        fs::write(dir.path().join("snap.00000000000000ff"), "").expect("write");
        let database = Database::open(dir.path(), 1 << 20).expect("leftovers are gone");
        assert_eq!(database.tree("t").expect("tree").get(b"k").expect("get").expect("kept"), b"v");
    }

    #[test]
    fn torn_parameters_are_written_again() {
        let dir = tempfile::tempdir().expect("tempdir");
        let database = Database::open(dir.path(), 1 << 20).expect("new");
        database.tree("t").expect("tree").insert(b"k", b"v").expect("insert");
        database.sync().expect("sync");
        drop(database);
        let path = dir.path().join(PARAMETERS);
        assert!(parameters_are_whole(&path).expect("read"), "what sled writes is told from what is torn");
        let whole = fs::read(&path).expect("read");
        for torn in [&whole[..0], &whole[..20], &whole[..whole.len() - 4], &[0; 63]] {
            fs::write(&path, torn).expect("write");
            let database = Database::open(dir.path(), 1 << 20).expect("opens");
            assert_eq!(database.tree("t").expect("tree").get(b"k").expect("get").expect("kept"), b"v");
            drop(database);
            assert_eq!(fs::read(&path).expect("read"), whole);
        }
    }

    #[test]
    fn after_a_failed_sync_none_succeeds() {
        let data = tempfile::tempdir().expect("tempdir");
        let dir = data.path().join("log");
        fs::create_dir(&dir).expect("make");
        fs::write(data.path().join("LOCK"), "").expect("write");
        let mut database = Database::open(&dir, 1 << 20).expect("new");
        // A pipe cannot be synced.
        let (reader, _writer) = std::io::pipe().expect("pipe");
        let file = std::mem::replace(&mut database.file, File::from(std::os::fd::OwnedFd::from(reader)));
        assert!(matches!(database.sync(), Err(StorageError::Io { .. })));
        database.file = file;
        let error = database.sync().expect_err("the first failure stays");
        assert!(error.to_string().contains("stopped after an earlier failure: sync"), "{error}");
        let mark = fs::read_to_string(data.path().join("LOCK")).expect("read");
        assert_eq!(mark, "a sync failed\n", "the next start does not trust the kernel's memory");
    }

    #[test]
    fn a_panic_becomes_damage_with_a_remedy() {
        let error = guarded::<()>(Path::new("x"), || panic!("as sled does")).expect_err("damaged");
        assert!(error.to_string().contains("rebuild this node"), "{error}");
    }

    #[test]
    fn a_sync_is_counted_and_measured() {
        let dir = tempfile::tempdir().expect("tempdir");
        let database = Database::open(dir.path(), 1 << 20).expect("new");
        let before = database.meter().stats().syncs;
        database.sync().expect("sync");
        let stats = database.meter().stats();
        assert_eq!((stats.syncs, stats.running_us), (before + 1, 0));
    }
}
