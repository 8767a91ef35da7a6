//! Keys derived from the root key, one for each purpose.
//!
//! `K_x = HKDF-SHA256(ikm = root key, salt = vault id, info = "keystead/v1/x" || root generation)` (RFC 5869), the
//! generation as four bytes. A new root generation or another vault has other keys for everything.
//!
//! Two keys must not change with the root key: tokens are found by a hash under one, and the directory of members is
//! read by nodes of the old and of the new root key while it is replaced. They come from a key in the keyring instead,
//! with generation 0, which no root key has.

use hkdf::Hkdf;
use sha2::Sha256;

use super::VaultId;
use crate::secret::{DerivedKey, LastingKey, RootKey, on_wiped_stack};

/// What a derived key is for. The types that implement it exist only as markers.
pub trait Purpose {
    /// The `x` in the derivation; never used for another purpose.
    const NAME: &'static str;
}

macro_rules! purpose {
    ($(#[$doc:meta])* $vis:vis $name:ident, $text:literal) => {
        $(#[$doc])*
        $vis enum $name {}
        impl Purpose for $name {
            const NAME: &'static str = $text;
        }
    };
}

purpose! {
    /// Answers to the challenge of a node that joins.
    pub Join, "join"
}
purpose! {
    /// Proof towards another member that one holds the root key (the open channel).
    pub Peer, "peer"
}
purpose! {
    /// The MAC of the seal configuration.
    pub SealCfg, "sealcfg"
}
purpose! {
    /// The MAC of the directory of members; from the lasting key.
    pub Directory, "directory"
}
purpose! {
    /// Storage ids of tokens; from the lasting key.
    pub Token, "token"
}
purpose! {
    /// The MAC of a backup.
    pub Backup, "backup"
}
purpose! {
    /// Seals the keyring.
    pub(super) KeyringSeal, "keyring"
}
purpose! {
    /// Not a key but the public commitment to the root key.
    RootCommitment, "root-commitment"
}

/// Derives the key for the purpose `P`.
#[must_use]
pub fn derive<P: Purpose>(root: &RootKey, vault_id: VaultId, root_generation: u32) -> DerivedKey<P> {
    DerivedKey::filled(|key| expand(root.expose(), vault_id, root_generation, P::NAME, key))
}

/// Derives the key for the purpose `P` that stays when the root key is replaced.
#[must_use]
pub fn derive_lasting<P: Purpose>(lasting: &LastingKey, vault_id: VaultId) -> DerivedKey<P> {
    DerivedKey::filled(|key| expand(lasting.expose(), vault_id, 0, P::NAME, key))
}

/// The value by which a root key is recognised: public, and of no use for finding the key.
///
/// HKDF-SHA256 is collision-resistant in its input key, so that no two root keys have the same one.
#[must_use]
pub fn root_commitment(root: &RootKey, vault_id: VaultId, root_generation: u32) -> [u8; 32] {
    let mut commitment = [0; 32];
    expand(root.expose(), vault_id, root_generation, RootCommitment::NAME, &mut commitment);
    commitment
}

fn expand(ikm: &[u8; 32], vault_id: VaultId, root_generation: u32, purpose: &str, out: &mut [u8; 32]) {
    let generation = root_generation.to_be_bytes();
    on_wiped_stack(|| {
        Hkdf::<Sha256>::new(Some(&vault_id.0), ikm)
            .expand_multi_info(&[b"keystead/v1/", purpose.as_bytes(), &generation], out)
            .expect("32 bytes are fewer than HKDF-SHA256 can give");
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root() -> RootKey {
        RootKey::from_bytes(&[0x11; 32])
    }

    #[test]
    fn derivation_is_the_written_one() {
        // python3, RFC 5869 by hand: prk = hmac(b'\x22'*16, b'\x11'*32); hmac(prk, info + b'\x01')
        let join = derive::<Join>(&root(), VaultId([0x22; 16]), 3);
        assert_eq!(
            hex::encode(join.expose()),
            "3318bd75220b7bb0ea57ddee76e4c3e5f5b9f105c6800831c3e3bbc2785ffbdf"
        );
        let commitment = root_commitment(&root(), VaultId([0x22; 16]), 3);
        assert_eq!(
            hex::encode(commitment),
            "4e5db55867f2d0d07f70e0a7129a39999a2e50d1a61559d24d810ece7da7125d"
        );
    }

    #[test]
    fn every_purpose_vault_generation_and_root_has_another_key() {
        let vault = VaultId([1; 16]);
        let keys = [
            *derive::<Join>(&root(), vault, 1).expose(),
            *derive::<Peer>(&root(), vault, 1).expose(),
            *derive::<SealCfg>(&root(), vault, 1).expose(),
            *derive::<Backup>(&root(), vault, 1).expose(),
            *derive_lasting::<Directory>(&LastingKey::from_bytes(root().expose()), vault).expose(),
            *derive_lasting::<Token>(&LastingKey::from_bytes(root().expose()), vault).expose(),
            *derive::<KeyringSeal>(&root(), vault, 1).expose(),
            root_commitment(&root(), vault, 1),
            *derive::<Join>(&root(), vault, 2).expose(),
            *derive::<Join>(&root(), VaultId([2; 16]), 1).expose(),
            *derive::<Join>(&RootKey::from_bytes(&[9; 32]), vault, 1).expose(),
        ];
        let distinct: std::collections::HashSet<_> = keys.iter().collect();
        assert_eq!(distinct.len(), keys.len());
    }
}
