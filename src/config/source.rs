//! The files of a configuration: found, read, parsed, and merged into one list of entries.

use std::fs;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use zeroize::Zeroizing;

use super::error::{At, ConfigError, ConfigWarning};
use super::hcl::{self, Item};
use super::section::Entry;

/// No configuration is larger; a device or a log given by mistake is.
const MAX_FILE_BYTES: u64 = 4 * 1024 * 1024;

/// One parsed file.
pub(super) struct File {
    path: Arc<Path>,
    items: Vec<Item>,
}

/// Reads and parses `paths`; a directory stands for its `*.hcl` and `*.json` in the order of their names.
pub(super) fn read(paths: &[PathBuf]) -> Result<Vec<File>, ConfigError> {
    if paths.is_empty() {
        let message = "no configuration; name a file or directory with -config".to_owned();
        return Err(ConfigError::Incomplete { message });
    }
    let mut files = Vec::new();
    for path in paths {
        let is_directory = fs::metadata(path).map_err(|error| unreadable(path, error))?.is_dir();
        if !is_directory {
            files.push(read_file(path)?);
            continue;
        }
        let found = list(path).map_err(|error| unreadable(path, error))?;
        if found.is_empty() {
            let message = format!("{} contains no file whose name ends in .hcl or .json", path.display());
            return Err(ConfigError::Incomplete { message });
        }
        for path in found {
            files.push(read_file(&path)?);
        }
    }
    Ok(files)
}

/// The entries of all files as if they stood in one.
///
/// Listeners add up. Any other key of a later file takes the place of the earlier one's, all its blocks together.
pub(super) fn merge<'t>(files: &'t [File], warnings: &mut Vec<ConfigWarning>) -> Vec<Entry<'t>> {
    let mut merged: Vec<Entry<'t>> = Vec::new();
    for file in files {
        let entry = |item: &'t Item| Entry {
            key: &item.key,
            at: At { file: Arc::clone(&file.path), line: item.line },
            value: &item.value,
        };
        let entries: Vec<_> = file.items.iter().map(entry).collect();
        let replaced = |old: &Entry<'_>| entries.iter().any(|new| same_setting(new.key, old.key));
        for old in merged.iter().filter(|old| replaced(old) && canonical(old.key) == "storage") {
            let text = format!("the {} here is replaced by the one in {}", old.key, file.path.display());
            warnings.push(old.at.warning(old.key, &text));
        }
        merged.retain(|old| old.key == "listener" || !replaced(old));
        merged.extend(entries);
    }
    merged
}

fn same_setting(a: &str, b: &str) -> bool {
    canonical(a) == canonical(b)
}

/// The name of a setting that has two.
fn canonical(key: &str) -> &str {
    match key {
        "backend" => "storage",
        "ha_backend" => "ha_storage",
        "hsm" => "seal",
        key => key,
    }
}

/// Hidden files are left out: editors leave such behind, and Kubernetes keeps old mounts under such names.
fn list(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let hidden = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
        let wanted = path.extension().is_some_and(|extension| extension == "hcl" || extension == "json");
        if wanted && !hidden && fs::metadata(&path)?.is_file() {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

fn read_file(path: &Path) -> Result<File, ConfigError> {
    let bytes = read_bytes(path).map_err(|error| unreadable(path, error))?;
    let text = std::str::from_utf8(&bytes).map_err(|error| {
        let before = &bytes[..error.valid_up_to()];
        let line = 1 + before.iter().filter(|byte| **byte == b'\n').count();
        let line = u32::try_from(line).unwrap_or(u32::MAX);
        At { file: Arc::from(path), line }.error("this is not UTF-8 text")
    })?;
    parse(path, text)
}

/// Parses the text of the file at `path`.
pub(super) fn parse(path: &Path, text: &str) -> Result<File, ConfigError> {
    let path: Arc<Path> = Arc::from(path);
    let items = hcl::parse(text)
        .map_err(|error| At { file: Arc::clone(&path), line: error.line }.error(error.message))?;
    Ok(File { path, items })
}

/// The file's bytes, wiped when dropped: a client key may be among them.
fn read_bytes(path: &Path) -> io::Result<Zeroizing<Vec<u8>>> {
    let file = fs::File::open(path)?;
    let expected = file.metadata()?.len().min(MAX_FILE_BYTES);
    // Room for all of it at once, so that growing leaves no copies behind.
    let capacity = usize::try_from(expected).unwrap_or(0) + 1;
    let mut bytes = Zeroizing::new(Vec::with_capacity(capacity));
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(io::Error::other("larger than 4 MiB, which is no configuration file"));
    }
    Ok(bytes)
}

fn unreadable(path: &Path, source: io::Error) -> ConfigError {
    ConfigError::Read { path: path.to_owned(), source }
}
