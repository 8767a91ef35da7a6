//! The log on the disk: segments that are only appended to.
//!
//! A segment is a file of frames ([`log_frame`](crate::log_frame)). Whatever happens to the log is a frame at the end of the newest segment:
//! entries, the vote, the commit point, the floor, a truncation. So a group of appends is one write and one
//! `fdatasync`, nothing that is on the disk is ever written again, and the log is what its frames come to, read in
//! order. A segment begins with what the segments before have come to; purging removes whole segments from the front.
//!
//! The space of a segment is reserved when it begins: a sync then has no new size of the file to write down.
//!
//! Only the writer thread changes anything here.

use std::collections::{BTreeMap, VecDeque};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use rustix::fs::FallocateFlags;

use crate::datadir;
use crate::doubt;
use crate::error::StorageError;
use crate::ids::{LogId, Vote};
use crate::log::LogRecord;
use crate::log_frame::{self, Begin, Known, Note};
use crate::log_replay::{self, Replay};
use crate::sync_meter::SyncMeter;

/// A segment takes no more groups past so many bytes; a group that is larger lies in one of its own.
const SEGMENT_BYTES: u64 = 4 * 1024 * 1024;
/// The buffer of a group keeps so much between groups.
const BUFFER_BYTES: usize = 1024 * 1024;
/// Bytes between two entries that are read over rather than read around.
const READ_OVER_BYTES: u64 = 16 * 1024;
const SUFFIX: &str = ".log";

/// What was found when the log was opened.
#[derive(Default)]
pub(crate) struct Recovered {
    pub known: Known,
    /// Bytes of each record after the floor.
    pub sizes: Vec<u32>,
}

/// Where the frame of an entry lies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Place {
    pub segment: u64,
    pub offset: u64,
    pub bytes: u32,
}

impl Place {
    fn payload_bytes(self) -> u64 {
        u64::from(self.bytes).saturating_sub(log_frame::ENTRY_BYTES as u64)
    }
}

/// What readers need.
#[derive(Default)]
struct Index {
    /// Index of the first entry in `places`.
    first: u64,
    places: VecDeque<Place>,
    files: BTreeMap<u64, Arc<File>>,
}

/// The newest segment, and what waits to be written to it.
struct Head {
    segment: u64,
    file: Arc<File>,
    path: PathBuf,
    /// Bytes of frames in it; what is waiting not counted.
    end: u64,
    waiting: Vec<u8>,
    known: Known,
}

/// The segments of the log.
pub(crate) struct LogDisk {
    dir: PathBuf,
    index: RwLock<Index>,
    head: Mutex<Head>,
    meter: Arc<SyncMeter>,
    /// The first write or sync that failed.
    failed: OnceLock<String>,
}

/// A log that was read, verified, and not touched.
pub(crate) struct Found {
    dir: PathBuf,
    index: Index,
    replay: Replay,
}

/// The file of a segment.
pub(crate) fn segment_path(dir: &Path, segment: u64) -> PathBuf {
    dir.join(format!("{segment:020}{SUFFIX}"))
}

/// Numbers of the segments in a directory, in order.
fn segments(dir: &Path) -> Result<Vec<u64>, StorageError> {
    let context = || format!("read {}", dir.display());
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).map_err(|e| StorageError::io(context(), e))? {
        let name = entry.map_err(|e| StorageError::io(context(), e))?.file_name();
        let number = name.to_str().and_then(|name| name.strip_suffix(SUFFIX)).and_then(|n| n.parse().ok());
        found.extend(number.filter(|number| segment_path(dir, *number).file_name() == Some(&name)));
    }
    found.sort_unstable();
    Ok(found)
}

impl Found {
    /// Reads all segments and verifies every frame of them.
    ///
    /// # Errors
    /// [`StorageError::Damaged`] unless the frames of every segment but the newest are whole and lead to the next one;
    /// in the newest one the first that is not whole is the end, for a power cut leaves it so.
    pub fn read(dir: &Path) -> Result<Self, StorageError> {
        datadir::check_room_to_open(dir)?;
        let mut numbers = segments(dir)?;
        // Purging removes from the front, and after a crash an older one may be back while a newer one is gone.
        let gap = (1..numbers.len()).rev().find(|at| numbers[at - 1] + 1 != numbers[*at]).unwrap_or(0);
        numbers.drain(..gap);
        let mut replay = Replay::default();
        let mut files = BTreeMap::new();
        for number in numbers {
            let path = segment_path(dir, number);
            let context = || format!("open {}", path.display());
            let file = OpenOptions::new().read(true).write(true).open(&path);
            let file = file.map_err(|e| StorageError::io(context(), e))?;
            replay.segment(number, read_whole(&file, &path)?).map_err(|e| e.found_in(&path))?;
            files.insert(number, Arc::new(file));
        }
        replay.finish().map_err(|e| e.found_in(dir))?;
        let index = Index { first: replay.first, places: std::mem::take(&mut replay.places), files };
        Ok(Self { dir: dir.to_owned(), index, replay })
    }

    /// What it holds.
    pub fn recovered(&self) -> Recovered {
        Recovered { known: self.known(), sizes: self.index.places.iter().map(|place| place.bytes).collect() }
    }

    /// What it holds besides the entries.
    pub fn known(&self) -> Known {
        self.replay.known
    }

    /// The id of the entry at `index`, if it is there.
    pub fn log_id(&self, index: u64) -> Result<Option<LogId>, StorageError> {
        let records = read(self.index.runs(index, index + 1, 0))?;
        Ok(records.first().map(|record| record.log_id))
    }

    /// Makes it ready to be appended to: everything that was read is on the disk, and nothing lies behind it.
    pub fn begin(self) -> Result<LogDisk, StorageError> {
        let Self { dir, mut index, replay } = self;
        remove_leftovers(&dir, &index)?;
        let head = match index.files.last_key_value() {
            None => {
                let head = new_segment(&dir, 1, &Begin { previous_bytes: 0, known: Known::default() })?;
                index.files.insert(head.segment, Arc::clone(&head.file));
                head
            }
            Some((&segment, file)) => {
                let path = segment_path(&dir, segment);
                if replay.torn {
                    tracing::warn!(file = %path.display(), at = replay.end, "cutting off what a crash left half written");
                    file.set_len(replay.end)
                        .map_err(|e| StorageError::io(format!("cut {}", path.display()), e))?;
                }
                let head = Head {
                    segment,
                    file: Arc::clone(file),
                    path,
                    end: replay.end,
                    waiting: Vec::new(),
                    known: replay.known,
                };
                head.make_durable()?;
                head
            }
        };
        datadir::sync_dir(&dir)?;
        let (index, head) = (RwLock::new(index), Mutex::new(head));
        Ok(LogDisk { dir, index, head, meter: Arc::default(), failed: OnceLock::new() })
    }
}

impl Head {
    /// Reserves its space and brings it to the disk.
    fn make_durable(&self) -> Result<(), StorageError> {
        if self.end < SEGMENT_BYTES {
            match rustix::fs::fallocate(&*self.file, FallocateFlags::empty(), 0, SEGMENT_BYTES) {
                // It is there to be quick; without it, appends make the file longer.
                Ok(()) | Err(rustix::io::Errno::NOSPC | rustix::io::Errno::OPNOTSUPP) => {}
                Err(e) => {
                    return Err(StorageError::io(format!("reserve {}", self.path.display()), e.into()));
                }
            }
        }
        self.file.sync_all().map_err(|e| self.failed_sync(e))
    }

    fn failed_sync(&self, error: io::Error) -> StorageError {
        let log = self.path.parent();
        doubt::raise(log.and_then(Path::parent).unwrap_or(&self.path));
        StorageError::io(format!("sync {}", self.path.display()), error)
    }

    /// Writes what waits, and brings it to the disk.
    fn write(&mut self) -> Result<(), StorageError> {
        self.file.write_all_at(&self.waiting, self.end).map_err(|e| match e.kind() {
            io::ErrorKind::StorageFull => {
                let free_bytes = datadir::free_bytes(&self.path).unwrap_or(0);
                StorageError::Full { path: self.path.clone(), free_bytes }
            }
            _ => StorageError::io(format!("write {}", self.path.display()), e),
        })?;
        self.file.sync_data().map_err(|e| self.failed_sync(e))?;
        self.end += self.waiting.len() as u64;
        self.waiting.clear();
        self.waiting.shrink_to(BUFFER_BYTES);
        Ok(())
    }
}

impl LogDisk {
    /// How long syncs take.
    pub fn meter(&self) -> &Arc<SyncMeter> {
        &self.meter
    }

    /// Takes records that follow those already there. Not on the disk before a sync.
    pub fn append(&self, records: &[LogRecord]) -> Result<(), StorageError> {
        let bytes: u64 = records.iter().map(log_frame::frame_bytes).sum();
        let mut head = self.head.lock();
        if head.end + head.waiting.len() as u64 + bytes > SEGMENT_BYTES {
            self.roll(&mut head)?;
        }
        let mut index = self.index.write();
        for record in records {
            let offset = head.end + head.waiting.len() as u64;
            let segment = head.segment;
            log_frame::write_entry(&mut head.waiting, segment, record);
            index.push(record.log_id.index, Place { segment, offset, bytes: size_of(record) });
            head.known.last = Some(record.log_id);
        }
        Ok(())
    }

    /// Takes the commit point, to reach the disk with the next sync.
    pub fn write_committed(&self, committed: LogId) {
        self.note(Note::Committed(committed));
    }

    /// Takes the vote, to reach the disk with the next sync.
    pub fn write_vote(&self, vote: Vote) {
        self.note(Note::Vote(vote));
    }

    /// Takes the floor, to reach the disk with the next sync.
    pub fn write_floor(&self, floor: LogId) {
        self.note(Note::Floor(floor));
    }

    /// Removes every record with an index of at least `from`, to reach the disk with the next sync. `last` is the one
    /// before.
    pub fn truncate_from(&self, from: u64, last: Option<LogId>) {
        self.note(Note::Truncate { from, last });
        let mut index = self.index.write();
        let kept = from.saturating_sub(index.first);
        index.places.truncate(usize::try_from(kept).unwrap_or(usize::MAX));
    }

    fn note(&self, note: Note) {
        let mut head = self.head.lock();
        let segment = head.segment;
        log_frame::write_note(&mut head.waiting, segment, &note);
        log_replay::take(&mut head.known, &note);
    }

    /// Brings everything taken so far to the disk: one write, one `fdatasync`.
    ///
    /// # Errors
    /// After the first failure every later call fails: the kernel reports a page that it could not write once, drops
    /// it, and calls the next sync a success.
    pub fn sync(&self) -> Result<(), StorageError> {
        if let Some(first) = self.failed.get() {
            return Err(StorageError::Latched { first: first.clone() });
        }
        let began = self.meter.begin();
        let result = self.head.lock().write();
        self.meter.end(began);
        self.failing(result)
    }

    fn failing(&self, result: Result<(), StorageError>) -> Result<(), StorageError> {
        if let Err(error) = &result {
            let _ = self.failed.set(error.to_string());
        }
        result
    }

    /// Removes segments that lie wholly at or below `floor`, which is on the disk already.
    pub fn drop_segments(&self, floor: u64) -> Result<(), StorageError> {
        let newest = self.head.lock().segment;
        let mut index = self.index.write();
        index.drop_up_to(floor);
        let needed = index.places.front().map_or(newest, |place| place.segment);
        let kept = index.files.split_off(&needed);
        let dropped = std::mem::replace(&mut index.files, kept);
        drop(index);
        for segment in dropped.keys() {
            let path = segment_path(&self.dir, *segment);
            fs::remove_file(&path).map_err(|e| StorageError::io(format!("remove {}", path.display()), e))?;
        }
        Ok(())
    }

    /// Reads `[from, until)` or a prefix of it, as far as it was written.
    pub fn read(&self, from: u64, until: u64, max_bytes: usize) -> Result<Vec<LogRecord>, StorageError> {
        // Nothing that was written is written again, and an open file outlives its removal: no lock is needed to read.
        let runs = self.index.read().runs(from, until, max_bytes);
        read(runs)
    }

    /// Begins the next segment, which is on the disk when this returns.
    fn roll(&self, head: &mut Head) -> Result<(), StorageError> {
        if !head.waiting.is_empty() {
            self.failing(head.write())?;
        }
        let begin = Begin { previous_bytes: head.end, known: head.known };
        let result = new_segment(&self.dir, head.segment + 1, &begin).map(|next| *head = next);
        self.failing(result)?;
        self.index.write().files.insert(head.segment, Arc::clone(&head.file));
        Ok(())
    }
}

impl Index {
    fn push(&mut self, index: u64, place: Place) {
        if self.places.is_empty() {
            self.first = index;
        }
        self.places.push_back(place);
    }

    /// Forgets entries up to `floor`.
    fn drop_up_to(&mut self, floor: u64) {
        let gone = (floor + 1).saturating_sub(self.first);
        let gone = usize::try_from(gone).unwrap_or(usize::MAX).min(self.places.len());
        self.places.drain(..gone);
        self.first += gone as u64;
    }

    fn place(&self, index: u64) -> Option<Place> {
        self.places.get(usize::try_from(index.checked_sub(self.first)?).ok()?).copied()
    }

    /// Where `[from, until)` lies, or a prefix of it that fits into `max_bytes` of payload; the first entry always does.
    fn runs(&self, from: u64, until: u64, max_bytes: usize) -> Vec<Run> {
        let mut runs: Vec<Run> = Vec::new();
        let mut room = max_bytes as u64;
        for index in from..until {
            let Some(place) = self.place(index) else { break };
            if place.payload_bytes() > room && index > from {
                break;
            }
            room = room.saturating_sub(place.payload_bytes());
            match runs.last_mut() {
                Some(run) if run.reaches(place) => run.places.push(place),
                _ => {
                    let file = self.files.get(&place.segment).expect("a segment with an entry is there");
                    runs.push(Run { first: index, file: Arc::clone(file), places: vec![place] });
                }
            }
        }
        runs
    }
}

/// Entries that are read at once.
struct Run {
    /// Index of the first one.
    first: u64,
    file: Arc<File>,
    places: Vec<Place>,
}

impl Run {
    /// Whether what follows there may be read along: it is in the same segment, and not far.
    fn reaches(&self, place: Place) -> bool {
        let last = self.places[self.places.len() - 1];
        let end = last.offset + u64::from(last.bytes);
        last.segment == place.segment && (end..=end + READ_OVER_BYTES).contains(&place.offset)
    }

    fn bytes(&self) -> Result<Bytes, StorageError> {
        let (first, last) = (self.places[0], self.places[self.places.len() - 1]);
        let length = last.offset + u64::from(last.bytes) - first.offset;
        let mut bytes = vec![0; usize::try_from(length).expect("it fits into memory")];
        self.file.read_exact_at(&mut bytes, first.offset).map_err(|e| match e.kind() {
            io::ErrorKind::UnexpectedEof => {
                StorageError::damaged(format!("segment {} of the log is cut off", first.segment))
            }
            _ => StorageError::io(format!("read segment {} of the log", first.segment), e),
        })?;
        Ok(bytes.into())
    }
}

fn read(runs: Vec<Run>) -> Result<Vec<LogRecord>, StorageError> {
    let mut records = Vec::new();
    for run in runs {
        let bytes = run.bytes()?;
        for (place, index) in run.places.iter().zip(run.first..) {
            let at = usize::try_from(place.offset - run.places[0].offset).expect("a run is short");
            let frame = bytes.slice(at..at + place.bytes as usize);
            records.push(log_frame::read_entry(frame, place.segment, index)?);
        }
    }
    Ok(records)
}

/// The size of a record as the view counts it.
pub(crate) fn size_of(record: &LogRecord) -> u32 {
    u32::try_from(log_frame::frame_bytes(record)).expect("payloads are capped below 4 GiB")
}

fn read_whole(file: &File, path: &Path) -> Result<Bytes, StorageError> {
    let context = || format!("read {}", path.display());
    let length = file.metadata().map_err(|e| StorageError::io(context(), e))?.len();
    let mut bytes = vec![0; usize::try_from(length).expect("it fits into memory")];
    file.read_exact_at(&mut bytes, 0).map_err(|e| StorageError::io(context(), e))?;
    Ok(bytes.into())
}

/// Makes a segment that is on the disk when this returns, and whole whenever it has its name.
fn new_segment(dir: &Path, segment: u64, begin: &Begin) -> Result<Head, StorageError> {
    let path = segment_path(dir, segment);
    let mut frames = Vec::new();
    log_frame::write_begin(&mut frames, segment, begin);
    datadir::write_file_durably(&path, &frames, 0o600)?;
    let file = OpenOptions::new().read(true).write(true).open(&path);
    let file = file.map_err(|e| StorageError::io(format!("open {}", path.display()), e))?;
    let (end, waiting) = (frames.len() as u64, Vec::new());
    let head = Head { segment, file: Arc::new(file), path, end, waiting, known: begin.known };
    head.make_durable()?;
    Ok(head)
}

/// Removes what an interrupted roll or purge left.
fn remove_leftovers(dir: &Path, index: &Index) -> Result<(), StorageError> {
    let newest = index.files.last_key_value().map_or(0, |(segment, _)| *segment);
    let mut left = vec![segment_path(dir, newest + 1).with_extension("log.tmp")];
    let unused = segments(dir)?.into_iter().filter(|segment| !index.files.contains_key(segment));
    left.extend(unused.map(|segment| segment_path(dir, segment)));
    for path in left.iter().filter(|path| path.exists()) {
        fs::remove_file(path).map_err(|e| StorageError::io(format!("remove {}", path.display()), e))?;
    }
    Ok(())
}

#[cfg(test)]
#[path = "log_disk_tests.rs"]
mod tests;
