//! The one way in which the inputs of MACs and the AADs of ciphers are put together.
//!
//! A type tag comes first and every field, the tag included, is preceded by its length (u32, big-endian): no two
//! different lists of fields give the same bytes, and nothing made for one purpose fits another.

use hmac::{Hmac, KeyInit, Mac as _};
use sha2::Sha256;
use subtle::ConstantTimeEq;

use crate::secret::on_wiped_stack;

/// Additional authenticated data under construction.
///
/// ```
/// let aad = keystead::barrier::Aad::new("keystead/v1/example").field(b"ab").u32(1).finish();
/// assert_eq!(aad[..4], [0, 0, 0, 19]);
/// assert_eq!(aad[23..], [0, 0, 0, 2, b'a', b'b', 0, 0, 0, 4, 0, 0, 0, 1]);
/// ```
#[derive(Clone, Debug)]
pub struct Aad(Vec<u8>);

impl Aad {
    /// Starts with the type tag, which no other purpose uses.
    #[must_use]
    pub fn new(type_tag: &str) -> Self {
        Self(Vec::with_capacity(128)).field(type_tag.as_bytes())
    }

    /// Appends a field of any length.
    ///
    /// # Panics
    /// When it is 4 GiB or longer; what is sealed is bounded far below that.
    #[must_use]
    pub fn field(mut self, field: &[u8]) -> Self {
        self.0.extend_from_slice(&length(field));
        self.0.extend_from_slice(field);
        self
    }

    /// Appends one byte as a field.
    #[must_use]
    pub fn u8(self, value: u8) -> Self {
        self.field(&[value])
    }

    /// Appends a number as a field of four bytes.
    #[must_use]
    pub fn u32(self, value: u32) -> Self {
        self.field(&value.to_be_bytes())
    }

    /// Appends a number as a field of eight bytes.
    #[must_use]
    pub fn u64(self, value: u64) -> Self {
        self.field(&value.to_be_bytes())
    }

    /// The bytes.
    #[must_use]
    pub fn finish(self) -> Vec<u8> {
        self.0
    }
}

/// An HMAC-SHA256 (RFC 2104) under construction, over fields as those of [`Aad`].
///
/// Fields go straight into the hash, so that a secret one leaves no copy.
#[derive(Clone)]
pub struct Mac(Hmac<Sha256>);

impl Mac {
    /// Starts with the type tag, which no other purpose uses.
    #[must_use]
    pub fn new(key: &[u8], type_tag: &str) -> Self {
        // The state in which it is returned does not give the key away; the blocks it was made from would.
        let hmac = on_wiped_stack(|| Hmac::new_from_slice(key)).expect("HMAC takes keys of any length");
        Self(hmac).field(type_tag.as_bytes())
    }

    /// Appends a field of any length.
    ///
    /// # Panics
    /// As [`Aad::field`].
    #[must_use]
    pub fn field(mut self, field: &[u8]) -> Self {
        self.0.update(&length(field));
        self.0.update(field);
        self
    }

    /// Appends one byte as a field.
    #[must_use]
    pub fn u8(self, value: u8) -> Self {
        self.field(&[value])
    }

    /// Appends a number as a field of four bytes.
    #[must_use]
    pub fn u32(self, value: u32) -> Self {
        self.field(&value.to_be_bytes())
    }

    /// Appends a number as a field of eight bytes.
    #[must_use]
    pub fn u64(self, value: u64) -> Self {
        self.field(&value.to_be_bytes())
    }

    /// The tag.
    #[must_use]
    pub fn finish(self) -> [u8; 32] {
        self.0.finalize().into_bytes().into()
    }

    /// Whether `tag` is the tag, in constant time; a tag of another length is not.
    #[must_use]
    pub fn verify(self, tag: &[u8]) -> bool {
        self.finish().ct_eq(tag).into()
    }
}

fn length(field: &[u8]) -> [u8; 4] {
    u32::try_from(field.len()).expect("fields are shorter than 4 GiB").to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layout_is_tag_first_and_every_field_by_length() {
        let aad = Aad::new("t").field(b"abc").field(b"").u8(9).u32(1).u64(2).finish();
        assert_eq!(
            hex::encode(aad),
            "0000000174000000036162630000000000000001090000000400000001000000080000000000000002"
        );
    }

    #[test]
    fn moving_a_byte_between_fields_changes_the_bytes() {
        let of = |a: &[u8], b: &[u8]| Aad::new("t").field(a).field(b).finish();
        assert_ne!(of(b"ab", b"c"), of(b"a", b"bc"));
        assert_ne!(of(b"", b"abc"), of(b"abc", b""));
        assert_ne!(Aad::new("tabc").finish(), Aad::new("t").field(b"abc").finish());
    }

    #[test]
    fn mac_is_hmac_sha256_over_the_same_layout() {
        // python3: hmac.new(b'key', bytes.fromhex('00000001740000000161'), 'sha256').hexdigest()
        let mac = Mac::new(b"key", "t").field(b"a");
        let mut direct = Hmac::<Sha256>::new_from_slice(b"key").unwrap();
        direct.update(&Aad::new("t").field(b"a").finish());
        assert_eq!(mac.clone().finish(), <[u8; 32]>::from(direct.finalize().into_bytes()));
        assert_eq!(
            hex::encode(mac.finish()),
            "240e9a26658dd2563d86e51e1b5f6a3f565b8d48adb7c8a101e10f072037606b"
        );
    }

    #[test]
    fn wrong_short_and_long_tags_do_not_verify() {
        let mac = Mac::new(b"key", "t").field(b"a");
        let tag = mac.clone().finish();
        assert!(mac.clone().verify(&tag));
        let mut wrong = tag;
        wrong[31] ^= 1;
        assert!(!mac.clone().verify(&wrong));
        assert!(!mac.clone().verify(&tag[..31]));
        assert!(!mac.clone().verify(&[&tag[..], &[0]].concat()));
        assert!(!mac.field(b"").verify(&tag));
    }
}
