//! Reading a snapshot from its first byte to its last, and believing it only then.
//!
//! Nothing is sought back for, so that it may come out of an archive or off a wire, and nothing of it is kept. What the
//! reader gave before the end counts only once the end was reached: the digest is known then.

use std::io::{ErrorKind, Read};

use super::applied_of;
use super::file::{END, FORMAT, HASH_BYTES, MAGIC, MANIFEST_LIMIT};
use super::stream::{Item, Items};
use super::{CHUNK_BYTES, Manifest};
use crate::digest::{LtHash, digest};
use crate::error::StorageError;
use crate::ids::RequestId;
use crate::keys::RecordKey;
use crate::row::{self, DATA_AREAS, Row};
use crate::state::Record;
use crate::window::Window;

/// One thing that a snapshot holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SnapshotItem {
    /// A record: clear ones before sealed ones.
    Record {
        /// What it is found by.
        key: RecordKey,
        /// What it holds, and its version.
        record: Record,
    },
    /// A folder that has children. It follows from the records.
    Folder,
    /// A remembered request, after all records.
    Request {
        /// Its id.
        id: RequestId,
        /// Its sealed answer.
        response: bytes::Bytes,
    },
}

/// A snapshot that is being read.
pub struct SnapshotReader<R> {
    input: R,
    manifest: Manifest,
    hasher: blake3::Hasher,
    items: Items,
    chunks: u64,
    rows: u64,
    lanes: LtHash,
    last_key: bytes::Bytes,
    window: Window,
    ended: bool,
}

impl<R: Read> SnapshotReader<R> {
    /// Reads the beginning.
    ///
    /// # Errors
    /// [`StorageError::Damaged`] if it is no snapshot or is cut off, [`StorageError::NewerFormat`] if a newer release
    /// wrote it, [`StorageError::Io`] if it cannot be read.
    pub fn begin(mut input: R) -> Result<Self, StorageError> {
        let mut header = [0; MAGIC.len() + 1 + 4];
        fill(&mut input, &mut header)?;
        if !header.starts_with(MAGIC) {
            return Err(damaged("it is not a snapshot"));
        }
        let found = header[MAGIC.len()];
        if found > FORMAT {
            let path = "snapshot".into();
            return Err(StorageError::NewerFormat { path, found: found.into(), known: FORMAT.into() });
        }
        let size = u32::from_be_bytes([header[6], header[7], header[8], header[9]]) as usize;
        if found < FORMAT || size > MANIFEST_LIMIT {
            return Err(damaged("its header makes no sense"));
        }
        let mut manifest = vec![0; size];
        fill(&mut input, &mut manifest)?;
        let mut hasher = blake3::Hasher::new();
        hasher.update(&manifest);
        let manifest = Manifest::from_bytes(&manifest).map_err(|_| damaged("its manifest is changed"))?;
        if manifest.bytes.div_ceil(CHUNK_BYTES as u64) != manifest.chunks {
            return Err(damaged("its manifest makes no sense"));
        }
        let window = Window::beginning(manifest.window);
        Ok(Self {
            input,
            manifest,
            hasher,
            items: Items::default(),
            chunks: 0,
            rows: 0,
            lanes: LtHash::default(),
            last_key: bytes::Bytes::new(),
            window,
            ended: false,
        })
    }

    /// What it says of itself.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The next thing that it holds; `None` once it was read to its end and found to be whole, with the digest that it
    /// names.
    ///
    /// # Errors
    /// As [`SnapshotReader::begin`]: nothing that was given before is to be relied upon.
    pub fn next_item(&mut self) -> Result<Option<SnapshotItem>, StorageError> {
        loop {
            if let Some(item) = self.items.next()? {
                return self.judge(item).map(Some);
            }
            if self.ended {
                return Ok(None);
            }
            if self.chunks == self.manifest.chunks {
                self.end()?;
                self.ended = true;
                return Ok(None);
            }
            self.chunk()?;
        }
    }

    fn chunk(&mut self) -> Result<(), StorageError> {
        let rest = self.manifest.bytes - self.chunks * CHUNK_BYTES as u64;
        let expected = usize::try_from(rest).map_or(CHUNK_BYTES, |rest| rest.min(CHUNK_BYTES));
        let mut frame = [0; 4 + HASH_BYTES];
        fill(&mut self.input, &mut frame)?;
        let (length, hash) = frame.split_at(4);
        if u32::try_from(expected).map(u32::to_be_bytes).ok().as_ref().map(<[u8; 4]>::as_slice)
            != Some(length)
        {
            return Err(damaged("a chunk has the wrong length"));
        }
        let mut bytes = vec![0; expected];
        fill(&mut self.input, &mut bytes)?;
        if blake3::hash(&bytes).as_bytes() != hash {
            return Err(damaged(&format!("chunk {} is changed", self.chunks)));
        }
        self.hasher.update(hash);
        self.chunks += 1;
        self.items.feed(&bytes);
        Ok(())
    }

    fn judge(&mut self, item: Item) -> Result<SnapshotItem, StorageError> {
        self.rows += 1;
        match item {
            Item::Row(key, row) => {
                let known = key.first().is_some_and(|area| DATA_AREAS.contains(area));
                if !known || key <= self.last_key || self.window.next() != self.manifest.window.first {
                    return Err(damaged("its rows are out of order"));
                }
                self.lanes.add(&key, &row);
                self.last_key = key.clone();
                match row {
                    Row::Folder(_) => Ok(SnapshotItem::Folder),
                    Row::Record(record) => {
                        let key = row::record_of(&key).map_err(|_| damaged("a record has no name"))?;
                        Ok(SnapshotItem::Record { key, record })
                    }
                }
            }
            Item::Request(request) => {
                let (id, response) = (request.id, request.response.clone());
                self.window.record(request);
                if self.window.mark() != self.manifest.window {
                    return Err(damaged("it holds more requests than a window"));
                }
                Ok(SnapshotItem::Request { id, response })
            }
        }
    }

    fn end(&mut self) -> Result<(), StorageError> {
        let mut trailer = [0; END.len() + HASH_BYTES];
        fill(&mut self.input, &mut trailer)?;
        let (mark, hash) = trailer.split_at(END.len());
        if mark != END || hash != self.hasher.finalize().as_bytes() {
            return Err(damaged("the hashes of its chunks are changed"));
        }
        if read(&mut self.input, &mut [0])? != 0 {
            return Err(damaged("something follows its end"));
        }
        if !self.items.is_empty() || self.rows != self.manifest.rows {
            return Err(damaged("it is not complete"));
        }
        if digest(&self.lanes, &self.window.hash(), &applied_of(&self.manifest.meta)) != self.manifest.digest
        {
            return Err(damaged("it does not have the digest that it names"));
        }
        Ok(())
    }
}

fn read(input: &mut impl Read, bytes: &mut [u8]) -> Result<usize, StorageError> {
    loop {
        match input.read(bytes) {
            Ok(count) => return Ok(count),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            // What decompresses on the way says so for bytes that it cannot.
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::UnexpectedEof | ErrorKind::InvalidInput | ErrorKind::InvalidData
                ) =>
            {
                return Err(damaged(&format!("it cannot be read on: {error}")));
            }
            Err(error) => return Err(StorageError::io("read a snapshot", error)),
        }
    }
}

fn fill(input: &mut impl Read, mut bytes: &mut [u8]) -> Result<(), StorageError> {
    while !bytes.is_empty() {
        match read(input, bytes)? {
            0 => return Err(damaged("it is cut off")),
            count => bytes = &mut bytes[count..],
        }
    }
    Ok(())
}

fn damaged(why: &str) -> StorageError {
    StorageError::Damaged {
        what: format!("the snapshot is damaged: {why}"),
        remedy: "use another one".to_owned(),
    }
}
