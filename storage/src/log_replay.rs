//! What the frames of a log come to, read in order and verified.

use std::collections::VecDeque;

use bytes::Bytes;

use crate::error::StorageError;
use crate::ids::LogId;
use crate::log_disk::{Place, size_of};
use crate::log_frame::{self, Begin, Frame, Known, Note};

/// The log so far.
#[derive(Default)]
pub(crate) struct Replay {
    pub known: Known,
    /// Index of the first entry after the floor.
    pub first: u64,
    /// Where the entries after the floor are.
    pub places: VecDeque<Place>,
    /// Bytes of frames in the newest segment.
    pub end: u64,
    /// Whether something that is no frame lies behind them.
    pub torn: bool,
    /// Why that is none.
    why: &'static str,
    newest: Option<u64>,
}

/// Takes note of what happened, but for the entries themselves.
pub(crate) fn take(known: &mut Known, note: &Note) {
    match *note {
        Note::Vote(vote) => known.vote = Some(vote),
        Note::Committed(committed) => known.committed = Some(committed),
        Note::Floor(floor) => {
            known.floor = Some(floor);
            if known.last.is_none_or(|last| last.index <= floor.index) {
                known.last = Some(floor);
            }
        }
        Note::Truncate { from, last } => {
            known.last = last;
            // A commit point beyond the log would mean that the log has lost its tail.
            known.committed = known.committed.filter(|committed| committed.index < from);
        }
    }
}

impl Replay {
    /// Reads the next segment.
    ///
    /// # Errors
    /// [`StorageError::Damaged`] unless it follows from the ones before.
    pub fn segment(&mut self, number: u64, mut bytes: Bytes) -> Result<(), StorageError> {
        let length = bytes.len() as u64;
        let read = log_frame::read(&mut bytes, number);
        let Ok(Some(Frame::Begin(begin))) = read else {
            let why = read.err().unwrap_or("no beginning");
            return Err(StorageError::damaged(format!("segment {number} of the log is damaged ({why})")));
        };
        self.join(number, &begin)?;
        self.newest = Some(number);
        loop {
            let offset = length - bytes.len() as u64;
            match log_frame::read(&mut bytes, number) {
                Ok(Some(frame)) => {
                    let size = length - bytes.len() as u64 - offset;
                    let bytes = u32::try_from(size).expect("a frame is shorter than 4 GiB");
                    self.frame(frame, Place { segment: number, offset, bytes })?;
                }
                end => {
                    self.end = offset;
                    self.torn = bytes.iter().any(|byte| *byte != 0);
                    self.why = end.err().unwrap_or("nothing is there");
                    return Ok(());
                }
            }
        }
    }

    /// The last segment was read.
    ///
    /// # Errors
    /// [`StorageError::Damaged`] if the entries do not begin behind the floor, or end before the commit point.
    pub fn finish(&mut self) -> Result<(), StorageError> {
        let index = |id: Option<LogId>| id.map_or(0, |id| id.index);
        let (floor, last) = (index(self.known.floor), index(self.known.last));
        let count = self.places.len() as u64;
        let first = if count == 0 { last.saturating_add(1) } else { self.first };
        if first > floor.saturating_add(1) {
            let what = format!("the log begins with entry {first}, the ones after {floor} are missing");
            return Err(StorageError::damaged(what));
        }
        if last < floor || last != first.saturating_add(count).saturating_sub(1) {
            let what = format!("the log ends with entry {last}, but has {count} of them after {floor}");
            return Err(StorageError::damaged(what));
        }
        if self.known.committed.map(|id| id.index) > self.known.last.map(|id| id.index) {
            let committed = self.known.committed.unwrap_or_default().index;
            let last = self.known.last.map_or("nothing".to_owned(), |last| format!("entry {}", last.index));
            let what = format!("the log ends with {last}, but had held committed entry {committed}");
            return Err(StorageError::damaged(what));
        }
        Ok(())
    }

    /// A segment must begin with what the ones before have come to.
    fn join(&mut self, number: u64, begin: &Begin) -> Result<(), StorageError> {
        let Some(before) = self.newest else {
            self.known = begin.known;
            return Ok(());
        };
        if self.end != begin.previous_bytes || self.known != begin.known {
            let (end, why) = (self.end, self.why);
            let next = self.known.last.map_or(1, |last| last.index.saturating_add(1));
            let what = format!(
                "segment {before} of the log is damaged at byte {end} ({why}): log entry {next} or what was noted \
                 there is missing, segment {number} follows"
            );
            return Err(StorageError::damaged(what));
        }
        Ok(())
    }

    fn frame(&mut self, frame: Frame, place: Place) -> Result<(), StorageError> {
        match frame {
            Frame::Begin(_) => {
                let segment = place.segment;
                return Err(StorageError::damaged(format!("segment {segment} of the log begins twice")));
            }
            Frame::Entry(record) => {
                debug_assert_eq!(size_of(&record), place.bytes);
                self.accept(record.log_id)?;
                if self.places.is_empty() {
                    self.first = record.log_id.index;
                }
                self.places.push_back(place);
                self.known.last = Some(record.log_id);
            }
            Frame::Note(note) => {
                take(&mut self.known, &note);
                match note {
                    Note::Floor(floor) => self.forget_up_to(floor.index),
                    Note::Truncate { from, .. } => self.forget_from(from),
                    Note::Vote(_) | Note::Committed(_) => {}
                }
            }
        }
        Ok(())
    }

    /// Entries follow each other.
    fn accept(&self, id: LogId) -> Result<(), StorageError> {
        let index = id.index;
        let what = match self.known.last {
            None if index > 1 => {
                format!("the log begins with entry {index}, the ones before are missing")
            }
            Some(last) if last.index.checked_add(1) != Some(index) => {
                format!("log entry {} is missing, the next one is {index}", last.index.saturating_add(1))
            }
            Some(last) if id.term < last.term => {
                format!("log entry {index} has an older term than the one before it")
            }
            _ => return Ok(()),
        };
        Err(StorageError::damaged(what))
    }

    fn forget_up_to(&mut self, floor: u64) {
        let gone = usize::try_from(floor.saturating_add(1).saturating_sub(self.first)).unwrap_or(usize::MAX);
        let gone = gone.min(self.places.len());
        self.places.drain(..gone);
        self.first = self.first.saturating_add(gone as u64);
    }

    fn forget_from(&mut self, from: u64) {
        let kept = usize::try_from(from.saturating_sub(self.first)).unwrap_or(usize::MAX);
        self.places.truncate(kept);
    }
}
