//! A seal that opens by itself: hardware, or whatever stands for it, that encrypts a wrap's KEK with a key of its own.
//!
//! A new kind of seal is a file that implements [`AutoSeal`], and its stanza in the configuration; nothing else knows
//! how it works. The KEK is drawn here, never by the seal, and what the seal gives back is opaque: the wrap's own
//! commitment says whether what comes out later is what went in.

use std::time::Duration;

use keystead_raft::BoxFuture;

use super::config::SealKind;
use crate::secret::{Kek, SecretBytes};

/// A KEK as a seal encrypted it, with whatever it needs to know to decrypt it. Opaque to everybody else, and public.
#[derive(Clone, Debug, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct SealedKek {
    /// Names the key inside the seal that it was encrypted with; it changes when that key is rotated.
    pub key_id: String,
    /// What only the seal understands; it starts with a format version of the seal's.
    pub blob: Vec<u8>,
}

/// Bytes of a [`SealedKek`]'s blob at most: an RSA-4096 ciphertext with everything around it is far below.
pub const MAX_BLOB_LEN: usize = 8 * 1024;

/// Why a seal did not do what it was asked, by what can be done about it. No text holds a PIN or a key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SealFault {
    /// It may work later without anybody's doing: a token that is gone, a module that hung. Tried again with backoff.
    #[error("{0}")]
    Unavailable(String),
    /// Somebody must do something first, and trying again may do harm: a wrong PIN, a locked token. A seal that is asked
    /// again answers so again, and does not try what may do harm before its configuration was changed.
    #[error("{0}")]
    NeedsOperator(String),
    /// The seal works, and this was not encrypted by its key, for these fields.
    #[error("{0}")]
    NotOurs(String),
}

/// How a seal is, for status, metrics and `operator diagnose`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SealReport {
    /// What it is in one line: module, token, key, mechanism. No secret.
    pub description: String,
    /// Names the key that the next KEK is encrypted with, as in [`SealedKek::key_id`]; empty while unknown.
    pub key_id: String,
}

/// A seal that opens by itself.
///
/// Every method may be called at any time from several tasks, ends within [`AutoSeal::deadline`], and may be dropped
/// half-way without harm: what it was doing is finished or given up inside the seal.
pub trait AutoSeal: Send + Sync + 'static {
    /// Its name, unique among the seals of a vault; part of every wrap.
    fn name(&self) -> &str;

    /// What it is.
    fn kind(&self) -> SealKind;

    /// How long one call may take.
    fn deadline(&self) -> Duration;

    /// Encrypts `kek`; `aad` (public) must be given again to decrypt it.
    ///
    /// Guarantees that the result was decrypted once and compared before it is given back.
    fn encrypt<'a>(&'a self, kek: &'a Kek, aad: &'a [u8]) -> BoxFuture<'a, Result<SealedKek, SealFault>>;

    /// Decrypts what [`AutoSeal::encrypt`] gave for the same `aad`.
    fn decrypt<'a>(&'a self, sealed: &'a SealedKek, aad: &'a [u8]) -> BoxFuture<'a, Result<Kek, SealFault>>;

    /// Random bytes of the seal's own generator, to be mixed with the operating system's and never used alone;
    /// `None` where it has no generator.
    fn random(&self, len: usize) -> BoxFuture<'_, Result<Option<SecretBytes>, SealFault>>;

    /// Looks at the seal without using its key.
    fn report(&self) -> BoxFuture<'_, Result<SealReport, SealFault>>;

    /// Makes what the seal needs and lacks, such as its key, if it is configured to. Called by nobody but the node that
    /// initialises a vault, before the first [`AutoSeal::encrypt`]: several that made a key would make several keys.
    fn prepare(&self) -> BoxFuture<'_, Result<(), SealFault>> {
        Box::pin(async { Ok(()) })
    }
}
