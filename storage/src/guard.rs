//! Panics on the threads of the storage, and those that are expected.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use crate::error::StorageError;

thread_local! {
    static GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// Whether a panic on this thread would be a library's way to report a damaged file; it is caught and told as an
/// error: a panic hook need not tell it.
pub fn expects_panic() -> bool {
    GUARDED.get()
}

/// Runs `f`, whose panic means that a file below `dir` is damaged. Damage names `dir`.
pub(crate) fn guarded<T>(dir: &Path, f: impl FnOnce() -> Result<T, StorageError>) -> Result<T, StorageError> {
    let before = GUARDED.replace(true);
    let outcome = catch_unwind(AssertUnwindSafe(f));
    GUARDED.set(before);
    match outcome {
        Ok(result) => result.map_err(|error| error.found_in(dir)),
        Err(_) => Err(StorageError::damaged(format!("the tree in {} is damaged", dir.display()))),
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
