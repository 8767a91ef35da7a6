//! The data directory: whether it can be used, by whom it is used, and how much more fits in.

use std::fs::{File, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use keystead_storage::datadir::read_file;
use rustix::fs::Access;

use super::{Check, Status};

/// The format that this release reads and writes.
const FORMAT: u32 = 1;
/// Below this the database is not opened.
const FREE_AT_LEAST: u64 = 64 << 20;
/// Below this there is little time left to act.
const FREE_ENOUGH: u64 = 1 << 30;

pub(super) fn check(path: &Path) -> Check {
    let mut checks = vec![directory(path)];
    if checks[0].status != Status::Fail && path.exists() {
        checks.push(format(path));
        checks.push(lock(path));
    }
    checks.push(space(path));
    Check::group("Check Storage", checks)
}

/// Whether a running server has the directory.
pub(super) fn is_in_use(path: &Path) -> bool {
    File::open(path.join("LOCK")).is_ok_and(|lock| matches!(lock.try_lock(), Err(TryLockError::WouldBlock)))
}

fn directory(path: &Path) -> Check {
    const NAME: &str = "Check Data Directory";
    let shown = path.display();
    let about = match std::fs::metadata(path) {
        Ok(about) => about,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return missing(path),
        Err(error) => {
            let advice = "run this as the user that runs the server; if it is, let it into the directory";
            return Check::fail(NAME, format!("{shown}: {error}"), advice);
        }
    };
    if !about.is_dir() {
        return Check::fail(
            NAME,
            format!("{shown} is not a directory"),
            "choose another path, or remove what is there",
        );
    }
    if !writable(path) {
        let advice = format!("run this as the user that runs the server; if it is, chown {shown} to it");
        return Check::fail(NAME, format!("{shown} cannot be written to"), advice);
    }
    let own = rustix::process::geteuid().as_raw();
    if about.uid() != own {
        let advice = "run the server, and this, as the user that owns its data";
        return Check::warn(
            NAME,
            format!("{shown} belongs to user {}, this runs as {own}", about.uid()),
            advice,
        );
    }
    if about.mode() & 0o077 != 0 {
        let message = format!("others may look into {shown} (mode {:03o})", about.mode() & 0o777);
        return Check::warn(NAME, message, format!("chmod 700 {shown}"));
    }
    Check::ok(NAME, format!("{shown} is private and can be written to"))
}

fn missing(path: &Path) -> Check {
    const NAME: &str = "Check Data Directory";
    let parent = nearest_existing(path);
    if parent.is_dir() && writable(parent) {
        return Check::ok(NAME, format!("{} will be made at the first start", path.display()));
    }
    let advice = format!("make {} for the user that runs the server, mode 700", path.display());
    Check::fail(
        NAME,
        format!("{} is not there, and cannot be made in {}", path.display(), parent.display()),
        advice,
    )
}

fn nearest_existing(path: &Path) -> &Path {
    let above = path.ancestors().find(|path| path.exists());
    // A relative path ends in the empty one, which stands for the working directory.
    above.filter(|path| !path.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn writable(path: &Path) -> bool {
    rustix::fs::access(path, Access::WRITE_OK | Access::EXEC_OK).is_ok()
}

fn format(path: &Path) -> Check {
    const NAME: &str = "Check Data Format";
    let file = path.join("FORMAT");
    let bytes = match read_file(&file, 256) {
        Ok(Some(bytes)) => bytes,
        Ok(None) => return Check::ok(NAME, "the directory has not been used yet"),
        Err(error) => return Check::fail(NAME, error.to_string(), "see what the system says of the file"),
    };
    let found = std::str::from_utf8(&bytes).ok().and_then(|text| text.strip_prefix("keystead-data "));
    match found.and_then(|number| number.trim_end().parse::<u32>().ok()) {
        Some(found) if found > FORMAT => {
            let message = format!("{} has format {found}, this release knows up to {FORMAT}", file.display());
            Check::fail(NAME, message, "run the release that wrote it, or a newer one")
        }
        Some(found) => Check::ok(NAME, format!("format {found}")),
        None => {
            let message = format!("{} is damaged: it holds no format number", file.display());
            Check::fail(
                NAME,
                message,
                "empty it and let the node join its cluster again: operator raft rebuild",
            )
        }
    }
}

fn lock(path: &Path) -> Check {
    const NAME: &str = "Check Data Directory Lock";
    if is_in_use(path) {
        let message = format!("a running server has {}", path.display());
        return Check::warn(NAME, message, "stop that server before another one is started here");
    }
    Check::ok(NAME, "no server has it")
}

fn space(path: &Path) -> Check {
    const NAME: &str = "Check Disk Space";
    let place = nearest_existing(path);
    let shown = place.display();
    let free = match rustix::fs::statvfs(place) {
        Ok(about) => about.f_bavail.saturating_mul(about.f_frsize),
        Err(error) => return Check::skip(NAME, format!("the file system of {shown} does not say: {error}")),
    };
    let message = format!("{} MiB free at {shown}", free >> 20);
    match free {
        _ if free < FREE_AT_LEAST => Check::fail(
            NAME,
            message,
            format!("a node needs {} MiB to start: free some space", FREE_AT_LEAST >> 20),
        ),
        _ if free < FREE_ENOUGH => {
            Check::warn(NAME, message, "free some space: log and snapshots alone may take 1 GiB")
        }
        _ => Check::ok(NAME, message),
    }
}
