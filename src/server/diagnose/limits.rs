//! What the operating system allows this process: open files, locked memory.

use rustix::process::{Resource, getrlimit};

use super::Check;
use crate::config::ServerConfig;
use crate::secret;

/// Below this a busy node runs out of descriptors: connections of clients, files of the store.
const OPEN_FILES_ENOUGH: u64 = 4096;
/// Below this it may not even start.
const OPEN_FILES_AT_LEAST: u64 = 256;

pub(super) fn check(config: &ServerConfig) -> Check {
    Check::group("Check Operating System", vec![open_files(), locked_memory(config.disable_mlock)])
}

pub(super) fn open_files() -> Check {
    // No limit counts as the highest.
    open_files_of(getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX))
}

fn open_files_of(limit: u64) -> Check {
    const NAME: &str = "Check Open File Limit";
    let advice = "raise it: LimitNOFILE=65536 in the systemd unit, or ulimit -n 65536";
    let message = if limit == u64::MAX { "no limit".to_owned() } else { format!("{limit} files") };
    match limit {
        _ if limit < OPEN_FILES_AT_LEAST => Check::fail(NAME, message, advice),
        _ if limit < OPEN_FILES_ENOUGH => Check::warn(NAME, message, advice),
        _ => Check::ok(NAME, message),
    }
}

/// Locks a key as the server will, and sees whether the system lets it.
fn locked_memory(disabled: bool) -> Check {
    const NAME: &str = "Check Memory Lock";
    if disabled {
        let advice = "have swap off or encrypted, or remove disable_mlock";
        return Check::warn(NAME, "disable_mlock is set: keys may reach swap", advice);
    }
    if !secret::can_lock() {
        let advice = "allow it: LimitMEMLOCK=infinity in the systemd unit, or CAP_IPC_LOCK; \
                      or set disable_mlock where swap is off";
        return Check::warn(NAME, "the system does not let this user lock memory", advice);
    }
    Check::ok(NAME, "memory can be locked")
}

#[cfg(test)]
mod tests {
    use super::super::Status;
    use super::*;

    #[test]
    fn few_open_files_are_worth_a_word() {
        assert_eq!(open_files_of(100).status, Status::Fail);
        assert_eq!(open_files_of(1024).status, Status::Warn);
        assert_eq!(open_files_of(u64::MAX).status, Status::Ok);
        assert_eq!(locked_memory(true).status, Status::Warn);
    }
}
