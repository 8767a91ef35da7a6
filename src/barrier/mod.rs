//! What stands between the vault and the bytes that are stored and replicated: everything that leaves through here
//! is sealed and authentic, and nothing that comes back is believed before it has been verified.
//!
//! [`Keyring`] holds the keys and is itself sealed under the root key; [`Barrier`] is a keyring ready for use. Byte
//! formats, all integers big-endian:
//!
//! | what | bytes |
//! |---|---|
//! | value | `1`, key term `[4]`, nonce `[12]`, AES-256-GCM-SIV ciphertext and tag |
//! | record key | `s`, mount `[16]`, then for every segment its length `[2]` and AES-SIV ciphertext |
//! | keyring | `1`, nonce `[12]`, AES-256-GCM-SIV ciphertext and tag of the layout in `keyring.rs` |
#![cfg_attr(test, allow(clippy::unwrap_used))] // in a test, a panic is the report

mod aad;
mod derive;
mod keyring;
mod logmac;
mod path;
mod path_cache;
mod value;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

pub use aad::{Aad, Mac};
pub use derive::{
    Backup, Directory, Join, Peer, Purpose, SealCfg, Token, derive, derive_lasting, root_commitment,
};
pub use keyring::{BarrierTerm, Keyring, KeyringError, LogTerm};
pub use logmac::{LogTag, LogTagError};
pub use path::{MAX_SEGMENT_LEN, MAX_SEGMENTS, MountId, PathError};
pub use value::{OpenValueError, VALUE_OVERHEAD, value_term};

use logmac::LogMac;
use path::PathSealer;
use path_cache::{PathCache, PathName};
use value::ValueCipher;

use crate::secret::{SecretBytes, on_wiped_stack};

/// The identity of the vault's data, drawn at init and kept for ever; it goes along with a backup.
#[derive(Clone, Copy, PartialEq, Eq, Hash, bincode::Encode, bincode::Decode)]
pub struct VaultId(pub [u8; 16]);

impl fmt::Display for VaultId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for VaultId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VaultId({self})")
    }
}

/// What kind of record a value belongs to; part of its AAD, so that one kind cannot be passed off as another.
///
/// The numbers are assigned by the vault's own record kinds and are never used again for another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RecordType(pub u8);

/// A keyring made ready for use: key schedules computed once, encryptions counted.
///
/// It never changes. A rotation makes another from the new keyring; whoever still holds this one goes on sealing
/// under the older term, which every later keyring can open.
pub struct Barrier {
    vault_id: VaultId,
    keyring: Keyring,
    /// In the order of `keyring.barrier_terms()`: rising terms, so that the last one is the newest.
    values: Vec<ValueKey>,
    logs: Vec<LogMac>,
    sealed_paths: PathCache,
}

struct ValueKey {
    cipher: ValueCipher,
    encryptions: AtomicU64,
}

impl Barrier {
    /// Makes the barrier of `vault_id` from its keyring.
    #[must_use]
    pub fn new(vault_id: VaultId, keyring: Keyring) -> Self {
        let values = keyring
            .barrier_terms()
            .iter()
            .map(|term| ValueKey {
                cipher: ValueCipher::new(term.term, &term.key),
                encryptions: AtomicU64::new(term.encryptions),
            })
            .collect();
        let logs = keyring.log_terms().iter().map(|term| LogMac::new(term.term, &term.key)).collect();
        Self { vault_id, keyring, values, logs, sealed_paths: PathCache::default() }
    }

    /// The vault this barrier belongs to.
    #[must_use]
    pub fn vault_id(&self) -> VaultId {
        self.vault_id
    }

    /// The keys it was made from, with the counts of that time.
    #[must_use]
    pub fn keyring(&self) -> &Keyring {
        &self.keyring
    }

    /// The newest term, under which values are sealed and log entries tagged.
    #[must_use]
    pub fn term(&self) -> u32 {
        self.newest().cipher.term()
    }

    /// Seals `plaintext` as the record of `record_type` at `sealed_path` under the newest barrier key.
    #[must_use]
    pub fn seal_value(&self, record_type: RecordType, sealed_path: &[u8], plaintext: &[u8]) -> Vec<u8> {
        let key = self.newest();
        key.encryptions.fetch_add(1, Ordering::Relaxed);
        key.cipher.seal(self.vault_id, record_type, sealed_path, plaintext)
    }

    /// Opens what [`Barrier::seal_value`] made, under whichever term it names.
    ///
    /// # Errors
    /// Whenever vault, record type, path or a single byte differs from what was sealed.
    pub fn open_value(
        &self,
        record_type: RecordType,
        sealed_path: &[u8],
        sealed: &[u8],
    ) -> Result<SecretBytes, OpenValueError> {
        let term = value_term(sealed)?;
        let key = self.values.iter().find(|key| key.cipher.term() == term);
        let key = key.ok_or(OpenValueError::UnknownTerm { term })?;
        key.cipher.open(self.vault_id, record_type, sealed_path, sealed)
    }

    /// Seals a record's path and returns its whole storage key.
    ///
    /// The same path always gives the same bytes, and the key of a folder begins the keys of all below it.
    ///
    /// # Errors
    /// [`PathError`] when there is no segment, or one that is empty or exceeds a bound.
    pub fn seal_path(&self, mount: MountId, segments: &[&str]) -> Result<Vec<u8>, PathError> {
        if segments.is_empty() {
            return Err(PathError::NoSegments);
        }
        self.seal_folder(mount, segments)
    }

    /// Seals a folder's path: as [`Barrier::seal_path`], but the mount itself, without segments, is a folder too.
    ///
    /// # Errors
    /// [`PathError`] when a segment is empty or exceeds a bound.
    pub fn seal_folder(&self, mount: MountId, segments: &[&str]) -> Result<Vec<u8>, PathError> {
        if segments.len() > MAX_SEGMENTS {
            return Err(PathError::TooDeep { count: segments.len() });
        }
        let Some(name) = PathName::new(mount, segments) else {
            return self.with_paths(|paths| paths.seal(mount, segments));
        };
        if let Some(sealed) = self.sealed_paths.get(&name) {
            return Ok(sealed.to_vec());
        }
        let sealed = match segments.split_last() {
            // The folder is sealed already, more often than not.
            Some((last, folder)) => {
                let folder = self.seal_folder(mount, folder)?;
                self.with_paths(|paths| paths.seal_below(folder, last))?
            }
            None => self.with_paths(|paths| paths.seal(mount, segments))?,
        };
        self.sealed_paths.put(name, Arc::from(sealed.as_slice()));
        Ok(sealed)
    }

    /// Opens one sealed segment (without its length) that lies directly in `folder`.
    ///
    /// # Errors
    /// [`PathError::NotAuthentic`] when it was sealed for another folder or under another key, or was changed.
    pub fn open_segment(&self, folder: &[u8], sealed_segment: &[u8]) -> Result<String, PathError> {
        self.with_paths(|paths| paths.open_segment(folder, sealed_segment))
    }

    /// Opens a whole record or folder key.
    ///
    /// # Errors
    /// [`PathError`] when the bytes are no such key, or a segment is not authentic where it stands.
    pub fn open_path(&self, key: &[u8]) -> Result<(MountId, Vec<String>), PathError> {
        self.with_paths(|paths| paths.open(key))
    }

    /// The tag of a log entry made of `parts`, under the newest log key.
    #[must_use]
    pub fn log_tag(&self, parts: &[&[u8]]) -> LogTag {
        self.logs.last().expect("a keyring has at least one log key").tag(parts)
    }

    /// Verifies the tag of a log entry made of `parts`.
    ///
    /// # Errors
    /// [`LogTagError::UnknownTerm`] when the key is not in this keyring, which may be older than the entry;
    /// [`LogTagError::Forged`] when the tag is wrong.
    pub fn verify_log_tag(&self, parts: &[&[u8]], tag: &LogTag) -> Result<(), LogTagError> {
        let log = self.logs.iter().find(|log| log.term() == tag.term);
        log.ok_or(LogTagError::UnknownTerm { term: tag.term })?.verify(parts, tag)
    }

    /// Encryptions under each barrier term so far, by rising term.
    #[must_use]
    pub fn encryptions(&self) -> Vec<(u32, u64)> {
        let count = |key: &ValueKey| (key.cipher.term(), key.encryptions.load(Ordering::Relaxed));
        self.values.iter().map(count).collect()
    }

    /// Adds encryptions that other nodes did under `term`; an unknown term is ignored.
    pub fn add_encryptions(&self, term: u32, count: u64) {
        if let Some(key) = self.values.iter().find(|key| key.cipher.term() == term) {
            key.encryptions.fetch_add(count, Ordering::Relaxed);
        }
    }

    /// Encryptions that the keyring does not have yet, as it was when this was made.
    #[must_use]
    pub fn uncounted(&self) -> u64 {
        let known: u64 = self.keyring.barrier_terms().iter().map(|term| term.encryptions).sum();
        self.encryptions().iter().map(|(_, count)| count).sum::<u64>().saturating_sub(known)
    }

    /// A copy of the keyring that carries the present counts, for sealing it again.
    #[must_use]
    pub fn counted_keyring(&self) -> Keyring {
        let mut keyring = self.keyring.duplicate();
        for (term, encryptions) in self.encryptions() {
            keyring.set_encryptions(term, encryptions);
        }
        keyring
    }

    fn newest(&self) -> &ValueKey {
        self.values.last().expect("a keyring has at least one barrier key")
    }

    /// Seals or opens with the path key, whose schedules would otherwise be left on the stack.
    fn with_paths<R>(&self, work: impl FnOnce(PathSealer) -> R) -> R {
        on_wiped_stack(|| work(PathSealer::new(self.keyring.path_key())))
    }
}

impl fmt::Debug for Barrier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Barrier")
            .field("vault_id", &self.vault_id)
            .field("term", &self.term())
            .finish_non_exhaustive()
    }
}

/// Fails to compile when the feature that wipes key schedules and states is off in a cipher or hash this vault uses.
/// (Polyval has no type that would show it.) And when the barrier cannot be shared between threads.
const _: () = {
    const fn wiped<T: zeroize::ZeroizeOnDrop>() {}
    wiped::<aes::Aes256>();
    wiped::<aes_siv::siv::Aes256Siv>();
    wiped::<cmac::block_api::CmacCore<aes::Aes256>>();
    wiped::<sha2::block_api::Sha256VarCore>();
    const fn shared<T: Send + Sync>() {}
    shared::<Barrier>();
};

#[cfg(test)]
mod tests {
    use super::*;

    fn barrier() -> Barrier {
        Barrier::new(VaultId([7; 16]), Keyring::generate(1_000))
    }

    #[test]
    fn values_of_older_terms_still_open_after_a_rotation() {
        let old = barrier();
        let sealed = old.seal_value(RecordType(1), b"path", b"secret");
        let mut keyring = old.counted_keyring();
        assert_eq!(keyring.rotate(2_000), 2);
        let new = Barrier::new(old.vault_id(), keyring);
        assert_eq!(new.term(), 2);
        assert_eq!(*new.open_value(RecordType(1), b"path", &sealed).unwrap(), *b"secret");
        let resealed = new.seal_value(RecordType(1), b"path", b"secret");
        assert_eq!(value_term(&resealed).unwrap(), 2);
        let refused = old.open_value(RecordType(1), b"path", &resealed).err().unwrap();
        assert!(matches!(refused, OpenValueError::UnknownTerm { term: 2 }));
        assert_eq!(
            old.seal_path(MountId::VAULT, &["a"]).unwrap(),
            new.seal_path(MountId::VAULT, &["a"]).unwrap(),
            "a rotation keeps the path key, for paths are never sealed anew"
        );
    }

    #[test]
    fn encryptions_are_counted_per_term() {
        let barrier = barrier();
        for _ in 0..3 {
            let _ = barrier.seal_value(RecordType(1), b"path", b"secret");
        }
        assert_eq!(barrier.encryptions(), [(1, 3)]);
        barrier.add_encryptions(1, 4);
        barrier.add_encryptions(9, 4);
        assert_eq!(barrier.counted_keyring().barrier_terms()[0].encryptions, 7);
        assert_eq!(barrier.uncounted(), 7);
        assert_eq!(Barrier::new(barrier.vault_id(), barrier.counted_keyring()).uncounted(), 0);
    }

    #[test]
    fn log_tags_of_older_terms_verify_and_of_newer_ones_are_unknown() {
        let old = barrier();
        let mut keyring = old.keyring().duplicate();
        keyring.rotate(2_000);
        let new = Barrier::new(old.vault_id(), keyring);
        let (first, second) = (old.log_tag(&[b"entry"]), new.log_tag(&[b"entry"]));
        assert_eq!((first.term, second.term), (1, 2));
        assert!(new.verify_log_tag(&[b"entry"], &first).is_ok());
        assert!(matches!(
            old.verify_log_tag(&[b"entry"], &second),
            Err(LogTagError::UnknownTerm { term: 2 })
        ));
        let relabelled = LogTag { term: 1, ..second };
        assert!(matches!(new.verify_log_tag(&[b"entry"], &relabelled), Err(LogTagError::Forged)));
    }

    #[test]
    fn debug_shows_no_key() {
        let shown = format!("{:?}", barrier());
        assert_eq!(shown, format!("Barrier {{ vault_id: VaultId({}), term: 1, .. }}", "07".repeat(16)));
    }
}
