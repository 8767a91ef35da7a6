//! Wakes whoever waits for a write of sled that failed.
//!
//! sled hands its buffers to threads of its own to be written, and whoever needs them on the disk sleeps until they
//! are. When the last one to leave a buffer hands it over, as every batch does, and the write fails, sled notes the
//! error and wakes nobody: those who look at it later learn of it, those who sleep already sleep for ever. A failed
//! write would look like a disk that hangs, and would never be latched. So a thread looks at what is noted, and has
//! the sleepers look, too.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use crate::database::abort_on_panic;
use crate::error::StorageError;

/// How often what is noted is looked at: so long may a failed write go untold.
const INTERVAL: Duration = Duration::from_millis(100);

/// The alarm of one database. It ends, and lets go of the database, when it is dropped.
pub(crate) struct WriteAlarm {
    stop: Arc<Stop>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Stop {
    asked: Mutex<bool>,
    changed: Condvar,
}

impl WriteAlarm {
    /// Watches over a database from here on.
    pub fn start(db: &sled::Db, dir: &Path) -> Result<Self, StorageError> {
        let stop = Arc::<Stop>::default();
        let (db, dir, stopped) = (db.clone(), PathBuf::from(dir), Arc::clone(&stop));
        let thread = std::thread::Builder::new()
            .name("write-alarm".to_owned())
            .spawn(move || abort_on_panic("write-alarm", || watch(&db, &dir, &stopped)))
            .map_err(|e| StorageError::io("start the alarm for failed writes", e))?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for WriteAlarm {
    fn drop(&mut self) {
        *self.stop.asked.lock() = true;
        self.stop.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            // It ends the process rather than panic.
            let _ = thread.join();
        }
    }
}

/// Looks until a write has failed or the alarm is dropped. A slow disk is no error: nothing is noted for it.
fn watch(db: &sled::Db, dir: &Path, stop: &Stop) {
    let mut stopped = stop.asked.lock();
    while !*stopped {
        if let Err(error) = db.context.global_error() {
            tracing::error!(database = %dir.display(), %error, "a write failed");
            wake(db);
            // The error stays: from now on everybody sees it before going to sleep.
            return;
        }
        stop.changed.wait_for(&mut stopped, INTERVAL);
    }
}

/// Asks sled to wait for more than it will ever write. It looks at the error first, and then has all who sleep look at
/// it, too. Unlike `flush` this takes none of sled's process-wide locks, which a sleeper may hold.
fn wake(db: &sled::Db) {
    let answer = db.context.pagecache.log.make_stable(i64::MAX);
    debug_assert!(answer.is_err(), "an error that is noted stays");
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn an_alarm_lets_go_of_its_database_at_once() {
        let dir = tempfile::tempdir().expect("tempdir");
        let open = || sled::Config::new().path(dir.path()).flush_every_ms(None).open();
        let db = open().expect("new");
        let alarm = WriteAlarm::start(&db, dir.path()).expect("a thread");
        drop(db);
        assert!(open().is_err(), "the alarm holds it");
        let began = Instant::now();
        drop(alarm);
        assert!(began.elapsed() < Duration::from_secs(5), "a stop was slept over");
        let deadline = Instant::now() + Duration::from_secs(10);
        // sled's own threads may hold it a moment longer.
        while let Err(error) = open() {
            assert!(Instant::now() < deadline, "still held: {error}");
            std::thread::yield_now();
        }
    }
}
