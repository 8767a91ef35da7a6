//! A wrap: the root key, encrypted under a key-encryption key (KEK) in a way that commits to that KEK.
//!
//! `enc || commit = HKDF-SHA256(ikm = KEK, salt = fresh 32 bytes, info = fields)`, both 32 bytes long; the fields
//! are type tag, vault id, seal name, root generation and wrap id, each with its length, and are the AAD as well.
//! The commitment is compared before anything is decrypted: AES-GCM-SIV alone would allow a ciphertext that opens
//! under two KEKs, to two root keys.

use aes_gcm_siv::aead::AeadInOut;
use aes_gcm_siv::{Aes256GcmSiv, KeyInit};
use hkdf::Hkdf;
use sha2::Sha256;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use crate::barrier::{Aad, VaultId};
use crate::secret::{Kek, RootKey, on_wiped_stack, random_array};

const TYPE_TAG: &str = "keystead/v1/wrap";

/// The root key of one generation, wrapped for one seal. All of it is public.
#[derive(Clone, Debug, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct Wrap {
    /// Drawn for every wrap, so that no two are interchangeable.
    pub wrap_id: [u8; 16],
    /// Name of the seal that it belongs to.
    pub seal_name: String,
    /// Generation of the root key inside.
    pub root_generation: u32,
    /// Salt of the derivation.
    pub salt: [u8; 32],
    /// Commitment to the KEK and to the fields above.
    pub commit: [u8; 32],
    /// Nonce of AES-256-GCM-SIV.
    pub nonce: [u8; 12],
    /// The root key, encrypted, and the authentication tag.
    pub ciphertext: [u8; 48],
}

/// Why a wrap did not open.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum WrapError {
    /// The KEK is not the one this was wrapped with, or a field was changed.
    #[error("the key does not fit this wrap of the root key")]
    WrongKey,
    /// The KEK is right and the ciphertext is not.
    #[error("the wrapped root key is damaged")]
    Damaged,
}

impl Wrap {
    /// Wraps `root` under `kek` for the seal of that name.
    #[must_use]
    pub fn seal(vault_id: VaultId, seal_name: &str, root_generation: u32, kek: &Kek, root: &RootKey) -> Self {
        let random = Randomness { wrap_id: random_array(), salt: random_array(), nonce: random_array() };
        on_wiped_stack(|| Self::seal_with(random, vault_id, seal_name, root_generation, kek, root))
    }

    fn seal_with(
        random: Randomness,
        vault_id: VaultId,
        seal_name: &str,
        root_generation: u32,
        kek: &Kek,
        root: &RootKey,
    ) -> Self {
        let mut wrap = Self {
            wrap_id: random.wrap_id,
            seal_name: seal_name.to_owned(),
            root_generation,
            salt: random.salt,
            commit: [0; 32],
            nonce: random.nonce,
            ciphertext: [0; 48],
        };
        let fields = wrap.fields(vault_id);
        let keys = wrap.keys(&fields, kek);
        wrap.commit.copy_from_slice(&keys[32..]);
        let mut text = Zeroizing::new(*root.expose());
        let tag = cipher(&keys)
            .encrypt_inout_detached(&wrap.nonce.into(), &fields, text.as_mut_slice().into())
            .expect("a key is far below the 64 GiB of RFC 8452");
        wrap.ciphertext[..32].copy_from_slice(&*text);
        wrap.ciphertext[32..].copy_from_slice(&tag);
        wrap
    }

    /// Opens the wrap.
    ///
    /// # Errors
    /// [`WrapError::WrongKey`] when the commitment is to another KEK, vault or field; [`WrapError::Damaged`] when
    /// it is to this one and the ciphertext still does not open.
    pub fn open(&self, vault_id: VaultId, kek: &Kek) -> Result<RootKey, WrapError> {
        on_wiped_stack(|| self.open_with(vault_id, kek))
    }

    fn open_with(&self, vault_id: VaultId, kek: &Kek) -> Result<RootKey, WrapError> {
        let fields = self.fields(vault_id);
        let keys = self.keys(&fields, kek);
        if !bool::from(keys[32..].ct_eq(&self.commit)) {
            return Err(WrapError::WrongKey);
        }
        let (text, tag) = self.ciphertext.split_last_chunk::<16>().expect("48 bytes have 16 at their end");
        let mut opened = Ok(());
        let root = RootKey::filled(|root| {
            root.copy_from_slice(text);
            opened = cipher(&keys).decrypt_inout_detached(
                &self.nonce.into(),
                &fields,
                root.as_mut_slice().into(),
                tag.into(),
            );
        });
        opened.map(|()| root).map_err(|_| WrapError::Damaged)
    }

    fn fields(&self, vault_id: VaultId) -> Vec<u8> {
        Aad::new(TYPE_TAG)
            .field(&vault_id.0)
            .field(self.seal_name.as_bytes())
            .u32(self.root_generation)
            .field(&self.wrap_id)
            .finish()
    }

    /// Encryption key, then commitment.
    fn keys(&self, fields: &[u8], kek: &Kek) -> Zeroizing<[u8; 64]> {
        let mut keys = Zeroizing::new([0; 64]);
        Hkdf::<Sha256>::new(Some(&self.salt), kek.expose())
            .expand(fields, &mut *keys)
            .expect("64 bytes are fewer than HKDF-SHA256 can give");
        keys
    }
}

/// What is drawn anew for every wrap.
struct Randomness {
    wrap_id: [u8; 16],
    salt: [u8; 32],
    nonce: [u8; 12],
}

fn cipher(keys: &[u8; 64]) -> Aes256GcmSiv {
    Aes256GcmSiv::new_from_slice(&keys[..32]).expect("the encryption key has 32 bytes")
}

#[cfg(test)]
mod tests {
    use super::*;

    const VAULT: VaultId = VaultId([7; 16]);

    fn kek() -> Kek {
        Kek::from_bytes(&[0x22; 32])
    }

    fn root() -> RootKey {
        RootKey::from_bytes(&[0x11; 32])
    }

    fn fixed() -> Wrap {
        let random = Randomness { wrap_id: [1; 16], salt: [2; 32], nonce: [3; 12] };
        Wrap::seal_with(random, VAULT, "shamir", 4, &kek(), &root())
    }

    #[test]
    fn derivation_and_ciphertext_are_the_written_ones() {
        assert_eq!(
            hex::encode(fixed().commit),
            "d6a3fd022829f4302a5135391a1a5f0003242c9b2a758915db1b901ccc540396"
        );
        assert_eq!(
            hex::encode(fixed().ciphertext),
            "b8485b9fcc3e8e4680c67eba4cacd6d7c71b01ba53195938a87295920b726c37347c9540399991b80ed7c9a8d8fae641"
        );
    }

    #[test]
    fn what_was_wrapped_opens_and_no_two_wraps_are_alike() {
        let one = Wrap::seal(VAULT, "shamir", 1, &kek(), &root());
        let two = Wrap::seal(VAULT, "shamir", 1, &kek(), &root());
        assert!(one.open(VAULT, &kek()).unwrap().ct_eq(&root()));
        assert_ne!(one.wrap_id, two.wrap_id);
        assert_ne!(one.salt, two.salt);
        assert_ne!(one.ciphertext, two.ciphertext);
    }

    #[test]
    fn another_kek_or_vault_is_told_by_the_commitment() {
        assert_eq!(fixed().open(VAULT, &Kek::from_bytes(&[0x23; 32])).err(), Some(WrapError::WrongKey));
        assert_eq!(fixed().open(VaultId([8; 16]), &kek()).err(), Some(WrapError::WrongKey));
    }

    #[test]
    fn no_changed_byte_opens() {
        let refused = |change: &dyn Fn(&mut Wrap), expected: WrapError| {
            let mut wrap = fixed();
            change(&mut wrap);
            assert_eq!(wrap.open(VAULT, &kek()).err(), Some(expected));
        };
        for n in 0..16 {
            refused(&|wrap| wrap.wrap_id[n] ^= 1, WrapError::WrongKey);
        }
        for n in 0..32 {
            refused(&|wrap| wrap.salt[n] ^= 1, WrapError::WrongKey);
            refused(&|wrap| wrap.commit[n] ^= 1, WrapError::WrongKey);
        }
        for n in 0..12 {
            refused(&|wrap| wrap.nonce[n] ^= 1, WrapError::Damaged);
        }
        for n in 0..48 {
            refused(&|wrap| wrap.ciphertext[n] ^= 1, WrapError::Damaged);
        }
        refused(&|wrap| wrap.root_generation ^= 1, WrapError::WrongKey);
        refused(&|wrap| wrap.seal_name.push('x'), WrapError::WrongKey);
    }

    #[test]
    fn parts_of_two_wraps_do_not_mix() {
        let (one, two) =
            (Wrap::seal(VAULT, "a", 1, &kek(), &root()), Wrap::seal(VAULT, "a", 1, &kek(), &root()));
        let mixed = Wrap { ciphertext: two.ciphertext, nonce: two.nonce, ..one };
        assert_eq!(mixed.open(VAULT, &kek()).err(), Some(WrapError::Damaged));
    }
}
