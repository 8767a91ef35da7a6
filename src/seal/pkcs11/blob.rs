//! What a token made of a KEK, with all that is needed to undo it.

use sha2::{Digest, Sha256};

use crate::barrier::Aad;
use crate::config::{OaepHash, WrapMechanism};
use crate::seal::MAX_BLOB_LEN;

/// The first byte of a blob.
const FORMAT: u8 = 1;

const TYPE_TAG: &str = "keystead/v1/pkcs11";

/// The content of a `SealedKek`'s blob: the format byte, then bincode (fixed-length integers, big-endian) of this.
#[derive(Clone, Debug, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub(super) struct Blob {
    pub(super) mechanism: WrapMechanism,
    /// For OAEP.
    pub(super) oaep_hash: Option<OaepHash>,
    /// `CKA_LABEL` and `CKA_ID` of the wrapping key.
    pub(super) key_label: String,
    pub(super) key_id: Vec<u8>,
    /// Its check value, if the token gives one.
    pub(super) kcv: Vec<u8>,
    /// The token that wrapped. Another may unwrap, if the key was cloned to it.
    pub(super) serial: String,
    /// For GCM: as the token left it after encrypting, since some draw their own.
    pub(super) iv: Vec<u8>,
    pub(super) ciphertext: Vec<u8>,
    /// For OAEP, which anybody can encrypt by: HMAC-SHA256 by a key of the token.
    pub(super) mac: Vec<u8>,
}

impl Blob {
    pub(super) fn encode(&self) -> Option<Vec<u8>> {
        let body = bincode::encode_to_vec(self, encoding()).ok()?;
        let bytes = [&[FORMAT], body.as_slice()].concat();
        (bytes.len() <= MAX_BLOB_LEN).then_some(bytes)
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let body = bytes.strip_prefix(&[FORMAT]).filter(|body| body.len() < MAX_BLOB_LEN)?;
        let (blob, read) = bincode::decode_from_slice(body, encoding()).ok()?;
        (read == body.len()).then_some(blob)
    }

    /// Names the key that wrapped it.
    pub(super) fn key_name(&self) -> String {
        key_name(&self.key_label, &self.key_id)
    }

    /// Every field that is known before the token encrypts, and the caller's AAD: what the ciphertext is bound to.
    pub(super) fn bound(&self, aad: &[u8]) -> Vec<u8> {
        Aad::new(TYPE_TAG)
            .field(self.mechanism.name().as_bytes())
            .field(self.oaep_hash.map_or("", OaepHash::name).as_bytes())
            .field(self.key_label.as_bytes())
            .field(&self.key_id)
            .field(&self.kcv)
            .field(self.serial.as_bytes())
            .field(aad)
            .finish()
    }

    /// What is wrapped beside the KEK where the mechanism takes no AAD.
    pub(super) fn bound_hash(&self, aad: &[u8]) -> [u8; 32] {
        Sha256::digest(self.bound(aad)).into()
    }

    /// What the MAC of an OAEP wrap is over.
    pub(super) fn authenticated(&self, aad: &[u8]) -> Vec<u8> {
        Aad::new("keystead/v1/pkcs11/mac").field(&self.bound(aad)).field(&self.ciphertext).finish()
    }
}

/// A key's label and id as one text.
pub(super) fn key_name(label: &str, id: &[u8]) -> String {
    format!("{label}:{}", hex::encode(id))
}

fn encoding() -> impl bincode::config::Config {
    bincode::config::standard().with_big_endian().with_fixed_int_encoding().with_limit::<MAX_BLOB_LEN>()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blob() -> Blob {
        Blob {
            mechanism: WrapMechanism::RsaPkcsOaep,
            oaep_hash: Some(OaepHash::Sha1),
            key_label: "keystead".to_owned(),
            key_id: vec![1, 2],
            kcv: vec![3, 4, 5],
            serial: "5e71a1".to_owned(),
            iv: Vec::new(),
            ciphertext: vec![6; 384],
            mac: vec![7; 32],
        }
    }

    #[test]
    fn the_format_is_the_written_one() {
        let bytes = blob().encode().unwrap();
        let head = "01000000020100000000".to_owned() + "0000000000000008" + "6b65797374656164";
        assert_eq!(hex::encode(&bytes[..26]), head);
        assert_eq!(Blob::decode(&bytes), Some(blob()));
        assert_eq!(Blob::decode(&bytes[..bytes.len() - 1]), None);
        assert_eq!(Blob::decode(&[bytes.as_slice(), &[0]].concat()), None);
        assert_eq!(Blob::decode(&[&[2], &bytes[1..]].concat()), None);
        assert_eq!(Blob::decode(&[]), None);
    }

    #[test]
    fn fuzz_pkcs11_blobs() {
        let samples = vec![blob().encode().unwrap(), vec![FORMAT], Vec::new()];
        let bounds = keystead_fuzz::Bounds { base_bytes: 64 << 10, bytes_per_byte: 8 };
        keystead_fuzz::check!(samples, bounds, |input: &[u8]| {
            if let Some(blob) = Blob::decode(input) {
                assert_eq!(blob.encode().as_deref(), Some(input), "a blob has one encoding");
            }
        });
    }

    #[test]
    fn a_blob_is_bound_to_its_fields_and_to_the_aad() {
        let hash = blob().bound_hash(b"aad");
        assert_ne!(hash, blob().bound_hash(b"aae"));
        for changed in [
            Blob { mechanism: WrapMechanism::AesGcm, ..blob() },
            Blob { oaep_hash: None, ..blob() },
            Blob { key_label: "x".to_owned(), ..blob() },
            Blob { key_id: vec![1], ..blob() },
            Blob { kcv: vec![3], ..blob() },
            Blob { serial: String::new(), ..blob() },
        ] {
            assert_ne!(hash, changed.bound_hash(b"aad"), "{changed:?}");
        }
    }
}
