//! Sealing of values: AES-256-GCM-SIV (RFC 8452) with a random nonce.
//!
//! A nonce that repeats, which random ones of 96 bits do after a very long time, reveals no more than that two
//! equal plaintexts at one path were equal; that is why it is this mode and not plain GCM.

use aes_gcm_siv::aead::AeadInOut;
use aes_gcm_siv::{Aes256GcmSiv, KeyInit};
use zeroize::ZeroizeOnDrop;

use super::aad::Aad;
use super::{RecordType, VaultId};
use crate::secret::{BarrierKey, Locked, SecretBytes, on_wiped_stack, random_array};

const VERSION: u8 = 1;
const TYPE_TAG: &str = "keystead/v1/value";
const NONCE_AT: usize = 5;
const TEXT_AT: usize = NONCE_AT + 12;
const TAG_LEN: usize = 16;

/// Bytes that sealing adds to a value.
pub const VALUE_OVERHEAD: usize = TEXT_AT + TAG_LEN;

/// Why a sealed value did not open.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenValueError {
    /// Too short for a sealed value.
    #[error("sealed value is cut short")]
    Short,
    /// A format this version does not know.
    #[error("sealed value has format {version}, of which this version of Keystead knows nothing")]
    UnknownVersion {
        /// The format it names.
        version: u8,
    },
    /// The keyring has no such key; it may be older than the value.
    #[error("value is sealed under key term {term}, which this keyring does not hold")]
    UnknownTerm {
        /// The term it names.
        term: u32,
    },
    /// Not what was sealed as this record, at this path, in this vault.
    #[error("sealed value is not authentic: of another vault, record or path, or damaged")]
    NotAuthentic,
}

/// The key term that a sealed value names; what is not of the newest one is due for resealing.
///
/// # Errors
/// [`OpenValueError::Short`] or [`OpenValueError::UnknownVersion`].
pub fn value_term(sealed: &[u8]) -> Result<u32, OpenValueError> {
    match sealed {
        [] => Err(OpenValueError::Short),
        [VERSION, a, b, c, d, rest @ ..] if rest.len() >= VALUE_OVERHEAD - NONCE_AT => {
            Ok(u32::from_be_bytes([*a, *b, *c, *d]))
        }
        [VERSION, ..] => Err(OpenValueError::Short),
        [version, ..] => Err(OpenValueError::UnknownVersion { version: *version }),
    }
}

/// One barrier key with its round keys computed.
pub(super) struct ValueCipher {
    term: u32,
    cipher: Locked<Cipher>,
}

struct Cipher(Aes256GcmSiv);

/// It holds nothing but AES round keys, which wipe themselves, see the assertion in `mod.rs`.
impl ZeroizeOnDrop for Cipher {}

impl ValueCipher {
    pub(super) fn new(term: u32, key: &BarrierKey) -> Self {
        let cipher = on_wiped_stack(|| Locked::new(Cipher(Aes256GcmSiv::new(key.expose().into()))));
        Self { term, cipher }
    }

    pub(super) fn term(&self) -> u32 {
        self.term
    }

    pub(super) fn seal(
        &self,
        vault: VaultId,
        record_type: RecordType,
        path: &[u8],
        plaintext: &[u8],
    ) -> Vec<u8> {
        self.seal_with_nonce(random_array(), vault, record_type, path, plaintext)
    }

    fn seal_with_nonce(
        &self,
        nonce: [u8; 12],
        vault: VaultId,
        record_type: RecordType,
        path: &[u8],
        plaintext: &[u8],
    ) -> Vec<u8> {
        // The full capacity at once: growing would leave plaintext behind in freed memory.
        let mut sealed = Vec::with_capacity(VALUE_OVERHEAD + plaintext.len());
        sealed.push(VERSION);
        sealed.extend_from_slice(&self.term.to_be_bytes());
        sealed.extend_from_slice(&nonce);
        sealed.extend_from_slice(plaintext);
        let aad = self.aad(vault, record_type, path);
        let cipher = &self.cipher.expose().0;
        let tag = cipher
            .encrypt_inout_detached(&nonce.into(), &aad, (&mut sealed[TEXT_AT..]).into())
            .expect("values are far below the 64 GiB of RFC 8452");
        sealed.extend_from_slice(&tag);
        sealed
    }

    /// Opens a value whose term has been found to be this key's.
    pub(super) fn open(
        &self,
        vault: VaultId,
        record_type: RecordType,
        path: &[u8],
        sealed: &[u8],
    ) -> Result<SecretBytes, OpenValueError> {
        let (rest, tag) = sealed.split_last_chunk::<TAG_LEN>().ok_or(OpenValueError::Short)?;
        let (header, text) = rest.split_first_chunk::<TEXT_AT>().ok_or(OpenValueError::Short)?;
        let nonce: [u8; 12] = header[NONCE_AT..].try_into().expect("the header ends with 12 bytes of nonce");
        let aad = self.aad(vault, record_type, path);
        let mut plaintext = SecretBytes::from(text.to_vec());
        let cipher = &self.cipher.expose().0;
        cipher
            .decrypt_inout_detached(&nonce.into(), &aad, plaintext.as_mut().into(), tag.into())
            .map_err(|_| OpenValueError::NotAuthentic)?;
        Ok(plaintext)
    }

    fn aad(&self, vault: VaultId, record_type: RecordType, path: &[u8]) -> Vec<u8> {
        Aad::new(TYPE_TAG).field(&vault.0).u8(record_type.0).field(path).u32(self.term).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VAULT: VaultId = VaultId([7; 16]);
    const KIND: RecordType = RecordType(3);

    fn cipher() -> ValueCipher {
        ValueCipher::new(9, &BarrierKey::from_bytes(&[0x55; 32]))
    }

    #[test]
    fn gcm_siv_is_that_of_rfc_8452() {
        // Appendix C.2, AEAD_AES_256_GCM_SIV, the eleventh vector: 8 bytes of plaintext, 1 byte of AAD.
        let key: [u8; 32] = std::array::from_fn(|n| u8::from(n == 0));
        let nonce: [u8; 12] = std::array::from_fn(|n| u8::from(n == 0) * 3);
        let mut text = hex::decode("0200000000000000").unwrap();
        let cipher = Aes256GcmSiv::new(&key.into());
        let tag = cipher.encrypt_inout_detached(&nonce.into(), &[1], text.as_mut_slice().into()).unwrap();
        assert_eq!(
            hex::encode([&text[..], &tag[..]].concat()),
            "1de22967237a813291213f267e3b452f02d01ae33e4ec854"
        );
    }

    #[test]
    fn format_is_the_written_one() {
        let sealed = cipher().seal_with_nonce([0x66; 12], VAULT, KIND, b"path", b"secret");
        assert_eq!(
            hex::encode(&sealed),
            "010000000966666666666666666666666667ca0d6ca3bc0f4e5354f56b386967ed77186c6a2134"
        );
        assert_eq!(sealed.len(), b"secret".len() + VALUE_OVERHEAD);
        assert_eq!(value_term(&sealed), Ok(9));
    }

    #[test]
    fn what_was_sealed_opens_and_no_nonce_comes_twice() {
        for plaintext in [&b""[..], b"x", &[0xAB; 100_000]] {
            let one = cipher().seal(VAULT, KIND, b"path", plaintext);
            let two = cipher().seal(VAULT, KIND, b"path", plaintext);
            assert_ne!(one, two);
            assert_eq!(*cipher().open(VAULT, KIND, b"path", &one).unwrap(), *plaintext);
        }
    }

    #[test]
    fn another_vault_record_type_path_or_key_does_not_open_it() {
        let sealed = cipher().seal(VAULT, KIND, b"path", b"secret");
        let refused = |result: Result<_, _>| result.err() == Some(OpenValueError::NotAuthentic);
        assert!(refused(cipher().open(VaultId([8; 16]), KIND, b"path", &sealed)));
        assert!(refused(cipher().open(VAULT, RecordType(4), b"path", &sealed)));
        assert!(refused(cipher().open(VAULT, KIND, b"pati", &sealed)));
        assert!(refused(cipher().open(VAULT, KIND, b"", &sealed)));
        let other_key = ValueCipher::new(9, &BarrierKey::from_bytes(&[0x56; 32]));
        assert!(refused(other_key.open(VAULT, KIND, b"path", &sealed)));
        let other_term = ValueCipher::new(10, &BarrierKey::from_bytes(&[0x55; 32]));
        assert!(refused(other_term.open(VAULT, KIND, b"path", &sealed)));
    }

    #[test]
    fn no_changed_byte_and_no_cut_value_opens() {
        let sealed = cipher().seal(VAULT, KIND, b"path", b"secret");
        let open = |sealed: &[u8]| match value_term(sealed)? {
            9 => cipher().open(VAULT, KIND, b"path", sealed),
            term => Err(OpenValueError::UnknownTerm { term }),
        };
        assert!(open(&sealed).is_ok());
        for n in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[n] ^= 0x10;
            assert!(open(&changed).is_err(), "byte {n}");
            assert!(open(&sealed[..n]).is_err(), "cut at {n}");
        }
        assert_eq!(open(&[]).err(), Some(OpenValueError::Short));
        assert_eq!(open(&[2, 0, 0, 0, 9]).err(), Some(OpenValueError::UnknownVersion { version: 2 }));
    }
}
