//! Crash images: the files that a power cut could leave, made from a trace of what was written.
//!
//! A [`Trace`] holds every change of files in order, as [`Faults::trace`](crate::Faults::trace) recorded it. A
//! [`Disk`] follows it and knows at every point what is safe (what a sync of that file came after) and what is not.
//! An image is what is safe and some of the rest, chosen by [`Unsynced`].
//!
//! What is assumed of the disk: a completed `fsync` or `fdatasync` of a file makes everything written to it before
//! safe, its length too; `sync_file_range` makes nothing safe; what is not safe may be there or not, in any order, cut
//! at sectors of 512 bytes. Names are safe when their directory was synced, and reach the disk in the order in which
//! they were changed, as on every journalling file system.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use crate::{Error, Op, Result, lin::Seed};

/// What a disk writes whole or not at all, in bytes.
pub const SECTOR: u64 = 512;
const HEAD: usize = 24;
/// Runs of zeros of this length are left out of an image's files.
const BLOCK: usize = 4096;

/// A change of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Opened so that it was made if it was missing.
    Open {
        /// And emptied if it was not.
        emptied: bool,
    },
    /// Bytes written at an offset.
    Write {
        /// Where.
        offset: u64,
        /// What.
        bytes: Vec<u8>,
    },
    /// Its length was set.
    Truncate(u64),
    /// `fsync` or `fdatasync`, also of a directory.
    Sync,
    /// `sync_file_range`.
    Range,
    /// It got another name.
    Rename(PathBuf),
    /// It was removed.
    Unlink,
    /// A directory was made.
    Mkdir,
}

/// One recorded change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Path as the process named it.
    pub path: PathBuf,
    /// What happened to it.
    pub change: Change,
}

/// Everything that a process did to some files, in order.
#[derive(Clone, Debug, Default)]
pub struct Trace {
    /// The changes.
    pub events: Vec<Event>,
}

impl Trace {
    /// Reads the file that [`Faults::trace_file`](crate::Faults::trace_file) names. A record that was cut off by the
    /// end of the process is left out.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Broken`] for what is no trace.
    pub fn read(file: &Path) -> Result<Self> {
        let bytes = fs::read(file).map_err(Error::io(format!("trace {}", file.display())))?;
        let mut rest = &bytes[..];
        let mut events = Vec::new();
        while let Some((event, after)) = parse(rest)? {
            events.push(event);
            rest = after;
        }
        Ok(Self { events })
    }

    /// What had been appended to a file when so many changes had happened.
    pub fn appended(&self, path: &Path, changes: usize) -> Vec<u8> {
        let mut out = Vec::new();
        for event in self.events[..changes].iter().filter(|event| event.path == path) {
            if let Change::Write { bytes, .. } = &event.change {
                out.extend_from_slice(bytes);
            }
        }
        out
    }

    /// Positions of the syncs.
    pub fn syncs(&self) -> Vec<usize> {
        (0..self.events.len()).filter(|at| self.events[*at].change == Change::Sync).collect()
    }
}

fn parse(bytes: &[u8]) -> Result<Option<(Event, &[u8])>> {
    let Some((head, rest)) = bytes.split_at_checked(HEAD) else { return Ok(None) };
    let number = |from: usize, length: usize| {
        head[from..from + length].iter().rev().fold(0_u64, |number, byte| number << 8 | u64::from(*byte))
    };
    let (op, offset) = (number(0, 4), number(8, 8));
    let (path, second, data) = (number(4, 2) as usize, number(6, 2) as usize, number(16, 8) as usize);
    let Some((body, rest)) = rest.split_at_checked(path + second + data) else { return Ok(None) };
    let name = |bytes: &[u8]| PathBuf::from(String::from_utf8_lossy(bytes).into_owned());
    let is = |kind: Op| u64::from(kind.bit()) == op;
    let change = match () {
        () if is(Op::Open) => Change::Open { emptied: offset == 1 },
        () if is(Op::Write) => Change::Write { offset, bytes: body[path + second..].to_vec() },
        () if is(Op::Truncate) => Change::Truncate(offset),
        () if is(Op::Sync) => Change::Sync,
        () if is(Op::Range) => Change::Range,
        () if is(Op::Rename) => Change::Rename(name(&body[path..path + second])),
        () if is(Op::Unlink) => Change::Unlink,
        () if is(Op::Mkdir) => Change::Mkdir,
        () => return Err(Error::Broken(format!("the trace has an unknown operation {op}"))),
    };
    Ok(Some((Event { path: name(&body[..path]), change }, rest)))
}

/// What becomes of writes that no sync came after.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unsynced {
    /// None of them is there.
    None,
    /// All of them are.
    All,
    /// The oldest ones are there; the newest of those is cut at a sector.
    Prefix,
    /// Each is there or not.
    Some,
    /// Each of their sectors is there or not.
    Sectors,
}

impl Unsynced {
    /// All of them.
    pub const EVERY: [Self; 5] = [Self::None, Self::All, Self::Prefix, Self::Some, Self::Sectors];
}

/// A file, by what is safe of it and what is not.
#[derive(Default)]
struct Content {
    safe: Vec<u8>,
    /// Positions of writes and truncations in the trace.
    pending: Vec<usize>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Entry {
    File(usize),
    Directory,
}

enum NameChange {
    Add(PathBuf, Entry),
    Move(PathBuf, PathBuf),
    Remove(PathBuf),
}

type Names = BTreeMap<PathBuf, Entry>;

impl NameChange {
    fn apply(&self, names: &mut Names) {
        match self {
            Self::Add(path, entry) => {
                names.insert(path.clone(), *entry);
            }
            Self::Move(from, to) => {
                if let Some(entry) = names.remove(from) {
                    names.insert(to.clone(), entry);
                }
            }
            Self::Remove(path) => {
                names.remove(path);
            }
        }
    }

    fn directory(&self) -> Option<&Path> {
        match self {
            Self::Add(path, _) | Self::Move(_, path) | Self::Remove(path) => path.parent(),
        }
    }
}

/// A disk that follows a trace.
pub struct Disk<'a> {
    trace: &'a Trace,
    at: usize,
    contents: Vec<Content>,
    names: Names,
    safe_names: Names,
    pending_names: Vec<NameChange>,
    /// Syncs of files whose path contains this do nothing.
    deaf: Option<String>,
}

impl<'a> Disk<'a> {
    /// A disk without any file, at the beginning of the trace.
    pub fn new(trace: &'a Trace) -> Self {
        Self {
            trace,
            at: 0,
            contents: Vec::new(),
            names: Names::new(),
            safe_names: Names::new(),
            pending_names: Vec::new(),
            deaf: None,
        }
    }

    /// From now on the disk only says that it syncs files whose path contains this.
    #[must_use]
    pub fn deaf_to_syncs_of(mut self, path: &str) -> Self {
        self.deaf = Some(path.into());
        self
    }

    /// Goes on until so many changes have happened.
    pub fn advance(&mut self, changes: usize) {
        while self.at < changes {
            self.step();
            self.at += 1;
        }
    }

    fn step(&mut self) {
        let Event { path, change } = &self.trace.events[self.at];
        match change {
            Change::Open { emptied } => {
                let known = self.names.get(path).copied();
                if known.is_none() {
                    self.contents.push(Content::default());
                    self.rename(NameChange::Add(path.clone(), Entry::File(self.contents.len() - 1)));
                }
                if let (true, Some(Entry::File(file))) = (*emptied, known) {
                    self.contents[file].pending.push(self.at);
                }
            }
            Change::Write { .. } | Change::Truncate(_) => {
                // A file that was removed while it was open has no name: nobody will look for its bytes.
                if let Some(Entry::File(file)) = self.names.get(path) {
                    self.contents[*file].pending.push(self.at);
                }
            }
            Change::Sync
                if self.deaf.as_ref().is_some_and(|d| path.to_string_lossy().contains(d.as_str())) => {}
            Change::Sync => match self.names.get(path) {
                Some(Entry::File(file)) => {
                    let Content { safe, pending } = &mut self.contents[*file];
                    for at in pending.drain(..) {
                        put(safe, &self.trace.events[at].change, &|_| true);
                    }
                }
                _ => self.sync_directory(path),
            },
            Change::Range => {}
            Change::Rename(to) => self.rename(NameChange::Move(path.clone(), to.clone())),
            Change::Unlink => self.rename(NameChange::Remove(path.clone())),
            Change::Mkdir => self.rename(NameChange::Add(path.clone(), Entry::Directory)),
        }
    }

    fn rename(&mut self, change: NameChange) {
        change.apply(&mut self.names);
        self.pending_names.push(change);
    }

    fn sync_directory(&mut self, path: &Path) {
        let last = self.pending_names.iter().rposition(|change| change.directory() == Some(path));
        for change in self.pending_names.drain(..last.map_or(0, |last| last + 1)) {
            change.apply(&mut self.safe_names);
        }
    }

    /// How many writes to files below `root` would be lost if none of the unsafe ones made it.
    pub fn unsafe_writes(&self, root: &Path) -> usize {
        let below = self.names.iter().filter(|(path, _)| path.starts_with(root));
        let pending = |entry: &Entry| match entry {
            Entry::File(file) => self.contents[*file].pending.len(),
            Entry::Directory => 0,
        };
        below.map(|(_, entry)| pending(entry)).sum()
    }

    /// Writes what a power cut now could leave of the directory `root` to `to`, which is made.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn image(&self, root: &Path, to: &Path, unsynced: Unsynced, random: &mut Seed) -> Result<()> {
        let io = || Error::io(format!("image {}", to.display()));
        let mut names = self.safe_names.clone();
        let pending = self.pending_names.len() as u64;
        let kept = match unsynced {
            Unsynced::None => 0,
            Unsynced::All => pending,
            _ => random.below(pending + 1),
        };
        for change in &self.pending_names[..kept as usize] {
            change.apply(&mut names);
        }
        fs::create_dir_all(to).map_err(io())?;
        for (path, entry) in &names {
            let Ok(below) = path.strip_prefix(root) else { continue };
            match entry {
                Entry::Directory => fs::create_dir_all(to.join(below)).map_err(io())?,
                Entry::File(file) => {
                    let target = to.join(below);
                    if !target.parent().is_some_and(Path::is_dir) {
                        continue; // the name of its directory was lost
                    }
                    write_sparse(&target, &self.content(*file, unsynced, random)).map_err(io())?;
                }
            }
        }
        Ok(())
    }

    fn content(&self, file: usize, unsynced: Unsynced, random: &mut Seed) -> Vec<u8> {
        let Content { safe, pending } = &self.contents[file];
        let mut bytes = safe.clone();
        let kept = match unsynced {
            Unsynced::None => 0,
            Unsynced::Prefix => random.below(pending.len() as u64 + 1) as usize,
            _ => pending.len(),
        };
        for (nth, at) in pending[..kept].iter().enumerate() {
            let change = &self.trace.events[*at].change;
            match unsynced {
                Unsynced::Prefix if nth + 1 == kept => {
                    let touched = match change {
                        Change::Write { offset, bytes } => sectors(*offset, bytes.len()),
                        _ => 0..1,
                    };
                    let end = touched.start + random.below(touched.end - touched.start + 1);
                    put(&mut bytes, change, &|sector| sector < end);
                }
                Unsynced::Some if random.once_in(2) => {}
                Unsynced::Sectors => {
                    let lost: BTreeSet<u64> = match change {
                        Change::Write { offset, bytes } => {
                            sectors(*offset, bytes.len()).filter(|_| random.once_in(2)).collect()
                        }
                        _ => (0..1).filter(|_| random.once_in(2)).collect(),
                    };
                    put(&mut bytes, change, &|sector| !lost.contains(&sector));
                }
                _ => put(&mut bytes, change, &|_| true),
            }
        }
        bytes
    }
}

/// Numbers of the sectors that a write touches.
fn sectors(offset: u64, length: usize) -> std::ops::Range<u64> {
    offset / SECTOR..(offset + length as u64).div_ceil(SECTOR)
}

/// Carries a change out, as far as its sectors are there.
fn put(content: &mut Vec<u8>, change: &Change, there: &dyn Fn(u64) -> bool) {
    match change {
        Change::Write { offset, bytes } => {
            for sector in sectors(*offset, bytes.len()).filter(|sector| there(*sector)) {
                let from = (sector * SECTOR).max(*offset);
                let until = ((sector + 1) * SECTOR).min(offset + bytes.len() as u64);
                if content.len() < until as usize {
                    content.resize(until as usize, 0);
                }
                let part = &bytes[(from - offset) as usize..(until - offset) as usize];
                content[from as usize..until as usize].copy_from_slice(part);
            }
        }
        Change::Truncate(length) if there(0) => content.resize(*length as usize, 0),
        Change::Open { emptied: true } if there(0) => content.clear(),
        _ => {}
    }
}

fn write_sparse(path: &Path, content: &[u8]) -> std::io::Result<()> {
    let file = File::create(path)?;
    file.set_len(content.len() as u64)?;
    for (nth, block) in content.chunks(BLOCK).enumerate() {
        if block.iter().any(|byte| *byte != 0) {
            file.write_all_at(block, (nth * BLOCK) as u64)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(path: &str, change: Change) -> Event {
        Event { path: path.into(), change }
    }

    fn write(path: &str, offset: u64, bytes: &[u8]) -> Event {
        event(path, Change::Write { offset, bytes: bytes.to_vec() })
    }

    fn image(disk: &Disk<'_>, unsynced: Unsynced) -> BTreeMap<String, Vec<u8>> {
        let directory = tempfile::tempdir().expect("tempdir");
        disk.image(Path::new("/d"), directory.path(), unsynced, &mut Seed::new(1)).expect("image");
        let files = fs::read_dir(directory.path()).expect("made").flatten();
        let name = |entry: &fs::DirEntry| entry.file_name().to_string_lossy().into_owned();
        files.map(|entry| (name(&entry), fs::read(entry.path()).expect("read"))).collect()
    }

    #[test]
    fn what_was_synced_is_there_and_the_rest_may_be() {
        let events = vec![
            event("/d/f", Change::Open { emptied: false }),
            write("/d/f", 0, b"safe"),
            event("/d/f", Change::Sync),
            event("/d", Change::Sync),
            write("/d/f", 4, b"lost"),
            event("/d/f", Change::Range),
            event("/d/f", Change::Rename("/d/g".into())),
        ];
        let trace = Trace { events };
        let mut disk = Disk::new(&trace);
        disk.advance(3);
        assert!(image(&disk, Unsynced::None).is_empty(), "its name is not safe");
        disk.advance(7);
        assert_eq!(image(&disk, Unsynced::None)["f"], b"safe");
        assert_eq!(image(&disk, Unsynced::All)["g"], b"safelost");
        let mut deaf = Disk::new(&trace).deaf_to_syncs_of("/d/f");
        deaf.advance(4);
        assert_eq!(image(&deaf, Unsynced::None)["f"], b"");
    }

    #[test]
    fn a_torn_write_is_torn_at_a_sector() {
        let events = vec![event("/d/f", Change::Open { emptied: false }), write("/d/f", 100, &[7; 2000])];
        let trace = Trace { events };
        let mut disk = Disk::new(&trace);
        disk.advance(2);
        let mut lengths = BTreeSet::new();
        for seed in 0..200 {
            let bytes = disk.content(0, Unsynced::Prefix, &mut Seed::new(seed));
            lengths.insert(bytes.len());
        }
        assert_eq!(lengths.into_iter().collect::<Vec<_>>(), [0, 512, 1024, 1536, 2048, 2100]);
    }
}
