//! The log's file, put aside for a new one when it is too old or too large.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime},
};

use crate::config::LogRotation;

/// The age at which Vault puts a file aside when the configuration does not say.
const DEFAULT_AGE: Duration = Duration::from_secs(24 * 3_600);

/// An open log file.
pub struct LogFile {
    path: PathBuf,
    file: File,
    bytes: u64,
    opened: Instant,
    rotation: LogRotation,
}

impl LogFile {
    /// Opens a file to append to. A directory stands for `keystead.log` in it.
    ///
    /// # Errors
    /// Those of the file system, with the path.
    pub fn open(path: &Path, rotation: LogRotation) -> io::Result<Self> {
        let path = if path.is_dir() { path.join("keystead.log") } else { path.to_owned() };
        let (file, bytes) = append(&path)
            .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))?;
        Ok(Self { path, file, bytes, opened: Instant::now(), rotation })
    }

    /// Writes a line, into a new file if this one is full or old.
    ///
    /// # Errors
    /// Those of the file system. What fails is lost; the next line tries again.
    pub fn write(&mut self, line: &[u8]) -> io::Result<()> {
        let length = line.len() as u64;
        let full =
            self.rotation.bytes.is_some_and(|max| max > 0 && self.bytes > 0 && self.bytes + length > max);
        let age = self.rotation.duration.filter(|age| !age.is_zero()).unwrap_or(DEFAULT_AGE);
        if full || self.opened.elapsed() >= age {
            self.put_aside()?;
        }
        self.file.write_all(line)?;
        self.bytes += length;
        Ok(())
    }

    /// Opens the path again: the file may have been moved away.
    ///
    /// # Errors
    /// Those of the file system; the old file stays in use.
    pub fn reopen(&mut self) -> io::Result<()> {
        (self.file, self.bytes) = append(&self.path)?;
        self.opened = Instant::now();
        Ok(())
    }

    fn put_aside(&mut self) -> io::Result<()> {
        // Nanoseconds, as Vault has them, make the names' order that of time.
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let aside = format!("{}{:019}{}", self.stem(), now.as_nanos(), self.extension());
        fs::rename(&self.path, self.path.with_file_name(aside))?;
        self.reopen()?;
        self.remove_oldest()
    }

    fn remove_oldest(&self) -> io::Result<()> {
        let Some(keep) = self.rotation.max_files.filter(|max| *max > 0) else { return Ok(()) };
        let (stem, extension) = (self.stem(), self.extension());
        let directory = self.path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let mut old = Vec::new();
        for entry in fs::read_dir(directory.unwrap_or(Path::new(".")))? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let number = name.strip_prefix(&stem).and_then(|rest| rest.strip_suffix(&extension));
            if number.is_some_and(|n| n.len() == 19 && n.bytes().all(|digit| digit.is_ascii_digit())) {
                old.push(entry.path());
            }
        }
        old.sort();
        let excess = old.len().saturating_sub(usize::try_from(keep).unwrap_or(usize::MAX));
        old.iter().take(excess).try_for_each(fs::remove_file)
    }

    fn stem(&self) -> String {
        format!("{}-", self.path.file_stem().unwrap_or_default().to_string_lossy())
    }

    fn extension(&self) -> String {
        self.path.extension().map(|e| format!(".{}", e.to_string_lossy())).unwrap_or_default()
    }
}

fn append(path: &Path) -> io::Result<(File, u64)> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let file = OpenOptions::new().create(true).append(true).mode(0o600).open(path)?;
    let bytes = file.metadata()?.len();
    Ok((file, bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_full_file_is_put_aside_and_only_so_many_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vault.log");
        fs::write(dir.path().join("vault-notes.log"), "not ours").unwrap();
        let rotation = LogRotation { bytes: Some(10), max_files: Some(2), duration: None };
        let mut file = LogFile::open(&path, rotation).unwrap();
        for n in 0..5 {
            file.write(format!("line {n}\n").as_bytes()).unwrap();
        }
        assert_eq!(fs::read_to_string(&path).unwrap(), "line 4\n");
        let names = names(dir.path());
        assert_eq!(names.len(), 4, "{names:?}");
        assert_eq!(fs::read_to_string(dir.path().join(&names[0])).unwrap(), "line 2\n");
        assert!(names.contains(&"vault-notes.log".to_owned()));
    }

    #[test]
    fn a_file_that_was_moved_away_is_opened_anew() {
        let dir = tempfile::tempdir().unwrap();
        let mut file = LogFile::open(dir.path(), LogRotation::default()).unwrap();
        let path = dir.path().join("keystead.log");
        file.write(b"1\n").unwrap();
        fs::rename(&path, dir.path().join("old")).unwrap();
        file.reopen().unwrap();
        file.write(b"2\n").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "2\n");
    }
}
