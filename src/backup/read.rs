//! Reading an archive, from its first byte to its last, in constant memory.

use std::io::{self, BufRead as _, BufReader, ErrorKind, Read};

use flate2::bufread::GzDecoder;
use keystead_storage::{Manifest, SnapshotItem, SnapshotReader, StorageError};
use sha2::{Digest as _, Sha256};
use tar::{Archive, Entries, Entry, EntryType};

use super::{BackupSeal, FORMAT, META, Meta, SEALED_SUMS, STATE, SUMS, write};

/// The longest of the small members.
const SMALL_BYTES: u64 = 1 << 20;
/// What may follow the last member: tar fills up to its own block.
const PADDING_BYTES: u64 = 64 << 10;

/// An archive that was read and is whole.
#[derive(Debug, Clone)]
pub struct Backup {
    /// What it says of itself.
    pub meta: Meta,
    /// What the snapshot in it says of itself.
    pub manifest: Manifest,
    /// The text of `SHA256SUMS`.
    pub sums: Vec<u8>,
    /// What an open node said of it.
    pub seal: BackupSeal,
}

/// Why a backup cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// It is something else.
    #[error("this is no snapshot: {0}; give a file that `operator raft snapshot save` wrote")]
    NotABackup(String),
    /// It was cut off or changed.
    #[error("the snapshot is damaged: {0}; use another one")]
    Damaged(String),
    /// A newer release wrote it.
    #[error(
        "the snapshot has format {found}, and this release reads up to {known}: use the release that wrote it, or a newer one"
    )]
    Newer {
        /// Its format.
        found: u32,
        /// The newest that is known.
        known: u32,
    },
    /// It cannot be read.
    #[error("the snapshot cannot be read: {0}")]
    Io(io::Error),
    /// It is not what the keys say that it should be.
    #[error("{0}")]
    Refused(String),
}

impl BackupError {
    fn damaged(why: impl Into<String>) -> Self {
        Self::Damaged(why.into())
    }
}

impl From<io::Error> for BackupError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            // So do decompressing and taking apart say what they cannot make sense of.
            ErrorKind::UnexpectedEof => Self::damaged("it is cut off"),
            ErrorKind::InvalidData | ErrorKind::InvalidInput | ErrorKind::Other => {
                Self::damaged(error.to_string())
            }
            _ => Self::Io(error),
        }
    }
}

impl From<StorageError> for BackupError {
    fn from(error: StorageError) -> Self {
        match error {
            StorageError::NewerFormat { found, known, .. } => Self::Newer { found, known },
            StorageError::Io { source, .. } => Self::from(io::Error::new(source.kind(), source)),
            StorageError::Damaged { what, .. } => Self::Damaged(what),
            other => Self::damaged(other.to_string()),
        }
    }
}

/// Reads an archive to its end and gives everything in its snapshot to `sink`. What `sink` was given is to be believed once
/// this returns, and forgery only [`BackupSeal::is_of`] finds.
///
/// # Errors
/// [`BackupError`]; that of `sink` ends it.
pub fn read(
    input: impl Read,
    mut sink: impl FnMut(SnapshotItem) -> Result<(), BackupError>,
) -> Result<Backup, BackupError> {
    let mut input = BufReader::with_capacity(256 << 10, input);
    if !input.fill_buf()?.starts_with(&[0x1f, 0x8b]) {
        return Err(BackupError::NotABackup("it is not compressed with gzip".to_owned()));
    }
    let mut archive = Archive::new(GzDecoder::new(input));
    let mut entries = archive.entries()?;
    let document = small(next(&mut entries, META)?)?;
    let meta = about(&document)?;
    let mut state = write::Hashing { inner: next(&mut entries, STATE)?, hasher: Sha256::new(), bytes: 0 };
    if state.inner.size() != meta.size {
        return Err(BackupError::damaged("state.bin has another size than meta.json says"));
    }
    let mut snapshot = SnapshotReader::begin(&mut state)?;
    while let Some(item) = snapshot.next_item()? {
        sink(item)?;
    }
    let manifest = snapshot.manifest().clone();
    let found = write::sums(&Sha256::digest(&document).into(), &state.hasher.finalize().into());
    let sums = small(next(&mut entries, SUMS)?)?;
    if sums != found.as_bytes() {
        return Err(BackupError::damaged("its checksums are not those of its members"));
    }
    let seal = BackupSeal::from_bytes(&small(next(&mut entries, SEALED_SUMS)?)?)
        .ok_or_else(|| BackupError::damaged("SHA256SUMS.sealed cannot be read"))?;
    if entries.next().is_some() {
        return Err(BackupError::damaged("it holds more than it should"));
    }
    end(archive.into_inner())?;
    agree(&meta, &manifest, &seal)?;
    Ok(Backup { meta, manifest, sums, seal })
}

/// The next member, which must have that name.
fn next<'a, R: Read>(entries: &mut Entries<'a, R>, name: &str) -> Result<Entry<'a, R>, BackupError> {
    let entry = entries.next().ok_or_else(|| BackupError::damaged(format!("{name} is missing")))??;
    let good =
        entry.path_bytes().as_ref() == name.as_bytes() && entry.header().entry_type() == EntryType::Regular;
    match good {
        true => Ok(entry),
        false => Err(BackupError::damaged(format!("where {name} should be is something else"))),
    }
}

fn small<R: Read>(entry: Entry<'_, R>) -> Result<Vec<u8>, BackupError> {
    let size = entry.size();
    if size > SMALL_BYTES {
        return Err(BackupError::damaged("a member is too large"));
    }
    let mut bytes = Vec::new();
    entry.take(SMALL_BYTES).read_to_end(&mut bytes)?;
    match bytes.len() as u64 == size {
        true => Ok(bytes),
        false => Err(BackupError::damaged("it is cut off")),
    }
}

fn about(document: &[u8]) -> Result<Meta, BackupError> {
    let value: serde_json::Value =
        serde_json::from_slice(document).map_err(|_| BackupError::damaged("meta.json cannot be read"))?;
    let Some(ours) = value.get("Keystead") else {
        return Err(BackupError::NotABackup("another program made it".to_owned()));
    };
    let format =
        ours.get("format").and_then(serde_json::Value::as_u64).and_then(|found| u32::try_from(found).ok());
    match format {
        Some(found) if found > FORMAT => Err(BackupError::Newer { found, known: FORMAT }),
        Some(FORMAT) => {
            serde_json::from_value(value).map_err(|_| BackupError::damaged("meta.json makes no sense"))
        }
        _ => Err(BackupError::damaged("meta.json makes no sense")),
    }
}

/// Nothing but zeros may follow the last member, and nothing the archive.
fn end(mut unpacked: GzDecoder<BufReader<impl Read>>) -> Result<(), BackupError> {
    let mut rest = Vec::new();
    (&mut unpacked).take(PADDING_BYTES + 1).read_to_end(&mut rest)?;
    if rest.len() as u64 > PADDING_BYTES || rest.iter().any(|byte| *byte != 0) {
        return Err(BackupError::damaged("something follows its last member"));
    }
    match unpacked.into_inner().fill_buf()?.is_empty() {
        true => Ok(()),
        false => Err(BackupError::damaged("something follows its end")),
    }
}

/// The three places that say what it is must say the same.
fn agree(meta: &Meta, manifest: &Manifest, seal: &BackupSeal) -> Result<(), BackupError> {
    let id = manifest.meta.log_id;
    let same = meta.keystead.vault_id == seal.vault_id.to_string()
        && meta.keystead.root_generation == seal.root_generation
        && meta.keystead.digest == hex::encode(manifest.digest)
        && meta.keystead.rows == manifest.rows
        && meta.index == id.map_or(0, |id| id.index)
        && meta.term == id.map_or(0, |id| id.term);
    match same {
        true => Ok(()),
        false => Err(BackupError::damaged("its parts do not go together")),
    }
}
