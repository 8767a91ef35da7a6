//! Writing an archive.

use std::io::{self, BufReader, Read, Write};

use flate2::{Compression, write::GzEncoder};
use sha2::{Digest as _, Sha256};
use tar::{Builder, EntryType, Header};

use super::{BackupSeal, META, Meta, SEALED_SUMS, STATE, SUMS};

/// Writes an archive around a snapshot of `meta.size` bytes, piece by piece, and has `seal` seal its checksums.
///
/// # Errors
/// What reading and writing give; [`io::ErrorKind::UnexpectedEof`] if the snapshot is shorter than `meta` says.
pub fn write(
    out: impl Write,
    state: impl Read,
    meta: &Meta,
    seal: impl FnOnce(&[u8]) -> BackupSeal,
) -> io::Result<()> {
    let modified_s = meta.keystead.created_ms / 1000;
    let document = serde_json::to_vec_pretty(meta)?;
    // What is sealed cannot be made smaller.
    let mut archive = Builder::new(GzEncoder::new(out, Compression::none()));
    archive.append(&header(META, document.len() as u64, modified_s)?, document.as_slice())?;
    let mut state =
        Hashing { inner: BufReader::with_capacity(256 << 10, state), hasher: Sha256::new(), bytes: 0 };
    archive.append(&header(STATE, meta.size, modified_s)?, &mut state)?;
    if state.bytes != meta.size {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let sums = sums(&Sha256::digest(&document).into(), &state.hasher.finalize().into());
    archive.append(&header(SUMS, sums.len() as u64, modified_s)?, sums.as_bytes())?;
    let sealed = seal(sums.as_bytes()).to_bytes();
    archive.append(&header(SEALED_SUMS, sealed.len() as u64, modified_s)?, sealed.as_slice())?;
    archive.into_inner()?.finish()?.flush()
}

/// The text of `SHA256SUMS`, as `sha256sum -c` reads it.
pub(super) fn sums(meta: &[u8; 32], state: &[u8; 32]) -> String {
    format!("{}  {META}\n{}  {STATE}\n", hex::encode(meta), hex::encode(state))
}

fn header(name: &str, size: u64, modified_s: u64) -> io::Result<Header> {
    let mut header = Header::new_gnu();
    header.set_path(name)?;
    header.set_entry_type(EntryType::Regular);
    header.set_size(size);
    header.set_mode(0o600);
    header.set_mtime(modified_s);
    header.set_cksum();
    Ok(header)
}

/// What is read through it is hashed and counted.
pub(super) struct Hashing<R> {
    pub inner: R,
    pub hasher: Sha256,
    pub bytes: u64,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..count]);
        self.bytes += count as u64;
        Ok(count)
    }
}
