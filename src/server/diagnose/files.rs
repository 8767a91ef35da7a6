//! The files a server reads: who may read and who may change them.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::{Check, tcp_listeners};
use crate::config::{ServerConfig, StorageConfig};

const NAME: &str = "Check File Permissions";

pub(super) fn check(paths: &[PathBuf], config: &ServerConfig) -> Check {
    let mut found = Vec::new();
    for path in paths.iter().flat_map(|path| config_files(path)) {
        found.extend(changeable_by_others(&path));
    }
    for path in secret_files(config) {
        found.extend(readable_by_others(path));
    }
    if found.is_empty() {
        return Check::ok(NAME, "keys are private, and nobody else may change the configuration");
    }
    Check::group(NAME, found)
}

/// The file, or those in the directory that the server reads.
fn config_files(path: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(path) else { return vec![path.to_owned()] };
    let read = |path: &PathBuf| path.extension().is_some_and(|kind| kind == "hcl" || kind == "json");
    entries.filter_map(Result::ok).map(|entry| entry.path()).filter(read).collect()
}

/// The files that hold private keys.
fn secret_files(config: &ServerConfig) -> Vec<&Path> {
    let listeners =
        tcp_listeners(config).filter_map(|tcp| tcp.tls.as_ref()).map(|tls| tls.key_file.as_path());
    let joins = match &config.storage {
        StorageConfig::Raft(raft) => raft.retry_join.as_slice(),
        _ => &[],
    };
    let joins = joins.iter().filter_map(|stanza| stanza.leader_client_key_file.as_deref());
    let mut files: Vec<_> = listeners.chain(joins).collect();
    files.sort();
    files.dedup();
    files
}

fn changeable_by_others(path: &Path) -> Option<Check> {
    let name = format!("Check {}", path.display());
    let mode = match mode(path) {
        Ok(mode) => mode,
        Err(error) => return Some(unreadable(&name, &error)),
    };
    let others = mode & 0o022 != 0;
    others.then(|| {
        let advice = format!("chmod go-w {}", path.display());
        Check::warn(&name, format!("others may change it (mode {:03o})", mode & 0o777), advice)
    })
}

fn readable_by_others(path: &Path) -> Option<Check> {
    let name = format!("Check {}", path.display());
    let mode = match mode(path) {
        Ok(mode) => mode,
        Err(error) => return Some(unreadable(&name, &error)),
    };
    if let Err(error) = std::fs::File::open(path) {
        return Some(unreadable(&name, &error));
    }
    // A group that may read is how systems share keys with a service; a group that may write is not.
    let others = mode & 0o037 != 0;
    others.then(|| {
        let advice = format!("chmod 600 {}", path.display());
        Check::warn(&name, format!("others may read this private key (mode {:03o})", mode & 0o777), advice)
    })
}

fn unreadable(name: &str, error: &io::Error) -> Check {
    let advice = match error.kind() {
        io::ErrorKind::NotFound => "correct the path in the configuration, or put the file there",
        io::ErrorKind::PermissionDenied => {
            "run this as the user that runs the server; if it is, let it read the file"
        }
        _ => "see what the system says of the file",
    };
    Check::fail(name, format!("cannot be read: {error}"), advice)
}

fn mode(path: &Path) -> io::Result<u32> {
    Ok(std::fs::metadata(path)?.mode())
}
