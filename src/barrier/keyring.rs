//! The keyring: every key that seals or authenticates what is stored, itself sealed under the root key.
//!
//! Sealed form: version `[1]`, nonce `[12]`, then AES-256-GCM-SIV under a key derived from the root key, its AAD
//! the vault id and the root generation. It is not key-committing, nor need it be: whoever opens it holds a root
//! key that the seal configuration's commitment has already singled out. Plaintext, all integers big-endian:
//!
//! ```text
//! path key term [4]  path key [64]  lasting key [32]
//! barrier terms [4], then each: term [4]  installed_ms [8]  encryptions [8]  key [32]
//! log terms     [4], then each: term [4]  key [32]
//! ```
//!
//! It is written by hand and not by a codec, because a codec would leave copies of the keys in its buffers.

use std::fmt;

use aes_gcm_siv::aead::AeadInOut;
use aes_gcm_siv::{Aes256GcmSiv, KeyInit};
use zeroize::Zeroizing;

use super::VaultId;
use super::aad::Aad;
use super::derive::{KeyringSeal, derive};
use crate::secret::{BarrierKey, LastingKey, LogKey, PathKey, RootKey, on_wiped_stack, random_array};

const VERSION: u8 = 2;
const TYPE_TAG: &str = "keystead/v1/keyring";
const HEADER_LEN: usize = 1 + 12;
const TAG_LEN: usize = 16;
/// Terms of one kind that are read back; rotations are counted in years.
const MAX_TERMS: u32 = 100_000;

/// One barrier key and what is known about it.
pub struct BarrierTerm {
    /// Counted from 1; a rotation adds the next.
    pub term: u32,
    /// The key.
    pub key: BarrierKey,
    /// When it was made, in milliseconds of cluster time since the Unix epoch.
    pub installed_ms: u64,
    /// Encryptions under it when this keyring was sealed.
    pub encryptions: u64,
}

/// One key for log entries, made together with the barrier key of the same term.
pub struct LogTerm {
    /// Counted from 1; a rotation adds the next.
    pub term: u32,
    /// The key.
    pub key: LogKey,
}

/// Every key of the barrier. Old terms stay, for what was sealed under them.
///
/// Always has at least one barrier term and one log term, both in strictly rising order.
pub struct Keyring {
    path_term: u32,
    path_key: PathKey,
    lasting_key: LastingKey,
    barrier: Vec<BarrierTerm>,
    log: Vec<LogTerm>,
}

/// Why a sealed keyring did not open.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyringError {
    /// A format this version does not know.
    #[error("keyring has format {version}, of which this version of Keystead knows nothing")]
    UnknownVersion {
        /// The format it names.
        version: u8,
    },
    /// Not sealed under this root key for this vault and root generation.
    #[error("keyring is not authentic: of another vault or root key, or damaged")]
    NotAuthentic,
    /// Authentic, but not laid out as a keyring: a fault of the program that sealed it.
    #[error("keyring is authentic but malformed")]
    Malformed,
}

impl Keyring {
    /// Draws the first keys of a new vault, all of term 1. `now_ms` is cluster time.
    #[must_use]
    pub fn generate(now_ms: u64) -> Self {
        Self {
            path_term: 1,
            path_key: PathKey::random(),
            lasting_key: LastingKey::random(),
            barrier: vec![BarrierTerm {
                term: 1,
                key: BarrierKey::random(),
                installed_ms: now_ms,
                encryptions: 0,
            }],
            log: vec![LogTerm { term: 1, key: LogKey::random() }],
        }
    }

    /// Adds a barrier key and a log key under the next term, which it returns. The path key stays: names are sealed
    /// deterministically, and another key would lose them all. So does the lasting key, for tokens.
    pub fn rotate(&mut self, now_ms: u64) -> u32 {
        let newest = self.barrier.last().expect("a keyring has at least one barrier key").term;
        let term = newest.checked_add(1).expect("nobody rotates four billion times");
        self.barrier.push(BarrierTerm {
            term,
            key: BarrierKey::random(),
            installed_ms: now_ms,
            encryptions: 0,
        });
        self.log.push(LogTerm { term, key: LogKey::random() });
        term
    }

    /// The barrier keys, the newest last.
    #[must_use]
    pub fn barrier_terms(&self) -> &[BarrierTerm] {
        &self.barrier
    }

    /// The log keys, the newest last.
    #[must_use]
    pub fn log_terms(&self) -> &[LogTerm] {
        &self.log
    }

    /// The key that seals path segments.
    #[must_use]
    pub fn path_key(&self) -> &PathKey {
        &self.path_key
    }

    /// What the keys come from that a new root key leaves as they are.
    #[must_use]
    pub fn lasting_key(&self) -> &LastingKey {
        &self.lasting_key
    }

    /// The term of the path key.
    #[must_use]
    pub fn path_term(&self) -> u32 {
        self.path_term
    }

    /// Notes the encryptions done under `term`; an unknown term is ignored.
    pub fn set_encryptions(&mut self, term: u32, encryptions: u64) {
        if let Some(found) = self.barrier.iter_mut().find(|found| found.term == term) {
            found.encryptions = encryptions;
        }
    }

    /// A second copy, made on purpose.
    #[must_use]
    pub fn duplicate(&self) -> Self {
        let barrier = self.barrier.iter().map(|from| BarrierTerm { key: from.key.duplicate(), ..*from });
        let log = self.log.iter().map(|from| LogTerm { term: from.term, key: from.key.duplicate() });
        Self {
            path_term: self.path_term,
            path_key: self.path_key.duplicate(),
            lasting_key: self.lasting_key.duplicate(),
            barrier: barrier.collect(),
            log: log.collect(),
        }
    }

    /// Seals the keyring under the root key.
    #[must_use]
    pub fn seal(&self, root: &RootKey, vault_id: VaultId, root_generation: u32) -> Vec<u8> {
        self.seal_with_nonce(random_array(), root, vault_id, root_generation)
    }

    fn seal_with_nonce(
        &self,
        nonce: [u8; 12],
        root: &RootKey,
        vault_id: VaultId,
        root_generation: u32,
    ) -> Vec<u8> {
        let mut text = self.encode();
        let aad = aad(vault_id, root_generation);
        let tag = on_wiped_stack(|| {
            let cipher = cipher(root, vault_id, root_generation);
            cipher.encrypt_inout_detached(&nonce.into(), &aad, text.as_mut_slice().into())
        });
        let tag = tag.expect("a keyring is far below the 64 GiB of RFC 8452");
        [&[VERSION], &nonce[..], &text[..], &tag[..]].concat()
    }

    /// Opens what [`Keyring::seal`] made.
    ///
    /// # Errors
    /// Whenever root key, vault, root generation or a single byte differs.
    pub fn open(
        sealed: &[u8],
        root: &RootKey,
        vault_id: VaultId,
        root_generation: u32,
    ) -> Result<Self, KeyringError> {
        let (header, rest) = sealed.split_first_chunk::<HEADER_LEN>().ok_or(KeyringError::NotAuthentic)?;
        let (text, tag) = rest.split_last_chunk::<TAG_LEN>().ok_or(KeyringError::NotAuthentic)?;
        let (version, nonce) = header.split_first().expect("the header has 13 bytes");
        if *version != VERSION {
            return Err(KeyringError::UnknownVersion { version: *version });
        }
        let nonce: [u8; 12] = nonce.try_into().expect("12 of the 13 bytes are left");
        let mut text = Zeroizing::new(text.to_vec());
        let aad = aad(vault_id, root_generation);
        on_wiped_stack(|| {
            let cipher = cipher(root, vault_id, root_generation);
            cipher.decrypt_inout_detached(&nonce.into(), &aad, text.as_mut_slice().into(), tag.into())
        })
        .map_err(|_| KeyringError::NotAuthentic)?;
        Self::decode(&text).ok_or(KeyringError::Malformed)
    }

    fn encode(&self) -> Zeroizing<Vec<u8>> {
        // The full length at once: growing would leave keys behind in freed memory.
        let len = 4 + PathKey::LEN + LastingKey::LEN + 4 + self.barrier.len() * 52 + 4 + self.log.len() * 36;
        let mut out = Zeroizing::new(Vec::with_capacity(len));
        let count = |len: usize| u32::try_from(len).expect("terms are counted by u32").to_be_bytes();
        out.extend_from_slice(&self.path_term.to_be_bytes());
        out.extend_from_slice(self.path_key.expose());
        out.extend_from_slice(self.lasting_key.expose());
        out.extend_from_slice(&count(self.barrier.len()));
        for term in &self.barrier {
            out.extend_from_slice(&term.term.to_be_bytes());
            out.extend_from_slice(&term.installed_ms.to_be_bytes());
            out.extend_from_slice(&term.encryptions.to_be_bytes());
            out.extend_from_slice(term.key.expose());
        }
        out.extend_from_slice(&count(self.log.len()));
        for term in &self.log {
            out.extend_from_slice(&term.term.to_be_bytes());
            out.extend_from_slice(term.key.expose());
        }
        assert_eq!(out.len(), len, "the length was computed from the same fields");
        out
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader(bytes);
        let path_term = reader.u32()?;
        let path_key = PathKey::from_bytes(reader.take()?);
        let lasting_key = LastingKey::from_bytes(reader.take()?);
        let mut barrier = Vec::new();
        for _ in 0..reader.count()? {
            let (term, installed_ms, encryptions) = (reader.u32()?, reader.u64()?, reader.u64()?);
            barrier.push(BarrierTerm {
                term,
                key: BarrierKey::from_bytes(reader.take()?),
                installed_ms,
                encryptions,
            });
        }
        let mut log = Vec::new();
        for _ in 0..reader.count()? {
            log.push(LogTerm { term: reader.u32()?, key: LogKey::from_bytes(reader.take()?) });
        }
        let in_order =
            barrier.is_sorted_by(|a, b| a.term < b.term) && log.is_sorted_by(|a, b| a.term < b.term);
        let whole = reader.0.is_empty() && !barrier.is_empty() && !log.is_empty();
        (in_order && whole).then_some(Self { path_term, path_key, lasting_key, barrier, log })
    }
}

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keyring").field("terms", &self.barrier.len()).finish_non_exhaustive()
    }
}

fn cipher(root: &RootKey, vault_id: VaultId, root_generation: u32) -> Aes256GcmSiv {
    Aes256GcmSiv::new(derive::<KeyringSeal>(root, vault_id, root_generation).expose().into())
}

fn aad(vault_id: VaultId, root_generation: u32) -> Vec<u8> {
    Aad::new(TYPE_TAG).field(&vault_id.0).u32(root_generation).finish()
}

/// Takes fields off the front; `None` once they run out.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take<const N: usize>(&mut self) -> Option<&'a [u8; N]> {
        let (taken, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(taken)
    }

    fn u32(&mut self) -> Option<u32> {
        self.take().map(|bytes| u32::from_be_bytes(*bytes))
    }

    fn u64(&mut self) -> Option<u64> {
        self.take().map(|bytes| u64::from_be_bytes(*bytes))
    }

    fn count(&mut self) -> Option<u32> {
        self.u32().filter(|count| *count <= MAX_TERMS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VAULT: VaultId = VaultId([7; 16]);

    fn root() -> RootKey {
        RootKey::from_bytes(&[0x11; 32])
    }

    fn fixed() -> Keyring {
        Keyring {
            path_term: 1,
            path_key: PathKey::from_bytes(&[0xA1; 64]),
            lasting_key: LastingKey::from_bytes(&[0xD1; 32]),
            barrier: vec![BarrierTerm {
                term: 1,
                key: BarrierKey::from_bytes(&[0xB1; 32]),
                installed_ms: 0x0102,
                encryptions: 0x0304,
            }],
            log: vec![LogTerm { term: 1, key: LogKey::from_bytes(&[0xC1; 32]) }],
        }
    }

    #[test]
    fn formats_are_the_written_ones() {
        let plain = [
            "00000001",
            &"a1".repeat(64),
            &"d1".repeat(32),
            "00000001",
            "0000000100000000000001020000000000000304",
            &"b1".repeat(32),
            "00000001",
            "00000001",
            &"c1".repeat(32),
        ]
        .concat();
        assert_eq!(hex::encode(&*fixed().encode()), plain);
        let sealed = fixed().seal_with_nonce([0x66; 12], &root(), VAULT, 1);
        assert_eq!(hex::encode(&sealed[..13]), format!("02{}", "66".repeat(12)));
        assert_eq!(hex::encode(&sealed[sealed.len() - 16..]), "34f456dad7b8436f728dec26f3732783");
    }

    #[test]
    fn what_was_sealed_opens_with_every_term_and_count() {
        let mut keyring = Keyring::generate(5);
        assert_eq!(keyring.rotate(6), 2);
        assert_eq!(keyring.rotate(7), 3);
        keyring.set_encryptions(2, 77);
        keyring.set_encryptions(4, 99);
        let opened = Keyring::open(&keyring.seal(&root(), VAULT, 1), &root(), VAULT, 1).unwrap();
        assert_eq!(*opened.encode(), *keyring.encode());
        assert_eq!(*opened.duplicate().encode(), *keyring.encode());
        let terms: Vec<_> =
            opened.barrier_terms().iter().map(|t| (t.term, t.installed_ms, t.encryptions)).collect();
        assert_eq!(terms, [(1, 5, 0), (2, 6, 77), (3, 7, 0)]);
        assert!(!opened.barrier_terms()[0].key.ct_eq(&opened.barrier_terms()[1].key));
        assert_eq!(opened.log_terms().len(), 3);
    }

    #[test]
    fn another_root_vault_or_generation_does_not_open_it() {
        let sealed = fixed().seal(&root(), VAULT, 1);
        let refused = |result: Result<Keyring, _>| result.unwrap_err() == KeyringError::NotAuthentic;
        assert!(refused(Keyring::open(&sealed, &RootKey::random(), VAULT, 1)));
        assert!(refused(Keyring::open(&sealed, &root(), VaultId([8; 16]), 1)));
        assert!(refused(Keyring::open(&sealed, &root(), VAULT, 2)));
    }

    #[test]
    fn no_changed_byte_and_no_cut_keyring_opens() {
        let sealed = fixed().seal(&root(), VAULT, 1);
        for n in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[n] ^= 1;
            assert!(Keyring::open(&changed, &root(), VAULT, 1).is_err(), "byte {n}");
            assert!(Keyring::open(&sealed[..n], &root(), VAULT, 1).is_err(), "cut at {n}");
        }
    }

    #[test]
    fn empty_unordered_and_overlong_plaintexts_are_malformed() {
        let encoded = |keyring: Keyring| keyring.encode().to_vec();
        assert!(Keyring::decode(&encoded(fixed())).is_some());
        assert!(Keyring::decode(&encoded(Keyring { barrier: vec![], ..fixed() })).is_none());
        assert!(Keyring::decode(&encoded(Keyring { log: vec![], ..fixed() })).is_none());
        let mut twice = fixed();
        twice.log.push(LogTerm { term: 1, key: LogKey::random() });
        assert!(Keyring::decode(&encoded(twice)).is_none());
        assert!(Keyring::decode(&[&encoded(fixed())[..], &[0]].concat()).is_none());
        let sealed = Keyring { log: vec![], ..fixed() }.seal(&root(), VAULT, 1);
        assert_eq!(Keyring::open(&sealed, &root(), VAULT, 1).unwrap_err(), KeyringError::Malformed);
    }

    #[test]
    fn debug_shows_no_key() {
        assert_eq!(format!("{:?}", fixed()), "Keyring { terms: 1, .. }");
    }
}
