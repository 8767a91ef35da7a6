//! Tags of log entries: proof that an entry was made by a node that held the keyring.

use subtle::ConstantTimeEq;

use super::aad::Mac;
use crate::secret::{Locked, LogKey, on_wiped_stack};
use zeroize::ZeroizeOnDrop;

const TYPE_TAG: &str = "keystead/v1/log-entry";

/// The tag of one log entry, as it travels with it: the term of its key and HMAC-SHA256.
#[derive(Clone, Copy, Debug)]
pub struct LogTag {
    /// Term of the log key.
    pub term: u32,
    /// HMAC-SHA256 over type tag, term and the entry's parts.
    pub mac: [u8; 32],
}

impl LogTag {
    /// Length of the encoding in bytes.
    pub const LEN: usize = 36;

    /// Term (big-endian), then MAC.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[..4].copy_from_slice(&self.term.to_be_bytes());
        bytes[4..].copy_from_slice(&self.mac);
        bytes
    }

    /// The reverse of [`LogTag::to_bytes`]; whether the tag is right is for [`super::Barrier::verify_log_tag`].
    #[must_use]
    pub fn from_bytes(bytes: &[u8; Self::LEN]) -> Self {
        let (term, mac) = bytes.split_first_chunk::<4>().expect("36 bytes have four at their front");
        Self { term: u32::from_be_bytes(*term), mac: mac.try_into().expect("32 of the 36 bytes are left") }
    }
}

/// Why a log entry's tag was not accepted.
#[derive(Debug, thiserror::Error)]
pub enum LogTagError {
    /// The keyring has no such key; it may be older than the entry.
    #[error("log entry is tagged under key term {term}, which this keyring does not hold")]
    UnknownTerm {
        /// The term that the tag names.
        term: u32,
    },
    /// The tag is not that of this entry.
    #[error("log entry's tag is wrong: it was not made by an unsealed node of this vault")]
    Forged,
}

/// One log key, with the key and everything constant already hashed.
pub(super) struct LogMac {
    term: u32,
    prepared: Locked<Prepared>,
}

struct Prepared(Mac);

/// HMAC's and SHA-256's states wipe themselves, see the assertion in `mod.rs`.
impl ZeroizeOnDrop for Prepared {}

impl LogMac {
    pub(super) fn new(term: u32, key: &LogKey) -> Self {
        let prepared = on_wiped_stack(|| Locked::new(Prepared(Mac::new(key.expose(), TYPE_TAG).u32(term))));
        Self { term, prepared }
    }

    pub(super) fn term(&self) -> u32 {
        self.term
    }

    pub(super) fn tag(&self, parts: &[&[u8]]) -> LogTag {
        let prepared = self.prepared.expose().0.clone();
        let mac = parts.iter().fold(prepared, |mac, part| mac.field(part)).finish();
        LogTag { term: self.term, mac }
    }

    pub(super) fn verify(&self, parts: &[&[u8]], tag: &LogTag) -> Result<(), LogTagError> {
        let genuine = self.tag(parts).mac.ct_eq(&tag.mac);
        if genuine.into() { Ok(()) } else { Err(LogTagError::Forged) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tag_is_the_written_one_and_survives_its_encoding() {
        let log = LogMac::new(5, &LogKey::from_bytes(&[0x33; 32]));
        let tag = log.tag(&[b"one", b"two"]);
        assert_eq!(tag.mac, Mac::new(&[0x33; 32], TYPE_TAG).u32(5).field(b"one").field(b"two").finish());
        assert_eq!(
            hex::encode(tag.to_bytes()),
            "000000054fcf12bc2ea0d1cb8cfec39615655334761731ac5e55faf918711ded84e82bb1"
        );
        assert!(log.verify(&[b"one", b"two"], &LogTag::from_bytes(&tag.to_bytes())).is_ok());
    }

    #[test]
    fn any_change_of_parts_key_or_tag_is_a_forgery() {
        let log = LogMac::new(5, &LogKey::from_bytes(&[0x33; 32]));
        let tag = log.tag(&[b"one", b"two"]);
        let parts: [&[&[u8]]; 5] =
            [&[b"onetwo"], &[b"one"], &[b"two", b"one"], &[b"one", b"two", b""], &[b"one", b"twO"]];
        for parts in parts {
            assert!(matches!(log.verify(parts, &tag), Err(LogTagError::Forged)));
        }
        let other = LogMac::new(5, &LogKey::from_bytes(&[0x34; 32]));
        assert!(other.verify(&[b"one", b"two"], &tag).is_err());
        for byte in 0..32 {
            let mut changed = tag;
            changed.mac[byte] ^= 0x80;
            assert!(log.verify(&[b"one", b"two"], &changed).is_err());
        }
    }
}
