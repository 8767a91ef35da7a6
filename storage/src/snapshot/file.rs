//! A snapshot as a local file, from which every receiver is served.
//!
//! `KSNAP`, a format byte, `u32` length of the manifest, the manifest; then the chunks, each `u32` length,
//! BLAKE3, bytes; then `KSEND` and BLAKE3 over the manifest and the hashes of all chunks.

use std::fs::{self, File, OpenOptions};
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::Manifest;
use crate::datadir;
use crate::error::StorageError;

/// Bytes of every chunk but the last.
pub const CHUNK_BYTES: usize = 64 * 1024;

pub(super) const MAGIC: &[u8; 5] = b"KSNAP";
pub(super) const FORMAT: u8 = 1;
const HEADER_BYTES: usize = MAGIC.len() + 1 + 4;
pub(super) const END: &[u8; 5] = b"KSEND";
pub(super) const HASH_BYTES: usize = 32;
const FRAME_BYTES: usize = 4 + HASH_BYTES;
const TRAILER_BYTES: usize = END.len() + HASH_BYTES;
pub(super) const MANIFEST_LIMIT: usize = 4 * 1024 * 1024;

/// A whole snapshot on the local disk.
#[derive(Debug)]
pub struct SnapshotFile {
    path: PathBuf,
    file: File,
    manifest: Manifest,
    /// Where the first chunk begins.
    start: u64,
}

impl SnapshotFile {
    /// Opens a file and verifies its frame: sizes, totals and the hashes of hashes. The bytes of a chunk are
    /// verified when it is read.
    ///
    /// # Errors
    /// [`StorageError::Damaged`] if it is cut off or changed, [`StorageError::NewerFormat`] if a newer
    /// release wrote it.
    pub fn open(path: &Path) -> Result<Self, StorageError> {
        let io = |e| StorageError::io(format!("read {}", path.display()), e);
        let file = File::open(path).map_err(io)?;
        let length = file.metadata().map_err(io)?.len();
        let mut header = [0; HEADER_BYTES];
        if length < HEADER_BYTES as u64 {
            return Err(damaged(path, "cut off"));
        }
        file.read_exact_at(&mut header, 0).map_err(io)?;
        if !header.starts_with(MAGIC) {
            return Err(damaged(path, "not a snapshot"));
        }
        let found = header[MAGIC.len()];
        if found > FORMAT {
            return Err(StorageError::NewerFormat {
                path: path.to_owned(),
                found: found.into(),
                known: FORMAT.into(),
            });
        }
        let size = u32::from_be_bytes([header[6], header[7], header[8], header[9]]) as usize;
        let start = (HEADER_BYTES + size) as u64;
        if found < FORMAT || size > MANIFEST_LIMIT || length < start {
            return Err(damaged(path, "the header makes no sense"));
        }
        let mut manifest = vec![0; size];
        file.read_exact_at(&mut manifest, HEADER_BYTES as u64).map_err(io)?;
        let mut hasher = blake3::Hasher::new();
        hasher.update(&manifest);
        let manifest =
            Manifest::from_bytes(&manifest).map_err(|_| damaged(path, "the manifest is changed"))?;
        let snapshot = Self { path: path.to_owned(), file, manifest, start };
        snapshot.verify_frame(length, hasher)?;
        Ok(snapshot)
    }

    /// What a receiver must know before the first chunk.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads chunk `n`, counted from zero, and verifies it.
    ///
    /// # Errors
    /// [`StorageError::Damaged`] if it is changed or there is none.
    pub fn read_chunk(&self, n: u64) -> Result<Bytes, StorageError> {
        let io = |e| StorageError::io(format!("read {}", self.path.display()), e);
        if n >= self.manifest.chunks {
            return Err(damaged(&self.path, "there is no such chunk"));
        }
        let mut frame = [0; FRAME_BYTES];
        self.file.read_exact_at(&mut frame, self.chunk_at(n)).map_err(io)?;
        let (length, hash) = frame.split_at(4);
        let expected = self.chunk_length(n);
        if length != u32::try_from(expected).expect("chunks are small").to_be_bytes() {
            return Err(damaged(&self.path, "a chunk has the wrong length"));
        }
        let mut bytes = vec![0; expected];
        self.file.read_exact_at(&mut bytes, self.chunk_at(n) + FRAME_BYTES as u64).map_err(io)?;
        if blake3::hash(&bytes).as_bytes() != hash {
            return Err(damaged(&self.path, &format!("chunk {n} is changed")));
        }
        Ok(bytes.into())
    }

    fn chunk_at(&self, n: u64) -> u64 {
        self.start + n * (FRAME_BYTES + CHUNK_BYTES) as u64
    }

    fn chunk_length(&self, n: u64) -> usize {
        let rest = self.manifest.bytes - n * CHUNK_BYTES as u64;
        usize::try_from(rest).map_or(CHUNK_BYTES, |rest| rest.min(CHUNK_BYTES))
    }

    fn verify_frame(&self, length: u64, mut hasher: blake3::Hasher) -> Result<(), StorageError> {
        let io = |e| StorageError::io(format!("read {}", self.path.display()), e);
        let Manifest { chunks, bytes, .. } = self.manifest;
        let end = chunks
            .checked_mul(FRAME_BYTES as u64)
            .and_then(|frames| frames.checked_add(bytes)?.checked_add(self.start));
        let fits = bytes.div_ceil(CHUNK_BYTES as u64) == chunks
            && end.and_then(|end| end.checked_add(TRAILER_BYTES as u64)) == Some(length);
        let (Some(end), true) = (end, fits) else {
            return Err(damaged(&self.path, "cut off, or longer than it says"));
        };
        for n in 0..chunks {
            let mut hash = [0; HASH_BYTES];
            self.file.read_exact_at(&mut hash, self.chunk_at(n) + 4).map_err(io)?;
            hasher.update(&hash);
        }
        let mut trailer = [0; TRAILER_BYTES];
        self.file.read_exact_at(&mut trailer, end).map_err(io)?;
        let (mark, hash) = trailer.split_at(END.len());
        if mark != END || hash != hasher.finalize().as_bytes() {
            return Err(damaged(&self.path, "the hashes of the chunks are changed"));
        }
        Ok(())
    }
}

fn damaged(path: &Path, why: &str) -> StorageError {
    StorageError::Damaged {
        what: format!("snapshot {} is damaged: {why}", path.display()),
        remedy: "delete it; a new one is made when it is needed".to_owned(),
    }
}

/// Writes a snapshot file; it gets its name when it is whole.
pub(crate) struct SnapshotWriter {
    path: PathBuf,
    temporary: PathBuf,
    out: BufWriter<File>,
    manifest: Manifest,
    manifest_bytes: usize,
    chunk: Vec<u8>,
    hashes: Vec<u8>,
    done: bool,
}

impl SnapshotWriter {
    /// Begins a file. The totals of the manifest are filled in at the end.
    pub fn create(path: &Path, manifest: Manifest) -> Result<Self, StorageError> {
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(".tmp");
        let temporary = path.with_file_name(name);
        let file = OpenOptions::new()
            .create(true)
            .truncate(true)
            .read(true)
            .write(true)
            .mode(0o600)
            .open(&temporary)
            .map_err(|e| StorageError::io(format!("write {}", temporary.display()), e))?;
        let bytes = manifest.to_bytes();
        let mut writer = Self {
            path: path.to_owned(),
            temporary,
            out: BufWriter::with_capacity(2 * CHUNK_BYTES, file),
            manifest,
            manifest_bytes: bytes.len(),
            chunk: Vec::with_capacity(CHUNK_BYTES),
            hashes: Vec::new(),
            done: false,
        };
        writer.put_header(&bytes)?;
        Ok(writer)
    }

    /// Adds one item.
    pub fn write(&mut self, mut item: &[u8]) -> Result<(), StorageError> {
        self.manifest.rows += 1;
        self.manifest.bytes += item.len() as u64;
        while !item.is_empty() {
            let (now, later) = item.split_at(item.len().min(CHUNK_BYTES - self.chunk.len()));
            self.chunk.extend_from_slice(now);
            item = later;
            if self.chunk.len() == CHUNK_BYTES {
                self.end_chunk()?;
            }
        }
        Ok(())
    }

    /// Writes totals and trailer, syncs, gives the file its name and opens it.
    pub fn finish(mut self, digest: [u8; 32]) -> Result<SnapshotFile, StorageError> {
        if !self.chunk.is_empty() {
            self.end_chunk()?;
        }
        self.manifest.digest = digest;
        let bytes = self.manifest.to_bytes();
        assert_eq!(bytes.len(), self.manifest_bytes, "totals have a fixed length");
        let mut hasher = blake3::Hasher::new();
        hasher.update(&bytes).update(&self.hashes);
        self.put(END)?;
        self.put(hasher.finalize().as_bytes())?;
        self.out.seek(SeekFrom::Start(0)).map_err(|e| self.error(e))?;
        self.put_header(&bytes)?;
        self.out.flush().map_err(|e| self.error(e))?;
        self.out.get_ref().sync_all().map_err(|e| self.error(e))?;
        fs::rename(&self.temporary, &self.path).map_err(|e| self.error(e))?;
        self.done = true;
        datadir::sync_dir(
            self.path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new(".")),
        )?;
        SnapshotFile::open(&self.path)
    }

    fn end_chunk(&mut self) -> Result<(), StorageError> {
        let hash = blake3::hash(&self.chunk);
        let length = u32::try_from(self.chunk.len()).expect("chunks are small");
        let chunk = std::mem::take(&mut self.chunk);
        self.put(&length.to_be_bytes())?;
        self.put(hash.as_bytes())?;
        self.put(&chunk)?;
        self.chunk = chunk;
        self.chunk.clear();
        self.hashes.extend_from_slice(hash.as_bytes());
        self.manifest.chunks += 1;
        Ok(())
    }

    fn put_header(&mut self, manifest: &[u8]) -> Result<(), StorageError> {
        let length = u32::try_from(manifest.len()).expect("manifests are small");
        self.put(MAGIC)?;
        self.put(&[FORMAT])?;
        self.put(&length.to_be_bytes())?;
        self.put(manifest)
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), StorageError> {
        self.out.write_all(bytes).map_err(|e| self.error(e))
    }

    fn error(&self, source: std::io::Error) -> StorageError {
        StorageError::io(format!("write {}", self.temporary.display()), source)
    }
}

impl Drop for SnapshotWriter {
    fn drop(&mut self) {
        if !self.done {
            // What is left over is overwritten by the next one.
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(path: &Path) -> SnapshotFile {
        let mut writer = SnapshotWriter::create(path, Manifest::default()).expect("create");
        for n in 0..5u8 {
            writer.write(&[n; 30_000]).expect("write");
        }
        writer.finish([9; 32]).expect("finish")
    }

    /// Reads everything that a file promises.
    fn read_all(path: &Path) -> Result<Vec<u8>, StorageError> {
        let file = SnapshotFile::open(path)?;
        let mut bytes = Vec::new();
        for n in 0..file.manifest().chunks {
            bytes.extend_from_slice(&file.read_chunk(n)?);
        }
        Ok(bytes)
    }

    #[test]
    fn chunks_come_back_as_they_were_written() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("snap");
        let file = written(&path);
        assert_eq!((file.manifest().chunks, file.manifest().bytes, file.manifest().rows), (3, 150_000, 5));
        assert_eq!(file.manifest().digest, [9; 32]);
        assert!(file.read_chunk(3).is_err());
        let bytes = read_all(&path).expect("good");
        assert!(bytes.chunks(30_000).zip(0u8..).all(|(chunk, n)| chunk == [n; 30_000]));
        assert!(!dir.path().join("snap.tmp").exists());
    }

    #[test]
    fn a_cut_or_changed_file_is_damaged() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("snap");
        written(&path);
        let good = fs::read(&path).expect("read");
        let bad_path = dir.path().join("bad");
        for at in (0..good.len()).step_by(good.len() / 97).chain([6, 20, good.len() - 1]) {
            let mut bad = good.clone();
            bad[at] ^= 0x40;
            fs::write(&bad_path, &bad).expect("write");
            assert!(read_all(&bad_path).is_err(), "byte {at}");
            fs::write(&bad_path, &good[..at]).expect("write");
            let error = SnapshotFile::open(&bad_path).expect_err("cut off");
            assert!(matches!(error, StorageError::Damaged { .. }), "{error}");
        }
    }
}
